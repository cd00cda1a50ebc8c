"""Balancers in front of the server: their connections begin with a PROXY header, and count as their visitors'.

Whoever connects from a network in `proxy_from` has to say who the connection is really from, before anything else is
looked at; without a good header it is closed in silence. From anywhere else a header is nonsense, which sniffers
refuse.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Protocol

from layer8.core.address import Networks
from layer8.core.lanes import Lane
from layer8.net.pump import Pump
from layer8.proxy.pp import Header, Reader
from layer8.proxy.sniff import Refused
from layer8.proxy.wire import Reason

FIRST_READ = 16384
"""Bytes of the first read: the header, and usually all that the visitor says before it is joined."""


class Keeper(Protocol):
    """Who takes visitors."""

    def enter(
        self, fd: int, address: str, port: int, scheme: str, header: Header | None = None, first: bytes = b""
    ) -> None:
        """Take a visitor from `address`, as the header said, behind which stood `first`."""

    def turn_away(self, fd: int, reason: Reason) -> None:
        """Close a descriptor that is watched by nobody, and count that."""


class Balancers:
    """All connections from balancers whose header is not complete."""

    def __init__(self, pump: Pump, keeper: Keeper) -> None:
        """Believe nobody, until `configure`."""
        self.pump = pump
        self.keeper = keeper
        self.waiting: dict[Newcomer, None] = {}
        self._networks: Networks | None = None
        self._most = 1
        self._lane: Lane[Newcomer] = Lane(1.0)

    def configure(self, networks: Collection[str], seconds: float, most: int) -> None:
        """Believe these networks; a header has to be there within `seconds`, and `most` may be waited for."""
        self._networks = Networks.parse(networks) if networks else None
        self._lane.seconds = seconds
        self._most = most

    def __contains__(self, address: str) -> bool:
        """Say whether a connection from this address has to begin with a header."""
        return self._networks is not None and address in self._networks

    def take(self, fd: int, peer: str, port: int, scheme: str) -> None:
        """Read the header of a connection to a public port."""
        newcomer = Newcomer(self, fd, peer, port, scheme)
        try:
            newcomer.ready(fd, 0)
        except Exception:
            newcomer.abandon()
            raise
        if newcomer.over:
            return
        while len(self.waiting) >= self._most:
            next(iter(self.waiting)).refuse(Reason.CROWDED_OUT)
        self.waiting[newcomer] = None
        self._lane.add(newcomer, self.pump.now)
        self.pump.watch(fd, newcomer)

    def tick(self, now: float) -> None:
        """Close those whose header did not come in time; `now` is monotonic seconds."""
        for newcomer in self._lane.expired(now):
            newcomer.refuse(Reason.SNIFF_TIME)

    def close(self) -> None:
        """Close all that wait."""
        for newcomer in list(self.waiting):
            newcomer.refuse(Reason.DRAINING)


class Newcomer:
    """One connection until its header is there; an entry of the pump."""

    __slots__ = ("_balancers", "_fd", "_peer", "_port", "_reader", "_scheme", "over")

    def __init__(self, balancers: Balancers, fd: int, peer: str, port: int, scheme: str) -> None:
        """Wait for a header on `fd`."""
        self._balancers = balancers
        self._fd = fd
        self._peer = peer
        self._port = port
        self._scheme = scheme
        self._reader = Reader()
        self.over = False

    def ready(self, fd: int, events: int) -> None:
        """Read on until the header is complete."""
        while not self.over:
            try:
                data = os.read(self._fd, FIRST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.refuse(Reason.VISITOR_LEFT)
                return
            outcome = self._reader.feed(data)
            if isinstance(outcome, Refused):
                self.refuse(Reason.BAD_PROXY_HEADER)
            elif outcome is not None:
                self._leave()
                # Without a source it is the balancer's own, which looks whether we are alive.
                address = self._peer if outcome.source is None else outcome.source.host
                self._balancers.keeper.enter(self._fd, address, self._port, self._scheme, outcome, self._reader.data)

    def refuse(self, reason: Reason) -> None:
        """Close without an answer."""
        if not self.over:
            self._leave()
            self._balancers.keeper.turn_away(self._fd, reason)

    def abandon(self) -> None:
        """Close, unless the descriptor was given away already."""
        self.refuse(Reason.INTERNAL)

    def _leave(self) -> None:
        self.over = True
        self._balancers.waiting.pop(self, None)
        self._balancers.pump.unregister(self._fd)
