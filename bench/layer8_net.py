"""Our own network in the shape of the private Tor one: six relays, two exits and a client, a process each.

Where hidden services are measured, a tenth process has them, and the relays keep the DHT.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, FirstError, TimeoutError, gatherResults
from twisted.internet.threads import blockingCallFromThread

from bench.processes import Child, DidNotStart
from bench.systems import twistd
from bench.tor_net import BUILD_S, CLIENT, EXITS, RELAYS, SERVICE, port_near
from layer8.config.home import run_dir
from layer8.config.state import node_key
from layer8.control.client import Client, connect
from layer8.core.errors import Layer8Error
from layer8.crypto.keys import NodeKey
from layer8.relay.securing import TLS
from layer8.rendezvous.address import DOMAIN, address_text

T = TypeVar("T")

NETWORK = "test-bench"
UP_S = 60.0
"""Seconds in which the client has to have a relay to go through, and a listener for programs."""
PATH = "rand>rand>rand"
AT_ONCE = 20
"""Circuits of a crowd that are built at a time."""

COMMON = """[control]
listen = []

[relay]
network = "{network}"
allow_loopback = true
listen = {listen}
advertise = {advertise}
link = "{link}"
peers = {peers}
trackers = {peers}
relay = {relay}
exit = {exit}

[tracker]
enabled = {tracker}

[socks]
listen = {socks}

[dht]
enabled = {dht}
listen = "udp:{port}:interface=127.0.0.1"
"""
HIDDEN = """
[service.{name}]
ports = {{ 80 = "127.0.0.1:{origin}" }}
"""


@frozen
class Node:
    """One process: its home, and its port for other nodes."""

    name: str
    home: Path
    port: int
    node_id: str
    link: str

    @classmethod
    def make(cls, name: str, folder: Path, number: int, link: str) -> Node:
        """Make its home and its key."""
        home = folder / f"{name}.home"
        home.mkdir(mode=0o700)
        return cls(name, home, port_near(6100 + number), node_key(home).text, link)

    @property
    def address(self) -> str:
        """Where others reach it."""
        return f"tcp:127.0.0.1:{self.port}" + ("" if self.link == TLS else f":link={self.link}")

    @property
    def peer(self) -> str:
        """How others are told of it."""
        return f"{self.node_id}@{self.address}"

    @property
    def socket(self) -> str:
        """Its control socket."""
        return f"unix:{run_dir({'LAYER8_HOME': str(self.home)}) / 'node.sock'}"

    def keys(self, services: int) -> list[NodeKey]:
        """Make the keys of its hidden services, or read them."""
        return [NodeKey.load_or_make(self.home / "services" / f"hidden{n}.pem") for n in range(services)]

    def configuration(self, origin: int, socks: int, first: Node, services: int = 0) -> str:
        """Its file; everybody is told of the first relay, which keeps the list."""
        client = self.name in (CLIENT, SERVICE)
        exits = self.name.startswith("exit")
        hidden = [HIDDEN.format(name=f"hidden{n}", origin=origin) for n in range(services) if self.name == SERVICE]
        return "".join((self._every(origin, socks, first, client, exits, bool(services)), *hidden))

    def _every(self, origin: int, socks: int, first: Node, client: bool, exits: bool, dht: bool) -> str:
        return COMMON.format(
            network=NETWORK,
            listen=[] if client else [f"tcp:{self.port}:interface=127.0.0.1"],
            advertise=[] if client else [self.address],
            link=self.link,
            peers=[] if self is first else [first.peer],
            relay=_toml(not client),
            exit=[f"accept *:{origin}", "reject *:*"] if exits else ["off"],
            tracker=_toml(self is first),
            socks=[f"tcp:{socks}:interface=127.0.0.1"] if self.name == CLIENT else [],
            dht=_toml(dht and not client),
            port=self.port,
        )


@define(eq=False)
class Layer8Net:
    """The network: a peer of `bench.network`."""

    folder: Path
    origin: int
    number: int = 0
    """Networks that run beside each other have different ones."""
    link: str = TLS
    services: int = 0
    """Hidden services, all of one process."""
    hidden: list[str] = field(factory=list)
    chain: list[Child] = field(factory=list)
    socks: tuple[str, int] | None = None
    _nodes: list[Node] = field(factory=list)

    @property
    def name(self) -> str:
        """What the row is called."""
        return "layer8" if self.link == TLS else f"layer8-{self.link}"

    @property
    def title(self) -> str:
        """What the row says."""
        return f"layer8, links of {'TLS' if self.link == TLS else self.link.title()}"

    @property
    def relays(self) -> list[Child]:
        """The processes that carry what others send."""
        return self.chain[: RELAYS + EXITS]

    @property
    def service(self) -> Child | None:
        """The process that has the hidden services."""
        return self.chain[-2] if self.services else None

    def absent(self) -> str | None:
        """What is missing here; None if nothing is."""
        found = importlib.util.find_spec("twisted.plugins.layer8_node")
        return None if found else "twistd layer8-node is not there"

    def configurations(self) -> list[str]:
        """Make homes and keys, and the text of each node's file."""
        self.socks = ("127.0.0.1", port_near(9180 + self.number))
        names = [*(f"relay{n}" for n in range(RELAYS)), *(f"exit{n}" for n in range(EXITS))]
        names += [SERVICE] * bool(self.services) + [CLIENT]
        self._nodes = [Node.make(name, self.folder, 20 * self.number + at, self.link) for at, name in enumerate(names)]
        if self.services:
            self.hidden = [address_text(key.node_id) + DOMAIN for key in self._nodes[-2].keys(self.services)]
        return [node.configuration(self.origin, self.socks[1], self._nodes[0], self.services) for node in self._nodes]

    def start(self) -> None:
        """Write the configurations and start the processes."""
        for text, node in zip(self.configurations(), self._nodes, strict=True):
            path = node.home / "layer8.toml"
            path.write_text(text)
            environ = {"LAYER8_HOME": str(node.home), "PYTHONDONTWRITEBYTECODE": "1"}
            self.chain.append(Child.start(node.name, twistd("layer8-node", path), self.folder, environ))

    def ready(self) -> None:
        """Wait until every node listens, and a circuit of three hops can be built; raises DidNotStart."""
        for node, child in zip(self._nodes, self.chain, strict=True):
            if node.name != SERVICE:
                child.listening(self.socks[1] if node.name == CLIENT and self.socks else node.port)
        end = time.monotonic() + UP_S
        why = "none was built"
        while time.monotonic() < end:
            try:
                if any(self.builds(1, 1)):
                    return
            except DidNotStart as problem:
                why = str(problem)
            time.sleep(0.5)
        raise DidNotStart(f"{self.name}: no circuit within {UP_S:g} s: {why}")

    def builds(self, wanted: int, at_once: int) -> list[float | None]:
        """Build circuits of random relays and close them: seconds for each, None for one that failed."""
        try:
            return list(in_reactor(lambda reactor: _builds(reactor, self._nodes[-1].socket, wanted, at_once)))
        except Layer8Error as problem:
            raise DidNotStart(f"{self.name}: {problem}") from None

    def crowd(self, circuits: int) -> tuple[int, float]:
        """Have one relay build circuits through a second to a third: how many, and the bytes of the second with them.

        A client has no name, so its links carry too few.
        """
        origin, through, end = self._nodes[1:4]
        path = f"{through.node_id}>{end.node_id}"
        try:
            numbers = in_reactor(lambda reactor: _keep(reactor, origin.socket, path, circuits))
            memory = float(self.chain[self._nodes.index(through)].memory("Rss"))
            in_reactor(lambda reactor: _close(reactor, origin.socket, numbers))
        except Layer8Error as problem:
            raise DidNotStart(f"{self.name}: {problem}") from None
        return len(numbers), memory

    def end(self) -> None:
        """End every process."""
        for child in reversed(self.chain):
            child.end()


async def _builds(reactor: Any, url: str, wanted: int, at_once: int) -> list[float | None]:
    """Build circuits and close each as soon as it stands."""

    async def work(client: Client) -> float | None:
        since = time.monotonic()
        number = await _build(reactor, client, PATH)
        if number is None:
            return None
        seconds = time.monotonic() - since
        with contextlib.suppress(Layer8Error):
            await client.call("relay.close", {"circuit": number})
        return seconds

    return await _together(reactor, url, [work] * wanted, at_once)


async def _keep(reactor: Any, url: str, path: str, wanted: int) -> list[int]:
    """Build circuits, and give the numbers of those that stand."""
    found = await _together(reactor, url, [lambda client: _build(reactor, client, path)] * wanted, AT_ONCE)
    return [number for number in found if number is not None]


async def _close(reactor: Any, url: str, numbers: list[int]) -> None:
    await _together(reactor, url, [partial(_end, number=number) for number in numbers], AT_ONCE)


async def _end(client: Client, number: int) -> None:
    with contextlib.suppress(Layer8Error):
        await client.call("relay.close", {"circuit": number})


async def _together(reactor: Any, url: str, works: Iterable[Callable[[Client], Awaitable[T]]], at_once: int) -> list[T]:
    """Do things with `at_once` workers, a control connection each: one takes so many calls a second and no more."""
    found: list[T] = []
    begun = iter(works)

    async def worker() -> None:
        client = await connect(reactor, url)
        try:
            for work in begun:
                found.append(await work(client))
        finally:
            client.close()

    try:
        await gatherResults([Deferred.fromCoroutine(worker()) for _ in range(at_once)], consumeErrors=True)
    except FirstError as first:
        first.subFailure.raiseException()
    return found


async def _build(reactor: Any, client: Client, path: str) -> int | None:
    """Build one circuit; its number, None if it failed."""
    try:
        built = await Deferred.fromCoroutine(_call(client, "relay.build", {"path": path})).addTimeout(BUILD_S, reactor)
    except (Layer8Error, TimeoutError):
        return None
    return int(built["circuit"])


async def _call(client: Client, method: str, params: dict[str, Any]) -> Any:
    return await client.call(method, params)


def in_reactor(make: Callable[[Any], Coroutine[Deferred[Any], Any, Any]]) -> Any:
    """Run a coroutine on the reactor, which is started on a thread of its own when it is first needed."""
    from twisted.internet import reactor

    some: Any = reactor
    if not some.running:
        started = threading.Event()
        some.callWhenRunning(started.set)
        threading.Thread(target=some.run, kwargs={"installSignalHandlers": False}, daemon=True).start()
        started.wait(10)
    return blockingCallFromThread(some, lambda: Deferred.fromCoroutine(make(some)))


def _toml(value: bool) -> str:
    return "true" if value else "false"
