"""What an agent does with what a server says: nonsense is ignored and counted, and it dials for nobody else."""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import HostPort
from layer8.core.errors import ConfigError, Unavailable
from layer8.net.dial import Where
from layer8.proxy.dialback import CONTEXTS
from layer8.proxy.pp import v2
from layer8.proxy.uplink import ANY_PORT, Address, Errand, Published, Uplink, persist
from layer8.proxy.wire import DataAddress

KEYHASH = "A" * 43


class Carrier:
    """Remembers what it was asked to carry."""

    pump = None

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def carry(self, *asked: Any) -> None:
        self.asked.append(asked)


class Client:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def notify(self, method: str, params: dict[str, Any]) -> bool:
        self.said.append((method, params))
        return True


class CalledTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.carrier = Carrier()
        carrier: Any = self.carrier
        outward: Any = None
        errand = Errand(None, carrier, outward, {}, (1, 2), lambda what, link, word: None)
        self.uplink = Uplink(Address.parse("ws://127.0.0.1:9081"), errand)
        self.client = Client()
        speaker: Any = self.client
        self.uplink.client = speaker
        self.uplink.subscriptions[1] = Published(
            "*.app.test", b"k" * 32, {ANY_PORT: Where("127.0.0.1", 80), 443: Where("127.0.0.1", 443)}
        )
        self.uplink.dialback.data = (DataAddress("", 5000), DataAddress("far.test", 5001, True, KEYHASH))

    def call(self, number: object = 1, **more: object) -> None:
        result: dict[str, object] = {
            "secret": "ab" * 32,
            "port": 80,
            "serverListeningPort": 5000,
            "tls": False,
            "conn": 7,
            "host": "one.app.test",
            "scheme": "http",
        }
        result.update(more)
        self.uplink._notified("proxy.connection", {"subscription": number, "result": result})

    def test_right(self) -> None:
        self.call()
        ((_, number, conn, host, secret, target, server, secured, intro),) = self.carrier.asked
        self.assertEqual((number, conn, host, secret), (1, 7, "one.app.test", bytes.fromhex("ab" * 32)))
        self.assertEqual((target, server, secured), (Where("127.0.0.1", 80), Where("127.0.0.1", 5000), None))
        self.assertEqual(intro, b"")

    def introduced(self, **more: object) -> bytes:
        """What the target hears first."""
        self.call(**more)
        intro = self.carrier.asked.pop()[-1]
        assert isinstance(intro, bytes)
        return intro

    def test_the_target_hears_who_comes_if_the_server_says(self) -> None:
        published = self.uplink.subscriptions[1]
        self.assertEqual(self.introduced(remote="192.0.2.1:40000"), b"")
        published.proxy_protocol = "v1"
        self.assertEqual(self.introduced(), b"PROXY UNKNOWN\r\n")
        self.assertEqual(self.introduced(remote="192.0.2.1:40000"), b"PROXY TCP4 192.0.2.1 0.0.0.0 40000 80\r\n")
        self.assertEqual(self.introduced(remote="[2001:DB8::1]:40000"), b"PROXY TCP6 2001:db8::1 :: 40000 80\r\n")
        self.assertEqual(self.introduced(remote="[2001:db8::1]:0"), b"PROXY TCP6 2001:db8::1 :: 0 80\r\n")
        published.proxy_protocol = "v2"
        self.assertEqual(self.introduced(), v2(None))
        self.assertEqual(self.introduced(remote="192.0.2.1:40000"), v2(HostPort("192.0.2.1", 40000), HostPort("", 80)))

    def test_nonsense(self) -> None:
        cases: list[dict[str, object]] = [
            {"port": [80]},
            {"port": {}},
            {"port": True},
            {"port": 0},
            {"port": -1},
            {"port": 65536},
            {"port": "80"},
            {"serverListeningPort": 0},
            {"serverListeningPort": 70000},
            {"serverListeningPort": [5000]},
            {"secret": "ab"},
            {"secret": 7},
            {"secret": "zz" * 32},
            {"conn": "7"},
            {"conn": None},
            {"scheme": []},
            {"scheme": "ftp"},
            {"host": None},
            {"host": "other.test"},
            {"host": "one.app.test\n\x1b[2J"},
            {"remote": ""},
            {"remote": 7},
            {"remote": ["192.0.2.1:1"]},
            {"remote": "192.0.2.1"},
            {"remote": "example.com:80"},
            {"remote": "192.0.2.1:80 1.1.1.1 1 1"},
            {"remote": "[2001:db8::1%1]:80\r\n"},
            {"number": 2},
            {"number": [1]},
            {"number": None},
        ]
        for case in cases:
            self.call(**case)
        for params in ({}, {"subscription": 1}, {"subscription": 1, "result": []}, {"subscription": 1, "result": "x"}):
            self.uplink._notified("proxy.connection", params)
        self.assertEqual(self.carrier.asked, [])
        self.assertEqual(self.uplink.calls_ignored, len(cases) + 4)
        self.assertEqual(self.client.said, [])

    def test_a_host_that_was_not_announced(self) -> None:
        """An agent is no dialler for others."""
        self.call(serverListeningHost="10.0.0.1")
        self.call(serverListeningHost=["far.test"])
        self.assertEqual(self.carrier.asked, [])
        self.assertEqual([params["code"] for _, params in self.client.said], [-20012, -20012])

    def test_no_target_for_the_port(self) -> None:
        self.call(port=8443, scheme="https")
        self.assertEqual(self.carrier.asked, [])
        self.assertEqual(self.client.said, [("proxy.reject", {"subscription": 1, "conn": 7, "code": -20008})])

    def test_a_pin_that_is_none(self) -> None:
        self.uplink.dialback.data = (
            DataAddress("far.test", 5001, True, "nonsense"),
            DataAddress("\xe4.test", 5002, True),
        )
        for port, host in ((5001, "far.test"), (5002, "\xe4.test")):
            self.call(serverListeningHost=host, serverListeningPort=port, tls=True)
        self.assertEqual(self.carrier.asked, [])
        self.assertEqual([params["code"] for _, params in self.client.said], [-20012, -20012])

    def test_contexts_are_bounded(self) -> None:
        for number in range(CONTEXTS + 5):
            self.uplink.dialback.data = (DataAddress(f"n{number}.test", 5001, True, KEYHASH),)
            self.call(serverListeningPort=5001, tls=True)
        self.assertEqual(len(self.carrier.asked), CONTEXTS + 5)
        self.assertLessEqual(len(self.uplink.dialback.contexts), CONTEXTS)


class AddressTests(SynchronousTestCase):
    def test_texts(self) -> None:
        for text in ("ws://h:99999", "ws://h:x", "http://h", "ws://", "wss://h?pin=short"):
            with self.assertRaises(ConfigError):
                Address.parse(text)

    def test_its_own_ports(self) -> None:
        address = Address.parse("ws://127.0.0.1:9081")
        for host, port, same in (
            ("127.0.0.1", 9081, True),
            ("localhost", 8080, True),
            ("::1", 8080, True),
            ("127.0.0.1", 8081, False),
            ("192.0.2.1", 8080, False),
        ):
            self.assertEqual(address.is_at(Where(host, port), (8080,)), same)


class PersistTests(SynchronousTestCase):
    def test_never_gives_up(self) -> None:
        """Not even after an error of our own."""
        clock = Clock()
        errors: list[Exception] = [Unavailable("no"), ValueError("a defect"), Unavailable("no")]
        lost: list[str] = []
        there: Deferred[None] = Deferred()

        async def once() -> None:
            if errors:
                raise errors.pop(0)
            await there

        running = Deferred.fromCoroutine(persist(clock, once, (1.0, 4.0), lost.append))
        clock.pump([2.0, 3.0, 6.0])
        self.assertEqual(errors, [])
        self.assertEqual(len(lost), 3)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertNoResult(running)
        running.cancel()
        self.failureResultOf(running, CancelledError)
