"""One control connection at work, at either end: its session, its socket, the calls that run, the events that wait.

The session (`layer8.control.connection`) decides; this carries out what it asks for. With a table it serves the peer's
calls, and is the `Peer` that their methods see; with `notified` it hands on what the peer tells. Both ends may call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from secrets import token_hex
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.control.access import Caller
from layer8.control.connection import Answered, Cancel, Connection, Failed, Invoke, Notified, WrongToken
from layer8.control.errors import CallTimedOut, CallUnavailable, ControlError, Internal, NoCapacity, answer_to
from layer8.control.events import Subscriber
from layer8.control.jsonrpc import encode
from layer8.control.limits import Rules
from layer8.control.table import CALL_TIME, Table
from layer8.control.websocket import Pulse, Socket
from layer8.core.session import Close, Send, Tell

PUBLIC = frozenset({"public"})


@frozen
class Known:
    """Who a proof belongs to: a name, roles before any ceiling, and the host patterns of an owner."""

    name: str
    roles: frozenset[str] = PUBLIC
    hosts: tuple[str, ...] = ()


NOBODY = Known("anonymous")


@define
class Counts:
    """What the conversations of one listener have counted."""

    opened: int = 0
    calls: int = 0
    failures: int = 0
    notifications: int = 0
    wrong_tokens: int = 0


def ignore(_method: str, _params: dict[str, Any]) -> None:
    """Drop what a peer tells when nobody listens."""


def _nothing() -> None:
    """Do nothing."""


@define(eq=False, repr=False)
class Conversation:
    """A connection's owner and, for the methods that it calls, its `Peer`."""

    pulse: Pulse
    rules: Rules
    table: Table | None = None
    who: Known = NOBODY
    ceiling: frozenset[str] = PUBLIC
    private: bool = False
    address: str | None = None
    counts: Counts = field(factory=Counts)
    notified: Callable[[str, dict[str, Any]], None] = ignore
    crowd: set[Conversation] = field(factory=set)
    """Where it stands among the others of its listener while it is open."""
    on_open: Callable[[], None] = _nothing
    on_wrong_token: Callable[[], None] = _nothing
    slots: dict[str, object] = field(factory=dict)
    reason: str = ""
    """Why the connection ended, once it has."""

    _socket: Socket | None = None
    _session: Connection | None = None
    _caller: Caller | None = None
    _performing: bool = False
    _running: dict[int, Deferred[Any]] = field(factory=dict)
    _ours: dict[int, Deferred[Any]] = field(factory=dict)
    _when_lost: list[Callable[[], None]] = field(factory=list)
    _alarm: IDelayedCall | None = None
    _alarm_at: float = 0.0
    _subscriber: Subscriber | None = None
    _delivery: IDelayedCall | None = None
    _delivery_at: float = 0.0

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._session is not None and not self.reason

    def opened(self, socket: Socket) -> None:
        """Begin: the upgrade is done."""
        self._socket = socket
        self._session = Connection(self.rules, self.pulse.seconds(), known=self.who.roles != PUBLIC)
        self.counts.opened += 1
        self.crowd.add(self)
        self._arm()
        self.on_open()

    def received(self, message: bytes) -> None:
        """Take one text message."""
        assert self._session is not None
        self._session.received(message, self.pulse.seconds())
        self._perform()

    def writable(self) -> None:
        """Go on with events, which were held back while the peer did not read."""
        self._deliver_soon()

    def lost(self, reason: str) -> None:
        """End: cancel what runs, fail what waits, tell those who asked to be told."""
        self.reason = self.reason or reason
        self.crowd.discard(self)
        for call in (self._alarm, self._delivery):
            if call is not None:
                call.cancel()
        self._alarm = self._delivery = None
        if self._session is not None:
            self._session.lost(self.pulse.seconds())
            self._perform()
        if self._subscriber is not None and self.table is not None:
            self.table.leave(self._subscriber)
        callbacks, self._when_lost = self._when_lost, []
        for callback in callbacks:
            callback()
        self.slots.clear()
        self._caller = self._socket = None

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Send a notification; False, and nothing sent, when the connection is gone or its write buffer is full.

        Raises NoCapacity if it is over the message cap. This is the path that the proxy takes once per visitor, so it
        goes around the session, which has nothing to remember about a notification.
        """
        if self._socket is None or self.reason:
            return False
        message = _head(method) + encode(params) + b"}"
        if len(message) > self.rules.most:
            raise NoCapacity("MESSAGE")
        self.counts.notifications += 1
        return self._socket.send(message)

    async def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float = CALL_TIME) -> Any:
        """Call the peer and give its result; raises ControlError: its own, CallTimedOut, or CallUnavailable.

        Cancelling the wait asks the peer to cancel the call.
        """
        if self._session is None or self.reason:
            raise CallUnavailable("the connection is closed")
        ident = self._session.call(method, params or {}, self.pulse.seconds(), timeout)
        waiting: Deferred[Any] = Deferred(lambda _: self._forget(ident))
        self._ours[ident] = waiting
        self._perform()
        self._arm()
        return await waiting

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection is gone, at once if it is gone already."""
        if self.reason:
            callback()
        else:
            self._when_lost.append(callback)

    def grant(self, role: str) -> None:
        """Give the connection one more role; the listener's ceiling still stands over it."""
        self.become(self.who.name, self.who.roles | {role}, self.who.hosts)

    def become(self, name: str, roles: frozenset[str], hosts: tuple[str, ...] = ()) -> None:
        """Make the connection that of a named caller whose proof was right."""
        self.who = Known(name, roles, hosts)
        self._caller = None
        if self._session is not None:
            self._session.known()

    def close(self, reason: str = "done") -> None:
        """End the connection after what was sent has left."""
        if self._session is not None:
            self._session.close(reason)
            self._perform()

    def drain(self, draining: bool) -> None:
        """Take no new calls but `node.*`, or take them again."""
        if self._session is not None:
            if draining:
                self._session.drain()
            else:
                self._session.resume()

    def subscriber(self) -> Subscriber:
        """Give the queue of the events that this connection subscribed to."""
        if self._subscriber is None:
            self._subscriber = Subscriber(self._deliver_soon, self.rules.most)
        return self._subscriber

    def caller(self) -> Caller:
        """Give who calls over this connection, as it stands now."""
        if self._caller is None:
            self._caller = Caller(
                name=self.who.name,
                roles=self.who.roles,
                ceiling=self.ceiling,
                private=self.private,
                address=self.address,
                hosts=self.who.hosts,
                peer=self,
            )
        return self._caller

    def _perform(self) -> None:
        """Carry out what the session asks for, in order; what it asks for meanwhile comes after."""
        session, socket = self._session, self._socket
        if self._performing or session is None or socket is None:
            return
        self._performing = True
        try:
            while effects := session.effects():
                for effect in effects:
                    match effect:
                        case Send(data):
                            socket.send(data)
                        case Invoke():
                            self._invoke(effect)
                        case Tell(what):
                            self._told(what)
                        case Cancel(call):
                            running = self._running.get(call)
                            if running is not None:
                                running.cancel()
                        case Close(reason, abort):
                            self.reason = self.reason or reason
                            if abort:
                                socket.abort(reason)
                            else:
                                socket.end(reason)
        finally:
            self._performing = False

    def _told(self, what: object) -> None:
        match what:
            case Notified(method, params):
                self.notified(method, params)
            case Answered(ident, result):
                waiting = self._ours.pop(int(ident), None)
                if waiting is not None:
                    waiting.callback(result)
            case Failed(ident, error) if ident is not None:
                waiting = self._ours.pop(int(ident), None)
                if waiting is not None:
                    waiting.errback(Failure(error))
            case WrongToken():
                self.counts.wrong_tokens += 1
                self.on_wrong_token()

    def _forget(self, ident: int) -> None:
        if self._ours.pop(ident, None) is not None and self._session is not None:
            self._session.forget(ident)
            self._perform()

    def _invoke(self, invoke: Invoke) -> None:
        """Run one method; it may be done before this returns."""
        table = self.table
        assert table is not None and self._session is not None
        self.counts.calls += 1
        running = Deferred.fromCoroutine(table.call(self.caller(), invoke.method, invoke.params))
        if not running.called:
            row = table.methods.get(invoke.method)
            self._running[invoke.call] = running
            running.addTimeout(CALL_TIME if row is None else row.timeout, self.pulse.clock)
        running.addCallback(self._answer, invoke.call)
        running.addErrback(self._refuse, invoke.call)
        running.addBoth(self._ended, invoke.call)

    def _answer(self, result: Any, call: int) -> None:
        assert self._session is not None
        self._session.answered(call, result, self.pulse.seconds())

    def _refuse(self, reason: Failure, call: int) -> None:
        assert self._session is not None
        self.counts.failures += 1
        error = reason.value
        answer: ControlError
        if isinstance(error, CancelledError):
            answer = CallUnavailable("cancelled")
        elif isinstance(error, TimeoutError):
            answer = CallTimedOut()
        else:
            ident = token_hex(8)
            answer = answer_to(error, ident) if isinstance(error, Exception) else Internal(ident)
            if isinstance(answer, Internal):
                _log.failure("a method failed, told as {id}", reason, event="control.call_failed", id=ident)
        self._session.failed(call, answer, self.pulse.seconds())

    def _ended(self, _: object, call: int) -> None:
        self._running.pop(call, None)
        self._perform()

    def _arm(self) -> None:
        """Let `_wake` be called at the session's deadline, or before."""
        assert self._session is not None
        deadline = self._session.deadline()
        if deadline is None or (self._alarm is not None and self._alarm_at <= deadline):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self.pulse.clock.callLater(max(0.0, deadline - self.pulse.seconds()), self._wake)

    def _wake(self) -> None:
        self._alarm = None
        if self._session is None or self._socket is None:
            return
        # pings and pongs do not reach the session one by one: it hears of the last sign of life when it matters
        self._session.heard(self._socket.heard)
        self._session.wake(self.pulse.seconds())
        self._perform()
        self._arm()

    def _deliver_soon(self) -> None:
        """Deliver events when those that come in the same turn have come too."""
        if self._subscriber is None or self._socket is None or self._socket.blocked or self.reason:
            return
        deadline = self._subscriber.deadline()
        if deadline is None or (self._delivery is not None and self._delivery_at <= deadline):
            return
        if self._delivery is not None:
            self._delivery.cancel()
        self._delivery_at = deadline
        self._delivery = self.pulse.clock.callLater(max(0.0, deadline - self.pulse.seconds()), self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        if self._subscriber is None or self._session is None:
            return
        self._session.deliver(self._subscriber.take(self.pulse.seconds()))
        self._perform()
        self._deliver_soon()


@lru_cache(maxsize=256)
def _head(method: str) -> bytes:
    """Give a notification up to its parameters."""
    return b'{"jsonrpc":"2.0","method":' + encode(method) + b',"params":'


_log = Logger(namespace="layer8.control")
