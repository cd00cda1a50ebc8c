"""Circuits for hidden services that stand before they are needed."""

from __future__ import annotations

from attrs import evolve

from layer8.relay.limits import CIRC_DIRTY, CIRC_IDLE
from layer8.relay.standing import LOOK, Circuit, Need
from layer8.rendezvous.ready import LATER, READY, Ready
from tests.relay.pools import PoolCase

NEED = Need(hops=2, alone=True)


class ReadyTests(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.small()
        self.pool.start()
        self.ready = Ready(self.client)

    def prepared(self, need: Need = NEED) -> list[Circuit]:
        self.ready.prepare(need)
        self.net.settle(LATER)
        self.until(lambda: not self.pool.building)
        return [one for one in self.pool.rows() if one.need == evolve(need, without=frozenset())]

    def test_nothing_is_there_before_it_was_needed(self) -> None:
        self.assertIsNone(self.ready.take(NEED))
        self.net.settle(5)
        self.assertEqual(self.pool.built, 0)

    def test_each_is_taken_once_and_replaced(self) -> None:
        there = self.prepared()
        self.assertEqual(len(there), READY)
        self.ready.prepare(NEED)
        self.net.settle(LATER)
        self.assertEqual(self.pool.building, 0)
        taken = [self.ready.take(NEED) for _ in range(READY + 1)]
        self.assertEqual(taken, [*there, None])
        self.ready.prepare(NEED)
        self.ready.prepare(NEED)
        self.assertEqual(self.pool.building, 0)
        self.until(lambda: self.pool.building == READY)
        self.until(lambda: not self.pool.building)
        self.assertEqual(self.pool.built, 2 * READY)

    def test_another_kind_is_another_circuit(self) -> None:
        self.prepared()
        for need in (evolve(NEED, hops=3), evolve(NEED, layer2=True), evolve(NEED, kept=True)):
            self.assertIsNone(self.ready.take(need))

    def test_whoever_is_met_is_not_on_the_way(self) -> None:
        there = self.prepared()
        everybody = frozenset(node.identity for one in there for node in one.path)
        self.assertIsNone(self.ready.take(evolve(NEED, without=everybody)))
        some = frozenset((there[0].path[-1].identity,))
        taken = self.ready.take(evolve(NEED, without=some))
        self.assertTrue(taken is None or not some & {node.identity for node in taken.path})

    def test_it_is_as_old_as_its_need(self) -> None:
        """One that waited for long is not closed as soon as it is used; one that is nobody's any more is."""
        self.prepared()
        self.net.settle(CIRC_DIRTY - 10)
        taken = self.ready.take(NEED)
        assert taken is not None
        self.net.settle(20 + 2 * LOOK)
        self.assertTrue(taken.origin.takes)
        self.assertIsNone(self.ready.take(NEED))
        self.net.settle(CIRC_IDLE)
        self.assertEqual(self.pool.rows(), [])

    def test_one_that_fell_is_not_given(self) -> None:
        for one in self.prepared():
            one.close()
        self.assertIsNone(self.ready.take(NEED))
        self.assertEqual(len(self.prepared()), READY)

    def test_a_pool_that_has_stopped_has_none(self) -> None:
        self.pool.stop()
        self.ready.prepare(NEED)
        self.net.settle(2 * LATER)
        self.assertIsNone(self.ready.take(NEED))

    def test_who_has_stopped_builds_no_more(self) -> None:
        self.ready.prepare(NEED)
        self.ready.stop()
        self.ready.prepare(NEED)
        self.net.settle(2 * LATER)
        self.assertEqual((self.pool.built, self.pool.building), (0, 0))
