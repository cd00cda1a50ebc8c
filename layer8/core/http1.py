"""HTTP/1.1 message framing (RFC 9112), strictly: where each head, each body and so the next message begins.

A `Reader` is fed one direction of a connection and gives its messages in order: a head, pieces of its body, `END`.
Pieces are the bytes as they came, chunk sizes and trailers included, and are given only once what is in them is known
to be well formed, so that whoever passes them on passes on nothing that somebody could frame in another way; or, for
those who frame it anew, only what a body carries. No byte is looked for twice: a head is searched for its end as it
arrives and read once it is whole.

Whatever two programs could read in two ways is refused (`Malformed`), for each such doubt is somebody's way to hide a
request from one of them: Content-Length with Transfer-Encoding, either of them twice or written unusually, any coding
but `chunked`, a bare CR, a folded line, line ends of two kinds in one head, a chunk size with anything around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Final, Generic, TypeVar

from attrs import frozen

from layer8.core import names
from layer8.core.errors import RemoteProtocolError

HEAD: Final = 32 * 1024  # bytes of a head, and of a chunked body's trailers
FIELDS: Final = 100  # field lines of a head
CHUNK_LINE: Final = 1024  # bytes of a chunk's size and extensions
ENDLESS: Final = 1 << 62  # bytes: `free` of a body that only the end of its connection ends
CHUNKED: Final = -1  # a head's `body`: as many bytes as its chunks say
UNTIL_END: Final = -2  # a head's `body`: all there are (responses only)

AGAIN: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))  # may be said twice: they change nothing (RFC 9110, 9.2.1)

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
_BLANK = re.compile(rb"\n\r?\n").search
_REQUEST = re.compile(rb"(?:\r?\n)?(%b) ([\x21-\x7e\x80-\xff]++) HTTP/([0-9])\.([0-9])(\r?\n)" % _TOKEN).match
_STATUS = re.compile(rb"HTTP/([0-9])\.([0-9]) ([1-9][0-9][0-9])(?: (%b))?(\r?\n)" % _VALUE).match
_FIELD = re.compile(rb"(%b):[\t ]*+(%b)\r\n" % (_TOKEN, _VALUE)).match
# By the line end of a head: all its fields, and each of them.
_FIELDS = {
    newline: (
        re.compile(rb"(?:%b:%b%b)*" % (_TOKEN, _VALUE, newline)).fullmatch,
        re.compile(rb"(%b):[\t ]*+(%b)%b" % (_TOKEN, _VALUE, newline)).findall,
    )
    for newline in (b"\r\n", b"\n")
}
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp]://([^/?#]*)((?:[/?#].*)?)").fullmatch
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}").fullmatch
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*+)?\r\n").match
_NONE: frozenset[bytes] = frozenset()
_TELLING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade"))
_HEAD_ONLY = frozenset(  # what no trailer may be: it would be looked for in vain, or add to a head that was checked
    (
        *(b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade", b"trailer"),
        *(b"authorization", b"proxy-authorization", b"cookie", b"forwarded", b"x-real-ip"),
    )
)
# Programs that keep fields as variables make one sign of all that is no letter or digit (RFC 3875, 4.1.18, and others).
_SAME = bytes(octet if chr(octet).isalnum() and octet < 128 else ord("-") for octet in range(256))

Fields = tuple[tuple[bytes, bytes, bytes], ...]
"""Name in lower case, name as it came, value without white space around it."""


def plain(name: bytes) -> bytes:
    """Give the one name, in lower case, for all field names that a program may take for the same."""
    return name.lower().translate(_SAME)


class Malformed(RemoteProtocolError):
    """A message that leaves doubt; `status` is what a visitor is told, 0 for nothing."""

    def __init__(self, why: str, status: int = 400) -> None:
        """Say what is wrong in words of our own."""
        super().__init__(why)
        self.status = status


@frozen(eq=False, slots=False)  # with slots, to make a frozen object takes twice as long
class Request:
    """The head of a request. `raw` is all of it, blank line included; `minor` is the 1 of HTTP/1.1.

    `host` is the name and port that it is for, None if an HTTP/1.0 request names none; `authority` is how it wrote
    them. `body` is a number of bytes or CHUNKED. `options` are the words of Connection, in lower case.
    """

    raw: bytes
    method: bytes
    target: bytes
    minor: int
    fields: Fields
    body: int
    host: tuple[str, int | None] | None
    authority: bytes
    options: frozenset[bytes]
    upgrade: bytes

    @property
    def path(self) -> bytes:
        """The target in origin form (or `*`)."""
        if self.target.startswith(b"/"):
            return self.target
        absolute = _ABSOLUTE(self.target)
        if absolute is None:
            return self.target
        path = absolute[2].partition(b"#")[0]
        if path.startswith(b"/"):
            return path
        return b"*" if self.method == b"OPTIONS" and not path else b"/" + path


@frozen(eq=False, slots=False)
class Response:
    """The head of a response; `body` is a number of bytes, CHUNKED or UNTIL_END, as if it answered no HEAD."""

    raw: bytes
    status: int
    reason: bytes
    minor: int
    fields: Fields
    body: int
    options: frozenset[bytes]
    upgrade: bytes


class End(Enum):
    """The end of a message."""

    END = "end"


END: Final = End.END
Head = TypeVar("Head", Request, Response)


def read_request(raw: bytes) -> Request:
    """Read a whole head; raises `Malformed`."""
    match = _REQUEST(raw)
    if match is None:
        raise Malformed("not a request line")
    method, target, major, minor, newline = match.groups()
    if major != b"1" or minor > b"1":
        if (method, target, major) == (b"PRI", b"*", b"2"):
            raise Malformed("HTTP/2 is not spoken here", 0)
        raise Malformed("neither HTTP/1.0 nor HTTP/1.1", 400 if major == b"0" else 505)
    if method == b"CONNECT":
        raise Malformed("this is no forward proxy", 405)
    fields = _read_fields(raw, match.end(), newline)
    hosts, body, options, upgrade = _framing(fields, minor)
    host: tuple[str, int | None] | None = None
    authority = b""
    if len(hosts) > 1:
        raise Malformed("two Host fields")
    if hosts:
        authority = hosts[0]
        host = names.from_authority(authority)
        if host is None:
            raise Malformed("Host is no host")
    elif minor == b"1":
        raise Malformed("no Host field")
    if not (target.startswith(b"/") or (target == b"*" and method == b"OPTIONS")):
        absolute = _ABSOLUTE(target)
        named = None if absolute is None else names.from_authority(absolute[1])
        if named is None or (host is not None and not names.same_authority(host, named)):
            raise Malformed("a target that is not for this host")
        if host is None and absolute is not None:
            host, authority = named, absolute[1]
    return Request(raw, method, target, int(minor), fields, body or 0, host, authority, options, upgrade)


def repeatable(said: bytes) -> bool:
    """Say whether a host may hear these first bytes of a connection twice: no request among them changes anything."""
    reader = Reader(read_request)
    reader.feed(said)
    try:
        while (what := reader.next()) is not None:
            if isinstance(what, Request) and what.method not in AGAIN:
                return False
    except Malformed:
        return False
    return True


def read_response(raw: bytes) -> Response:
    """Read a whole head; raises `Malformed`."""
    match = _STATUS(raw)
    if match is None:
        raise Malformed("not a status line", 502)
    major, minor, digits, reason, newline = match.groups()
    if major != b"1" or minor > b"1":
        raise Malformed("neither HTTP/1.0 nor HTTP/1.1", 502)
    fields = _read_fields(raw, match.end(), newline)
    status = int(digits)
    _, body, options, upgrade = _framing(fields, minor)
    if status < 200 or status in (204, 304):
        body = 0
    return Response(
        raw, status, reason or b"", int(minor), fields, UNTIL_END if body is None else body, options, upgrade
    )


def _read_fields(raw: bytes, at: int, newline: bytes) -> Fields:
    """Read the field lines from `at` to the blank line, which all end as the first line did."""
    whole, each = _FIELDS[newline]
    lines = raw[at : len(raw) - len(newline)]
    if not raw.endswith(newline) or whole(lines) is None:
        raise Malformed("not field lines with one kind of end")
    fields = tuple([(name.lower(), name, value.rstrip(b"\t ")) for name, value in each(lines)])
    if len(fields) > FIELDS:
        raise Malformed("too many fields", 431)
    return fields


def _framing(fields: Fields, minor: bytes) -> tuple[list[bytes], int | None, frozenset[bytes], bytes]:
    """Give what the fields say: hosts, the body (None if nothing), the words of Connection, what Upgrade asks for.

    The body is that of RFC 9112, 6.3, without its indulgence.
    """
    hosts: list[bytes] = []
    length: int | None = None
    options = _NONE
    upgrade = b""
    for name, _, value in fields:
        if name not in _TELLING:
            continue
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            if length is not None or _LENGTH(value) is None:
                raise Malformed("a length that leaves doubt")
            length = int(value)
        elif name == b"transfer-encoding":
            if length is not None or minor == b"0" or value.lower() != b"chunked":
                raise Malformed("a transfer coding that leaves doubt")
            length = CHUNKED
        elif name == b"connection":
            words = {word.strip(b"\t ") for word in value.lower().split(b",")}
            options = options.union(words - {b""})
        else:
            upgrade += (b"," if upgrade else b"") + value.lower()
    return hosts, length, options, upgrade


class _At(Enum):
    """Where a reader is."""

    HEAD = 0
    BODY = 1  # `_left` more bytes
    SIZE = 2  # a chunk's first line
    CHUNK = 3  # `_left` more bytes of a chunk, then CRLF
    CRLF = 4
    TRAILER = 5
    UNTIL = 6
    OVER = 7  # the message is complete, its END not yet given


# By these names, since Python 3.11 takes as long for `_At.HEAD` as for a call.
_AT_HEAD, _AT_BODY, _AT_SIZE, _AT_CHUNK, _AT_CRLF, _AT_TRAILER, _AT_UNTIL, _AT_OVER = _At


class Reader(Generic[Head]):
    """One direction of a connection, cut into messages: `Reader(read_request)` or `Reader(read_response)`.

    `free` says how many bytes may pass unseen from here, when all that was fed has been taken. `bare` is set by
    an owner who knows that messages end with their heads, whatever those say: answers to HEAD.
    """

    __slots__ = ("_at", "_fields", "_kept", "_left", "_place", "_read", "_seen", "_trailer", "bare")

    def __init__(self, read: Callable[[bytes], Head]) -> None:
        """Begin before the first head."""
        self.bare = False
        self._read: Callable[[bytes], Head] = read
        self._kept: bytes | bytearray = b""
        self._at = 0  # bytes of _kept that were given
        self._seen = 0  # bytes of _kept that were searched for the end of a head
        self._place = _AT_HEAD
        self._left = 0
        self._fields = 0  # trailer fields of this message
        self._trailer = 0  # their bytes

    @property
    def free(self) -> int:
        """Bytes that belong to a body and need not be fed."""
        if self._at < len(self._kept):
            return 0
        if self._place in _COUNTED:
            return self._left
        return ENDLESS if self._place is _AT_UNTIL else 0

    @property
    def between(self) -> bool:
        """Whether the last message is complete and nothing of the next one has come."""
        return self._place is _AT_HEAD and self._at == len(self._kept)

    @property
    def idle(self) -> bool:
        """Whether the last message is complete, and its END was given."""
        return self._place is _AT_HEAD

    @property
    def held(self) -> int:
        """Bytes that were fed and not given."""
        return len(self._kept) - self._at

    @property
    def whole(self) -> bool:
        """Whether an end of the connection now would cut nothing short."""
        return self._place is _AT_UNTIL or self.between

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        if self._at == len(self._kept):
            self._kept = data
            self._at = self._seen = 0
        else:
            if self._at or not isinstance(self._kept, bytearray):
                self._kept = bytearray(memoryview(self._kept)[self._at :])
                self._seen -= self._at
                self._at = 0
            self._kept += data

    def skipped(self, count: int) -> None:
        """Take that `count` of the free bytes have passed."""
        if self._place in _COUNTED:
            self._left -= count
            if not self._left:
                self._place = _AT_OVER if self._place is _AT_BODY else _AT_CRLF

    def rest(self) -> bytes:
        """Give what was fed and not given, and forget it."""
        rest = bytes(memoryview(self._kept)[self._at :])
        self._kept, self._at, self._seen = b"", 0, 0
        return rest

    def next(self) -> Head | bytes | End | None:
        """Give what comes next, None if more is needed; raises `Malformed`, after which there is no next."""
        if self._place is _AT_HEAD:
            return self._head()
        if self._place is _AT_OVER:
            self._place = _AT_HEAD
            self._seen = self._at
            return END
        start = self._at
        while self._at < len(self._kept) and self._step():
            if self._place is _AT_OVER:
                break
        if self._at == start:
            return None
        return self._cut(start)

    def content(self) -> Head | bytes | End | None:
        """Give the same as `next`, but of bodies only what they carry, without what frames it."""
        place = self._place
        if place is _AT_HEAD:
            return self._head()
        while place is not _AT_OVER:
            start = self._at
            if start == len(self._kept) or not self._step():
                return None
            if place in _COUNTED or place is _AT_UNTIL:
                return self._cut(start)
            place = self._place
        self._place = _AT_HEAD
        self._seen = self._at
        return END

    def _head(self) -> Head | None:
        kept, start = self._kept, self._at
        if start == len(kept):
            return None
        blank = _BLANK(kept, max(start, self._seen - 2), start + HEAD)
        if blank is None:
            self._seen = len(kept)
            if len(kept) - start >= HEAD:
                raise Malformed("a head that is too long", 431)
            return None
        self._at = blank.end()
        head = self._read(self._cut(start))
        body = 0 if self.bare else head.body
        if body > 0:
            self._place, self._left = _AT_BODY, body
        elif body == CHUNKED:
            self._place = _AT_SIZE
            self._fields = self._trailer = 0
        else:
            self._place = _AT_OVER if not body else _AT_UNTIL
        return head

    def _step(self) -> bool:
        """Take one part of a body; False if more has to come first."""
        kept, at, place = self._kept, self._at, self._place
        if place in _COUNTED:
            taken = min(self._left, len(kept) - at)
            self._at += taken
            self._left -= taken
            if not self._left:
                self._place = _AT_OVER if place is _AT_BODY else _AT_CRLF
        elif place is _AT_UNTIL:
            self._at = len(kept)
        elif place is _AT_CRLF:
            if len(kept) - at < 2:
                return False
            if kept[at : at + 2] != b"\r\n":
                raise Malformed("a chunk longer than it said")
            self._at += 2
            self._place = _AT_SIZE
        elif place is _AT_SIZE:
            end = self._line(CHUNK_LINE)
            size = _CHUNK(kept, at, end) if end else None
            if size is None or size.end() != end:
                return self._wait(end, "not a chunk size")
            self._at = end
            self._left = int(size[1], 16)
            self._place = _AT_CHUNK if self._left else _AT_TRAILER
        else:
            return self._trail()
        return True

    def _trail(self) -> bool:
        """Take one line of the trailer section."""
        kept, at = self._kept, self._at
        end = self._line(HEAD - self._trailer)
        if end == at + 2 and kept[at:end] == b"\r\n":
            self._at = end
            self._place = _AT_OVER
            return True
        field = _FIELD(kept, at, end) if end else None
        if field is None or field.end() != end:
            return self._wait(end, "not a trailer field")
        self._fields += 1
        self._trailer += end - at
        if self._fields > FIELDS or plain(field[1]) in _HEAD_ONLY or plain(field[1]).startswith(b"x-forwarded-"):
            raise Malformed("a trailer that cannot be one")
        self._at = end
        return True

    def _line(self, most: int) -> int:
        """Give where the line that begins here ends, 0 if that is not known yet; it has at most `most` bytes."""
        kept, at = self._kept, self._at
        end = kept.find(b"\n", max(at, self._seen), at + most) + 1
        if not end:
            if len(kept) - at >= most:
                raise Malformed("a line that is too long")
            self._seen = len(kept)
        return end

    @staticmethod
    def _wait(end: int, why: str) -> bool:
        """Wait for the rest of a line, unless it is all there and wrong."""
        if end:
            raise Malformed(why)
        return False

    def _cut(self, start: int) -> bytes:
        """Give the bytes from `start` to where the reader is, without a copy if that is all there are."""
        kept = self._kept
        if isinstance(kept, bytes):
            return kept[start : self._at]
        return bytes(memoryview(kept)[start : self._at])


_COUNTED = (_AT_BODY, _AT_CHUNK)
