"""Sealed requests on their way through a relay: one `RelayExchange` for each, two connections, and the bytes between.

::

    page ──Incoming──> _Upload ──Line──> gateway        request, paused while the gateway's leg is full
    page <──Incoming── _Exchange <──Line── gateway      answer, paused while the page's leg is full

What is decided is decided by the session; here bytes are carried and counted. Connections to a gateway are one pool for
everybody, and who comes first is served first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from layer8.core.errors import Unavailable
from layer8.core.session import Close, Dial, Tell
from layer8.net.http import Incoming
from layer8.net.http_client import Line, Pool
from layer8.net.http_wire import BUFFER
from layer8.tunnel import wire
from layer8.tunnel.admission import Admission, Wait
from layer8.tunnel.admission import Pass as Entered
from layer8.tunnel.relay_session import COMMON, CutGateway, Explain, Forward, Pass, RelayExchange, Reply, Route

SWEEP: Final = 1.0  # seconds between two looks at who is late
FRAMING: Final = frozenset(("content-length", "transfer-encoding"))
LOOKED_AT: Final = frozenset((b"content-type", b"content-length", b"incremental"))  # of a page's fields

Fields = Sequence[tuple[str, str]]


@define(eq=False)
class Relaying:
    """All the exchanges of a relay. `address_of` gives whom the limits count a request for, "" for this machine."""

    clock: Any
    admission: Admission
    address_of: Callable[[Incoming], str]
    hurry: Callable[[str], None]  # a gateway says that its key is another one
    routes: Mapping[str, Route] = field(factory=dict)
    pools: Mapping[str, Pool] = field(factory=dict)  # by gateway
    outcomes: Counter[str] = field(factory=Counter, init=False)  # how exchanges have ended
    log: Logger = field(factory=lambda: Logger(namespace="layer8.tunnel"))
    _live: set[_Exchange] = field(factory=set, init=False, repr=False)
    _sweep: IDelayedCall | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        """Count the exchanges that are under way."""
        return len(self._live)

    def __bool__(self) -> bool:
        """Be true without any exchange too."""
        return True

    def take(self, page: Incoming) -> None:
        """Take a request to `/r/...`."""
        exchange = _Exchange(self, page)
        self._live.add(exchange)
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP, self._look)
        exchange.begin()

    def over(self, exchange: _Exchange, outcome: str) -> None:
        """Take the end of one."""
        if exchange in self._live:
            self._live.discard(exchange)
            self.outcomes[outcome] += 1

    def abort(self) -> None:
        """Cut every exchange."""
        for exchange in list(self._live):
            exchange.cut()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _look(self) -> None:
        self._sweep = self.clock.callLater(SWEEP, self._look) if self._live else None
        now = self.clock.seconds()
        for exchange in list(self._live):
            exchange.look(now)


class _Exchange:
    """One of them; as a listener it hears the gateway's leg."""

    __slots__ = (
        "_complete",
        "_entered",
        "_explaining",
        "_held",
        "_length",
        "_line",
        "_now",
        "_page",
        "_relaying",
        "_session",
        "_status",
        "_taking",
        "_waiting",
    )

    def __init__(self, relaying: Relaying, page: Incoming) -> None:
        """Begin with a head."""
        self._relaying = relaying
        self._now = relaying.clock.seconds
        self._page = page
        self._session = RelayExchange(relaying.routes, self._now())
        self._line: Line | None = None
        self._taking: Deferred[Line] | None = None
        self._entered: Entered | None = None
        self._explaining: bytearray | None = None
        self._status = 0  # of our own answer, if there is one
        self._held = bytearray()  # of the page's body, while the gateway is dialled
        self._waiting = False
        self._complete = False  # all of it has come
        self._length: int | None = None  # of the answer

    def begin(self) -> None:
        page = self._page
        looked_at = [
            (name.decode("ascii"), value.decode("latin-1")) for name, _, value in page.head.fields if name in LOOKED_AT
        ]
        self._session.asked(page.method, page.target, looked_at, self._now())
        self._act()

    def look(self, now: float) -> None:
        deadline = self._session.deadline()
        if deadline is not None and now >= deadline:
            self._session.wake(now)
            self._act()

    def cut(self) -> None:
        """End it from our side; a page without an answer gets one, for browsers send again what has none at all."""
        self._session.lost(self._now())
        self._act()
        if self._page.begun:
            self._page.abort()
        else:
            fields = (*COMMON, ("content-type", wire.PROBLEM_TYPE))
            self._page.answer(502, fields, wire.problem(502))
        self._over("cut")

    # The gateway's leg.

    def answered(self, status: int, fields: Fields, length: int | None) -> None:
        kinds = [value for name, value in fields if name == "content-type"]
        self._length = length
        self._session.answered(status, kinds[0] if len(kinds) == 1 else "", self._now())
        self._act()

    def received(self, data: bytes) -> None:
        if self._explaining is not None:
            self._explaining += data
            if len(self._explaining) >= wire.PROBLEM_MOST:
                self._explained()
            return
        self._session.moved(len(data), self._now())
        if self._page.open and self._page.begun:
            self._page.write(data)
        if self._session.deadline() is None:
            self._act()

    def ended(self) -> None:
        if self._explaining is not None:
            self._explained()
            return
        self._session.ended(self._now())
        self._act()

    def lost(self) -> None:
        self._line = None
        self._session.gateway_lost(self._now())
        self._act()

    def full(self) -> None:
        self._page.pause()

    def room(self) -> None:
        self._page.resume()

    # The page's leg, by way of _Upload.

    def sent(self, data: bytes) -> None:
        if self._waiting:
            self._held += data
            if len(self._held) >= BUFFER:
                self.full()
            return
        line = self._line
        if line is not None:
            self._session.moved(len(data), self._now())
            line.write(data)
            if self._session.deadline() is None:
                self._act()

    def whole(self) -> None:
        self._complete = True
        if self._line is not None and not self._waiting:
            self._line.finish()

    def page_lost(self) -> None:
        self._session.lost(self._now())
        self._act()
        self._over("page")

    def page_full(self) -> None:
        if self._line is not None:
            self._line.pause()

    def page_room(self) -> None:
        if self._line is not None:
            self._line.resume()

    # What the session wants.

    def _act(self) -> None:
        for effect in self._session.effects():
            if type(effect) is Tell:
                _TOLD[type(effect.what)](self, effect.what)
            elif type(effect) is Dial:
                self._dial()
            elif type(effect) is Close:
                if effect.abort:
                    self._page.abort()
                elif not self._status:
                    if self._line is not None and not self._complete:
                        self._line.cut()
                    self._line = None  # it has gone back to the pool by itself
                    self._page.finish()
                self._over(str(self._status) if self._status else _OUTCOMES.get(effect.reason, "gateway"))

    def _pass(self, what: Pass) -> None:
        self._page.begin(200, what.fields, self._length)

    def _reply(self, what: Reply) -> None:
        self._status = what.status
        self._page.answer(what.status, what.fields, what.body)

    def _explain(self, _: Explain) -> None:
        self._explaining = bytearray()

    def _forward(self, what: Forward) -> None:
        line, page = self._line, self._page
        if line is None:
            return
        fields = [one for one in what.fields if one[0] not in FRAMING]
        line.request("POST", what.path, what.host, fields, self, page.length or None)
        if not self._waiting:
            page.to(_Upload(self))
            return
        self._waiting = False
        held, self._held = bytes(self._held), bytearray()
        if held:
            self.sent(held)
        if self._complete:
            self.whole()
        else:
            page.resume()

    def _dial(self) -> None:
        relaying, gateway, now = self._relaying, self._session.gateway, self._now()
        entered = relaying.admission.enter(gateway, relaying.address_of(self._page), now)
        if isinstance(entered, Wait):
            self._session.turned_away(entered.status, entered.after, now)
            self._act()
            return
        self._entered = entered
        pool = relaying.pools[gateway]
        line = pool.ready()
        if line is not None:
            self._taken(line)
            return
        self._taking = taking = pool.take()
        taking.addCallbacks(self._taken, self._untaken).addErrback(self._failed)
        if self._taking is not None:
            self._waiting = True
            self._page.to(_Upload(self))

    def _taken(self, line: Line) -> None:
        self._taking = None
        self._line = line
        self._session.dialled(self._now())
        self._act()

    def _untaken(self, failure: Failure) -> None:
        self._taking = None
        if failure.check(Unavailable):
            self._session.unreachable(self._now())
            self._act()
        elif not failure.check(CancelledError):
            self._failed(failure)

    def _failed(self, failure: Failure) -> None:
        """Take a bug of ours."""
        self._relaying.log.failure("an exchange failed", failure, event="tunnel.failed")
        self.cut()

    def _cut_gateway(self, _: CutGateway) -> None:
        taking, self._taking = self._taking, None
        if taking is not None:
            taking.cancel()
        line, self._line = self._line, None
        if line is not None:
            line.cut()

    def _explained(self) -> None:
        told, self._explaining = self._explaining, None
        assert told is not None
        body = bytes(told[: wire.PROBLEM_MOST])
        if wire.read_problem(body) == wire.OHTTP_KEY:
            self._relaying.hurry(self._session.gateway)
        self._session.explained(body, self._now())
        self._act()

    def _over(self, outcome: str) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            self._relaying.admission.leave(entered)
        self._relaying.over(self, outcome)


_TOLD: Final[dict[type, Callable[[_Exchange, Any], None]]] = {
    Forward: _Exchange._forward,
    Pass: _Exchange._pass,
    Reply: _Exchange._reply,
    Explain: _Exchange._explain,
    CutGateway: _Exchange._cut_gateway,
}
_OUTCOMES: Final = {"done": "answered", "timeout": "timeout", "limit": "limit"}


class _Upload:
    """The page's side of an exchange, which has no way back to it: a circle would wait for the collector."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def received(self, data: bytes) -> None:
        self._exchange.sent(data)

    def ended(self) -> None:
        self._exchange.whole()

    def lost(self) -> None:
        self._exchange.page_lost()

    def full(self) -> None:
        self._exchange.page_full()

    def room(self) -> None:
        self._exchange.page_room()
