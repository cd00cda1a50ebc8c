"""A gateway's keys: the signed set that pages trust, and when each key is made, offered, opened with and deleted.

The set is signed as `jws` has it, with the `typ` l8-keys+jws, and served as SET_TYPE::

  payload  v 1, gateway, authorities, epoch, not_before, not_after, ohttp_keys, media, noise [, next]

A key is named by its epoch, the hour since 1970 that it was made in; its one-byte id is the epoch modulo 256, which
comes back after 256 hours, when nobody opens anything with the old one any more::

  made          0 h   offered    24 h   good in a cached set    48 h   opened    72 h   deleted

Times are seconds since 1970. Nothing here reads a clock or a disk; private halves do not show in any `repr`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final

from attrs import define, evolve, field, frozen

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.hpke_context import ENC, Aead, Private
from layer8.crypto.keys import NODE_ID, NodeKey
from layer8.tunnel import jws
from layer8.tunnel.jws import BadJws
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

_KIND: Final = "l8-keys+jws"
_GATEWAY: Final = re.compile(r"[a-z0-9-]{1,63}").fullmatch
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
    return jws.letters(identity)


def read_pin(text: str) -> bytes:
    """Read a pinned identity key; raises `ConfigError`."""
    try:
        return jws.unletters(text, NODE_ID)
    except BadJws:
        raise ConfigError("a pin is an Ed25519 key: 43 letters of base64url") from None


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
            "ohttp_keys": jws.letters(self.config.document()),
            "media": list(self.media),
            "noise": jws.letters(self.noise),
        }
        if self.next:
            payload["next"] = jws.letters(self.next)
        return jws.sign(identity, _KIND, payload)

    @classmethod
    def read(cls, data: bytes, pins: Iterable[bytes]) -> KeySet:
        """Read a set that one of the pinned identity keys has signed; raises `BadKeys`, and reads nothing unsigned."""
        if len(data) > KEYS_MAX:
            raise BadKeys(Flaw.FORM, f"over the limit KEYS_MAX of {KEYS_MAX}")
        try:
            return cls._of(jws.read(data, _KIND, pins)[0])
        except BadJws as error:
            raise BadKeys(Flaw.SIGNATURE if error.forged else Flaw.FORM, f"a key set: {error}") from None

    @classmethod
    def _of(cls, told: dict[str, Any]) -> KeySet:
        if not told.keys() >= _MEMBERS or told["v"] != 1 or isinstance(told["v"], bool):
            raise BadKeys(Flaw.FORM, "a key set of another version, or with members missing")
        gateway = jws.string(told, "gateway")
        if _GATEWAY(gateway) is None:
            raise BadKeys(Flaw.FORM, "a gateway id that is none")
        try:
            config = KeyConfig.read_document(jws.unletters(jws.string(told, "ohttp_keys")))
        except BadJws:
            raise
        except RemoteProtocolError as error:
            raise BadKeys(Flaw.FORM, str(error)) from None
        media = tuple(one for one in jws.strings(told, "media", 16) if one in MEDIA)
        if not media:
            raise BadKeys(Flaw.FORM, "a key set with no type of request that we know")
        epoch = jws.number(told, "epoch", _EPOCH_MOST)
        before, after = jws.number(told, "not_before"), jws.number(told, "not_after")
        if config.key_id != epoch % IDS or not before < after:
            raise BadKeys(Flaw.FORM, "a key set whose numbers do not fit")
        noise = jws.unletters(jws.string(told, "noise"), ENC)
        if compare_digest(noise, config.public):
            raise BadKeys(Flaw.FORM, "a key set with one key for two purposes")
        coming = jws.unletters(jws.string(told, "next"), NODE_ID) if "next" in told else b""
        authorities = tuple(jws.strings(told, "authorities", AUTHORITIES))
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
