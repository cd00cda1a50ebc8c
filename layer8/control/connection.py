"""One control connection, from the end of its handshake to its close; both ends are the same class.

::

    anonymous ──auth.token right, or a role granted──▶ ready ──drain──▶ draining
        └───────── 5 s, 3rd wrong token, 40 s of silence, a bad frame, 20 errors in a row ─────────▶ closed

Whole WebSocket text messages come in, effects come out; nothing here has a socket, a clock or a method. What may be
called is the table's to say: an anonymous connection's calls go there like all others.

`Invoke` asks the owner to run a method and to come back with `answered` or `failed`, once, also for a notification,
whose answer goes nowhere, and also after `Cancel`: until then the call keeps its place among CALLS_OPEN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from attrs import frozen

from layer8.control.calls import Calls
from layer8.control.errors import (
    CallTimedOut,
    CallUnavailable,
    ControlError,
    InvalidRequest,
    MethodNotFound,
    NoCapacity,
    RateLimited,
    Unauthenticated,
)
from layer8.control.events import Delivery
from layer8.control.jsonrpc import (
    BadMessage,
    Failure,
    Id,
    Notification,
    Request,
    Result,
    encode_error,
    encode_event,
    encode_notification,
    encode_result,
    is_id,
    parse,
)
from layer8.control.limits import (
    AUTH_FAILS,
    AUTH_TIME,
    CALL_BURST,
    CALL_RATE,
    CALL_RETRY_MS,
    CALLS_OPEN,
    DEAD,
    ERRORS,
    Rules,
)
from layer8.core.session import Close, Send, Tell


class Invoke(NamedTuple):
    """Run a method; `call` is this connection's number for it."""

    call: int
    method: str
    params: dict[str, Any]


class Cancel(NamedTuple):
    """Stop running this call: its caller does not want the answer, or is gone."""

    call: int


@frozen
class Answered:
    """The peer answered a call of ours."""

    id: Id
    result: Any


@frozen
class Failed:
    """A call of ours has no result: the peer's error, its time was over, or the connection is gone.

    With no id: the peer could not read some message of ours.
    """

    id: Id | None
    error: ControlError


@frozen
class Notified:
    """The peer told us something."""

    method: str
    params: dict[str, Any]


@frozen
class WrongToken:
    """The peer showed a token that is none; counts against its address."""


ControlEffect = Send | Close | Invoke | Cancel | Tell


class State(Enum):
    """Where the connection stands; `opening` is the handshake's, before there is one."""

    ANONYMOUS = "anonymous"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


class _Running(NamedTuple):
    id: Id | None  # None: a notification
    method: str


class Connection:
    """The states, the calls both ways and the caps of one control connection."""

    __slots__ = (
        "_calls",
        "_effects",
        "_errors",
        "_heard",
        "_ids",
        "_next",
        "_ours",
        "_prove_by",
        "_tokens",
        "_tokens_at",
        "_wrong",
        "rules",
        "state",
    )

    def __init__(self, rules: Rules, now: float, *, known: bool = False) -> None:
        """Start after the handshake; `known` says that it told who calls (peer uid, certificate, bearer token)."""
        self.rules = rules
        self.state = State.READY if known else State.ANONYMOUS
        self._prove_by = now + AUTH_TIME if rules.must_prove and not known else None
        self._heard = now
        self._tokens = CALL_BURST
        self._tokens_at = now
        self._errors = 0
        self._wrong = 0
        self._next = 1
        self._calls: dict[int, _Running] = {}
        self._ids: dict[Id, int] = {}
        self._ours = Calls()
        self._effects: list[ControlEffect] = []

    @property
    def running(self) -> int:
        """The peer's calls that have not been answered yet."""
        return len(self._calls)

    def received(self, data: bytes, now: float) -> None:
        """Take one whole text message."""
        if self.state is State.CLOSED:
            return
        self._heard = now
        if len(data) > self.rules.message:
            self._close("message_size")
            return
        try:
            message = parse(data, positional=self.rules.positional)
        except UnicodeDecodeError:
            self._close("utf8")
            return
        except BadMessage as bad:
            self._unreadable(bad)
            return
        self._errors = 0
        match message:
            case Request():
                self._called(message, now)
            case Notification():
                self._told(message, now)
            case Result(ident, result):
                if self._ours.answered(ident):
                    self._effects.append(Tell(Answered(ident, result)))
            case Failure(ident, error):
                if ident is None or self._ours.answered(ident):
                    self._effects.append(Tell(Failed(ident, error)))

    def received_binary(self, now: float) -> None:
        """Take a binary message, of which there are none."""
        self._close("binary")

    def heard(self, now: float) -> None:
        """Take a sign of life that is not a message, a ping or a pong, perhaps some time after it came."""
        self._heard = max(self._heard, now)

    def answered(self, call: int, result: Any, now: float) -> None:
        """Give a call its result, a JSON value.

        One that is over the message cap becomes no_capacity: lists are paged, JSON is never cut. Raises ValueError
        or TypeError, with the call still running, for a result that JSON does not have.
        """
        running = self._calls.get(call)
        if running is None:
            return
        message = b"" if running.id is None else encode_result(running.id, result)
        self._end(call, running)
        if running.id is None or self.state is State.CLOSED:
            return
        if running.method == "auth.token":
            self.known()
        if len(message) > self.rules.most:
            message = encode_error(running.id, NoCapacity("MESSAGE"))
        self._effects.append(Send(message))

    def failed(self, call: int, error: ControlError, now: float) -> None:
        """Give a call its error."""
        running = self._calls.get(call)
        if running is None:
            return
        self._end(call, running)
        if self.state is State.CLOSED:
            return
        if running.id is not None:
            self._refuse(running.id, error)
        if running.method == "auth.token" and isinstance(error, Unauthenticated):
            self._wrong += 1
            self._effects.append(Tell(WrongToken()))
            if self._wrong >= AUTH_FAILS:
                self._close("wrong_token")

    def known(self) -> None:
        """Note that the caller has been given a role."""
        self._prove_by = None
        if self.state is State.ANONYMOUS:
            self.state = State.READY

    def drain(self) -> None:
        """Take no new calls but those that look after the node itself."""
        if self.state is not State.CLOSED:
            self.state = State.DRAINING

    def resume(self) -> None:
        """Take calls again after `drain`."""
        if self.state is State.DRAINING:
            self.state = State.ANONYMOUS if self._prove_by is not None else State.READY

    def call(self, method: str, params: Mapping[str, Any], now: float, timeout: float) -> int:
        """Call the peer and give the call's id; Answered or Failed with that id is told once, within `timeout` s.

        Raises NoCapacity, and CallUnavailable when the connection is closed.
        """
        if self.state is State.CLOSED:
            raise CallUnavailable("the connection is closed")
        ident, message = self._ours.start(method, params, now + timeout, self.rules.most)
        self._effects.append(Send(message))
        return ident

    def forget(self, ident: Id) -> None:
        """Give up a call of ours: the peer is asked to cancel it, and nothing is told about it any more."""
        if self._ours.answered(ident):
            self._effects.append(Send(encode_notification("cancel", {"id": ident})))

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification; raises NoCapacity if it is over the message cap."""
        message = encode_notification(method, params)
        if len(message) > self.rules.most:
            raise NoCapacity("MESSAGE")
        if self.state is not State.CLOSED:
            self._effects.append(Send(message))

    def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Send events that a subscriber's queue gave out."""
        if self.state is not State.CLOSED:
            self._effects.extend(Send(encode_event(delivery)) for delivery in deliveries)

    def close(self, reason: str) -> None:
        """End the connection; `reason` is a word of `limits.CLOSE_CODES`, or another for the log."""
        self._close(reason)

    def lost(self, now: float) -> None:
        """Take the end of the connection: what runs is cancelled, what waits has failed."""
        if self.state is not State.CLOSED:
            self._over()

    def wake(self, now: float) -> None:
        """Take the arrival of `deadline()`; early or repeated calls do nothing."""
        if self.state is State.CLOSED:
            return
        for ident in self._ours.expired(now):
            self._effects.append(Send(encode_notification("cancel", {"id": ident})))
            self._effects.append(Tell(Failed(ident, CallTimedOut())))
        if now >= self._heard + DEAD:
            self._close("silent", abort=True)
        elif self._prove_by is not None and now >= self._prove_by:
            self._close("unproven")

    def effects(self) -> Sequence[ControlEffect]:
        """Give what has to be done and forget it."""
        taken, self._effects = self._effects, []
        return taken

    def deadline(self) -> float | None:
        """Give the monotonic second at which `wake` wants to be called."""
        if self.state is State.CLOSED:
            return None
        soonest = self._heard + DEAD
        if self._prove_by is not None and self._prove_by < soonest:
            soonest = self._prove_by
        ours = self._ours.deadline()
        return soonest if ours is None or soonest < ours else ours

    def _called(self, request: Request, now: float) -> None:
        ident, method, params = request
        if not self.rules.serves:
            self._refuse(ident, MethodNotFound(method))
        elif ident in self._ids:
            self._refuse(ident, InvalidRequest("this id is in flight already"))
        elif self.state is State.DRAINING and not method.startswith("node."):
            self._refuse(ident, CallUnavailable("draining"))
        elif (wait := self._throttle(now)) > 0:
            self._refuse(ident, RateLimited(wait))
        elif len(self._calls) >= CALLS_OPEN:
            self._refuse(ident, RateLimited(CALL_RETRY_MS))
        else:
            self._ids[ident] = self._invoke(ident, method, params)

    def _told(self, notification: Notification, now: float) -> None:
        method, params = notification
        if not self.rules.runs_notifications:
            self._effects.append(Tell(Notified(method, params)))
        elif method == "cancel":
            ident = params.get("id")
            if is_id(ident) and ident in self._ids:
                self._effects.append(Cancel(self._ids[ident]))
        elif self._throttle(now) <= 0 and len(self._calls) < CALLS_OPEN:
            self._invoke(None, method, params)

    def _invoke(self, ident: Id | None, method: str, params: dict[str, Any]) -> int:
        call = self._next
        self._next += 1
        self._calls[call] = _Running(ident, method)
        self._effects.append(Invoke(call, method, params))
        return call

    def _end(self, call: int, running: _Running) -> None:
        del self._calls[call]
        if running.id is not None:
            del self._ids[running.id]

    def _throttle(self, now: float) -> int:
        """Take one call from the rate; 0 if there was one, else milliseconds until there is."""
        tokens = min(CALL_BURST, self._tokens + (now - self._tokens_at) * CALL_RATE)
        self._tokens_at = now
        if tokens >= 1:
            self._tokens = tokens - 1
            return 0
        self._tokens = tokens
        return math.ceil((1 - tokens) / CALL_RATE * 1000)

    def _unreadable(self, bad: BadMessage) -> None:
        self._refuse(bad.id, bad.error)
        self._errors += 1
        if self._errors >= ERRORS:
            self._close("errors")

    def _refuse(self, ident: Id | None, error: ControlError) -> None:
        message = encode_error(ident, error)
        if len(message) > self.rules.most:
            message = encode_error(ident, NoCapacity("MESSAGE"))
        self._effects.append(Send(message))

    def _close(self, reason: str, abort: bool = False) -> None:
        if self.state is not State.CLOSED:
            self._effects.append(Close(reason, abort))
            self._over()

    def _over(self) -> None:
        self.state = State.CLOSED
        self._prove_by = None
        self._effects.extend(Cancel(call) for call in self._calls)
        gone = CallUnavailable("the connection is closed")
        self._effects.extend(Tell(Failed(ident, gone)) for ident in self._ours.end())
