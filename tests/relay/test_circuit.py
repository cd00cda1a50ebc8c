"""Circuits at their relays, in a network in memory: what they take, what they pass on, and what ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import define, evolve, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.core.roles import Asker
from layer8.crypto.ntor import HandshakeFailed, OnionKey, client_begin
from layer8.crypto.onion import CELLS_MAX, ENDED, client_forward, relay_send
from layer8.relay.circuit import Bucket, Circuits, State, Way
from layer8.relay.limits import (
    CIRC_LIFE,
    EARLY_CELLS,
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
    HANDSHAKES,
    MAX_HOPS,
    T_HOP_MOST,
)
from layer8.relay.origin import OFFER, Origin
from layer8.relay.turn import Taker
from layer8.relay.wire import (
    BODY,
    CELL,
    DATA,
    L8_NTOR,
    MESSAGE_MAX,
    Cell,
    Command,
    Destroy,
    Extend,
    Open,
    Proto,
    Reason,
    cell,
    message,
    read_head,
)
from layer8.testing.network import Building, Carrier, Echo, Heard, Network, Node
from tests.relay.slots import FakeSlot, at_once, means

ECHO = Open(Proto.TCP, "echo.test", 7)


@define(eq=False)
class Parrot:
    """A role that answers 20 with a 21 of the same data, several times if asked so, and remembers who has asked."""

    commands: frozenset[int] = frozenset({20})
    askers: list[Asker] = field(factory=list)
    forgotten: list[int] = field(factory=list)

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        self.askers.append(asker)
        if data == b"nonsense":
            raise RemoteProtocolError("nonsense")
        if data == b"destroy":
            asker.destroy()
        elif data != b"silence":
            asker.answer(21, data)

    def gone(self, circuit: int) -> None:
        self.forgotten.append(circuit)


class NetworkCase(SynchronousTestCase):
    """A client, four relays, and an echo at the third of them."""

    def setUp(self) -> None:
        self.net = Network(recording=False)
        self.client = self.net.client("client")
        self.relays = [self.net.relay(name) for name in ("guard", "middle", "exit", "spare")]
        self.relays[2].serve("echo.test", 7, Echo)
        self.parrot = Parrot()
        self.relays[2].circuits.serve(self.parrot)

    def build(self, hops: int = 3) -> Building:
        building = self.net.begin(self.client, *self.relays[:hops])
        self.net.run(lambda: building.stands or building.ended is not None)
        self.assertTrue(building.stands)
        return building

    def echo(self, circuit: Origin, text: bytes = b"hello") -> Heard:
        sink = Heard()
        stream = circuit.open(ECHO, sink)
        stream.write(text)
        self.net.run(lambda: len(sink.all) >= len(text))
        self.assertEqual(sink.all, text)
        return sink

    def raw(self, circuit: Origin, cmd: int, *texts: bytes) -> None:
        """Say whatever, as a client that knows no rules."""
        circuit.slot.send(cmd, client_forward(circuit._forward, cmd, list(texts)))

    def extension(self, node: Node, **other: object) -> bytes:
        _, handshake = client_begin(node.identity, node.onion.public, self.net.mark, OFFER.to_bytes())
        return message(Command.CONNECT, 0, Extend(node.identity, (node.endpoint,), L8_NTOR, handshake).encode())

    def dies(self, building: Building, reason: Destroy = Destroy.PROTOCOL) -> None:
        """Wait until nothing of a circuit is left anywhere, for `reason` as its client hears it."""
        self.net.run(lambda: building.ended is not None)
        self.net.settle()
        self.assertEqual(building.ended, reason)
        self.assertEqual([relay.circuits.all for relay in self.relays], [{}] * len(self.relays))
        for node in (self.client, *self.relays):
            for carrier in node.carriers:
                self.assertEqual(carrier.link.circuits, 0)


class PassingTests(NetworkCase):
    def test_states_and_rows(self) -> None:
        """G7, G26: a bridge is one row at each relay, with numbers of its own on each link."""
        building = self.build()
        rows = [list(relay.circuits.all.values()) for relay in self.relays]
        self.assertEqual([len(row) for row in rows], [1, 1, 1, 0])
        guard, middle, leaving = (row[0] for row in rows[:3])
        self.assertEqual(
            [one.state for one in (guard, middle, leaving)], [State.FORWARDING, State.FORWARDING, State.ENDED]
        )
        following = [self.relays[1].identity, self.relays[2].identity, None]
        self.assertEqual([guard.next, middle.next, leaving.next], following)
        self.assertEqual([one.link.peer for one in (guard, middle)], [None, self.relays[0].identity])
        numbers = {guard.slot.circ, middle.slot.circ, leaving.slot.circ}
        self.assertEqual(len(numbers), 3)
        self.assertEqual(building.circuit.slot.circ, guard.slot.circ)
        self.assertEqual(building.circuit.binding, leaving.binding)
        self.assertNotEqual(guard.binding, leaving.binding)
        self.echo(building.circuit)
        counts = [(one.cells_forward, one.cells_backward) for one in (guard, middle)]
        self.assertEqual(counts[0], (counts[1][0] + 1, counts[1][1] + 1))

    def test_the_client_has_layers_and_no_hops_of_its_own(self) -> None:
        """G7: what is nested at the client is a list of layers, whatever it extends to."""
        circuit = self.build(4).circuit
        self.assertEqual((len(circuit._forward), len(circuit._backward), len(circuit.hops)), (4, 4, 4))

    def test_many_circuits_on_the_same_links(self) -> None:
        circuits = [self.build().circuit for _ in range(10)]
        self.assertEqual(len({circuit.slot.circ for circuit in circuits}), 10)
        for number, circuit in enumerate(circuits):
            self.echo(circuit, f"circuit {number}".encode())
        for carrier in self.relays[0].carriers:
            self.assertEqual(carrier.link.circuits, 10)

    def test_numbers_are_not_given_again_at_once(self) -> None:
        """G26: cells that are late never reach another circuit."""
        seen: set[int] = set()
        for _ in range(20):
            building = self.build()
            self.assertNotIn(building.circuit.slot.circ, seen)
            seen.add(building.circuit.slot.circ)
            self.echo(building.circuit)
            building.circuit.close()
            self.net.settle(0.1)

    def test_every_length(self) -> None:
        for name in ("five", "six", "seven", "eight"):
            self.relays.append(self.net.relay(name))
        for hops in range(1, MAX_HOPS + 1):
            self.relays[hops - 1].serve("echo.test", 7, Echo)
            self.echo(self.build(hops).circuit, bytes(10_000))

    def test_destroy_from_the_client(self) -> None:
        building = self.build()
        sink = self.echo(building.circuit)
        building.circuit.close()
        self.assertEqual((sink.reason, building.ended), (Reason.RESET, Destroy.ASKED))
        self.dies(building, Destroy.ASKED)

    def test_destroy_from_any_relay(self) -> None:
        for place in range(3):
            with self.subTest(place=place):
                building = self.build()
                sink = self.echo(building.circuit)
                next(iter(self.relays[place].circuits.all.values())).close(Destroy.LIMIT)
                self.dies(building, Destroy.LIMIT)
                self.assertEqual(sink.reason, Reason.LIMIT)

    def test_a_relay_goes_down(self) -> None:
        building = self.build()
        self.relays[1].circuits.close()
        self.dies(building, Destroy.GOING_DOWN)

    def test_every_stream_on_a_cut_link_fails_in_the_same_turn(self) -> None:
        """G8: at the ends of the link itself; further away as soon as DESTROY gets there."""
        for place in range(3):
            with self.subTest(place=place):
                buildings = [self.build() for _ in range(3)]
                sinks = [self.echo(building.circuit) for building in buildings for _ in range(3)]
                left = len(self.relays[2].streams)
                self.carrier(place).cut()
                near = [sink.reason is not None for sink in sinks]
                far = [stream.closed for stream in self.relays[2].streams[left - len(sinks) :]]
                self.assertEqual(near, [place == 0] * 9)
                self.assertEqual(far, [place == 2] * 9)
                for building in buildings:
                    self.dies(building, Destroy.LINK_LOST)
                self.assertEqual({sink.reason for sink in sinks}, {Reason.RESET})

    def carrier(self, place: int) -> Carrier:
        """Give the near end of the link after hop `place`."""
        node = (self.client, *self.relays)[place]
        return next(one for one in node.carriers if one.other.node is self.relays[place] and not one.closed)

    def test_age(self) -> None:
        building = self.build()
        self.relays[0].circuits._age()
        self.assertEqual(len(self.relays[0].circuits.all), 1)
        late = self.net.clock.seconds() + CIRC_LIFE
        self.relays[0].circuits.means = evolve(self.relays[0].circuits.means, clock=lambda: late)
        (circuit,) = self.relays[0].circuits.all.values()
        self.relays[0].circuits._age()
        self.dies(building, Destroy.TIMEOUT)
        self.assertEqual((circuit._forward, circuit._backward), (ENDED, ENDED))

    def test_as_many_cells_as_a_layer_takes(self) -> None:
        """P6: then the circuit ends, whoever counts them first, and with reason 4."""
        for who in ("client", "guard", "exit", "guard, backward", "exit, backward"):
            with self.subTest(who=who):
                building = self.build()
                ends = [next(iter(relay.circuits.all.values())) for relay in self.relays[:3]]
                layers = {
                    "client": building.circuit._forward[1],
                    "guard": ends[0]._forward,
                    "exit": ends[2]._forward,
                    "guard, backward": ends[0]._backward,
                    "exit, backward": ends[2]._backward,
                }
                layers[who].cells = CELLS_MAX
                building.circuit.open(ECHO, Heard()).write(b"one more")
                self.dies(building, Destroy.LIMIT)

    def test_a_relay_that_reaches_nothing(self) -> None:
        self.relays[0].circuits.asked = None
        sink = Heard()
        self.build(1).circuit.open(ECHO, sink)
        self.net.run(lambda: sink.reason is not None)
        self.assertEqual(sink.reason, Reason.POLICY)


class BadInputTests(NetworkCase):
    """Rows of network.md section 13 that are about circuits: DESTROY 1, and nothing is left."""

    def refused(self, cmd: int, *texts: bytes, reached: int = 0) -> None:
        """The last hop ends the circuit, and has asked for so many links until then."""
        building = self.build()
        links: list[bytes] = []
        self.relays[2].circuits.reach = lambda node, endpoints, done: links.append(node)
        end = next(iter(self.relays[2].circuits.all.values()))
        self.raw(building.circuit, cmd, *texts)
        self.net.run(lambda: end.state is State.CLOSED or building.ended is not None)
        self.assertEqual((end.state, building.ended, len(links)), (State.CLOSED, None, reached))
        self.dies(building)

    def test_early_above_eight(self) -> None:
        building = self.build()
        for _ in range(EARLY_CELLS - 2):
            self.raw(building.circuit, Cell.EARLY, message(Command.DROP, 0))
        self.net.settle()
        self.assertIsNone(building.ended)
        self.raw(building.circuit, Cell.EARLY, message(Command.DROP, 0))
        self.dies(building)

    def test_an_extension_outside_early(self) -> None:
        self.refused(Cell.RELAY, self.extension(self.relays[3]))

    def test_an_extension_to_itself(self) -> None:
        self.refused(Cell.EARLY, self.extension(self.relays[2]))

    def test_an_extension_to_the_previous_hop(self) -> None:
        self.refused(Cell.EARLY, self.extension(self.relays[1]))

    def test_two_extensions_at_once(self) -> None:
        self.refused(Cell.EARLY, self.extension(self.relays[3]), self.extension(self.relays[3]), reached=1)

    def test_an_extension_of_a_circuit_with_streams(self) -> None:
        building = self.build()
        self.echo(building.circuit)
        end = next(iter(self.relays[2].circuits.all.values()))
        self.raw(building.circuit, Cell.EARLY, self.extension(self.relays[3]))
        self.net.run(lambda: end.state is not State.ENDED)
        self.assertIs(end.state, State.CLOSED)
        self.dies(building)

    def test_an_extension_in_fragments(self) -> None:
        text = self.extension(self.relays[3])
        command, _, size, _ = read_head(text)
        self.refused(Cell.EARLY, message(command, 0, text[5 : 5 + size], more=True))

    def test_a_stream_without_a_number(self) -> None:
        self.refused(Cell.EARLY, message(Command.CONNECT, 0, ECHO.encode()))

    def test_a_length_beyond_the_cell(self) -> None:
        self.refused(Cell.RELAY, bytes((Command.DATA, 0, 1, 0x7F, 0xFF)) + bytes(DATA))

    def test_fragments_beyond_the_most(self) -> None:
        self.refused(Cell.RELAY, *[message(20, 1, bytes(DATA), more=True)] * (MESSAGE_MAX // DATA + 1))

    def test_unknown_messages(self) -> None:
        for command in (0, 10, 15, 99, 255):
            with self.subTest(command=command):
                self.refused(Cell.RELAY, message(command, 1))

    def test_answers_that_only_clients_take(self) -> None:
        for command in (Command.CONNECT_OK, Command.DISCONNECT):
            with self.subTest(command=command):
                self.refused(Cell.RELAY, message(command, 0, b"\0\0"))

    def test_a_role_that_finds_nonsense(self) -> None:
        for text in (b"nonsense", b"destroy"):
            self.refused(Cell.RELAY, message(20, 1, text))
        self.assertEqual(len(self.parrot.forgotten), 2)
        self.assertFalse(self.parrot.askers[0].alive)

    def test_an_early_cell_from_behind(self) -> None:
        """It could carry a mark from an exit to a guard."""
        building = self.build()
        circuits = [next(iter(relay.circuits.all.values())) for relay in self.relays[:3]]
        before = [one.cells_backward for one in circuits]
        circuits[2].slot.send(Cell.EARLY, [bytes(BODY)])
        self.dies(building)
        self.assertEqual([one.cells_backward for one in circuits], before)  # it gets no further than the middle

    def test_an_early_cell_of_the_guard(self) -> None:
        """Also one that it has sealed well."""
        building = self.build(1)
        guard = next(iter(self.relays[0].circuits.all.values()))
        guard.slot.send(Cell.EARLY, relay_send(guard._backward, Cell.EARLY, [message(Command.DROP, 0)]))
        self.dies(building)

    def test_a_circuit_s_queue(self) -> None:
        """Who does not read its own cells loses its circuit, and only this one."""
        building, other = self.build(), self.build()
        slot = next(iter(self.relays[0].circuits.all.values())).slot
        link = next(carrier.link for carrier in self.relays[0].carriers if carrier.other.node is self.client)
        link.pause()
        slot.send(Cell.RELAY, [bytes(BODY)] * 700)
        link.resume()
        self.net.run(lambda: building.ended is not None)
        self.assertEqual(building.ended, Destroy.LIMIT)
        self.echo(other.circuit)

    def test_create_of_another_kind(self) -> None:
        slot = FakeSlot()
        self.relays[0].circuits.on_create(Link(), slot, 2, b"", 0.0)
        self.assertEqual((slot.closed, self.relays[0].circuits.all), (Destroy.PROTOCOL, {}))

    def test_handshakes_that_are_wrong(self) -> None:
        """All alike: DESTROY 1."""
        guard = self.relays[0]
        _, good = client_begin(guard.identity, guard.onion.public, self.net.mark, OFFER.to_bytes())
        flipped = bytes((*good[:-1], good[-1] ^ 1))
        old = OnionKey.make().public
        wrong = {
            "identity": b"\0" * 32 + good[32:],
            "onion key": good[:32] + old + good[64:],
            "low order": good[:64] + bytes(32) + good[96:],
            "sealed": flipped,
            "short": good[:700],
            "none": b"",
            "version": client_begin(guard.identity, guard.onion.public, self.net.mark, b"\3\2\0\2")[1],
            "terms": client_begin(guard.identity, guard.onion.public, self.net.mark, b"\3")[1],
        }
        for name, handshake in (*wrong.items(), ("first", good), ("repeated", good)):
            with self.subTest(name=name):
                slot = FakeSlot()
                guard.circuits.on_create(Link(), slot, L8_NTOR, handshake, 0.0)
                self.net.settle(0.1)
                self.assertEqual(slot.closed, None if name == "first" else Destroy.PROTOCOL)
                self.assertEqual(len(slot.sent), int(name == "first"))


@define(eq=False)
class Link:
    """Where circuits come from that go no further."""

    peer: bytes | None = None

    def slot(self, taker: object) -> FakeSlot:
        return FakeSlot()


class HandshakeTests(SynchronousTestCase):
    """CPU is the first limit: a bucket for each link, and a queue whose oldest are dropped."""

    def circuits(self, worker: Callable[..., None]) -> Circuits:
        def answer(handshake: bytes) -> None:
            raise HandshakeFailed

        def reach(node: bytes, endpoints: tuple[str, ...], done: object) -> None:
            raise AssertionError("nobody extends here")

        self.clock = Clock()
        return Circuits(bytes(32), means(self.clock), worker, answer, reach)  # type: ignore[arg-type]

    def test_the_bucket_of_a_link(self) -> None:
        circuits = self.circuits(at_once)
        slots = [FakeSlot() for _ in range(HANDSHAKE_BURST + 10)]
        link = Link()
        for slot in slots:
            circuits.on_create(link, slot, L8_NTOR, b"", 0.0)
        self.assertEqual([slot.closed for slot in slots].count(Destroy.LIMIT), 10)
        other = FakeSlot()
        circuits.on_create(Link(), other, L8_NTOR, b"", 0.0)
        self.assertEqual(other.closed, Destroy.PROTOCOL)
        circuits.lost(link)
        self.assertEqual(len(circuits._buckets), 1)

    def test_a_bucket_fills(self) -> None:
        bucket = Bucket(HANDSHAKE_RATE, 2)
        self.assertEqual([bucket.take(0.0) for _ in range(3)], [True, True, False])
        self.assertEqual([bucket.take(1 / HANDSHAKE_RATE) for _ in range(2)], [True, False])
        self.assertEqual([bucket.take(100.0) for _ in range(3)], [True, True, False])

    def test_the_oldest_of_a_full_queue(self) -> None:
        works: list[Callable[[Exception], None]] = []
        circuits = self.circuits(lambda work, done: works.append(done))
        slots = [FakeSlot() for _ in range(HANDSHAKES + 5)]
        for number, slot in enumerate(slots):
            circuits.on_create(Link(), slot, L8_NTOR, b"", float(number))
        self.assertEqual(len(works), 2, "so many has the worker at a time")
        dropped = [number for number, slot in enumerate(slots) if slot.closed == Destroy.LIMIT]
        self.assertEqual(dropped, [2, 3, 4])
        while works:
            works.pop(0)(HandshakeFailed())
        self.assertEqual({slot.closed for slot in slots}, {Destroy.LIMIT, Destroy.PROTOCOL})
        self.assertEqual(circuits.all, {})

    def test_a_circuit_that_ends_while_it_waits(self) -> None:
        works: list[Callable[[Exception], None]] = []
        circuits = self.circuits(lambda work, done: works.append(done))
        slots = [FakeSlot() for _ in range(4)]
        for slot in slots:
            circuits.on_create(Link(), slot, L8_NTOR, b"", 0.0)
        for circuit in list(circuits.all.values()):
            circuit.gone(Destroy.ASKED, 0.0)
        while works:
            works.pop(0)(HandshakeFailed())
        self.assertEqual([slot.closed for slot in slots], [Destroy.ASKED] * 4)

    def test_a_bug_is_seen(self) -> None:
        works: list[Callable[[Exception], None]] = []
        circuits = self.circuits(lambda work, done: works.append(done))
        slot = FakeSlot()
        circuits.on_create(Link(), slot, L8_NTOR, b"", 0.0)
        self.assertRaises(ZeroDivisionError, works[0], ZeroDivisionError())
        self.assertEqual(slot.closed, Destroy.PROTOCOL)


@define(eq=False)
class Full(Link):
    """A link that takes no more circuits."""

    def slot(self, taker: object) -> FakeSlot:
        raise Unavailable("full")


@define(eq=False)
class Kept(Link):
    """A link whose slots are kept, with their takers."""

    slots: list[FakeSlot] = field(factory=list)

    def slot(self, taker: object) -> FakeSlot:
        self.slots.append(FakeSlot(taker=taker))  # type: ignore[arg-type]
        return self.slots[-1]


class ExtendingTests(NetworkCase):
    """extending -> forwarding, or back to ended: the hop stays the last one, and the client may try another."""

    def setUp(self) -> None:
        super().setUp()
        self.building = self.build(2)
        self.circuit = self.building.circuit
        self.circuit.hop_time = 100.0
        self.end = next(iter(self.relays[1].circuits.all.values()))
        self.reach = self.relays[1].circuits.reach
        self.done: list[Callable[[Way | Reason], None]] = []
        self.link = Kept(bytes(32))

    def extend(self) -> Taker:
        """Let the second hop extend to a link of ours, and give its taker there."""
        self.relays[1].circuits.reach = lambda node, endpoints, done: done(self.link)
        self.circuit.extend(self.relays[2].hop)
        self.net.run(lambda: bool(self.link.slots))
        self.assertIs(self.end.state, State.EXTENDING)
        taker = self.link.slots[0].taker
        assert taker is not None
        return taker

    def failed(self, reason: Reason) -> None:
        """Wait for a failure, then go on with another hop."""
        self.net.run(lambda: bool(self.building.failures))
        self.assertEqual((self.building.failures, self.end.state), ([reason], State.ENDED))
        self.relays[1].circuits.reach = self.reach
        self.circuit.extend(self.relays[2].hop)
        self.net.run(lambda: len(self.circuit.hops) == 3)
        self.echo(self.circuit)

    def test_no_link(self) -> None:
        self.relays[1].circuits.reach = lambda node, endpoints, done: done(Reason.POLICY)
        self.circuit.extend(self.relays[2].hop)
        self.failed(Reason.POLICY)

    def test_a_full_link(self) -> None:
        self.relays[1].circuits.reach = lambda node, endpoints, done: done(Full())
        self.circuit.extend(self.relays[2].hop)
        self.failed(Reason.LIMIT)

    def test_no_answer(self) -> None:
        self.extend()
        begin = self.net.clock.seconds()
        self.failed(Reason.TIMEOUT)
        self.assertGreater(self.net.clock.seconds() - begin, T_HOP_MOST)
        self.assertEqual(self.link.slots[0].closed, Destroy.TIMEOUT)

    def test_destroyed_by_the_next_hop(self) -> None:
        for code, reason in (
            (Destroy.LIMIT, Reason.LIMIT),
            (Destroy.LINK_LOST, Reason.UNREACHABLE),
            (99, Reason.INTERNAL),
        ):
            self.setUp()
            taker = self.extend()
            taker.gone(code, self.net.clock.seconds())
            taker.gone(code, self.net.clock.seconds())
            self.failed(reason)

    def test_an_answer_of_another_kind(self) -> None:
        for kind, handshake in ((2, b""), (L8_NTOR, bytes(DATA - 1))):
            self.setUp()
            taker = self.extend()
            taker.created(kind, handshake, self.net.clock.seconds())
            taker.created(L8_NTOR, b"late", self.net.clock.seconds())
            self.failed(Reason.PROTOCOL)
            self.assertEqual(self.link.slots[0].closed, Destroy.PROTOCOL)

    def test_a_link_that_comes_too_late(self) -> None:
        for close in (True, False):
            self.setUp()
            self.relays[1].circuits.reach = lambda node, endpoints, done: self.done.append(done)
            self.circuit.extend(self.relays[2].hop)
            self.net.run(lambda: bool(self.done))
            if close:
                self.circuit.close()
                self.dies(self.building, Destroy.ASKED)
            else:
                self.failed(Reason.TIMEOUT)
            self.done[0](self.link)
            self.assertEqual(self.link.slots, [])

    def test_the_client_goes(self) -> None:
        taker = self.extend()
        self.circuit.close()
        self.net.settle()
        self.assertEqual(self.link.slots[0].closed, Destroy.NONE)
        taker.created(L8_NTOR, b"late", self.net.clock.seconds())
        self.dies(self.building, Destroy.ASKED)

    def test_who_pays(self) -> None:
        """Cells are sent on the credit of whoever's circuit it is, both ways."""
        self.extend().created(L8_NTOR, bytes(1200), self.net.clock.seconds())
        self.assertIs(self.link.slots[0].payer, self.end.link)
        self.assertIs(self.end.slot.payer, self.end.link)


def spoiled(change: Callable[[list[bytes]], list[bytes]], nth: int) -> Callable[[bytes], bytes]:
    """Give a carrier's `spoil` that changes two neighbouring RELAY cells, the nth and the one after it."""
    seen: list[bytes] = []
    done = False

    def spoil(data: bytes) -> bytes:
        nonlocal done
        out: list[bytes] = []
        for at in range(0, len(data), CELL):
            one = data[at : at + CELL]
            if done or one[4] != Cell.RELAY:
                out.append(one)
                continue
            seen.append(one)
            if len(seen) < nth:
                out.append(one)
            elif len(seen) == nth + 1:
                out += change(seen[-2:])
                done = True
        return b"".join(out)

    return spoil


def flipped(place: int, bit: int = 1) -> Callable[[list[bytes]], list[bytes]]:
    def change(cells: list[bytes]) -> list[bytes]:
        one = bytearray(cells[0])
        one[place] ^= bit
        return [bytes(one), cells[1]]

    return change


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "dropped": lambda cells: [cells[1]],
    "repeated": lambda cells: [cells[0], cells[0], cells[1]],
    "reordered": lambda cells: [cells[1], cells[0]],
    "injected": lambda cells: [cells[0], cell(int.from_bytes(cells[0][:4], "big"), Cell.RELAY, bytes(BODY)), cells[1]],
    "early": flipped(4),
    "no circuit's": flipped(1),
    **{f"bit of byte {place}": flipped(place, 1 << place % 8) for place in (5, 12, 20, 21, 22, 1000, 2040, 2047)},
}


class TamperTests(NetworkCase):
    """Whatever is done to a cell on any link, its circuit dies and nothing is recognised afterwards."""

    def places(self) -> Iterator[tuple[int, bool]]:
        return ((place, forward) for place in range(3) for forward in (True, False))

    def tampered(self, place: int, forward: bool, change: Callable[[list[bytes]], list[bytes]]) -> None:
        self.setUp()
        heard = Heard()
        self.relays[2].serve("sink.test", 9, lambda stream: heard)
        building, other = self.build(), self.build()
        there = self.echo(other.circuit, b"before")
        mine = Heard()
        stream = building.circuit.open(Open(Proto.TCP, "sink.test", 9), mine)
        self.net.run(lambda: mine.answer is not None)
        source, sink = (stream, heard) if forward else (self.relays[2].streams[-1], mine)
        node = (self.client, *self.relays)[place]
        carrier = next(one for one in node.carriers if one.other.node is self.relays[place])
        (carrier if forward else carrier.other).spoil = spoiled(change, 3)
        said = b"".join(bytes((number,)) * DATA for number in range(8))
        source.write(said)
        self.net.run(lambda: building.ended is not None)
        self.net.settle()
        self.assertEqual(building.ended, Destroy.PROTOCOL)
        self.assertTrue(said[: 4 * DATA].startswith(sink.all), "nothing after the cell that was touched")
        self.assertEqual(mine.reason, Reason.PROTOCOL)
        self.assertIsNotNone(heard.reason)
        self.assertEqual([len(relay.circuits.all) for relay in self.relays], [1, 1, 1, 0])
        self.assertIsNone(there.reason)
        self.echo(other.circuit, b"the other one lives")

    def test_cells_that_were_touched(self) -> None:
        for name, change in CHANGES.items():
            for place, forward in self.places():
                with self.subTest(name=name, place=place, forward=forward):
                    self.tampered(place, forward, change)

    def test_a_relay_that_swaps_two_circuits(self) -> None:
        """Cells of one circuit put into another end that one."""
        one, two = self.build(), self.build()
        carrier = next(c for c in self.client.carriers if c.other.node is self.relays[0])
        numbers = [building.circuit.slot.circ.to_bytes(4, "big") for building in (one, two)]

        def spoil(data: bytes) -> bytes:
            return data.replace(numbers[0] + bytes((Cell.RELAY,)), numbers[1] + bytes((Cell.RELAY,)))

        carrier.spoil = spoil
        one.circuit.open(ECHO, Heard()).write(b"hello")
        self.net.run(lambda: two.ended is not None)
        self.assertEqual((one.ended, two.ended), (None, Destroy.PROTOCOL))
