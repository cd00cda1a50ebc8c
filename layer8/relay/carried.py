"""A connection whose bytes a stream carries: half closes and back-pressure go both ways.

::

 stream --Sink.data--> transport.write      while the transport is full, the far end gets no credit
 transport --dataReceived--> Stream.write   while the far end takes no more, the transport is not read

What stands at its other end differs: a target of an exit, a program at a SOCKS port, a program behind a hidden service.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.relay.turn import StreamLike
from layer8.relay.wire import Reason

WRITE_MOST: Final = 1 << 20  # bytes that may wait for whoever reads slowly, beyond what the transport keeps by itself


@implementer(IHalfCloseableProtocol, IPushProducer)
class Carried(Protocol):
    """See the module: the sink of `stream` once there is one. `LEAVE_TIME` is what the last bytes may take."""

    transport: Any  # ITCPTransport or a UNIX transport
    LEAVE_TIME: float

    def __init__(self, clock: IReactorTime) -> None:
        """Wait for a connection."""
        self.stream: StreamLike | None = None
        self._clock = clock
        self._over = self._in_ended = self._out_ended = self._shut = self._full = False
        self._unsent = 0
        self._linger: IDelayedCall | None = None

    # What a kind of its own says otherwise.

    def moved(self, size: int) -> bool:
        """Count bytes of either direction; False where they are too many."""
        return True

    def lost(self, reason: Failure) -> None:
        """Hear that the connection has ended before the stream."""
        if self.stream is not None:
            self.stream.close(Reason.RESET)

    def gone(self) -> None:
        """Hear once that the connection is over."""

    # What the stream says.

    def opened(self, opened: object) -> None:
        """Hear what only whoever has opened the stream does."""

    def data(self, pieces: list[bytes]) -> None:
        """Pass bytes on."""
        if self._over or self._out_ended:
            return
        size = sum(map(len, pieces))
        if not self.moved(size):
            self.abort(Reason.LIMIT)
            return
        if self._full:
            self._unsent += size
            if self._unsent > WRITE_MOST:
                self.abort(Reason.LIMIT)
                return
        self.transport.writeSequence(pieces)

    def ended(self) -> None:
        """Say no more there, once everything has left."""
        if not self._over and not self._out_ended:
            self._out_ended = True
            self.transport.unregisterProducer()  # a paused one would keep the end back
            self.transport.loseWriteConnection()

    def closed(self, reason: Reason) -> None:
        """End both halves: after the last bytes if the stream was done, else at once."""
        if self._over:
            return
        self._over = True
        if reason is Reason.DONE and self.stream is not None:
            self.leave()
        else:
            self.transport.abortConnection()

    def hold(self) -> None:
        """Read no more for now."""
        if not self._over:
            self.transport.pauseProducing()

    def go_on(self) -> None:
        """Read again."""
        if not self._over and not self._in_ended:
            self.transport.resumeProducing()

    # What Twisted says.

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on; what comes after the end is thrown away."""
        if self._over or self.stream is None:
            return
        if self.moved(len(data)):
            self.stream.write(data)
        else:
            self.abort(Reason.LIMIT)

    def pauseProducing(self) -> None:
        """Let the stream wait: the transport is full."""
        self._full = True
        if self.stream is not None and not self._over:
            self.stream.pause()

    def resumeProducing(self) -> None:
        """Let the stream go on."""
        self._full, self._unsent = False, 0
        if self.stream is not None and not self._over:
            self.stream.resume()

    def stopProducing(self) -> None:
        """Hear that the transport is going; `connectionLost` follows."""

    def readConnectionLost(self) -> None:
        """Pass the end on."""
        self._in_ended = True
        if self.stream is not None and not self._over:
            self.stream.end()
        self._ends()

    def writeConnectionLost(self) -> None:
        """Note that our half has ended."""
        self._shut = True
        self._ends()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the stream, unless it has ended already."""
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        over, self._over = self._over, True
        if not over:
            self.lost(reason)
        self.gone()

    # Ends.

    def abort(self, reason: Reason) -> None:
        """End everything now."""
        self._over = True
        self.transport.abortConnection()
        if self.stream is not None:
            self.stream.close(reason)

    def leave(self) -> None:
        """Close once everything has left, which may take LEAVE_TIME."""
        if not self._out_ended:
            self.transport.unregisterProducer()
        self.linger(self.LEAVE_TIME)
        self.transport.loseConnection()

    def linger(self, seconds: float) -> None:
        """Wait no longer than so for the connection to end."""
        self._linger = self._clock.callLater(seconds, self.transport.abortConnection)

    def _ends(self) -> None:
        """Close when both halves have ended."""
        if self._in_ended and self._shut:
            self._over = True
            self.transport.loseConnection()
