"""What every daemon's service shares: order of start and stop, tasks, health rows, readiness and draining.

A daemon is one `Daemon` with its parts as children: listeners, storage, control, the protocol's own services. They
start in the order they were added and stop one after another in the opposite order, each with the later ones gone.
A part that has conversations under way provides `Drains`.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from attrs import define, evolve, field, frozen
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.net.tasks import TaskSet

HEALTH_ROWS = 64  # checks of one process; their names are ours, so reaching it is a bug


@runtime_checkable
class Drains(Protocol):
    """A part that can stop taking new work before it stops."""

    def drain(self) -> Awaitable[None]:
        """Take nothing new; finish when what was under way has ended. May be cancelled at the deadline."""


@frozen
class HealthRow:
    """The state of one thing that can be well or not: `since` is when `ok` last changed, `why` says what is wrong.

    The process is not ready while a `needed` row is not ok; the others are told and serving goes on.
    """

    check: str
    ok: bool
    why: str
    since: datetime.datetime
    needed: bool = True


def _wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@define(eq=False)
class Health:
    """The health rows of one process, and whether it may be sent work."""

    draining: bool = field(default=False, init=False)
    started: bool = field(default=False, init=False)
    _wall: Callable[[], datetime.datetime] = _wall
    _rows: dict[str, HealthRow] = field(factory=dict, init=False)
    _watchers: list[Callable[[HealthRow], None]] = field(factory=list, init=False)

    def set(self, check: str, ok: bool, why: str = "", *, needed: bool = True) -> None:
        """Report one check; a new reason keeps `since`, a new state does not. Watchers hear of changes only."""
        old = self._rows.get(check)
        if old is not None and (old.ok, old.why, old.needed) == (ok, why, needed):
            return
        if old is None and len(self._rows) >= HEALTH_ROWS:
            raise RuntimeError("more health checks than HEALTH_ROWS")
        if old is not None and old.ok == ok:
            row = evolve(old, why=why, needed=needed)
        else:
            row = HealthRow(check, ok, why, self._wall(), needed)
        self._rows[check] = row
        for watcher in list(self._watchers):
            watcher(row)

    def forget(self, check: str) -> None:
        """Drop a check whose subject is switched off."""
        self._rows.pop(check, None)

    def watch(self, watcher: Callable[[HealthRow], None]) -> Callable[[], None]:
        """Call `watcher` with each row that changes, until the function given back is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def rows(self) -> tuple[HealthRow, ...]:
        """Give every row, by name."""
        return tuple(row for _, row in sorted(self._rows.items()))

    def reasons(self) -> tuple[str, ...]:
        """Give one line for each reason not to send work here; none means ready."""
        lines = [f"{row.check}: {row.why or 'not ok'}" for row in self.rows() if row.needed and not row.ok]
        if self.draining:
            lines.insert(0, "draining")
        elif not self.started:
            lines.insert(0, "not started")
        return tuple(lines)

    @property
    def ready(self) -> bool:
        """Tell whether there is no reason not to send work here."""
        return not self.reasons()


class Daemon(MultiService):
    """The service of one process."""

    def __init__(self, clock: IReactorTime, log: Logger, *, drain_seconds: float = 0.0) -> None:
        """Start with no parts; with `drain_seconds`, stopping drains first for at most that long."""
        MultiService.__init__(self)
        self.health = Health()
        self.tasks = TaskSet(log)
        self._clock = clock
        self._log = log
        self.drain_seconds = drain_seconds
        self._drain: Deferred[None] | None = None
        self._drained: list[Deferred[None]] = []

    def startService(self) -> None:
        """Start the parts in order; if one raises, those before it are stopped and the caller gets the error."""
        Service.startService(self)
        self.tasks.restart()
        self.health.draining = False
        begun: list[IService] = []
        try:
            for part in self:
                part.startService()
                begun.append(part)
        except BaseException:
            self.running = 0
            for part in reversed(begun):
                maybeDeferred(part.stopService).addErrback(self._stop_failed)
            raise
        self.health.started = True

    def stopService(self) -> Deferred[None]:
        """Drain if that was asked for, then stop the parts one by one in reverse, then the tasks."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    def drain(self, seconds: float) -> Deferred[None]:
        """Stop taking work: fires when nothing is under way any more, at the latest after `seconds`.

        The process is not ready from now on. A second call waits for the first one's end, or ends it sooner.
        """
        waiter: Deferred[None] = Deferred()
        self._drained.append(waiter)
        self.health.draining = True
        running = self._drain
        if running is not None:
            sooner = self._clock.callLater(seconds, running.cancel)
            waiter.addBoth(lambda _: sooner.cancel() if sooner.active() else None)
        else:
            self._drain = Deferred.fromCoroutine(self._drain_parts())
            self._drain.addTimeout(seconds, self._clock)
            self._drain.addErrback(lambda reason: reason.trap(CancelledError, TimeoutError) and None)
            self._drain.addCallback(self._drain_ended)
        return waiter

    def hurry(self) -> None:
        """End a drain now, as a second SIGTERM does."""
        if self._drain is not None:
            self._drain.cancel()

    async def _stop(self) -> None:
        if self.drain_seconds > 0 or self._drain is not None:
            await self.drain(self.drain_seconds)
        self.health.started = False
        for part in reversed(list(self)):
            try:
                await maybeDeferred(part.stopService)
            except CancelledError:
                raise
            except Exception:  # a part that cannot stop must not keep the others from stopping
                self._log.failure("a part did not stop", event="service.stop_failed", part=type(part).__name__)
        await self.tasks.stop()

    async def _drain_parts(self) -> None:
        drains = [Deferred.fromCoroutine(_drain_one(part)) for part in self if isinstance(part, Drains)]
        for drain in drains:
            drain.addErrback(self._drain_failed)
        await DeferredList(drains)  # cancelling it cancels each

    def _drain_failed(self, reason: Failure) -> None:
        if not reason.check(CancelledError):
            self._log.failure("drain failed", reason, event="service.drain_failed")

    def _drain_ended(self, _: None) -> None:
        self._drain = None
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            waiter.callback(None)

    def _stop_failed(self, reason: Failure) -> None:
        self._log.failure("a part did not stop", reason, event="service.stop_failed")


async def _drain_one(part: Drains) -> None:
    await part.drain()
