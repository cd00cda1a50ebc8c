"""Two transports that are each other's other end, within one process: a client of a server that listens nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IProtocolFactory, IPushProducer, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

HELD: Final = 64 * 1024  # bytes that wait in one direction; then whoever writes is told


@implementer(ITransport, IPushProducer)
class Joined:
    """One of the two."""

    disconnecting = False

    def __init__(self, clock: Any, peer: IAddress) -> None:
        """Belong to a protocol that `protocol` names."""
        self.protocol: Any = None
        self.other: Joined | None = None
        self._clock = clock
        self._peer = peer
        self._waiting: list[bytes] = []  # for our protocol
        self._size = 0
        self._paused = self._due = False
        self._ended: Exception | None = None
        self._producer: Any = None
        self._told = False  # the producer, to rest

    def write(self, data: bytes) -> None:
        """Send."""
        if self.other is not None and not self.disconnecting:
            self.other.take(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """End when all has been taken."""
        if self.disconnecting:
            return
        self.disconnecting = True
        other, self.other = self.other, None
        if other is not None:
            other.end(ConnectionDone())
        self.end(ConnectionDone())

    def abortConnection(self) -> None:
        """End now."""
        self._waiting.clear()
        other = self.other
        if other is not None:
            other._waiting.clear()
            other.end(ConnectionLost())
        self.loseConnection()

    def take(self, data: bytes) -> None:
        """Take what the other end has sent."""
        if not data:
            return
        self._waiting.append(data)
        self._size += len(data)
        if self._size > HELD and self.other is not None:
            self.other.full(True)
        self._later()

    def end(self, why: Exception) -> None:
        """Take the end, behind what has been sent."""
        if self._ended is None:
            self._ended = why
            self._later()

    def full(self, wanted: bool) -> None:
        """Let whoever writes here rest, or go on."""
        if self._producer is None or wanted == self._told:
            return
        self._told = wanted
        if wanted:
            self._producer.pauseProducing()
        else:
            self._producer.resumeProducing()

    def _later(self) -> None:
        if not self._due and (not self._paused or self._ended is not None):
            self._due = True
            self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        self._due = False
        while self._waiting and (not self._paused or self.disconnecting):
            data = self._waiting.pop(0)
            self._size -= len(data)
            if not self.disconnecting:
                self.protocol.dataReceived(data)
        if self._size <= HELD // 2 and self.other is not None:
            self.other.full(False)
        if self._ended is not None and not self._waiting and self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            self.other, self.disconnecting = None, True
            protocol.connectionLost(Failure(self._ended))

    def pauseProducing(self) -> None:
        """Give our protocol no more."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Give it more."""
        self._paused = False
        self._later()

    def stopProducing(self) -> None:
        """End."""
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take who writes, to be told when to rest."""
        self._producer, self._told = producer, False

    def unregisterProducer(self) -> None:
        """Tell nobody."""
        self._producer = None

    def getPeer(self) -> IAddress:
        """Give who is at the other end."""
        return self._peer

    def getHost(self) -> IAddress:
        """Give an address that is as good as any."""
        return IPv4Address("TCP", "127.0.0.1", 0)


def connector(clock: Any, server: IProtocolFactory, peer: IAddress) -> Callable[[IProtocolFactory], Deferred[Any]]:
    """Give what connects clients to a server's factory."""

    def connect(client: IProtocolFactory) -> Deferred[Any]:
        here, there = Joined(clock, peer), Joined(clock, peer)
        here.other, there.other = there, here
        here.protocol, there.protocol = client.buildProtocol(peer), server.buildProtocol(peer)
        there.protocol.makeConnection(there)
        here.protocol.makeConnection(here)
        done: Deferred[Any] = Deferred()
        done.callback(here.protocol)
        return done

    return connect
