"""The agent's way of carrying one visitor: dial the target and the server at once, show the secret, join.

::

    proxy.connection ──▶ dial target ──────────────▶ there ─┐
                    └──▶ dial server ──▶ (TLS) ────▶ there ─┴─▶ 32 bytes of secret ──▶ join
                              either fails ──▶ proxy.reject, and both are closed

The secret is sent only when the target has answered, so a target that is down costs the visitor nothing but one more
question to the next agent. A connection that was dialled ahead (`layer8.proxy.reserve`) has shown its secret already:
only the target is dialled, and if it does not answer the connection stays open until the server takes its visitor back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import define, field
from OpenSSL import SSL

from layer8.core.lanes import Lane
from layer8.net.dial import Attempt, Dialer, Where
from layer8.net.entries import Dialing
from layer8.net.flow import Link
from layer8.net.leg import Leg, Ticket
from layer8.net.pump import Pump
from layer8.proxy.limits import CALL_LIFE, NOD_TIME
from layer8.proxy.nod import Nodding
from layer8.proxy.wire import NOD, Code

if TYPE_CHECKING:
    from layer8.proxy.inspect import Watch


class Teller(Protocol):
    """Whoever asked for a visitor to be carried."""

    def refused(self, carried: Carried, code: Code, why: str) -> None:
        """Take that the visitor cannot be carried."""

    def joined(self, carried: Carried) -> None:
        """Take that the visitor is joined with its target."""

    def ended(self, carried: Carried, reason: str) -> None:
        """Take the end of a joined visitor; `bytes_in` and `bytes_out` are final."""


class Late(Protocol):
    """What may take `CALL_LIFE` seconds at most."""

    def late(self) -> None:
        """Take that the time is over."""


class Ahead(Protocol):
    """A connection to a server that was dialled ahead, and is a visitor's now."""

    def take(self, carried: Carried) -> int:
        """Give the descriptor, but still watch it and close `carried` should the server leave."""

    @property
    def leg(self) -> Leg | None:
        """The TLS session on it."""

    @property
    def rest(self) -> bytes:
        """What the visitor has said already."""

    def left(self, joined: bool) -> None:
        """Take that the descriptor is joined or closed; or else that the visitor was refused and it is yours again."""


class Looks(Protocol):
    """Whoever looks at what is carried."""

    def watch(self, host: str, target: Where, intro: bytes) -> Watch:
        """Give the filters for one visitor, of whom the target hears `intro` first."""


@define(eq=False)
class Totals:
    """What an agent has carried since its start."""

    called: int = 0
    joined: int = 0
    rejected: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@define(eq=False)
class Secured:
    """How a dial-back is made secure: the context that knows whom to expect, and the name to ask for.

    `ticket` is the last session with that server, which the next dial-back resumes.
    """

    context: SSL.Context
    name: str
    ticket: Ticket = field(factory=Ticket, init=False)


@define(eq=False)
class Carrier:
    """Carries visitors for one agent; `local` dials targets, `outward` dials servers."""

    pump: Pump
    local: Dialer
    outward: Dialer
    totals: Totals = field(factory=Totals, init=False)
    looks: Looks | None = field(default=None, init=False)
    open: set[Carried] = field(factory=set, init=False)
    _lane: Lane[Late] = field(factory=lambda: Lane(CALL_LIFE), init=False)
    _nods: Lane[Late] = field(factory=lambda: Lane(NOD_TIME), init=False)

    def carry(
        self,
        teller: Teller,
        subscription: int,
        conn: int,
        host: str,
        secret: bytes,
        target: Where,
        server: Where,
        secured: Secured | None,
        intro: bytes = b"",
    ) -> Carried:
        """Begin; everything else is told to `teller`. The target hears `intro` before the visitor."""
        self.totals.called += 1
        carried = Carried(self, teller, subscription, conn, host, secret, secured, intro=intro)
        self.open.add(carried)
        self.limit(carried)
        carried.begin(target, server)
        return carried

    def carry_on(
        self,
        teller: Teller,
        subscription: int,
        conn: int,
        host: str,
        target: Where,
        ahead: Ahead,
        intro: bytes = b"",
    ) -> Carried:
        """The same on a connection that was dialled ahead; `ahead` gets it back if the target refuses."""
        self.totals.called += 1
        carried = Carried(self, teller, subscription, conn, host, b"", None, ahead, intro)
        self.open.add(carried)
        self.limit(carried)
        carried.dial(target)
        return carried

    def limit(self, what: Late) -> None:
        """Let something take `CALL_LIFE` at most, from now."""
        self._lane.add(what, self.pump.look_at_clock())

    def nod(self, link: Link) -> None:
        """Let the server know that its visitor has reached its target."""
        self._nods.add(Nodding(link.up), self.pump.now)

    def tick(self, now: float) -> None:
        """Give up what took too long; `now` is monotonic seconds."""
        for lane in (self._nods, self._lane):
            for what in lane.expired(now):
                what.late()

    def close_all(self) -> None:
        """Close everything that is carried or on its way."""
        for carried in list(self.open):
            carried.close()


class Carried:
    """One visitor, from the server's notification to the end of its connection."""

    __slots__ = (
        "_ahead",
        "_carrier",
        "_intro",
        "_leg",
        "_secret",
        "_secured",
        "_server",
        "_shown",
        "_target",
        "_teller",
        "_waiting",
        "_watch",
        "bytes_in",
        "bytes_out",
        "conn",
        "host",
        "link",
        "over",
        "subscription",
    )

    def __init__(
        self,
        carrier: Carrier,
        teller: Teller,
        subscription: int,
        conn: int,
        host: str,
        secret: bytes,
        secured: Secured | None,
        ahead: Ahead | None = None,
        intro: bytes = b"",
    ):
        """Take what the server said; `ahead` is a connection to it that shows no secret any more."""
        self._carrier = carrier
        self._teller = teller
        self._secret = secret
        self._secured = secured
        self._target = -1
        self._intro = intro
        self._ahead = ahead
        self._server = -1 if ahead is None else ahead.take(self)
        self._shown = len(secret)
        self._leg: Leg | None = None if ahead is None else ahead.leg
        self._waiting: list[Attempt | Dialing | Leg] = []
        self._watch: Watch | None = None
        self.subscription = subscription
        self.conn = conn
        self.host = host
        self.link: Link | None = None
        self.over = False
        self.bytes_in = 0
        self.bytes_out = 0

    def begin(self, target: Where, server: Where) -> None:
        """Dial both ends."""
        attempt = self._carrier.outward.dial(server, self._server_there)
        if attempt is not None:
            self._waiting.append(attempt)
        if not self.over:
            self.dial(target)

    def dial(self, target: Where) -> None:
        """Dial the target."""
        if self._carrier.looks is not None:
            self._watch = self._carrier.looks.watch(self.host, target, self._intro)
        attempt = self._carrier.local.dial(target, self._target_there)
        if attempt is not None:
            self._waiting.append(attempt)

    def _target_there(self, fd: int, error: Exception | None) -> None:
        if error is not None:
            self._refuse(Code.AGENT_REFUSED, "the target does not answer")
        elif self._taken(fd):
            self._target = fd
            self._both()

    def _server_there(self, fd: int, error: Exception | None) -> None:
        if error is not None:
            self._refuse(Code.AGENT_REFUSED, "the server's data port does not answer")
        elif self._taken(fd):
            if self._secured is None:
                self._server = fd
                self._both()
                return
            leg = Leg(
                self._carrier.pump,
                fd,
                self._secured.context,
                client=True,
                done=self._shaken,
                name=self._secured.name.encode("ascii") or None,
                ticket=self._secured.ticket,
            )
            self._waiting.append(leg)
            leg.start()

    def _shaken(self, leg: Leg, error: Exception | None) -> None:
        if error is not None:
            self._refuse(Code.AGENT_REFUSED, "the server's data port is not who it should be")
        elif self._taken(leg.fd):
            self._server, self._leg = leg.fd, leg
            self._both()

    def _taken(self, fd: int) -> bool:
        """Say whether a descriptor that came is still wanted; close it if not."""
        if self.over:
            self._carrier.pump.close_fd(fd)
        return not self.over

    def _both(self) -> None:
        if self._target < 0 or self._server < 0:
            return
        self._waiting.clear()
        carrier = self._carrier
        carrier.totals.joined += 1
        secret, self._secret = self._secret, b""
        ahead, self._ahead = self._ahead, None
        rest = b"" if ahead is None else ahead.rest
        watch = self._watch
        if watch is not None and rest:
            watch.requests.feed(rest)
        self.link = carrier.pump.join(
            self._target,
            self._server,
            self,
            up=secret,
            down=self._intro + rest,
            second_tls=self._leg,
            up_filter=None if watch is None else watch.answers,
            down_filter=None if watch is None else watch.requests,
        )
        if ahead is not None:
            ahead.left(joined=True)
            self._shown = len(NOD)
            carrier.nod(self.link)
        self._teller.joined(self)

    def ended(self, link: Link, reason: str) -> None:
        """Take the end of the joined connection."""
        self.over = True
        if self._watch is not None:
            self._watch.closed()
        self.bytes_in = max(0, link.bytes_down - len(self._intro))
        self.bytes_out = max(0, link.bytes_up - self._shown)
        totals = self._carrier.totals
        totals.bytes_in += self.bytes_in
        totals.bytes_out += self.bytes_out
        self._carrier.open.discard(self)
        self.link = None  # a cycle, which would wait for the garbage collector
        self._target = self._server = -1
        self._teller.ended(self, reason)

    def late(self) -> None:
        """Take that the server's secret is no longer good."""
        if self.link is None:
            self._refuse(Code.AGENT_REFUSED, "it took too long")

    def close(self) -> None:
        """Close, joined or not."""
        if self.link is not None:
            self.link.close("shutdown")
        else:
            self._give_up()

    def _refuse(self, code: Code, why: str) -> None:
        if not self.over and self.link is None:
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                self._server = -1
            self._give_up()
            self._carrier.totals.rejected += 1
            self._teller.refused(self, code, why)
            if ahead is not None:
                ahead.left(joined=False)

    def _give_up(self) -> None:
        self.over = True
        self._carrier.open.discard(self)
        waiting, self._waiting = self._waiting, []
        for attempt in waiting:
            attempt.cancel()
        for fd in (self._target, self._server):
            if fd >= 0:
                self._carrier.pump.close_fd(fd)
        self._target = self._server = -1
        if self._ahead is not None:
            self._ahead.left(joined=True)
            self._ahead = None
