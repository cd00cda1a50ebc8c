"""What an adversary does who keeps to the layouts and breaks the meaning: in memory, at every position."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.relay.limits import CLOSED_KEPT
from layer8.relay.link import Why
from layer8.relay.wire import Cell, Command, Destroy, cell, handshake_body, message
from tests.relay.links import Pair, Taken
from tests.relay.test_circuit import NetworkCase


class ClosedCircuitTests(NetworkCase):
    def test_nothing_of_a_circuit_is_kept_when_it_has_ended(self) -> None:
        """Whoever makes 250 circuits a second and drops them, would fill a relay's memory within the day."""
        kept = []
        for _ in range(3):
            building = self.build(1)
            kept += [weakref.ref(one) for one in self.relays[0].circuits.all.values()]
            building.circuit.close()
            self.net.settle()
        gc.collect()
        self.assertEqual([one() for one in kept], [None] * 3)

    def test_a_reason_is_no_mark_that_a_guard_sends_to_an_exit(self) -> None:
        self.build()
        guard, _, leaving = (next(iter(relay.circuits.all.values())) for relay in self.relays[:3])
        heard = self.ends(leaving.link)
        assert guard.onward is not None
        guard.onward.close(0x5A)
        self.net.settle()
        self.assertEqual(heard, [Destroy.NONE])

    def test_a_reason_is_no_mark_that_an_exit_sends_to_a_guard(self) -> None:
        self.build()
        guard, _, leaving = (next(iter(relay.circuits.all.values())) for relay in self.relays[:3])
        heard = self.ends(guard.onward.link)  # type: ignore[union-attr]
        leaving.slot.close(0x5A)
        self.net.settle()
        self.assertEqual(heard, [Destroy.INTERNAL])

    def ends(self, link: Any) -> list[int]:
        """Listen to the reasons that come by a link."""
        heard: list[int] = []
        control = link._control

        def listen(circ: int, cmd: int, body: bytes, now: float) -> None:
            if cmd == Cell.DESTROY:
                heard.append(body[0])
            control(circ, cmd, body, now)

        link._control = listen
        return heard


class BuildingTests(NetworkCase):
    def test_a_hop_that_speaks_of_streams_while_the_circuit_is_extended(self) -> None:
        """Its data would count for the next hop's, and the circuit could not be extended any more."""
        building = self.build(1)
        circuit = building.circuit
        first = next(iter(self.relays[0].circuits.all.values()))
        circuit.extend(self.relays[1].hop)
        assert first.streams is not None
        first.streams.push([message(Command.DATA, 9, b"x")])
        self.net.run(lambda: building.ended is not None)
        self.assertEqual(building.ended, Destroy.PROTOCOL)


class ClosedLinkTests(SynchronousTestCase):
    def test_a_link_that_has_ended_takes_nothing(self) -> None:
        pair = Pair()
        pair.acceptor.close(Why.ASKED, pair.time.now)
        pair.acceptor.received(cell(0x80000007, Cell.CREATE, handshake_body(1, b"hello")), pair.time.now)
        self.assertEqual((pair.watches[1].takers, pair.acceptor.circuits), ([], 0))

    def test_strangers_cannot_make_two_relays_part(self) -> None:
        """More circuits than a relay remembers end in a minute: what crosses their ends is no offence then."""
        pair = Pair()
        last = 0
        for _ in range(CLOSED_KEPT + 300):
            slot = pair.dialler.slot(Taken())
            slot.begun = True
            slot.close(Destroy.NONE)
            last = slot.circ
        for _ in range(200):
            pair.dialler.received(cell(last, Cell.RELAY, b"late"), pair.time.now)
        self.assertFalse(pair.dialler.ended)
