"""Real nodes on loopback, in one process: relays, exits and clients of one network of tests."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.config.network import RelayConfig
from layer8.control.service import wall_clock
from layer8.crypto.keys import NodeKey, id_text
from layer8.relay.client import Client, Need, Open, Opened, Proto, Reason, StreamLike
from layer8.relay.service import Relay
from layer8.relay.standing import Circuit
from tests.opened import End, descriptors, end

STEP = 0.005
STEPS = 4000
LOOPBACK = ("tcp:0:interface=127.0.0.1",)
OPEN: dict[str, Any] = {"exit": ("accept 127.0.0.0/8:*",), "allow_loopback": True}


@define(eq=False)
class Heard:
    """The sink of a stream that remembers everything; `stream` is paused and resumed by the test."""

    stream: StreamLike | None = None
    pieces: list[bytes] = field(factory=list)
    words: list[str] = field(factory=list)
    reason: Reason | None = None

    @property
    def all(self) -> bytes:
        return b"".join(self.pieces)

    def opened(self, opened: Opened) -> None:
        self.words.append("opened")

    def data(self, pieces: list[bytes]) -> None:
        self.pieces += pieces

    def ended(self) -> None:
        self.words.append("ended")

    def closed(self, reason: Reason) -> None:
        self.words.append("closed")
        self.reason = reason

    def hold(self) -> None:
        self.words.append("hold")

    def go_on(self) -> None:
        self.words.append("go on")


def left_open(before: set[str], step: int) -> list[End | str]:
    """Give the sockets that are open and were not `before`; the collector is asked now and then.

    The socket of a dial that has failed may hang on the traceback of its own failure. Those of a thread that looks up a
    name, maybe for a test that has ended, are left out, and what others dial to listeners from before.
    """
    if step % 500 == 499:
        gc.collect()
    left = set(map(end, set(descriptors()) - before)) - {None}
    if not left:
        return []
    listening = {one.local[1] for one in map(end, before) if isinstance(one, End) and one.peer is None}

    def others(one: End | str | None) -> bool:
        if not isinstance(one, End):
            return False
        return one.kind == "SOCK_STREAM" and one.peer is not None and one.local[1] in listening

    return [one for one in left if one is not None and not others(one)]


class PollingCase(TestCase):
    """Tests that look again and again until something has come about."""

    reactor: Any
    steps = STEPS

    async def sleep(self, seconds: float = STEP) -> None:
        waiting: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, waiting.callback, None)
        await waiting

    async def until(self, so: Callable[[], object]) -> None:
        for _ in range(self.steps):
            if so():
                return
            await self.sleep()
        self.fail("it has not come about")


class NodesCase(PollingCase):
    """Nodes that are stopped at the end, and leave nothing behind."""

    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.nodes: list[Relay] = []
        self.addCleanup(self.nothing_left, set(descriptors()))
        self.addCleanup(self.stop)

    async def stop(self) -> None:
        stopping = [node.stopService() for node in self.nodes if node.running]
        for one in stopping:
            await one

    async def nothing_left(self, before: set[str]) -> None:
        """Wait until no link of these nodes is open; other tests' threads and daemons may still talk to each other."""
        ports = {port for node in self.nodes for port in node.ports}
        for step in range(STEPS):
            left = [one for one in left_open(before, step) if isinstance(one, End) and ports & one.ports]
            if not left:
                return
            await self.sleep()
        self.fail(f"left open: {left}, read by {self.reactor.getReaders()}; threads: {threading.enumerate()}")

    def relay(self, *, key: NodeKey | None = None, **config: Any) -> Relay:
        """Start a relay that knows nobody."""
        config = {"network": "test-nodes", "listen": LOOPBACK, "links": 1} | config
        return self.node(key or NodeKey.make(), config)

    def client(self, *, key: NodeKey | None = None, **config: Any) -> Relay:
        """Start a node that does not relay."""
        return self.node(key or NodeKey.make(), {"network": "test-nodes", "listen": (), "relay": False} | config)

    def node(self, key: NodeKey, config: dict[str, Any], *, start: bool = True, **more: Any) -> Relay:
        node = Relay(self.reactor, key, RelayConfig(**config), wall=wall_clock, **more)
        if start:
            node.startService()
        self.nodes.append(node)
        return node

    def exit(self, **config: Any) -> Relay:
        """Start a relay that lets circuits out to loopback."""
        return self.relay(**(OPEN | config))

    def introduce(self, *nodes: Relay) -> None:
        """Let everybody know every relay, as if each had been told of by somebody else."""
        now = wall_clock()
        for node in nodes:
            for other in nodes:
                if other.descriptor is not None:
                    node.database.learn(other.descriptor, b"s" * 32, now)

    def net(self, relays: int = 3, **config: Any) -> list[Relay]:
        """Start relays, the last of them an exit, and a client, which know each other."""
        nodes = [*(self.relay() for _ in range(relays - 1)), self.exit(**config), self.client()]
        self.introduce(*nodes)
        return nodes

    async def circuit(self, client: Relay, *hops: Relay) -> Circuit:
        """Build a circuit through these."""
        return await client.client.build(Need(route=way(*hops)))

    def open(self, client: Client, port: int, *hops: Relay, host: str = "127.0.0.1", **more: Any) -> Heard:
        """Open a stream; what it says is in what this gives."""
        heard = Heard()
        heard.stream = client.open(Open(Proto.TCP, host, port), heard, route=way(*hops) if hops else None, **more)
        return heard


def way(*hops: Relay) -> Any:
    """Make the route through nodes."""
    from layer8.relay.route import Named, Route

    return Route(tuple(Named(id_text(one.key.node_id)) for one in hops))
