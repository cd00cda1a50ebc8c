"""A lean streaming HTTP/1.1 server on Twisted's transports.

`Server(clock, handler)` is a factory for `net.listening.serve`. Its handler is called with an `Incoming` as soon as the
head of a request is there; whoever takes the request says `exchange.to(listener)`, and the body comes in pieces. Until
then it waits here, BUFFER of it at most. One exchange is open at a time on a connection; requests behind it wait.

    def handler(exchange: Incoming) -> None:
        exchange.answer(200, [("content-type", "text/plain")], b"hello")       # all at once

        exchange.to(listener)                     # .received .ended .lost .full .room, see `Listener`
        exchange.pause(); exchange.resume()       # of the body that comes
        exchange.begin(200, fields)               # chunked, or length=N
        exchange.write(data); exchange.finish()   # listener.full() and .room() tell when to rest
        exchange.abort()                          # cut: the client cannot take it for a whole answer
        exchange.hand_over(protocol)              # a WebSocket: the protocol hears the request's head first

        body = await exchange.read(limit)         # a small body, whole; LimitExceeded, Unavailable if it was cut

Who is slow is cut: HEAD_TIME for a head, IDLE_TIME for SLOWEST bytes a second of a body in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.errors import LimitExceeded, LocalProtocolError
from layer8.core.http1 import CHUNKED, END, Malformed, Reader, Request, read_request
from layer8.net.http_wire import BUFFER, CORK, LAST_CHUNK, Deaf, Lines, Listener, Tally, Whole, Wire, chunk, field_lines

HEAD_TIME: Final = 10.0  # seconds for a request's head, from its first byte
KEEP_TIME: Final = 75.0  # seconds without a request, after which a connection is closed
LAST_CALL: Final = 1.0  # seconds without a request, after which it is closed if the server ends
IDLE_TIME: Final = 60.0  # seconds in which IDLE_TIME * SLOWEST bytes of a body have to move
SLOWEST: Final = 64  # bytes per second
LINGER: Final = 5.0  # seconds, and
LINGER_BYTES: Final = 16 << 20  # bytes, for which a request is thrown away whose answer is there already
CONNECTIONS: Final = 16_384  # at once
SWEEP: Final = 1.0  # seconds between two looks at who is slow

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_BODILESS = frozenset((204, 304))


class Incoming:
    """One request and its answer."""

    __slots__ = (
        "_answered",
        "_begun",
        "_chunked",
        "_left",
        "_listener",
        "_mute",
        "_wire",
        "asked",
        "head",
    )

    def __init__(self, wire: _Connection, head: Request) -> None:
        """Begin with a head."""
        self._wire = wire
        self.head = head  # the request's, with all that was read of it
        self.asked = False  # the whole request has been given
        self._listener: Listener | None = None
        self._begun = False
        self._answered = False
        self._chunked = False
        self._mute = False  # the answer has no body, whatever is written
        self._left: int | None = None  # bytes of the answer's body that are still owed, None if nobody knows

    @property
    def method(self) -> str:
        """The method, as it was written."""
        return self.head.method.decode("ascii")

    @property
    def target(self) -> str:
        """Path and query in origin form, or `*`."""
        return self.head.path.decode("latin-1")

    @property
    def path(self) -> str:
        """The path alone, as it was written."""
        return self.head.path.partition(b"?")[0].decode("latin-1")

    @property
    def query(self) -> str:
        """What follows the first question mark."""
        return self.head.path.partition(b"?")[2].decode("latin-1")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """All fields, names in lower case, values as Latin-1."""
        return [(name.decode("ascii"), value.decode("latin-1")) for name, _, value in self.head.fields]

    def values(self, name: str) -> list[str]:
        """Give the values of every field of this name (lower case)."""
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for found, _, value in self.head.fields if found == wanted]

    def only(self, name: str) -> str | None:
        """Give the value of the field of this name (lower case), None if there is not exactly one."""
        found = self.values(name)
        return found[0] if len(found) == 1 else None

    @property
    def host(self) -> str:
        """The name or address in `Host`, in lower case and without a port; "" if an HTTP/1.0 request has none."""
        return "" if self.head.host is None else self.head.host[0]

    @property
    def length(self) -> int | None:
        """How long the request's body is, None if only its end will tell."""
        return None if self.head.body == CHUNKED else self.head.body

    @property
    def peer(self) -> IAddress:
        """Who asks, as Twisted's transport says it."""
        return self._wire.peer

    @property
    def secure(self) -> bool:
        """Whether it came over TLS that ends here."""
        return hasattr(self._wire.transport, "getPeerCertificate")

    @property
    def open(self) -> bool:
        """Whether the connection stands and the answer is not finished."""
        return not self._answered and not self._wire.gone

    @property
    def begun(self) -> bool:
        """Whether the answer has begun."""
        return self._begun

    @property
    def crowded(self) -> bool:
        """Whether more than BUFFER waits to be sent."""
        return self._wire.crowded

    def to(self, listener: Listener) -> None:
        """Give the body to a listener from here on, its first piece perhaps before this returns."""
        if self._answered:
            return
        self._listener = listener
        if self.asked:
            listener.ended()
        else:
            self._wire.listen(self)

    def pause(self) -> None:
        """Read no more of the body for now."""
        self._wire.hold(self)

    def resume(self) -> None:
        """Read on."""
        self._wire.go_on(self)

    async def read(self, most: int) -> bytes:
        """Read the whole body; raises `LimitExceeded` for more than `most` bytes, `Unavailable` if it was cut."""
        if (self.length or 0) > most:
            raise LimitExceeded("BODY", most)
        whole = Whole(most)
        self.to(whole)
        return await whole.body

    def begin(self, status: int, fields: Lines = (), length: int | None = None) -> None:
        """Begin the answer; without a length it goes in chunks."""
        if self._begun:
            raise LocalProtocolError("an answer that has begun already")
        lines = field_lines(fields)
        wire, head = self._wire, self.head
        self._begun = True
        if not self.open:
            return
        framing = ""
        if status in _BODILESS or status < 200:
            self._mute, self._left = True, None
        elif length is not None:
            framing = f"content-length: {length}\r\n"
            self._left = length
        elif head.minor:
            framing = "transfer-encoding: chunked\r\n"
            self._chunked = True
        else:
            wire.last = True
        self._mute = self._mute or head.method == b"HEAD"
        if wire.last or wire.server.stopping:
            wire.last = True
            framing += "connection: close\r\n"
        if status >= 200:
            framing += wire.server.date()
        wire.send(f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n{lines}{framing}\r\n".encode("latin-1"))

    def write(self, data: bytes) -> None:
        """Write a piece of the answer's body."""
        if not self._begun:
            raise LocalProtocolError("a body without its head")
        if self._answered:
            return
        if self._left is not None:
            if len(data) > self._left:
                raise LocalProtocolError("more of an answer than was promised")
            self._left -= len(data)
        if data and not self._mute:
            self._wire.send(chunk(data) if self._chunked else data)

    def finish(self) -> None:
        """End the answer."""
        if self._answered or self._wire.gone:
            return
        if self._left and not self._mute:
            self.abort()
            raise LocalProtocolError("less of an answer than was promised")
        if self._chunked and not self._mute:
            self._wire.send(LAST_CHUNK)
        self._answered = True
        if not self.asked and self._listener is None:
            self._wire.swallow(self)
        self._wire.answered(self)

    def answer(self, status: int, fields: Lines = (), body: bytes = b"") -> None:
        """Give a whole answer; nothing happens if the client has gone."""
        if not self.open:
            return
        if not self.asked:
            self._listener = Deaf()
            self._wire.swallow(self)
            if not self.asked:
                self._wire.last = True  # we do not wait for the rest of what was asked
        with CORK:
            self.begin(status, fields, len(body))
            self.write(body)
            self.finish()

    def abort(self) -> None:
        """Cut the connection: nothing that was written passes for a whole answer."""
        if not self._answered:
            self._answered = True
            self._listener = None
            self._wire.abort()

    def hand_over(self, successor: Protocol, said: bytes | None = None) -> None:
        """Give the connection away: `successor` hears `said` (by default the request's head), then what follows it."""
        if self._begun or self._answered:
            raise LocalProtocolError("a connection whose answer has begun")
        self._answered = True
        self._listener = None
        self._wire.hand_over(successor, self.head.raw if said is None else said)


Handler = Callable[[Incoming], None]
"""Takes a request when its head is there. What it raises is logged and answered with 500."""


class _Connection(Wire):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.tally)
        self.server = server
        self.last = False  # no further request is taken
        self._reader: Reader[Request] = Reader(read_request)
        self._exchange: Incoming | None = None
        self._held = False  # the listener takes nothing for now
        self._running = False
        self._discarding = False  # all is said; what still comes is thrown away
        self._requests = 0
        self._was: tuple[str, int] = ("", 0)
        self._since = 0.0
        self._mark = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self.peer: IAddress = self.transport.getPeer()
        self.server.opened(self)

    def dataReceived(self, data: bytes) -> None:
        self.count(data)
        if self._discarding:
            self._mark -= len(data)
            if self._mark < 0:
                self.abort()
        if self.closing:
            return
        self._reader.feed(data)
        with CORK:
            self._run()

    def _run(self) -> None:
        """Give out what has come, as far as somebody takes it."""
        if self._running:
            return
        self._running = True
        reader = self._reader
        try:
            while not self.closing:
                exchange = self._exchange
                if exchange is None:
                    if self.last or self.crowded:
                        break
                elif self._held or exchange.asked or exchange._listener is None:
                    break
                what = reader.content()
                if what is None:
                    break
                if isinstance(what, Request):
                    self._asked(what)
                elif exchange is None or exchange._listener is None:
                    break  # never: a body belongs to an exchange
                elif what is END:
                    exchange.asked = True
                    exchange._listener.ended()
                elif isinstance(what, bytes):
                    exchange._listener.received(what)
        except Malformed as flaw:
            self._malformed(flaw)
        finally:
            self._running = False
        if self.closing:
            return
        if self._held or reader.held > BUFFER:
            self.rest()
        elif self.resting:
            self.wake()

    def _asked(self, head: Request) -> None:
        self._requests += 1
        if not head.minor or b"close" in head.options:
            self.last = True
        exchange = self._exchange = Incoming(self, head)
        if not head.body:
            exchange.asked = self._reader.content() is END
        expected = exchange.values("expect")
        if expected and [word.lower() for word in expected] != ["100-continue"]:
            exchange.answer(417)
            return
        try:
            self.server.handler(exchange)
        except Exception:
            self.server.log.failure("request failed", event="http.failed")
            if exchange.begun:
                exchange.abort()
            else:
                exchange.answer(500)

    def listen(self, exchange: Incoming) -> None:
        """Take that there is a listener."""
        if self._exchange is not exchange:
            return
        head = exchange.head
        waits = head.body and head.minor and not self._reader.held and not exchange.begun
        if waits and not isinstance(exchange._listener, Deaf) and exchange.values("expect"):
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._running:
            with CORK:
                self._run()

    def swallow(self, exchange: Incoming) -> None:
        """Throw away what has come of a request's body."""
        try:
            while not exchange.asked and (what := self._reader.content()) is not None:
                exchange.asked = what is END
        except Malformed:
            self.last = True

    def hold(self, exchange: Incoming) -> None:
        """Give out no more for now."""
        if self._exchange is exchange and not exchange.asked:
            self._held = True
            if not self._running:
                self.rest()

    def go_on(self, exchange: Incoming) -> None:
        """Give out what has come."""
        if self._exchange is exchange and self._held:
            self._held = False
            if not self._running:
                with CORK:
                    self._run()

    def answered(self, exchange: Incoming) -> None:
        """Take that an answer is complete."""
        if self._exchange is not exchange:
            return
        if exchange.asked:
            self._over()
            if not self._running:
                with CORK:
                    self._run()
            return
        exchange._listener = Deaf()
        self._held = False
        self._discard()

    def _over(self) -> None:
        """Take that both halves of an exchange are complete."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange._listener = None  # it leads back to the exchange: a circle would wait for the collector
        self._held = False
        if self.last or self.server.stopping:
            if self._reader.held:
                self._discard()  # a close with unread bytes would reset the answer away
            else:
                self.close()

    def _discard(self) -> None:
        """End our half, and give the client a while to read the answer and to stop talking."""
        self.flush()
        self._discarding = True
        self._mark = LINGER_BYTES
        self._exchange = None
        self.wake()
        if self._direct and hasattr(self.transport, "loseWriteConnection"):
            self.closing = True
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()
        else:
            self.close()

    def _malformed(self, flaw: Malformed) -> None:
        exchange, self._exchange = self._exchange, None
        self.last = True
        listener = None if exchange is None else exchange._listener
        begun = exchange is not None and exchange._begun
        if exchange is not None:
            exchange._answered = True
        if flaw.status and not begun:
            self._say(flaw.status)
        elif begun:
            self.abort()
        else:
            self.close()
        if listener is not None:
            listener.lost()

    def _say(self, status: int) -> None:
        """Answer in our own words and end."""
        reason = _REASONS.get(status, "")
        date = self.server.date()
        self.send(f"HTTP/1.1 {status} {reason}\r\n{date}content-length: 0\r\nconnection: close\r\n\r\n".encode("ascii"))
        self._discard()

    def hand_over(self, successor: Protocol, said: bytes) -> None:
        """Give the connection away."""
        self._exchange = None
        rest = said + self._reader.rest()
        self.server.closed(self)
        self.leave(successor)
        if rest:
            successor.dataReceived(rest)

    def filled(self) -> None:
        if self._exchange is not None and self._exchange._listener is not None:
            self._exchange._listener.full()

    def emptied(self) -> None:
        with CORK:
            if self._exchange is not None and self._exchange._listener is not None:
                self._exchange._listener.room()
            self._run()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.gone:
            return
        super().connectionLost(reason)
        self.server.closed(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange._answered = True
            listener, exchange._listener = exchange._listener, None
            if listener is not None:
                with CORK:
                    listener.lost()

    @property
    def idle(self) -> bool:
        """Whether no request is open, nor any part of one there."""
        return self._exchange is None and not self._discarding and self._reader.between

    def look(self, now: float) -> None:
        """Cut who is slow."""
        moved = 0
        exchange = self._exchange
        if self._discarding:
            state, limit = "linger", LINGER
        elif self.closing:
            state, limit, moved = "closing", IDLE_TIME, self.sent - self.waiting
        elif exchange is None and self.server.stopping and self.idle:
            state, limit = "last", LAST_CALL
        elif exchange is None:
            fresh = self.idle and self._requests
            state, limit = ("idle", KEEP_TIME) if fresh else ("head", HEAD_TIME)
        elif self.crowded:
            state, limit, moved = "answer", IDLE_TIME, self.sent - self.waiting
        elif not exchange.asked and exchange._listener is not None and not self._held:
            state, limit, moved = "body", IDLE_TIME, self.heard
        else:
            state, limit = "work", 0.0
        if (state, self._requests) != self._was:
            self._was, self._since = (state, self._requests), now
            if state != "linger":
                self._mark = moved
        elif limit and now - self._since >= limit:
            if moved and moved - self._mark >= SLOWEST * limit:
                self._since, self._mark = now, moved
            else:
                self._slow(state)

    def _slow(self, state: str) -> None:
        if state in ("idle", "last") or (state == "head" and self._reader.between):
            self.close()
        elif state == "head" or (state == "body" and self._exchange is not None and not self._exchange._begun):
            self._malformed(Malformed("too slow", 408))
        else:
            self.abort()


@define(eq=False)
class Server(Factory):
    """Serves HTTP/1.1; each request goes to `handler`. `clock` is the reactor."""

    clock: Any
    handler: Handler
    connections: int = CONNECTIONS
    log: Logger = field(factory=Logger)
    tally: Tally = field(factory=Tally, init=False)
    stopping: bool = field(default=False, init=False)
    _open: set[_Connection] = field(factory=set, init=False, repr=False)
    _sweep: IDelayedCall | None = field(default=None, init=False, repr=False)
    _empty: list[Deferred[None]] = field(factory=list, init=False, repr=False)
    _second: int = field(default=-1, init=False, repr=False)
    _date: str = field(default="", init=False, repr=False)

    noisy = False

    def __len__(self) -> int:
        """Count the open connections."""
        return len(self._open)

    def __bool__(self) -> bool:
        """Be true without any connection too."""
        return True

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Take a connection, unless there are too many or the end has come."""
        if self.stopping or len(self._open) >= self.connections:
            return None
        return _Connection(self)

    def opened(self, wire: _Connection) -> None:
        """Take a new connection."""
        self._open.add(wire)
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP, self._look)

    def closed(self, wire: _Connection) -> None:
        """Take the end of one."""
        self._open.discard(wire)
        if not self._open:
            if self._sweep is not None:
                self._sweep.cancel()
                self._sweep = None
            waiting, self._empty = self._empty, []
            for one in waiting:
                one.callback(None)

    def date(self) -> str:
        """Give the `date` line of this second."""
        second = int(self.clock.seconds())
        if second != self._second:
            self._second = second
            self._date = f"date: {format_datetime(datetime.now(UTC), usegmt=True)}\r\n"
        return self._date

    def stop(self) -> Deferred[None]:
        """Take no more connections; fires when all that are open have ended. `abort` does not wait for them.

        Whoever has one may be asking at this moment, so it ends with the next answer, or after LAST_CALL.
        """
        self.stopping = True
        empty: Deferred[None] = Deferred()
        if self._open:
            self._empty.append(empty)
        else:
            empty.callback(None)
        return empty

    def abort(self) -> None:
        """Cut every connection."""
        self.stopping = True
        for wire in list(self._open):
            wire.abort()

    def _look(self) -> None:
        self._sweep = self.clock.callLater(SWEEP, self._look)
        now = self.clock.seconds()
        for wire in list(self._open):
            wire.look(now)
