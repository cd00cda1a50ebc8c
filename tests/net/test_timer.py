"""One delayed call per session, whatever its deadline does."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.net.timer import SOONEST, Timer


class Timers(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.fired: list[float] = []
        self.timer = Timer(self.clock, self.clock.seconds, lambda: self.fired.append(self.clock.seconds()))

    def test_moved_away_and_nearer(self) -> None:
        self.timer.set(5)
        self.timer.set(9)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(5)
        self.assertEqual(self.fired, [])
        self.timer.set(6)
        self.clock.advance(1)
        self.assertEqual(self.fired, [6])
        self.clock.advance(10)
        self.assertEqual(self.fired, [6])

    def test_none_and_stop(self) -> None:
        ends: tuple[Callable[[], None], ...] = (lambda: self.timer.set(None), self.timer.stop)
        for end in ends:
            self.timer.set(5)
            end()
            self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(10)
        self.assertEqual(self.fired, [])

    def test_overdue_does_not_spin(self) -> None:
        self.clock.advance(100)
        self.timer.set(5)
        self.assertEqual(self.clock.getDelayedCalls()[0].getTime(), 100 + SOONEST)

    def test_two_clocks(self) -> None:
        """The reactor's clock jumps ahead: the call comes early and is made again, not passed on."""
        monotonic = [0.0]
        timer = Timer(self.clock, lambda: monotonic[0], lambda: self.fired.append(monotonic[0]))
        timer.set(10)
        self.clock.advance(3600)
        self.assertEqual(self.fired, [])
        monotonic[0] = 10.0
        self.clock.advance(10)
        self.assertEqual(self.fired, [10.0])

    @given(st.lists(st.tuples(st.floats(0, 3), st.none() | st.floats(0, 20)), max_size=30))
    def test_fires_when_it_should(self, steps: list[tuple[float, float | None]]) -> None:
        self.setUp()
        at: float | None = None
        for passes, deadline in steps:
            before, self.fired[:] = self.clock.seconds(), []
            self.clock.advance(passes)
            now = self.clock.seconds()
            if at is None or at > now:
                self.assertEqual(self.fired, [])
            elif max(at, before + SOONEST) <= now:
                self.assertEqual(len(self.fired), 1)
            if self.fired:
                at = None
            if deadline is not None or at is not None:
                at = None if deadline is None else now + deadline
                self.timer.set(at)
            self.assertLessEqual(len(self.clock.getDelayedCalls()), 1)
