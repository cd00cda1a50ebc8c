r"""A record of a set in the DHT: somebody's word under a target, signed and paid for with work (docs/names.md).

```
expires u32 | kind u8 | len u16 | data | key 32 | signature 64 | nonce 16 | effort u32      320 bytes at most
```
The signature is Ed25519 over `"layer8/1 set\0" | target 20 | expires .. key`, so that a record cannot be moved to
another set. Work has the label `layer8 set`, as its context the SHA-256 of everything before the nonce, zeros as its
seed, and `effort` as its effort. Numbers are big-endian, times are seconds since 1970.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final

from attrs import field, frozen

from layer8.core.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, verify
from layer8.crypto.work import NONCE, SEED, check, following, search

RECORD_MAX: Final = 320  # bytes
TARGET: Final = 20

_HEAD: Final = struct.Struct("!IBH")
_EFFORT: Final = struct.Struct("!I")
_AROUND: Final = _HEAD.size + NODE_ID + SIGNATURE + NONCE + _EFFORT.size
_SIGNED: Final = b"layer8/1 set\0"
_LABEL: Final = b"layer8 set"

DATA_MAX: Final = RECORD_MAX - _AROUND  # 197 bytes


class Kind(IntEnum):
    """What a record is about; other numbers are read and kept too."""

    MIRROR = 1
    TAG = 2
    REFERENCE = 3
    AUTHOR = 4
    NAME = 5
    SEEN = 6
    MESSAGE = 7


@frozen
class Record:
    """One record as it was read; whoever uses it calls `check`."""

    expires: int
    kind: int
    data: bytes = field(repr=False)
    key: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    nonce: bytes = field(default=bytes(NONCE), repr=False)
    effort: int = 0

    @classmethod
    def make(cls, key: NodeKey, target: bytes, kind: int, data: bytes, expires: int) -> Record:
        """Sign a record, without work yet; raises `LocalProtocolError` for what has no form."""
        if len(data) > DATA_MAX or len(target) != TARGET or not 0 <= expires < 1 << 32 or not 0 <= kind < 256:
            raise LocalProtocolError(
                f"a record has {DATA_MAX} bytes of data, a target of {TARGET} and a time of 32 bits"
            )
        head = _HEAD.pack(expires, kind, len(data)) + data + key.node_id
        return cls(expires, kind, data, key.node_id, key.sign(_SIGNED + target + head))

    @classmethod
    def read(cls, raw: bytes) -> Record:
        """Read one; raises `RemoteProtocolError`."""
        if len(raw) > RECORD_MAX:
            raise LimitExceeded("RECORD_MAX", RECORD_MAX)
        if len(raw) < _AROUND:
            raise RemoteProtocolError("a record that ends too early")
        expires, kind, size = _HEAD.unpack_from(raw)
        if len(raw) != _AROUND + size:
            raise RemoteProtocolError("a record of another length than it says")
        data = raw[_HEAD.size : _HEAD.size + size]
        rest = raw[_HEAD.size + size :]
        signature, nonce = rest[NODE_ID : NODE_ID + SIGNATURE], rest[NODE_ID + SIGNATURE : -_EFFORT.size]
        (effort,) = _EFFORT.unpack(rest[-_EFFORT.size :])
        return cls(expires, kind, data, rest[:NODE_ID], signature, nonce, effort)

    def encode(self) -> bytes:
        """Write it."""
        return self._head + self.signature + self.nonce + _EFFORT.pack(self.effort)

    def worked(self, nonce: bytes, effort: int) -> Record:
        """Give the same record with its work."""
        return Record(self.expires, self.kind, self.data, self.key, self.signature, nonce, effort)

    def search(self, effort: int, start: bytes, tries: int) -> tuple[bytes | None, bytes]:
        """Search for work, so many tries from `start` on: the nonce, and where to go on; for a worker thread."""
        return search(_LABEL, self._context, bytes(SEED), effort, start, tries), following(start, tries)

    def check(self, target: bytes, least: int, now: float) -> None:
        """Raise `RemoteProtocolError` unless it stands under this target by right, cost `least` and has not expired."""
        if self.expires <= now:
            raise RemoteProtocolError("a record that has expired")
        if self.effort < least or (self.effort and not self._paid()):
            raise RemoteProtocolError("a record without its work")
        if not verify(self.key, self.signature, _SIGNED + target + self._head):
            raise RemoteProtocolError("a record with a wrong signature, or of another set")

    def _paid(self) -> bool:
        return check(_LABEL, self._context, bytes(SEED), self.effort, self.nonce)

    @property
    def _head(self) -> bytes:
        return _HEAD.pack(self.expires, self.kind, len(self.data)) + self.data + self.key

    @property
    def _context(self) -> bytes:
        return hashlib.sha256(self._head + self.signature).digest()


def set_target(label: str, *parts: bytes) -> bytes:
    """Give the target of a set: SHA-1 of its label and what it is about."""
    return hashlib.sha1(label.encode() + b"".join(parts), usedforsecurity=False).digest()
