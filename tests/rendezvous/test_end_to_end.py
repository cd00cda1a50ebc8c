"""A client and a hidden service that meet in a network in memory, and what everybody on the way has seen of it."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from attrs import define, evolve
from twisted.internet.defer import Deferred

from layer8.core.roles import Asker
from layer8.crypto.introduction import BLOB
from layer8.crypto.keys import NodeKey
from layer8.relay.client import OFFER
from layer8.relay.origin import Origin, State
from layer8.relay.wire import Destroy, Open, Proto, Reason
from layer8.rendezvous import service as serving
from layer8.rendezvous.access import Access
from layer8.rendezvous.client import ABOVE, KNOCKS, NotMet, Step, meet
from layer8.rendezvous.limits import BAD_PORTS, BLOB_AGE, MAX_EFFORT, SETUP_CELLS, T_INTRO, T_RENDEZVOUS
from layer8.rendezvous.meeting import Meeting
from layer8.rendezvous.price import LOOK
from layer8.rendezvous.wire import NO_WORK, REPLY_LEAST, Knock, Renzv
from layer8.testing.network import Heard
from tests.rendezvous.net import HiddenCase, Told

PORT = Open(Proto.TCP, "", 80)


class MeetCase(HiddenCase):
    def echoed(self, origin: Origin, text: bytes) -> None:
        sink = Heard()
        stream = origin.open(PORT, sink)
        stream.write(text)
        stream.end()
        self.net.run(lambda: "ended" in sink.words or sink.reason is not None)
        self.assertEqual(hashlib.sha256(sink.all).digest(), hashlib.sha256(text).digest())


class MeetTests(MeetCase):
    def test_sixteen_mebibytes(self) -> None:
        """G38: mode 1 carries 16 MiB, and its access point sees fewer than 8 cells of it."""
        self.start()
        before = self.cells()
        self.echoed(self.meet(), Random(1).randbytes(16 * 2**20))
        self.assertLess(self.cells() - before, 8)
        self.assertEqual(len(self.service.sessions), 1)
        self.assertEqual(sum(one.passed for access in self.access for one in access.listeners.values()), 1)

    def cells(self) -> int:
        """Count what has gone through access points, on the service's side."""
        count = 0
        for node, access in zip(self.relays, self.access, strict=False):
            for listener in access.listeners.values():
                circuit = node.circuits.all[listener.asker.circuit]
                count += circuit.cells_forward + circuit.cells_backward
        return count

    def test_many_clients_and_streams(self) -> None:
        self.start()
        for _ in range(3):
            origin = self.meet()
            for text in (b"one", b"two" * 1000):
                self.echoed(origin, text)
        self.assertEqual(len(self.service.sessions), 3)
        self.assertEqual(self.service.counted["met"], 3)

    def test_lengths_of_paths(self) -> None:
        self.start()
        self.meet()
        self.assertEqual([len(path) for path in self.there.paths], [4, 4, 4, 4])
        self.assertEqual(sorted(len(path) for path in self.here.paths), [3, 4])

    def test_set_ups_look_alike(self) -> None:
        """Before a circuit says anything of its own, as many cells have left on it as on all others."""
        self.start()
        self.meet()
        circuits = [building.circuit for building in (*self.there.built, *self.here.built)]
        self.assertEqual({origin.sent for origin in circuits}, {SETUP_CELLS})

    def test_login(self) -> None:
        """G54: a client may say who it is, to this service alone."""
        self.start()
        key = NodeKey.make()
        self.echoed(self.meet(login=key), b"hello")
        self.assertEqual(self.logins, [key.node_id])

    def test_the_client_leaves(self) -> None:
        self.start()
        origin = self.meet()
        origin.close()
        self.net.run(lambda: not self.service.sessions)

    def test_the_service_stops(self) -> None:
        self.start()
        origin = self.meet()
        self.service.stop()
        self.net.run(lambda: origin.state is State.CLOSED)
        self.net.settle()
        self.assertEqual([access.listeners for access in self.access], [{}] * 4)


class PortTests(MeetCase):
    def refusal(self, origin: Origin, target: Open) -> Reason | None:
        sink = Heard()
        origin.open(target, sink)
        self.net.run(lambda: sink.reason is not None)
        return sink.reason

    def test_no_such_port(self) -> None:
        self.start()
        origin = self.meet()
        self.assertEqual(self.refusal(origin, evolve(PORT, port=81)), Reason.NO_PORT)
        self.echoed(origin, b"still there")

    def test_a_client_that_tries_them_all(self) -> None:
        self.start()
        origin = self.meet()
        for port in range(1, BAD_PORTS + 1):
            self.refusal(origin, evolve(PORT, port=port))
        self.net.run(lambda: origin.state is State.CLOSED)

    def test_a_service_is_no_exit(self) -> None:
        self.start()
        origin = self.meet()
        for target in (evolve(PORT, host="127.0.0.1"), evolve(PORT, proto=Proto.UDP)):
            self.assertEqual(self.refusal(origin, target), Reason.POLICY)


class FailureTests(MeetCase):
    def step(self, **more: Any) -> Step:
        with self.assertRaises(NotMet) as caught:
            self.meet(**more)
        step: Step = caught.exception.step
        return step

    def test_nobody_is_named(self) -> None:
        self.assertEqual(self.step(), Step.INTRODUCTION)

    def test_a_wrong_service_key(self) -> None:
        """G41: whoever answers by the right access point under another key is not taken for the service."""
        self.start()
        self.key = NodeKey.make()
        self.assertEqual(self.step(), Step.RENDEZVOUS)

    def test_nobody_listens_any_more(self) -> None:
        self.start()
        told = self.told
        self.service.stop()
        self.net.settle()
        self.told = told
        self.assertEqual(self.step(), Step.INTRODUCTION)

    def test_the_next_point(self) -> None:
        self.start()
        points = [evolve(point, auth_key=bytes(32)) for point in self.told.points[:2]]
        self.told = Told((*points, self.told.points[2]))
        self.echoed(self.meet(), b"hello")

    def test_clients_that_are_not_known(self) -> None:
        """A stranger learns no more than from a service that has gone to sleep."""
        self.service = self.serve(self.key, cookie=b"k" * 32)
        self.start()
        before = self.net.clock.seconds()
        self.assertEqual(self.step(), Step.LATE)
        self.assertGreater(self.net.clock.seconds() - before, T_RENDEZVOUS)
        self.assertEqual(self.service.counted["not for us"], 3)
        self.echoed(self.meet(cookie=b"k" * 32), b"hello")

    def test_clients_that_are_not_let_in(self) -> None:
        key = NodeKey.make()
        self.service = self.serve(self.key, allow=lambda login: login == key.node_id)
        self.start()
        self.assertEqual(self.step(), Step.LATE)
        self.assertEqual(self.service.counted["refused"], 3)
        self.echoed(self.meet(login=key), b"hello")

    def test_nowhere_to_meet(self) -> None:
        """The access point that is tried is never the place to meet, or it would see both ends of one visit."""
        self.start()
        point = self.told.points[0]
        self.told = Told((point,))
        self.here.offering = [node for node in self.relays if node.identity == point.node]
        self.assertEqual(self.step(), Step.RENDEZVOUS)
        self.assertEqual(self.service.counted, {})

    def test_a_service_of_another_version(self) -> None:
        self.start()
        self.patch(serving, "OFFER", evolve(OFFER, versions=(9,)))
        self.assertEqual(self.step(), Step.RENDEZVOUS)

    def test_access_points_that_say_nothing(self) -> None:
        """Each has its time, and no more."""
        self.start()
        self.patch(Access, "_connect", lambda access, asker, said, now: None)
        begun = self.net.clock.seconds()
        self.assertEqual(self.step(), Step.INTRODUCTION)
        self.assertTrue(3 * T_INTRO <= self.net.clock.seconds() - begun <= 3 * T_INTRO + 5)

    def test_a_rendezvous_hop_that_goes(self) -> None:
        """The client does not wait for a service that has nowhere to come to."""
        self.start()
        done: list[Any] = []
        begun = self.net.clock.seconds()
        Deferred.fromCoroutine(meet(self.here, self.key.node_id, self.told)).addBoth(done.append)
        for _ in range(3):
            self.net.run(lambda: self.service._busy == 1)
            for meeting, node in zip(self.meetings, self.relays, strict=False):
                for asker in list(meeting._waiting.values()):
                    node.circuits.all[asker.circuit].close(Destroy.ASKED)
            self.net.run(lambda: self.service._busy == 0)
        self.net.run(lambda: bool(done))
        self.assertEqual(done[0].value.step, Step.RENDEZVOUS)
        self.assertLess(self.net.clock.seconds() - begun, T_RENDEZVOUS)

    def test_nothing_is_left_behind(self) -> None:
        self.key = NodeKey.make()
        self.start()
        self.step()
        self.net.settle()
        self.assertEqual([node.link.circuits for node in self.here.node.carriers], [0] * len(self.here.node.carriers))
        self.assertEqual(self.service.sessions, {})


class HostileTests(MeetCase):
    def test_an_access_point_that_repeats_a_knock(self) -> None:
        """The service comes once, however often it is told."""
        self.start()
        said: list[tuple[int, bytes]] = []
        for access in self.access:
            for listener in access.listeners.values():
                listener.asker = Repeating(listener.asker, said)
        self.echoed(self.meet(), b"hello")
        self.net.settle()
        self.assertEqual(len(said), 3)
        self.assertEqual(self.service.counted, {"met": 1, "not for us": 2})

    def test_an_access_point_that_talks_nonsense(self) -> None:
        """It is left for another one."""
        self.start()
        point, listener = next((access, one) for access in self.access for one in access.listeners.values())
        listener.asker.answer(Renzv.CONNECT, b"nonsense")
        self.net.run(lambda: listener.auth_key not in self.service.points and len(self.service.points) == 3)
        self.assertNotIn(listener.auth_key, point.listeners)

    def test_a_knock_for_another_point(self) -> None:
        self.start()
        one = next(one for access in self.access for one in access.listeners.values())
        one.asker.answer(Renzv.CONNECT, Knock(bytes(32), 1, NO_WORK, bytes(BLOB)).encode())
        self.net.run(lambda: self.service.counted["no work"] == 1)
        one.asker.answer(Renzv.CONNECT, Knock(one.auth_key, 1, NO_WORK, bytes(BLOB)).encode())
        self.net.run(lambda: self.service.counted["not for us"] == 1)
        self.assertEqual(len(self.service.points), 3)

    def test_a_rendezvous_hop_that_answers_itself(self) -> None:
        """It knows no key that the client would take; there is no byte of data before that."""
        self.start()
        for node in self.relays[:4]:
            node.circuits.serve(Liar())
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.RENDEZVOUS)

    def test_a_client_whose_clock_is_wrong(self) -> None:
        self.start()
        ways = self.ways("late")
        ways.behind = BLOB_AGE + 1
        with self.assertRaises(NotMet):
            self.result(meet(ways, self.key.node_id, self.told))
        self.assertEqual(self.service.counted, {"old": 3})

    def test_a_service_that_stops_in_between(self) -> None:
        self.start()
        done: list[Any] = []
        Deferred.fromCoroutine(meet(self.here, self.key.node_id, self.told)).addBoth(done.append)
        self.net.run(lambda: self.service._busy == 1)
        self.service.stop()
        self.net.run(lambda: bool(done))
        self.net.settle()
        self.assertEqual(self.service.sessions, {})
        carriers = self.there.node.carriers
        self.assertEqual([one.link.circuits for one in carriers], [0] * len(carriers))


class Liar:
    """A rendezvous hop that says the service has come."""

    commands = Meeting.commands

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        asker.answer(Renzv.LISTEN_OK, b"")
        asker.answer(Renzv.CONNECT_OK, bytes(REPLY_LEAST))

    def gone(self, circuit: int) -> None:
        """Nothing is kept."""


@define(eq=False)
class Repeating:
    """An access point's way to a service, by which everything goes three times."""

    _asker: Any
    _said: list[tuple[int, bytes]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asker, name)

    def answer(self, command: int, data: bytes) -> None:
        for _ in range(3):
            self._said.append((command, data))
            self._asker.answer(command, data)


class Greedy:
    """What an access point asks for that asks for more each time."""

    effort = 1

    def paid(self, auth_key: bytes, text: bytes, now: float) -> int | None:
        self.effort += 1
        return None


class WorkTests(MeetCase):
    def raise_price(self, effort: int) -> None:
        self.service.pricing.dropped(0)
        self.service.pricing.handled(effort)
        published = len(self.published)
        self.net.settle(LOOK + 1)
        self.net.run(lambda: len(self.published) > published)

    def test_who_has_worked_is_let_in(self) -> None:
        self.start()
        self.raise_price(500)
        assert self.told.price is not None
        self.assertEqual(self.told.price.effort, 500)
        self.echoed(self.meet(), b"hello")
        self.assertEqual(sum(one.refused for access in self.access for one in access.listeners.values()), 0)

    def test_too_little_is_asked_for_at_first(self) -> None:
        """A client does more and more, as long as it is not too much for it."""
        self.start()
        self.raise_price(500)
        assert self.told.price is not None
        self.told = Told(self.told.points, evolve(self.told.price, effort=100))
        self.echoed(self.meet(), b"hello")
        with self.assertRaises(NotMet):
            self.meet(max_effort=400)

    def test_a_service_that_asks_for_more_than_anybody_does(self) -> None:
        """Nobody begins to work for it."""
        self.start()
        self.raise_price(500)
        assert self.told.price is not None
        for effort, most in ((2**32 - 1, MAX_EFFORT), (101, 100)):
            self.told = Told(self.told.points, evolve(self.told.price, effort=effort))
            with self.assertRaises(NotMet) as caught:
                self.meet(max_effort=most)
            self.assertEqual(caught.exception.step, Step.INTRODUCTION)
        self.assertEqual(sum(one.refused for access in self.access for one in access.listeners.values()), 0)

    def test_access_points_that_never_have_enough(self) -> None:
        """Four knocks at each of three points, and the client says which step failed."""
        self.start()
        self.raise_price(10)
        listeners = [one for access in self.access for one in access.listeners.values()]
        for listener in listeners:
            listener.seeds = Greedy()  # type: ignore[assignment]
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.INTRODUCTION)
        self.assertEqual([one.refused for one in listeners], [KNOCKS] * 3)

    def test_where_others_have_paid_as_much(self) -> None:
        """The point is busy for those: a client does more, at the same one."""
        self.start()
        self.raise_price(100)
        for access in self.access:
            for listener in access.listeners.values():
                listener._buckets[1] = (0.0, self.net.clock.seconds() + 60)
        self.echoed(self.meet(), b"hello")
        self.assertEqual(len(self.here.paths), 2)
        self.assertEqual(self.service.pricing._total, 200)

    def test_a_price_of_yesterday(self) -> None:
        """No work is done for a seed that is good no more."""
        self.start()
        self.raise_price(100)
        assert self.told.price is not None
        self.told = Told(self.told.points, evolve(self.told.price, expires=int(self.here.wall() - BLOB_AGE - 1)))
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertIn("nobody takes", str(caught.exception))

    def test_a_point_that_asks_for_far_more_than_the_service(self) -> None:
        """Its word alone does not make a client work for minutes."""
        self.start()
        self.raise_price(100)
        for access in self.access:
            for listener in access.listeners.values():
                listener.seeds.effort = 100 * ABOVE + 1
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertIn("far more", str(caught.exception))
        for access in self.access:
            for listener in access.listeners.values():
                listener.seeds.effort = 100 * ABOVE
        self.echoed(self.meet(), b"hello")

    def test_the_service_is_not_told_of_those_without(self) -> None:
        self.start()
        self.raise_price(500)
        self.told = Told(self.told.points)
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.INTRODUCTION)
        self.assertEqual(self.service.counted, {})

    def test_an_access_point_that_passes_everything_on(self) -> None:
        """The service checks what it is told, and works for nobody who has not."""
        self.start()
        self.raise_price(500)
        for access in self.access:
            for listener in access.listeners.values():
                listener.seeds.effort = 0
        self.told = Told(self.told.points)
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.LATE)
        self.assertEqual(self.service.counted, {"no work": 3})

    def test_new_points_ask_for_it_too(self) -> None:
        self.start()
        self.raise_price(500)
        for point in list(self.service.points.values()):
            assert point.origin is not None
            point.origin.close()
        self.net.run(lambda: len(self.service.points) == 3)
        self.net.settle(0.5)
        efforts = [one.seeds.effort for access in self.access for one in access.listeners.values()]
        self.assertEqual(efforts, [500] * 3)


class ViewTests(MeetCase):
    recording = True

    def test_nobody_on_the_way_learns_the_service(self) -> None:
        """G37, section 11: not the service's key, nor a client's login, nor a word of what is said."""
        login = NodeKey.make()
        secret = b"what only the two ends know, and nobody on the way between them"
        self.start()
        self.echoed(self.meet(login=login), secret)
        self.net.settle()
        for node in self.relays:
            for what in (self.key.node_id, login.node_id, secret[:20]):
                self.assertFalse(node.view.has(what))

    def test_hops_see_their_neighbours_alone(self) -> None:
        self.start()
        self.echoed(self.meet(), b"hello")
        client, service = self.here.node.address.host, self.there.node.address.host
        for ways, address in ((self.here, client), (self.there, service)):
            guards = {path[0] for path in ways.paths}
            for node in self.relays:
                if node.name not in guards:
                    self.assertFalse(node.view.has(address))
        for node in (self.here.node, self.there.node):
            self.assertFalse(node.view.has(service if node is self.here.node else client))
