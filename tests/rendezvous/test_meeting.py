"""The rendezvous hop: who may wait there, who is joined, and what ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.rendezvous.limits import COOKIE_LIFE, COOKIES
from layer8.rendezvous.meeting import Meeting
from layer8.rendezvous.wire import REPLY_LEAST, Join, Renzv
from tests.rendezvous.askers import FakeAsker

COOKIE = b"c" * 32
REPLY = b"r" * REPLY_LEAST


class MeetingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.joined: list[tuple[int, int]] = []
        self.can = True
        self.role = Meeting(self.join)
        self.client, self.service = FakeAsker(1), FakeAsker(2)

    def join(self, one: int, other: int) -> bool:
        self.joined.append((one, other))
        return self.can

    def listen(self, asker: FakeAsker, cookie: bytes = COOKIE, now: float = 0.0) -> None:
        self.role.asked(asker, Renzv.LISTEN, cookie, now)

    def meet(self, asker: FakeAsker, cookie: bytes = COOKIE, now: float = 0.0) -> None:
        self.role.asked(asker, Renzv.JOIN, Join(cookie, REPLY).encode(), now)

    def test_both_are_joined(self) -> None:
        self.listen(self.client)
        self.assertEqual(self.client.said, [(Renzv.LISTEN_OK, b"")])
        self.meet(self.service)
        self.assertEqual(self.client.said[1:], [(Renzv.CONNECT_OK, REPLY)])
        self.assertEqual(self.service.said, [])
        self.assertEqual(self.joined, [(2, 1)])
        self.assertEqual((self.role.waiting, self.role.joined), (0, 1))

    def test_a_cookie_that_nobody_has(self) -> None:
        self.listen(self.client)
        with self.assertRaises(RemoteProtocolError):
            self.meet(self.service, b"d" * 32)
        self.assertEqual(self.joined, [])

    def test_a_second_service(self) -> None:
        self.listen(self.client)
        self.meet(self.service)
        with self.assertRaises(RemoteProtocolError):
            self.meet(FakeAsker(3))

    def test_a_cookie_that_somebody_has(self) -> None:
        self.listen(self.client)
        with self.assertRaises(RemoteProtocolError):
            self.listen(FakeAsker(3))
        with self.assertRaises(RemoteProtocolError):
            self.listen(self.client, b"d" * 32)
        self.assertEqual(self.role.waiting, 1)

    def test_who_waits_joins_nobody(self) -> None:
        self.listen(self.client)
        self.listen(self.service, b"d" * 32)
        with self.assertRaises(RemoteProtocolError):
            self.meet(self.service)

    def test_a_circuit_that_cannot_be_joined(self) -> None:
        self.can = False
        self.listen(self.client)
        with self.assertRaises(RemoteProtocolError):
            self.meet(self.service)
        self.assertTrue(self.client.destroyed)

    def test_nobody_waits_for_ever(self) -> None:
        self.listen(self.client)
        with self.assertRaises(RemoteProtocolError):
            self.meet(self.service, now=COOKIE_LIFE)
        self.listen(FakeAsker(3), now=COOKIE_LIFE)
        self.assertEqual(self.role.waiting, 1)

    def test_the_life_of_one_cookie_is_not_that_of_the_next(self) -> None:
        self.listen(self.client)
        self.role.gone(1)
        self.listen(FakeAsker(3), now=COOKIE_LIFE - 1)
        self.meet(self.service, now=COOKIE_LIFE + 1)
        self.assertEqual(self.joined, [(2, 3)])

    def test_a_client_that_has_gone(self) -> None:
        self.listen(self.client)
        self.role.gone(1)
        self.role.gone(7)
        with self.assertRaises(RemoteProtocolError):
            self.meet(self.service)

    def test_as_many_as_may_wait(self) -> None:
        for number in range(COOKIES):
            self.listen(FakeAsker(number), number.to_bytes(32, "big"))
        with self.assertRaises(LimitExceeded):
            self.listen(FakeAsker(COOKIES))
        self.listen(FakeAsker(COOKIES), now=COOKIE_LIFE)
        self.assertEqual(self.role.waiting, 1)

    @given(st.sampled_from(sorted(Meeting.commands)), st.binary(max_size=1400))
    def test_any_noise(self, command: int, data: bytes) -> None:
        try:
            Meeting(self.join).asked(FakeAsker(1), command, data, 0.0)
        except RemoteProtocolError:
            return
        self.assertEqual(len(data), 32)
