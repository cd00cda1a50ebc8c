"""Who a node is: an Ed25519 key (RFC 8032) in a private file, and its public half as the node's id."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

from attrs import define, field
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.keyfile import read_private, write_private

NODE_ID = 32  # bytes, an Ed25519 public key
SIGNATURE = 64  # bytes
ID_LETTERS = 52  # of base32 without padding
SHORT = 8  # letters of the id that people read


@define(eq=False)
class NodeKey:
    """A node's own key; its text forms show the public half only."""

    _private: Ed25519PrivateKey = field(repr=False)
    node_id: bytes = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Keep the public half, which everything asks for."""
        self.node_id = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def __repr__(self) -> str:
        """Show which node this is."""
        return f"NodeKey({self.short})"

    @classmethod
    def make(cls) -> NodeKey:
        """Make a new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> NodeKey:
        """Take the 32 bytes that RFC 8032 calls the private key; raises `ConfigError` at another length."""
        if len(seed) != NODE_ID:
            raise ConfigError("an Ed25519 seed has 32 bytes")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> NodeKey:
        """Read a key from a private PEM file (PKCS #8); raises `ConfigError` with the path."""
        try:
            private = load_pem_private_key(read_private(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path}: holds no unencrypted private key in PEM form") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{path}: holds another kind of key than Ed25519")
        return cls(private)

    @classmethod
    def load_or_make(cls, path: Path) -> NodeKey:
        """Read the key at `path`, or make one there if nothing is; raises `ConfigError` or `StorageError`."""
        if path.exists():
            return cls.load(path)
        key = cls.make()
        key.save(path)
        return key

    def save(self, path: Path) -> None:
        """Write the key to a private file, in one step; raises `StorageError`."""
        write_private(path, self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def seed(self) -> bytes:
        """The secret itself, 32 bytes that `from_seed` takes, to be kept in a private file."""
        return self._private.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Give the 64-byte signature of `message`."""
        return self._private.sign(message)

    def expanded(self) -> tuple[bytes, bytes]:
        """Give the secret scalar, clamped, and the prefix of nonces, 32 bytes each (RFC 8032 section 5.1.5)."""
        made = bytearray(hashlib.sha512(self._private.private_bytes_raw()).digest())
        made[0] &= 248
        made[31] = made[31] & 127 | 64
        return bytes(made[:NODE_ID]), bytes(made[NODE_ID:])

    @property
    def text(self) -> str:
        """The node id as 52 letters of lower-case base32."""
        return id_text(self.node_id)

    @property
    def short(self) -> str:
        """The first eight letters of the id: for people, never for decisions."""
        return self.text[:SHORT]


def id_text(node_id: bytes) -> str:
    """Write a node id as 52 letters of lower-case base32."""
    return base64.b32encode(node_id).decode("ascii").rstrip("=").lower()


def parse_id(text: str) -> bytes:
    """Read a node id from its 52 letters, in either case; raises `RemoteProtocolError`."""
    if len(text) != ID_LETTERS or not text.isascii():
        raise RemoteProtocolError(f"a node id has {ID_LETTERS} letters")
    try:
        node_id = base64.b32decode(text.upper() + "====")
    except binascii.Error as error:
        raise RemoteProtocolError("a node id is written in base32") from error
    if id_text(node_id) != text.lower():
        raise RemoteProtocolError("a node id ends in zero bits")  # one id has one text
    return node_id


SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""The points whose multiple by 8 is the neutral one, with the sign bit cleared: anybody can sign for these "keys"."""


def verify(node_id: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether `signature` over `message` was made by the key that `node_id` names."""
    if len(node_id) != NODE_ID or len(signature) != SIGNATURE:
        return False
    if node_id[:-1] + bytes((node_id[-1] & 0x7F,)) in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(node_id).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
