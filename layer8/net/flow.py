"""A joined pair of descriptors: its two directions, and what the pump asks of those around it."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from layer8.net.care import Care
    from layer8.net.pipes import Pipe
    from layer8.net.pump import Pump

CHUNK = 1 << 16
"""Bytes of one plain read, and so the most that waits in memory for a direction."""
SPLICE = 1 << 20
"""Bytes asked of one splice."""
SPLICE_GATHER = 1 << 18
"""A splice of fewer bytes lets the flow wait for the next event, so that data can gather."""
SPLICE_LEAST = 1 << 14
"""A splice of fewer bytes turns a bulk flow back into a plain one."""
SPLICE_HOW = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Events that say that the peer sends no more."""
BROKEN = select.EPOLLHUP | select.EPOLLERR
"""Events that say that both directions are over, or that the connection was reset."""
_IN = select.EPOLLIN
_WRITABLE = select.EPOLLOUT | BROKEN


class Owner(Protocol):
    """Whoever asked for a join and wants to know its end."""

    def ended(self, link: Link, reason: str) -> None:
        """Take the end of `link`: both descriptors are closed; `reason` is one of `REASONS`."""


class Secure(Protocol):
    """A TLS session on a descriptor: what a flow calls instead of read, write and shutdown.

    Each raises `BlockingIOError` for "not now" and another `OSError` for a broken session.
    """

    def recv(self, size: int) -> bytes:
        """Give up to `size` bytes of plaintext; b"" after the peer's close_notify."""

    def send(self, data: bytes) -> int:
        """Take some of `data` and say how much."""

    def finish(self) -> None:
        """Send close_notify: our direction has ended. Called again after "not now"."""


class Filter(Protocol):
    """Sees the bytes of one direction before they go on.

    It may pause or finish its own flow and close or part its link while it is fed; what it then gives is dropped
    with the link.
    """

    @property
    def free(self) -> int:
        """Bytes that may go on unseen from here on, so that they can stay in the kernel; 0 means that all are seen."""

    def feed(self, data: bytes) -> bytes:
        """Give what goes on in place of `data`; nothing is fine."""

    def skipped(self, count: int) -> None:
        """Take that `count` of the free bytes went on unseen."""

    def ended(self) -> bytes:
        """Give the last words to the destination: the source has ended. Called once."""


REASONS = ("done", "reset", "idle", "half_closed", "killed", "shutdown")
"""Why a joined pair ended: both sides finished, one was reset, nothing moved, half of it stood still, we closed it."""


class Link:
    """A joined pair of descriptors and its two flows; `up` reads from the first of them.

    Times are the pump's monotonic seconds; `first` is when the first byte went down to the first descriptor.
    """

    __slots__ = ("down", "first", "last", "owner", "pump", "up")

    def __init__(self, pump: Pump, owner: Owner) -> None:
        """Start with no flow; `Pump.join` adds both."""
        self.pump = pump
        self.owner = owner
        self.first: float | None = None
        self.last = pump.now
        self.up: Flow
        self.down: Flow

    @property
    def bytes_up(self) -> int:
        """Bytes carried from the first descriptor to the second."""
        return self.up.count

    @property
    def bytes_down(self) -> int:
        """Bytes carried from the second descriptor to the first."""
        return self.down.count

    def close(self, reason: str = "killed") -> None:
        """End both directions now; doing so twice does nothing."""
        self.pump.close_link(self, reason)


class Flow:
    """One direction of a link: where it reads, where it writes, and what waits in between."""

    __slots__ = (
        "bulk",
        "care",
        "count",
        "dst",
        "ended",
        "ending",
        "eof",
        "held",
        "link",
        "other",
        "out_armed",
        "pending",
        "pipe",
        "queued",
        "readable",
        "rearm",
        "reset",
        "secure_dst",
        "secure_src",
        "src",
        "writable",
    )

    def __init__(self, link: Link, src: int, dst: int, pending: bytes, source: Secure | None, sink: Secure | None):
        """Read from `src`, write to `dst`, `pending` first."""
        self.link: Link | None = link
        self.src = src
        self.dst = dst
        self.secure_src = source
        self.secure_dst = sink
        self.other: Flow
        self.pending: bytes | None = pending or None
        self.pipe: Pipe | None = None
        self.held = 0
        self.count = 0
        self.queued = False
        self.readable = False
        self.writable = True
        self.eof = False
        self.reset = False
        self.ended = False
        self.ending = False
        self.bulk = False
        self.rearm = False
        self.out_armed = False
        self.care: Care | None = None

    def ready(self, fd: int, events: int) -> None:
        """Take readiness of `src`: ours to read, the opposite flow's to write."""
        link = self.link
        if link is None:
            return
        other = self.other
        pump = link.pump
        link.last = pump.now
        if events & ENDING:
            self.ending = self.readable = True
        elif events & _IN:
            self.readable = True
        if events & _WRITABLE or self.secure_src is not None:
            # A TLS session may have had to read before it could write.
            other.writable = True
            if not other.queued and pump.move(other):
                pump.queue(other)
            if self.link is None:
                return
        if self.readable and not self.queued and pump.move(self):
            pump.queue(self)

    def abandon(self) -> None:
        """Close both descriptors, unless that was done already."""
        if self.link is not None:
            self.link.pump.close_link(self.link, "reset")
