"""The rows `proxy.*` of operators where several workers carry the visitors: all are asked, and their answers joined.

A worker that is being started again has nothing to say; what it had counted before is kept by whoever asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from attrs import define, evolve

from layer8.control.access import Caller
from layer8.control.errors import NotFound
from layer8.control.metrics import Family, Histogram
from layer8.control.shape import from_result, to_json
from layer8.control.table import method
from layer8.core.blur import blur_bytes
from layer8.proxy.bans import Bans
from layer8.proxy.errors import InvalidHost, answering
from layer8.proxy.operate import ADMIN, blurred
from layer8.proxy.orders import (
    Closed,
    ConnectionRows,
    Drain,
    Drained,
    HostCount,
    HostCounts,
    Kill,
    Page,
    Stats,
    SubscriberRows,
)
from layer8.proxy.paging import fit
from layer8.proxy.registry import Registry
from layer8.proxy.wire import Empty

T = TypeVar("T")


class Crew(Protocol):
    """The workers, as the rows see them."""

    def ask(self, method: str, params: Mapping[str, Any]) -> Awaitable[Sequence[Any]]:
        """Ask every worker that is there, and give the answers of those that gave one."""

    def carried(self, host: str) -> tuple[int, int]:
        """Give the bytes in and out of a registered name that no living worker counts."""

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""

    def drain_for(self, seconds: float | None, alternatives: tuple[str, ...]) -> None:
        """Take nothing new; None is the configured time."""

    def undrain(self) -> None:
        """Take visitors and agents again."""


class FanoutRows:
    """See the module, and `layer8.proxy.operate.OperatorRows`, whose answers are joined here."""

    owns = ("proxy",)

    def __init__(self, registry: Registry, bans: Bans, crew: Crew) -> None:
        """Take what this process knows itself, and the workers."""
        self._registry = registry
        self._bans = bans
        self._crew = crew

    async def _all(self, kind: type[T], name: str, params: object = None) -> list[T]:
        answers = await self._crew.ask(name, {} if params is None else to_json(params))
        return [from_result(kind, answer) for answer in answers]

    @method("proxy.hosts", role="read")
    async def hosts(self, caller: Caller, params: Page) -> HostCounts:
        """List hosts with their subscribers, open connections and bytes carried."""
        exact = caller.may(ADMIN)
        rows = self._registry.page(None, params.cursor, params.limit)
        counts: dict[str, list[HostCount]] = {}
        most = params.limit
        for answer in await self._all(HostCounts, "proxy.hosts", params):
            most = min(most, len(answer.hosts)) if answer.cursor else most
            for row in answer.hosts:
                counts.setdefault(row.host, []).append(row)
        whole = ((place, self._count(row.host, row.state, counts.get(row.host, ()), exact)) for place, row in rows)
        return HostCounts(*fit(whole, most))

    def _count(self, host: str, state: str, counts: Iterable[HostCount], exact: bool) -> HostCount:
        found = list(counts)
        into, out = self._crew.carried(host)
        into += sum(row.bytes_in for row in found)
        out += sum(row.bytes_out for row in found)
        return HostCount(
            host=host,
            state=str(state),
            subscribers=sum(row.subscribers for row in found),
            open=sum(row.open for row in found),
            bytes_in=into if exact else blur_bytes(into),
            bytes_out=out if exact else blur_bytes(out),
        )

    @method("proxy.subscribers", role="read")
    async def subscribers(self, caller: Caller, params: Page) -> SubscriberRows:
        """List the subscriptions there are."""
        shown = caller.may(ADMIN)
        answers = await self._all(SubscriberRows, "proxy.subscribers", params)
        rows = sorted((row for answer in answers for row in answer.subscribers), key=lambda row: row.subscription)
        rows = rows[: _complete([(answer.cursor, len(answer.subscribers)) for answer in answers], rows, "subscription")]
        whole = ((str(row.subscription), row if shown else evolve(row, address=None)) for row in rows)
        found = SubscriberRows(*fit(whole, params.limit))
        return found if found.cursor else evolve(found, cursor=_more(answers, rows, "subscription"))

    @method("proxy.connections", role="read")
    async def connections(self, caller: Caller, params: Page) -> ConnectionRows:
        """List the visitors there are."""
        shown = caller.may(ADMIN)
        answers = await self._all(ConnectionRows, "proxy.connections", params)
        rows = sorted((row for answer in answers for row in answer.connections), key=lambda row: row.conn)
        rows = rows[: _complete([(answer.cursor, len(answer.connections)) for answer in answers], rows, "conn")]
        whole = ((str(row.conn), row if shown else blurred(row)) for row in rows)
        found = ConnectionRows(*fit(whole, params.limit))
        return found if found.cursor else evolve(found, cursor=_more(answers, rows, "conn"))

    @method("proxy.stats", role="read")
    async def stats(self, caller: Caller) -> Stats:
        """Give what was counted since the start of each worker, and how many there are now."""
        answers = await self._all(Stats, "proxy.stats")
        exact = caller.may(ADMIN)

        def total(name: str) -> int:
            return sum(getattr(answer, name) for answer in answers)

        ended: dict[str, int] = {}
        for answer in answers:
            for reason, count in answer.ended.items():
                ended[reason] = ended.get(reason, 0) + count
        into, out = total("bytes_in"), total("bytes_out")
        return Stats(
            hosts=len(self._registry),
            subscribers=total("subscribers"),
            agents=total("agents"),
            bans=len(self._bans),
            draining=self._crew.draining,
            open=total("open"),
            calling=total("calling"),
            sniffing=total("sniffing"),
            accepted=total("accepted"),
            bytes_in=into if exact else blur_bytes(into),
            bytes_out=out if exact else blur_bytes(out),
            ended=dict(sorted(ended.items())),
        )

    @method("proxy.kill", role="operate", errors=(NotFound, InvalidHost))
    async def kill(self, caller: Caller, params: Kill) -> Closed:
        """Close one connection, or all of a host; its registration and subscribers stay."""
        if params.host is not None:
            with answering():
                if not self._registry.row(params.host):
                    self._registry.name(params.host)
        closed = sum(answer.closed for answer in await self._all(Closed, "proxy.kill", params))
        if params.conn is not None and not closed:
            raise NotFound("connection")
        return Closed(closed)

    @method("proxy.drain", role="operate")
    async def drain(self, caller: Caller, params: Drain) -> Drained:
        """Take no new visitors and subscriptions; what is joined may end by itself until the deadline."""
        self._crew.drain_for(params.deadline_s, params.alternatives)
        answers = await self._all(Stats, "proxy.stats")
        return Drained(sum(answer.open + answer.calling + answer.sniffing for answer in answers))

    @method("proxy.undrain", role="operate")
    async def undrain(self, caller: Caller) -> Empty:
        """Take visitors and subscriptions again."""
        self._crew.undrain()
        return Empty()


def _complete(answers: Iterable[tuple[str | None, int]], rows: Sequence[Any], key: str) -> int:
    """Give how many of the sorted rows can be shown before one may be missing: a worker that has more to say may have
    rows right behind its last one.
    """
    ends = [int(cursor) for cursor, _ in answers if cursor]
    return len(rows) if not ends else sum(getattr(row, key) <= min(ends) for row in rows)


def _more(answers: Iterable[Any], rows: Sequence[Any], key: str) -> str | None:
    return str(getattr(rows[-1], key)) if rows and any(answer.cursor for answer in answers) else None


@define(eq=False)
class Counted:
    """What the workers have counted: counters are summed and never fall, gauges are told apart by worker."""

    _now: dict[int, dict[str, Family]]
    _gone: dict[str, Family]

    @classmethod
    def nothing(cls) -> Counted:
        """Begin with no worker."""
        return cls({}, {})

    def take(self, worker: int, families: Iterable[Family]) -> None:
        """Take what a worker has counted."""
        self._now.setdefault(worker, {}).update((family.name, family) for family in families)

    def end(self, worker: int) -> None:
        """Keep the counters of a worker that has ended; the one in its place begins with nothing."""
        for family in self._now.pop(worker, {}).values():
            if family.kind != "gauge":
                before = self._gone.get(family.name)
                self._gone[family.name] = family if before is None else _sum(before, family)

    def merge(self, ours: Iterable[Family]) -> Iterable[Family]:
        """Give all families, those of this process among them."""
        found: dict[str, list[tuple[str, Family]]] = {}
        for family in ours:
            found.setdefault(family.name, []).append(("main", family))
        for family in self._gone.values():
            found.setdefault(family.name, []).append(("", family))
        for worker, families in sorted(self._now.items()):
            for family in families.values():
                found.setdefault(family.name, []).append((str(worker), family))
        for rows in found.values():
            yield _joined(rows)


def _joined(rows: Sequence[tuple[str, Family]]) -> Family:
    first = rows[0][1]
    if all(name == "main" for name, _ in rows):
        return first
    if first.kind != "gauge":
        for _, family in rows[1:]:
            first = _sum(first, family)
        return first
    values = {(*labels, name): number for name, family in rows for labels, number in family.values.items()}
    return evolve(first, labels=(*first.labels, "worker"), values=values)


def _sum(one: Family, other: Family) -> Family:
    values = dict(one.values)
    for labels, number in other.values.items():
        before = values.get(labels)
        values[labels] = number if before is None else _added(before, number)
    return evolve(one, values=values)


def _added(one: float | Histogram, other: float | Histogram) -> float | Histogram:
    if not isinstance(one, Histogram):
        assert not isinstance(other, Histogram)
        return one + other
    assert isinstance(other, Histogram)
    made = Histogram(one.bounds)
    made.counts = [a + b for a, b in zip(one.counts, other.counts, strict=True)]
    made.total = one.total + other.total
    return made


def unpack(value: Mapping[str, Any]) -> Family:
    """Give the family that a worker has packed."""
    values: dict[tuple[str, ...], float | Histogram] = {}
    for labels, number in value["values"]:
        if isinstance(number, list):
            histogram = Histogram(number[0])
            histogram.counts, histogram.total = number[1], number[2]
            values[tuple(labels)] = histogram
        else:
            values[tuple(labels)] = number
    return Family(value["name"], value["help"], value["kind"], values, tuple(value["labels"]))
