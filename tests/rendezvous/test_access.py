"""The access point: who may listen, whose knocks are passed on, and what work is taken for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.crypto.introduction import BLOB
from layer8.crypto.keys import NodeKey
from layer8.crypto.work import search
from layer8.rendezvous.access import Access
from layer8.rendezvous.limits import (
    INTRO_BURST,
    INTRO_RATE,
    KNOCKS_PER_CIRC,
    LISTENERS_PER_CIRC,
    LISTENERS_PER_NODE,
    POINT_INTROS,
    SEED_LIFE,
    T_PING,
)
from layer8.rendezvous.wire import (
    NO_WORK,
    WORK_LABEL,
    Answer,
    Connect,
    Knock,
    Listen,
    Listening,
    Renzv,
    Status,
    Tune,
    Work,
    listen_text,
)
from tests.rendezvous.askers import FakeAsker

BLOB_TEXT = b"b" * BLOB
EFFORT = 50
SEED, NEXT, THIRD = b"s" * 32, b"t" * 32, b"u" * 32


class AccessCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.role = Access()
        self.key = NodeKey.make()
        self.service = FakeAsker(1)
        self.next = 100

    def listen(
        self, asker: FakeAsker, key: NodeKey | None = None, binding: bytes | None = None, now: float = 0.0
    ) -> None:
        key = key or self.key
        text = Listen(key.node_id, key.sign(listen_text(binding or asker.binding))).encode()
        self.role.asked(asker, Renzv.RES_LISTEN, text, now)

    def tune(self, effort: int, seed: bytes = SEED, now: float = 0.0, asker: FakeAsker | None = None) -> None:
        text = Tune(self.key.node_id, seed, effort, 0).encode()
        self.role.asked(asker or self.service, Renzv.RES_TUNE, text, now)

    def knock(
        self, work: bytes = NO_WORK, now: float = 0.0, asker: FakeAsker | None = None, key: bytes = b""
    ) -> Answer:
        if asker is None:
            asker = FakeAsker(self.next)
            self.next += 1
        said = Connect(key or self.key.node_id, work, BLOB_TEXT).encode()
        self.role.asked(asker, Renzv.RES_CONNECT, said, now)
        command, answer = asker.said[-1]
        self.assertEqual(command, Renzv.RES_CONNECT_OK)
        return Answer.read(answer)

    def solved(self, effort: int = EFFORT, seed: bytes = SEED, start: int = 0) -> bytes:
        nonce = search(WORK_LABEL, self.key.node_id, seed, effort, start.to_bytes(16, "big"), 100_000)
        assert nonce is not None
        return Work(nonce, effort, seed[:4]).encode()


class ListenTests(AccessCase):
    def test_a_knock_is_passed_on(self) -> None:
        self.listen(self.service)
        self.assertEqual(self.service.said[0][0], Renzv.RES_LISTEN_OK)
        self.assertEqual(Listening.read(self.service.said[0][1]), Listening(25, 200, POINT_INTROS))
        self.assertEqual(self.knock(), Answer(Status.PASSED))
        command, data = self.service.said[1]
        self.assertEqual(command, Renzv.CONNECT)
        self.assertEqual(Knock.read(data), Knock(self.key.node_id, 1, NO_WORK, BLOB_TEXT))

    def test_a_signature_for_another_circuit(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            self.listen(self.service, binding=b"x" * 32)
        self.assertEqual(self.role.listeners, {})

    def test_an_auth_key_that_is_held(self) -> None:
        self.listen(self.service)
        with self.assertRaises(RemoteProtocolError):
            self.listen(FakeAsker(2))
        self.assertEqual(self.knock().status, Status.PASSED)
        self.assertEqual([command for command, _ in self.service.said], [49, Renzv.PING, Renzv.CONNECT])

    def test_a_holder_that_does_not_answer(self) -> None:
        """A service that comes back need not wait until its old circuit is given up."""
        self.listen(self.service)
        other = FakeAsker(2)
        for now in (10.0, 10.0 + T_PING - 1):
            with self.assertRaises(RemoteProtocolError):
                self.listen(other, now=now)
        self.assertEqual([command for command, _ in self.service.said], [Renzv.RES_LISTEN_OK, Renzv.PING])
        self.listen(other, now=10.0 + T_PING)
        self.assertTrue(self.service.destroyed)
        self.role.gone(1)
        self.assertEqual(self.knock(now=20.0), Answer(Status.PASSED))
        self.assertEqual(other.said[-1][0], Renzv.CONNECT)

    def test_a_holder_that_answers(self) -> None:
        self.listen(self.service)
        for now in range(10, 60, 10):
            with self.assertRaises(RemoteProtocolError):
                self.listen(FakeAsker(2), now=float(now))
            self.role.asked(self.service, Renzv.PING_OK, b"", now + 1.0)
        self.assertFalse(self.service.destroyed)

    def test_an_answer_of_somebody_else(self) -> None:
        self.listen(self.service)
        for asker, data in ((FakeAsker(3), b""), (self.service, b"more")):
            with self.assertRaises(RemoteProtocolError):
                self.role.asked(asker, Renzv.PING_OK, data, 1.0)

    def test_again_when_the_circuit_is_gone(self) -> None:
        self.listen(self.service)
        self.role.gone(1)
        self.assertEqual(self.knock(), Answer(Status.UNKNOWN))
        self.listen(FakeAsker(2))
        self.assertEqual(self.knock(), Answer(Status.PASSED))

    def test_a_circuit_that_is_dying(self) -> None:
        self.listen(self.service)
        self.service.alive = False
        self.assertEqual(self.knock(), Answer(Status.UNKNOWN))

    def test_nobody_listens(self) -> None:
        self.assertEqual(self.knock(key=b"k" * 32), Answer(Status.UNKNOWN))

    def test_as_many_as_may_listen(self) -> None:
        for _ in range(LISTENERS_PER_CIRC):
            self.listen(self.service, NodeKey.make())
        with self.assertRaises(LimitExceeded):
            self.listen(self.service, NodeKey.make())
        others = range(LISTENERS_PER_NODE - LISTENERS_PER_CIRC)
        self.role.listeners.update({bytes((1, *divmod(n, 256))): None for n in others})  # type: ignore[misc]
        with self.assertRaises(LimitExceeded):
            self.listen(FakeAsker(2), NodeKey.make())


class KnockTests(AccessCase):
    def setUp(self) -> None:
        super().setUp()
        self.listen(self.service)

    def test_no_more_than_a_service_takes(self) -> None:
        answers = [self.knock().status for _ in range(INTRO_BURST + 1)]
        self.assertEqual(answers, [Status.PASSED] * INTRO_BURST + [Status.BUSY])
        self.assertEqual(
            [self.knock(now=1.0).status for _ in range(26)], [Status.PASSED] * int(INTRO_RATE) + [Status.BUSY]
        )

    def test_no_more_than_a_point_gives_in_its_life(self) -> None:
        self.role.listeners[self.key.node_id].left = 1
        self.assertEqual([self.knock().status for _ in range(2)], [Status.PASSED, Status.BUSY])

    def test_no_more_than_one_client_may_ask(self) -> None:
        asker = FakeAsker(5)
        for _ in range(KNOCKS_PER_CIRC):
            self.knock(asker=asker)
        with self.assertRaises(LimitExceeded):
            self.knock(asker=asker)
        self.role.gone(5)
        self.assertEqual(self.role._knocks, {})

    def test_numbers_go_round(self) -> None:
        self.role._next = 2**32 - 1
        self.assertEqual(self.knock().status, Status.PASSED)


class WorkTests(AccessCase):
    def setUp(self) -> None:
        super().setUp()
        self.listen(self.service)

    def test_only_with_work(self) -> None:
        self.tune(EFFORT)
        self.assertEqual(self.knock(), Answer(Status.WORK, EFFORT))
        self.assertEqual(self.knock(self.solved()), Answer(Status.PASSED))
        self.assertEqual(len(self.service.said), 2)

    def test_a_solution_is_good_once(self) -> None:
        self.tune(EFFORT)
        work = self.solved()
        self.assertEqual([self.knock(work).status for _ in range(2)], [Status.PASSED, Status.WORK])

    def test_too_little(self) -> None:
        self.tune(EFFORT)
        self.assertEqual(self.knock(self.solved(EFFORT - 1)), Answer(Status.WORK, EFFORT))

    def test_a_lie_about_its_effort(self) -> None:
        self.tune(2**31)
        nonce = Work.read(self.solved())
        assert nonce is not None
        self.assertEqual(self.knock(Work(nonce.nonce, 2**31, SEED[:4]).encode()).status, Status.WORK)

    def test_another_seed(self) -> None:
        self.tune(EFFORT)
        self.assertEqual(self.knock(self.solved(seed=NEXT)).status, Status.WORK)

    def test_the_seed_before(self) -> None:
        self.tune(EFFORT)
        early, late = self.solved(), self.solved(start=2**64)
        self.tune(EFFORT, NEXT, SEED_LIFE)
        self.assertEqual(self.knock(early, SEED_LIFE).status, Status.PASSED)
        self.assertEqual(self.knock(late, 2 * SEED_LIFE).status, Status.WORK)

    def test_the_seed_before_that_one(self) -> None:
        for seed in (SEED, NEXT, THIRD):
            self.tune(EFFORT, seed)
        self.assertEqual(self.knock(self.solved(seed=NEXT)).status, Status.PASSED)
        self.assertEqual(self.knock(self.solved()).status, Status.WORK)

    def test_no_work_any_more(self) -> None:
        self.tune(EFFORT)
        self.tune(0)
        self.assertEqual(self.knock().status, Status.PASSED)

    def test_refused_knocks_use_nothing_up(self) -> None:
        self.tune(EFFORT)
        for _ in range(INTRO_BURST + 1):
            self.knock()
        self.assertEqual(self.knock(self.solved()).status, Status.PASSED)
        self.assertEqual(self.role.listeners[self.key.node_id].refused, INTRO_BURST + 1)

    def test_twice_the_work_finds_room_of_its_own(self) -> None:
        """A flood that pays what is asked for is in the way of those alone who pay no more."""
        self.tune(EFFORT)
        flood = [self.knock(self.solved(start=number << 64)).status for number in range(INTRO_BURST + 1)]
        self.assertEqual(flood, [Status.PASSED] * INTRO_BURST + [Status.BUSY])
        self.assertEqual(self.knock(self.solved(2 * EFFORT)).status, Status.PASSED)
        self.assertEqual(self.knock(self.solved(2 * EFFORT - 1)), Answer(Status.BUSY, EFFORT))

    def test_only_the_service_asks_for_work(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            self.tune(EFFORT, asker=FakeAsker(9))
        self.assertEqual(self.knock().status, Status.PASSED)


class NoiseTests(SynchronousTestCase):
    @given(st.sampled_from(sorted(Access.commands)), st.binary(max_size=1700))
    def test_any_noise(self, command: int, data: bytes) -> None:
        with self.assertRaises(RemoteProtocolError):
            Access().asked(FakeAsker(1), command, data, 0.0)
