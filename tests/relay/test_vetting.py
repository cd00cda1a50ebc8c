"""Nodes are tried by circuits that carry nothing, until they may be used."""

from __future__ import annotations

import random
from collections import Counter

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from layer8.core.errors import Unavailable
from layer8.crypto.keys import parse_id
from layer8.relay.database import Database
from layer8.relay.guards import Guards
from layer8.relay.path import Paths
from layer8.relay.route import Named, Route
from layer8.relay.vetting import VET_EVERY, VET_IDLE, VET_SOON, Vetting
from tests.descriptors import MAIN, NOW, TEST, EasyWork, node, told
from tests.relay.peers import vetted


class Built:
    """Circuits that are built at once, unless one of their nodes is dead."""

    def __init__(self, known: Database, dead: frozenset[bytes] = frozenset()) -> None:
        self.known = known
        self.dead = dead
        self.circuits: list[list[bytes]] = []
        self.open = 0

    async def build(self, route: Route) -> Built:
        """Note every node as a pool does."""
        path = [parse_id(hop.name) for hop in route.hops if isinstance(hop, Named)]
        self.circuits.append(path)
        if self.dead & set(path):
            raise Unavailable("the nodes did not answer")
        for identity in path:
            self.known.worked(identity, NOW)
        self.open += 1
        return self

    def close(self) -> None:
        """End one."""
        self.open -= 1


class VettingTests(EasyWork):
    def vetting(self, known: Database, *dead: int) -> tuple[Vetting, Built, Clock]:
        chance = random.Random(1)
        built = Built(known, frozenset(map(node, dead)))
        clock = Clock()
        paths = Paths(known, Guards(known, chance), chance)
        return Vetting(paths, known, built.build, clock, lambda: NOW), built, clock

    def fresh(self, count: int) -> Database:
        known = Database(MAIN)
        for number in range(count):
            for source in (9001, 9002):
                known.learn(told(number), node(source), NOW)
        return known

    def test_a_node_that_has_just_begun(self) -> None:
        """Nobody is vetted, and after a while everybody is; nothing stays open."""
        known = self.fresh(12)
        vetting, built, clock = self.vetting(known)
        running = Deferred.fromCoroutine(vetting.run())
        clock.pump([VET_SOON] * 40)
        self.assertTrue(all(known.vetted(peer) for peer in known))
        self.assertEqual(built.open, 0)
        for path in built.circuits:
            self.assertEqual(len(set(path)), len(path))
        running.addErrback(lambda _: None)
        running.cancel()

    def test_one_node_is_enough_to_begin(self) -> None:
        known = self.fresh(1)
        vetting, built, _ = self.vetting(known)
        for _ in range(3):
            self.assertTrue(self.successResultOf(Deferred.fromCoroutine(vetting.once())))
        self.assertEqual(built.circuits, [[node(0)]] * 3)
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(vetting.once())))

    def test_the_dead_do_not_hold_up_the_others(self) -> None:
        known = self.fresh(6)
        vetting, built, _ = self.vetting(known, 0, 1)
        for _ in range(60):
            self.successResultOf(Deferred.fromCoroutine(vetting.once()))
        vetted_ones = {peer.identity for peer in known if known.vetted(peer)}
        self.assertEqual(vetted_ones, {node(number) for number in range(2, 6)})
        ends = Counter(path[-1] for path in built.circuits)
        self.assertGreater(ends[node(0)], 5)

    def test_the_others_of_the_circuit_are_vetted_where_there_are_enough(self) -> None:
        known = vetted(range(25))
        known.learn(told(60), node(9001), NOW)
        vetting, built, clock = self.vetting(known)
        running = Deferred.fromCoroutine(vetting.run())
        clock.advance(VET_EVERY - 1)
        self.assertEqual(len(built.circuits), 1)
        clock.pump([VET_EVERY] * 4)
        self.assertEqual([(path[-1], len(path)) for path in built.circuits], [(node(60), 3)] * 3)
        known.learn(told(61), node(9001), NOW)
        clock.pump([VET_IDLE / 2] * 3)
        self.assertEqual(built.circuits[-1][-1], node(61))
        running.addErrback(lambda _: None)
        running.cancel()

    def test_nothing_to_do_where_there_are_no_rules(self) -> None:
        known = Database(TEST)
        known.learn(told(1, TEST), node(9001), NOW)
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(self.vetting(known)[0].once())))
