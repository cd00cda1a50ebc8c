"""An agent that carries visitors: the secret leaves only when the target is there, and nothing is left behind."""

import os
import socket
from typing import Any

from OpenSSL import SSL

from layer8.crypto.x509 import Identity, self_signed
from layer8.net.dial import Dialer, Where
from layer8.net.leg import Leg
from layer8.net.tls import Pinned, client_context, server_context
from layer8.proxy.carry import Carried, Carrier, Secured
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.wire import DATA_ALPN, Code
from tests.net.test_dial import DialCase

SECRET = bytes(range(32))


class Teller:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def refused(self, carried: Carried, code: Code, why: str) -> None:
        self.told.append(("refused", code))

    def joined(self, carried: Carried) -> None:
        self.told.append(("joined", None))

    def ended(self, carried: Carried, reason: str) -> None:
        self.told.append(("ended", reason))


class CarryCase(DialCase):
    def setUp(self) -> None:
        super().setUp()
        self.carrier = Carrier(self.pump, Dialer(self.named, self.pump), Dialer(self.named, self.pump))
        self.teller = Teller()
        self.target, self.server = self.listener(), self.listener()
        for sock in (self.target, self.server):
            sock.settimeout(5)

    def at(self, sock: socket.socket) -> Where:
        return Where("127.0.0.1", sock.getsockname()[1])

    def carry(self, target: Where, server: Where, secured: Secured | None = None) -> Carried:
        return self.carrier.carry(self.teller, 1, 7, "app.test", SECRET, target, server, secured)

    def accept(self, sock: socket.socket) -> socket.socket:
        taken, _ = sock.accept()
        taken.settimeout(5)
        self.open.append(taken)
        return taken

    async def told(self, count: int = 1) -> list[tuple[str, object]]:
        for _ in range(400):
            if len(self.teller.told) >= count:
                break
            await self.turn()
        return self.teller.told

    def nothing_left(self) -> None:
        self.assertEqual(self.carrier.open, set())
        self.assertEqual(list(self.pump._table), [])

    async def is_closed(self, sock: socket.socket, *, after: bytes = b"") -> None:
        """See that nothing but `after` was ever sent."""
        await self.turn()
        sock.setblocking(False)
        got = b""
        try:
            while data := sock.recv(100):
                got += data
        except ConnectionResetError:
            pass
        self.assertEqual(got, after)


class PlainTests(CarryCase):
    async def test_whole(self) -> None:
        self.carry(self.at(self.target), self.at(self.server))
        server, target = self.accept(self.server), self.accept(self.target)
        await self.told()
        server.sendall(b"question")
        target.sendall(b"answer")
        await self.turn()
        self.assertEqual(target.recv(100), b"question")
        self.assertEqual(server.recv(100), SECRET + b"answer")
        target.close()
        server.close()
        self.assertEqual(await self.told(2), [("joined", None), ("ended", "done")])
        totals = self.carrier.totals
        self.assertEqual((totals.called, totals.joined, totals.rejected), (1, 1, 0))
        self.assertEqual((totals.bytes_in, totals.bytes_out), (8, 6))
        self.nothing_left()

    async def test_the_target_is_told_who_comes(self) -> None:
        """What it hears of us is not counted as the visitor's."""
        self.carrier.carry(
            self.teller,
            1,
            7,
            "app.test",
            SECRET,
            self.at(self.target),
            self.at(self.server),
            None,
            b"PROXY UNKNOWN\r\n",
        )
        server, target = self.accept(self.server), self.accept(self.target)
        await self.told()
        await self.turn()
        self.assertEqual(target.recv(100), b"PROXY UNKNOWN\r\n")
        server.sendall(b"question")
        await self.turn()
        self.assertEqual(target.recv(100), b"question")
        target.close()
        server.close()
        await self.told(2)
        self.assertEqual((self.carrier.totals.bytes_in, self.carrier.totals.bytes_out), (8, 0))
        self.nothing_left()

    async def test_target_refused(self) -> None:
        """The server hears no secret, and the reject comes at once."""
        self.carry(Where("127.0.0.1", self.closed_port()), self.at(self.server))
        self.assertEqual(await self.told(), [("refused", Code.AGENT_REFUSED)])
        await self.is_closed(self.accept(self.server))
        self.nothing_left()

    async def test_server_refused(self) -> None:
        carried = self.carry(self.at(self.target), Where("127.0.0.1", self.closed_port()))
        self.assertEqual(await self.told(), [("refused", Code.AGENT_REFUSED)])
        self.assertTrue(carried.over)
        self.nothing_left()

    async def test_no_secret_before_the_target_is_there(self) -> None:
        carried = self.carry(Where("127.0.0.1", self.black_hole()), self.at(self.server))
        server = self.accept(self.server)
        await self.turn(0.1)
        server.setblocking(False)
        with self.assertRaises(BlockingIOError):
            server.recv(1)
        carried.close()
        await self.is_closed(server)
        self.assertEqual(self.teller.told, [])
        self.nothing_left()

    async def test_late(self) -> None:
        now = self.pump.look_at_clock()
        self.carry(Where("127.0.0.1", self.black_hole()), self.at(self.server))
        server = self.accept(self.server)
        self.carrier.tick(now + CALL_LIFE - 0.5)
        self.assertEqual(self.teller.told, [])
        self.carrier.tick(now + CALL_LIFE + 1)
        self.assertEqual(self.teller.told, [("refused", Code.AGENT_REFUSED)])
        await self.is_closed(server)
        self.nothing_left()

    async def test_late_when_it_is_joined_already(self) -> None:
        self.carry(self.at(self.target), self.at(self.server))
        self.accept(self.server)
        self.accept(self.target)
        await self.told()
        self.carrier.tick(self.pump.look_at_clock() + CALL_LIFE + 1)
        self.assertEqual(self.teller.told, [("joined", None)])
        self.carrier.close_all()
        self.assertEqual(self.teller.told[1:], [("ended", "shutdown")])
        self.nothing_left()

    async def test_closed_while_the_target_is_looked_up(self) -> None:
        carried = self.carry(Where("target.test", 80), self.at(self.server))
        server = self.accept(self.server)
        carried.close()
        self.named.answer("127.0.0.1")
        await self.is_closed(server)
        carried.close()
        self.nothing_left()

    async def test_closed_twice_closes_nobody_elses_descriptor(self) -> None:
        carried = self.carry(self.at(self.target), self.at(self.server))
        self.accept(self.server)
        self.accept(self.target)
        await self.told()
        carried.close()
        heirs = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        carried.close()
        carried.late()
        self.carrier.close_all()
        for heir in heirs:
            os.close(heir)
        self.assertEqual(self.pump.failures, 0)


class SecureTests(CarryCase):
    def setUp(self) -> None:
        super().setUp()
        self.identity = Identity.from_pem(*self_signed(("proxy.test",)))
        other = Identity.from_pem(*self_signed(("proxy.test",)))
        self.right = self.expecting(self.identity.pin)
        self.wrong = self.expecting(other.pin)
        self.got = b""
        self.errors: list[Exception] = []
        self.pump.listen(self.server, self.accepted)
        self.server.setblocking(False)

    def expecting(self, pin: str) -> Secured:
        return Secured(client_context(Pinned(frozenset({pin})), (DATA_ALPN,)), "proxy.test")

    def accepted(self, fd: int, peer: object) -> None:
        context = server_context(self.identity, (DATA_ALPN,))

        def shaken(leg: Leg, error: Exception | None) -> None:
            if error is not None:
                self.errors.append(error)
                return
            self.pump.watch(fd, Reading(self, leg))

        Leg(self.pump, fd, context, client=False, done=shaken).start()

    async def test_whole(self) -> None:
        self.carry(self.at(self.target), self.at(self.server), self.right)
        target = self.accept(self.target)
        target.sendall(b"answer")
        target.close()
        for _ in range(200):
            if len(self.got) >= 38:
                break
            await self.turn()
        self.assertEqual(self.got, SECRET + b"answer")
        self.carrier.close_all()
        self.pump.stop()
        self.server.close()

    async def test_wrong_pin(self) -> None:
        """Whoever listens there learns no secret."""
        self.carry(self.at(self.target), self.at(self.server), self.wrong)
        self.assertEqual(await self.told(), [("refused", Code.AGENT_REFUSED)])
        for _ in range(200):
            if self.errors:
                break
            await self.turn()
        self.assertIsInstance(self.errors[0], SSL.Error)
        self.assertEqual(self.got, b"")
        self.assertEqual(self.carrier.open, set())

    async def test_closed_during_the_handshake(self) -> None:
        self.pump.unregister(self.server.fileno())
        self.server.settimeout(5)
        carried = self.carry(self.at(self.target), self.at(self.server), self.right)
        server = self.accept(self.server)
        await self.turn()
        carried.close()
        self.assertTrue(server.recv(5).startswith(b"\x16\x03"))
        self.assertEqual(self.carrier.open, set())
        self.assertEqual(self.teller.told, [])


class Reading:
    """Reads what a leg gives."""

    def __init__(self, case: SecureTests, leg: Leg) -> None:
        self._case = case
        self._leg = leg
        self.ready(leg.fd, 0)

    def ready(self, fd: int, events: int) -> None:
        try:
            while data := self._leg.recv(4096):
                self._case.got += data
        except OSError:
            return

    def abandon(self) -> None:
        leg: Any = self._leg
        self._case.pump.close_fd(leg.fd)
