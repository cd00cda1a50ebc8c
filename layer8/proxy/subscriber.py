"""One agent's conversation with the server, from hello to the end of its last subscription.

::

    opened ──hello──▶ greeted ──subscribe──▶ a seat: up ◀──health──▶ down
                                              │  └──health drain──▶ drain ──idle──▶ gone
                                              └── unsubscribe, connection lost, resumed ──▶ gone

On the legacy listener there is no hello. A connection that is silent for DEAD (40 s) is closed by control's own session
and so lost here: as long as there is a connection, some message has renewed the leases of 60 s. Methods raise `Denied`
or `OutOfOrder` for what cannot be; a notification that makes no sense is counted and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from layer8.core.guesses import Guesses
from layer8.crypto.keys import id_text
from layer8.crypto.proof import same
from layer8.proxy.choose import Seat, Seats, Voice
from layer8.proxy.limits import HEARTBEAT, LEASE, SubscriberLimits
from layer8.proxy.registration import Ownership
from layer8.proxy.registry import Registry, Shown
from layer8.proxy.wire import (
    FEATURES,
    POOLED,
    VERSION,
    Code,
    DataAddress,
    Denied,
    Health,
    Hello,
    HelloResult,
    OutOfOrder,
    Reject,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
)


@define(eq=False)
class House:
    """What all agents of a server share.

    `wall` gives seconds since 1970, `token` fresh random bytes as text for resuming. `draining` is None, or the other
    servers that an agent should try.
    """

    registry: Registry
    seats: Seats
    guesses: Guesses
    limits: SubscriberLimits
    node_id: bytes
    wall: Callable[[], float]
    token: Callable[[], str]
    data: tuple[DataAddress, ...] = ()
    public: dict[str, int] = field(factory=dict)
    draining: tuple[str, ...] | None = None
    step: int = 1
    """Between two subscriptions' numbers; whoever has others in between starts elsewhere."""
    guessed: Callable[[str], None] = lambda address: None
    """Told who has shown a wrong secret."""
    last: int = field(default=0, init=False)
    nonsense: int = field(default=0, init=False)

    def number(self) -> int:
        """Give the next subscription its number."""
        self.last += self.step
        return self.last


@frozen
class Origin:
    """Where an agent's connection comes from; `private` says that nobody on the way can read along."""

    address: str | None
    private: bool
    legacy: bool = False


class Agent:
    """The states of one agent's connection."""

    __slots__ = ("_greeted", "_house", "_instance", "_nonce", "_origin", "_pools", "_seats", "_voice")

    def __init__(self, house: House, voice: Voice, origin: Origin, nonce: bytes) -> None:
        """Start on a new connection with a nonce of its own, 32 random bytes."""
        self._house = house
        self._voice = voice
        self._origin = origin
        self._nonce = nonce
        self._greeted = origin.legacy
        self._instance = ""
        self._pools = False
        self._seats: dict[int, Seat] = {}

    @property
    def subscriptions(self) -> tuple[int, ...]:
        """The numbers of what this connection has subscribed to and still has."""
        return tuple(number for number, seat in self._seats.items() if not seat.gone)

    def hello(self, said: Hello) -> HelloResult:
        """Answer the first message; raises `Denied` for no common version, `OutOfOrder` for a second hello."""
        if self._greeted:
            raise OutOfOrder("proxy.hello comes once, before anything else")
        if VERSION not in said.versions:
            raise Denied(Code.NO_COMMON_VERSION, f"this server speaks version {VERSION}", versions=str(VERSION))
        self._greeted = True
        self._instance = said.instance
        self._pools = POOLED in said.features
        limits = self._house.limits
        return HelloResult(
            version=VERSION,
            node=id_text(self._house.node_id),
            nonce=self._nonce.hex(),
            heartbeat_s=int(HEARTBEAT),
            limits={"SUBSCRIPTIONS": limits.subscriptions, "SUBSCRIBERS": limits.subscriptions_per_host},
            features=tuple(name for name in FEATURES if name in said.features),
            data=self._house.data,
            public=self._house.public,
        )

    def subscribe(self, said: Subscribe, now: float) -> SubscribeResult:
        """Take a subscription by proof, or by the secret itself where nobody can read along.

        `now` is monotonic seconds. Raises `OutOfOrder` before hello, and `Denied`: draining, too many tries, too many
        subscriptions, a secret over plain text, wrong, or ownership not proven.
        """
        house = self._house
        if not self._greeted:
            raise OutOfOrder("proxy.hello comes first")
        if house.draining is not None:
            raise Denied(Code.DRAINING, "the server is draining", alternatives=house.draining)
        wait = house.guesses.wait(self._origin.address, now)
        if wait > 0:
            raise Denied(Code.RATE_LIMITED, "too many wrong secrets", retry_after_ms=int(wait * 1000) + 1)
        if said.secret is not None and not (self._origin.private or self._origin.legacy):
            raise Denied(Code.FORBIDDEN_BY_POLICY, "a secret is not taken in plain text: send a proof")
        replaced = self._replaced(said)
        if len(self.subscriptions) - (replaced is not None) >= house.limits.subscriptions:
            raise Denied(Code.NO_CAPACITY, "this connection has as many as it may", limit="SUBSCRIPTIONS")
        shown = self._shown(said)
        if shown is None:
            house.guesses.wrong(self._origin.address, now)
            if self._origin.address is not None:
                house.guessed(self._origin.address)
            raise Denied(Code.WRONG_SECRET, "wrong secret or proof, or no such host")
        if shown.row.state in (Ownership.PENDING, Ownership.SUSPENDED):
            raise Denied(Code.NOT_PROVEN, f"show that {shown.row.host} is yours: proxy.prove")
        old = replaced or self._resumed(shown.row.host, said.resume)
        if len(house.seats.of(shown.row.host)) - (old is not None) >= house.limits.subscriptions_per_host:
            raise Denied(Code.NO_CAPACITY, "the host has as many subscribers as it may", limit="SUBSCRIBERS")
        seat = self._sit(said, shown, now)
        if old is not None:
            house.seats.drop(old)
        return SubscribeResult(seat.number, int(LEASE), seat.resume)

    def unsubscribe(self, said: Unsubscribe) -> None:
        """Give a subscription up; raises `Denied` if it is not this connection's."""
        seat = self._mine(said.subscription)
        if seat is None:
            raise Denied(Code.LEASE_EXPIRED, "no such subscription on this connection")
        self._house.seats.drop(seat, said.kill)
        del self._seats[seat.number]

    def health(self, said: Health) -> None:
        """Take what the agent says of its target."""
        seat = self._mine(said.subscription)
        if seat is None:
            self._house.nonsense += 1
        else:
            self._house.seats.turned(seat, said.state)

    def rejects(self, said: Reject) -> Seat | None:
        """Give the seat that turns a visitor away, or None for one that is not this connection's: ignored, counted.

        Whether `said.conn` is a visitor that this seat was called for is for the one who has the visitors.
        """
        seat = self._mine(said.subscription)
        if seat is None:
            self._house.nonsense += 1
        return seat

    def lost(self) -> None:
        """Take the end of the connection: every subscription is gone, joined visitors stay."""
        seats, self._seats = self._seats, {}
        for seat in seats.values():
            self._house.seats.drop(seat)

    def _mine(self, number: int) -> Seat | None:
        """Find a live subscription of this connection."""
        seat = self._seats.get(number)
        return None if seat is None or seat.gone else seat

    def _replaced(self, said: Subscribe) -> Seat | None:
        """Find what this very connection already has for the host: subscribing again changes weight and priority."""
        host = said.host.lower()
        return next((seat for seat in self._seats.values() if seat.host == host and not seat.gone), None)

    def _resumed(self, host: str, resume: str | None) -> Seat | None:
        """Find the older subscription of the same instance; its connection may not have noticed that it is dead."""
        if resume is None or not self._instance:
            return None
        for seat in self._house.seats.of(host):
            if seat.instance == self._instance and same(seat.resume, resume):
                return seat
        return None

    def _shown(self, said: Subscribe) -> Shown | None:
        """Hold proof or secret against the registry."""
        registry, wall = self._house.registry, self._house.wall()
        if said.proof is not None:
            return registry.by_proof(said.host, said.proof, self._nonce, self._house.node_id, wall)
        return registry.by_secret(said.host, bytes.fromhex(said.secret or ""), wall)

    def _sit(self, said: Subscribe, shown: Shown, now: float) -> Seat:
        seat = Seat(
            number=self._house.number(),
            host=shown.row.host,
            voice=self._voice,
            instance=self._instance,
            address=self._origin.address,
            key=shown.key,
            resume=self._house.token(),
            weight=said.weight,
            priority=said.priority,
            max_conns=said.max_conns,
            since=now,
            legacy=self._origin.legacy,
            pool=said.pool if self._pools else 0,
        )
        for number in [number for number, old in self._seats.items() if old.gone]:
            del self._seats[number]
        self._seats[seat.number] = seat
        self._house.seats.add(seat)
        return seat
