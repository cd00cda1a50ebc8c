"""One stream at one end of a circuit: what its sink can say, and what of it waits; `layer8.relay.stream` draws it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from attrs import define, field

from layer8.core.errors import LocalProtocolError
from layer8.relay.limits import ACK_EVERY, STREAM_WINDOW
from layer8.relay.turn import Sink
from layer8.relay.wire import DATA, DATA_TAGGED, TAG, Command, Open, Opened, Proto, Reason, message, tagged

if TYPE_CHECKING:
    from layer8.relay.stream import Streams

_DATA: Final = bytes((Command.DATA,))
_WHOLE: Final = DATA.to_bytes(2, "big")


class State(Enum):
    """How far a stream is."""

    CONNECTING = "connecting"
    OPEN = "open"
    HALF_LOCAL = "half local"
    HALF_REMOTE = "half remote"
    LINGERING = "lingering"
    CLOSED = "closed"


@define(eq=False)
class Stream:
    """One stream. Its sink hears nothing more after `closed`, nor after it has called `close` itself."""

    number: int
    target: Open
    sink: Sink | None = field(repr=False)
    _owner: Streams = field(repr=False)
    mine: bool  # this end has asked for it
    since: float
    opened: bool = field(default=False, init=False)
    sent: int = field(default=0, init=False)  # bytes
    received: int = field(default=0, init=False)  # bytes
    said_end: bool = field(default=False, init=False)  # DISCONNECT for this direction has left
    heard_end: bool = field(default=False, init=False)
    closed: bool = field(default=False, init=False)  # nothing is left of it
    held: bool = field(default=False, init=False)  # the sink was told to wait
    paused: bool = field(default=False, init=False)  # by the sink
    credit: int = field(default=STREAM_WINDOW, init=False)  # data cells that may leave
    owed: int = field(default=0, init=False)  # data cells that came and gave no credit yet
    last: Reason | None = field(default=None, init=False)  # why it is to be closed when everything has left
    _ending: bool = field(default=False, init=False)  # nothing will be written any more
    _early: list[bytes] = field(factory=list, init=False, repr=False)  # came before `accept`
    _more: list[bytes] = field(factory=list, init=False, repr=False)  # was written since `_data` was made
    _data: bytes = field(default=b"", init=False, repr=False)  # leaves from `_at` on
    _at: int = field(default=0, init=False)
    _waits: int = field(default=0, init=False)  # bytes in both

    @property
    def state(self) -> State:
        """Say how far it is."""
        if self.closed:
            return State.CLOSED
        if self.last is not None:
            return State.LINGERING
        if not self.opened:
            return State.CONNECTING
        if self._ending:
            return State.HALF_LOCAL
        return State.HALF_REMOTE if self.heard_end else State.OPEN

    @property
    def waits(self) -> int:
        """Count the bytes that were written and have not left."""
        return self._waits

    def write(self, data: bytes) -> None:
        """Say bytes of any size, or one datagram; on a closed stream nobody hears it."""
        if self.closed or self.last is not None:
            return
        if self._ending:
            raise LocalProtocolError("this stream has said its end")
        if not (self.opened or self.mine):
            raise LocalProtocolError("a stream is accepted before anything is said on it")
        if self.target.proto == Proto.UDP:
            self._owner.datagram(self, data)
        elif data:
            self._more.append(data)
            self._waits += len(data)
            self._owner.ready(self)
            if self._waits > self.credit * DATA:
                self.hold()

    def end(self) -> None:
        """Say no more; the other direction goes on."""
        if not (self.closed or self._ending):
            self._ending = True
            self._owner.ready(self)

    def close(self, reason: Reason = Reason.DONE) -> None:
        """End both directions: with DONE after everything that was written has left, else at once."""
        if self.closed or self.last is not None:
            return
        self._ending = True
        self.last = reason
        self.sink = None
        self._early.clear()
        if reason != Reason.DONE:
            self.drop()
        self._owner.ready(self)
        self._owner.lingers(self)

    def accept(self, opened: Opened) -> None:
        """Answer yes, at the end that was asked; `sink` is set before. Data that came early follows."""
        if self.opened or self.mine:
            raise LocalProtocolError("a stream is accepted once, by whoever was asked")
        if not self.closed and self.last is None:
            self.opened = True
            self._owner.say(Command.CONNECT_OK, self.number, opened.encode())
            early, self._early = self._early, []
            if early:
                self._owner.deliver(self, early)
            if self.heard_end and self.sink is not None:
                self.sink.ended()

    def pause(self) -> None:
        """Give the far end no more credit: the sink is full. What is under way still comes."""
        self.paused = True

    def resume(self) -> None:
        """Give credit again."""
        if self.paused:
            self.paused = False
            if not self.closed:
                self._owner.credit(self)

    def hold(self) -> None:
        """Let the sink wait, and say so once."""
        if not self.held:
            self.held = True
            if self.sink is not None:
                self.sink.hold()

    def drop(self) -> None:
        """Forget what has not left."""
        self._more.clear()
        self._data = b""
        self._at = self._waits = 0

    def cut(self, most: int, to_tag: int) -> tuple[list[bytes], list[int]]:
        """Make up to `most` data cells of what waits; give them and the places of those that need a tag.

        `to_tag` cells from now on comes the next that is one of the 32nd.
        """
        if self._more:
            self._more.insert(0, self._data[self._at :] if self._at else self._data)
            self._data, self._at, self._more = b"".join(self._more), 0, []
        data, at, end = self._data, self._at, len(self._data)
        made: list[bytes] = []
        marks: list[int] = []
        head = b"".join((_DATA, self.number.to_bytes(2, "big"), _WHOLE))
        while at < end and len(made) < most:
            whole = min((end - at) // DATA, to_tag - 1, most - len(made))
            if whole:
                after = at + whole * DATA
                made += [head + data[begin : begin + DATA] for begin in range(at, after, DATA)]
                at = after
                to_tag -= whole
            elif to_tag == 1:
                marks.append(len(made))
                made.append(tagged(self.number, data[at : at + DATA_TAGGED], self._owner.chance(TAG)))
                at += DATA_TAGGED
                to_tag = ACK_EVERY
            else:
                made.append(message(Command.DATA, self.number, data[at : at + DATA]))
                at = end
                to_tag -= 1
        at = min(at, end)
        gone = at - self._at
        self.sent += gone
        self._waits -= gone
        self._data, self._at = (b"", 0) if at == end else (data, at)
        self.credit -= len(made)
        return made, marks
