"""WebSockets on their way through a relay: two handshakes of our own, and the frames between, never opened.

::

    page ──GET /ws/{gw}, upgrade──> relay ──GET /.well-known/l8/ws, upgrade──> gateway
    page <──101───────────────────  relay <──101──────────────────────────────
    page ══frames══ _Leg ══ Passage ══ _Leg ══frames══ gateway

Of the page's handshake nothing goes on, neither Origin nor cookies nor extensions; the gateway's connection is not one
of the pool for requests. What is silent both ways for SOCKET_DEAD is left.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.core.errors import Unavailable
from layer8.net.http import Incoming
from layer8.net.http_client import Line, Pool
from layer8.net.http_wire import Deaf, Tally
from layer8.tunnel import passage, wire
from layer8.tunnel.admission import Admission, Pass, Wait
from layer8.tunnel.limits import HEAD_TIME, SOCKET_DEAD
from layer8.tunnel.passage import Breach, Passage
from layer8.tunnel.relay_session import RETRY_AFTER, Route
from layer8.tunnel.wire import PROBLEM_TYPE

SWEEP: Final = 5.0  # seconds between two looks at who is silent
LINGER: Final = 1.0  # seconds that a side has to say the end too
CLOSE_TIME: Final = 5.0  # seconds in which it has to take what was sent

Fields = Sequence[tuple[str, str]]


@define(eq=False)
class Piping:
    """All the WebSockets of a relay; `routes` name the path of the gateways' sockets."""

    clock: Any
    admission: Admission
    address_of: Callable[[Incoming], str]
    random: Callable[[int], bytes]
    routes: Mapping[str, Route] = field(factory=dict)
    pools: Mapping[str, Pool] = field(factory=dict)  # for handshakes only
    tally: Tally = field(factory=Tally)  # of the pages' legs; the gateways' are counted with their pools
    outcomes: Counter[str] = field(factory=Counter, init=False)
    log: Logger = field(factory=lambda: Logger(namespace="layer8.tunnel"))
    draining: bool = field(default=False, init=False)
    _live: set[_Pipe] = field(factory=set, init=False, repr=False)
    _sweep: IDelayedCall | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        """Count the sockets."""
        return len(self._live)

    def __bool__(self) -> bool:
        """Be true without any socket too."""
        return True

    def take(self, page: Incoming, gateway: str) -> None:
        """Take a request to `/ws/GATEWAY`."""
        route = self.routes.get(gateway)
        key = passage.offered(page.fields)
        if route is None:
            self._refuse(page, 404)
        elif page.method != "GET":
            self._refuse(page, 405, ("allow", "GET"))
        elif key is None or page.length:
            self._refuse(page, 426, ("upgrade", "websocket"), ("sec-websocket-version", passage.VERSION))
        elif self.draining:
            self._away(page, Wait(503, RETRY_AFTER))
        else:
            entered = self.admission.enter(gateway, self.address_of(page), self.clock.seconds())
            if isinstance(entered, Wait):
                self._away(page, entered)
                return
            pipe = _Pipe(self, page, route, key, entered)
            self._live.add(pipe)
            if self._sweep is None:
                self._sweep = self.clock.callLater(SWEEP, self._look)
            pipe.begin(self.pools[gateway])

    def over(self, pipe: _Pipe, entered: Pass, outcome: str) -> None:
        """Take the end of one."""
        self._live.discard(pipe)
        self.admission.leave(entered)
        self.outcomes[outcome] += 1
        if not self._live and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def drain(self) -> None:
        """Let pages go elsewhere: close every socket, and take none."""
        self.draining = True
        for pipe in list(self._live):
            pipe.close(passage.GOING_AWAY, "drained")

    def abort(self) -> None:
        """Cut every socket."""
        for pipe in list(self._live):
            pipe.cut("cut")
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def fail(self, page: Incoming, status: int) -> None:
        """Say that there is no socket."""
        if status == 503:
            self._away(page, Wait(503, RETRY_AFTER))
        else:
            self._refuse(page, status)

    def _away(self, page: Incoming, wait: Wait) -> None:
        after = str(max(1, round(wait.after)))
        self._refuse(page, wait.status, ("retry-after", after), problem=wire.NOT_FORWARDED)

    def _refuse(self, page: Incoming, status: int, *more: tuple[str, str], problem: str = wire.ABOUT_BLANK) -> None:
        fields = (("cache-control", "no-store"), ("content-type", PROBLEM_TYPE), *more)
        page.answer(status, fields, wire.problem(status, problem))

    def _look(self) -> None:
        self._sweep = self.clock.callLater(SWEEP, self._look) if self._live else None
        now = self.clock.seconds()
        for pipe in list(self._live):
            pipe.look(now)


class _Pipe(Deaf):
    """One socket; until both handshakes are over it hears the gateway's."""

    def __init__(self, piping: Piping, page: Incoming, route: Route, key: str, entered: Pass) -> None:
        self._piping = piping
        self._page: Incoming | None = page
        self._route = route
        self._key = key
        self._entered: Pass | None = entered
        self._outcome = "closed"
        self._ours = b64encode(piping.random(16)).decode()
        self._taking: Deferred[Line] | None = None
        self._line: Line | None = None
        self._legs: tuple[_Leg, _Leg] | None = None
        self._heard = piping.clock.seconds()
        self._patience = route.patience + HEAD_TIME
        self._tally = Tally()

    def begin(self, pool: Pool) -> None:
        self._tally = pool.tally
        taking = pool.take()
        self._taking = taking
        taking.addCallbacks(self._taken, self._untaken).addErrback(self._failed)

    def look(self, now: float) -> None:
        """Leave those that say nothing, or take nothing."""
        if any(leg.full_since and now - leg.full_since >= SOCKET_DEAD for leg in self._legs or ()):
            self.cut("silent")
        elif now - self._heard < self._patience:
            return
        elif self._legs is not None:
            self.close(passage.GOING_AWAY, "silent")
        else:
            self._give_up(504)

    def heard(self) -> None:
        self._heard = self._piping.clock.seconds()

    def now(self) -> float:
        """Give the time."""
        now: float = self._piping.clock.seconds()
        return now

    def later(self, seconds: float, what: Callable[[], None]) -> IDelayedCall:
        """Call later."""
        call: IDelayedCall = self._piping.clock.callLater(seconds, what)
        return call

    def close(self, code: int, outcome: str) -> None:
        """Close both legs with a code."""
        if self._legs is None:
            self._give_up(503)
            return
        self._outcome = outcome
        for leg in self._legs:
            leg.close(code)

    def said(self, leg: _Leg, code: int) -> None:
        """Take that one side has said the end."""
        self._outcome = "closed"
        leg.close(code, linger=0.0)
        leg.other.close(code)

    def breach(self, leg: _Leg, code: int) -> None:
        """Take that one side breaks the rules."""
        self._outcome = "refused"
        leg.close(code)
        leg.other.close(passage.GOING_AWAY)

    def cut(self, outcome: str) -> None:
        """Drop everything."""
        page, self._page = self._page, None
        if page is not None:
            page.abort()
        self._drop_line()
        self._outcome = outcome
        for leg in self._legs or ():
            leg.abort()
        if self._legs is None:
            self._over(outcome)

    # The gateway's handshake.

    def answered(self, status: int, fields: Fields, length: int | None) -> None:
        line, page = self._line, self._page
        if line is None or page is None:
            return
        if not page.open:
            self.cut("page")
            return
        if not passage.agreed(status, fields, self._ours):
            self._give_up(503 if status == 503 else 502)
            return
        self._line = self._page = None
        up = _Leg(self, Passage(masked=True), self._piping.tally, b"")
        down = _Leg(self, Passage(masked=False), self._tally, self._piping.random(4))
        up.other, down.other = down, up
        self._legs = (up, down)
        self._patience = SOCKET_DEAD
        self.heard()
        up.say(_yes(self._key))
        page.hand_over(up, b"")
        line.hand_over(down)
        up.counts = down.counts = True

    def ended(self) -> None:
        """Take the end of an answer that was no yes."""

    def lost(self) -> None:
        """Take the end of the gateway's connection."""
        self._line = None
        self._give_up(502)

    def _taken(self, line: Line) -> None:
        self._taking = None
        if self._page is None:
            line.cut()
            return
        self._line = line
        fields = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", self._ours),
            ("sec-websocket-version", passage.VERSION),
            ("sec-websocket-protocol", passage.PROTOCOL),
        ]
        if self._route.bearer:
            fields.append(("authorization", f"Bearer {self._route.bearer}"))
        line.request("GET", self._route.path, self._route.host, fields, self)

    def _untaken(self, failure: Failure) -> None:
        self._taking = None
        if failure.check(Unavailable):
            self._give_up(503)
        elif not failure.check(CancelledError):
            self._failed(failure)

    def _failed(self, failure: Failure) -> None:
        """Take a bug of ours."""
        self._piping.log.failure("a socket failed", failure, event="tunnel.failed")
        self.cut("cut")

    def _give_up(self, status: int) -> None:
        page, self._page = self._page, None
        if page is None:
            return
        self._drop_line()
        self._piping.fail(page, status)
        self._over(str(status))

    def _drop_line(self) -> None:
        taking, self._taking = self._taking, None
        if taking is not None:
            taking.cancel()
        line, self._line = self._line, None
        if line is not None:
            line.cut()

    def _over(self, outcome: str) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            self._piping.over(self, entered, outcome)

    # The legs.

    def left(self, leg: _Leg) -> None:
        """Take the end of a leg."""
        assert self._legs is not None
        if all(one.gone for one in self._legs):
            self._over(self._outcome)
        elif not leg.other.closed:
            self._outcome = "page" if leg is self._legs[0] else "gateway"
            leg.other.close(passage.GOING_AWAY)


@implementer(IPushProducer)
class _Leg(Protocol):
    """One of the two connections, once frames go over it; as a producer it is what its own transport holds back."""

    transport: Any
    other: _Leg

    def __init__(self, pipe: _Pipe, incoming: Passage, tally: Tally, mask: bytes) -> None:
        self._pipe = pipe
        self._incoming = incoming
        self._tally = tally
        self._mask = mask  # of our own control frames
        self._early: list[bytes] = []
        self._timer: IDelayedCall | None = None
        self.full_since = 0.0  # since when more waits to be sent than should, 0 if it does not
        self.counts = False  # what comes with the connection is counted already
        self.closed = False  # nothing more is sent
        self.gone = False

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        early, self._early = self._early, []
        for data in early:
            self._write(data)

    def say(self, data: bytes) -> None:
        """Send, unless the end has been said."""
        if not self.closed:
            self._write(data)

    def close(self, code: int, *, linger: float | None = None) -> None:
        """Say the end, and end: at once where the other side has said it, too."""
        if self.closed:
            return
        self._write(passage.close(code, self._mask))
        self.closed = True
        self._resume()
        if self._timer is None and not self.gone:
            self._timer = self._pipe.later(LINGER if linger is None else linger, self._leave)

    def abort(self) -> None:
        self.closed = True
        if not self.gone and self.transport is not None:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self.counts:
            self._tally.heard += len(data)
        if self.gone:
            return
        self._pipe.heard()
        try:
            out, controls = self._incoming.feed(data)
        except Breach as breach:
            self._pipe.breach(self, breach.code)
            return
        if out:
            self.other.say(out)
        for one in controls:
            if one.opcode == passage.CLOSE:
                self._pipe.said(self, one.code)
            elif one.opcode == passage.PING and not self.full_since:
                self.say(passage.control(passage.PONG, one.data, self._mask))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.gone:
            return
        self.gone = self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pipe.left(self)

    def pauseProducing(self) -> None:
        """Take that too much waits to be sent: the other side has to rest."""
        self.full_since = self.full_since or self._pipe.now()
        if self.other.transport is not None and not self.other.closed:
            self.other.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.full_since = 0.0
        self.other._resume()

    def stopProducing(self) -> None:
        """Take that the transport ends; `connectionLost` follows."""

    def _resume(self) -> None:
        if self.transport is not None and not self.gone:
            self.transport.resumeProducing()

    def _write(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        elif not self.gone:
            self._tally.sent += len(data)
            self.transport.write(data)

    def _leave(self) -> None:
        self._timer = self._pipe.later(CLOSE_TIME, self._drop)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _drop(self) -> None:
        self._timer = None
        self.transport.abortConnection()


def _yes(key: str) -> bytes:
    return (
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-accept: {passage.accept(key)}\r\nsec-websocket-protocol: {passage.PROTOCOL}\r\n\r\n"
    ).encode()
