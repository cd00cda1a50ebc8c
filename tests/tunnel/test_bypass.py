"""Ways past `require`, and words that only a gateway may say, as web servers and frameworks really read them."""

from __future__ import annotations

import asyncio  # noqa: TID251, the middleware runs in servers that have it
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.net.http_client import fetch
from layer8.tunnel.asgi import L8Middleware as AsgiMiddleware
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.settings import Settings
from layer8.tunnel.wsgi import L8Middleware
from tests.tunnel.by_hand import asked
from tests.tunnel.test_gateways import Rig, until
from tests.tunnel.test_middleware import gateway
from tests.tunnel.test_sidecar import OK, Scripted

REQUIRE = ["/api"]


class PathTests(SynchronousTestCase):
    """The same path, read by somebody else."""

    def test_what_some_cut_off(self) -> None:
        guarded = Settings(gateway="shop", authorities="shop.example", require=REQUIRE)
        for path in ("/api#x", "/api%23x", "/api\0x", "/api%00/x", "/x/../api#/../y", "/y#/../api"):
            self.assertTrue(guarded.guards(path), path)
        for path in ("/apis#x", "/x#/api"):
            self.assertFalse(guarded.guards(path), path)

    def test_letters_beyond_ascii(self) -> None:
        """As they come: encoded, as the bytes of UTF-8 in Latin-1 (WSGI), and as text (ASGI)."""
        for require in ("/café", "/caf%C3%A9", "/caf%c3%a9/"):
            guarded = Settings(gateway="shop", authorities="shop.example", require=require)
            for path in ("/caf%C3%A9", "/caf%c3%a9/x", "/café", "/café".encode().decode("latin-1"), "/caf%25C3%25A9"):
                self.assertTrue(guarded.guards(path), (require, path))
            self.assertFalse(guarded.guards("/cafe"))

    def test_wsgi_below_a_prefix(self) -> None:
        """Gunicorn takes SCRIPT_NAME from a field of a peer on loopback; the application looks at PATH_INFO only."""
        calls: list[str] = []

        def app(environ: Any, start_response: Any) -> list[bytes]:
            calls.append(environ["PATH_INFO"])
            start_response("200 OK", [])
            return [b""]

        guarded = L8Middleware(app, gateway(require=REQUIRE))
        for prefix, path in (("/foo", "/api"), ("/foo", "//API/x"), ("/api", "/x"), ("", "/api")):
            environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": prefix, "PATH_INFO": path, "RAW_URI": prefix + path}
            told: list[str] = []
            b"".join(guarded(environ, lambda status, headers, told=told: told.append(status)))
            self.assertEqual(told[0][:3], "403", (prefix, path))
        self.assertEqual(calls, [])

    def test_asgi_below_a_prefix(self) -> None:
        """A router takes `root_path` off (uvicorn's --root-path, Mount)."""
        calls: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            calls.append(scope["path"])

        guarded = AsgiMiddleware(app, gateway(require=REQUIRE))
        for kind in ("http", "websocket"):
            for path in ("/v1/api", "/v1/api/x", "/v1//API", "/api"):
                sent: list[Any] = []

                async def receive() -> Any:
                    return {"type": "websocket.connect"}

                async def send(event: Any, sent: list[Any] = sent) -> None:
                    sent.append(event)

                scope = {"type": kind, "method": "GET", "path": path, "raw_path": path.encode(), "root_path": "/v1"}
                asyncio.run(guarded({**scope, "headers": []}, receive, send))
                self.assertEqual(sent[0].get("status", sent[0].get("code")), 403 if kind == "http" else 1008, path)
        self.assertEqual(calls, [])

    def test_asgi_hides_what_only_we_say(self) -> None:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.extend(scope["headers"])

        guarded = AsgiMiddleware(app, gateway())
        scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "root_path": ""}
        fields = [(b"l8_encapsulated", b"?1"), (b"l8-token", b"x"), (b"x", b"y")]
        asyncio.run(guarded({**scope, "headers": fields}, None, None))  # type: ignore[arg-type]
        self.assertEqual(seen, [(b"x", b"y")])


class SidecarTests(TestCase):
    """Bytes as they arrive at the sidecar, and as they leave it."""

    async def stage(self, words: bytes = OK) -> tuple[Rig, list[Scripted]]:
        from twisted.internet import reactor

        loop: Any = reactor
        seen: list[Scripted] = []
        factory = Factory.forProtocol(lambda: Scripted(lambda one, data: one.transport.write(words), seen))
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: [one.transport.abortConnection() for one in seen] and None)
        rig = Rig(loop, "sidecar", backend=port.getHost().port, require=REQUIRE)
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        return rig, seen

    async def say(self, rig: Rig, data: bytes) -> Scripted:
        end = TCP4ClientEndpoint(rig.reactor, "127.0.0.1", rig.hand.port)
        heard: list[Scripted] = []
        raw: Any = await end.connect(Factory.forProtocol(lambda: Scripted(lambda one, data: None, heard)))
        self.addCleanup(raw.transport.abortConnection)
        raw.transport.write(data)
        await until(rig.reactor, lambda: b"\r\n\r\n" in raw.data)
        return heard[0]

    async def test_targets(self) -> None:
        rig, seen = await self.stage()
        for target in (b"/api#x", b"http://shop.test/api#x", b"/%61pi#", b"/x#/../api"):
            raw = await self.say(rig, b"GET %b HTTP/1.1\r\nhost: shop.test\r\n\r\n" % target)
            self.assertTrue(raw.data.startswith(b"HTTP/1.1 403 "), target)
        self.assertEqual(seen, [])

    async def test_names_that_some_take_for_others(self) -> None:
        """SCRIPT_NAME moves the path at gunicorn; L8_Encapsulated is HTTP_L8_ENCAPSULATED wherever CGI's names are."""
        rig, seen = await self.stage()
        spoofs = [("SCRIPT_NAME", "/foo"), ("L8_Encapsulated", "?1"), ("x_forwarded_for", "6.6.6.6"), ("l8_token", "x")]
        await fetch(rig.hand.pool, "GET", "/foo/api", "shop.test", spoofs, most=99)
        await rig.hand.ask(asked(fields=tuple((name.lower().encode(), value.encode()) for name, value in spoofs)))
        heard = b"".join(one.data for one in seen)
        self.assertEqual(heard.count(b"HTTP/1.1"), 2)
        self.assertEqual(heard.count(b"?1"), 1)
        self.assertNotIn(b"_", heard)

    async def test_no_protocol_but_that_of_sockets(self) -> None:
        """With HTTP/2 on a connection that is joined, all would go past us."""
        yes = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
        rig, seen = await self.stage(yes)
        for words in (b"h2c", b"websocket, h2c", b"h2c\r\nupgrade: websocket"):
            raw = await self.say(
                rig, b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: upgrade\r\nupgrade: %b\r\n\r\n" % words
            )
            self.assertTrue(raw.data.startswith(b"HTTP/1.1 502 "), words)
        self.assertNotIn(b"upgrade", b"".join(one.data for one in seen).lower())


class ResourceTests(TestCase):
    """In twisted.web."""

    def test_names_that_some_take_for_others(self) -> None:
        from twisted.internet import reactor
        from twisted.web.resource import Resource
        from twisted.web.server import Request
        from twisted.web.test.requesthelper import DummyChannel

        guarded = L8Resource(Resource(), reactor=reactor, gateway=gateway(require=REQUIRE))
        self.addCleanup(guarded.close)
        request = Request(DummyChannel(), False)
        request.uri, request.prepath, request.postpath = b"/x", [b"x"], []
        for name in (b"L8-Encapsulated", b"L8_Encapsulated", b"l8_token", b"x-own"):
            request.requestHeaders.addRawHeader(name, b"?1")
        guarded.getChildWithDefault(b"x", request)
        self.assertEqual([name.lower() for name, _ in request.requestHeaders.getAllRawHeaders()], [b"x-own"])
