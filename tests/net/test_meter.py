"""The token bucket of bytes that joined flows share, against any sequence of what may happen to it."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.net.meter import LEAST, REST, Meter

STEPS = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), max_size=100)


class MeterTests(SynchronousTestCase):
    @given(st.floats(1, 1e9), STEPS)
    def test_never_more_than_the_burst_and_the_rate(self, rate: float, steps: list[tuple[float, float]]) -> None:
        now, moved = 0.0, 0
        meter = Meter(rate, now)
        for seconds, share in steps:
            now += seconds
            size = int(meter.room(now) * share)
            meter.spend(size)
            moved += size
            self.assertLessEqual(moved, meter.burst + rate * now + 1)

    @given(st.floats(100, 1e9), st.integers(0, 1 << 24))
    def test_after_its_wait_there_is_room(self, rate: float, spent: int) -> None:
        meter = Meter(rate, 0.0)
        meter.spend(meter.room(0.0) + spent)
        wait = meter.wait()
        self.assertGreaterEqual(wait, REST)
        self.assertGreaterEqual(meter.room(wait * 1.001 + 0.001), LEAST)

    @given(st.lists(st.floats(1, 1e9), min_size=1, max_size=10), STEPS)
    def test_any_changes_of_the_rate(self, rates: list[float], steps: list[tuple[float, float]]) -> None:
        """What may move is what the highest of them allowed, whenever it changed."""
        now, moved, meter = 0.0, 0, Meter(rates[0], 0.0)
        most = max(rates)
        for number, (seconds, share) in enumerate(steps):
            meter.change(rates[number % len(rates)])
            now += seconds
            size = int(meter.room(now) * share)
            meter.spend(size)
            moved += size
            self.assertLessEqual(moved, Meter(most, 0.0).burst + most * now + 1)
