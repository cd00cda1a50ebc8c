"""The rows that every daemon has: `rpc.*`, `node.*`, `events.*`, `metrics.snapshot`, `knowledge.table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol, runtime_checkable

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime

import layer8
from layer8.control.access import Caller
from layer8.control.errors import CallRefused, NoCapacity, NotFound
from layer8.control.events import Subscriber
from layer8.control.metrics import Metrics
from layer8.control.openrpc import document
from layer8.control.shape import member
from layer8.control.table import Event, Nothing, Table, method
from layer8.core import knowledge
from layer8.net.service import Health, HealthRow

ROWS: Final = 500  # of one page of a list
TICK: Final = 1.0  # seconds between two `stats.tick`


class Process(Protocol):
    """What steers a daemon; each call returns at once."""

    def drain(self, seconds: float) -> None:
        """Take no new work; what is under way has `seconds` to end."""

    def resume(self) -> None:
        """Take work again after `drain`."""

    def stop(self, seconds: float) -> None:
        """Drain for at most `seconds`, then end the process."""

    def connections(self) -> int:
        """Count what is under way."""


@runtime_checkable
class Subscribing(Protocol):
    """A peer that can be sent events."""

    def subscriber(self) -> Subscriber:
        """Give the queue of its subscriptions."""


@frozen
class Discover:
    """Which part of the table to describe: one module's rows, or all."""

    module: str = member("", most=64, doc="First word of the names; empty for all.")


@frozen
class Check:
    """One thing that is well or not."""

    check: str
    ok: bool
    why: str
    since: str
    needed: bool


@frozen
class Status:
    """What a daemon says about itself."""

    version: str
    id: str
    roles: tuple[str, ...]
    started: str
    listening: tuple[str, ...]
    health: tuple[Check, ...]
    drain: bool
    workers: tuple[str, ...]
    notes: tuple[str, ...]


@frozen
class Deadline:
    """How long what is under way may still take."""

    deadline_s: float = member(30.0, least=0, most=3600)


@frozen
class UnderWay:
    """What was under way when the answer was given."""

    connections: int


@frozen
class Draining:
    """Until when what is under way may go on, in seconds from now."""

    deadline_s: float


@frozen
class Subscribe:
    """Which events to be sent, how often at most, and only those whose data has these members."""

    names: tuple[str, ...] = member(least=1, most=64)
    every_ms: int = member(0, least=0, most=3_600_000)
    match: dict[str, Any] | None = None


@frozen
class Subscription:
    """The number under which events come."""

    subscription: int


@frozen
class Page:
    """Which series: those whose names begin with `prefix`, after the one that the last page ended with."""

    prefix: str = member("", most=128)
    cursor: str = member("", most=512)


@frozen
class Series:
    """Values by series, and where the next page begins, if there is one."""

    series: dict[str, float]
    cursor: str = ""


@frozen
class Tick:
    """What the counters gained since the last tick; those that stood still are left out."""

    series: dict[str, float]


@frozen
class Part:
    """Whose rows: one part of the system, or all."""

    part: str = member("", most=64)


@frozen
class Knowledge:
    """Who learns what; see `layer8.core.knowledge`."""

    part: str
    party: str
    learns: str
    hidden: str
    shown: str


class Node:
    """The daemon, as its callers see it."""

    owns = ("rpc", "node", "events", "metrics", "stats", "knowledge")
    events = (
        Event("node.ready", Nothing),
        Event("node.draining", Draining),
        Event("node.health", Check, key="check"),
        Event("stats.tick", Tick),
    )

    def __init__(
        self,
        clock: IReactorTime,
        table: Table,
        metrics: Metrics,
        health: Health,
        process: Process,
        *,
        ident: str,
        roles: Callable[[], Sequence[str]],
        listening: Callable[[], Sequence[str]],
        drain_control: Callable[[bool], None],
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Take what there is to tell: the node's short id, its roles, where it listens, remarks for whoever looks.

        `drain_control` is `ControlService.set_draining`.
        """
        self._clock = clock
        self._table = table
        self._metrics = metrics
        self._health = health
        self._process = process
        self._ident = ident
        self._roles = roles
        self._listening = listening
        self._drain_control = drain_control
        self._notes = notes
        self.workers: Callable[[], Sequence[str]] = tuple
        """Says of each process that this one has started how it is."""
        self._started = ""
        self._last: Mapping[str, float] = {}
        self._tick: IDelayedCall | None = None
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to tell: everything listens."""
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._unwatch = self._health.watch(lambda row: self._table.publish("node.health", _check(row)))
        self._tick = self._clock.callLater(TICK, self._ticked)
        self._table.publish("node.ready", Nothing())

    def stop(self) -> None:
        """Tell no more."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def drain_began(self, seconds: float) -> None:
        """Tell that the node drains, and take no calls but `node.*`; for whatever began it, a signal or a call."""
        self._table.publish("node.draining", Draining(seconds))
        self._drain_control(True)

    @method("rpc.discover", role="public", anywhere=True)
    async def discover(self, caller: Caller, params: Discover) -> Any:
        """Describe what this caller may call and subscribe to, as an OpenRPC document."""
        return document(self._table, caller, params.module)

    @method("rpc.ping", role="public", anywhere=True)
    async def ping(self, caller: Caller) -> None:
        """Answer at once."""

    @method("node.status", role="read")
    async def status(self, caller: Caller) -> Status:
        """Say what this daemon is, where it listens and how it is."""
        return Status(
            version=layer8.__version__,
            id=self._ident,
            roles=tuple(self._roles()),
            started=self._started,
            listening=tuple(self._listening()),
            health=tuple(_check(row) for row in self._health.rows()),
            drain=self._health.draining,
            workers=tuple(self.workers()),
            notes=tuple(self._notes()),
        )

    @method("node.health", role="read")
    async def health(self, caller: Caller) -> tuple[Check, ...]:
        """Give each check with its state and since when it stands so."""
        return tuple(_check(row) for row in self._health.rows())

    @method("node.drain", role="operate")
    async def drain(self, caller: Caller, params: Deadline) -> UnderWay:
        """Take no new work; what is under way may go on until the deadline."""
        self.drain_began(params.deadline_s)
        self._process.drain(params.deadline_s)
        return UnderWay(self._process.connections())

    @method("node.resume", role="operate")
    async def resume(self, caller: Caller) -> UnderWay:
        """Take work again."""
        self._process.resume()
        self._drain_control(False)
        return UnderWay(self._process.connections())

    @method("node.stop", role="admin")
    async def stop_node(self, caller: Caller, params: Deadline) -> UnderWay:
        """Drain until the deadline, then end the process."""
        self.drain_began(params.deadline_s)
        under_way = UnderWay(self._process.connections())
        self._clock.callLater(0, self._process.stop, params.deadline_s)
        return under_way

    @method("events.subscribe", role="public", errors=(NotFound, NoCapacity))
    async def subscribe(self, caller: Caller, params: Subscribe) -> Subscription:
        """Send events from now on; each needs its own role."""
        number = self._table.subscribe(caller, _subscriber(caller), params.names, params.every_ms, params.match)
        return Subscription(number)

    @method("events.unsubscribe", role="public", errors=(NotFound,))
    async def unsubscribe(self, caller: Caller, params: Subscription) -> None:
        """Send the events of one subscription no more."""
        self._table.unsubscribe(_subscriber(caller), params.subscription)

    @method("metrics.snapshot", role="read")
    async def snapshot(self, caller: Caller, params: Page) -> Series:
        """Give the value of every series, in pages of 500 in the order of their names."""
        found = self._metrics.snapshot()
        names = sorted(name for name in found if name.startswith(params.prefix) and name > params.cursor)
        page = names[:ROWS]
        return Series({name: found[name] for name in page}, page[-1] if len(names) > ROWS else "")

    @method("knowledge.table", role="public", anywhere=True)
    async def knowledge(self, caller: Caller, params: Part) -> tuple[Knowledge, ...]:
        """Say who learns what from this system, and which tests show it."""
        return tuple(
            Knowledge(row.part, row.party, row.learns, row.hidden, row.shown)
            for row in knowledge.TABLE
            if params.part in ("", row.part)
        )

    def _ticked(self) -> None:
        """Tell what the counters gained, if anybody wants to know."""
        self._tick = self._clock.callLater(TICK, self._ticked)
        if not self._table.wanted("stats.tick"):
            self._last = {}
            return
        now, last = self._metrics.counters(), self._last
        self._last = now
        if last:
            gained = {name: value - last.get(name, 0.0) for name, value in now.items()}
            self._table.publish("stats.tick", Tick({name: gain for name, gain in gained.items() if gain}))


def _check(row: HealthRow) -> Check:
    since = row.since.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Check(row.check, row.ok, row.why, since, row.needed)


def _subscriber(caller: Caller) -> Subscriber:
    peer = caller.peer
    if not isinstance(peer, Subscribing):
        raise CallRefused("events do not come this way")
    return peer.subscriber()
