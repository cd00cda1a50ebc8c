"""Streams as a program has them: kept until there is a circuit, tried again on another one, never said twice."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from layer8.core.errors import ConfigError, RemoteProtocolError, TimedOut, Unavailable
from layer8.core.roles import Asker
from layer8.crypto.keys import NodeKey, id_text
from layer8.relay.client import AGAIN_TIME, OPEN_TRIES, Need, NoCircuit, NoPath, Open, Proto, Reason, parse_route
from layer8.relay.early import EARLY
from layer8.relay.login import Logins, local, login
from layer8.relay.origin import Hop, State
from layer8.relay.stream import Stream
from layer8.relay.wire import Address, Command, Opened
from layer8.testing.network import Echo, Heard, Node
from tests.relay.pools import EXIT, PoolCase

TARGET = Open(Proto.TCP, *EXIT)


class Silent(Echo):
    """A service that hears and says nothing."""

    heard = b""

    def data(self, pieces: list[bytes]) -> None:
        self.heard += b"".join(pieces)


class Repeats:
    """A role that says everything twice, and nothing to nothing."""

    commands = frozenset((40,))

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        self.heard.append(data)
        if data == b"wrong":
            raise RemoteProtocolError("wrong")
        if data:
            asker.answer(41, data + data)

    def gone(self, circuit: int) -> None:
        """Nothing is kept."""


class ClientCase(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.nodes = self.small()
        self.pool.start()

    def open(self, target: Open = TARGET, **more: Any) -> tuple[Heard, Any]:
        heard = Heard()
        return heard, self.client.open(target, heard, **more)

    def hold_answers(self) -> list[tuple[Node, Stream]]:
        """Let exits answer nothing; what they are asked comes into the list."""
        asked: list[tuple[Node, Stream]] = []
        for node in self.nodes[4:]:
            node.circuits.asked = lambda circuit, stream, target, node=node: asked.append((node, stream))
        return asked

    def wait(self, waiting: Any) -> Any:
        """Wait for something awaitable."""
        got: list[Any] = []
        Deferred.fromCoroutine(waiting).addBoth(got.append)
        self.until(lambda: got)
        if hasattr(got[0], "raiseException"):
            got[0].raiseException()
        return got[0]


class OpeningTests(ClientCase):
    def test_what_is_said_before_there_is_a_circuit_is_said_once(self) -> None:
        heard, stream = self.open()
        stream.write(b"one ")
        stream.write(b"two")
        self.until(lambda: len(heard.all) >= 7)
        self.assertEqual((heard.all, heard.words), (b"one two", ["opened"]))
        stream.write(b" three")
        stream.end()
        self.until(lambda: heard.reason)
        self.assertEqual((heard.all, heard.reason), (b"one two three", Reason.DONE))
        self.assertEqual(heard.words, ["opened", "ended", "closed"])

    def test_it_is_tried_on_another_circuit_with_all_that_was_said(self) -> None:
        asked = self.hold_answers()
        heard, stream = self.open()
        stream.write(b"one ")
        self.until(lambda: asked)
        first = stream.circuit
        stream.write(b"two ")
        self.net.settle(0.1)
        first.close()
        stream.write(b"three")
        self.until(lambda: len(asked) == 2)
        self.assertIsNot(stream.circuit, first)
        (_, gone), (_, there) = asked
        echo = Silent(there)
        there.sink = echo
        there.accept(self.opened())
        self.until(lambda: heard.answer)
        self.net.settle(0.1)
        self.assertTrue(gone.closed)
        self.assertEqual(echo.heard, b"one two three")
        self.assertEqual(heard.words, ["opened"])

    def opened(self) -> Opened:
        return Opened(Address("198.51.100.7"), 60)

    def test_it_gives_up_after_so_many(self) -> None:
        asked = self.hold_answers()
        heard, stream = self.open()
        for count in range(1, OPEN_TRIES + 1):
            self.fill(asked, count)
            self.assertIsNone(heard.reason)
            stream.circuit.close()
        self.assertEqual(heard.reason, Reason.RESET)
        self.net.settle(5)
        self.assertEqual(len(asked), OPEN_TRIES)

    def test_it_is_not_tried_again_when_nobody_waits_any_more(self) -> None:
        asked = self.hold_answers()
        heard, stream = self.open()
        self.until(lambda: asked)
        self.net.settle(AGAIN_TIME)
        stream.circuit.close()
        self.assertEqual(heard.reason, Reason.RESET)

    def test_what_the_far_end_refuses_is_not_tried_again(self) -> None:
        for reason in (Reason.POLICY, Reason.RESOLVE, Reason.REFUSED, Reason.UNREACHABLE, Reason.PROTOCOL):
            asked = self.hold_answers()
            heard, stream = self.open()
            self.fill(asked)
            circuit = stream.circuit
            asked[0][1].close(reason)
            self.heard(heard)
            self.assertEqual((heard.reason, len(asked)), (reason, 1))
            self.assertIs(circuit.origin.state, State.OPEN)

    def test_an_exit_that_is_at_its_limit_is_left_alone_by_new_streams(self) -> None:
        asked = self.hold_answers()
        _, stream = self.open()
        self.until(lambda: asked)
        first = stream.circuit
        asked[0][1].close(Reason.LIMIT)
        self.until(lambda: len(asked) == 2)
        self.assertIsNot(stream.circuit, first)
        self.assertIsNot(first.origin.state, State.OPEN)

    def test_one_that_was_open_is_never_repeated(self) -> None:
        heard, stream = self.open()
        stream.write(b"once")
        self.until(lambda: heard.all)
        stream.circuit.close()
        self.assertEqual((heard.reason, heard.words), (Reason.RESET, ["opened", "closed"]))
        self.net.settle(5)
        self.assertEqual(len(self.nodes[4].streams) + len(self.nodes[5].streams), 1)

    def test_who_has_said_much_has_to_wait_for_the_answer(self) -> None:
        asked = self.hold_answers()
        heard, stream = self.open()
        stream.write(bytes(EARLY - 1))
        self.assertEqual(heard.words, [])
        stream.write(b"x")
        self.assertEqual(heard.words, ["hold"])
        self.until(lambda: asked)
        self.net.settle(1)
        self.assertEqual(heard.words, ["hold"])
        asked[0][1].sink = Silent(asked[0][1])
        asked[0][1].accept(self.opened())
        self.until(lambda: "go on" in heard.words)
        self.assertEqual(heard.words, ["hold", "opened", "go on"])

    def test_one_that_is_closed_while_it_waits_says_nothing_at_all(self) -> None:
        heard, stream = self.open()
        stream.write(b"secret")
        stream.close()
        self.net.settle(2)
        self.assertEqual((heard.words, heard.reason), ([], None))
        self.assertEqual(self.nodes[4].streams + self.nodes[5].streams, [])

    def test_one_that_is_closed_while_it_is_asked_for_hears_no_more(self) -> None:
        asked = self.hold_answers()
        heard, stream = self.open()
        self.until(lambda: asked)
        stream.close(Reason.RESET)
        self.net.settle(2)
        self.assertEqual((heard.words, len(asked)), ([], 1))
        self.assertTrue(asked[0][1].closed)

    def test_who_pauses_early_hears_nothing_until_he_resumes(self) -> None:
        heard, stream = self.open()
        stream.pause()
        for _ in range(40):
            stream.write(bytes(40_000))
        self.net.settle(5)
        few = len(heard.all)
        self.assertLess(few, 40 * 40_000)
        stream.resume()
        self.until(lambda: len(heard.all) == 40 * 40_000)

    def test_no_circuit_is_an_end_with_a_reason(self) -> None:
        heard, _ = self.open(Open(Proto.TCP, "a.test", 22))
        self.assertEqual(heard.reason, Reason.UNREACHABLE)  # no exit for it
        self.pool.stop()
        heard, _ = self.open()
        self.assertEqual(heard.reason, Reason.INTERNAL)

    def test_users_are_kept_apart(self) -> None:
        openings = [self.open(key=key) for key in ("one", "one", "other")]
        apart = [self.open(key="one", alone=True) for _ in range(2)]
        self.until(lambda: all(heard.answer for heard, _ in openings + apart))
        one, same, other = (stream.circuit for _, stream in openings)
        self.assertIs(one, same)
        self.assertIsNot(one, other)
        self.assertEqual(len({stream.circuit.number for _, stream in openings + apart}), 4)

    def test_a_route_that_cannot_be_is_said_at_once(self) -> None:
        for text in ("via:2", "via:2>rand", "rand>via:1>via:2"):
            with self.assertRaises(ConfigError):
                self.open(route=parse_route(text))


class AskTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.role = Repeats()
        self.nodes[1].circuits.serve(self.role)
        self.need = Need(last=self.nodes[1].identity)

    def ask(self, data: bytes, timeout: float = 20.0) -> Any:
        return self.wait(self.client.ask(self.need, 40, data, {41}, timeout))

    def test_an_answer(self) -> None:
        self.assertEqual(self.ask(b"ab"), (41, b"abab"))
        self.assertEqual(self.ask(bytes(10_000)), (41, bytes(20_000)))
        self.assertEqual(self.pool.built, 1)

    def test_silence(self) -> None:
        with self.assertRaises(TimedOut):
            self.ask(b"")

    def test_an_end_instead_of_an_answer(self) -> None:
        with self.assertRaises(Unavailable):
            self.ask(b"wrong")

    def test_nobody_there(self) -> None:
        self.need = evolve(self.need, last=b"n" * 32)
        with self.assertRaises(NoPath):
            self.ask(b"")

    def test_a_circuit_of_ones_own(self) -> None:
        mine = self.wait(self.client.build(self.need))
        self.assertIsNot(self.wait(self.client.circuit(self.need)), mine)
        self.assertEqual(self.wait(self.client.ask_on(mine, 40, b"a", {41}, 5.0)), (41, b"aa"))
        self.assertEqual((len(mine.ms), len(mine.hops)), (3, 3))
        mine.close()
        with self.assertRaises(Unavailable):
            self.wait(self.client.ask_on(mine, 40, b"a", {41}, 5.0))

    def test_one_more_hop_that_nobody_here_knows(self) -> None:
        """Somebody has said who it is and where; no descriptor of it is needed."""
        circuit = self.wait(self.client.build(Need()))
        stranger = self.relay("stranger", known=False)
        self.wait(self.client.extend(circuit, stranger.hop))
        self.assertEqual([len(circuit.origin.hops), circuit.origin.hops[-1].identity], [4, stranger.identity])
        heard = Heard()
        circuit.origin.open(TARGET, heard)
        self.heard(heard)
        self.assertEqual(heard.words, ["opened"])

    def test_one_more_hop_that_is_not_to_be_had(self) -> None:
        for end in (False, True):
            circuit = self.wait(self.client.build(Need()))
            waiting = Deferred.fromCoroutine(
                self.client.extend(circuit, Hop(b"n" * 32, b"o" * 32, ("tcp:10.0.0.9:9000",)))
            )
            if end:
                circuit.close()
            failures: list[Any] = []
            waiting.addBoth(failures.append)
            self.fill(failures)
            failures[0].trap(NoCircuit)
            self.assertEqual(circuit.origin.state, State.CLOSED)
        with self.assertRaises(NoCircuit):
            self.wait(self.client.extend(circuit, self.nodes[0].hop))

    def test_without_some_nodes(self) -> None:
        """Whoever is to be the last hop is none of those before it."""
        bad = frozenset(node.identity for node in self.nodes[:2])
        for _ in range(5):
            circuit = self.wait(self.client.build(Need(without=bad)))
            self.assertFalse(bad & {one.identity for one in circuit.path})

    def test_one_that_cannot_be_built(self) -> None:
        dead = self.dead("dead")
        with self.assertRaises(NoCircuit):
            self.wait(self.client.build(Need(last=dead.identity)))


class LoginTests(ClientCase):
    """G25: who has built a circuit, proven to its last hop."""

    def setUp(self) -> None:
        super().setUp()
        self.client.key = self.key = NodeKey.make()
        self.logins = Logins(self.net.mark)
        self.home = self.nodes[4]
        self.home.circuits.serve(self.logins)
        self.home.serve("192.168.0.2", 22, Echo)
        self.route = parse_route(f"rand>{id_text(self.home.identity)}")

    def known(self) -> list[bytes]:
        return list(self.logins._known.values())

    def test_it_comes_before_the_stream_and_once_a_circuit(self) -> None:
        there: list[bytes | None] = []
        asked = self.home.circuits.asked
        assert asked is not None

        def note(circuit: Any, stream: Any, target: Any) -> None:
            there.append(self.logins.of(circuit.number))
            asked(circuit, stream, target)

        self.home.circuits.asked = note
        for _ in range(2):
            heard, stream = self.open(Open(Proto.TCP, "192.168.0.2", 22), route=self.route, known=True)
            self.heard(heard)
        self.assertEqual(there, [self.key.node_id] * 2)
        stream.circuit.close()
        self.until(lambda: not self.home.circuits.all)
        self.assertEqual(self.known(), [])

    def test_a_stream_that_does_not_say_it_has_another_circuit(self) -> None:
        heard, named = self.open(Open(Proto.TCP, "192.168.0.2", 22), route=self.route, known=True)
        other, nameless = self.open(Open(Proto.TCP, "192.168.0.2", 22), route=self.route)
        self.until(lambda: heard.answer and other.answer)
        self.assertIsNot(named.circuit, nameless.circuit)
        self.assertEqual(self.known(), [self.key.node_id])

    def test_it_is_good_on_one_circuit_of_one_network(self) -> None:
        first, second = (self.wait(self.client.build(Need(route=self.route))).origin for _ in range(2))
        stolen = login(self.key, self.net.mark, first.binding)
        elsewhere = login(self.key, bytes(8), second.binding)
        for data in (stolen, elsewhere, b"", bytes(96)):
            circuit = self.wait(self.client.build(Need(route=self.route))).origin
            circuit.tell(Command.LOGIN, data)
            self.net.settle(1)
            self.assertIs(circuit.state, State.CLOSED)
        self.assertEqual(self.known(), [])
        first.tell(Command.LOGIN, stolen)
        self.until(self.known)
        first.tell(Command.LOGIN, stolen)
        self.until(lambda: first.state is State.CLOSED)  # once is enough

    def test_what_is_local(self) -> None:
        for host in ("10.1.2.3", "192.168.0.2", "127.0.0.1", "::1", "fd00::1", "169.254.1.1", "nas", "NAS.", "tv.lan"):
            self.assertTrue(local(host), host)
        for host in ("", "192.0.1.1", "2a00::1", "a.example", "lan.example", "192.168.0.2.example"):
            self.assertFalse(local(host), host)
