"""What a page, or a client, knows of one gateway's keys: whether it may ask, and when it has to look for newer ones.

 idle -a request-> keys -verified-> ready -12 h before `not_after`-> refreshing -> ready
 any refusal of a key set -> failed: only `connect` leaves it; `close` from anywhere -> closed

All relays that are known are asked, and have to give the same bytes for one epoch: a gateway, or a relay, that hands a
set of its own to one person is found out. Two epochs may be told, since relays look for new sets at different times;
the later counts. A relay that does not answer is no refusal; what was verified is used until its time is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from attrs import frozen

from layer8.core.session import Effect, Outbox, Tell
from layer8.tunnel.keys import BadKeys, Flaw, KeySet
from layer8.tunnel.limits import KEYS_HURRY

EPOCHS: Final = 2  # that relays may tell of at one time


class State(Enum):
    """Where it is, in the words that pages are told."""

    IDLE = "idle"
    KEYS = "keys"
    READY = "ready"
    REFRESHING = "refreshing"
    FAILED = "failed"
    CLOSED = "closed"


@frozen
class Ask:
    """Ask every relay for the gateway's key set, and say `came`, or `missing`."""


@frozen
class Changed:
    """The state is another one; with FAILED comes the reason."""

    state: State
    flaw: Flaw | None = None


class ClientKeys:
    """See the module; `now` is the time of day, in seconds since 1970, since that is what key sets speak of.

    `seen` is the last epoch that was seen of this gateway, for who remembers it.
    """

    def __init__(self, gateway: str, pins: Iterable[bytes], seen: int = 0) -> None:
        """Begin with nothing."""
        self.gateway = gateway
        self.state = State.IDLE
        self.keys: KeySet | None = None
        self.flaw: Flaw | None = None
        self.seen = seen
        self._pins = tuple(pins)
        self._asked = float("-inf")
        self._out = Outbox()

    def wanted(self, now: float) -> KeySet | None:
        """Give the set to seal a request with; None if it has to wait, or cannot go: `state` says which."""
        if self.keys is not None and now > self.keys.not_after:
            self.keys = None
            if self.state in (State.READY, State.REFRESHING):
                self._go(State.IDLE if self.state is State.READY else State.KEYS)
        if self.state is State.IDLE:
            self._ask(State.KEYS, now)
        elif self.state is State.READY and self.keys is not None and self.keys.stale(now):
            self._hurry(now)
        return self.keys if self.state in (State.READY, State.REFRESHING) else None

    def unknown(self, now: float) -> None:
        """Take that the gateway does not know the key any more; it is believed every KEYS_HURRY seconds."""
        if self.state is State.READY:
            self._hurry(now)

    def came(self, documents: Sequence[bytes], now: float) -> None:
        """Take what the relays have given, one document of each that has answered."""
        if self.state not in (State.KEYS, State.REFRESHING):
            return
        if not documents:
            self.missing(now)
            return
        try:
            sets = [KeySet.read(one, self._pins) for one in sorted(set(documents))]
            if any(one.gateway != self.gateway for one in sets):
                raise BadKeys(Flaw.GATEWAY, "a key set of another gateway")
            if len(sets) > EPOCHS or len({one.epoch for one in sets}) < len(sets):
                raise BadKeys(Flaw.DIFFERENT, "relays that give different key sets")
            found = max(sets, key=lambda one: one.epoch)
            found.check(self.gateway, now, seen=self.seen)
        except BadKeys as error:
            self._fail(error.flaw)
            return
        self.keys, self.seen = found, found.epoch
        self._go(State.READY)

    def missing(self, now: float) -> None:
        """Take that no relay has answered."""
        if self.state is State.KEYS:
            self._go(State.IDLE)
        elif self.state is State.REFRESHING:
            self._go(State.READY)

    def connect(self, now: float) -> None:
        """Begin anew after a failure."""
        if self.state is State.FAILED:
            self.flaw = None
            self._ask(State.KEYS, now)

    def close(self) -> None:
        """End; nothing leaves this state."""
        if self.state is not State.CLOSED:
            self.keys = None
            self._go(State.CLOSED)

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._out.take()

    def _hurry(self, now: float) -> None:
        if now - self._asked >= KEYS_HURRY:
            self._ask(State.REFRESHING, now)

    def _ask(self, state: State, now: float) -> None:
        self._asked = now
        self._go(state)
        self._out.add(Tell(Ask()))

    def _fail(self, flaw: Flaw) -> None:
        self.keys, self.flaw = None, flaw
        self._go(State.FAILED)

    def _go(self, state: State) -> None:
        self.state = state
        self._out.add(Tell(Changed(state, self.flaw)))
