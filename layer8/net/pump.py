"""The pump: joined connections move their bytes in the kernel, and the reactor sees one descriptor for all of them.

A private edge-triggered epoll set is one reader of the reactor. Each descriptor in it has an entry with one method,
`ready(fd, events)`: a listener accepts, a dial completes, whoever sniffs reads, and a `Flow` moves one direction of a
joined pair::

    visitor fd --read/splice--> Flow --write/splice--> other fd        (bytes from the visitor)
    visitor fd <--write/splice-- Flow <--read/splice-- other fd        (bytes to the visitor)

A flow starts with plain reads of `CHUNK` bytes. A full chunk makes it a bulk flow, which splices through a borrowed
pipe; a small splice turns it back. At most one chunk or one pipe waits per direction, so a slow reader stops the
sender and nothing else. Readiness flags are hints only: every read and write may answer "not now".

Rules that each cost somebody a truncated download:

* an end of file ends one direction: the other side's write half is shut and the opposite direction goes on;
* a direction ends once; a second shutdown may fail while unread bytes are still queued, which means nothing;
* a failed write ends its own direction only: what the other side still has to say is delivered to its end;
* a reset is passed on as a reset, after the bytes that came before it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from _socket import socket as RawSocket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from layer8.net.pipes import PIPES, Pipe, PipePool, affordable

CHUNK = 1 << 16
"""Bytes of one plain read, and so the most that waits in memory for a direction."""
SPLICE = 1 << 20
"""Bytes asked of one splice."""
SPLICE_GATHER = 1 << 18
"""A splice of fewer bytes lets the flow wait for the next event, so that data can gather."""
SPLICE_LEAST = 1 << 14
"""A splice of fewer bytes turns a bulk flow back into a plain one."""
TURN = 4 << 20
"""Bytes that one direction may move before another gets its turn."""
ROUNDS = 4
"""Times the pump looks for new events before it lets the reactor turn."""
EVENTS = 256
"""Events taken per look."""
ACCEPTS = 64
"""Connections accepted per look and listener."""
BACKLOG = 4096
"""Connections that may wait to be accepted; 50 would drop SYNs at 10,000 connections a second."""
IDLE = 3600.0
"""Seconds without a byte in either direction after which a joined pair is closed."""
HALF_CLOSED = 60.0
"""The same once one direction has ended."""
SWEEP = 5.0
"""Seconds between two looks for idle pairs."""
DIAL = 10.0
"""Seconds that a dial may take."""
STARVED = 0.2
"""Seconds that listeners rest when the process has no descriptor left."""

HAVE_SPLICE = hasattr(os, "splice")

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_BROKEN = select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | _BROKEN
_INWARD = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BOTH = _INWARD | select.EPOLLOUT
_SPLICE_HOW = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_NEW_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_LOOPBACK = frozenset(("127.0.0.1", "::1"))
_LINGER_NONE = b"\x01\x00\x00\x00\x00\x00\x00\x00"

Address = tuple[int, Any]
"""An address family and what `socket.connect` takes for it."""


class Entry(Protocol):
    """What stands in the pump's table for a descriptor."""

    def ready(self, fd: int, events: int) -> None:
        """React to epoll's `events` on `fd`; they are hints, and may be stale."""


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
        self.readable = False
        self.writable = True
        self.eof = False
        self.reset = False
        self.ended = False
        self.ending = False
        self.bulk = False
        self.rearm = False
        self.out_armed = False

    def ready(self, fd: int, events: int) -> None:
        """Take readiness of `src`: ours to read, the opposite flow's to write."""
        link = self.link
        if link is None:
            return
        other = self.other
        pump = link.pump
        link.last = pump.now
        if events & _ENDING:
            self.ending = self.readable = True
        elif events & _IN:
            self.readable = True
        if events & _WRITABLE or self.secure_src is not None:
            # A TLS session may have had to read before it could write.
            other.writable = True
            if pump.move(other):
                pump.busy.append(other)
            if self.link is None:
                return
        if self.readable and pump.move(self):
            pump.busy.append(self)


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
        view = _view(fd)
        try:
            code = view.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                view.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN and not events & _BROKEN:
                return  # a stale event of a descriptor that had this number before
            code = error.errno or errno.ECONNREFUSED
        finally:
            view.detach()
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

    def cancel(self) -> None:
        """Give up silently."""
        if self._done is not None:
            self._done = None
            self._pump.close_fd(self._fd)


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


@implementer(IReadDescriptor)
class Pump:
    """Accepts, dials and joins descriptors; see the module for how.

    `splice=False` keeps to plain copies (other systems than Linux, and tests that compare the two).
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        splice: bool = HAVE_SPLICE,
        idle: float = IDLE,
        half_closed: float = HALF_CLOSED,
        pipes: int = PIPES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use a reactor that offers `IReactorFDSet` and `IReactorTime`.

        `idle` and `half_closed` are seconds; `pipes` is the most that may be in use at once.
        """
        self._reactor = reactor
        self._clock = clock
        self._epoll = select.epoll()
        self._table: dict[int, Entry] = {}
        self._splice = splice
        self._again: Any = None
        self._reading = False
        self._sweeper = LoopingCall(self.sweep)
        self._sweeper.clock = reactor
        self.pipes = PipePool(affordable(pipes))
        self.busy: deque[Flow] = deque()
        self.idle = idle
        self.half_closed = half_closed
        self.now = clock()
        self.links = 0
        self.spliced = 0
        self.failures = 0

    # What the reactor asks of a reader.

    def look_at_clock(self) -> float:
        """Give the time, monotonic seconds, and use it for what happens until the next look."""
        self.now = self._clock()
        return self.now

    def fileno(self) -> int:
        """Give the epoll set itself as a descriptor, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Name this reader in the reactor's own messages."""
        return "pump"

    def connectionLost(self, reason: Any) -> None:
        """Nothing to do: the epoll set belongs to nobody else."""

    def start(self) -> None:
        """Become a reader of the reactor."""
        reader: IReactorFDSet = self._reactor
        reader.addReader(self)
        self._sweeper.start(SWEEP, now=False)

    def stop(self) -> None:
        """Close every joined pair, every dial and the epoll set; listeners belong to their owners."""
        if self._epoll.closed:
            return
        self._reactor.removeReader(self)
        if self._sweeper.running:
            self._sweeper.stop()
        if self._again is not None and self._again.active():
            self._again.cancel()
        for entry in list(self._table.values()):
            if isinstance(entry, Flow) and entry.link is not None:
                self.close_link(entry.link, "shutdown")
            elif isinstance(entry, Dialing):
                entry.cancel()
        self.pipes.close()
        self._epoll.close()

    def doRead(self) -> None:
        """Handle what is ready, in rounds, so that no flow waits long for another."""
        self._reading = True
        try:
            self._rounds()
        finally:
            self._reading = False
        if self.busy:
            self._read_soon()

    def _rounds(self) -> None:
        for _ in range(ROUNDS):
            self.now = self._clock()
            events = self._epoll.poll(0, EVENTS)
            table = self._table
            for fd, what in events:
                entry = table.get(fd)
                if entry is None:
                    continue
                try:
                    entry.ready(fd, what)
                except Exception:
                    # Our own defect in one connection's handling must not take the others along.
                    self.failures += 1
                    self._log.failure("entry failed", event="pump.failed")
                    self._drop(fd)
            if self.busy:
                self._turn()
            elif len(events) < EVENTS:
                return

    def _read_soon(self) -> None:
        if self._again is None or not self._again.active():
            clock: IReactorTime = self._reactor
            self._again = clock.callLater(0, self.doRead)

    def _turn(self) -> None:
        """Let each flow that used up its turn go on once."""
        busy = self.busy
        for _ in range(len(busy)):
            flow = busy.popleft()
            if flow.link is not None and self.move(flow):
                busy.append(flow)

    def _drop(self, fd: int) -> None:
        entry = self._table.get(fd)
        if isinstance(entry, Flow) and entry.link is not None:
            self.close_link(entry.link, "reset")
        elif entry is not None and not isinstance(entry, Listener):
            self.close_fd(fd)

    # The table.

    def register(self, fd: int, entry: Entry, mask: int = _INWARD) -> None:
        """Give `fd` an entry and watch it."""
        self._table[fd] = entry
        self._epoll.register(fd, mask)

    def watch(self, fd: int, entry: Entry, mask: int = _INWARD) -> None:
        """Tell `entry` when `fd` may be read (edge-triggered: read until it would block), or as `mask` says."""
        if fd in self._table:
            self._table[fd] = entry
            self._epoll.modify(fd, mask)
        else:
            self.register(fd, entry, mask)

    def unregister(self, fd: int) -> None:
        """Stop watching `fd` without closing it, so that somebody else can have it."""
        if self._table.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close_fd(self, fd: int, *, abort: bool = False) -> None:
        """Close a descriptor that is not joined; `abort` resets the connection."""
        self._table.pop(fd, None)
        if abort:
            _linger_none(fd)
        os.close(fd)

    def listen(self, sock: socket.socket, accepted: Callable[[int, Any], None]) -> Listener:
        """Accept from `sock` (non-blocking, listening) until the returned listener is closed."""
        listener = Listener(self, sock, accepted)
        listener.resume()
        return listener

    def starved(self, listener: Listener) -> None:
        """Rest a listener while the process has no descriptor left."""
        listener.pause()
        self._log.warn("no descriptor left, accepting rests", event="pump.starved")
        self._reactor.callLater(STARVED, listener.resume)

    def dial(self, address: Address, done: Callable[[int, OSError | None], None]) -> Dialing | None:
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
            code = sock.connect_ex(where)
            if code == errno.EINPROGRESS and where[0] in _LOOPBACK:
                # The kernel has finished already, it only could not say so: asking again saves a turn.
                code = sock.connect_ex(where)
        except OSError as error:  # an address that cannot be one
            code = error.errno or errno.EINVAL
        if code in (errno.EINPROGRESS, errno.EALREADY):
            dialing = Dialing(self, sock.detach(), done)
            self.register(dialing._fd, dialing, _BOTH)
            return dialing
        if code:
            sock.close()
            done(-1, OSError(code, os.strerror(code)))
        else:
            done(sock.detach(), None)
        return None

    def join(
        self,
        first: int,
        second: int,
        owner: Owner,
        *,
        up: bytes = b"",
        down: bytes = b"",
        first_tls: Secure | None = None,
        second_tls: Secure | None = None,
    ) -> Link:
        """Carry bytes between two connected descriptors until both directions have ended.

        `up` goes to `second` before anything read from `first`, `down` the other way round. Both descriptors belong
        to the pump from here on. `owner.ended` may be called before this returns only through `Link.close`.
        """
        link = Link(self, owner)
        link.up = forth = Flow(link, first, second, up, first_tls, second_tls)
        link.down = back = Flow(link, second, first, down, second_tls, first_tls)
        forth.other = back
        back.other = forth
        self.links += 1
        table = self._table
        for flow in (forth, back):
            if flow.src in table:
                # Registered by whoever dialled or sniffed it: modifying looks again, so no event is lost.
                table[flow.src] = flow
                self._epoll.modify(flow.src, _INWARD)
            else:
                table[flow.src] = flow
                self._epoll.register(flow.src, _INWARD)
        if up and second_tls is None:
            # Almost always the whole request fits: one write now saves a turn of the pump.
            self._first_write(forth)
        for flow in (forth, back):
            if flow.pending is not None:
                self.busy.append(flow)
        if self.busy and not self._reading:
            self._read_soon()
        return link

    def _first_write(self, flow: Flow) -> None:
        pending = flow.pending
        if pending is None:
            return
        try:
            sent = os.write(flow.dst, pending)
        except OSError:
            return  # the ordinary way through `move` will meet and handle it
        flow.count += sent
        flow.pending = pending[sent:] or None

    # The pump itself.

    def move(self, flow: Flow) -> bool:
        """Move bytes of one direction until it must wait; True when its turn is used up and it could go on."""
        link = flow.link
        if link is None or flow.ended:
            return False
        turn = TURN
        src, dst = flow.src, flow.dst
        while True:
            pending = flow.pending
            if pending is not None or flow.held:
                if not flow.writable:
                    self._arm(flow)
                    return False
                try:
                    if pending is None:
                        sent = os.splice(flow.pipe.read, dst, flow.held, flags=_SPLICE_HOW)  # type: ignore[union-attr]
                        flow.held -= sent
                        self.spliced += sent
                    else:
                        secure = flow.secure_dst
                        sent = os.write(dst, pending) if secure is None else secure.send(pending)
                        flow.pending = pending[sent:] if sent < len(pending) else None
                except BlockingIOError:
                    flow.writable = False
                    continue
                except OSError as error:
                    if error.errno == errno.ECONNRESET and not flow.other.ended:
                        flow.other.reset = True  # what it reads next are the bytes from before the reset
                    self._end(flow, broken=True)
                    return False
                if not flow.count and flow is link.down:
                    link.first = self.now
                flow.count += sent
                turn -= sent
                continue
            if flow.eof:
                secure = flow.secure_dst
                if secure is not None and not flow.reset:
                    try:
                        secure.finish()
                    except BlockingIOError:
                        self._arm(flow)
                        return False
                    except OSError:
                        self._end(flow, broken=True)
                        return False
                self._end(flow, broken=False)
                return False
            if flow.rearm:
                flow.rearm = flow.readable = False
                flow.out_armed = not flow.other.writable
                self._empty_pipe(flow)
                self._epoll.modify(src, _BOTH if flow.out_armed else _INWARD)
                return False
            if not flow.readable:
                if flow.pipe is not None:
                    self._empty_pipe(flow)
                return False
            if turn <= 0:
                return True
            try:
                if flow.bulk and self._has_pipe(flow):
                    size = os.splice(src, flow.pipe.write, SPLICE, flags=_SPLICE_HOW)  # type: ignore[union-attr]
                    flow.held = size
                    if not size:
                        flow.eof = True
                    elif size < SPLICE_GATHER:
                        flow.rearm = True
                        flow.bulk = size >= SPLICE_LEAST
                else:
                    secure = flow.secure_src
                    if secure is None:
                        data = os.read(src, CHUNK)
                        if not data:
                            flow.eof = True
                            continue
                        if len(data) == CHUNK:
                            flow.bulk = self._splice and flow.secure_dst is None
                        elif not flow.ending:
                            flow.readable = False
                    else:
                        data = secure.recv(CHUNK)
                        if not data:
                            flow.eof = True
                            continue
                    flow.pending = data
            except BlockingIOError:
                flow.readable = flow.ending = False  # an end already seen would have been read instead
            except OSError:
                flow.eof = flow.reset = True

    def _arm(self, flow: Flow) -> None:
        """Wait until the destination may be written."""
        flow.writable = False
        opposite = flow.other
        if not opposite.out_armed:
            opposite.out_armed = True
            self._epoll.modify(flow.dst, _BOTH)

    def _has_pipe(self, flow: Flow) -> bool:
        if flow.pipe is None:
            flow.pipe = self.pipes.borrow()
            if flow.pipe is None:
                flow.bulk = False
                return False
        return True

    def _empty_pipe(self, flow: Flow) -> None:
        if flow.pipe is not None:
            self.pipes.give_back(flow.pipe, empty=not flow.held)
            flow.pipe = None

    def _end(self, flow: Flow, *, broken: bool) -> None:
        """End one direction; both ended ends the link."""
        link = flow.link
        if link is None:
            return
        flow.ended = True
        self._empty_pipe(flow)
        flow.held = 0
        flow.pending = None
        if flow.reset:
            self.close_link(link, "reset")
        elif flow.other.ended:
            self.close_link(link, "reset" if broken else "done")
        elif not broken and flow.secure_dst is None:
            _shut_write(flow.dst)

    def close_link(self, link: Link, reason: str) -> None:
        """Close both descriptors of a link and tell its owner; a reset is passed on as one."""
        up, down = link.up, link.down
        if up.link is None:
            return
        for flow in (up, down):
            if flow.pipe is not None:
                self.pipes.give_back(flow.pipe, empty=not flow.held)
                flow.pipe = None
            flow.link = None
        for flow in (up, down):
            # This flow's source is the other one's destination: a reset met by `other` is passed on here.
            self._table.pop(flow.src, None)
            if flow.other.reset or reason == "killed":
                _linger_none(flow.src)
            os.close(flow.src)
        del up.other, down.other  # the cycle, so that no garbage collector has to look for it
        self.links -= 1
        link.owner.ended(link, reason)

    def sweep(self) -> None:
        """Close pairs in which nothing has moved for too long, and dials that were never answered."""
        self.now = now = self._clock()
        idle = now - self.idle
        half = now - self.half_closed
        for entry in list(self._table.values()):
            if isinstance(entry, Flow):
                link = entry.link
                if link is None or link.last > half:
                    continue
                if link.up.ended or link.down.ended:
                    self.close_link(link, "half_closed")
                elif link.last <= idle:
                    self.close_link(link, "idle")
            elif isinstance(entry, Dialing) and entry.deadline <= now:
                entry.expire()


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


def keep_alive(sock: socket.socket) -> None:
    """Find out within a minute that a peer is gone (30 s quiet, then 3 probes 10 s apart)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _view(fd: int) -> RawSocket:
    """Give a socket object around `fd`, to be detached again; its family does not matter for what it is used for."""
    return RawSocket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)


def _shut_write(fd: int) -> None:
    view = _view(fd)
    try:
        view.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the peer has closed both ways; what it sent may still be waiting to be read
    finally:
        view.detach()


def _linger_none(fd: int) -> None:
    view = _view(fd)
    try:
        view.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    except OSError:
        pass  # gone already
    finally:
        view.detach()
