"""The sidecar before backends that misbehave, and what goes past the tunnel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from layer8.net.http_client import fetch
from layer8.tunnel.gateway_service import GatewayMetrics
from layer8.tunnel.settings import SOCKET_PATH
from tests.tunnel.backend import pattern
from tests.tunnel.by_hand import asked, seal
from tests.tunnel.taps import Tap
from tests.tunnel.test_gateways import Rig, until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Scripted(Protocol):
    """A backend that answers by a function of all that has come on one connection."""

    transport: Any

    def __init__(self, script: Callable[[Scripted, bytes], None], seen: list[Scripted]) -> None:
        self.script = script
        self.data = b""
        self.lost = False
        seen.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.script(self, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


class BackendTests(TestCase):
    """Whatever a backend does, the page hears of it in one word."""

    async def stage(self, script: Callable[[Scripted, bytes], None], **settings: Any) -> tuple[Rig, list[Scripted]]:
        from twisted.internet import reactor

        loop: Any = reactor
        seen: list[Scripted] = []
        port = loop.listenTCP(0, Factory.forProtocol(lambda: Scripted(script, seen)), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: [one.transport.abortConnection() for one in seen] and None)
        rig = Rig(loop, "sidecar", backend=port.getHost().port, **settings)
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        await rig.hand.keys()
        return rig, seen

    async def test_a_connection_that_was_closed_meanwhile(self) -> None:
        """A request that changes nothing is asked again, once; no other is."""

        def once(backend: Scripted, data: bytes) -> None:
            if backend.data.count(b"HTTP/1.1") == 1:
                backend.transport.write(OK)
            else:
                backend.transport.loseConnection()

        rig, seen = await self.stage(once)
        self.assertEqual((await rig.hand.ask(asked())).status, 200)
        self.assertEqual((await rig.hand.ask(asked())).status, 200)
        self.assertEqual((len(seen), rig.sidecar.retries), (2, 1))
        self.assertEqual((await rig.hand.ask(asked(b"POST"), b"x")).status, 502)
        self.assertEqual((len(seen), rig.sidecar.retries), (2, 1))

    async def test_it_is_never_asked_a_third_time(self) -> None:
        rig, seen = await self.stage(lambda backend, data: backend.transport.loseConnection())
        self.assertEqual((await rig.hand.ask(asked())).status, 502)
        self.assertEqual(len(seen), 1)

    async def test_answers_that_are_none(self) -> None:
        for words in (
            b"hello\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(140)) + b"content-length: 0\r\n\r\n",
        ):
            rig, _ = await self.stage(lambda backend, data, words=words: backend.transport.write(words))  # type: ignore[misc]
            self.assertEqual((await rig.hand.ask(asked())).status, 502, words)
            answer = await fetch(rig.hand.pool, "GET", "/", "shop.test", most=10_000)
            self.assertIn(answer.status, (502, 200) if words.count(b"x-") > 100 else (502,))

    async def test_an_answer_before_the_request_is_whole(self) -> None:
        early = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n"

        def refuse(backend: Scripted, data: bytes) -> None:
            if len(backend.data) == len(data):
                backend.transport.write(early)

        rig, _ = await self.stage(refuse)
        told = await rig.hand.ask(asked(b"POST"), pattern(3_000_000))
        self.assertEqual(told.status, 413)
        await until(rig.reactor, lambda: not rig.gate.under_way)

    async def test_an_answer_to_the_end_of_the_connection(self) -> None:
        def old(backend: Scripted, data: bytes) -> None:
            backend.transport.write(b"HTTP/1.0 200 OK\r\n\r\n" + pattern(5000))
            backend.transport.loseConnection()

        rig, _ = await self.stage(old)
        self.assertEqual((await rig.hand.ask(asked())).body, pattern(5000))

    async def test_early_words_and_fields_of_the_connection(self) -> None:
        words = b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\n"
        words += b"keep-alive: timeout=5\r\nx-end: 1\r\ncontent-length: 2\r\n\r\nok"
        rig, _ = await self.stage(lambda backend, data: backend.transport.write(words))
        told = await rig.hand.ask(asked())
        self.assertEqual([name for name, _ in told.fields if name.startswith((b"x-", b"keep"))], [b"x-end"])

    async def test_what_it_hears(self) -> None:
        """The request to the byte: nothing of a relay or of an address."""
        rig, seen = await self.stage(lambda backend, data: backend.transport.write(OK))
        await rig.hand.ask(asked(b"POST", b"/a/../b?c=%20", fields=((b"x-one", b"1"),)), b"hello")
        head, _, body = seen[0].data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        names = [line.partition(b":")[0] for line in lines[1:]]
        self.assertEqual((lines[0], body), (b"POST /b?c=%20 HTTP/1.1", b"hello"))
        told = [b"host", b"date", b"origin", b"user-agent", b"accept", b"x-one", b"l8-encapsulated", b"content-length"]
        self.assertEqual(names, told)

    async def test_the_head_leaves_before_the_answer_does(self) -> None:
        """A page learns that it is answered while the backend still thinks."""

        def slow(backend: Scripted, data: bytes) -> None:
            backend.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
            rig.reactor.callLater(0.5, backend.transport.write, b"ok")

        rig, _ = await self.stage(slow)
        from tests.tunnel.test_gateways import Stream

        stream = await Stream.post(rig.hand, seal(rig.hand.config, asked()).body)
        self.assertEqual((stream.status, None in stream.pieces), (200, False))
        await until(rig.reactor, lambda: None in stream.pieces)


class PastTests(TestCase):
    """Requests past the tunnel."""

    def setUp(self) -> None:
        """Start a gateway and its backend."""
        from twisted.internet import reactor

        self.rig = Rig(reactor, "sidecar", require=["/me", "/api/"])
        self.addCleanup(lambda: Deferred.fromCoroutine(self.rig.close()))

    async def test_required(self) -> None:
        hand = self.rig.hand
        for path in (
            "/me",
            "/ME",
            "/%6de",
            "//me",
            "/x/../me",
            "/me/more",
            "/me;x",
            "/me?a",
            "/api",
            "/api/1",
            "/echo/../me",
        ):
            self.assertEqual((await fetch(hand.pool, "GET", path, "shop.test", most=9999)).status, 403, path)
        self.assertEqual(self.rig.backend.calls, [])
        for path in ("/meal", "/echo"):
            await fetch(hand.pool, "GET", path, "shop.test", most=9999)
        self.assertEqual([call.uri for call in self.rig.backend.calls], ["/meal", "/echo"])
        self.assertEqual(self.rig.gateway.counts()["direct"], 11)

    async def test_a_socket_past_the_tunnel(self) -> None:
        def talk() -> None:
            where = f"ws://127.0.0.1:{self.rig.hand.port}/ws"
            with connect(where, subprotocols=[Subprotocol("chat")], compression=None) as socket:
                self.assertEqual(socket.subprotocol, "chat")
                for message in ("hello", pattern(200_000)):
                    socket.send(message)
                    self.assertEqual(socket.recv(10), message)

        await deferToThread(talk)
        await until(self.rig.reactor, lambda: not self.rig.backend.sockets)

    async def test_a_large_body_each_way(self) -> None:
        hand, size = self.rig.hand, 3_000_000
        answer = await fetch(hand.pool, "POST", "/upload", "shop.test", body=pattern(size), most=9999)
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.rig.backend.calls[0].size, size)
        answer = await fetch(hand.pool, "GET", f"/bytes/{size}", "shop.test", most=size)
        self.assertTrue(answer.body == pattern(size))

    async def test_no_other_handshake_at_the_socket(self) -> None:
        hand = self.rig.hand
        self.assertEqual((await fetch(hand.pool, "GET", SOCKET_PATH, "x", most=9999)).status, 400)
        self.assertEqual((await fetch(hand.pool, "POST", SOCKET_PATH, "x", most=9999)).status, 400)

    async def test_metrics(self) -> None:
        await self.rig.hand.ask(asked())
        found = {family.name: family for family in GatewayMetrics(self.rig.sidecar).families()}
        self.assertTrue(all(name.startswith("layer8_gateway_") for name in found))
        self.assertEqual(found["layer8_gateway_outcomes_total"].values[("answered",)], 1)
        self.assertEqual(found["layer8_gateway_keys"].values[()], 1)
        self.assertEqual(
            {label for family in found.values() for label in family.labels}, {"outcome", "leg", "direction"}
        )

    async def test_bytes_are_counted_to_the_byte(self) -> None:
        tap = Tap(self.rig.reactor, self.rig.hand.port)
        tap.listen()
        self.addCleanup(lambda: Deferred.fromCoroutine(tap.close()))
        before = self.rig.sidecar.traffic()
        end = TCP4ClientEndpoint(self.rig.reactor, "127.0.0.1", tap.port)
        seen: list[Scripted] = []
        raw: Any = await end.connect(Factory.forProtocol(lambda: Scripted(lambda one, data: None, seen)))
        for path in (b"/echo", b"/bytes/70000", b"/.well-known/l8/keys.json"):
            raw.transport.write(b"GET %b HTTP/1.1\r\nhost: shop.test\r\n\r\n" % path)
        await until(self.rig.reactor, lambda: raw.data.count(b"HTTP/1.1 200") == 3)
        await deferLater(self.rig.reactor, 0.05, lambda: None)
        raw.transport.loseConnection()
        await until(self.rig.reactor, lambda: raw.lost)
        after = self.rig.sidecar.traffic()
        self.assertEqual((after[0] - before[0], after[1] - before[1]), (len(tap.up), len(tap.down)))
