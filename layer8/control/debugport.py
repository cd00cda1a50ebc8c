r"""The port for netcat: each line becomes one call of the method table, each reply ends in `ok` or `error NAME TEXT`.

::

    $ printf 'list circuits\n' | nc 127.0.0.1 9009
    3  open  kq3x7m2p>bm4tz6aa>w5yl2cde  18 s
    ok

On TCP the first line is `token TEXT` with the cookie of this daemon, unless whoever opens the port says that nobody
needs one; on a Unix socket the peer's uid decides. It runs at role operate and is never a shell. Text of peers comes
out escaped, and what looks like a browser is closed without a word, so that no web page can talk to it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IListeningPort
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.control.access import Caller
from layer8.control.errors import CallTimedOut, ControlError, Internal, InvalidParams, answer_to
from layer8.control.keyring import Keyring, peer_is_us
from layer8.control.table import Table
from layer8.net.listen import serve

DEBUG_CONNS: Final = 4
DEBUG_LINE: Final = 1024  # bytes of one line
DEBUG_TOKEN_TIME: Final = 10.0  # seconds until the token has to be there
DEBUG_IDLE: Final = 3600.0  # seconds without a line
OPERATE: Final = frozenset({"operate"})
OPTION: Final = "debug.listen"

_BROWSER = re.compile(rb"[A-Z]+ \S+ HTTP/|[A-Z]+ / |Host:|.*?[\0-\x08\x0b\x0c\x0e-\x1f]", re.IGNORECASE)
"""HTTP; and TLS, in whose hello a page may have put lines of its own, as a session ticket."""


def _none(words: Sequence[str]) -> Mapping[str, Any]:
    if words:
        raise InvalidParams("", f"{words[0]!r} is not wanted here")
    return {}


def _one(name: str, kind: Callable[[str], Any] = str) -> Callable[[Sequence[str]], Mapping[str, Any]]:
    def read(words: Sequence[str]) -> Mapping[str, Any]:
        if len(words) != 1:
            raise InvalidParams(name, "one word is wanted")
        try:
            return {name: kind(words[0])}
        except ValueError:
            raise InvalidParams(name, "a number is wanted") from None

    return read


def _message(words: Sequence[str]) -> Mapping[str, Any]:
    if len(words) < 2:
        raise InvalidParams("to", "send ID MESSAGE")
    return {"to": words[0], "text": " ".join(words[1:])}


@frozen
class Word:
    """A command of the port: its usage, the method that it calls, and how its words become parameters."""

    usage: str
    method: str
    params: Callable[[Sequence[str]], Mapping[str, Any]] = _none


WORDS: Mapping[str, Word] = {
    "send": Word("send ID MESSAGE", "relay.send", _message),
    "list circuits": Word("list circuits", "relay.circuits"),
    "list links": Word("list links", "relay.links"),
    "list streams": Word("list streams", "relay.streams"),
    "list peers": Word("list peers", "relay.peers"),
    "listpeers": Word("listpeers", "relay.peers"),
    "build": Word("build PATH", "relay.build", _one("path")),
    "close": Word("close N", "relay.close", _one("circuit", int)),
    "test": Word("test", "relay.test"),
    "stats": Word("stats", "metrics.snapshot"),
    "status": Word("status", "node.status"),
}


@implementer(IHalfCloseableProtocol)
class Talk(LineOnlyReceiver, TimeoutMixin):
    """One connection; one command runs at a time, and the next line is read when it has ended."""

    transport: Any
    delimiter = b"\n"
    MAX_LENGTH = DEBUG_LINE
    _log = Logger(namespace="layer8.control.debugport")

    def __init__(self, port: DebugPort) -> None:
        """Belong to a port."""
        self._port = port
        self._known = False
        self._prompt = False
        self._first = True
        self._ended = False
        self._left = False
        self._running: Deferred[None] | None = None
        self._lines: list[bytes] = []
        self.slots: dict[str, object] = {}

    def connectionMade(self) -> None:
        """Find out who is there."""
        if not self._port.enter(self):
            self._leave()
            return
        ours = getattr(self.transport.getPeer(), "host", None) is None
        if ours and not peer_is_us(self.transport.socket):
            self._leave()
            return
        self._known = ours or self._port.open
        self._patience(DEBUG_IDLE if self._known else DEBUG_TOKEN_TIME)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Stop what runs."""
        self._patience(None)
        self._port.leave(self)
        if self._running is not None:
            self._running.cancel()

    def _patience(self, seconds: float | None) -> None:
        self.setTimeout(seconds)  # type: ignore[no-untyped-call]

    def _leave(self) -> None:
        """Part without a word; lines that have come already are not read either."""
        self._left = True
        self._lines.clear()
        self.transport.abortConnection()

    def timeoutConnection(self) -> None:
        """Leave somebody who says nothing."""
        self._leave()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Leave somebody who says too much at once."""
        self._leave()

    def lineReceived(self, line: bytes) -> None:
        """Take a line; while a command runs it waits, and so does the peer."""
        if self._left:
            return
        if self._first and _BROWSER.match(line):
            self._leave()
            return
        self._first = False
        self._lines.append(line)
        if self._running is None:
            self._next()

    def readConnectionLost(self) -> None:
        """Answer what was asked by a peer that has ended its half, as netcat does with a pipe, then close."""
        self._ended = True
        if self._running is None:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our half does not end before the connection."""

    def _next(self) -> None:
        while self._lines and self._running is None:
            line = self._lines.pop(0).strip().decode("utf-8", "replace")
            self._patience(DEBUG_IDLE if self._known else DEBUG_TOKEN_TIME)
            if not self._known:
                self._token(line)
            elif line:
                task = Deferred.fromCoroutine(self._command(line))
                self._running = task
                task.addBoth(self._done)
        if self._running is not None:
            self.transport.pauseProducing()

    def _token(self, line: str) -> None:
        word, _, text = line.partition(" ")
        address = getattr(self.transport.getPeer(), "host", None)
        try:
            known = self._port.keyring.by_token(text.strip(), address) if word == "token" else None
        except ControlError:
            known = None
        if known is None:
            self._leave()
            return
        self._known = True
        self._patience(DEBUG_IDLE)
        self._say([], "ok")

    def _done(self, result: object) -> None:
        self._running = None
        if isinstance(result, Failure):
            if result.check(CancelledError):
                return
            self._log.failure("a line of the debug port", result, event="control.call_failed")
        if not self.transport.connected:
            return
        self._next()
        if self._running is None:
            if self._ended:
                self.transport.loseConnection()
            else:
                self.transport.resumeProducing()

    async def _command(self, line: str) -> None:
        try:
            words = shlex.split(line)
        except ValueError:
            self._say([], "error invalid_params a quotation mark is missing")
            return
        if words == ["quit"]:
            self.transport.loseConnection()
        elif words == ["prompt"]:
            self._prompt = True
            self._say([], "ok")
        elif words and words[0] == "help":
            self._say(self._help(words[1:]), "ok")
        elif words:
            await self._call(words)

    async def _call(self, words: Sequence[str]) -> None:
        two = " ".join(words[:2])
        name, rest = (two, words[2:]) if two in WORDS else (words[0], words[1:])
        word = WORDS.get(name)
        if word is None or word.method not in self._port.table.methods:
            self._say([], f"error method_not_found there is no {name!r} here: help lists what there is")
            return
        try:
            params = dict(word.params(rest))
            calling = Deferred.fromCoroutine(self._port.table.call(self._caller(), word.method, params))
            calling.addTimeout(
                self._port.table.methods[word.method].timeout, self._port.reactor, onTimeoutCancel=_timed_out
            )
            result = await calling
        except CancelledError:
            raise
        except Exception as error:
            answer = answer_to(error, token_hex(8))
            if isinstance(answer, Internal):
                self._log.failure("a call failed", event="control.call_failed", id=answer.data["id"])
            self._say([], f"error {answer.name} {answer.message}")
            return
        self._say(_sent(result) if name == "send" else lines(result), "ok")

    def _help(self, about: Sequence[str]) -> list[str]:
        found = {name: word for name, word in WORDS.items() if word.method in self._port.table.methods}
        if about:
            wanted = " ".join(about)
            found = {name: word for name, word in found.items() if name == wanted or name.split()[0] == wanted}
        usual = (
            [] if about else [("help [WORD]", "Say what there is."), ("prompt", "Ask with a >."), ("quit", "Leave.")]
        )
        rows = [(word.usage, self._port.table.methods[word.method].doc) for word in found.values()] + usual
        return [f"{usage:<16} {doc}" for usage, doc in rows]

    def _caller(self) -> Caller:
        address = getattr(self.transport.getPeer(), "host", None)
        return Caller("debug", OPERATE, OPERATE, True, address, (), self)

    def _say(self, told: Sequence[str], last: str) -> None:
        text = "\n".join(escaped(line) for line in (*told, last)) + "\n"
        self.transport.write((text + ("> " if self._prompt else "")).encode())

    # What a method may do with its caller's connection.

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Tell nothing: only answers come this way."""
        return False

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call back when the connection is gone."""
        self._port.when_lost(self, callback)

    def grant(self, role: str) -> None:
        """Give no roles: this port has its own."""

    def become(self, name: str, roles: frozenset[str], hosts: tuple[str, ...]) -> None:
        """Stay who this is."""

    def close(self, reason: str) -> None:
        """End the connection."""
        self.transport.loseConnection()


def _timed_out(result: object, seconds: float) -> object:
    raise CallTimedOut(f"no answer in {seconds:g} s")


def escaped(text: str) -> str:
    """Give text in which nothing steers a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def lines(result: Any) -> list[str]:
    """Write a result for people: a line for each item in columns, `name value` for each member of an object."""
    if isinstance(result, Mapping) and set(result) == {"series", "cursor"}:
        result = result["series"]
    if isinstance(result, Mapping):
        for value in result.values():
            if isinstance(value, list) and value and isinstance(value[0], Mapping):
                return lines(value)
        return [f"{name} {_cell(value)}" for name, value in result.items()]
    if isinstance(result, list | tuple):
        rows = [
            [_cell(value) for value in item.values()] if isinstance(item, Mapping) else [_cell(item)] for item in result
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [_cell(result)]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(_cell(item) for item in value) or "-"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_cell(item)}" for name, item in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    return escaped(str(value)) if value not in ("", None) else "-"


def _sent(result: Any) -> list[str]:
    how = ", new circuit" if result["new"] else ""
    return [f"sent {result['ms']:g} ms, circuit {result['circuit']}{how}"]


@define(eq=False)
class DebugPort(Service):
    """Where netcat may come: endpoint strings and, if there are any, a Unix socket; `open` asks nobody for a token."""

    reactor: Any
    table: Table
    keyring: Keyring
    listen: Sequence[str]
    socket: Path
    open: bool = False
    _talks: set[Talk] = field(factory=set, init=False)
    _losses: dict[Talk, list[Callable[[], None]]] = field(factory=dict, init=False)
    _ports: list[IListeningPort] = field(factory=list, init=False)

    def startService(self) -> None:
        """Listen; raises Unavailable."""
        Service.startService(self)
        factory = _Talks(self)
        for text in self.listen:
            self._ports += serve(self.reactor, text, OPTION, factory)
        if self.listen:
            self.socket.unlink(missing_ok=True)
            self._ports.append(self.reactor.listenUNIX(str(self.socket), factory, mode=0o600, wantPID=False))

    def stopService(self) -> Deferred[Any]:
        """Listen no more and end every connection."""
        Service.stopService(self)
        ports, self._ports = self._ports, []
        for talk in list(self._talks):
            talk.transport.abortConnection()
        return DeferredList([maybeDeferred(port.stopListening) for port in ports])

    @property
    def listening(self) -> tuple[str, ...]:
        """Say where it listens."""
        found: list[Any] = [port.getHost() for port in self._ports]
        return tuple(f"{end.host}:{end.port}" for end in found if hasattr(end, "port"))

    def enter(self, talk: Talk) -> bool:
        """Count a connection; False if there are enough."""
        if len(self._talks) >= DEBUG_CONNS:
            return False
        self._talks.add(talk)
        return True

    def leave(self, talk: Talk) -> None:
        """Forget a connection, and tell who wanted to know."""
        self._talks.discard(talk)
        for callback in self._losses.pop(talk, []):
            callback()

    def when_lost(self, talk: Talk, callback: Callable[[], None]) -> None:
        """Call back when a connection is gone, at once if it is gone already."""
        if talk in self._talks:
            self._losses.setdefault(talk, []).append(callback)
        else:
            callback()


class _Talks(Factory):
    """Makes the conversations of one port."""

    noisy = False

    def __init__(self, port: DebugPort) -> None:
        self._port = port

    def buildProtocol(self, addr: IAddress | None) -> Talk:
        """Make one."""
        return Talk(self._port)
