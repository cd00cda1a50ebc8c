"""Binary HTTP (RFC 9292), both framings, read strictly and as it comes: what is inside of every sealed message.

Numbers are QUIC's (RFC 9000, section 16). A known-length section begins with its length, an indeterminate one ends in
a zero; sections that are empty may be cut off at the end, and zeros may be added::

    request   framing 0 | method | scheme | authority | path | fields | content | trailers | zeros
    response  framing 1 | (status 1xx | fields) * | status | fields | content | trailers | zeros
    framing 2 and 3 are the same with sections of indeterminate length
    text      length | bytes                         method, scheme, authority, path, names, values
    fields    length | (name | value) *              or  (name | value) * | 0
    content   length | bytes                         or  (length > 0 | bytes) * | 0

Names are lowered; pseudo-fields have no place here. A `Reader` never holds more than one section of fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum, auto
from functools import lru_cache
from typing import Final

from attrs import field, frozen

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.tunnel.limits import (
    MAX_AUTHORITY,
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    MAX_INFORMATIONAL,
    MAX_METHOD,
    MAX_PATH,
    MAX_SCHEME,
)

VARINT_MOST: Final = (1 << 62) - 1
SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))  # methods that change nothing

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+").fullmatch
_METHOD = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?").fullmatch
_VISIBLE = re.compile(rb"[\x21-\x7e]*").fullmatch
_CONTROL: Final = (
    ("MAX_METHOD", MAX_METHOD, 400),
    ("MAX_SCHEME", MAX_SCHEME, 400),
    ("MAX_AUTHORITY", MAX_AUTHORITY, 400),
    ("MAX_PATH", MAX_PATH, 414),
)

Fields = tuple[tuple[bytes, bytes], ...]
"""Names in lower case with their values, in order."""


class Malformed(RemoteProtocolError):
    """A message that is not binary HTTP, or larger than a limit; `status` is what its sender is told."""

    def __init__(self, why: str, status: int = 400) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.status = status


@frozen
class Request:
    """The head of a request."""

    method: bytes
    scheme: bytes
    authority: bytes  # may be empty: then `host` says it
    path: bytes  # with its query
    fields: Fields = ()
    length: int | None = field(default=None, eq=False)  # bytes of the content where the sender has said so before it


@frozen
class Informational:
    """A response that comes before the final one."""

    status: int  # 100 to 199
    fields: Fields = ()


@frozen
class Response:
    """The head of a final response."""

    status: int  # 200 to 599
    fields: Fields = ()
    length: int | None = field(default=None, eq=False)


@frozen
class Trailers:
    """The fields behind the content, where there are any."""

    fields: Fields


class End(Enum):
    """The end of a message."""

    END = "end"


END: Final = End.END
Event = Request | Informational | Response | Trailers | End | bytes
"""What a `Reader` gives, in order; `bytes` are a piece of the content."""


def varint(number: int) -> bytes:
    """Write a number in as few bytes as QUIC has for it."""
    if number < 1 << 6:
        return bytes((number,))
    if number < 1 << 14:
        return (number | 1 << 14).to_bytes(2, "big")
    if number < 1 << 30:
        return (number | 2 << 30).to_bytes(4, "big")
    if number > VARINT_MOST:
        raise LocalProtocolError("a number that QUIC cannot write")
    return (number | 3 << 62).to_bytes(8, "big")


def read_varint(data: bytes | bytearray, at: int = 0) -> tuple[int, int] | None:
    """Give the number at an index and the index behind it, None if bytes are missing; longer forms are good too."""
    if at >= len(data):
        return None
    first = data[at]
    if first < 64:
        return first, at + 1
    end = at + (1 << (first >> 6))
    if end > len(data):
        return None
    number = int.from_bytes(data[at:end], "big")
    return number & ((1 << (8 * (end - at) - 2)) - 1), end


def _short(first: int, second: int) -> int:
    """Give the number that two bytes write; raises `IndexError` for the first of a longer one."""
    if first > 127:
        raise IndexError
    return (first & 63) << 8 | second


class _At(Enum):
    FRAMING = auto()
    TEXTS = auto()  # method, scheme, authority, path
    STATUS = auto()
    FIELDS = auto()
    CONTENT = auto()  # its length, or that of its next piece, is awaited
    PIECE = auto()
    TRAILERS = auto()
    PADDING = auto()
    BROKEN = auto()


# By these names, since Python 3.11 takes as long for `_At.FRAMING` as for a call.
_AT_FRAMING, _AT_TEXTS, _AT_STATUS, _AT_FIELDS, _AT_CONTENT, _AT_PIECE, _AT_TRAILERS, _AT_PADDING, _AT_BROKEN = _At


class Reader:
    """One message, cut anywhere: `feed` it, `end` it; both give events and raise `Malformed`."""

    __slots__ = (
        "_at",
        "_begun",
        "_data",
        "_early",
        "_fields",
        "_heads",
        "_known",
        "_left",
        "_request",
        "_size",
        "_status",
        "_texts",
    )

    def __init__(self, *, request: bool) -> None:
        """Begin to wait for a request, or for a response."""
        self._request = request
        self._at = _AT_FRAMING
        self._data = bytearray()
        self._known = False
        self._begun = False  # something of the section has been read, so that it cannot end here
        self._texts: list[bytes] = []
        self._status = 0
        self._early = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._heads: Fields = ()
        self._size = 0  # of the lines of the section so far
        self._left = 0  # bytes of the content, or of its piece, that have not come

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes of the message."""
        events: list[Event] = []
        if self._at is _AT_BROKEN:
            raise Malformed("more of a message that was refused")
        if self._at is _AT_PIECE and not self._data and 0 < len(data) < self._left:
            self._left -= len(data)
            return [bytes(data)]
        self._data += data
        if self._at is _AT_FRAMING and self._request:
            self._read_at_once()
            if self._at is _AT_CONTENT and len(self._data) > 1 and self._data.count(0) == len(self._data):
                self._tell(events, 0)  # no content, no trailers, and padding
                self._data.clear()
                self._at = _AT_PADDING
                return events
        try:
            while self._step(events):
                pass
        except Malformed:
            self._at = _AT_BROKEN
            self._data.clear()
            raise
        return events

    def end(self) -> list[Event]:
        """Take the end of the message: empty sections that are missing count as if they were there."""
        if self._data or self._begun or self._at in (_AT_FRAMING, _AT_TEXTS, _AT_STATUS, _AT_PIECE, _AT_BROKEN):
            self._at = _AT_BROKEN
            raise Malformed("a message that is cut in the middle")
        events: list[Event] = []
        if self._at is _AT_FIELDS:
            if not self._request and self._status < 200:
                raise Malformed("a message without its final response")
            self._close_fields(events)
        at, self._at = self._at, _AT_BROKEN
        if at is _AT_CONTENT and self._known:
            self._tell(events, 0)
        return [*events, END]

    def _read_at_once(self) -> None:
        """Read the head of a request of known length if it is all there, as it nearly always is, and in order.

        Anything else is left as it is, for the steps: they wait, and say what is wrong.
        """
        data = bytes(self._data)
        most = len(data)
        texts: list[bytes] = []
        fields: list[tuple[bytes, bytes]] = []
        at = 1
        try:
            if data[0]:
                return
            for _, longest, _ in _CONTROL:
                size = data[at]
                at += 1
                if size > 63:
                    size = _short(size, data[at])
                    at += 1
                start, at = at, at + size
                text = data[start:at]
                if size > longest or at > most or _VISIBLE(text) is None:
                    return
                texts.append(text)
            size = data[at]
            at += 1
            if size > 63:
                size = _short(size, data[at])
                at += 1
            end = at + size
            if end > most or _METHOD(texts[0]) is None:
                return
            while at < end:
                size = data[at]
                at += 1
                if size > 63:
                    size = _short(size, data[at])
                    at += 1
                start, at = at, at + size
                name = data[start:at].lower()
                size = data[at]
                at += 1
                if size > 63:
                    size = _short(size, data[at])
                    at += 1
                start, at = at, at + size
                value = data[start:at]
                if at > end or _NAME(name) is None or _VALUE(value) is None:
                    return
                fields.append((name, value))
        except IndexError:
            return
        if len(fields) > MAX_FIELDS:
            return
        del self._data[:at]
        self._texts, self._heads = texts, tuple(fields)
        self._known = True
        self._at = _AT_CONTENT

    def _step(self, events: list[Event]) -> bool:
        at = self._at
        if at is _AT_TEXTS:
            return self._text()
        if at is _AT_FIELDS or at is _AT_TRAILERS:
            return self._section(events) if self._known else self._line(events)
        if at is _AT_CONTENT:
            return self._measure(events)
        if at is _AT_PIECE:
            return self._piece(events)
        if at is _AT_FRAMING:
            return self._frame()
        if at is _AT_STATUS:
            return self._say()
        if self._data.count(0) != len(self._data):
            raise Malformed("padding of other bytes than zeros")
        self._data.clear()
        return False

    def _frame(self) -> bool:
        found = read_varint(self._data)
        if found is None:
            return False
        framing, end = found
        if framing not in ((0, 2) if self._request else (1, 3)):
            raise Malformed("an unknown framing")
        del self._data[:end]
        self._known = framing < 2
        self._at = _AT_TEXTS if self._request else _AT_STATUS
        return True

    def _text(self) -> bool:
        name, most, status = _CONTROL[len(self._texts)]
        found = read_varint(self._data)
        if found is None:
            return False
        size, start = found
        if size > most:
            raise Malformed(f"over the limit {name} of {most}", status)
        if len(self._data) < start + size:
            return False
        text = bytes(self._data[start : start + size])
        if _VISIBLE(text) is None or (not self._texts and _METHOD(text) is None):
            raise Malformed("a request line of other letters")
        del self._data[: start + size]
        self._texts.append(text)
        if len(self._texts) == len(_CONTROL):
            self._at = _AT_FIELDS
        return True

    def _say(self) -> bool:
        found = read_varint(self._data)
        if found is None:
            return False
        self._status, end = found
        if not 100 <= self._status <= 599:
            raise Malformed("a status that is none")
        if self._status < 200:
            self._early += 1
            if self._early > MAX_INFORMATIONAL:
                raise Malformed(f"over the limit MAX_INFORMATIONAL of {MAX_INFORMATIONAL}")
        del self._data[:end]
        self._at = _AT_FIELDS
        return True

    def _section(self, events: list[Event]) -> bool:
        """Read a whole section behind its length."""
        found = read_varint(self._data)
        if found is None:
            return False
        size, start = found
        if size > MAX_FIELD_BYTES:
            raise Malformed(f"over the limit MAX_FIELD_BYTES of {MAX_FIELD_BYTES}", 431)
        end = start + size
        if len(self._data) < end:
            return False
        section = bytes(self._data[:end])
        at = start
        while at < end:
            taken = self._take(section, at)
            if taken is None:
                raise Malformed("a field that leaves its section")
            at = taken
        del self._data[:end]
        self._close_fields(events)
        return True

    def _line(self, events: list[Event]) -> bool:
        """Read one line, or the zero behind the last."""
        if self._data[:1] == b"\0":
            del self._data[:1]
            self._close_fields(events)
            return True
        end = self._take(self._data, 0)
        if end is None:
            return False
        self._begun = True
        self._size += end
        if self._size > MAX_FIELD_BYTES:
            raise Malformed(f"over the limit MAX_FIELD_BYTES of {MAX_FIELD_BYTES}", 431)
        del self._data[:end]
        return True

    def _take(self, data: bytes | bytearray, at: int) -> int | None:
        """Keep the field at an index and give the index behind it, None if bytes are missing."""
        found = read_varint(data, at)
        if found is None:
            return None
        size, start = found
        if not size:
            raise Malformed("a field without a name")
        self._bound(size)
        middle = start + size
        found = read_varint(data, middle)
        if found is None:
            return None
        size, start_of_value = found
        self._bound(size)
        end = start_of_value + size
        if end > len(data):
            return None
        name, value = bytes(data[start:middle]).lower(), bytes(data[start_of_value:end])
        if _NAME(name) is None:
            raise Malformed("a field name that is none")
        if _VALUE(value) is None:
            raise Malformed("a field value that is none")
        if len(self._fields) == MAX_FIELDS:
            raise Malformed(f"over the limit MAX_FIELDS of {MAX_FIELDS}", 431)
        self._fields.append((name, value))
        return end

    def _bound(self, size: int) -> None:
        if size > MAX_FIELD_BYTES:
            raise Malformed(f"over the limit MAX_FIELD_BYTES of {MAX_FIELD_BYTES}", 431)

    def _close_fields(self, events: list[Event]) -> None:
        fields = tuple(self._fields)
        self._fields.clear()
        self._size = 0
        self._begun = False
        if self._at is _AT_TRAILERS:
            self._at = _AT_PADDING
            if fields:
                events.append(Trailers(fields))
            return
        if not self._request and self._status < 200:
            events.append(Informational(self._status, fields))
            self._at = _AT_STATUS
            return
        self._at = _AT_CONTENT
        self._heads = fields
        if not self._known:
            self._tell(events, None)

    def _tell(self, events: list[Event], length: int | None) -> None:
        """Give the head: of a message of known length, once that is known too."""
        if self._request:
            method, scheme, authority, path = self._texts
            events.append(Request(method, scheme, authority, path, self._heads, length))
        else:
            events.append(Response(self._status, self._heads, length))

    def _measure(self, events: list[Event]) -> bool:
        found = read_varint(self._data)
        if found is None:
            return False
        self._left, end = found
        if self._known:
            self._tell(events, self._left)
        del self._data[:end]
        if self._left:
            self._at = _AT_PIECE
        else:
            self._begun = False
            self._at = _AT_TRAILERS
        return True

    def _piece(self, events: list[Event]) -> bool:
        if not self._data:
            return False
        piece = bytes(self._data[: self._left])
        del self._data[: self._left]
        self._left -= len(piece)
        events.append(piece)
        if not self._left:
            self._at = _AT_TRAILERS if self._known else _AT_CONTENT
            self._begun = not self._known  # the zero behind the last piece is still to come
        return True


def read(data: bytes, *, request: bool) -> list[Event]:
    """Read a whole message; raises `Malformed`. The last event is END."""
    reader = Reader(request=request)
    return reader.feed(data) + reader.end()


def head(message: Request | Response, *, length: int | None, early: Iterable[Informational] = ()) -> bytes:
    """Write all that comes before the content; `length` is that of the content, None if nobody knows it.

    Raises `LocalProtocolError` for what no reader would take, as `piece` and `tail` do.
    """
    known = length is not None
    if isinstance(message, Request):
        texts = (message.method, message.scheme, message.authority, message.path)
        out = [b"\x00" if known else b"\x02"]
        for text, (name, most, _) in zip(texts, _CONTROL, strict=True):
            if len(text) > most or _VISIBLE(text) is None:
                raise LocalProtocolError(f"a request line of other letters, or over {name}")
            out += (varint(len(text)), text)
    else:
        out = [b"\x01" if known else b"\x03"]
        for one in early:
            if not 100 <= one.status < 200:
                raise LocalProtocolError("an informational status that is none")
            out += (varint(one.status), _section(one.fields, known))
        if not 200 <= message.status < 600:
            raise LocalProtocolError("a final status that is none")
        out.append(varint(message.status))
    out.append(_section(message.fields, known))
    if length is not None:
        out.append(varint(length))
    return b"".join(out)


def piece(data: bytes) -> bytes:
    """Write a piece of content whose length nobody knew; an empty one is nothing."""
    return varint(len(data)) + data if data else b""


def tail(trailers: Fields = (), *, known: bool) -> bytes:
    """Write all that comes behind the content."""
    return _section(trailers, known) if known else b"\0" + _section(trailers, known)


def write(
    message: Request | Response,
    content: bytes = b"",
    trailers: Fields = (),
    *,
    early: Iterable[Informational] = (),
    known: bool = True,
) -> bytes:
    """Write a whole message."""
    begin = head(message, length=len(content) if known else None, early=early)
    return begin + (content if known else piece(content)) + tail(trailers, known=known)


def _section(fields: Fields, known: bool) -> bytes:
    out: list[bytes] = []
    for name, value in fields:
        if _VALUE(value) is None:
            raise LocalProtocolError("a field that cannot be written")
        out += (_name(name), varint(len(value)), value)
    text = b"".join(out)
    if len(fields) > MAX_FIELDS or len(text) > MAX_FIELD_BYTES:
        raise LocalProtocolError("more fields than any reader takes")
    return varint(len(text)) + text if known else text + b"\0"


@lru_cache(maxsize=128)
def _name(name: bytes) -> bytes:
    """Write the name of a field, lowered: there are few, and they come again and again."""
    lowered = name.lower()
    if _NAME(lowered) is None:
        raise LocalProtocolError("a field that cannot be written")
    return varint(len(lowered)) + lowered
