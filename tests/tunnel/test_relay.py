"""A relay over real sockets, between clients and gateways that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.crypto.keys import NodeKey
from layer8.net.http import Incoming, Server
from layer8.net.listen import serve
from layer8.tunnel.keys import GatewayKey, pin_text
from layer8.tunnel.service import Relay, alone
from layer8.tunnel.wire import CHUNKED, OHTTP_KEY, PROBLEM_TYPE, SINGLE, problem

HOST = "shop.test"
SEALED = bytes(range(60))
ME = NodeKey.make()


class Client(Protocol):
    """A connection that writes what it is told to and keeps what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.gone: Deferred[None] = Deferred()
        self.clock: Any = None
        self.waiting: list[tuple[Callable[[bytes], bool], Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        self._look()

    def connectionLost(self, reason: Any = None) -> None:
        self.gone.callback(None)

    def _look(self) -> None:
        for wanted, done in list(self.waiting):
            if wanted(self.heard):
                self.waiting.remove((wanted, done))
                done.callback(self.heard)

    def until(self, wanted: Callable[[bytes], bool]) -> Deferred[bytes]:
        """Wait until what was heard is like this."""
        done: Deferred[bytes] = Deferred()
        self.waiting.append((wanted, done))
        self._look()
        return done.addTimeout(10, self.clock)

    async def ask(self, text: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request and give status, fields and body of its answer, of a known length or in chunks."""
        self.heard = b""
        self.transport.write(text)  # type: ignore[union-attr]
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Give the next answer."""
        data = await self.until(whole)
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), fields, unchunked(rest) if "transfer-encoding" in fields else rest


def whole(data: bytes) -> bool:
    """Say whether an answer is complete."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return False
    if b"transfer-encoding: chunked" in head:
        return rest.endswith(b"0\r\n\r\n")
    length = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    return not length or len(rest) >= int(length[0].split(b":")[1])


def unchunked(data: bytes) -> bytes:
    """Read a body in chunks."""
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        out, data = out + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return out


def post(
    body: bytes = SEALED,
    path: str = "/r/shop",
    kind: str = CHUNKED.request,
    more: str = "",
    length: int | None = None,
) -> bytes:
    """Write a sealed request."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: relay.test\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n{more}\r\n"
    return head.encode() + body


class Gateway:
    """A gateway that answers as it is told to, and keeps the heads and bodies that it hears."""

    def __init__(self, reactor: Any) -> None:
        self.asked: list[Incoming] = []
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.key = GatewayKey.make(int(datetime.now(UTC).timestamp() // 3600))
        self.identity = ME
        self.document: bytes | None = None
        self.how: Callable[[Incoming, bytes], None] = lambda one, body: one.answer(
            200, [("content-type", CHUNKED.response), ("set-cookie", "a=b"), ("server", "me")], b"sealed " + body
        )
        self.server = Server(reactor, self.take)
        (self.listener,) = serve(reactor, "tcp:0:interface=127.0.0.1", "", self.server)
        self.port = self.listener.getHost().port  # type: ignore[attr-defined]

    def keys(self) -> bytes:
        """Give its key set."""
        return self.document or self.key.key_set("shop", [HOST]).sign(self.identity)

    def take(self, one: Incoming) -> None:
        self.asked.append(one)
        self.heads.append(one.head.raw)
        if one.path == "/.well-known/l8/keys.json":
            one.answer(200, [("content-type", "application/jose+json")], self.keys())
            return
        Deferred.fromCoroutine(self.read(one)).addErrback(lambda _: None)

    async def read(self, one: Incoming) -> None:
        body = await one.read(1 << 24)
        self.bodies.append(body)
        self.how(one, body)

    async def close(self) -> None:
        """Listen no more, and cut what there is."""
        await maybeDeferred(self.listener.stopListening)
        self.server.abort()


class RelayCase(TestCase):
    timeout = 20
    kind: type[Gateway] = Gateway

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.gateway = self.kind(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.gateway.close()))
        self.clients: list[Client] = []
        self.relay: Relay | None = None

    def config(self, **more: Any) -> TunnelConfig:
        """Say what the relay knows."""
        known = {"id": "shop", "endpoint": f"tcp:127.0.0.1:{self.gateway.port}", "host": HOST}
        gateway = TunnelGatewayConfig(**(known | {"identity": (pin_text(ME.node_id),)} | more.pop("of", {})))
        return TunnelConfig(listen=("tcp:0:interface=127.0.0.1",), gateway=(gateway, *more.pop("others", ())), **more)

    def start(self, **more: Any) -> Relay:
        """Start the relay."""
        relay = self.relay = alone(self.reactor, self.config(**more))
        relay.startService()
        self.addCleanup(self.stop)
        return relay

    async def stop(self) -> None:
        if self.relay is not None and self.relay.running:
            await self.relay.stopService()

    async def client(self) -> Client:
        """Connect a page."""
        assert self.relay is not None
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.relay.ports[0])
        client: Client = await connectProtocol(endpoint, Client())
        client.clock = self.reactor
        self.addCleanup(client.transport.abortConnection)  # type: ignore[union-attr]
        return client

    async def settle(self, wanted: Callable[[], bool]) -> None:
        """Wait until this is so."""
        for _ in range(500):
            if wanted():
                return
            await deferLater(self.reactor, 0.01)
        self.fail("it does not come to that")


class ExchangeTests(RelayCase):
    async def test_there_and_back(self) -> None:
        self.start()
        client = await self.client()
        for kind in (CHUNKED, SINGLE):
            self.gateway.how = lambda one, body, kind=kind: one.answer(  # type: ignore[misc]
                200, [("content-type", kind.response), ("set-cookie", "a=b")], b"sealed " + body
            )
            status, fields, body = await client.ask(post(kind=kind.request, more="incremental: ?1\r\ncookie: a=b\r\n"))
            self.assertEqual((status, body), (200, b"sealed " + SEALED))
            self.assertEqual(fields.pop("date")[-3:], "GMT")
            self.assertEqual(
                fields,
                {
                    "content-type": kind.response,
                    "access-control-allow-origin": "*",
                    "cache-control": "no-store",
                    "incremental": "?1",
                    "content-length": "67",
                },
            )
        self.assertEqual(self.gateway.bodies, [SEALED, SEALED])
        self.assertEqual(
            self.gateway.heads[-1],
            b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nhost: shop.test\r\ncontent-type: message/ohttp-req\r\n"
            b"incremental: ?1\r\ncontent-length: 60\r\n\r\n",
        )

    async def test_keys_are_one_copy(self) -> None:
        self.start()
        client = await self.client()
        status, fields, body = await client.ask(b"GET /r/shop/keys HTTP/1.1\r\nhost: relay.test\r\n\r\n")
        self.assertEqual((status, body), (200, self.gateway.keys()))
        self.assertEqual(fields["content-type"], "application/jose+json")
        self.assertEqual(fields["access-control-allow-origin"], "*")
        self.gateway.key = GatewayKey.make(self.gateway.key.epoch + 1)
        self.assertEqual((await client.ask(b"GET /r/shop/keys HTTP/1.1\r\nhost: r\r\n\r\n"))[2], body)
        raw = await client.ask(b"GET /r/shop/keys?raw HTTP/1.1\r\nhost: r\r\n\r\n")
        self.assertEqual((raw[1]["content-type"], len(raw[2])), ("application/ohttp-keys", 43))
        self.assertEqual(len(self.gateway.asked), 1)
        self.assertEqual((await client.ask(b"GET /r/mall/keys HTTP/1.1\r\nhost: r\r\n\r\n"))[0], 404)
        self.assertEqual((await client.ask(b"GET /r/shop/keys?x HTTP/1.1\r\nhost: r\r\n\r\n"))[0], 404)

    async def test_a_preflight(self) -> None:
        self.start()
        client = await self.client()
        status, fields, body = await client.ask(
            b"OPTIONS /r/shop HTTP/1.1\r\nhost: r\r\norigin: https://app.test\r\n"
            b"access-control-request-method: POST\r\naccess-control-request-headers: content-type,incremental\r\n\r\n"
        )
        self.assertEqual((status, body, fields["access-control-allow-origin"]), (204, b"", "*"))
        self.assertEqual(fields["access-control-allow-headers"], "content-type, incremental, authorization")
        self.assertEqual(fields["access-control-max-age"], "7200")
        self.assertNotIn("access-control-allow-credentials", fields)

    async def test_answers_that_are_made_anew(self) -> None:
        self.start()
        client = await self.client()
        for status, kind, seen, problem_seen in (
            (400, OHTTP_KEY, 400, OHTTP_KEY),
            (400, "https://evil.test/you", 400, "about:blank"),
            (422, "about:blank", 422, "about:blank"),
            (429, "about:blank", 429, "about:blank"),
            (503, "about:blank", 503, "about:blank"),
            (302, "about:blank", 502, "about:blank"),
            (500, "about:blank", 502, "about:blank"),
        ):
            self.gateway.how = lambda one, body, status=status, kind=kind: one.answer(  # type: ignore[misc]
                status, [("content-type", PROBLEM_TYPE), ("location", "/x"), ("x-you", "me")], problem(status, kind)
            )
            client = await self.client()
            got = await client.ask(post())
            self.assertEqual((got[0], got[2]), (seen, problem(seen, problem_seen)))
            self.assertNotIn("location", got[1])
            self.assertNotIn("x-you", got[1])
