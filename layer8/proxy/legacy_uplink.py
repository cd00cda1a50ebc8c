"""One agent's connection to one webgw server: plain text, and the host's secret itself is sent."""

from __future__ import annotations

from collections.abc import Mapping

from autobahn.websocket.types import ConnectingRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from layer8.control.websocket import ClientSocket, Pulse, Socket
from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.proxy.carry import Carried
from layer8.proxy.dialback import DialBack
from layer8.proxy.legacy import LegacyClient, NotSubscribed, Subscribed, Visitor
from layer8.proxy.limits import LEGACY_IN
from layer8.proxy.uplink import Address, Errand, Published, open_socket, persist, redirect
from layer8.proxy.wire import Code, DataAddress


class LegacyUplink:
    """The same as an `Uplink`, in webgw's words; also the owner of its WebSocket."""

    _log = Logger(namespace="layer8.proxy.agent")

    def __init__(self, address: Address, errand: Errand) -> None:
        """Take a server's address and what all links of an agent share."""
        self.address = address
        self.public: Mapping[str, int] = {}
        self.subscriptions: dict[int, Published] = {}
        self.refusals: dict[str, str] = {}
        self.calls_ignored = 0
        self._errand = errand
        self._told = errand.told
        self._pulse = Pulse(errand.reactor)
        self._socket: Socket | None = None
        self._client = LegacyClient()
        self._dialback = DialBack(address.host, None, errand.near)
        self._gone: Deferred[None] | None = None
        self._called = 0

    @property
    def connected(self) -> bool:
        """Whether messages can be sent."""
        return self._socket is not None

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await persist(self._errand.reactor, self._once, self._errand.retry, lambda why: self._told("lost", self, why))

    async def _once(self) -> None:
        address = self.address
        self._client = LegacyClient()
        gone: Deferred[None] = Deferred()
        self._gone = gone
        request = ConnectingRequest(host=address.host, port=address.port, resource="/", headers={}, protocols=[])
        end = ClientSocket(self, self._pulse, LEGACY_IN, request)
        try:
            taken = await open_socket(self._errand.carrier.pump, self._errand.outward, address.host, address.port)
            with taken:  # the reactor takes a duplicate
                self._dialback.reached(taken.getpeername()[0] if self._errand.outward.direct else None)
                taken.setblocking(False)
                self._errand.reactor.adoptStreamConnection(taken.fileno(), taken.family, _Once(end))
        except OSError as error:
            raise Unavailable(f"{address.url}: {error.strerror}") from None
        try:
            await gone
        finally:
            end.abort("going_away")
            self._socket = None
            self.subscriptions.clear()

    # What the socket tells.

    def opened(self, socket: Socket) -> None:
        """Subscribe to everything: there is no hello."""
        self._socket = socket
        self._told("connected", self, "")
        for published in self._errand.hosts.values():
            socket.send(self._client.subscribe(published.host, published.secret))

    def received(self, message: bytes) -> None:
        """Take one message."""
        try:
            happened = self._client.received(message)
        except RemoteProtocolError:
            self.calls_ignored += 1
            return
        if isinstance(happened, Subscribed):
            published = self._errand.hosts.get(happened.host)
            if published is not None:
                self.subscriptions[happened.subscription] = published
                self.refusals.pop(happened.host, None)
                self._told("subscribed", self, happened.host)
        elif isinstance(happened, NotSubscribed):
            self.refusals[happened.host] = happened.message
            self._told("refused", self, f"{happened.host}: {happened.message}")
        elif isinstance(happened, Visitor):
            self._visited(happened)

    def writable(self) -> None:
        """Nothing waits here for a slow reader."""

    def lost(self, reason: str) -> None:
        """Let the connection be dialled again."""
        self._socket = None
        gone, self._gone = self._gone, None
        if gone is not None:
            self._told("lost", self, reason)
            gone.callback(None)

    def _visited(self, visitor: Visitor) -> None:
        published = self.subscriptions.get(visitor.subscription)
        target = None if published is None else published.target(visitor.port, "http")
        if published is None or target is None:
            self.calls_ignored += 1  # there is no way to say no
            return
        self._called += 1
        server = self._dialback.where(DataAddress("", visitor.data_port), visitor.data_port)
        number = visitor.subscription
        intro = published.introduce(None, visitor.port)
        self._errand.carrier.carry(
            self, number, self._called, visitor.host, visitor.secret, target, server, None, intro
        )

    # What the agent asks for.

    async def subscribe(self, published: Published) -> None:
        """Ask for a host's visitors."""
        if self._socket is not None:
            self._socket.send(self._client.subscribe(published.host, published.secret))

    def replace(self, published: Published) -> None:
        """Send the next visitors of a host to its new targets."""
        redirect(self.subscriptions, published)

    async def unsubscribe(self, host: str) -> None:
        """Give a host's subscription up; what is joined goes on."""
        for number, published in list(self.subscriptions.items()):
            if published.host == host and self._socket is not None:
                del self.subscriptions[number]
                self._socket.send(self._client.unsubscribe(number))

    # What the carrier tells.

    def refused(self, carried: Carried, code: Code, why: str) -> None:
        """Take that a visitor cannot be carried: webgw has no word for it, so its server waits in vain."""
        self._told("rejected", self, f"{carried.host}: {why}")

    def joined(self, carried: Carried) -> None:
        """Take that a visitor has reached its target."""
        self._told("joined", self, carried.host)

    def ended(self, carried: Carried, reason: str) -> None:
        """Take the end of a visitor."""
        self._told("ended", self, carried.host)


class _Once(Factory):
    """A factory that has its one protocol ready."""

    noisy = False

    def __init__(self, end: ClientSocket) -> None:
        self._end = end

    def buildProtocol(self, addr: IAddress | None) -> ClientSocket:
        """Give the protocol."""
        return self._end
