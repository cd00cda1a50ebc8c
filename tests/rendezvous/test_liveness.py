"""Circuits to services that hang, or whose rendezvous hop does: left soon, and the service is met anew."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.relay.client import Open, Proto, Reason
from layer8.relay.limits import T_SILENT as POOL_SILENT
from layer8.relay.origin import Origin, State
from layer8.relay.standing import Circuit, Need
from layer8.rendezvous import visits as visiting
from layer8.rendezvous.limits import BAD_PORTS, STREAMS_PER_SESSION, T_PING, T_RENDEZVOUS
from layer8.rendezvous.visits import (
    IDLE,
    INTRODUCTION_FAILED,
    INTRODUCTION_TIMED_OUT,
    LOOK,
    T_SILENT,
    VISITS,
    Call,
    Found,
    Visits,
)
from layer8.rendezvous.wire import Renzv
from layer8.testing.network import Heard, Node
from tests.rendezvous.net import HiddenCase

SOON = T_SILENT + T_PING + 3 * LOOK
PORT = Open(Proto.TCP, "", 80)


class Asking(Heard):
    code: int | None = None

    def refused(self, code: int) -> None:
        self.code = code


class VisitCase(HiddenCase):
    def setUp(self) -> None:
        super().setUp()
        self.login: NodeKey | None = None
        self.cookies = [b""]  # of what was kept, and of what is fresh
        self.finds: list[bool] = []
        self.visits = Visits(self.here, TaskSet(Logger()), self.find)
        self.addCleanup(self.visits.close)

    async def find(self, name: str, fresh: bool) -> Found:
        self.finds.append(fresh)
        if fresh:
            self.cookies = self.cookies[-1:]
        return Found(self.key.node_id, self.told, cookie=self.cookies[0], login=self.login)

    def open(self, key: str = "", name: str = "service") -> tuple[Asking, Call]:
        asking = Asking()
        call = self.visits.open(name, 80, asking, key)
        assert isinstance(call, Call)
        return asking, call

    def echoed(self, text: bytes, key: str = "") -> tuple[Asking, Call]:
        asking, call = self.open(key)
        call.write(text)
        self.net.run(lambda: asking.all == text or asking.reason is not None)
        self.assertEqual(asking.all, text)
        return asking, call

    @property
    def circuit(self) -> Origin:
        (there,) = self.visits._circuits.values()
        return there.origin

    def hop(self) -> Node:
        """Give the rendezvous hop of the one circuit."""
        return next(node for node in self.relays if node.identity == self.circuit.hops[-1].identity)

    def pings(self) -> list[bytes]:
        """Count from now on what the service is asked."""
        said: list[bytes] = []
        (session,) = self.service.sessions.values()
        before = session.origin.heard[Renzv.PING]

        def heard(data: bytes) -> None:
            said.append(data)
            before(data)

        session.origin.heard[Renzv.PING] = heard
        return said


class HangTests(VisitCase):
    def fails_soon(self, asking: Asking, call: Call) -> None:
        """A stream that stands is told, one that is new as well, and the one after them works."""
        old, begun = self.circuit, self.net.clock.seconds()
        call.write(b"are you there?")
        waiting, _ = self.open()
        self.net.run(lambda: asking.reason is not None and waiting.reason is not None)
        self.assertLess(self.net.clock.seconds() - begun, SOON)
        self.assertEqual((asking.reason, waiting.reason), (Reason.TIMEOUT, Reason.TIMEOUT))
        self.assertIs(old.state, State.CLOSED)
        self.assertEqual(self.visits._circuits, {})

    def test_the_service_hangs(self) -> None:
        self.start()
        asking, call = self.echoed(b"hello")
        self.hang(self.there.node)
        self.fails_soon(asking, call)
        # It is started again somewhere else.
        self.there = self.ways("service again")
        self.service = self.serve(self.key)
        self.told = type(self.told)(())
        self.start()
        self.echoed(b"again")

    def test_the_rendezvous_hop_hangs(self) -> None:
        self.start()
        asking, call = self.echoed(b"hello")
        hop = self.hop()
        self.hang(hop)
        self.net.by_endpoint.pop(hop.endpoint)
        self.fails_soon(asking, call)
        self.here.offering = [node for node in self.here.offering if node is not hop]
        points = tuple(point for point in self.told.points if point.node != hop.identity)
        self.told = type(self.told)(points)
        self.relays.remove(hop)
        self.relays.append(self.net.relay("relay 9"))
        self.echoed(b"again")

    def test_the_rendezvous_hop_dies(self) -> None:
        """Its neighbours notice, and say so at once."""
        self.start()
        asking, _ = self.echoed(b"hello")
        begun = self.net.clock.seconds()
        self.kill(self.hop())
        self.net.run(lambda: asking.reason is not None)
        self.assertLess(self.net.clock.seconds() - begun, 1.0)
        self.here.offering = [node for node in self.here.offering if node.endpoint in self.net.by_endpoint]
        self.net.run(lambda: len(self.service.points) == 3)
        self.net.settle()
        self.echoed(b"again")

    def test_only_who_waits_is_asked(self) -> None:
        """One question when it has become quiet, and then no more: nothing tells that somebody is there still."""
        self.start()
        _, call = self.echoed(b"hello")
        pings = self.pings()
        self.net.settle(60.0)
        self.assertEqual(len(pings), 1)
        call.write(b"something")
        self.net.settle(60.0)
        self.assertEqual(len(pings), 2)
        self.assertIs(self.circuit.state, State.OPEN)
        (session,) = self.service.sessions.values()
        self.assertEqual(session.bad_ports, 0)

    def test_a_service_that_only_takes(self) -> None:
        """What is said is not answered by a program; that the service is there is."""
        self.start()
        sink = Heard()
        self.asked = lambda stream, port, login: setattr(stream, "sink", sink)  # type: ignore[method-assign]
        self.service.asked = self.asked
        _asking, call = self.open()
        self.net.run(lambda: bool(self.service.sessions))
        pings = self.pings()
        for _ in range(20):
            call.write(b"something")
            self.net.settle(1.0)
        self.assertGreater(len(pings), 3)
        self.assertIs(self.circuit.state, State.OPEN)

    def test_a_circuit_that_takes_no_more(self) -> None:
        """Its streams go on, and are looked after."""
        self.start()
        asking, call = self.echoed(b"hello")
        circuit = self.circuit
        circuit.retire()
        self.assertIs(circuit.state, State.DIRTY)
        pings = self.pings()
        self.net.settle(10.0)
        self.assertEqual(len(pings), 1)
        call.write(b"still")
        self.net.run(lambda: asking.all == b"hellostill")
        # Another one has taken its place, and it is looked after still.
        self.echoed(b"new")
        self.assertIsNot(self.circuit, circuit)
        self.hang(self.there.node)
        call.write(b"there?")
        self.net.run(lambda: asking.reason is Reason.TIMEOUT, SOON)

    def test_more_streams_than_a_session_has(self) -> None:
        """They have another one, and nobody is refused."""
        self.start()
        streams = [self.open() for _ in range(STREAMS_PER_SESSION)]
        self.net.run(lambda: all("opened" in asking.words for asking, _ in streams))
        self.echoed(b"one more")
        self.assertEqual(len(self.service.sessions), 2)
        self.assertEqual({asking.reason for asking, _ in streams}, {None})
        self.visits.close()
        self.net.run(lambda: not self.service.sessions)

    def test_nobody_looks_where_nothing_is(self) -> None:
        self.start()
        _, _call = self.echoed(b"hello")
        self.circuit.close()
        self.assertIsNone(self.visits._timer)


class PoolTests(VisitCase):
    def test_its_question_is_not_for_joined_circuits(self) -> None:
        """What every last hop refuses itself would be a virtual port, and eight of them the end."""
        self.start()
        self.echoed(b"hello")
        circuit = Circuit(1, self.circuit, (), Need(), 0.0)
        circuit.wait_for("an opening", 0.0)
        self.assertFalse(circuit.waits(POOL_SILENT + 1))
        other = Circuit(2, self.result(self.here.to(self.relays[0].hop, 2)), (), Need(), 0.0)
        other.wait_for("an opening", 0.0)
        self.assertTrue(other.waits(POOL_SILENT + 1))
        for _ in range(2 * BAD_PORTS):
            self.circuit.add(Renzv.PING, b"")
        self.echoed(b"still there")


class DescriptorTests(VisitCase):
    """When what was kept is not good any more."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.serve(self.key, cookie=b"1" * 32)
        self.cookies = [b"1" * 32]

    def test_a_service_that_lets_everybody_go(self) -> None:
        """Its descriptor may be another one by now: nobody knocks by the old one."""
        self.start()
        asking, _ = self.echoed(b"hello")
        self.cookies.append(b"2" * 32)
        self.service.change_cookie(b"2" * 32)
        self.net.run(lambda: asking.reason is not None)
        begun = self.net.clock.seconds()
        self.echoed(b"again")
        self.assertLess(self.net.clock.seconds() - begun, 1.0)
        self.assertEqual(self.finds, [False, False, True])

    def test_a_service_that_does_not_come(self) -> None:
        """Before another point is tried, a fresh descriptor is looked for."""
        self.start()
        self.cookies = [b"0" * 32, b"1" * 32]
        begun = self.net.clock.seconds()
        self.echoed(b"hello")
        self.assertLess(self.net.clock.seconds() - begun, T_RENDEZVOUS + 2)
        self.assertEqual((self.finds, self.service.counted["not for us"]), ([False, True], 1))

    def test_all_points_when_it_is_the_same(self) -> None:
        self.start()
        self.cookies = [b"0" * 32]
        asking, _ = self.open()
        self.net.run(lambda: asking.code is not None, 4 * T_RENDEZVOUS)
        self.assertEqual(asking.code, INTRODUCTION_TIMED_OUT)
        self.assertEqual((self.finds, self.service.counted["not for us"]), ([False, True], 3))

    def test_names_of_one_service(self) -> None:
        """Labels in front of it make no more circuits, and neither do petnames."""
        self.start()
        all_of_them = [self.open(name=name) for name in ("a.service", "b.service", "service", "a.service")]
        for _, call in all_of_them:
            call.write(b"hello")
        self.net.run(lambda: all(asking.all == b"hello" for asking, _ in all_of_them))
        self.open(name="c.service")
        self.net.settle()
        self.assertEqual(len(self.service.sessions), 1)
        self.assertEqual(len(self.visits._circuits), 1)

    def test_services_that_nobody_uses(self) -> None:
        """A page may name very many: the one that was used least lately is left."""
        self.patch(visiting, "KEPT", 2)
        self.start()
        streams = [self.echoed(b"hello", key=str(number)) for number in range(2)]
        self.net.settle(5.0)
        streams[1][1].close()
        self.net.settle()
        self.echoed(b"hello", key="2")
        self.net.run(lambda: len(self.service.sessions) == 2)
        self.assertIsNone(streams[0][0].reason)

    def test_visits_that_come_to_nothing(self) -> None:
        """So many may be on their way, and no more."""
        self.visits._find = lambda name, fresh: Deferred()
        for number in range(VISITS):
            self.open(name=str(number))
        asking, _ = self.open(name="one more")
        self.assertEqual(asking.code, INTRODUCTION_FAILED)
        other, _ = self.open(name="0")
        self.assertIsNone(other.code)


class LoginTests(VisitCase):
    """Where we log in there is one circuit: the service would take us for two at a time."""

    def setUp(self) -> None:
        super().setUp()
        self.login = NodeKey.make()

    def test_all_users_share_it(self) -> None:
        self.start()
        all_of_them = [self.open(key) for key in ("one", "two", "one", "three")]
        for _, call in all_of_them:
            call.write(b"hello")
        self.net.run(lambda: all(asking.all == b"hello" for asking, _ in all_of_them))
        self.echoed(b"later", "four")
        self.assertEqual((len(self.service.sessions), self.service.counted["twice"]), (1, 0))

    def test_a_new_one_takes_the_place_of_the_old_one(self) -> None:
        self.start()
        asking, _ = self.echoed(b"hello")
        self.circuit.retire()
        self.echoed(b"again")
        self.net.run(lambda: asking.reason is not None)
        self.assertEqual((len(self.service.sessions), self.service.counted["twice"]), (1, 0))

    def test_it_is_closed_when_nobody_uses_it(self) -> None:
        self.start()
        _, call = self.echoed(b"hello")
        self.net.settle(IDLE + 60)
        self.assertEqual(len(self.service.sessions), 1)
        call.close()
        self.net.settle(IDLE + 60)
        self.assertEqual(len(self.service.sessions), 0)

    def test_alerts(self) -> None:
        heard: list[str] = []
        self.visits.alert = heard.append
        self.start()
        self.echoed(b"hello")
        (session,) = self.service.sessions.values()
        session.origin.add(Renzv.ALERT, b"\x01")
        self.net.run(lambda: bool(heard))

    def test_one_that_cannot_be_met(self) -> None:
        self.told = type(self.told)(())
        both: list[Any] = [self.open(key) for key in ("one", "two")]
        self.net.run(lambda: all(asking.code is not None for asking, _ in both))
        self.assertEqual(self.visits._waiting, {})
