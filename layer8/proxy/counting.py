"""What the server shows of its counts: metrics for collectors, bytes per host for storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from layer8.control.metrics import Family, counter, gauge
from layer8.core.errors import StorageError
from layer8.net.pump import Pump
from layer8.net.tasks import TaskSet
from layer8.proxy.bus import Change, Put
from layer8.proxy.choose import Seats
from layer8.proxy.data import DataPort
from layer8.proxy.limits import BYTES_FLUSH
from layer8.proxy.place import Books
from layer8.proxy.registration import Ownership
from layer8.proxy.store import Carried
from layer8.proxy.traffic import Traffic
from layer8.proxy.wire import Reason

HOST_LABELS = 100
"""Hosts that may be told apart in metrics; the rest is summed as `other`."""
SERVED = frozenset(
    (
        Reason.DONE,
        Reason.VISITOR_RESET,
        Reason.AGENT_RESET,
        Reason.HALF_CLOSED,
        Reason.IDLE,
        Reason.KILLED,
        Reason.DRAINED,
    )
)
"""Ends of connections that were joined; all others were refused."""


class PoolCounts(Protocol):
    """What pools count."""

    @property
    def idle(self) -> int:
        """Connections that wait."""

    @property
    def hits(self) -> int:
        """Visitors that took one."""


class ProxyMetrics:
    """The families `layer8_proxy_*`."""

    def __init__(
        self,
        traffic: Traffic,
        pump: Pump,
        seats: Seats,
        data: DataPort,
        *,
        by_host: bool,
        pools: PoolCounts | None = None,
    ) -> None:
        """Take what counts; `by_host` adds a label with at most `HOST_LABELS` values."""
        self._traffic = traffic
        self._pump = pump
        self._seats = seats
        self._data = data
        self._pools = pools
        self._by_host = by_host

    def families(self) -> Iterable[Family]:
        """Give the present values."""
        traffic = self._traffic
        totals = traffic.totals
        refused: dict[tuple[str, ...], float] = {
            (reason.value,): n for reason, n in totals.ended.items() if reason not in SERVED
        }
        yield Family(
            "layer8_proxy_connections_total",
            "Visitors by what became of them.",
            "counter",
            {("joined",): totals.joined, ("refused",): sum(refused.values())},
            ("result",),
        )
        yield gauge("layer8_proxy_open", "Visitors that are joined.", self._pump.links)
        yield gauge("layer8_proxy_sniffing", "Visitors whose host is not known yet.", len(traffic.waiting))
        yield gauge("layer8_proxy_calling", "Visitors that wait for an agent.", len(traffic.pending))
        for what, meaning, value, number in (
            ("sniff", "From accept to a known host.", totals.sniff_ms, totals.joined),
            ("call", "From a known host to a joined connection.", totals.call_ms, totals.joined),
            ("ttfb", "From accept to the first byte back.", totals.ttfb_ms, totals.ttfb_count),
        ):
            yield counter(f"layer8_proxy_{what}_seconds_total", f"{meaning} Sum over visitors.", value / 1000)
            yield counter(f"layer8_proxy_{what}_total", f"{meaning} Visitors in the sum.", number)
        into, out = totals.bytes_in, totals.bytes_out
        for visit in traffic.visits:
            if visit.link is not None:
                into += max(0, visit.link.bytes_up - visit.head)
                out += visit.link.bytes_down
        yield Family(
            "layer8_proxy_bytes_total",
            "Bytes from visitors (in) and to visitors (out).",
            "counter",
            {("in",): into, ("out",): out},
            ("direction",),
        )
        yield counter("layer8_proxy_spliced_bytes_total", "Bytes that never left the kernel.", self._pump.spliced)
        yield gauge("layer8_proxy_pipes_in_use", "Kernel pipes that hold bytes.", self._pump.pipes.used)
        if self._pools is not None:
            yield gauge("layer8_proxy_pool_idle", "Data connections that wait for a visitor.", self._pools.idle)
            yield counter("layer8_proxy_pool_hits_total", "Visitors that one had waited for.", self._pools.hits)
        yield gauge("layer8_proxy_subscribers", "Live subscriptions.", len(self._seats))
        yield Family("layer8_proxy_refused_total", "Visitors that were not joined.", "counter", refused, ("reason",))
        yield counter("layer8_proxy_data_refused_total", "Dial-backs without a good secret.", self._data.refused)
        if self._by_host:
            yield Family(
                "layer8_proxy_host_bytes_total",
                "Bytes of ended connections to visitors, by host.",
                "counter",
                self._hosts(),
                ("host",),
            )

    def _hosts(self) -> Mapping[tuple[str, ...], float]:
        rows: dict[tuple[str, ...], float] = {}
        for number, tally in enumerate(self._traffic.tallies.values()):
            key = (tally.host if number < HOST_LABELS else "other",)
            rows[key] = rows.get(key, 0.0) + tally.bytes_out
        return rows


class Carrying:
    """Bytes per host over all restarts: what stood in the store, plus what this process carried."""

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, traffic: Traffic, books: Books, before: Mapping[str, Carried], tasks: TaskSet
    ) -> None:
        """`before` is what the store held at the start."""
        self._traffic = traffic
        self.books = books
        self._before = dict(before)
        self._tasks = tasks
        self._written: dict[str, Carried] = {}
        self._loop = LoopingCall(self.flush)
        self._loop.clock = clock

    def start(self) -> None:
        """Write every `BYTES_FLUSH` seconds what has changed."""
        self._loop.start(BYTES_FLUSH, now=False)

    def of(self, host: str) -> tuple[int, int]:
        """Give the bytes in and out of a registered name."""
        found = self._sum(host)
        return found.bytes_in, found.bytes_out

    def _sum(self, host: str) -> Carried:
        before = self._before.get(host, Carried())
        tally = self._traffic.tallies.get(host)
        if tally is None:
            return before
        return Carried(before.bytes_in + tally.bytes_in, before.bytes_out + tally.bytes_out)

    def standing(self) -> dict[str, Carried]:
        """Give the bytes of every host there was."""
        return {host: self._sum(host) for host in {*self._before, *self._traffic.tallies}}

    def add(self, host: str, carried: Carried) -> None:
        """Count what another process has carried."""
        self._before[host] = self._before.get(host, Carried()).plus(carried)

    def flush(self) -> None:
        """Begin to write what has changed."""
        self._tasks.start("byte counts", self.write())

    def changed(self, change: Change) -> None:
        """Take what happened to a registration: whoever has the name next begins at nothing."""
        row, traffic = change.row, self._traffic
        if isinstance(change, Put):
            traffic.allowances.changed(row, traffic.pump.now)
        elif row.state is not Ownership.PENDING:
            traffic.tallies.pop(row.host, None)
            traffic.allowances.forget(row.host)
            self._before.pop(row.host, None)
            self._written.pop(row.host, None)

    def _sweep(self) -> None:
        """Let go of hosts that left without a word, as those of a configuration file, but not of their bytes."""
        traffic = self._traffic
        for host, tally in list(traffic.tallies.items()):
            if traffic.registry.row(host) is None and not tally.open and not tally.calling:
                self._before[host] = self._sum(host)
                del traffic.tallies[host]
                traffic.allowances.forget(host)

    async def write(self) -> None:
        """Write what has changed since it was written last; a disk that is full loses only the counts."""
        now = {host: self._sum(host) for host in self._traffic.tallies}
        changed = {host: count for host, count in now.items() if self._written.get(host) != count}
        if not changed:
            self._sweep()
            return
        try:
            await self.books.carry(changed)
        except StorageError as error:
            self._log.warn("byte counts were not written", event="proxy.counts_kept", reason=str(error))
            return
        self._written.update((host, count) for host, count in changed.items() if host in self._traffic.tallies)
        self._sweep()

    async def stop(self) -> None:
        """Write the last time."""
        if self._loop.running:
            self._loop.stop()
        await self.write()
