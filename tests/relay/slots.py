"""Two ends of one circuit with nothing between them: slots that keep what is sent until somebody carries it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.task import Clock

from layer8.core.errors import RemoteProtocolError
from layer8.relay.stream import Means, Stream, Streams
from layer8.relay.turn import Taker, Turn
from layer8.relay.wire import MESSAGE, TAG, Address, Destroy, Open, Opened, Proto, Reason


def at_once(work: Callable[[], Any], done: Callable[[Any], None]) -> None:
    """A worker that works where it is asked."""
    try:
        result = work()
    except Exception as error:
        result = error
    done(result)


@define(eq=False)
class FakeSlot:
    """A slot that keeps (cmd, body) pairs."""

    circ: int = 1
    queued: int = 0
    full: bool = False
    sent: list[tuple[int, bytes]] = field(factory=list)
    closed: int | None = None
    taker: Taker | None = None
    payer: object = None

    def create(self, kind: int, handshake: bytes) -> None:
        self.sent.append((2, handshake))

    def created(self, kind: int, handshake: bytes) -> None:
        self.sent.append((3, handshake))

    def send(self, cmd: int, bodies: Sequence[bytes | memoryview]) -> None:
        self.sent += [(cmd, bytes(body)) for body in bodies]

    def close(self, reason: int) -> None:
        self.closed = reason


@define(eq=False)
class Told:
    """A sink that keeps all it hears, and can be slow."""

    heard: list[tuple[str, object]] = field(factory=list)
    pieces: list[bytes] = field(factory=list)
    on_data: Callable[[], None] | None = None
    on_go: Callable[[], None] | None = None

    def opened(self, opened: Opened) -> None:
        self.heard.append(("opened", opened))

    def data(self, pieces: list[bytes]) -> None:
        self.pieces += pieces
        if self.on_data is not None:
            self.on_data()

    def ended(self) -> None:
        self.heard.append(("ended", None))

    def closed(self, reason: Reason) -> None:
        self.heard.append(("closed", reason))

    def hold(self) -> None:
        self.heard.append(("hold", None))

    def go_on(self) -> None:
        self.heard.append(("go_on", None))
        if self.on_go is not None:
            self.on_go()

    @property
    def all(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def words(self) -> list[str]:
        return [word for word, _ in self.heard]


def means(clock: Clock, seed: int = 1) -> Means:
    """Lend a clock, a turn that ends when the clock moves, and known randomness."""
    chance = random.Random(seed)

    def later(end: Callable[[], None]) -> None:
        clock.callLater(0, end)

    return Means(Turn(later), clock.seconds, clock.callLater, chance.randbytes)


@define(eq=False)
class PlainEnd:
    """An end of a circuit whose cells are bare messages; the tag of a cell is its number."""

    clock: Clock
    asked: Callable[[Stream, Open], None] | None = None
    slot: FakeSlot = field(factory=FakeSlot)
    streams: Streams = field(init=False)
    means: Means = field(init=False)
    others: list[tuple[int, int, bytes, bool, bool]] = field(factory=list)
    broken: str = ""
    count: int = 0
    heard: int = 0

    def __attrs_post_init__(self) -> None:
        self.means = means(self.clock)
        self.streams = Streams(self, self.means, self.asked)

    def seal(self, messages: list[bytes], tags: list[bytes]) -> bool:
        for text in messages:
            assert len(text) == MESSAGE, len(text)
            self.count += 1
            tags.append(self.count.to_bytes(TAG, "big"))
        self.slot.send(4, messages)
        return True

    def control(self, command: int, stream: int, data: bytes, more: bool, early: bool) -> None:
        self.others.append((command, stream, data, more, early))

    def close(self, reason: Destroy) -> None:
        self.broken = reason.name
        self.streams.lost(reason)

    def take(self, messages: list[bytes]) -> None:
        tags = [(self.heard + at).to_bytes(TAG, "big") for at in range(1, len(messages) + 1)]
        self.heard += len(messages)
        try:
            self.streams.took(messages, tags)
        except RemoteProtocolError as error:
            self.broken = str(error)
            self.streams.lost(Destroy.PROTOCOL)


@define(eq=False)
class Ends:
    """Both ends, and whoever carries cells between them: all, or as many as asked."""

    clock: Clock = field(factory=Clock)
    accept: bool = True
    client: PlainEnd = field(init=False)
    exit: PlainEnd = field(init=False)
    streams: list[Stream] = field(factory=list)  # at the exit
    sinks: list[Told] = field(factory=list)  # at the exit
    opened: Opened = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.opened = Opened(Address("198.51.100.7"), 60)
        self.client = PlainEnd(self.clock)
        self.exit = PlainEnd(self.clock, self._asked)

    def _asked(self, stream: Stream, target: Open) -> None:
        sink = Told()
        self.streams.append(stream)
        self.sinks.append(sink)
        stream.sink = sink
        if self.accept:
            stream.accept(self.opened)

    def open(self, proto: Proto = Proto.TCP) -> tuple[Stream, Told]:
        """Open a stream at the client."""
        sink = Told()
        return self.client.streams.open(Open(proto, "host.test", 80), sink), sink

    def pair(self) -> tuple[Stream, Told, Stream, Told]:
        """Give an open stream with both its ends."""
        near, heard = self.open()
        self.settle()
        return near, heard, self.streams[-1], self.sinks[-1]

    def carry(self, most: int = 1_000_000) -> int:
        """Carry up to `most` cells each way, once; give how many went."""
        self.clock.advance(0)
        went = 0
        for near, far in ((self.client, self.exit), (self.exit, self.client)):
            gone, near.slot.sent = near.slot.sent[:most], near.slot.sent[most:]
            if gone:
                far.take([body for _, body in gone])
            went += len(gone)
        return went

    def settle(self, most: int = 1_000_000) -> None:
        """Carry until nothing is said any more."""
        while True:
            self.clock.advance(0)
            if not self.carry(most) and not self.clock_busy():
                return

    def clock_busy(self) -> bool:
        return any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())
