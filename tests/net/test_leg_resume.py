"""Sessions of a leg that are resumed: only those whose peer was looked at, and never with anybody else."""

import socket
from typing import Any

from OpenSSL import SSL

from layer8.crypto.x509 import Identity, self_signed
from layer8.net import tls
from layer8.net.leg import Leg, Ticket
from layer8.net.tls import Pinned, WrongPeer, client_context, server_context
from tests.net.test_pump_hard import PumpCase

RIGHT = Identity.from_pem(*self_signed("proxy.test"))
WRONG = Identity.from_pem(*self_signed("proxy.test"))
PINNED = Pinned(frozenset({RIGHT.pin}))


class ResumeTests(PumpCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = server_context(RIGHT, resume=True)
        self.client = client_context(PINNED)
        self.ticket = Ticket()
        self.looked = 0  # handshakes in which the client looked at a certificate
        self.looks = 0
        check = tls._check

        def counted(*words: Any) -> None:
            self.looks += 1
            check(*words)

        self.patch(tls, "_check", counted)

    async def shake(self, server: SSL.Context) -> tuple[Leg, Leg, Exception | None]:
        """Shake hands once; gives both legs and the client's error."""
        before = self.looks
        one, other = socket.socketpair()
        done: list[tuple[Leg, Exception | None]] = []
        legs = []
        for sock, context, client in ((one, self.client, True), (other, server, False)):
            sock.setblocking(False)
            ticket = self.ticket if client else None
            heard: Any = lambda leg, error: done.append((leg, error))  # noqa: E731
            legs.append(
                Leg(self.pump, sock.detach(), context, client=client, done=heard, name=b"proxy.test", ticket=ticket)
            )
        for leg in legs:
            leg.start()
        for _ in range(200):
            if len(done) == 2:
                break
            await self.turn(0.005)
        self.looked += self.looks > before
        return legs[0], legs[1], next((error for leg, error in done if leg is legs[0]), None)

    async def talk(self, server: SSL.Context, *, ends: bool = True) -> None:
        """Shake hands, say a word each way, and end."""
        ours, theirs, error = await self.shake(server)
        self.assertIsNone(error)
        theirs.send(b"hello")
        self.assertEqual(ours.recv(100), b"hello")
        ours.send(b"you")
        self.assertEqual(theirs.recv(100), b"you")
        if ends:
            ours.finish()
            theirs.finish()
        self.pump.close_fd(ours.fd)
        self.pump.close_fd(theirs.fd)

    async def test_the_peer_is_looked_at_once(self) -> None:
        for _ in range(5):
            await self.talk(self.server)
        self.assertEqual(self.looked, 1)

    async def test_nothing_is_kept_before_the_peer_was_heard(self) -> None:
        ours, theirs, error = await self.shake(self.server)
        self.assertIsNone(error)
        self.assertIsNone(self.ticket.session)
        self.pump.close_fd(ours.fd)
        self.pump.close_fd(theirs.fd)

    async def test_nobody_else_can_resume(self) -> None:
        await self.talk(self.server)
        self.assertIsNotNone(self.ticket.session)
        _, theirs, error = await self.shake(server_context(WRONG, resume=True))
        self.assertIsInstance(error, WrongPeer)
        self.assertEqual(self.looked, 2)  # it was looked at, and seen through
        self.assertIsNone(self.ticket.session)
        if theirs.fd in self.pump._table:
            self.pump.close_fd(theirs.fd)
        await self.talk(self.server)
        self.assertEqual(self.looked, 3)

    async def test_nothing_is_kept_of_a_wrong_peer(self) -> None:
        wrong = server_context(WRONG, resume=True)
        for looked in (1, 2):
            _, theirs, error = await self.shake(wrong)
            self.assertIsInstance(error, WrongPeer)
            self.assertEqual(self.looked, looked)
            self.assertIsNone(self.ticket.session)
            if theirs.fd in self.pump._table:
                self.pump.close_fd(theirs.fd)

    async def test_a_server_that_has_forgotten(self) -> None:
        await self.talk(self.server)
        await self.talk(server_context(RIGHT, resume=True))  # started anew, with the same key
        self.assertEqual(self.looked, 2)
        await self.talk(server_context(RIGHT))  # and one that gives no tickets
        self.assertEqual(self.looked, 3)

    async def test_a_connection_that_was_cut_off(self) -> None:
        await self.talk(self.server, ends=False)
        await self.talk(self.server)
        await self.talk(self.server)
        self.assertLessEqual(self.looked, 2)  # OpenSSL trusts no session that has not ended well

    async def test_tls_1_2_is_not_resumed(self) -> None:
        self.server.set_options(SSL.OP_NO_TLSv1_3)
        for looked in (1, 2):
            await self.talk(self.server)
            self.assertEqual(self.looked, looked)
            self.assertIsNone(self.ticket.session)
