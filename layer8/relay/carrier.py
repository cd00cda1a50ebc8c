"""Links over TCP: listening, dialling, and the Twisted protocol that has a link on one side and a socket on the other.

```
socket --dataReceived--> secure.feed --> link.received --> ... --> link.flush --> secure.seal --> transport.write
            <= 128 KiB      one call        one turn                 one write         one write
```
The carrier drives OpenSSL itself, since Twisted's TLS gives 16 KiB at a time and delays writes by a turn. A peer that
does not speak our TLS or Noise hears nothing at all, and is closed at T_LINK like one that is silent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IAddress, IListeningPort, IPushProducer
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.config.network import dialled, listened
from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable
from layer8.net.listen import Sockets, serve
from layer8.net.timer import Timer
from layer8.relay.limits import LINK_HIGH, T_LINK
from layer8.relay.link import Ground, Link, Why, destroy_reason
from layer8.relay.links import Links
from layer8.relay.securing import NOISE, TLS, Secure, Security
from layer8.relay.wire import Address, Destroy

NOTSENT_LOWAT: Final = 25  # TCP_NOTSENT_LOWAT of Linux (tcp(7)), which Python's socket module does not name
CLOSE_TIME: Final = 5.0  # seconds that the last words may take to leave

_STRANGERS: Final = frozenset((Why.INSECURE, Why.VERSION, Why.NETWORK, Why.IDENTITY))


class NoLink(Layer8Error):
    """A link could not be opened; `reason` is what a circuit that asked for it is told, `peer` who was there."""

    def __init__(self, why: Why, peer: bytes | None = None) -> None:
        """Say why."""
        super().__init__(f"no link: {why}")
        self.why = why
        self.peer = peer
        if why in _STRANGERS:
            self.reason = Destroy.WRONG_IDENTITY
        else:
            self.reason = Destroy.UNREACHABLE if why is Why.LOST else destroy_reason(why)


@frozen
class Way:
    """How to reach a peer: where, and by which security."""

    host: str
    port: int
    kind: str


def way(text: str, default: str) -> Way:
    """Read `tcp:HOST:PORT`, with `:link=noise` or `:link=tls`; raises `ConfigError`."""
    found = dialled(text)
    return Way(found.words["host"], found.port, kind(text, default))


def kind(text: str, default: str) -> str:
    """Give the security that an endpoint string names."""
    for known in (NOISE, TLS):
        if text.endswith(f":link={known}"):
            return known
    return default


@implementer(IPushProducer)
class Carrier(TwistedProtocol):
    """One connection: a link's `Wire`. `make` makes the link, once the address is known."""

    transport: Any  # an ITCPTransport

    def __init__(
        self, secure: Secure, make: Callable[[Carrier, Address], Link], ground: Ground, clock: Any, *, named: bool
    ) -> None:
        """Connect the parts; nothing happens before there is a connection."""
        self._secure = secure
        self._make = make
        self._ground = ground
        self._named = named
        self._timer = Timer(clock, ground.seconds, self._wake)
        self._deaf = False
        self._direct = False
        self._ended = False
        self.link: Link = None  # type: ignore[assignment]  # from connectionMade on

    def connectionMade(self) -> None:
        """Make the link, and begin to secure it."""
        transport = self.transport
        transport.setTcpNoDelay(True)
        if isinstance(sock := getattr(transport, "socket", None), socket.socket):
            self._direct = True
            transport.SEND_LIMIT = 2 * LINK_HIGH  # bytes of one call of send: a turn's cells with what secures them
            transport.bufferSize = LINK_HIGH  # what pauses the producer, and what one read takes
            sock.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, LINK_HIGH)  # what waits, waits in our queues
        transport.registerProducer(self, True)
        peer = transport.getPeer()
        self.link = self._make(self, Address(peer.host.partition("%")[0], peer.port))
        if self.link.ended:
            return
        self._timer.set(self.link.deadline())
        self._secure.start()
        transport.write(self._secure.take())

    def dataReceived(self, data: bytes) -> None:
        """Take what has come."""
        if self._deaf:
            return
        secure, link = self._secure, self.link
        now = self._ground.seconds()
        turn = self._ground.turn
        shaking = not secure.done
        turn.begin()
        try:
            text = secure.feed(data)
            if shaking:
                self.transport.write(secure.take())
                if secure.done:
                    shown = secure.shown()
                    link.secured(now, peer=shown.peer, binding=shown.binding, named=self._named, proof=shown.proof)
        except RemoteProtocolError:
            self._nonsense(now)
        else:
            if text:
                link.received(text, now)
        turn.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the link."""
        self._ended = True
        self._timer.stop()
        self._ground.turn.begin()
        self.link.lost(self._ground.seconds())
        self._ground.turn.end()

    # What the transport calls as our consumer.

    def pauseProducing(self) -> None:
        """LINK_HIGH bytes wait."""
        self.link.pause()

    def resumeProducing(self) -> None:
        """The kernel has taken everything."""
        self._ground.turn.begin()
        self.link.resume()
        self._ground.turn.end()

    def stopProducing(self) -> None:
        """The transport is going; `connectionLost` follows."""

    # What the link calls.

    def write(self, data: bytes) -> None:
        """Send, at once what the kernel takes: a turn of the reactor costs more than a cell."""
        if self._ended:
            return
        text = self._secure.seal(data)
        transport = self.transport
        if self._direct and not (transport.dataBuffer or transport._tempDataBuffer):
            sent = transport.writeSomeData(text)
            if isinstance(sent, int):  # else the connection is lost, and the reactor finds it out
                text = text[sent:]
        if text:
            transport.write(text)

    def hold(self, held: bool) -> None:
        """Stop reading, or go on."""
        if not self._ended:
            if held:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def due(self, at: float | None) -> None:
        """Wake the link at this second."""
        if not self._ended:
            self._timer.set(at)

    def hang_up(self, abort: bool) -> None:
        """Close."""
        if self._ended:
            return
        self._ended = True
        self._timer.stop()
        self.transport.unregisterProducer()
        if abort:
            self.transport.abortConnection()
        else:
            self._timer.set(self._ground.seconds() + CLOSE_TIME)
            self.transport.write(self._secure.end())
            self.transport.loseConnection()

    def _wake(self) -> None:
        if self._ended:
            self.transport.abortConnection()
            return
        self._ground.turn.begin()
        self.link.wake(self._ground.seconds())
        self._ground.turn.end()

    def _nonsense(self, now: float) -> None:
        """Take bytes that are none of ours: who dials knows at once, others are left without an answer."""
        if self.link.was_open or self.link.dialled:
            self.link.close(Why.INSECURE, now, abort=True)
        else:
            self._deaf = True
            self.hold(True)


@define(eq=False)
class Carriers:
    """A node's listeners and dials; `kind` is the security of a listener whose endpoint string names none.

    An address of somebody else that names none is one for TLS, whatever our own listeners take.
    """

    _reactor: Any
    _ground: Ground
    _security: Security
    links: Links
    kind: str = TLS
    _ports: list[IListeningPort] = field(factory=list, init=False)

    def listen(self, text: str, option: str, given: Sockets | None = None) -> list[IListeningPort]:
        """Take links at an endpoint string; raises `Unavailable` that names `option`."""
        listened(text)
        ours = kind(text, self.kind)
        plain = text.removesuffix(f":link={ours}")
        ports = serve(self._reactor, plain, option, _Accepting(self, ours), given)
        self._ports += ports
        return ports

    async def stop(self) -> None:
        """Take no new links; those that are there go on."""
        ports, self._ports = self._ports, []
        for port in ports:
            stopping = port.stopListening()
            if stopping is not None:
                await stopping

    async def dial(self, text: str, wanted: bytes | None = None, *, again: bool = False) -> Link:
        """Open a link, to nobody but `wanted`, who may have one open already; `again`: to see whether it is there.

        Raises `NoLink`, `Unavailable`, `TimedOut` or `ConfigError`. Cancelled, the link is closed.
        """
        where = way(text, TLS)
        if wanted is not None and not again and (there := self.links.get(wanted)) is not None:
            return there
        if not self.links.admits(where.host):
            raise Unavailable("there are as many links as there may be")
        opened: Deferred[Link] = Deferred()

        def told(link: Link, why: Why | None) -> None:
            if not opened.called:
                if why is None:
                    opened.callback(link)
                else:
                    opened.errback(NoLink(why, link.peer))

        def make(carrier: Carrier, address: Address) -> Link:
            link = Link(self._ground, self.links, carrier, dialled=True, wanted=wanted, address=address, told=told)
            self.links.add(link)
            return link

        carrier = self._carrier(self._security.dialling(where.kind), make, named=self._security.named)
        endpoint = HostnameEndpoint(self._reactor, where.host, where.port, timeout=T_LINK)
        try:
            await endpoint.connect(_Once(carrier))
        except ConnectingCancelledError:
            raise CancelledError from None
        except ConnectTimeout as error:
            raise TimedOut("the peer does not answer") from error
        except (ConnectError, DNSLookupError, ValueError) as error:  # the last for names that cannot be any
            raise Unavailable("the peer cannot be reached") from error
        try:
            return await opened
        except CancelledError:
            carrier.link.close(Why.ASKED, self._ground.seconds(), abort=True)
            raise
        except NoLink:
            # Both dialled at once, and this was the link that had to go.
            there = None if wanted is None or again else self.links.get(wanted)
            if there is None:
                raise
            return there

    def accept(self, kind: str, host: str) -> Carrier | None:
        """Give the carrier of a connection that has come, or None: there are as many as there may be."""
        if not self.links.admits(host) or not self.links.welcomes(host, self._ground.seconds()):
            return None
        return self._carrier(self._security.accepting(kind), self._accepted, named=True)

    def _accepted(self, carrier: Carrier, address: Address) -> Link:
        link = Link(self._ground, self.links, carrier, dialled=False, address=address)
        self.links.add(link)
        return link

    def _carrier(self, secure: Secure, make: Callable[[Carrier, Address], Link], *, named: bool) -> Carrier:
        return Carrier(secure, make, self._ground, self._reactor, named=named)


class _Accepting(Factory):
    noisy = False

    def __init__(self, carriers: Carriers, kind: str) -> None:
        self._carriers = carriers
        self._kind = kind

    def buildProtocol(self, addr: IAddress | None) -> Carrier | None:
        host = getattr(addr, "host", "")
        return self._carriers.accept(self._kind, host)


class _Once(Factory):
    noisy = False

    def __init__(self, carrier: Carrier) -> None:
        self._carrier: Carrier | None = carrier

    def buildProtocol(self, addr: IAddress | None) -> Carrier | None:
        carrier, self._carrier = self._carrier, None
        return carrier
