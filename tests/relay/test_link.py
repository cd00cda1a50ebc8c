"""One link: two of them in memory, their circuits, and what peers may do wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, Unavailable
from layer8.crypto.keys import NodeKey
from layer8.crypto.vouch import sign
from layer8.relay.limits import BAD_CELLS, CIRCS_NAMELESS, CIRCS_PER_LINK, CONTROL_MOST, PING_DEAD, PING_EVERY, T_LINK
from layer8.relay.link import NUMBERS, State, Why, destroy_reason
from layer8.relay.wire import BODY, CELL, DIALLER, VERSION, Address, Cell, Destroy, Hello, Notice, cell
from tests.relay.links import ALICE, BOB, NETWORK, Pair, Taken, Time, ground


def hello(**changes: Any) -> bytes:
    said = Hello((VERSION,), CELL, NETWORK, 0, 1_700_001_000, Address("192.0.2.7", 9))
    return cell(0, Cell.HELLO, evolve(said, **changes).encode())


class OpenTests(SynchronousTestCase):
    def test_both_open_and_know_each_other(self) -> None:
        pair = Pair()
        self.assertEqual((pair.dialler.state, pair.acceptor.state), (State.OPEN, State.OPEN))
        self.assertEqual((pair.dialler.peer, pair.acceptor.peer), (BOB, ALICE))
        self.assertEqual([watch.events for watch in pair.watches], [[("opened", BOB)], [("opened", ALICE)]])

    def test_the_accepting_side_says_nothing_first(self) -> None:
        pair = Pair(secure=False)
        pair.acceptor.secured(pair.time.now, peer=None, named=True)
        pair.far.turn.end()
        self.assertEqual(pair.wires[1].take(), b"")

    def test_nobody_is_read_while_it_is_looked_into(self) -> None:
        """What came with HELLO is kept for later; more than that stays with the carrier, and so with the peer."""
        pair = Pair(secure=False)
        pair.watches[1].decide = lambda link, now: None
        pair.acceptor.secured(pair.time.now, peer=ALICE, named=True)
        pair.acceptor.received(hello() + cell(0, Cell.PING, b"tokentok"), pair.time.now)
        self.assertEqual((pair.acceptor.state, pair.wires[1].held), (State.MET, True))
        pair.far.turn.end()
        self.assertEqual(pair.wires[1].written, [])
        pair.acceptor.admit(pair.time.now)
        self.assertEqual((pair.acceptor.state, pair.wires[1].held), (State.OPEN, False))
        pair.far.turn.end()
        said = pair.wires[1].take()
        self.assertEqual([said[at + 4] for at in range(0, len(said), CELL)], [Cell.HELLO, Cell.PONG])

    def test_a_nameless_client(self) -> None:
        pair = Pair(identities=(None, BOB))
        self.assertEqual((pair.dialler.state, pair.acceptor.peer), (State.OPEN, None))

    def test_an_accepting_side_without_a_name(self) -> None:
        pair = Pair(identities=(ALICE, None))
        self.assertEqual(pair.watches[0].ends, [Why.INSECURE])

    def test_nobody_but_the_wanted_one(self) -> None:
        self.assertEqual(Pair(wanted=BOB).dialler.state, State.OPEN)
        pair = Pair(wanted=b"c" * 32)
        self.assertEqual(pair.watches[0].ends, [Why.IDENTITY])
        self.assertEqual(pair.wires[0].take(), b"")  # it has not even said which network it is of
        self.assertEqual(destroy_reason(Why.IDENTITY), Destroy.WRONG_IDENTITY)

    def test_what_the_peer_sees(self) -> None:
        pair = Pair(secure=False)
        pair.dialler.secured(pair.time.now, peer=BOB, named=False)
        pair.dialler.received(hello(), pair.time.now)
        self.assertEqual(pair.dialler.seen, Address("192.0.2.7", 9))

    def test_clocks_that_differ(self) -> None:
        time = Time()
        pair = Pair(ground(time), ground(time, wall=1.7e9 + 3700))
        self.assertIn(("noticed", Notice.CLOCK), pair.watches[0].events)
        self.assertIn(("noticed", Notice.CLOCK), pair.watches[1].events)
        self.assertEqual(pair.dialler.state, State.OPEN)
        pair = Pair(ground(time), ground(time, wall=1.7e9 + 3500))
        self.assertEqual([len(watch.events) for watch in pair.watches], [1, 1])

    def test_later_versions_and_unknown_flags_are_no_matter(self) -> None:
        pair = Pair(secure=False)
        pair.acceptor.secured(pair.time.now, peer=ALICE, named=True)
        pair.acceptor.received(hello(versions=(7, VERSION), flags=0xFFFF), pair.time.now)
        self.assertEqual(pair.acceptor.state, State.OPEN)

    def test_told_once(self) -> None:
        pair = Pair()
        told: list[Why | None] = []
        pair.dialler._told = lambda link, why: told.append(why)
        pair.dialler.close(Why.ASKED, pair.time.now)
        pair.dialler.close(Why.LOST, pair.time.now)
        pair.dialler.lost(pair.time.now)
        self.assertEqual((told, pair.watches[0].ends), ([Why.ASKED], [Why.ASKED]))


class SignedHelloTests(SynchronousTestCase):
    """The identity comes in HELLO, signed over the key that the carrier has seen: Noise."""

    key = NodeKey.from_seed(bytes(32))

    def greeted(self, identity: bytes, signature: bytes, *, dialled: bool = False) -> tuple[State, bytes | None]:
        pair = Pair(secure=False)
        link = pair.dialler if dialled else pair.acceptor
        link.secured(pair.time.now, peer=None, binding=b"k" * 32, named=True)
        link.received(hello(identity=identity, signature=signature), pair.time.now)
        return link.state, link.peer

    def test_a_good_one(self) -> None:
        good = sign(self.key, b"k" * 32)
        for dialled in (False, True):
            self.assertEqual(self.greeted(self.key.node_id, good, dialled=dialled), (State.OPEN, self.key.node_id))

    def test_a_replayed_one(self) -> None:
        """A HELLO of somebody else's connection vouches for another key."""
        state, peer = self.greeted(self.key.node_id, sign(self.key, b"j" * 32))
        self.assertEqual((state, peer), (State.HELLO, None))
        state, peer = self.greeted(self.key.node_id, sign(self.key, b"j" * 32), dialled=True)
        self.assertEqual((state, peer), (State.CLOSED, None))

    def test_nameless_is_for_diallers(self) -> None:
        self.assertEqual(self.greeted(b"", b""), (State.OPEN, None))
        self.assertEqual(self.greeted(b"", b"", dialled=True), (State.CLOSED, None))

    def test_no_second_identity_beside_the_carriers(self) -> None:
        pair = Pair(secure=False)
        pair.acceptor.secured(pair.time.now, peer=ALICE, named=True)
        signed = hello(identity=self.key.node_id, signature=sign(self.key, b""))
        pair.acceptor.received(signed, pair.time.now)
        self.assertEqual(pair.acceptor.state, State.HELLO)

    def test_a_nameless_connection_cannot_be_claimed(self) -> None:
        pair = Pair(secure=False)
        pair.acceptor.secured(pair.time.now, peer=None, named=True)
        pair.acceptor.received(hello(identity=self.key.node_id, signature=sign(self.key, b"")), pair.time.now)
        self.assertEqual((pair.acceptor.state, pair.acceptor.peer), (State.HELLO, None))


class BadBeginningTests(SynchronousTestCase):
    def begun(self, *, dialled: bool) -> Pair:
        pair = Pair(secure=False)
        pair.acceptor.secured(pair.time.now, peer=ALICE, named=True)
        pair.dialler.secured(pair.time.now, peer=BOB, named=True)
        pair.settle = lambda: None  # type: ignore[method-assign]
        return pair

    def test_garbage_waits_for_its_end_without_an_answer(self) -> None:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02",
            bytes(CELL),
            cell(0, Cell.PING),
            bytes(4) + b"\7",
        ):
            pair = self.begun(dialled=False)
            link, wire = pair.acceptor, pair.wires[1]
            link.received(data, pair.time.now)
            link.received(hello(), pair.time.now)
            pair.far.turn.end()
            self.assertEqual((link.state, wire.held, wire.written), (State.HELLO, True, []))
            pair.time.now += T_LINK - 0.1
            link.wake(pair.time.now)
            self.assertIsNone(wire.ended)
            pair.time.now += 0.2
            link.wake(pair.time.now)
            self.assertEqual((wire.ended, pair.watches[1].ends), (True, [Why.TIMEOUT]))

    def test_a_dialler_knows_at_once(self) -> None:
        pair = self.begun(dialled=True)
        pair.dialler.received(b"HTTP/1.1 400", pair.time.now)
        self.assertEqual(pair.watches[0].ends, [Why.PROTOCOL])

    def test_silence(self) -> None:
        pair = self.begun(dialled=True)
        pair.time.now += T_LINK
        for link in (pair.dialler, pair.acceptor):
            self.assertEqual(link.deadline(), pair.time.now)
            link.wake(pair.time.now)
        self.assertEqual([watch.ends for watch in pair.watches], [[Why.TIMEOUT], [Why.TIMEOUT]])

    def test_never_secured(self) -> None:
        pair = Pair(secure=False)
        pair.acceptor.received(hello(), pair.time.now)
        self.assertEqual(pair.acceptor.state, State.SECURING)
        pair.time.now += T_LINK
        pair.acceptor.wake(pair.time.now)
        self.assertEqual(pair.watches[1].ends, [Why.TIMEOUT])

    def test_another_network_version_or_cell_length(self) -> None:
        for said, why in (
            (hello(network=b"anothern"), Why.NETWORK),
            (hello(versions=(2,)), Why.VERSION),
            (hello(versions=()), Why.VERSION),
            (hello(cell_len=512), Why.VERSION),
        ):
            pair = self.begun(dialled=True)
            pair.acceptor.received(said, pair.time.now)
            pair.dialler.received(said, pair.time.now)
            pair.far.turn.end()
            self.assertEqual([watch.ends for watch in pair.watches], [[why], [why]])
            self.assertEqual(pair.wires[1].written, [])

    def test_refused_by_a_notice(self) -> None:
        pair = self.begun(dialled=True)
        pair.dialler.received(cell(0, Cell.NOTICE, bytes((Notice.IN_USE,))), pair.time.now)
        self.assertEqual(pair.watches[0].ends, [Why.IN_USE])


class CircuitTests(SynchronousTestCase):
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
        far.slot.send(Cell.RELAY, [b"one", b"two"])
        pair.settle()
        self.assertEqual(near.bodies, [text + bytes(BODY - len(text)) for text in (b"short", b"one", b"two")])
        self.assertEqual((pair.dialler.cells_out, pair.dialler.cells_in), (20, 3))
        slot.close(Destroy.ASKED)
        slot.close(Destroy.ASKED)
        pair.settle()
        self.assertEqual((far.ends, near.ends), ([Destroy.ASKED], []))
        self.assertEqual((pair.dialler.circuits, pair.acceptor.circuits), (0, 0))

    def test_both_sides_begin(self) -> None:
        pair = Pair()
        taker = Taken()
        theirs = pair.acceptor.slot(taker)
        theirs.create(7, b"abc")
        ours, *_ = pair.circuit()
        pair.settle()
        self.assertEqual(taker.answers, [(7, b"cba")])
        self.assertEqual((ours.circ & DIALLER, theirs.circ & DIALLER), (DIALLER, 0))

    def test_one_write_a_turn(self) -> None:
        pair = Pair()
        slots = [pair.circuit()[0] for _ in range(5)]
        before = pair.wires[0].writes
        for slot in slots:
            slot.send(Cell.RELAY, [bytes(BODY)] * 3)
            slot.send(Cell.RELAY, [bytes(BODY)])
        pair.near.turn.end()
        self.assertEqual(pair.wires[0].writes, before + 1)
        self.assertEqual(len(pair.wires[0].take()), 20 * CELL)

    def test_refused(self) -> None:
        pair = Pair()
        pair.watches[1].answer = False
        slot, near, far = pair.circuit()
        assert far.slot is not None
        far.slot.close(Destroy.PROTOCOL)
        pair.settle()
        self.assertEqual((near.answers, near.ends), ([], [Destroy.PROTOCOL]))
        slot.send(Cell.RELAY, [b"late"])
        slot.close(Destroy.NONE)
        pair.settle()
        self.assertEqual(pair.wires[0].written, [])

    def test_closed_before_it_began(self) -> None:
        pair = Pair()
        slot = pair.dialler.slot(Taken())
        slot.close(Destroy.ASKED)
        slot.create(1, b"")
        pair.near.turn.end()
        self.assertEqual((pair.wires[0].written, pair.dialler.circuits), ([], 0))

    def test_numbers_come_round(self) -> None:
        """Every id is used before one comes again, and none of a circuit that is there or has just ended."""
        pair = Pair()
        pair.dialler._next = NUMBERS - 2
        slots = [pair.dialler.slot(Taken()) for _ in range(4)]
        self.assertEqual([slot.circ & NUMBERS for slot in slots], [NUMBERS - 1, NUMBERS, 1, 2])
        slots[1].create(1, b"")
        slots[1].close(Destroy.ASKED)
        slots[3].close(Destroy.ASKED)  # nobody has heard of this one
        pair.dialler._next = NUMBERS - 2
        self.assertEqual([pair.dialler.slot(Taken()).circ & NUMBERS for _ in range(2)], [2, 3])
        pair.time.now += 1
        again = pair.circuit()[0]
        again.close(Destroy.NONE)
        pair.settle()
        pair.watches[1].takers.clear()
        pair.acceptor.received(cell(again.circ, Cell.CREATE, bytes(4)), pair.time.now)
        self.assertEqual((len(pair.watches[1].takers), pair.acceptor._bad), (1, 0))  # the peer's own id, free again

    def test_our_own_mistakes(self) -> None:
        pair = Pair()
        slot, _, far = pair.circuit()
        assert far.slot is not None
        self.assertRaises(LocalProtocolError, slot.create, 1, b"")
        self.assertRaises(LocalProtocolError, slot.created, 1, b"")
        self.assertRaises(LocalProtocolError, far.slot.created, 1, b"")
        self.assertRaises(LocalProtocolError, far.slot.create, 1, b"")

    def test_what_crosses_our_destroy_is_no_offence(self) -> None:
        pair = Pair()
        slot, _, far = pair.circuit()
        assert far.slot is not None
        far.slot.send(Cell.RELAY, [bytes(BODY)] * 600)
        slot.close(Destroy.ASKED)
        pair.settle()
        self.assertEqual((pair.dialler._bad, pair.dialler.state), (0, State.OPEN))
        again = pair.dialler.slot(Taken())
        self.assertNotEqual(again.circ, slot.circ)

    def test_a_lost_link_ends_all(self) -> None:
        pair = Pair()
        takers = [pair.circuit()[1] for _ in range(3)]
        pair.dialler.lost(pair.time.now)
        self.assertEqual([taker.ends for taker in takers], [[Destroy.LINK_LOST]] * 3)
        self.assertEqual(pair.watches[0].ends, [Why.LOST])

    def test_closing_while_cells_are_handed_out(self) -> None:
        pair = Pair()
        slot, _, far = pair.circuit()
        pair.watches[1].takers[0].cells = (  # type: ignore[method-assign]
            lambda cmd, bodies, now: pair.acceptor.close(Why.ASKED, now)
        )
        slot.send(Cell.RELAY, [bytes(BODY)] * 3)
        slot.send(Cell.EARLY, [bytes(BODY)] * 3)
        pair.settle()
        self.assertEqual((far.got, far.ends, pair.watches[1].ends), ([], [Destroy.LINK_LOST], [Why.ASKED]))

    def test_draining(self) -> None:
        pair = Pair()
        slot, _, far = pair.circuit()
        pair.acceptor.drain(pair.time.now)
        late = Taken()
        refused = pair.dialler.slot(late)
        refused.create(1, b"")
        slot.send(Cell.RELAY, [b"goes on"])
        pair.settle()
        self.assertEqual((late.ends, len(far.bodies)), ([Destroy.GOING_DOWN], 1))
        self.assertRaises(Unavailable, pair.acceptor.slot, Taken())
        slot.close(Destroy.ASKED)
        pair.settle()
        self.assertEqual((pair.watches[1].ends, pair.wires[1].ended), ([Why.DOWN], False))


class LimitTests(SynchronousTestCase):
    def test_circuits_of_a_nameless_link(self) -> None:
        pair = Pair(identities=(None, BOB))
        for _ in range(CIRCS_NAMELESS):
            pair.circuit()
        self.assertRaises(Unavailable, pair.dialler.slot, Taken())
        pair.acceptor.received(cell(DIALLER | 5_000_000, Cell.CREATE, bytes(4)), pair.time.now)
        pair.far.turn.end()
        self.assertEqual(pair.wires[1].take(), cell(DIALLER | 5_000_000, Cell.DESTROY, bytes((Destroy.LIMIT,))))
        self.assertEqual(pair.acceptor.circuits, CIRCS_NAMELESS)

    def test_circuits_of_a_named_link(self) -> None:
        pair = Pair()
        for number in range(1, CIRCS_PER_LINK + 2):
            pair.acceptor.received(cell(DIALLER | number, Cell.CREATE, bytes(4)), pair.time.now)
        self.assertEqual(pair.acceptor.circuits, CIRCS_PER_LINK)
        self.assertEqual(len(pair.watches[1].takers), CIRCS_PER_LINK)

    def test_cells_that_mean_nothing(self) -> None:
        """Each is ignored; one more than BAD_CELLS in a minute closes the link."""
        pings = cell(0, Cell.PONG, b"nobody a")
        strange: list[tuple[str, Callable[[Pair], bytes]]] = [
            ("unknown command", lambda pair: cell(0, 77)),
            ("unknown command of a circuit", lambda pair: cell(pair.circuit()[0].circ, 200)),
            ("unknown circuit", lambda pair: cell(DIALLER | 12345, Cell.RELAY)),
            ("its destroy", lambda pair: cell(DIALLER | 12345, Cell.DESTROY)),
            ("its answer", lambda pair: cell(12345, Cell.CREATED, bytes(4))),
            ("used id", lambda pair: cell(pair.circuit()[0].circ, Cell.CREATE, bytes(4))),
            ("id of the other side", lambda pair: cell(3, Cell.CREATE, bytes(4))),
            ("no id", lambda pair: cell(DIALLER, Cell.CREATE, bytes(4))),
            ("second hello", lambda pair: hello()),
            ("pong without ping", lambda pair: pings),
            ("ping of a circuit", lambda pair: cell(pair.circuit()[0].circ, Cell.PING)),
            ("answer to its own circuit", lambda pair: cell(pair.circuit()[0].circ, Cell.CREATED, bytes(4))),
        ]
        for name, make in strange:
            pair = Pair()
            one = make(pair)
            link = pair.acceptor
            for _ in range(BAD_CELLS):
                link.received(one, pair.time.now)
            self.assertEqual((link.state, len(pair.watches[1].takers) <= 1), (State.OPEN, True), name)
            link.received(one, pair.time.now)
            self.assertEqual((pair.watches[1].ends, pair.wires[1].ended), ([Why.PROTOCOL], True), name)

    def test_a_hundred_a_minute_are_borne(self) -> None:
        pair = Pair()
        for _ in range(5):
            for _ in range(BAD_CELLS):
                pair.acceptor.received(cell(0, 77), pair.time.now)
            pair.time.now += 60
        self.assertEqual(pair.acceptor.state, State.OPEN)

    def test_cells_before_the_answer(self) -> None:
        pair = Pair()
        pair.watches[1].answer = False
        slot, _, far = pair.circuit()
        slot.send(Cell.RELAY, [bytes(BODY)])
        pair.settle()
        self.assertEqual((far.got, pair.acceptor._bad), ([], 1))

    def test_a_handshake_that_does_not_fit_its_cell(self) -> None:
        pair = Pair()
        bad = b"\0\1\xff\xff"
        pair.acceptor.received(cell(DIALLER | 9, Cell.CREATE, bad), pair.time.now)
        pair.far.turn.end()
        self.assertEqual(pair.wires[1].take(), cell(DIALLER | 9, Cell.DESTROY, bytes((Destroy.PROTOCOL,))))
        pair.watches[1].answer = False
        slot, near, _ = pair.circuit()
        pair.dialler.received(cell(slot.circ, Cell.CREATED, bad), pair.time.now)
        self.assertEqual(near.ends, [Destroy.PROTOCOL])

    def test_who_asks_and_does_not_read(self) -> None:
        pair = Pair()
        pair.acceptor.pause()
        for _ in range(CONTROL_MOST - 1):
            pair.acceptor.received(cell(0, Cell.PING, bytes(8)), pair.time.now)
            pair.far.turn.end()
        self.assertEqual(pair.acceptor.state, State.OPEN)
        pair.acceptor.received(cell(0, Cell.PING, bytes(8)), pair.time.now)
        self.assertEqual((pair.watches[1].ends, pair.wires[1].ended), ([Why.SLOW], True))


class TimeTests(SynchronousTestCase):
    def test_padding_after_silence(self) -> None:
        """The greater of two draws, again after each PAD; what comes or goes puts it off."""
        draws = iter([2.0, 5.0, 9.5, 1.5, 3.0, 4.0, 8.0, 2.5, 2.0, 2.0, 9.0, 9.0])
        time = Time()
        pair = Pair(ground(time, pad=lambda: next(draws)), ground(time, pad=lambda: 1e6))
        wire, link = pair.wires[0], pair.dialler
        link._pulse._ping_at = 1e9
        start = time.now

        def sent_at(until: float) -> list[float]:
            found = []
            while time.now < until:
                time.now += 0.25
                link.wake(time.now)
                pair.near.turn.end()
                if data := wire.take():
                    self.assertEqual(data, cell(0, Cell.PAD))
                    found.append(time.now - start)
            return found

        self.assertEqual(sent_at(start + 14), [5.0])
        self.assertEqual(sent_at(start + 15), [14.5])  # 9.5 after the first
        time.now = start + 16
        link.received(cell(0, Cell.PAD), time.now)
        # drawn when it is looked at next: 8.0 after what came (the 4.0 drawn before was for the silence before it)
        self.assertEqual(sent_at(start + 30), [24.0, 26.0])

    def test_ping_gives_the_round_trip(self) -> None:
        pair = Pair()
        pair.dialler.wake(pair.time.now)
        pair.near.turn.end()
        pair.time.now += 0.25
        pair.settle()
        self.assertEqual(pair.dialler.rtt, 0.25)

    def test_a_ping_every_half_minute(self) -> None:
        time = Time()
        pair = Pair(ground(time, pad=lambda: 1e6), ground(time, pad=lambda: 1e6))
        wire, asked = pair.wires[0], []
        start = time.now
        while time.now < start + 3 * PING_EVERY:
            pair.dialler.wake(time.now)
            pair.near.turn.end()
            if wire.take()[4:5] == bytes((Cell.PING,)):
                asked.append(time.now - start)
            time.now += 0.5
            pair.dialler.received(cell(0, Cell.PAD), time.now)
        self.assertEqual(asked, [0, PING_EVERY, 2 * PING_EVERY])

    def test_a_silent_link_dies(self) -> None:
        pair = Pair()
        _, near, _ = pair.circuit()
        end = pair.time.now + PING_DEAD
        while pair.time.now < end:
            self.assertEqual(pair.dialler.state, State.OPEN)
            due = pair.dialler.deadline()
            assert due is not None
            pair.time.now = max(due, pair.time.now + 0.01)
            pair.dialler.wake(pair.time.now)
        self.assertEqual((pair.watches[0].ends, near.ends), ([Why.DEAD], [Destroy.LINK_LOST]))

    def test_an_idle_link_lives(self) -> None:
        pair = Pair()
        pair.pass_time(600)
        self.assertEqual((pair.dialler.state, pair.acceptor.state), (State.OPEN, State.OPEN))

    def test_probes(self) -> None:
        pair = Pair()
        heard: list[tuple[bool, float]] = []
        pair.dialler.probe(pair.time.now, lambda alive, now: heard.append((alive, now)))
        pair.settle()
        self.assertEqual(heard, [(True, 1000.0)])
        pair.dialler.wake(pair.time.now)
        pair.dialler.probe(pair.time.now, lambda alive, now: heard.append((alive, now)))
        self.assertEqual((pair.dialler.deadline(), pair.wires[0].at), (1002.0, 1002.0))
        pair.time.now += 2
        pair.dialler.wake(pair.time.now)
        self.assertEqual(heard[1:], [(False, 1002.0)])
        pair.dialler.probe(pair.time.now, lambda alive, now: heard.append((alive, now)))
        pair.dialler.lost(pair.time.now)
        self.assertEqual(heard[2:], [(False, 1002.0)])

    def test_a_probe_beside_a_ping(self) -> None:
        """What is due every PING_EVERY does not make a probe forget whom it has asked."""
        pair = Pair()
        heard: list[bool] = []
        pair.dialler.wake(pair.time.now)
        pair.time.now += PING_EVERY - 0.5
        pair.dialler._pulse.heard = pair.time.now
        pair.dialler.probe(pair.time.now, lambda alive, now: heard.append(alive))
        pair.time.now += 1
        pair.dialler.wake(pair.time.now)
        pair.settle()
        self.assertEqual((heard, pair.dialler._bad), ([True], 0))


def conversation() -> bytes:
    """Give what a dialling side says in a busy little life."""
    pair = Pair(secure=False)
    said = []

    def keep() -> None:
        pair.near.turn.end()
        data = pair.wires[0].take()
        said.append(data)
        pair.acceptor.received(data, pair.time.now)
        pair.far.turn.end()
        pair.dialler.received(pair.wires[1].take(), pair.time.now)

    pair.acceptor.secured(pair.time.now, peer=ALICE, named=True)
    pair.dialler.secured(pair.time.now, peer=BOB, named=True)
    keep()
    slots = [pair.dialler.slot(Taken()) for _ in range(3)]
    for slot in slots:
        slot.create(1, b"x" * slot.circ.bit_count())
    keep()
    for turn in range(6):
        for number, slot in enumerate(slots):
            slot.send(Cell.EARLY if turn == 2 else Cell.RELAY, [bytes((turn, number))] * (turn % 3 + 1))
        keep()
    slots[1].close(Destroy.ASKED)
    pair.dialler.notice(Notice.TRIED)
    keep()
    slots[0].send(Cell.RELAY, [b"last"])
    keep()
    return b"".join(said)


SAID = conversation()


class AnyTests(SynchronousTestCase):
    def heard(self, pieces: list[bytes]) -> list[object]:
        pair = Pair(secure=False)
        pair.acceptor.secured(pair.time.now, peer=ALICE, named=True)
        for piece in pieces:
            pair.acceptor.received(piece, pair.time.now)
            pair.far.turn.end()
        takers = pair.watches[1].takers
        return [pair.watches[1].events, [(taker.bodies, taker.ends) for taker in takers], pair.wires[1].take()]

    @settings(max_examples=60)
    @given(st.lists(st.integers(0, len(SAID)), max_size=12))
    def test_any_cut(self, cuts: list[int]) -> None:
        edges = sorted({0, *cuts, len(SAID)})
        self.assertEqual(self.heard([SAID[a:b] for a, b in pairwise(edges)]), self.heard([SAID]))

    def test_byte_by_byte(self) -> None:
        self.assertEqual(self.heard([SAID[at : at + 1] for at in range(len(SAID))]), self.heard([SAID]))

    @settings(max_examples=100)
    @given(
        st.booleans(), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.binary(max_size=40)), max_size=40)
    )
    def test_any_cells(self, dialled: bool, cells: list[tuple[int, int, bytes]]) -> None:
        pair = Pair()
        circ = pair.circuit()[0].circ
        numbers = (0, circ, DIALLER | 3, 4)
        link = pair.dialler if dialled else pair.acceptor
        for cmd, which, body in cells:
            link.received(cell(numbers[which], cmd, body), pair.time.now)
            pair.near.turn.end()
            pair.far.turn.end()
        self.assertLessEqual(link.circuits, 3)

    @settings(max_examples=100)
    @given(st.booleans(), st.binary(max_size=3 * CELL))
    def test_any_noise(self, dialled: bool, data: bytes) -> None:
        pair = Pair(secure=False)
        link = pair.dialler if dialled else pair.acceptor
        link.secured(pair.time.now, peer=ALICE, named=True)
        link.received(data, pair.time.now)
        self.assertIn(link.state, (State.HELLO, State.CLOSED))


class PureTests(SynchronousTestCase):
    def test_no_twisted(self) -> None:
        code = (
            "import sys; import layer8.relay.link, layer8.relay.links; "
            "assert not [name for name in sys.modules if name.partition('.')[0] in ('twisted', 'asyncio')]"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
