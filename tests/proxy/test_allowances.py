"""What hosts may use: connections per second and bytes per second, kept by a real server."""

import contextlib
import resource
import socket
import threading
import time
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.proxy import ProxyLimits
from layer8.proxy.allowances import Allowances
from layer8.proxy.bus import Gone, Put
from layer8.proxy.orders import Policy, Update
from layer8.proxy.registration import Ownership
from layer8.proxy.service import Server
from layer8.proxy.wire import Reason
from tests.accepting import Accepting
from tests.proxy.desk import row
from tests.proxy.pair import Echo, PairCase, get, published, visit


class Source:
    """A web server with no end of bytes, which sends as fast as it may; counts what it has sent, by connection."""

    def __init__(self) -> None:
        self.sent: dict[socket.socket, int] = {}
        accepting = Accepting(self._talk)
        self.port, self.close = accepting.port, accepting.close

    def _talk(self, sock: socket.socket) -> None:
        self.sent[sock] = 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.recv(65536)
        while True:
            self.sent[sock] += sock.send(bytes(65536))


class Download(threading.Thread):
    """A visitor that reads what comes until it is stopped."""

    def __init__(self, port: int, host: str) -> None:
        super().__init__(daemon=True)
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.sock.settimeout(10)
        self.sock.sendall(get(host))
        self.got = 0
        self.start()

    def run(self) -> None:
        try:
            while data := self.sock.recv(65536):
                self.got += len(data)
        except OSError:
            return

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.join(5)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class UnitTests(SynchronousTestCase):
    def test_a_registration_or_the_server_says_how_much(self) -> None:
        allowances = Allowances(ProxyLimits(host_rate=2, bandwidth=1000))
        free, own = row("free.test"), row("own.test", policy=Policy(rate=1, bandwidth=5000))
        self.assertEqual([allowances.admits(free, 0.0) for _ in range(3)], [True, True, False])
        self.assertEqual([allowances.admits(own, 0.0) for _ in range(3)], [True, False, False])
        meter, other = allowances.meter(free, 0.0), allowances.meter(own, 0.0)
        assert meter is not None
        assert other is not None
        self.assertEqual((meter.rate, other.rate), (1000, 5000))
        self.assertIs(allowances.meter(free, 1.0), meter, "all connections of a host share one")

    def test_none_without_a_limit(self) -> None:
        allowances = Allowances(ProxyLimits())
        self.assertTrue(all(allowances.admits(row(), 0.0) for _ in range(1000)))
        self.assertIsNone(allowances.meter(row(), 0.0))
        self.assertEqual(allowances.hosts, set())

    def test_changes(self) -> None:
        allowances = Allowances(ProxyLimits())
        limited = row(policy=Policy(bandwidth=1000))
        meter = allowances.meter(limited, 0.0)
        assert meter is not None
        allowances.changed(evolve(limited, policy=Policy(bandwidth=2000)), 0.0)
        self.assertEqual(meter.rate, 2000)
        allowances.changed(evolve(limited, policy=Policy()), 0.0)
        self.assertGreater(meter.rate, 1e12, "what was joined under the limit is free")
        self.assertIsNone(allowances.meter(evolve(limited, policy=Policy()), 0.0))
        allowances.changed(row("other.test", policy=Policy(bandwidth=1)), 0.0)
        self.assertEqual(allowances.hosts, {limited.host})
        allowances.forget(limited.host)
        allowances.forget(limited.host)
        self.assertEqual(allowances.hosts, set())


class RateTests(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    def host(self, more: str) -> str:
        return f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n{more}\n'

    async def many(self, server: Server, host: str, count: int) -> int:
        """Visit a host so many times at once; how many were served."""
        port = server.door.port_of("http")
        return sum([b"200 OK" in await self.thread(visit, port, get(host)) for _ in range(count)])

    async def test_five_a_second(self) -> None:
        server = self.serve("", self.host("rate = 5"))
        began = time.monotonic()
        served = await self.many(server, "app.test", 40)
        took = time.monotonic() - began
        self.assertGreaterEqual(served, 5)
        self.assertLessEqual(served, 5 + 5 * took + 1)
        self.assertEqual(server.traffic.totals.ended[Reason.HOST_LIMIT], 40 - served)
        self.assertEqual(len(self.echo.got), served)

    async def test_others_are_not_hindered(self) -> None:
        other = self.host("").replace("app.test", "other.test")
        server = self.serve("[proxy.limits]\nhost_rate = 0.01", self.host("rate = 1000") + other)
        self.assertEqual(await self.many(server, "app.test", 20), 20)
        self.assertEqual(await self.many(server, "other.test", 20), 1)
        self.assertEqual(await self.many(server, "app.test", 20), 20)

    async def test_told_by_option(self) -> None:
        server = self.serve('unknown = "answer"', self.host("rate = 0.01"))
        await self.many(server, "app.test", 1)
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.startswith(b"HTTP/1.1 503 "))

    async def test_of_agents(self) -> None:
        server = self.serve()
        secret, _ = self.secret()
        server.registry.put(row("app.test", secret.value, policy=Policy(rate=0.01)))
        await self.publish(server, published("app.test", secret, self.echo.port))
        self.assertEqual(await self.many(server, "app.test", 5), 1)


class BandwidthTests(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.endless = Source()
        self.addCleanup(self.endless.close)
        self.downloads: list[Download] = []

    async def tearDown(self) -> None:  # type: ignore[override]
        for download in self.downloads:
            download.stop()
        await self.stop_server()

    def near(self, number: float, wanted: float, margin: float) -> None:
        self.assertLess(abs(number - wanted), margin, f"{number:.0f}, not {wanted:.0f}")

    def begin(self, server: Server, host: str = "app.test") -> Download:
        download = Download(server.door.port_of("http"), host)
        self.downloads.append(download)
        return download

    async def sleep(self, seconds: float) -> None:
        await self.thread(time.sleep, seconds)

    def start(self, more: str, proxy: str = "") -> Server:
        return self.serve(
            proxy, f'[[proxy.host]]\nhost = "app.test"\ntarget = "tcp:127.0.0.1:{self.endless.port}"\n{more}'
        )

    async def measure(self, seconds: float, *downloads: Download) -> list[float]:
        """Bytes per second of each, once what was saved up is used."""
        before, began = [one.got for one in downloads], time.monotonic()
        await self.sleep(seconds)
        took = time.monotonic() - began
        return [(one.got - had) / took for one, had in zip(downloads, before, strict=True)]

    async def test_two_downloads_share_it(self) -> None:
        server = self.start("bandwidth = 200_000")
        one, two = self.begin(server), self.begin(server)
        await self.sleep(1.0)
        held = resident()
        rates = await self.measure(4.0, one, two)
        self.near(sum(rates), 200_000, 30_000)
        for rate in rates:
            self.near(rate, 100_000, 15_000)
        self.assertLess(resident() - held, 4 << 20, "nothing is queued to be slow")
        for visit_ in server.traffic.visits:
            assert visit_.link is not None
            for flow in (visit_.link.up, visit_.link.down):
                self.assertLessEqual(len(flow.pending or b"") + flow.held, 65536)
        # The kernel's buffers on the way hold some; nobody else does.
        self.assertLess(sum(self.endless.sent.values()) - one.got - two.got, 8 << 20)

    async def test_what_is_spliced_too(self) -> None:
        server = self.start("bandwidth = 20_000_000")
        one = self.begin(server)
        await self.sleep(0.5)
        (rate,) = await self.measure(2.0, one)
        # Its own reader and writer share a busy machine with it, so it may well be less.
        self.assertLess(rate, 23e6)
        self.assertGreater(rate, 4e6)
        if server.pump.splices:
            self.assertGreater(server.pump.spliced, 1_000_000)

    async def test_a_new_limit_holds_for_what_is_joined(self) -> None:
        server = self.serve()
        secret, _ = self.secret()
        await server.ledger.bus.register(row("app.test", secret.value, policy=Policy(bandwidth=400_000)))
        await self.publish(server, published("app.test", secret, self.endless.port))
        one = self.begin(server)
        await self.sleep(0.8)
        (rate,) = await self.measure(1.5, one)
        self.near(rate, 400_000, 60_000)
        await server.ledger.update(Update("app.test", policy=Policy(bandwidth=100_000)), None)
        await self.sleep(0.8)
        (rate,) = await self.measure(2.0, one)
        self.near(rate, 100_000, 20_000)

    async def test_both_ways_together(self) -> None:
        server = self.start('bandwidth = 200_000\nmode = "raw"')
        one = self.begin(server)
        up = Download(server.door.port_of("http"), "app.test")
        self.downloads.append(up)
        await self.sleep(0.5)
        pushing = threading.Event()

        def push() -> None:
            up.sock.settimeout(0.2)
            while not pushing.is_set():
                try:
                    up.sock.send(bytes(65536))
                except TimeoutError:
                    continue
                except OSError:
                    return

        pusher = threading.Thread(target=push, daemon=True)
        pusher.start()
        try:
            await self.sleep(1.0)
            links = [visit_.link for visit_ in server.traffic.visits if visit_.link is not None]
            before = sum(link.bytes_up + link.bytes_down for link in links)
            began = time.monotonic()
            await self.sleep(2.0)
            moved = sum(link.bytes_up + link.bytes_down for link in links) - before
            self.near(moved / (time.monotonic() - began), 200_000, 40_000)
        finally:
            pushing.set()
            await self.thread(pusher.join, 5)
        self.assertGreater(one.got, 0)


class TallyTests(PairCase):
    async def test_who_has_the_name_next_begins_at_nothing(self) -> None:
        echo = Echo()
        self.addCleanup(echo.close)
        server = self.serve()
        secret, _ = self.secret()
        old = row("app.test", secret.value, policy=Policy(rate=100, bandwidth=10**9))
        await server.ledger.bus.register(old)
        await self.publish(server, published("app.test", secret, echo.port))
        await self.thread(visit, server.door.port_of("http"), get("app.test"))
        await self.until(lambda: not server.traffic.visits)
        await server.carrying.write()
        self.assertGreater(server.carrying.of("app.test")[0], 0)
        self.assertEqual(server.traffic.allowances.hosts, {"app.test"})
        await server.ledger.unregister("app.test", None)
        self.assertEqual((server.traffic.tallies, server.traffic.allowances.hosts), ({}, set()))
        self.assertEqual(server.carrying.of("app.test"), (0, 0))
        await server.carrying.write()
        self.assertEqual(dict(server.carrying._before), {})

    async def test_a_claim_that_is_gone_takes_nothing_along(self) -> None:
        server = self.serve()
        standing = row("app.test")
        server.registry.put(standing)
        server.traffic.accounts.tally("app.test").bytes_in = 7
        server.carrying.changed(Gone(evolve(standing, owner="eve", state=Ownership.PENDING)))
        server.carrying.changed(Put(standing))
        self.assertEqual(server.carrying.of("app.test"), (7, 0))

    async def test_hosts_of_the_file_keep_their_bytes(self) -> None:
        server = self.serve()
        server.traffic.accounts.tally("gone.test").bytes_in = 7
        busy = server.traffic.accounts.tally("busy.test")
        busy.open = 1
        await server.carrying.write()
        self.assertEqual(set(server.traffic.tallies), {"busy.test"})
        self.assertEqual(server.carrying.of("gone.test"), (7, 0))
        busy.open = 0
