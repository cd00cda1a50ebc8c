"""Queues of a link: who waits, who is served first, and what happens when too much waits."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from layer8.relay import slots
from layer8.relay.limits import CIRC_QUEUE, EWMA_HALF, LINK_HIGH, QUANTUM
from layer8.relay.link import State
from layer8.relay.slots import Place
from layer8.relay.wire import BODY, CELL, HEAD, Cell, Destroy
from tests.relay.links import Pair, Taken

HIGH = LINK_HIGH // CELL


def cells(count: int, mark: int = 0) -> list[bytes]:
    return [bytes((mark,)) * BODY for _ in range(count)]


class Narrow:
    """A carrier that takes `room` cells and then says that it is full."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.room = 0
        self.got: list[int] = []  # circuits
        pair.dialler._out._write = self.write
        pair.dialler.pause()

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), CELL):
            if data[at + HEAD - 1] in (Cell.RELAY, Cell.EARLY):
                self.got.append(int.from_bytes(data[at : at + 4], "big"))
        self.room -= len(data) // CELL
        if self.room <= 0:
            self.pair.dialler.pause()

    def take(self, room: int) -> list[int]:
        """Let about so many cells go."""
        self.got, self.room = [], room
        self.pair.dialler.resume()
        return self.got


class QueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pair = Pair()
        self.slots: list[Place] = []
        self.takers: list[Taken] = []
        for _ in range(3):
            slot, taker, _ = self.pair.circuit()
            self.slots.append(slot)
            self.takers.append(taker)
        self.near = self.pair.near

    def test_nothing_is_queued_while_there_is_room(self) -> None:
        slot = self.slots[0]
        slot.send(Cell.RELAY, cells(10))
        self.assertEqual((slot.queued, slot.full), (0, False))

    def test_a_turn_that_says_too_much_goes_by_the_queues(self) -> None:
        slot = self.slots[0]
        slot.send(Cell.RELAY, cells(HIGH))
        self.assertTrue(slot.full)
        slot.send(Cell.RELAY, cells(10))
        self.assertEqual((slot.queued, self.near.backlog.cells), (10, 10))
        self.pair.settle()
        self.assertEqual((slot.queued, slot.full, self.near.backlog.cells), (0, False, 0))
        self.assertEqual(len(self.pair.watches[1].takers[0].bodies), HIGH + 10)
        self.assertEqual(self.takers[0].rooms, 1)

    def test_who_has_seen_that_it_is_full_is_told(self) -> None:
        self.pair.dialler.pause()
        self.assertTrue(self.slots[0].full and self.slots[2].full)
        self.pair.dialler.resume()
        self.assertEqual([taker.rooms for taker in self.takers], [1, 0, 1])
        self.pair.dialler.resume()
        self.assertEqual([taker.rooms for taker in self.takers], [1, 0, 1])

    def test_order_stays(self) -> None:
        slot = self.slots[0]
        wire = Narrow(self.pair)
        for number in range(40):
            slot.send(Cell.RELAY, cells(1, number))
        slot.send(Cell.EARLY, cells(50, 99))
        self.assertEqual(slot.queued, 90)
        while slot.queued:
            wire.take(3)
        far = self.pair.watches[1].takers[0]
        self.assertEqual((far.got, self.near.backlog.waiting), ([], set()))
        self.assertEqual(slot.volume > 89, True)

    def test_least_volume_first(self) -> None:
        """Who has said little lately goes before who has said much."""
        busy, quiet, _ = self.slots
        busy.send(Cell.RELAY, cells(60))
        self.pair.settle()
        wire = Narrow(self.pair)
        busy.send(Cell.RELAY, cells(100))
        quiet.send(Cell.RELAY, cells(QUANTUM * 2))
        self.assertEqual(wire.take(1)[: QUANTUM * 2], [quiet.circ] * QUANTUM * 2)

    def test_volume_halves(self) -> None:
        busy, fresh, _ = self.slots
        link = self.pair.dialler
        busy.send(Cell.RELAY, cells(64))
        self.pair.settle()
        self.pair.time.now += EWMA_HALF
        link._out.age(self.pair.time.now)
        fresh.send(Cell.RELAY, cells(32))
        self.assertAlmostEqual(busy.volume, fresh.volume)
        self.pair.time.now += 30 * EWMA_HALF
        link._out.age(self.pair.time.now)
        self.assertLess(busy.volume, 1e-4)
        self.assertEqual(link._out.scale, 1.0)

    def test_volumes_are_divided_with_full_queues(self) -> None:
        wire = Narrow(self.pair)
        for slot in self.slots:
            slot.send(Cell.RELAY, cells(40))
        self.pair.time.now += 30 * EWMA_HALF
        self.assertEqual(len(wire.take(1000)), 120)

    def test_credit_counts_only_under_load(self) -> None:
        """A neighbour with four times the credit gets four times as much, and nothing more when nobody waits (G18)."""
        one, four, _ = self.slots
        others = Pair().dialler, Pair().dialler
        one.payer, four.payer = others
        others[1].weight = 4.0
        wire = Narrow(self.pair)
        got: list[int] = []
        for _ in range(100):
            for slot in (one, four):
                if slot.queued < 200:
                    slot.send(Cell.RELAY, cells(200))
            got += wire.take(HIGH)
        share = got.count(four.circ) / got.count(one.circ)
        self.assertTrue(3.7 < share < 4.3, share)
        idle = Pair()
        ones, _, far_one = idle.circuit()
        fours, _, far_four = idle.circuit()
        ones.payer, fours.payer = others
        for _ in range(50):
            ones.send(Cell.RELAY, cells(10))
            fours.send(Cell.RELAY, cells(10))
            idle.settle()
        self.assertEqual((len(far_one.bodies), len(far_four.bodies)), (500, 500))

    def test_equal_shares_without_credit(self) -> None:
        wire = Narrow(self.pair)
        got: list[int] = []
        for _ in range(60):
            for slot, size in zip(self.slots, (200, 150, 90), strict=True):
                if slot.queued < 100:
                    slot.send(Cell.RELAY, cells(size))
            got += wire.take(HIGH)
        counts = [got.count(slot.circ) for slot in self.slots]
        self.assertLess(max(counts) - min(counts), 3 * QUANTUM)

    def test_a_closed_circuit_leaves_nothing(self) -> None:
        wire = Narrow(self.pair)
        for slot in self.slots:
            slot.send(Cell.RELAY, cells(30))
        self.slots[1].close(Destroy.ASKED)
        self.assertEqual(self.near.backlog.cells, 60)
        self.assertEqual(sorted(set(wire.take(500))), sorted((self.slots[0].circ, self.slots[2].circ)))

    def test_a_lost_link_leaves_nothing(self) -> None:
        Narrow(self.pair)
        self.slots[0].send(Cell.RELAY, cells(30))
        self.pair.dialler.lost(self.pair.time.now)
        self.assertEqual((self.near.backlog.cells, self.near.backlog.waiting), (0, set()))
        self.slots[0].send(Cell.RELAY, cells(30))
        self.assertEqual(self.near.backlog.cells, 0)


class LimitTests(SynchronousTestCase):
    def test_more_than_a_circuit_may_have_waiting(self) -> None:
        pair = Pair()
        slot, taker, _ = pair.circuit()
        pair.dialler.pause()
        for _ in range(CIRC_QUEUE // 32):
            slot.send(Cell.RELAY, cells(32))
        self.assertEqual((slot.queued, taker.ends), (CIRC_QUEUE, []))
        slot.send(Cell.RELAY, cells(1))
        self.assertEqual((slot.queued, taker.ends, pair.near.backlog.cells), (0, [Destroy.LIMIT], 0))
        self.assertEqual(pair.dialler.state, State.OPEN)

    def test_more_than_a_process_may_have_waiting(self) -> None:
        """The fullest circuit goes, on whatever link it is."""
        self.patch(slots, "PROCESS_QUEUE", 1000)
        pair = Pair()
        other = Pair(pair.near)
        small, taker, _ = self._blocked(pair)
        large, other_taker, _ = self._blocked(other)
        large.send(Cell.RELAY, cells(600))
        small.send(Cell.RELAY, cells(400))
        self.assertEqual((taker.ends, other_taker.ends), ([], []))
        small.send(Cell.RELAY, cells(1))
        self.assertEqual((taker.ends, other_taker.ends), ([], [Destroy.LIMIT]))
        self.assertEqual(pair.near.backlog.cells, 401)

    def _blocked(self, pair: Pair) -> tuple[Place, Taken, Taken]:
        made = pair.circuit()
        pair.dialler.pause()
        return made
