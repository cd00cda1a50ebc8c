"""Where an endpoint string leads, as far as its text says so, and which networks an address is counted under."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from attrs import define, field, frozen

from layer8.core.address import canonical, is_address
from layer8.core.errors import RemoteProtocolError

NEAR: Final = {4: 24, 6: 48}  # bits: what one customer has
FAR: Final = {4: 16, 6: 32}  # bits: what one provider has
PER_NEAR: Final = 4  # nodes of one near network that are listed or remembered: identities are free, networks are not
PER_FAR: Final = 16

_WORD = re.compile(r"(?:[^:\\]|\\.)*")
_KIND = re.compile(r"[a-z][a-z0-9]{0,15}\Z")
_ESCAPED = re.compile(r"\\(.)")
_NAMED = re.compile(r"(host|port)=")


@frozen
class Place:
    """An endpoint string taken apart; `host` is canonical where it is an address, and may be empty."""

    kind: str
    host: str
    port: int

    @property
    def address(self) -> bool:
        """Say whether the host is an address and no name."""
        return bool(self.host) and is_address(self.host)


def place(endpoint: str) -> Place:
    """Read `kind:host:port[:...]`, colons inside of words behind a backslash; raises `RemoteProtocolError`.

    Host and port may be written as `host=` and `port=`. Kinds are not judged here: `transports` knows them.
    """
    if not endpoint.isascii() or not endpoint.isprintable() or " " in endpoint:
        raise RemoteProtocolError("an endpoint in other letters than ASCII's")
    words, at = [], 0
    while at <= len(endpoint):
        found = _WORD.match(endpoint, at)
        if found is None or (found.end() < len(endpoint) and endpoint[found.end()] != ":"):
            raise RemoteProtocolError("an endpoint that ends in a backslash")
        words.append(found[0])
        at = found.end() + 1
    kind, *rest = words
    if not _KIND.match(kind):
        raise RemoteProtocolError("an endpoint of no kind")
    given = dict(zip(("host", "port"), (word for word in rest[:2] if not _NAMED.match(word)), strict=False))
    given.update((word.partition("=")[0], word.partition("=")[2]) for word in rest if _NAMED.match(word))
    host = _ESCAPED.sub(r"\1", given.get("host", ""))
    number = given.get("port", "")
    port = int(number) if number.isdigit() and len(number) <= 5 and int(number) < 1 << 16 else 0
    return Place(kind, canonical(host) if host and is_address(host) else host.lower(), port)


@lru_cache(maxsize=16_384)
def networks(address: str) -> tuple[str, str]:
    """Give the /24 and the /16 of an IPv4 address, the /48 and the /32 of an IPv6 one."""
    ip = ipaddress.ip_address(address)
    near, far = (ipaddress.ip_network((ip, bits[ip.version]), strict=False) for bits in (NEAR, FAR))
    return str(near), str(far)


@define(eq=False)
class Crowd:
    """How many of those that are listed share a network: PER_NEAR and PER_FAR at most."""

    _near: Counter[str] = field(factory=Counter, init=False)
    _far: Counter[str] = field(factory=Counter, init=False)

    def room(self, near: Iterable[str], far: Iterable[str]) -> bool:
        """Tell whether one more may come from all of these networks."""
        return all(self._near[one] < PER_NEAR for one in near) and all(self._far[one] < PER_FAR for one in far)

    def add(self, near: Iterable[str], far: Iterable[str]) -> None:
        """Count one more."""
        self._near.update(near)
        self._far.update(far)

    def drop(self, near: Iterable[str], far: Iterable[str]) -> None:
        """Count one less, of those that were added."""
        for counter, names in ((self._near, near), (self._far, far)):
            for name in names:
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]
