"""TCP and UDP in memory, on a `Clock`: delay, loss, stalls, cuts and chunks, and else the behaviour of loopback.

`tests/testing/test_wire.py` runs one suite over this and over real loopback: order, half-close, back-pressure on both
sides, and the reason of every end. `connect` joins two Twisted protocols; a session goes in as a `Stream`.

```
write -> _buffer --window--> delay --> _arrived -> dataReceived
         the transport's     network   the peer's kernel
```
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal, cast

from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IPullProducer,
    IPushProducer,
    ITCPTransport,
    IUDPTransport,
)
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

WINDOW = 1 << 18  # bytes that the network and the peer's kernel hold
FULL = 1 << 16  # bytes in a transport's buffer beyond which its producer is paused, as Twisted has it
READ = 1 << 16  # most bytes of one dataReceived, as Twisted has it
RETRANSMIT = 0.2  # seconds that a lost packet comes later, Linux's least
TURN = 0.001  # seconds of one step of `settle`


def never(number: int) -> bool:
    """Lose nothing."""
    return False


def at_once(number: int) -> float:
    """Delay nothing further."""
    return 0.0


@define(eq=False)
class Link:
    """The manners of one direction: `chunk` is the most bytes of a packet, `lose(n)` says if the nth gets lost."""

    delay: float = 0.001
    window: int = WINDOW
    chunk: int = READ
    lose: Callable[[int], bool] = never
    packets: int = field(default=0, init=False)
    busy_until: float = field(default=0.0, init=False)

    def arrival(self, now: float) -> float:
        """Give the time at which what is sent now arrives: never before what was sent earlier."""
        self.packets += 1
        late = RETRANSMIT if self.lose(self.packets - 1) else 0.0
        self.busy_until = max(self.busy_until, now + self.delay + late)
        return self.busy_until


@define(eq=False)
class Wire:
    """A connection between two ends."""

    clock: Clock
    client: End
    server: End

    def cut(self) -> None:
        """Break it: both sides lose the connection now, and what was under way."""
        self.client.end(ConnectionLost())
        self.server.end(ConnectionLost())

    def stall(self, seconds: float) -> None:
        """Let nothing arrive for a while."""
        for end in (self.client, self.server):
            end.link.busy_until = max(end.link.busy_until, self.clock.seconds() + seconds)

    def settle(self, seconds: float = 1.0) -> None:
        """Let time pass in small steps."""
        settle(self.clock, seconds)


def settle(clock: Clock, seconds: float = 1.0) -> None:
    """Let time pass in steps of a millisecond, so that what one event causes happens in its turn."""
    for _ in range(round(seconds / TURN)):
        clock.advance(TURN)


def connect(
    clock: Clock, client: IProtocol, server: IProtocol, there: Link | None = None, back: Link | None = None
) -> Wire:
    """Join two protocols; each has got its `makeConnection` when this returns."""
    near = End(clock, client, there or Link(), IPv4Address("TCP", "192.0.2.1", 40000))
    far = End(clock, server, back or Link(), IPv4Address("TCP", "192.0.2.2", 443))
    near.peer, far.peer = far, near
    server.makeConnection(far)
    client.makeConnection(near)
    return Wire(clock, near, far)


@implementer(ITCPTransport, IPushProducer)
@define(eq=False)
class End:
    """One end of a wire: the transport of one protocol, with its share of the kernel."""

    _clock: Clock
    protocol: IProtocol
    link: Link
    _address: IPv4Address
    peer: End = field(init=False)
    connected: bool = field(default=True, init=False)
    disconnecting: bool = field(default=False, init=False)
    _buffer: bytearray = field(factory=bytearray, init=False)
    _in_flight: int = field(default=0, init=False)
    _arrived: deque[bytes | Literal["FIN", "RST"]] = field(factory=deque, init=False)
    _producer: IPushProducer | IPullProducer | None = field(default=None, init=False)
    _streaming: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)
    _reading: bool = field(default=True, init=False)
    _read_ended: bool = field(default=False, init=False)
    _reset: bool = field(default=False, init=False)
    _aborting: bool = field(default=False, init=False)
    _shutting: bool = field(default=False, init=False)
    _shut: bool = field(default=False, init=False)
    _planned: set[Callable[[], None]] = field(factory=set, init=False)

    # What protocols call.

    def write(self, data: bytes) -> None:
        """Take bytes; they leave in the next turns, as the window allows."""
        if not self.connected or self._shut or not data:
            return
        self._buffer += data
        if self._producer is not None and self._streaming and len(self._buffer) > FULL:
            self._paused = True
            cast(IPushProducer, self._producer).pauseProducing()
        self._plan(self._leave)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Take several pieces."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close once everything has left."""
        if self.connected and not self.disconnecting:
            self._reading = False
            if self._shut:
                self.end(ConnectionDone())
            else:
                self.disconnecting = True
                self._plan(self._leave)

    def loseWriteConnection(self) -> None:
        """End our half once everything has left."""
        self._shutting = True
        self._plan(self._leave)

    def abortConnection(self) -> None:
        """Reset in the next turn; nothing that waits leaves."""
        if self.connected and not self._aborting:
            self._aborting = self.disconnecting = True
            self._reading = False
            self._clock.callLater(0, self.end, ConnectionAborted())

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """Ask `producer` for more when the buffer is empty, and pause a streaming one when it is full."""
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._paused = producer, streaming, False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Let the producer go."""
        self._producer = None
        if self.connected and self.disconnecting:
            self._plan(self._leave)

    def pauseProducing(self) -> None:
        """Give nothing to the protocol."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Give bytes to the protocol again."""
        if self.connected and not self.disconnecting:
            self._reading = True
            self._plan(self._deliver)

    def stopProducing(self) -> None:
        """Close, as Twisted's transports do when they are somebody's producer."""
        self.loseConnection()

    def getHost(self) -> IPv4Address:
        """Give this end's address, from the range for documentation."""
        return self._address

    def getPeer(self) -> IPv4Address:
        """Give the other end's address."""
        return self.peer._address

    def getTcpNoDelay(self) -> bool:
        """Nothing waits to be sent together here."""
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Change nothing."""

    def getTcpKeepAlive(self) -> bool:
        """Nothing is kept alive here: a cut is told at once."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Change nothing."""

    # What happens underneath.

    def end(self, reason: Exception) -> None:
        """Close the socket, tell the protocol why, and the peer by FIN or RST."""
        if not self.connected:
            return
        self.connected = False
        self.disconnecting = True
        if isinstance(reason, ConnectionAborted):
            self._send("RST")
        elif isinstance(reason, ConnectionDone):
            if not self._shut:
                self._send("FIN")
            if any(isinstance(item, bytes) for item in self._arrived):
                self._send("RST")
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(reason))

    def _plan(self, turn: Callable[[], None]) -> None:
        """Do something in the next turn, once."""
        if turn not in self._planned:
            self._planned.add(turn)

            def run() -> None:
                self._planned.discard(turn)
                turn()

            self._clock.callLater(0, run)

    def _leave(self) -> None:
        if not self.connected or self._aborting or self._shut:
            return
        if self._buffer and (self._reset or "RST" in self._arrived):
            self.end(ConnectionLost())
            return
        while self._buffer and self._in_flight < self.link.window:
            size = min(self.link.chunk, self.link.window - self._in_flight)
            packet = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._in_flight += len(packet)
            self._send(packet)
        if self._buffer:
            return
        if self._producer is not None and (not self._streaming or self._paused):
            self._paused = False
            self._producer.resumeProducing()
        elif self.disconnecting:
            self.end(ConnectionDone())
        elif self._shutting:
            self._shut = True
            self._send("FIN")
            if IHalfCloseableProtocol.providedBy(self.protocol):
                IHalfCloseableProtocol(self.protocol).writeConnectionLost()

    def _send(self, item: bytes | Literal["FIN", "RST"]) -> None:
        now = self._clock.seconds()
        self._clock.callLater(self.link.arrival(now) - now, self.peer._arrive, item)

    def _arrive(self, item: bytes | Literal["FIN", "RST"]) -> None:
        if not self.connected:
            if isinstance(item, bytes):
                self._send("RST")  # nobody is there to read it
            return
        if item == "RST" and self._read_ended:
            self._reset = True  # told at the next write, as epoll does
            self._plan(self._leave)
            return
        self._arrived.append(item)
        self._plan(self._deliver)

    def _deliver(self) -> None:
        if not (self._reading and self.connected and self._arrived):
            return
        item = self._arrived.popleft()
        if item == "FIN":
            self._read_ended = True
            if IHalfCloseableProtocol.providedBy(self.protocol):
                IHalfCloseableProtocol(self.protocol).readConnectionLost()
            else:
                self.end(ConnectionDone())
        elif item == "RST":
            self.end(ConnectionLost())
        else:
            data = item
            # one read takes what is there, unless packets of a size were asked for: then each is seen by itself
            while self.peer.link.chunk == READ and self._arrived and isinstance(more := self._arrived[0], bytes):
                if len(data) + len(more) > READ:
                    break
                data += more
                self._arrived.popleft()
            self.peer._acknowledged(len(data))
            self.protocol.dataReceived(data)
        self._plan(self._deliver)

    def _acknowledged(self, size: int) -> None:
        self._in_flight -= size
        self._plan(self._leave)


@define(eq=False)
class Airwaves:
    """UDP in memory: datagrams between addresses, delayed, lost, doubled or swapped as the functions say.

    `lose(n)` and `double(n)` are asked for the nth datagram, `extra(n)` gives seconds that it comes later.
    """

    clock: Clock
    delay: float = 0.001
    lose: Callable[[int], bool] = never
    double: Callable[[int], bool] = never
    extra: Callable[[int], float] = at_once
    count: int = field(default=0, init=False)
    _ports: dict[tuple[str, int], AirPort] = field(factory=dict, init=False)

    def listen(self, protocol: DatagramProtocol, host: str, port: int) -> AirPort:
        """Put a protocol at an address that is free."""
        if (host, port) in self._ports:
            raise ValueError(f"{host}:{port} is taken")
        there = self._ports[host, port] = AirPort(self, protocol, (host, port))
        protocol.makeConnection(there)
        return there

    def carry(self, data: bytes, sender: tuple[str, int], target: tuple[str, int]) -> None:
        """Take one datagram on its way."""
        number = self.count
        self.count += 1
        if not self.lose(number):
            for _ in range(2 if self.double(number) else 1):
                self.clock.callLater(self.delay + self.extra(number), self._arrive, data, sender, target)

    def leave(self, address: tuple[str, int]) -> None:
        """Free an address."""
        self._ports.pop(address, None)

    def _arrive(self, data: bytes, sender: tuple[str, int], target: tuple[str, int]) -> None:
        there = self._ports.get(target)
        if there is not None:
            there.protocol.datagramReceived(data, sender)


@implementer(IUDPTransport)
@define(eq=False)
class AirPort:
    """The transport of one datagram protocol."""

    _air: Airwaves
    protocol: DatagramProtocol
    _address: tuple[str, int]
    _connected: tuple[str, int] | None = field(default=None, init=False)

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        """Send a datagram."""
        target = addr or self._connected
        if target is None:
            raise ValueError("an unconnected port needs an address")
        self._air.carry(packet, self._address, target)

    def connect(self, host: str, port: int) -> None:
        """Send to one address when none is named."""
        self._connected = (host, port)

    def getHost(self) -> IPv4Address:
        """Give the address."""
        return IPv4Address("UDP", *self._address)

    def stopListening(self) -> Deferred[None]:
        """Leave the address in the next turn, as Twisted's ports do."""
        self._air.leave(self._address)
        return deferLater(self._air.clock, 0, self.protocol.doStop)

    def setBroadcastAllowed(self, enabled: bool) -> None:
        """Change nothing: there is no broadcast here."""

    def getBroadcastAllowed(self) -> bool:
        """There is no broadcast here."""
        return False
