"""Finds the host that an HTTP visitor asks for: the one Host field of its first request (RFC 9112, 2, 3 and 5).

A request that arrives whole and is written the usual way is decided by one regular expression. Everything else goes
line by line: a line is looked at once to find its end and once to read it, and never again. Both ways follow the same
grammar, and a test holds them to the same answers.

Nothing after the blank line is read: the body, and in `raw` mode whatever requests follow, belong to the host that was
found. A connection that begins with the HTTP/2 preface is handed to `sniff_h2`.
"""

from __future__ import annotations

import re

from attrs import define

from layer8.core import names
from layer8.core.errors import LocalProtocolError
from layer8.core.http1 import FIELDS, HEAD
from layer8.proxy.sniff import Found, Outcome, Reason, Refused, answer
from layer8.proxy.sniff_h2 import PREFACE, H2Sniffer

SNIFF_HTTP = HEAD  # bytes kept until the head is complete, and of the longest head

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"  # RFC 9110, 5.6.2
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"  # RFC 9110, 5.5: no control character but the tab
_TARGET = rb"[\x21-\x7e\x80-\xff]++"  # wider than RFC 3986: curl sends a path's UTF-8 as it is
# A possessive group would say the same, but Python before 3.11.5 gets those wrong; inside, nothing can be given back.
_OTHER = rb"(?:(?![Hh][Oo][Ss][Tt]:)%b:%b\r\n){0,49}" % (_TOKEN, _VALUE)  # with Host, never more than FIELDS

_USUAL = re.compile(
    rb"(?!CONNECT )%b /%b HTTP/1\.[01]\r\n%b[Hh][Oo][Ss][Tt]:[\t ]*+([-.0-9A-Za-z]++)(?::[0-9]{1,4})?\r\n%b\r\n"
    % (_TOKEN, _TARGET.replace(b"++", b"*+"), _OTHER, _OTHER)
).match
_REQUEST = re.compile(rb"(%b) (%b) HTTP/([0-9])\.([0-9])\r?\n" % (_TOKEN, _TARGET)).match
_FIELD = re.compile(rb"(?:(%b):(%b)\r?\n|(\r?\n))" % (_TOKEN, _VALUE)).match
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp]://([^/?#]*)(?:[/?#].*)?").fullmatch
_NEWLINE = re.compile(rb"\r?\n").match
_FIRST = frozenset(b"\r\n-!#$%&'*+.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_H2_LINE = PREFACE[: PREFACE.index(b"\n") + 1]
_TLS = 22  # first octet of a TLS handshake record, and not a token character

_BAD = answer(400)
_NOT_HTTP = Refused(Reason.NOT_HTTP)
_PROXY_HEADER = Refused(Reason.PROXY_HEADER, _BAD)
_BAD_REQUEST = Refused(Reason.BAD_REQUEST, _BAD)
_BAD_FIELD = Refused(Reason.BAD_FIELD, _BAD)
_BAD_NAME = Refused(Reason.BAD_NAME, _BAD)
_BAD_TARGET = Refused(Reason.BAD_TARGET, _BAD)
_MANY_NAMES = Refused(Reason.MANY_NAMES, _BAD)
_NO_HOST = Refused(Reason.NO_HOST, _BAD)
_OTHER_HOST = Refused(Reason.OTHER_HOST, _BAD)
_BAD_METHOD = Refused(Reason.BAD_METHOD, answer(405))
_SLOW = Refused(Reason.SLOW, answer(408))
_SILENT = Refused(Reason.SLOW)
_LONG_LINE = Refused(Reason.LONG_HEAD, answer(414))
_LONG_HEAD = Refused(Reason.LONG_HEAD, answer(431))
_MANY_FIELDS = Refused(Reason.MANY_FIELDS, answer(431))
_BAD_VERSION = Refused(Reason.BAD_VERSION, answer(505))


@define(eq=False)
class HttpSniffer:
    """The first bytes of one visitor of an HTTP port, in `raw` mode."""

    work: int = 0
    _kept: bytes | bytearray = b""
    _at: int = 0  # bytes of _kept that are parsed, always whole lines
    _fields: int = -1  # field lines seen, or -1 before the request line
    _old: bool = False  # HTTP/1.0
    _host: tuple[str, int | None] | None = None
    _target: tuple[str, int | None] | None = None  # the authority of an absolute-form target
    _h2: H2Sniffer | None = None
    _done: bool = False

    @property
    def data(self) -> bytes:
        """Give every byte that was fed, in order."""
        return bytes(self._kept) if self._h2 is None else self._h2.data

    def late(self) -> Refused:
        """Give the outcome for a visitor whose time is up: 408, or nothing if it never said a thing."""
        if self._h2 is not None:
            return self._h2.late()
        return _SLOW if self._kept else _SILENT

    def feed(self, data: bytes) -> Outcome | None:
        """Take what arrived and give the outcome, or None for more; raises `LocalProtocolError` after an outcome."""
        if self._done:
            raise LocalProtocolError("the sniffer has already decided")
        if self._h2 is not None:
            return self._second(self._h2, data)
        kept = self._kept
        if not kept:
            self._kept = data
            whole = data.rfind(b"\n", 0, _reach(data)) + 1
            usual = _USUAL(data, 0, whole)
            if usual is not None and (host := names.from_wire(usual[1])) is not None:
                self._done = True
                self.work = usual.end()
                return Found("http", host)
            self.work = min(len(data), _reach(data))
            if data and data[0] not in _FIRST:
                self._done = True
                return _NOT_HTTP if data[0] == _TLS else _BAD_REQUEST
        else:
            start = len(kept)
            if not isinstance(kept, bytearray):
                kept = self._kept = bytearray(kept)
            kept += data
            end = min(len(kept), _reach(kept))
            whole = kept.rfind(b"\n", start, end) + 1
            self.work += max(0, end - max(whole, start))
        outcome = self._lines(whole)
        self._done = outcome is not None
        return outcome

    def _second(self, h2: H2Sniffer, data: bytes) -> Outcome | None:
        """Feed the sniffer for HTTP/2 and take over what it says."""
        before = h2.work
        outcome = h2.feed(data)
        self.work += h2.work - before
        self._done = outcome is not None
        return outcome

    def _lines(self, whole: int) -> Outcome | None:
        """Read the lines that are whole, those up to `whole`."""
        while self._at < whole:
            outcome = self._request(whole) if self._fields < 0 else self._field(whole)
            if outcome is not None:
                return outcome
            if self._h2 is not None:
                data, self._kept = bytes(self._kept), b""
                return self._second(self._h2, data)
        if len(self._kept) < SNIFF_HTTP:
            return None
        return _LONG_LINE if self._fields < 0 else _LONG_HEAD

    def _request(self, whole: int) -> Refused | None:
        """Read the request line, or the one empty line that may stand before it (RFC 9112, 2.2)."""
        kept, at = self._kept, self._at
        match = _REQUEST(kept, at, whole)
        if match is None:
            self.work += whole - at
            newline = _NEWLINE(kept, at, whole) if at == 0 else None
            if newline is None:
                return _PROXY_HEADER if kept.startswith(b"PROXY ", at) else _BAD_REQUEST
            self.work += newline.end() - whole
            self._at = newline.end()
            return None
        self.work += match.end() - at
        self._at = match.end()
        method, target, major, minor = match.groups()
        if major != b"1" or minor > b"1":
            if at == 0 and match[0] == _H2_LINE:
                self._h2 = H2Sniffer(at=len(_H2_LINE))
                return None
            return _BAD_REQUEST if major == b"0" else _BAD_VERSION
        self._fields = 0
        self._old = minor == b"0"
        if method == b"CONNECT":
            return _BAD_METHOD
        if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
            return None
        absolute = _ABSOLUTE(target)
        self._target = None if absolute is None else names.from_authority(absolute[1])
        return _BAD_TARGET if self._target is None else None

    def _field(self, whole: int) -> Outcome | None:
        """Read one field line, or the blank line that ends the head."""
        at = self._at
        match = _FIELD(self._kept, at, whole)
        if match is None:
            self.work += whole - at
            return _BAD_FIELD
        self.work += match.end() - at
        self._at = match.end()
        name, value, blank = match.groups()
        if blank is not None:
            return self._decide()
        self._fields += 1
        if self._fields > FIELDS:
            return _MANY_FIELDS
        if len(name) == 4 and name.lower() == b"host":
            if self._host is not None:
                return _MANY_NAMES
            self._host = names.from_authority(value.strip(b"\t "))
            if self._host is None:
                return _BAD_NAME
        return None

    def _decide(self) -> Outcome:
        """Give the outcome of a complete head."""
        host, target = self._host, self._target
        if host is None:
            if not self._old:
                return _NO_HOST
            return Found("http", None if target is None else target[0])
        # RFC 9112, 3.2.2 lets the target win; two different answers to one question are refused instead.
        if target is not None and not names.same_authority(host, target):
            return _OTHER_HOST
        return Found("http", host[0])


def _reach(kept: bytes | bytearray) -> int:
    """Give where to stop looking for lines: what follows the first line of HTTP/2 has none."""
    return len(_H2_LINE) if kept.startswith(_H2_LINE) else SNIFF_HTTP
