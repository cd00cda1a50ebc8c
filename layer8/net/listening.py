"""Who else can reach a port of this machine: what the kernel says of sockets that listen (proc(5), /proc/net/tcp)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = "0A"


def open_ports(port: int) -> tuple[str, ...]:
    """Give the addresses besides loopback on which a port of this machine listens; none where nobody can say."""
    found: dict[str, None] = {}
    for path in TABLES:
        try:
            lines = path.read_text("ascii").splitlines()
        except OSError:
            continue
        found |= dict.fromkeys(addresses(lines, port))
    return tuple(found)


def addresses(lines: Iterable[str], port: int) -> Iterator[str]:
    """Read lines of such a table: those that listen at a port, without loopback."""
    for line in lines:
        words = line.split()
        if len(words) < 4 or words[3] != _LISTEN:
            continue
        host, _, number = words[1].partition(":")
        if int(number, 16) != port:
            continue
        raw = b"".join(int(host[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(host), 8))
        address = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if not (mapped or address).is_loopback:
            yield str(mapped or address)
