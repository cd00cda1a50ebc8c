"""Circuits that are joined at a hop: what goes over from one to the other, what does not, and how both end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

from attrs import define, field

from layer8.core.errors import LocalProtocolError
from layer8.core.roles import Asker
from layer8.crypto.ntor import Keys
from layer8.relay.circuit import State
from layer8.relay.flow import Stream
from layer8.relay.wire import Address as IP
from layer8.relay.wire import Cell, Command, Destroy, Open, Opened, Proto, message
from layer8.testing.network import Building, Echo, Heard, Network
from tests.relay.test_circuit import NetworkCase

WAIT, JOIN, DONE = 60, 61, 62
PORT = Open(Proto.TCP, "", 80)


@define(eq=False)
class Joiner:
    """A role that joins whoever says JOIN to whoever has said WAIT last."""

    join: Callable[[int, int], bool]
    commands: frozenset[int] = frozenset({WAIT, JOIN})
    waiting: Asker | None = None
    results: list[bool] = field(factory=list)
    forgotten: list[int] = field(factory=list)

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        if command == WAIT:
            self.waiting = asker
            asker.answer(DONE, b"waiting")
        elif self.waiting is not None:
            self.waiting.answer(DONE, data)
            self.results.append(self.join(asker.circuit, self.waiting.circuit))

    def gone(self, circuit: int) -> None:
        self.forgotten.append(circuit)


class JoinedCase(NetworkCase):
    """A client and a service, each with a circuit of its own to one hop."""

    def setUp(self) -> None:
        super().setUp()
        self.net = Network(recording=self.recording)
        self.client, self.service = self.net.client("client"), self.net.client("service")
        names = ("one", "two", "meeting", "three", "four")
        self.relays = [self.net.relay(name) for name in names]
        self.role = Joiner(self.relays[2].circuits.join)
        self.relays[2].circuits.serve(self.role)
        one, two, meeting, three, four = self.relays
        self.near = self.start(self.net.begin(self.client, one, two, meeting))
        self.far = self.start(self.net.begin(self.service, three, four, meeting))
        self.keys = Keys(bytes(range(144)), bytes(range(1, 145)), bytes(32), b"")
        self.targets: list[Open] = []

    recording = False

    def start(self, building: Building) -> Building:
        self.net.run(lambda: building.stands or building.ended is not None)
        self.assertTrue(building.stands)
        return building

    def asked(self, stream: Stream, target: Open) -> None:
        self.targets.append(target)
        stream.sink = Echo(stream)
        stream.accept(Opened(IP(""), 0))

    def meet(self) -> None:
        """Join both, as a client and a service do."""
        heard: list[bytes] = []
        self.near.circuit.heard[DONE] = heard.append
        self.near.circuit.tell(WAIT, b"")
        self.net.run(lambda: heard == [b"waiting"])
        self.far.circuit.tell(JOIN, b"keys")
        self.far.circuit.host(self.keys, self.asked)
        self.net.run(lambda: heard == [b"waiting", b"keys"])
        self.near.circuit.meet(self.keys)

    def echoed(self, text: bytes) -> None:
        sink = Heard()
        stream = self.near.circuit.open(PORT, sink)
        stream.write(text)
        stream.end()
        self.net.run(lambda: "ended" in sink.words)
        self.assertEqual(hashlib.sha256(sink.all).digest(), hashlib.sha256(text).digest())


class JoinTests(JoinedCase):
    def test_streams_go_over(self) -> None:
        """More than a window each way: the two ends count, and the hop between them knows nothing of it."""
        self.meet()
        self.echoed(Random(1).randbytes(3 * 2**20))
        self.assertEqual(self.targets, [PORT])
        self.assertEqual(self.role.results, [True])
        states = [circuit.state for circuit in self.relays[2].circuits.all.values()]
        self.assertEqual(states, [State.JOINED, State.JOINED])
        self.assertEqual({circuit.streams for circuit in self.relays[2].circuits.all.values()}, {None})

    def test_many_streams(self) -> None:
        self.meet()
        sinks = [Heard() for _ in range(20)]
        for number, sink in enumerate(sinks):
            self.near.circuit.open(PORT, sink).write(bytes((number,)) * 5000)
        self.net.run(lambda: all(len(sink.all) == 5000 for sink in sinks))
        self.assertEqual([set(sink.all) for sink in sinks], [{number} for number in range(20)])

    def test_a_stream_that_is_refused(self) -> None:
        self.asked = lambda stream, target: stream.close()  # type: ignore[method-assign]
        self.meet()
        sink = Heard()
        self.near.circuit.open(PORT, sink)
        self.net.run(lambda: sink.reason is not None)

    def test_not_with_itself_nor_with_nobody(self) -> None:
        self.near.circuit.tell(WAIT, b"")
        self.near.circuit.tell(JOIN, b"")
        self.net.run(lambda: self.role.results == [False])
        assert self.role.waiting is not None
        for pair in ((self.role.waiting.circuit, 12345), (12345, self.role.waiting.circuit)):
            self.assertFalse(self.role.join(*pair))

    def test_not_twice(self) -> None:
        self.meet()
        third = self.start(self.net.begin(self.service, self.relays[0], self.relays[2]))
        third.circuit.tell(JOIN, b"late")
        self.net.run(lambda: self.role.results == [True, False])
        self.echoed(b"still there")

    def test_not_with_streams(self) -> None:
        self.relays[2].serve("echo.test", 7, Echo)
        self.near.circuit.heard[DONE] = lambda data: None
        self.echo(self.near.circuit)
        self.near.circuit.tell(WAIT, b"")
        self.net.run(lambda: self.role.waiting is not None)
        self.far.circuit.tell(JOIN, b"")
        self.net.run(lambda: self.role.results == [False])
        one, other = self.relays[2].circuits.all
        self.assertFalse(self.role.join(one, other) or self.role.join(other, one))
        self.assertEqual({each.state for each in self.relays[2].circuits.all.values()}, {State.ENDED})
        self.echo(self.near.circuit)  # nothing has changed

    def test_a_client_joins_no_circuit_in_use(self) -> None:
        self.relays[2].serve("echo.test", 7, Echo)
        self.echo(self.near.circuit)
        with self.assertRaises(LocalProtocolError):
            self.near.circuit.meet(self.keys)

    def test_a_joined_circuit_is_not_extended(self) -> None:
        self.meet()
        with self.assertRaises(LocalProtocolError):
            self.near.circuit.extend(self.relays[4].hop)
        with self.assertRaises(LocalProtocolError):
            self.far.circuit.host(self.keys, self.asked)


class EndTests(JoinedCase):
    def gone(self, building: Building) -> None:
        self.net.run(lambda: building.ended is not None)
        self.net.settle()
        self.assertEqual([relay.circuits.all for relay in self.relays], [{}] * 5)
        self.assertEqual(len(self.role.forgotten), 2)
        for node in (self.client, self.service, *self.relays):
            self.assertEqual([carrier.link.circuits for carrier in node.carriers], [0] * len(node.carriers))

    def test_the_client_ends(self) -> None:
        self.meet()
        self.near.circuit.close()
        self.gone(self.far)

    def test_the_service_ends(self) -> None:
        self.meet()
        sink = Heard()
        ends: list[Destroy] = []
        self.near.circuit.at_end = ends.append
        self.near.circuit.open(PORT, sink)
        self.net.run(lambda: "opened" in sink.words)
        self.far.circuit.close()
        self.gone(self.near)
        self.assertEqual(sink.words[-1], "closed")
        self.assertEqual(len(ends), 1)

    def test_a_link_is_cut(self) -> None:
        self.meet()
        self.service.carriers[0].cut()
        self.gone(self.near)

    def test_other_keys(self) -> None:
        """A cell that the other end does not recognise ends both circuits."""
        self.meet()
        self.far.circuit._host = None
        self.near.circuit.open(PORT, Heard())
        self.gone(self.near)

    def test_early_cells_stay_on_their_side(self) -> None:
        """They would be a mark for somebody behind the hop; no other circuit hears of them."""
        self.meet()
        self.raw(self.near.circuit, Cell.EARLY, message(Command.DROP, 0))
        self.gone(self.far)


class ViewTests(JoinedCase):
    recording = True

    def test_nobody_on_the_way_reads_it(self) -> None:
        secret = b"what only the two ends know" * 10
        self.meet()
        self.echoed(secret)
        for relay in self.relays:
            self.assertFalse(relay.view.has(secret[:16]))
        meeting = self.relays[2].view
        for who in (self.client, self.service):
            self.assertFalse(meeting.has(who.address.host))
