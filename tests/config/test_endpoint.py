from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import endpoints
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from layer8.config import endpoint
from layer8.core.errors import ConfigError

GOOD_SERVERS = [
    "tcp:8080:interface=127.0.0.1",
    "tcp:0",
    "tcp:port=80:backlog=100",
    r"tcp:80:interface=\:\:1",
    "tcp6:80",
    "unix:/run/x.sock:mode=660",
    r"unix:/run/with\:colon.sock",
    "systemd:domain=INET:name=http",
    "systemd:domain=INET6:index=0",
    "tls:9081:interface=0.0.0.0",
]
BAD_SERVERS = {
    "": "begin with one of",
    "bla": "begin with one of",
    "TCP:80": "begin with one of",
    "tcp": "needs port",
    "tcp:": "needs port",
    "tcp:http": "number from 0 to 65535",
    "tcp:65536": "number from 0 to 65535",
    "tcp:-1": "number from 0 to 65535",
    "tcp:²": "number from 0 to 65535",
    "tcp:80:81": "no place for '81'",
    "tcp:80:127.0.0.1": "no place for",
    "tcp:80:interfce=127.0.0.1": "knows no 'interfce'",
    "tcp:80:port=81": "given twice",
    "tcp:80\\": "backslash",
    "tcp:80:interface=a\0b": "NUL",
    "unix:": "needs address",
    "unix:/x:mode=888": "octal",
    "unix:/" + "x" * 107: "107 bytes",
    "unix:/" + "ü" * 54: "107 bytes",
    "systemd:name=http": "domain=",
    "systemd:domain=INET": "either name=",
    "systemd:domain=INET:name=a:index=1": "either name=",
    "tcp:80:backlog=-1": "backlog",
}


GOOD_WAYS = {
    "tls:shop.example:443": "tls",
    "tls:192.0.2.1:443:name=shop.example:ca=/etc/ca.pem": "tls",
    "unix:/run/shop.sock": "unix",
    "tcp:127.0.0.1:5002": "tcp",
    "tor:shop.onion:80": "tor",
    "tor:shop.example:443:tls=shop.example:proxy=127.0.0.1:9150": "tor",
    "socks5:shop.l8.alt:80:proxy=127.0.0.1:1080": "socks5",
    r"socks5:shop.l8.alt:80:proxy=127.0.0.1\:1080:timeout=9": "socks5",
}
BAD_WAYS = {
    "": "begin with one of",
    "quic:shop.example:443": "begin with one of",
    "tcp:shop.example:80": "plain text beyond this machine",
    "tor:shop.example:80": "plain text behind the proxy",
    "socks5:shop.l8.alt:80": "needs proxy=",
    "socks5:shop.l8.alt:80:proxy=192.0.2.1:1080": "on this machine",
    "socks5:shop.l8.alt:80:proxy=127.0.0.1:0": "on this machine",
    "socks5:shop.l8.alt:80:proxy=127.0.0.1": "on this machine",
    "tls:shop.example:443:tls=a": "knows no 'tls'",
    "tls:shop.example": "needs host and port",
    "unix:/" + "x" * 107: "107 bytes",
}


class WayTests(SynchronousTestCase):
    def test_good(self) -> None:
        for text, kind in GOOD_WAYS.items():
            self.assertEqual(endpoint.way(text).kind, kind)
        found = endpoint.way("socks5:shop.l8.alt:80:proxy=127.0.0.1:1080")
        self.assertEqual((found.words["host"], found.port, found.words["proxy"]), ("shop.l8.alt", 80, "127.0.0.1:1080"))

    def test_bad(self) -> None:
        for text, reason in BAD_WAYS.items():
            with self.subTest(text=text):
                self.assertIn(reason, str(self.assertRaises(ConfigError, endpoint.way, text)))


class ServerTests(SynchronousTestCase):
    def test_good(self) -> None:
        for text in GOOD_SERVERS:
            endpoint.server(text)

    def test_bad(self) -> None:
        for text, reason in BAD_SERVERS.items():
            with self.subTest(text=text):
                error = self.assertRaises(ConfigError, endpoint.server, text)
                self.assertIn(reason, str(error))

    def test_longest_socket_path(self) -> None:
        endpoint.server("unix:/" + "x" * 106)

    def test_twisted_takes_what_we_take(self) -> None:
        reactor = MemoryReactorClock()
        for text in GOOD_SERVERS:
            if not text.startswith("systemd"):
                endpoints.serverFromString(reactor, endpoint.server(text).twisted())

    def test_tls_is_tcp_underneath(self) -> None:
        found = endpoint.server("tls:9081:interface=::1".replace("::1", r"\:\:1"))
        self.assertEqual(found.twisted(), r"tcp:port=9081:interface=\:\:1")
        self.assertTrue(found.tls)
        self.assertEqual((found.port, found.interface), (9081, "::1"))

    def test_who_can_reach_it(self) -> None:
        for text, loopback in [
            ("tcp:80", False),
            ("tcp:80:interface=127.0.0.1", True),
            ("tcp:80:interface=127.9.9.9", True),
            (r"tcp:80:interface=\:\:1", True),
            ("tcp:80:interface=localhost", True),
            ("tcp:80:interface=127.evil.example", False),
            ("tcp:80:interface=0.0.0.0", False),
            (r"tcp:80:interface=\:\:", False),
            ("unix:/run/x", True),
            ("systemd:domain=INET:name=x", False),
        ]:
            self.assertEqual(endpoint.server(text).loopback, loopback, text)

    def test_tls_where_others_can_reach_it(self) -> None:
        self.assertTrue(endpoint.server("systemd:domain=INET:name=x").tls)
        self.assertFalse(endpoint.server("tcp:80").tls)


class ClientTests(SynchronousTestCase):
    def test_good(self) -> None:
        reactor = MemoryReactorClock()
        for text in ["tcp:127.0.0.1:80", "tcp:host=example.org:port=443", r"tcp:\:\:1:80", "unix:/run/x"]:
            endpoints.clientFromString(reactor, endpoint.client(text).twisted())

    def test_bad(self) -> None:
        for text in ["tcp:127.0.0.1", "tcp:127.0.0.1:0", "tcp:::1:80", "tls:a:1", "tcp::80"]:
            self.assertRaises(ConfigError, endpoint.client, text)


WORDS = st.text(alphabet="ab:=\\ ü/", max_size=12)


class QuotingTests(SynchronousTestCase):
    @given(st.text(alphabet="tcp:=\\ab. /", max_size=40))
    def test_splits_as_twisted_does(self, text: str) -> None:
        try:
            ours = endpoint.split(text)
        except ConfigError:
            # Twisted leaks its generator's StopIteration here.
            self.assertRaises(RuntimeError, endpoints._parse, text)
            return
        args, named = endpoints._parse(text)
        self.assertEqual((args, named), ours)

    @given(st.text(max_size=40))
    def test_reads_what_twisted_quotes(self, text: str) -> None:
        # Twisted leaves "=" alone, which makes a named word of it; ours is quoted.
        if "=" not in text:
            self.assertEqual(endpoint.split(endpoints.quoteStringArgument(text)), ([text], {}))
        self.assertEqual(endpoints._parse(endpoint.quote(text)), ([text], {}))

    @given(st.lists(WORDS, min_size=1, max_size=4))
    def test_round_trip(self, words: list[str]) -> None:
        self.assertEqual(endpoint.split(":".join(map(endpoint.quote, words))), (words, {}))

    @given(st.text(max_size=60))
    def test_any_noise(self, text: str) -> None:
        for read in (endpoint.server, endpoint.client):
            try:
                read(text)
            except ConfigError as error:
                self.assertNotIn("\n", str(error).replace(repr(text), ""))
