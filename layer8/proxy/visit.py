"""One visitor's connection on the server: what is known of it, in the shape that the pump wants to see."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from layer8.core.address import HostPort
from layer8.net.dial import Attempt
from layer8.net.entries import Dialing, end_of
from layer8.net.flow import Link
from layer8.net.leg import Leg
from layer8.net.linger import answer_and_close
from layer8.proxy.choose import Seat
from layer8.proxy.pp import Header
from layer8.proxy.registration import Registration
from layer8.proxy.tally import HostTally
from layer8.proxy.visitor import State, Visitor
from layer8.proxy.wire import Reason

if TYPE_CHECKING:
    from layer8.proxy.traffic import Traffic

_BY_LINK = {
    "done": Reason.DONE,
    "idle": Reason.IDLE,
    "half_closed": Reason.HALF_CLOSED,
    "killed": Reason.KILLED,
    "shutdown": Reason.DRAINED,
}


class Visit:
    """One visitor's connection: an entry of the pump until it is joined, then the owner of its link.

    `session` is there while it waits for its name or for an agent; `first` is what it has said, while the target of a
    static host is dialled. `leg` is its TLS if that ends here, `spelled` the host in a first request that need not be
    read again (`guard.plain`), `head` counts the bytes that went to the other side before its own, `pooled` says that
    the other side had been dialled ahead, `verdict` why we end it ourselves. Times are monotonic seconds; `sniff_ms`
    and `call_ms` are what was taken until named and until joined.

    `address` is for limits, bans, rules and the log; `header` is what a balancer said of the visitor. What others may
    learn of it is `remote`, and nothing else.
    """

    __slots__ = (
        "address",
        "attempt",
        "call_ms",
        "conn",
        "fd",
        "first",
        "head",
        "header",
        "host",
        "leg",
        "link",
        "opened",
        "over",
        "pooled",
        "port",
        "row",
        "scheme",
        "seat",
        "secret",
        "session",
        "sniff_ms",
        "source",
        "spelled",
        "tally",
        "traffic",
        "verdict",
    )

    def __init__(self, traffic: Traffic, fd: int, conn: int, address: str, source: str, port: int, scheme: str):
        """Begin with a visitor that was just accepted."""
        self.traffic = traffic
        self.fd = fd
        self.conn = conn
        self.address = address
        self.source = source
        self.port = port
        self.scheme = scheme
        self.opened = traffic.pump.now
        self.session: Visitor | None = None
        self.first = b""
        self.row: Registration | None = None
        self.host: str | None = None
        self.tally: HostTally | None = None
        self.seat: Seat | None = None
        self.secret: bytes | None = None
        self.attempt: Attempt | Dialing | Leg | None = None
        self.link: Link | None = None
        self.sniff_ms: int | None = None
        self.call_ms: int | None = None
        self.leg: Leg | None = None
        self.header: Header | None = None
        self.head = 0
        self.pooled = False
        self.verdict: Reason | None = None
        self.spelled = b""
        self.over = False

    def ready(self, fd: int, events: int) -> None:
        """Read more of a visitor that has not said its name; notice one that is gone while an agent is called."""
        self.traffic.readable(self, events)

    def abandon(self) -> None:
        """Close the visitor's connection, unless that was done already: something is wrong with our own handling."""
        self.traffic.abandon(self)

    def dialled(self, fd: int, error: Exception | None) -> None:
        """Take the end of dialling the target of a static host."""
        self.traffic.reach.dialled(self, fd, error)

    def ended(self, link: Link, reason: str) -> None:
        """Take the end of the joined connection."""
        reset = Reason.VISITOR_RESET if link.up.reset else Reason.AGENT_RESET
        self.traffic.finish(self, self.verdict or _BY_LINK.get(reason, reset))

    def see_off(self, words: bytes, *, linger: bool = False) -> None:
        """Close the visitor's own connection, once, after some last words; `linger` without any, too."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        traffic = self.traffic
        if self.leg is not None:
            words = self.leg.goodbye(words)
        if words or linger:
            # It keeps its place until it is closed, or a scanner could have any number of these.
            traffic.open.take_again(self.source)
            answer_and_close(traffic.reactor, traffic.pump, fd, words, partial(traffic.open.give, self.source))
        else:
            traffic.pump.close_fd(fd)

    @property
    def remote(self) -> HostPort | None:
        """The visitor's own end, if both the server and the host let agents and targets learn it."""
        row = self.row
        if row is None or row.policy.visitor != "full" or self.traffic.config.visitor != "full":
            return None
        if self.header is not None and self.header.source is not None:
            return self.header.source
        return end_of(self.fd, far=True)

    @property
    def came_to(self) -> HostPort:
        """Where the visitor has come to, as far as that is known: for those who may know `remote`."""
        if self.header is not None and self.header.destination is not None:
            return self.header.destination
        return end_of(self.fd, far=False) or HostPort("", self.port)

    @property
    def carried(self) -> str:
        """What goes to the other side: https is TLS that nobody here has looked into."""
        return "http" if self.leg is not None else self.scheme

    @property
    def speaks_http(self) -> bool:
        """Whether what is carried is plain HTTP, on its own port or inside TLS that ends here."""
        return self.leg is not None or self.scheme == "http"

    @property
    def state(self) -> State:
        """Where the visitor stands."""
        if self.session is not None:
            return self.session.state
        if self.over:
            return State.CLOSED
        return State.REACHING if self.link is None else State.JOINED
