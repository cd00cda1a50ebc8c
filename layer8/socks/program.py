"""A program's connection as the sink of a stream: answered once, then bytes go both ways, and each half ends by itself.

```
 program --dataReceived, 64 KiB--> StreamLike.write        one write a read
 program <--transport.write-------- Sink.data(pieces)      one write a run of cells
```
What a program says before it is answered travels with RELAY_CONNECT. While the far end takes no more, the program is
not read; while the program takes no more, the far end gets no credit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.net.stream import CLOSE_TIME
from layer8.relay.client import Opened, Reason, Sink, StreamLike
from layer8.socks.wire import Code, reply

WRITE_MOST: Final = 1 << 20  # bytes that may wait for a slow program, beyond the transport's own 64 KiB
LEAVE_TIME: Final = 300.0  # seconds that a slow program has to take the last bytes

CODES: Final[Mapping[Reason, Code]] = {
    Reason.POLICY: Code.POLICY,
    Reason.RESOLVE: Code.HOST_UNREACHABLE,
    Reason.REFUSED: Code.REFUSED,
    Reason.NO_PORT: Code.REFUSED,
    Reason.UNREACHABLE: Code.NET_UNREACHABLE,
    Reason.TIMEOUT: Code.TIMED_OUT,
}
"""What a program is told; of anything else it hears FAILED."""


class Caller(Sink, Protocol):
    """A sink that can be refused in more detail: by a hidden service, as Tor's extension numbers it."""

    def refused(self, code: int) -> None:
        """Take the end before there was a beginning."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Program(TwistedProtocol):
    """See the module. `way` opens the stream or has it refused, `gone` hears once that the connection is over.

    Without `answers`, as in a tunnel, nothing but the stream's own bytes is said, and a refusal is a reset.
    """

    transport: Any  # ITCPTransport or a UNIX transport

    def __init__(
        self,
        clock: IReactorTime,
        way: Callable[[Program], StreamLike | None],
        gone: Callable[[Program], None],
        *,
        early: bytes = b"",
        answers: bool = True,
    ) -> None:
        """Wait for a connection."""
        self.sent = self.received = 0
        self.stream: StreamLike | None = None
        self._clock = clock
        self._way = way
        self._gone = gone
        self._early = early
        self._answers = answers
        self._open = self._over = self._held = False
        self._in_ended = self._out_ended = self._shut = self._full = False
        self._unsent = 0
        self._linger: IDelayedCall | None = None

    @property
    def state(self) -> str:
        """Say how far it is."""
        return "closing" if self._over else "open" if self._open else "connecting"

    # What the stream says.

    def opened(self, opened: Opened) -> None:
        """Tell the program that the far end has answered."""
        if not self._over and not self._open:
            self._open = True
            if self._answers:
                self.transport.write(reply(Code.GRANTED))

    def data(self, pieces: list[bytes]) -> None:
        """Pass bytes on."""
        if self._over or self._out_ended:
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.received += len(data)
        if self._full:
            self._unsent += len(data)
            if self._unsent > WRITE_MOST:
                self.abort(Reason.LIMIT)
                return
        self.transport.write(data)

    def ended(self) -> None:
        """Say no more to the program, once everything has left."""
        if not self._over and not self._out_ended:
            self._out_ended = True
            self.transport.unregisterProducer()  # a paused one would keep the end back
            self.transport.loseWriteConnection()

    def closed(self, reason: Reason) -> None:
        """Answer, if that has not been done; else end both halves, after the last bytes if the stream was done."""
        if not self._over and not self._open:
            self.refused(CODES.get(reason, Code.FAILED))
        elif not self._over:
            self._over = True
            if reason is Reason.DONE:
                self._leave()
            else:
                self.transport.abortConnection()

    def refused(self, code: int) -> None:
        """Say why not, and part; too late for that, it is the end of what has begun."""
        if self._open:
            self.closed(Reason.RESET)
        if self._over:
            return
        self._over = True
        if self._answers:
            self.transport.write(reply(code))
            self._leave()
        else:
            self.transport.abortConnection()

    def hold(self) -> None:
        """Read no more for now."""
        self._held = True
        if not self._over:
            self.transport.pauseProducing()

    def go_on(self) -> None:
        """Read again."""
        self._held = False
        if not self._over and not self._in_ended:
            self.transport.resumeProducing()

    # What Twisted says.

    def connectionMade(self) -> None:
        """Open the stream."""
        if not isinstance(self.transport.getHost(), UNIXAddress):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)
        stream = self._way(self)
        early, self._early = self._early, b""
        if self._over:
            return  # it was refused at once
        self.stream = stream
        if early:
            self.dataReceived(early)

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on; what comes after the end is thrown away, so that it does not reset our last words."""
        if not self._over and self.stream is not None:
            self.sent += len(data)
            self.stream.write(data)

    def pauseProducing(self) -> None:
        """Let the stream wait: the program takes no more for now."""
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
        """Pass the program's end on."""
        self._in_ended = True
        if self._over:
            if self._shut:
                self.transport.loseConnection()
        elif self.stream is not None:
            self.stream.end()
            if self._shut:
                self._over = True
                self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Close, if the program has ended too; else it has a moment to do so, once nothing more is to come."""
        self._shut = True
        if self._in_ended:
            self._over = True
            self.transport.loseConnection()
        elif self._linger is not None and self._linger.active():
            self._linger.reset(CLOSE_TIME)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the stream, unless it has ended already."""
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        over, self._over = self._over, True
        if not over and self.stream is not None:
            self.stream.close(Reason.RESET)
        self._gone(self)

    def abort(self, reason: Reason) -> None:
        """End everything now."""
        self._over = True
        self.transport.abortConnection()
        if self.stream is not None:
            self.stream.close(reason)

    def _leave(self) -> None:
        """Shut our half once everything has left, and throw away what comes until the program has ended its own."""
        if not self._out_ended:
            self.transport.unregisterProducer()
        if self._in_ended:
            self.transport.loseConnection()
            return
        self._linger = self._clock.callLater(CLOSE_TIME if self._shut else LEAVE_TIME, self.transport.abortConnection)
        if not self._out_ended:
            self._out_ended = True
            self.transport.loseWriteConnection()
        self.transport.resumeProducing()
