"""Visitors of a server in whose handling something goes wrong: every count and descriptor is right afterwards."""

import errno
import os
import socket
import struct
import time
from typing import Any, NoReturn

from layer8.net.pump import Pump
from layer8.proxy.service import Server
from layer8.proxy.traffic import Traffic
from layer8.proxy.wire import Reason
from tests import opened
from tests.proxy.pair import Echo, PairCase, get, published, visit

RESET = struct.pack("ii", 1, 0)


def defect(*_: object, **__: object) -> NoReturn:
    raise ValueError("a defect")


class TrafficCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)
        self.mine: list[socket.socket] = []

    def tearDown(self) -> None:
        for sock in self.mine:
            sock.close()

    def start(self, proxy: str = "", target: str = "") -> Server:
        where = target or f"tcp:127.0.0.1:{self.echo.port}"
        return self.serve(proxy, f'[[proxy.host]]\nhost = "static.test"\ntarget = "{where}"\n')

    def ends(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        self.mine.append(ours)
        ours.settimeout(5)
        theirs.setblocking(False)
        return ours, theirs.detach()

    def enter(self, server: Server, data: bytes = b"", address: str = "127.0.0.1") -> tuple[socket.socket, int]:
        """Let a visitor in without a listener, which keeps the silent ones to itself for a while."""
        ours, fd = self.ends()
        if data:
            ours.sendall(data)
        server.traffic.accepted(fd, address, 80, "http")
        return ours, fd

    def unanswered(self, server: Server) -> list[bytes]:
        """Let agents be told of visitors in vain; the secrets that they would be told."""
        calls: list[bytes] = []

        def call(visit: object, seat: object, secret: bytes) -> bool:
            calls.append(secret)
            return True

        self.patch(server.door, "call", call)
        return calls

    def nothing_left(self, server: Server) -> None:
        traffic = server.traffic
        self.assertEqual((traffic.visits, traffic.waiting, traffic.pending), (set(), {}, {}))
        self.assertEqual((traffic.open.open, traffic.sniffing.open), (0, 0))
        for tally in traffic.tallies.values():
            self.assertEqual((tally.calling, tally.open), (0, 0))
        for seat in server.seats:
            self.assertEqual((seat.calling, seat.open), (0, 0))

    def closed_once(self, server: Server, fd: int) -> None:
        """The number is free now; whoever gets it keeps it, whatever comes later."""
        with self.assertRaises(OSError):
            os.fstat(fd)
        heir = os.open("/dev/null", os.O_RDONLY)
        try:
            os.dup2(heir, fd)
        except OSError as error:  # a thread that waits in accept() has been given the number already: it is free
            self.assertEqual(error.errno, errno.EBUSY)
            os.close(heir)
            return
        server.pump._clock = lambda: 1e12
        server.traffic.tick()
        server.pump.sweep()
        server.traffic.close_all()
        os.fstat(fd)
        for one in {heir, fd}:
            os.close(one)


class SilentTests(TrafficCase):
    async def test_who_says_nothing_is_closed_in_time(self) -> None:
        server = self.start("[proxy.limits]\nsniff_time = 0.3")
        ours, _ = self.enter(server)
        self.assertEqual(await self.thread(ours.recv, 10), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.SNIFF_TIME], 1)
        self.nothing_left(server)

    async def test_a_late_byte_does_not_help(self) -> None:
        server = self.start("[proxy.limits]\nsniff_time = 0.3")
        ours, _ = self.enter(server)
        await self.until(lambda: bool(server.traffic.waiting))
        ours.sendall(b"G")
        self.assertTrue((await self.thread(ours.recv, 100)).startswith(b"HTTP/1.1 408 "))
        await self.until(lambda: not server.traffic.visits)


class TargetTests(TrafficCase):
    async def test_one_that_does_not_answer_is_waited_for_as_long_as_agents_are(self) -> None:
        hole = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.mine.append(hole)
        for _ in range(4):  # its queue is full, and the kernel drops what comes
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(hole.getsockname())
            self.mine.append(one)
        server = self.start(
            "[proxy.limits]\ncall_time = 0.5\ncall_step = 0.2", f"tcp:127.0.0.1:{hole.getsockname()[1]}"
        )
        began = time.monotonic()
        ours, fd = self.enter(server, get("static.test"))
        self.assertEqual(await self.thread(ours.recv, 10), b"")
        self.assertTrue(0.4 < time.monotonic() - began < 4, "after call_time, not after the pump's own 10 s")
        self.assertEqual(server.traffic.totals.ended[Reason.TARGET_REFUSED], 1)
        self.nothing_left(server)
        self.closed_once(server, fd)


class DefectTests(TrafficCase):
    async def test_at_the_door(self) -> None:
        server = self.start()
        self.patch(server.registry, "lookup", defect)
        ours, fd = self.ends()
        ours.sendall(get("static.test"))
        with self.assertRaises(ValueError):
            server.traffic.accepted(fd, "127.0.0.1", 80, "http")
        self.assertEqual(server.traffic.totals.ended[Reason.INTERNAL], 1)
        self.nothing_left(server)
        self.closed_once(server, fd)

    async def test_when_the_name_comes_late(self) -> None:
        server = self.start()
        ours, fd = self.enter(server, get("static.test")[:10])
        self.patch(server.registry, "lookup", defect)
        ours.sendall(get("static.test")[10:])
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(server.traffic.totals.ended[Reason.INTERNAL], 1)
        self.nothing_left(server)
        self.closed_once(server, fd)

    async def test_when_it_is_joined(self) -> None:
        before = opened.descriptors()
        server = self.start()
        inside = opened.descriptors()
        self.patch(Pump, "join", defect)
        ours, fd = self.ends()
        ours.sendall(get("static.test"))
        try:
            server.traffic.accepted(fd, "127.0.0.1", 80, "http")
        except ValueError:
            pass
        else:
            await self.until(lambda: not server.traffic.visits)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.nothing_left(server)
        self.closed_once(server, fd)
        ours.close()
        await self.until(lambda: len(opened.descriptors()) <= len(inside))
        self.assertGreaterEqual(len(inside), len(before))

    async def test_at_a_deadline(self) -> None:
        """It costs one visitor; those who come later have their deadlines still."""
        server = self.start("[proxy.limits]\nsniff_time = 0.3")
        real = Traffic._wake
        failed: list[Any] = []

        def once(traffic: Traffic, one: Any, now: float) -> None:
            if not failed:
                failed.append(one)
                defect()
            real(traffic, one, now)

        self.patch(Traffic, "_wake", once)
        first, fd = self.enter(server)
        second, _ = self.enter(server)
        self.assertEqual(await self.thread(first.recv, 10), b"")
        self.assertEqual(await self.thread(second.recv, 10), b"")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(server.traffic.totals.ended[Reason.INTERNAL], 1)
        self.assertEqual(server.traffic.totals.ended[Reason.SNIFF_TIME], 1)
        self.nothing_left(server)
        self.closed_once(server, fd)

    async def test_in_the_access_log(self) -> None:
        server = self.start()
        self.patch(server.traffic.accounts, "close", defect)
        await self.thread(visit, server.door.port_of("http"), get("static.test"))
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual((server.traffic.open.open, server.pump.links), (0, 0))


class EndTests(TrafficCase):
    async def test_who_is_told_no_keeps_its_place_until_it_is_closed(self) -> None:
        server = self.start()
        ours, _ = self.enter(server, b"nonsense\r\n\r\n")
        self.assertEqual(server.traffic.visits, set())
        self.assertEqual(server.traffic.open.open, 1)
        self.assertTrue((await self.thread(ours.recv, 1000)).startswith(b"HTTP/1.1 400 "))
        ours.close()
        await self.until(lambda: server.traffic.open.open == 0)
        self.nothing_left(server)

    async def test_a_peer_without_an_address(self) -> None:
        server = self.start()
        ours, _ = self.enter(server, get("static.test"), address="")
        self.assertTrue((await self.thread(ours.recv, 1000)).startswith(b"HTTP/1.1 200 "))
        ours.close()
        await self.until(lambda: not server.traffic.visits)
        self.nothing_left(server)

    async def test_reset_while_an_agent_is_called(self) -> None:
        """The secret is void with its visitor."""
        secret, path = self.secret()
        server = self.serve("", f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        await self.publish(server, published("app.test", secret, self.echo.port))
        calls = self.unanswered(server)
        sock = socket.create_connection(("127.0.0.1", server.door.port_of("http")), 5)
        sock.sendall(get("app.test"))
        await self.until(lambda: len(calls) == 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual(server.traffic.totals.ended[Reason.VISITOR_LEFT], 1)
        self.nothing_left(server)
        _, fd = self.ends()
        self.assertFalse(server.traffic.reach.answered(calls[0], fd, b"", None))
        os.close(fd)

    async def test_a_secret_is_good_once(self) -> None:
        secret, path = self.secret()
        server = self.serve("", f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        await self.publish(server, published("app.test", secret, self.echo.port))
        calls = self.unanswered(server)
        self.enter(server, get("app.test"))
        (_, one), (_, two) = self.ends(), self.ends()
        self.assertTrue(server.traffic.reach.answered(calls[0], one, b"", None))
        self.assertFalse(server.traffic.reach.answered(calls[0], two, b"", None))
        os.close(two)
        server.traffic.close_all()
        self.nothing_left(server)

    async def test_a_draining_seat_that_leaves_with_its_last_visitor(self) -> None:
        """Closing one visitor may close another; each is counted once."""
        secret, path = self.secret()
        server = self.serve("", f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        await self.publish(server, published("app.test", secret, self.echo.port))
        self.patch(server.door, "call", lambda visit, seat, secret: True)
        for _ in range(3):
            self.enter(server, get("app.test"))
        (seat,) = server.seats
        server.seats.turned(seat, "drain")
        server.traffic.close_all()
        self.assertEqual(sum(server.traffic.totals.ended.values()), 3)
        self.nothing_left(server)
