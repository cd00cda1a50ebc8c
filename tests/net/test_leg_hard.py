"""TLS legs where the other side is slow, rude or wrong."""

import contextlib
import socket
import struct
from typing import Any

from OpenSSL import SSL

from layer8.crypto.x509 import Identity, self_signed
from layer8.net.leg import Leg
from layer8.net.tls import server_context
from tests.net.test_pump import Ended
from tests.net.test_pump_hard import PumpCase

RESET = struct.pack("ii", 1, 0)


class LegCase(PumpCase):
    def setUp(self) -> None:
        super().setUp()
        self.context = server_context(Identity.from_pem(*self_signed(("localhost",))))
        self.peer = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.peer.set_connect_state()
        self.done: list[Exception | None] = []

    def leg(self, fd: int, **more: Any) -> Leg:
        return Leg(self.pump, fd, self.context, client=False, done=lambda _, error: self.done.append(error), **more)

    def out(self, ours: socket.socket) -> bytes:
        """Send what the peer's session has to say; what was sent."""
        sent = b""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                data = self.peer.bio_read(65536)
                sent += data
                ours.sendall(data)
        return sent

    def read(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while data := ours.recv(1 << 18):
                self.peer.bio_write(data)

    def plain(self) -> bytes:
        got = b""
        with contextlib.suppress(SSL.WantReadError, SSL.ZeroReturnError):
            while True:
                got += self.peer.recv(1 << 18)
        return got

    async def shake(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        for _ in range(400):
            try:
                self.peer.do_handshake()
            except SSL.WantReadError:
                self.out(ours)
                await self.turn(0.002)
                self.read(ours)
            else:
                break
        self.out(ours)
        for _ in range(400):
            if self.done:
                break
            await self.turn(0.002)

    async def carried(self) -> tuple[socket.socket, socket.socket, Any, Ended]:
        """A visitor in plain text, the peer's socket, the link between them, and its owner."""
        ours, fd = self.ends()
        leg = self.leg(fd)
        leg.start()
        await self.shake(ours)
        self.assertEqual(self.done, [None])
        visitor, other = self.ends()
        owner = Ended()
        return visitor, ours, self.pump.join(other, fd, owner, second_tls=leg), owner


class HandshakeTests(LegCase):
    async def test_bytes_that_were_read_already_at_every_cut(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self.peer.do_handshake()
        hello = self.peer.bio_read(65536)
        for cut in (1, 5, 6, 40, len(hello) - 1, len(hello)):
            ours, fd = self.ends()
            leg = self.leg(fd, first=hello[:cut])
            leg.start()
            ours.sendall(hello[cut:])
            await self.turn()
            self.assertTrue(ours.recv(5).startswith(b"\x16\x03"), cut)
            leg.cancel()
        self.assertEqual(self.done, [])

    async def test_nonsense_is_told_and_closed(self) -> None:
        ours, fd = self.ends()
        self.leg(fd).start()
        ours.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await self.turn()
        self.assertIsInstance(self.done[0], SSL.Error)
        self.assertEqual(len(self.done), 1)

    async def test_gone_in_the_middle(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self.peer.do_handshake()
        for reset in (False, True):
            self.done.clear()
            ours, fd = self.ends()
            self.leg(fd).start()
            ours.sendall(b"\x16\x03\x01")
            if reset:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            ours.close()
            await self.turn()
            self.assertIsInstance(self.done[0], OSError)
            self.assertEqual(len(self.done), 1)

    async def test_a_defect_in_a_check(self) -> None:
        ours, fd = self.ends()

        def check(_: SSL.Connection) -> None:
            raise ValueError("not this one")

        self.leg(fd, check=check).start()
        await self.shake(ours)
        self.assertIsInstance(self.done[0], ValueError)

    async def test_cancelled_twice(self) -> None:
        _, fd = self.ends()
        leg = self.leg(fd)
        leg.start()
        leg.cancel()
        leg.cancel()
        leg.abandon()
        self.assertEqual(self.done, [])


class JoinedTests(LegCase):
    async def test_everything_arrives_at_a_slow_reader_and_then_the_end(self) -> None:
        """The peer's buffer is full when the end comes: neither bytes nor close_notify are lost."""
        visitor, ours, _, owner = await self.carried()
        data = bytes(range(256)) * 8192
        visitor.setblocking(False)
        view, got = memoryview(data), b""
        for _ in range(4000):
            if view:
                with contextlib.suppress(BlockingIOError):
                    view = view[visitor.send(view) :]
                if not view:
                    visitor.shutdown(socket.SHUT_WR)
            await self.turn(0.001)
            with contextlib.suppress(BlockingIOError):
                self.peer.bio_write(ours.recv(30_000))
            got += self.plain()
            if self.peer.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
                break
        self.assertEqual(len(got), len(data))
        self.assertEqual(got, data)
        self.assertTrue(self.peer.get_shutdown() & SSL.RECEIVED_SHUTDOWN)
        self.peer.send(b"late answer")
        self.peer.shutdown()
        self.out(ours)
        await self.turn()
        self.assertEqual(visitor.recv(100), b"late answer")
        self.assertEqual(owner.reasons, [("done", len(data), 11)])

    async def test_what_waits_is_bounded(self) -> None:
        """A peer that does not read stops the visitor."""
        visitor, _, link, _ = await self.carried()
        visitor.setblocking(False)
        sent = 0
        for _ in range(300):
            with contextlib.suppress(BlockingIOError):
                sent += visitor.send(bytes(65536))
            await self.turn(0.001)
        self.assertLess(sent, 4 << 20)
        self.assertLess(len(link.up.secure_dst._out), 1 << 17)
        link.close()

    async def test_data_after_the_end_is_nobodys(self) -> None:
        visitor, ours, link, owner = await self.carried()
        self.peer.send(b"last words")
        self.peer.shutdown()
        self.out(ours)
        ours.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        await self.turn()
        self.assertEqual(visitor.recv(100), b"last words")
        self.assertEqual(visitor.recv(100), b"")
        visitor.sendall(b"still heard")
        await self.turn()
        self.read(ours)
        self.assertEqual(owner.reasons, [])
        link.close()

    async def test_a_forged_record_is_a_reset(self) -> None:
        visitor, ours, _, owner = await self.carried()
        self.peer.send(b"good")
        record = self.peer.bio_read(65536)
        ours.sendall(record[:-1] + bytes((record[-1] ^ 1,)))
        await self.turn()
        self.assertEqual(owner.reasons[0][0], "reset")
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(visitor.recv(100), b"")

    async def test_an_end_without_close_notify_is_a_reset_after_the_bytes(self) -> None:
        visitor, ours, _, owner = await self.carried()
        self.peer.send(b"first half")
        self.out(ours)
        ours.close()
        await self.turn()
        self.assertEqual(visitor.recv(100), b"first half")
        self.assertEqual(owner.reasons[0][0], "reset")

    async def test_at_every_cut(self) -> None:
        """Records that come byte by byte."""
        visitor, ours, link, _ = await self.carried()
        self.peer.send(b"slowly")
        with contextlib.suppress(SSL.WantReadError):
            while True:
                for one in self.peer.bio_read(65536):
                    ours.sendall(bytes((one,)))
                    await self.turn(0.0005)
        visitor.setblocking(False)
        await self.turn()
        self.assertEqual(visitor.recv(100), b"slowly")
        link.close()
