"""Task sets: who hears of an error, and that stopping ends everything."""

from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Refused, Unavailable
from layer8.net.tasks import TaskSet


class Tasks(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        self.tasks = TaskSet(Logger(observer=cast(ILogObserver, self.events.append)))
        self.ended: list[str] = []

    async def _wait(self, gate: Deferred[None], name: str) -> str:
        try:
            await gate
        except CancelledError:
            self.ended.append(f"{name} cancelled")
            raise
        self.ended.append(name)
        return name

    def test_runs_and_is_forgotten(self) -> None:
        gate: Deferred[None] = Deferred()
        self.tasks.start("a", self._wait(gate, "a"))
        self.assertEqual(len(self.tasks), 1)
        gate.callback(None)
        self.assertEqual((self.ended, len(self.tasks), self.events), (["a"], 0, []))

    def test_result(self) -> None:
        gate: Deferred[None] = Deferred()
        result = self.tasks.run("a", self._wait(gate, "a"))
        self.assertNoResult(result)
        gate.callback(None)
        self.assertEqual(self.successResultOf(result), "a")

    def test_cancelled_by_its_waiter(self) -> None:
        result = self.tasks.run("a", self._wait(Deferred(), "a"))
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual((self.ended, len(self.tasks)), (["a cancelled"], 0))

    def test_errors_are_logged(self) -> None:
        async def fail(error: Exception) -> None:
            raise error

        self.tasks.start("on purpose", fail(Refused("policy")))
        self.tasks.start("a bug", fail(ZeroDivisionError()))
        self.assertEqual([event["event"] for event in self.events], ["task.ended", "task.failed"])
        self.assertNotIn("log_failure", self.events[0])
        self.assertIn("log_failure", self.events[1])
        self.assertEqual(len(self.tasks), 0)

    def test_errors_of_run_are_its_waiters(self) -> None:
        async def fail() -> None:
            raise Refused("policy")

        self.failureResultOf(self.tasks.run("a", fail()), Refused)
        self.assertEqual(self.events, [])

    def test_stop_waits(self) -> None:
        """A task that cleans up slowly is waited for, by each who asked."""
        cleanup: Deferred[None] = Deferred()

        async def slow() -> None:
            try:
                await Deferred()
            finally:
                await cleanup
                self.ended.append("cleaned")

        self.tasks.start("slow", slow())
        self.tasks.start("b", self._wait(Deferred(), "b"))
        one, other = self.tasks.stop(), self.tasks.stop()
        self.assertEqual(self.ended, ["b cancelled"])
        self.assertNoResult(one)
        cleanup.callback(None)
        self.successResultOf(one)
        self.successResultOf(other)
        self.successResultOf(self.tasks.stop())
        self.assertEqual((self.ended, self.events), (["b cancelled", "cleaned"], []))

    def test_nothing_begins_after_stop(self) -> None:
        self.successResultOf(self.tasks.stop())
        self.tasks.start("a", self._wait(Deferred(), "a"))
        self.failureResultOf(self.tasks.run("b", self._wait(Deferred(), "b")), Unavailable)
        self.assertEqual((len(self.tasks), self.ended), (0, []))
        self.tasks.restart()
        self.tasks.start("a", self._wait(Deferred(), "a"))
        self.assertEqual(len(self.tasks), 1)
        self.tasks.stop()

    def test_cancelled_from_outside_is_told(self) -> None:
        """A task that somebody else cancelled did not end as planned."""
        gate: Deferred[None] = Deferred()
        self.tasks.start("a", self._wait(gate, "a"))
        gate.cancel()
        self.assertEqual([event["event"] for event in self.events], ["task.failed"])
