"""IP addresses as text: the network that counts as one source, lists of networks, and `host:port`.

Everything that is counted per peer is counted per /24 or /56: one customer's network, which cannot be left as easily
as one address. The functions a visitor passes through take and give text and make no objects.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from functools import cache, lru_cache
from typing import Final

from attrs import define, field, frozen

from layer8.core.errors import ConfigError

SOURCE_4 = 24  # bits
SOURCE_6 = 56  # bits
SOURCES_KEPT = 4096  # answers of `source_key`, so that visitors of one address share one text

SPECIAL: Final = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("64:ff9b:1::/48", "a network's own NAT64"),
    ("2001::/23", "protocol assignments"),  # Teredo and ORCHID among them
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
"""Networks that are not the internet, and what they are (IANA's registries of special-purpose addresses).

A table of our own: which of them Python's `is_global` knows depends on its version, and no version knows all.
"""
BEYOND: Final = "outside of 2000::/3"
"""What is said of IPv6 that is neither in the table nor in the part that the internet is."""

_NAT64 = 0x64FF9B << 64  # 64:ff9b::/96 (RFC 6052 section 2.1), without its last 32 bits
_TRANSLATED = 0xFFFF0000 << 32  # ::ffff:0:0:0/96 (RFC 2765 section 2.1)
_UNICAST = 0b001  # the first bits of 2000::/3, of which the internet is (RFC 4291 section 2.4, IANA's registry)
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96 (RFC 4291 section 2.5.5.2)
_SIX_TO_FOUR = 0x2002  # 2002::/16 (RFC 3056 section 2)
_LOOPBACK = _MAPPED >> 24 | 127  # 127.0.0.0/8 as IPv4 inside IPv6
_INNER = frozenset((0, _MAPPED >> 32, _TRANSLATED >> 32, _NAT64))  # without the IPv4 address inside
_ALL_4 = (1 << 32) - 1
_ALL_6 = (1 << 128) - 1

_Masks = tuple[tuple[int, frozenset[int]], ...]


@lru_cache(maxsize=SOURCES_KEPT)
def source_key(address: str) -> str:
    """Give the network that an address is counted under: its /24, or its /56 for IPv6.

    An IPv4 address inside IPv6 (`::ffff:192.0.2.1`) is IPv4, and an interface name (`%eth0`) is dropped. What is no
    address, as the empty name of a Unix socket's peer, is its own source. About 0.2 us for IPv4.
    """
    if ":" not in address:
        network, dot, _ = address.rpartition(".")
        return network + ".0/24" if dot else address
    number = _number(address)
    if number is None:
        return address
    if number >> 32 == 0xFFFF:
        return f"{ipaddress.IPv4Address(number & _ALL_4 & ~0xFF)}/{SOURCE_4}"
    kept = number >> (128 - SOURCE_6) << (128 - SOURCE_6)
    return f"{ipaddress.IPv6Address(kept)}/{SOURCE_6}"


def canonical(address: str) -> str:
    """Give the one text of an address: IPv4 for IPv4 inside IPv6, short lower-case IPv6; raises `ConfigError`."""
    number = _number(address)
    if number is None:
        raise ConfigError(f"{address!r} is not an IP address")
    if number >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(number & _ALL_4))
    return str(ipaddress.IPv6Address(number))


def is_address(text: str) -> bool:
    """Tell whether `text` is an IPv4 or IPv6 address."""
    return _number(text) is not None


class Scope(IntEnum):
    """From how far an address can be reached; a greater one is from farther away."""

    MACHINE = 0  # loopback, and the unspecified address, which the kernel takes for it
    NETWORK = 1  # link-local, private (RFC 1918, 4193, 6598), multicast, and whatever else is not the internet
    INTERNET = 2


@lru_cache(maxsize=256)
def scope(address: str) -> Scope | None:
    """Say from how far an address can be reached, None for what is none; one inside another counts as the inner one."""
    number = _number(address)
    if number is None:
        return None
    if number <= 1:
        return Scope.MACHINE
    if number >> 32 in _INNER:
        number = _MAPPED | number & _ALL_4
    elif number >> 112 == _SIX_TO_FOUR:
        number = _MAPPED | number >> 80 & _ALL_4
    if number == _MAPPED or number >> 24 == _LOOPBACK:
        return Scope.MACHINE
    return Scope.INTERNET if _special(number) is None else Scope.NETWORK


@lru_cache(maxsize=256)
def special(address: str) -> str | None:
    """Say what an address is that is not one of the internet, None for those that are; raises `ConfigError`.

    IPv4 inside IPv6, as the kernel (`::ffff:0:0/96`) or NAT64 (`64:ff9b::/96`) have it, counts as IPv4. What has IPv4
    inside in any other way is not the internet, whatever is inside.
    """
    number = _number(address)
    if number is None:
        raise ConfigError(f"{address!r} is not an IP address")
    return _special(_unwrapped(number))


def unwrapped(address: str) -> str:
    """Give the IPv4 address inside an IPv6 one of the kernel or NAT64, else the address; raises `ConfigError`."""
    number = _number(address)
    if number is None:
        raise ConfigError(f"{address!r} is not an IP address")
    number = _unwrapped(number)
    if number >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(number & _ALL_4))
    return str(ipaddress.IPv6Address(number))


@frozen
class HostPort:
    """A name or address with a port, as `name:443` or `[2001:db8::1]:443`."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Read one; raises `ConfigError` that says what is wrong."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if ":" not in host or not is_address(host):
                raise ConfigError(f"{text!r}: brackets hold an IPv6 address")
        elif ":" in host:
            raise ConfigError(f"{text!r}: write an IPv6 address in brackets")
        if not colon or not host:
            raise ConfigError(f"{text!r}: write host:port")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
            raise ConfigError(f"{text!r}: a port is a number from 1 to 65535")
        return cls(host, int(port))

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@define(eq=False)
class Networks:
    """A list of networks in CIDR form that is asked per visitor: one lookup per different prefix length.

    An address matches however the kernel wrote it: IPv4 inside IPv6 is IPv4, and no IPv6 network holds it.
    """

    _texts: tuple[str, ...]
    _masks_4: _Masks = field(init=False, repr=False)
    _masks_6: _Masks = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Sort the networks by family and prefix length."""
        by_mask: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
        for text in self._texts:
            number, bits = _network(text)
            family = by_mask[number >> 32 != 0xFFFF or bits < 96]
            family.setdefault(_ALL_6 >> (128 - bits) << (128 - bits), set()).add(number)
        self._masks_4, self._masks_6 = (
            tuple((mask, frozenset(numbers)) for mask, numbers in family.items()) for family in by_mask
        )

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Networks:
        """Read networks (`192.0.2.0/24`) and single addresses; raises `ConfigError` for the first wrong one."""
        return cls(tuple(texts))

    def __contains__(self, address: str) -> bool:
        """Tell whether an address lies in any of them; what is no address does not."""
        if not self._texts or (number := _number(address)) is None:
            return False
        masks = self._masks_4 if number >> 32 == 0xFFFF else self._masks_6
        return any(number & mask in numbers for mask, numbers in masks)

    def __len__(self) -> int:
        """Count the networks as they were given."""
        return len(self._texts)


@frozen
class Fence:
    """Where somebody may have us dial: what is reached from as far as `least`, and the networks in `also`."""

    least: Scope
    also: Networks

    def admits(self, address: str) -> bool:
        """Say whether an address may be dialled; what is none may not."""
        found = scope(address)
        return found is not None and (found >= self.least or address in self.also)


def _number(address: str) -> int | None:
    """Give an address as 128 bits, IPv4 as IPv4 inside IPv6, or None."""
    try:
        if ":" not in address:
            return _MAPPED | int(ipaddress.IPv4Address(address))
        return int(ipaddress.IPv6Address(address.partition("%")[0]))
    except ValueError:
        return None


def _unwrapped(number: int) -> int:
    return _MAPPED | number & _ALL_4 if number >> 32 == _NAT64 else number


@cache
def _specials() -> tuple[tuple[int, int, str], ...]:
    """Give the table as shift, prefix and what it is."""
    rows = ((*_network(text), what) for text, what in SPECIAL)
    return tuple((128 - bits, number >> (128 - bits), what) for number, bits, what in rows)


def _special(number: int) -> str | None:
    for shift, prefix, what in _specials():
        if number >> shift == prefix:
            return what
    return None if number >> 32 == 0xFFFF or number >> 125 == _UNICAST else BEYOND


def _network(text: str) -> tuple[int, int]:
    """Give a network as number and prefix length among 128 bits; raises `ConfigError`."""
    address, slash, prefix = text.partition("/")
    number = None if "%" in text else _number(address)
    whole = 128 if ":" in address else 32
    bits = whole if not slash else int(prefix) if prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 else -1
    if number is None or not 0 <= bits <= whole:
        raise ConfigError(f"{text!r} is not a network in CIDR form, for example 192.0.2.0/24")
    bits += 128 - whole
    if number & (_ALL_6 >> bits):
        raise ConfigError(f"{text!r} has bits set after its prefix; an address alone needs no prefix")
    return number, bits
