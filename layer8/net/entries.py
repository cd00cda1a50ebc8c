"""What may stand in the pump's table besides joined pairs: listeners and dials."""

from __future__ import annotations

import errno
import os
import select
import socket
from _socket import socket as RawSocket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from layer8.core.address import HostPort, canonical
from layer8.net.flow import BROKEN

if TYPE_CHECKING:
    from layer8.net.pump import Pump

DIAL = 10.0
"""Seconds that a dial may take."""
ACCEPTS = 64
"""Connections accepted per look and listener."""
BACKLOG = 4096
"""Connections that may wait to be accepted; 50 would drop SYNs at 10,000 connections a second."""
_AT_ONCE = b"\x01\x00\x00\x00\x00\x00\x00\x00"


_NEW_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_LOOPBACK = frozenset(("127.0.0.1", "::1"))
_BOTH = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

Address = tuple[int, Any]
"""An address family and what `socket.connect` takes for it."""


class Entry(Protocol):
    """What stands in the pump's table for a descriptor."""

    def ready(self, fd: int, events: int) -> None:
        """React to epoll's `events` on `fd`; they are hints, and may be stale."""

    def abandon(self) -> None:
        """Close what is still the entry's own and tell its owner: `ready` has raised, or the pump stops.

        Called at any time and more than once, since a descriptor's number is used again at once.
        """


class Dialing:
    """A connection being opened; `done(fd, None)` or `done(-1, error)` is called once, unless cancelled."""

    __slots__ = ("_done", "_fd", "_pump", "deadline")

    def __init__(self, pump: Pump, fd: int, done: Callable[[int, OSError | None], None]) -> None:
        """Wait for `fd`, whose connect is under way."""
        self._pump = pump
        self._fd = fd
        self._done: Callable[[int, OSError | None], None] | None = done
        self.deadline = pump.now + DIAL

    def ready(self, fd: int, events: int) -> None:
        """Find out whether the connect succeeded."""
        if self._done is None:
            return
        held = view(fd)
        try:
            code = held.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                held.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN and not events & BROKEN:
                return  # a stale event of a descriptor that had this number before
            code = error.errno or errno.ECONNREFUSED
        finally:
            held.detach()
        self._finish(code)

    def _finish(self, code: int) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if code:
            self._pump.close_fd(self._fd)
            done(-1, OSError(code, os.strerror(code)))
        else:
            done(self._fd, None)

    def expire(self) -> None:
        """Give up: the peer did not answer in time."""
        self._finish(errno.ETIMEDOUT)

    def abandon(self) -> None:
        """Give up, unless the end was told already: then the descriptor is somebody else's."""
        self._finish(errno.EIO)

    def cancel(self) -> None:
        """Give up silently."""
        if self._done is not None:
            self._done = None
            self._pump.close_fd(self._fd)


def dial(pump: Pump, address: Address, done: Callable[[int, OSError | None], None]) -> Dialing | None:
    """Connect to `address`; `done` may be called before this returns, and then there is nothing to cancel."""
    family, where = address
    try:
        sock = RawSocket(family, _NEW_STREAM)
    except OSError as error:
        done(-1, error)
        return None
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if where[0] not in _LOOPBACK:
                keep_alive(sock)  # a peer that vanishes says nothing; on this machine the kernel would
        code = sock.connect_ex(where)
        if code == errno.EINPROGRESS and where[0] in _LOOPBACK:
            # The kernel has finished already, it only could not say so: asking again saves a turn.
            code = sock.connect_ex(where)
    except (OSError, OverflowError) as error:  # an address or port that cannot be one
        code = getattr(error, "errno", None) or errno.EINVAL
    if code in (errno.EINPROGRESS, errno.EALREADY):
        dialing = Dialing(pump, sock.detach(), done)
        pump.register(dialing._fd, dialing, _BOTH)
        return dialing
    if code:
        sock.close()
        done(-1, OSError(code, os.strerror(code)))
    else:
        done(sock.detach(), None)
    return None


class Listener:
    """A listening socket of the pump; `accepted(fd, peer)` is called with a non-blocking descriptor."""

    __slots__ = ("_accepted", "_pump", "_registered", "sock")

    def __init__(self, pump: Pump, sock: socket.socket, accepted: Callable[[int, Any], None]) -> None:
        """Take over `sock`, which listens already."""
        self._pump = pump
        self._accepted = accepted
        self._registered = False
        self.sock = sock

    def ready(self, fd: int, events: int) -> None:
        """Accept what waits, up to `ACCEPTS`."""
        accept = self.sock._accept  # type: ignore[attr-defined]  # accept() without the socket object around the fd
        accepted = self._accepted
        for _ in range(ACCEPTS):
            try:
                new, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pump.starved(self)
                    return
                continue  # the visitor was gone before we looked
            os.set_blocking(new, False)
            accepted(new, peer)

    def abandon(self) -> None:
        """Go on: what failed was one connection, and those who come next are to be accepted."""

    def resume(self) -> None:
        """Accept again (or for the first time)."""
        if not self._registered and self.sock.fileno() >= 0:
            self._registered = True
            self._pump.register(self.sock.fileno(), self, select.EPOLLIN)

    def pause(self) -> None:
        """Leave visitors in the kernel's queue."""
        if self._registered:
            self._registered = False
            self._pump.unregister(self.sock.fileno())

    def close(self) -> None:
        """Stop listening."""
        self.pause()
        self.sock.close()


def listening(sock: socket.socket, *, defer: int = 0) -> None:
    """Prepare a listening socket: what accepted sockets inherit is set here once, not per connection.

    `defer` is how many seconds the kernel may keep a connection to itself until its first byte is there.
    """
    sock.setblocking(False)
    sock.listen(BACKLOG)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)
    if defer and hasattr(socket, "TCP_DEFER_ACCEPT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, defer)


def keep_alive(sock: RawSocket) -> None:
    """Find out within a minute that a quiet peer is gone (30 s, then 3 probes 10 s apart).

    No TCP_USER_TIMEOUT: it would also end whoever reads nothing for so long, though it answers the kernel's probes.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def view(fd: int) -> RawSocket:
    """Give a socket object around `fd`, to be detached again; its family does not matter for what it is used for."""
    return RawSocket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)


def end_of(fd: int, *, far: bool) -> HostPort | None:
    """Give the peer's end of a connection, or our own; None for what has no IP address, or is gone."""
    held = view(fd)
    try:
        name = held.getpeername() if far else held.getsockname()
        return HostPort(canonical(name[0]), name[1]) if isinstance(name, tuple) else None
    except OSError:
        return None
    finally:
        held.detach()


def shut_write(fd: int) -> None:
    """End our half of a connection; one that is over already is left alone."""
    held = view(fd)
    try:
        held.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the peer has closed both ways; what it sent may still be waiting to be read
    finally:
        held.detach()


def linger_none(fd: int) -> None:
    """Let the close that follows be a reset."""
    held = view(fd)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    except OSError:
        pass  # gone already
    finally:
        held.detach()
