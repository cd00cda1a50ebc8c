"""A sealed request counts once, whatever the clocks, the load and the restarts are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel.limits import REPLAY_WINDOW
from layer8.tunnel.replay import GENERATIONS, MARK, ReplaySet, Verdict, Window, mark, minute

NOW = 1_800_000_042.5


class WindowTests(SynchronousTestCase):
    def test_five_minutes_each_way(self) -> None:
        window = Window()
        here = minute(NOW)
        for date, good in (
            (here - REPLAY_WINDOW - 1, False),
            (here - REPLAY_WINDOW, True),
            (NOW, True),
            (here + REPLAY_WINDOW + 59, True),
            (here + REPLAY_WINDOW + 60, False),
        ):
            self.assertEqual(window.judge(date, NOW), good, date - here)
        self.assertEqual(sum(window.judge(here + 60 * n, NOW) for n in range(-20, 20)), GENERATIONS)

    def test_a_restart(self) -> None:
        window = Window(since=minute(NOW))
        self.assertFalse(window.judge(NOW - 60, NOW))
        self.assertTrue(window.judge(NOW, NOW))


class ReplayTests(SynchronousTestCase):
    def test_marks(self) -> None:
        self.assertEqual(len(mark(bytes(32))), MARK)
        self.assertNotEqual(mark(bytes(32)), mark(bytes(31) + b"\x01"))

    def test_once(self) -> None:
        marks = ReplaySet()
        self.assertIs(marks.add(mark(b"a"), NOW, NOW), Verdict.NEW)
        for later in range(0, 2 * REPLAY_WINDOW, 7):
            self.assertIsNot(marks.add(mark(b"a"), NOW, NOW + later), Verdict.NEW)
        end = NOW + 2 * REPLAY_WINDOW
        self.assertIs(marks.add(mark(b"b"), end, end), Verdict.NEW)

    def test_what_is_over_is_forgotten(self) -> None:
        marks = ReplaySet()
        for number in range(100):
            now = NOW + 60 * number
            for offset in (-300, 0, 300):
                self.assertIs(marks.add(mark(b"%d %d" % (number, offset)), now + offset, now), Verdict.NEW)
            self.assertLessEqual(len(marks), 3 * GENERATIONS)
            self.assertEqual(len(marks), len(marks.window))
            self.assertLessEqual(len(marks._marks), GENERATIONS)

    def test_the_window_shrinks_to_what_fits(self) -> None:
        marks = ReplaySet(Window(most=10))
        for number in range(10):
            marks.add(mark(b"old %d" % number), NOW - 120, NOW)
        self.assertIs(marks.add(mark(b"new"), NOW, NOW), Verdict.NEW)
        self.assertIs(marks.add(mark(b"old 0"), NOW - 120, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(b"another"), NOW - 120, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(b"another"), NOW - 60, NOW), Verdict.NEW)
        for number in range(50):
            marks.add(mark(b"%d" % number), NOW, NOW)
            self.assertLessEqual(len(marks), 10)
        self.assertIs(marks.add(mark(b"new"), NOW, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(b"next minute"), NOW + 60, NOW + 60), Verdict.NEW)

    def test_without_a_date(self) -> None:
        marks = ReplaySet(Window(most=3))
        self.assertIs(marks.add_dateless(mark(b"a"), 7), Verdict.NEW)
        self.assertIs(marks.add_dateless(mark(b"a"), 7), Verdict.REPEAT)
        self.assertIs(marks.add_dateless(mark(b"b"), 8), Verdict.NEW)
        self.assertIs(marks.add_dateless(mark(b"c"), 8), Verdict.NEW)
        self.assertIs(marks.add_dateless(mark(b"d"), 8), Verdict.DATE)
        self.assertIs(marks.add(mark(b"a"), NOW, NOW), Verdict.NEW)
        marks.forget(7)
        self.assertEqual(len(marks), 3)

    @given(
        st.integers(1, 12),
        st.lists(st.tuples(st.integers(0, 8), st.integers(-500, 500), st.integers(0, 200)), max_size=60),
    )
    def test_a_repeat_is_never_let_in(self, most: int, asked: list[tuple[int, int, int]]) -> None:
        marks, now = ReplaySet(Window(most=most)), NOW
        seen: set[tuple[int, int]] = set()
        for number, offset, passed in asked:
            now += passed
            date = minute(now + offset)
            if marks.add(mark(b"%d" % number), date, now) is Verdict.NEW:
                self.assertNotIn((number, date), seen)
                seen.add((number, date))
            self.assertLessEqual(len(marks), most)
