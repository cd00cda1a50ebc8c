"""Mode `guard`: whatever comes on a connection stays with the host that its first request asked for.

A proxy in front of ours may keep connections open and use one for whichever of its visitors comes next, so that a
request for one tenant would go to another whose connection it is. A `Guard` therefore reads the heads of all requests
on a connection. It changes nothing: what it lets through are the bytes as they came, and the bodies between two heads
need not be seen.

::

    first request ─▶ its host ─▶ next request ─┬─ same host: goes on
                                               ├─ other host, or a head that leaves doubt: `over`, with a status
                                               └─ asks for an upgrade: `over`, to begin anew on a connection of its own

An upgrade (WebSocket) is let through as the first request, for only then is it certain which response answers it. What
the visitor says after it waits for that response (`Answer`): 101 ends the guard, anything else leaves it as it was. A
101 to h2c would carry requests that nobody reads, and closes.

Answers go on as they come, and are counted (`Owed`): what a host says that nobody asked for is not its visitor's, who
may be a proxy in front, which would take it for the answer to whatever it asks next, of whomever.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from attrs import frozen

from layer8.core import names
from layer8.core.http1 import END, ENDLESS, HEAD, Malformed, Reader, Request, Response, read_request, read_response

MISDIRECTED = 421
PIPELINED: Final = 1024  # requests that may wait for their answers and be counted

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# Any field but those that say where a request goes or ends: most begin with another letter than these do. No line fits
# both halves, or a head that fails at its end would be tried in every combination.
_OTHER = (
    rb"(?:(?:[-!#$%%&'*+.^_`|~0-9ABD-GI-SV-Zabd-gi-sv-z]|(?!(?i:host|content-length|transfer-encoding|upgrade):)[CHTUchtu])"
    rb"%b:%b\r\n)" % (_TOKEN.replace(b"++", b"*+"), _VALUE)
)
_PLAIN = re.compile(
    rb"(?!CONNECT )%b /[\x21-\x7e\x80-\xff]*+ HTTP/1\.1\r\n%b{0,49}"
    rb"[Hh][Oo][Ss][Tt]:[\t ]*+([-.:0-9A-Za-z]++)[\t ]*+\r\n%b{0,49}\r\n" % (_TOKEN, _OTHER, _OTHER)
).match
_NO_LENGTH = rb"(?:(?!(?i:content-length|transfer-encoding):)%b:%b\r\n){0,49}" % (_TOKEN, _VALUE)
# The head of an answer with a body, whose length it says; it counts as whole only if just that many bytes follow.
_ANSWER = re.compile(
    rb"HTTP/1\.1 (?!204|304)[2-5][0-9][0-9](?: %b)?\r\n%b(?i:content-length):[\t ]*+([0-9]{1,6})[\t ]*+\r\n%b\r\n"
    % (_VALUE, _NO_LENGTH, _NO_LENGTH)
).match


class Why(Enum):
    """Why a guard lets nothing more through."""

    MISDIRECTED = "another host"
    DOUBT = "a request that leaves doubt"
    ANEW = "an upgrade that is not the first request"


@frozen
class Over:
    """The end of what goes on; `status` is what the visitor is told, `rest` what it has said that did not go on."""

    why: Why
    status: int = 0
    rest: bytes = b""


class Owed:
    """The answers that a host owes to the requests that were let through.

    `known` ends where an answer leaves doubt, or is no HTTP any more: then everything passes. `extra` says that a host
    went on unasked; nothing of that passes, nor of what comes after it. `switched` says that it changed the protocol.
    `free` bytes may pass unseen.
    """

    __slots__ = ("_bare", "_count", "_interim", "_made", "extra", "free", "known", "switched")

    def __init__(self) -> None:
        """Begin before the first request."""
        self._count = 0
        self._bare = 0  # a bit per request, the first one's lowest: its answer has no body, whatever it says
        self._made: Reader[Response] | None = None
        self._interim = False
        self.known = True
        self.extra = False
        self.switched = False
        self.free = 0

    def __len__(self) -> int:
        """Count the answers that are not complete."""
        return self._count

    @property
    def between(self) -> bool:
        """Whether no answer has begun that is not complete."""
        return self.known and (self._made is None or self._made.between)

    @property
    def endless(self) -> bool:
        """Whether the end of the connection ends the answer that has begun."""
        return self.known and self.free == ENDLESS

    def ask(self, bare: bool) -> None:
        """Count a request; `bare` is HEAD."""
        if self.known:
            if bare:
                self._bare |= 1 << self._count
            self._count += 1
            if self._count > PIPELINED:
                self.lose()

    def lose(self) -> None:
        """Count no more."""
        self.known = False
        self.free = ENDLESS
        self._count = self._bare = 0
        self._made = None

    def feed(self, data: bytes) -> bytes:
        """Give what is for the visitor."""
        if not self.known:
            return data
        if self.extra:
            return b""
        reader = self._made
        if self._count and not self._bare & 1 and (reader is None or reader.between):
            whole = _ANSWER(data)
            if whole is not None and whole.end() + int(whole[1]) == len(data):
                self._count -= 1
                self._bare >>= 1
                return data
        if reader is None:
            reader = self._made = Reader(read_response)
        reader.feed(data)
        return data[: len(data) - self._follow(reader)]

    def skipped(self, count: int) -> None:
        """Take that `count` of the free bytes have passed."""
        if self.free < ENDLESS and self._made is not None:
            self._made.skipped(count)
            self._follow(self._made)

    def _follow(self, reader: Reader[Response]) -> int:
        """Read what was fed; gives how many bytes at its end nobody asked for."""
        try:
            while True:
                if not self._count and reader.idle and not reader.between:
                    rest = reader.rest()
                    self.extra = self.extra or bool(rest.strip(b"\r\n"))
                    return len(rest)
                reader.bare = bool(self._bare & 1)
                what = reader.next()
                if what is None:
                    break
                if isinstance(what, Response):
                    if what.status == 101:
                        self.switched = True
                        self.lose()
                        return 0
                    self._interim = what.status < 200
                elif what is END and not self._interim:
                    self._count -= 1
                    self._bare >>= 1
        except Malformed:
            self.lose()
            return 0
        self.free = reader.free
        return 0


class Guard:
    """The requests of one connection. `free` bytes may pass unseen; `over` says that nothing more goes on.

    While `asks`, an upgrade was let through and what was fed since waits for `opened` or `declined`.
    `owed` is to be fed what the host says.
    """

    __slots__ = (
        "_answered",
        "_asking",
        "_between",
        "_first",
        "_made",
        "_spelled",
        "asks",
        "free",
        "over",
        "owed",
    )

    def __init__(self) -> None:
        """Begin before the first request."""
        self._made: Reader[Request] | None = None
        self._first = True
        self._spelled = b""  # the host of all requests, as the last one wrote it
        self._between = True
        self._answered = False  # the first request's response has been seen
        self._asking = False  # the request that is passing asks for an upgrade
        self.asks = False
        self.free = 0
        self.over: Over | None = None
        self.owed = Owed()

    @property
    def _reader(self) -> Reader[Request]:
        """The careful way, made when it is needed: most connections carry plain requests only."""
        if self._made is None:
            self._made = Reader(read_request)
        return self._made

    @property
    def upgrading(self) -> bool:
        """Whether the first request asks for an upgrade and has had no answer."""
        return self._asking or self.asks

    def begin(self, first: bytes, spelled: bytes) -> None:
        """Let the first request through, in which `plain` has found this host."""
        self._first, self._spelled = False, spelled
        self.owed.ask(first.startswith(b"HEAD "))

    def feed(self, data: bytes) -> bytes:
        """Give what goes on of all that has come."""
        if self._between and self._spelled:
            found = _PLAIN(data)
            if found is not None and found[1] == self._spelled and found.end() == len(data) <= HEAD:
                self.owed.ask(data.startswith(b"HEAD "))
                return data
        self._reader.feed(data)
        return self._take()

    def skipped(self, count: int) -> None:
        """Take that `count` of the free bytes have passed."""
        if self.free < ENDLESS:
            self._reader.skipped(count)
            self.free = self._reader.free
            self._take()

    def opened(self) -> bytes:
        """Take that the connection speaks another protocol from now on; gives what waited for that."""
        self.asks = self._between = False
        self.free = ENDLESS
        self.owed.lose()
        return self._reader.rest()

    def declined(self) -> bytes:
        """Take that the first request was answered in HTTP; gives what waited and may go on."""
        self._answered = True
        if not self.asks:
            return b""
        self.asks = False
        return self._take()

    def _take(self) -> bytes:
        """Give what the reader lets through, up to an upgrade or the end."""
        if self.free == ENDLESS:
            return self._reader.rest()
        if self.asks or self.over is not None:
            return b""
        reader = self._reader
        passed: list[bytes] = []
        try:
            while (what := reader.next()) is not None:
                if isinstance(what, bytes):
                    passed.append(what)
                elif what is END:
                    if self._asking:
                        self._asking, self.asks = False, not self._answered
                    if self.asks:
                        break
                elif self._stays(what):
                    passed.append(what.raw)
                    self.owed.ask(what.method == b"HEAD")
                    self._asking = bool(what.upgrade)
                else:
                    break
        except Malformed as doubt:
            self.over = Over(Why.DOUBT, doubt.status)
        self._between = reader.between and not self.asks and self.over is None
        self.free = 0 if self.asks or self.over is not None else reader.free
        return b"".join(passed)

    def _stays(self, request: Request) -> bool:
        """Say whether a request may go on; sets `over` if not."""
        if self._first:
            self._first = False
            self._spelled = request.authority
        elif _name(request.host) != _name(names.from_authority(self._spelled)):
            self.over = Over(Why.MISDIRECTED, MISDIRECTED)
        elif request.upgrade:
            self.over = Over(Why.ANEW, 0, request.raw + self._reader.rest())
        else:
            self._spelled = request.authority
        return self.over is None


def _name(authority: tuple[str, int | None] | None) -> str | None:
    return None if authority is None else authority[0]


def plain(first: bytes) -> bytes:
    """Give the host, as it is written, of a first request that is whole, has no body and leaves no doubt; else b"".

    What has one may go on unread, to a guard that is told so by `begin`.
    """
    found = _PLAIN(first)
    if found is None or not found.end() == len(first) <= HEAD or names.from_authority(found[1]) is None:
        return b""
    return found[1]


def doubt(first: bytes) -> int | None:
    """Give the status for a visitor whose first request leaves doubt; None if it does not, or is not known yet.

    It is asked before anybody is called, and says what a guard that is fed the same will say.
    """
    reader = Reader(read_request)
    reader.feed(first)
    try:
        reader.next()
    except Malformed as error:
        return error.status
    return None


class Verdict(Enum):
    """What the answer to a request for an upgrade means."""

    OPENED = "another protocol from now on"
    DECLINED = "HTTP goes on"
    BROKEN = "not an answer, or one that would hide requests"


class Answer:
    """The answer to a connection's first request; `verdict` once it is known."""

    __slots__ = ("_reader", "verdict")

    def __init__(self) -> None:
        """Begin before the first byte."""
        self._reader = Reader(read_response)
        self.verdict: Verdict | None = None

    def feed(self, data: bytes) -> bytes:
        """Give what goes on to the visitor: interim answers, and with the verdict everything that has come."""
        self._reader.feed(data)
        passed = b""
        try:
            while self.verdict is None and (what := self._reader.next()) is not None:
                if isinstance(what, bytes) or what is END:
                    continue
                if what.status == 101:
                    hidden = any(word.strip().startswith(b"h2") for word in what.upgrade.split(b","))
                    self.verdict = Verdict.BROKEN if hidden or not what.upgrade else Verdict.OPENED
                elif what.status >= 200:
                    self.verdict = Verdict.DECLINED
                if self.verdict is not Verdict.BROKEN:
                    passed += what.raw
        except Malformed:
            self.verdict = Verdict.BROKEN
        if self.verdict is None or self.verdict is Verdict.BROKEN:
            return passed
        return passed + self._reader.rest()
