"""The rows `proxy.*` that look at a server and operate it: tables, counts, kill, bans, drain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, Protocol

from attrs import evolve

from layer8.control.access import Caller
from layer8.control.errors import NotFound
from layer8.control.table import method
from layer8.core.blur import blur_bytes
from layer8.proxy.bans import Banned, Bans, network
from layer8.proxy.choose import Seats
from layer8.proxy.errors import ForbiddenByPolicy, InvalidHost, NoRoom, answering
from layer8.proxy.orders import (
    Ban,
    Closed,
    ConnectionRow,
    ConnectionRows,
    Drain,
    Drained,
    HostCount,
    HostCounts,
    Kill,
    Page,
    Stats,
    SubscriberRow,
    SubscriberRows,
    Unban,
)
from layer8.proxy.paging import fit
from layer8.proxy.registry import Registry
from layer8.proxy.tally import HostTally, Totals
from layer8.proxy.wire import Empty

ADMIN: Final = "admin"


class Visits(Protocol):
    """The visitors of the server, as an operator sees them."""

    @property
    def totals(self) -> Totals:
        """What was counted since the start."""

    @property
    def tallies(self) -> Mapping[str, HostTally]:
        """The same by registered name."""

    @property
    def pending(self) -> Collection[object]:
        """Those that wait for an agent."""

    @property
    def waiting(self) -> Collection[object]:
        """Those without a name."""

    @property
    def visits(self) -> Collection[object]:
        """All there are."""

    def kill(self, conns: Collection[int] | None, host: str | None) -> int:
        """Close connections by number or by registered name; gives how many."""


class Door(Protocol):
    """What lets visitors and agents in."""

    @property
    def agents(self) -> int:
        """Agents that have said hello."""

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""

    def rows(self) -> Iterator[ConnectionRow]:
        """Give a row for every visitor, with the address, by rising number."""

    def drain(self, deadline_s: int | None, alternatives: tuple[str, ...]) -> None:
        """Take nothing new; close what is left after `deadline_s`, None is the configured time."""

    def undrain(self) -> None:
        """Take visitors and agents again."""


class BanList(Protocol):
    """Where bans are written down; raises `StorageError`."""

    async def ban(self, ban: Banned) -> None:
        """Write one down."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Strike some out."""


class OperatorRows:
    """What people and programs call that look after a server; addresses and exact counts are for admins."""

    owns = ("proxy",)

    def __init__(
        self,
        registry: Registry,
        seats: Seats,
        bans: Bans,
        visits: Visits,
        door: Door,
        carried: Callable[[str], tuple[int, int]],
        monotonic: Callable[[], float],
    ) -> None:
        """`carried(host)` gives the bytes in and out of a registered name over all restarts."""
        self._registry = registry
        self._seats = seats
        self._bans = bans
        self._visits = visits
        self._door = door
        self._carried = carried
        self._monotonic = monotonic

    @method("proxy.hosts", role="read")
    async def hosts(self, caller: Caller, params: Page) -> HostCounts:
        """List hosts with their subscribers, open connections and bytes carried."""
        exact = caller.may(ADMIN)
        rows = self._registry.page(None, params.cursor, params.limit)
        return HostCounts(*fit(((place, self._count(row.host, row.state, exact)) for place, row in rows), params.limit))

    @method("proxy.subscribers", role="read")
    async def subscribers(self, caller: Caller, params: Page) -> SubscriberRows:
        """List the subscriptions there are."""
        after = int(params.cursor) if params.cursor and params.cursor.isdecimal() else -1
        now, shown = self._monotonic(), caller.may(ADMIN)
        rows = (
            (
                str(seat.number),
                SubscriberRow(
                    subscription=seat.number,
                    host=seat.host,
                    state=seat.state,
                    open=seat.open,
                    calling=seat.calling,
                    weight=seat.weight,
                    priority=seat.priority,
                    max_conns=seat.max_conns,
                    seconds=int(now - seat.since),
                    address=seat.address if shown else None,
                ),
            )
            for seat in self._seats
            if seat.number > after
        )
        return SubscriberRows(*fit(rows, params.limit))

    @method("proxy.connections", role="read")
    async def connections(self, caller: Caller, params: Page) -> ConnectionRows:
        """List the visitors there are."""
        after = int(params.cursor) if params.cursor and params.cursor.isdecimal() else -1
        shown = caller.may(ADMIN)
        rows = ((str(row.conn), row if shown else blurred(row)) for row in self._door.rows() if row.conn > after)
        return ConnectionRows(*fit(rows, params.limit))

    @method("proxy.stats", role="read")
    async def stats(self, caller: Caller) -> Stats:
        """Give what was counted since the start, and how many there are now."""
        totals = self._visits.totals
        exact = caller.may(ADMIN)
        joined = sum(tally.open for tally in self._visits.tallies.values())
        return Stats(
            hosts=len(self._registry),
            subscribers=len(self._seats),
            agents=self._door.agents,
            bans=len(self._bans),
            draining=self._door.draining,
            open=joined,
            calling=len(self._visits.pending),
            sniffing=len(self._visits.waiting),
            accepted=totals.accepted,
            bytes_in=totals.bytes_in if exact else blur_bytes(totals.bytes_in),
            bytes_out=totals.bytes_out if exact else blur_bytes(totals.bytes_out),
            ended={reason.value: count for reason, count in sorted(totals.ended.items())},
        )

    @method("proxy.kill", role="operate", errors=(NotFound, InvalidHost))
    async def kill(self, caller: Caller, params: Kill) -> Closed:
        """Close one connection, or all of a host; its registration and subscribers stay."""
        if params.conn is not None:
            closed = self._visits.kill({params.conn}, None)
            if not closed:
                raise NotFound("connection")
            return Closed(closed)
        host = params.host or ""
        with answering():
            return Closed(self._visits.kill(None, host if self._registry.row(host) else self._registry.name(host)))

    @method("proxy.drain", role="operate")
    async def drain(self, caller: Caller, params: Drain) -> Drained:
        """Take no new visitors and subscriptions; what is joined may end by itself until the deadline."""
        self._door.drain(params.deadline_s, params.alternatives)
        return Drained(len(self._visits.visits))

    @method("proxy.undrain", role="operate")
    async def undrain(self, caller: Caller) -> Empty:
        """Take visitors and subscriptions again."""
        self._door.undrain()
        return Empty()

    def _count(self, host: str, state: str, exact: bool) -> HostCount:
        into, out = self._carried(host)
        tally = self._visits.tallies.get(host)
        return HostCount(
            host=host,
            state=str(state),
            subscribers=len(self._seats.of(host)),
            open=tally.open if tally else 0,
            bytes_in=into if exact else blur_bytes(into),
            bytes_out=out if exact else blur_bytes(out),
        )


class BanRows:
    """Who is kept out, called by those who look after a server."""

    owns = ("proxy",)

    def __init__(
        self,
        bans: Bans,
        written: BanList,
        wall: Callable[[], float],
        changed: Callable[[str, float | None], None] = lambda cidr, until: None,
    ) -> None:
        """`changed` is told a network and until when it is banned, None for no more: before that is written down."""
        self._bans = bans
        self._written = written
        self._wall = wall
        self._changed = changed

    @method("proxy.ban", role="operate", errors=(ForbiddenByPolicy, NoRoom))
    async def ban(self, caller: Caller, params: Ban) -> Empty:
        """Take nothing more from a network, at once, also if that cannot be written down; what is joined goes on."""
        with answering():
            ban = Banned(network(params.cidr), self._wall() + params.ttl_s)
            self._bans.add(ban)
        self._changed(ban.cidr, ban.until)
        await self._written.ban(ban)
        return Empty()

    @method("proxy.unban", role="operate", errors=(NotFound, ForbiddenByPolicy))
    async def unban(self, caller: Caller, params: Unban) -> Empty:
        """Let a network in again."""
        with answering():
            cidr = network(params.cidr)
        if not self._bans.remove(cidr):
            raise NotFound("ban")
        self._changed(cidr, None)
        await self._written.unban([cidr])
        return Empty()


def blurred(row: ConnectionRow) -> ConnectionRow:
    """Give a row to somebody who may not see addresses and exact sizes."""
    return evolve(row, bytes_in=blur_bytes(row.bytes_in), bytes_out=blur_bytes(row.bytes_out), address=None)
