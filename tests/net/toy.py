"""A session that does everything a session may ask for, one line at a time: what the adapters are tested with."""

from collections.abc import Sequence

from attrs import frozen

from layer8.core.buffer import CappedBuffer
from layer8.core.errors import LimitExceeded
from layer8.core.session import Close, Dial, Effect, Join, Outbox, Send, Tell

IDLE = 10.0  # seconds
LINE = 64  # bytes


@frozen
class Greeted:
    """The peer said its name."""

    name: bytes


class Toy:
    """Speaks first, echoes lines, closes a peer that is idle or talks nonsense."""

    def __init__(self) -> None:
        self._out = Outbox()
        self._lines = CappedBuffer("LINE", LINE)
        self._idle_at: float | None = None
        self._tick_at: float | None = None
        self._over = False
        self.losses = 0
        self._out.add(Send(b"hello\n"))

    def received(self, data: bytes, now: float) -> None:
        self._idle_at = now + IDLE
        while data and not self._over:
            piece, newline, data = data.partition(b"\n")
            try:
                self._lines.append(piece)
            except LimitExceeded:
                self._close("too long")
                return
            if newline:
                self._line(self._lines.take_all(), data, now)

    def lost(self, now: float) -> None:
        self.losses += 1
        self._over = True
        self._out.add(Tell("lost"), Send(b"nobody gets this"))

    def wake(self, now: float) -> None:
        if self._tick_at is not None and now >= self._tick_at:
            self._tick_at = now + 1.0
            self._out.add(Send(b"tick" * 50_000))
        if self._idle_at is not None and now >= self._idle_at:
            self._close("idle")

    def effects(self) -> Sequence[Effect]:
        return self._out.take()

    def deadline(self) -> float | None:
        return None if self._over else min(filter(None, (self._idle_at, self._tick_at)), default=None)

    def answered(self, text: bytes) -> None:
        """Take the answer to a dial: a word of this session's own."""
        self._out.add(Send(b"dialled " + text + b"\n"))

    def _line(self, line: bytes, rest: bytes, now: float) -> None:
        word, _, argument = line.partition(b" ")
        match word:
            case b"echo":
                self._out.add(Send(argument + b"\n"))
            case b"name":
                self._out.add(Tell(Greeted(argument)))
            case b"flood":
                self._out.add(*(Send(b"x" * 1000) for _ in range(int(argument))))
            case b"ticks":
                self._tick_at, self._idle_at = now + 1.0, None
            case b"dial":
                self._out.add(Dial(7, argument.decode("ascii", "replace")))
            case b"join":
                self._over = True
                self._out.add(Join(7, rest))
            case b"bye":
                self._out.add(Send(b"bye\n"))
                self._close("bye")
            case b"drop":
                self._close("drop", abort=True)
            case b"bug":
                raise ZeroDivisionError
            case _:
                self._close("nonsense")

    def _close(self, reason: str, *, abort: bool = False) -> None:
        self._over = True
        self._out.add(Close(reason, abort))
