"""What is remembered of nodes: sources, vetting, limits, and what bad descriptors cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from layer8.crypto import descriptor
from layer8.crypto.descriptor import CLOCK, DAY, DESC_LIFE, Role
from layer8.crypto.keys import id_text
from layer8.relay import database
from layer8.relay.database import BAD_MOST, SOURCES, USER, Database, Learned, Taken
from layer8.relay.limits import PEERS_AFTER
from tests.descriptors import MAIN, NOW, TEST, EasyWork, node, told
from tests.relay.peers import vetted

A, B, C = node(9001), node(9002), node(9003)


class TakingTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.known = Database(MAIN, own=node(77))

    def test_every_source_is_remembered(self) -> None:
        one = told(1)
        self.assertEqual(self.known.took(A, [one.raw], NOW), Taken((one.identity,)))
        self.assertEqual(self.known.took(B, [one.raw], NOW + 5), Taken())
        peer = self.known.get(one.identity)
        assert peer is not None
        self.assertEqual(peer.sources, {A: NOW, B: NOW + 5})
        self.assertEqual((peer.first, peer.seen), (NOW, NOW + 5))
        for number in range(20):
            self.known.learn(one, node(9100 + number), NOW)
        self.assertEqual(len(peer.sources), SOURCES)

    def test_a_later_serial_replaces_an_older_one_and_never_the_other_way(self) -> None:
        old, new = told(1), told(1, serial=2, now=NOW + 60)
        self.assertIs(self.known.learn(new, A, NOW + 60), Learned.NEW)
        self.assertIs(self.known.learn(old, B, NOW + 60), Learned.OLDER)
        peer = self.known.get(new.identity)
        assert peer is not None
        self.assertEqual((peer.descriptor, set(peer.sources)), (new, {A}))
        newest = told(1, serial=3, now=NOW + 60, endpoints=("tcp:203.0.113.9:1",))
        self.assertIs(self.known.learn(newest, B, NOW + 60), Learned.NEWER)
        self.assertEqual(peer.descriptor, newest)

    def test_its_own_descriptor_is_never_kept(self) -> None:
        self.known.learn(told(77), A, NOW)
        self.assertEqual(len(self.known), 0)

    def test_bad_ones_are_dropped_one_by_one(self) -> None:
        """Section 13: each row of bad descriptors; the good one among them is kept."""
        good = told(1)
        flipped = bytearray(told(2).raw)
        flipped[70] ^= 1
        far = told(3, now=NOW + 2 * DAY)
        for bad in (
            b"x" * 961,
            good.raw.replace(b"1:si1e", b"1:si01e"),
            bytes(flipped),
            told(4, now=NOW - DESC_LIFE - CLOCK - 1).raw,
            told(5, TEST).raw,
            far.raw,
            b"",
        ):
            known = Database(MAIN)
            self.assertEqual(known.took(A, [bad, good.raw], NOW), Taken((good.identity,), bad=1))

    def test_without_work(self) -> None:
        cheap = told(1)
        self.patch(descriptor, "EFFORT", 2**30)
        self.assertEqual(self.known.took(A, [cheap.raw], NOW).bad, 1)

    def test_three_bad_ones_and_a_source_is_not_heard_for_a_day(self) -> None:
        good = told(1).raw
        self.known.took(A, [b"bad"] * (BAD_MOST - 1), NOW)
        self.assertFalse(self.known.distrusts(A, NOW))
        self.known.took(A, [b"bad"], NOW + 60)
        self.assertTrue(self.known.distrusts(A, NOW + 60))
        self.assertEqual(self.known.took(A, [good], NOW + DAY), Taken())
        self.assertEqual(len(self.known.took(B, [good], NOW + 60).learned), 1)
        self.assertFalse(self.known.distrusts(A, NOW + 60 + DAY))

    def test_bad_ones_are_forgiven_after_a_day(self) -> None:
        for at in range(5):
            self.known.took(A, [b"bad"], NOW + at * DAY)
        self.assertFalse(self.known.distrusts(A, NOW + 4 * DAY))
        self.known.took(USER, [b"bad"] * 5, NOW)
        self.assertFalse(self.known.distrusts(USER, NOW))

    def test_clocks_may_differ_by_an_hour(self) -> None:
        late = told(1, now=NOW - DESC_LIFE - CLOCK + 60)
        self.assertEqual(self.known.took(A, [late.raw], NOW), Taken())

    def test_the_blamed_are_counted_to_a_limit(self) -> None:
        self.patch(database, "BLAMED", 10)
        for number in range(40):
            self.known.took(b"%032d" % number, [b"bad"], NOW)
        self.assertEqual(len(self.known._blamed), 10)

    def test_no_more_than_25_of_one_answer(self) -> None:
        self.assertEqual(len(self.known.took(A, [told(number).raw for number in range(30)], NOW).learned), 25)

    @given(st.lists(st.binary(max_size=100), max_size=5))
    def test_any_noise(self, raws: list[bytes]) -> None:
        self.assertEqual(Database(MAIN).took(A, raws, NOW).learned, ())


class KeepingTests(EasyWork):
    def test_four_of_a_24_and_sixteen_of_a_16(self) -> None:
        known = Database(MAIN)
        for number in range(6):
            known.learn(told(number, endpoints=(f"tcp:60.0.0.{number + 1}:9000",)), A, NOW)
        self.assertEqual(len(known), 4)
        for number in range(10, 40):
            known.learn(told(number, endpoints=(f"tcp:60.0.{number}.1:9000",)), A, NOW)
        self.assertEqual(len(known), 16)
        for number in range(50, 58):
            known.learn(told(number, endpoints=(rf"tcp:2a01\:1\:2\:{number}\:\:1:9000",)), A, NOW)
        self.assertEqual(len(known), 20)
        known = Database(TEST)
        for number in range(30):
            known.learn(told(number, TEST, endpoints=("tcp:127.0.0.1:9000",)), A, NOW)
        self.assertEqual(len(known), 30)

    def test_a_node_that_moves_into_a_full_network_stays_where_it_was(self) -> None:
        known = vetted(range(1, 5), endpoints=("tcp:60.0.0.1:9000",))
        known.learn(told(9), A, NOW)
        self.assertIs(known.learn(told(9, serial=2, endpoints=("tcp:60.0.0.9:1",)), A, NOW), Learned.FULL)
        peer = known.get(node(9))
        assert peer is not None
        self.assertEqual(peer.descriptor, told(9))

    def test_old_memory_is_never_replaced(self) -> None:
        """5,000 are kept; a list of new ones changes nothing, until some have expired that never did anything."""
        self.patch(database, "PEERS_KEPT", 20)
        known = vetted(range(10))
        for number in range(10, 40):
            known.learn(told(number), A, NOW)
        self.assertEqual({peer.identity for peer in known}, {node(number) for number in range(20)})
        later = NOW + DESC_LIFE
        self.assertIs(known.learn(told(50, now=later), A, later), Learned.NEW)
        self.assertEqual({peer.identity for peer in known}, {node(number) for number in (*range(10), 50)})

    def test_fourteen_days_past_expiry(self) -> None:
        known = vetted(range(3))
        known.learn(told(9, now=NOW + DAY), A, NOW + DAY)
        known.prune(NOW + DESC_LIFE + PEERS_AFTER - 1)
        self.assertEqual(len(known), 4)
        known.prune(NOW + DESC_LIFE + PEERS_AFTER)
        self.assertEqual([peer.identity for peer in known], [node(9)])
        known.changes()
        self.assertIs(known.learn(told(20, endpoints=told(0).endpoints), A, NOW), Learned.NEW)  # its place is free

    def test_changes_are_told_once(self) -> None:
        known = vetted(range(3))
        self.assertEqual(len(known.changes()[0]), 3)
        known.failed(node(1))
        self.assertEqual([peer.identity for peer in known.changes()[0]], [node(1)])
        known.prune(NOW + 100 * DAY)
        self.assertEqual((known.changes()[0], len(known.changes()[1])), ([], 0))


class JudgingTests(EasyWork):
    def test_three_good_circuits(self) -> None:
        """G19: a fresh descriptor is not used before that."""
        known = Database(MAIN)
        known.learn(told(1), A, NOW)
        peer = known.get(node(1))
        assert peer is not None
        for _ in range(3):
            self.assertFalse(known.vetted(peer))
            known.worked(node(1), NOW)
        self.assertTrue(known.vetted(peer))

    def test_a_pin_is_as_good(self) -> None:
        known = Database(MAIN)
        known.learn(told(1), USER, NOW)
        known.pin(node(1))
        peer = known.get(node(1))
        assert peer is not None
        self.assertTrue(known.vetted(peer) and known.acquainted(peer, NOW))
        known.unpin(node(1))
        self.assertFalse(known.vetted(peer))

    def test_no_rules_where_everything_is_a_minute_old(self) -> None:
        known = Database(TEST)
        known.learn(told(1, TEST), A, NOW)
        peer = known.get(node(1))
        assert peer is not None
        self.assertTrue(known.vetted(peer) and known.acquainted(peer, NOW))

    def test_a_day_and_two_sources(self) -> None:
        known = Database(MAIN)
        known.learn(told(1), A, NOW)
        known.learn(told(1), node(1), NOW)  # what it says of itself
        peer = known.get(node(1))
        assert peer is not None
        self.assertFalse(known.acquainted(peer, NOW + 2 * DAY))
        known.learn(told(1), B, NOW)
        self.assertFalse(known.acquainted(peer, NOW + DAY - 1))
        self.assertTrue(known.acquainted(peer, NOW + DAY))

    def test_two_sources_in_one_hand_are_one(self) -> None:
        known = Database(MAIN)
        for number, family in ((9001, 9002), (9002, 9001), (9003, 9001)):
            known.learn(told(number, family=(node(family),)), C, NOW)
        known.learn(told(1), A, NOW)
        known.learn(told(1), B, NOW + 1)
        peer = known.get(node(1))
        assert peer is not None
        self.assertEqual(known.independent(peer), {A})
        known.learn(told(1), C, NOW)
        self.assertEqual(known.independent(peer), {A, C})

    def test_our_own_measurements(self) -> None:
        known = vetted((1,))
        peer = known.get(node(1))
        assert peer is not None
        self.assertEqual((peer.success, peer.speed), (4 / 5, 0.0))
        known.worked(node(1), NOW, speed=1000.0)
        known.measured(node(1), 2000.0)
        self.assertEqual(peer.speed, 1250.0)
        for _ in range(100):
            known.failed(node(1))
        self.assertLess(peer.success, 0.05)
        for identity in (node(99), b""):  # unknown ones change nothing
            known.worked(identity, NOW)
            known.failed(identity)

    def test_looking_up(self) -> None:
        known = vetted(range(3), roles=Role.RELAY)
        peer = known.get(node(1))
        assert peer is not None
        self.assertEqual(known.starting(id_text(node(1))[:8].upper()), [peer])
        self.assertEqual(known.at("60.1.0.1", 9000), [peer])
        self.assertEqual((known.at("60.1.0.1", 9001), known.starting("zzzzzzzz")), ([], []))
