"""A relay whose pages, gateways and neighbours do what they should not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.net.http import Incoming
from layer8.net.http_wire import Deaf
from layer8.tunnel import admission, relay_session, relaying
from layer8.tunnel.door import CONNECTIONS_NETWORK, Door
from layer8.tunnel.relay_session import BODY_MOST
from layer8.tunnel.service import Relay, alone
from layer8.tunnel.wire import CHUNKED, NOT_FORWARDED, problem
from tests.interop.daemons import folder
from tests.tunnel.test_relay import SEALED, Client, RelayCase, post

SPOOFS = (
    "x-forwarded-host: evil.test",
    "x-forwarded-for: 10.0.0.1",
    "x-forwarded-proto: https",
    "x-forwarded-port: 1",
    "x-forwarded-server: evil.test",
    "forwarded: host=evil.test;for=10.0.0.1",
    "x-host: evil.test",
    "x-original-url: http://evil.test/",
    "x-rewrite-url: /evil",
    "x-http-host-override: evil.test",
    "x-real-ip: 10.0.0.1",
    "via: 1.1 evil.test",
)
IDENTIFYING = (
    "accept: text/html",
    "accept-charset: utf-8",
    "accept-encoding: br",
    "accept-language: sv, de;q=0.7",
    "access-control-request-headers: x",
    "alt-used: relay.test",
    "cache-control: no-cache",
    "cookie: session=abc",
    "cookie2: $Version=1",
    "device-memory: 8",
    "dnt: 1",
    "downlink: 10",
    "dpr: 2",
    "early-data: 1",
    "ect: 4g",
    "forwarded: for=192.0.2.9",
    "from: ann@example.com",
    "if-none-match: tag-of-ann",
    "origin: https://app.test",
    "pragma: no-cache",
    "priority: u=1",
    "proxy-authorization: Basic YTpi",
    "referer: https://app.test/secret",
    "rtt: 50",
    "save-data: on",
    "sec-ch-ua: Chromium",
    "sec-ch-ua-platform: Linux",
    "sec-fetch-mode: cors",
    "sec-fetch-site: cross-site",
    "sec-gpc: 1",
    "te: trailers",
    "true-client-ip: 192.0.2.9",
    "user-agent: Ann's browser",
    "via: 1.1 home",
    "viewport-width: 777",
    "x-client-data: CJe2yQ",
    "x-forwarded-for: 192.0.2.9",
    "x-real-ip: 192.0.2.9",
    "x-requested-with: XMLHttpRequest",
    "x-request-id: 4711",
    "authorization: Bearer of-ann",
)
SEEN = (
    b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nhost: shop.test\r\ncontent-type: message/ohttp-chunked-req\r\n"
    b"content-length: 60\r\n\r\n"
)
BEGUN = b"HTTP/1.1 200 OK\r\ncontent-type: message/ohttp-chunked-res\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


class Raw(Protocol):
    """A gateway without manners: it says what it is told to."""

    def __init__(self, heard: Callable[[Raw, bytes], None]) -> None:
        self.heard = heard
        self.data = b""
        self.gone = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.heard(self, data)

    def connectionLost(self, reason: Any = None) -> None:
        self.gone = True


class HardCase(RelayCase):
    def raw(self, heard: Callable[[Raw, bytes], None]) -> list[Raw]:
        """Put a gateway without manners in the place of the other one."""
        made: list[Raw] = []

        def build() -> Raw:
            made.append(Raw(heard))
            return made[-1]

        port = self.reactor.listenTCP(0, Factory.forProtocol(build), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: [one.transport.abortConnection() for one in made])  # type: ignore[union-attr]
        self.start(of={"endpoint": f"tcp:127.0.0.1:{port.getHost().port}"})
        return made

    async def status(self, text: bytes) -> int:
        """Ask on a connection of its own."""
        return (await (await self.client()).ask(text))[0]

    def posts(self) -> list[bytes]:
        """Give the heads of what the gateway was sent, key sets apart."""
        return [head for head in self.gateway.heads if head.startswith(b"POST")]


class FieldTests(HardCase):
    async def test_forty_fields_that_tell_who_asks(self) -> None:
        self.start()
        self.assertGreaterEqual(len(IDENTIFYING), 40)
        client = await self.client()
        await client.ask(post(more="".join(f"{line}\r\n" for line in IDENTIFYING)))
        self.assertEqual(self.posts(), [SEEN])
        self.assertNotIn(b"127.0.0.1", b"".join(self.gateway.heads))

    async def test_twelve_fields_that_name_a_target(self) -> None:
        self.start()
        for line in SPOOFS:
            self.assertEqual(await self.status(post(more=f"{line}\r\n")), 200)
        self.assertEqual(self.posts(), [SEEN] * len(SPOOFS))

    async def test_hosts_that_are_none(self) -> None:
        self.start()
        for host in ("evil.test", "shop.test:1", "SHOP.test", "127.0.0.1:9", "[::1]", "shop.test.", "169.254.169.254"):
            status = await self.status(post().replace(b"host: relay.test", b"host: " + host.encode()))
            self.assertEqual(status, 200)
        for wrong in (b"host: a@b", b"host: a b", b"host: a\r\nhost: b", b"nohost: a", b"host: a/b", b"host: a,b"):
            self.assertEqual(await self.status(post().replace(b"host: relay.test", wrong)), 400, wrong)
        self.assertEqual(self.posts(), [SEEN] * 7)

    async def test_targets_that_are_none(self) -> None:
        self.start()
        paths = (
            "/r/mall",
            "/r/shop/",
            "/r/shop?x",
            "/r/SHOP",
            "/r/shop%00",
            "/r/../r/shop",
            "/r//shop",
            "/r/shop@mall",
        )
        for path in (*paths, "/r/", "/", "/r", "//r/shop", "/r/" + "a" * 64, "/.well-known/ohttp-gateway"):
            self.assertEqual(await self.status(post(path=path)), 404, path)
        for path in ("http://evil.test/r/shop", "evil.test:80"):
            self.assertIn(await self.status(post(path=path)), (400, 404), path)
        self.assertEqual(self.posts(), [])


class BodyTests(HardCase):
    async def test_lengths_methods_and_types(self) -> None:
        self.start()
        for size in (0, 38, 54):
            self.assertEqual(await self.status(post(bytes(size))), 400)
        self.assertEqual(await self.status(post(b"", length=BODY_MOST + 1)), 413)
        self.assertEqual(await self.status(post(more="content-length: 61\r\n")), 400)
        for kind in (
            "text/plain",
            "message/ohttp-res",
            "message/ohttp-req; a=b",
            "message/ohttp-req, message/ohttp-req",
        ):
            self.assertEqual(await self.status(post(kind=kind)), 415, kind)
        self.assertEqual(await self.status(post(more="content-type: message/ohttp-req\r\n")), 415)
        for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"TRACE"):
            client = await self.client()
            client.transport.write(post().replace(b"POST", method))  # type: ignore[union-attr]
            head = await client.until(lambda data: b"\r\n\r\n" in data)
            self.assertTrue(head.startswith(b"HTTP/1.1 405 "), head)
        self.assertEqual(self.posts(), [])

    async def test_streams_both_ways(self) -> None:
        """What comes goes on at once, either way, before either end is there."""
        pieces: list[bytes] = []
        opened: Deferred[Incoming] = Deferred()

        class Body(Deaf):
            def received(self, data: bytes) -> None:
                pieces.append(data)

        def take(one: Incoming) -> None:
            if one.method == "POST":
                one.to(Body())
                opened.callback(one)
            else:
                one.answer(200, (), self.gateway.keys())

        self.gateway.server.handler = take
        self.start()
        client = await self.client()
        head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
        client.transport.write(head + b"3\r\nabc\r\n")  # type: ignore[union-attr]
        one = await opened
        await self.settle(lambda: b"".join(pieces) == b"abc")
        self.assertIn(b"transfer-encoding: chunked", one.head.raw)
        one.begin(200, [("content-type", CHUNKED.response)])
        one.write(b"first")
        await client.until(lambda data: b"first" in data)
        client.transport.write(b"2\r\nde\r\n0\r\n\r\n")  # type: ignore[union-attr]
        await self.settle(lambda: b"".join(pieces) == b"abcde")
        one.write(b"second")
        one.finish()
        status, _, body = await client.answer()
        self.assertEqual((status, body), (200, b"firstsecond"))

    async def test_connections_are_used_again(self) -> None:
        relay = self.start()
        client = await self.client()
        for _ in range(5):
            self.assertEqual((await client.ask(post()))[0], 200)
        self.assertEqual([row.connections for row in relay.rows()], [1])
        self.assertEqual(relay.stats().exchanges, {"answered": 5})
        self.assertEqual(len(self.gateway.server), 1)

    async def test_bytes_are_counted_at_the_sockets(self) -> None:
        relay = self.start()
        client = await self.client()
        out = into = 0
        for size in (60, 100_000, 77):
            text = post(bytes(size))
            await client.ask(text)
            out, into = out + len(text), into + len(client.heard)
        told = relay.stats().bytes
        self.assertEqual((told.page_in, told.page_out), (out, into))
        tally = self.gateway.server.tally
        self.assertEqual((told.gateway_in, told.gateway_out), (tally.sent, tally.heard))


class CutTests(HardCase):
    async def test_a_page_that_goes(self) -> None:
        """What was begun never passes for whole at the gateway."""
        made = self.raw(lambda one, data: None)
        client = await self.client()
        client.transport.write(post(SEALED, length=100_000))  # type: ignore[union-attr]
        await self.settle(lambda: any(SEALED in one.data for one in made))
        (one,) = (one for one in made if SEALED in one.data)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await self.settle(lambda: one.gone)
        self.assertTrue(one.data.endswith(SEALED))
        assert self.relay is not None
        self.assertEqual(self.relay.stats().exchanges, {"page": 1})
        self.assertEqual((len(self.relay.relaying), self.relay.admission.in_flight("shop")), (0, 0))

    async def test_a_page_that_goes_while_it_is_answered(self) -> None:
        answer = BEGUN
        made = self.raw(lambda one, data: one.transport.write(answer) if SEALED in data else None)  # type: ignore[union-attr]
        client = await self.client()
        client.transport.write(post())  # type: ignore[union-attr]
        await client.until(lambda data: b"abc" in data)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await self.settle(lambda: all(one.gone for one in made if SEALED in one.data))

    async def test_a_gateway_that_goes(self) -> None:
        """Before it has answered: 502. In the middle of an answer: the page's leg has no end."""
        said = [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"]
        todo = list(said)

        def heard(one: Raw, data: bytes) -> None:
            if SEALED in data:
                one.transport.write(todo.pop(0))  # type: ignore[union-attr]
                one.transport.loseConnection()  # type: ignore[union-attr]

        self.raw(heard)
        for _ in said:
            status, _, body = await (await self.client()).ask(post())
            self.assertEqual((status, body), (502, problem(502)))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: message/ohttp-chunked-res\r\n"
        for answer in (
            head + b"content-length: 9\r\n\r\nabc",
            head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ):
            todo.append(answer)
            client = await self.client()
            client.transport.write(post())  # type: ignore[union-attr]
            await client.gone
            self.assertTrue(client.heard.startswith(b"HTTP/1.1 200"))
            self.assertNotIn(b"0\r\n\r\n", client.heard)

    async def test_a_gateway_that_is_away(self) -> None:
        relay = self.start()
        await self.gateway.close()
        status, fields, body = await (await self.client()).ask(post())
        self.assertEqual((status, body), (503, problem(503, NOT_FORWARDED)))
        self.assertEqual(fields["retry-after"], "1")
        self.assertEqual(relay.stats().exchanges, {"503": 1})

    async def test_a_gateway_that_never_answers(self) -> None:
        self.patch(relay_session, "IDLE_TIME", 0.3)
        self.patch(relaying, "SWEEP", 0.05)
        made = self.raw(lambda one, data: None)
        status, _, body = await (await self.client()).ask(post())
        self.assertEqual((status, body), (504, problem(504)))
        await self.settle(lambda: all(one.gone for one in made if SEALED in one.data))

    async def test_a_gateway_that_falls_silent(self) -> None:
        self.patch(relay_session, "IDLE_TIME", 0.3)
        self.patch(relaying, "SWEEP", 0.05)
        answer = BEGUN
        self.raw(lambda one, data: one.transport.write(answer) if SEALED in data else None)  # type: ignore[union-attr]
        client = await self.client()
        client.transport.write(post())  # type: ignore[union-attr]
        await client.gone
        self.assertIn(b"abc", client.heard)
        self.assertNotIn(b"0\r\n\r\n", client.heard)

    async def test_a_gateway_that_is_answered_too_early(self) -> None:
        """An answer that is over before the request is: whole for the page, and the rest of the request is dropped."""
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: message/ohttp-chunked-res\r\ncontent-length: 3\r\n\r\nabc"
        made = self.raw(lambda one, data: one.transport.write(answer) if b"POST" in data else None)  # type: ignore[union-attr]
        client = await self.client()
        client.transport.write(post(SEALED, length=100_000))  # type: ignore[union-attr]
        status, _, body = await client.answer()
        self.assertEqual((status, body), (200, b"abc"))
        await self.settle(lambda: all(one.gone for one in made if b"POST" in one.data))

    async def test_one_byte_a_second(self) -> None:
        """A head that does not come is answered with 408, by the server itself."""
        from layer8.net import http

        self.patch(http, "HEAD_TIME", 0.3)
        self.patch(http, "SWEEP", 0.05)
        self.start()
        client = await self.client()
        client.transport.write(b"POST /r/shop HTTP/1.1\r\nh")  # type: ignore[union-attr]
        await client.gone
        self.assertTrue(client.heard.startswith(b"HTTP/1.1 408 "), client.heard)


class PressureTests(HardCase):
    async def test_a_gateway_that_reads_nothing(self) -> None:
        self.start()
        taken: list[Incoming] = []
        self.gateway.server.handler = taken.append
        client = await self.client()
        size = 32 << 20
        client.transport.write(post(bytes(size)))  # type: ignore[union-attr]
        await self.settle(lambda: any(one.method == "POST" for one in taken))
        (exchange,) = self.relay.relaying._live  # type: ignore[union-attr]
        await self.settle(lambda: exchange._line is not None and exchange._line.crowded)
        held = exchange._line.waiting  # type: ignore[union-attr]
        self.assertLess(held, 1 << 20)
        whole: list[int] = []
        (one,) = (one for one in taken if one.method == "POST")

        class Body(Deaf):
            def received(self, data: bytes) -> None:
                whole.append(len(data))

            def ended(self) -> None:
                one.answer(200, [("content-type", CHUNKED.response)], b"%d" % sum(whole))

        one.to(Body())
        self.assertEqual((await client.answer())[2], b"%d" % size)

    async def test_a_page_that_reads_nothing(self) -> None:
        size = 8 << 20
        self.gateway.how = lambda one, body: one.answer(200, [("content-type", CHUNKED.response)], bytes(size))
        self.start()
        client = await self.client()
        client.transport.pauseProducing()  # type: ignore[union-attr]
        client.transport.write(post())  # type: ignore[union-attr]
        await self.settle(lambda: bool(self.gateway.bodies))
        (exchange,) = self.relay.relaying._live  # type: ignore[union-attr]
        await self.settle(lambda: exchange._page.crowded)
        client.transport.resumeProducing()  # type: ignore[union-attr]
        self.assertEqual(len((await client.answer())[2]), size)

    async def test_limits_of_a_network(self) -> None:
        self.patch(admission, "BURST", 3.0)
        self.patch(admission, "RATE", 0.001)
        self.start(forwarded_from=("127.0.0.1",))
        for number in range(3):
            self.assertEqual(await self.status(post(more=f"x-forwarded-for: 10.9.9.9, 192.0.2.{number}\r\n")), 200)
        client = await self.client()
        status, fields, body = await client.ask(post(more="x-forwarded-for: 192.0.2.77\r\n"))
        self.assertEqual((status, body), (429, problem(429, NOT_FORWARDED)))
        self.assertGreaterEqual(int(fields["retry-after"]), 1)
        self.assertEqual(await self.status(post(more="x-forwarded-for: 192.0.2.1, 198.51.100.1\r\n")), 200)
        self.assertEqual(await self.status(post()), 200)

    async def test_who_comes_by_a_unix_socket_speaks_for_others(self) -> None:
        self.patch(admission, "BURST", 1.0)
        self.patch(admission, "RATE", 0.001)
        relay = self.start()
        path = f"{folder(self)}/relay.sock"
        port = self.reactor.listenUNIX(path, relay.server)
        self.addCleanup(port.stopListening)
        seen = []
        for address in ("192.0.2.1", "192.0.2.2", "198.51.100.1", "nonsense", ""):
            client: Client = await connectProtocol(UNIXClientEndpoint(self.reactor, path), Client())
            client.clock = self.reactor
            seen.append((await client.ask(post(more=f"x-forwarded-for: {address}\r\n" if address else "")))[0])
            client.transport.abortConnection()  # type: ignore[union-attr]
        self.assertEqual(seen, [200, 429, 200, 200, 200])

    async def test_nobody_else_is_believed(self) -> None:
        """Who is no server in front of it cannot say that it is somebody else."""
        self.patch(admission, "BURST", 1.0)
        self.start(forwarded_from=("192.0.2.1",))
        for number in range(3):
            self.assertEqual(await self.status(post(more=f"x-forwarded-for: 10.0.0.{number}\r\n")), 200)
        assert self.relay is not None
        self.assertEqual(len(self.relay.admission), 0)

    async def test_limit_of_a_gateway(self) -> None:
        self.patch(admission, "IN_FLIGHT", 1)
        self.gateway.how = lambda one, body: None
        self.start()
        (await self.client()).transport.write(post())  # type: ignore[union-attr]
        await self.settle(lambda: bool(self.gateway.bodies))
        status, fields, body = await (await self.client()).ask(post())
        self.assertEqual((status, body, fields["retry-after"]), (503, problem(503, NOT_FORWARDED), "1"))

    async def test_every_connection_to_a_gateway_is_in_use(self) -> None:
        self.gateway.how = lambda one, body: None
        relay = self.start()
        await self.settle(lambda: bool(relay.keeping.kept["shop"].document))
        pool = relay._pools["shop"]
        pool.most, pool.queue = 1, 0.05
        (await self.client()).transport.write(post())  # type: ignore[union-attr]
        await self.settle(lambda: bool(self.gateway.bodies))
        status, _, body = await (await self.client()).ask(post())
        self.assertEqual((status, body), (503, problem(503, NOT_FORWARDED)))


class DoorTests(SynchronousTestCase):
    """How many connections one network may have."""

    def test_a_network_does_not_take_every_place(self) -> None:
        door = Door(MemoryReactorClock(), lambda exchange: None)
        one = [door.buildProtocol(IPv4Address("TCP", f"192.0.2.{n % 250}", n)) for n in range(CONNECTIONS_NETWORK)]
        self.assertNotIn(None, one)
        self.assertIsNone(door.buildProtocol(IPv4Address("TCP", "192.0.2.9", 1)))
        self.assertIsNotNone(door.buildProtocol(IPv4Address("TCP", "198.51.100.1", 1)))
        door.closed(one[0])
        door.closed(one[0])
        self.assertIsNotNone(door.buildProtocol(IPv4Address("TCP", "192.0.2.9", 1)))
        self.assertIsNone(door.buildProtocol(IPv4Address("TCP", "192.0.2.9", 1)))
        for _ in range(2 * CONNECTIONS_NETWORK):
            self.assertIsNotNone(door.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)))
            self.assertIsNotNone(door.buildProtocol(UNIXAddress(None)))


class DialTests(HardCase):
    """While a gateway is dialled."""

    async def begin(self, patience: float, size: int) -> tuple[Client, Deferred[Any], Any]:
        """Begin an exchange whose dial does not come to an end."""
        self.patch(relaying, "SWEEP", 0.05)
        relay = self.start()
        route = relay.relaying.routes["shop"]
        relay.relaying.routes = {"shop": evolve(route, patience=patience)}
        dial: Deferred[Any] = Deferred()
        relay.relaying.pools = {"shop": SimpleNamespace(ready=lambda: None, take=lambda: dial)}  # type: ignore[dict-item]
        client = await self.client()
        client.transport.write(post(bytes(size)))  # type: ignore[union-attr]
        await self.settle(lambda: len(relay.relaying) == 1)
        (exchange,) = relay.relaying._live
        return client, dial, exchange

    async def test_at_most_a_buffer_waits(self) -> None:
        client, dial, exchange = await self.begin(0.3, 1 << 20)
        cancelled: list[Failure] = []
        dial.addErrback(cancelled.append)
        await self.settle(lambda: len(exchange._held) >= 65_536)
        self.assertLess(len(exchange._held), 2 * 65_536 + (1 << 16))
        status, _, body = await client.answer()
        self.assertEqual((status, body), (503, problem(503, NOT_FORWARDED)))
        self.assertEqual(self.posts(), [])
        self.assertEqual(len(self.relay.relaying), 0)  # type: ignore[union-attr]

    async def test_a_page_that_goes_meanwhile(self) -> None:
        client, dial, exchange = await self.begin(10, 60)
        given_up: list[bool] = []
        dial._canceller = lambda _: given_up.append(True)
        self.assertTrue(exchange._page.open)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await self.settle(lambda: bool(given_up))
        self.assertEqual(self.posts(), [])


class NoiseTests(SynchronousTestCase):
    """Whatever comes is answered or cut, and leaves nothing."""

    def relay(self) -> Relay:
        gateway = TunnelGatewayConfig(id="shop", endpoint="tcp:127.0.0.1:1")
        return alone(MemoryReactorClock(), TunnelConfig(gateway=(gateway,)))

    def feed(self, relay: Relay, data: bytes) -> bytes:
        wire = relay.server.buildProtocol(None)
        assert wire is not None
        transport = StringTransportWithDisconnection()
        transport.protocol = wire
        wire.makeConnection(transport)
        wire.dataReceived(data)
        said = transport.value()
        wire.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((len(relay.relaying), len(relay.piping), len(relay.server)), (0, 0, 0))
        self.assertEqual(relay.admission.in_flight("shop"), 0)
        relay.relaying.abort()
        return bytes(said)

    @given(st.binary(max_size=300))
    def test_any_noise(self, data: bytes) -> None:
        self.feed(self.relay(), data)
        self.feed(self.relay(), data + b"\r\n\r\n")

    @given(
        st.sampled_from(("POST", "GET", "OPTIONS", "HEAD", "PUT", "CONNECT")),
        st.sampled_from(("/r/shop", "/r/shop/keys", "/ws/shop", "/l8/sri.json", "/", "*")) | st.text(max_size=20),
        st.lists(
            st.tuples(
                st.sampled_from(("content-type", "content-length", "incremental", "upgrade", "connection", "host")),
                st.sampled_from(("message/ohttp-req", "60", "?1", "websocket", "upgrade", "a", ""))
                | st.text(max_size=9),
            ),
            max_size=6,
        ),
        st.binary(max_size=80),
    )
    def test_any_request(self, method: str, target: str, fields: list[tuple[str, str]], body: bytes) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        head = f"{method} {target} HTTP/1.1\r\nhost: relay.test\r\n{lines}\r\n"
        said = self.feed(self.relay(), head.encode("utf-8", "surrogatepass") + body)
        self.assertIn(said[:9], (b"", b"HTTP/1.1 "))
