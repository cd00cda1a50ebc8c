"""The Noise protocol framework, revision 34: XX, with or without ML-KEM-768 as its hybrid part (XXhfs), and NK.

```
 XX  -> e [e1]                     e 32 | ML-KEM-768 public key 1184
     <- e, ee [ekem1], s, es       e 32 | sealed ciphertext 1088 + 16 | sealed s 32 + 16
     -> s, se                      sealed s 32 + 16
 NK  <- s                          known before: only the responder has a static key
     -> e, es                      e 32
     <- e, ee                      e 32
```
Each message ends in a payload, sealed once there is a key. The hybrid part is the draft "KEM-based Hybrid Forward
Secrecy for Noise": `e1` and `ekem1` are sealed like a static key, and the KEM's secret is mixed in after `ee`.

`Records` seal what follows: `len u16 | AEAD`, RECORD bytes of plaintext at most, with REKEY after REKEY_AFTER records.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.hpke_context import Private

DH: Final = 32  # bytes of an X25519 key
HASH: Final = 32
TAG: Final = 16
EK: Final = 1184  # bytes of an ML-KEM-768 public key
CT: Final = 1088  # bytes of its ciphertext
MESSAGE_MOST: Final = 65_535  # bytes of a Noise message
RECORD: Final = 31 * 2048  # bytes of plaintext in one record: as many whole cells as a message holds
REKEY_AFTER: Final = 1 << 20  # records of one direction under one key: 62 GiB, well within what AES-GCM allows

_LAST: Final = (1 << 64) - 1  # the nonce of REKEY
_SIZES: Final = {"e": DH, "e1": EK, "ekem1": CT, "s": DH}
_SECRETS: Final = frozenset(("ee", "es", "se"))
_ZERO: Final = bytes(32)


@frozen
class Suite:
    """A protocol name and what it stands for."""

    name: bytes
    aead: type[AESGCM] | type[ChaCha20Poly1305]
    order: str  # of the bytes of a nonce
    pattern: tuple[tuple[str, ...], ...]  # the tokens of each message
    known: bool = False  # whether the initiator knows the responder's static key before


LINK: Final = Suite(
    b"Noise_XXhfs_25519+MLKEM768_AESGCM_SHA256",
    AESGCM,
    "big",
    (("e", "e1"), ("e", "ee", "ekem1", "s", "es"), ("s", "se")),
)
CLASSIC: Final = Suite(
    b"Noise_XX_25519_ChaChaPoly_SHA256", ChaCha20Poly1305, "little", (("e",), ("e", "ee", "s", "es"), ("s", "se"))
)
NAMELESS: Final = Suite(b"Noise_NK_25519_AESGCM_SHA256", AESGCM, "big", (("e", "es"), ("e", "ee")), known=True)


def new_static() -> X25519PrivateKey:
    """Make a static key."""
    return X25519PrivateKey.generate()


class Cipher:
    """A key with its counter (`CipherState`)."""

    __slots__ = ("_aead", "_n", "_suite")

    def __init__(self, suite: Suite, key: bytes) -> None:
        """Begin at nonce 0."""
        self._suite = suite
        self._aead = suite.aead(key)
        self._n = 0

    def seal(self, data: bytes | memoryview, associated: bytes = b"") -> bytes:
        """Encrypt."""
        sealed = self._aead.encrypt(self._nonce(self._n), data, associated)
        self._n += 1
        return sealed

    def open(self, data: bytes | memoryview, associated: bytes = b"") -> bytes:
        """Decrypt; raises `RemoteProtocolError`."""
        try:
            opened = self._aead.decrypt(self._nonce(self._n), data, associated)
        except InvalidTag:
            raise RemoteProtocolError("a Noise message that does not open") from None
        self._n += 1
        return opened

    def rekey(self) -> None:
        """Take a new key out of the old one; the counter goes on."""
        self._aead = self._suite.aead(self._aead.encrypt(self._nonce(_LAST), _ZERO, b"")[:32])

    def _nonce(self, number: int) -> bytes:
        return b"\0\0\0\0" + number.to_bytes(8, "big" if self._suite.order == "big" else "little")


@define(eq=False)
class Keys:
    """What one side brings to a handshake; all but `static` is made fresh unless a test says otherwise.

    Who is nobody, the initiator of NK, has no static key; the KEM's key is made when it is needed.
    """

    static: X25519PrivateKey | None = field(default=None, repr=False)
    ephemeral: X25519PrivateKey = field(factory=X25519PrivateKey.generate, repr=False)
    _kem: MLKEM768PrivateKey | None = field(default=None, repr=False)
    encapsulate: Callable[[bytes], tuple[bytes, bytes]] = field(
        default=lambda ek: MLKEM768PublicKey.from_public_bytes(ek).encapsulate(), repr=False
    )

    @property
    def kem(self) -> MLKEM768PrivateKey:
        """The key that the peer encapsulates to."""
        if self._kem is None:
            self._kem = MLKEM768PrivateKey.generate()
        return self._kem

    @property
    def lasting(self) -> X25519PrivateKey:
        """The static key; raises `LocalProtocolError` where there is none."""
        if self.static is None:
            raise LocalProtocolError("this side of the handshake needs a static key")
        return self.static


class Handshake:
    """One side of a pattern: `write` and `read` in turn, the initiator writes first, until `done`."""

    def __init__(self, suite: Suite, keys: Keys, prologue: bytes, *, initiator: bool, remote: bytes = b"") -> None:
        """Mix in the name and what both sides agree on already; NK's initiator knows the `remote` static key."""
        self._suite = suite
        self._keys = keys
        self._initiator = initiator
        self._step = 0
        self._cipher: Cipher | None = None
        self._ck = suite.name.ljust(HASH, b"\0") if len(suite.name) <= HASH else hashlib.sha256(suite.name).digest()
        self._re = b""
        self._ek = b""
        self.hash = self._ck
        self.remote = remote  # the peer's static key, once it has come
        self._mix(prologue)
        if suite.known:
            self._mix(remote if initiator else keys.lasting.public_key().public_bytes_raw())

    @property
    def done(self) -> bool:
        """Whether all messages have passed."""
        return self._step == len(self._suite.pattern)

    @property
    def ours(self) -> bool:
        """Whether the next message is this side's."""
        return not self.done and (self._step % 2 == 0) == self._initiator

    @property
    def size(self) -> int:
        """How many bytes the next message has, with an empty payload."""
        size, sealed = 0, TAG if self._cipher is not None else 0
        for token in self._suite.pattern[self._step]:
            if token in _SECRETS:
                sealed = TAG
            else:
                size += _SIZES[token] + (0 if token == "e" else sealed)
        return size + sealed

    def write(self, payload: bytes = b"") -> bytes:
        """Make the next message."""
        if not self.ours:
            raise LocalProtocolError("the next Noise message is the peer's")
        keys, out = self._keys, []
        for token in self._suite.pattern[self._step]:
            match token:
                case "e":
                    public = keys.ephemeral.public_key().public_bytes_raw()
                    self._mix(public)
                    out.append(public)
                case "e1":
                    out.append(self._seal(keys.kem.public_key().public_bytes_raw()))
                case "ekem1":
                    try:
                        secret, text = keys.encapsulate(self._ek)
                    except ValueError:
                        raise RemoteProtocolError("an ML-KEM key that is none") from None
                    out.append(self._seal(text))
                    self._mix_key(secret)
                case "s":
                    out.append(self._seal(keys.lasting.public_key().public_bytes_raw()))
                case _:
                    self._exchange(token)
        out.append(self._seal(payload))
        self._step += 1
        return b"".join(out)

    def read(self, message: bytes) -> bytes:
        """Take the peer's next message, give its payload; raises `RemoteProtocolError`."""
        if self.ours or self.done:
            raise LocalProtocolError("the next Noise message is ours")
        if not self.size <= len(message) <= MESSAGE_MOST:
            raise RemoteProtocolError("a Noise message of a wrong length")
        at = 0

        def take(size: int) -> bytes:
            nonlocal at
            at += size
            return message[at - size : at]

        sealed = TAG if self._cipher is not None else 0
        for token in self._suite.pattern[self._step]:
            match token:
                case "e":
                    self._re = take(DH)
                    self._mix(self._re)
                case "e1":
                    self._ek = self._open(take(EK + sealed))
                case "ekem1":
                    text = self._open(take(CT + TAG))
                    self._mix_key(self._keys.kem.decapsulate(text))
                case "s":
                    self.remote = self._open(take(DH + TAG))
                case _:
                    self._exchange(token)
        payload = self._open(message[at:])
        self._step += 1
        return payload

    def split(self) -> tuple[Cipher, Cipher]:
        """Give the ciphers for what this side says and hears; `hash` then names this conversation."""
        if not self.done:
            raise LocalProtocolError("the handshake is not over")
        first, second = (Cipher(self._suite, key) for key in self._hkdf(b""))
        return (first, second) if self._initiator else (second, first)

    def _exchange(self, token: str) -> None:
        """Mix in a Diffie-Hellman secret; the first letter is the initiator's key."""
        mine, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = self._keys.ephemeral if mine == "e" else self._keys.lasting
        try:
            self._mix_key(
                private.exchange(X25519PublicKey.from_public_bytes(self._re if theirs == "e" else self.remote))
            )
        except ValueError:
            raise RemoteProtocolError("a key of low order") from None

    def _mix(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def _mix_key(self, secret: bytes) -> None:
        self._ck, key = self._hkdf(secret)
        self._cipher = Cipher(self._suite, key)

    def _hkdf(self, secret: bytes) -> tuple[bytes, bytes]:
        extracted = hmac.digest(self._ck, secret, "sha256")
        first = hmac.digest(extracted, b"\x01", "sha256")
        return first, hmac.digest(extracted, first + b"\x02", "sha256")

    def _seal(self, data: bytes) -> bytes:
        text = data if self._cipher is None else self._cipher.seal(data, self.hash)
        self._mix(text)
        return text

    def _open(self, text: bytes) -> bytes:
        data = text if self._cipher is None else self._cipher.open(text, self.hash)
        self._mix(text)
        return data


def nobody(remote: bytes, prologue: bytes) -> Handshake:
    """Begin NK as its initiator, who is nobody and knows the responder's static key."""
    return Handshake(NAMELESS, Keys(), prologue, initiator=True, remote=remote)


def somebody(static: Private, prologue: bytes) -> Handshake:
    """Begin NK as its responder."""
    return Handshake(NAMELESS, Keys(static.key), prologue, initiator=False)


class Records:
    """Both directions after the handshake: bytes in records, cut anywhere on the way."""

    __slots__ = ("_in", "_opened", "_out", "_rest", "_sealed")

    def __init__(self, ciphers: tuple[Cipher, Cipher]) -> None:
        """Begin with the ciphers of `Handshake.split`."""
        self._out, self._in = ciphers
        self._sealed = self._opened = 0
        self._rest = b""

    def seal(self, data: bytes) -> bytes:
        """Give the records of `data`."""
        view = memoryview(data)
        out = []
        for at in range(0, len(data), RECORD):
            sealed = self._out.seal(view[at : at + RECORD])
            out.append(len(sealed).to_bytes(2, "big"))
            out.append(sealed)
            self._sealed += 1
            if self._sealed % REKEY_AFTER == 0:
                self._out.rekey()
        return b"".join(out)

    def open(self, data: bytes) -> bytes:
        """Give the plaintext of all records that are whole; raises `RemoteProtocolError`."""
        if self._rest:
            data = self._rest + data
        view = memoryview(data)
        at, size = 0, len(data)
        out = []
        while at + 2 <= size:
            end = at + 2 + (data[at] << 8 | data[at + 1])
            if end - at < 2 + TAG:
                raise RemoteProtocolError("a Noise record shorter than its tag")
            if end > size:
                break
            out.append(self._in.open(view[at + 2 : end]))
            at = end
            self._opened += 1
            if self._opened % REKEY_AFTER == 0:
                self._in.rekey()
        self._rest = data[at:]
        return out[0] if len(out) == 1 else b"".join(out)
