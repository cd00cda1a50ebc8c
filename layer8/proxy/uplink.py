"""One agent's connection to one server: dialled, greeted, subscribed, and dialled again for as long as it takes."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.config.endpoint import is_loopback
from layer8.control.client import Client, connect
from layer8.control.errors import ControlError
from layer8.control.shape import ShapeError, from_json, from_result, to_json
from layer8.control.table import Table
from layer8.core.address import HostPort, Networks, canonical
from layer8.core.errors import ConfigError, Layer8Error, Unavailable
from layer8.core.names import covers
from layer8.crypto.keys import parse_id
from layer8.crypto.proof import subscribe_proof
from layer8.crypto.x509 import parse_pins
from layer8.net.dial import Dialer, Where
from layer8.net.pump import Pump
from layer8.proxy.carry import Carried, Carrier
from layer8.proxy.dialback import NOWHERE, DialBack
from layer8.proxy.pp import Claim, Kind, introduction
from layer8.proxy.reserve import Dials, Kept, Reserve
from layer8.proxy.wire import (
    AGENT_PATH,
    FEATURES,
    SECRET_SIZE,
    VERSION,
    Code,
    DataAddress,
    Health,
    Hello,
    HelloResult,
    Nodes,
    Reject,
    Subscribe,
    SubscribeResult,
)

ANY_PORT = 0
"""The key of the target for plain HTTP visitors of every port that has no target of its own."""
CALL_TIME = 10.0
"""Seconds for a server's answer to hello and subscribe."""
READ = frozenset({"read"})
"""What a server may do here at most, and only with `[control] peer_read`."""
JITTER = 0.25
"""Share of a wait that is left to chance, so that agents do not come back in step."""


_log = Logger(namespace="layer8.proxy.agent")


@frozen
class Address:
    """A server's URL taken apart; `pin` is None if an authority vouches for its name."""

    url: str
    host: str
    port: int
    secure: bool
    pin: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ws://HOST:PORT or wss://HOST:PORT, with ?pin=KEYHASH for a server without a public name."""
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{text!r}: {error}") from None
        pin = parse_qs(parts.query).get("pin", [None])[0]
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ConfigError(f"{text!r}: write ws://HOST:PORT or wss://HOST:PORT")
        if pin is not None:
            parse_pins(pin)
        secure = parts.scheme == "wss"
        return cls(
            parts._replace(query="", fragment="").geturl(),
            parts.hostname,
            port or (443 if secure else 80),
            secure,
            pin,
        )

    def is_at(self, target: Where, ports: Collection[int] = ()) -> bool:
        """Say whether a target is this server itself, which also listens on `ports`: visitors would go in a circle."""
        same = target.host == self.host or (is_loopback(target.host) and is_loopback(self.host))
        return same and target.port in (self.port, *ports)


@define(eq=False)
class Published:
    """A host that the agent publishes: its key, and where its visitors go by public port.

    `secret` itself is needed for webgw's servers only.
    """

    host: str
    key: bytes = field(repr=False)
    targets: Mapping[int, Where]
    weight: int = 1
    priority: int = 0
    max_conns: int = 0
    secret: bytes = field(default=b"", repr=False)
    proxy_protocol: Kind = "none"
    pool: int = 2
    check: str = "none"
    check_path: str = "/"

    def asks_the_same(self, other: Published) -> bool:
        """Say whether a server would hear the same of both: targets are ours alone."""
        mine = (self.key, self.weight, self.priority, self.max_conns, self.pool)
        return mine == (other.key, other.weight, other.priority, other.max_conns, other.pool)

    def target(self, port: int, scheme: str) -> Where | None:
        """Give where visitors of a public port go, or None."""
        found = self.targets.get(port)
        return self.targets.get(ANY_PORT) if found is None and scheme == "http" else found

    def introduce(self, remote: HostPort | None, port: int) -> bytes:
        """Give what the target hears before a visitor of a public port, whose own end is known if we were told."""
        return introduction(self.proxy_protocol, remote, HostPort("", port))


class ServerLink(Protocol):
    """A connection to a server, as those see it who are told about it."""

    address: Address
    public: Mapping[str, int]
    refusals: dict[str, str]
    subscriptions: dict[int, Published]

    @property
    def connected(self) -> bool:
        """Whether the server takes what we say."""


Told = Callable[[str, ServerLink, str], None]
"""Takes what happened, where, and a word about it.

To the link: `connected`, `subscribed`, `refused`, `fenced`, `draining`, `lost`. To a visitor: `joined`, `rejected`,
`ended`.
"""


@frozen
class Errand:
    """What all connections of one agent share: what it publishes, how it dials, who is told.

    `retry` is the shortest and the longest wait between two dials, in seconds; `near` are networks in which servers may
    have agents dial back although they are not there themselves.
    """

    reactor: Any
    carrier: Carrier
    outward: Dialer
    hosts: Mapping[str, Published]
    retry: tuple[float, float]
    told: Told
    near: Networks = NOWHERE


class Uplink:
    """See the module. `hosts` is looked at again at every connection."""

    _log = Logger(namespace="layer8.proxy.agent")

    def __init__(self, address: Address, errand: Errand, served: Table | None = None) -> None:
        """Take a server's address and what all links of an agent share.

        With `served` the server may call that table's methods of role read.
        """
        self.address = address
        self.served = served
        self.client: Client | None = None
        self.public: Mapping[str, int] = {}
        self.subscriptions: dict[int, Published] = {}
        self.refusals: dict[str, str] = {}
        self.calls_ignored = 0
        self.reserve = Reserve(errand.carrier, self)
        self._errand = errand
        self._told = errand.told
        self._instance = secrets.token_hex(16)
        self._resume: dict[str, str] = {}
        self.dialback = DialBack(address.host, address.pin, errand.near)
        self._hello: HelloResult | None = None

    @property
    def connected(self) -> bool:
        """Whether the server has taken our hello."""
        return self._hello is not None

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await persist(self._errand.reactor, self._once, self._errand.retry, lambda why: self._told("lost", self, why))

    async def _once(self) -> None:
        """Connect, subscribe, and return when the connection has ended."""
        gone: Deferred[None] = Deferred()
        client = await connect(
            self._errand.reactor,
            self.address.url,
            pin=self.address.pin,
            path=AGENT_PATH,
            dial=self._dial,
            notified=self._notified,
            table=self.served,
            roles=READ if self.served is not None else frozenset(),
        )
        self.client = client
        again = LoopingCall(lambda: Deferred.fromCoroutine(self._ask_again()))
        again.clock = self._errand.reactor
        try:
            client.when_lost(lambda: gone.callback(None) if not gone.called else None)
            hello = from_result(
                HelloResult,
                await client.call("proxy.hello", to_json(Hello((VERSION,), self._instance, FEATURES)), CALL_TIME),
            )
            self._hello, self.public = hello, hello.public
            self._announced(hello.data)
            self._told("connected", self, "")
            for published in list(self._errand.hosts.values()):
                await self.subscribe(published)
            again.start(self._errand.retry[1], now=False)
            await gone  # both ends ping, and notice within DEAD seconds that the other is gone
            self._told("lost", self, client.reason)
        finally:
            if again.running:
                again.stop()
            lost = gone.called
            client.close()
            if lost:
                self.reserve.lose()
            else:
                self.reserve.close()
            self.client = self._hello = None
            self.subscriptions.clear()

    async def _dial(self, host: str, port: int) -> socket.socket:
        """Open the control connection, and see how far away the server is."""
        outward = self._errand.outward
        sock = await open_socket(self._errand.carrier.pump, outward, host, port)
        try:
            self.dialback.reached(sock.getpeername()[0] if outward.direct else None)
        except OSError:
            sock.close()
            raise Unavailable("the server has closed the connection") from None
        return sock

    def _announced(self, data: tuple[DataAddress, ...]) -> None:
        if self.dialback.announced(data):
            self._told("fenced", self, "")

    async def _ask_again(self) -> None:
        """Ask once more for what was refused: a server that drained may be back, a host be registered by now."""
        for published in list(self._errand.hosts.values()):
            if published.host in self.refusals:
                await self.subscribe(published)

    async def subscribe(self, published: Published) -> None:
        """Ask for a host's visitors; a refusal is told, and the other hosts go on."""
        client, hello = self.client, self._hello
        if client is None or hello is None:
            return
        ports = [*self.public.values(), *(address.port for address in self.dialback.data)]
        if any(self.address.is_at(target, ports) for target in published.targets.values()):
            self._refuse(published, "its target is the server itself")
            return
        proof = subscribe_proof(published.key, bytes.fromhex(hello.nonce), parse_id(hello.node), published.host)
        asked = Subscribe(
            published.host,
            proof=proof,
            weight=published.weight,
            priority=published.priority,
            max_conns=published.max_conns,
            pool=published.pool,
            resume=self._resume.get(published.host),
        )
        try:
            result = from_result(SubscribeResult, await client.call("proxy.subscribe", to_json(asked), CALL_TIME))
        except CancelledError:
            raise
        except (Layer8Error, ShapeError) as error:
            self._refuse(published, str(error))
            return
        self.refusals.pop(published.host, None)
        for number in [number for number, old in self.subscriptions.items() if old.host == published.host]:
            del self.subscriptions[number]  # the server has put the new one in its place
        self.subscriptions[result.subscription] = published
        self._resume[published.host] = result.resume
        self._told("subscribed", self, published.host)

    def replace(self, published: Published) -> None:
        """Send the next visitors of a host to its new targets, before the server hears anything."""
        redirect(self.subscriptions, published)

    def tell_health(self, host: str, up: bool) -> None:
        """Tell the server that a host's targets answer again, or that none does."""
        for number, published in self.subscriptions.items():
            if published.host == host and self.client is not None:
                self.client.notify("proxy.health", to_json(Health(number, "up" if up else "down")))

    async def unsubscribe(self, host: str) -> None:
        """Give a host's subscription up; what is joined goes on."""
        for number, published in list(self.subscriptions.items()):
            if published.host == host and self.client is not None:
                del self.subscriptions[number]
                await self.client.call("proxy.unsubscribe", {"subscription": number}, CALL_TIME)

    def _refuse(self, published: Published, why: str) -> None:
        self.refusals[published.host] = why
        self._told("refused", self, f"{published.host}: {why}")

    # What the server tells.

    def _notified(self, method: str, params: dict[str, Any]) -> None:
        if method == "proxy.connection":
            self._called(params)
        elif method == "proxy.pool":
            self.reserve.told(params)
        elif method == "proxy.nodes":
            try:
                self._announced(from_json(Nodes, params).data)
            except ShapeError:
                self.calls_ignored += 1
        elif method == "proxy.drain":
            self._told("draining", self, "")

    def _called(self, params: dict[str, Any]) -> None:
        """Carry a visitor; what cannot be understood is ignored and counted."""
        try:
            number, call = params["subscription"], params["result"]
            secret = bytes.fromhex(call["secret"])
            port, data_port, conn = call["port"], call["serverListeningPort"], call["conn"]
            host, scheme, secure = call["host"], call["scheme"], call["tls"]
            published = self._subscribed(number, host) if type(number) is int else None
            data_host = call.get("serverListeningHost")
            remote = _end(call.get("remote"))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError):
            self.calls_ignored += 1
            return
        if (
            published is None
            or len(secret) != SECRET_SIZE
            or type(conn) is not int
            or not _is_port(port)  # 0 is our own key for any port, not the server's to name
            or not _is_port(data_port)
            or scheme not in ("http", "https")
            or type(host) is not str
            or not covers(published.host, host)
        ):
            self.calls_ignored += 1
            return
        address = self.dialback.find(data_host, data_port)
        target = published.target(port, scheme)
        if address is None:
            self._reject(number, conn, Code.FORBIDDEN_BY_POLICY)
            return
        if target is None:
            self._reject(number, conn, Code.AGENT_REFUSED)
            return
        server = self.dialback.where(address, data_port)
        try:
            secured = self.dialback.secured(address) if secure else None
        except ConfigError:  # the server's own name or pin, which nobody can check
            self._reject(number, conn, Code.FORBIDDEN_BY_POLICY)
            return
        intro = published.introduce(remote, port)
        self._errand.carrier.carry(self, number, conn, host, secret, target, server, secured, intro)

    # What the reserve asks and tells.

    def serves(self, subscription: object) -> bool:
        """Say whether a subscription is ours."""
        return subscription in self.subscriptions

    def data_address(self, host: object, port: object, secure: object) -> Dials | None:
        """Give how an announced data address is dialled, and None for any other."""
        if not _is_port(port) or type(secure) is not bool or not isinstance(port, int):
            return None
        address = self.dialback.find(host, port)
        if address is None:
            return None
        try:
            return self.dialback.where(address, port), self.dialback.secured(address) if secure else None
        except ConfigError:
            return None

    def claimed(self, subscription: int, claim: Claim, ahead: Kept) -> bool:
        """Carry a visitor on a connection that was dialled ahead."""
        published = self._subscribed(subscription, claim.host)
        if published is None or not covers(published.host, claim.host):
            return False
        target = published.target(claim.port, claim.scheme)
        if target is None:
            self._reject(subscription, claim.conn, Code.AGENT_REFUSED)
            ahead.refuse()
            return True
        intro = published.introduce(claim.remote, claim.port)
        self._errand.carrier.carry_on(self, subscription, claim.conn, claim.host, target, ahead, intro)
        return True

    def nonsense(self) -> None:
        """Count what makes no sense."""
        self.calls_ignored += 1

    def _subscribed(self, number: int, host: str) -> Published | None:
        """Find what a call is for: a subscription may be called before its number is here, or after another's is."""
        known = self.subscriptions.get(number)
        hosts = self._errand.hosts
        return known or hosts.get(host) or hosts.get("*." + host.partition(".")[2])

    def _reject(self, subscription: int, conn: int, code: Code) -> None:
        if self.client is not None:
            self.client.notify("proxy.reject", to_json(Reject(subscription, conn, code)))

    # What the carrier tells.

    def refused(self, carried: Carried, code: Code, why: str) -> None:
        """Take that a visitor cannot be carried."""
        self._reject(carried.subscription, carried.conn, code)
        self._told("rejected", self, f"{carried.host}: {why}")

    def joined(self, carried: Carried) -> None:
        """Take that a visitor has reached its target."""
        self._told("joined", self, carried.host)

    def ended(self, carried: Carried, reason: str) -> None:
        """Take the end of a visitor."""
        self._told("ended", self, carried.host)


def redirect(subscriptions: dict[int, Published], published: Published) -> None:
    """Let the subscriptions of a host lead to its new targets."""
    for number, old in subscriptions.items():
        if old.host == published.host:
            subscriptions[number] = published


async def persist(
    reactor: Any, once: Callable[[], Awaitable[None]], retry: tuple[float, float], lost: Callable[[str], None]
) -> None:
    """Do `once` again and again until cancelled, after waits that double from the first of `retry` to the second."""
    shortest, longest = retry
    wait = shortest
    while True:
        try:
            await once()
            wait = shortest
        except CancelledError:
            raise
        except (Layer8Error, ShapeError) as error:
            lost(error.name if isinstance(error, ControlError) else str(error))  # not the server's own words
        except Exception:  # our own defect: an agent that gives up for good is worse than one that tries again
            _log.failure("a connection to a server failed", event="task.failed")
            lost("an error of our own; see the log")
        pause = wait * (1 - JITTER + 2 * JITTER * secrets.randbelow(1000) / 1000)
        wait = min(longest, wait * 2)
        await _sleep(reactor, pause)


async def open_socket(pump: Pump, dialer: Dialer, host: str, port: int) -> socket.socket:
    """Open a connection through whatever is on the way, for a reactor to take over."""
    fd = await dialer.open(Where(host, port))
    pump.unregister(fd)
    return socket.socket(fileno=fd)


async def _sleep(reactor: Any, seconds: float) -> None:
    waiting: Deferred[None] = Deferred()
    timer = reactor.callLater(seconds, waiting.callback, None)
    try:
        await waiting
    finally:
        if timer.active():
            timer.cancel()


def _end(text: str | None) -> HostPort | None:
    """Read the visitor's own end; raises ConfigError, or AttributeError for what is no text."""
    if text is None:
        return None
    # A balancer in front may have told the server an address without a port.
    end = HostPort(text[:-2].strip("[]"), 0) if text.endswith(":0") else HostPort.parse(text)
    return HostPort(canonical(end.host), end.port)


def _is_port(number: object) -> bool:
    return type(number) is int and 0 < number < 65536
