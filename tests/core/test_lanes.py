"""Lanes: order, times, and that forgetting costs nothing."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.lanes import Lane


class Lanes(SynchronousTestCase):
    def test_at_the_second(self) -> None:
        lane: Lane[str] = Lane(3.0)
        lane.add("a", 10.0)
        lane.add("b", 10.5)
        self.assertEqual(list(lane.expired(12.9)), [])
        self.assertEqual(list(lane.expired(13.0)), ["a"])
        self.assertEqual(list(lane.expired(13.0)), [])
        self.assertEqual(len(lane), 1)
        self.assertEqual(list(lane.expired(99.0)), ["b"])

    def test_added_while_sweeping(self) -> None:
        """An owner may give an entry another round while it takes the expired ones."""
        lane: Lane[int] = Lane(1.0)
        lane.add(1, 0.0)
        for entry in lane.expired(1.0):
            lane.add(entry + 1, 1.0)
        self.assertEqual(list(lane.expired(1.5)), [])
        self.assertEqual(list(lane.expired(2.0)), [2])

    @given(st.lists(st.floats(0, 5), max_size=50), st.floats(0, 10))
    def test_each_once_and_in_time(self, steps: list[float], seconds: float) -> None:
        lane: Lane[tuple[int, float]] = Lane(seconds)
        now, seen = 0.0, []
        for number, step in enumerate(steps):
            now += step
            for entry in lane.expired(now):
                self.assertLessEqual(entry[1] + seconds, now)
                seen.append(entry)
            lane.add((number, now), now)
        seen += lane.expired(now + seconds)
        self.assertEqual([number for number, _ in seen], list(range(len(steps))))
        self.assertEqual(len(lane), 0)
