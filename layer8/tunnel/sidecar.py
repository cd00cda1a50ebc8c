"""A gateway before any backend that speaks HTTP: sealed requests are opened and passed on over its one endpoint.

::

    relay --POST sealed--> Sidecar --plain request, Host and path of the page, L8-Encapsulated: ?1--> backend
    else  --request------> Sidecar --the same without what speaks for somebody---------------------> backend
                                   `--403 to paths under `require`

Nothing is kept but the pieces of a body that are on their way. A request that changes nothing is asked again, once, if
the backend closed its idle connection at that very moment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.errors import LocalProtocolError, Unavailable
from layer8.net.http import Incoming, Server
from layer8.net.http_client import Fields as Texts
from layer8.net.http_client import Line, Pool
from layer8.net.http_wire import field_lines
from layer8.net.timer import Timer
from layer8.tunnel import target
from layer8.tunnel.bhttp import SAFE, Fields
from layer8.tunnel.driving import Driven, Gate, Work
from layer8.tunnel.gateway import Gateway, Outcome
from layer8.tunnel.gateway_session import Call
from layer8.tunnel.gateway_sockets import Sockets
from layer8.tunnel.keys import SET_TYPE
from layer8.tunnel.limits import BUFFER, IDLE_TIME, SOCKET_SESSIONS
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, SOCKET_PATH
from layer8.tunnel.wire import KEYS_TYPE

ENCAPSULATED: Final = (target.ENCAPSULATED.decode(), "?1")
_OWN: Final = (b"content-length", b"date")  # fields that our server writes
NO_STORE: Final = ("cache-control", "no-store")


class Sidecar:
    """See the module; `server` is what listens."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        gateway: Gateway,
        pool: Pool,
        told: Callable[[str, bool, str], None] = lambda check, ok, why: None,
    ) -> None:
        """Put an open gateway before what a pool leads to; `told` hears how `keys` and the `backend` are."""
        self.gateway = gateway
        self.pool = pool
        self.retries = 0
        self._told = told
        self._reached = True
        self.gate = Gate(reactor, gateway, self._call, told=partial(told, "keys"))
        self.sockets = Sockets(self.gate, pool, ENCAPSULATED)
        self.server = Server(reactor, self.handle)
        self.joined: set[_Half] = set()  # clients' ends of sockets past the tunnel

    def start(self) -> None:
        """Keep the keys."""
        self.gate.start()

    def stop(self) -> None:
        """Cut everything."""
        self.sockets.stop()
        self.gate.stop()
        for half in list(self.joined):
            half.transport.abortConnection()
        self.server.abort()
        self.pool.abort()

    def traffic(self) -> tuple[int, int, int, int]:
        """Give the bytes in and out at relays and others, and in and out at the backend."""
        front, back = self.server.tally, self.pool.tally
        return front.heard, front.sent, back.heard, back.sent

    async def drain(self) -> None:
        """Take nothing new on the connections that are open, and finish when nothing is under way."""
        self.sockets.drain()
        await self.server.stop()
        await self.gate.idle()

    def resume(self) -> None:
        """Take requests again."""
        self.server.stopping = self.sockets.stopping = False

    def reached(self) -> None:
        """Take that the backend answers."""
        if not self._reached:
            self._reached = True
            self._told("backend", True, "")

    def unreached(self, failure: Failure) -> None:
        """Take that there is no connection to it."""
        if not failure.check(Unavailable):
            self.log.failure("no way to the backend", failure, event="gateway.bug")
        self._reached = False
        self._told("backend", False, str(failure.value))

    def handle(self, asked: Incoming) -> None:
        """Take a request."""
        path = asked.path
        if path == GATEWAY_PATH and asked.method == "POST":
            front = _Front(asked)
            driven = self.gate.exchange(_one(asked, "content-type"), _one(asked, "authorization"), front)
            if driven is not None:
                asked.to(driven)
        elif path in (GATEWAY_PATH, KEYS_PATH):
            self._keys(asked, path)
        elif path == SOCKET_PATH:
            status = self.sockets.enter(asked.fields, lambda wire: asked.hand_over(wire, b""))
            if status is not None:
                asked.answer(status)
        elif self.gateway.guards(asked.target):
            self.gateway.count(Outcome.DIRECT)
            asked.answer(403)
        else:
            Direct(asked, self).start()

    def _keys(self, asked: Incoming, path: str) -> None:
        if asked.method not in ("GET", "HEAD"):
            asked.answer(405, [("allow", "GET, HEAD, POST" if path == GATEWAY_PATH else "GET, HEAD")])
            return
        try:
            if path == KEYS_PATH:
                asked.answer(200, [("content-type", SET_TYPE), NO_STORE], self.gateway.keys_document())
            else:
                asked.answer(200, [("content-type", KEYS_TYPE), NO_STORE], self.gateway.ohttp_keys())
        except Unavailable:
            asked.answer(503, [NO_STORE])

    def _call(self, call: Call, driven: Driven) -> Work:
        return Upstream(call, driven, self)


def _one(asked: Incoming, name: str) -> bytes | None:
    value = asked.only(name)
    return None if value is None else value.encode("latin-1")


class _Front:
    """The outer request, as an exchange sees it."""

    __slots__ = ("_asked",)

    def __init__(self, asked: Incoming) -> None:
        self._asked = asked

    def reply(self, status: int, kind: str, body: bytes) -> None:
        self._asked.answer(status, [("content-type", kind), NO_STORE], body)

    def begin(self, kind: str) -> None:
        if self._asked.open:
            self._asked.begin(200, [("content-type", kind), NO_STORE])

    def write(self, data: bytes) -> None:
        if self._asked.open:
            self._asked.write(data)

    def finish(self) -> None:
        self._asked.finish()

    def cut(self) -> None:
        self._asked.abort()

    def rest(self, wanted: bool) -> None:
        if wanted:
            self._asked.pause()
        else:
            self._asked.resume()


class Upstream:
    """One opened request on its way to the backend: to the exchange its work, to the pool who takes the answer."""

    __slots__ = (
        "_again",
        "_answered",
        "_asked",
        "_call",
        "_driven",
        "_full",
        "_held",
        "_last",
        "_line",
        "_over",
        "_resting",
        "_sidecar",
        "_size",
        "_taking",
        "_whole",
    )

    def __init__(self, call: Call, driven: Driven, sidecar: Sidecar) -> None:
        """Ask for a connection."""
        self._call = call
        self._driven = driven
        self._sidecar = sidecar
        self._line: Line | None = None
        self._taking: Deferred[Line] | None = None
        self._held: list[bytes] = []  # content that waits for the connection
        self._size = 0  # of all content so far
        self._last = b""  # of content of known length: said when the request is whole, so that no other passes for one
        self._over = self._asked = self._answered = self._whole = self._full = self._resting = False
        self._again = call.request.method in SAFE  # it may be asked again
        self._take()

    def _take(self) -> None:
        line = self._sidecar.pool.ready()
        if line is not None:
            self._took(line)
            return
        self._taking = taking = self._sidecar.pool.take()
        taking.addCallbacks(self._took, self._untaken)

    def _took(self, line: Line) -> None:
        self._taking = None
        self._line = line
        self._ready()

    def _untaken(self, failure: Failure) -> None:
        self._taking = None
        if failure.check(CancelledError) or self._over:
            return
        self._sidecar.unreached(failure)
        self._fail(502)

    def _ready(self) -> None:
        """Say the head, as soon as there is a connection and one knows how the content is framed."""
        line, call, length = self._line, self._call, self._call.length
        if line is None or self._asked or self._over:
            return
        if length is None and self._whole:
            length = self._size
        elif length is None and not self._held:
            return
        self._asked = True
        where = call.target.path + (f"?{call.target.query}" if call.target.query else "")
        fields = [(name.decode("ascii"), value.decode("latin-1")) for name, value in call.fields]
        method = call.request.method.decode("ascii")
        try:
            line.request(method, where, call.target.authority, [*fields, ENCAPSULATED], self, length)
        except LocalProtocolError:
            line.cut()
            self._fail(400)
            return
        held, self._held = self._held, []
        for piece in held:
            line.write(piece)
        if self._whole:
            line.write(self._last)
            line.finish()
        if self._resting:
            line.pause()
        if self._full:
            self._full = False
            self._driven.hold(False)

    def _fail(self, status: int) -> None:
        if not self._over:
            self._over = True
            self._driven.failed(status)

    # What the exchange says.

    def body(self, data: bytes) -> None:
        """Take a piece of the content."""
        self._again = False
        if self._over:
            return
        self._size += len(data)
        if self._size == self._call.length:
            data, self._last = data[:-1], data[-1:]
        if self._asked and self._line is not None:
            self._line.write(data)
            return
        self._held.append(data)
        if self._line is not None:
            self._ready()
        elif self._size > BUFFER and not self._full:
            self._full = True
            self._driven.hold(True)

    def whole(self, trailers: Fields) -> None:
        """Take its end."""
        self._whole = True
        if self._asked and self._line is not None and not self._over:
            self._line.write(self._last)
            self._line.finish()
        else:
            self._ready()

    def broken(self) -> None:
        """Let the backend see that it will not become whole: the connection is cut."""
        self.leave()
        self._driven.failed()

    def leave(self) -> None:
        """Ask no more."""
        if self._over:
            return
        self._over = True
        if self._taking is not None:
            self._taking.cancel()
        if self._line is not None:
            self._line.cut()

    def rest(self, wanted: bool) -> None:
        """Read no more of the answer, or again."""
        self._resting = wanted
        if self._asked and self._line is not None and not self._over:
            if wanted:
                self._line.pause()
            else:
                self._line.resume()

    # What the backend says.

    def answered(self, status: int, fields: Texts, length: int | None) -> None:
        """Take the head of the answer."""
        self._answered = True
        self._sidecar.reached()
        if status < 200:
            self._cut(502)  # nobody has asked for another protocol
            return
        told = tuple([(name.encode("ascii"), value.encode("latin-1")) for name, value in fields])
        self._driven.respond(status, told, _known(length))

    def received(self, data: bytes) -> None:
        """Take a piece of it."""
        self._driven.write(data)

    def ended(self) -> None:
        """Take its end; the connection is the pool's again, if the request has ended too."""
        if self._over:
            return
        self._over = True
        if not self._whole and self._line is not None:
            self._line.cut()
        self._line = None
        self._driven.finish()

    def lost(self) -> None:
        """Take that the connection has gone before the end."""
        line, self._line = self._line, None
        if self._over:
            return
        if self._again and not self._answered and line is not None and line.used > 1:
            self._again = self._asked = False
            self._sidecar.retries += 1
            self._take()
        else:
            self._fail(502)

    def full(self) -> None:
        """Take that enough of the request waits."""
        self._driven.hold(True)

    def room(self) -> None:
        """Take that there is room again."""
        self._driven.hold(False)

    def _cut(self, status: int) -> None:
        if self._line is not None:
            self._line.cut()
        self._fail(status)


class Direct:
    """A request past the tunnel: passed on without what a gateway alone may say, and without who speaks for whom."""

    def __init__(self, asked: Incoming, sidecar: Sidecar) -> None:
        """Take it."""
        self._asked = asked
        self._sidecar = sidecar
        self._line: Line | None = None
        self._taking: Deferred[Line] | None = None
        self._over = False
        asks = asked.method == "GET" and "upgrade" in [word.lower() for word in _words(asked, "connection")]
        # no other protocol: with HTTP/2, say, all that follows would go past us
        self._upgrade = asks and [word.lower() for word in _words(asked, "upgrade")] == ["websocket"]
        gate = sidecar.gate
        self._timer = Timer(gate.reactor, gate.seconds, self._late)

    def start(self) -> None:
        """Ask for a connection."""
        if self._upgrade and len(self._sidecar.joined) >= SOCKET_SESSIONS:
            self._asked.answer(503)
            return
        line = self._sidecar.pool.ready()
        if line is not None:
            self._took(line)
            return
        self._taking = taking = self._sidecar.pool.take()
        taking.addCallbacks(self._took, self._untaken)

    def _late(self) -> None:
        """Leave a backend that takes nothing, or does not answer."""
        line, self._line = self._line, None
        if line is not None:
            line.cut()
            self._asked.answer(504)

    def _heard(self) -> None:
        """The client has sent something: from here on it is the backend's turn."""
        self._timer.set(self._sidecar.gate.seconds() + IDLE_TIME)

    def _took(self, line: Line) -> None:
        self._taking = None
        asked = self._asked
        if not asked.open:
            self._sidecar.pool.give_back(line)
            return
        self._line = line
        told = target.told(tuple((name.encode("ascii"), value.encode("latin-1")) for name, value in asked.fields))
        fields = [(name.decode("ascii"), value.decode("latin-1")) for name, value in told if name != b"expect"]
        if self._upgrade:
            fields += [("connection", "upgrade"), ("upgrade", "websocket")]
        try:
            line.request(
                asked.method, asked.target, asked.only("host") or "localhost", fields, _Back(self), asked.length
            )
        except LocalProtocolError:
            line.cut()
            asked.answer(400)
            return
        self._heard()
        asked.to(self)

    def _untaken(self, failure: Failure) -> None:
        self._taking = None
        if not failure.check(CancelledError):
            self._sidecar.unreached(failure)
        self._asked.answer(502)

    # What the client says.

    def received(self, data: bytes) -> None:
        """Take a piece of the request."""
        if self._line is not None:
            if not self._asked.begun:
                self._heard()
            self._line.write(data)

    def ended(self) -> None:
        """Take its end."""
        if self._line is not None:
            self._line.finish()

    def lost(self) -> None:
        """Take that the client has gone."""
        self._timer.stop()
        if self._line is not None:
            self._line.cut()

    def full(self) -> None:
        """Take that enough of the answer waits."""
        if self._line is not None:
            self._line.pause()

    def room(self) -> None:
        """Take that there is room again."""
        if self._line is not None:
            self._line.resume()

    # What the backend says.

    def answered(self, status: int, fields: Texts, length: int | None) -> None:
        """Take the head of the answer."""
        line, asked = self._line, self._asked
        assert line is not None
        self._timer.stop()
        self._sidecar.reached()
        if status == 101 and self._upgrade:
            self._line = None
            join(asked, line, fields, self._sidecar.joined)
            return
        if status < 200:
            line.cut()
            self.gone()
            return
        told = target.answered(tuple((name.encode("ascii"), value.encode("latin-1")) for name, value in fields))
        texts = [(name.decode("ascii"), value.decode("latin-1")) for name, value in told if name not in _OWN]
        asked.begin(status, texts, _known(length))

    def said(self, data: bytes) -> None:
        """Take a piece of it."""
        if self._asked.open:
            self._asked.write(data)

    def complete(self) -> None:
        """Take its end."""
        line, self._line = self._line, None
        if not self._asked.asked and line is not None:
            line.cut()
        self._asked.finish()

    def gone(self) -> None:
        """Take that the connection to the backend has gone before that."""
        self._timer.stop()
        self._line = None
        if self._asked.begun:
            self._asked.abort()
        else:
            self._asked.answer(502)

    def hold(self, wanted: bool) -> None:
        """Read no more of the request, or again."""
        if wanted:
            self._asked.pause()
        else:
            self._asked.resume()


class _Back:
    """The backend's side of a direct request."""

    __slots__ = ("_direct",)

    def __init__(self, direct: Direct) -> None:
        self._direct = direct

    def answered(self, status: int, fields: Texts, length: int | None) -> None:
        self._direct.answered(status, fields, length)

    def received(self, data: bytes) -> None:
        self._direct.said(data)

    def ended(self) -> None:
        self._direct.complete()

    def lost(self) -> None:
        self._direct.gone()

    def full(self) -> None:
        self._direct.hold(True)

    def room(self) -> None:
        self._direct.hold(False)


def _known(length: int | None) -> int | None:
    """Give a length that is one: answers to HEAD may have none."""
    return None if length is None or length < 0 else length


def _words(asked: Incoming, name: str) -> list[str]:
    return [word.strip() for value in asked.values(name) for word in value.split(",")]


class _Half(Protocol):
    """One side of a connection that speaks another protocol now."""

    transport: Any

    def __init__(self) -> None:
        self.other: _Half | None = None
        self.among: set[_Half] = set()
        self._early: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.among.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseConnection()

    def meet(self, other: _Half) -> None:
        """Pass on what comes, from now on."""
        self.other = other
        other.transport.registerProducer(self.transport, True)
        early, self._early = self._early, []
        for data in early:
            other.transport.write(data)


def join(asked: Incoming, line: Line, fields: Texts, among: set[_Half]) -> None:
    """Let client and backend speak what they have agreed on; the client's end is `among` the others while it stands."""
    kept = [(name, value) for name, value in fields if name not in ("content-length", "transfer-encoding")]
    head = f"HTTP/1.1 101 Switching Protocols\r\n{field_lines(kept)}\r\n".encode("latin-1")
    there, here = _Half(), _Half()
    here.among = among
    among.add(here)
    line.hand_over(there)
    asked.hand_over(here, b"")
    here.transport.write(head)
    there.meet(here)
    here.meet(there)
