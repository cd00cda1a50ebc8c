"""The wire in memory is verified against the real one: the same tests run over both."""

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from layer8.testing.wire import Airwaves, Link, Wire, connect, settle

TRIES = 4000


@implementer(IPushProducer)
class Talk(Protocol):
    """Writes down everything that happens to it."""

    transport: Any  # ITCPTransport leaves out that every stream transport is a producer and a consumer

    def __init__(self) -> None:
        self.heard = b""
        self.events: list[str] = []
        self.pauses = self.goes = 0

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.events.append(type(reason.value).__name__)

    def pauseProducing(self) -> None:
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.goes += 1

    def stopProducing(self) -> None:
        self.events.append("stop producing")


@implementer(IHalfCloseableProtocol)
class Half(Talk):
    def readConnectionLost(self) -> None:
        self.events.append("read end")

    def writeConnectionLost(self) -> None:
        self.events.append("write end")


Until = Callable[[], bool]


class Shared:
    """Keeps trial from running the base by itself."""

    class Suite(TestCase):
        timeout = 60

        async def pair(self, client: Talk, server: Talk) -> None:
            raise NotImplementedError

        async def until(self, seen: Until) -> None:
            raise NotImplementedError

        async def test_order_both_ways(self) -> None:
            one, other = Talk(), Talk()
            await self.pair(one, other)
            there, back = bytes(range(256)) * 2000, bytes(range(255, -1, -1)) * 1500
            for start in range(0, len(there), 100_000):
                one.transport.write(there[start : start + 100_000])
            other.transport.writeSequence([back[:7], back[7:]])
            await self.until(lambda: len(one.heard) == len(back) and len(other.heard) == len(there))
            self.assertEqual((other.heard, one.heard), (there, back))
            one.transport.loseConnection()
            await self.until(lambda: bool(one.events and other.events))

        async def test_close_flushes(self) -> None:
            """Everything written before leaves, what is written in the same turn too, and both see a clean end."""
            one, other = Talk(), Talk()
            await self.pair(one, other)
            one.transport.write(b"a" * 700_000)
            one.transport.loseConnection()
            await self.until(lambda: bool(one.events and other.events))
            self.assertEqual(len(other.heard), 700_000)
            self.assertEqual((one.events, other.events), (["ConnectionDone"], ["ConnectionDone"]))
            one.transport.write(b"too late")
            one.transport.loseConnection()
            one.transport.abortConnection()
            self.assertEqual(one.events, ["ConnectionDone"])

        async def test_abort(self) -> None:
            one, other = Talk(), Talk()
            await self.pair(one, other)
            one.transport.abortConnection()
            one.transport.abortConnection()
            self.assertEqual(one.events, [])  # in the next turn, not in this one
            await self.until(lambda: bool(one.events and other.events))
            self.assertEqual((one.events, other.events), (["ConnectionAborted"], ["ConnectionLost"]))

        async def test_half_close(self) -> None:
            """After our end of file the other direction goes on, and nobody closes for us."""
            one, other = Half(), Half()
            await self.pair(one, other)
            one.transport.write(b"question")
            one.transport.loseWriteConnection()
            await self.until(lambda: "read end" in other.events)
            self.assertEqual((other.heard, one.events), (b"question", ["write end"]))
            one.transport.write(b"not sent any more")
            other.transport.write(b"answer" * 50_000)
            other.transport.loseWriteConnection()
            await self.until(lambda: "read end" in one.events)
            self.assertEqual((len(one.heard), other.heard), (300_000, b"question"))
            self.assertEqual(one.events, ["write end", "read end"])
            self.assertEqual(other.events, ["read end", "write end"])
            for end in (one, other):
                end.transport.loseConnection()
                self.assertEqual(end.events[-1], "ConnectionDone")

        async def test_half_close_of_one_who_does_not_know_it(self) -> None:
            """A plain protocol is closed by the peer's end of file."""
            one, other = Half(), Talk()
            await self.pair(one, other)
            one.transport.loseWriteConnection()
            await self.until(lambda: bool(other.events) and "read end" in one.events)
            self.assertEqual((other.events, one.events), (["ConnectionDone"], ["write end", "read end"]))
            one.transport.loseConnection()

        async def test_slow_reader_pauses_producer(self) -> None:
            one, other = Talk(), Talk()
            await self.pair(one, other)
            other.transport.pauseProducing()
            one.transport.registerProducer(one, True)
            sent = 0
            while one.pauses == 0:
                one.transport.write(b"x" * 50_000)
                sent += 50_000
                await self.turn()
                self.assertLess(sent, 50_000_000)
            self.assertEqual((other.heard, one.goes), (b"", 0))
            other.transport.resumeProducing()
            await self.until(lambda: len(other.heard) == sent and one.goes > 0)
            one.transport.unregisterProducer()
            one.transport.loseConnection()
            await self.until(lambda: bool(one.events and other.events))
            self.assertEqual(one.events, ["ConnectionDone"])

        async def test_producer_is_stopped_at_the_end(self) -> None:
            one, other = Talk(), Talk()
            await self.pair(one, other)
            one.transport.registerProducer(one, True)
            self.assertRaises(RuntimeError, one.transport.registerProducer, other, True)
            other.transport.abortConnection()
            await self.until(lambda: bool(one.events and other.events))
            self.assertEqual(one.events, ["stop producing", "ConnectionLost"])
            late = Talk()
            one.transport.registerProducer(late, True)
            self.assertEqual(late.events, ["stop producing"])

        async def test_pull_producer(self) -> None:
            one, other = Talk(), Talk()
            await self.pair(one, other)
            left = [b"abc", b"def", b"ghi"]

            class Pull(Talk):
                def resumeProducing(self) -> None:
                    if left:
                        one.transport.write(left.pop(0))
                    else:
                        one.transport.unregisterProducer()
                        one.transport.loseConnection()

            one.transport.registerProducer(Pull(), False)
            await self.until(lambda: bool(one.events and other.events))
            self.assertEqual((other.heard, one.events), (b"abcdefghi", ["ConnectionDone"]))

        async def test_writing_to_one_who_left(self) -> None:
            """A peer that has closed resets what comes afterwards."""
            one, other = Half(), Talk()
            await self.pair(one, other)
            other.transport.loseConnection()
            await self.until(lambda: "read end" in one.events)

            def told() -> bool:
                one.transport.write(b"anybody there?")
                return one.events[-1] != "read end"

            await self.until(told)
            self.assertEqual(one.events, ["read end", "ConnectionLost"])

        async def test_nothing_while_paused(self) -> None:
            """A paused reader hears neither bytes nor the end."""
            one, other = Talk(), Talk()
            await self.pair(one, other)
            other.transport.pauseProducing()
            one.transport.write(b"hello")
            one.transport.loseConnection()
            await self.until(lambda: bool(one.events))
            for _ in range(20):
                await self.turn()
            self.assertEqual((other.heard, other.events), (b"", []))
            other.transport.resumeProducing()
            await self.until(lambda: bool(other.events))
            self.assertEqual((other.heard, other.events), (b"hello", ["ConnectionDone"]))

        async def test_pausing_inside_data_received(self) -> None:
            one, other = Talk(), Slow()
            await self.pair(one, other)
            one.transport.write(b"x" * 300_000)
            await self.until(lambda: len(other.heard) > 0)
            for _ in range(20):
                await self.turn()
            self.assertLessEqual(len(other.heard), 65536)
            while len(other.heard) < 300_000:
                other.before = len(other.heard)
                other.transport.resumeProducing()
                await self.until(lambda: len(other.heard) > other.before)
            other.transport.abortConnection()
            await self.until(lambda: bool(one.events and other.events))

        async def test_addresses(self) -> None:
            one, other = Talk(), Talk()
            await self.pair(one, other)
            self.assertEqual(one.transport.getPeer(), other.transport.getHost())
            self.assertEqual(one.transport.getHost(), other.transport.getPeer())
            self.assertNotEqual(one.transport.getHost(), one.transport.getPeer())
            one.transport.abortConnection()
            await self.until(lambda: bool(one.events and other.events))

        def turn(self) -> Awaitable[None]:
            raise NotImplementedError


class Slow(Talk):
    before = 0

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.pauseProducing()


class Memory(Shared.Suite):
    """Over the fake."""

    def setUp(self) -> None:
        self.clock = Clock()

    async def pair(self, client: Talk, server: Talk) -> None:
        self.wire = connect(self.clock, client, server, self.make_link(), self.make_link())

    def make_link(self) -> Link:
        return Link()

    async def until(self, seen: Until) -> None:
        for _ in range(TRIES):
            if seen():
                return
            self.clock.advance(0.001)
        self.fail("it never happened")

    async def turn(self) -> None:
        self.clock.advance(0.001)


class SmallPackets(Memory):
    """The fake with packets of 1,000 bytes, a small window and every seventh packet lost."""

    def make_link(self) -> Link:
        return Link(delay=0.0001, window=20_000, chunk=9_973, lose=lambda number: number % 7 == 6)

    async def until(self, seen: Until) -> None:
        for _ in range(TRIES):
            if seen():
                return
            self.clock.advance(0.05)
        self.fail("it never happened")


class Loopback(Shared.Suite):
    """Over the real thing."""

    async def pair(self, client: Talk, server: Talk) -> None:
        from twisted.internet import reactor

        self.reactor = reactor
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Only(server))
        try:
            await TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port).connect(Only(client))
            await self.until(lambda: server.connected == 1)
        finally:
            await port.stopListening()

    async def until(self, seen: Until) -> None:
        for _ in range(TRIES):
            if seen():
                return
            await self.turn()
        self.fail("it never happened")

    def turn(self) -> Deferred[None]:
        return deferLater(self.reactor, 0.002)


class Only(Factory):
    def __init__(self, talk: Talk) -> None:
        self.talk = talk

    def buildProtocol(self, addr: IAddress | None) -> Talk:
        return self.talk


class Faults(SynchronousTestCase):
    """What the fake can do and loopback cannot: its own promises."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.one, self.other = Talk(), Talk()

    def _wire(self, link: Link) -> Wire:
        return connect(self.clock, self.one, self.other, link, Link())

    def test_delay(self) -> None:
        self._wire(Link(delay=0.5))
        self.one.transport.write(b"x")
        settle(self.clock, 0.499)
        self.assertEqual(self.other.heard, b"")
        settle(self.clock, 0.01)
        self.assertEqual(self.other.heard, b"x")

    def test_chunks(self) -> None:
        sizes: list[int] = []
        self.other.dataReceived = lambda data: sizes.append(len(data))  # type: ignore[method-assign]
        wire = self._wire(Link(chunk=3))
        self.one.transport.write(b"x" * 10)
        wire.settle(0.1)
        self.assertEqual(sizes, [3, 3, 3, 1])

    def test_loss_is_delay(self) -> None:
        wire = self._wire(Link(chunk=1, lose=lambda number: number == 1))
        self.one.transport.write(b"abc")
        wire.settle(0.1)
        self.assertEqual(self.other.heard, b"a")
        wire.settle(0.2)
        self.assertEqual(self.other.heard, b"abc")

    def test_cut(self) -> None:
        wire = self._wire(Link())
        self.one.transport.write(b"never arrives")
        wire.cut()
        wire.settle()
        self.assertEqual((self.one.events, self.other.events), (["ConnectionLost"], ["ConnectionLost"]))
        self.assertEqual(self.other.heard, b"")

    def test_stall(self) -> None:
        wire = self._wire(Link())
        wire.stall(5)
        self.one.transport.write(b"x")
        wire.settle(4.9)
        self.assertEqual(self.other.heard, b"")
        wire.settle(0.2)
        self.assertEqual(self.other.heard, b"x")


class Note(DatagramProtocol):
    def __init__(self) -> None:
        self.heard: list[tuple[bytes, tuple[str, int]]] = []

    def datagramReceived(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append((data, addr))


class Datagrams(SynchronousTestCase):
    def test_all_that_can_happen(self) -> None:
        clock = Clock()
        air = Airwaves(
            clock,
            lose=lambda number: number == 1,
            double=lambda number: number == 2,
            extra=lambda number: 0.1 if number == 3 else 0.0,
        )
        one, other = Note(), Note()
        here, there = air.listen(one, "192.0.2.1", 1), air.listen(other, "192.0.2.2", 2)
        self.assertRaises(ValueError, air.listen, Note(), "192.0.2.2", 2)
        for data in (b"0", b"1", b"2", b"3", b"4"):
            here.write(data, ("192.0.2.2", 2))
        here.write(b"nowhere", ("192.0.2.9", 9))
        settle(clock)
        self.assertEqual([data for data, _ in other.heard], [b"0", b"2", b"2", b"4", b"3"])
        self.assertEqual(other.heard[0][1], ("192.0.2.1", 1))
        there.connect("192.0.2.1", 1)
        there.write(b"back")
        self.assertRaises(ValueError, here.write, b"to whom?")
        there.stopListening()
        here.write(b"gone", ("192.0.2.2", 2))
        settle(clock)
        self.assertEqual(one.heard, [(b"back", ("192.0.2.2", 2))])
        self.assertEqual(len(other.heard), 5)
