"""The data port: 32 bytes decide, in plain text or inside TLS, and whoever has not got them learns nothing."""

import contextlib
import os
import socket

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from layer8.crypto.x509 import Identity, self_signed
from layer8.net.factory import Places
from layer8.net.leg import Leg
from layer8.net.tls import server_context
from layer8.proxy.data import DataPort
from tests.net.test_pump_hard import PumpCase

SECRET = bytes(range(32))
PEER = ("127.0.0.1", 1)


class DataCase(PumpCase):
    def setUp(self) -> None:
        super().setUp()
        context = server_context(Identity.from_pem(*self_signed(("proxy.test",))))
        self.wanted = {SECRET}
        self.taken: list[tuple[int, bytes, Leg | None]] = []
        self.port = DataPort(self.pump, Places(100, 3), self.answered, 3.0, lambda: context)

    def answered(self, secret: bytes, fd: int, rest: bytes, leg: Leg | None) -> bool:
        if secret not in self.wanted:
            return False
        self.wanted.discard(secret)
        self.taken.append((fd, rest, leg))
        return True

    def enter(self, first: bytes = b"") -> socket.socket:
        ours, fd = self.ends()
        self.port.take(fd, PEER, first)
        return ours

    def is_closed(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(sock.recv(1000), b"")

    def tearDown(self) -> None:
        for fd, _, _ in self.taken:
            self.pump.close_fd(fd)
        super().tearDown()


class PlainTests(DataCase):
    async def test_at_every_cut(self) -> None:
        for cut in range(1, 40):
            self.wanted.add(SECRET)
            ours = self.enter()
            data = SECRET + b"first words"
            ours.sendall(data[:cut])
            await self.turn(0.001)
            ours.sendall(data[cut:])
            for _ in range(100):
                if self.taken:
                    break
                await self.turn(0.001)
            fd, rest, leg = self.taken.pop()
            os.set_blocking(fd, False)
            if len(rest) < 11:
                rest += os.read(fd, 100)
            self.assertEqual((rest, leg), (b"first words", None))
            self.pump.close_fd(fd)
            self.assertEqual(self.port.places.open, 0)

    async def test_what_somebody_has_read_already(self) -> None:
        self.enter(SECRET + b"rest")
        self.assertEqual(self.taken[0][1], b"rest")

    async def test_wrong_used_and_short(self) -> None:
        for data in (b"\xff" * 32, SECRET[:-1] + b"\xff", b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n"):
            ours = self.enter()
            ours.sendall(data)
            await self.turn()
            self.is_closed(ours)
        self.enter(SECRET)
        again = self.enter()
        again.sendall(SECRET)
        await self.turn()
        self.is_closed(again)
        short = self.enter()
        short.sendall(SECRET[:31])
        short.shutdown(socket.SHUT_WR)
        await self.turn()
        self.is_closed(short)
        self.assertEqual(self.port.refused, 5)
        self.assertEqual(self.port.places.open, 0)

    async def test_silence(self) -> None:
        ours = self.enter(SECRET[:31])
        now = self.pump.look_at_clock()
        self.port.tick(now + 2.9)
        self.assertEqual(self.port.places.open, 1)
        self.port.tick(now + 3.1)
        self.is_closed(ours)
        self.assertEqual(self.port.places.open, 0)

    async def test_one_source(self) -> None:
        held = [self.enter() for _ in range(3)]
        self.is_closed(self.enter())
        self.assertEqual(self.port.refused, 1)
        for ours in held:
            ours.close()
        await self.turn()
        self.assertEqual(self.port.places.open, 0)

    async def test_a_defect_of_whoever_takes_it(self) -> None:
        """That one has closed the descriptor; it is not closed here again."""

        def defect(secret: bytes, fd: int, rest: bytes, leg: Leg | None) -> bool:
            self.pump.close_fd(fd)
            raise ValueError("a defect")

        self.port.answered = defect
        ours, fd = self.ends()
        ours.sendall(SECRET)
        with self.assertRaises(ValueError):
            self.port.take(fd, PEER)
        heir = os.open("/dev/null", os.O_RDONLY)
        self.port.tick(self.pump.look_at_clock() + 10)
        os.fstat(heir)
        os.close(heir)
        self.assertEqual(self.port.places.open, 0)

    async def test_when_the_pump_stops(self) -> None:
        ours = self.enter(SECRET[:3])
        self.pump.stop()
        self.is_closed(ours)
        self.assertEqual(self.port.places.open, 0)

    @given(st.lists(st.binary(min_size=1, max_size=80), max_size=6))
    def test_any_noise(self, parts: list[bytes]) -> None:
        """Whatever comes is refused or waited for, with at most a secret's length kept."""
        ours, fd = self.ends()
        with contextlib.suppress(BrokenPipeError):
            self.port.take(fd, PEER)
            for part in parts:
                ours.sendall(part)
                self.pump.doRead()
        ours.close()
        self.open.remove(ours)
        self.pump.doRead()
        self.assertEqual(self.port.places.open, 0)
        self.assertEqual(self.pump.failures, 0)
        self.assertEqual(self.taken, [])


class SecureTests(DataCase):
    async def session(self) -> tuple[SSL.Connection, socket.socket]:
        ours = self.enter()
        ours.setblocking(False)
        peer = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        peer.set_connect_state()
        for _ in range(200):
            try:
                peer.do_handshake()
            except SSL.WantReadError:
                self.carry(peer, ours)
                await self.turn(0.002)
                with contextlib.suppress(BlockingIOError):
                    peer.bio_write(ours.recv(65536))
            else:
                break
        self.carry(peer, ours)
        return peer, ours

    def ends_after(self, peer: SSL.Connection, ours: socket.socket) -> None:
        """See that the server has nothing to say to whoever it has shaken hands with."""
        with contextlib.suppress(ConnectionResetError):
            while data := ours.recv(65536):
                peer.bio_write(data)  # tickets of TLS 1.3
        with self.assertRaises(SSL.WantReadError):
            peer.recv(100)

    @staticmethod
    def carry(peer: SSL.Connection, ours: socket.socket) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while True:
                ours.sendall(peer.bio_read(65536))

    async def test_on_the_same_port(self) -> None:
        peer, ours = await self.session()
        peer.send(SECRET + b"rest")
        self.carry(peer, ours)
        await self.turn()
        _, rest, leg = self.taken[0]
        self.assertEqual(rest, b"rest")
        assert leg is not None
        self.assertEqual(self.port.places.open, 0)

    async def test_wrong_inside(self) -> None:
        peer, ours = await self.session()
        peer.send(b"\xff" * 32)
        self.carry(peer, ours)
        await self.turn()
        self.ends_after(peer, ours)
        self.assertEqual((self.port.refused, self.port.places.open), (1, 0))

    async def test_a_hello_inside(self) -> None:
        """TLS inside TLS is nothing that anybody asked for."""
        peer, ours = await self.session()
        peer.send(b"\x16\x03\x01" + bytes(40))
        self.carry(peer, ours)
        await self.turn()
        self.ends_after(peer, ours)

    async def test_silence_during_the_handshake(self) -> None:
        ours = self.enter()
        ours.sendall(b"\x16\x03\x01\x02\x00" + bytes(40))
        await self.turn()
        self.port.tick(self.pump.look_at_clock() + 3.1)
        self.is_closed(ours)
        self.assertEqual(self.port.places.open, 0)

    async def test_a_secret_that_looks_like_a_hello(self) -> None:
        secret = b"\x16\x03\x01" + bytes(29)
        self.wanted.add(secret)
        self.enter(secret)
        self.assertEqual(self.taken[0][1:], (b"", None))
