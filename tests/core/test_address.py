"""Addresses as text: sources, networks and host:port, with `ipaddress` as the second opinion."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import HostPort, Networks, canonical, is_address, source_key
from layer8.core.errors import ConfigError

addresses = st.ip_addresses().map(str)


class Sources(SynchronousTestCase):
    def test_table(self) -> None:
        for address, source in (
            ("203.0.113.9", "203.0.113.0/24"),
            ("::ffff:203.0.113.9", "203.0.113.0/24"),
            ("::FFFF:cb00:7109", "203.0.113.0/24"),
            ("2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
            ("2001:DB8:1:0200:0:0:0:1", "2001:db8:1:200::/56"),
            ("fe80::1%eth0", "fe80::/56"),
            ("::1", "::/56"),
            ("", ""),
            ("localhost", "localhost"),
            (":", ":"),
        ):
            self.assertEqual(source_key(address), source)

    @given(st.ip_addresses())
    def test_same_network_same_source(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        bits = 24 if address.version == 4 else 56
        wanted = ipaddress.ip_network((int(address), bits) if bits == 56 else (str(address), 24), strict=False)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            wanted = ipaddress.ip_network((str(address.ipv4_mapped), 24), strict=False)
        self.assertEqual(source_key(str(address)), str(wanted))

    @given(st.text())
    def test_noise(self, text: str) -> None:
        source_key(text)
        if not is_address(text):
            self.assertNotIn(text, Networks(("0.0.0.0/0", "::/0")))
            self.assertRaises(ConfigError, canonical, text)

    def test_canonical(self) -> None:
        self.assertEqual(canonical("2001:DB8:0:0::1"), "2001:db8::1")
        self.assertEqual(canonical("::ffff:192.0.2.1"), "192.0.2.1")
        self.assertRaises(ConfigError, canonical, "192.0.2.01")


class Lists(SynchronousTestCase):
    def test_contains(self) -> None:
        networks = Networks.parse(["192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "10.0.0.0/8", "10.1.0.0/16"])
        self.assertEqual(len(networks), 5)
        for inside in ("192.0.2.255", "::ffff:192.0.2.1", "198.51.100.7", "2001:db8::1", "2001:db8::1%x", "10.1.2.3"):
            self.assertIn(inside, networks)
        for outside in ("192.0.3.0", "198.51.100.6", "2001:db9::", "", "nonsense", "::ffff:11.0.0.0"):
            self.assertNotIn(outside, networks)

    def test_everything_of_one_family(self) -> None:
        self.assertIn("203.0.113.1", Networks(("0.0.0.0/0",)))
        self.assertNotIn("2001:db8::1", Networks(("0.0.0.0/0",)))
        self.assertIn("2001:db8::1", Networks(("::/0",)))
        self.assertNotIn("203.0.113.1", Networks(("::/0",)))
        self.assertIn("203.0.113.1", Networks(("::ffff:203.0.113.0/120",)))
        self.assertNotIn("203.0.113.1", Networks(()))

    def test_refused(self) -> None:
        for text in ("", "192.0.2.1/24", "192.0.2.0/33", "::/129", "192.0.2.0/", "x/8", "10.0.0.0/-1", "fe80::%1/64"):
            self.assertIn(repr(text), str(self.assertRaises(ConfigError, Networks.parse, [text])))

    @given(st.lists(st.ip_addresses(v=4) | st.ip_addresses(v=6), max_size=5), st.integers(0, 32), addresses)
    def test_as_ipaddress_says(
        self, bases: list[ipaddress.IPv4Address | ipaddress.IPv6Address], bits: int, address: str
    ) -> None:
        networks = [ipaddress.ip_network(f"{base}/{bits}", strict=False) for base in bases]
        asked = ipaddress.ip_address(address)
        if isinstance(asked, ipaddress.IPv6Address) and (int(asked) >> 32 == 0xFFFF):
            return
        wanted = any(asked.version == network.version and asked in network for network in networks)
        self.assertEqual(address in Networks(tuple(map(str, networks))), wanted)


class HostPorts(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for text in ("proxy.example:443", "192.0.2.1:1", "[2001:db8::1]:65535"):
            self.assertEqual(str(HostPort.parse(text)), text)

    def test_refused(self) -> None:
        wrong = ("", ":", "a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:\u0661", "::1:80", "[a]:80", "[]:1", "[::1]")
        for text in wrong:
            self.assertRaises(ConfigError, HostPort.parse, text)

    @given(st.text())
    def test_noise(self, text: str) -> None:
        try:
            found = HostPort.parse(text)
        except ConfigError:
            return
        self.assertEqual(HostPort.parse(str(found)), found)
