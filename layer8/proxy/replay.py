"""Sending a request that an agent has carried to its target once more, and looking at the answer.

The request goes out as it came, its real credentials included, by the agent's own dialler; the answer is read to its
end, up to two limits, and kept like any other.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from layer8.core.errors import Refused, Unavailable
from layer8.net.dial import Dialer, Where, reason
from layer8.net.flow import CHUNK
from layer8.net.pump import Pump
from layer8.proxy.inspect import Watch
from layer8.proxy.pp import v1, v2
from layer8.proxy.record import Record

TIME: Final = 15.0
"""Seconds for the whole answer."""
SIZE: Final = 16 << 20
"""Bytes of an answer that are read."""

_MASK = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Inspection:
    """What an agent's carrier asks for a watch of each connection; `local` dials targets."""

    def __init__(self, reactor: Any, pump: Pump, local: Dialer, record: Record, wall: Callable[[], float]) -> None:
        """Take where the record is kept."""
        self.record = record
        self._reactor = reactor
        self._pump = pump
        self._local = local
        self._wall = wall
        self._targets: dict[str, tuple[Where, bytes]] = {}

    def watch(self, host: str, target: Where, intro: bytes = b"", replay_of: int | None = None) -> Watch:
        """Give the filters for a connection to a target, which hears `intro` first: a PROXY header or nothing."""
        words = target.words
        # Who comes again is not the visitor: the header says nothing, but it is there.
        self._targets[words] = target, intro and (v1(None) if intro.startswith(b"PROXY") else v2(None))
        return Watch(self.record, self._pump.look_at_clock, self._wall, host, words, replay_of)

    async def replay(self, number: int) -> tuple[int, str]:
        """Send a request again; gives the new one's number, and why its answer is not whole, or nothing.

        Raises Refused if it cannot be sent again, Unavailable if its target does not answer.
        """
        exchange = self.record.get(number)
        if exchange is None:
            raise Refused("it is not kept any more")
        if exchange.no_replay:
            raise Refused(exchange.no_replay)
        target, intro = self._targets[exchange.target]
        words = exchange.head + bytes(exchange.body)
        first = exchange.id if exchange.replay_of is None else exchange.replay_of
        watch = self.watch(exchange.host, target, intro, first)
        try:
            fd = await self._local.open(target)
        except OSError as error:
            raise Unavailable(reason(error)) from None
        watch.requests.feed(words)
        ended: Deferred[str] = Deferred()
        sending = _Sending(self._reactor, self._pump, fd, intro + words, watch, ended)
        try:
            why = await ended
        finally:
            sending.close()
        if watch.latest is None:
            raise Refused("it is no longer understood")
        return watch.latest.id, why


class _Sending:
    """One request on its way, as an entry of the pump; `ended` gets why the answer is not whole, or nothing."""

    def __init__(self, reactor: Any, pump: Pump, fd: int, words: bytes, watch: Watch, ended: Deferred[str]) -> None:
        self._pump = pump
        self._fd = fd
        self._left = words
        self._watch = watch
        self._ended = ended
        self._room = SIZE
        self._late: IDelayedCall = reactor.callLater(TIME, self._finish, f"stopped after {TIME:g} s")
        pump.watch(fd, self, _MASK)

    def ready(self, fd: int, events: int) -> None:
        """Write and read what can be."""
        try:
            while self._left:
                self._left = self._left[os.write(self._fd, self._left) :]
        except BlockingIOError:
            pass
        except OSError:
            self._left = b""  # the answer may be there all the same
        self._read()

    def _read(self) -> None:
        while self._fd >= 0:
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self._watch.closed()
                self._finish(reason(error))
                return
            if data:
                self._watch.answers.feed(data)
            else:
                self._watch.answers.ended()
            latest = self._watch.latest
            self._room -= len(data)
            if latest is not None and latest.ended is not None:
                self._finish("cut off by the target" if latest.state == "cut" else "")
            elif not data:
                self._finish("cut off by the target")
            elif self._room <= 0:
                self._finish(f"stopped after {SIZE >> 20} MiB")

    def abandon(self) -> None:
        """Give up: the pump stops, or something of ours went wrong."""
        self._finish("given up")

    def _finish(self, why: str) -> None:
        self.close()
        if not self._ended.called:
            self._ended.callback(why)

    def close(self) -> None:
        """Close the connection; twice does nothing."""
        if self._late.active():
            self._late.cancel()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._pump.close_fd(fd)
            self._watch.closed()
