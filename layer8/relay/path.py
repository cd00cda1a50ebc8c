"""Which nodes a circuit goes through: what is known, a clock and randomness go in, a decision comes out.

```
 rand > rand > rand      guard           any           any, or an exit for the port
 rand > A > rand         guard           A             any
 A > dark                A, [gateway]    dark          a node behind a gateway gets it as the hop before
```
Hops that the user names are taken as they are. The others are live, vetted relays that can be dialled; no two hops
share identity, family, /16 or /32; no source has told us more than half of what is chosen from, as far as we know of
it from that source alone. The weight of a node is what we measured through it, 4 times the median at most: what
nodes say of themselves carries no weight. Design: network.md section 8.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from statistics import median
from typing import Final

from attrs import define, evolve, field, frozen

from layer8.core.chance import Chance
from layer8.core.errors import RemoteProtocolError, Unavailable
from layer8.crypto.descriptor import Descriptor, Role
from layer8.crypto.keys import ID_LETTERS, id_text, parse_id
from layer8.relay.database import USER, Database, Peer
from layer8.relay.exit import Ports, parse_summary
from layer8.relay.guards import Guards, SecondHops, first_hop
from layer8.relay.limits import MAX_HOPS
from layer8.relay.route import PREFIX, At, Hidden, Hop, Named, Rand, Route, Via

WEIGHT_MOST: Final = 4.0  # times the median
FEW: Final = 8  # live nodes, below which those whose descriptors have expired are chosen from too
EXPIRED_SHARE: Final = 0.1  # of its weight that such a node keeps
POOL_LIFE: Final = 30.0  # seconds that candidates are kept while nothing changes
POOL_REST: Final = 3.0  # seconds that they are kept all the same where there are MANY: making them takes some 30 ms
MANY: Final = 500
POOLS: Final = 64  # ports
TRIES: Final = 24  # draws before all candidates are looked through

_ITSELF: Final = b"itself"  # as a source, all nodes that nobody else has told us of

_RELAY: Final = int(Role.RELAY)
_EXIT: Final = int(Role.EXIT)

Snapshot = frozenset[bytes]


class NoPath(Unavailable):
    """No circuit can be made as it is wanted; the text says why and what to do."""


class Stranger(NoPath):
    """The first hop is an address that no descriptor names: it has to be dialled, and its identity pinned."""

    def __init__(self, at: At) -> None:
        """Say which."""
        super().__init__(f"no node is known at {at.host}:{at.port}")
        self.at = at


@frozen
class Want:
    """What a circuit is for.

    `port` wants an exit that says it reaches it; `last` a certain node at the end. `without` are nodes that have just
    failed. `shun` are some that may hang: they are not taken behind guards, if that can be. `layer2` takes the second
    hop from those that are kept for hidden services.
    """

    route: Route = field(factory=Route)
    hops: int = 3  # where `route` names none
    port: int = 0
    last: bytes = b""
    without: frozenset[bytes] = frozenset()
    shun: frozenset[bytes] = frozenset()
    layer2: bool = False


@define(eq=False)
class _Candidates:
    """What one kind of hop is chosen from, with running sums of the weights."""

    peers: list[Peer]
    sums: list[float]
    made: float
    version: int
    weights: dict[bytes, float] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Keep each one's weight by its id."""
        pairs = zip(self.peers, self.sums, [0.0, *self.sums], strict=False)
        self.weights = {peer.identity: upper - lower for peer, upper, lower in pairs}

    def draw(self, suits: Callable[[Peer], bool], chance: Chance) -> Peer | None:
        """Draw one that suits, by weight."""
        if not self.peers:
            return None
        for _ in range(TRIES):
            peer = self.peers[min(bisect(self.sums, chance.random() * self.sums[-1]), len(self.peers) - 1)]
            if suits(peer):
                return peer
        fitting = [peer for peer in self.peers if suits(peer)]
        if not fitting:
            return None
        sums = list(accumulate(self.weights[peer.identity] for peer in fitting))
        return fitting[min(bisect(sums, chance.random() * sums[-1]), len(fitting) - 1)]


class Paths:
    """The choice of hops."""

    def __init__(
        self,
        database: Database,
        guards: Guards,
        chance: Chance,
        *,
        layer2: SecondHops | None = None,
        aliases: Mapping[str, bytes] | None = None,
        snapshot: Callable[[], Snapshot | None] = lambda: None,
    ) -> None:
        """`aliases` are the user's names for nodes; `snapshot` gives the ids of a co-signed list, None for no list."""
        self._database = database
        self._guards = guards
        self._chance = chance
        self._layer2 = layer2 or SecondHops(database, chance)
        self._aliases = aliases if aliases is not None else {}
        self._snapshot = snapshot
        self._pools: dict[int, _Candidates] = {}

    def choose(self, want: Want, now: float) -> tuple[Descriptor, ...]:
        """Choose the hops of a circuit, gateways included; raises `NoPath`."""
        if want.shun:
            with suppress(NoPath):
                return self._choose(want, now)
            want = evolve(want, shun=frozenset())
        return self._choose(want, now)

    def _choose(self, want: Want, now: float) -> tuple[Descriptor, ...]:
        hops = want.route.hops or (Rand(),) * want.hops
        if not 0 < len(hops) <= MAX_HOPS:
            raise NoPath(f"a circuit has 1 to {MAX_HOPS} hops")
        chosen: list[Descriptor | None] = [self._named(hop, index) for index, hop in enumerate(hops)]
        if want.last:
            if chosen[-1] is not None and chosen[-1].identity != want.last:
                raise NoPath("the route ends at another node than the one that is wanted")
            chosen[-1] = self._known(want.last)
        named = [one.identity for one in chosen if one is not None]
        if len(set(named)) < len(named):
            raise NoPath("a circuit does not go through a node twice")
        chosen = self._with_gateways(chosen)
        count = len(chosen)
        if count > MAX_HOPS:
            raise NoPath(f"with its gateways the circuit would have more than {MAX_HOPS} hops")
        for index in (count - 1, *range(count - 1)):  # the end first: of what it needs there may be the fewest
            if chosen[index] is None:
                chosen[index] = self._random(index, count, chosen, want, now)
        return tuple(one for one in chosen if one is not None)

    def vetting(self, now: float, hops: int = 3, without: frozenset[bytes] = frozenset()) -> tuple[Descriptor, ...]:
        """Choose a circuit that tries a node which is not vetted yet, as its last hop; the user's data goes elsewhere.

        Those that have failed least come first, among them sampled guards, then whoever has waited longest. While
        hardly anybody is vetted the other hops are not either; the circuit then has as many as there are nodes for.
        """
        database, guards = self._database, self._guards.ids()
        fresh = [
            peer
            for peer in database
            if not database.vetted(peer) and peer.identity not in without and first_hop(database, peer, now)
        ]
        if not fresh:
            raise NoPath("every node that is known has been tried")
        tried = min(fresh, key=lambda peer: (peer.bad, peer.identity not in guards, peer.first))
        chosen = [tried.descriptor]
        pool = self._candidates(0, now)
        for index in range(hops - 1):
            found = None
            suits = self._suits(chosen, without)
            if index == hops - 2:
                found = self._guards.first(now, suits, self._weigh(now))
            found = found or pool.draw(suits, self._chance)
            if found is None:
                others = [peer for peer in fresh if suits(peer)]
                found = others[self._chance.randrange(len(others))] if others else None
            if found is None:
                break
            chosen.insert(0, found.descriptor)
        return tuple(chosen)

    def _named(self, hop: Hop, index: int) -> Descriptor | None:
        match hop:
            case Rand() | Via():
                return None
            case Named(name=name):
                return self._by_name(name)
            case At(host=host, port=port):
                found = self._database.at(host, port)
                if not found and not index:
                    raise Stranger(hop)
                return self._one(found, f"{host}:{port}")
            case Hidden():
                raise NoPath("the way to a hidden service is made by rendezvous")

    def _by_name(self, name: str) -> Descriptor:
        identity = self._aliases.get(name)
        if identity is not None:
            return self._known(identity)
        if not PREFIX <= len(name) <= ID_LETTERS:
            raise NoPath(f"{name!r} is no alias, and {PREFIX} or more letters of an id are needed")
        if len(name) == ID_LETTERS:
            try:
                return self._known(parse_id(name))
            except RemoteProtocolError as error:
                raise NoPath(f"{name!r} is no node id: {error}") from error
        return self._one(self._database.starting(name), name)

    def _one(self, found: Sequence[Peer], name: str) -> Descriptor:
        if len(found) != 1:
            raise NoPath(f"more than one node is meant by {name!r}" if found else f"no node {name!r} is known")
        return found[0].descriptor

    def _known(self, identity: bytes) -> Descriptor:
        peer = self._database.get(identity)
        if peer is None:
            raise NoPath(f"no descriptor of {id_text(identity)} is known")
        return peer.descriptor

    def _random(
        self, index: int, count: int, chosen: Sequence[Descriptor | None], want: Want, now: float
    ) -> Descriptor:
        kept = index == 0 or (index == 1 and want.layer2)  # nobody behind them may lead us away from these
        without = want.without if kept else want.without | want.shun
        suits = self._suits([one for one in chosen if one is not None], without)
        port = want.port if index == count - 1 else 0
        found: Peer | None
        if index == 0 and not port:
            found = self._guards.first(now, suits, self._weigh(now))
        elif index == 1 and want.layer2 and not port:
            pool, guards = self._candidates(0, now), self._guards.ids()
            others = [peer for peer in pool.peers if peer.identity not in guards]
            found = self._layer2.second(now, suits, others, self._weigh(now))
        else:
            found = self._candidates(port, now).draw(suits, self._chance)
        if found is None:
            raise NoPath(self._why(port, now))
        return found.descriptor

    def _why(self, port: int, now: float) -> str:
        if port and self._candidates(0, now).peers:
            return f"no exit for port {port} is known that goes with the other hops"
        known = sum(1 for peer in self._database if self._database.live(peer, now))
        return f"too few relays that go together: {known} are known, {len(self._candidates(0, now).peers)} may be used"

    def _suits(self, chosen: Sequence[Descriptor], without: frozenset[bytes]) -> Callable[[Peer], bool]:
        alike = self._database.alike
        listed = self._snapshot()

        def suits(peer: Peer) -> bool:
            if peer.identity in without or (listed is not None and peer.identity not in listed):
                return False
            return not any(alike(peer.descriptor, other) for other in chosen)

        return suits

    def _weigh(self, now: float) -> Callable[[Peer], float]:
        weights = self._candidates(0, now).weights
        usual = median(weights.values()) if weights else 1.0
        vetted, listed = self._database.vetted, self._snapshot()

        def weight(peer: Peer) -> float:
            waits = not vetted(peer) and (listed is None or peer.identity in listed)
            return weights.get(peer.identity, usual if waits else 0.0)

        return weight

    def _candidates(self, port: int, now: float) -> _Candidates:
        """Give what is chosen from, made anew when something has changed."""
        pool = self._pools.get(port)
        version = self._database.version
        settled = 0.0 if len(self._database) < MANY else POOL_REST
        life = POOL_LIFE if pool is not None and pool.version == version else settled
        if pool is None or not 0 <= now - pool.made < life:
            pool = self._pools[port] = self._made(port, now, version)
            while len(self._pools) > POOLS:
                del self._pools[next(iter(self._pools))]
        return pool

    def _made(self, port: int, now: float, version: int) -> _Candidates:
        listed = self._snapshot()
        usable = [peer for peer in self._database if self._usable(peer, port, listed)]
        live = [peer for peer in usable if self._database.live(peer, now)]
        peers = live if len(live) >= FEW else usable
        if self._database.network.ruled:
            peers = fair(peers, self._chance, self._database.pins)
        shares = (1.0 if self._database.live(peer, now) else EXPIRED_SHARE for peer in peers)
        weights = [weight * share for weight, share in zip(weigh(peers), shares, strict=True)]
        return _Candidates(peers, list(accumulate(weights)), now, version)

    def _usable(self, peer: Peer, port: int, listed: Snapshot | None) -> bool:
        descriptor = peer.descriptor
        if not descriptor.roles & _RELAY or not descriptor.endpoints or not self._database.vetted(peer):
            return False
        if listed is not None and peer.identity not in listed:
            return False
        return not port or allows(descriptor, port)

    def _with_gateways(self, hops: Sequence[Descriptor | None]) -> list[Descriptor | None]:
        """Put a gateway before every node that can be reached in no other way."""
        there = {one.identity for one in hops if one is not None}
        whole: list[Descriptor | None] = []
        for hop in hops:
            if hop is not None and not hop.endpoints:
                before = whole[-1] if whole else None
                if before is None or before.identity not in hop.via:
                    gateway = self._gateway(hop, there)
                    there.add(gateway.identity)
                    whole.append(gateway)
            whole.append(hop)
        return whole

    def _gateway(self, hop: Descriptor, there: set[bytes]) -> Descriptor:
        for identity in hop.via:
            peer = self._database.get(identity)
            if peer is not None and identity not in there and peer.descriptor.endpoints:
                return peer.descriptor
        raise NoPath(f"no gateway to {id_text(hop.identity)} is known")


def allows(descriptor: Descriptor, port: int) -> bool:
    """Tell whether a node says that it is an exit for a port."""
    return bool(descriptor.roles & _EXIT) and _ports(descriptor.exits).allows_port(port)


@lru_cache(maxsize=1024)
def _ports(summary: bytes) -> Ports:
    """Read an exit summary, of which there are few; a wrong one is none."""
    try:
        return parse_summary(summary)
    except RemoteProtocolError:
        return Ports()


def weigh(peers: Sequence[Peer]) -> list[float]:
    """Give the weights of peers: success times speed as we measured them, WEIGHT_MOST times the median at most.

    Whoever has not been measured yet counts as the median of those that have.
    """
    speeds = [peer.speed for peer in peers if peer.speed]
    usual = median(speeds) if speeds else 1.0
    plain = [peer.success * (peer.speed or usual) for peer in peers]
    most = WEIGHT_MOST * median(plain) if plain else 0.0
    return [min(weight, most) for weight in plain]


def fair(peers: Sequence[Peer], chance: Chance, pins: Container[bytes] = ()) -> list[Peer]:
    """Leave out peers, at random, until no source is the only one for more than half of what is left.

    What a node says of itself has one source together, which is nobody. What the user has named is from no source.
    """
    only = {peer.identity: next(iter(peer.told), _ITSELF) for peer in peers if len(peer.told) <= 1}
    only = {identity: source for identity, source in only.items() if source != USER and identity not in pins}
    counts = Counter(only.values())
    if not counts:
        return list(peers)
    source, count = counts.most_common(1)[0]  # two can never both have more than half
    excess = 2 * count - len(peers)
    if excess <= 0:
        return list(peers)
    theirs = [identity for identity, told in only.items() if told == source]
    gone = set(chance.sample(theirs, min(excess, count)))
    return [peer for peer in peers if peer.identity not in gone]
