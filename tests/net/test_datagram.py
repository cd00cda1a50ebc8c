"""Datagram sessions on a port: endpoint strings, the adapter in memory and on loopback."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.core.datagram import DatagramEffect, Peer, SendTo
from layer8.core.errors import ConfigError, Unavailable
from layer8.core.session import Close, Tell
from layer8.net.datagram import Datagrams, DatagramService, UdpEndpoint
from layer8.testing.wire import Airwaves, settle


class Ping:
    """Answers each datagram with its upper case; greets a friend at the start; leaves after 10 s of silence."""

    def __init__(self, friend: Peer | None = None) -> None:
        self._out: list[DatagramEffect] = [SendTo(b"hello", friend)] if friend else []
        self._until: float | None = None

    def received(self, data: bytes, peer: Peer, now: float) -> None:
        self._until = now + 10
        match data:
            case b"bug":
                raise ZeroDivisionError
            case b"tell":
                self._out.append(Tell(peer))
            case b"far":
                self._out += [SendTo(b"x", to) for to in (("2001:db8::1", 1), ("127.0.0.1", 0), ("nobody", 1))]
            case b"huge":
                self._out.append(SendTo(bytes(100_000), peer))
            case _ if data.islower():
                self._out.append(SendTo(data.upper(), peer))

    def wake(self, now: float) -> None:
        if self._until is not None and now >= self._until:
            self._until = None
            self._out += [Close("silence"), Tell("not any more")]

    def effects(self) -> Sequence[DatagramEffect]:
        out, self._out = self._out, []
        return out

    def deadline(self) -> float | None:
        return self._until

    def say(self, data: bytes, peer: Peer) -> None:
        self._out.append(SendTo(data, peer))


class Notes:
    def __init__(self) -> None:
        self.events: list[object] = []

    def told(self, port: Datagrams, what: object) -> None:
        self.events.append(what)

    def ended(self, port: Datagrams, reason: str) -> None:
        self.events.append(f"ended: {reason}")


class Note(DatagramProtocol):
    def __init__(self) -> None:
        self.heard: list[tuple[bytes, Peer]] = []
        self.waiting: Deferred[bytes] = Deferred()

    def datagramReceived(self, datagram: bytes, addr: Peer) -> None:
        self.heard.append((datagram, addr))
        waiting, self.waiting = self.waiting, Deferred()
        waiting.callback(datagram)


ONE, OTHER = ("192.0.2.1", 1), ("192.0.2.2", 2)


class InMemory(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.air = Airwaves(self.clock)
        self.notes = Notes()
        self.peer = Note()
        self.air.listen(self.peer, *ONE)
        self.session = Ping(ONE)
        self.port = Datagrams(self.session, self.notes, self.clock, self.clock.seconds)
        self.there = self.air.listen(self.port, *OTHER)

    def _say(self, *lines: bytes) -> list[bytes]:
        self.peer.heard.clear()
        for line in lines:
            self.air.carry(line, ONE, OTHER)
        settle(self.clock, 0.1)
        return [data for data, _ in self.peer.heard]

    def test_speaks_first(self) -> None:
        settle(self.clock, 0.1)
        self.assertEqual(self.peer.heard, [(b"hello", OTHER)])

    def test_answers(self) -> None:
        settle(self.clock, 0.1)
        self.assertEqual(self._say(b"a", b"tell", b"b"), [b"A", b"B"])
        self.assertEqual(self.notes.events, [ONE])
        self.assertEqual((self.port.counts.received, self.port.counts.sent), (3, 3))

    def test_words_of_our_own_side(self) -> None:
        settle(self.clock, 0.1)
        self.peer.heard.clear()
        self.session.say(b"psst", ONE)
        self.port.carry_out()
        settle(self.clock, 0.1)
        self.assertEqual(self.peer.heard, [(b"psst", OTHER)])

    def test_deadline(self) -> None:
        self._say(b"a")
        self._say(b"b")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        settle(self.clock, 10)
        self.assertEqual(self.notes.events, ["ended: silence", "not any more"])
        self.assertEqual(self._say(b"a"), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_bug(self) -> None:
        self._say(b"bug")
        self.assertEqual(self.notes.events, ["ended: bug"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stops_its_clock(self) -> None:
        self._say(b"a")
        self.successResultOf_(self.there.stopListening())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def successResultOf_(self, done: Deferred[None]) -> None:
        settle(self.clock, 0.01)
        self.successResultOf(done)

    @given(st.lists(st.binary(max_size=40), max_size=10))
    def test_noise(self, datagrams: list[bytes]) -> None:
        for data in datagrams:
            self.port.datagramReceived(data if data != b"bug" else b"", ONE)
        self.assertEqual(self.port.reason, "")


class Strings(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for text, port, interface, local in (
            ("udp:9000", 9000, "127.0.0.1", True),
            ("udp:0:interface=0.0.0.0", 0, "0.0.0.0", False),
            (r"udp:port=53:interface=\:\:1", 53, "::1", True),
            (r"udp:53:\:\:", 53, "::", False),
        ):
            found = UdpEndpoint.parse(text)
            self.assertEqual((found.port, found.interface, found.loopback), (port, interface, local))
            self.assertEqual(UdpEndpoint.parse(str(found)), found)

    def test_refused(self) -> None:
        for text in (
            "",
            "tcp:80",
            "udp",
            "udp:",
            "udp:x",
            "udp:65536",
            "udp:-1",
            "udp:1:2:3",
            "udp:1:port=2",
            "udp:1:interface=eth0",
            "udp:1:interface=",
            "udp:1:color=red",
            "udp:1\\",
        ):
            self.assertRaises(ConfigError, UdpEndpoint.parse, text)

    @given(st.text(max_size=30))
    def test_noise(self, text: str) -> None:
        for whole in (text, "udp:" + text):
            try:
                found = UdpEndpoint.parse(whole)
            except ConfigError:
                continue
            self.assertEqual(UdpEndpoint.parse(str(found)), found)


class Loopback(TestCase):
    timeout = 20

    async def _start(self, service: DatagramService) -> None:
        service.startService()
        self.addCleanup(service.stopService)

    async def test_real_ports(self) -> None:
        from twisted.internet import reactor

        real: Any = reactor
        notes = Notes()
        port = Datagrams(Ping(), notes, real)
        service = DatagramService(real, UdpEndpoint.parse("udp:0"), port, "--udp")
        await self._start(service)
        number = UdpEndpoint.parse(service.text).port
        self.assertGreater(number, 0)
        peer = Note()
        near = real.listenUDP(0, peer, "127.0.0.1")
        self.addCleanup(near.stopListening)
        near.write(b"abc", ("127.0.0.1", number))
        self.assertEqual(await peer.waiting, b"ABC")
        for awkward in (b"far", b"huge", b"", bytes(60_000)):
            near.write(awkward, ("127.0.0.1", number))
        near.write(b"still here", ("127.0.0.1", number))
        self.assertEqual(await peer.waiting, b"STILL HERE")
        self.assertEqual((port.counts.received, port.counts.sent, port.counts.dropped), (6, 2, 4))
        self.assertEqual(notes.events, [])
        second = DatagramService(real, UdpEndpoint(number), Note(), "--udp")
        error = self.assertRaises(Unavailable, second.startService)
        self.assertIn("--udp", str(error))
        await deferLater(real, 0)
