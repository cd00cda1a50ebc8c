"""Guards and second hops: every state, and for how long."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.descriptor import DAY
from layer8.relay.database import Database, Peer
from layer8.relay.guards import (
    GUARD_DAYS,
    GUARDS_SAMPLED,
    LAYER2,
    LAYER2_DAYS,
    RETRY_LEAST,
    RETRY_MOST,
    Guards,
    SecondHops,
    State,
    draw,
)
from tests.descriptors import MAIN, NOW, TEST, EasyWork, node, told
from tests.relay.peers import vetted


def anybody(peer: Peer) -> bool:
    """Suit everybody."""
    return True


def alike(peer: Peer) -> float:
    """Weigh everybody alike."""
    return 1.0


class GuardTests(EasyWork):
    def guards(self, known: Database, seed: int = 1) -> Guards:
        return Guards(known, random.Random(seed))

    def first(self, guards: Guards, now: float = NOW) -> bytes:
        peer = guards.first(now, anybody, alike)
        assert peer is not None
        return peer.identity

    def states(self, guards: Guards) -> list[State]:
        return [guard.state for guard in guards.rows]

    def test_two_for_60_to_120_days(self) -> None:
        self.assertEqual(GUARD_DAYS, (60, 120))
        known = vetted(range(30))
        guards = self.guards(known)
        used = {self.first(guards) for _ in range(50)}
        self.assertEqual(len(used), 2)
        self.assertEqual(self.states(guards), [State.PRIMARY] * 2)
        for guard in guards.rows:
            self.assertTrue(GUARD_DAYS[0] * DAY <= guard.expires - NOW <= GUARD_DAYS[1] * DAY)
        soon = NOW + GUARD_DAYS[0] * DAY - 1
        for number in range(30):
            known.learn(told(number, now=soon, serial=2), node(9001), soon)
        self.assertEqual({self.first(guards, soon) for _ in range(50)}, used)

    def test_expired(self) -> None:
        known = vetted(range(30))
        guards = self.guards(known)
        used = {self.first(guards) for _ in range(50)}
        later = NOW + GUARD_DAYS[1] * DAY
        for number in range(30):
            known.learn(told(number, now=later, serial=2), node(9001), later)
        after = {self.first(guards, later) for _ in range(50)}
        gone = guards.past
        self.assertEqual(({guard.identity for guard in gone}, {guard.state for guard in gone}), (used, {State.EXPIRED}))
        self.assertEqual((len(after), len(gone)), (2, 2))

    def test_one_that_is_forgotten_is_expired(self) -> None:
        known = vetted(range(3))
        guards = self.guards(known)
        self.first(guards)
        known.prune(NOW + 100 * DAY)
        self.assertIsNone(guards.first(NOW, anybody, alike))
        self.assertEqual(len(guards.past), 2)

    def test_a_day_of_acquaintance_and_two_sources(self) -> None:
        known = vetted(range(10))
        for number in (0, 1, 2, 3):
            self.peer(known, number).first = NOW - DAY + 60
        for number in (4, 5, 6, 7):
            del self.peer(known, number).sources[node(9001)]
        for seed in range(20):
            guards = self.guards(known, seed)
            self.first(guards)
            self.assertEqual(guards.ids(), {node(8), node(9)})

    def test_on_the_first_day_for_a_day_only(self) -> None:
        known = vetted(range(10))
        for peer in known:
            peer.first = NOW
        guards = self.guards(known)
        used = {self.first(guards) for _ in range(30)}
        self.assertEqual(len(used), 2)
        self.assertEqual([guard.expires for guard in guards.rows], [NOW + DAY] * 2)
        later = NOW + DAY
        for number in range(10):
            known.learn(told(number, now=later, serial=2), node(9001), later)
        self.first(guards, later)
        self.assertTrue(all(guard.expires > later + 50 * DAY for guard in guards.rows))

    def test_sampled_until_vetted(self) -> None:
        known = Database(MAIN)
        for number in range(2):
            for source in (9001, 9002):
                known.learn(told(number), node(source), NOW - 2 * DAY)
        guards = self.guards(known)
        self.assertIsNone(guards.first(NOW, anybody, alike))
        self.assertEqual(self.states(guards), [State.SAMPLED] * 2)
        guards.worked(node(0), NOW)
        self.assertEqual(self.states(guards), [State.SAMPLED] * 2)
        for _ in range(3):
            known.worked(node(0), NOW)
        self.assertEqual(self.first(guards), node(0))
        self.assertEqual({guard.identity: guard.state for guard in guards.rows}[node(0)], State.PRIMARY)
        self.assertEqual(len(guards.rows), 2)

    def test_confirmed_and_unreachable_and_back(self) -> None:
        known = vetted(range(10))
        guards = self.guards(known)
        one, two = sorted({self.first(guards) for _ in range(30)})
        guards.worked(one, NOW + 1)
        guards.worked(two, NOW + 2)
        guards.failed(one, NOW + 3)
        self.assertEqual({guard.identity: guard.state for guard in guards.rows}[one], State.UNREACHABLE)
        used = {self.first(guards, NOW + 4) for _ in range(30)}
        self.assertEqual(len(used), 2)
        self.assertNotIn(one, used)
        (third,) = used - {two}
        again = NOW + 3 + RETRY_LEAST
        self.assertEqual({self.first(guards, again) for _ in range(30)}, {one, two})  # it keeps its place
        self.assertEqual({guard.identity: guard.state for guard in guards.rows}[third], State.VETTED)
        guards.worked(third, again)
        self.assertEqual({guard.identity: guard.state for guard in guards.rows}[third], State.CONFIRMED)

    def test_an_unreachable_one_is_tried_more_and_more_rarely(self) -> None:
        guards = self.guards(vetted(range(10)))
        one = self.first(guards)
        waits = []
        for _ in range(8):
            guards.failed(one, NOW)
            waits.append({guard.identity: guard.retry for guard in guards.rows}[one] - NOW)
        self.assertEqual(waits[:3], [RETRY_LEAST, 2 * RETRY_LEAST, 4 * RETRY_LEAST])
        self.assertEqual(waits[-1], RETRY_MOST)
        guards.worked(one, NOW)
        guards.failed(one, NOW)
        self.assertEqual({guard.identity: guard.retry for guard in guards.rows}[one] - NOW, RETRY_LEAST)

    def test_whoever_blocks_some_does_not_walk_us_through_all(self) -> None:
        guards = self.guards(vetted(range(60)))
        tried = set()
        for _ in range(100):
            one = self.first(guards)
            tried.add(one)
            guards.failed(one, NOW)
        self.assertEqual(len(tried), GUARDS_SAMPLED)

    def test_no_two_in_one_hand(self) -> None:
        known = vetted(range(2), endpoints=("tcp:60.0.0.1:9000",))
        guards = self.guards(known)
        self.first(guards)
        self.assertEqual(len(guards.rows), 1)

    def test_one_more_where_none_goes_with_the_end(self) -> None:
        guards = self.guards(vetted(range(10)))
        used = {self.first(guards) for _ in range(30)}
        other = guards.first(NOW, lambda peer: peer.identity not in used, alike)
        assert other is not None
        self.assertEqual(guards.ids(), used | {other.identity})
        self.assertEqual({self.first(guards) for _ in range(30)}, used)
        again = guards.first(NOW, lambda peer: peer.identity not in used, alike)
        assert again is not None
        self.assertEqual(again.identity, other.identity)

    def test_no_rules_in_a_network_for_tries(self) -> None:
        known = Database(TEST)
        for number in range(3):
            known.learn(told(number, TEST), node(number), NOW)
        guards = self.guards(known)
        self.assertEqual(len({self.first(guards) for _ in range(30)}), 2)

    def test_strangers_are_no_guards(self) -> None:
        guards = self.guards(vetted(range(3)))
        guards.worked(node(99), NOW)
        guards.failed(node(99), NOW)
        self.assertEqual(guards.rows, ())

    def peer(self, known: Database, number: int) -> Peer:
        found = known.get(node(number))
        assert found is not None
        return found


class SecondHopTests(EasyWork):
    def test_four_for_days(self) -> None:
        self.assertEqual((LAYER2, LAYER2_DAYS), (4, (1, 12)))
        known = vetted(range(30))
        hops = SecondHops(known, random.Random(1))
        used = {self.second(hops, known, NOW) for _ in range(100)}
        self.assertEqual(len(used), LAYER2)
        for hop in hops.rows:
            self.assertTrue(LAYER2_DAYS[0] * DAY <= hop.expires - NOW <= LAYER2_DAYS[1] * DAY)
        first = min(hops.rows, key=lambda hop: hop.expires)
        after = {self.second(hops, known, first.expires) for _ in range(100)}
        self.assertEqual(len(after), LAYER2)
        self.assertEqual(len(after & used), LAYER2 - 1)

    def test_the_longer_of_two_draws(self) -> None:
        known = vetted(range(4))
        lives = []
        for seed in range(300):
            hops = SecondHops(known, random.Random(seed))
            self.second(hops, known, NOW)
            lives += [(hop.expires - NOW) / DAY for hop in hops.rows]
        self.assertApproximates(sum(lives) / len(lives), 1 + 11 * 2 / 3, 0.4)

    def test_one_that_does_not_suit_is_not_replaced(self) -> None:
        known = vetted(range(30))
        hops = SecondHops(known, random.Random(1))
        used = {self.second(hops, known, NOW) for _ in range(100)}
        self.assertIsNone(hops.second(NOW, lambda peer: peer.identity not in used, known, alike))
        self.assertEqual({hop.identity for hop in hops.rows}, used)

    def second(self, hops: SecondHops, known: Database, now: float) -> bytes:
        peer = hops.second(now, anybody, known, alike)
        assert peer is not None
        return peer.identity


class DrawTests(SynchronousTestCase):
    def test_by_weight(self) -> None:
        peers = [Peer(told(number, TEST), NOW, NOW) for number in range(3)]
        weights = {node(0): 1.0, node(1): 3.0, node(2): 0.0}
        chance = random.Random(5)
        drawn = [draw(peers, lambda peer: weights[peer.identity], chance).identity for _ in range(2000)]
        self.assertEqual(drawn.count(node(2)), 0)
        self.assertApproximates(drawn.count(node(1)) / len(drawn), 0.75, 0.04)
