"""Who is present on which node, told in numbered news: gaps, restarts, parts, noise."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.proxy.bus import Presence
from layer8.proxy.limits import BUS_LEASE, BUS_RENEW
from layer8.proxy.roster import PART, STALE, Roster

ONE, TWO = b"1" * 32, b"2" * 32
HOST = "app.example.com"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
WORDS = ("start", "seq", "add", "gone", "renew", "whole", "part", "of")


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


class RosterTests(SynchronousTestCase):
    """Two of them; what one tells the other hears when a test says so."""

    def setUp(self) -> None:
        self.one, self.two = Roster(ONE, 1000), Roster(TWO, 2000)

    def tell(self, now: float = 0.0) -> bool:
        return self.two.heard(ONE, copied(self.one.news()), now)

    def tell_whole(self, now: float = 0.0) -> None:
        for part in self.one.whole():
            self.two.heard(ONE, copied(part), now)

    def present(self, now: float = 0.0, host: str = HOST) -> set[int]:
        return {one.subscription for one in self.two.lookup(host, now)}

    def lease(self, *numbers: int, now: float = 0.0) -> list[Any]:
        return [self.one.lease(Presence(HOST, ONE, number), now) for number in numbers]

    def test_news_are_told_once(self) -> None:
        self.lease(1, 2)
        self.assertFalse(self.tell())
        self.assertIsNone(self.one.news())
        self.assertEqual(self.present(), {1, 2})

    def test_one_that_came_and_went_in_between_is_not_told(self) -> None:
        first, _ = self.lease(1, 2)
        self.one.release(first)
        news = self.one.news()
        assert news is not None
        self.assertEqual((len(news["add"]), news["gone"]), (1, []))

    def test_a_gap_asks_once_for_the_whole(self) -> None:
        self.lease(1)
        self.tell()
        self.lease(2)
        self.one.news()  # lost
        self.lease(3)
        self.assertTrue(self.tell())
        self.assertEqual(self.present(), {1})
        self.lease(4)
        self.assertFalse(self.tell(), "asked already")
        self.tell_whole()
        self.assertEqual(self.present(), {1, 2, 3, 4})
        self.lease(5)
        self.assertFalse(self.tell())
        self.assertEqual(self.present(), {1, 2, 3, 4, 5})

    def test_an_answer_that_is_lost_is_asked_for_again(self) -> None:
        self.lease(1)
        self.one.news()
        self.one.renew((), 0.0)
        self.assertTrue(self.tell(0.0))
        self.one.renew((), 5.0)
        self.assertFalse(self.tell(BUS_RENEW - 1))
        self.one.renew((), 10.0)
        self.assertTrue(self.tell(BUS_RENEW))

    def test_the_whole_comes_in_parts(self) -> None:
        self.lease(*range(2 * PART + 1))
        self.one.news()
        parts = [copied(part) for part in self.one.whole()]
        self.assertEqual([len(part["whole"]) for part in parts], [PART, PART, 1])
        for part in parts[:-1]:
            self.two.heard(ONE, part, 0.0)
        self.assertEqual(self.present(), set())
        self.two.heard(ONE, parts[-1], 0.0)
        self.assertEqual(len(self.present()), 2 * PART + 1)
        self.assertFalse(next(iter(Roster(ONE, 0).whole()))["whole"])

    def test_what_is_older_than_what_is_known_changes_nothing(self) -> None:
        old = Roster(ONE, 999)
        old.lease(Presence(HOST, ONE, 7), 0.0)
        late = copied(old.news())
        self.lease(1)
        self.tell()
        self.assertFalse(self.two.heard(ONE, late, 0.0))
        before = [copied(part) for part in self.one.whole()]
        self.lease(2)
        self.tell()
        for part in before:
            self.two.heard(ONE, part, 0.0)
        self.assertEqual(self.present(), {1, 2})

    def test_a_restart_forgets_what_was(self) -> None:
        self.lease(1)
        self.tell()
        again = Roster(ONE, 1_000_000)
        again.lease(Presence(HOST, ONE, 2), 0.0)
        self.assertFalse(self.two.heard(ONE, copied(again.news()), 0.0))
        self.assertEqual(self.present(), {2})
        lease = again.lease(Presence(HOST, ONE, 3), 0.0)
        self.assertGreater(lease.generation, 1_000_000)

    def test_some_are_renewed_and_some_are_not(self) -> None:
        kept, _ = self.lease(1, 2)
        self.tell()
        self.one.renew([kept], 20.0)
        self.tell(20.0)
        self.assertEqual(self.present(BUS_LEASE - 1), {1, 2})
        self.assertEqual(self.present(BUS_LEASE), {1})

    def test_nobody_speaks_for_another(self) -> None:
        self.lease(1)
        news = copied(self.one.news())
        three = Roster(b"3" * 32, 0)
        three.heard(TWO, news, 0.0)
        self.assertEqual([one.node for one in three.lookup(HOST, 0.0)], [TWO], "the node is the sender's")

    def test_cut_off(self) -> None:
        self.lease(1)
        self.tell()
        self.two.cut(20.0)
        self.two.cut(50.0)
        self.assertEqual(self.present(20.0 + STALE - 1), {1})
        self.assertEqual(self.present(20.0 + STALE), set())
        self.two.joined(70.0)
        self.assertEqual(self.present(70.0 + BUS_LEASE - 1), {1})
        self.assertEqual(self.present(70.0 + BUS_LEASE), set())

    def test_what_had_lapsed_before_the_cut_stays_so(self) -> None:
        self.lease(1)
        self.tell()
        self.two.cut(BUS_LEASE + 1)
        self.assertEqual(self.present(BUS_LEASE + 1), set())
        self.two.joined(BUS_LEASE + 2)
        self.assertEqual(self.present(BUS_LEASE + 2), set())

    def test_a_lost_node(self) -> None:
        self.lease(1)
        self.tell()
        self.two.lost(ONE)
        self.two.lost(ONE)
        self.assertEqual(self.present(), set())
        self.lease(2)
        self.assertTrue(self.tell(), "what it says next asks for the whole")

    def test_two_leases_of_one_number(self) -> None:
        self.two.heard(
            ONE,
            {"start": 1, "seq": 1, "add": [[HOST, 1, 1, 0, 5, 0], ["b", 2, 1, 0, 5, 2]], "gone": [], "renew": True},
            0.0,
        )
        self.assertEqual((self.present(), self.present(host="b")), (set(), {2}))
        self.two.heard(ONE, {"start": 1, "seq": 2, "add": [], "gone": [5], "renew": True}, 0.0)
        self.assertEqual(self.present(host="b"), set())

    @given(st.lists(st.dictionaries(st.sampled_from(WORDS), JSON, max_size=8), max_size=6))
    def test_any_noise(self, messages: list[dict[str, Any]]) -> None:
        two = Roster(TWO, 0)
        for message in messages:
            try:
                two.heard(ONE, message, 0.0)
            except RemoteProtocolError:
                continue
            two.lookup(HOST, 0.0)

    @given(st.lists(JSON, max_size=5), st.lists(JSON, max_size=5), JSON)
    def test_noise_in_the_right_frame(self, add: list[Any], gone: list[Any], renew: Any) -> None:
        two = Roster(TWO, 0)
        for seq in (1, 2, 3):
            try:
                two.heard(ONE, {"start": 5, "seq": seq, "add": add, "gone": gone, "renew": renew}, 0.0)
            except RemoteProtocolError:
                continue
