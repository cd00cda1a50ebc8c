"""Balancers in front: the header is required, believed, and counts for everything that an address counts for."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.load import load_text
from layer8.core.address import HostPort
from layer8.proxy.agent import Agent
from layer8.proxy.bans import Banned
from layer8.proxy.pp import Header, Reader, v1, v2
from layer8.proxy.service import Server
from layer8.proxy.sniff import Found, Outcome, Refused, Sniffer
from layer8.proxy.sniff_http import HttpSniffer
from layer8.proxy.sniff_tls import TlsSniffer
from layer8.proxy.wire import Reason
from tests.accepting import Accepting, pass_on
from tests.proxy import pair
from tests.proxy.cuts import shown
from tests.proxy.desk import row
from tests.proxy.pair import Echo, PairCase, get, published, visit
from tests.proxy.rows_http import PLAIN
from tests.proxy.rows_tls import PROXY_V1, PROXY_V2, WHOLE

VISITOR = HostPort("192.0.2.1", 40000)
TRUSTED = 'proxy_from = ["127.0.0.1"]'


class Behind:
    """A sniffer behind a header, as `Balancers` and `Traffic` put the two together."""

    def __init__(self, sniffer: Sniffer) -> None:
        self.reader: Reader | None = Reader()
        self.sniffer = sniffer
        self.header: Header | None = None

    def feed(self, data: bytes) -> Outcome | None:
        if self.reader is None:
            return self.sniffer.feed(data)
        header = self.reader.feed(data)
        if header is None or isinstance(header, Refused):
            return header
        self.header, rest = header, self.reader.data
        self.reader = None
        return self.sniffer.feed(rest) if rest else None


class RowTests(SynchronousTestCase):
    """The rows of the sniffing tables that begin with a header, from a trusted network: at every cut."""

    def check(self, make: Callable[[], Sniffer], header: bytes, hello: bytes, wanted: str) -> None:
        data = header + hello
        cuts = [[data], *([data[:at], data[at:]] for at in range(1, len(data)))]
        for parts in [*cuts, [data[at : at + 1] for at in range(len(data))]]:
            behind = Behind(make())
            outcome = next((found for found in map(behind.feed, parts) if found is not None), None)
            self.assertEqual(shown(outcome), wanted)
            if isinstance(outcome, Found):
                self.assertEqual(behind.sniffer.data, hello, "exactly the visitor's own bytes go on")
                assert behind.header is not None
                self.assertEqual(behind.header.source, VISITOR)

    def test_proxy_v1_line_first_trusted_tls(self) -> None:
        self.check(TlsSniffer, PROXY_V1, WHOLE, "A www.example.com")

    def test_proxy_v2_header_first_trusted_tls(self) -> None:
        self.check(TlsSniffer, PROXY_V2, WHOLE, "A www.example.com")

    def test_proxy_v1_line_first_trusted_http(self) -> None:
        self.check(HttpSniffer, PROXY_V1, PLAIN, "A www.example.com")

    def test_proxy_v2_header_first_trusted_http(self) -> None:
        self.check(HttpSniffer, PROXY_V2, PLAIN, "A www.example.com")

    def test_two_headers(self) -> None:
        """What a visitor itself says behind the balancer's header is not believed."""
        self.check(HttpSniffer, PROXY_V1, PROXY_V1 + PLAIN, "400")
        self.check(TlsSniffer, PROXY_V2, PROXY_V2 + WHOLE, "X")

    def test_none_where_it_is_required(self) -> None:
        for make, hello in ((HttpSniffer, PLAIN), (TlsSniffer, WHOLE)):
            self.assertEqual(shown(Behind(make()).feed(hello)), "X")


class BalancedCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    def start(self, proxy: str = TRUSTED, host: str = "", rest: str = "") -> Server:
        target = f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n{host}\n'
        server = self.serve(proxy, target + rest)
        self.port = server.door.port_of("http")
        return server

    async def say(self, *parts: bytes, source: str = "127.0.0.1", pause: float = 0.0) -> bytes:
        """Send parts, with a moment between them, and give what comes back."""

        def go() -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), 10, (source, 0)) as sock:
                sock.settimeout(10)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                got = b""
                try:
                    for number, part in enumerate(parts):
                        if number:
                            time.sleep(pause)
                        sock.sendall(part)
                    while data := sock.recv(65536):
                        got += data
                except (ConnectionResetError, BrokenPipeError):
                    got += b"(reset)"
                return got

        found: bytes = await self.thread(go)
        return found


class ServerTests(BalancedCase):
    async def test_both_versions(self) -> None:
        server = self.start()
        for header in (v1(VISITOR), v2(VISITOR), v1(None), v2(None), v2(HostPort("2001:db8::1", 1))):
            got = await self.say(header + get("app.test"))
            self.assertIn(b"200 OK", got)
        self.assertNotIn(b"PROXY", b"".join(self.echo.got))
        self.assertEqual(len(self.echo.got), 5)
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual(server.traffic.balancers.waiting, {})

    async def test_in_pieces(self) -> None:
        self.start()
        for header in (v1(VISITOR), v2(VISITOR)):
            for at in (1, 5, 14, len(header) - 1):
                got = await self.say(header[:at], header[at:], get("app.test"), pause=0.03)
                self.assertIn(b"200 OK", got)
            self.assertIn(b"200 OK", await self.say(header + b"GET / HT", get("app.test")[8:], pause=0.03))

    async def test_required(self) -> None:
        server = self.start()
        for nonsense in (
            get("app.test"),
            b"PROXY TCP4 nonsense\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\0",
            b"\x16\x03\x01",
        ):
            self.assertEqual(await self.say(nonsense), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.BAD_PROXY_HEADER], 4)
        self.assertEqual(self.echo.got, [])

    async def test_from_elsewhere_it_is_nonsense(self) -> None:
        server = self.start('proxy_from = ["127.0.0.9"]')
        self.assertTrue((await self.say(v1(VISITOR) + get("app.test"))).startswith(b"HTTP/1.1 400 "))
        self.assertIn(b"200 OK", await self.say(get("app.test")))
        self.port = server.door.port_of("https")
        self.assertEqual(await self.say(v1(VISITOR) + get("app.test")), b"")
        self.assertEqual(await self.say(v2(VISITOR) + get("app.test")), b"")

    async def test_silence(self) -> None:
        server = self.start(f"{TRUSTED}\n[proxy.limits]\nsniff_time = 0.3")
        self.assertEqual(await self.say(v2(VISITOR)[:20]), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.SNIFF_TIME], 1)
        self.assertEqual(server.traffic.balancers.waiting, {})

    async def test_the_oldest_makes_room(self) -> None:
        server = self.start(f"{TRUSTED}\n[proxy.limits]\nsniffing = 2\nper_source_sniffing = 2")
        waiting = server.traffic.balancers.waiting
        first = self.thread(visit, self.port, b"PROXY")
        await self.until(lambda: len(waiting) == 1)
        others = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(2)]
        for sock in others:
            self.addCleanup(sock.close)
            sock.sendall(b"PROXY")
        self.assertEqual(await first, b"")
        await self.until(lambda: len(waiting) == 2)
        self.assertEqual(server.traffic.totals.ended[Reason.CROWDED_OUT], 1)

    async def test_bans_rules_and_places_are_the_visitors(self) -> None:
        server = self.start(
            f'{TRUSTED}\ndeny = ["198.51.100.0/24"]\n[proxy.limits]\nper_source_open = 1', 'deny = ["203.0.113.7"]'
        )
        server.bans.add(Banned("192.0.2.0/24", 1e12))
        server.bans.add(Banned("127.0.0.0/8", 1e12))
        ended = server.traffic.totals.ended
        for address, reason in (
            ("192.0.2.1", Reason.BANNED),
            ("::ffff:192.0.2.1", Reason.BANNED),
            ("198.51.100.1", Reason.DENIED),
            ("203.0.113.7", Reason.DENIED),
        ):
            before = ended[reason]
            self.assertEqual(await self.say(v2(HostPort(address, 1)) + get("app.test")), b"")
            self.assertEqual(ended[reason], before + 1, address)
        self.assertIn(b"200 OK", await self.say(v2(HostPort("203.0.113.8", 1)) + get("app.test")))
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(v2(HostPort("203.0.113.9", 1)) + b"GET /")
            await self.until(lambda: len(server.traffic.waiting) == 1)
            self.assertEqual(await self.say(v2(HostPort("203.0.113.8", 1)) + get("app.test")), b"")
            self.assertIn(b"200 OK", await self.say(v2(HostPort("203.0.114.8", 1)) + get("app.test")))
        self.assertEqual(ended[Reason.SOURCE_LIMIT], 1)

    async def test_the_log_holds_the_visitors_address(self) -> None:
        log = self.folder / "access.log"
        self.patch(pair, "BASE", pair.BASE.replace('access_log = ""', f'access_log = "{log}"'))
        self.start(rest='[log]\naddresses = "clear"\n')
        await self.say(v2(HostPort("203.0.113.8", 1)) + get("app.test"))
        await self.stop_server()
        (line,) = [json.loads(line) for line in Path(log).read_text().splitlines()]
        self.assertEqual(line["address"], "203.0.113.8")

    async def test_drain_and_stop(self) -> None:
        server = self.start()
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(b"PROXY TCP4 ")
            await self.until(lambda: len(server.traffic.balancers.waiting) == 1)
            await self.stop_server()
            sock.settimeout(5)
            self.assertEqual(await self.thread(sock.recv, 10), b"")
        self.assertEqual(server.traffic.balancers.waiting, {})

    async def test_who_is_trusted_changes_with_a_reload(self) -> None:
        server = self.start("")
        self.assertIn(b"200 OK", await self.say(get("app.test")))
        server.traffic.configure(evolve(server.config, proxy_from=("127.0.0.1",)))
        self.assertEqual(await self.say(get("app.test")), b"")
        self.assertIn(b"200 OK", await self.say(v1(VISITOR) + get("app.test")))


class Balancer:
    """Passes connections on, from one address, with a header that says something else."""

    def __init__(self, port: int, source: HostPort) -> None:
        self.passed = 0
        self._to = port
        self._source = source
        accepting = Accepting(self._talk)
        self.port, self.close = accepting.port, accepting.close

    def _talk(self, near: socket.socket) -> None:
        self.passed += 1
        far = socket.create_connection(("127.0.0.1", self._to))
        far.sendall(v2(self._source))
        pass_on(near, far, bytearray(), bytearray())


class OnePortTests(BalancedCase):
    async def test_agents_that_come_through_a_balancer_are_who_it_says(self) -> None:
        """Their control connections and dial-backs on the visitors' TLS port, under the server's own name."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        source = HostPort("2001:db8::5", 5)
        balancer = Balancer(port, source)
        self.addCleanup(balancer.close)
        base = pair.BASE.replace('https = ["tcp:0:interface=127.0.0.1"]', f'https = ["tcp:{port}:interface=127.0.0.1"]')
        self.patch(pair, "BASE", base)
        server = self.serve(
            f'name = "localhost"\ndata_public = "localhost:{balancer.port}"\nproxy_from = ["127.0.0.1"]\n'
            f"public_https = {balancer.port}"
        )
        secret, _ = self.secret()
        server.registry.put(row("app.test", secret.value))
        text = f'[agent]\nservers = ["wss://localhost:{balancer.port}?pin={server.identity().pin}"]\n'
        config = load_text(text, {}, {}, role="agent").config.agent
        agent = Agent(
            self.reactor,
            config,
            [published("app.test", secret, self.echo.port)],
            lambda what, _, word: self.told.append((what, word)),
        )
        agent.startService()
        self.addCleanup(agent.stopService)
        await self.until(lambda: ("subscribed", "app.test") in self.told)
        (seat,) = server.seats
        self.assertEqual(seat.address, source.host)
        self.port = server.door.port_of("http")
        self.assertIn(b"200 OK", await self.say(v1(VISITOR) + get("app.test")))
        self.assertGreaterEqual(balancer.passed, 2)
