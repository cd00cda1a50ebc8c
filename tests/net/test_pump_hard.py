"""The pump where something is wrong: our own defects, reused descriptor numbers, ends without an event."""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from layer8.crypto.x509 import Identity, self_signed
from layer8.net import pump as pump_module
from layer8.net.flow import Link
from layer8.net.leg import Leg
from layer8.net.linger import answer_and_close
from layer8.net.pump import Pump
from layer8.net.tls import server_context
from tests import opened
from tests.net.test_pump import Ended


class Recorder:
    """An entry that remembers what it was told."""

    def __init__(self, act: Callable[[], object] | None = None) -> None:
        self.told: list[int] = []
        self.abandoned = 0
        self._act = act

    def ready(self, fd: int, events: int) -> None:
        self.told.append(events)
        if self._act is not None:
            self._act()

    def abandon(self) -> None:
        self.abandoned += 1


class PumpCase(TestCase):
    """A pump with nothing in it."""

    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.before = opened.descriptors()
        self.pump = Pump(reactor)
        self.pump.start()
        self.open: list[socket.socket] = []

    def tearDown(self) -> None:
        self.pump.stop()
        for sock in self.open:
            sock.close()
        self.assertEqual(opened.left(self.before), [], "descriptors left open")

    def ends(self) -> tuple[socket.socket, int]:
        """A connected pair: ours to use, and a descriptor that belongs to the pump."""
        ours, theirs = socket.socketpair()
        self.open.append(ours)
        ours.settimeout(5)
        theirs.setblocking(False)
        return ours, theirs.detach()

    def joined(self, **more: Any) -> tuple[socket.socket, socket.socket, Link, Ended]:
        (first, a), (second, b), owner = self.ends(), self.ends(), Ended()
        return first, second, self.pump.join(a, b, owner, **more), owner

    async def turn(self, seconds: float = 0.02) -> None:
        waiting: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, waiting.callback, None)
        await waiting


class Broken:
    """A TLS session with a defect of ours in it."""

    def recv(self, size: int) -> bytes:
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        raise ValueError("a defect")

    def finish(self) -> None:
        raise ValueError("a defect")


class DefectTests(PumpCase):
    async def works(self) -> None:
        """See that others are still carried."""
        first, second, link, _ = self.joined()
        first.sendall(b"still here")
        await self.turn()
        self.assertEqual(second.recv(100), b"still here")
        link.close()

    async def test_in_a_turn(self) -> None:
        _, _, _, owner = self.joined(up=b"first words", second_tls=Broken())
        await self.turn()
        self.assertEqual(owner.reasons[0][0], "reset")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        await self.works()

    async def test_in_a_turn_within_a_look(self) -> None:
        """An exception that left `doRead` would make the reactor drop the pump with all its connections."""
        ours, fd = self.ends()
        self.pump.watch(fd, Recorder(lambda: self.joined(up=b"first words", second_tls=Broken())))
        ours.sendall(b"x")
        await self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertIn(self.pump, self.reactor.getReaders())
        self.pump.close_fd(fd)
        await self.works()

    async def test_in_an_entry(self) -> None:
        """Only the entry knows whether its descriptor is still its own, so it is told and nothing is closed."""
        ours, fd = self.ends()

        def defect() -> None:
            raise ValueError("a defect")

        entry = Recorder(defect)
        self.pump.watch(fd, entry)
        ours.sendall(b"x")
        await self.turn()
        self.assertEqual(entry.abandoned, 1)
        self.assertEqual(self.pump.failures, 1)
        os.fstat(fd)
        self.pump.close_fd(fd)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_in_an_owner(self) -> None:
        class Owner:
            def ended(self, link: Link, reason: str) -> None:
                raise ValueError("a defect")

        (first, a), (second, b) = self.ends(), self.ends()
        self.pump.join(a, b, Owner())
        first.close()
        second.close()
        await self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.pump.links, 0)
        await self.works()

    async def test_in_a_sweep(self) -> None:
        class Owner:
            def ended(self, link: Link, reason: str) -> None:
                raise ValueError("a defect")

        for _ in range(2):
            (_, a), (_, b) = self.ends(), self.ends()
            self.pump.join(a, b, Owner())
        self.pump.idle = 0.0
        self.pump.sweep()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.assertEqual(self.pump.links, 0)


class StaleTests(PumpCase):
    async def test_a_number_that_was_used_again_hears_nothing_old(self) -> None:
        """Two are ready in one look; each closes the other and opens a new one under its number."""
        (mine, one), (other, two) = self.ends(), self.ends()
        heirs: list[Recorder] = []
        spare: list[int] = []

        def replace(fd: int) -> Callable[[], None]:
            def act() -> None:
                if heirs:
                    return
                _, fresh = self.ends()
                self.pump.close_fd(fd)
                os.dup2(fresh, fd)
                os.close(fresh)
                spare.append(fd)
                heirs.append(Recorder())
                self.pump.watch(fd, heirs[0])

            return act

        self.pump.watch(one, Recorder(replace(two)))
        self.pump.watch(two, Recorder(replace(one)))
        mine.close()
        other.close()
        await self.turn()
        self.assertEqual(heirs[0].told, [], "an event of the descriptor that had this number before")
        self.pump.close_fd(spare[0])
        self.pump.close_fd(one if spare[0] == two else two)

    async def test_a_look_at_what_is_new_still_tells(self) -> None:
        """What was closed and opened again within one look is told in the next one."""
        ours, fd = self.ends()
        heard = Recorder()

        def act() -> None:
            self.pump.unregister(fd)
            self.pump.watch(fd, heard)

        self.pump.watch(fd, Recorder(act))
        ours.sendall(b"x")
        await self.turn()
        self.assertEqual(len(heard.told), 1)
        self.pump.close_fd(fd)


class TurnTests(PumpCase):
    async def test_a_flow_waits_once_however_many_events_come(self) -> None:
        self.patch(pump_module, "TURN", 1)
        self.patch(pump_module, "CHUNK", 1024)
        self.pump.splices = False
        first, _, link, _ = self.joined()
        first.setblocking(False)
        for _ in range(8):
            first.send(b"z" * 8192)
            link.up.ready(link.up.src, 1)
        self.assertEqual(list(self.pump.busy).count(link.up), 1)
        link.close()

    def test_idle_may_be_shorter_than_half_closed(self) -> None:
        now = [1000.0]
        self.pump._clock = lambda: now[0]
        self.pump.look_at_clock()
        self.pump.idle, self.pump.half_closed = 10.0, 60.0
        _, _, _, owner = self.joined()
        now[0] += 11
        self.pump.sweep()
        self.assertEqual(owner.reasons[0][0], "idle")


class SecureTests(PumpCase):
    """What a TLS session has read already is told by no event."""

    def setUp(self) -> None:
        super().setUp()
        key, chain = self_signed(("localhost",))
        self.server = server_context(Identity.from_pem(key, chain))

    async def shaken(self) -> tuple[Leg, SSL.Connection, socket.socket]:
        """A server's leg, the peer's session, and the peer's socket."""
        ours, fd = self.ends()
        ours.setblocking(False)
        done: list[Exception | None] = []
        leg = Leg(self.pump, fd, self.server, client=False, done=lambda _, error: done.append(error))
        leg.start()
        peer = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        peer.set_connect_state()
        while not done:
            with contextlib.suppress(SSL.WantReadError):
                peer.do_handshake()
            self.carry(peer, ours)
            await self.turn(0.005)
            with contextlib.suppress(BlockingIOError):
                peer.bio_write(ours.recv(65536))
        self.assertEqual(done, [None])
        return leg, peer, ours

    @staticmethod
    def carry(peer: SSL.Connection, ours: socket.socket) -> None:
        try:
            while True:
                ours.sendall(peer.bio_read(65536))
        except SSL.WantReadError:
            pass

    async def test_what_followed_the_secret_in_the_same_packet(self) -> None:
        leg, peer, ours = await self.shaken()
        peer.send(b"secret")
        peer.send(b"greeting")
        self.carry(peer, ours)
        self.assertEqual(leg.recv(100), b"secret")
        visitor, fd = self.ends()
        link = self.pump.join(fd, leg.fd, Ended(), second_tls=leg)
        await self.turn()
        visitor.setblocking(False)
        self.assertEqual(visitor.recv(100), b"greeting")
        link.close()

    async def test_an_end_that_followed_the_secret_in_the_same_packet(self) -> None:
        leg, peer, ours = await self.shaken()
        peer.send(b"secret")
        peer.shutdown()
        self.carry(peer, ours)
        self.assertEqual(leg.recv(100), b"secret")
        visitor, fd = self.ends()
        link = self.pump.join(fd, leg.fd, Ended(), second_tls=leg)
        await self.turn()
        visitor.setblocking(False)
        self.assertEqual(visitor.recv(100), b"")
        link.close()

    async def test_a_handshake_when_the_pump_stops(self) -> None:
        _, fd = self.ends()
        errors: list[Exception | None] = []
        Leg(self.pump, fd, self.server, client=False, done=lambda _, error: errors.append(error)).start()
        self.pump.stop()
        self.assertIsInstance(errors[0], ConnectionAbortedError)


class StopTests(PumpCase):
    def test_an_owner_with_a_defect(self) -> None:
        """The others are closed all the same."""

        class Owner:
            def ended(self, link: Link, reason: str) -> None:
                raise ValueError("a defect")

        for _ in range(2):
            (_, a), (_, b) = self.ends(), self.ends()
            self.pump.join(a, b, Owner())
        self.pump.stop()
        self.assertEqual(self.pump.links, 0)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_what_lingers(self) -> None:
        ours, fd = self.ends()
        closed: list[int] = []
        answer_and_close(self.reactor, self.pump, fd, b"no", lambda: closed.append(fd))
        self.assertEqual(closed, [])
        self.pump.stop()
        self.assertEqual(closed, [fd])
        self.assertEqual(ours.recv(10), b"no")
        self.assertEqual(ours.recv(10), b"")
