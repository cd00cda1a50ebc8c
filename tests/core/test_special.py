"""What is not the internet: our own table, with `ipaddress` as the second opinion."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.address import SPECIAL, Scope, canonical, scope, special, unwrapped
from layer8.core.errors import ConfigError


class Special(SynchronousTestCase):
    def test_every_row_holds_its_ends_and_not_its_neighbours(self) -> None:
        for text, what in SPECIAL:
            network = ipaddress.ip_network(text)
            for address in (network[0], network[-1]):
                self.assertEqual(special(str(address)), what, address)
            for number in (int(network[0]) - 1, int(network[-1]) + 1):
                if 0 <= number < 1 << network.max_prefixlen:
                    neighbour = type(network[0])(number)
                    inside = [ipaddress.ip_network(other) for other, _ in SPECIAL]
                    if not any(neighbour in one for one in inside if one.version == network.version):
                        self.assertNotEqual(special(str(neighbour)), what, neighbour)

    @given(st.ip_addresses())
    def test_the_internet_is_global(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        if special(str(address)) is None:
            self.assertIs(scope(str(address)), Scope.INTERNET)
            inner = ipaddress.ip_address(unwrapped(str(address)))
            self.assertFalse(inner.is_private or inner.is_multicast or inner.is_reserved or inner.is_link_local, inner)

    @given(st.ip_addresses(v=4))
    def test_inside_the_kernels_form_and_nat64(self, address: ipaddress.IPv4Address) -> None:
        for outer in (f"::ffff:{address}", f"64:ff9b::{address}"):
            self.assertEqual(special(outer), special(str(address)))
            self.assertEqual(unwrapped(outer), str(address))

    @given(st.ip_addresses(v=6))
    def test_unwrapped_is_canonical(self, address: ipaddress.IPv6Address) -> None:
        if address not in ipaddress.ip_network("64:ff9b::/96"):
            self.assertEqual(unwrapped(str(address)), canonical(str(address)))

    @given(st.text())
    def test_noise(self, text: str) -> None:
        if scope(text) is None:
            self.assertRaises(ConfigError, special, text)
            self.assertRaises(ConfigError, unwrapped, text)
