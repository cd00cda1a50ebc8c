"""The access point: a service listens with an auth key, and whoever knows that key may knock.

::

 idle -> listening(auth key) -> busy (no knock left) -> gone

It sees the auth key, how many knock and with how much work, and neither the service's address nor who knocks. A service
shows for each circuit that the auth key is its own; a second one with the same key is refused as long as the first
one's circuit stands and is answered on, so that a service that comes back need not wait until the old one is given up.
Work that is asked for is checked here, so that the service never hears of a knock without it.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.roles import Asker
from layer8.crypto.keys import verify
from layer8.rendezvous.limits import (
    INTRO_BURST,
    INTRO_RATE,
    KNOCKS_PER_CIRC,
    LISTENERS_PER_CIRC,
    LISTENERS_PER_NODE,
    POINT_INTROS,
    T_PING,
)
from layer8.rendezvous.price import Seeds
from layer8.rendezvous.wire import (
    Answer,
    Connect,
    Knock,
    Listen,
    Listening,
    Renzv,
    Status,
    Tune,
    listen_text,
)

COMMANDS: Final = frozenset(map(int, (Renzv.RES_LISTEN, Renzv.RES_TUNE, Renzv.RES_CONNECT, Renzv.PING_OK)))
NUMBERS: Final = 2**32
ALL_BURST: Final = 2 * INTRO_BURST  # knocks of all levels at once: a circuit's queue of cells holds more
ALL_RATE: Final = 4 * INTRO_RATE
LEVELS: Final = 16  # of work, each twice the one below: a flood that pays little is not in the way of who pays more


@define(eq=False)
class Listener:
    """A service that listens here with an auth key."""

    auth_key: bytes
    asker: Asker = field(repr=False)
    left: int = field(default=POINT_INTROS, init=False)
    passed: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)  # for want of work
    doubted: float | None = field(default=None, init=False)  # since when it has not said that it is there
    seeds: Seeds = field(factory=Seeds, init=False, repr=False)
    _at: float
    _all: float = field(default=float(ALL_BURST), init=False)  # knocks of all levels that may be passed on
    _since: float = field(init=False)
    _buckets: dict[int, tuple[float, float]] = field(factory=dict, init=False, repr=False)  # knocks, and since when

    def __attrs_post_init__(self) -> None:
        """Begin with full buckets."""
        self._since = self._at

    def take(self, now: float, effort: int) -> bool:
        """Take one knock if there is room for it; who has done twice the work finds room of his own."""
        asked = self.seeds.effort
        level = min((effort // asked).bit_length(), LEVELS) if asked else 0
        left, at = self._buckets.get(level, (float(INTRO_BURST), self._since))
        left = min(float(INTRO_BURST), left + (now - at) * INTRO_RATE)
        self._all = min(float(ALL_BURST), self._all + (now - self._at) * ALL_RATE)
        self._at = now
        # Who has done more takes what is kept back from those who have done less.
        good = left >= 1 and self.left >= 1 and self._all >= 1 + (ALL_BURST - INTRO_BURST) * (LEVELS - level) / LEVELS
        self._buckets[level] = left - good, now
        self._all -= good
        self.left -= good
        return good


@define(eq=False)
class Access:
    """The services that listen here: `layer8.core.roles.Answers`."""

    commands = COMMANDS
    listeners: dict[bytes, Listener] = field(factory=dict, init=False)  # by auth key
    _by_circuit: dict[int, list[bytes]] = field(factory=dict, init=False)
    _knocks: dict[int, int] = field(factory=dict, init=False)  # of each client's circuit
    _next: int = field(default=0, init=False)

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Take a message of a service or of a client; raises `RemoteProtocolError`."""
        if command == Renzv.RES_LISTEN:
            self._listen(asker, Listen.read(data), now)
        elif command == Renzv.RES_TUNE:
            self._tune(asker, Tune.read(data), now)
        elif command == Renzv.PING_OK:
            self._there(asker, data)
        else:
            self._connect(asker, Connect.read(data), now)

    def gone(self, circuit: int) -> None:
        """Forget what listened or knocked on a circuit that has ended."""
        self._knocks.pop(circuit, None)
        for auth_key in self._by_circuit.pop(circuit, ()):
            del self.listeners[auth_key]

    def _listen(self, asker: Asker, said: Listen, now: float) -> None:
        if not verify(said.auth_key, said.signature, listen_text(asker.binding)):
            raise RemoteProtocolError("an auth key without its signature for this circuit")
        self._still_there(said.auth_key, now)
        if len(self.listeners) >= LISTENERS_PER_NODE:
            raise LimitExceeded("LISTENERS_PER_NODE", LISTENERS_PER_NODE)
        mine = self._by_circuit.setdefault(asker.circuit, [])
        if len(mine) >= LISTENERS_PER_CIRC:
            raise LimitExceeded("LISTENERS_PER_CIRC", LISTENERS_PER_CIRC)
        mine.append(said.auth_key)
        self.listeners[said.auth_key] = Listener(said.auth_key, asker, now)
        asker.answer(Renzv.RES_LISTEN_OK, Listening(int(INTRO_RATE), INTRO_BURST, POINT_INTROS).encode())

    def _still_there(self, auth_key: bytes, now: float) -> None:
        """Refuse a second one with a key while the first answers, and ask it; let go of one that does not."""
        there = self.listeners.get(auth_key)
        if there is None:
            return
        if there.doubted is None:
            there.doubted = now
            there.asker.answer(Renzv.PING, b"")
        if now - there.doubted < T_PING:
            raise RemoteProtocolError("an auth key that listens already")
        there.asker.destroy()
        self.gone(there.asker.circuit)

    def _there(self, asker: Asker, data: bytes) -> None:
        mine = self._by_circuit.get(asker.circuit)
        if mine is None or data:
            raise RemoteProtocolError("an answer of somebody who does not listen here")
        for auth_key in mine:
            self.listeners[auth_key].doubted = None

    def _tune(self, asker: Asker, said: Tune, now: float) -> None:
        if said.auth_key not in self._by_circuit.get(asker.circuit, ()):
            raise RemoteProtocolError("work for an auth key that listens on another circuit")
        self.listeners[said.auth_key].seeds.tune(said.seed, said.effort, now)

    def _connect(self, asker: Asker, said: Connect, now: float) -> None:
        knocks = self._knocks.get(asker.circuit, 0)
        if knocks >= KNOCKS_PER_CIRC:
            raise LimitExceeded("KNOCKS_PER_CIRC", KNOCKS_PER_CIRC)
        self._knocks[asker.circuit] = knocks + 1
        asker.answer(Renzv.RES_CONNECT_OK, self._pass(said, now).encode())

    def _pass(self, said: Connect, now: float) -> Answer:
        listener = self.listeners.get(said.auth_key)
        if listener is None or not listener.asker.alive:
            return Answer(Status.UNKNOWN)
        effort = listener.seeds.paid(said.auth_key, said.work, now)
        if effort is None:
            listener.refused += 1
            return Answer(Status.WORK, listener.seeds.effort)
        if not listener.take(now, effort):
            return Answer(Status.BUSY, listener.seeds.effort)
        listener.passed += 1
        self._next = (self._next + 1) % NUMBERS
        listener.asker.answer(Renzv.CONNECT, Knock(said.auth_key, self._next, said.work, said.blob).encode())
        return Answer(Status.PASSED)
