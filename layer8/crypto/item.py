"""A mutable item of the DHT (BEP 44): what a key says under a salt, the one with the highest `seq` being the last word.

```
target    SHA-1(key 32 | salt)
signed    [4:salt LEN:salt] 3:seq i SEQ e 1:v VALUE     Ed25519, VALUE being any bencoded value
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.keys import NODE_ID, SIGNATURE, verify

V_MAX: Final = 1000  # bytes of the bencoded value
SALT_MAX: Final = 64
SEQ_MOST: Final = 2**63 - 1


@frozen
class Item:
    """One item; whoever got it from somebody calls `check`."""

    key: bytes
    salt: bytes
    seq: int
    value: bencode.Value = field(repr=False)  # not its bencode
    signature: bytes = field(repr=False)

    @classmethod
    def make(cls, key: bytes, sign: Callable[[bytes], bytes], salt: bytes, seq: int, value: bencode.Value) -> Item:
        """Sign an item; raises `LocalProtocolError` for what no node would store."""
        if not _fits(key, salt, seq, value):
            raise LocalProtocolError(f"an item has {V_MAX} bytes of value and {SALT_MAX} of salt at most")
        return cls(key, salt, seq, value, sign(signed_text(salt, seq, value)))

    @property
    def text(self) -> bytes:
        """The value, if it is a byte string; raises `RemoteProtocolError`."""
        if not isinstance(self.value, bytes):
            raise RemoteProtocolError("an item whose value is no byte string")
        return self.value

    @property
    def target(self) -> bytes:
        """Where it is stored."""
        return item_target(self.key, self.salt)

    def check(self, target: bytes) -> None:
        """Raise `RemoteProtocolError` unless it belongs there and is signed."""
        if self.target != target:
            raise RemoteProtocolError("an item of another target")
        if not _fits(self.key, self.salt, self.seq, self.value) or len(self.signature) != SIGNATURE:
            raise RemoteProtocolError("an item over the limits V_MAX or SALT_MAX, or of no form")
        if not verify(self.key, self.signature, signed_text(self.salt, self.seq, self.value)):
            raise RemoteProtocolError("an item with a wrong signature")


def item_target(key: bytes, salt: bytes = b"") -> bytes:
    """Give the 160-bit key under which an item is stored."""
    return hashlib.sha1(key + salt, usedforsecurity=False).digest()


def signed_text(salt: bytes, seq: int, value: bencode.Value) -> bytes:
    """Give what is signed."""
    head = b"4:salt" + bencode.encode(salt) if salt else b""
    return head + b"3:seqi%de1:v" % seq + bencode.encode(value)


def _fits(key: bytes, salt: bytes, seq: int, value: bencode.Value) -> bool:
    size = len(bencode.encode(value))
    return len(key) == NODE_ID and len(salt) <= SALT_MAX and 0 <= seq <= SEQ_MOST and size <= V_MAX
