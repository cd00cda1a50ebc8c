"""The pool of HTTP/1.1 connections, against our server over real sockets and against noise."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.core.errors import LimitExceeded, LocalProtocolError, Unavailable
from layer8.crypto.x509 import Identity, self_signed
from layer8.net import http
from layer8.net.http import LINGER_BYTES, Incoming, Server
from layer8.net.http_client import INFORMATIONAL, QUEUE, UNUSED, Fields, Line, Pool, fetch
from layer8.net.http_wire import BUFFER
from layer8.net.tls import TlsServer
from layer8.net.ways import connector
from tests.net.test_http import NOISE, Transport, noisy


def clock() -> Any:
    """Give the reactor of this run."""
    from twisted.internet import reactor

    return reactor


class Heard:
    """A listener that remembers; `done` fires at the end."""

    def __init__(self) -> None:
        self.status = 0
        self.fields: Fields = ()
        self.length: int | None = -1
        self.pieces: list[bytes] = []
        self.events: list[str] = []
        self.done: Deferred[str] = Deferred()

    def answered(self, status: int, fields: Fields, length: int | None) -> None:
        self.status, self.fields, self.length = status, fields, length
        self.events.append("answered")

    def received(self, data: bytes) -> None:
        self.pieces.append(data)

    def ended(self) -> None:
        self.end("ended")

    def lost(self) -> None:
        self.end("lost")

    def end(self, what: str) -> None:
        self.events.append(what)
        self.done.callback(what)

    def full(self) -> None:
        self.events.append("full")

    def room(self) -> None:
        self.events.append("room")

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


async def pause(seconds: float) -> None:
    await deferLater(clock(), seconds)


class Case(TestCase):
    """A server on a port of its own, and pools to it."""

    timeout = 20

    def serve(self, handler: Any, tls: TlsServer | None = None) -> int:
        self.server = Server(clock(), handler)
        factory: Any = self.server if tls is None else TLSMemoryBIOFactory(tls, False, self.server)
        port = clock().listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(self.gone)
        number: int = port.getHost().port
        return number

    async def gone(self) -> None:
        self.server.abort()
        await self.server.stop()

    def pool(self, way: str, **more: Any) -> Pool:
        pool = Pool(clock(), connector(clock(), way), **more)
        self.addCleanup(self.emptied, pool)
        return pool

    async def emptied(self, pool: Pool) -> None:
        pool.abort()
        while pool.open:
            await pause(0.01)


def echo(exchange: Incoming) -> None:
    """Give back what comes, as it comes, with back-pressure both ways."""
    exchange.begin(200, [("content-type", exchange.only("content-type") or "none")], exchange.length)
    exchange.to(Echo(exchange))


class Echo:
    def __init__(self, exchange: Incoming) -> None:
        self.exchange = exchange
        self.received = exchange.write
        self.ended = exchange.finish
        self.full = exchange.pause
        self.room = exchange.resume

    def lost(self) -> None:
        """Nothing is left to do."""


class FetchTests(Case):
    async def test_small(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(echo)}")
        for number in range(5):
            answer = await fetch(pool, "POST", "/", "a.test", [("content-type", "x")], b"%d" % number, most=10)
            self.assertEqual((answer.status, answer.body, answer.only("content-type")), (200, b"%d" % number, "x"))
        self.assertEqual((pool.open, pool.idle, len(self.server)), (1, 1, 1))

    async def test_head(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(lambda exchange: exchange.answer(200, [], b'body'))}")
        for method, body in (("HEAD", b""), ("GET", b"body"), ("HEAD", b"")):
            answer = await fetch(pool, method, "/", "a.test", most=10)
            self.assertEqual((answer.body, answer.only("content-length")), (body, "4"))
        self.assertEqual(pool.open, 1)

    async def test_too_much(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(echo)}")
        for size in (11, 100_000):
            await self.assertFailure(
                Deferred.fromCoroutine(fetch(pool, "POST", "/", "a.test", body=b"x" * size, most=10)), LimitExceeded
            )
        await pause(0.05)
        self.assertEqual((pool.open, len(self.server)), (0, 0))

    async def test_cut_in_the_middle(self) -> None:
        def half(exchange: Incoming) -> None:
            exchange.begin(200, length=10)
            exchange.write(b"half")
            clock().callLater(0.01, exchange.abort)

        pool = self.pool(f"tcp:127.0.0.1:{self.serve(half)}")
        await self.assertFailure(Deferred.fromCoroutine(fetch(pool, "GET", "/", "a.test", most=10)), Unavailable)

    async def test_cancelled(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(lambda exchange: None)}")
        asked = Deferred.fromCoroutine(fetch(pool, "GET", "/", "a.test", most=10))
        await pause(0.05)
        self.assertEqual(len(self.server), 1)
        asked.cancel()
        await self.assertFailure(asked, CancelledError)
        await pause(0.05)
        self.assertEqual((pool.open, len(self.server)), (0, 0))

    async def test_tls_and_unix(self) -> None:
        folder = Path(tempfile.mkdtemp())
        key, chain = self_signed("gate.test")
        (folder / "ca.pem").write_bytes(chain)
        port = self.serve(echo, TlsServer(Identity.from_pem(key, chain)))
        big = b"x" * 300_000
        for way, works in (
            (f"tls:127.0.0.1:{port}:name=gate.test:ca={folder}/ca.pem", True),
            (f"tls:127.0.0.1:{port}:name=other.test:ca={folder}/ca.pem", False),
            (f"tls:127.0.0.1:{port}:name=gate.test", False),
        ):
            pool = self.pool(way)
            asked = Deferred.fromCoroutine(fetch(pool, "POST", "/", "gate.test", body=big, most=len(big)))
            if works:
                self.assertEqual((await asked).body, big)
                self.assertEqual((await fetch(pool, "GET", "/", "gate.test", most=0)).status, 200)
                self.assertEqual(pool.open, 1)
            else:
                problem = await self.assertFailure(asked, Unavailable)
                self.assertIn("TLS", str(problem))
                await self.assertFailure(pool.take(), Unavailable)  # before anything was sent
                self.assertEqual((pool.open, pool.waiting), (0, 0))
        port = clock().listenUNIX(str(folder / "sock"), self.server)
        self.addCleanup(port.stopListening)
        pool = self.pool(f"unix:{folder}/sock")
        self.assertEqual((await fetch(pool, "POST", "/", "gate.test", body=big, most=len(big))).body, big)

    async def test_a_server_that_never_shakes_hands(self) -> None:
        heard: list[bytes] = []

        class Silent(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)

        port = clock().listenTCP(0, Factory.forProtocol(Silent), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        pool = self.pool(f"tls:127.0.0.1:{port.getHost().port}:name=a.test")
        asked = Deferred.fromCoroutine(fetch(pool, "GET", "/marker", "a.test", most=10))
        while not heard:
            await pause(0.01)
        asked.cancel()
        await self.assertFailure(asked, CancelledError)
        await pause(0.05)
        self.assertEqual((pool.waiting, len(pool._dials), len(pool._shaking)), (0, 0, 0))
        self.assertNotIn(b"marker", b"".join(heard))
        taken = pool.take()
        await pause(0.05)
        pool.close()
        await self.assertFailure(taken, Unavailable)
        await pause(0.05)
        self.assertEqual((len(pool._dials), len(pool._shaking)), (0, 0))

    async def test_behind_a_proxy(self) -> None:
        port = self.serve(echo)
        asked: list[bytes] = []

        class Socks(Protocol):
            def dataReceived(self, data: bytes) -> None:
                transport: Any = self.transport
                asked.append(data)
                if len(asked) == 1:
                    transport.write(b"\x05\x00")
                elif data.startswith(b"\x05\x01\x00\x03"):
                    transport.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
                    wire = outer.server.buildProtocol(None)
                    assert wire is not None
                    transport.protocol = wire
                    wire.makeConnection(transport)

        outer = self
        proxy = clock().listenTCP(0, Factory.forProtocol(Socks), interface="127.0.0.1")
        self.addCleanup(proxy.stopListening)
        at = proxy.getHost().port
        pool = self.pool(f"socks5:hidden.l8.alt:80:proxy=127.0.0.1:{at}")
        answer = await fetch(pool, "POST", "/", "hidden.l8.alt", body=b"hi", most=10)
        self.assertEqual((answer.body, asked[1][4:18]), (b"hi", b"\x0dhidden.l8.alt"))
        self.assertGreater(port, 0)

    async def test_a_proxy_that_refuses(self) -> None:
        class Socks(Protocol):
            def dataReceived(self, data: bytes) -> None:
                transport: Any = self.transport
                transport.write(b"\x05\x00" if data == b"\x05\x01\x00" else b"\x05\x04\x00\x01" + bytes(6))

        proxy = clock().listenTCP(0, Factory.forProtocol(Socks), interface="127.0.0.1")
        self.addCleanup(proxy.stopListening)
        pool = Pool(clock(), connector(clock(), f"socks5:x.l8.alt:80:proxy=127.0.0.1:{proxy.getHost().port}"))
        asked = Deferred.fromCoroutine(fetch(pool, "GET", "/", "x.l8.alt", most=10))
        problem = await self.assertFailure(asked, Unavailable)
        self.assertIn("host unreachable", str(problem))
        await pause(0.02)


class StreamTests(Case):
    async def test_both_ways_at_once_in_little_memory(self) -> None:
        """32 MiB go up and come back through a server and a client that hold no more than a few buffers of it."""
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(echo)}")
        line = await pool.take()
        heard = Sum()
        most = 0
        line.request("POST", "/", "a.test", (), heard, None)
        sent = hashlib.sha256()
        for number in range(512):
            while heard.crowded:
                await pause(0.001)
            piece = bytes([number & 255]) * BUFFER
            sent.update(piece)
            line.write(piece)
            most = max(most, line.waiting, *(wire.waiting for wire in self.server._open))
            if not number % 16:
                await pause(0)
        line.finish()
        self.assertEqual(await heard.done, "ended")
        self.assertEqual(heard.sum.digest(), sent.digest())
        self.assertGreater(heard.events.count("full"), 0)
        self.assertLess(most, 64 * BUFFER)
        self.assertEqual((pool.open, pool.idle), (1, 1))

    async def test_who_reads_slowly_slows_the_writer(self) -> None:
        written = [0]

        def endless(exchange: Incoming) -> None:
            exchange.begin(200)
            exchange.to(Endless(exchange, written))

        pool = self.pool(f"tcp:127.0.0.1:{self.serve(endless)}")
        line = await pool.take()
        heard = Heard()
        line.request("GET", "/", "a.test", (), heard)
        await pause(0.05)
        line.pause()
        await pause(0.1)
        stalled, had = written[0], len(heard.pieces)
        await pause(0.1)
        self.assertEqual((written[0], len(heard.pieces)), (stalled, had))
        line.resume()
        await pause(0.1)
        self.assertGreater(written[0], stalled)
        line.cut()
        await pause(0.05)
        self.assertEqual((len(self.server), heard.done.called), (0, False))

    async def test_an_early_answer_arrives_although_more_is_being_sent(self) -> None:
        """413 comes through to who is still sending; the connection then ends, however much was sent."""
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(lambda exchange: exchange.answer(413))}")
        for size in (LINGER_BYTES // 2, 3 * LINGER_BYTES):
            line = await pool.take()
            heard = Heard()
            line.request("POST", "/", "a.test", (), heard, size)
            for _ in range(size // BUFFER):
                line.write(bytes(BUFFER))
                await pause(0)
            self.assertEqual((await heard.done, heard.status), ("ended", 413))
            self.assertLess(self.server.tally.heard, 2 * LINGER_BYTES)
            line.cut()
        await pause(0.1)
        self.assertEqual(pool.idle, 0)

    async def test_who_goes_on_talking_after_an_early_answer_is_cut(self) -> None:
        self.patch(http, "LINGER", 0.5)
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(lambda exchange: exchange.answer(404))}")
        line = await pool.take()
        heard = Heard()
        line.request("POST", "/", "a.test", (), heard, None)
        begun = clock().seconds()
        while not heard.done.called or len(self.server):
            line.write(b"x")
            await pause(0.02)
        self.assertLess(clock().seconds() - begun, 8)
        self.assertEqual(heard.status, 404)

    async def test_server_that_ends_is_found_out_before_anything_is_sent(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(echo)}")
        await fetch(pool, "GET", "/", "a.test", most=0)
        line = pool._idle[0]
        for wire in list(self.server._open):
            wire.transport.socket.shutdown(2)  # the reactor has not looked yet
        answer = await fetch(pool, "POST", "/", "a.test", body=b"x", most=1)
        self.assertEqual((answer.body, line.gone), (b"x", True))


class Sum(Heard):
    """Adds up instead of keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = hashlib.sha256()
        self.crowded = False

    def received(self, data: bytes) -> None:
        self.sum.update(data)

    def full(self) -> None:
        super().full()
        self.crowded = True

    def room(self) -> None:
        super().room()
        self.crowded = False


class Endless:
    """Writes until it is full, and again when there is room."""

    def __init__(self, exchange: Incoming, written: list[int]) -> None:
        self.exchange = exchange
        self.written = written

    def received(self, data: bytes) -> None:
        """There is none."""

    def ended(self) -> None:
        self.room()

    def lost(self) -> None:
        self.exchange.abort()

    def full(self) -> None:
        """Rest."""

    def room(self) -> None:
        while self.exchange.open and not self.exchange.crowded:
            self.exchange.write(bytes(16384))
            self.written[0] += 16384
            if self.written[0] % BUFFER == 0:
                clock().callLater(0, self.room)
                return


class PoolTests(Case):
    async def test_first_come_first_served(self) -> None:
        held: list[Incoming] = []
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(held.append)}", most=2)
        asked = [Deferred.fromCoroutine(fetch(pool, "GET", f"/{at}", "a.test", most=9)) for at in range(5)]
        await pause(0.05)
        seen: list[str] = []
        while len(seen) < 5:
            self.assertEqual((pool.open, pool.waiting), (2, max(0, 3 - len(seen))))
            exchange = held.pop(0)
            seen.append(exchange.path)
            exchange.answer(200)
            await pause(0.02)
        self.assertEqual(sorted(seen[:2]) + seen[2:], [f"/{at}" for at in range(5)])
        await gatherResults(asked)

    async def test_queue_ends(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(lambda exchange: None)}", most=1, queue=0.05)
        first = await pool.take()
        problem = await self.assertFailure(pool.take(), Unavailable)
        self.assertIn("in use", str(problem))
        first.cut()

    async def test_cut_makes_room(self) -> None:
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(echo)}", most=1)
        first = await pool.take()
        second = pool.take()
        first.cut()
        line = await second
        self.assertIsNot(line, first)
        line.cut()

    async def test_nobody_listens(self) -> None:
        port = clock().listenTCP(0, Factory(), interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        pool = self.pool(f"tcp:127.0.0.1:{number}")
        for _ in range(2):
            await self.assertFailure(pool.take(), Unavailable)
        self.assertEqual(pool.waiting, 0)

    async def test_close(self) -> None:
        held: list[Incoming] = []
        pool = self.pool(f"tcp:127.0.0.1:{self.serve(held.append)}", most=1)
        asked = Deferred.fromCoroutine(fetch(pool, "GET", "/", "a.test", most=9))
        await pause(0.05)
        late = pool.take()
        pool.close()
        await self.assertFailure(late, Unavailable)
        await self.assertFailure(pool.take(), Unavailable)
        held[0].answer(200)
        self.assertEqual((await asked).status, 200)
        await pause(0.05)
        self.assertEqual(pool.open, 0)


class Scripted:
    """A pool whose dials are made by hand."""

    def __init__(self, **more: Any) -> None:
        self.clock = Clock()
        self.dials: list[tuple[Deferred[Any], Factory]] = []
        self.pool = Pool(self.clock, self.dial, **more)

    def dial(self, factory: Factory) -> Deferred[Any]:
        made: Deferred[Any] = Deferred()
        self.dials.append((made, factory))
        return made

    def stand(self) -> Line:
        """Let the oldest dial succeed."""
        made, factory = self.dials.pop(0)
        line = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        assert isinstance(line, Line)
        connected(line)
        made.callback(line)
        return line


def connected(line: Line) -> None:
    """Give a line a transport."""
    transport: Any = Transport()
    transport.protocol = line
    line.makeConnection(transport)  # type: ignore[no-untyped-call]


class ScriptedPoolTests(SynchronousTestCase):
    def test_who_gives_up_dials_no_more(self) -> None:
        rig = Scripted()
        taken = [rig.pool.take() for _ in range(3)]
        self.assertEqual((len(rig.dials), rig.pool.waiting), (3, 3))
        for one in taken:
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertEqual((rig.pool.waiting, len(rig.pool._dials)), (0, 0))

    def test_a_dial_that_comes_late_is_kept(self) -> None:
        rig = Scripted(most=1)
        taken = rig.pool.take()
        line = rig.stand()
        self.assertIs(self.successResultOf(taken), line)
        rig.pool.give_back(line)
        self.assertEqual((rig.pool.idle, len(rig.clock.getDelayedCalls())), (1, 1))
        rig.clock.advance(UNUSED)
        self.assertEqual((rig.pool.idle, rig.pool.open, rig.clock.getDelayedCalls()), (0, 0, []))

    def test_queue_has_a_limit_only_when_all_are_in_use(self) -> None:
        rig = Scripted(most=1)
        first, second = rig.pool.take(), rig.pool.take()
        rig.clock.advance(QUEUE + 0.1)
        self.failureResultOf(second, Unavailable)
        self.assertNoResult(first)
        rig.dials[0][0].errback(Failure(ConnectionLost()))
        self.failureResultOf(first, Unavailable)

    def test_closed_while_dialling(self) -> None:
        rig = Scripted()
        taken = rig.pool.take()
        rig.pool.close()
        self.failureResultOf(taken, Unavailable)


def answer(data: bytes, size: int = 0, method: str = "GET", *, ends: Any = None, length: int | None = 0) -> Heard:
    """What a listener hears of these bytes."""
    heard = Heard()
    pool = Pool(Clock(), lambda factory: succeed(None))
    line = Line(pool)
    pool._open.add(line)
    connected(line)
    line.request(method, "/", "a.test", (), heard, length)
    for at in range(0, len(data), size or len(data) or 1):
        if line.gone:
            break
        line.dataReceived(data[at : at + (size or len(data))])
    if ends is not None and not line.gone:
        line.connectionLost(Failure(ends))
    heard.events.append("idle" if pool.idle else "")
    for call in pool._clock.getDelayedCalls():
        call.cancel()
    return heard


class AnswerTests(SynchronousTestCase):
    OK = b"HTTP/1.1 200 OK\r\n"

    def test_framings(self) -> None:
        for data, ends, events, body in (
            (b"Content-Length: 2\r\n\r\nhi", None, ["answered", "ended", "idle"], b"hi"),
            (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None, ["answered", "ended", "idle"], b"hi"),
            (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n", ConnectionDone(), ["answered", "lost", ""], b"hi"),
            (b"Content-Length: 3\r\n\r\nhi", ConnectionDone(), ["answered", "lost", ""], b"hi"),
            (b"\r\nhi", ConnectionDone(), ["answered", "ended", ""], b"hi"),
            (b"\r\nhi", ConnectionLost(), ["answered", "lost", ""], b"hi"),
            (b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", None, ["answered", "ended", ""], b"hi"),
            (b"Content-Length: 2\r\n\r\nhi" + b"HTTP/1.1 200 OK\r\n", None, ["answered", "ended", ""], b"hi"),
            (b"", ConnectionDone(), ["lost", ""], b""),
            (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", None, ["lost", ""], b""),
            (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n", None, ["lost", ""], b""),
        ):
            for size in (0, 1):
                heard = answer(self.OK + data, size, ends=ends)
                self.assertEqual((heard.events, heard.body), (events, body), data)

    def test_early_hints_are_passed_over(self) -> None:
        early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        final = self.OK + b"Content-Length: 0\r\n\r\n"
        self.assertEqual(answer(early * INFORMATIONAL + final).events, ["answered", "ended", "idle"])
        self.assertEqual(answer(early * (INFORMATIONAL + 1) + final).events, ["lost", ""])

    def test_an_answer_before_the_request_has_ended(self) -> None:
        heard = answer(self.OK + b"Content-Length: 2\r\n\r\nhi", length=None)
        self.assertEqual((heard.events, heard.body), (["answered", "ended", ""], b"hi"))

    def test_no_request_is_written_that_would_be_two(self) -> None:
        for method, target, host in (
            ("GET", "/ HTTP/1.1\r\nx: y", "a.test"),
            ("GET", "/a b", "a.test"),
            ("GET\n", "/", "a.test"),
            ("GET", "/", "a.test\r\nx: y"),
            ("GET", "/\n", "a.test"),
        ):
            line = Line(Pool(Clock(), lambda factory: succeed(None)))
            connected(line)
            with self.assertRaises(LocalProtocolError):
                line.request(method, target, host, (), Heard())

    @given(st.data())
    def test_any_noise(self, data: st.DataObject) -> None:
        """There is one end, whatever comes, and the same at every cut."""
        base = data.draw(
            st.sampled_from(
                [
                    self.OK + b"Content-Length: 5\r\n\r\nhello",
                    self.OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n",
                    b"HTTP/1.1 100 Continue\r\n\r\n" + self.OK + b"\r\nuntil the end",
                    b"",
                ]
            )
        )
        places = st.lists(st.tuples(st.integers(0, len(base)), st.sampled_from(NOISE), st.integers(0, 4)), max_size=3)
        noise = noisy(base, data.draw(places)) if base else data.draw(st.binary(max_size=200))
        whole = answer(noise, ends=ConnectionDone())
        cut = answer(noise, data.draw(st.integers(1, 30)), ends=ConnectionDone())
        self.assertEqual(len([event for event in whole.events if event in ("ended", "lost")]), 1)
        if "ended" in whole.events:
            self.assertEqual((cut.events[:-1], cut.body), (whole.events[:-1], whole.body))
