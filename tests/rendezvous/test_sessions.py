"""Who may come to a service, by which way, how many at a time, and what ends it for them."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from layer8.crypto.introduction import BLOB
from layer8.crypto.keys import NodeKey
from layer8.relay.client import NoCircuit
from layer8.relay.origin import Origin, State
from layer8.relay.wire import Reason
from layer8.rendezvous import service as serving
from layer8.rendezvous.client import NotMet, Step, meet
from layer8.rendezvous.limits import (
    INTRO_AGE,
    INTRO_QUEUE,
    SESSIONS_PER_SERVICE,
    SETUP_CELLS,
    STREAM_BURST,
    STREAM_RATE,
    STREAMS_PER_SESSION,
    T_PING,
    T_RENDEZVOUS,
)
from layer8.rendezvous.price import Pricing
from layer8.rendezvous.service import Session
from layer8.rendezvous.wire import NO_WORK, Knock, Renzv
from layer8.testing.network import Heard
from tests.rendezvous.net import MemoryWays, Told
from tests.rendezvous.test_end_to_end import PORT, MeetCase


class ModeTests(MeetCase):
    """The access point as the rendezvous hop, for services that ask for it."""

    def publish(self, points: Any) -> None:
        super().publish(points)
        self.told = Told(points, self.service.price, self.service.modes)

    def setUp(self) -> None:
        super().setUp()
        self.service = self.serve(self.key, modes=(0, 1))

    def test_sixteen_mebibytes(self) -> None:
        """G38: mode 0 carries them too, by one circuit of the client's, and its access point sees all of it."""
        self.start()
        before = len(self.here.paths)
        self.echoed(self.meet(), Random(1).randbytes(16 * 2**20))
        (path,) = self.here.paths[before:]
        self.assertEqual(len(path), 4)
        self.assertEqual([one.mode for one in self.service.sessions.values()], [0])
        (hop,) = (node for node in self.relays if node.name == path[-1])
        self.assertIn(hop.identity, {point.node for point in self.told.points})
        joined = [one for one in hop.circuits.all.values() if one.cells_forward + one.cells_backward > 8000]
        self.assertEqual(len(joined), 2)

    def test_set_ups_look_alike(self) -> None:
        """Nobody on the way tells this circuit from others by what was said before the service came."""
        self.start()
        self.meet()
        circuits = [building.circuit for building in (*self.there.built, *self.here.built)]
        self.assertEqual({origin.sent for origin in circuits}, {SETUP_CELLS})

    def test_a_client_may_choose_the_other_one(self) -> None:
        self.start()
        self.told = evolve(self.told, modes=(1,))
        self.echoed(self.meet(), b"hello")
        self.assertEqual([one.mode for one in self.service.sessions.values()], [1])

    def test_a_service_that_does_not_want_it(self) -> None:
        self.start()
        self.service.modes = (1,)
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.LATE)
        self.assertEqual(self.service.counted, {"another mode": 3})

    def test_a_point_that_is_gone(self) -> None:
        """The next one is tried, as in the other mode."""
        self.start()
        points = [evolve(point, auth_key=bytes(32)) for point in self.told.points[:2]]
        self.told = evolve(self.told, points=(*points, self.told.points[2]))
        self.echoed(self.meet(), b"hello")

    def test_a_wrong_service_key(self) -> None:
        self.start()
        self.key = NodeKey.make()
        with self.assertRaises(NotMet) as caught:
            self.meet()
        self.assertEqual(caught.exception.step, Step.RENDEZVOUS)

    def test_messages_that_nobody_understands(self) -> None:
        """Section 12: data by way of an access point is none of ours; it costs the circuit."""
        self.start()
        for number in (58, 59):
            origin = self.result(self.here.to(self.relays[0].hop, 3))
            origin.tell(number, bytes(2018))
            self.net.run(lambda origin=origin: origin.state is State.CLOSED)  # type: ignore[misc]


class LoginCase(MeetCase):
    def begin(self, login: NodeKey | None = None, name: str = "another", **more: Any) -> list[Any]:
        done: list[Any] = []
        ways = self.ways(name)
        Deferred.fromCoroutine(meet(ways, self.key.node_id, self.told, login=login, **more)).addBoth(done.append)
        return done

    def refused(self, done: list[Any]) -> None:
        self.net.run(lambda: bool(done), 4 * T_RENDEZVOUS)
        self.assertIsInstance(done[0], Failure)
        done[0].trap(NotMet)


class AccessTests(LoginCase):
    """G54: a list of who may come, by keys that are made for this service alone."""

    def setUp(self) -> None:
        super().setUp()
        self.friend, self.other = NodeKey.make(), NodeKey.make()
        self.may = {self.friend.node_id, self.other.node_id}
        self.service = self.serve(self.key, allow=lambda login: login in self.may)

    def test_a_stranger_is_refused(self) -> None:
        self.start()
        strangers = [self.begin(), self.begin(NodeKey.make(), "third")]
        for one in strangers:
            self.refused(one)
        self.assertEqual((self.service.counted["refused"], len(self.service.sessions)), (6, 0))
        self.echoed(self.meet(login=self.friend), b"hello")
        self.assertEqual(self.logins, [self.friend.node_id])

    def test_a_second_key_is_not_linked_to_the_first(self) -> None:
        """One client with two keys: nothing that the service gets is the same for both but where it is met."""
        self.start()
        seen: list[tuple[int, bytes]] = []
        for access in self.access:
            for listener in access.listeners.values():
                listener.asker = Seeing(listener.asker, seen)
        for key in (self.friend, self.other):
            self.echoed(self.meet(login=key), b"hello")
        self.assertEqual(self.logins, [self.friend.node_id, self.other.node_id])
        self.assertEqual(len(self.service.sessions), 2)
        one, two = (data[36:] for command, data in seen if command == Renzv.CONNECT)
        blobs = one[len(NO_WORK) :], two[len(NO_WORK) :]
        pieces = {blobs[0][at : at + 8] for at in range(len(blobs[0]) - 8)}
        self.assertFalse([at for at in range(len(blobs[1]) - 8) if blobs[1][at : at + 8] in pieces])

    def test_one_who_may_come_no_more(self) -> None:
        self.start()
        first, second = self.meet(login=self.friend), self.meet(login=self.other)
        self.may.discard(self.friend.node_id)
        self.service.review()
        self.net.run(lambda: first.state is State.CLOSED)
        self.assertIs(second.state, State.OPEN)
        self.refused(self.begin(self.friend))

    def test_a_removed_client(self) -> None:
        """Section 4: there is a new cookie, and those who came by the old one have to come again."""
        self.service = self.serve(self.key, cookie=b"1" * 32)
        self.start()
        origin = self.meet(cookie=b"1" * 32)
        self.service.change_cookie(b"1" * 32)
        self.assertEqual(len(self.service.sessions), 1)
        half = self.begin(cookie=b"1" * 32)
        self.net.run(lambda: self.service._busy == 1)
        self.service.change_cookie(b"2" * 32)
        self.net.run(lambda: origin.state is State.CLOSED)
        self.refused(half)
        self.assertEqual(len(self.service.sessions), 0)
        self.echoed(self.meet(cookie=b"2" * 32), b"hello")


class TwiceTests(LoginCase):
    """G55: the same login twice at a time."""

    def setUp(self) -> None:
        super().setUp()
        self.login = NodeKey.make()
        self.heard: list[str] = []
        self.told_owner: list[str] = []
        self.service.alert = self.told_owner.append

    def test_the_second_is_refused_and_the_first_is_told(self) -> None:
        self.start()
        first = self.meet(login=self.login, alert=self.heard.append)
        self.refused(self.begin(self.login))
        self.assertEqual(self.service.counted["twice"], 3)
        self.assertEqual((len(self.heard), len(self.told_owner)), (1, 1))
        self.assertIn("same login", self.heard[0])
        self.assertIn(self.login.text, self.told_owner[0])
        self.echoed(first, b"still there")
        self.assertEqual(len(self.service.sessions), 1)

    def test_one_who_has_left(self) -> None:
        self.start()
        first = self.meet(login=self.login)
        first.close()
        self.net.run(lambda: not self.service.sessions)
        self.echoed(self.meet(login=self.login), b"hello")

    def test_one_who_does_not_answer(self) -> None:
        """He may be the same: his machine was switched off."""
        self.start()
        self.meet(login=self.login)
        self.hang(self.here.node)
        begun = self.net.clock.seconds()
        self.here = self.ways("the same again")
        self.echoed(self.meet(login=self.login), b"hello")
        self.assertGreater(self.net.clock.seconds() - begun, T_PING)
        self.assertEqual(len(self.service.sessions), 1)
        self.assertEqual((self.service.counted["twice"], self.told_owner), (0, []))

    def test_one_who_leaves_while_he_is_asked(self) -> None:
        """Nobody waits for an answer of his any longer."""
        self.start()
        self.meet(login=self.login)
        self.hang(self.here.node)
        self.here = self.ways("the same again")
        second = self.begin(self.login, "the same again, too")
        self.net.settle(1.0)
        self.assertEqual(second, [])
        begun = self.net.clock.seconds()
        next(iter(self.service.sessions)).close()
        self.net.run(lambda: bool(second))
        self.assertIsInstance(second[0], Origin)
        self.assertLess(self.net.clock.seconds() - begun, T_PING / 2)

    def test_both_at_once(self) -> None:
        self.start()
        both = [self.begin(self.login, name) for name in ("one", "two")]
        self.net.run(lambda: all(both), 4 * T_RENDEZVOUS)
        self.assertEqual(sorted(isinstance(one[0], Origin) for one in both), [False, True])

    def test_strangers_are_as_many_as_they_like(self) -> None:
        self.start()
        for _ in range(2):
            self.echoed(self.meet(), b"hello")
        self.assertEqual(len(self.service.sessions), 2)

    def test_questions_are_answered_by_both(self) -> None:
        """None of them counts as a wrong port, however many there are."""
        self.start()
        origin = self.meet()
        (session,) = self.service.sessions.values()
        for _ in range(20):
            came = origin.came
            origin.add(Renzv.PING, b"")
            self.net.run(lambda came=came: origin.came > came)  # type: ignore[misc]
            there: list[bool] = []
            session.ask().addCallback(there.append)
            self.net.run(lambda there=there: bool(there))  # type: ignore[misc]
            self.assertEqual(there, [True])
        self.assertEqual(session.bad_ports, 0)
        self.echoed(origin, b"hello")

    def test_what_is_not_known_is_not_heard(self) -> None:
        self.start()
        origin = self.meet(alert=self.heard.append)
        (session,) = self.service.sessions.values()
        for text in (b"", b"\x63", b"\x01\x01"):
            session.origin.add(Renzv.ALERT, text)
        self.echoed(origin, b"hello")
        self.assertEqual(self.heard, [])


class LimitTests(LoginCase):
    def test_streams_of_a_session(self) -> None:
        self.start()
        origin = self.meet()
        sinks = [Heard() for _ in range(STREAMS_PER_SESSION + 1)]
        for sink in sinks:
            origin.open(PORT, sink)
        self.net.run(lambda: sinks[-1].reason is not None)
        self.assertEqual(sinks[-1].reason, Reason.LIMIT)
        self.assertEqual({tuple(sink.words) for sink in sinks[:-1]}, {("opened",)})

    def test_streams_a_second(self) -> None:
        """Each would be a connection to the program behind the service."""
        self.start()
        self.meet()
        (session,) = self.service.sessions.values()
        now = self.there.seconds()
        self.assertEqual([session.take(now) for _ in range(STREAM_BURST + 1)], [True] * STREAM_BURST + [False])
        later = now + 1.0
        session.look(now + 0.5)
        self.assertEqual(sum(session.take(later) for _ in range(STREAM_BURST)), STREAM_RATE)
        sink = Heard()
        session._room = -STREAM_RATE * 1000
        next(iter(self.here.circuits())).open(PORT, sink)
        self.net.run(lambda: sink.reason is not None)
        self.assertEqual(sink.reason, Reason.LIMIT)

    def test_sessions_of_a_service(self) -> None:
        """A crowd of strangers is in its own way: of those without a stream the last one goes, else nobody comes."""
        self.start()
        noted: list[tuple[str, int]] = []
        self.service.noted = lambda state, session: noted.append((state, session.number))
        first = self.meet()
        more: Any = [SimpleNamespace(streams=SimpleNamespace(live=[1])) for _ in range(SESSIONS_PER_SERVICE - 1)]
        for one in map(id, more):
            self.service.sessions[one] = Session(0, more[0], None, 0.0)  # type: ignore[index]
        self.assertEqual(len(self.service.sessions), SESSIONS_PER_SERVICE)
        second = self.meet(login=NodeKey.make())
        self.net.run(lambda: first.state is State.CLOSED)
        self.echoed(second, b"hello")
        self.refused(self.begin())
        self.assertEqual(self.service.counted["full"], 3)
        self.assertEqual(len(self.service.sessions), SESSIONS_PER_SERVICE)
        for one in map(id, more):
            del self.service.sessions[one]  # type: ignore[arg-type]
        self.assertEqual([state for state, _ in noted], ["opened", "closed", "opened"])

    def test_links_that_take_no_more_circuits(self) -> None:
        """Who has not used his session for longest makes room, for visitors and for access points."""
        self.start()
        circuits = [self.meet() for _ in range(3)]
        self.net.settle()
        self.echoed(circuits[0], b"hello")
        crowd = Crowd(self.there, len(self.there.circuits()))
        self.service.ways = crowd
        self.service._places.ways = crowd
        circuits.append(self.meet())
        self.net.run(lambda: circuits[1].state is State.CLOSED)
        lost = next(iter(self.service.points.values()))
        assert lost.origin is not None
        crowd.most -= 1
        lost.origin.close()
        self.net.run(lambda: len(self.service.points) == 3 and lost.origin is not None)
        self.net.run(lambda: circuits[2].state is State.CLOSED)
        self.assertEqual([one.state is State.OPEN for one in circuits], [True, False, False, True])
        self.assertEqual(self.service.counted["crowded out"], 2)

    def test_introductions_that_wait(self) -> None:
        """Those with most work are answered first, and those for whom there is no room make it dearer."""
        self.patch(serving, "AT_ONCE", 0)
        self.start()
        point = next(iter(self.service.points.values()))
        listener = next(
            one for access in self.access for one in access.listeners.values() if one.auth_key == point.auth.node_id
        )
        knock = Knock(listener.auth_key, 1, NO_WORK, bytes(BLOB)).encode()
        for _ in range(INTRO_QUEUE + 3):
            self.service._knocked(point, knock)
        self.assertEqual(len(self.service._queue), INTRO_QUEUE)
        self.assertEqual(self.service.counted["dropped"], 3)
        # Who has done more takes the place of one who has done less.
        paid = self.patch(Pricing, "worth", lambda *words: 7)
        self.service._knocked(point, knock)
        paid.restore()
        self.assertEqual((len(self.service._queue), self.service._queue[0][0]), (INTRO_QUEUE, -7))
        self.assertEqual(self.service.counted["dropped"], 4)
        self.assertTrue(self.service.pricing.look((), self.there.seconds()))
        # Nobody waits for longer than a client does.
        self.patch(serving, "AT_ONCE", 16)
        self.net.settle(INTRO_AGE + 1)
        self.service._next()
        self.assertEqual((self.service._queue, self.service.counted["late"]), ([], INTRO_QUEUE))

    def test_one_who_waits_behind_one_that_hangs(self) -> None:
        """As many meetings as may be hang for longer than their slots; when one is over, the next begins."""
        self.patch(serving, "MEETINGS", 1)
        self.start()
        held: Deferred[None] = Deferred()
        build = MemoryWays.to

        async def to(ways: MemoryWays, last: Any, before: int, **more: Any) -> Any:
            if ways is self.there and not held.called:
                await held
            return await build(ways, last, before, **more)

        self.patch(MemoryWays, "to", to)
        done: list[Any] = []
        for name in ("one", "two"):
            work = meet(self.ways(name), self.key.node_id, self.told)
            Deferred.fromCoroutine(work).addBoth(done.append)
        self.net.run(lambda: len(self.service._queue) == 1)
        self.net.settle(serving.SLOT + 1)
        held.callback(None)
        self.net.run(lambda: len(done) == 2, 5.0)
        self.assertEqual(self.service.counted["met"], 2)

    def test_a_point_that_passes_on_what_it_may(self) -> None:
        """A flood at a point finds it busy, and so does everybody else: work is asked for before anything queues."""
        self.start()
        self.assertIsNone(self.told.price)
        point = next(iter(self.service.points.values()))
        self.assertEqual(point.rate, 25)
        for _ in range(3):
            self.service._knocked(point, Knock(point.auth.node_id, 1, NO_WORK, bytes(BLOB)).encode())
        self.assertEqual(point.lately, 3)
        for effort in (64, 128, 256):
            point.lately = 250
            self.net.run(lambda effort=effort: self.told.price is not None and self.told.price.effort == effort)  # type: ignore[misc]
        self.net.settle(1.0)
        self.assertEqual({one.seeds.effort for access in self.access for one in access.listeners.values()}, {256})
        self.net.settle(60.0)
        assert self.told.price is not None
        self.assertEqual(self.told.price.effort, 256)
        self.echoed(self.meet(), b"hello")


class Crowd:
    """Ways over links that take so many circuits."""

    def __init__(self, ways: Any, most: int) -> None:
        self._ways = ways
        self.most = most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ways, name)

    async def to(self, *words: Any, **more: Any) -> Origin:
        if len(self._ways.circuits()) >= self.most:
            raise NoCircuit("no room", Reason.LIMIT)
        made: Origin = await self._ways.to(*words, **more)
        return made


class Seeing:
    """An access point's way to a service, beside which somebody stands."""

    def __init__(self, asker: Any, seen: list[tuple[int, bytes]]) -> None:
        self._asker = asker
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asker, name)

    def answer(self, command: int, data: bytes) -> None:
        self._seen.append((command, data))
        self._asker.answer(command, data)
