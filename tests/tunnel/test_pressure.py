"""Peers that take nothing, say nothing, or never stop: each meets a limit that has a name."""

from __future__ import annotations

import asyncio  # noqa: TID251, the middleware runs in servers that have it
import contextlib
import socket
from time import monotonic
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.core.session import Send, Tell
from layer8.net.http_client import POOL, fetch
from layer8.tunnel import asgi, sidecar, wsgi
from layer8.tunnel.admission import IN_FLIGHT_NETWORK
from layer8.tunnel.asgi import L8Middleware as AsgiMiddleware
from layer8.tunnel.bhttp import Request
from layer8.tunnel.driving import Gate
from layer8.tunnel.frames import PROTOCOL, Kind, Message
from layer8.tunnel.gateway_service import BACKEND
from layer8.tunnel.gateway_sockets import Conversation, Sockets, Wire
from layer8.tunnel.keeping import FETCH_TIME, Keeping, Kept, Source
from layer8.tunnel.limits import CHUNK_PLAIN
from layer8.tunnel.messages import frame
from layer8.tunnel.outgoing import PADDING
from layer8.tunnel.passage import MESSAGE_MOST, PING, PONG
from layer8.tunnel.relay_keys import KeyCopy
from layer8.tunnel.settings import GATEWAY_PATH, SOCKET_PATH
from layer8.tunnel.socket_session import Opened, PageSocket
from layer8.tunnel.wire import CHUNKED
from layer8.tunnel.wsgi import L8Middleware
from tests.tunnel import test_relay
from tests.tunnel.sealed import AUTHORITY, Page
from tests.tunnel.test_backends import Sidecar
from tests.tunnel.test_gateways import Rig, until
from tests.tunnel.test_middleware import Answer, Base, gateway
from tests.tunnel.test_sidecar import Scripted


class PingTests(SynchronousTestCase):
    """Whoever reads nothing is sent no answers that would wait."""

    def test_pings_of_who_does_not_read(self) -> None:
        speaker: Any = SimpleNamespace(crowded=lambda wire, wanted: None, heard=None, ended=None)
        one, transport = Wire(speaker, Clock(), client=False, most=MESSAGE_MOST), StringTransport()
        one.makeConnection(transport)  # type: ignore[no-untyped-call]
        producer: Any = transport.producer
        ping = frame(PING, b"x" * 125, b"mask")
        one.dataReceived(ping)
        self.assertEqual(transport.value(), frame(PONG, b"x" * 125))
        producer.pauseProducing()
        transport.clear()
        one.dataReceived(ping * 1000)
        self.assertEqual(transport.value(), b"")
        producer.resumeProducing()
        one.dataReceived(ping)
        self.assertEqual(transport.value(), frame(PONG, b"x" * 125))

    def test_who_does_not_read_is_not_read(self) -> None:
        """Words under seal are answered under seal: those wait, too. And two reasons to rest are two."""
        gate: Any = SimpleNamespace(gateway=gateway(), reactor=Clock(), seconds=lambda: 0.0)
        sockets = Sockets(gate, None, ("x", "y"))  # type: ignore[arg-type]
        session = gate.gateway.socket(0.0)
        talk = Conversation(session, sockets, b"")
        front, back = StringTransport(), StringTransport()
        talk.front.makeConnection(front)  # type: ignore[no-untyped-call]
        talk._back = Wire(talk, Clock(), client=True, most=MESSAGE_MOST)
        talk._back.makeConnection(back)  # type: ignore[no-untyped-call]
        self.addCleanup(talk.cut)

        def states() -> tuple[str, str]:
            return front.producerState, back.producerState

        talk.front.pauseProducing()
        self.assertEqual(states(), ("paused", "paused"))
        talk._back.pauseProducing()
        talk.front.resumeProducing()
        self.assertEqual(states(), ("paused", "producing"))
        talk._back.resumeProducing()
        self.assertEqual(states(), ("producing", "producing"))


class DirectTests(TestCase):
    """Requests past the tunnel share the pool with those that came through it."""

    async def stage(self, words: bytes) -> tuple[Rig, list[Scripted]]:
        from twisted.internet import reactor

        loop: Any = reactor
        seen: list[Scripted] = []
        factory = Factory.forProtocol(lambda: Scripted(lambda one, data: one.transport.write(words), seen))
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: [one.transport.abortConnection() for one in seen] and None)
        rig = Rig(loop, "sidecar", backend=port.getHost().port)
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        return rig, seen

    async def test_a_backend_that_never_answers(self) -> None:
        self.patch(sidecar, "IDLE_TIME", 0.2)
        rig, seen = await self.stage(b"")
        answer = await fetch(rig.hand.pool, "POST", "/", "shop.test", body=b"x", most=99)
        self.assertEqual(answer.status, 504)
        await until(rig.reactor, lambda: seen[0].lost)

    async def test_sockets_that_are_joined(self) -> None:
        self.patch(sidecar, "SOCKET_SESSIONS", 1)
        yes = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        rig, seen = await self.stage(yes)
        end = TCP4ClientEndpoint(rig.reactor, "127.0.0.1", rig.hand.port)
        heard: list[Scripted] = []
        for status in (b"101", b"503"):
            raw: Any = await end.connect(Factory.forProtocol(lambda: Scripted(lambda one, data: None, heard)))
            self.addCleanup(raw.transport.abortConnection)
            raw.transport.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            await until(rig.reactor, lambda raw=raw: b"\r\n\r\n" in raw.data)
            self.assertEqual(raw.data[9:12], status)
        self.assertEqual((len(rig.sidecar.joined), len(seen)), (1, 1))
        rig.sidecar.stop()
        await until(rig.reactor, lambda: heard[0].lost and seen[0].lost and not rig.sidecar.joined)


class PoolTests(test_relay.RelayCase):
    """Slow requests of one network leave room for those of others."""

    async def test_one_network_does_not_take_every_connection(self) -> None:
        relay = self.start(forwarded_from=("127.0.0.1",))
        kind = f"content-type: {CHUNKED.request}\r\ntransfer-encoding: chunked\r\n"
        for number in range(IN_FLIGHT_NETWORK + 1):
            page = await self.client()
            address = "10.2.2.2" if number == IN_FLIGHT_NETWORK else "10.1.1.1"
            head = f"POST /r/shop HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\n{kind}\r\n5\r\nhello\r\n"
            page.transport.write(head.encode())  # type: ignore[union-attr]
        await self.settle(lambda: sum(one.method == "POST" for one in self.gateway.asked) == IN_FLIGHT_NETWORK + 1)
        self.assertEqual(len(relay.relaying), IN_FLIGHT_NETWORK + 1)


class StreamTests(SynchronousTestCase):
    """A daemon and its backend."""

    def test_streams_leave_room_for_others(self) -> None:
        """Each keeps its connection, and there are more of them than a pool has for short requests."""
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * POOL))
            backend.settimeout(10)
            daemon = Sidecar.start(self, f"tcp:127.0.0.1:{backend.getsockname()[1]}")
            for _ in range(POOL + 6):
                page = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), 10))
                page.sendall(b"GET /events HTTP/1.1\r\nhost: shop.example\r\n\r\n")
            for _ in range(POOL + 6):
                line = stack.enter_context(backend.accept()[0])
                line.settimeout(10)
                self.assertTrue(line.recv(4).startswith(b"GET "))
        self.assertGreater(BACKEND, POOL)


class RestTests(Base):
    """A request that goes on when all is said."""

    def test_what_follows_is_not_read_for_ever(self) -> None:
        self.patch(wsgi, "LINGER_BYTES", 100_000)
        _, data = self.seal("POST", "/", bytes(100_000), date=1.0)

        class Endless:
            size = 0

            def read(self, size: int) -> bytes:
                self.size += size
                return data[:size] if self.size == size else bytes(size)

        endless = Endless()
        environ: Any = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": GATEWAY_PATH,
            "CONTENT_TYPE": "message/ohttp-chunked-req",
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input": endless,
        }
        told: list[str] = []
        b"".join(L8Middleware(None, self.gateway)(environ, lambda status, headers: told.append(status)))  # type: ignore[arg-type]
        self.assertEqual(told, ["200 OK"])
        self.assertLess(endless.size, 300_000)


class EmptyTests(Base):
    """Messages with nothing in them wait, too."""

    def test_an_application_that_takes_no_messages(self) -> None:
        asked = Request(b"GET", b"https", AUTHORITY.encode(), b"/chat")
        page = PageSocket(self.keys, asked, monotonic())
        heard: list[Any] = []
        taken = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            await asyncio.Event().wait()

        def said() -> list[bytes]:
            effects = list(page.effects())
            heard.extend(one.what for one in effects if isinstance(one, Tell))
            return [one.data for one in effects if isinstance(one, Send)]

        async def main() -> None:
            waiting: asyncio.Queue[bytes] = asyncio.Queue()
            connected = False

            async def receive() -> Any:
                nonlocal connected, taken
                if not connected:
                    connected = True
                    return {"type": "websocket.connect"}
                data = await waiting.get()
                taken += 1
                return {"type": "websocket.receive", "bytes": data}

            async def send(event: Any) -> None:
                if event["type"] == "websocket.send":
                    page.received(event["bytes"], monotonic())
                for one in said():
                    waiting.put_nowait(one)

            scope = {"type": "websocket", "path": SOCKET_PATH, "raw_path": SOCKET_PATH.encode(), "root_path": ""}
            more = {"asgi": {"version": "3.0"}, "subprotocols": [PROTOCOL], "headers": []}
            work = asyncio.ensure_future(AsgiMiddleware(app, self.gateway)({**scope, **more}, receive, send))
            for one in said():
                waiting.put_nowait(one)
            while not any(isinstance(one, Opened) for one in heard):
                await asyncio.sleep(0.01)
            for _ in range(3000):
                page.send(Message(Kind.BINARY, b""))
            for one in said():
                waiting.put_nowait(one)
            await asyncio.sleep(0.5)
            work.cancel()
            await asyncio.wait((work,))

        async def limited() -> None:
            async with asyncio.timeout(10):
                await main()

        self.patch(asgi, "IDLE_TIME", 0.1)
        asyncio.run(limited())
        self.assertLess(taken, 1000)


class PaddingTests(Base):
    """A long answer is whole, and a mebibyte of padding follows, to somebody who takes his time."""

    def test_padding_waits_for_room(self) -> None:
        exchange, data = self.seal()
        sent: list[bytes] = []
        ends: list[str] = []
        driven: Any = None

        class Slow:
            """Has room for one piece at a time."""

            def begin(self, kind: str) -> None:
                pass

            def write(self, data: bytes) -> None:
                sent.append(data)
                driven.full()

            def finish(self) -> None:
                ends.append("whole")

            def rest(self, wanted: bool) -> None:
                pass

        class Answers:
            def __init__(self, call: Any, driven: Any) -> None:
                driven.respond(200, (), 33 << 20)
                driven.write(bytes(33 << 20))
                driven.finish()

            def whole(self, trailers: Any) -> None:
                pass

            def rest(self, wanted: bool) -> None:
                pass

            def leave(self) -> None:
                pass

        front: Any = Slow()
        backend: Any = Answers
        gate = Gate(Clock(), self.gateway, backend, threads=succeed, seconds=lambda: 0.0)
        driven = gate.exchange(b"message/ohttp-chunked-req", None, front)
        driven.received(data)
        driven.ended()
        rooms = 0
        while not ends:
            count = len(sent)
            driven.room()
            self.assertLessEqual(len(sent), count + 1)
            self.assertLess(len(sent[-1]), PADDING + 2 * CHUNK_PLAIN)
            rooms += 1
        self.assertGreater(rooms, 5)
        self.assertEqual((ends, len(gate.under_way)), (["whole"], 0))
        kind = [("content-type", "message/ohttp-chunked-res")]
        self.assertEqual(len(Page.hear(exchange, Answer(200, kind, b"".join(sent))).body), 33 << 20)


class HurryTests(SynchronousTestCase):
    """A page says that a gateway has another key, and says it again and again."""

    def test_a_look_that_is_due_is_not_put_off(self) -> None:
        clock = Clock()
        keeping = Keeping(clock, lambda: 0.0, Logger(), lambda kept: None)
        dials: list[Deferred[Any]] = []

        def take() -> Deferred[Any]:
            dials.append(Deferred())
            return dials[-1]

        pool: Any = SimpleNamespace(take=take, ready=lambda: None)
        kept = keeping.kept["shop"] = Kept("shop", Source("/", "shop.example"), KeyCopy("shop"), pool)
        kept.copy.document = b"kept from before"
        keeping.start()
        clock.pump([FETCH_TIME])
        self.assertEqual((kept.tried, len(dials)), (1, 1))
        for _ in range(20):
            clock.advance(0.5)
            keeping.hurry("shop")
        self.assertEqual(len(dials), 2)
