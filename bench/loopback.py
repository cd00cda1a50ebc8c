"""A measurement of networks stays on this machine: which addresses processes have open, and whose tor that is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

TABLES = ("tcp", "tcp6", "udp", "udp6")


class Outside(Exception):
    """A process under measurement has opened an address that is not of this machine's loopback."""


def stay_inside(pids: Collection[int]) -> None:
    """Raise Outside if one of the processes listens or is connected beyond loopback."""
    for pid in pids:
        if found := list(outside(pid)):
            raise Outside(f"process {pid} ({_comm(pid)}) has opened {', '.join(found)}")


def outside(pid: int) -> Iterator[str]:
    """The ends of a process's sockets that are not on loopback."""
    ours = _sockets(pid)
    for table in TABLES:
        with contextlib.suppress(OSError):
            yield from strays(Path(f"/proc/{pid}/net/{table}").read_text(), ours)


def strays(text: str, ours: Collection[str]) -> Iterator[str]:
    """The ends beyond loopback in one of the kernel's tables, of the sockets whose inode is one of `ours`."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if fields[9] not in ours:
            continue
        for end, far in ((fields[1], False), (fields[2], True)):
            address, port = _address(end)
            # A socket that is not connected has no far end; one that listens everywhere has no address of its own.
            if not address.is_loopback and not (far and address.is_unspecified):
                yield f"{address} port {port}"


def other_tors(ours: Collection[int]) -> list[int]:
    """Processes called tor in our network namespace that are none of ours."""
    here = os.readlink("/proc/self/ns/net")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        with contextlib.suppress(OSError):
            if pid not in ours and _comm(pid) == "tor" and os.readlink(path / "ns/net") == here:
                found.append(pid)
    return found


def _address(end: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Read `0100007F:1F90`: words of four bytes, each turned round on a little-endian machine."""
    words, _, port = end.partition(":")
    raw = bytes.fromhex(words)
    turned = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address = ip_address(turned)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address, int(port, 16)


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(path)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
