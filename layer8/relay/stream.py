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
from typing import Any, Final, Protocol
from weakref import WeakSet

from attrs import define, field, frozen

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.core.lanes import Lane
from layer8.relay.flow import State, Stream
from layer8.relay.limits import (
    ACK_EVERY,
    BURST,
    CIRC_WINDOW,
    LINGERING,
    PROCESS_STALLED,
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
    Reason,
    disconnect,
    message,
    read_connect,
    read_disconnect,
    read_head,
    tagged,
)

__all__ = ["ENDS", "Cancels", "End", "Means", "State", "Stream", "Streams", "Worker"]

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


Worker = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""`worker(work, done)` runs `work` off the reactor, then calls `done` in it with what came out, or the exception."""


class Cancels(Protocol):
    """Something that was to happen later."""

    def cancel(self) -> None:
        """Let it not happen; it has not happened yet."""


@define(eq=False)
class Stalled:
    """The data cells that slow sinks of all circuits keep: PROCESS_STALLED, and for more the fullest circuit dies."""

    cells: int = field(default=0, init=False)
    ends: WeakSet[Streams] = field(factory=WeakSet, init=False, repr=False)

    def relieve(self) -> None:
        """End circuits until there is room."""
        while self.cells > PROCESS_STALLED:
            max(self.ends, key=lambda streams: streams.stalled).overflow()


@frozen
class Means:
    """What a node lends to all of its circuits. `later` is a reactor's `callLater`, `chance` gives random bytes."""

    turn: Turn
    clock: Callable[[], float]  # monotonic seconds
    later: Callable[[float, Callable[[], None]], Cancels]
    chance: Callable[[int], bytes]
    stalled: Stalled = field(factory=Stalled)


class End(Protocol):
    """The end of a circuit that streams stand on."""

    @property
    def slot(self) -> Slot:
        """Where its cells go."""

    def seal(self, messages: list[bytes], tags: list[bytes]) -> bool:
        """Send messages as RELAY cells and add the tag of each to `tags`; False if that has ended the circuit."""

    def control(self, command: int, stream: int, data: bytes, more: bool, early: bool) -> None:
        """Take a message that is not a stream's; may raise `RemoteProtocolError`."""

    def close(self, reason: Destroy) -> None:
        """End the circuit: its streams are told by `Streams.lost`."""


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
    stalled: int = field(default=0, init=False)  # data cells that sinks keep who give no credit for them
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
        most = self._acked + CIRC_WINDOW  # what is acknowledged from here on, the far end could not know
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
        if count > most:
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
        self._stall(-self.stalled)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        why = ENDS.get(reason, Reason.RESET)
        live, self.live = list(self.live.values()), {}
        self._waiting.clear()
        self._out.clear()
        for stream in live:
            self._tell_closed(stream, why)

    def overflow(self) -> None:
        """End the circuit: of all it keeps most."""
        self._end.close(Destroy.LIMIT)

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
        self._stall(-(stream.owed // ACK_EVERY * ACK_EVERY))
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
        before = stream.owed // ACK_EVERY
        stream.owed += count
        if stream.owed // ACK_EVERY > before:
            self._stall((stream.owed // ACK_EVERY - before) * ACK_EVERY)
            if self.dead:
                return
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
            if self._window >= BURST:  # more is on its way, and long runs cost all hops less
                self.room()
            return
        stream = self.live.get(number)
        if stream is not None:
            stream.credit += ACK_EVERY
            if stream.credit > STREAM_WINDOW or data:
                raise RemoteProtocolError("credit for what was not sent")
            if stream.waits and stream.credit >= BURST:
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

    def _stall(self, cells: int) -> None:
        """Count what is kept, in whole credits: less than one of a stream is kept wherever there are streams."""
        if not cells:
            return
        everybody = self._means.stalled
        self.stalled += cells
        everybody.cells += cells
        everybody.ends.add(self)
        if everybody.cells > PROCESS_STALLED:
            everybody.relieve()

    def _acknowledge(self) -> None:
        while self._owed and self.stalled < STALLED:
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
        self._stall(-(stream.owed // ACK_EVERY * ACK_EVERY))
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
