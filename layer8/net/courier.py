"""Messages, and descriptors with them, between processes of one daemon: a Unix socket that keeps message borders.

::

    ours, theirs = pair()                    # theirs goes to the child by its number
    courier = Courier(reactor, ours, heard, lost)
    courier.send(b"a message", [listener.fileno()])

A message arrives whole or not at all, and what it carries arrives with it (unix(7): SOCK_SEQPACKET, SCM_RIGHTS). Before
there is a reactor, `receive` and `send_now` wait.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.core.errors import TimedOut, Unavailable

MESSAGE: Final = 96 * 1024
"""Bytes of one message: well below the smallest send buffer of a Linux socket."""
DESCRIPTORS: Final = 64
"""Descriptors with one message; the kernel's own limit is 253."""
WAITING: Final = 4096
"""Messages that may wait for a process that does not read; one more, and it is taken for dead."""
AT_ONCE: Final = 128
"""Messages taken in one turn of the reactor."""

Heard = Callable[[bytes, list[int]], None]
"""Takes a message and its descriptors, which are the taker's to close."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Make both ends; neither is inherited by itself."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE)
    return ours, theirs


def peer_uid(sock: socket.socket) -> int:
    """Give the user at the other end, as the kernel saw it when the connection was made."""
    held = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", held)
    return int(uid)


def send_now(sock: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message, waiting if it has to; raises `Unavailable` if nobody is there."""
    _fits(message, descriptors)
    try:
        socket.send_fds(sock, [message], list(descriptors))
    except OSError as error:
        raise Unavailable(f"the other process is gone: {error.strerror}") from None


def receive(sock: socket.socket, seconds: float) -> tuple[bytes, list[int]]:
    """Wait for one message; raises `TimedOut`, or `Unavailable` at the end."""
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    if not waiting.poll(seconds * 1000):
        raise TimedOut(f"the other process said nothing for {seconds:g} s")
    got = _take(sock)
    if got is None:
        raise Unavailable("the other process is gone")
    return got


def _fits(message: bytes, descriptors: Sequence[int]) -> None:
    if not message or len(message) > MESSAGE or len(descriptors) > DESCRIPTORS:
        raise ValueError("this does not fit into one message")


def _take(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """Take one message, None at the end; raises BlockingIOError."""
    size = array.array("i").itemsize
    try:
        message, extra, flags, _ = sock.recvmsg(MESSAGE, socket.CMSG_LEN(DESCRIPTORS * size), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    taken: list[int] = []
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % size])
            taken += numbers
    if not message or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for number in taken:
            os.close(number)
        return None
    return message, taken


@implementer(IReadWriteDescriptor)
class Courier:
    """One end, on a reactor."""

    def __init__(self, reactor: Any, sock: socket.socket, heard: Heard, lost: Callable[[], None]) -> None:
        """Take over the socket; `lost` is called once, not for our own `close`."""
        self._reactor = reactor
        self._sock = sock
        self._heard = heard
        self._lost = lost
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        sock.setblocking(False)
        reactor.addReader(self)

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._open

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send a message; the descriptors stay the caller's. False if the other end is gone or does not read."""
        _fits(message, descriptors)
        if not self._open:
            return False
        if not self._queue and self._put(message, descriptors):
            return True
        if len(self._queue) >= WAITING:
            self._end()
            return False
        if not self._queue:
            self._reactor.addWriter(self)
        # They may be closed by the caller before they have left.
        self._queue.append((message, [os.dup(number) for number in descriptors]))
        return True

    def _put(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Hand one message to the kernel, or say that it has no room; whoever is gone is noticed by reading."""
        try:
            if descriptors:
                socket.send_fds(self._sock, [message], list(descriptors))
            else:
                self._sock.send(message)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def finish(self) -> None:
        """Take everything that the other end has said before it ended, and be done."""
        while self._open:
            try:
                got = _take(self._sock)
            except BlockingIOError:
                break
            if got is None:
                break
            self._heard(*got)
        self.close()

    def close(self) -> None:
        """Be done with it, without a word to our own side."""
        if not self._open:
            return
        self._open = False
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        for _, descriptors in self._queue:
            for number in descriptors:
                os.close(number)
        self._queue.clear()
        self._sock.close()

    def _end(self) -> None:
        if self._open:
            self.close()
            self._lost()

    # What a reactor calls.

    def fileno(self) -> int:
        """Give the descriptor, -1 once it is closed."""
        return self._sock.fileno()

    def logPrefix(self) -> str:
        """Name this for a reactor's own messages."""
        return "courier"

    def doRead(self) -> None:
        """Take what is there."""
        for _ in range(AT_ONCE):
            if not self._open:
                return
            try:
                got = _take(self._sock)
            except BlockingIOError:
                return
            if got is None:
                self._end()
                return
            self._heard(*got)

    def doWrite(self) -> None:
        """Send what waits."""
        while self._queue:
            message, descriptors = self._queue[0]
            if not self._put(message, descriptors):
                return
            self._queue.popleft()
            for number in descriptors:
                os.close(number)
        self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """Take that the reactor gives the descriptor up, as after a bug in whoever hears."""
        self._end()
