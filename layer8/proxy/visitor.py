"""One visitor of the server, from its first byte to the moment when it is joined: states, no sockets.

::

    SNIFFING ──found──▶ ROUTED ──call───▶ REACHING ──reached──▶ JOINED
       │                  │                  │ ▲ ▲              │
       │ refused, late    │ refuse           │ │ └── returned ──┘
       │                  │                  │ └─ rejected, silent: the next subscriber
       ▼                  ▼                  ▼
     CLOSED             CLOSED             CLOSED: nobody left, too late, visitor gone

The five words are those of `layer8.core.session`; `call`, `refuse`, `rejected`, `reached` and `returned` are what its
owner learns elsewhere. Bytes are kept as they came and handed over with the `Join`, exactly once. A visitor whose first
bytes say everything begins as ROUTED, and one whose host the server itself serves needs no session at all.
Source: proxy.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum

from attrs import define, frozen

from layer8.core.session import Close, Effect, Join, Send, Tell
from layer8.proxy.choose import Seat
from layer8.proxy.sniff import Found, Refused, Sniffer, answer
from layer8.proxy.sniff import Reason as Doubt
from layer8.proxy.wire import Reason

# What the access log says of a sniffer's doubts.
DOUBTS = {
    Doubt.NOT_TLS: Reason.OTHER_PROTOCOL,
    Doubt.NOT_HTTP: Reason.OTHER_PROTOCOL,
    Doubt.BAD_RECORD: Reason.BAD_TLS,
    Doubt.BAD_HELLO: Reason.BAD_TLS,
    Doubt.LONG_HELLO: Reason.SNIFF_SIZE,
    Doubt.LONG_HEAD: Reason.SNIFF_SIZE,
    Doubt.MANY_FIELDS: Reason.SNIFF_SIZE,
    Doubt.PROXY_HEADER: Reason.BAD_PROXY_HEADER,
    Doubt.SLOW: Reason.SNIFF_TIME,
}
_BY_SCHEME = {"http": Reason.BAD_HTTP, "https": Reason.BAD_TLS}

# A visitor who could not be carried to a host that is registered: told so only with `unknown = "answer"`.
UNSERVED = {
    Reason.NO_SUBSCRIBER: answer(503),
    Reason.PENDING_LIMIT: answer(503),
    Reason.HOST_LIMIT: answer(503),
    Reason.DRAINING: answer(503),
    Reason.REJECTED: answer(502),
    Reason.CALL_TIME: answer(502),
    Reason.TARGET_REFUSED: answer(502),
}


def reason_for(refused: Refused, scheme: str) -> Reason:
    """Give the access log's word for a sniffer's doubt, on a port of that kind."""
    return DOUBTS.get(refused.reason) or _BY_SCHEME[scheme]


class State(Enum):
    """Where a visitor stands."""

    SNIFFING = "sniffing"
    ROUTED = "routed"
    REACHING = "reaching"
    JOINED = "joined"
    CLOSED = "closed"


@frozen
class Ask:
    """Ask this subscriber to dial back for the visitor; what was asked of another one is void."""

    seat: Seat


Next = Callable[[Collection[Seat]], Seat | None]
"""Gives the best subscriber outside those that were tried, or None."""


@frozen
class Times:
    """How long a visitor may take, in seconds: to say its name, each agent to dial back, all agents together."""

    sniff: float = 10.0
    step: float = 1.5
    call: float = 5.0


@define(eq=False)
class Visitor:
    """The server's side of one visitor's conversation, as a session; `opened` is monotonic seconds."""

    sniffer: Sniffer
    _scheme: str
    _times: Times
    opened: float
    state: State = State.SNIFFING
    seat: Seat | None = None
    _until: float | None = None
    _give_up: float = 0.0
    _next: Next | None = None
    _tried: tuple[Seat, ...] = ()
    _refused: bool = False
    _asked: list[Effect] | None = None

    def __attrs_post_init__(self) -> None:
        """Give a visitor without a name its time."""
        if self.state is State.SNIFFING:
            self._until = self.opened + self._times.sniff

    def received(self, data: bytes, now: float) -> None:
        """Take the visitor's bytes until its host is known; afterwards they belong to whoever it is joined with."""
        if self.state is not State.SNIFFING:
            return
        outcome = self.sniffer.feed(data)
        if outcome is None:
            return
        self._until = None
        if isinstance(outcome, Found):
            self.state = State.ROUTED
            self._asked = [Tell(outcome)]
        else:
            self._doubt(outcome)

    def lost(self, now: float) -> None:
        """Take the visitor's leaving before it was joined; afterwards the pump sees to it."""
        if self.state not in (State.JOINED, State.CLOSED):
            self._close(Reason.VISITOR_LEFT)

    def wake(self, now: float) -> None:
        """Take the time of `deadline`: too long without a name, or an agent that does not dial back."""
        if self._until is None or now < self._until:
            return
        self._until = None
        if self.state is State.SNIFFING:
            self._doubt(self.sniffer.late())
        elif self.state is State.REACHING:
            self._on_to_the_next(now)

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done and forget it."""
        asked, self._asked = self._asked, None
        return asked or ()

    def deadline(self) -> float | None:
        """Give when `wake` is wanted, in monotonic seconds."""
        return self._until

    @property
    def silent(self) -> bool:
        """Whether the visitor has not said a thing."""
        return not self.sniffer.data

    @property
    def data(self) -> bytes:
        """Give every byte the visitor has sent so far, in order."""
        return self.sniffer.data

    # What the owner learns elsewhere.

    def refuse(self, reason: Reason, answer: bytes = b"") -> None:
        """Send the visitor away, with an answer if there is one; only before it is joined."""
        if self.state in (State.JOINED, State.CLOSED):
            return
        if answer:
            self._ask(Send(answer))
        self._close(reason)

    def call(self, choose: Next, now: float) -> None:
        """Ask subscribers, the best first, until one dials back."""
        if self.state is not State.ROUTED:
            return
        self.state = State.REACHING
        self._next = choose
        self._give_up = now + self._times.call
        self._on_to_the_next(now)

    def rejected(self, seat: Seat, now: float) -> None:
        """Take a subscriber's no, or its leaving; only the one that is being asked counts."""
        if self.state is State.REACHING and seat is self.seat:
            self._refused = True
            self._on_to_the_next(now)

    def reached(self) -> None:
        """Take that the other side is there: from here on the pump carries the bytes."""
        if self.state is State.REACHING:
            self.state = State.JOINED
            self._until = None
            self._ask(Join(0, self.sniffer.data))

    def returned(self, now: float) -> None:
        """Take that the one who was reached has refused after all, and nothing but `data` had gone there."""
        if self.state is State.JOINED:
            self.state = State.REACHING
            self._asked = None
            self._refused = True
            self._on_to_the_next(now)

    def _on_to_the_next(self, now: float) -> None:
        choose = self._next
        if choose is None:
            return
        found = choose(self._tried) if now < self._give_up else None
        if found is None:
            if not self._tried:
                self.refuse(Reason.NO_SUBSCRIBER)
            else:
                self.refuse(Reason.REJECTED if self._refused else Reason.CALL_TIME)
            return
        self._tried += (found,)
        self.seat = found
        self._until = min(now + self._times.step, self._give_up)
        self._ask(Tell(Ask(found)))

    def _doubt(self, refused: Refused) -> None:
        if refused.answer:
            self._ask(Send(refused.answer))
        self._close(reason_for(refused, self._scheme))

    def _close(self, reason: Reason) -> None:
        self.state = State.CLOSED
        self._until = self._next = None
        self._ask(Close(reason))

    def _ask(self, effect: Effect) -> None:
        if self._asked is None:
            self._asked = [effect]
        else:
            self._asked.append(effect)
