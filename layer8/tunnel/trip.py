"""One sealed request on its way to a relay and back, over one connection: the glue of `client_session`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from layer8.core.session import Close, Send, Tell
from layer8.net.http_client import Fields, Line
from layer8.tunnel.bhttp import Fields as Inner
from layer8.tunnel.bhttp import Response
from layer8.tunnel.client_session import Answer, ClientExchange, Done, Failure, Leg, Piece
from layer8.tunnel.limits import BUFFER

_SMALL: Final = 64 * 1024  # bytes of content up to which a sealed request goes out in one piece


class Trip:
    """A request that is sent whole before its answer is looked at; the answer is read as somebody takes it.

    Everything that goes wrong is one `Failure`; after it, and after the end, the connection is no longer ours.
    """

    def __init__(self, clock: Any, exchange: ClientExchange) -> None:
        """Begin with a request that nothing was written of."""
        self.failure: Failure | None = None
        self.head: Response | None = None
        self.trailers: Inner = ()
        self.done = False
        self._clock = clock
        self._exchange = exchange
        self._line: Line | None = None
        self._out: list[bytes] = []  # sealed, while there is no connection that takes it
        self._pieces: deque[bytes] = deque()
        self._waiting = 0  # bytes in them
        self._paused = False
        self._full = False
        self._changed: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    async def send(self, line: Line, path: str, host: str, body: bytes | AsyncIterator[bytes]) -> Response | Failure:
        """Send all of it, then give the head of the answer."""
        self._line = line
        kind = self._exchange.media.request
        fields = [("content-type", kind), *([("incremental", "?1")] if self._exchange.media.chunked else [])]
        if isinstance(body, bytes) and len(body) <= _SMALL:
            self._exchange.write(body, self._now())
            self._exchange.finish(self._now())
            self._step()
            sealed = b"".join(self._out)
            line.request("POST", path, host, fields, self, len(sealed))
            line.write(sealed)
            line.finish()
        else:
            line.request("POST", path, host, fields, self, None)
            await self._stream(line, body)
        while self.failure is None and self.head is None:
            await self._change()
        return self.failure or self.head or Failure("cut", Leg.RELAY)

    async def _stream(self, line: Line, body: bytes | AsyncIterator[bytes]) -> None:
        async for piece in _pieces(body):
            self._exchange.write(piece, self._now())
            await self._passed(line)
            if self.failure is not None:
                return
        self._exchange.finish(self._now())
        await self._passed(line)
        while self._exchange.padding and self.failure is None:
            self._exchange.pad(self._now())
            await self._passed(line)
        if self.failure is None:
            line.finish()

    async def _passed(self, line: Line) -> None:
        """Send what is sealed, and wait for room."""
        self._step()
        self._flush(line)
        while self._full and self.failure is None:
            await self._change()

    def _flush(self, line: Line) -> None:
        out, self._out = self._out, []
        if self.failure is None:
            for piece in out:
                line.write(piece)

    async def read(self) -> bytes:
        """Give the next piece of the content, b"" behind the last; see `failure` for whether it is whole."""
        while not self._pieces and not self.done and self.failure is None:
            await self._change()
        if not self._pieces or self.failure is not None:
            return b""
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        if self._paused and self._waiting < BUFFER // 2:
            self._paused = False
            self._exchange.received(b"", self._now())  # it was our own side that took its time
            self._step()
            if self._line is not None:
                self._line.resume()
        return piece

    def cut(self) -> None:
        """Give up, in whatever state it is."""
        self._stop()
        if not self.done and self.failure is None:
            self.failure = Failure("cut", Leg.RELAY)
        line, self._line = self._line, None
        if line is not None:
            line.cut()
        self._change_over()

    def answered(self, status: int, fields: Fields, length: int | None) -> None:
        """Take the head of the outer answer."""
        told = dict(reversed(fields))
        self._exchange.answered(status, told.get("content-type", ""), self._now(), told.get("retry-after", ""))
        self._step()

    def received(self, data: bytes) -> None:
        """Take a piece of the outer answer."""
        self._exchange.received(data, self._now())
        self._step()

    def ended(self) -> None:
        """Take its end."""
        self._line = None  # it goes back to its pool by itself
        self._exchange.ended(self._now())
        self._step()

    def lost(self) -> None:
        """Take the end of the connection."""
        self._line = None
        self._exchange.lost(self._now())
        self._step()

    def full(self) -> None:
        """Let the content rest."""
        self._full = True

    def room(self) -> None:
        """Let it go on."""
        self._full = False
        self._change_over()

    def _now(self) -> float:
        return float(self._clock.seconds())

    def _step(self) -> None:
        changed = False
        for effect in self._exchange.effects():
            if isinstance(effect, Send):
                self._out.append(effect.data)
                continue
            changed = True
            if isinstance(effect, Close):
                self._stop()
            elif isinstance(effect, Tell):
                self._told(effect.what)
        self._arm()
        if changed:
            self._change_over()

    def _told(self, what: object) -> None:
        if isinstance(what, Answer):
            self.head = what.response
        elif isinstance(what, Piece):
            self._pieces.append(what.data)
            self._waiting += len(what.data)
            if self._waiting >= BUFFER and not self._paused and self._line is not None:
                self._paused = True
                self._line.pause()
        elif isinstance(what, Done):
            self.done, self.trailers = True, what.trailers
        elif isinstance(what, Failure):
            self.failure = what
            line, self._line = self._line, None
            if line is not None:
                line.cut()

    def _arm(self) -> None:
        at = self._exchange.deadline()
        if at is None or self._paused:
            self._stop()
        elif self._timer is None:
            self._timer = self._clock.callLater(max(0.0, at - self._now()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._exchange.wake(self._now())
        self._step()

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _change(self) -> Deferred[None]:
        self._changed = Deferred()
        return self._changed

    def _change_over(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.called:
            changed.callback(None)


async def _pieces(body: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if isinstance(body, bytes):
        for at in range(0, len(body), _SMALL):
            yield body[at : at + _SMALL]
    else:
        async for piece in body:
            yield piece
