"""HPKE in base mode (RFC 9180) with a context: many messages under one key, and secrets taken out of it.

The library's own HPKE (`layer8.crypto.hpke`) seals one message and gives no secret; Oblivious HTTP needs both, so the
key schedule stands here, on the library's X25519, HMAC and AEADs::

    KEM   0x0020  DHKEM(X25519, HKDF-SHA256)       enc 32
    KDF   0x0001  HKDF-SHA256
    AEAD  0x0001  AES-128-GCM, key 16              0x0003  ChaCha20-Poly1305, key 32      nonce 12, tag 16

Keys and contexts are objects whose `repr` shows nothing secret.
"""

from __future__ import annotations

import hmac
from enum import IntEnum
from functools import cache, lru_cache
from typing import Final

from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from layer8.core.errors import LocalProtocolError, RemoteProtocolError

KEM: Final = 0x0020
KDF: Final = 0x0001
ENC: Final = 32  # bytes of an encapsulated key, and of either half of a key pair
NONCE: Final = 12
TAG: Final = 16
HASH: Final = 32
EXPANDED: Final = 255 * HASH  # bytes that one secret can be expanded to

_KEM_SUITE: Final = b"KEM" + KEM.to_bytes(2, "big")
_LAST: Final = (1 << 8 * NONCE) - 1


class Aead(IntEnum):
    """The AEADs that are spoken, by their numbers in the registry."""

    AES_128_GCM = 0x0001
    CHACHA20_POLY1305 = 0x0003

    @property
    def key(self) -> int:
        """Give the length of its key."""
        return 16 if self is Aead.AES_128_GCM else 32


def extract(salt: bytes, secret: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869): 32 bytes."""
    return hmac.digest(salt, secret, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869); raises `LocalProtocolError` for more than EXPANDED bytes."""
    if length <= HASH:
        return hmac.digest(prk, info + b"\x01", "sha256")[:length]
    if length > EXPANDED:
        raise LocalProtocolError("more bytes than one secret can be expanded to")
    out = block = b""
    for number in range(1, -(-length // HASH) + 1):
        block = hmac.digest(prk, block + info + bytes((number,)), "sha256")
        out += block
    return out[:length]


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
    return extract(salt, b"HPKE-v1" + suite + label + secret)


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


@define(eq=False)
class Private:
    """An X25519 key pair that stays loaded, since loading costs more than the exchange."""

    key: X25519PrivateKey = field(repr=False)
    public: bytes = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Keep the public half, which everything asks for."""
        self.public = self.key.public_key().public_bytes_raw()

    @classmethod
    def make(cls) -> Private:
        """Make a new pair from the system's randomness."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load(cls, secret: bytes) -> Private:
        """Take the 32 bytes of a private key; raises `ValueError` at another length."""
        return cls(X25519PrivateKey.from_private_bytes(secret))

    @classmethod
    def derive(cls, ikm: bytes) -> Private:
        """Make the pair that belongs to at least 32 secret bytes (`DeriveKeyPair`)."""
        if len(ikm) < ENC:
            raise ValueError(f"a key pair is derived from {ENC} bytes or more")
        prk = _labeled_extract(_KEM_SUITE, b"", b"dkp_prk", ikm)
        return cls.load(_labeled_expand(_KEM_SUITE, prk, b"sk", b"", ENC))

    def dump(self) -> bytes:
        """Give the 32 secret bytes, for whoever keeps them on disk."""
        return self.key.private_bytes_raw()

    def exchange(self, public: bytes) -> bytes:
        """Give the X25519 secret shared with a public key; raises `RemoteProtocolError` for one of low order."""
        try:
            return self.key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise RemoteProtocolError("a key of low order or of a wrong length") from None


def encapsulate(public: bytes, ephemeral: Private) -> bytes:
    """Give the shared secret for the holder of `public`; `ephemeral.public` is the `enc` that goes to them."""
    return _shared(ephemeral.exchange(public), ephemeral.public + public)


def decapsulate(enc: bytes, private: Private) -> bytes:
    """Give the shared secret that `enc` carries; raises `RemoteProtocolError`."""
    return _shared(private.exchange(enc), enc + private.public)


def _shared(secret: bytes, context: bytes) -> bytes:
    prk = _labeled_extract(_KEM_SUITE, b"", b"eae_prk", secret)
    return _labeled_expand(_KEM_SUITE, prk, b"shared_secret", context, HASH)


@frozen(eq=False)
class Schedule:
    """What section 5.1 makes of a shared secret; all of it is secret."""

    context: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    key: bytes = field(repr=False)
    base_nonce: bytes = field(repr=False)
    exporter_secret: bytes = field(repr=False)


def schedule(aead: Aead, shared: bytes, info: bytes) -> Schedule:
    """Run the key schedule of base mode."""
    suite, context = _suite(aead), _context(aead, info)
    secret = _labeled_extract(suite, shared, b"secret", b"")
    return Schedule(
        context,
        secret,
        _labeled_expand(suite, secret, b"key", context, aead.key),
        _labeled_expand(suite, secret, b"base_nonce", context, NONCE),
        _labeled_expand(suite, secret, b"exp", context, HASH),
    )


@lru_cache(maxsize=16)
def _context(aead: Aead, info: bytes) -> bytes:
    """The key schedule's context: nothing secret, and the same for all who use one key."""
    suite = _suite(aead)
    hashes = (_labeled_extract(suite, b"", b"psk_id_hash", b""), _labeled_extract(suite, b"", b"info_hash", info))
    return b"\0" + b"".join(hashes)


@cache
def _suite(aead: Aead) -> bytes:
    return b"HPKE" + KEM.to_bytes(2, "big") + KDF.to_bytes(2, "big") + aead.to_bytes(2, "big")


class Sequence:
    """An AEAD key whose messages are counted: number i goes under the base nonce XOR i."""

    __slots__ = ("_aead", "_base", "_next")

    def __init__(self, aead: Aead, key: bytes, nonce: bytes) -> None:
        """Begin at number 0."""
        self._aead = AESGCM(key) if aead is Aead.AES_128_GCM else ChaCha20Poly1305(key)
        self._base = int.from_bytes(nonce, "big")
        self._next = 0

    def __repr__(self) -> str:
        """Show no key."""
        return f"<Sequence at {self._next}>"

    @property
    def nonce(self) -> bytes:
        """Give the nonce of the next message."""
        if self._next >= _LAST:
            raise LocalProtocolError("a sequence of messages is at its end")
        return (self._base ^ self._next).to_bytes(NONCE, "big")

    def seal(self, text: bytes | memoryview, associated: bytes = b"") -> bytes:
        """Encrypt the next message: TAG bytes more."""
        sealed = self._aead.encrypt(self.nonce, text, associated)
        self._next += 1
        return sealed

    def open(self, sealed: bytes | memoryview, associated: bytes = b"") -> bytes:
        """Decrypt the next message; raises `RemoteProtocolError`, and waits for the same number again then."""
        try:
            text = self._aead.decrypt(self.nonce, sealed, associated)
        except (InvalidTag, ValueError):
            raise RemoteProtocolError("a sealed message that does not open") from None
        self._next += 1
        return text


class Context:
    """One side of a conversation that a single `enc` has begun: messages go one way, secrets come out at both ends."""

    __slots__ = ("_exporter", "_suite", "enc", "messages")

    def __init__(self, aead: Aead, enc: bytes, shared: bytes, info: bytes) -> None:
        """Begin with a shared secret; `sender` and `receiver` make it."""
        made = schedule(aead, shared, info)
        self.enc = enc
        self.messages = Sequence(aead, made.key, made.base_nonce)
        self._exporter = made.exporter_secret
        self._suite = _suite(aead)

    def __repr__(self) -> str:
        """Show no key."""
        return f"<Context {self.messages!r}>"

    def export(self, context: bytes, length: int) -> bytes:
        """Give a secret of this conversation for another purpose (section 5.3)."""
        return _labeled_expand(self._suite, self._exporter, b"sec", context, length)


def sender(aead: Aead, public: bytes, info: bytes, ephemeral: Private) -> Context:
    """Begin a conversation with the holder of `public`; raises `RemoteProtocolError` for a key of low order.

    `ephemeral` is a new pair, used for nothing else.
    """
    return Context(aead, ephemeral.public, encapsulate(public, ephemeral), info)


def receiver(aead: Aead, enc: bytes, private: Private, info: bytes) -> Context:
    """Take up the conversation that `enc` begins; raises `RemoteProtocolError` for an `enc` of low order."""
    return Context(aead, bytes(enc), decapsulate(enc, private), info)
