"""The path syntax, with the strings of the proposal as they stand there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.relay.route import (
    MAX_HOPS,
    At,
    Hidden,
    Hop,
    Host,
    Internet,
    Named,
    Port,
    Rand,
    Resource,
    Route,
    Target,
    Tunnel,
    Via,
    parse_route,
    parse_tunnel,
    parse_way,
)

HERE = "tcp:{}:interface=127.0.0.1"
ID = "a" * 51 + "q"
ADDRESS = "b" * 56 + ".l8.alt"

TUNNELS: tuple[tuple[str, str, tuple[Hop, ...], Target], ...] = (
    (
        "localhost:1000>peer1>peer2:8080>peer3>google.com:80",
        HERE.format(1000),
        (Named("peer1"), At("peer2", 8080), Named("peer3")),
        Host("google.com", 80),
    ),
    ("2222>[hash]>192.168.0.2:22", HERE.format(2222), (Named("hash"),), Host("192.168.0.2", 22)),
    ("8080>rand>rand>rand>rand>rand>internet", HERE.format(8080), (Rand(),) * 5, Internet()),
    ("1000>A>B>C>host:80", HERE.format(1000), (Named("A"), Named("B"), Named("C")), Host("host", 80)),
    ("1000>rand>*>example.com:80", HERE.format(1000), (Rand(), Rand()), Host("example.com", 80)),
    (f"2222>{ADDRESS}>22", HERE.format(2222), (Hidden(ADDRESS),), Port(22)),
    ("80>blog.l8.alt>80", HERE.format(80), (Hidden("blog.l8.alt"),), Port(80)),
    (f"0>via:2>{ID}>22", HERE.format(0), (Via(2), Named(ID)), Port(22)),
    (
        "1000>192.0.2.1>[2001:db8::1]>x:1",
        HERE.format(1000),
        (At("192.0.2.1", 9000), At("2001:db8::1", 9000)),
        Host("x", 1),
    ),
    ("1000>[2001:db8::1]:9001>x:1", HERE.format(1000), (At("2001:db8::1", 9001),), Host("x", 1)),
    ("1000>example.com:80", HERE.format(1000), (), Host("example.com", 80)),
    ("[::1]:1000>rand>[::2]:80", r"tcp6:1000:interface=\:\:1", (Rand(),), Host("::2", 80)),
    (f"127.0.0.42:80>{'b' * 56}>80", "tcp:80:interface=127.0.0.42", (Hidden(ADDRESS),), Port(80)),
    ("unix:/run/x>" + "0f" * 20, "unix:/run/x", (), Resource(bytes([15]) * 20)),
    (" 1000 > rand > x:1 ", HERE.format(1000), (Rand(),), Host("x", 1)),
)

WRONG = (
    ("", "empty"),
    ("1000", "LISTEN"),
    ("1000>>x:1", "empty"),
    ("70000>rand>x:1", "70000"),
    ("peer>rand>x:1", "peer"),
    ("1000>rand>x", "HOST:PORT"),
    ("1000>rand>x:0", "x:0"),
    ("1000>via:0>x:1", "via:0"),
    ("1000>via:99>x:1", "via:99"),
    ("1000>blog.l8.alt>rand>80", "blog.l8.alt"),
    ("1000>rand>blog.l8.alt>80", "no hop before"),
    ("1000>rand>" + "0f" * 20, "no hop before"),
    ("1000>blog.l8.alt>x:80", "a port"),
    ("1000>80", "'80'"),
    ("1000>a b>x:1", "a b"),
    ("1000>" + "rand>" * (MAX_HOPS + 1) + "x:1", "at most 8 hops"),
    ("1000>" + "x" * 3000, "2048"),
)


class RouteTests(SynchronousTestCase):
    """What is read, and what is refused."""

    def test_tunnels(self) -> None:
        for text, listen, hops, target in TUNNELS:
            self.assertEqual(parse_tunnel(text), Tunnel(listen, Route(hops), target), text)

    def test_what_is_wrong_is_named(self) -> None:
        for text, why in WRONG:
            error = self.assertRaises(ConfigError, parse_tunnel, text)
            self.assertIn(why, str(error), text)

    def test_a_host_that_no_message_holds(self) -> None:
        self.assertRaises(ConfigError, parse_tunnel, f"1000>rand>{'a' * 256}:80")
        self.assertRaises(ConfigError, parse_tunnel, "1000>rand>" + 128 * "\u00fc" + ":80")

    def test_ways_and_routes(self) -> None:
        self.assertEqual(parse_way("rand>rand>internet"), (Route((Rand(), Rand())), Internet()))
        self.assertEqual(parse_way("internet"), (Route(), Internet()))
        self.assertEqual(parse_route(f"rand>{ID}"), Route((Rand(), Named(ID))))

    @given(
        st.lists(st.sampled_from(["rand", "via:3", "abc", ID, "1.2.3.4:5", "[::1]:7"]), min_size=1, max_size=MAX_HOPS)
    )
    def test_written_as_read(self, words: list[str]) -> None:
        route = parse_route(">".join(words))
        self.assertEqual(parse_route(route.text), route)

    @given(st.text(max_size=200))
    def test_noise(self, text: str) -> None:
        for read in (parse_tunnel, parse_way, parse_route):
            try:
                read(text)
            except ConfigError as error:
                self.assertNotIn("\n", str(error))
