"""Descriptors that somebody makes by the thousand to be in the way of others."""

from __future__ import annotations

from typing import Any

from layer8.crypto.descriptor import CLOCK
from layer8.relay.database import BAD_MOST, BAD_TRIES, MAKE_ROOM, Database, Learned
from tests.descriptors import MAIN, NOW, EasyWork, node, told

A = b"A" * 32


class CrowdTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.database = Database(MAIN)

    def learn(self, number: int, **more: Any) -> Learned:
        return self.database.learn(told(number, **more), A, NOW)

    def test_nodes_that_nobody_could_use_take_no_place(self) -> None:
        """They cost their maker a second each, and no network at all."""
        self.assertIs(self.learn(1, endpoints=()), Learned.FULL)
        self.assertIs(self.learn(2, roles=0), Learned.FULL)
        self.assertIs(self.learn(3, endpoints=(), via=(node(9),)), Learned.FULL)
        self.assertIs(self.learn(9), Learned.NEW)
        self.assertIs(self.learn(3, endpoints=(), via=(node(9),)), Learned.NEW)
        self.database.pin(node(4))
        self.assertIs(self.learn(4, endpoints=()), Learned.NEW)

    def test_names_of_one_domain_are_of_one_hand(self) -> None:
        learned = [self.learn(number, endpoints=(f"tcp:r{number}.evil.example:9000",)) for number in range(20)]
        self.assertEqual(learned, [Learned.NEW] * 16 + [Learned.FULL] * 4)
        one, other = list(self.database)[:2]
        self.assertTrue(self.database.alike(one.descriptor, other.descriptor))

    def test_who_has_claimed_a_network_and_is_not_there_gives_way(self) -> None:
        """Anybody can write anybody's addresses into a descriptor: so relays could be kept out of memory."""
        for number in range(4):
            self.assertIs(self.learn(number, endpoints=(f"tcp:60.0.0.{number}:9000",)), Learned.NEW)
        self.assertIs(self.learn(5, endpoints=("tcp:60.0.0.5:9000",)), Learned.FULL)
        self.database.worked(node(0), NOW)
        for number in range(4):
            for _ in range(BAD_TRIES):
                self.database.failed(node(number))
        honest = told(5, endpoints=("tcp:60.0.0.5:9000",))
        self.assertIs(self.database.learn(honest, A, NOW + MAKE_ROOM), Learned.NEW)
        self.assertIsNotNone(self.database.get(node(0)))
        self.assertIsNone(self.database.get(node(1)))

    def test_nobody_makes_honest_nodes_distrust_each_other(self) -> None:
        """By what is just good by the clock of one, and just too young by that of another."""
        young = [told(number, now=NOW + CLOCK + 30) for number in range(BAD_MOST + 1)]
        taken = self.database.took(A, [one.raw for one in young], NOW)
        self.assertEqual((taken.learned, taken.bad), ((), 0))
        self.assertFalse(self.database.distrusts(A, NOW))
        self.assertEqual(self.database.took(A, [young[0].raw], NOW + 60).learned, (node(0),))
        false = [told(number, now=NOW + 2 * CLOCK + 30).raw for number in range(10, 10 + BAD_MOST)]
        self.assertEqual(self.database.took(A, false, NOW).bad, BAD_MOST)
