"""The stamp wire: ask with some bytes, get them back with the age of the connection.

::

    client                                        server
      │ size: u16 | data: size bytes                │
      ├────────────────────────────────────────────▶│
      │◀── size: u16 | age: u32, ms | data ─────────┤      `size` counts the data alone, 1 to SIZE

Numbers are big-endian. Questions may be sent before answers have come; answers keep their order.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from attrs import frozen

from layer8.core.buffer import CappedBuffer
from layer8.core.errors import RemoteProtocolError

SIZE: Final = 1024  # bytes of data: what one question may make us send
ASKS: Final = 100  # questions per connection
IDLE: Final = 10.0  # seconds without a whole question

_ASK: Final = Struct("!H")
_STAMP: Final = Struct("!HI")


@frozen
class Ask:
    """What the client wants back."""

    data: bytes


@frozen
class Stamp:
    """The answer: `age` is milliseconds since the connection began."""

    age: int
    data: bytes


def encode_ask(ask: Ask) -> bytes:
    """Write a question."""
    return _ASK.pack(len(ask.data)) + ask.data


def encode_stamp(stamp: Stamp) -> bytes:
    """Write an answer."""
    return _STAMP.pack(len(stamp.data), stamp.age) + stamp.data


def take_ask(buffer: CappedBuffer) -> Ask | None:
    """Take one whole question, or None while there is none; raises RemoteProtocolError for a size out of range."""
    head = buffer.peek(_ASK.size)
    if len(head) < _ASK.size:
        return None
    (size,) = _ASK.unpack(head)
    if not 1 <= size <= SIZE:
        raise RemoteProtocolError(f"a question has 1 to {SIZE} bytes")
    whole = buffer.take(_ASK.size + size)
    return None if whole is None else Ask(whole[_ASK.size :])
