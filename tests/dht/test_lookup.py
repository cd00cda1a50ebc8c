"""Who is asked next: ALPHA in flight per path, disjoint paths, liars, and an end in every case."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.dht.limits import ALPHA, DHT_K, LOOKUP_QUERIES, LOOKUP_TIME, PATHS
from layer8.dht.lookup import Lookup
from layer8.dht.wire import Contact

TARGET = bytes(20)
OWN = bytes((255,)) * 20


def at(distance: int) -> Contact:
    """Give a contact at a distance from TARGET."""
    return Contact(distance.to_bytes(20, "big"), f"20.{distance >> 8 & 255}.{distance & 255}.1", 9000)


class LookupTests(SynchronousTestCase):
    def lookup(self, *distances: int, wide: bool = False) -> Lookup:
        made = Lookup(TARGET, OWN, 0.0, wide)
        made.seed(map(at, distances))
        return made

    def test_an_answer_starts_the_next(self) -> None:
        """No rounds: three that are silent hold up one slot each and no more."""
        lookup = self.lookup(*range(1, 9))
        self.assertEqual(lookup.next(0.0), [at(n) for n in range(1, ALPHA + 1)])
        self.assertEqual(lookup.next(0.0), [])
        lookup.answered(at(1), [])
        self.assertEqual(lookup.next(0.0), [at(5)])
        lookup.slow(at(2))
        self.assertEqual(lookup.next(0.0), [at(6)])
        lookup.failed(at(3))
        self.assertEqual(lookup.next(0.0), [at(7)])

    def test_nearer_ones_first(self) -> None:
        lookup = self.lookup(*range(100, 108))
        lookup.next(0.0)
        lookup.answered(at(100), [at(n) for n in (5, 3, 4)])
        self.assertEqual(lookup.next(0.0), [at(3)])

    def test_done_when_the_nearest_eight_have_answered(self) -> None:
        lookup = self.lookup(*range(1, 20))
        asked = []
        while not lookup.over(0.0):
            for one in lookup.next(0.0):
                asked.append(one)
                lookup.answered(one, [])
        self.assertEqual(asked, [at(n) for n in range(1, DHT_K + 1)])
        self.assertEqual(lookup.nearest(), asked)

    def test_a_late_answer_counts(self) -> None:
        lookup = self.lookup(1)
        lookup.next(0.0)
        lookup.slow(at(1))
        self.assertTrue(lookup.over(0.0))
        lookup.answered(at(1), [at(2)])
        self.assertEqual((lookup.nearest(), lookup.next(0.0)), ([at(1)], [at(2)]))

    def test_time_is_up(self) -> None:
        lookup = self.lookup(1, 2)
        self.assertFalse(lookup.over(0.0))
        self.assertTrue(lookup.over(LOOKUP_TIME))
        self.assertEqual(lookup.next(LOOKUP_TIME), [])

    def test_paths_ask_nobody_twice(self) -> None:
        lookup = self.lookup(*range(1, 33), wide=True)
        first = lookup.next(0.0)
        self.assertEqual(len(first), PATHS * ALPHA)
        self.assertEqual(len(set(first)), len(first))
        for one in first:
            lookup.answered(one, first)
        self.assertFalse(set(lookup.next(0.0)) & set(first))

    def test_one_path_is_led_astray_and_no_other(self) -> None:
        """A liar's friends, nearer than all others, do not keep three other paths from going on."""
        lookup = self.lookup(*range(1000, 1004), wide=True)
        lookup.next(0.0)
        lookup.answered(at(1000), [at(n) for n in range(1, 17)])
        lookup.answered(at(1001), [at(100)])
        asked = lookup.next(0.0)
        self.assertIn(at(100), asked)
        self.assertEqual(len([one for one in asked if one.number < 17]), ALPHA)

    def test_a_lie_costs_the_rest_of_what_was_named(self) -> None:
        lookup = self.lookup(1000)
        lookup.next(0.0)
        lookup.answered(at(1000), [at(n) for n in range(1, 9)])
        asked = lookup.next(0.0)
        lookup.failed(asked[0], lied=True)
        self.assertEqual(lookup.next(0.0), [])
        for one in asked[1:]:
            lookup.answered(one, [])
        self.assertTrue(lookup.over(0.0))

    def test_somebody_else_may_name_them_again(self) -> None:
        lookup = self.lookup(1000, 1001)
        lookup.next(0.0)
        lookup.answered(at(1000), [at(n) for n in range(1, 9)])
        lookup.failed(lookup.next(0.0)[0], lied=True)
        lookup.answered(at(1001), [at(8)])
        self.assertEqual(lookup.next(0.0), [at(8)])

    def test_what_was_not_asked_is_not_heard(self) -> None:
        lookup = self.lookup(1)
        lookup.answered(at(1), [at(2)])
        lookup.answered(Contact(at(1).id, "9.9.9.9", 1), [at(2)])
        lookup.failed(at(77))
        self.assertEqual((len(lookup.found), lookup.nearest()), (1, []))

    @settings(max_examples=60)
    @given(st.integers(0, 2**32), st.booleans(), st.floats(0, 0.9))
    def test_it_always_ends(self, seed: int, wide: bool, share: float) -> None:
        """With any share of nodes that are dead or lie, within its queries."""
        chance = Random(seed)
        lookup = Lookup(TARGET, OWN, 0.0, wide)
        lookup.seed(at(chance.randrange(2**60)) for _ in range(20))
        flying: list[Contact] = []
        for _ in range(3 * LOOKUP_QUERIES):
            flying += lookup.next(0.0)
            if lookup.over(0.0) or not flying:
                break
            one = flying.pop(chance.randrange(len(flying)))
            if chance.random() < share:
                chance.choice((lookup.slow, lookup.failed))(one)
            else:
                lookup.answered(one, [at(chance.randrange(one.number + 1)) for _ in range(8)])
        self.assertTrue(lookup.over(0.0))
        self.assertLessEqual(lookup.asked, LOOKUP_QUERIES)
