"""An agent is no dialler for others: where a server may have it dial back, and where not."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import Fence, Networks, Scope, scope
from layer8.core.errors import Unavailable
from layer8.net.dial import Dialer, Via, Where
from layer8.proxy.dialback import DialBack
from layer8.proxy.uplink import ANY_PORT, Published
from layer8.proxy.wire import DataAddress
from tests.net.test_dial import DialCase
from tests.proxy.desk import row
from tests.proxy.pair import Echo, PairCase, get, visit

MACHINE = (
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "0.0.0.0",
    "::",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
    "::127.0.0.1",  # this and the next are old forms that some stack may still know
    "::ffff:0:127.0.0.1",
)
NETWORK = (
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "224.0.0.1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::1",
    "192.0.2.1",
    "2001:db8::1",
    "255.255.255.255",
    "64:ff9b:1::7f00:1",  # a network's own NAT64 (RFC 8215)
    "fec0::1",
    "::10.0.0.1",
    "4000::1",
)
INTERNET = ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")


class ScopeTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        for wanted, addresses in ((Scope.MACHINE, MACHINE), (Scope.NETWORK, NETWORK), (Scope.INTERNET, INTERNET)):
            for address in addresses:
                self.assertIs(scope(address), wanted, address)
        for text in ("", "a.test", "1.2.3", "localhost", "1.2.3.4:80", "[::1]"):
            self.assertIsNone(scope(text), text)

    @given(st.ip_addresses())
    def test_only_the_internet_is_the_internet(self, address: Any) -> None:
        if scope(str(address)) is Scope.INTERNET:
            self.assertFalse(address.is_private or address.is_loopback or address.is_link_local or address.is_multicast)

    def test_fence(self) -> None:
        fence = Fence(Scope.INTERNET, Networks.parse(["10.0.0.0/8"]))
        self.assertTrue(fence.admits("8.8.8.8"))
        self.assertTrue(fence.admits("10.1.2.3"))
        for address in ("192.168.1.1", "127.0.0.1", "a.test", ""):
            self.assertFalse(fence.admits(address), address)


class AnnouncedTests(SynchronousTestCase):
    def named(self, dialback: DialBack, *hosts: str) -> list[str]:
        """Which of these hosts a server may name."""
        dialback.announced(tuple(DataAddress(host, 5000) for host in hosts))
        return [known.host for known in dialback.data]

    def test_by_where_the_server_was_reached(self) -> None:
        every = ("127.0.0.1", "169.254.169.254", "10.0.0.1", "fd00::1", "8.8.8.8", "node.test", "localhost", "")
        dialback = DialBack("proxy.test", None)
        for reached, wanted in (
            ("9.9.9.9", ["8.8.8.8", "node.test", ""]),
            ("10.0.0.9", ["169.254.169.254", "10.0.0.1", "fd00::1", "8.8.8.8", "node.test", ""]),
            ("127.0.0.1", list(every)),
            (None, ["8.8.8.8", "node.test", ""]),
        ):
            dialback.reached(reached)
            self.assertEqual(self.named(dialback, *every), wanted, reached)

    def test_before_it_is_known_the_url_counts(self) -> None:
        self.assertEqual(self.named(DialBack("proxy.test", None), "10.0.0.1"), [])
        self.assertEqual(self.named(DialBack("10.0.0.9", None), "10.0.0.1", "127.0.0.1"), ["10.0.0.1"])

    def test_networks_of_the_configuration(self) -> None:
        dialback = DialBack("9.9.9.9", None, Networks.parse(["10.0.0.0/8"]))
        self.assertEqual(self.named(dialback, "10.0.0.1", "192.168.0.1", "127.0.0.1"), ["10.0.0.1"])
        fence = dialback.where(DataAddress("node.test", 5000), 5000).fence
        assert fence is not None
        self.assertTrue(fence.admits("10.0.0.1"))
        self.assertFalse(fence.admits("127.0.0.1"))

    def test_ports(self) -> None:
        """Any port of its own host, since ports are swapped; of others what was announced and nothing else."""
        dialback = DialBack("9.9.9.9", None)
        dialback.announced((DataAddress("", 5000), DataAddress("8.8.8.8", 5001, True)))
        own, other = dialback.data
        for host, port, wanted in (
            (None, 5000, own),
            (None, 6000, own),
            ("", 6000, own),
            (None, 5001, other),
            ("8.8.8.8", 5001, other),
            ("8.8.8.8", 5000, None),
            ("8.8.8.8", 22, None),
            ("8.8.4.4", 5001, None),
            (7, 5001, None),
            (["8.8.8.8"], 5001, None),
        ):
            self.assertIs(dialback.find(host, port), wanted, (host, port))
        dialback.announced((DataAddress("8.8.8.8", 5001),))
        self.assertIsNone(dialback.find(None, 22))
        self.assertEqual(dialback.announced((DataAddress("10.0.0.1", 1), DataAddress("", 2))), 1)

    def test_the_servers_own_name_is_fenced_too(self) -> None:
        """Its zone could lead it elsewhere between two look-ups."""
        dialback = DialBack("proxy.test", None)
        dialback.reached("9.9.9.9")
        dialback.announced((DataAddress("", 5000),))
        where = dialback.where(dialback.data[0], 5000)
        assert where.fence is not None
        self.assertFalse(where.fence.admits("192.168.1.1"))


class DialTests(DialCase):
    FENCE = Fence(Scope.INTERNET, Networks(()))

    async def test_an_address(self) -> None:
        port = self.listener().getsockname()[1]
        self.dialer.dial(Where("127.0.0.1", port, fence=self.FENCE), self.done)
        self.assertIsInstance(await self.fault(), Unavailable)

    async def test_a_name_that_leads_to_this_machine(self) -> None:
        port = self.listener().getsockname()[1]
        for _ in range(2):  # the second time it is known already
            self.ended.clear()
            self.dialer.dial(Where("evil.test", port, fence=self.FENCE), self.done)
            if self.named.receivers:
                self.named.answer("127.0.0.1", "::1", "10.0.0.1")
            self.assertIsInstance(await self.fault(), Unavailable)
        self.ended.clear()
        self.dialer.dial(Where("evil.test", port), self.done)
        self.pump.close_fd(await self.there())

    async def test_what_may_be_dialled_is(self) -> None:
        port = self.listener().getsockname()[1]
        fence = Fence(Scope.INTERNET, Networks.parse(["127.0.0.1"]))
        self.dialer.dial(Where("node.test", port, fence=fence), self.done)
        self.named.answer("::1", "127.0.0.1")
        self.pump.close_fd(await self.there())

    async def test_through_a_proxy(self) -> None:
        sock = self.listener()
        dialer = Dialer(self.named, self.pump, Via("connect", Where("127.0.0.1", sock.getsockname()[1])))
        dialer.dial(Where("10.0.0.1", 80, fence=self.FENCE), self.done)
        self.assertIsInstance(await self.fault(), Unavailable)
        sock.settimeout(0.05)
        self.assertRaises(TimeoutError, sock.accept)


class ServerTests(PairCase):
    """A server that goes bad, against a real agent."""

    async def test_it_cannot_make_its_agent_dial_this_machine(self) -> None:
        victim = Echo()
        self.addCleanup(victim.close)
        server = self.serve()
        secret, _ = self.secret()

        server.registry.put(row("app.test", secret.value))
        published = Published("app.test", secret.key, {ANY_PORT: Where("127.0.0.1", victim.port)}, pool=0)
        agent = await self.publish(server, published)
        (uplink,) = agent.uplinks
        uplink.dialback.reached("9.9.9.9")  # type: ignore[union-attr]  # as if it were on the internet
        server.door.addresses = lambda: (DataAddress("127.0.0.1", victim.port),)  # type: ignore[method-assign]
        server.door.announce()
        await self.until(lambda: ("fenced", "") in self.told)
        (seat,) = server.seats
        for host, port in ((None, victim.port), ("127.0.0.1", victim.port), ("localhost", victim.port)):
            before = agent.carrier.totals.rejected
            call: dict[str, object] = {
                "secret": "ab" * 32, "port": 80, "serverListeningPort": port, "tls": False, "conn": 7,
                "host": "app.test", "scheme": "http", "expires_ms": 5000,
            }  # fmt: skip
            if host is not None:
                call["serverListeningHost"] = host
            seat.voice.notify("proxy.connection", {"subscription": seat.number, "result": call})
            ignored = server.traffic.totals.rejects_ignored
            await self.until(lambda ignored=ignored: server.traffic.totals.rejects_ignored > ignored)  # type: ignore[misc]
            self.assertEqual(agent.carrier.totals.rejected, before, "nothing was dialled at all")
        waiting: Deferred[None] = Deferred()
        self.reactor.callLater(0.1, waiting.callback, None)
        await waiting
        self.assertEqual(victim.got, [])

    async def test_a_good_one_is_not_hindered(self) -> None:
        echo = Echo()
        self.addCleanup(echo.close)
        server = self.serve()
        secret, _ = self.secret()

        server.registry.put(row("app.test", secret.value))
        await self.publish(server, Published("app.test", secret.key, {ANY_PORT: Where("127.0.0.1", echo.port)}, pool=0))
        self.assertIn(b"200 OK", await self.thread(visit, server.door.port_of("http"), get("app.test")))
        self.assertNotIn(("fenced", ""), self.told)
