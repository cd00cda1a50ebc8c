"""Every node that this one knows: its descriptor, who told us, and how it did when we used it.

Nothing here is believed because somebody says it. A node is used after `VETTED` good circuits through it, or when the
user has named it; how good it is we measure ourselves. What is remembered is never replaced by a new list: a list only
adds to it, and where there is no room newcomers wait. Times are seconds since 1970, since all of it outlives a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Final

from attrs import define, field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.core.network import Network
from layer8.core.place import Crowd
from layer8.crypto.descriptor import CLOCK, DAY, LISTED, Descriptor, Role
from layer8.crypto.keys import id_text
from layer8.relay.limits import PEERS_AFTER, PEERS_KEPT

VETTED: Final = 3  # good circuits through a node before it carries anything
ACQUAINTED: Final = 24 * 3600.0  # seconds that we know a node before it may be a guard
SOURCES_NEEDED: Final = 2  # independent ones, for a guard
SOURCES: Final = 8  # that are remembered of one node
BAD_MOST: Final = 3  # bad descriptors within a day, then nothing more is taken from that source for a day
BAD_TRIES: Final = 3  # failures of a node that has never worked, after which others may have its place
BLAMED: Final = 1024  # sources whose bad descriptors are counted
SPEED_SHARE: Final = 0.25  # of the newest measurement in the average
MAKE_ROOM: Final = 60.0  # seconds between two looks for what can be dropped
USER: Final = b""  # the source of what the user has said


class Learned(Enum):
    """What became of a descriptor."""

    NEW = "new"
    NEWER = "newer"
    KNOWN = "known"
    OLDER = "older"
    FULL = "full"


@frozen
class Taken:
    """What became of a list: the ids that were new or newer, and how many descriptors were bad."""

    learned: tuple[bytes, ...] = ()
    bad: int = 0


@define(eq=False)
class Peer:
    """A node that we know."""

    descriptor: Descriptor
    first: float  # when we first heard of it
    seen: float  # when somebody last told us something of it
    sources: dict[bytes, float] = field(factory=dict)  # who told us, and when first
    good: int = 0  # circuits through it
    bad: int = 0
    speed: float = 0.0  # bytes per second through it as we measured them; 0: not yet
    last_good: float = 0.0
    identity: bytes = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Keep its id, which everything asks for."""
        self.identity = self.descriptor.identity

    @property
    def success(self) -> float:
        """The share of circuits through it that were good; 0.5 before there is any."""
        return (self.good + 1) / (self.good + self.bad + 2)

    @property
    def told(self) -> frozenset[bytes]:
        """Who told us, others than itself: what a node says of itself makes it no better known."""
        return frozenset(self.sources) - {self.identity}


class Database:
    """The peers, at most PEERS_KEPT, each until PEERS_AFTER past the expiry of its descriptor."""

    def __init__(self, network: Network, own: bytes = b"") -> None:
        """Start empty; `own` is this node's id, which is never kept."""
        self.network = network
        self.version = 0  # rises with every change that a choice could see
        self.pins: set[bytes] = set()
        self._own = own
        self._peers: dict[bytes, Peer] = {}
        self._crowd = Crowd()
        self._blamed: dict[bytes, list[float]] = {}
        self._distrusted: dict[bytes, float] = {}
        self._changed: set[bytes] = set()
        self._dropped: set[bytes] = set()
        self._looked = float("-inf")

    def __len__(self) -> int:
        """Count the peers."""
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        """Give every peer, in the order in which they came."""
        return iter(self._peers.values())

    def get(self, identity: bytes) -> Peer | None:
        """Give a peer by its id."""
        return self._peers.get(identity)

    def starting(self, letters: str) -> list[Peer]:
        """Give those whose id begins with these letters."""
        wanted = letters.lower()
        return [peer for peer in self if id_text(peer.identity).startswith(wanted)]

    def at(self, host: str, port: int) -> list[Peer]:
        """Give those that say they are at this address."""
        there = host.lower(), port
        return [peer for peer in self if any((one.host, one.port) == there for one in peer.descriptor.places)]

    def restore(self, peers: Iterable[Peer], pins: Iterable[bytes], now: float) -> None:
        """Take back what was kept; what is too old, or has no room, is left out."""
        self.pins.update(pins)
        for peer in peers:
            if peer.descriptor.network == self.network.mark and self._has_room(peer.descriptor):
                self._keep(peer)
        self._changed.clear()
        self.prune(now)

    def took(self, source: bytes, raws: Iterable[bytes], now: float) -> Taken:
        """Take the descriptors that `source` answered with; bad ones are dropped one by one and counted.

        `source` is the id of a node, or USER. From a source that is distrusted nothing is taken.
        """
        if self.distrusts(source, now):
            return Taken()
        learned: list[bytes] = []
        bad = 0
        for raw in list(raws)[:LISTED]:
            try:
                descriptor = self._read(raw, now)
            except RemoteProtocolError:
                bad += 1
                self._blame(source, now)
                continue
            if descriptor is not None and self.learn(descriptor, source, now) in (Learned.NEW, Learned.NEWER):
                learned.append(descriptor.identity)
        return Taken(tuple(learned), bad)

    def learn(self, descriptor: Descriptor, source: bytes, now: float) -> Learned:
        """Add what a good descriptor says to what we know.

        An older serial changes nothing and is no fault of the source: it may not have heard of the newer one.
        """
        identity = descriptor.identity
        if identity == self._own:
            return Learned.KNOWN
        peer = self._peers.get(identity)
        if peer is None:
            if not self._make_room(descriptor, now):
                return Learned.FULL
            self._keep(Peer(descriptor, first=now, seen=now, sources={source: now}))
            return Learned.NEW
        if descriptor.serial < peer.descriptor.serial:
            return Learned.OLDER
        peer.seen = now
        if source not in peer.sources and len(peer.sources) < SOURCES:
            peer.sources[source] = now
            self.version += 1
        self._changed.add(identity)
        if descriptor.serial == peer.descriptor.serial:
            return Learned.KNOWN
        before = peer.descriptor
        self._crowd.drop(before.near, before.far)
        room = self._has_room(descriptor)
        if room:
            peer.descriptor = descriptor
            self.version += 1
        self._crowd.add(peer.descriptor.near, peer.descriptor.far)
        return Learned.NEWER if room else Learned.FULL

    def distrusts(self, source: bytes, now: float) -> bool:
        """Tell whether nothing is taken from a source at present."""
        until = self._distrusted.get(source)
        if until is not None and until <= now:
            del self._distrusted[source]
            return False
        return until is not None

    def pin(self, identity: bytes) -> None:
        """Let a node be used without vetting: the user has named it."""
        self.pins.add(identity)
        self.version += 1

    def unpin(self, identity: bytes) -> None:
        """Treat a node as any other again."""
        self.pins.discard(identity)
        self.version += 1

    def worked(self, identity: bytes, now: float, speed: float = 0.0) -> None:
        """Note a good circuit through a node, with the bytes per second that it carried if that was measured."""
        peer = self._peers.get(identity)
        if peer is None:
            return
        peer.good += 1
        peer.last_good = now
        self._measured(peer, speed)
        if peer.good <= VETTED:
            self.version += 1

    def measured(self, identity: bytes, speed: float) -> None:
        """Note the bytes per second that a circuit through a node carried."""
        if (peer := self._peers.get(identity)) is not None:
            self._measured(peer, speed)

    def failed(self, identity: bytes) -> None:
        """Note a circuit that failed at a node."""
        if (peer := self._peers.get(identity)) is not None:
            peer.bad += 1
            self._changed.add(identity)

    def vetted(self, peer: Peer) -> bool:
        """Tell whether a node may carry something: after VETTED good circuits, or because the user has named it."""
        return not self.network.ruled or peer.identity in self.pins or peer.good >= VETTED

    def acquainted(self, peer: Peer, now: float) -> bool:
        """Tell whether we know a node well enough for a guard: for a day, and from two that are not one."""
        if not self.network.ruled or peer.identity in self.pins:
            return True
        return now - peer.first >= ACQUAINTED and len(self.independent(peer)) >= SOURCES_NEEDED

    def independent(self, peer: Peer) -> frozenset[bytes]:
        """Give sources of a node of which no two are of one family or network, and none is the node itself."""
        kept: list[bytes] = []
        for source in sorted(peer.told, key=lambda one: peer.sources[one]):
            mine = self._peers.get(source)
            others = [self._peers[one] for one in kept if one in self._peers]
            if mine is None or not any(self.alike(mine.descriptor, other.descriptor) for other in others):
                kept.append(source)
        return frozenset(kept)

    def alike(self, one: Descriptor, other: Descriptor) -> bool:
        """Tell whether two nodes may be in one hand: the same node, one family, or one /16 or /32 network."""
        if one.identity == other.identity or one.related(other):
            return True
        return self.network.ruled and not one.far.isdisjoint(other.far)

    def live(self, peer: Peer, now: float) -> bool:
        """Tell whether its descriptor has not expired."""
        return peer.descriptor.expires > now

    def prune(self, now: float) -> None:
        """Forget whatever expired PEERS_AFTER ago."""
        self._drop(lambda peer: peer.descriptor.expires + PEERS_AFTER <= now)

    def changed(self, identities: Iterable[bytes]) -> None:
        """Count these as changed: what was made of `changes` has failed."""
        self._changed.update(identities)

    def changes(self) -> tuple[list[Peer], list[bytes]]:
        """Give the peers that changed since the last time, and the ids of those that were dropped."""
        changed = [self._peers[one] for one in self._changed if one in self._peers]
        dropped = [one for one in self._dropped if one not in self._peers]
        self._changed.clear()
        self._dropped.clear()
        return changed, dropped

    def _read(self, raw: bytes, now: float) -> Descriptor | None:
        """Read one from the network: None is bad luck, an error is the source's fault."""
        known = self._known(raw)
        descriptor = known or Descriptor.read(raw)
        if now - CLOCK < descriptor.expires <= now or now + CLOCK < descriptor.made <= now + 2 * CLOCK:
            return None  # two honest clocks may differ that much, and one has found it good
        descriptor.check(self.network, now)
        return descriptor

    def _known(self, raw: bytes) -> Descriptor | None:
        """Give the descriptor of these very bytes, so that its signature is checked once."""
        at = raw.find(b"1:i32:")
        peer = self._peers.get(raw[at + 6 : at + 38]) if at > 0 else None
        return peer.descriptor if peer is not None and peer.descriptor.raw == raw else None

    def _measured(self, peer: Peer, speed: float) -> None:
        if speed > 0:
            peer.speed = speed if not peer.speed else peer.speed + SPEED_SHARE * (speed - peer.speed)
        self._changed.add(peer.identity)

    def _blame(self, source: bytes, now: float) -> None:
        if source == USER:
            return
        times = [one for one in self._blamed.pop(source, []) if one > now - DAY] + [now]
        if len(times) >= BAD_MOST:
            self._distrusted[source] = now + DAY
            _cap(self._distrusted)
            return
        self._blamed[source] = times
        _cap(self._blamed)

    def _keep(self, peer: Peer) -> None:
        self._peers[peer.identity] = peer
        self._crowd.add(peer.descriptor.near, peer.descriptor.far)
        self._changed.add(peer.identity)
        self.version += 1

    def _has_room(self, descriptor: Descriptor) -> bool:
        return not self.network.ruled or self._crowd.room(descriptor.near, descriptor.far)

    def _make_room(self, descriptor: Descriptor, now: float) -> bool:
        """Drop what never carried anything and has expired or failed, if that is needed; nothing else makes room."""
        if not self._reachable(descriptor):
            return False
        if len(self._peers) < PEERS_KEPT and self._has_room(descriptor):
            return True
        if now - self._looked >= MAKE_ROOM:
            self._looked = now
            self._drop(lambda peer: not peer.good and peer.identity not in self.pins and self._useless(peer, now))
        return len(self._peers) < PEERS_KEPT and self._has_room(descriptor)

    def _useless(self, peer: Peer, now: float) -> bool:
        return peer.descriptor.expires <= now or peer.bad >= BAD_TRIES

    def _reachable(self, descriptor: Descriptor) -> bool:
        """Tell whether anybody could go through a node: what says nothing of that costs its maker no network."""
        if not self.network.ruled or descriptor.identity in self.pins:
            return True
        there = bool(descriptor.endpoints) or any(gateway in self._peers for gateway in descriptor.via)
        return there and bool(descriptor.roles & Role.RELAY)

    def _drop(self, which: Callable[[Peer], bool]) -> None:
        for peer in [one for one in self if which(one)]:
            del self._peers[peer.identity]
            self._crowd.drop(peer.descriptor.near, peer.descriptor.far)
            self._dropped.add(peer.identity)
            self.version += 1


def _cap(table: dict[bytes, float] | dict[bytes, list[float]]) -> None:
    while len(table) > BLAMED:
        del table[next(iter(table))]
