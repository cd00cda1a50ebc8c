"""Who gets the next visitor, and how subscriptions come and go."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.proxy.choose import Seat, Seats
from tests.proxy.desk import HOST, OTHER, Voice, key_of


class ChooseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gone: list[tuple[int, bool]] = []
        self.seats = Seats(lambda seat, kill: self.gone.append((seat.number, kill)))

    def sit(self, number: int, host: str = HOST, **more: Any) -> Seat:
        said: dict[str, Any] = {"weight": 1, "priority": 0, "max_conns": 0, "key": key_of()} | more
        seat = Seat(
            number=number, host=host, voice=Voice(), instance="", address=None, resume=f"r{number}", since=0.0, **said
        )
        self.seats.add(seat)
        return seat

    def chosen(self, visitors: int, host: str = HOST) -> list[int]:
        """Who gets so many visitors that all stay."""
        numbers = []
        for _ in range(visitors):
            seat = self.seats.best(host)
            assert seat is not None
            self.seats.called(seat)
            self.seats.joined(seat)
            numbers.append(seat.number)
        return numbers

    def test_nobody(self) -> None:
        self.assertIsNone(self.seats.best(HOST))
        self.sit(1, "other.example.com")
        self.assertIsNone(self.seats.best(HOST))

    def test_lowest_priority_number(self) -> None:
        self.sit(1, priority=2)
        self.sit(2, priority=1)
        self.assertEqual(self.chosen(3), [2, 2, 2])

    def test_round_robin_among_equals(self) -> None:
        for number in (1, 2, 3):
            self.sit(number)
        self.assertEqual(self.chosen(7), [1, 2, 3, 1, 2, 3, 1])

    def test_round_robin_also_when_visitors_leave_at_once(self) -> None:
        seats = [self.sit(number) for number in (1, 2, 3)]
        order = []
        for _ in range(6):
            seat = self.seats.best(HOST)
            assert seat is not None
            order.append(seat.number)
        self.assertEqual(order, [1, 2, 3, 1, 2, 3])
        self.assertEqual([seat.open for seat in seats], [0, 0, 0])

    def test_by_weight(self) -> None:
        self.sit(1, weight=3)
        self.sit(2, weight=1)
        chosen = self.chosen(40)
        self.assertEqual((chosen.count(1), chosen.count(2)), (30, 10))

    def test_those_that_wait_count(self) -> None:
        first, second = self.sit(1), self.sit(2)
        self.seats.called(first)
        self.seats.called(first)
        self.assertIs(self.seats.best(HOST), second)
        self.seats.uncalled(first)
        self.seats.uncalled(first)
        self.seats.called(second)
        self.assertIs(self.seats.best(HOST), first)

    def test_not_those_that_were_tried(self) -> None:
        first, second = self.sit(1), self.sit(2, priority=9)
        self.assertIs(self.seats.best(HOST, {first}), second)
        self.assertIsNone(self.seats.best(HOST, {first, second}))

    def test_max_conns(self) -> None:
        seat = self.sit(1, max_conns=2)
        self.assertEqual(self.chosen(2), [1, 1])
        self.assertIsNone(self.seats.best(HOST))
        self.seats.left(seat)
        self.assertIs(self.seats.best(HOST), seat)

    def test_down_and_up(self) -> None:
        seat = self.sit(1)
        self.seats.turned(seat, "down")
        self.assertIsNone(self.seats.best(HOST))
        self.seats.turned(seat, "up")
        self.assertIs(self.seats.best(HOST), seat)

    def test_who_is_told_of_changes(self) -> None:
        """A subscription that is new, down, up or about to leave; one that is gone is told of as always."""
        told: list[tuple[int, str]] = []
        self.seats.changed = lambda seat: told.append((seat.number, seat.state))
        seat = self.sit(1)
        self.seats.turned(seat, "down")
        self.seats.turned(seat, "up")
        self.seats.turned(seat, "drain")
        self.assertEqual(told, [(1, "up"), (1, "down"), (1, "up"), (1, "drain")])
        self.assertEqual(self.gone, [(1, False)])

    def test_drain_leaves_when_idle(self) -> None:
        seat = self.sit(1)
        self.chosen(1)
        self.seats.called(seat)
        self.seats.turned(seat, "drain")
        self.assertIsNone(self.seats.best(HOST))
        self.seats.turned(seat, "up")
        self.assertIsNone(self.seats.best(HOST), "a draining subscription never comes back")
        self.seats.left(seat)
        self.assertEqual(self.gone, [])
        self.seats.uncalled(seat)
        self.assertEqual(self.gone, [(1, False)])

    def test_drain_of_an_idle_one(self) -> None:
        seat = self.sit(1)
        self.seats.turned(seat, "drain")
        self.assertEqual(self.gone, [(1, False)])
        self.assertEqual(len(self.seats), 0)

    def test_dropped_once(self) -> None:
        seat = self.sit(1)
        self.seats.drop(seat, kill=True)
        self.seats.drop(seat)
        self.assertEqual(self.gone, [(1, True)])
        self.assertIsNone(self.seats.by_number(1))
        self.assertEqual(list(self.seats.of(HOST)), [])

    def test_keys_that_are_good_no_more(self) -> None:
        old, new = self.sit(1), self.sit(2, key=key_of(OTHER))
        self.assertEqual(self.seats.keep_keys(HOST, [key_of(OTHER)]), 1)
        self.assertEqual(self.gone, [(1, False)])
        self.assertEqual((old.voice.closed, new.voice.closed), (["revoked"], []))  # type: ignore[attr-defined]

    def test_host_that_is_gone(self) -> None:
        self.sit(1)
        self.sit(2)
        other = self.sit(3, "other.example.com")
        self.assertEqual(self.seats.drop_host(HOST, kill=True), 2)
        self.assertEqual(self.gone, [(1, True), (2, True)])
        self.assertIs(self.seats.best("other.example.com"), other)

    @given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=8), st.integers(1, 60))
    def test_always_the_least_loaded_of_the_first(self, agents: list[tuple[int, int]], visitors: int) -> None:
        self.setUp()
        seats = [self.sit(number, weight=weight, priority=priority) for number, (weight, priority) in enumerate(agents)]
        first = min(seat.priority for seat in seats)
        for _ in range(visitors):
            seat = self.seats.best(HOST)
            assert seat is not None
            self.assertEqual(seat.priority, first)
            loads = [(one.open + 1) / one.weight for one in seats if one.priority == first]
            self.assertEqual((seat.open + 1) / seat.weight, min(loads))
            self.seats.called(seat)
            self.seats.joined(seat)
