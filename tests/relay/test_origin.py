"""Circuits at their client, in a network in memory: building, falling back, questions, and the end."""

from __future__ import annotations

import hashlib
from functools import partial
from random import Random

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from layer8.core.errors import LocalProtocolError, Unavailable
from layer8.crypto.ntor import Keys, OnionKey, Terms
from layer8.relay.limits import CIRCS_NAMELESS, MAX_HOPS, STREAM_WINDOW, T_HOP_MOST
from layer8.relay.origin import OFFER, Ask, Hop, Origin, State
from layer8.relay.stream import Stream
from layer8.relay.wire import BODY, CELL, DATA, Cell, Command, Destroy, Open, Proto, Reason, message, runs
from layer8.testing.network import Building, Echo, Heard, Node
from tests.relay.test_circuit import ECHO, NetworkCase


class BuildingTests(NetworkCase):
    """building(k) -> open, or back to hop k-1."""

    def begun(self) -> Building:
        return self.build(2)

    def fails(self, building: Building, hop: Hop) -> Reason:
        """Try a hop that is not what it should be; the circuit is as it was before."""
        before = len(building.failures)
        building.circuit.extend(hop)
        self.assertIs(building.circuit.state, State.BUILDING)
        self.net.run(lambda: len(building.failures) > before)
        self.assertIs(building.circuit.state, State.OPEN)
        self.assertEqual(len(building.circuit.hops), 2)
        return building.failures[-1]

    def test_times_and_hops(self) -> None:
        circuit = self.build().circuit
        self.assertEqual([hop.identity for hop in circuit.hops], [relay.identity for relay in self.relays[:3]])
        self.assertEqual(len(circuit.times), 3)
        self.assertTrue(0 < circuit.times[0] < circuit.times[2] < 1)

    def test_back_to_the_hop_before_and_on_with_another(self) -> None:
        building = self.begun()
        spare = self.relays[3].hop
        for hop, reason in (
            (evolve(spare, onion_key=OnionKey.make().public), Reason.PROTOCOL),
            (evolve(spare, endpoints=("tcp:192.0.2.1:9",)), Reason.UNREACHABLE),
            (evolve(spare, identity=bytes(31) + b"x"), Reason.UNREACHABLE),
        ):
            self.assertEqual(self.fails(building, hop), reason)
        building.circuit.extend(self.relays[2].hop)
        self.net.run(lambda: len(building.circuit.hops) == 3)
        self.echo(building.circuit)

    def test_a_key_that_cannot_be(self) -> None:
        building = self.begun()
        self.assertEqual(self.fails(building, evolve(self.relays[3].hop, onion_key=bytes(32))), Reason.PROTOCOL)

    def test_as_many_tries_as_early_cells(self) -> None:
        building = self.begun()
        for _ in range(7):
            self.fails(building, evolve(self.relays[3].hop, endpoints=("tcp:192.0.2.1:9",)))
        self.assertRaises(LocalProtocolError, building.circuit.extend, self.relays[3].hop)
        self.relays[1].serve("echo.test", 7, Echo)
        self.echo(building.circuit)

    def test_the_first_hop_refuses(self) -> None:
        told = Building(self.net, self.client, [])
        told.circuit = Origin(self.client.means, self.net.worker, self.net.mark, told)
        link = self.client.dial(self.relays[0])
        self.net.settle(0.1)
        told.circuit.begin(link, evolve(self.relays[0].hop, onion_key=OnionKey.make().public))
        self.assertRaises(LocalProtocolError, told.circuit.begin, link, self.relays[0].hop)
        self.net.run(lambda: told.ended is not None)
        self.assertEqual((told.ended, told.circuit.state), (Destroy.PROTOCOL, State.CLOSED))
        self.assertRaises(LocalProtocolError, told.circuit.begin, link, self.relays[0].hop)

    def test_an_answer_by_somebody_else(self) -> None:
        """The second hop's answer comes from who does not hold its key: the circuit is gone, not only the hop."""
        building = self.begun()
        keys = Keys.cut(bytes(320), OFFER.to_bytes())
        self.relays[3].circuits._answer = lambda handshake: (Random(1).randbytes(1200), keys, b"")
        building.circuit.extend(self.relays[3].hop)
        self.dies(building)

    def test_terms_that_nobody_offered(self) -> None:
        for sm in (evolve(OFFER, window=9).to_bytes(), Terms().to_bytes(), b"\3"):
            self.setUp()
            self.relays[0].choose = partial(self.answer, sm)
            self.dies(self.net.begin(self.client, self.relays[0]))

    def answer(self, sm: bytes, cm: bytes) -> bytes:
        self.assertEqual(cm, OFFER.to_bytes())
        return sm

    def test_a_hop_that_does_not_answer(self) -> None:
        for hops in (0, 2):
            self.setUp()
            silent = self.relays[hops]
            silent.circuits._worker = lambda work, done: None
            building = self.net.begin(self.client, *self.relays[: hops + 1])
            self.net.run(lambda: building.ended is not None)  # noqa: B023
            self.assertEqual(building.ended, Destroy.TIMEOUT)
            self.assertAlmostEqual(self.net.clock.seconds(), T_HOP_MOST, places=0)
            self.net.settle()
            self.assertEqual([relay.circuits.all for relay in self.relays], [{}] * 4)

    def test_the_link_takes_no_more_circuits(self) -> None:
        for _ in range(CIRCS_NAMELESS):
            self.build(1)
        told = Building(self.net, self.client, [])
        circuit = Origin(self.client.means, self.net.worker, self.net.mark, told)
        link = self.client.dial(self.relays[0])
        self.assertRaises(Unavailable, circuit.begin, link, self.relays[0].hop)

    def test_what_a_circuit_is_not_ready_for(self) -> None:
        building = self.net.begin(self.client, *self.relays[:2])
        circuit = building.circuit
        for _ in range(2):
            self.assertRaises(LocalProtocolError, circuit.open, ECHO, Heard())
            self.assertRaises(LocalProtocolError, circuit.extend, self.relays[2].hop)
            self.assertRaises(LocalProtocolError, circuit.drop)
            self.assertRaises(LocalProtocolError, circuit.ask, 20, b"", {21}, 5.0, list)
            self.net.run(lambda: len(circuit.hops) == 1)
        self.net.run(lambda: building.stands)
        self.assertRaises(LocalProtocolError, circuit.extend, evolve(self.relays[2].hop, endpoints=()))
        self.relays[1].serve("echo.test", 7, Echo)
        self.echo(circuit)
        self.assertRaises(LocalProtocolError, circuit.extend, self.relays[2].hop)

    def test_more_than_eight_hops(self) -> None:
        names = [self.net.relay(f"number {number}") for number in range(MAX_HOPS)]
        circuit = self.net.build(self.client, *names)
        self.assertRaises(LocalProtocolError, circuit.extend, self.relays[0].hop)

    def test_long_endpoints(self) -> None:
        """An extension is one cell, with as many endpoints as fit."""
        building = self.begun()
        spare = self.relays[2].hop
        more = tuple(f"tcp:{'a' * 110}{number}:9" for number in range(9))
        building.circuit.extend(evolve(spare, endpoints=(*spare.endpoints, *more)))
        self.net.run(lambda: len(building.circuit.hops) == 3)

    def test_closed_while_it_is_built(self) -> None:
        for steps in range(0, 60, 3):
            self.setUp()
            building = self.net.begin(self.client, *self.relays[:3])
            for _ in range(steps):
                self.net.clock.step()
            building.circuit.close()
            building.circuit.close()
            self.dies(building, Destroy.ASKED)

    def test_retired_while_it_is_built(self) -> None:
        building = self.net.begin(self.client, *self.relays[:3])
        self.net.run(lambda: len(building.circuit.hops) == 1)
        building.circuit.retire()
        self.dies(building, Destroy.NONE)


class OpenTests(NetworkCase):
    """open -> dirty -> closed."""

    def test_no_new_stream_and_closed_with_the_last_one(self) -> None:
        building = self.build()
        circuit = building.circuit
        sink = Heard()
        stream = circuit.open(ECHO, sink)
        circuit.retire()
        self.assertIs(circuit.state, State.DIRTY)
        self.assertRaises(LocalProtocolError, circuit.open, ECHO, Heard())
        stream.write(b"goes on")
        self.net.run(lambda: sink.all == b"goes on")
        stream.end()
        self.dies(building, Destroy.NONE)
        self.assertEqual(sink.reason, Reason.DONE)

    def test_dirty_with_nothing_on_it(self) -> None:
        building = self.build()
        building.circuit.retire()
        self.assertEqual(building.ended, Destroy.NONE)
        self.dies(building, Destroy.NONE)

    def test_refused_by_the_exit(self) -> None:
        sink = Heard()
        self.build().circuit.open(Open(Proto.TCP, "nobody.test", 1), sink)
        self.net.run(lambda: sink.reason is not None)
        self.assertEqual(sink.reason, Reason.REFUSED)

    def test_data_goes_with_the_question(self) -> None:
        """Optimistic data: the answer to it takes one way there and back."""
        circuit = self.build().circuit
        begin = self.net.clock.seconds()
        self.echo(circuit)
        self.assertLess(self.net.clock.seconds() - begin, 2 * 3 * self.net.delay + 1e-6)

    def test_padding(self) -> None:
        """Set-ups of one kind send the same number of cells, whatever their length."""
        counts = set()
        for hops in (1, 2, 3):
            circuit = self.build(hops).circuit
            circuit.pad(10)
            self.net.settle(0.1)
            counts.add((circuit.sent, circuit._forward[0].cells))
            circuit.pad(5)
            self.assertEqual(circuit.sent, 10)
            circuit.drop(3)
            self.net.settle(0.1)
            self.assertEqual(circuit.sent, 13)
            self.relays[hops - 1].serve("echo.test", 7, Echo)
            self.echo(circuit)
        self.assertEqual(counts, {(10, 10)})

    def test_the_guard_hears_no_reason(self) -> None:
        """What goes wrong between the client and a later hop is not its business."""
        building = self.build()
        self.net.recording = True
        next(iter(self.relays[2].circuits.all.values())).slot.send(Cell.RELAY, [bytes(BODY)])
        self.net.run(lambda: building.ended is not None)
        self.net.settle()
        said = b"".join(self.client.carriers[0].view.pieces)
        self.assertEqual([(cmd, body[0]) for _, cmd, body in runs(memoryview(said))], [(Cell.DESTROY, Destroy.NONE)])
        self.assertEqual(building.ended, Destroy.PROTOCOL)

    def test_words_that_are_not_for_clients(self) -> None:
        for text in (
            message(Command.CONNECT, 1, ECHO.encode()),
            message(Command.CONNECT, 0, ECHO.encode()),
            message(Command.CONNECT_OK, 0, b"\0\0"),
            message(Command.DISCONNECT, 0, b"\1\0"),
            message(Command.MESSAGE, 5, b"hello"),
            message(21, 5, b"hello"),
            message(0, 0),
        ):
            with self.subTest(text=text[:10]):
                building = self.build()
                exit_end = next(iter(self.relays[2].circuits.all.values()))
                assert exit_end.streams is not None
                exit_end.streams.push([text])
                self.dies(building)

    def test_unrecognised_cells(self) -> None:
        for place in range(3):
            building = self.build()
            circuit = next(iter(self.relays[place].circuits.all.values()))
            circuit.slot.send(Cell.RELAY, [Random(place).randbytes(BODY)] * 2)
            self.dies(building)

    def test_cells_before_there_is_a_hop(self) -> None:
        building = self.net.begin(self.client, self.relays[0])
        self.net.run(lambda: building.circuit._slot is not None)
        building.circuit.cells(Cell.RELAY, [memoryview(bytes(BODY))], 0.0)
        self.assertEqual(building.ended, Destroy.PROTOCOL)

    def test_created_twice(self) -> None:
        building = self.build()
        building.circuit.created(1, b"", 0.0)
        self.assertEqual(building.ended, Destroy.PROTOCOL)


class AskTests(NetworkCase):
    """Questions to the role that the last hop has."""

    def setUp(self) -> None:
        super().setUp()
        self.answers: list[tuple[int, bytes] | Reason] = []

    def ask(self, circuit: Origin, data: bytes, timeout: float = 5.0) -> Ask:
        return circuit.ask(20, data, {21, 22}, timeout, self.answers.append)

    def test_any_length(self) -> None:
        circuit = self.build().circuit
        texts = [b"", b"one", bytes(DATA), bytes(DATA + 1), Random(3).randbytes(20_000), bytes(32 * 1024)]
        for text in texts:
            self.ask(circuit, text)
            self.net.run(lambda: len(self.answers) > 0)
            self.assertEqual(self.answers, [(21, text)])
            self.answers.clear()
        asker = self.parrot.askers[0]
        self.assertEqual((asker.neighbour, asker.binding), (self.relays[1].identity, circuit.binding))
        self.assertTrue(asker.alive)

    def test_many_at_once_beside_streams(self) -> None:
        circuit = self.build().circuit
        for number in range(20):
            self.ask(circuit, b"%d" % number * 1000)
        self.echo(circuit, bytes(100_000))
        self.net.run(lambda: len(self.answers) == 20)
        self.assertEqual(self.answers, [(21, b"%d" % number * 1000) for number in range(20)])

    def test_no_answer(self) -> None:
        circuit = self.build().circuit
        self.ask(circuit, b"silence")
        self.net.run(lambda: bool(self.answers))
        self.assertEqual(self.answers, [Reason.TIMEOUT])
        self.parrot.askers[0].answer(21, b"late")
        self.net.settle()
        self.assertIs(circuit.state, State.OPEN)

    def test_the_circuit_ends_before(self) -> None:
        building = self.build()
        self.ask(building.circuit, b"destroy")
        self.dies(building)
        self.assertEqual(self.answers, [Reason.PROTOCOL])

    def test_a_dirty_circuit_waits_for_its_answers(self) -> None:
        building = self.build()
        self.ask(building.circuit, b"last")
        building.circuit.retire()
        self.dies(building, Destroy.NONE)
        self.assertEqual(self.answers, [(21, b"last")])

    def test_another_answer_than_was_asked_for(self) -> None:
        building = self.build()
        self.ask(building.circuit, b"silence")
        self.net.run(lambda: bool(self.parrot.askers))
        self.parrot.askers[0].answer(30, b"")
        self.dies(building)


class TransferTests(NetworkCase):
    def sums(self, *texts: bytes) -> list[bytes]:
        return [hashlib.sha256(text).digest() for text in texts]

    def test_four_mebibytes_each_way(self) -> None:
        """G20 to G22: CONNECT, OK, DATA by itself, DISCONNECT of either side with a half close; SHA-256 equal."""
        far = Heard()
        back = Random(2).randbytes(4 << 20)

        def service(stream: Stream) -> Heard:
            far.stream = stream
            return far

        self.relays[2].serve("sink.test", 9, service)
        there = Random(1).randbytes(4 << 20)
        near = Heard()
        stream = self.build().circuit.open(Open(Proto.TCP, "sink.test", 9), near)
        for at in range(0, len(there), 65_536):
            stream.write(there[at : at + 65_536])
        stream.end()
        self.net.run(lambda: far.stream is not None)
        far.stream.write(back)  # type: ignore[union-attr]
        self.net.run(lambda: "ended" in far.words and len(near.all) == len(back))
        self.assertIsNone(near.reason, "one direction has ended, the other goes on")
        far.stream.end()  # type: ignore[union-attr]
        self.net.run(lambda: near.reason is not None and far.reason is not None)
        self.assertEqual((near.reason, far.reason), (Reason.DONE, Reason.DONE))
        self.assertEqual(self.sums(near.all, far.all), self.sums(back, there))

    def test_a_sink_that_takes_nothing(self) -> None:
        """Nowhere on the way are more than a window's cells, however much is to be sent and however long it takes."""
        slow = Heard(slow=True)

        def service(stream: Stream) -> Heard:
            slow.stream = stream
            return slow

        self.relays[2].serve("slow.test", 9, service)
        circuit = self.build().circuit
        near = Heard()
        stream = circuit.open(Open(Proto.TCP, "slow.test", 9), near)
        said = bytes(4 << 20)
        stream.write(said)
        self.net.settle(60)
        self.assertEqual(len(slow.pieces), STREAM_WINDOW)
        self.assertIn("hold", near.words)
        for node in (self.client, *self.relays):
            for carrier in node.carriers:
                self.assertEqual((carrier.size, carrier.link.queued), (0, 0))
                self.assertLessEqual(carrier.most, (STREAM_WINDOW + 64) * CELL)
        self.echo(circuit, b"others go on")
        slow.slow = False
        slow.stream.resume()  # type: ignore[union-attr]
        self.net.run(lambda: len(slow.all) == len(said))

    def test_a_link_that_takes_nothing(self) -> None:
        """A neighbour who does not read holds up its circuits, which make no more cells than their windows allow."""
        circuit = self.build().circuit
        carrier = next(one for one in self.relays[0].carriers if one.other.node is self.client)
        sink = Heard()
        stream = circuit.open(ECHO, sink)
        self.net.run(lambda: sink.answer is not None)
        carrier.other._held = True
        stream.write(bytes(4 << 20))
        self.net.settle(20)
        self.assertLess(carrier.size + carrier.link.queued * CELL, (STREAM_WINDOW + 64) * CELL)
        carrier.other.hold(False)
        self.net.run(lambda: len(sink.all) == 4 << 20)

    def test_datagrams(self) -> None:
        sink = Heard()
        stream = self.build().circuit.open(Open(Proto.UDP, "echo.test", 7), sink)
        for size in (1, 500, 2000, 2007):
            stream.write(bytes(size))
        self.net.settle()
        self.assertEqual([len(piece) for piece in sink.pieces], [1, 500, 2000])


NOISE = [command for command in range(12) if command != Cell.DESTROY]  # which is good, and its sender would know


class NoiseTests(NetworkCase):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(NOISE), st.binary(max_size=60)), max_size=12))
    def test_any_cells_between_neighbours(self, noise: list[tuple[int, int, bytes]]) -> None:
        """Whatever neighbours say to each other, nobody raises; a circuit still works, or is gone."""
        self.setUp()
        building = self.build()
        sink = Heard()
        building.circuit.open(ECHO, sink).write(b"hello")
        nodes: list[Node] = [self.client, *self.relays]
        for place, command, text in noise:
            carrier = next(one for one in nodes[place].carriers if one.other.node is nodes[place + 1])
            circ = next(iter(carrier.link._slots), 7)
            body = text + bytes(CELL - 5 - len(text))
            carrier.write(circ.to_bytes(4, "big") + bytes((command,)) + body)
            self.net.settle(0.01)
        self.net.settle()
        if building.ended is None:
            self.echo(building.circuit)
        else:
            self.assertIsNotNone(sink.reason)
