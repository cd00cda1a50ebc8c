"""Finds the host of an HTTP/2 connection without TLS (prior knowledge): the `:authority` of its first request.

::

    PRI * HTTP/2.0 CRLF CRLF SM CRLF CRLF        the preface (RFC 9113, 3.4), then frames, the first one SETTINGS
    frame (4.1): length u24 | type u8 | flags u8 | stream u32 | payload
    HEADERS (6.2): [padding u8 if PADDED] [dependency u32 | weight u8 if PRIORITY] field block [padding]
    CONTINUATION (6.10): field block

All later streams follow the first one: the connection is one stream of bytes to one tenant.
"""

from __future__ import annotations

from attrs import define, field
from hpack import Decoder, HPACKError, OversizedHeaderListError

from layer8.core import names
from layer8.core.errors import LocalProtocolError
from layer8.proxy.sniff import Found, Outcome, Reason, Refused

SNIFF_H2 = 32 * 1024  # bytes kept until the first request's fields are complete; the same as SNIFF_HTTP
FRAME = 16384  # payload of one frame before a server has allowed more (RFC 9113, 6.5.2)
FIELD_LIST = 32 * 1024  # octets of the decoded fields, 32 more for each (RFC 9113, 10.5.1)
FIELDS = 100  # decoded fields, pseudo-fields included
TABLE = 4096  # octets of the HPACK table before a server has said otherwise (RFC 9113, 6.5.2)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_HEADER = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 5, 7, 9
# What no client may send before its first request is complete.
_TOO_EARLY = frozenset((_DATA, _RST_STREAM, _PUSH_PROMISE, _GOAWAY, _CONTINUATION))
_ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x01, 0x04, 0x08, 0x20
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority", b":protocol"))

_BAD_H2 = Refused(Reason.BAD_H2)
_BAD_NAME = Refused(Reason.BAD_NAME)
_BAD_METHOD = Refused(Reason.BAD_METHOD)
_BAD_TARGET = Refused(Reason.BAD_TARGET)
_MANY_NAMES = Refused(Reason.MANY_NAMES)
_MANY_FIELDS = Refused(Reason.MANY_FIELDS)
_OTHER_HOST = Refused(Reason.OTHER_HOST)
_NO_HOST = Refused(Reason.NO_HOST)
_LONG_HEAD = Refused(Reason.LONG_HEAD)
_SLOW = Refused(Reason.SLOW)


@define(eq=False)
class H2Sniffer:
    """The first bytes of one visitor that speaks HTTP/2 from the start; nothing is answered to one that breaks it.

    `at` counts the bytes of the preface that whoever feeds it has compared already.
    """

    work: int = 0
    _kept: bytearray = field(factory=bytearray)
    _at: int = 0  # bytes of _kept that are parsed: the preface at any cut, then whole frames
    _frame: tuple[int, int, int, int] | None = None  # type, flags, stream, length of the frame at _at
    _settled: bool = False  # the first SETTINGS was seen
    _stream: int = 0  # of the HEADERS that was seen
    _block: bytearray = field(factory=bytearray)
    _done: bool = False

    @property
    def data(self) -> bytes:
        """Give every byte that was fed, in order."""
        return bytes(self._kept)

    def late(self) -> Refused:
        """Give the outcome for a visitor whose time is up: closed without a byte."""
        return _SLOW

    def feed(self, data: bytes) -> Outcome | None:
        """Take what arrived and give the outcome, or None for more; raises `LocalProtocolError` after an outcome."""
        if self._done:
            raise LocalProtocolError("the sniffer has already decided")
        self._kept += data
        end = min(len(self._kept), SNIFF_H2)
        outcome: Outcome | None = self._preface(end)
        while outcome is None and self._at >= len(PREFACE):
            at = self._at + _HEADER
            if end < at:
                break
            if self._frame is None:
                outcome = self._open(self._at)
                continue
            kind, flags, _, length = self._frame
            if end < at + length:
                break
            self._frame = None
            self._at = at + length
            if kind in (_HEADERS, _CONTINUATION):
                outcome = self._fields(flags, at, at + length)
        if outcome is None and len(self._kept) >= SNIFF_H2:
            outcome = _LONG_HEAD
        self._done = outcome is not None
        return outcome

    def _preface(self, end: int) -> Refused | None:
        """Compare what is there of the preface."""
        at = self._at
        if at >= len(PREFACE):
            return None
        self._at = min(end, len(PREFACE))
        self.work += self._at - at
        return None if self._kept[at : self._at] == PREFACE[at : self._at] else _BAD_H2

    def _open(self, at: int) -> Refused | None:
        """Read the frame header at `at`."""
        kept = self._kept
        self.work += _HEADER
        length = kept[at] << 16 | kept[at + 1] << 8 | kept[at + 2]
        kind, flags = kept[at + 3], kept[at + 4]
        stream = int.from_bytes(kept[at + 5 : at + 9], "big") & 0x7FFFFFFF
        self._frame = (kind, flags, stream, length)
        if length > FRAME:
            return _BAD_H2
        if not self._settled:
            self._settled = True
            right = kind == _SETTINGS and not flags & _ACK and stream == 0 and length % 6 == 0
            return None if right else _BAD_H2
        if self._stream:  # RFC 9113, 6.10: nothing may stand between HEADERS and its CONTINUATION
            return None if kind == _CONTINUATION and stream == self._stream else _BAD_H2
        if kind == _HEADERS and stream & 1:
            self._stream = stream
            return None
        return _BAD_H2 if kind == _HEADERS or kind in _TOO_EARLY else None

    def _fields(self, flags: int, at: int, end: int) -> Outcome | None:
        """Join the field block in the payload `at..end` of HEADERS or CONTINUATION, and read it when it is complete."""
        first = not self._block and self._kept[at - _HEADER + 3] == _HEADERS
        if first and flags & _PADDED:
            if at == end or at + 1 + self._kept[at] > end:
                return _BAD_H2
            end -= self._kept[at]
            at += 1
        if first and flags & _PRIORITY:
            at += 5
        if at > end:
            return _BAD_H2
        self._block += self._kept[at:end]
        self.work += end - at
        if not flags & _END_HEADERS:
            return None
        self.work += len(self._block)
        return _read(bytes(self._block))


def _read(block: bytes) -> Outcome:
    """Decode the first request's field block and decide."""
    decoder = Decoder(max_header_list_size=FIELD_LIST)
    decoder.max_allowed_table_size = TABLE
    try:
        fields = list(decoder.decode(block, raw=True))
    except OversizedHeaderListError:
        return _LONG_HEAD
    except HPACKError:
        return _BAD_H2
    if len(fields) > FIELDS:
        return _MANY_FIELDS
    pseudo: dict[bytes, bytes] = {}
    host: bytes | None = None
    regular = False
    for name, value in fields:
        if not name.startswith(b":"):
            regular = True
            if name != name.lower():
                return _BAD_H2
            if name == b"host":
                if host is not None:
                    return _MANY_NAMES
                host = value
        elif name in pseudo:
            return _MANY_NAMES if name == b":authority" else _BAD_H2
        elif regular or name not in _PSEUDO:
            return _BAD_H2
        else:
            pseudo[name] = value
    return _decide(pseudo, host)


def _decide(pseudo: dict[bytes, bytes], host: bytes | None) -> Outcome:
    """Give the outcome of a request's pseudo-fields and its `host` field (RFC 9113, 8.3.1)."""
    if not pseudo.get(b":method"):
        return _BAD_H2
    if pseudo[b":method"] == b"CONNECT":
        return _BAD_METHOD
    if pseudo.get(b":scheme", b"").lower() != b"http" or not pseudo.get(b":path"):
        return _BAD_TARGET
    authority = pseudo.get(b":authority", host)
    if authority is None:
        return _NO_HOST
    asked = names.from_authority(authority)
    if asked is None:
        return _BAD_NAME
    if host is not None and not names.same_authority(asked, names.from_authority(host)):
        return _OTHER_HOST
    return Found("http", asked[0])
