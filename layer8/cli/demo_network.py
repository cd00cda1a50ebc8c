"""The network of `layer8 demo`: trackers, relays, an exit and a client on loopback, and a page fetched through them."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from layer8.core.errors import Layer8Error, TimedOut, Unavailable

ANYWHERE: Final = "tcp:0:interface=127.0.0.1"
EXIT: Final = ("accept 127.0.0.0/8:*", "reject *:*")
UDP: Final = "udp:0:interface=127.0.0.1"
TRACKERS: Final = 2
START_TIME: Final = 20.0
"""Seconds until a circuit stands; it takes a tenth of that."""
STEP: Final = 0.02  # seconds between looks

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>layer8 demo</title>
<h1>It came a long way</h1>
<p>Three relays stand between you and this page. The first knows you and the second, the second its two neighbours, the
third the second and this page. Whoever asked for it is none of my business.</p>
<pre>{marker}</pre>
</html>
"""


@frozen
class Hop:
    """One relay of the route: what it is called here, and whether its own view of the circuit is what was drawn."""

    name: str
    node: str
    address: str
    ms: float
    before: str
    after: str
    agrees: bool


@frozen
class Fetch:
    """The page, as the visitor got it; times in milliseconds."""

    url: str
    program: str
    status: int
    size: int
    right: bool
    first_ms: float
    total_ms: float
    circuit: int
    hops: tuple[Hop, ...]


@frozen
class NetworkFacts:
    """What the network of a demo is, and how the fetch went."""

    network: str
    relays: int
    trackers: int
    ready_ms: int
    socks: str
    debug: str
    page: str
    folder: str
    fetch: Fetch | None


@define(eq=False)
class Network:
    """All nodes and the page; `folder` is the state folder of the client, `relays` counts the exit."""

    reactor: Any
    folder: Path
    relays: int
    fetched: Fetch | None = field(default=None, init=False)
    ready_ms: int = field(default=0, init=False)
    client: Any = field(default=None, init=False)  # a layer8.node.service.Node
    nodes: dict[bytes, tuple[str, Any]] = field(factory=dict, init=False)  # name and Relay by identity
    _name: str = field(factory=lambda: f"demo-{secrets.token_hex(4)}", init=False)
    _begun: float = field(factory=time.monotonic, init=False)
    _marker: str = field(factory=lambda: secrets.token_hex(32), init=False)
    _web: Any = field(default=None, init=False)
    _frame: Any = field(default=None, init=False)
    _storages: list[Any] = field(factory=list, init=False)
    _trackers: list[str] = field(factory=list, init=False)
    _dht: list[Any] = field(factory=list, init=False)  # a DhtService for each relay

    async def open(self) -> None:
        """Start everything, and wait for a circuit."""
        self._open_page()
        for number in range(1, TRACKERS + 1):
            relay = self._open_relay(f"tracker-{number}", tracker=True)
            self._trackers += [f"{relay.key.text}@{text}" for text in relay.listening]
        for number in range(1, self.relays):
            self._open_relay(f"relay-{number}")
        self._open_relay("exit", exit=EXIT)
        self._open_client()
        await self._circuit()
        self.ready_ms = int((time.monotonic() - self._begun) * 1000)

    def _open_page(self) -> None:
        from layer8.cli.demo_web import Page, site

        self._web = self.reactor.listenTCP(0, site(Page(self._body)), interface="127.0.0.1")

    def _body(self) -> bytes:
        return _PAGE.format(marker=self._marker).encode()

    @property
    def page(self) -> str:
        """The address of the page, where only the exit goes."""
        return f"http://127.0.0.1:{self._web.getHost().port}/"

    def _open_relay(self, name: str, *, tracker: bool = False, exit: Sequence[str] = ("off",)) -> Any:
        from layer8.config.network import DhtConfig, RelayConfig
        from layer8.control.service import wall_clock
        from layer8.crypto.keys import NodeKey
        from layer8.net.sqlite import Database
        from layer8.net.storage import ThreadedStorage
        from layer8.node.hidden import serve_rendezvous
        from layer8.node.holding import serve_dht
        from layer8.node.tracking import ask_trackers, serve_tracker
        from layer8.relay.memory import SCHEMA
        from layer8.relay.service import Relay

        config = RelayConfig(
            listen=(ANYWHERE,),
            network=self._name,
            exit=tuple(exit),
            allow_loopback=True,
            trackers=tuple(self._trackers),
            drain_s=0,
        )
        relay = Relay(self.reactor, NodeKey.make(), config, wall=wall_clock)
        relay.outward.interfaces = ("127.0.0.1", "::1")
        relay.pool.spares = 0  # no program comes to it
        if tracker:
            storage = ThreadedStorage(self.reactor, Database(self.folder / f"{name}.db", SCHEMA))
            self._storages.append(storage)
            serve_tracker(relay, storage)
        else:
            serve_rendezvous(relay)
            first = tuple(dht.listening.split(":")[1] for dht in self._dht[:1])
            known = tuple(f"127.0.0.1:{port}" for port in first)
            self._dht.append(serve_dht(relay, DhtConfig(listen=UDP, bootstrap=known), None))
        ask_trackers(relay, TRACKERS)
        relay.startService()
        if not tracker:
            self._dht[-1].startService()
        self.nodes[relay.key.node_id] = name, relay
        return relay

    def _open_client(self) -> None:
        said = {"socks.listen": [ANYWHERE], "debug.listen": [ANYWHERE], "control.listen": [ANYWHERE]}
        self._frame, self.client = self.node(self.folder, said)

    def node(self, folder: Path, said: Mapping[str, object]) -> tuple[Any, Any]:
        """Start a node that carries nothing for others; gives its frame and itself."""
        from layer8.config.load import Loaded, load
        from layer8.control.frame import Frame
        from layer8.node.service import Node

        environ = {"LAYER8_HOME": str(folder)}
        usual: dict[str, object] = {
            "relay.network": self._name,
            "relay.relay": False,
            "relay.listen": [],
            "relay.trackers": list(self._trackers),
            "relay.drain_s": 0,
        }

        @define
        class Options:
            loaded: Loaded

            def reload(self) -> Loaded:
                return self.loaded

        loaded = load(None, environ, {**usual, **said}, role="node")
        frame = Frame(self.reactor, "node", Options(loaded), environ)
        node = Node(frame, socks=loaded.config.socks)
        frame.run(node, node)
        frame.process.privilegedStartService()
        frame.process.startService()
        return frame, node

    async def _circuit(self) -> None:
        """Wait until a circuit to the exit is ready."""
        from twisted.internet.task import deferLater

        until = time.monotonic() + START_TIME
        while not any(one.need is None for one in self.client.relay.pool.rows()):
            if time.monotonic() > until:
                raise TimedOut(f"no circuit stands after {START_TIME:g} s")
            await deferLater(self.reactor, STEP)

    async def fetch(self) -> Layer8Error | None:
        """Fetch the page through the network; gives what went wrong."""
        from layer8.cli.demo_visit import visit_by_socks

        try:
            seen = await visit_by_socks(self.reactor, shutil.which("curl"), self.folder, self.page, self.socks_port)
            digest = hashlib.sha256(self._body()).hexdigest()
            circuit = self._used()
            self.fetched = Fetch(
                url=self.page,
                program=seen.program,
                status=seen.status,
                size=seen.size,
                right=seen.status == 200 and seen.digest == digest,
                first_ms=seen.first_ms,
                total_ms=seen.total_ms,
                circuit=circuit.number,
                hops=self.hops(circuit),
            )
        except Layer8Error as error:
            return error
        if not self.fetched.right:
            return Unavailable(f"{self.page}: status {seen.status} and {seen.size} bytes, which are not the page")
        if not all(hop.agrees for hop in self.fetched.hops):
            return Unavailable("the relays have seen another route than the one that was built")
        return None

    def _used(self) -> Any:
        """Give the circuit that the page came by."""
        used = [one for one in self.client.relay.pool.rows() if one.need is not None and one.origin.streams.received]
        if not used:
            raise Unavailable("the page came, but by no circuit of this network")
        return max(used, key=lambda one: one.last)

    def hops(self, circuit: Any) -> tuple[Hop, ...]:
        """Draw a circuit, and look at each of its relays whether it has the circuit between the same neighbours."""
        return self.stations(circuit.path, circuit.ms, circuit.origin.slot.circ, "the page")

    def stations(self, path: Sequence[Any], ms: Sequence[float], number: int, end: str) -> tuple[Hop, ...]:
        """Do so with a circuit by its nodes, their times and its number at the first of them; `end` is what it is for.

        The last relay of a circuit goes on to none.
        """
        ids = [one.identity for one in path]
        names = ["a client", *(self.nodes[identity][0] for identity in ids), end]
        found = []
        for index, view in enumerate(self.views(number, ids)):
            after = ids[index + 1] if index + 1 < len(ids) else None
            found.append(
                Hop(
                    name=names[index + 1],
                    node=self.nodes[ids[index]][1].key.short,
                    address=path[index].endpoints[0],
                    ms=ms[index],
                    before=names[index],
                    after=names[index + 2],
                    agrees=view is not None and view.next == after,
                )
            )
        return tuple(found)

    def views(self, number: int, ids: Sequence[bytes]) -> Iterator[Any]:
        """Give what each relay's own table has of a circuit, by its number on the link before it; None: nothing."""
        peer = None
        for identity in ids:
            rows = self.nodes[identity][1].circuits.all.values()
            view = next((row for row in rows if row.link.peer == peer and row.slot.circ == number), None)
            yield view
            onward = None if view is None else view.onward
            peer, number = identity, getattr(onward, "circ", 0)

    @property
    def socks_port(self) -> int:
        """The port for programs."""
        return int(self.client.socks.listening[0].split(":")[1])

    def facts(self) -> NetworkFacts:
        """Say what was found out."""
        return NetworkFacts(
            network=self._name,
            relays=self.relays,
            trackers=TRACKERS,
            ready_ms=self.ready_ms,
            socks=f"127.0.0.1:{self.socks_port}",
            debug=self._frame.debug.listening[0],
            page=self.page,
            folder=str(self.folder),
            fetch=self.fetched,
        )

    async def close(self) -> None:
        """Stop whatever has started, the client first."""
        from twisted.internet.defer import maybeDeferred

        if self._frame is not None and self._frame.process.running:
            await self._frame.process.stopService()
        for dht in self._dht:
            if dht.running:
                await dht.stopService()
        for _, relay in reversed(list(self.nodes.values())):
            relay.publishing.lists = None  # nobody is left to tell
            await relay.stopService()
        for storage in self._storages:
            await storage.close()
        if self._web is not None:
            await maybeDeferred(self._web.stopListening)
