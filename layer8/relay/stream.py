"""The streams at one end of a circuit: windows, acknowledgements, half close; the same at a client and at an exit.

::

    streams.open(Open(Proto.TCP, "example.org", 443), sink) -> Stream     the end that asks
    asked(stream, open)                                                   the end that is asked, then one of
        stream.sink = sink; stream.accept(Opened(...))                    yes: data that came early follows
        stream.close(Reason.POLICY)                                       no

What a stream is told to write is cut into cells at the end of the turn: one call of the onion functions for all
streams of a circuit, BURST data cells at a time as long as the link is not full.

 connecting -> open -> half local | half remote -> lingering -> closed

Flow control is between these two ends alone. A circuit may have CIRC_WINDOW data cells under way in each direction and
each stream STREAM_WINDOW of them. Every 32nd data cell of a direction ends in 16 random bytes; who reads it answers
with the tag of that very cell at once, so nobody can acknowledge what he has not got. A stream's own credit waits
until its sink has taken the data. Whoever sends more than he may, or acknowledges what he was not sent, loses the
circuit.

A datagram takes one cell and is never cut: one of more than DATA_TAGGED bytes, its address included, is dropped, as is
one that finds no credit or a full link. Networks do the same to datagrams of more than 1500 bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final, Protocol

from attrs import define, field, frozen

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.core.lanes import Lane
from layer8.relay.limits import (
    ACK_EVERY,
    BURST,
    CIRC_WINDOW,
    LINGERING,
    STALLED,
    STREAM_WINDOW,
    STREAMS_PER_CIRC,
    T_LINGER,
    T_STREAM,
)
from layer8.relay.turn import Sink, Slot, Turn
from layer8.relay.wire import (
    DATA,
    DATA_TAGGED,
    MESSAGE_HEAD,
    TAG,
    Command,
    Destroy,
    Open,
    Opened,
    Proto,
    Reason,
    disconnect,
    message,
    read_connect,
    read_disconnect,
    read_head,
    tagged,
)

NUMBERS: Final = 65_536
ENDS: Final = {
    Destroy.PROTOCOL: Reason.PROTOCOL,
    Destroy.INTERNAL: Reason.INTERNAL,
    Destroy.LIMIT: Reason.LIMIT,
    Destroy.UNREACHABLE: Reason.UNREACHABLE,
    Destroy.WRONG_IDENTITY: Reason.UNREACHABLE,
    Destroy.TIMEOUT: Reason.TIMEOUT,
}
"""What streams hear of a circuit's end; for anything else they were reset."""


TICK: Final = 5.0
"""Seconds between looks at who has waited for too long, where anybody waits."""
_DATA: Final = bytes((Command.DATA,))
_WHOLE: Final = DATA.to_bytes(2, "big")


Worker = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""`worker(work, done)` runs `work` off the reactor, then calls `done` in it with what came out, or the exception."""


class Cancels(Protocol):
    """Something that was to happen later."""

    def cancel(self) -> None:
        """Let it not happen; it has not happened yet."""


@frozen
class Means:
    """What a node lends to all of its circuits. `later` is a reactor's `callLater`, `chance` gives random bytes."""

    turn: Turn
    clock: Callable[[], float]  # monotonic seconds
    later: Callable[[float, Callable[[], None]], Cancels]
    chance: Callable[[int], bytes]


class End(Protocol):
    """The end of a circuit that streams stand on."""

    @property
    def slot(self) -> Slot:
        """Where its cells go."""

    def seal(self, messages: list[bytes], tags: list[bytes]) -> bool:
        """Send messages as RELAY cells and add the tag of each to `tags`; False if that has ended the circuit."""

    def control(self, command: int, stream: int, data: bytes, more: bool, early: bool) -> None:
        """Take a message that is not a stream's; may raise `RemoteProtocolError`."""


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


@define(eq=False)
class Streams:
    """All streams of one end of a circuit. The methods below `held` are for `Stream` alone."""

    _end: End
    _means: Means
    asked: Callable[[Stream, Open], None] | None = None  # None: the far end may open nothing
    live: dict[int, Stream] = field(factory=dict, init=False)
    received: int = field(default=0, init=False)  # data cells
    sent: int = field(default=0, init=False)  # data cells
    dead: bool = field(default=False, init=False)
    drained: Callable[[], None] | None = field(default=None, init=False)  # called when the last stream has gone
    _window: int = field(default=CIRC_WINDOW, init=False)  # data cells that may leave
    _acked: int = field(default=0, init=False)  # data cells received that we have acknowledged
    _stalled: int = field(default=0, init=False)  # data cells that paused sinks keep
    _expected: deque[bytes] = field(factory=deque, init=False)  # tags that acknowledgements have to echo
    _owed: deque[bytes] = field(factory=deque, init=False)  # tags that we have to echo
    _out: list[bytes] = field(factory=list, init=False)
    _marks: list[int] = field(factory=list, init=False)  # places in `_out` of the cells whose tags will be echoed
    _waiting: dict[Stream, None] = field(factory=dict, init=False)  # have something to say, in turn
    _noted: bool = field(default=False, init=False)
    _next: int = field(default=1, init=False)
    _gone: dict[int, None] = field(factory=dict, init=False)  # numbers of closed streams
    _lingering: Lane[tuple[int, Stream | None, int]] = field(factory=lambda: Lane(T_LINGER), init=False)
    _connecting: Lane[Stream] = field(factory=lambda: Lane(T_STREAM), init=False)
    _alarm: Cancels | None = field(default=None, init=False)

    def open(self, target: Open, sink: Sink) -> Stream:
        """Ask for a stream; what is written to it goes out with the question.

        Raises `LocalProtocolError` if there are too many, or the circuit is gone.
        """
        if self.dead:
            raise LocalProtocolError("this circuit is gone")
        if len(self.live) >= STREAMS_PER_CIRC:
            raise LocalProtocolError("this circuit has as many streams as it may have")
        now = self._means.clock()
        stream = Stream(self.number(), target, sink, self, True, now)
        self.live[stream.number] = stream
        self.say(Command.CONNECT, stream.number, target.encode())
        self._connecting.add(stream, now)
        self._wake_soon()
        return stream

    def number(self) -> int:
        """Give a number that no stream has, nor had lately."""
        while True:
            number = self._next
            self._next = number % (NUMBERS - 1) + 1
            if number not in self.live and number not in self._gone:
                return number

    def took(self, messages: Sequence[bytes], tags: Sequence[bytes], early: bool = False) -> None:
        """Take messages of the far end and the tags of their cells; raises `RemoteProtocolError`."""
        number = -1
        whole = b""
        pieces: list[bytes] = []
        data = int(Command.DATA)
        count = self.received
        for index, text in enumerate(messages):
            if text[0] != data:
                if pieces:
                    self._arrived(number, pieces)
                    pieces = []
                self.received = count
                self._control(text, early)
                if self.dead:
                    return
                continue
            count += 1
            head = text[:MESSAGE_HEAD]
            if head == whole:
                size = DATA
                pieces.append(text[MESSAGE_HEAD:])
            else:
                _, where, size, more = read_head(text)
                if more or not where:
                    raise RemoteProtocolError("data that belongs to no stream")
                if where != number:
                    if pieces:
                        self._arrived(number, pieces)
                    number, pieces, whole = where, [], b""
                if size == DATA:
                    whole = head
                pieces.append(text[MESSAGE_HEAD : MESSAGE_HEAD + size])
            if not count % ACK_EVERY:
                if size > DATA_TAGGED:
                    raise RemoteProtocolError("a cell with no room for its random bytes")
                self._owed.append(tags[index])
        self.received = count
        if count - self._acked > CIRC_WINDOW:
            raise RemoteProtocolError("data beyond the circuit's window")
        if pieces:
            self._arrived(number, pieces)
        if self._owed:
            self._acknowledge()

    def room(self) -> None:
        """Go on: the link takes cells again."""
        if self._waiting:
            self._note()

    def flush(self) -> None:
        """Send what has gathered, BURST data cells of it."""
        if self.dead:
            return
        self._fill()
        self._noted = False
        out, self._out = self._out, []
        marks, self._marks = self._marks, []
        if out:
            tags: list[bytes] = []
            if not self._end.seal(out, tags):
                return
            self._expected.extend(tags[place] for place in marks)
        if self._waiting and self._window > 0 and not self._end.slot.full:
            self._note()

    def lost(self, reason: Destroy) -> None:
        """Take the end of the circuit: every stream ends at once."""
        if self.dead:
            return
        self.dead = True
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        why = ENDS.get(reason, Reason.RESET)
        live, self.live = list(self.live.values()), {}
        self._waiting.clear()
        self._out.clear()
        for stream in live:
            self._tell_closed(stream, why)

    def push(self, messages: list[bytes]) -> None:
        """Send whole messages that are no stream's at the end of the turn."""
        if not self.dead:
            self._out += messages
            self._note()

    def lately(self, number: int) -> bool:
        """Say whether this number was given back a while ago."""
        return number in self._gone

    def forget(self, number: int) -> None:
        """Remember for a while that nobody is to have this number."""
        self._gone[number] = None
        if len(self._gone) > LINGERING:
            del self._gone[next(iter(self._gone))]
        self._lingering.add((number, None, 0), self._means.clock())
        self._wake_soon()

    @property
    def held(self) -> int:
        """Count the bytes that wait here: written and not sent, or come before anybody had accepted them."""
        return sum(stream.waits + sum(map(len, stream._early)) for stream in self.live.values())

    def chance(self, size: int) -> bytes:
        """Give random bytes."""
        return self._means.chance(size)

    def say(self, command: int, number: int, data: bytes = b"") -> None:
        """Send a message at the end of the turn."""
        if not self.dead:
            self._out.append(message(command, number, data))
            self._note()

    def ready(self, stream: Stream) -> None:
        """Let a stream say what it has."""
        self._waiting[stream] = None
        self._note()

    def datagram(self, stream: Stream, data: bytes) -> None:
        """Send one datagram now or never."""
        if len(data) > DATA_TAGGED or stream.credit <= 0 or self._window <= 0 or self._end.slot.full:
            return
        if (self.sent + 1) % ACK_EVERY:
            self._out.append(message(Command.DATA, stream.number, data))
        else:
            self._marks.append(len(self._out))
            self._out.append(tagged(stream.number, data, self.chance(TAG)))
        stream.credit -= 1
        stream.sent += len(data)
        self._window -= 1
        self.sent += 1
        self._note()

    def deliver(self, stream: Stream, pieces: list[bytes]) -> None:
        """Hand data to the sink, and give credit for it unless that is full now."""
        if stream.sink is not None:
            stream.received += sum(map(len, pieces))
            stream.sink.data(pieces)
        self.credit(stream)

    def credit(self, stream: Stream) -> None:
        """Give the far end credit for what the sink has taken."""
        if stream.paused or stream.closed or not (stream.opened or stream.mine):
            return
        self._stalled -= stream.owed // ACK_EVERY * ACK_EVERY
        while stream.owed >= ACK_EVERY:
            stream.owed -= ACK_EVERY
            if not (stream.heard_end or stream.last):
                self.say(Command.ACK, stream.number)
        if self._owed:
            self._acknowledge()

    def lingers(self, stream: Stream) -> None:
        """Give the last bytes of a stream T_LINGER to leave, and again as long as some do."""
        self._lingering.add((stream.number, stream, stream.sent), self._means.clock())
        self._wake_soon()

    def _arrived(self, number: int, pieces: list[bytes]) -> None:
        stream = self.live.get(number)
        if stream is None:
            if number not in self._gone:
                self._refuse(number, Reason.PROTOCOL)
            return
        count = len(pieces)
        stream.owed += count
        self._stalled += count
        if stream.owed > STREAM_WINDOW:
            raise RemoteProtocolError("data beyond the stream's window")
        if stream.heard_end:
            self._finish(stream, Reason.PROTOCOL)
            self._refuse(number, Reason.PROTOCOL)
        elif stream.last is not None:
            self.credit(stream)
        elif stream.opened:
            self.deliver(stream, pieces)
        elif stream.mine:
            raise RemoteProtocolError("data of a stream that was not opened")
        else:
            stream._early += pieces

    def _control(self, text: bytes, early: bool) -> None:
        command, number, size, more = read_head(text)
        data = text[MESSAGE_HEAD : MESSAGE_HEAD + size]
        if command == Command.DROP:
            return
        if command > Command.DROP or command < Command.CONNECT or (not number and command != Command.ACK):
            self._end.control(command, number, data, more, early)
        elif more:
            raise RemoteProtocolError("a message that cannot have fragments")
        elif command == Command.ACK:
            self._acknowledged(number, data)
        elif command == Command.CONNECT:
            self._connect(number, data)
        elif command == Command.CONNECT_OK:
            self._opened(number, data)
        else:
            self._disconnected(number, data)

    def _acknowledged(self, number: int, data: bytes) -> None:
        if not number:
            if not self._expected or self._expected.popleft() != data:
                raise RemoteProtocolError("an acknowledgement of what was not sent")
            self._window += ACK_EVERY
            self.room()
            return
        stream = self.live.get(number)
        if stream is not None:
            stream.credit += ACK_EVERY
            if stream.credit > STREAM_WINDOW or data:
                raise RemoteProtocolError("credit for what was not sent")
            if stream.waits:
                self.ready(stream)

    def _connect(self, number: int, data: bytes) -> None:
        target = read_connect(data)
        if self.asked is None or not isinstance(target, Open):
            raise RemoteProtocolError("a stream that nobody may open here")
        used = self.live.get(number)
        if used is not None:
            self._finish(used, Reason.PROTOCOL)
            self._refuse(number, Reason.PROTOCOL)
        elif number in self._gone:
            return
        elif len(self.live) >= STREAMS_PER_CIRC:
            self._refuse(number, Reason.LIMIT)
        else:
            stream = self.live[number] = Stream(number, target, None, self, False, self._means.clock())
            self.asked(stream, target)

    def _opened(self, number: int, data: bytes) -> None:
        stream = self.live.get(number)
        if stream is None:
            return
        if stream.opened or not stream.mine:
            raise RemoteProtocolError("an answer that nobody has asked for")
        opened = Opened.read(data)
        stream.opened = True
        if stream.sink is not None:
            stream.sink.opened(opened)

    def _disconnected(self, number: int, data: bytes) -> None:
        stream = self.live.get(number)
        if stream is None:
            return
        reason, half = read_disconnect(data)
        if not half:
            self._finish(stream, reason)
            return
        if stream.heard_end or (stream.mine and not stream.opened):
            raise RemoteProtocolError("an end that cannot be")
        stream.heard_end = True
        if stream.opened and stream.sink is not None:
            stream.sink.ended()
        if stream.said_end and not stream.closed:
            self._finish(stream, Reason.DONE)

    def _acknowledge(self) -> None:
        while self._owed and self._stalled < STALLED:
            self._acked += ACK_EVERY
            self.say(Command.ACK, 0, self._owed.popleft())

    def _fill(self) -> None:
        """Cut what streams have to say into `_out`: BURST cells, shared among them."""
        burst = BURST
        blocked: list[Stream] = []
        slot = self._end.slot
        while self._waiting and burst > 0:
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            if stream.closed:
                continue
            if stream.waits and not slot.full:
                most = min(stream.credit, self._window, burst)
                if len(self._waiting) > 0:
                    most = min(most, max(BURST // (len(self._waiting) + 1), 1))
                if most > 0:
                    made, marks = stream.cut(most, ACK_EVERY - self.sent % ACK_EVERY)
                    self._marks += [len(self._out) + place for place in marks]
                    self._out += made
                    count = len(made)
                    self._window -= count
                    self.sent += count
                    burst -= count
            if not stream.waits:
                self._emptied(stream)
                continue
            stream.hold()
            if stream.credit > 0:  # without, it comes back with its next credit
                if self._window > 0 and not slot.full:
                    self._waiting[stream] = None
                else:
                    blocked.append(stream)
        self._waiting.update(dict.fromkeys(blocked))

    def _emptied(self, stream: Stream) -> None:
        if stream.last is not None:
            self.say(Command.DISCONNECT, stream.number, disconnect(stream.last))
            self._finish(stream, stream.last)
        elif stream._ending and not stream.said_end:
            stream.said_end = True
            self.say(Command.DISCONNECT, stream.number, disconnect(Reason.DONE, half=True))
            if stream.heard_end:
                self._finish(stream, Reason.DONE)
        elif stream.held:
            stream.held = False
            if stream.sink is not None and not stream.said_end:
                stream.sink.go_on()

    def _finish(self, stream: Stream, reason: Reason) -> None:
        """Let go of a stream whose end was said or heard."""
        del self.live[stream.number]
        self._waiting.pop(stream, None)
        self._stalled -= stream.owed
        self.forget(stream.number)
        self._tell_closed(stream, reason)
        if self._owed:
            self._acknowledge()
        if not self.live and self.drained is not None:
            self.drained()

    def _tell_closed(self, stream: Stream, reason: Reason) -> None:
        sink, stream.sink = stream.sink, None
        stream.closed = True
        stream.drop()
        if sink is not None:
            sink.closed(reason)

    def _refuse(self, number: int, reason: Reason) -> None:
        if number not in self._gone:
            self.forget(number)
        self.say(Command.DISCONNECT, number, disconnect(reason))

    def _note(self) -> None:
        if not self._noted:
            self._noted = True
            self._means.turn.note(self)

    def _wake_soon(self) -> None:
        if self._alarm is None and not self.dead:
            self._alarm = self._means.later(TICK, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        now = self._means.clock()
        for stream in self._connecting.expired(now):
            if not (stream.opened or stream.closed or stream.last is not None):
                sink, stream.sink = stream.sink, None
                stream.close(Reason.TIMEOUT)
                if sink is not None:
                    sink.closed(Reason.TIMEOUT)
        for number, last, sent in self._lingering.expired(now):
            if last is None:
                self._gone.pop(number, None)
            elif not last.closed:
                if last.sent == sent:
                    last.last = Reason.RESET
                    last.drop()
                    self.ready(last)
                self.lingers(last)
        if len(self._connecting) or len(self._lingering):
            self._wake_soon()
