"""Which nodes stand first, and which second, for months and days: so that time does not bring a bad one everywhere.

```
sampled --3 good circuits--> vetted --a circuit through it as guard--> confirmed --among the first two--> primary
                                                                           ^                                |
                                                              a dial works |                  a dial fails  v
expired <-- 60 to 120 days, or forgotten -- any of these                   '-------------------------- unreachable
```
A guard comes from those that we know for a day and from two independent sources. Who has known nobody for that long
yet, gets guards for a day. Second hops of circuits of hidden services come from four nodes that are kept for the longer
of two draws of 1 to 12 days (vanguards-lite, Tor proposal 333). Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from attrs import define

from layer8.core.chance import Chance
from layer8.crypto.descriptor import DAY, Role
from layer8.relay.database import Database, Peer

GUARD_DAYS: Final = (60.0, 120.0)
GUARDS_SAMPLED: Final = 20  # that are kept at a time: whoever blocks some cannot walk us through the whole network
RETRY_LEAST: Final = 600.0  # seconds until an unreachable guard is tried again; doubled with every failure
RETRY_MOST: Final = 6 * 3600.0
LAYER2: Final = 4  # nodes
LAYER2_DAYS: Final = (1.0, 12.0)

_RELAY: Final = int(Role.RELAY)

Suits = Callable[[Peer], bool]
Weigh = Callable[[Peer], float]


class State(Enum):
    """What a guard is."""

    SAMPLED = "sampled"
    VETTED = "vetted"
    CONFIRMED = "confirmed"
    PRIMARY = "primary"
    UNREACHABLE = "unreachable"
    EXPIRED = "expired"


@define(eq=False)
class Guard:
    """One of them; they stand in the order in which they were confirmed, those that were not behind them."""

    identity: bytes
    since: float
    expires: float
    state: State = State.SAMPLED
    confirmed: float = 0.0  # when a circuit went through it first; 0: not yet
    failures: int = 0  # since it last worked
    retry: float = 0.0


class Guards:
    """The first hops of this node."""

    def __init__(self, database: Database, chance: Chance, count: int = 2) -> None:
        """Start with none; `count` are used at a time."""
        self._database = database
        self._chance = chance
        self._count = count
        self._guards: list[Guard] = []
        self._past: list[Guard] = []

    @property
    def rows(self) -> tuple[Guard, ...]:
        """Every guard, in the order in which they are used."""
        return tuple(sorted(self._guards, key=_order))

    @property
    def past(self) -> tuple[Guard, ...]:
        """Those that have expired since the start, the last GUARDS_SAMPLED of them."""
        return tuple(self._past)

    def restore(self, guards: Iterable[Guard]) -> None:
        """Take back what was kept."""
        self._guards = list(guards)

    def ids(self) -> frozenset[bytes]:
        """Name them; nobody else is told."""
        return frozenset(guard.identity for guard in self._guards)

    @property
    def primary(self) -> frozenset[bytes]:
        """Name those that circuits begin with as long as they can be reached."""
        return frozenset(guard.identity for guard in self._guards if guard.state is State.PRIMARY)

    def first(self, now: float, suits: Suits, weigh: Weigh) -> Peer | None:
        """Choose a first hop among the primary guards that suit, else the next that does; None if there is none.

        `weigh` is used when new guards have to be found: by it they are drawn.
        """
        self._expire(now)
        self._rank(now)
        primary = [guard for guard in self.rows if guard.state is State.PRIMARY]
        if len(primary) < self._count:
            self._sample(now, weigh, self._count)
            self._rank(now)
            primary = [guard for guard in self.rows if guard.state is State.PRIMARY]
        fitting = [peer for peer in map(self._peer, primary) if peer is not None and suits(peer)]
        if fitting:
            return fitting[self._chance.randrange(len(fitting))]
        found = self._next(suits)
        if found is None and primary:  # those that we have do not go with the end of this circuit
            self._sample(now, lambda peer: weigh(peer) if suits(peer) else 0.0, len(self._guards) + 1)
            self._rank(now)
            found = self._next(suits)
        if found is not None:
            return found
        for guard in sorted(self._guards, key=lambda one: one.retry):  # perhaps it is we who were not reachable
            peer = self._peer(guard)
            if guard.state is State.UNREACHABLE and peer is not None and self._database.vetted(peer) and suits(peer):
                return peer
        return None

    def worked(self, identity: bytes, now: float) -> None:
        """Note a circuit, or a dial, that went through a guard."""
        guard = self._find(identity)
        if guard is None or guard.state is State.SAMPLED:
            return
        guard.failures, guard.retry = 0, 0.0
        guard.confirmed = guard.confirmed or now
        if guard.state in (State.VETTED, State.UNREACHABLE):
            guard.state = State.CONFIRMED

    def failed(self, identity: bytes, now: float) -> None:
        """Note that a guard could not be reached; it is tried again later, and keeps its place."""
        guard = self._find(identity)
        if guard is None:
            return
        guard.retry = now + min(RETRY_LEAST * 2**guard.failures, RETRY_MOST)
        guard.failures = min(guard.failures + 1, 30)
        guard.state = State.UNREACHABLE

    def _next(self, suits: Suits) -> Peer | None:
        """Give the first that suits of those that stand behind the primary ones."""
        for guard in self.rows:
            peer = self._peer(guard)
            if guard.state in (State.VETTED, State.CONFIRMED) and peer is not None and suits(peer):
                return peer
        return None

    def _find(self, identity: bytes) -> Guard | None:
        return next((guard for guard in self._guards if guard.identity == identity), None)

    def _peer(self, guard: Guard) -> Peer | None:
        return self._database.get(guard.identity)

    def _expire(self, now: float) -> None:
        """Let go of those whose time has come, or that the network has forgotten."""
        kept = []
        for guard in self._guards:
            if guard.expires <= now or self._peer(guard) is None:
                guard.state = State.EXPIRED
                self._past.append(guard)
            else:
                kept.append(guard)
        self._guards = kept
        del self._past[:-GUARDS_SAMPLED]

    def _rank(self, now: float) -> None:
        """Move every guard to the state that it is in by now."""
        primary = 0
        for guard in self.rows:
            peer = self._peer(guard)
            if guard.state is State.UNREACHABLE:
                if guard.retry > now:
                    continue
                guard.state = State.CONFIRMED if guard.confirmed else State.SAMPLED
            if guard.state is State.SAMPLED and peer is not None and self._database.vetted(peer):
                guard.state = State.VETTED
            if guard.state is State.SAMPLED:
                continue
            if primary < self._count:
                guard.state = State.PRIMARY
                primary += 1
            elif guard.state is State.PRIMARY:
                guard.state = State.CONFIRMED if guard.confirmed else State.VETTED

    def _sample(self, now: float, weigh: Weigh, count: int) -> None:
        """Draw as many new guards as are missing from `count`; never one that weighs nothing."""
        database, there = self._database, self.ids()
        fresh = [
            peer for peer in database if peer.identity not in there and first_hop(database, peer, now) and weigh(peer)
        ]
        known = [peer for peer in fresh if database.acquainted(peer, now)]
        lasting = GUARD_DAYS
        if not known and all(guard.expires - guard.since < 2 * DAY for guard in self._guards):
            known, lasting = fresh, (1.0, 1.0)  # nobody yet: whom we have now, for a day
        ready = [peer for peer in known if database.vetted(peer)]
        used = (State.PRIMARY, State.CONFIRMED, State.VETTED)
        for pool, counted in (
            (ready, used),
            ([one for one in known if not database.vetted(one)], (*used, State.SAMPLED)),
        ):
            missing = count - sum(guard.state in counted for guard in self._guards)
            while pool and missing > 0 and len(self._guards) < GUARDS_SAMPLED:
                peer = draw(pool, weigh, self._chance)
                pool.remove(peer)
                if not self._clashes(peer):
                    life = self._chance.uniform(*lasting) * DAY
                    state = State.VETTED if pool is ready else State.SAMPLED
                    self._guards.append(Guard(peer.identity, since=now, expires=now + life, state=state))
                    missing -= 1

    def _clashes(self, peer: Peer) -> bool:
        others = filter(None, map(self._peer, self._guards))
        return any(self._database.alike(peer.descriptor, other.descriptor) for other in others)


@define(eq=False)
class Second:
    """A second hop that is kept for days."""

    identity: bytes
    since: float
    expires: float


class SecondHops:
    """The four second hops of circuits of hidden services."""

    def __init__(self, database: Database, chance: Chance) -> None:
        """Start with none."""
        self._database = database
        self._chance = chance
        self._hops: list[Second] = []

    @property
    def rows(self) -> tuple[Second, ...]:
        """All of them."""
        return tuple(self._hops)

    def restore(self, hops: Iterable[Second]) -> None:
        """Take back what was kept."""
        self._hops = list(hops)

    def second(self, now: float, suits: Suits, pool: Iterable[Peer], weigh: Weigh) -> Peer | None:
        """Choose one that suits; those that are missing are drawn from `pool`, whatever this circuit needs."""
        self._hops = [hop for hop in self._hops if hop.expires > now and self._database.get(hop.identity) is not None]
        missing = LAYER2 - len(self._hops)
        if missing:
            there = {hop.identity for hop in self._hops}
            fresh = [peer for peer in pool if peer.identity not in there]
            for _ in range(min(missing, len(fresh))):
                drawn = draw(fresh, weigh, self._chance)
                fresh.remove(drawn)
                life = max(self._chance.uniform(*LAYER2_DAYS), self._chance.uniform(*LAYER2_DAYS)) * DAY
                self._hops.append(Second(drawn.identity, since=now, expires=now + life))
        peers = [peer for hop in self._hops if (peer := self._database.get(hop.identity)) is not None and suits(peer)]
        return peers[self._chance.randrange(len(peers))] if peers else None


def first_hop(database: Database, peer: Peer, now: float) -> bool:
    """Tell whether a node takes links and circuits, and has said so lately."""
    return database.live(peer, now) and bool(peer.descriptor.roles & _RELAY and peer.descriptor.endpoints)


def draw(peers: list[Peer], weigh: Weigh, chance: Chance) -> Peer:
    """Draw one of some, each with its weight."""
    weights = [weigh(peer) for peer in peers]
    left = chance.random() * sum(weights)
    for peer, weight in zip(peers, weights, strict=True):
        left -= weight
        if left < 0:
            return peer
    return peers[-1]


def _order(guard: Guard) -> tuple[bool, float, float]:
    return (not guard.confirmed, guard.confirmed, guard.since)
