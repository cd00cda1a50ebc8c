r"""What is said by circuits with a node of the DHT: relay messages 32 to 35. All integers are big-endian.

```
 client                                                             last hop, a node of the DHT
   |-- DHT_STORE  req u32 | kind u8 | item ---------------------------->|  puts it at the nearest eight
   |-- DHT_RETR   req u32 | kind u8 | target 20 [| min seq u64 | salt] ->|  asks until the nearest eight answered
   |-- DHT_NODES  req u32 | target 20 --------------------------------->|
   |<- DHT_DATA   req u32 | status u8 | n u8 | (len u16 | item) * n ----|  after DHT_STORE: n nodes, no items
```
kind and item: 1 mutable `k 32 | seq u64 | sig 64 | salt len u8 | salt | v`, 2 immutable `v`, 3 a record of a set
`target 20 | record`. In DHT_DATA items have the form of their request; answers to DHT_NODES are node descriptors.
The salt of DHT_RETR is what the last hop checks a mutable item with.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from attrs import field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.items import SALT_MAX, SEQ_MOST, TARGET, Item
from layer8.dht.store import read_item, write_item

ANSWERED: Final = 16  # items of one answer


class Command(IntEnum):
    """Commands of relay messages."""

    STORE = 32
    RETR = 33
    DATA = 34
    NODES = 35


class Status(IntEnum):
    """What DHT_DATA says."""

    FOUND = 0
    NONE = 1
    STORED = 2
    REFUSED = 3
    BUSY = 4


class Kind(IntEnum):
    """What is asked for, or stored."""

    MUTABLE = 1
    IMMUTABLE = 2
    RECORD = 3


@frozen
class Store:
    """DHT_STORE."""

    request: int
    item: Item

    def encode(self) -> bytes:
        """Give the data of the message."""
        kind, text = write_item(self.item)
        return self.request.to_bytes(4, "big") + bytes((kind,)) + text

    @classmethod
    def read(cls, data: bytes) -> Store:
        """Read the data; raises `RemoteProtocolError`."""
        if len(data) < 5:
            raise RemoteProtocolError("DHT_STORE that ends too early")
        return cls(int.from_bytes(data[:4], "big"), read_item(data[4], data[5:]))


@frozen
class Retrieve:
    """DHT_RETR; of `Kind.MUTABLE` nothing below `least` is wanted."""

    request: int
    kind: int
    target: bytes
    least: int = 0
    salt: bytes = b""

    def encode(self) -> bytes:
        """Give the data of the message."""
        tail = self.least.to_bytes(8, "big") + self.salt if self.least or self.salt else b""
        return self.request.to_bytes(4, "big") + bytes((self.kind,)) + self.target + tail

    @classmethod
    def read(cls, data: bytes) -> Retrieve:
        """Read the data; raises `RemoteProtocolError`."""
        at = 5 + TARGET
        short = len(data) != at and not at + 8 <= len(data) <= at + 8 + SALT_MAX
        if short or data[4] not in Kind._value2member_map_:
            raise RemoteProtocolError("DHT_RETR of another length or kind")
        least = int.from_bytes(data[at : at + 8], "big")
        if least > SEQ_MOST:
            raise RemoteProtocolError("DHT_RETR of a number that no item has")
        return cls(int.from_bytes(data[:4], "big"), data[4], bytes(data[5:at]), least, bytes(data[at + 8 :]))


@frozen
class Nodes:
    """DHT_NODES."""

    request: int
    target: bytes

    def encode(self) -> bytes:
        """Give the data of the message."""
        return self.request.to_bytes(4, "big") + self.target

    @classmethod
    def read(cls, data: bytes) -> Nodes:
        """Read the data; raises `RemoteProtocolError`."""
        if len(data) != 4 + TARGET:
            raise RemoteProtocolError("DHT_NODES of another length")
        return cls(int.from_bytes(data[:4], "big"), bytes(data[4:]))


@frozen
class Data:
    """DHT_DATA; `count` is the number of items, or of nodes that have stored one."""

    request: int
    status: Status
    items: Sequence[bytes] = field(default=(), repr=False)
    stored: int = 0

    def encode(self) -> bytes:
        """Give the data of the message."""
        count = self.stored if self.status is Status.STORED else len(self.items)
        listed = b"".join(len(one).to_bytes(2, "big") + one for one in self.items)
        return self.request.to_bytes(4, "big") + bytes((self.status, count)) + listed

    @classmethod
    def read(cls, data: bytes) -> Data:
        """Read the data; raises `RemoteProtocolError`."""
        if len(data) < 6 or data[4] not in Status._value2member_map_:
            raise RemoteProtocolError("DHT_DATA without a status")
        request, status, count = int.from_bytes(data[:4], "big"), Status(data[4]), data[5]
        items: list[bytes] = []
        at = 6
        for _ in range(0 if status is Status.STORED else count):
            size = int.from_bytes(data[at : at + 2], "big")
            items.append(bytes(data[at + 2 : at + 2 + size]))
            at += 2 + size
            if at > len(data) or len(items) > ANSWERED:
                raise RemoteProtocolError("DHT_DATA that ends too early, or with too many items")
        if at != len(data):
            raise RemoteProtocolError("DHT_DATA with something behind its end")
        return cls(request, status, tuple(items), count if status is Status.STORED else 0)
