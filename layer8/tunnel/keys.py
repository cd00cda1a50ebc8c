"""A gateway's keys: the signed set that pages trust, and when each key is made, offered, opened with and deleted.

The set is a flattened JWS (RFC 7515, section 7.2.2) over the exact bytes of a JSON payload, served as SET_TYPE::

  {"protected": base64url({"alg":"Ed25519","typ":"l8-keys+jws","kid":KID}), "payload": ..., "signature": ...}
  KID      the first 11 letters of base64url(SHA-256(identity key))
  payload  v 1, gateway, authorities, epoch, not_before, not_after, ohttp_keys, media, noise [, next]

A key is named by its epoch, the hour since 1970 that it was made in; its one-byte id is the epoch modulo 256, which
comes back after 256 hours, when nobody opens anything with the old one any more::

  made          0 h   offered    24 h   good in a cached set    48 h   opened    72 h   deleted

Times are seconds since 1970. Nothing here reads a clock or a disk; private halves do not show in any `repr`.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from enum import Enum
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final

from attrs import define, evolve, field, frozen

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.hpke_context import ENC, Aead, Private
from layer8.crypto.keys import NODE_ID, NodeKey, verify
from layer8.tunnel.limits import AUTHORITIES, KEYS_MAX
from layer8.tunnel.wire import CHUNKED, MEDIA, SINGLE, KeyConfig

SET_TYPE: Final = "application/jose+json"
HOUR: Final = 3600  # seconds
IDS: Final = 256  # hours after which an id comes back
OFFERED: Final = 24 * HOUR  # seconds from one key to the next
CACHED: Final = 48 * HOUR  # seconds that a page may go on using it: `not_after`
OPENED: Final = 72 * HOUR  # seconds that requests under it are opened
EARLY: Final = 300  # seconds before `not_before` that a slow clock may use it
AHEAD: Final = 30  # days for which sets may be signed in advance, so that the identity stays offline
FRESH: Final = 12 * HOUR  # seconds before `not_after` at which a page looks for a new set
KID: Final = 11  # letters

_GATEWAY: Final = re.compile(r"[a-z0-9-]{1,63}").fullmatch
_NUMBER_MOST: Final = 2**53 - 1
_EPOCH_MOST: Final = 2**32 - 1  # the prologue of a socket writes it in 4 bytes
_MEMBERS: Final = frozenset(
    ("v", "gateway", "authorities", "epoch", "not_before", "not_after", "ohttp_keys", "media", "noise")
)


class Flaw(Enum):
    """Why a key set is not used."""

    FORM = "form"
    SIGNATURE = "signature"  # by none of the pinned keys
    GATEWAY = "gateway"  # of another gateway
    EPOCH = "epoch"  # older than one that was seen
    TIME = "time"  # not yet, or no longer
    DIFFERENT = "different"  # relays, or looks, that give two for one epoch


class BadKeys(RemoteProtocolError):
    """A key set that is not used; `flaw` is why."""

    def __init__(self, flaw: Flaw, why: str) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.flaw = flaw


def gateway_id(text: str) -> str:
    """Check a gateway's name, 1 to 63 of `[a-z0-9-]`; raises `RemoteProtocolError`."""
    if _GATEWAY(text) is None:
        raise RemoteProtocolError("a gateway id has 1 to 63 of a-z, 0-9 and -")
    return text


def pin_text(identity: bytes) -> str:
    """Write an identity key as pages pin it: base64url, 43 letters."""
    return _letters(identity)


def read_pin(text: str) -> bytes:
    """Read a pinned identity key; raises `ConfigError`."""
    try:
        return _unletters(text, NODE_ID)
    except BadKeys:
        raise ConfigError("a pin is an Ed25519 key: 43 letters of base64url") from None


def key_name(identity: bytes) -> str:
    """Give the `kid` of an identity key: for finding it, not for trusting it."""
    return _letters(sha256(identity).digest())[:KID]


@frozen
class KeySet:
    """What a gateway says of its keys; made by `of` and `read` only."""

    gateway: str
    authorities: tuple[str, ...]
    epoch: int
    not_before: int
    not_after: int
    config: KeyConfig
    media: tuple[str, ...]
    noise: bytes
    next: bytes = b""  # the identity key that is going to sign after this one

    def sign(self, identity: NodeKey) -> bytes:
        """Give the set as it is served."""
        payload: dict[str, Any] = {
            "v": 1,
            "gateway": self.gateway,
            "authorities": list(self.authorities),
            "epoch": self.epoch,
            "not_before": self.not_before,
            "not_after": self.not_after,
            "ohttp_keys": _letters(self.config.document()),
            "media": list(self.media),
            "noise": _letters(self.noise),
        }
        if self.next:
            payload["next"] = _letters(self.next)
        protected = _letters(_json({"alg": "Ed25519", "typ": "l8-keys+jws", "kid": key_name(identity.node_id)}))
        body = _letters(_json(payload))
        signature = _letters(identity.sign(f"{protected}.{body}".encode()))
        return _json({"protected": protected, "payload": body, "signature": signature})

    @classmethod
    def read(cls, data: bytes, pins: Iterable[bytes]) -> KeySet:
        """Read a set that one of the pinned identity keys has signed; raises `BadKeys`, and reads nothing unsigned."""
        if len(data) > KEYS_MAX:
            raise BadKeys(Flaw.FORM, f"over the limit KEYS_MAX of {KEYS_MAX}")
        outer = _object(data)
        if outer.keys() != {"protected", "payload", "signature"}:
            raise BadKeys(Flaw.FORM, "a key set with other members than protected, payload and signature")
        protected, payload = _string(outer, "protected"), _string(outer, "payload")
        signature, signed = _unletters(_string(outer, "signature"), 64), f"{protected}.{payload}".encode()
        signers = [pin for pin in pins if verify(pin, signature, signed)]
        if not signers:
            raise BadKeys(Flaw.SIGNATURE, "a key set that none of the pinned keys has signed")
        head = _object(_unletters(protected))
        if head != {"alg": "Ed25519", "typ": "l8-keys+jws", "kid": key_name(signers[0])}:
            raise BadKeys(Flaw.FORM, "a key set with another head")
        return cls._of(_object(_unletters(payload)))

    @classmethod
    def _of(cls, told: dict[str, Any]) -> KeySet:
        if not told.keys() >= _MEMBERS or told["v"] != 1 or isinstance(told["v"], bool):
            raise BadKeys(Flaw.FORM, "a key set of another version, or with members missing")
        gateway = _string(told, "gateway")
        if _GATEWAY(gateway) is None:
            raise BadKeys(Flaw.FORM, "a gateway id that is none")
        try:
            config = KeyConfig.read_document(_unletters(_string(told, "ohttp_keys")))
        except BadKeys:
            raise
        except RemoteProtocolError as error:
            raise BadKeys(Flaw.FORM, str(error)) from None
        media = tuple(one for one in _strings(told, "media", 16) if one in MEDIA)
        if not media:
            raise BadKeys(Flaw.FORM, "a key set with no type of request that we know")
        epoch = _number(told, "epoch", _EPOCH_MOST)
        before, after = _number(told, "not_before"), _number(told, "not_after")
        if config.key_id != epoch % IDS or not before < after:
            raise BadKeys(Flaw.FORM, "a key set whose numbers do not fit")
        noise = _unletters(_string(told, "noise"), ENC)
        if compare_digest(noise, config.public):
            raise BadKeys(Flaw.FORM, "a key set with one key for two purposes")
        coming = _unletters(_string(told, "next"), NODE_ID) if "next" in told else b""
        authorities = tuple(_strings(told, "authorities", AUTHORITIES))
        return cls(gateway, authorities, epoch, before, after, config, media, noise, coming)

    def check(self, gateway: str, now: float, *, seen: int = 0) -> None:
        """Raise `BadKeys` unless it is of this gateway, good now, and no older than the last epoch that was `seen`."""
        if self.gateway != gateway:
            raise BadKeys(Flaw.GATEWAY, "a key set of another gateway")
        if self.epoch < seen:
            raise BadKeys(Flaw.EPOCH, "a key set older than one that was seen before")
        if not self.not_before - EARLY <= now <= self.not_after:
            raise BadKeys(Flaw.TIME, "a key set for another time")

    def stale(self, now: float) -> bool:
        """Say whether it is time to look for a newer one."""
        return now >= self.not_after - FRESH


@frozen(eq=False)
class GatewayKey:
    """The two private keys of one epoch: for requests, and for sockets."""

    epoch: int
    ohttp: Private = field(repr=False)
    noise: Private = field(repr=False)

    @classmethod
    def make(cls, epoch: int) -> GatewayKey:
        """Make new ones."""
        return cls(epoch, Private.make(), Private.make())

    @classmethod
    def load(cls, epoch: int, secret: bytes) -> GatewayKey:
        """Take what `dump` has given; raises `ValueError` at another length."""
        if len(secret) != 2 * ENC:
            raise ValueError("a gateway's keys of another length")
        return cls(epoch, Private.load(secret[:ENC]), Private.load(secret[ENC:]))

    def dump(self) -> bytes:
        """Give both private keys, 64 bytes, for whoever keeps them on disk."""
        return self.ohttp.dump() + self.noise.dump()

    @property
    def key_id(self) -> int:
        """Give the id that requests name it by."""
        return self.epoch % IDS

    @property
    def made(self) -> int:
        """Give the time that its hour began."""
        return self.epoch * HOUR

    def config(self, *, chacha: bool = False) -> KeyConfig:
        """Give its public half as a configuration."""
        return KeyConfig(self.key_id, self.ohttp.public, tuple(Aead) if chacha else (Aead.AES_128_GCM,))

    def key_set(
        self,
        gateway: str,
        authorities: Sequence[str],
        *,
        chacha: bool = False,
        chunked: bool = True,
        following: bytes = b"",
    ) -> KeySet:
        """Give what is signed and served of it."""
        return KeySet(
            gateway,
            tuple(authorities),
            self.epoch,
            self.made,
            self.made + CACHED,
            self.config(chacha=chacha),
            (CHUNKED.request, SINGLE.request) if chunked else (SINGLE.request,),
            self.noise.public,
            following,
        )


def own_hour(gateway: str) -> int:
    """Give the hour of the day at which a gateway changes its key: not all do so at once."""
    return sha256(gateway.encode()).digest()[0] % 24


@define(eq=False)
class Schedule:
    """The keys that a gateway has, and what the time makes of them.

    Several workers share one table: each asks `due`, offers a key for that epoch to the table, and `add`s the one that
    stands there afterwards.
    """

    hour: int  # of the day, `own_hour`
    _keys: dict[int, GatewayKey] = field(factory=dict, init=False, repr=False)

    def add(self, key: GatewayKey) -> None:
        """Take a key; one of an epoch that is there already stays."""
        self._keys.setdefault(key.epoch, key)

    def due(self, now: float) -> int | None:
        """Give the epoch for which there should be a key now and is none, else None."""
        here = int(now // HOUR)
        wanted = here - (here - self.hour) % 24
        if any(wanted <= epoch <= here for epoch in self._keys):
            return None
        return wanted if self._keys else here

    def emergency(self, now: float) -> int | None:
        """Give the epoch for a key out of turn, None if this hour has one already."""
        here = int(now // HOUR)
        return None if here in self._keys else here

    def current(self, now: float) -> GatewayKey | None:
        """Give the newest key that may be offered."""
        good = [key for key in self._keys.values() if key.made <= now < key.made + CACHED]
        return max(good, key=lambda key: key.epoch, default=None)

    def find(self, key_id: int, now: float) -> GatewayKey | None:
        """Give the key that opens requests with this id; at no time is there more than one."""
        for key in self._keys.values():
            if key.key_id == key_id and key.made - EARLY <= now < key.made + OPENED:
                return key
        return None

    def for_socket(self, epoch: int, now: float) -> GatewayKey | None:
        """Give the key of an epoch, for the handshake of a socket."""
        key = self._keys.get(epoch)
        return key if key is not None and key.made - EARLY <= now < key.made + OPENED else None

    def live(self, now: float) -> list[GatewayKey]:
        """Give all keys that still open something, newest first."""
        alive = [key for key in self._keys.values() if key.made - EARLY <= now < key.made + OPENED]
        return sorted(alive, key=lambda key: -key.epoch)

    def drop(self, epoch: int) -> None:
        """Forget a key at once: it is known to somebody else."""
        self._keys.pop(epoch, None)

    def dead(self, now: float) -> list[int]:
        """Forget the keys whose time is over, and give their epochs: they are to be overwritten and deleted."""
        over = sorted(epoch for epoch, key in self._keys.items() if now >= key.made + OPENED)
        for epoch in over:
            del self._keys[epoch]
        return over

    def wake(self, now: float) -> float:
        """Give the next time at which `due` or `dead` may have something new to say."""
        here = int(now // HOUR)
        ends = [key.made + OPENED for key in self._keys.values() if key.made + OPENED > now]
        return min([(here - (here - self.hour) % 24 + 24) * HOUR, *ends])


def ahead(identity: NodeKey, first: KeySet, keys: Sequence[GatewayKey]) -> list[bytes]:
    """Sign one set for each of some coming days' keys, at most AHEAD, so that the identity can go offline.

    What is the same in all is taken from `first`. Raises `ConfigError` for more days.
    """
    if len(keys) > AHEAD:
        raise ConfigError(f"key sets are signed for at most {AHEAD} days in advance")
    chacha = Aead.CHACHA20_POLY1305 in first.config.aeads
    return [
        evolve(
            first,
            epoch=key.epoch,
            not_before=key.made,
            not_after=key.made + CACHED,
            config=key.config(chacha=chacha),
            noise=key.noise.public,
        ).sign(identity)
        for key in keys
    ]


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _letters(data: bytes) -> str:
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _unletters(text: str, size: int = 0) -> bytes:
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        raise BadKeys(Flaw.FORM, "base64url that is none") from None
    if _letters(data) != text or (size and len(data) != size):  # one value has one text
        raise BadKeys(Flaw.FORM, "base64url of a wrong length, or with something beside it")
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadKeys(Flaw.FORM, "JSON that is none") from None
    if not isinstance(found, dict):
        raise BadKeys(Flaw.FORM, "JSON that is no object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadKeys(Flaw.FORM, "JSON with a member twice")
    return found


def _string(told: dict[str, Any], name: str) -> str:
    value = told[name]
    if not isinstance(value, str):
        raise BadKeys(Flaw.FORM, f"{name} is no text")
    return value


def _strings(told: dict[str, Any], name: str, most: int) -> list[str]:
    value = told[name]
    if not isinstance(value, list) or not 0 < len(value) <= most or not all(isinstance(one, str) for one in value):
        raise BadKeys(Flaw.FORM, f"{name} is no list of texts")
    return value


def _number(told: dict[str, Any], name: str, most: int = _NUMBER_MOST) -> int:
    value = told[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadKeys(Flaw.FORM, f"{name} is no number")
    return value
