"""The server's side of one stamp connection: bytes and time in, effects out; no socket and no clock."""

from __future__ import annotations

from collections.abc import Sequence

from docs.examples.stamp.wire import ASKS, IDLE, SIZE, Ask, Stamp, encode_stamp, take_ask
from layer8.core.buffer import CappedBuffer
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.session import Close, Effect, Outbox, Send


class StampSession:
    """Answers each question, until one is nonsense, one too many, or too long in coming."""

    def __init__(self, now: float) -> None:
        """Begin at `now`, monotonic seconds like every `now` below."""
        self._began = now
        self._idle_at: float | None = now + IDLE
        self._left = ASKS
        self._buffer = CappedBuffer("SIZE", 2 * (SIZE + 2))
        self._outbox = Outbox()

    def received(self, data: bytes, now: float) -> None:
        """Take bytes, cut anywhere; what comes after the end is dropped."""
        view = memoryview(data)
        while view and self._idle_at is not None:
            self._buffer.append(bytes(view[: SIZE + 2]))  # never over the cap: less than one question waits
            view = view[SIZE + 2 :]
            try:
                while (ask := take_ask(self._buffer)) is not None:
                    self._answer(ask, now)
            except LimitExceeded:
                self._end("asks")
            except RemoteProtocolError:
                self._end("nonsense", abort=True)

    def lost(self, now: float) -> None:
        """Take the end of the connection."""
        self._idle_at = None

    def wake(self, now: float) -> None:
        """Close an idle connection when its time has come."""
        if self._idle_at is not None and now >= self._idle_at:
            self._end("idle")

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done and forget it."""
        return self._outbox.take()

    def deadline(self) -> float | None:
        """Give the second at which the connection is idle for too long."""
        return self._idle_at

    def _answer(self, ask: Ask, now: float) -> None:
        if not self._left:
            raise LimitExceeded("ASKS", ASKS)
        self._left -= 1
        self._idle_at = now + IDLE
        self._outbox.add(Send(encode_stamp(Stamp(int((now - self._began) * 1000), ask.data))))

    def _end(self, reason: str, abort: bool = False) -> None:
        self._idle_at = None
        self._outbox.add(Close(reason, abort))
