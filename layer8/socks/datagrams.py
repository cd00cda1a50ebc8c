"""UDP ASSOCIATE: datagrams of one program, each to its destination over a UDP stream at an exit.

```
 program --00 00 00 address port data--> UDP port --RELAY_DATA--> exit --data--> target
                                         of the association, which ends with its TCP connection
```
Each name has a stream of its own, for it is the exit that looks names up; addresses share one for each port, so that
the exit is one that reaches this port. Answers come from the address that has answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define, field
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure

from layer8.core.address import canonical, is_address
from layer8.core.errors import RemoteProtocolError
from layer8.net.datagram import DATAGRAM
from layer8.relay.client import Address, Opened, Reason, Sink, StreamLike, datagram, read_datagram
from layer8.socks import wire
from layer8.socks.wire import Code

FARS: Final = 25  # streams of one association, as an exit gives a circuit so many destinations

Way = Callable[[str, int, Sink], StreamLike | None]
"""`way(host, port, sink)` opens a UDP stream; None for a host that no exit has."""


@define(eq=False)
class Far:
    """The stream to one name, or to addresses, as its sink."""

    _association: Association
    key: tuple[str, int]
    stream: StreamLike | None = field(default=None, init=False)
    over: bool = field(default=False, init=False)
    held: bool = field(default=False, init=False)

    def opened(self, opened: Opened) -> None:
        """Go on as before."""

    def data(self, pieces: list[bytes]) -> None:
        """Give datagrams to the program."""
        for piece in pieces:
            self._association.answer(piece)

    def ended(self) -> None:
        """Leave: datagrams have no halves."""
        if self.stream is not None:
            self.stream.close()
        self.closed(Reason.DONE)

    def closed(self, reason: Reason) -> None:
        """Forget it; the next datagram opens another one."""
        self.over = True
        self._association.forget(self)

    def hold(self) -> None:
        """Drop what the program sends: there is no room."""
        self.held = True

    def go_on(self) -> None:
        """Send again."""
        self.held = False


class _Port(DatagramProtocol):
    """The UDP port of an association."""

    noisy = False

    def __init__(self, association: Association) -> None:
        self._association = association

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Hand one on."""
        self._association.sent_by(addr, datagram)


class Association(TwistedProtocol):
    """The TCP connection of a UDP ASSOCIATE, which lives as long as the program keeps it.

    Only datagrams from the program's own address count, and from the port of the first of them.
    """

    transport: Any  # ITCPTransport

    def __init__(self, reactor: Any, way: Way, gone: Callable[[Association], None], port: int = 0) -> None:
        """Expect datagrams from `port`, if the program has named one."""
        self.sent = self.received = self.dropped = 0
        self.state = "udp"
        self._reactor = reactor
        self._way = way
        self._gone = gone
        self._peer: tuple[str, int] = ("", port)
        self._to: tuple[str, int] | None = None  # as the socket names the program
        self._port: Any = None  # IListeningPort of IUDPTransport
        self._fars: dict[tuple[str, int], Far] = {}  # the one used last comes last

    def connectionMade(self) -> None:
        """Open the port beside the one that the program is connected with, and say where it is."""
        here = self.transport.getHost().host
        self._peer = (canonical(self.transport.getPeer().host), self._peer[1])
        try:
            self._port = self._reactor.listenUDP(0, _Port(self), here, maxPacketSize=DATAGRAM)
        except CannotListenError:
            self.transport.write(wire.reply(Code.FAILED))
            self.transport.loseConnection()
            return
        self.transport.write(wire.reply(Code.GRANTED, canonical(here), self._port.getHost().port))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End with the connection."""
        self.state = "closing"
        port, self._port = self._port, None
        if port is not None:
            port.stopListening()
        fars, self._fars = self._fars, {}
        for far in fars.values():
            _close(far)
        self._gone(self)

    def abort(self, reason: Reason) -> None:
        """End everything now."""
        self.transport.abortConnection()

    def sent_by(self, where: tuple[str, int], data: bytes) -> None:
        """Pass a datagram of the program on."""
        host, port = canonical(where[0]), where[1]
        if host != self._peer[0] or self._peer[1] not in (0, port):
            self.dropped += 1
            return
        try:
            to, number, payload = wire.read_datagram(data)
        except RemoteProtocolError:
            self.dropped += 1
            return
        self._peer, self._to = (host, port), (where[0], port)
        far = self._far(to, number) if number else None
        if far is None or far.stream is None or far.held:
            self.dropped += 1
            return
        self.sent += len(payload)
        far.stream.write(datagram(Address(to if is_address(to) else "", number), payload))

    def answer(self, piece: bytes) -> None:
        """Give the program a datagram."""
        if self._port is None or self._to is None:
            return
        try:
            address, payload = read_datagram(piece)
            text = wire.datagram(address.host, address.port, payload)
        except (RemoteProtocolError, ValueError):
            self.dropped += 1  # an exit that says nonsense, or names nobody
            return
        self.received += len(payload)
        try:
            self._port.write(text, self._to)
        except OSError:
            self.dropped += 1

    def forget(self, far: Far) -> None:
        """Let a stream go that is closed."""
        if self._fars.get(far.key) is far:
            del self._fars[far.key]

    def _far(self, host: str, port: int) -> Far | None:
        key = ("" if is_address(host) else host, port)
        far = self._fars.pop(key, None)
        if far is None:
            far = Far(self, key)
            far.stream = self._way(host, port, far)
            if far.over or far.stream is None:
                return None
        self._fars[key] = far
        if len(self._fars) > FARS:
            _close(self._fars.pop(next(iter(self._fars))))
        return far


def _close(far: Far) -> None:
    if far.stream is not None and not far.over:
        far.over = True
        far.stream.close()
