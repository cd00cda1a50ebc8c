r"""Any datagram session on a UDP port, and the endpoint strings of such ports: ``udp:PORT[:interface=ADDRESS]``.

Twisted has no strings for datagrams, so these are ours, with Twisted's quoting: ``udp:9000:interface=127.0.0.1``,
``udp:0:interface=\:\:1``. Without an interface it is loopback: a port that everybody can reach is asked for by name.
What cannot be sent is dropped and counted: a datagram may be lost anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Protocol

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import InvalidAddressError, MessageLengthError
from twisted.internet.interfaces import IListeningPort, IReactorTime, IReactorUDP, IUDPTransport
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from layer8.config.endpoint import is_loopback, quote, split
from layer8.core.address import is_address
from layer8.core.datagram import DatagramSession, Peer, SendTo
from layer8.core.errors import ConfigError
from layer8.core.session import Close, Tell
from layer8.net.process import listening
from layer8.net.timer import Timer

DATAGRAM = 65507  # bytes, the most that UDP over IPv4 carries
LOOPBACK = "127.0.0.1"


@frozen
class UdpEndpoint:
    """Where a datagram port is."""

    port: int
    interface: str = LOOPBACK

    @classmethod
    def parse(cls, text: str) -> UdpEndpoint:
        """Read a string; raises `ConfigError` that says what is wrong with it."""
        positional, named = split(text)
        if not positional or positional[0] != "udp":
            raise ConfigError(f"{text}: a datagram port is written udp:PORT:interface=ADDRESS")
        words = dict(zip(("port", "interface"), positional[1:], strict=False))
        if len(positional) > 3 or set(named) - {"port", "interface"} or set(named) & set(words):
            raise ConfigError(f"{text}: udp: takes a port and an interface, each once; a colon in a word is \\:")
        words |= named
        port, interface = words.get("port", ""), words.get("interface", LOOPBACK)
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16):
            raise ConfigError(f"{text}: a port is a number from 0 to 65535")
        if not is_address(interface):
            raise ConfigError(f"{text}: the interface is an IP address; 0.0.0.0 or \\:\\: is all of them")
        return cls(int(port), interface)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return f"udp:{self.port}:interface={quote(self.interface)}"

    @property
    def loopback(self) -> bool:
        """Tell whether only this machine can reach it."""
        return is_loopback(self.interface)


class DatagramOwner(Protocol):
    """Who put the session on the port."""

    def told(self, port: Datagrams, what: object) -> None:
        """Take a `Tell`."""

    def ended(self, port: Datagrams, reason: str) -> None:
        """Take the session's own wish to leave the port, or "bug"; whoever listens stops listening."""


@define(eq=False)
class DatagramCounts:
    """Plain integers for metrics."""

    received: int = 0
    sent: int = 0
    dropped: int = 0


class Datagrams(DatagramProtocol):
    """One session on one port; `seconds` is the monotonic clock that the session sees."""

    log = Logger()
    transport: IUDPTransport | None

    def __init__(
        self,
        session: DatagramSession,
        owner: DatagramOwner,
        clock: IReactorTime,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Connect the parts; nothing happens before there is a port."""
        self.session = session
        self.counts = DatagramCounts()
        self.reason = ""
        self._owner = owner
        self._timer = Timer(clock, seconds, lambda: self._hear(self.session.wake))
        self._busy = False

    def startProtocol(self) -> None:
        """Let a session that speaks first speak, and its clock run."""
        self.carry_out()

    def datagramReceived(self, datagram: bytes, addr: Peer) -> None:
        """Pass a datagram on."""
        if not self.reason:
            self.counts.received += 1
            peer = (addr[0], addr[1])  # IPv6 has two more numbers that mean nothing here
            self._hear(lambda now: self.session.received(datagram, peer, now))

    def carry_out(self) -> None:
        """Do what the session asks for; to be called after anything but this class has talked to it."""
        self._hear(None)

    def stopProtocol(self) -> None:
        """Nobody listens any more."""
        self._timer.stop()

    def _hear(self, words: Callable[[float], None] | None) -> None:
        if self._over():
            return
        try:
            if words is not None:
                words(self._timer.seconds())
            if self._busy:
                return  # the loop below, further up the stack, goes on
            self._busy = True
            try:
                while not self._over() and (effects := self.session.effects()):
                    for effect in effects:
                        self._do(effect)
            finally:
                self._busy = False
            self._timer.set(None if self._over() else self.session.deadline())
        except Exception:  # a peer cannot cause one: it is a bug
            self.log.failure("a session failed", event="datagram.bug", session=type(self.session).__name__)
            self._end("bug")

    def _over(self) -> bool:
        return bool(self.reason) or self.transport is None

    def _do(self, effect: object) -> None:
        match effect:
            case SendTo(data=data, peer=peer):
                self._send(data, peer)
            case Tell(what=what):
                self._owner.told(self, what)
            case Close(reason=reason):
                self._end(reason)

    def _send(self, data: bytes, peer: Peer) -> None:
        try:
            if self.transport is not None and not self.reason:
                self.transport.write(data, peer)
                self.counts.sent += 1
        except (OSError, MessageLengthError, InvalidAddressError):
            # no route, a full buffer, an address of the other family, port 0: this one does not arrive
            self.counts.dropped += 1

    def _end(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self._timer.stop()
            self._owner.ended(self, reason)


@define(eq=False)
class DatagramService(Service):
    """Listens while it runs; a busy port raises `Unavailable` that names `option`."""

    _reactor: IReactorUDP
    _endpoint: UdpEndpoint
    _protocol: DatagramProtocol
    _option: str
    _port: IListeningPort | None = field(default=None, init=False)

    def startService(self) -> None:
        """Take the port now."""
        with listening(self._option, str(self._endpoint)):
            self._port = self._reactor.listenUDP(
                self._endpoint.port, self._protocol, self._endpoint.interface, maxPacketSize=DATAGRAM
            )
        Service.startService(self)

    def stopService(self) -> Deferred[None]:
        """Leave it; fires when it is free."""
        Service.stopService(self)
        port, self._port = self._port, None
        stopped: Deferred[None] = Deferred()
        maybeDeferred(port.stopListening if port is not None else lambda: None).addBoth(
            lambda _: stopped.callback(None)
        )
        return stopped

    @property
    def text(self) -> str:
        """The endpoint string with the port that was really taken."""
        port = self._endpoint.port if self._port is None else getattr(self._port.getHost(), "port", 0)
        return str(UdpEndpoint(port, self._endpoint.interface))
