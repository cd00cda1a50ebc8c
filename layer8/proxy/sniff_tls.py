"""Finds the host that a TLS visitor asks for: the one host_name of its ClientHello's server_name extension.

::

    record (RFC 8446, 5.1):   type u8 = 22 | version u16 = 0x03.. | length u16, 1..16384 | fragment
    handshake (4):            type u8 = 1  | length u24           | ClientHello
    ClientHello (4.1.2):      version u16 | random 32 | session id <u8> | cipher suites <u16> | compression <u8>
                              | extensions <u16>, each: type u16 | data <u16>
    server_name (RFC 6066):   list <u16>, each: type u8 (0 = host_name) | name <u16>
    ALPN (RFC 7301):          list <u16>, each: name <u8>

Handshake bytes are joined across records, wherever they are cut, and only once the last of them is there. A hello that
arrives whole in one record, which is nearly every one, is parsed where it lies.
"""

from __future__ import annotations

from struct import Struct

from attrs import define

from layer8.core import names
from layer8.core.errors import LocalProtocolError
from layer8.proxy.sniff import Found, Outcome, Reason, Refused

SNIFF_TLS = 64 * 1024  # bytes kept, record headers included, until the hello is complete
RECORD = 16384  # bytes of one record's fragment (RFC 8446, 5.1)
EMPTY_RECORDS = 32  # records of no bytes before the hello is complete

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_HEADER = 5  # octets of a record header
_SHORTEST = 4  # octets before the ClientHello's own: handshake type and length
_two_shorts = Struct(">HH").unpack_from

_NOT_TLS = Refused(Reason.NOT_TLS)
_BAD_RECORD = Refused(Reason.BAD_RECORD)
_BAD_HELLO = Refused(Reason.BAD_HELLO)
_LONG_HELLO = Refused(Reason.LONG_HELLO)
_BAD_NAME = Refused(Reason.BAD_NAME)
_MANY_NAMES = Refused(Reason.MANY_NAMES)
_SLOW = Refused(Reason.SLOW)


@define(eq=False)
class TlsSniffer:
    """The first bytes of one visitor of a TLS port; with `strip_dot` an SNI may end in a dot (`sni_dot = "strip"`)."""

    strip_dot: bool = False
    work: int = 0
    _kept: bytes | bytearray = b""
    _at: int = 0  # bytes of _kept that are parsed
    _left: int = 0  # bytes of the open record's fragment still to come
    _empty: int = 0
    _head: bytes = b""  # the handshake header, as far as it is here
    _have: int = 0  # handshake bytes that are here
    _need: int = 0  # length of the whole handshake message, once its header is known
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
        if not self._kept:
            self._kept = data
            if len(data) > 9 and data[0] == _HANDSHAKE and data[1] == 3 and data[5] == _CLIENT_HELLO:
                need = _SHORTEST + (data[6] << 16 | data[7] << 8 | data[8])
                length = data[3] << 8 | data[4]
                if need <= length <= RECORD and _HEADER + need <= len(data):
                    self._done = True
                    self.work = _HEADER + need
                    return parse(data, _HEADER + _SHORTEST, _HEADER + need, self.strip_dot)
        elif isinstance(self._kept, bytearray):
            self._kept += data
        else:
            self._kept = bytearray(self._kept)
            self._kept += data
        outcome = self._records() if data else None
        if outcome is None and len(self._kept) >= SNIFF_TLS:
            outcome = _LONG_HELLO
        self._done = outcome is not None
        return outcome

    def _records(self) -> Outcome | None:
        """Walk what arrived, record by record, and parse the hello once all of it is there."""
        kept = self._kept
        end = min(len(kept), SNIFF_TLS)
        while True:
            if self._left == 0:
                if end - self._at < _HEADER:
                    return self._early(end)
                refused = self._open(kept)
                if refused is not None:
                    return refused
                continue
            at, size = self._at, min(self._left, end - self._at)
            if size == 0:
                return None
            self._at += size
            self._left -= size
            self._have += size
            if self._need == 0:
                self._head += kept[at : at + min(size, _SHORTEST - len(self._head))]
                if self._head[0] != _CLIENT_HELLO:
                    return _BAD_HELLO
                if len(self._head) < _SHORTEST:
                    continue
                self._need = _SHORTEST + int.from_bytes(self._head[1:], "big")
                if self._need > SNIFF_TLS - _HEADER:
                    return _LONG_HELLO
            if self._have >= self._need:
                return parse(self._joined(), _SHORTEST, self._need, self.strip_dot)

    def _early(self, end: int) -> Refused | None:
        """Refuse what is no record before its header is complete, which for another protocol may be never."""
        if self._at == 0 and end > 0:
            self.work += 1
            if self._kept[0] != _HANDSHAKE:
                return _NOT_TLS
        return None

    def _joined(self) -> bytearray:
        """Copy the complete hello out of its records."""
        kept, at, need = self._kept, 0, self._need
        hello = bytearray()
        while len(hello) < need:
            at += _HEADER
            length = kept[at - 2] << 8 | kept[at - 1]
            hello += kept[at : at + length]
            at += length
            self.work += 2
        self.work += 2 * need  # copied here, read by whoever asked
        return hello

    def _open(self, kept: bytes | bytearray) -> Refused | None:
        """Read one record header."""
        at = self._at
        if kept[at] != _HANDSHAKE:
            return _NOT_TLS
        length = kept[at + 3] << 8 | kept[at + 4]
        if kept[at + 1] != 3 or length > RECORD:
            return _BAD_RECORD
        if length == 0:
            self._empty += 1
            if self._empty > EMPTY_RECORDS:
                return _BAD_RECORD
        self.work += 4  # all but the minor version
        self._at = at + _HEADER
        self._left = length
        return None


def parse(buf: bytes | bytearray, at: int, end: int, strip_dot: bool = False) -> Outcome:
    """Read the ClientHello that lies in `buf[at:end]`; bytes after `end` belong to something else."""
    # 2 version, 32 random, then three vectors of at least 1, 2 + 2 and 1 + 1 octets.
    if end - at < 41 or buf[at] != 3 or buf[at + 34] > 32:
        return _BAD_HELLO
    at += 35 + buf[at + 34]
    if at + 2 > end:
        return _BAD_HELLO
    size = buf[at] << 8 | buf[at + 1]
    at += 2 + size
    if size < 2 or size & 1 or at >= end or buf[at] == 0:
        return _BAD_HELLO
    at += 1 + buf[at]
    if at == end:  # TLS 1.2 allows a hello with no extensions at all
        return Found("https", None)
    if at + 2 > end or at + 2 + (buf[at] << 8 | buf[at + 1]) != end:
        return _BAD_HELLO
    at += 2
    last = end - 4
    server_name = alpn = -1
    while at <= last:
        kind, size = _two_shorts(buf, at)
        if kind == _SERVER_NAME:
            if server_name >= 0:
                return _MANY_NAMES
            server_name = at
        elif kind == _ALPN:
            if alpn >= 0:
                return _BAD_HELLO
            alpn = at
        at += 4 + size
    if at != end:
        return _BAD_HELLO
    offered: tuple[bytes, ...] = ()
    if alpn >= 0:
        offered = _alpn(bytes(buf[alpn + 2 : alpn + 4 + (buf[alpn + 2] << 8 | buf[alpn + 3])]))
        if not offered:
            return _BAD_HELLO
    if server_name < 0:
        return Found("https", None, offered)
    at = server_name + 4
    return _named(buf, at, at + (buf[at - 2] << 8 | buf[at - 1]), offered, strip_dot)


def _named(buf: bytes | bytearray, at: int, end: int, alpn: tuple[bytes, ...], strip_dot: bool) -> Outcome:
    """Read the server_name extension's data in `buf[at:end]`."""
    if end - at < 5 or at + 2 + (buf[at] << 8 | buf[at + 1]) != end:
        return _BAD_HELLO
    at += 2
    found: bytes | None = None
    while at + 3 <= end:
        kind = buf[at]
        size = buf[at + 1] << 8 | buf[at + 2]
        at += 3
        if kind == 0:
            if found is not None:
                return _MANY_NAMES
            found = bytes(buf[at : at + size])
        at += size
    if at != end:
        return _BAD_HELLO
    if found is None:
        return Found("https", None, alpn)
    host = names.from_sni(found, strip_dot)
    if host is None:
        return _BAD_NAME
    return Found("https", host, alpn)


def _alpn(extension: bytes) -> tuple[bytes, ...]:
    """Read an ALPN extension from its length field on; nothing if it is empty or its lengths do not add up."""
    if len(extension) < 6 or len(extension) - 4 != (extension[2] << 8 | extension[3]):
        return ()
    offered: list[bytes] = []
    at, end = 4, len(extension)
    while at < end:
        size = extension[at]
        at += 1
        if size == 0 or at + size > end:
            return ()
        offered.append(extension[at : at + size])
        at += size
    return tuple(offered)
