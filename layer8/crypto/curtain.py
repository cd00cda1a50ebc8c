r"""What hides a service's descriptor from those who store it, and who may look behind it (docs/names.md).

```
item   version u8 = 1 | nonce 12 | AES-256-GCM(key, nonce, aad A' | seq u64, len u16 | text | zeros)   995 bytes always
key    HKDF(A | A' | cookie 32, or zeros where everybody may come; "layer8/1 desc")
list   E 32 | 16 * (id 8 | AES-256-GCM(key, zero nonce, aad A', cookie) 48)                            928 bytes
       id 8 | key 32 = HKDF(X25519(e, client's key), "layer8/1 auth" | A' | E), e being new for each list
```
Every item has one length, or two periods of one service could be told by theirs. Clients stand in any order in the
lists; the rest is noise, which nobody can tell from a client. HKDF is RFC 5869 with SHA-256 and no salt.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import define, field
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from layer8.core.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from layer8.crypto.keyfile import read_private
from layer8.crypto.keys import NODE_ID

COOKIE: Final = 32
KEY: Final = 32  # bytes of an X25519 key, and of AES-256
TEXT_MAX: Final = 964  # bytes that one item holds
ITEM: Final = 995
SLOTS: Final = 16  # clients of one list
LISTS: Final = 8
AUTH_CLIENTS: Final = SLOTS * LISTS
LIST: Final = 928
VERSION: Final = 1

_NONCE: Final = 12
_TAG: Final = 16
_ID: Final = 8
_SLOT: Final = _ID + COOKIE + _TAG
_DESC: Final = b"layer8/1 desc"
_AUTH: Final = b"layer8/1 auth"


class NotAuthorised(RemoteProtocolError):
    """The service is for clients that it knows, and this is none of their keys."""


def seal(key: bytes, blinded: bytes, cookie: bytes, seq: int, text: bytes, nonce: bytes | None = None) -> bytes:
    """Give the item of a text; `cookie` is empty where everybody may come, `nonce` new unless a test says otherwise."""
    if len(text) > TEXT_MAX:
        raise LocalProtocolError(f"an item holds {TEXT_MAX} bytes")
    nonce = secrets.token_bytes(_NONCE) if nonce is None else nonce
    padded = len(text).to_bytes(2, "big") + text + bytes(TEXT_MAX - len(text))
    cipher = AESGCM(_item_key(key, blinded, cookie))
    return bytes((VERSION,)) + nonce + cipher.encrypt(nonce, padded, _aad(blinded, seq))


def unseal(key: bytes, blinded: bytes, cookie: bytes, seq: int, item: bytes) -> bytes:
    """Open an item; raises `RemoteProtocolError`, and `NotAuthorised` where a cookie is missing or wrong."""
    if len(item) != ITEM or item[0] != VERSION:
        raise RemoteProtocolError("a descriptor of an unknown version or length")
    nonce = item[1 : 1 + _NONCE]
    try:
        padded = AESGCM(_item_key(key, blinded, cookie)).decrypt(nonce, item[1 + _NONCE :], _aad(blinded, seq))
    except InvalidTag as error:
        raise NotAuthorised("a descriptor that does not open: the service lets in clients that it knows") from error
    size = int.from_bytes(padded[:2], "big")
    if size > TEXT_MAX or any(padded[2 + size :]):
        raise RemoteProtocolError("a descriptor with a wrong length inside")
    return padded[2 : 2 + size]


@define(eq=False)
class ClientKey:
    """A client's own key, by which services let it in."""

    _private: X25519PrivateKey = field(repr=False)
    public: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Keep the public half."""
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def make(cls) -> ClientKey:
        """Make a new one."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> ClientKey:
        """Take the 32 bytes of a private key."""
        return cls(X25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def load(cls, path: Path) -> ClientKey:
        """Read a key from a private PEM file (PKCS #8); raises `ConfigError` with the path."""
        try:
            private = load_pem_private_key(read_private(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path}: holds no unencrypted private key in PEM form") from error
        if not isinstance(private, X25519PrivateKey):
            raise ConfigError(f"{path}: holds another kind of key than X25519")
        return cls(private)

    def find(self, blinded: bytes, lists: Sequence[bytes]) -> bytes:
        """Give the cookie that a service left for this client; raises `NotAuthorised`."""
        for one in lists[:LISTS]:
            if len(one) != LIST:
                raise RemoteProtocolError("a list of clients of another length")
            try:
                shared = self._private.exchange(X25519PublicKey.from_public_bytes(one[:KEY]))
            except ValueError as error:
                raise RemoteProtocolError("a list of clients with a key of small order") from error
            ident, key = _slot_keys(shared, blinded, one[:KEY])
            for at in range(KEY, LIST, _SLOT):
                if hmac.compare_digest(one[at : at + _ID], ident):
                    try:
                        return AESGCM(key).decrypt(bytes(_NONCE), one[at + _ID : at + _SLOT], blinded)
                    except InvalidTag:
                        continue
        raise NotAuthorised("the service lets in clients that it knows, and this key is none of theirs")


def client_lists(blinded: bytes, cookie: bytes, clients: Sequence[bytes]) -> list[bytes]:
    """Give the lists that hand a cookie to clients by their public keys; raises `LocalProtocolError`."""
    if len(clients) > AUTH_CLIENTS or len(cookie) != COOKIE:
        raise LocalProtocolError(f"a service knows {AUTH_CLIENTS} clients at most")
    order = list(clients)
    secrets.SystemRandom().shuffle(order)
    return [_client_list(blinded, cookie, order[at : at + SLOTS]) for at in range(0, len(order), SLOTS)]


def good_client(public: bytes) -> bool:
    """Tell whether a client's key is one that agrees on a secret."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def _client_list(blinded: bytes, cookie: bytes, clients: Sequence[bytes]) -> bytes:
    once = X25519PrivateKey.generate()
    public = once.public_key().public_bytes_raw()
    slots = [secrets.token_bytes(_SLOT) for _ in range(SLOTS - len(clients))]
    for client in clients:
        try:
            shared = once.exchange(X25519PublicKey.from_public_bytes(client))
        except ValueError as error:
            raise LocalProtocolError("a client's key that is none") from error
        ident, key = _slot_keys(shared, blinded, public)
        slots.append(ident + AESGCM(key).encrypt(bytes(_NONCE), cookie, blinded))
    secrets.SystemRandom().shuffle(slots)
    return public + b"".join(slots)


def _slot_keys(shared: bytes, blinded: bytes, public: bytes) -> tuple[bytes, bytes]:
    made = HKDF(SHA256(), _ID + KEY, None, _AUTH + blinded + public).derive(shared)
    return made[:_ID], made[_ID:]


def _item_key(key: bytes, blinded: bytes, cookie: bytes) -> bytes:
    if len(key) != NODE_ID or len(blinded) != NODE_ID or len(cookie) not in (0, COOKIE):
        raise LocalProtocolError("an item takes two keys of 32 bytes, and a cookie of 32 or none")
    return HKDF(SHA256(), KEY, None, _DESC).derive(key + blinded + (cookie or bytes(COOKIE)))


def _aad(blinded: bytes, seq: int) -> bytes:
    return blinded + seq.to_bytes(8, "big")
