"""The stream adapter: with a string transport, over the wire in memory, over loopback, with and without TLS."""

import socket
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import BaseProtocol, Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from layer8.crypto.x509 import Identity, self_signed
from layer8.net.stream import CLOSE_TIME, WRITE_MOST, Owner, Stream, StreamFactory
from layer8.net.tls import Pinned, TlsClient, TlsServer
from layer8.testing.wire import Link, Wire, connect
from tests.net.toy import Greeted, Toy


class Notes:
    """An owner that writes everything down."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.on_dial: Callable[[Stream], None] = lambda stream: None
        self.on_join: Callable[[Stream], None] = lambda stream: None
        self.ends: Deferred[str] = Deferred()

    def told(self, stream: Stream, what: object) -> None:
        self.events.append(what)

    def dial(self, stream: Stream, key: int, address: str) -> None:
        self.events.append((key, address))
        self.on_dial(stream)

    def join(self, stream: Stream, key: int, first: bytes) -> None:
        self.events.append((key, first))
        self.on_join(stream)

    def ended(self, stream: Stream, reason: str) -> None:
        self.events.append(f"ended: {reason}")
        if not self.ends.called:
            self.ends.callback(reason)


class Listener(Protocol):
    """A peer that only listens."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""
        self.events: list[str] = []
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.events.append(type(reason.value).__name__)
        self.lost.callback(None)


@implementer(IHalfCloseableProtocol)
class HalfListener(Listener):
    def readConnectionLost(self) -> None:
        self.events.append("read end")

    def writeConnectionLost(self) -> None:
        self.events.append("write end")


class WithStrings(SynchronousTestCase):
    """One end by itself."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.notes = Notes()
        owner: Owner = self.notes
        self.session = Toy()
        self.stream = Stream(self.session, owner, self.clock, self.clock.seconds)
        self.transport = StringTransport()
        BaseProtocol.makeConnection(self.stream, self.transport)

    def _say(self, line: bytes) -> bytes:
        self.transport.clear()
        self.stream.dataReceived(line + b"\n")
        return bytes(self.transport.value())

    def test_speaks_first(self) -> None:
        self.assertEqual(self.transport.value(), b"hello\n")
        self.assertIs(self.transport.producer, self.stream)
        self.assertTrue(self.transport.streaming)

    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        self.setUp()
        whole = b"echo one\nname two\necho three\nbye\nnot heard\n"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
        for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            self.stream.dataReceived(whole[start:stop])
        self.assertEqual(self.transport.value(), b"hello\none\nthree\nbye\n")
        self.assertEqual(self.notes.events, [Greeted(b"two")])
        self.assertTrue(self.transport.disconnecting)
        self.stream.connectionLost()
        self.assertEqual(self.notes.events[-1], "ended: bye")

    @given(st.lists(st.binary(max_size=200), max_size=8))
    def test_any_noise(self, pieces: list[bytes]) -> None:
        """Noise is closed by the session's own word; the toy's `bug` line and its arguments are no noise."""
        self.setUp()
        for piece in pieces:
            self.stream.dataReceived(piece.replace(b"bug", b"").replace(b"flood", b""))
        self.stream.connectionLost()
        reasons = ("lost", "nonsense", "too long", "drop", "bye")
        self.assertIn(self.notes.events[-1], {f"ended: {why}" for why in reasons})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadline(self) -> None:
        """One delayed call, which is not moved for each byte and still fires in time."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for _ in range(5):
            self._say(b"echo x")
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            self.clock.advance(4)
        self.clock.advance(5.99)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(0.01)
        self.assertTrue(self.transport.disconnecting)
        self.stream.connectionLost()
        self.assertEqual(self.notes.events[-1], "ended: idle")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nearer_deadline(self) -> None:
        self._say(b"echo x")
        self._say(b"ticks")
        self.transport.clear()
        self.clock.advance(1)
        self.assertEqual(len(self.transport.value()), 200_000)

    def test_full_transport_stops_reading(self) -> None:
        self.stream.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.stream.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")

    def test_owner_and_transport_both_have_to_agree(self) -> None:
        self.stream.hold()
        self.stream.pauseProducing()
        self.stream.resumeProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.stream.go_on()
        self.assertEqual(self.transport.producerState, "producing")

    def test_too_much_for_a_slow_reader(self) -> None:
        """A session that talks by itself to a peer that does not read: dropped at the cap, with nothing more kept."""
        self._say(b"ticks")
        self.stream.pauseProducing()
        for _ in range(20):
            self.clock.advance(1)
        self.assertTrue(self.transport.disconnected)
        self.assertLessEqual(len(self.transport.value()), WRITE_MOST)
        self.stream.connectionLost()
        self.assertEqual(self.notes.events[-1], "ended: slow")

    def test_cap_starts_again_when_the_reader_catches_up(self) -> None:
        self._say(b"ticks")
        for _ in range(20):
            self.stream.pauseProducing()
            self.clock.advance(1)
            self.stream.resumeProducing()
        self.assertFalse(self.transport.disconnecting)

    def test_pipelined_questions_wait_for_room(self) -> None:
        """Read already, not answered yet: the session gets the next piece when the transport has room, in order."""
        self.transport.clear()
        self.stream.dataReceived(b"echo x\n" * 1000)
        self.assertEqual(self.transport.value(), b"x\n" * 1000)
        self.transport.clear()
        self.stream.pauseProducing()
        self.stream.dataReceived(b"echo y\n" * 1000)
        self.assertEqual(self.transport.value(), b"")
        self.stream.resumeProducing()
        self.assertEqual(self.transport.value(), b"y\n" * 1000)

    def test_what_waits_comes_before_the_end(self) -> None:
        self.stream.pauseProducing()
        self.transport.clear()
        self.stream.dataReceived(b"name me\necho x\nflood 5000\nbye\n")
        self.stream.connectionLost()
        self.assertEqual(self.notes.events, [Greeted(b"me"), "lost", "ended: bye"])
        self.assertEqual(self.transport.value(), b"")

    def test_join_takes_what_waits_along(self) -> None:
        rest = bytes(range(256)) * 64
        self.stream.dataReceived(b"join\n" + rest)
        self.stream.dataReceived(b"and this")  # as TLS does after a pause
        next_one = Listener()
        self.stream.become(next_one)
        self.assertEqual(self.notes.events, [(7, rest)])
        self.assertEqual(next_one.heard, b"and this")

    def test_abort(self) -> None:
        self._say(b"drop")
        self.assertTrue(self.transport.disconnected)
        self.stream.connectionLost()
        self.assertEqual(self.notes.events, ["lost", "ended: drop"])

    def test_orderly_close_has_a_deadline(self) -> None:
        self._say(b"bye")
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)
        self.clock.advance(CLOSE_TIME - 0.01)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(0.01)
        self.assertTrue(self.transport.disconnected)

    def test_lost_once_and_nothing_sent_after_it(self) -> None:
        self.transport.clear()
        self.stream.readConnectionLost()
        self.stream.connectionLost()
        self.assertEqual((self.session.losses, self.transport.value()), (1, b""))
        self.assertEqual(self.notes.events, ["lost", "ended: lost"])

    def test_dial_and_its_answer(self) -> None:
        def answer(stream: Stream) -> None:
            self.session.answered(b"ok")
            stream.carry_out()

        self.notes.on_dial = answer
        self.assertEqual(self._say(b"dial tcp:192.0.2.1:80"), b"dialled ok\n")
        self.assertEqual(self.notes.events, [(7, "tcp:192.0.2.1:80")])

    def test_join(self) -> None:
        """What was read goes along, nothing more is read until somebody takes over, then everything goes there."""
        next_one = HalfListener()
        self._say(b"echo x")
        self.stream.dataReceived(b"join\nfirst bytes")
        self.assertEqual(self.notes.events, [(7, b"first bytes")])
        self.assertEqual(self.transport.producerState, "paused")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.stream.become(next_one)
        self.assertIs(next_one.transport, self.transport)
        self.assertEqual((self.transport.producerState, self.transport.producer), ("producing", None))
        self.stream.dataReceived(b"more")
        self.stream.readConnectionLost()
        self.stream.writeConnectionLost()
        self.stream.connectionLost()
        self.assertEqual((next_one.heard, next_one.events), (b"more", ["read end", "write end", "ConnectionDone"]))
        self.assertEqual(self.notes.events, [(7, b"first bytes")])

    def test_join_taken_over_at_once(self) -> None:
        next_one = Listener()
        self.notes.on_join = lambda stream: stream.become(next_one)
        self._say(b"join")
        self.stream.dataReceived(b"more")
        self.assertEqual((next_one.heard, self.transport.producerState), (b"more", "producing"))
        self.stream.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_a_bug_costs_one_connection(self) -> None:
        self._say(b"bug")
        self.assertTrue(self.transport.disconnected)
        self.stream.connectionLost()
        self.assertEqual(self.notes.events[-1], "ended: bug")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_owner_closes(self) -> None:
        self.stream.close("drained")
        self.stream.close("never mind")
        self.assertEqual(self._say(b"echo x"), b"")
        self.stream.connectionLost()
        self.assertEqual(self.notes.events, ["lost", "ended: drained"])

    def test_factory(self) -> None:
        factory = StreamFactory(lambda address: Toy(), self.notes, self.clock, self.clock.seconds)
        made = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        self.assertIsInstance(made, Stream)
        self.assertIsNone(factory.buildProtocol(None))


class OverTheWire(SynchronousTestCase):
    """Two ends, a clock, and a network with manners."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.notes = Notes()
        self.stream = Stream(Toy(), self.notes, self.clock, self.clock.seconds)

    def _wire(self, peer: IProtocol, link: Link | None = None) -> Wire:
        return connect(self.clock, peer, self.stream, link or Link(), Link())

    def test_answer_arrives_although_bytes_are_unread(self) -> None:
        """A peer that goes on talking still gets the last answer and a clean end."""
        peer = HalfListener()
        wire = self._wire(peer)
        peer.transport.write(b"echo x\nbye\n")
        wire.settle(0.1)
        peer.transport.write(b"more and more\n" * 100)
        wire.settle(0.1)
        self.assertEqual((peer.heard, peer.events), (b"hello\nx\nbye\n", ["read end"]))
        peer.transport.loseConnection()
        wire.settle(0.1)
        self.assertEqual(peer.events, ["read end", "ConnectionDone"])
        self.assertEqual(self.notes.events, ["lost", "ended: bye"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_peer_that_never_closes(self) -> None:
        peer = HalfListener()
        wire = self._wire(peer)
        peer.transport.write(b"bye\n")
        wire.settle(CLOSE_TIME + 0.1)
        peer.transport.write(b"x")
        wire.settle(0.1)
        self.assertEqual(peer.events, ["read end", "ConnectionLost"])
        self.assertEqual(self.notes.events, ["lost", "ended: bye"])

    def test_peer_ends_its_half_first(self) -> None:
        """As netcat does: what was answered before still leaves."""
        peer = HalfListener()
        wire = self._wire(peer)
        peer.transport.write(b"flood 1000\n")
        peer.transport.loseWriteConnection()
        wire.settle(1)
        self.assertEqual(len(peer.heard), 6 + 1_000_000)
        self.assertEqual(self.notes.events, ["lost", "ended: lost"])

    def test_slow_reader(self) -> None:
        """A peer that asks and does not read is not read any more: what waits for it has a bound."""
        peer = Listener()
        wire = self._wire(peer)
        peer.transport.pauseProducing()
        for _ in range(100):
            peer.transport.write(b"flood 1\n" * 100)
            wire.settle(0.01)
        self.assertLess(len(wire.server._buffer), WRITE_MOST)
        self.assertEqual(self.notes.events, [])
        peer.transport.resumeProducing()
        wire.settle(9)
        self.assertEqual(len(peer.heard), 6 + 10_000_000)

    def test_cut(self) -> None:
        peer = Listener()
        wire = self._wire(peer)
        wire.settle(0.1)
        wire.cut()
        wire.settle(0.1)
        self.assertEqual(self.notes.events, ["lost", "ended: lost"])
        self.assertEqual(self.clock.getDelayedCalls(), [])


SERVER = Identity.from_pem(*self_signed("toy.example"))


class Loopback(TestCase):
    """The real thing."""

    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.notes = Notes()

    async def _listen(self, wrap: Callable[[Factory], Any] = lambda factory: factory) -> int:
        factory = StreamFactory(lambda address: Toy(), self.notes, self.reactor)
        port = await TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(wrap(factory))
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def test_conversation(self) -> None:
        port = await self._listen()

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 10) as peer:
                peer.sendall(b"echo one\nname me\nbye\n" + b"unread " * 10_000)
                heard = b""
                while data := peer.recv(65536):
                    heard += data
                return heard

        self.assertEqual(await deferToThread(talk), b"hello\none\nbye\n")
        self.assertEqual(await self.notes.ends, "bye")
        self.assertEqual(self.notes.events, [Greeted(b"me"), "lost", "ended: bye"])

    async def test_netcat_manners(self) -> None:
        """Questions, end of file, and only then the answers are read."""
        port = await self._listen()

        def talk() -> int:
            with socket.create_connection(("127.0.0.1", port), 10) as peer:
                peer.sendall(b"flood 1000\n")
                peer.shutdown(socket.SHUT_WR)
                size = 0
                while data := peer.recv(65536):
                    size += len(data)
                return size

        self.assertEqual(await deferToThread(talk), 6 + 1_000_000)
        self.assertEqual(await self.notes.ends, "lost")

    async def test_slow_reader(self) -> None:
        port = await self._listen()
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            peer.setblocking(False)
            for _ in range(100):  # far more answers than the kernel holds
                peer.sendall(b"flood 1\n" * 400)
                await deferLater(self.reactor, 0.001)
            sent = 0
            with self.assertRaises(BlockingIOError):
                while sent < 100_000_000:
                    sent += peer.send(b"echo a question that nobody reads\n" * 1000)
                    await deferLater(self.reactor, 0.001)
            self.assertEqual(self.notes.events, [])
        self.assertEqual(await self.notes.ends, "lost")

    async def test_tls(self) -> None:
        """An orderly close over TLS ends both layers cleanly."""
        port = await self._listen(lambda factory: TLSMemoryBIOFactory(TlsServer(SERVER), False, factory))
        peer = Listener()
        endpoint = wrapClientTLS(
            TlsClient(Pinned(frozenset({SERVER.pin}))), TCP4ClientEndpoint(self.reactor, "127.0.0.1", port)
        )
        await endpoint.connect(Only(peer))
        peer.transport.write(b"flood 300\nbye\n")
        await peer.lost
        self.assertEqual((len(peer.heard), peer.events), (6 + 300_000 + 4, ["ConnectionDone"]))
        self.assertEqual(await self.notes.ends, "bye")


class Only(Factory):
    def __init__(self, protocol: Listener) -> None:
        self.one = protocol

    def buildProtocol(self, addr: object) -> Listener:
        return self.one
