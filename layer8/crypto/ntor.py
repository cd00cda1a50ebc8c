"""`l8-ntor`: how a client and one hop agree on keys, in one message each way (docs/onion.md).

It has the shape of Tor's ntor v3 with ML-KEM-768 (FIPS 203) added, so that it falls only with X25519 and ML-KEM both.
The relay is known by its identity ID and proves that it holds its onion key b, B; the client stays nameless::

    P        "layer8/1 ntor x25519 mlkem768 sha256" | network 8
    client   ID 32 | B 32 | X 32 | ek 1184 | AEAD(k1, aad ID | B | X | ek, CM)
             k1 = HKDF(salt P, DH(x, B), "msg" | ID | B | X | SHA-256(ek))
    relay    Y 32 | ct 1088 | auth 32 | AEAD(km, aad auth, SM)
             T = SHA-256(P | client message | Y | ct), M = HKDF-Extract(salt T, DH(x, B) | DH(y, X) | ss)
             auth, km, keys = HKDF-Expand(M, "auth", 32), (M, "enc", 32), (M, "keys", 320)
    keys     forward 144 | backward 144 | binding 32

AEAD is AES-256-GCM with a zero nonce, each key being used once; HKDF is RFC 5869 with SHA-256. CM and SM are what the
two say to each other, see `Terms`. Whatever is wrong with a client's message, the relay finds it out after the same
work and says the same. Nothing here may run where the reactor waits: a side takes a third of a millisecond.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.keys import NODE_ID
from layer8.crypto.onion import KEYS

KEY: Final = 32  # bytes of an X25519 key, and of a symmetric one
NETWORK: Final = 8  # bytes of a network's id
EK: Final = 1184  # bytes of an ML-KEM-768 public key
CT: Final = 1088
TAG: Final = 16
BINDING: Final = 32
BEGIN_LEAST: Final = NODE_ID + 2 * KEY + EK + TAG  # 1296: a client's message with no word in it
ANSWER_LEAST: Final = KEY + CT + KEY + TAG  # 1168
SEEN_X: Final = 65_536  # client keys remembered per onion key, against replays

_LABEL: Final = b"layer8/1 ntor x25519 mlkem768 sha256"
_NONCE: Final = bytes(12)
_HEAD: Final = BEGIN_LEAST - TAG


class HandshakeFailed(RemoteProtocolError):
    """The other side's message is not what its keys would have made of ours; nothing says what is wrong with it."""

    def __init__(self) -> None:
        """Say no more than that."""
        super().__init__("a circuit handshake failed")


@frozen
class Terms:
    """What both sides say about a circuit, as `type u8 | len u8 | value` in CM and SM; what is absent is not said.

    1 window and 2 ratchet are cells (u16), 3 versions are u16 each, 4 padding is the number of a scheme (u8). Unknown
    types are skipped when read: they take part in the handshake's transcript like everything else.
    """

    window: int | None = None
    ratchet: int | None = None
    versions: tuple[int, ...] = ()
    padding: int | None = None

    def to_bytes(self) -> bytes:
        """Write them by rising type."""
        values = {
            1: b"" if self.window is None else self.window.to_bytes(2, "big"),
            2: b"" if self.ratchet is None else self.ratchet.to_bytes(2, "big"),
            3: b"".join(version.to_bytes(2, "big") for version in self.versions),
            4: b"" if self.padding is None else self.padding.to_bytes(1, "big"),
        }
        return b"".join(bytes((kind, len(value))) + value for kind, value in values.items() if value)

    @classmethod
    def from_bytes(cls, text: bytes) -> Terms:
        """Read a list; raises `RemoteProtocolError` for one that is cut off, says a thing twice or has odd lengths."""
        values: dict[int, bytes] = {}
        at = 0
        while at < len(text):
            value = text[at + 2 : at + 2 + text[at + 1]] if at + 2 <= len(text) else None
            if value is None or len(value) < text[at + 1] or text[at] in values:
                raise RemoteProtocolError("the terms of a circuit are cut off or said twice")
            values[text[at]] = value
            at += 2 + len(value)
        if any(kind in values and len(values[kind]) != length for kind, length in ((1, 2), (2, 2), (4, 1))):
            raise RemoteProtocolError("a term of a circuit has a wrong length")
        versions = values.get(3, b"")
        if len(versions) % 2:
            raise RemoteProtocolError("a term of a circuit has a wrong length")
        numbers = {kind: int.from_bytes(value, "big") for kind, value in values.items()}
        pairs = range(0, len(versions), 2)
        return cls(
            numbers.get(1),
            numbers.get(2),
            tuple(int.from_bytes(versions[at : at + 2], "big") for at in pairs),
            numbers.get(4),
        )


@define(eq=False)
class OnionKey:
    """A relay's X25519 key that circuits begin with; its text form shows the public half only."""

    _private: X25519PrivateKey = field(repr=False)
    public: bytes = field(init=False, repr=bytes.hex)

    def __attrs_post_init__(self) -> None:
        """Keep the public half, which everybody asks for."""
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def make(cls) -> OnionKey:
        """Make a new key from the system's randomness."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_private(cls, private: bytes) -> OnionKey:
        """Take the 32 bytes that `private` gave; raises `LocalProtocolError` at another length."""
        if len(private) != KEY:
            raise LocalProtocolError(f"an onion key has {KEY} bytes")
        return cls(X25519PrivateKey.from_private_bytes(private))

    @property
    def private(self) -> bytes:
        """The secret itself, to be kept in a private file."""
        return self._private.private_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """Give DH with another's public key; raises `ValueError` for one of low order."""
        return self._private.exchange(X25519PublicKey.from_public_bytes(public))


@frozen
class Keys:
    """What a handshake ends in: keys for a layer each way, what binds a signature to this circuit, and SM."""

    forward: bytes = field(repr=False)
    backward: bytes = field(repr=False)
    binding: bytes = field(repr=False)
    sm: bytes

    @classmethod
    def cut(cls, keys: bytes, sm: bytes) -> Keys:
        """Cut 320 bytes."""
        return cls(keys[:KEYS], keys[KEYS : 2 * KEYS], keys[2 * KEYS :], sm)


@define(eq=False)
class Begun:
    """A client's side while it waits for the answer."""

    _x: OnionKey = field(repr=False)
    _dk: MLKEM768PrivateKey = field(repr=False)
    _e1: bytes = field(repr=False)
    _before: bytes = field(repr=False)  # P and the message that was sent


@define(eq=False)
class SeenX:
    """Which client keys a relay has answered, for each of its onion keys the last SEEN_X; lost at a restart.

    Threads may share one: of two that bring the same key at once, one is told that it is fresh.
    """

    _order: dict[bytes, deque[bytes]] = field(factory=dict, init=False, repr=False)
    _known: dict[bytes, dict[bytes, bytes]] = field(factory=dict, init=False, repr=False)

    def fresh(self, onion_key: bytes, x: bytes) -> bool:
        """Take a client's key; False if it has come before under this onion key."""
        known, order = self._known.setdefault(onion_key, {}), self._order.setdefault(onion_key, deque())
        mark = x[:8]  # enough to tell random keys apart, and an object of this call
        if known.setdefault(mark, mark) is not mark:
            return False
        order.append(mark)
        if len(order) > SEEN_X:
            known.pop(order.popleft(), None)
        return True

    def forget(self, onion_key: bytes) -> None:
        """Drop what belongs to an onion key that nobody may use any more."""
        self._order.pop(onion_key, None)
        self._known.pop(onion_key, None)


def client_begin(
    identity: bytes,
    onion_key: bytes,
    network: bytes,
    cm: bytes,
    *,
    x: OnionKey | None = None,
    dk: MLKEM768PrivateKey | None = None,
) -> tuple[Begun, bytes]:
    """Begin with the relay of these public keys: what to keep and what to send, 1296 bytes and `cm`.

    `x` and `dk` are new unless a test says otherwise. Raises `HandshakeFailed` for an onion key of low order.
    """
    before = _place(identity, onion_key, network)
    x = x or OnionKey.make()
    dk = dk or MLKEM768PrivateKey.generate()
    ek = dk.public_key().public_bytes_raw()
    try:
        e1 = x.agree(onion_key)
    except ValueError as error:
        raise HandshakeFailed from error
    head = identity + onion_key + x.public + ek
    message = head + AESGCM(_first_key(before, e1, head)).encrypt(_NONCE, cm, head)
    return Begun(x, dk, e1, before + message), message


def client_finish(begun: Begun, reply: bytes) -> Keys:
    """Take the relay's answer; raises `HandshakeFailed` unless it is one to our message by the relay that we meant."""
    if len(reply) < ANSWER_LEAST:
        raise HandshakeFailed
    y, ct, auth, sealed = reply[:KEY], reply[KEY : KEY + CT], reply[KEY + CT : KEY + CT + KEY], reply[KEY + CT + KEY :]
    try:
        shared = begun._e1 + begun._x.agree(y) + begun._dk.decapsulate(ct)
    except ValueError as error:
        raise HandshakeFailed from error
    expected, km, keys = schedule(begun._before + y + ct, shared)
    if not hmac.compare_digest(auth, expected):
        raise HandshakeFailed
    try:
        return Keys.cut(keys, AESGCM(km).decrypt(_NONCE, sealed, auth))
    except InvalidTag as error:
        raise HandshakeFailed from error


def encapsulate(ek: bytes) -> tuple[bytes, bytes]:
    """Give a shared secret and its ciphertext for a client's ML-KEM key; raises `ValueError` if it is none."""
    return MLKEM768PublicKey.from_public_bytes(ek).encapsulate()


def relay_answer(
    identity: bytes,
    keys: Mapping[bytes, OnionKey],
    network: bytes,
    message: bytes,
    seen: SeenX,
    choose_sm: Callable[[bytes], bytes],
    *,
    y: OnionKey | None = None,
    kem: Callable[[bytes], tuple[bytes, bytes]] = encapsulate,
) -> tuple[bytes, Keys, bytes]:
    """Answer a client that begins: what to send, 1168 bytes and SM, the keys, and the client's CM.

    `keys` are our onion keys by their public halves, the old one included; `choose_sm` makes SM of a good CM, and may
    raise `RemoteProtocolError` for one that it does not like. `y` and `kem` are new unless a test says otherwise.
    Raises `HandshakeFailed` for anything else than a new message for us, always after the same work.
    """
    good = len(message) >= BEGIN_LEAST
    if not good:
        message = bytes(BEGIN_LEAST)
    head, onion_key = message[:_HEAD], message[NODE_ID : NODE_ID + KEY]
    x, ek = head[NODE_ID + KEY : NODE_ID + 2 * KEY], head[NODE_ID + 2 * KEY :]
    before = _place(identity, onion_key, network)
    good &= hmac.compare_digest(head[:NODE_ID], identity) and onion_key in keys
    e1, agreed = _agree(keys.get(onion_key) or _decoy(), x)
    cm, opened = _open(_first_key(before, e1, head), head, message[_HEAD:])
    good = good and agreed and opened and seen.fresh(onion_key, x)
    y = y or OnionKey.make()
    e2, agreed = _agree(y, x)
    ss, ct, fits = encapsulated(kem, ek)
    good = good and agreed and fits
    auth, km, made = schedule(before + message + y.public + ct, e1 + e2 + ss)
    sm = b""
    if good:
        try:
            sm = choose_sm(cm)
        except RemoteProtocolError:
            good = False
    reply = y.public + ct + auth + AESGCM(km).encrypt(_NONCE, sm, auth)
    if not good:
        raise HandshakeFailed
    return reply, Keys.cut(made, sm), cm


def _place(identity: bytes, onion_key: bytes, network: bytes) -> bytes:
    """Give P, once the lengths are known to be right; raises `LocalProtocolError`."""
    if len(identity) != NODE_ID or len(onion_key) != KEY or len(network) != NETWORK:
        raise LocalProtocolError("a handshake takes an identity of 32, an onion key of 32 and a network id of 8 bytes")
    return _LABEL + network


def _extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


def _expand(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, info).derive(secret)


def _first_key(place: bytes, e1: bytes, head: bytes) -> bytes:
    """Give k1, which hides CM, for `head` = ID | B | X | ek."""
    info = b"msg" + head[: NODE_ID + 2 * KEY] + hashlib.sha256(head[NODE_ID + 2 * KEY :]).digest()
    return _expand(_extract(place, e1), info, KEY)


def schedule(transcript: bytes, shared: bytes) -> tuple[bytes, bytes, bytes]:
    """Give auth, km and the 320 bytes of keys, for P | client message | Y | ct and e1 | e2 | ss."""
    secret = _extract(hashlib.sha256(transcript).digest(), shared)
    return _expand(secret, b"auth", KEY), _expand(secret, b"enc", KEY), _expand(secret, b"keys", 2 * KEYS + BINDING)


@cache
def _decoy() -> OnionKey:
    """Give a key to work with when a client names none of ours."""
    return OnionKey.make()


@cache
def _decoy_ek() -> bytes:
    return MLKEM768PrivateKey.generate().public_key().public_bytes_raw()


def _agree(key: OnionKey, public: bytes) -> tuple[bytes, bool]:
    """Give DH, or zeros and False if the other key is of low order."""
    try:
        return key.agree(public), True
    except ValueError:
        return bytes(KEY), False


def _open(key: bytes, head: bytes, sealed: bytes) -> tuple[bytes, bool]:
    """Give CM, or nothing and False if it cannot be opened."""
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, head), True
    except InvalidTag:
        return b"", False


def encapsulated(kem: Callable[[bytes], tuple[bytes, bytes]], ek: bytes) -> tuple[bytes, bytes, bool]:
    """Give ss and ct, for a key of our own and False if the client's is none."""
    try:
        return *kem(ek), True
    except ValueError:
        return *kem(_decoy_ek()), False
