"""The rate of new connections of a host."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.proxy.rates import Rate


class RateTests(SynchronousTestCase):
    def test_a_second_at_once_and_then_by_the_clock(self) -> None:
        rate = Rate(5, 100.0)
        self.assertEqual([rate.take(100.0) for _ in range(6)], [True] * 5 + [False])
        self.assertFalse(rate.take(100.1))
        self.assertTrue(rate.take(100.25))
        self.assertFalse(rate.take(100.25))

    def test_less_than_one_a_second(self) -> None:
        rate = Rate(0.5, 0.0)
        self.assertEqual([rate.take(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)], [True, False, True, False, True])

    def test_those_refused_cost_nothing(self) -> None:
        rate = Rate(1, 0.0)
        rate.take(0.0)
        for _ in range(1000):
            self.assertFalse(rate.take(0.5))
        self.assertTrue(rate.take(1.0))

    def test_nothing_is_saved_beyond_the_burst(self) -> None:
        rate = Rate(2, 0.0)
        self.assertEqual(sum(rate.take(3600.0) for _ in range(100)), 2)

    def test_change(self) -> None:
        rate = Rate(100, 0.0)
        rate.change(2, 0.0)
        self.assertEqual(sum(rate.take(0.0) for _ in range(100)), 2)
        rate.change(10, 0.0)
        self.assertEqual(sum(rate.take(0.5) for _ in range(100)), 5)

    def test_a_clock_that_goes_back_gives_nothing(self) -> None:
        rate = Rate(1, 100.0)
        self.assertTrue(rate.take(100.0))
        self.assertFalse(rate.take(0.0))
        self.assertFalse(rate.take(100.5))
        self.assertTrue(rate.take(101.0))

    @given(st.floats(0.01, 1000), st.lists(st.floats(0, 5), max_size=200))
    def test_never_more_than_the_burst_and_the_rate(self, limit: float, steps: list[float]) -> None:
        now, taken = 0.0, 0
        rate = Rate(limit, now)
        for step in steps:
            now += step
            taken += rate.take(now)
            self.assertLessEqual(taken, rate.burst + now * limit + 1e-6)
