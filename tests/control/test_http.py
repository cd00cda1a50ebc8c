"""HTTP on a control listener, by hand-written bytes on real sockets."""

from __future__ import annotations

import shutil
import ssl
from subprocess import run
from tempfile import NamedTemporaryFile
from typing import Any

from attrs import define
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from twisted.web.resource import Resource

from layer8.config.sections import ControlConfig
from layer8.control import http
from layer8.control.http import HEADERS, HTTP_BODY, HTTP_HEAD, OPEN_TIME, Page, Site, Watchdog
from layer8.net.factory import Places
from tests.control.rig import Raw, rig

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: jsonrpc.layer8.v1\r\n"
)
CLOSE = b"\x88\x80\0\0\0\0"


def ask(path: str, *headers: str, method: str = "GET", host: str = "localhost", body: str = "") -> bytes:
    """Write a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", body]
    return "\r\n".join(lines).encode()


def status(answer: bytes) -> int:
    """Give the code of an answer, 0 if there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0


class PageTests(TestCase):
    """What each path answers, and to whom."""

    def setUp(self) -> None:
        self.rig = rig(self)

    async def ask(self, *parts: bytes, kind: str = "tcp") -> bytes:
        port = self.rig.port(kind)
        return await deferToThread(lambda: Raw(port).exchange(*parts))

    async def test_health(self) -> None:
        answer = await self.ask(ask("/healthz"))
        self.assertEqual((status(answer), answer.partition(b"\r\n\r\n")[2]), (200, b"ok\n"))

    async def test_readiness(self) -> None:
        self.assertEqual(status(await self.ask(ask("/readyz"))), 200)
        self.rig.health.set("listener", False, "not open")
        self.rig.health.draining = True
        answer = await self.ask(ask("/readyz"))
        self.assertEqual((status(answer), answer.partition(b"\r\n\r\n")[2]), (503, b"draining\nlistener: not open\n"))

    async def test_metrics_need_the_role_read(self) -> None:
        keyring = self.rig.service.keyring
        read = keyring.add("prometheus", frozenset({"read"}), None)
        agent = keyring.add("agent", frozenset({"agent"}), None)
        for token, code in ((read, 200), (keyring.cookie, 200), (agent, 401), ("wrong", 401), ("", 401)):
            answer = await self.ask(ask("/metrics", f"Authorization: Bearer {token}"))
            self.assertEqual(status(answer), code, token)
        self.assertEqual(status(await self.ask(ask("/metrics"))), 401)
        answer = await self.ask(ask("/metrics", f"Authorization: Bearer {read}"))
        self.assertIn(b'layer8_control_requests_total{listener="local"}', answer)
        self.assertIn(b"Content-Type: text/plain; version=0.0.4; charset=utf-8", answer)

    async def test_a_guesser_is_banned(self) -> None:
        guess = ask("/metrics", "Authorization: Bearer wrong")
        codes = [status(await self.ask(guess)) for _ in range(21)]
        self.assertEqual((set(codes[:20]), codes[20]), ({401}, 429))
        right = ask("/metrics", f"Authorization: Bearer {self.rig.service.keyring.cookie}")
        self.assertEqual(status(await self.ask(right)), 429)

    async def test_head(self) -> None:
        answer = await self.ask(ask("/healthz", method="HEAD"))
        self.assertEqual((status(answer), answer.partition(b"\r\n\r\n")[2]), (200, b""))
        self.assertIn(b"Content-Length: 3\r\n", answer)

    async def test_headers_everywhere(self) -> None:
        for question in (
            ask("/healthz"),
            ask("/metrics"),
            ask("/nothing"),
            ask("/ws"),
            ask("/", method="DELETE"),
            ask("/", host="evil.example"),
        ):
            answer = await self.ask(question)
            for name, value in HEADERS:
                self.assertEqual(answer.count(b"\r\n" + name + b": " + value + b"\r\n"), 1, answer)
            self.assertNotIn(b"\r\nServer:", answer)
            self.assertNotIn(b"Twisted", answer)
            self.assertNotIn(b"\r\nSet-Cookie", answer)
            self.assertNotIn(b"\r\nAccess-Control", answer)

    async def test_there_is_no_dashboard_yet(self) -> None:
        self.assertEqual(status(await self.ask(ask("/"))), 404)

    async def test_methods(self) -> None:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get"):
            answer = await self.ask(ask("/healthz", "Content-Length: 0", method=method))
            self.assertEqual(status(answer), 405, method)
            self.assertIn(b"\r\nAllow: GET, HEAD\r\n", answer)

    async def test_hosts(self) -> None:
        for host, code in (
            ("localhost", 200),
            ("LOCALHOST:9752", 200),
            ("localhost.", 200),
            ("127.0.0.1", 200),
            ("[::1]:9752", 200),
            ("192.0.2.7:80", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("evil.example@localhost", 403),
            ("localhost/evil", 403),
            ("", 403),
            ("localhost:port", 403),
        ):
            self.assertEqual(status(await self.ask(ask("/healthz", host=host))), code, host)

    async def test_no_host_and_two_hosts(self) -> None:
        self.assertEqual(status(await self.ask(b"GET /healthz HTTP/1.1\r\n\r\n")), 400)
        self.assertEqual(status(await self.ask(ask("/healthz", "Host: localhost"))), 400)

    async def test_origins(self) -> None:
        for origin, code in (
            ("http://localhost", 200),
            ("https://localhost", 200),
            ("http://localhost:1", 403),
            ("http://evil.example", 403),
            ("null", 403),
            ("file://", 403),
            ("http://localhost/", 403),
            ("http://localhost@evil.example", 403),
        ):
            self.assertEqual(status(await self.ask(ask("/healthz", f"Origin: {origin}"))), code, origin)
            answer = await self.ask(UPGRADE + f"Origin: {origin}\r\n\r\n".encode(), CLOSE)
            self.assertEqual(status(answer), 101 if code == 200 else 403, origin)

    async def test_a_rebound_name_cannot_upgrade(self) -> None:
        answer = await self.ask(UPGRADE.replace(b"Host: localhost", b"Host: evil.example") + b"\r\n")
        self.assertEqual(status(answer), 403)

    async def test_upgrades_that_are_none(self) -> None:
        for change, code in (
            ((b"Upgrade: websocket", b"Upgrade: h2c"), 426),
            ((b"Connection: Upgrade", b"Connection: keep-alive"), 426),
            ((b"Version: 13", b"Version: 8"), 426),
            ((b"AAAA==", b"AAAA"), 400),
            ((b"AAAA==", b"\xff\xffAA=="), 400),
            ((b"Sec-WebSocket-Protocol: jsonrpc.layer8.v1\r\n", b""), 400),
            ((b"jsonrpc.layer8.v1", b"jsonrpc.layer8.v2"), 400),
            ((b"jsonrpc.layer8.v1", b"jsonrpc.layer8.v1\r\nSec-WebSocket-Protocol: x"), 400),
            ((b"GET", b"HEAD"), 405),
            ((b"HTTP/1.1", b"HTTP/1.0"), 426),
        ):
            self.assertEqual(status(await self.ask(UPGRADE.replace(*change) + b"\r\n")), code, change)

    async def test_an_upgrade_with_a_wrong_token(self) -> None:
        answer = await self.ask(UPGRADE + b"Authorization: Bearer wrong\r\n\r\n")
        self.assertEqual(status(answer), 401)

    async def test_an_upgrade_with_a_body(self) -> None:
        self.assertEqual(status(await self.ask(UPGRADE + b"Content-Length: 5\r\n\r\nhello")), 400)
        self.assertEqual(
            status(await self.ask(UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")), 400
        )

    async def test_an_http_2_preface(self) -> None:
        answer = await self.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.assertIn(status(answer), (400, 505))

    async def test_smuggling_pairs(self) -> None:
        """However the two lengths disagree, at most one answer comes, and never that of the hidden request."""
        hidden = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for headers in (
            ["Content-Length: 0", "Transfer-Encoding: chunked"],
            ["Transfer-Encoding: chunked", "Content-Length: 4"],
            ["Content-Length: 0", "Content-Length: 44"],
            ["Content-Length: 0, 44"],
            ["Content-Length: +44"],
            ["Content-Length : 44"],
            ["Transfer-Encoding : chunked"],
            ["Transfer-Encoding: xchunked"],
            ["Transfer-Encoding: chunked, identity"],
            ["Transfer-Encoding:\x0bchunked"],
            ["X: y\n" + hidden],
        ):
            for method, path in (("POST", "/nothing"), ("GET", "/readyz")):
                answer = await self.ask(ask(path, *headers, method=method, body="0\r\n\r\n" + hidden))
                self.assertLessEqual(answer.count(b"HTTP/1.1 "), 1, (headers, answer))
                self.assertNotIn(b"ok\n", answer)

    async def test_one_request_per_connection(self) -> None:
        answer = await self.ask(ask("/readyz", "Connection: keep-alive") + ask("/healthz"))
        self.assertEqual((answer.count(b"HTTP/1.1 "), answer.count(b"Connection: close")), (1, 1))

    async def test_heads_and_bodies_over_the_cap(self) -> None:
        self.assertEqual(status(await self.ask(ask("/healthz", "X: " + "x" * (HTTP_HEAD - 200)))), 200)
        for question in (
            ask("/healthz", "X: " + "x" * HTTP_HEAD),
            ask("/healthz", *["X: " + "x" * 1000] * 17),
            ask("/healthz", *["X: y"] * 101),
            ask("/" + "x" * HTTP_HEAD),
        ):
            self.assertIn(status(await self.ask(question)), (0, 400), question[:80])
        answer = await self.ask(ask("/", f"Content-Length: {HTTP_BODY + 1}", method="POST", body="x" * (HTTP_BODY + 1)))
        self.assertEqual(status(answer), 413)

    async def test_bytes_that_are_no_http(self) -> None:
        for noise in (b"\0" * 100 + b"\r\n", b"\x16\x03\x01\x02\x00\x01\r\n", b"GET\r\n", b"GET / \r\n", b"\r\n" * 9):
            self.assertIn(status(await self.ask(noise + b"\r\n\r\n")), (0, 400, 403, 505), noise)

    async def test_over_tls(self) -> None:
        port = self.rig.port("tls")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])

        def exchange() -> tuple[bytes, str | None]:
            raw = Raw(port)
            raw.socket = wrapped = context.wrap_socket(raw.socket)
            spoken = wrapped.selected_alpn_protocol()
            return raw.exchange(ask("/healthz")), spoken

        answer, spoken = await deferToThread(exchange)
        self.assertEqual((status(answer), spoken), (200, "http/1.1"))

    async def test_a_page_that_fails_shows_nothing(self) -> None:
        class Failing(Resource):
            isLeaf = True

            def render(self, request: Any) -> bytes:
                raise KeyError("secret text")

        self.rig.service.hang("/failing", Failing(), [b"GET", b"POST"], tree=True)
        for path in ("/failing", "/failing/below/it"):
            answer = await self.ask(ask(path))
            self.assertEqual((status(answer), answer.partition(b"\r\n\r\n")[2]), (500, b"internal error\n"))
        self.assertEqual(status(await self.ask(ask("/failingly"))), 404)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)

    async def test_curl(self) -> None:
        if shutil.which("curl") is None:
            raise SkipTest("needs the Debian package curl")
        token = self.rig.service.keyring.cookie
        for path, headers in (("healthz", []), ("readyz", []), ("metrics", ["-H", f"Authorization: Bearer {token}"])):
            for version in ("--http1.0", "--http1.1"):
                url = f"http://127.0.0.1:{self.rig.port('tcp')}/{path}"
                command = ["curl", "-sSf", version, *headers, url]
                done = await deferToThread(run, command, capture_output=True, timeout=10)
                self.assertEqual((done.returncode, bool(done.stdout)), (0, True), done.stderr)

    async def test_promtool(self) -> None:
        if shutil.which("promtool") is None:
            raise SkipTest("needs the Debian package prometheus")
        with NamedTemporaryFile() as file:
            file.write(self.rig.metrics.render())
            file.seek(0)
            done = await deferToThread(
                run, ["promtool", "check", "metrics"], stdin=file, capture_output=True, timeout=20
            )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class OpenMetricsTests(TestCase):
    """`metrics_open` on loopback."""

    async def test_no_token_is_needed(self) -> None:
        made = rig(self, config=ControlConfig(listen=("tcp:0:interface=127.0.0.1",), metrics_open=True))
        port = made.port("tcp")
        answer = await deferToThread(lambda: Raw(port).exchange(ask("/metrics")))
        self.assertEqual(status(answer), 200)

    async def test_names_that_were_configured(self) -> None:
        made = rig(self, config=ControlConfig(listen=("tcp:0:interface=127.0.0.1",), names=("node.example",)))
        port = made.port("tcp")
        for host, code in (("node.example", 200), ("NODE.example:1", 200), ("other.example", 403)):
            answer = await deferToThread(Raw(port).exchange, ask("/healthz", host=host))
            self.assertEqual(status(answer), code, host)


@define(eq=False)
class Address:
    """Where a connection comes from."""

    host: str


class Transport(StringTransport):
    """A transport in memory that can be dropped and handed over."""

    aborted = False
    protocol: Any = None

    def abortConnection(self) -> None:
        self.aborted = True


class SlowTests(SynchronousTestCase):
    """Time and caps, on a hand-set clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.site = Site(self.clock, None, Places(3, 2))
        watchdog = Watchdog(self.clock)
        self.site.hang("/healthz", http.health_page(watchdog))
        self.watchdog = watchdog

    def connect(self, host: str = "192.0.2.1") -> tuple[Any, Transport]:
        address: Any = Address(host)
        channel = self.site.buildProtocol(address)
        transport = Transport()
        if channel is not None:
            channel.makeConnection(transport)
        return channel, transport

    def test_a_trickle_does_not_extend_the_time(self) -> None:
        channel, transport = self.connect()
        for letter in b"GET /healthz HTTP/1.1":
            channel.dataReceived(bytes((letter,)))
            self.clock.advance(0.24)
            if transport.aborted:
                break
        self.assertTrue(transport.aborted)
        self.assertLessEqual(self.clock.seconds(), OPEN_TIME + 0.3)

    def test_a_client_that_does_not_read_its_answer(self) -> None:
        channel, transport = self.connect()
        channel.dataReceived(ask("/healthz"))
        self.assertTrue(transport.disconnecting)
        self.clock.advance(http.LEAVE_TIME + 1)
        self.assertTrue(transport.aborted)

    def test_places_are_given_back(self) -> None:
        first, _ = self.connect()
        second, _ = self.connect()
        self.assertIsNone(self.connect()[0])
        other, _ = self.connect("198.51.100.1")
        self.assertIsNone(self.connect("203.0.113.1")[0])
        from twisted.internet.error import ConnectionDone
        from twisted.python.failure import Failure

        for channel in (first, second, other):
            channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.site.places.open, 0)
        self.assertIsNotNone(self.connect()[0])

    def test_a_reactor_that_stood_still(self) -> None:
        self.watchdog.start()
        self.clock.pump([1.0] * 10)
        self.assertTrue(self.watchdog.alive())
        self.clock.rightNow += 5.5  # time goes on while nothing is called
        channel, transport = self.connect()
        channel.dataReceived(ask("/healthz"))
        self.assertEqual(status(transport.value()), 503)
        self.clock.pump([0.1])
        self.assertTrue(self.watchdog.alive())
        self.watchdog.stop()

    def test_a_page_only_answers_its_methods(self) -> None:
        class Rest(Resource):
            isLeaf = True

            def render(self, request: Any) -> bytes:
                body: bytes = request.content.read()
                return body[::-1]

        self.site.hang("/api", Page(Rest(), frozenset({b"POST"})))
        channel, transport = self.connect()
        channel.dataReceived(ask("/api", "Content-Length: 3", method="POST", body="abc"))
        self.assertTrue(transport.value().endswith(b"\r\n\r\ncba"))
