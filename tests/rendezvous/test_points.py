"""The access points of a service: how long it keeps them, how it comes back to them, and what is never good twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred

from layer8.core.errors import RemoteProtocolError, StorageError
from layer8.core.roles import Asker
from layer8.crypto.keys import NodeKey
from layer8.net.sqlite import Database
from layer8.net.storage import Change
from layer8.relay.wire import Destroy
from layer8.rendezvous.access import Access
from layer8.rendezvous.client import NotMet
from layer8.rendezvous.limits import POINT_INTROS, POINT_LIFE, T_PING
from layer8.rendezvous.memory import SCHEMA, ServiceMemory
from layer8.rendezvous.points import ASK_EVERY, RESUME_TIME, RESUMES
from layer8.rendezvous.price import LOOK
from layer8.rendezvous.wire import Knock, Listen, Renzv
from layer8.testing.storage import InlineStorage
from tests.rendezvous.net import Told
from tests.rendezvous.test_end_to_end import MeetCase


def closed(storage: InlineStorage) -> None:
    """Close it, if a test has not done so."""
    storage.close().addErrback(lambda reason: reason.trap(StorageError))


class PointCase(MeetCase):
    def listening(self) -> dict[bytes, int]:
        """Give for each auth key that is held the number of the node."""
        return {key: number for number, access in enumerate(self.access) for key in access.listeners}

    def until_listening(self, count: int = 3) -> None:
        self.net.run(lambda: len(self.service.points) == count and len(self.listening()) == count, 400.0)


class PointTests(PointCase):
    def test_a_circuit_that_is_lost(self) -> None:
        """The point is the same, by another circuit: no client has to hear of it."""
        self.start()
        self.net.settle()
        before, published = self.listening(), len(self.published)
        lost = next(iter(self.service.points.values()))
        assert lost.origin is not None
        lost.origin.close()
        self.until_listening()
        self.net.settle()
        self.assertEqual((self.listening(), len(self.published)), (before, published))
        self.echoed(self.meet(), b"hello")

    def test_a_node_that_is_gone(self) -> None:
        """It is replaced, and clients hear of it."""
        self.start()
        gone = next(iter(self.service.points.values()))
        begun = self.net.clock.seconds()
        self.kill(self.node_of(gone.told))
        self.net.run(lambda: len(self.published[-1]) == 3 and gone.told not in self.published[-1])
        self.assertLess(self.net.clock.seconds() - begun, 5.0)
        self.echoed(self.meet(), b"hello")

    def test_a_node_that_hangs(self) -> None:
        """Links to it look well for a minute; that it says nothing is noticed before."""
        self.start()
        self.net.settle(60.0)
        self.assertEqual(self.service.counted["silent point"], 0)
        gone = next(iter(self.service.points.values()))
        begun = self.net.clock.seconds()
        node = self.node_of(gone.told)
        self.hang(node)
        self.net.by_endpoint.pop(node.endpoint)
        self.net.run(lambda: gone.auth.node_id not in self.service.points)
        self.assertLess(self.net.clock.seconds() - begun, ASK_EVERY[1] + T_PING + 1)
        self.assertGreaterEqual(self.service.counted["silent point"], 1)
        self.net.run(lambda: len(self.service.points) == 3, 400.0)
        self.assertNotIn(gone.told, self.told.points)

    def test_a_node_that_ends_circuits_for_fun(self) -> None:
        """It is left after a while: whoever watches how circuits are built learns from each."""
        self.start()
        one = next(iter(self.service.points.values()))
        auth_key, node = one.auth.node_id, self.node_of(one.told)
        times = 0
        while auth_key in {point.auth_key for point in self.told.points}:
            self.net.run(lambda: auth_key in self.service.points)
            asker = self.access[self.listening()[auth_key]].listeners[auth_key].asker
            node.circuits.all[asker.circuit].close(Destroy.NONE)
            times += 1
            self.net.settle(1.0)
        self.assertEqual(times, RESUMES + 1)
        self.until_listening()

    def test_none_lives_for_ever(self) -> None:
        self.service = self.serve(self.key, life=60.0)
        self.start()
        before = set(self.service.points)
        self.net.settle(70.0)
        self.net.run(lambda: len(self.told.points) == 3 and not before & set(self.service.points))
        self.assertEqual(self.serve(self.key).life, POINT_LIFE)

    def test_none_serves_for_ever(self) -> None:
        """After POINT_INTROS introductions it is left: more would have to be remembered against replays."""
        self.start()
        point = next(iter(self.service.points.values()))
        point.introductions = POINT_INTROS - 1
        told = Told((point.told,))
        self.told = told
        self.meet()
        self.net.run(lambda: point.auth.node_id not in self.service.points)
        self.until_listening()
        self.told = told
        with self.assertRaises(NotMet):
            self.meet()

    def test_no_key_serves_twice(self) -> None:
        self.start()
        keys = [key for point in self.told.points for key in (point.auth_key, point.enc_key)]
        self.assertEqual(len(set(keys)), 6)
        self.assertEqual(len({point.node for point in self.told.points}), 3)

    def test_more_than_there_are(self) -> None:
        self.service = self.serve(self.key, wanted=6)
        self.service.start()
        self.until_listening(4)
        self.net.settle(30.0)
        self.assertEqual(len(self.service.points), 4)

    def test_more_are_known_later(self) -> None:
        """A node that has just joined knows few; it does not stay with what it found first."""
        self.there.offering = self.relays[:1]
        self.service.start()
        self.until_listening(1)
        self.net.settle(5.0)
        self.assertEqual(len(self.service.points), 1)
        self.there.offering = self.relays[:4]
        self.until_listening(3)
        self.echoed(self.meet(), b"hello")

    def test_nobody_takes_it_for_a_while(self) -> None:
        """It is tried again, and ever more rarely."""
        refusing = True
        listen = Access._listen

        def refuse(access: Access, asker: Asker, said: Listen, now: float) -> None:
            if refusing:
                raise RemoteProtocolError("not now")
            listen(access, asker, said, now)

        self.patch(Access, "_listen", refuse)
        self.service.start()
        self.net.settle(120.0)
        tried = self.service.counted["no point"]
        self.assertTrue(6 <= tried <= 60, tried)
        refusing = False
        self.until_listening(3)
        self.echoed(self.meet(), b"hello")


class RestartTests(PointCase):
    """What a crash leaves behind: circuits end, and nothing more is written."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp()) / "hidden.db"
        self.path.parent.mkdir(mode=0o700)
        self.service = self.again()

    def again(self, **more: Any) -> Any:
        self.storage = InlineStorage(Database(self.path, SCHEMA))
        self.addCleanup(closed, self.storage)
        self.memory = ServiceMemory(self.storage, self.key.node_id)
        return self.serve(self.key, memory=self.memory, **more)

    def crash(self) -> None:
        """Kill -9: the disk is as it is, links end."""
        self.storage.close()
        self.service.running = False
        self.service.stop()
        for carrier in list(self.there.node.carriers):
            if not carrier.closed:
                carrier.cut()
        self.net.settle(0.5)

    def restart(self, **more: Any) -> None:
        self.there = self.ways("service again")
        self.service = self.again(**more)
        self.service.start()

    def test_the_same_points(self) -> None:
        self.start()
        before, told = self.listening(), self.told
        self.crash()
        self.assertEqual(self.listening(), {})
        self.restart()
        self.until_listening()
        self.assertEqual(self.listening(), before)
        self.assertEqual(set(self.published[-1]), set(told.points))
        self.told = told
        self.echoed(self.meet(), b"hello")

    def test_a_node_that_is_gone_by_then(self) -> None:
        self.start()
        before = self.listening()
        gone = self.told.points[0]
        self.crash()
        self.kill(self.node_of(gone))
        self.restart()
        self.until_listening()
        after = self.listening()
        self.assertEqual({key for key in before if key != gone.auth_key}, set(before) & set(after))
        self.assertEqual(len({point.node for point in self.told.points}), 3)

    def test_a_node_that_holds_the_old_circuit_still(self) -> None:
        """It refuses as long as it believes that we are there, and is asked again."""
        self.start()
        before = self.listening()
        self.storage.close()
        old = self.service
        self.restart()
        self.net.settle(10.0)
        self.assertEqual(self.service.points, {})
        self.assertEqual(self.listening(), before)
        old.stop()
        self.until_listening()
        self.assertEqual(self.listening(), before)

    def test_an_old_circuit_that_nobody_answers_on(self) -> None:
        """A machine that was switched off: its points ask it, and let it go soon."""
        self.start()
        before = self.listening()
        self.storage.close()
        self.hang(self.there.node)
        self.service.running = False
        begun = self.net.clock.seconds()
        self.restart()
        self.net.run(lambda: len(self.service.points) == 3)
        self.assertLess(self.net.clock.seconds() - begun, T_PING + 6.0)
        self.assertEqual(self.listening(), before)

    def test_a_node_that_never_lets_go(self) -> None:
        self.start()
        before = self.listening()
        self.storage.close()
        self.restart()
        self.net.settle(RESUME_TIME + 30)
        self.net.run(lambda: bool(self.service.points))
        self.assertFalse(set(before) & set(self.service.points))

    def test_points_that_are_too_old(self) -> None:
        self.start()
        before = self.listening()
        self.crash()
        self.net.settle(70.0)
        self.restart(life=60.0)
        self.until_listening()
        self.assertFalse(set(before) & set(self.listening()))

    def test_the_life_of_a_point_goes_on(self) -> None:
        self.crash()
        self.restart(life=60.0)
        self.until_listening()
        before = set(self.listening())
        self.net.settle(40.0)
        self.crash()
        self.restart(life=60.0)
        self.until_listening()
        self.assertEqual(set(self.listening()), before)
        self.net.settle(25.0)
        self.until_listening()
        self.assertFalse(set(self.listening()) & before)

    def test_a_knock_from_before(self) -> None:
        """Section 14: whoever has kept one cannot use it again, at the same point with the same keys."""
        self.start()
        kept: list[bytes] = []
        for access in self.access:
            for listener in access.listeners.values():
                listener.asker = Copying(listener.asker, kept)
        self.echoed(self.meet(), b"hello")
        (knock,) = map(Knock.read, kept)
        self.crash()
        self.restart()
        self.until_listening()
        point = self.service.points[knock.auth_key]
        self.assertEqual(point.introductions, 1)
        listener = self.access[self.listening()[knock.auth_key]].listeners[knock.auth_key]
        listener.asker.answer(Renzv.CONNECT, knock.encode())
        self.net.run(lambda: self.service.counted["not for us"] == 1)
        self.assertEqual(self.service.counted["met"], 0)

    def test_work_from_before(self) -> None:
        self.start()
        self.service.pricing.dropped(0)
        self.service.pricing.handled(300)
        self.net.settle(LOOK + 1)
        kept: list[bytes] = []
        for access in self.access:
            for listener in access.listeners.values():
                listener.asker = Copying(listener.asker, kept)
        self.echoed(self.meet(), b"hello")
        (knock,) = map(Knock.read, kept)
        price = self.service.price
        assert price is not None
        self.crash()
        self.restart()
        self.until_listening()
        self.net.settle(0.5)
        after = self.service.price
        assert after is not None
        self.assertEqual((after.seed, after.effort), (price.seed, price.effort))
        self.assertIsNone(self.service.pricing.worth(knock.auth_key, knock.work, self.there.seconds()))
        self.assertEqual({one.seeds.effort for access in self.access for one in access.listeners.values()}, {300})

    def test_nothing_is_answered_before_it_is_written(self) -> None:
        self.start()
        slow: Any = Slow(self.storage, self.net.clock)
        self.memory._storage = slow
        begun = self.net.clock.seconds()
        self.meet()
        self.assertGreater(self.net.clock.seconds() - begun, Slow.seconds)

    def test_a_disk_that_fails(self) -> None:
        """It costs what is remembered, and no answer."""
        self.start()
        self.storage.close()
        self.echoed(self.meet(), b"hello")
        self.assertEqual(self.memory.failed, 1)

    def test_two_services_and_one_file(self) -> None:
        self.start()
        memory = ServiceMemory(self.storage, NodeKey.make().node_id)
        self.assertEqual((memory.points, memory.seq), ((), 0))
        self.memory.forget()
        self.assertEqual(ServiceMemory(self.storage, self.key.node_id).points, ())
        for table in ("services", "points", "blobs", "seeds", "nonces"):
            self.assertEqual(self.storage.rows(table), [])


class MemoryTests(PointCase):
    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.mktemp())
        folder.mkdir(mode=0o700)
        self.storage = InlineStorage(Database(folder / "hidden.db", SCHEMA))
        self.addCleanup(closed, self.storage)

    def memory(self) -> ServiceMemory:
        return ServiceMemory(self.storage, b"s" * 32)

    def test_the_last_seq(self) -> None:
        self.memory().keep_seq(1_700_000_000)
        self.assertEqual(self.memory().seq, 1_700_000_000)

    def test_a_cookie_is_new_when_a_client_has_gone(self) -> None:
        one, two, three = (bytes([number]) * 32 for number in range(3))
        first = self.memory().cookie_for([one, two])
        self.assertEqual(self.memory().cookie_for([two, one]), first)
        self.assertEqual(self.memory().cookie_for([one, two, three]), first)
        second = self.memory().cookie_for([one, three])
        self.assertNotEqual(second, first)
        self.assertEqual(self.memory().cookie_for([one, three]), second)
        self.assertEqual(len(second), 32)

    def test_nobody_is_let_in_yet(self) -> None:
        first = self.memory().cookie_for([])
        self.assertEqual(self.memory().cookie_for([]), first)

    def test_seeds_that_are_good_no_more(self) -> None:
        memory = self.memory()
        memory.keep_seeds(5, [(b"a" * 32, 10.0)])
        memory.keep_seeds(7, [(b"b" * 32, 20.0), (b"a" * 32, 10.0)])
        again = self.memory()
        self.assertEqual((again.effort, [one.seed[:1] for one in again.seeds]), (7, [b"b", b"a"]))
        again.keep_seeds(7, [(b"c" * 32, 30.0), (b"b" * 32, 20.0)])
        self.assertEqual([one.seed[:1] for one in self.memory().seeds], [b"c", b"b"])

    def test_a_disk_that_cannot_be_written(self) -> None:
        memory = self.memory()
        self.storage.close()
        memory.keep_seq(1)
        self.assertEqual((memory.seq, memory.failed), (1, 1))


@define(eq=False)
class Slow:
    """A storage whose disk takes its time."""

    _storage: InlineStorage
    _clock: Any
    seconds = 3.0

    def write(self, *changes: Change) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._clock.callLater(self.seconds, waiting.callback, None)
        return waiting.addCallback(lambda _: self._storage.write(*changes))


class Copying:
    """An access point's way to a service, which keeps what goes over."""

    def __init__(self, asker: Any, kept: list[bytes]) -> None:
        self._asker = asker
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._asker, name)

    def answer(self, command: int, data: bytes) -> None:
        if command == Renzv.CONNECT:
            self._kept.append(data)
        self._asker.answer(command, data)
