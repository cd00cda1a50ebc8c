"""Order of start and stop, draining and health rows, on a clock of our own."""

import datetime
from collections.abc import Callable
from typing import cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase

from layer8.net.service import HEALTH_ROWS, Daemon, Health, HealthRow


class Part(Service):
    def __init__(self, name: str, diary: list[str]) -> None:
        self.label = name
        self.diary = diary
        self.stopped: Deferred[None] | None = None
        self.fails = ""

    def startService(self) -> None:
        if self.fails == "start":
            raise OSError("port is taken")
        self.diary.append(f"{self.label} up")

    def stopService(self) -> Deferred[None] | None:
        self.diary.append(f"{self.label} down")
        if self.fails == "stop":
            raise ZeroDivisionError
        return self.stopped


class Busy(Part):
    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__(name, diary)
        self.work: Deferred[None] = Deferred()

    async def drain(self) -> None:
        self.diary.append(f"{self.label} drains")
        try:
            await self.work
        except CancelledError:
            self.diary.append(f"{self.label} cut short")
            raise
        if self.fails == "drain":
            raise ZeroDivisionError


class Daemons(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[LogEvent] = []
        self.diary: list[str] = []
        self.daemon = self._make(0)

    def _make(self, drain: float) -> Daemon:
        return Daemon(self.clock, Logger(observer=cast(ILogObserver, self.events.append)), drain_seconds=drain)

    def _add(self, daemon: Daemon, *names: str, kind: type[Part] = Part) -> list[Part]:
        parts = [kind(name, self.diary) for name in names]
        for part in parts:
            part.setServiceParent(daemon)
        return parts

    def test_order(self) -> None:
        """The second is stopped only when the third has gone."""
        _, second, third = self._add(self.daemon, "1", "2", "3")
        third.stopped = Deferred()
        second.stopped = Deferred()
        self.daemon.startService()
        self.assertEqual(self.diary, ["1 up", "2 up", "3 up"])
        self.assertTrue(self.daemon.health.ready)
        stopped = self.daemon.stopService()
        self.assertEqual(self.diary[3:], ["3 down"])
        self.assertFalse(self.daemon.health.ready)
        third.stopped.callback(None)
        self.assertEqual(self.diary[3:], ["3 down", "2 down"])
        second.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.diary[3:], ["3 down", "2 down", "1 down"])

    def test_a_part_that_cannot_start(self) -> None:
        _, _, third, _ = self._add(self.daemon, "1", "2", "3", "4")
        third.fails = "start"
        self.assertRaises(OSError, self.daemon.startService)
        self.assertEqual(self.diary, ["1 up", "2 up", "2 down", "1 down"])
        self.assertFalse(self.daemon.running)
        self.assertIn("not started", self.daemon.health.reasons())

    def test_a_part_that_cannot_stop(self) -> None:
        _, second = self._add(self.daemon, "1", "2")
        second.fails = "stop"
        self.daemon.startService()
        self.successResultOf(self.daemon.stopService())
        self.assertEqual(self.diary[2:], ["2 down", "1 down"])
        self.assertEqual([event["event"] for event in self.events], ["service.stop_failed"])

    def test_tasks_end_with_it(self) -> None:
        async def forever() -> None:
            try:
                await Deferred()
            finally:
                self.diary.append("task ended")

        self._add(self.daemon, "1")
        self.daemon.startService()
        self.daemon.tasks.start("forever", forever())
        self.successResultOf(self.daemon.stopService())
        self.assertEqual(self.diary, ["1 up", "1 down", "task ended"])
        self.daemon.startService()
        self.daemon.tasks.start("forever", forever())
        self.assertEqual(len(self.daemon.tasks), 1)
        self.successResultOf(self.daemon.stopService())

    def test_drain(self) -> None:
        busy = Busy("1", self.diary)
        busy.setServiceParent(self.daemon)
        self.daemon.startService()
        one, other = self.daemon.drain(30), self.daemon.drain(30)
        self.assertEqual(self.daemon.health.reasons(), ("draining",))
        self.assertNoResult(one)
        busy.work.callback(None)
        self.successResultOf(one)
        self.successResultOf(other)
        self.assertEqual(self.diary, ["1 up", "1 drains"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.daemon.health.ready)

    def test_drain_has_a_deadline(self) -> None:
        Busy("1", self.diary).setServiceParent(self.daemon)
        self.daemon.startService()
        drained = self.daemon.drain(30)
        self.clock.advance(29)
        self.assertNoResult(drained)
        self.clock.advance(1)
        self.successResultOf(drained)
        self.assertEqual(self.diary[1:], ["1 drains", "1 cut short"])
        self.assertEqual(self.events, [])

    def test_stop_drains(self) -> None:
        daemon = self._make(30)
        busy = Busy("1", self.diary)
        busy.setServiceParent(daemon)
        daemon.startService()
        stopped = daemon.stopService()
        self.assertNoResult(stopped)
        busy.work.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.diary, ["1 up", "1 drains", "1 down"])

    def test_hurry(self) -> None:
        daemon = self._make(30)
        Busy("1", self.diary).setServiceParent(daemon)
        daemon.startService()
        stopped = daemon.stopService()
        daemon.hurry()
        self.successResultOf(stopped)
        self.assertEqual(self.diary, ["1 up", "1 drains", "1 cut short", "1 down"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_drain_that_fails(self) -> None:
        busy = Busy("1", self.diary)
        busy.fails = "drain"
        busy.setServiceParent(self.daemon)
        self.daemon.startService()
        drained = self.daemon.drain(30)
        busy.work.callback(None)
        self.successResultOf(drained)
        self.assertEqual([event["event"] for event in self.events], ["service.drain_failed"])


class HealthRows(SynchronousTestCase):
    def setUp(self) -> None:
        self.minute = 0
        self.health = Health(wall=self._wall)
        self.health.started = True

    def _wall(self) -> datetime.datetime:
        self.minute += 1
        return datetime.datetime(2026, 1, 1, *divmod(self.minute, 60), tzinfo=datetime.UTC)

    def test_since(self) -> None:
        """`since` is when the state changed, not when it was last looked at."""
        for ok, why, minute in ((True, "", 1), (True, "", 1), (False, "full", 2), (False, "locked", 2), (True, "", 3)):
            self.health.set("storage", ok, why)
            (row,) = self.health.rows()
            self.assertEqual((row.ok, row.why, row.since.minute), (ok, why, minute))

    def test_ready(self) -> None:
        self.health.set("storage", False, "disk full", needed=False)
        self.assertTrue(self.health.ready)
        self.health.set("listen http", False, "port is taken")
        self.assertEqual(self.health.reasons(), ("listen http: port is taken",))
        self.health.draining = True
        self.assertEqual(self.health.reasons()[0], "draining")
        self.health.draining = False
        self.health.forget("listen http")
        self.assertTrue(self.health.ready)
        self.assertEqual([row.check for row in self.health.rows()], ["storage"])

    def test_watchers(self) -> None:
        seen: list[HealthRow] = []
        stop: Callable[[], None] = self.health.watch(seen.append)
        self.health.set("a", True)
        self.health.set("a", True)
        self.health.set("a", False, "x")
        stop()
        stop()
        self.health.set("a", True)
        self.assertEqual([(row.ok, row.why) for row in seen], [(True, ""), (False, "x")])

    def test_limit(self) -> None:
        for number in range(HEALTH_ROWS):
            self.health.set(str(number), True)
        self.assertRaises(RuntimeError, self.health.set, "one more", True)
