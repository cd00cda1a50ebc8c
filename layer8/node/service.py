"""One node, put together from its parts.

::

    Frame ── control, health, log, reload, debug port        node.db ── Memory     onion.keys
      │                                                          │                   │
    Node ── Relay: links, circuits, exit ◀───────────────────────┴───────────────────┘
      ├── SocksServer, Tunnels      programs of this machine (twistd layer8-node, layer8 up)
      ├── Tracker                   lists relays, at the end of circuits ([tracker] enabled)
      ├── DhtService                keeps a part of the DHT, on a UDP port ([dht] enabled): dht.db
      ├── HiddenServices            access point and rendezvous hop, our own services, and visits to others': hidden.db
      └── NodeNames                 who a name is, those that we claim, and claims that we knock at: names.db
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from layer8.config.network import RelayConfig, SocksConfig
from layer8.config.tree import Config
from layer8.control.frame import Frame
from layer8.control.service import wall_clock
from layer8.core.errors import Layer8Error
from layer8.crypto.keys import id_text
from layer8.dht.service import SCHEMA as KEPT_SCHEMA
from layer8.dht.service import DhtService
from layer8.net.sqlite import Database
from layer8.net.storage import Storage, ThreadedStorage
from layer8.node.counting import DhtMetrics, RelayMetrics, RendezvousMetrics
from layer8.node.hidden import HiddenServices
from layer8.node.holding import Stating, ask_dht, serve_dht
from layer8.node.listeners import Listeners
from layer8.node.naming import NAMES, NodeNames
from layer8.node.tracking import ask_trackers, serve_tracker
from layer8.relay.exit import Guard, LanTargets, Policy
from layer8.relay.limits import SPARE_CIRCS
from layer8.relay.memory import SCHEMA, Memory
from layer8.relay.onionkeys import OnionKeys
from layer8.relay.operate import InboxRows, RelayRows
from layer8.relay.service import Relay
from layer8.relay.wire import Destroy
from layer8.rendezvous.archive import SCHEMA as NAMES_SCHEMA
from layer8.rendezvous.memory import SCHEMA as SERVICES_SCHEMA
from layer8.socks.operate import SocksRows
from layer8.socks.server import SocksServer
from layer8.socks.tunnels import Tunnels

DATABASE: Final = "node.db"
KEPT: Final = "dht.db"
SERVICES: Final = "hidden.db"
ONION_KEYS: Final = "onion.keys"
LOOK: Final = 0.1  # seconds between looks at what is left while the node drains
WATCH: Final = 1.0  # seconds between looks at how it is


class Node(Service):
    """See the module; also what its frame calls a role. `socks` None: programs of this machine have no port here."""

    _log = Logger(namespace="layer8.node")

    def __init__(
        self,
        frame: Frame,
        *,
        socks: SocksConfig | None = None,
        tracker: bool = False,
        dht: bool = False,
        rendezvous: bool = False,
    ) -> None:
        """Put it together, listening nowhere yet; raises ConfigError or StorageError."""
        self._frame = frame
        config = frame.source.loaded.config
        self.config = config.relay
        self.storage = _storage(frame)
        self.memory = Memory(self.storage)
        self.relay = Relay(
            frame.reactor,
            frame.key,
            config.relay,
            wall=wall_clock,
            keys=OnionKeys(frame.home / ONION_KEYS),
            memory=self.memory,
            home=frame.home,
        )
        frame.debug.open = not self.relay.network.ruled
        self.rows = RelayRows(self.relay, frame.table)
        for rows in (self.rows, InboxRows(self.relay.inbox, frame.key)):
            frame.table.add(rows)
        self.tracker = None if not tracker else serve_tracker(self.relay, self.storage, frame.table)
        ask_trackers(self.relay, config.tracker.ask, frame.table)
        self.dht: DhtService | None = None
        self.items = ask_dht(self.relay, frame.table)
        if dht:
            self.kept = _storage(frame, KEPT, KEPT_SCHEMA)
            self.dht = serve_dht(self.relay, config.dht, self.kept, frame.table)
        self._stating = Stating(self.relay, self.items, self.dht)
        self.services = _storage(frame, SERVICES, SERVICES_SCHEMA)
        self.named = _storage(frame, NAMES, NAMES_SCHEMA)
        self.names = NodeNames(self.relay, self.items, frame.home, config, self.named, frame.table)
        self.hidden = HiddenServices(
            self.relay,
            self.items,
            frame.home,
            config,
            frame.table,
            self.services,
            rendezvous,
            self.names.naming.key,
        )
        self.hosts = self.hidden.hosts
        self._guard(config.relay)
        self.socks: SocksServer | None = None
        if socks is not None and socks.listen:
            self.socks = SocksServer(frame.reactor, socks, self.relay.client, hidden=self.hidden.visits)
        self.tunnels = Tunnels(
            frame.reactor,
            config.socks,
            self.relay.client,
            wall=wall_clock,
            keeper=self.memory,
            hidden=self.hidden.visits,
        )
        self.metrics = RelayMetrics(self.rows)
        kept = () if self.dht is None else (DhtMetrics(self.dht),)
        self._counted = (self.metrics, RendezvousMetrics(self.hidden), *kept)
        tables = (self.tunnels.clients, *(() if self.socks is None else (self.socks.clients,)))
        frame.table.add(SocksRows(tables, self.tunnels, monotonic))
        # Where no program comes, circuits are built when somebody asks for one.
        self._spares = self.relay.pool.spares = 0 if self.socks is None else SPARE_CIRCS
        self._watch = LoopingCall(self._look)
        self._watch.clock = frame.reactor
        self._draining = False

    def _guard(self, config: RelayConfig) -> None:
        """Let circuits reach nothing that this process serves itself."""
        outward = self.relay.outward
        loopback = config.allow_loopback and not self.relay.network.ruled  # a reload does not change the network
        outward.guard = Guard(outward.guard.own, Listeners(self._frame, self.relay.ports), loopback)

    # As a service.

    def startService(self) -> None:
        """Listen everywhere; raises `Unavailable`."""
        Service.startService(self)
        if self.tracker is not None:
            self.tracker.load()
        self.relay.startService()
        if self.dht is not None:
            self.dht.startService()
        self._stating.start()
        if self.socks is not None:
            self.socks.startService()
        self.hidden.start()
        self.names.start()
        self.tunnels.restore(self.relay.tunnels)
        self.tunnels.startService()
        for one in self._counted:
            self._frame.metrics.add(one)
        self._watch.start(WATCH)

    def stopService(self) -> Deferred[None]:
        """End everything, the storage last."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for one in self._counted:
            self._frame.metrics.remove(one)
        if self._watch.running:
            self._watch.stop()
        if self.tunnels.running:
            await self.tunnels.stopService()
        if self.socks is not None and self.socks.running:
            await self.socks.stopService()
        self.names.stop()
        self.hidden.stop()
        self._stating.stop()
        if self.dht is not None:
            if self.dht.running:
                await self.dht.stopService()
            await self.kept.close()
        if self.relay.running:
            await self.relay.stopService()
        await self.services.close()
        await self.named.close()
        await self.storage.close()

    def _look(self) -> None:
        """Say how the node is."""
        pool = self.relay.pool
        well = bool(pool.circuits) or not pool.failures
        why = "no circuit can be built: too few nodes are known, or none answers"
        self._frame.health.set("circuits", well, "" if well else why, needed=False)

    # As a role of its frame.

    async def apply(self, config: Config) -> None:
        """Go by another configuration; what needs a restart stays as it was."""
        relay, old = self.relay, self.config
        fresh = evolve(
            config.relay,
            listen=old.listen,
            relay=old.relay,
            lan=old.lan,
            link=old.link,
            guards=old.guards,
            network=old.network,
        )
        policy, targets = Policy.parse(fresh.exit), LanTargets.parse(fresh.lan_targets)
        settle = self.hidden.prepare(config)
        if self.socks is not None and config.socks != self.socks.config:
            await self._renew_socks(config.socks)
        settle()
        self.config = relay.config = fresh
        relay.outward.policy, relay.outward.targets = policy, targets
        relay.pool.hops = relay.client.hops = fresh.hops
        self._guard(fresh)
        if fresh.relay:
            relay.introduce()

    async def _renew_socks(self, config: SocksConfig) -> None:
        """Listen for programs elsewhere; if that cannot be, go on where it was."""
        assert self.socks is not None
        old, fresh = self.socks, SocksServer(self._frame.reactor, config, self.relay.client, hidden=self.hidden.visits)
        fresh.clients = old.clients
        await old.stopService()
        try:
            fresh.startService()
        except Layer8Error:
            await fresh.stopService()
            old.startService()
            raise
        self.socks = fresh

    def listening(self) -> Sequence[str]:
        """Say where peers and programs may come."""
        told = [f"links on {id_text(self.relay.key.node_id)}@{text}" for text in self.relay.listening]
        if self.dht is not None:
            told.append(f"DHT on {self.dht.listening}")
        if self.socks is not None:
            told += [f"SOCKS on {text}" for text in self.socks.listening]
        told += [f"tunnel on {text}" for row in self.tunnels for text in row.listening]
        return told

    def connections(self) -> int:
        """Count the circuits that others have through this node, and the streams of this machine."""
        return len(self.relay.circuits.all) + self.rows.stand().streams

    @property
    def drain_s(self) -> float:
        """Seconds that circuits have when the process is told to end."""
        return self.config.drain_s

    def wind_down(self, seconds: float) -> None:
        """Take no more circuits; those that are here have until the process ends."""
        if self._draining:
            return
        self._draining = True
        pool = self.relay.pool
        pool.spares = 0
        for circuit in pool.rows():
            if not circuit.origin.streams.live and not (circuit.need is not None and circuit.need.kept):
                circuit.origin.close(Destroy.NONE)
        self.relay.links.drain(self.relay.seconds())

    async def drain(self) -> None:
        """Take no more circuits, and finish when the last one has ended."""
        self.wind_down(self.drain_s)
        while self.connections():
            await deferLater(self._frame.reactor, LOOK)

    def resume(self) -> None:
        """Take circuits again."""
        self._draining = False
        self.relay.links.resume()
        self.relay.pool.spares = self._spares


def _storage(frame: Frame, name: str = DATABASE, schema: Sequence[str] = SCHEMA) -> Storage:
    """Open what the node remembers; raises StorageError."""
    reactor: Any = frame.reactor
    engine = Database(frame.home / name, schema)
    return ThreadedStorage(reactor, engine, lambda ok, why: frame.health.set("storage", ok, why, needed=False))
