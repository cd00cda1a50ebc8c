"""What this process has open: sockets and epoll sets, for tests that say that nothing of theirs is left."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from typing import Any

from attrs import frozen

PATIENCE = 50
"""Looks at what is left, a tenth of a second apart: threads that look up names have sockets for a moment."""


def descriptors() -> list[str]:
    """Give open sockets and epoll sets; pipes are counted by their pool, the reactor has some of its own."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            what = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if what.startswith(("socket:", "anon_inode:[eventpoll]")):
            found.append(f"{fd} {what}")
    return sorted(found)


def left(before: list[str]) -> list[tuple[str, End | str | None]]:
    """Give what is open, was not `before`, and stays open; with what it connects."""
    for look in range(PATIENCE):
        found = [(one, end(one)) for one in descriptors() if one not in before]
        if not found:
            return []
        if look == PATIENCE // 2:
            gc.collect()
        time.sleep(0.1)
    return found


@frozen
class End:
    """One end of a connection, or a socket that has none."""

    kind: str
    local: tuple[Any, ...]
    peer: tuple[Any, ...] | None

    @property
    def ports(self) -> set[int]:
        return {self.local[1], *(self.peer or ())[1:2]}


def end(descriptor: str) -> End | str | None:
    """Say what a socket connects; None for one that asks a DNS server, is of no network, or is closed by now."""
    if "socket:" not in descriptor:
        return descriptor
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.split()[0]))) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        peer = None
        with contextlib.suppress(OSError):
            peer = sock.getpeername()
        if sock.type == socket.SOCK_DGRAM and peer is not None and peer[1] == 53:
            return None
        return End(sock.type.name, sock.getsockname(), peer)
    return None
