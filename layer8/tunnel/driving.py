"""One sealed request on Twisted: between whoever brings it, the exchange that opens it, and whoever answers it.

::

    front (an HTTP server) --received--> Driven --feed--> GatewayExchange
          <--begin, write, finish, cut--   |  ▲
    back (a backend)       <--body, whole--┘  └--respond, write, finish, failed--

Back-pressure goes through: a front that is full lets the backend rest, a backend that is full lets the front rest. What
a backend writes leaves in full chunks, and at the latest FLUSH later, so that an answer of one piece is one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.errors import Layer8Error, LocalProtocolError, StorageError
from layer8.core.session import Close, Effect, Send, Tell
from layer8.net.http_wire import CORK
from layer8.tunnel import wire
from layer8.tunnel.bhttp import Fields, Informational, Response
from layer8.tunnel.gateway import Gateway, Outcome, pad_event
from layer8.tunnel.gateway_session import Begin, Body, Broken, Call, GatewayExchange, Leave, Remember, Reply, Whole
from layer8.tunnel.replay import Verdict

T = TypeVar("T")
FLUSH: Final = 0.004  # seconds that a part of a chunk waits for more
SWEEP: Final = 1.0  # seconds between two looks at who is silent, and whether there is upkeep to do


class Front(Protocol):
    """Whoever has brought the request and takes the answer to it."""

    def reply(self, status: int, kind: str, body: bytes) -> None:
        """Answer all at once, and read no more."""

    def begin(self, kind: str) -> None:
        """Begin a 200 of this type, whose length nobody knows."""

    def write(self, data: bytes) -> None:
        """Send more of it."""

    def finish(self) -> None:
        """End it."""

    def cut(self) -> None:
        """End it so that it cannot pass for a whole one."""

    def rest(self, wanted: bool) -> None:
        """Read no more of the request, or again."""


class Work(Protocol):
    """What a backend does for one request."""

    def body(self, data: bytes) -> None:
        """Take a piece of the content."""

    def whole(self, trailers: Fields) -> None:
        """Take the end: the request is whole."""

    def broken(self) -> None:
        """Take that it will not become whole."""

    def leave(self) -> None:
        """Stop what is still under way: nobody waits any more. May come twice, and after the answer's end."""

    def rest(self, wanted: bool) -> None:
        """Give no more of the answer, or again."""


Backend = Callable[[Call, "Driven"], Work]
"""Calls a backend, which answers by `respond`, `write`, `finish`, `failed`."""
Threads = Callable[[Callable[[], T]], "Deferred[T]"]
"""Runs what may wait, elsewhere."""


def threads_of(reactor: Any) -> Threads[Any]:
    """Run what may wait in a reactor's threads."""
    return partial(deferToThreadPool, reactor, reactor.getThreadPool())


class Gate:
    """A gateway on a reactor: its upkeep, and the exchanges that are under way."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        gateway: Gateway,
        backend: Backend,
        *,
        threads: Threads[Any] | None = None,
        told: Callable[[bool, str], None] = lambda ok, why: None,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        """Take a gateway and who answers; `told` hears how well the keys are kept."""
        self.reactor = reactor
        self.gateway = gateway
        self.backend = backend
        self.seconds = seconds
        self.threads = threads or threads_of(reactor)
        self.under_way: set[Driven] = set()
        self._told = told
        self._loop = LoopingCall(self._look_around)
        self._loop.clock = reactor
        self._idle: list[Deferred[None]] = []
        self._flushing: set[Driven] = set()  # those with a part of a chunk that waits
        self._flush_call: IDelayedCall | None = None
        self._keeping = False

    def start(self) -> None:
        """Keep the keys from now on."""
        self._loop.start(SWEEP, now=False)

    def stop(self) -> None:
        """Keep nothing, and cut what is under way."""
        if self._loop.running:
            self._loop.stop()
        for one in list(self.under_way):
            one.cut()
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush_call = None

    def idle(self) -> Deferred[None]:
        """Give a deferred that fires when nothing is under way."""
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        self._look()
        return done

    def exchange(self, kind: bytes | None, authorization: bytes | None, front: Front) -> Driven | None:
        """Begin an exchange, or answer in the clear: a relay without its token, or a type that we do not know."""
        status = 415
        if not self.gateway.admits(authorization):
            status = 401
        else:
            session = self.gateway.exchange(kind, self.seconds())
            if session is not None:
                driven = Driven(session, front, self)
                self.under_way.add(driven)
                return driven
        front.reply(*self.gateway.refused(Reply(status)))
        return None

    def over(self, driven: Driven, outcome: Outcome | None) -> None:
        """Take the end of an exchange."""
        self.under_way.discard(driven)
        self._flushing.discard(driven)
        if outcome is not None:
            self.gateway.count(outcome)
        self._look()

    def _look(self) -> None:
        if not self.under_way:
            waiting, self._idle = self._idle, []
            for done in waiting:
                done.callback(None)

    def flush_soon(self, driven: Driven) -> None:
        """Let out what an exchange has, in FLUSH at the latest."""
        if self._flush_call is None:
            self._flush_call = self.reactor.callLater(FLUSH, self._flush)
        self._flushing.add(driven)

    def _flush(self) -> None:
        self._flush_call = None
        waiting, self._flushing = self._flushing, set()
        with CORK:
            for driven in waiting:
                driven.flush()

    def _look_around(self) -> None:
        now = self.seconds()
        with CORK:
            for driven in list(self.under_way):
                driven.look(now)
        if not self._keeping and self.gateway.due():
            self._keeping = True
            self.threads(self.gateway.upkeep).addCallbacks(self._kept, self._not_kept)

    def _kept(self, _: object) -> None:
        self._keeping = False
        self._told(True, "")

    def _not_kept(self, failure: Failure) -> None:
        self._keeping = False
        if not failure.check(Layer8Error):
            self.log.failure("the upkeep of keys failed", failure, event="gateway.bug")
        self._told(False, str(failure.value))


class Driven:
    """See the module."""

    log = Logger()
    __slots__ = (
        "_begun",
        "_busy",
        "_called",
        "_crowded",
        "_ending",
        "_events",
        "_front",
        "_full",
        "_gate",
        "_held",
        "_kind",
        "_outcome",
        "_over",
        "_replied",
        "_resting",
        "_session",
        "_work",
        "mark",
    )

    def __init__(self, session: GatewayExchange, front: Front, gate: Gate) -> None:
        """Begin; `received` and `ended` follow."""
        self._session = session
        self._front = front
        self._gate = gate
        self._work: Work | None = None
        self._events: bytearray | None = None  # of an event stream that is padded: what waits to leave
        self._held: list[bytes] | None = []  # what waits for the key that it names; None once that was looked for
        self._outcome: Outcome | None = None
        self.mark = b""  # what the replay set knows it by, once it was asked
        self._kind = ""  # of the answer
        self._begun = self._ending = self._replied = False
        self._busy = self._over = self._full = self._resting = self._called = False
        self._crowded = False  # enough of the answer waits to be sent

    # What the front says.

    def received(self, data: bytes) -> None:
        """Take bytes of the sealed request."""
        if self._held is not None:
            if self._held or (data and self._gate.gateway.lacks(data[0])):
                self._wait_for_key(data)
                return
            self._held = None
        self._session.received(data, self._gate.seconds())
        self._settle()

    def ended(self) -> None:
        """Take its end."""
        if self._held:
            self._held.append(b"")  # no piece of a body is empty
            return
        self._session.ended(self._gate.seconds())
        self._settle()

    def _wait_for_key(self, data: bytes) -> None:
        """Another worker may have made the key that this begins with."""
        assert self._held is not None
        self._held.append(data)
        if len(self._held) == 1:
            self._read_or_rest()
            self._gate.threads(self._gate.gateway.reload).addBoth(self._looked)

    def _looked(self, result: object) -> None:
        if isinstance(result, Failure) and not result.check(Layer8Error):
            self.log.failure("keys could not be read", result, event="gateway.bug")
        held, self._held = self._held or [], None
        with CORK:
            for data in held:
                if data:
                    self.received(data)
                else:
                    self.ended()
            self._read_or_rest()

    def cut(self) -> None:
        """End it at once."""
        self._front.cut()
        self.lost()

    def lost(self) -> None:
        """Take the end of the connection."""
        self._session.lost(self._gate.seconds())
        self._settle()
        self._end()

    def full(self) -> None:
        """Take that enough of the answer waits to be sent."""
        self._crowded = True
        if self._work is not None:
            self._work.rest(True)

    def room(self) -> None:
        """Take that there is room again."""
        self._crowded = False
        if self._session.padding:
            self._settle()
        elif self._work is not None:
            self._work.rest(False)

    # What the backend says.

    def respond(
        self, status: int, fields: Fields, length: int | None = None, early: Iterable[Informational] = ()
    ) -> None:
        """Take the head of the answer."""
        if self._gate.gateway.event_padding(fields):
            self._events, length = bytearray(), None
            fields = tuple((name, value) for name, value in fields if name != b"content-length")
        now = self._gate.seconds()
        head = Response(status, fields)
        self._say(self._session.respond, head, now, length=length, early=early)
        self._gate.flush_soon(self)

    def write(self, data: bytes) -> None:
        """Take a piece of its content."""
        if self._over:
            return
        if self._events is not None:
            self._events += data
        else:
            self._say(self._session.write, data, self._gate.seconds())
        self._gate.flush_soon(self)

    def finish(self, trailers: Fields = ()) -> None:
        """Take its end."""
        if self._events:
            rest, self._events = bytes(self._events), None
            self._say(self._session.write, rest, self._gate.seconds())
        self._say(self._session.finish, self._gate.seconds(), trailers)

    def failed(self, status: int = 502) -> None:
        """Take that there will be no (more of an) answer."""
        if self._over:
            return
        self._outcome = Outcome.FAILED
        self._session.failed(self._gate.seconds(), status)
        self._settle()

    def hold(self, wanted: bool) -> None:
        """Take whether the backend wants no more of the request for now."""
        self._full = wanted
        self._read_or_rest()

    def _say(self, word: Callable[..., None], *said: Any, **more: Any) -> None:
        """Tell the session what the backend says; what cannot be written costs the backend its answer."""
        if self._over:
            return
        try:
            word(*said, **more)
        except LocalProtocolError as error:
            self.log.warn("a backend's answer cannot be carried", event="gateway.answer_refused", reason=str(error))
            self._session.failed(self._gate.seconds())
        self._settle()

    def flush(self) -> None:
        """Let out what waits for more."""
        if self._over:
            return
        if self._events is not None:
            ready = pad_event(bytes(self._events))
            self._events.clear()
            self._say(self._session.write, ready, self._gate.seconds())
        self._say(self._session.flush, self._gate.seconds())

    def look(self, now: float) -> None:
        """Give up whom nobody hears from."""
        deadline = self._session.deadline()
        if deadline is not None and now >= deadline:
            self._session.wake(now)
            self._settle()

    def _settle(self) -> None:
        if self._busy:
            return  # told something while effects are carried out: the loop below goes on
        self._busy = True
        try:
            while effects := self._session.effects() or self._padding():
                last = effects[-1]
                if type(last) is Close:
                    sends = [effect for effect in effects if type(effect) is Send]
                    self._ending = len(sends) == 1 and not last.abort
                for effect in effects:
                    if type(effect) is Tell:
                        _TOLD[type(effect.what)](self, effect.what)
                    elif type(effect) is Send:
                        self._write(effect.data)
                    elif type(effect) is Close and not self._over:
                        self._close(effect)
        except Exception:  # a peer cannot cause one: it is a bug, and costs this exchange only
            self.log.failure("an exchange failed", event="gateway.bug")
            self._cut()
            self._session.lost(self._gate.seconds())
            self._end()
        finally:
            self._busy = False
        if not self._over:
            self._read_or_rest()

    def _padding(self) -> Sequence[Effect]:
        """Go on with an answer that is whole but for its padding, if there is room."""
        effects: Sequence[Effect] = ()
        while not effects and self._session.padding and not self._crowded:
            self._session.pad(self._gate.seconds())
            effects = self._session.effects()
        return effects

    def _body(self, what: Body) -> None:
        if self._work is not None:
            self._work.body(what.data)

    def _call(self, what: Call) -> None:
        self._called = True
        self._work = self._gate.backend(what, self)

    def _whole(self, what: Whole) -> None:
        if self._work is not None:
            self._work.whole(what.trailers)

    def _begin(self, what: Begin) -> None:
        self._kind = what.media.response

    def _reply(self, what: Reply) -> None:
        self._front.reply(*self._gate.gateway.refused(what))
        self._end()

    def _broken(self, _: Broken) -> None:
        self._outcome = Outcome.BROKEN
        if self._work is not None:
            self._work.broken()

    def _leave(self, _: Leave) -> None:
        if self._work is not None:
            self._work.leave()

    def _close(self, close: Close) -> None:
        if close.abort:
            self._cut()
            self._outcome = self._outcome or Outcome.FAILED
        else:
            if self._begun and not self._replied:
                self._front.finish()
            if self._called:
                self._outcome = self._outcome or Outcome.ANSWERED
        self._end()

    def _cut(self) -> None:
        """End it; where nothing was said yet with a word, for browsers ask again when they hear none."""
        if self._begun:
            self._front.cut()
        else:
            self._begun = self._replied = True
            self._front.reply(502, wire.PROBLEM_TYPE, wire.problem(502))

    def _write(self, data: bytes) -> None:
        """Send a piece of the answer, or all of it."""
        if self._begun:
            self._front.write(data)
        elif self._ending:
            self._begun = self._replied = True
            self._front.reply(200, self._kind, data)
        else:
            self._begun = True
            self._front.begin(self._kind)
            self._front.write(data)

    def _remember(self, asked: Remember) -> None:
        gateway = self._gate.gateway
        self.mark = asked.mark
        if not gateway.quick:
            done = self._gate.threads(partial(gateway.remember, asked))
            done.addCallbacks(self._remembered, self._forgot)
            return
        try:
            verdict = gateway.remember(asked)
        except StorageError:
            self._forgot()
        else:
            self._remembered(verdict)

    def _remembered(self, verdict: Verdict) -> None:
        with CORK:
            self._session.remembered(verdict, self._gate.seconds())
            self._settle()

    def _forgot(self, failure: Failure | None = None) -> None:
        """Nobody can say whether the request is new: it is not let in."""
        if failure is not None and not failure.check(StorageError):
            self.log.failure("a replay set failed", failure, event="gateway.bug")
        self._session.failed(self._gate.seconds(), 503)
        self._settle()

    def _read_or_rest(self) -> None:
        wanted = (self._full or bool(self._held) or self._session.paused) and not self._over
        if wanted != self._resting:
            self._resting = wanted
            self._front.rest(wanted)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        work, self._work = self._work, None
        if work is not None:
            work.leave()
        self._gate.over(self, self._outcome)


_TOLD: Final[dict[type, Callable[[Driven, Any], None]]] = {
    Begin: Driven._begin,
    Body: Driven._body,
    Broken: Driven._broken,
    Call: Driven._call,
    Leave: Driven._leave,
    Remember: Driven._remember,
    Reply: Driven._reply,
    Whole: Driven._whole,
}
