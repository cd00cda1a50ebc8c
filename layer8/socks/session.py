"""One program at the SOCKS port, from its greeting to its request; from there on the bytes are a stream's.

 greeting -> [login] -> request -> asked | closed

The answer is not this session's: it waits for the far end while the program may already talk, end its half or leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from hmac import compare_digest
from typing import Final

from attrs import frozen

from layer8.core.errors import RemoteProtocolError
from layer8.core.session import Close, Effect, Outbox, Send, Tell
from layer8.socks import wire
from layer8.socks.wire import Ask, Code, Login, Request, UnknownAddress

REQUEST_TIME: Final = 10.0  # seconds until the request is whole
_HTTP: Final = b"HTTP/1.0 501 This is a SOCKS5 port, no HTTP proxy: curl --socks5-hostname HOST:PORT\r\n\r\n"


class _At(Enum):
    GREETING = auto()
    LOGIN = auto()
    REQUEST = auto()
    ASKED = auto()
    CLOSED = auto()


@frozen
class Wanted:
    """A program has asked, and waits for `wire.reply`; `early` is what it has said behind its request."""

    request: Request
    login: Login
    early: bytes


class Socks:
    """See the module; `password` is wanted from every program, with any user name, if it is not empty."""

    def __init__(self, now: float, password: str = "") -> None:
        """Begin to wait for the greeting."""
        self._at = _At.GREETING
        self._password = password.encode()
        self._data = b""
        self._login = Login(b"", b"")
        self._deadline: float | None = now + REQUEST_TIME
        self._out = Outbox()

    def received(self, data: bytes, now: float) -> None:
        """Take bytes, cut anywhere; whatever follows the request is no longer for this session."""
        if self._at in (_At.ASKED, _At.CLOSED):
            return
        self._data += data
        try:
            while self._step():
                pass
        except UnknownAddress:
            self._answer(Code.UNKNOWN_ADDRESS)
        except RemoteProtocolError:
            self._close("protocol")
        if len(self._data) > wire.REQUEST_MOST:
            self._close("limit")

    def lost(self, now: float) -> None:
        """Take the end of the connection."""
        self._at = _At.CLOSED
        self._deadline = None

    def wake(self, now: float) -> None:
        """Leave a program that does not say what it wants."""
        if self._deadline is not None and now >= self._deadline:
            self._close("timeout")

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._out.take()

    def deadline(self) -> float | None:
        """Give the time of `wake`."""
        return self._deadline

    def _step(self) -> bool:
        match self._at:
            case _At.GREETING:
                return self._greet()
            case _At.LOGIN:
                return self._check()
            case _At.REQUEST:
                return self._ask()
        return False

    def _greet(self) -> bool:
        if b"A" <= self._data[:1] <= b"Z":
            self._out.add(Send(_HTTP))  # a browser that was told HTTP instead of SOCKS
            self._close("protocol")
            return False
        found = wire.greeting(self._data)
        if found is None:
            return False
        methods, size = found
        self._data = self._data[size:]
        if wire.PASSWORD in methods:
            self._at = _At.LOGIN
            self._out.add(Send(bytes((wire.VERSION, wire.PASSWORD))))
        elif wire.NO_AUTH in methods and not self._password:
            self._at = _At.REQUEST
            self._out.add(Send(bytes((wire.VERSION, wire.NO_AUTH))))
        else:
            self._out.add(Send(bytes((wire.VERSION, wire.NOTHING_FITS))))
            self._close("refused")
            return False
        return True

    def _check(self) -> bool:
        found = wire.login(self._data)
        if found is None:
            return False
        self._login, size = found
        self._data = self._data[size:]
        if self._password and not compare_digest(self._login.password, self._password):
            self._out.add(Send(b"\x01\x01"))
            self._close("refused")
            return False
        self._out.add(Send(b"\x01\x00"))
        self._at = _At.REQUEST
        return True

    def _ask(self) -> bool:
        asked = wire.request(self._data)
        if asked is None:
            return False
        early, self._data = self._data[asked.size :], b""
        if asked.ask not in (Ask.CONNECT, Ask.ASSOCIATE):
            self._answer(Code.UNKNOWN_COMMAND)
        else:
            self._at = _At.ASKED
            self._deadline = None
            self._out.add(Tell(Wanted(asked, self._login, early)))
        return False

    def _answer(self, code: int) -> None:
        self._out.add(Send(wire.reply(code)))
        self._close("refused")

    def _close(self, reason: str) -> None:
        if self._at is not _At.CLOSED:
            self._at = _At.CLOSED
            self._deadline = None
            self._data = b""
            self._out.add(Close(reason))
