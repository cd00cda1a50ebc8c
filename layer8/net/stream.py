"""Any session on any Twisted stream: bytes and time go in, its effects are carried out.

```
peer --bytes--> Stream.dataReceived --> session.received --> effects --> Send, Close: the transport
                one delayed call    --> session.wake                     Dial, Join, Tell: the owner
```

Back-pressure: while the transport's buffer is full nothing is read, and what was read before waits, so a peer that does
not take its answers cannot ask for more of them. What a session says all the same, by itself or about one piece, is
capped (`WRITE_MOST`). An owner can stop reading, too.

Closing: an orderly `Close` shuts our half and throws away what comes until the peer ends its own (a close with unread
bytes in the kernel would reset the answer away), for at most `CLOSE_TIME`. A peer that ends its half is gone for the
session, but what was sent to it before still leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Protocol

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    IProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.core.session import Close, Dial, Join, Send, Session, Tell
from layer8.net.timer import Timer

WRITE_MOST = 1 << 20  # bytes that may wait for a slow reader, beyond the transport's own 64 KiB; then "slow"
PIECE = 4096  # bytes that a session gets at once: between two pieces it is seen whether the peer takes the answers
CLOSE_TIME = 5.0  # seconds that an orderly close may take

LOST = "lost"  # reasons that are ours and not the session's
SLOW = "slow"
BUG = "bug"


class Owner(Protocol):
    """Who put the session on the stream: the glue of one protocol. What it raises is its own bug."""

    def told(self, stream: Stream, what: object) -> None:
        """Take a `Tell`."""

    def dial(self, stream: Stream, key: int, address: str) -> None:
        """Take a `Dial`; the answer goes to the session by its own words, then `stream.carry_out()`."""

    def join(self, stream: Stream, key: int, first: bytes) -> None:
        """Take a `Join`: nothing is read until the owner hands the transport on with `stream.become`."""

    def ended(self, stream: Stream, reason: str) -> None:
        """Take the end, once: the session's own reason for closing, or "lost", "slow" or "bug"."""


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Stream(TwistedProtocol):
    """One session on one connection; `seconds` is the monotonic clock that the session sees."""

    log = Logger()
    transport: Any  # an ITCPTransport, a TLS or UNIX transport, or one of the fakes

    def __init__(
        self, session: Session, owner: Owner, clock: IReactorTime, seconds: Callable[[], float] = monotonic
    ) -> None:
        """Connect the parts; nothing happens before there is a connection."""
        self.session = session
        self.reason = ""
        self._owner = owner
        self._next: IProtocol | None = None
        self._clock = clock
        self._closing: IDelayedCall | None = None
        self._timer = Timer(clock, seconds, lambda: self._hear(self.session.wake))
        self._busy = self._lost = self._joined = self._full = self._held = self._shaking = self._gone = False
        self._unsent = 0
        self._waiting = b""

    def connectionMade(self) -> None:
        """Let a session that speaks first speak, and its clock run."""
        self._shaking = INegotiated.providedBy(self.transport)
        self.transport.registerProducer(self, True)
        self.carry_out()

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on to the session, or to what came after it."""
        if self._next is not None:
            self._next.dataReceived(data)
        elif not self.reason:
            self._shaking = False
            self._waiting += data
            self._feed()

    def carry_out(self) -> None:
        """Do what the session asks for; to be called after anything but this class has talked to it."""
        self._hear(None)

    def hold(self) -> None:
        """Stop reading until `go_on`."""
        self._held = True
        self._read_or_not()

    def go_on(self) -> None:
        """Read again."""
        self._held = False
        self._read_or_not()

    def close(self, reason: str, *, abort: bool = False) -> None:
        """End the connection as the owner wishes; the session hears of its end and the first reason stands."""
        if self.reason or self._next is not None:
            return
        self.reason = reason
        self._timer.stop()
        if self._gone:
            return
        if abort:
            self.transport.abortConnection()
            return
        self.transport.unregisterProducer()
        self._full = self._held = False
        self._read_or_not()  # the peer's own end has to be read
        self._closing = self._clock.callLater(CLOSE_TIME, self.transport.abortConnection)
        # a TLS transport would end the TCP stream underneath itself
        half = None if INegotiated.providedBy(self.transport) else getattr(self.transport, "loseWriteConnection", None)
        if self._lost or half is None:
            self.transport.loseConnection()
        else:
            half()

    def become(self, protocol: IProtocol) -> None:
        """Hand the connection on: from now on `protocol` has it, and this object only passes events."""
        self._timer.stop()
        self.transport.unregisterProducer()
        self._next = protocol
        protocol.makeConnection(self.transport)
        self.transport.resumeProducing()
        waiting, self._waiting = self._waiting, b""
        if waiting:
            protocol.dataReceived(waiting)

    # What Twisted calls besides.

    def handshakeCompleted(self) -> None:
        """TLS is up: from now on it can be paused."""
        self._shaking = False
        self._read_or_not()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._full = True
        self._read_or_not()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self._full, self._unsent = False, 0
        self._read_or_not()

    def stopProducing(self) -> None:
        """The transport is going; `connectionLost` follows."""

    def readConnectionLost(self) -> None:
        """The peer has ended its half."""
        if self._next is not None:
            if IHalfCloseableProtocol.providedBy(self._next):
                IHalfCloseableProtocol(self._next).readConnectionLost()
            else:
                self.transport.loseConnection()
        elif self.reason:
            self.transport.loseConnection()
        else:
            self._end_session()
            self.close(LOST)

    def writeConnectionLost(self) -> None:
        """Our half has ended."""
        if self._next is not None and IHalfCloseableProtocol.providedBy(self._next):
            IHalfCloseableProtocol(self._next).writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._timer.stop()
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        if self._next is not None:
            self._next.connectionLost(reason)
            return
        self._gone = True
        self._end_session()
        self.reason = self.reason or LOST
        self._owner.ended(self, self.reason)

    def _feed(self, *, last: bool = False) -> None:
        """Give the session what waits, piece by piece, for as long as there is room for the answers."""
        while self._waiting and not self.reason and (last or not (self._full or self._held)):
            piece, self._waiting = self._waiting[:PIECE], self._waiting[PIECE:]
            self._hear(partial(self.session.received, piece))

    def _end_session(self) -> None:
        if not self._lost:
            self._feed(last=not self._joined)
            self._lost = True
            self._hear(self.session.lost)

    def _hear(self, words: Callable[[float], None] | None) -> None:
        try:
            if words is not None:
                words(self._timer.seconds())
            if self._busy:
                return  # an owner talked to the session while its effects are carried out: the loop below goes on
            self._busy = True
            try:
                while effects := self.session.effects():
                    for effect in effects:
                        self._do(effect)
            finally:
                self._busy = False
            idle = self.reason or self._lost or self._joined
            self._timer.set(None if idle else self.session.deadline())
        except Exception:  # a peer cannot cause one: it is a bug, and costs this connection only
            self.log.failure("a session failed", event="stream.bug", session=type(self.session).__name__)
            self.close(BUG, abort=True)

    def _do(self, effect: object) -> None:
        match effect:
            case Tell(what=what):
                self._owner.told(self, what)
            case _ if self.reason or self._lost or self._joined:
                return
            case Send(data=data):
                self._unsent += len(data) if self._full else 0
                if self._gone:
                    return
                if self._unsent > WRITE_MOST:
                    self.close(SLOW, abort=True)
                else:
                    self.transport.write(data)
            case Close(reason=reason, abort=abort):
                self.close(reason, abort=abort)
            case Dial(key=key, address=address):
                self._owner.dial(self, key, address)
            case Join(key=key, first=first):
                self._joined = True
                self.hold()
                rest, self._waiting = self._waiting, b""
                self._owner.join(self, key, first + rest)

    def _read_or_not(self) -> None:
        if self._next is None:
            self._feed()
            # a TLS transport that may not read cannot finish the handshake that its writes wait for
            if (self._full or self._held) and not self._shaking:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()


class StreamFactory(Factory):
    """Makes a session for each connection; `make` gets the peer's address."""

    def __init__(
        self,
        make: Callable[[IAddress], Session],
        owner: Owner,
        clock: IReactorTime,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Keep what each connection needs."""
        self._make = make
        self._owner = owner
        self._clock = clock
        self._seconds = seconds

    def buildProtocol(self, addr: IAddress | None) -> Stream | None:
        """Make one."""
        return None if addr is None else Stream(self._make(addr), self._owner, self._clock, self._seconds)
