"""The example of docs/adding-a-protocol.md, tested in the way that every protocol is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from docs.examples.stamp.service import Stamps, stamp_service
from docs.examples.stamp.session import StampSession
from docs.examples.stamp.tap import Options, makeService
from docs.examples.stamp.wire import ASKS, IDLE, SIZE, Ask, Stamp, encode_ask, encode_stamp, take_ask
from layer8.core.buffer import CappedBuffer
from layer8.core.errors import RemoteProtocolError
from layer8.core.session import Close, Send
from layer8.net.stream import Stream
from layer8.testing.playbook import Lost, Playbook, Received, Wait
from layer8.testing.wire import Link, Wire, connect

questions = st.lists(st.binary(min_size=1, max_size=SIZE).map(Ask), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at the given places, in any order."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


class Collector(Protocol):
    """A client that keeps what comes."""

    transport: ITCPTransport

    def __init__(self) -> None:
        self.data = b""
        self.gone: Deferred[None] = Deferred()
        self._size: int | None = None

    def want(self, size: int, arrived: Deferred[bytes]) -> None:
        """Fire `arrived` with what came once there are `size` bytes."""
        self._size, self._arrived = size, arrived

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        if self._size is not None and len(self.data) >= self._size:
            self._size = None
            self._arrived.callback(self.data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone.callback(None)


class WireTests(SynchronousTestCase):
    @given(questions)
    def test_round_trip(self, asks: list[Ask]) -> None:
        buffer = CappedBuffer("TEST", 1 << 20)
        for ask in asks:
            buffer.append(encode_ask(ask))
        taken = [take_ask(buffer) for _ in asks]
        self.assertEqual((taken, len(buffer), take_ask(buffer)), (asks, 0, None))

    def test_layout(self) -> None:
        self.assertEqual(encode_ask(Ask(b"hi")), b"\x00\x02hi")
        self.assertEqual(encode_stamp(Stamp(258, b"hi")), b"\x00\x02\x00\x00\x01\x02hi")

    def test_sizes_out_of_range(self) -> None:
        for size in (0, SIZE + 1, 0xFFFF):
            buffer = CappedBuffer("TEST", 1 << 20)
            buffer.append(size.to_bytes(2, "big"))
            self.assertRaises(RemoteProtocolError, take_ask, buffer)


class SessionTests(SynchronousTestCase):
    def test_answers_with_the_age_of_the_connection(self) -> None:
        session = StampSession(100.0)
        session.received(encode_ask(Ask(b"hi")), 100.25)
        self.assertEqual(list(session.effects()), [Send(encode_stamp(Stamp(250, b"hi")))])
        self.assertEqual(list(session.effects()), [])

    @given(questions, st.lists(st.integers(0, 10_000), max_size=20))
    def test_any_cut(self, asks: list[Ask], places: list[int]) -> None:
        whole = b"".join(map(encode_ask, asks))
        session = StampSession(0.0)
        sent = b""
        for piece in cut(whole, places):
            session.received(piece, 1.0)
            for effect in session.effects():
                assert isinstance(effect, Send)
                sent += effect.data
        self.assertEqual(sent, b"".join(encode_stamp(Stamp(1000, ask.data)) for ask in asks))

    @given(st.lists(st.binary(max_size=4000), max_size=10))
    def test_any_noise(self, pieces: list[bytes]) -> None:
        session = StampSession(0.0)
        closes = 0
        for piece in pieces:
            session.received(piece, 1.0)
            effects = session.effects()
            closes += sum(isinstance(effect, Close) for effect in effects)
            self.assertLessEqual(
                sum(len(each.data) for each in effects if isinstance(each, Send)), 3 * len(piece) + SIZE
            )
        self.assertLessEqual(closes, 1)
        self.assertEqual(session.deadline() is None, closes == 1)

    def test_nonsense_costs_the_connection(self) -> None:
        session = StampSession(0.0)
        session.received(b"\xff\xff", 1.0)
        self.assertEqual(list(session.effects()), [Close("nonsense", abort=True)])
        session.received(encode_ask(Ask(b"hi")), 1.0)
        self.assertEqual((list(session.effects()), session.deadline()), ([], None))

    def test_one_question_too_many(self) -> None:
        session = StampSession(0.0)
        session.received(encode_ask(Ask(b"x")) * (ASKS + 1), 1.0)
        effects = list(session.effects())
        self.assertEqual((len(effects), effects[-1]), (ASKS + 1, Close("asks")))

    def test_idle_is_counted_from_the_last_question(self) -> None:
        session = StampSession(0.0)
        self.assertEqual(session.deadline(), IDLE)
        session.received(encode_ask(Ask(b"x")), 3.0)
        session.received(b"\x00", 4.0)
        self.assertEqual(session.deadline(), 3.0 + IDLE)
        session.effects()
        session.wake(3.0 + IDLE - 0.1)
        self.assertEqual(list(session.effects()), [])
        session.wake(3.0 + IDLE)
        self.assertEqual((list(session.effects()), session.deadline()), ([Close("idle")], None))
        session.wake(100.0)
        self.assertEqual(list(session.effects()), [])

    def test_after_the_end_of_the_connection_nothing_is_asked_for(self) -> None:
        session = StampSession(0.0)
        session.lost(1.0)
        session.received(encode_ask(Ask(b"x")), 2.0)
        session.wake(100.0)
        self.assertEqual((list(session.effects()), session.deadline()), ([], None))


class ConversationTests(SynchronousTestCase):
    """The whole conversation as it reads, bytes by the piece and one by one."""

    def test_a_conversation(self) -> None:
        hello = encode_ask(Ask(b"hello"))
        for size in (None, 1, 3):
            with Playbook(StampSession(1000.0), cut=size) as book:
                book >> Received(hello) << Send(encode_stamp(Stamp(0, b"hello")))
                book >> Wait(2.5)
                book >> Received(hello + hello) << Send(encode_stamp(Stamp(2500, b"hello")) * 2)
                book >> Received(hello[:3])
                book >> Wait(IDLE) << Close("idle")
                book >> Received(hello)
                book >> Lost()


class MemoryWireTests(SynchronousTestCase):
    """Client and server over a wire in memory, on one clock."""

    def start(self, link: Link) -> tuple[Collector, Wire, Stamps]:
        clock, stamps, client = Clock(), Stamps(), Collector()
        wire = connect(clock, client, Stream(StampSession(0.0), stamps, clock, clock.seconds), link)
        return client, wire, stamps

    def test_a_slow_and_lossy_way_changes_only_the_age(self) -> None:
        client, wire, stamps = self.start(Link(delay=0.1, chunk=1, lose=lambda number: number == 0))
        client.transport.write(encode_ask(Ask(b"hi")))
        wire.settle(0.25)
        self.assertEqual(client.data, b"")
        wire.settle(0.25)
        self.assertEqual((client.data[:2], client.data[6:]), (b"\x00\x02", b"hi"))
        age = int.from_bytes(client.data[2:6], "big")
        self.assertTrue(300 <= age < 310, age)
        wire.cut()
        self.assertEqual(dict(stamps.ended_by), {"lost": 1})

    def test_the_last_answer_arrives_before_the_close(self) -> None:
        client, wire, stamps = self.start(Link())
        client.transport.write(encode_ask(Ask(b"x")) * (ASKS + 1))
        wire.settle(10)
        self.assertEqual((len(client.data), dict(stamps.ended_by)), (7 * ASKS, {"asks": 1}))


class StreamTests(SynchronousTestCase):
    """The adapter with the session on it, over a transport that is not there."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.stamps = Stamps()
        self.stream = Stream(StampSession(0.0), self.stamps, self.clock, self.clock.seconds)
        self.transport = StringTransportWithDisconnection()
        self.transport.protocol = self.stream
        self.stream.makeConnection(self.transport)  # type: ignore[no-untyped-call]

    def test_a_question_is_answered(self) -> None:
        self.clock.advance(0.5)
        self.stream.dataReceived(encode_ask(Ask(b"hi")))
        self.assertEqual(self.transport.value(), encode_stamp(Stamp(500, b"hi")))

    def test_an_idle_connection_is_closed_by_the_clock(self) -> None:
        self.clock.advance(IDLE - 0.1)
        self.assertEqual(dict(self.stamps.ended_by), {})
        self.clock.advance(0.1)
        self.assertEqual(dict(self.stamps.ended_by), {"idle": 1})


class LoopbackTests(TestCase):
    """Real sockets, made by the function that `twistd stamp` calls."""

    async def listen(self) -> int:
        from twisted.internet import reactor

        options = Options()  # type: ignore[no-untyped-call]
        options.parseOptions(["--listen", "tcp:0:interface=127.0.0.1"])  # type: ignore[no-untyped-call]
        service = makeService(options)
        assert isinstance(service, StreamServerEndpointService)
        service.startService()
        self.addCleanup(service.stopService)
        self.reactor = reactor
        numbers: list[int] = []

        def listening(port: IListeningPort) -> IListeningPort:
            numbers.append(port.getHost().port)  # type: ignore[attr-defined]  # TCP addresses have one
            return port

        assert service._waitingForPort is not None
        service._waitingForPort.addCallback(listening)
        return numbers[0]

    async def test_a_real_client(self) -> None:
        number = await self.listen()
        client, arrived = Collector(), Deferred[bytes]()
        client.want(7 + 6 + SIZE, arrived)
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", number)
        await connectProtocol(endpoint, client)
        client.transport.write(encode_ask(Ask(b"x")) + encode_ask(Ask(b"y" * SIZE)))
        got = await arrived.addTimeout(5, self.reactor)
        self.assertEqual((got[6:7], got[7 + 6 :]), (b"x", b"y" * SIZE))
        client.transport.loseConnection()
        await client.gone

    async def test_a_taken_port_is_said_at_once(self) -> None:
        number = await self.listen()
        second = stamp_service(self.reactor, f"tcp:{number}:interface=127.0.0.1", Stamps())
        self.assertRaises(CannotListenError, second.startService)
