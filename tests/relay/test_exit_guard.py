"""The guard: sixty addresses, and what no list of rules opens."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import BEYOND, Scope, canonical, scope
from layer8.relay.exit import Guard

OWN = frozenset(("9.9.9.1", "2600::9"))
PORTS = frozenset((9000, 9009))
TABLE: tuple[tuple[str, str | None], ...] = (
    # address, why not; None: it may be dialled
    ("0.0.0.0", "this network"),
    ("0.1.2.3", "this network"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("11.0.0.0", None),
    ("100.63.255.255", None),
    ("100.64.0.1", "carrier-grade NAT"),
    ("100.127.255.255", "carrier-grade NAT"),
    ("100.128.0.0", None),
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("169.254.169.254", "link-local"),
    ("172.15.255.255", None),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("172.32.0.0", None),
    ("192.0.0.8", "protocol assignments"),
    ("192.0.0.9", "protocol assignments"),
    ("192.0.1.1", None),
    ("192.0.2.1", "documentation"),
    ("192.88.99.1", "6to4 relays"),
    ("192.167.255.255", None),
    ("192.168.1.1", "private"),
    ("192.169.0.0", None),
    ("198.18.0.1", "benchmarks"),
    ("198.19.255.255", "benchmarks"),
    ("198.20.0.0", None),
    ("198.51.100.7", "documentation"),
    ("203.0.113.7", "documentation"),
    ("223.255.255.255", None),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "reserved"),
    ("8.8.8.8", None),
    ("9.9.9.1", "own address"),
    ("::ffff:9.9.9.1", "own address"),
    ("64:ff9b::909:901", "own address"),
    ("2600::9", "own address"),
    ("2600:0:0::9", "own address"),
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::2", BEYOND),
    ("::127.0.0.1", BEYOND),  # IPv4-compatible, long gone
    ("::8.8.8.8", BEYOND),
    ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:10.0.0.1", "private"),
    ("::ffff:8.8.8.8", None),
    ("::ffff:0:127.0.0.1", BEYOND),  # IPv4-translated
    ("::ffff:0:8.8.8.8", BEYOND),
    ("64:ff9b::7f00:1", "loopback"),
    ("64:ff9b::a9fe:a9fe", "link-local"),
    ("64:ff9b::808:808", None),
    ("64:ff9b:0:0:0:1:808:808", BEYOND),
    ("64:ff9b:1::808:808", "a network's own NAT64"),
    ("100::1", BEYOND),
    ("1fff:ffff::1", BEYOND),
    ("2000::1", None),
    ("2001::1", "protocol assignments"),  # Teredo
    ("2001:20::1", "protocol assignments"),  # ORCHIDv2
    ("2001:1ff:ffff::1", "protocol assignments"),
    ("2001:200::1", None),
    ("2001:db7:ffff::1", None),
    ("2001:db8::1", "documentation"),
    ("2001:db9::1", None),
    ("2002:7f00:1::1", "6to4"),
    ("2002:808:808::1", "6to4"),
    ("2003::1", None),
    ("2606:4700::1111", None),
    ("3ffe:ffff::1", None),
    ("3fff::1", "documentation"),
    ("3fff:fff:ffff::1", "documentation"),
    ("3fff:1000::1", None),
    ("4000::1", BEYOND),
    ("5f00::1", BEYOND),
    ("fc00::1", "private"),
    ("fdff::1", "private"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("", "no address"),
    ("a.test", "no address"),
    ("127.1", "no address"),
    ("8.8.8.8:80", "no address"),
)


class Table(SynchronousTestCase):
    def test_rows(self) -> None:
        self.assertGreaterEqual(len(TABLE), 60)
        self.assertEqual(len({address for address, _ in TABLE}), len(TABLE))
        guard = Guard(OWN, PORTS)
        for address, why in TABLE:
            self.assertEqual(guard.refusal(address, 443), why, address)

    def test_rows_where_loopback_is_allowed(self) -> None:
        """Nothing else opens, and not the loopback address inside another one."""
        guard = Guard(OWN, PORTS, allow_loopback=True)
        for address, why in TABLE:
            plain = why == "loopback" and not address.startswith("64:")
            self.assertEqual(guard.refusal(address, 443), None if plain else why, address)

    def test_ports(self) -> None:
        for allowed in (False, True):
            guard = Guard(OWN, PORTS, allow_loopback=allowed)
            for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "9.9.9.1", "2600::9"):
                self.assertEqual(guard.refusal(address, 9000), "own listening port", address)
                self.assertTrue(guard.listens(address, 9009), address)
                self.assertFalse(guard.listens(address, 9001), address)
            for port in (0, -1, 65536):
                self.assertEqual(guard.refusal("8.8.8.8", port), "no port")
            self.assertIsNone(guard.refusal("8.8.8.8", 9000), "somebody else's port of that number")
            self.assertFalse(guard.listens("192.168.0.2", 9000))

    def test_what_is_its_own_is_asked_each_time(self) -> None:
        own: set[str] = set()
        guard = Guard(own, own)  # type: ignore[arg-type]  # no ports
        self.assertIsNone(guard.refusal("8.8.8.8", 443))
        own.add("8.8.8.8")
        self.assertEqual(guard.refusal("8.8.8.8", 443), "own address")

    @given(st.ip_addresses(), st.booleans())
    def test_only_the_internet(self, address: object, allowed: bool) -> None:
        text = str(address)
        if Guard(OWN, PORTS, allow_loopback=allowed).refusal(text, 443) is None:
            inside = scope(text) is Scope.INTERNET
            self.assertTrue(inside or (allowed and canonical(text).startswith("127.")) or (allowed and text == "::1"))

    @given(st.ip_addresses(v=4))
    def test_the_same_inside_ipv6(self, address: object) -> None:
        guard = Guard(OWN, PORTS)
        for outer in (f"::ffff:{address}", f"64:ff9b::{address}"):
            self.assertEqual(guard.refusal(outer, 443), guard.refusal(str(address), 443))

    @given(st.text(), st.integers())
    def test_noise(self, text: str, port: int) -> None:
        self.assertIsInstance(Guard(OWN, PORTS).refusal(text, port), str)
