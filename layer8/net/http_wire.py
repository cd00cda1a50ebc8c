"""What both ends of HTTP/1.1 share: a connection that is written to cheaply, read with pauses, and counted to the byte.

Small writes of one turn leave together: whoever handles what has come enters the `Cork`, and what is sent meanwhile
goes out, in one call for each connection, when the last of them leaves it. A connection whose transport has nothing
waiting is written to at once, without a detour through the reactor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from attrs import define
from twisted.internet import protocol
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.core.errors import LimitExceeded, LocalProtocolError, Unavailable

BUFFER: Final = 64 * 1024  # bytes that wait in one direction; then whoever writes is told, whoever sends has to rest

Lines = Iterable[tuple[str, str]]
"""Field names and values to send; names in lower case, values without a line end in them."""


class Listener(Protocol):
    """Whoever takes a body, and writes the other one. Nothing is called any more after `lost`."""

    def received(self, data: bytes) -> None:
        """Take a piece of the body that comes."""

    def ended(self) -> None:
        """Take that the body has come whole."""

    def lost(self) -> None:
        """Take that the connection has gone before all was said: neither body is whole. Comes at most once."""

    def full(self) -> None:
        """Take that more than BUFFER waits to be sent: write no more for now."""

    def room(self) -> None:
        """Take that there is room again."""


class Deaf:
    """A listener for bodies that nobody wants."""

    def received(self, data: bytes) -> None:
        """Drop it."""

    def ended(self) -> None:
        """Do nothing."""

    def lost(self) -> None:
        """Do nothing."""

    def full(self) -> None:
        """Do nothing."""

    def room(self) -> None:
        """Do nothing."""


class Whole(Deaf):
    """A listener that keeps a small body; `body` fires with it."""

    def __init__(self, most: int) -> None:
        """Keep at most so many bytes."""
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0
        self.body: Deferred[bytes] = Deferred(lambda _: None)

    def received(self, data: bytes) -> None:
        """Keep a piece."""
        self._size += len(data)
        if self._size <= self._most:
            self._pieces.append(data)
        elif not self.body.called:
            self._pieces.clear()
            self.body.errback(LimitExceeded("BODY", self._most))

    def ended(self) -> None:
        """Give all of it."""
        if not self.body.called:
            self.body.callback(b"".join(self._pieces))

    def lost(self) -> None:
        """Give up."""
        if not self.body.called:
            self.body.errback(Unavailable("the connection ended within a body"))


@define(eq=False)
class Tally:
    """Bytes of all the connections of a server or a pool, counted where they meet the transport."""

    heard: int = 0
    sent: int = 0


class Cork:
    """Keeps what is sent within one turn together."""

    __slots__ = ("_depth", "_held")

    def __init__(self) -> None:
        """Begin open."""
        self._depth = 0
        self._held: list[Wire] = []

    def __enter__(self) -> None:
        """Hold back what is sent from here on."""
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Let it go, if this was the last to hold it back."""
        if self._depth == 1:
            while self._held:
                held, self._held = self._held, []
                for wire in held:
                    wire.flush()
        self._depth -= 1

    def hold(self, wire: Wire) -> bool:
        """Say whether a connection's bytes wait, and remember it then."""
        if self._depth:
            self._held.append(wire)
        return self._depth > 0


CORK: Final = Cork()
"""The one of this process: there is one reactor."""


@implementer(IPushProducer)
class Wire(protocol.Protocol):
    """One connection: bytes out with back-pressure, pauses of what comes in, and an end."""

    transport: Any

    def __init__(self, tally: Tally) -> None:
        """Count into `tally`."""
        self.tally = tally
        self.heard = 0
        self.sent = 0
        self.gone = False
        self.closing = False  # it is gone or ends: nothing that comes is looked at any more
        self.crowded = False  # more than BUFFER waits to be sent
        self.resting = False  # nothing is read
        self._out: list[bytes] = []
        self._size = 0
        self._direct = False

    def connectionMade(self) -> None:
        """Begin."""
        transport = self.transport
        self._direct = isinstance(transport, FileDescriptor) and hasattr(transport, "writeSomeData")
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)

    def send(self, data: bytes) -> None:
        """Send, now or at the end of this turn; in silence if the connection has gone."""
        if self.gone:
            return
        self._size += len(data)
        if self._out:
            self._out.append(data)
            if self._size > BUFFER:
                self.flush()
            return
        self._out.append(data)
        if self._size > BUFFER or not CORK.hold(self):
            self.flush()

    def flush(self) -> None:
        """Hand what was sent to the transport."""
        out = self._out
        if not out or self.gone:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        self._out, self._size = [], 0
        self.sent += len(data)
        self.tally.sent += len(data)
        transport = self.transport
        if self._direct and not transport.dataBuffer and not transport._tempDataBuffer:
            count = transport.writeSomeData(data)
            if count == len(data):
                return
            if isinstance(count, int) and count > 0:
                data = data[count:]
        transport.write(data)

    @property
    def waiting(self) -> int:
        """Bytes that were handed to the transport and have not left, as far as it tells."""
        transport = self.transport
        if not self._direct:
            transport = getattr(transport, "transport", None)  # what is under the TLS
        if not isinstance(transport, FileDescriptor):
            return 0
        left: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
        return left

    def rest(self) -> None:
        """Read no more for now."""
        if not self.resting and not self.gone:
            self.resting = True
            self.transport.pauseProducing()

    def wake(self) -> None:
        """Read again."""
        if self.resting and not self.gone:
            self.resting = False
            self.transport.resumeProducing()

    def close(self) -> None:
        """End the connection once all that was sent has left."""
        if not self.gone and not self.closing:
            self.flush()
            self.closing = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """End the connection now, with a reset if anything waits."""
        if not self.gone:
            self._out = []
            self.closing = True
            self.transport.unregisterProducer()
            self.transport.abortConnection()

    def leave(self, successor: protocol.Protocol) -> None:
        """Hand the connection to another protocol; nothing of it is ours any more."""
        self.flush()
        self.gone = self.closing = True
        transport = self.transport
        transport.unregisterProducer()
        if self.resting:
            transport.resumeProducing()
        if self._direct or not hasattr(transport, "wrappedProtocol"):
            transport.protocol = successor
        else:
            transport.wrappedProtocol = successor
        successor.makeConnection(transport)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Take the end of the connection; what did not leave any more is not counted."""
        if not self.gone:
            unsent = self.waiting if self._direct else 0
            self.sent -= unsent
            self.tally.sent -= unsent
            self.gone = self.closing = True
        self._out = []

    def count(self, data: bytes) -> None:
        """Count what has come."""
        self.heard += len(data)
        self.tally.heard += len(data)

    def pauseProducing(self) -> None:
        """Take from the transport that too much waits."""
        if not self.crowded:
            self.crowded = True
            self.filled()

    def resumeProducing(self) -> None:
        """Take from the transport that nothing waits."""
        if self.crowded:
            self.crowded = False
            self.emptied()

    def stopProducing(self) -> None:
        """Take from the transport that it ends; `connectionLost` follows."""

    def filled(self) -> None:
        """Tell whoever writes."""

    def emptied(self) -> None:
        """Tell whoever writes."""


def field_lines(fields: Lines) -> str:
    """Write field lines, each with its line end; raises `LocalProtocolError` for one that would be more than one."""
    lines = [f"{name}: {value}\r\n" for name, value in fields]
    text = "".join(lines)
    if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
        raise LocalProtocolError("a field with a line end or a NUL in it")
    return text


def chunk(data: bytes) -> bytes:
    """Frame a piece of a body whose length nobody knew."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
