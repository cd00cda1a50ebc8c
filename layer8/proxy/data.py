"""Where agents dial back: a port on which 32 bytes decide, in plain text or inside TLS.

One port serves both. The first 32 bytes are a secret somebody waits for, or the beginning of a ClientHello; a secret is
looked up first, so one that happens to look like TLS is still a secret. Everybody else is closed without an answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from attrs import define, field
from OpenSSL import SSL

from layer8.core.lanes import Lane
from layer8.net.factory import Places
from layer8.net.leg import Leg
from layer8.net.pump import Pump
from layer8.proxy.wire import SECRET_SIZE

FIRST_READ = 16384
"""Bytes of a dial-back's first read: the secret, and usually what the target says first."""
_CLIENT_HELLO = b"\x16\x03"  # record type handshake, major version (RFC 8446 section 5.1)

Answered = Callable[[bytes, int, bytes, Leg | None], bool]
"""Takes a secret, its descriptor, what followed the secret, and the TLS session; False if nobody waits for it.

If it raises, the descriptor is closed.
"""


@define(eq=False)
class DataPort:
    """All dial-backs that have not shown a secret yet; `expected` counts the secrets that have been told to agents."""

    pump: Pump
    places: Places
    answered: Answered
    seconds: float
    tls: Callable[[], SSL.Context | None]
    expected: Callable[[], int] = int
    refused: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    _lane: Lane[Newcomer] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the queue of deadlines."""
        self._lane = Lane(self.seconds)

    def take(self, fd: int, peer: Any, first: bytes = b"") -> None:
        """Take a connection, of which somebody may have read `first` already."""
        self.accepted += 1
        address = peer[0] if isinstance(peer, tuple) else ""
        source = self.places.take(address, self.expected())
        if source is None:
            self.refused += 1
            os.close(fd)
            return
        newcomer = Newcomer(self, fd, source)
        try:
            newcomer.begin(first)
        except Exception:
            newcomer.abandon()
            raise
        if not newcomer.over:
            self._lane.add(newcomer, self.pump.now)

    def wait(self, seconds: float) -> None:
        """Give those who come from now on that long."""
        self.seconds = self._lane.seconds = seconds

    def tick(self, now: float) -> None:
        """Close those who have not shown a secret in time; `now` is monotonic seconds."""
        for newcomer in self._lane.expired(now):
            newcomer.refuse()


class Newcomer:
    """One dial-back until its secret is known; an entry of the pump."""

    __slots__ = ("_fd", "_kept", "_leg", "_port", "_shaking", "_source", "over")

    def __init__(self, port: DataPort, fd: int, source: str) -> None:
        """Wait for a secret on `fd`."""
        self._port = port
        self._fd = fd
        self._source = source
        self._kept = b""
        self._leg: Leg | None = None
        self._shaking = False
        self.over = False

    def begin(self, first: bytes) -> None:
        """Look at what is there already; nearly always it is all that is needed."""
        if first:
            self._taken(first)
        else:
            self.ready(self._fd, 0)
        if not self.over and not self._shaking:
            self._port.pump.watch(self._fd, self)

    def ready(self, fd: int, events: int) -> None:
        """Read on, from the descriptor or from the TLS session on it."""
        while not self.over and not self._shaking:
            try:
                data = os.read(self._fd, FIRST_READ) if self._leg is None else self._leg.recv(FIRST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.refuse()
                return
            self._taken(data)

    def _taken(self, data: bytes) -> None:
        kept = self._kept = self._kept + data
        if len(kept) < SECRET_SIZE:
            return
        try:
            wanted = self._port.answered(kept[:SECRET_SIZE], self._fd, kept[SECRET_SIZE:], self._leg)
        except Exception:
            self._leave()  # whoever took the descriptor has closed it
            raise
        if wanted:
            self._leave()
            return
        context = self._port.tls() if self._leg is None and kept.startswith(_CLIENT_HELLO) else None
        if context is None:
            self.refuse()
            return
        self._shaking, self._kept = True, b""
        self._leg = Leg(self._port.pump, self._fd, context, client=False, done=self._shaken, first=kept)
        self._leg.start()

    def _shaken(self, leg: Leg, error: Exception | None) -> None:
        self._shaking = False
        if error is not None:
            self._port.refused += 1
            self._leave()  # the leg has closed the descriptor
            return
        self._port.pump.watch(self._fd, self)
        self.ready(self._fd, 0)

    def refuse(self) -> None:
        """Close without an answer."""
        if self.over:
            return
        self._port.refused += 1
        if self._shaking and self._leg is not None:
            self._leg.cancel()
        else:
            self._port.pump.close_fd(self._fd)
        self._leave()

    def abandon(self) -> None:
        """Close, unless the descriptor was given away already."""
        self.refuse()

    def _leave(self) -> None:
        if not self.over:
            self.over = True
            self._port.places.give(self._source)
