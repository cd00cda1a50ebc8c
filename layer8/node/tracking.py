"""A node and trackers: it asks some, and may be one itself."""

from __future__ import annotations

from attrs import define

from layer8.control.service import wall_clock
from layer8.control.table import Table
from layer8.core.errors import Unavailable
from layer8.crypto.descriptor import LISTED, Descriptor, Role
from layer8.crypto.keys import NodeKey
from layer8.net.storage import Storage
from layer8.relay.path import allows
from layer8.relay.service import Relay
from layer8.tracker.asking import Source, Trackers
from layer8.tracker.index import Index
from layer8.tracker.operate import ListRows, TrackerRows
from layer8.tracker.service import Listed, Tracker
from layer8.tracker.wire import GetRelays, Status


def serve_tracker(relay: Relay, storage: Storage, table: Table | None = None) -> Tracker:
    """Let a node list relays for those who ask by a circuit; before it starts, `Tracker.load` reads the last list."""
    index = Index(relay.network, relay.chance, allows)

    def changed(listed: Listed) -> None:
        if table is not None:
            table.publish("tracker.changed", listed)

    tracker = Tracker(index, relay.proves, storage, relay.tasks, relay.reactor, wall_clock, changed)
    relay.serve(tracker, Role.TRACKER)
    if table is not None:
        table.add(ListRows(index))
    return tracker


def ask_trackers(relay: Relay, count: int, table: Table | None = None) -> None:
    """Let a node publish itself by the trackers that it knows, and ask `count` of them for relays."""

    def sources() -> list[Source]:
        return [Source(identity, ask) for identity, ask in relay.trackers()]

    trackers = Trackers(sources, relay.database, relay.network, relay.chance, relay.reactor, wall_clock, count)
    relay.ask_lists(_Lists(trackers, relay.key))
    if table is not None:
        table.add(TrackerRows(trackers, relay.key, lambda: relay.descriptor))


@define(eq=False)
class _Lists:
    """What `layer8.relay.publishing` and `filling` call."""

    _trackers: Trackers
    _key: NodeKey

    async def publish(self, descriptor: Descriptor) -> None:
        """Have every tracker list this node; raises `Unavailable` while some have no time, and none has listed it."""
        told = {one.status for one in await self._trackers.publish(descriptor)}
        if Status.BUSY in told and Status.LISTED not in told:
            raise Unavailable("the trackers that answer are busy")

    async def unpublish(self) -> None:
        """Have every tracker forget it."""
        await self._trackers.unpublish(self._key)

    async def relays(self) -> None:
        """Ask for relays; the database has taken them when this ends."""
        await self._trackers.relays(GetRelays(LISTED, 0, 0))
