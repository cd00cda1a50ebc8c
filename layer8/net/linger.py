"""Closing after an answer that must arrive: a close with unread bytes in the kernel would reset it away."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from layer8.net.pump import Pump

LINGER = 2.0
"""Seconds that a peer has to read an answer and close."""
LINGER_BYTES = 1 << 18
"""Bytes of a peer that are read and thrown away meanwhile."""


class Lingering:
    """A descriptor whose write half is shut; it is closed when the peer closes, talks too much or takes too long."""

    __slots__ = ("_closed", "_fd", "_left", "_pump", "_timer")

    def __init__(self, reactor: Any, pump: Pump, fd: int, closed: Callable[[], None]) -> None:
        """Take over `fd`; `closed` is called once it is closed."""
        self._pump = pump
        self._fd = fd
        self._closed = closed
        self._left = LINGER_BYTES
        self._timer = reactor.callLater(LINGER, self._close)
        pump.watch(fd, self)
        self.ready(fd, 0)

    def ready(self, fd: int, events: int) -> None:
        """Throw away what comes."""
        while self._fd >= 0:
            try:
                data = os.read(self._fd, 16384)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._left -= len(data)
            if not data or self._left <= 0:
                self._close()

    def abandon(self) -> None:
        """Close at once."""
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._timer.active():
                self._timer.cancel()
            self._pump.close_fd(fd)
            self._closed()


def answer_and_close(reactor: Any, pump: Pump, fd: int, answer: bytes, closed: Callable[[], None]) -> None:
    """Send a short answer, end our half and close once it has had the time to arrive; then call `closed`."""
    view = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    try:
        view.setblocking(False)
        view.send(answer)  # a few hundred bytes on an unused socket: it has room, or the peer is gone
        view.shutdown(socket.SHUT_WR)
    except OSError:
        pump.close_fd(view.detach())
        closed()
        return
    view.detach()
    Lingering(reactor, pump, fd, closed)
