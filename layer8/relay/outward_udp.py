"""A circuit's UDP socket at an exit as the sink of a stream: only who was asked may answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from layer8.core.address import canonical
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.relay.exit import Account, NoWay
from layer8.relay.limits import UDP_IDLE
from layer8.relay.turn import StreamLike
from layer8.relay.wire import DATA_TAGGED, Address, Reason, datagram, read_datagram

if TYPE_CHECKING:
    from layer8.relay.outward import Outward

UDP_MOST: Final = DATA_TAGGED - len(Address("::", 0).encode())  # bytes of a datagram that fits into any data cell


class Association:
    """A circuit's UDP socket, as the `Sink` of a stream: only who was asked may answer.

    A socket of each family is opened when it is needed, bound to a port of the kernel's choice and connected to
    nothing. What may not be sent is dropped: a datagram may be lost anyway.
    """

    def __init__(
        self,
        outward: Outward,
        account: Account,
        identity: bytes | None,
        host: str = "",
        address: str = "",
        port: int = 0,
    ) -> None:
        """Send what has no address to `address`, which `host` has led to; without one it is dropped."""
        self.address = address
        self.port = port
        self._outward = outward
        self._account = account
        self._identity = identity
        self._host = host
        self._stream: StreamLike | None = None
        self._sockets: dict[int, Any] = {}  # IListeningPort of IUDPTransport, by IP version
        self._held = self._over = False
        self._spoken = outward.seconds()
        self._idle: IDelayedCall | None = None

    def start(self, stream: StreamLike) -> None:
        """Carry datagrams between targets and `stream` from now on; before it is accepted, for what came early."""
        self._stream = stream
        if not self._over:
            self._idle = self._outward.clock.callLater(UDP_IDLE, self._look)

    # What the stream says.

    def data(self, pieces: list[bytes]) -> None:
        """Send datagrams, each as RELAY_DATA has it."""
        for piece in pieces:
            if self._over or self._stream is None:
                return
            try:
                to, payload = read_datagram(piece)
            except RemoteProtocolError:
                self._end(Reason.PROTOCOL)
                return
            if self._account.move(len(payload)):
                self._send(self._stream.number, to, payload)
            else:
                self._end(Reason.LIMIT)

    def ended(self) -> None:
        """Leave: datagrams have no halves."""
        self._end(Reason.DONE)

    def closed(self, reason: Reason) -> None:
        """Leave."""
        self._end(None)

    def hold(self) -> None:
        """Read no more for now; the kernel drops what there is no room for."""
        self._held = True
        for one in self._sockets.values():
            one.stopReading()

    def go_on(self) -> None:
        """Read again."""
        self._held = False
        for one in self._sockets.values():
            one.startReading()

    def opened(self, opened: object) -> None:
        """Hear what only the other end of a stream does."""

    # What targets say.

    def received(self, payload: bytes, address: str, port: int) -> None:
        """Pass a datagram on, if its sender was asked."""
        stream, counts = self._stream, self._outward.counts
        if self._over or stream is None:
            return
        now = self._outward.seconds()
        address = canonical(address)
        if len(payload) > UDP_MOST or not self._account.answer(stream.number, address, port, now):
            counts.dropped += 1
        elif self._account.move(len(payload)):
            counts.received += 1
            self._spoken = now
            stream.write(datagram(Address(address, port), payload))
        else:
            self._end(Reason.LIMIT)

    def _send(self, number: int, to: Address, payload: bytes) -> None:
        """Send one datagram, to a destination that is judged when it is new."""
        outward, now = self._outward, self._outward.seconds()
        address = canonical(to.host) if to.host else self.address
        host, port = (address, to.port) if to.host else (self._host, to.port or self.port)
        try:
            if not address:
                raise NoWay(Reason.POLICY, "no destination")
            if not self._account.knows(number, address, port, now):
                outward.judge(host, port, (address,), self._identity)
            self._account.ask(number, address, port, now)
            self._socket(address).write(payload, (address, port))
        except (NoWay, LimitExceeded, OSError, error.MessageLengthError, error.CannotListenError):
            outward.counts.dropped += 1
        else:
            outward.counts.sent += 1
            self._spoken = now

    def _socket(self, address: str) -> Any:
        version = 6 if ":" in address else 4
        found = self._sockets.get(version)
        if found is None:
            interface = self._outward.interfaces[version == 6]
            self._account.sockets.take()
            try:
                found = self._outward.reactor.listenUDP(0, _Heard(self), interface, maxPacketSize=UDP_MOST + 1)
            except error.CannotListenError:
                self._account.sockets.give()
                raise
            self._sockets[version] = found
            if self._held:
                found.stopReading()
        return found

    def _look(self) -> None:
        """End after UDP_IDLE without a datagram, in either direction."""
        left = self._spoken + UDP_IDLE - self._outward.seconds()
        if left > 0:
            self._idle = self._outward.clock.callLater(left, self._look)
        else:
            self._end(Reason.DONE)

    def _end(self, reason: Reason | None) -> None:
        if self._over:
            return
        self._over = True
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        for one in self._sockets.values():
            one.stopListening()
        self._account.sockets.give(len(self._sockets))
        self._sockets.clear()
        if self._stream is not None:
            self._account.forget(self._stream.number)
            if reason is not None:
                self._stream.close(reason)


class _Heard(DatagramProtocol):
    """Hands datagrams on."""

    noisy = False

    def __init__(self, association: Association) -> None:
        self._association = association

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Hand one on."""
        self._association.received(datagram, addr[0], addr[1])
