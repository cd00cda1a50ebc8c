"""One link: two of them in memory, their circuits, and what peers may do wrong."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from layer8.relay.link import State
from layer8.relay.wire import BODY, Cell, Destroy
from tests.relay.links import ALICE, BOB, Pair


class OpenTests(SynchronousTestCase):
    def test_both_open_and_know_each_other(self) -> None:
        pair = Pair()
        self.assertEqual((pair.dialler.state, pair.acceptor.state), (State.OPEN, State.OPEN))
        self.assertEqual((pair.dialler.peer, pair.acceptor.peer), (BOB, ALICE))
        self.assertEqual([watch.events for watch in pair.watches], [[("opened", BOB)], [("opened", ALICE)]])

    def test_a_circuit_there_and_back(self) -> None:
        pair = Pair()
        slot, near, far = pair.circuit()
        self.assertEqual(near.answers, [(1, b"olleh")])
        bodies = [bytes((n,)) * BODY for n in range(20)]
        slot.send(Cell.RELAY, bodies[:12])
        slot.send(Cell.EARLY, bodies[12:])
        pair.settle()
        self.assertEqual(far.got, [(Cell.RELAY, bodies[:12]), (Cell.EARLY, bodies[12:])])
        assert far.slot is not None
        far.slot.send(Cell.RELAY, [b"short"])
        pair.settle()
        self.assertEqual(near.got, [(Cell.RELAY, [b"short" + bytes(BODY - 5)])])
        slot.close(Destroy.ASKED)
        pair.settle()
        self.assertEqual((far.ends, near.ends), ([Destroy.ASKED], []))
        self.assertEqual((pair.dialler.circuits, pair.acceptor.circuits), (0, 0))
