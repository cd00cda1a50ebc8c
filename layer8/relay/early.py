"""A stream as its user has it while there is none yet: what he says is kept, and said as soon as there is one."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from layer8.relay.limits import STREAM_WINDOW
from layer8.relay.stream import Stream
from layer8.relay.turn import Sink
from layer8.relay.wire import DATA

EARLY: Final = STREAM_WINDOW * DATA  # bytes that are kept; then the sink has to wait


@define(eq=False)
class Early:
    """See the module. What was said early is kept until it is `settled` that nobody will want to hear it again."""

    sink: Sink = field(repr=False)
    number: int = field(default=0, init=False)
    settled: bool = field(default=False, init=False)
    _stream: Stream | None = field(default=None, init=False)
    _early: list[bytes] = field(factory=list, init=False, repr=False)
    _size: int = field(default=0, init=False)
    _ending: bool = field(default=False, init=False)
    _held: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)

    def write(self, data: bytes) -> None:
        """Say bytes of any size, or one datagram."""
        if self._stream is not None:
            self._stream.write(data)
        if not self.settled:
            self._early.append(data)
            self._size += len(data)
            if self._size >= EARLY and not self._held:
                self._held = True
                self.sink.hold()

    def end(self) -> None:
        """Say no more; the other direction goes on."""
        self._ending = True
        if self._stream is not None:
            self._stream.end()

    def pause(self) -> None:
        """Give the far end no more credit."""
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        """Give credit again."""
        self._paused = False
        if self._stream is not None:
            self._stream.resume()

    def begun(self, stream: Stream) -> None:
        """Say on a stream what was said before."""
        self._stream, self.number = stream, stream.number
        if self._paused:
            stream.pause()
        for data in self._early:
            stream.write(data)
        if self._ending:
            stream.end()

    def settle(self) -> None:
        """Forget what was said early."""
        self.settled = True
        self._early.clear()

    def release(self) -> None:
        """Let the user go on who had to wait, unless the stream wants him to."""
        if self._held and self._stream is not None and not self._stream.held:
            self._held = False
            self.sink.go_on()
