"""What an adversary does who keeps to the layouts and breaks the meaning: in memory, at every position."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.network import RelayConfig
from layer8.core.errors import LimitExceeded
from layer8.core.roles import Asker
from layer8.crypto.keys import NodeKey, id_text
from layer8.relay import circuit
from layer8.relay.circuit import Circuits
from layer8.relay.filling import Filling
from layer8.relay.inbox import LETTER_BURST, Inbox
from layer8.relay.limits import (
    ACK_EVERY,
    BAD_CELLS,
    CLOSED_KEPT,
    HANDSHAKES,
    LINK_BURST,
    LINK_RATE,
    PROCESS_STALLED,
    STALLED,
    STREAM_WINDOW,
    STREAMS_PER_CIRC,
)
from layer8.relay.link import Why
from layer8.relay.links import COMERS, Links
from layer8.relay.route import Named, Route
from layer8.relay.standing import Need
from layer8.relay.stream import Streams
from layer8.relay.wire import DATA, L8_NTOR, Cell, Command, Destroy, Notice, Text, cell, handshake_body, message
from tests.descriptors import FakeAsker
from tests.relay.links import Pair, Taken
from tests.relay.pools import PoolCase
from tests.relay.slots import Ends, FakeSlot, means
from tests.relay.test_circuit import Link as FakeLink
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

    def test_who_has_most_circuits_makes_room_when_there_are_too_many(self) -> None:
        """Names are free, and each may have 4096 circuits on its link."""
        self.patch(circuit, "CIRCUITS", 12)
        mine = self.build(2)
        greedy = self.net.client("greedy")
        theirs = [self.net.build(greedy, self.relays[0]) for _ in range(20)]
        self.net.settle()
        self.assertEqual(len(self.relays[0].circuits.all), 12)
        self.assertEqual([one.state.value for one in theirs], ["closed"] * 9 + ["open"] * 11)
        self.echo(self.build(3).circuit)
        self.assertIsNone(mine.ended)
        self.assertEqual(sum(one.state.value == "open" for one in theirs), 10)

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


class HandshakeTests(SynchronousTestCase):
    def test_one_link_does_not_push_out_the_handshakes_of_others(self) -> None:
        def nothing(*_: object) -> None:
            """Neither work nor reach anybody."""

        nobody: Any = nothing
        circuits = Circuits(bytes(32), means(Clock()), nobody, nobody, nobody)
        flood, calm = FakeLink(), FakeLink()
        slots = [FakeSlot() for _ in range(20)]
        for slot in slots:
            circuits.on_create(calm, slot, L8_NTOR, b"", 0.0)
        for _ in range(HANDSHAKES):
            circuits.on_create(flood, FakeSlot(), L8_NTOR, b"", 0.0)
        self.assertEqual([slot.closed for slot in slots], [None] * 20)
        self.assertEqual(len(circuits.all), HANDSHAKES + 2, "two are at the worker")


class BuildingTests(NetworkCase):
    def test_a_hop_that_speaks_of_streams_while_the_circuit_is_extended(self) -> None:
        """Its data would count for the next hop's, and the circuit could not be extended any more."""
        building = self.build(1)
        first = next(iter(self.relays[0].circuits.all.values()))
        building.circuit.extend(self.relays[1].hop)
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

    def test_a_neighbour_raises_no_alerts_without_end(self) -> None:
        pair = Pair()
        for _ in range(3 * BAD_CELLS):
            pair.dialler.received(cell(0, Cell.NOTICE, bytes((Notice.TRIED,))), pair.time.now)
            pair.acceptor.received(cell(0, Cell.NOTICE, bytes((77,))), pair.time.now)
        for watch in pair.watches:
            self.assertLessEqual(sum(event[0] == "noticed" for event in watch.events), BAD_CELLS)
        self.assertNotIn(("noticed", 77), pair.watches[1].events)
        self.assertEqual((pair.dialler.ended, pair.acceptor.ended), (True, True))

    def test_connections_that_come_and_go_at_once(self) -> None:
        """Each costs a handshake, and none of them is ever one of sixteen at a time."""
        user: Any = None
        links = Links(bytes(32), user)
        self.assertEqual(
            [links.welcomes(f"192.0.2.{one}", 1.0) for one in range(LINK_BURST + 2)].count(True), LINK_BURST
        )
        self.assertTrue(links.welcomes("198.51.100.1", 1.0))
        self.assertFalse(links.welcomes("192.0.2.1", 1.0 + 0.5 / LINK_RATE))
        self.assertTrue(links.welcomes("192.0.2.1", 1.0 + 2 / LINK_RATE))
        for number in range(COMERS + 5):
            links.welcomes(f"2001:db8:{number:x}::1", 2.0)
        self.assertEqual(len(links._comers), COMERS)
        free = Links(bytes(32), user, prefixes=False)
        self.assertTrue(all(free.welcomes("127.0.0.1", 1.0) for _ in range(2 * LINK_BURST)))

    def test_strangers_cannot_make_two_relays_part(self) -> None:
        """More circuits than a relay remembers end in a minute: what crosses their ends is no offence then."""
        pair = Pair()
        last = 0
        for _ in range(CLOSED_KEPT + 300):
            slot = pair.dialler.slot(Taken())
            slot.begun = True
            slot.close(Destroy.NONE)
            last = slot.circ
        self.assertEqual(len(pair.dialler._closed), CLOSED_KEPT)
        for _ in range(200):
            pair.dialler.received(cell(last, Cell.RELAY, b"late"), pair.time.now)
        self.assertFalse(pair.dialler.ended)


class PoolTests(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.small()
        self.pool.start()
        self.addCleanup(self.pool.stop)

    def test_a_guard_that_ends_circuits_speaks_ill_of_itself_alone(self) -> None:
        """Else it could see to it that only those are used who work with it."""
        self.pool.stop()
        self.pool.start()
        circuits = self.net.nodes["relay 0"].circuits

        def end(*_: object) -> None:
            for one in list(circuits.all.values()):
                one.close(Destroy.PROTOCOL)

        circuits.reach = end
        names = ("relay 0", "relay 1", "exit 0")
        hops = tuple(Named(id_text(self.net.nodes[name].identity)) for name in names)
        got = self.want(Need(route=Route(hops)))
        self.until(lambda: got)
        self.assertIsInstance(got[0], Exception)
        bad = {name: self.database.get(self.net.nodes[name].identity).bad for name in names}  # type: ignore[union-attr]
        self.assertGreater(bad["relay 0"], 0)
        self.assertEqual((bad["relay 1"], bad["exit 0"]), (0, 0))

    def test_a_need_does_not_show_a_password(self) -> None:
        self.assertNotIn("hunter2", repr(self.get(Need(key=("tcp:1080", "user", "hunter2"), port=80))))

    def test_a_guard_cannot_make_a_client_build_nothing_any_more(self) -> None:
        """It speaks of streams while a circuit is extended, which then could not go on."""
        spoken: list[object] = []

        def speak(node: Any) -> None:
            for one in node.circuits.all.values():
                if one.streams is not None and one.state.value == "extending" and one not in spoken:
                    spoken.append(one)
                    one.streams.push([message(Command.DATA, 9, b"x")])

        got: list[list[Any]] = [self.want(Need(key=number, port=80)) for number in range(6)]

        def done() -> bool:
            if len(spoken) < 8:
                for node in self.net.nodes.values():
                    if node.relays:
                        speak(node)
            return all(got)

        self.until(done)
        self.assertTrue(spoken)
        self.assertEqual(self.pool.building, 0)


class InboxTests(PoolCase):
    def test_a_nameless_message_does_not_come_by_the_circuit_of_a_signed_one(self) -> None:
        node = self.small()[0]
        self.pool.start()
        self.addCleanup(self.pool.stop)
        seconds, chance = self.net.clock.seconds, self.net.chance.randbytes
        node.circuits.serve(Inbox(node.identity, self.net.mark, self.client, self.wall, seconds, chance))
        sender = Inbox(bytes(32), self.net.mark, self.client, self.wall, seconds, chance)
        me, other = NodeKey.make(), NodeKey.make()
        by = [self.sent(sender, id_text(node.identity), key) for key in (me, None, me, None, other)]
        self.assertEqual((by[0], by[1]), (by[2], by[3]))
        self.assertEqual(len({by[0], by[1], by[4]}), 3)

    def test_so_many_letters_are_taken_however_many_circuits_bring_them(self) -> None:
        nobody: Any = None
        inbox = Inbox(bytes(32), self.net.mark, nobody, self.wall, self.net.clock.seconds, self.net.chance.randbytes)

        def take(number: int, now: float) -> None:
            inbox.asked(
                FakeAsker(circuit=number), Command.MESSAGE, Text(number.to_bytes(16, "big"), b"x").encode(), now
            )

        for number in range(LETTER_BURST):
            take(number, 1.0)
        self.assertRaises(LimitExceeded, take, LETTER_BURST, 1.0)
        take(LETTER_BURST + 1, 2.0)
        self.assertEqual(len(inbox.letters), LETTER_BURST + 1)

    def sent(self, inbox: Inbox, to: str, key: NodeKey | None) -> int:
        done: list[Any] = []
        Deferred.fromCoroutine(inbox.send(to, "hello", key)).addBoth(done.append)
        self.until(lambda: done)
        number: int = done[0].circuit
        return number


class Notes:
    """A role that notes which circuit it was asked what on."""

    commands = frozenset((16, 17, 18))

    def __init__(self) -> None:
        self.came: dict[int, set[int]] = {}

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        self.came.setdefault(command, set()).add(asker.circuit)
        asker.answer(20, data)

    def gone(self, circuit: int) -> None:
        """Nothing is forgotten."""


class TrackerTests(PoolCase):
    def test_who_publishes_is_not_seen_to_ask(self) -> None:
        node, notes = self.small()[0], Notes()
        node.circuits.serve(notes)
        self.pool.start()
        self.addCleanup(self.pool.stop)
        nobody: Any = None
        seconds = self.net.clock.seconds
        filling = Filling(
            nobody,
            RelayConfig,
            bytes(32),
            self.database,
            self.client,
            nobody,
            nobody,
            self.net.chance,
            self.wall,
            seconds,
        )
        for command in (16, 18, 18, 17, 18):
            done: list[Any] = []
            Deferred.fromCoroutine(filling._asking(node.identity)(command, b"", (20,))).addBoth(done.append)  # type: ignore[arg-type]
            while not done:
                self.assertTrue(self.net.clock.step())
        self.assertFalse(notes.came[18] & (notes.came[16] | notes.came[17]))


class StalledTests(SynchronousTestCase):
    def test_streams_that_are_between_two_credits_stall_nobody(self) -> None:
        ends = Ends()
        pairs = [ends.pair() for _ in range(STREAMS_PER_CIRC)]
        for _ in range(ACK_EVERY - 1):
            for near, _, _, _ in pairs:
                near.write(b"x")
            ends.settle()
        for near, _, _, _ in pairs:
            near.write(b"y")
        ends.settle()
        self.assertEqual({told.all for _, _, _, told in pairs}, {b"x" * (ACK_EVERY - 1) + b"y"})
        self.assertEqual((ends.exit.streams.stalled, ends.exit.means.stalled.cells), (0, 0))

    def test_what_all_circuits_together_keep_for_slow_sinks_has_an_end(self) -> None:
        """Who lets an exit send to somebody who does not read, on circuit after circuit, fills its memory."""
        clock = Clock()
        shared = means(clock)
        circuits = []
        for number in range(PROCESS_STALLED // STALLED + 3):
            ends = Ends(clock, accept=bool(number % 2))
            ends.exit.means = shared
            ends.exit.streams = Streams(ends.exit, shared, ends._asked)
            circuits.append(ends)
            for _ in range(STALLED // STREAM_WINDOW + 2):
                near, _ = ends.open()
                ends.settle()
                ends.streams[-1].pause()
                near.write(bytes(STREAM_WINDOW * DATA))
            ends.settle()
            self.assertLessEqual(shared.stalled.cells, PROCESS_STALLED)
        broken = [ends.exit.broken for ends in circuits]
        self.assertIn("LIMIT", broken)
        self.assertEqual(broken[-1], "")
        for ends in circuits:
            ends.exit.streams.lost(Destroy.NONE)
        self.assertEqual(shared.stalled.cells, 0)
