"""What a node shows of its counts: the families `layer8_relay_*`, `layer8_rendezvous_*` and `layer8_dht_*`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from layer8.control.metrics import Family, gauge
from layer8.dht.service import DhtService
from layer8.relay.operate import RelayRows
from layer8.relay.wire import CELL
from layer8.rendezvous.operate import Parts


class RelayMetrics:
    """Families of one node."""

    def __init__(self, rows: RelayRows) -> None:
        """Take who counts."""
        self._rows = rows

    def families(self) -> Iterable[Family]:
        """Give the present values."""
        now = self._rows.stand()
        cells: dict[tuple[str, ...], float] = {("in",): now.cells_in, ("out",): now.cells_out}
        yield gauge("layer8_relay_links", "Links with neighbours.", now.links)
        yield Family(
            "layer8_relay_circuits",
            "Circuits: our own, those of them that nobody uses yet, and those that others have through this node.",
            "gauge",
            {("own",): now.circuits - now.spare, ("spare",): now.spare, ("carried",): now.carried},
            ("kind",),
        )
        yield gauge("layer8_relay_streams", "Streams of programs on this machine.", now.streams)
        yield gauge("layer8_relay_peers", "Nodes that this one knows.", now.peers)
        yield Family(
            "layer8_relay_built_total",
            "Circuits that were begun, by what became of them.",
            "counter",
            {("built",): now.built, ("failed",): now.failed},
            ("result",),
        )
        yield Family("layer8_relay_cells_total", "Cells of circuits.", "counter", cells, ("direction",))
        yield Family(
            "layer8_relay_bytes_total",
            "The same in bytes, without the encryption of links.",
            "counter",
            {way: count * CELL for way, count in cells.items()},
            ("direction",),
        )
        yield Family(
            "layer8_relay_exit_total",
            "Connections that circuits asked for at this exit, by what became of them.",
            "counter",
            {("dialled",): now.exit_dialled, ("refused",): now.exit_refused, ("failed",): now.exit_failed},
            ("result",),
        )


class RendezvousMetrics:
    """Families of hidden services: those of others that a node helps, and its own."""

    def __init__(self, parts: Parts) -> None:
        """Take who counts."""
        self._parts = parts

    def families(self) -> Iterable[Family]:
        """Give the present values."""
        listening, waiting, joined = self._parts.counts()
        yield gauge("layer8_rendezvous_listeners", "Services of others that take knocks at this node.", listening)
        yield gauge("layer8_rendezvous_waiting", "Clients of others that wait at this node.", waiting)
        yield Family(
            "layer8_rendezvous_joined_total", "Circuits that were joined at this node.", "counter", {(): joined}, ()
        )
        hosts = list(self._parts.hosts)
        yield gauge("layer8_rendezvous_services", "Hidden services of this node.", len(hosts))
        up = sum(one.state == "published" for one in hosts)
        yield gauge("layer8_rendezvous_published", "Those of them whose descriptor stands in the DHT.", up)
        points = sum(len(one.service.points) for one in hosts)
        yield gauge("layer8_rendezvous_points", "Access points that they have.", points)
        sessions = sum(len(one.service.sessions) for one in hosts)
        yield gauge("layer8_rendezvous_sessions", "Clients that they have met and that are still there.", sessions)
        knocks: Counter[str] = Counter()
        for one in hosts:
            knocks.update(one.service.counted)
        yield Family(
            "layer8_rendezvous_knocks_total",
            "Knocks at them, by what became of them.",
            "counter",
            {(word.replace(" ", "_"),): count for word, count in sorted(knocks.items())},
            ("result",),
        )


class DhtMetrics:
    """Families of a node that keeps a part of the DHT."""

    def __init__(self, service: DhtService) -> None:
        """Take who counts."""
        self._service = service

    def families(self) -> Iterable[Family]:
        """Give the present values."""
        now = self._service.stats()
        yield gauge("layer8_dht_nodes", "Nodes of the DHT that this one knows.", now.nodes)
        yield gauge("layer8_dht_items", "Items and records of others that are kept here.", now.items)
        yield gauge("layer8_dht_bytes", "The same in bytes.", now.bytes)
        yield gauge("layer8_dht_lookups", "Searches that are under way.", now.lookups)
        yield gauge("layer8_dht_reader", "1 while this node asks and is listed nowhere.", int(now.read_only))
        yield Family(
            "layer8_dht_queries_total",
            "Queries of other nodes, by what became of them.",
            "counter",
            {
                ("answered",): now.queries - now.refused,
                ("refused",): now.refused,
                ("dropped",): now.dropped,
            },
            ("result",),
        )
