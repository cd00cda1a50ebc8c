"""Two links in memory, their owners and their takers, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from attrs import define, field

from layer8.relay.link import Ground, Link, Why
from layer8.relay.slots import Place
from layer8.relay.turn import Turn

NETWORK = hashlib.sha256(b"test").digest()[:8]
ALICE, BOB = b"a" * 32, b"b" * 32


@define(eq=False)
class Time:
    """A clock set by hand; `turn` is ended by `Pair.settle`."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@define(eq=False, slots=False)
class Taken:
    """A taker that keeps what it got."""

    slot: Place | None = None
    got: list[tuple[int, list[bytes]]] = field(factory=list)
    answers: list[tuple[int, bytes]] = field(factory=list)
    ends: list[int] = field(factory=list)
    rooms: int = 0
    on_room: Callable[[], None] | None = None

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        self.answers.append((kind, handshake))

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        self.got.append((cmd, [bytes(body) for body in bodies]))

    def gone(self, reason: int, now: float) -> None:
        self.ends.append(reason)

    def room(self, now: float) -> None:
        self.rooms += 1
        if self.on_room is not None:
            self.on_room()

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, bodies in self.got for body in bodies]


@define(eq=False)
class Watch:
    """An owner that lets everybody in and answers CREATE with the handshake backwards."""

    events: list[tuple[object, ...]] = field(factory=list)
    takers: list[Taken] = field(factory=list)
    decide: Callable[[Link, float], None] | None = None
    answer: bool = True

    def met(self, link: Link, now: float) -> None:
        if self.decide is None:
            link.admit(now)
        else:
            self.decide(link, now)

    def opened(self, link: Link, now: float) -> None:
        self.events.append(("opened", link.peer))

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        taker = Taken(slot)
        self.takers.append(taker)
        slot.taker = taker
        if self.answer:
            slot.created(kind, handshake[::-1])

    def noticed(self, link: Link, notice: int, now: float) -> None:
        self.events.append(("noticed", notice))

    def closed(self, link: Link, why: Why, now: float) -> None:
        self.events.append(("closed", why))

    @property
    def ends(self) -> list[object]:
        return [event[1] for event in self.events if event[0] == "closed"]


@define(eq=False)
class Thread:
    """One direction of bytes: a `Wire` that keeps what was written until somebody passes it on."""

    written: list[bytes] = field(factory=list)
    held: bool = False
    ended: bool | None = None  # how it was hung up
    writes: int = 0
    at: float | None = None

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.written.append(data)

    def hold(self, held: bool) -> None:
        self.held = held

    def due(self, at: float | None) -> None:
        self.at = at

    def hang_up(self, abort: bool) -> None:
        self.ended = abort

    def take(self) -> bytes:
        taken, self.written = b"".join(self.written), []
        return taken


def ground(
    time: Time, *, network: bytes = NETWORK, wall: float = 1.7e9, pad: Callable[[], float] = lambda: 3.0
) -> Ground:
    count = [0]

    def random(size: int) -> bytes:
        count[0] += 1
        return hashlib.sha256(count[0].to_bytes(4, "big")).digest()[:size]

    return Ground(network, Turn(lambda end: None), time, lambda: wall + time.now, random, pad)


class Pair:
    """A dialling link and an accepting one; nothing moves but in `settle`."""

    def __init__(
        self,
        near: Ground | None = None,
        far: Ground | None = None,
        *,
        identities: tuple[bytes | None, bytes | None] = (ALICE, BOB),
        wanted: bytes | None = None,
        secure: bool = True,
    ) -> None:
        self.time = Time()
        self.near, self.far = near or ground(self.time), far or ground(self.time)
        if near is not None and isinstance(near.seconds, Time):
            self.time = near.seconds
        self.watches = Watch(), Watch()
        self.wires = Thread(), Thread()
        alice, bob = identities
        self.dialler = Link(self.near, self.watches[0], self.wires[0], dialled=True, wanted=wanted)
        self.acceptor = Link(self.far, self.watches[1], self.wires[1], dialled=False)
        if secure:
            self.acceptor.secured(self.time.now, peer=alice, named=bob is not None)
            self.dialler.secured(self.time.now, peer=bob, named=alice is not None)
            self.settle()

    def settle(self) -> None:
        """Pass everything on until nobody says more."""
        there, back = self.wires
        while True:
            self.near.turn.end()
            self.far.turn.end()
            if not there.written and not back.written:
                break
            if (data := there.take()) and not back.held:
                self.acceptor.received(data, self.time.now)
            elif data:
                there.written.insert(0, data)
            if (data := back.take()) and not there.held:
                self.dialler.received(data, self.time.now)
            elif data:
                back.written.insert(0, data)
            if there.held or back.held:
                break

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let both wake as often as they ask."""
        end = self.time.now + seconds
        while self.time.now < end:
            self.time.now = min(end, self.time.now + step)
            for link in (self.dialler, self.acceptor):
                due = link.deadline()
                if due is not None and due <= self.time.now:
                    link.wake(self.time.now)
            self.settle()

    def circuit(self) -> tuple[Place, Taken, Taken]:
        """Make one from the dialling side: its slot, its taker, and the other side's taker."""
        taker = Taken()
        slot = self.dialler.slot(taker)
        taker.slot = slot
        slot.create(1, b"hello")
        self.settle()
        return slot, taker, self.watches[1].takers[-1]
