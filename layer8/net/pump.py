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

A flow with a `Care` is looked at on its way: a filter sees its bytes, all but those it lets go unseen, and a meter
limits how many move per second by letting the flow rest. Flows without one pay a single test for that.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from layer8.net.care import Care, last_words, read_with_care
from layer8.net.entries import Address, Dialing, Entry, Listener, dial, linger_none, shut_write
from layer8.net.flow import (
    CHUNK,
    SPLICE,
    SPLICE_GATHER,
    SPLICE_HOW,
    SPLICE_LEAST,
    Filter,
    Flow,
    Link,
    Owner,
    Secure,
)
from layer8.net.meter import Meter
from layer8.net.pipes import PIPES, PipePool, affordable

TURN = 4 << 20
"""Bytes that one direction may move before another gets its turn."""
ROUNDS = 4
"""Times the pump looks for new events before it lets the reactor turn."""
EVENTS = 256
"""Events taken per look."""
IDLE = 3600.0
"""Seconds without a byte in either direction after which a joined pair is closed."""
HALF_CLOSED = 60.0
"""The same once one direction has ended."""
SWEEP = 5.0
"""Seconds between two looks for idle pairs."""
STARVED = 0.2
"""Seconds that listeners rest when the process has no descriptor left."""

HAVE_SPLICE = hasattr(os, "splice")

_INWARD = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BOTH = _INWARD | select.EPOLLOUT


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
        self.clock: IReactorTime = reactor
        self._epoll = select.epoll()
        self._table: dict[int, Entry] = {}
        self.splices = splice
        self._again: Any = None
        self._timers: set[IDelayedCall] = set()
        self._reading = False
        self._stale: set[int] = set()
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
        """Close every descriptor in the table and the epoll set; listeners belong to their owners."""
        if self._epoll.closed:
            return
        self._reactor.removeReader(self)
        if self._sweeper.running:
            self._sweeper.stop()
        for timer in [self._again, *self._timers]:
            if timer is not None and timer.active():
                timer.cancel()
        for entry in list(self._table.values()):
            try:
                if isinstance(entry, Flow) and entry.link is not None:
                    self.close_link(entry.link, "shutdown")
                elif isinstance(entry, Dialing):
                    entry.cancel()
                else:
                    entry.abandon()
            except Exception:
                self._failed(entry)
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
            stale = self._stale
            stale.clear()
            events = self._epoll.poll(0, EVENTS)
            table = self._table
            for fd, what in events:
                entry = table.get(fd)
                if entry is None or fd in stale:
                    continue  # closed since the look; its number may be somebody else's by now
                try:
                    entry.ready(fd, what)
                except Exception:
                    self._failed(entry)
            if self.busy:
                self._turn()
            elif len(events) < EVENTS:
                return

    def _read_soon(self) -> None:
        if self._again is None or not self._again.active():
            self._again = self.clock.callLater(0, self.doRead)

    def _turn(self) -> None:
        """Let each flow that used up its turn go on once."""
        busy = self.busy
        for _ in range(len(busy)):
            flow = busy.popleft()
            flow.queued = False
            try:
                if flow.link is not None and self.move(flow):
                    self.queue(flow)
            except Exception:
                self._failed(flow)

    def queue(self, flow: Flow) -> None:
        """Let a flow go on in the next turn, once."""
        if not flow.queued:
            flow.queued = True
            self.busy.append(flow)

    def _failed(self, entry: Entry) -> None:
        """Give up one connection: our own defect in its handling must not take the others along.

        Only the entry knows whether its descriptor is still its own, so nothing is closed here by number.
        """
        self.failures += 1
        self._log.failure("entry failed", event="pump.failed")
        try:
            entry.abandon()
        except Exception:
            self._log.failure("entry failed again", event="pump.failed")

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
            self._stale.add(fd)
            self._epoll.unregister(fd)

    def close_fd(self, fd: int, *, abort: bool = False) -> None:
        """Close a descriptor that is not joined; `abort` resets the connection."""
        self._table.pop(fd, None)
        self._stale.add(fd)
        if abort:
            linger_none(fd)
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
        return dial(self, address, done)

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
        up_filter: Filter | None = None,
        down_filter: Filter | None = None,
        meter: Meter | None = None,
    ) -> Link:
        """Carry bytes between two connected descriptors until both directions have ended.

        `up` goes to `second` before anything read from `first`, `down` the other way round; filters have seen both
        already. Both descriptors belong to the pump from here on. `owner.ended` may be called before this returns only
        through `Link.close`.
        """
        link = Link(self, owner)
        link.up = forth = Flow(link, first, second, up, first_tls, second_tls)
        link.down = back = Flow(link, second, first, down, second_tls, first_tls)
        if up_filter is not None or meter is not None:
            forth.care = Care(up_filter, meter)
        if down_filter is not None or meter is not None:
            back.care = Care(down_filter, meter)
        forth.other = back
        back.other = forth
        table = self._table
        for flow in (forth, back):
            if flow.src in table:
                # Registered by whoever dialled or sniffed it: modifying looks again, so no event is lost.
                table[flow.src] = flow
                self._epoll.modify(flow.src, _INWARD)
            else:
                table[flow.src] = flow
                self._epoll.register(flow.src, _INWARD)
        self.links += 1
        if up and second_tls is None:
            # Almost always the whole request fits: one write now saves a turn of the pump.
            self._first_write(forth)
        for flow in (forth, back):
            # What a TLS session has decrypted already is announced by no event.
            flow.readable = flow.secure_src is not None
            if flow.readable or flow.pending is not None:
                self.queue(flow)
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
                        sent = os.splice(flow.pipe.read, dst, flow.held, flags=SPLICE_HOW)  # type: ignore[union-attr]
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
                if flow.care is not None:
                    if last_words(flow, flow.care):
                        continue
                    if flow.link is None:
                        return False
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
                self.empty_pipe(flow)
                self._epoll.modify(src, _BOTH if flow.out_armed else _INWARD)
                return False
            if not flow.readable:
                if flow.pipe is not None:
                    self.empty_pipe(flow)
                return False
            if turn <= 0:
                return True
            care = flow.care
            if care is not None and not care.through:
                if not read_with_care(self, flow, care):
                    return False
                continue
            try:
                if flow.bulk and self.has_pipe(flow):
                    size = os.splice(src, flow.pipe.write, SPLICE, flags=SPLICE_HOW)  # type: ignore[union-attr]
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
                            flow.bulk = self.splices and flow.secure_dst is None
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

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call something later, unless the pump stops first."""

        def run() -> None:
            self._timers.discard(timer)
            call(*arguments)

        timer = self.clock.callLater(seconds, run)
        self._timers.add(timer)

    def soon(self, flow: Flow) -> None:
        """Look at a flow again in the next turn."""
        self.queue(flow)
        if not self._reading:
            self._read_soon()

    def pause(self, flow: Flow) -> None:
        """Read no more of a flow that has a filter until `go_on`."""
        if flow.care is not None:
            flow.care.paused = True
            flow.care.through = False

    def go_on(self, flow: Flow, data: bytes = b"") -> None:
        """Read a paused flow again; `data` goes to its destination before anything that is read."""
        if flow.link is None or flow.care is None:
            return
        flow.care.paused = False
        self.say(flow, data)

    def say(self, flow: Flow, data: bytes) -> None:
        """Let `data` go to a flow's destination, after what waits there already; no order towards a held pipe."""
        if flow.link is None or flow.ended:
            return
        if data:
            flow.pending = data if flow.pending is None else flow.pending + data
        self.soon(flow)

    def finish(self, flow: Flow) -> None:
        """Act as if a flow's source had ended: what waits goes out, then the end."""
        if flow.link is not None and not flow.eof:
            flow.eof = True
            if flow.care is not None:
                flow.care.paused = flow.care.resting = False
            self.soon(flow)

    def part(self, link: Link) -> tuple[int, int]:
        """Dissolve a link and give both descriptors back, watched by nobody; its owner is told nothing.

        What waits inside is lost: look at `pending` and `held` of both flows first.
        """
        up, down = link.up, link.down
        if up.link is None:
            raise ValueError("the link is over")
        for flow in (up, down):
            if flow.pipe is not None:
                self.pipes.give_back(flow.pipe, empty=not flow.held)
                flow.pipe = None
            flow.link = None
            flow.held = 0
            flow.pending = None
            self.unregister(flow.src)
        del up.other, down.other
        self.links -= 1
        return up.src, down.src

    def _arm(self, flow: Flow) -> None:
        """Wait until the destination may be written."""
        flow.writable = False
        opposite = flow.other
        if not opposite.out_armed:
            opposite.out_armed = True
            self._epoll.modify(flow.dst, _BOTH)

    def has_pipe(self, flow: Flow) -> bool:
        """Say whether a flow has a pipe to splice through, and borrow one if it has none."""
        if flow.pipe is None:
            flow.pipe = self.pipes.borrow()
            if flow.pipe is None:
                flow.bulk = False
                return False
        return True

    def empty_pipe(self, flow: Flow) -> None:
        """Give a flow's pipe back."""
        if flow.pipe is not None:
            self.pipes.give_back(flow.pipe, empty=not flow.held)
            flow.pipe = None

    def _end(self, flow: Flow, *, broken: bool) -> None:
        """End one direction; both ended ends the link."""
        link = flow.link
        if link is None:
            return
        flow.ended = True
        self.empty_pipe(flow)
        flow.held = 0
        flow.pending = None
        if flow.reset:
            self.close_link(link, "reset")
        elif flow.other.ended:
            self.close_link(link, "reset" if broken else "done")
        elif not broken and flow.secure_dst is None:
            shut_write(flow.dst)

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
            self._stale.add(flow.src)
            if flow.other.reset or reason == "killed":
                linger_none(flow.src)
            os.close(flow.src)
        del up.other, down.other  # the cycle, so that no garbage collector has to look for it
        self.links -= 1
        link.owner.ended(link, reason)

    def sweep(self) -> None:
        """Close pairs in which nothing has moved for too long, and dials that were never answered."""
        self.now = now = self._clock()
        for entry in list(self._table.values()):
            try:
                if isinstance(entry, Flow):
                    self._age(entry, now)
                elif isinstance(entry, Dialing) and entry.deadline <= now:
                    entry.expire()
            except Exception:
                self._failed(entry)

    def _age(self, flow: Flow, now: float) -> None:
        link = flow.link
        if link is None:
            return
        quiet = now - link.last
        if (link.up.ended or link.down.ended) and quiet >= self.half_closed:
            self.close_link(link, "half_closed")
        elif quiet >= self.idle:
            self.close_link(link, "idle")
