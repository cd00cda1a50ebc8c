"""A lean HTTP/1.1 client: a pool of connections to one endpoint, and requests streamed over them.

    pool = Pool(reactor, connect)                  # connect(factory) -> Deferred, see `net.ways`
    line = await pool.take()                       # Unavailable after QUEUE seconds with POOL in use; may be cancelled
    line.request("POST", "/path", "shop.example", fields, listener, length=None)   # None: chunked
    line.write(data); line.finish()                # the request's body
    listener.answered(status, fields, length)      # then .received .ended .lost .full .room as with a server
    line.pause(); line.resume()                    # of the answer
    line.cut()                                     # at any time: neither body passes for whole, the connection is gone
    answer = await fetch(pool, "GET", "/keys", "shop.example", most=65536)         # .status .fields .body

A connection goes back to the pool by itself when both bodies have ended. One that has waited there is looked at before
it is used: if the other side has closed it, a new one is dialled, for nothing has been sent yet.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from attrs import define, field, frozen
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.core.errors import LimitExceeded, LocalProtocolError, Unavailable
from layer8.core.http1 import END, UNTIL_END, Malformed, Reader, Response, read_response
from layer8.net.http_wire import BUFFER, CORK, LAST_CHUNK, Lines, Listener, Tally, Wire, chunk, field_lines

POOL: Final = 64  # connections to one endpoint
QUEUE: Final = 1.0  # seconds to wait for one of them
UNUSED: Final = 30.0  # seconds that a connection is kept without a request
INFORMATIONAL: Final = 4  # answers before the final one

_WORDS = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+").fullmatch

_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

Fields = Sequence[tuple[str, str]]


class Answering(Listener, Protocol):
    """Whoever takes an answer. `lost` may come before it has begun."""

    def answered(self, status: int, fields: Fields, length: int | None) -> None:
        """Take the head of the answer, names in lower case; None: only the end of the body tells its length."""


@implementer(IHandshakeListener)
class Line(Wire):
    """One connection to a server, with at most one exchange on it."""

    def __init__(self, pool: Pool) -> None:
        """Belong to a pool."""
        super().__init__(pool.tally)
        self.pool = pool
        self.used = 0  # exchanges that were begun
        self.unused = 0.0  # since when it waits in the pool
        self.stands: Callable[[], None] | None = None  # told when the TLS stands, or will not
        self._reader: Reader[Response] = Reader(read_response)
        self._listener: Answering | None = None
        self._sending = False  # the request's body is not complete
        self._chunked = False
        self._left = 0  # bytes of it that are still owed
        self._answering = False  # the answer has begun
        self._answered = False  # the answer is complete
        self._again = False  # another exchange may follow
        self._held = False
        self._running = False
        self._early = 0
        self.why: Failure | None = None  # it has gone

    def request(
        self, method: str, target: str, host: str, fields: Lines, listener: Answering, length: int | None = 0
    ) -> None:
        """Begin an exchange; without a length (None) the body goes in chunks. `fields` frame nothing."""
        if self._listener is not None or self.gone:
            raise LocalProtocolError("a connection that is in use or gone")
        words = f"{method} {target}"
        if _WORDS(words) is None:
            raise LocalProtocolError("a request line with a space or a line end in its words")
        head = f"{words} HTTP/1.1\r\n{field_lines((('host', host), *fields))}"
        if length is None:
            head += "transfer-encoding: chunked\r\n"
        elif length or method in ("POST", "PUT", "PATCH"):
            head += f"content-length: {length}\r\n"
        self.used += 1
        self._listener = listener
        self._chunked, self._left = length is None, length or 0
        self._sending = bool(length is None or length)
        self._answering = self._answered = False
        self._again = True
        self._early = 0
        self._reader.bare = method == "HEAD"
        self.send(f"{head}\r\n".encode("latin-1"))

    def write(self, data: bytes) -> None:
        """Write a piece of the request's body; in silence if the exchange is over."""
        if not self._sending or not data:
            return
        if self._chunked:
            self.send(chunk(data))
        elif len(data) <= self._left:
            self._left -= len(data)
            self.send(data)
        else:
            raise LocalProtocolError("more of a request than was promised")

    def finish(self) -> None:
        """End the request's body."""
        if not self._sending:
            return
        if self._left:
            self.cut()
            raise LocalProtocolError("less of a request than was promised")
        if self._chunked:
            self.send(LAST_CHUNK)
        self._sending = False
        if self._answered:
            self._over()

    def pause(self) -> None:
        """Read no more of the answer for now."""
        if self._listener is not None and not self._held:
            self._held = True
            if not self._running:
                self.rest()

    def resume(self) -> None:
        """Read on."""
        if self._held:
            self._held = False
            if not self._running and not self.gone:
                with CORK:
                    self._run()

    def cut(self) -> None:
        """End the exchange and the connection now; the listener hears nothing more."""
        self._listener = None
        self._sending = False
        self._held = False
        if not self.gone:
            self.abort()

    def hand_over(self, successor: TwistedProtocol) -> None:
        """Give the connection away after a 101; `successor` hears what has followed the answer's head."""
        self._listener = None
        rest = self._reader.rest()
        self.pool.lost(self)
        self.leave(successor)
        if rest:
            successor.dataReceived(rest)

    @property
    def fresh(self) -> bool:
        """Whether nothing has come and the other side has not ended, as far as the kernel knows."""
        if self.gone or self.closing or not self._reader.between:
            return False
        sock = getattr(self.transport, "socket", None)
        if not isinstance(sock, socket.socket):
            return True
        try:
            sock.recv(1, _PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def dataReceived(self, data: bytes) -> None:
        """Take what the server says."""
        self.count(data)
        if self.closing:
            return
        if self._listener is None:
            self.abort()  # nobody has asked
            return
        self._reader.feed(data)
        with CORK:
            self._run()

    def _run(self) -> None:
        if self._running:
            return
        self._running = True
        reader = self._reader
        try:
            while not self._held and (listener := self._listener) is not None:
                what = reader.content()
                if what is None:
                    break
                if isinstance(what, bytes):
                    listener.received(what)
                elif what is END:
                    if self._answering:
                        self._ended(listener)
                else:
                    self._head(what, listener)
        except Malformed:
            self._broken()
        finally:
            self._running = False
        if self.gone:
            return
        if self._held or reader.held > BUFFER:
            self.rest()
        else:
            self.wake()

    def _head(self, head: Response, listener: Answering) -> None:
        if head.status < 200 and head.status != 101:
            self._early += 1
            if self._early > INFORMATIONAL:
                raise Malformed("too many answers before the last")
            return
        self._answering = True
        endless = head.body == UNTIL_END and not self._reader.bare
        if not head.minor or b"close" in head.options or endless or head.status == 101:
            self._again = False
        fields = [(name.decode("ascii"), value.decode("latin-1")) for name, _, value in head.fields]
        listener.answered(head.status, fields, None if head.body < 0 else head.body)

    def _ended(self, listener: Answering) -> None:
        if self._sending:
            self._answered = True
            self._again = False  # the rest of the request would have to be sent for nothing
        else:
            self._over()
        listener.ended()

    def _over(self) -> None:
        self._listener = None
        self._sending = False
        self._answered = False
        self._held = False
        if self._again and not self._reader.held:
            self.flush()
            self.pool.give_back(self)
        elif not self.gone:
            self.close()

    def _broken(self) -> None:
        """The server does not keep to the protocol, or has gone in the middle."""
        listener, self._listener = self._listener, None
        self._sending = False
        if not self.gone:
            self.abort()
        if listener is not None and not self._answered:
            listener.lost()

    def filled(self) -> None:
        """Tell whoever writes."""
        if self._listener is not None and self._sending:
            self._listener.full()

    def emptied(self) -> None:
        """Tell whoever writes."""
        if self._listener is not None and self._sending:
            with CORK:
                self._listener.room()

    def connectionMade(self) -> None:
        """Begin; over TLS, nothing is asked before its handshake is done."""
        super().connectionMade()
        if hasattr(self.transport, "getPeerCertificate"):
            self.stands = _nobody

    def handshakeCompleted(self) -> None:
        """Take that the server is the right one."""
        told, self.stands = self.stands, None
        if told is not None:
            told()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the end; it is the end of a body too, if that has no other."""
        if self.gone:
            return
        super().connectionLost(reason)
        self.why = reason
        self.handshakeCompleted()
        self.pool.lost(self)
        listener = self._listener
        if listener is None:
            return
        with CORK:
            until = self._answering and self._reader.free and self._reader.whole
            if until and reason.check(type(connectionDone.value)) and not self._held:
                self._listener = None
                listener.ended()
            else:
                self._broken()


def _nobody() -> None:
    """Tell nobody."""


class _Lines(Factory):
    """Makes one connection of a pool, and writes no line into the log for it."""

    noisy = False

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def buildProtocol(self, addr: object) -> Line:
        """Make it."""
        return Line(self._pool)


@define(eq=False)
class _Waiter:
    taken: Deferred[Line]
    timer: IDelayedCall | None = None


@define(eq=False)
class Pool:
    """Connections to one endpoint for all who ask, first come first served."""

    _clock: Any
    _connect: Callable[[Factory], Deferred[Any]]
    most: int = POOL
    queue: float = QUEUE
    tally: Tally = field(factory=Tally, init=False)
    stopped: bool = field(default=False, init=False)
    _idle: deque[Line] = field(factory=deque, init=False, repr=False)
    _open: set[Line] = field(factory=set, init=False, repr=False)
    _dials: set[Deferred[Any]] = field(factory=set, init=False, repr=False)
    _shaking: dict[Deferred[Any], Line] = field(factory=dict, init=False, repr=False)  # of _dials, those that do TLS
    _waiters: deque[_Waiter] = field(factory=deque, init=False, repr=False)
    _sweep: IDelayedCall | None = field(default=None, init=False, repr=False)

    @property
    def open(self) -> int:
        """Count the connections."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """Count those without a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Count those who wait for one."""
        return len(self._waiters)

    def ready(self) -> Line | None:
        """Give a connection that waits with nothing on it, if there is one: `take` without a Deferred."""
        while self._idle:
            line = self._idle.pop()
            if line.fresh:
                return line
            self._open.discard(line)
            line.cut()
        return None

    def take(self) -> Deferred[Line]:
        """Give a connection with nothing on it; `Unavailable` if there is none. Cancel to wait no longer."""
        taken: Deferred[Line] = Deferred(self._cancelled)
        if self.stopped:
            taken.errback(Unavailable("the pool is closed"))
            return taken
        line = self.ready()
        if line is not None:
            taken.callback(line)
            return taken
        waiter = _Waiter(taken)
        self._waiters.append(waiter)
        if len(self._open) + len(self._dials) < self.most:
            self._dial()
        else:
            waiter.timer = self._clock.callLater(self.queue, self._late, waiter)
        return taken

    def give_back(self, line: Line) -> None:
        """Take a connection whose exchange is over."""
        if self.stopped or line.gone:
            line.close()
            return
        if self._waiters:
            self._serve(line)
            return
        line.unused = self._clock.seconds()
        self._idle.append(line)
        if self._sweep is None:
            self._sweep = self._clock.callLater(UNUSED, self._look)

    def lost(self, line: Line) -> None:
        """Take that a connection is gone, or belongs to somebody else now."""
        self._open.discard(line)
        if line in self._idle:
            self._idle.remove(line)
        if not self._idle and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if not self.stopped and len(self._waiters) > len(self._dials) and len(self._open) < self.most:
            self._dial()

    def close(self) -> None:
        """Close what is idle, and the rest as it ends; who waits is told."""
        self.stopped = True
        for dial in list(self._dials):
            self._give_up(dial)
        while self._waiters:
            self._fail(self._waiters.popleft(), Unavailable("the pool is closed"))
        for line in list(self._idle):
            line.close()

    def abort(self) -> None:
        """Cut everything."""
        self.close()
        for line in list(self._open):
            line.abort()

    def _dial(self) -> None:
        dial = self._connect(_Lines(self))
        self._dials.add(dial)
        dial.addCallbacks(self._dialled, self._undialled, callbackArgs=(dial,), errbackArgs=(dial,))

    def _give_up(self, dial: Deferred[Any]) -> None:
        line = self._shaking.get(dial)
        if line is None:
            dial.cancel()
        else:
            line.abort()

    def _dialled(self, line: Line, dial: Deferred[Any]) -> None:
        if line.stands is not None and not line.gone:
            self._shaking[dial] = line
            line.stands = partial(self._dialled, line, dial)
            return
        self._shaking.pop(dial, None)
        self._dials.discard(dial)
        if line.gone:
            self._undialled(line.why or Failure(Unavailable("closed at once")), dial)
            return
        self._open.add(line)
        if self.stopped:
            line.abort()
        else:
            with CORK:
                self.give_back(line)

    def _undialled(self, failure: Failure, dial: Deferred[Any]) -> None:
        self._dials.discard(dial)
        if len(self._waiters) > len(self._dials):
            with CORK:
                self._fail(self._waiters.popleft(), Unavailable(_why(failure)))

    def _serve(self, line: Line) -> None:
        waiter = self._waiters.popleft()
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.taken.callback(line)

    def _late(self, waiter: _Waiter) -> None:
        waiter.timer = None
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            with CORK:
                self._fail(waiter, Unavailable("every connection is in use"))

    @staticmethod
    def _fail(waiter: _Waiter, why: Unavailable) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None
        waiter.taken.errback(why)

    def _cancelled(self, taken: Deferred[Line]) -> None:
        for waiter in list(self._waiters):
            if waiter.taken is taken:
                self._waiters.remove(waiter)
                if waiter.timer is not None:
                    waiter.timer.cancel()
        spare = len(self._dials) - len(self._waiters)
        for dial in list(self._dials)[: max(spare, 0)]:
            self._give_up(dial)

    def _look(self) -> None:
        """Close what nobody has used for a while."""
        self._sweep = None
        now = self._clock.seconds()
        for line in list(self._idle):
            if now - line.unused >= UNUSED:
                self._idle.remove(line)
                line.close()
        if self._idle:
            self._sweep = self._clock.callLater(UNUSED, self._look)


def _why(failure: Failure) -> str:
    if failure.check(SSL.Error):
        return "the TLS of the other side is not what was expected"
    if failure.check(ConnectingCancelledError):
        return "the dial was given up"
    if failure.check(ConnectError, DNSLookupError, Unavailable, OSError):
        return failure.getErrorMessage() or "it cannot be reached"
    return f"it cannot be reached: {failure.type.__name__ if failure.type else 'unknown'}"


@frozen
class Answer:
    """A small answer, whole."""

    status: int
    fields: Fields
    body: bytes = field(repr=False)

    def only(self, name: str) -> str | None:
        """Give the value of the field of this name (lower case), None if there is not exactly one."""
        found = [value for known, value in self.fields if known == name]
        return found[0] if len(found) == 1 else None


class _Collector:
    """The listener of `fetch`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._pieces: list[bytes] = []
        self._status = 0
        self._fields: Fields = ()
        self.line: Line | None = None
        self.done: Deferred[Answer] = Deferred(self._cancelled)

    def answered(self, status: int, fields: Fields, length: int | None) -> None:
        self._status, self._fields = status, fields
        if (length or 0) > self._most:
            self._fail(LimitExceeded("BODY", self._most))

    def received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._most:
            self._fail(LimitExceeded("BODY", self._most))

    def ended(self) -> None:
        if not self.done.called:
            self.done.callback(Answer(self._status, self._fields, b"".join(self._pieces)))

    def lost(self) -> None:
        self._fail(Unavailable("the connection ended within an answer"))

    def full(self) -> None:
        pass

    def room(self) -> None:
        pass

    def _fail(self, why: Exception) -> None:
        self._cut()
        if not self.done.called:
            self.done.errback(why)

    def _cancelled(self, _: Deferred[Answer]) -> None:
        self._cut()

    def _cut(self) -> None:
        if self.line is not None:
            self.line.cut()


async def fetch(
    pool: Pool, method: str, target: str, host: str, fields: Lines = (), body: bytes = b"", *, most: int
) -> Answer:
    """Ask once and give the whole answer; `LimitExceeded` past `most` bytes, `Unavailable` if there is none.

    Cancelling cuts the connection; how long to wait is the caller's to say.
    """
    collector = _Collector(most)
    line = await pool.take()
    collector.line = line
    line.request(method, target, host, fields, collector, len(body))
    line.write(body)
    line.finish()
    return await collector.done
