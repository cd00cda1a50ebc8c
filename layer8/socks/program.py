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
from typing import Final, Protocol

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IReactorTime

from layer8.net.stream import CLOSE_TIME
from layer8.relay.client import Carried, Reason, Sink, StreamLike
from layer8.socks.wire import Code, reply

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


class Program(Carried):
    """See the module. `way` opens the stream or has it refused, `gone` hears once that the connection is over.

    Without `answers`, as in a tunnel, nothing but the stream's own bytes is said, and a refusal is a reset.
    """

    LEAVE_TIME = LEAVE_TIME

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
        super().__init__(clock)
        self.sent = self.received = 0
        self._way = way
        self._tell = gone
        self._early = early
        self._answers = answers
        self._open = False

    @property
    def state(self) -> str:
        """Say how far it is."""
        return "closing" if self._over else "open" if self._open else "connecting"

    # What the stream says.

    def opened(self, opened: object) -> None:
        """Tell the program that the far end has answered."""
        if not self._over and not self._open:
            self._open = True
            if self._answers:
                self.transport.write(reply(Code.GRANTED))

    def data(self, pieces: list[bytes]) -> None:
        """Pass bytes on."""
        if not self._over and not self._out_ended:
            self.received += sum(map(len, pieces))
        super().data(pieces)

    def closed(self, reason: Reason) -> None:
        """Answer, if that has not been done; else end both halves, after the last bytes if the stream was done."""
        if not self._over and not self._open:
            self.refused(CODES.get(reason, Code.FAILED))
        elif not self._over:
            self._over = True
            if reason is Reason.DONE:
                self.leave()
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
            self.leave()
        else:
            self.transport.abortConnection()

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

    def writeConnectionLost(self) -> None:
        """Close, if the program has ended too; else it has a moment to do so, once nothing more is to come."""
        super().writeConnectionLost()
        if not self._in_ended and self._linger is not None and self._linger.active():
            self._linger.reset(CLOSE_TIME)

    def gone(self) -> None:
        """Tell that the connection is over."""
        self._tell(self)

    def leave(self) -> None:
        """Shut our half once everything has left, and throw away what comes until the program has ended its own."""
        if not self._out_ended:
            self.transport.unregisterProducer()
        if self._in_ended:
            self.transport.loseConnection()
            return
        self.linger(CLOSE_TIME if self._shut else self.LEAVE_TIME)
        if not self._out_ended:
            self._out_ended = True
            self.transport.loseWriteConnection()
        self.transport.resumeProducing()
