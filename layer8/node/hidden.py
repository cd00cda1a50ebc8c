"""A node and hidden services: it is an access point and a rendezvous hop, offers its own ones, and visits others'."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from os import urandom
from pathlib import Path
from typing import Final

from attrs import define, field

from layer8.config.services import VisitConfig
from layer8.config.tree import Config
from layer8.control.service import wall_clock
from layer8.control.table import Table
from layer8.core.address import Scope, scope
from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.core.place import place
from layer8.crypto.curtain import ClientKey
from layer8.crypto.descriptor import Descriptor, Role
from layer8.crypto.items import Items
from layer8.crypto.keys import NodeKey
from layer8.net.storage import Storage
from layer8.relay.service import Relay
from layer8.rendezvous.access import Access
from layer8.rendezvous.address import DOMAIN, parse_address
from layer8.rendezvous.client import meet
from layer8.rendezvous.files import Tracker
from layer8.rendezvous.finding import Finding, Pins, Visit, nobody
from layer8.rendezvous.hosting import Ground, Hosts, Told
from layer8.rendezvous.meeting import Meeting
from layer8.rendezvous.memory import ServiceMemory
from layer8.rendezvous.operate import RendezvousRows, Visited
from layer8.rendezvous.shelf import Shelf
from layer8.rendezvous.visits import Visits
from layer8.rendezvous.ways import NetworkWays

RESOURCE: Final = re.compile(r"[0-9a-f]{40}\Z")


def serve_rendezvous(relay: Relay) -> tuple[Access, Meeting]:
    """Let services listen at a node, and clients wait there, before it starts."""
    access, meeting = Access(), Meeting(relay.circuits.join)
    relay.serve(access, Role.RENDEZVOUS)
    relay.serve(meeting, Role.RENDEZVOUS)
    return access, meeting


def hidden_ways(relay: Relay) -> NetworkWays:
    """Give a node's own services and visits what they need of the network."""

    def known() -> list[Descriptor]:
        now = wall_clock()
        return [peer.descriptor for peer in relay.database if relay.database.live(peer, now)]

    return NetworkWays(relay.client, relay.reactor, wall_clock, urandom, relay.chance, known)


@define(eq=False)
class HiddenServices:
    """All that a node has to do with them; raises `ConfigError` or `StorageError`."""

    relay: Relay
    items: Items
    home: Path
    config: Config
    table: Table
    storage: Storage
    offered: bool = False  # to others, whatever the configuration says
    names: Callable[[str], Awaitable[bytes]] = nobody
    ways: NetworkWays = field(init=False)
    access: Access | None = field(default=None, init=False)
    meeting: Meeting | None = field(default=None, init=False)
    finding: Finding = field(init=False)
    visits: Visits = field(init=False)
    hosts: Hosts = field(init=False)
    _shown: Mapping[bytes, Visit] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Put everything together, before the relay starts."""
        relay, config = self.relay, self.config
        if relay.config.relay and (self.offered or config.rendezvous.enabled):
            self.access, self.meeting = serve_rendezvous(relay)
        self.ways = hidden_ways(relay)
        self._shown = read_visits(config.visit)
        self.finding = Finding(
            self.items,
            wall_clock,
            names=self.names,
            met=Pins(Shelf(self.home), wall_clock),
            visit=lambda key: self._shown.get(key),
        )
        rows = RendezvousRows(self, self.table, relay.seconds)
        self.table.add(rows)
        most = config.rendezvous.max_effort
        self.visits = Visits(self.ways, relay.tasks, self.finding.find, most, lambda text: rows.alert("", text))
        told = Told(rows.published, rows.session, lambda one, text: rows.alert(one.name, text))
        ground = Ground(
            relay.reactor,
            self.ways,
            relay.tasks,
            self.items,
            relay.chance,
            self.home,
            self._trackers,
            lambda key: ServiceMemory(self.storage, key),
            config.rendezvous.points,
            most,
            told,
        )
        self.hosts = Hosts(ground)
        self.hosts.take(config.service)()

    def start(self) -> None:
        """Begin to offer services: the relay has started."""
        self.hosts.start()

    def stop(self) -> None:
        """End everything."""
        self.visits.close()
        self.hosts.stop()
        self.ways.stop()

    def prepare(self, config: Config) -> Callable[[], None]:
        """Read another configuration; calling the result goes by it. Raises `ConfigError` or `StorageError`."""
        shown = read_visits(config.visit)
        take = self.hosts.take(config.service)

        def settle() -> None:
            if config.visit != self.config.visit:
                self.finding.forget()
            self._shown, self.config = shown, config
            take()

        return settle

    def counts(self) -> tuple[int, int, int]:
        """Count services of others that listen here, clients that wait here, and circuits that were joined."""
        if self.access is None or self.meeting is None:
            return 0, 0, 0
        return len(self.access.listeners), self.meeting.waiting, self.meeting.joined

    async def visit(self, name: str) -> Visited:
        """Find a service and meet it; raises `NotFound` or `NotMet`."""
        begun = self.relay.seconds()
        found = await self.finding.find(host(name), False)
        between = self.relay.seconds()
        most = self.config.rendezvous.max_effort
        origin = await meet(
            self.ways, found.service, found.told, cookie=found.cookie, login=found.login, max_effort=most
        )
        effort = found.told.price.effort if found.told.price is not None else 0
        times = between - begun, self.relay.seconds() - between
        return Visited(found.service, len(found.told.points), effort, *times, origin)

    def _trackers(self) -> tuple[Tracker, ...]:
        return trackers_told(self.relay.config.trackers, self.relay.key.node_id, self.relay.network.ruled)


def trackers_told(texts: Iterable[str], own: bytes, ruled: bool) -> tuple[Tracker, ...]:
    """Give the trackers that links and files of services name: neither this node, nor one beside it."""
    found = []
    for text in texts:
        try:
            one = Tracker.parse(text)
            near = scope(place(one.endpoint).host.strip("[]"))
        except RemoteProtocolError:
            continue  # too long for a link
        if one.node != own and not (ruled and near in (Scope.MACHINE, Scope.NETWORK)):
            found.append(one)
    return tuple(found)


def host(name: str) -> str:
    """Give what a program would ask for: `.l8.alt` may be left out, and a resource has none."""
    text = name.lower()
    return text if text.endswith(DOMAIN) or RESOURCE.match(text) else text + DOMAIN


def read_visits(configs: Mapping[str, VisitConfig]) -> dict[bytes, Visit]:
    """Read what is shown to which service, by its key; raises `ConfigError`."""
    found: dict[bytes, Visit] = {}
    for name, config in configs.items():
        try:
            key = parse_address(config.address)
        except RemoteProtocolError as error:
            raise ConfigError(f"visit.{name}.address: {error}") from None
        if key in found:
            raise ConfigError(f"visit.{name}: this service stands there twice")
        client = ClientKey.load(Path(config.client_key)) if config.client_key else None
        login = NodeKey.load(Path(config.identity)) if config.identity else None
        found[key] = Visit(client, login)
    return found
