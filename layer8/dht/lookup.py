"""One search for the nodes nearest to a target: who is asked next, and when it is over.

Each path has ALPHA queries in flight, and whatever ends one (an answer, or the time for it) starts the next: there are
no rounds in which all wait for the slowest. With several paths no node is asked by two of them, so one that lies can
lead one path astray and no other. A node that names others which turn out not to be who it said is not believed in
what else it has named. In networks with rules two nodes of one /24 (or /48) are believed in a lookup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from heapq import nsmallest
from typing import Final

from attrs import define, field

from layer8.core.place import networks
from layer8.dht.limits import ALPHA, DHT_K, LOOKUP_QUERIES, LOOKUP_TIME, PATH_NODES, PATHS, PER_BUCKET_NEAR
from layer8.dht.wire import Contact

DECEIVED: Final = 5  # nodes that did not answer, or one that lied, before who named them is believed no more


class State(Enum):
    """What became of a node that a lookup knows."""

    NEW = 0
    ASKED = 1
    SLOW = 2  # its time is over; an answer still counts
    ANSWERED = 3
    FAILED = 4


@define(eq=False)
class Candidate:
    """A node, how far it is, and who named it first; `path` is the one that may ask it."""

    contact: Contact
    distance: int
    path: int
    by: bytes
    state: State = State.NEW


@define(eq=False)
class Lookup:
    """See the module. `wide`: from the start over disjoint paths."""

    target: bytes
    own: bytes
    begun: float
    wide: bool = False
    ruled: bool = False  # whether networks of addresses count
    found: dict[bytes, Candidate] = field(factory=dict, init=False, repr=False)  # by id
    asked: int = field(default=0, init=False)
    paths: int = field(init=False)
    _flying: list[int] = field(init=False)
    _sizes: list[int] = field(init=False, repr=False)
    _wanted: int = field(init=False, repr=False)
    _deceived: dict[bytes, int] = field(factory=dict, init=False, repr=False)
    _near: Counter[str] = field(factory=Counter, init=False, repr=False)  # answers of a /24 or /48
    _next: int = field(default=0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Lay out the paths."""
        self.paths = PATHS if self.wide else 1
        self._flying, self._sizes = [0] * PATHS, [0] * PATHS
        self._wanted = int.from_bytes(self.target, "big")

    def seed(self, contacts: Iterable[Contact]) -> None:
        """Begin with these, dealt out to the paths."""
        for one in contacts:
            self._learn(one, self._next % self.paths, b"")
            self._next += 1

    def widen(self, contacts: Iterable[Contact]) -> None:
        """Go on over disjoint paths, with what is known and these: the nearest have no answer."""
        self.wide, self.paths = True, PATHS
        for number, one in enumerate(sorted(self.found.values(), key=_distance)):
            if one.state is State.NEW:
                self._sizes[one.path] -= 1
                one.path = number % PATHS
                self._sizes[one.path] += 1
        self.seed(contacts)

    def next(self, now: float) -> list[Contact]:
        """Give whom to ask now; they count as asked."""
        chosen: list[Contact] = []
        if now - self.begun >= LOOKUP_TIME:
            return chosen
        for path in range(self.paths):
            while self._flying[path] < ALPHA and self.asked < LOOKUP_QUERIES:
                one = self._best(path)
                if one is None:
                    break
                one.state = State.ASKED
                self._flying[path] += 1
                self.asked += 1
                chosen.append(one.contact)
        return chosen

    def answered(self, contact: Contact, named: Sequence[Contact]) -> None:
        """Take an answer, late or not, and the nodes that it names."""
        one = self._of(contact)
        if one is None or one.state in (State.ANSWERED, State.NEW):
            return
        self._landed(one)
        if self._crowded(one):
            one.state = State.FAILED
            return
        one.state = State.ANSWERED
        if self.ruled:
            self._near[networks(contact.host)[0]] += 1
        if self._deceived.get(contact.id, 0) < DECEIVED:
            for other in named[: 2 * DHT_K]:
                self._learn(other, one.path, contact.id)

    def slow(self, contact: Contact) -> None:
        """Wait no longer for a node; it may still answer."""
        one = self._of(contact)
        if one is not None and one.state is State.ASKED:
            self._landed(one)
            one.state = State.SLOW
            self._blame(one, 1)

    def failed(self, contact: Contact, *, lied: bool = False) -> None:
        """Give a node up; `lied`: it is not who it was said to be."""
        one = self._of(contact)
        if one is None or one.state is State.FAILED:
            return
        self._landed(one)
        if one.state is not State.SLOW or lied:
            self._blame(one, DECEIVED if lied else 1)
        one.state = State.FAILED

    def over(self, now: float) -> bool:
        """Say whether the nearest have answered, or the time or the number of queries is up."""
        if now - self.begun >= LOOKUP_TIME:
            return True
        if any(self._flying):
            return self._settled()
        return self.asked >= LOOKUP_QUERIES or all(self._best(path) is None for path in range(self.paths))

    def nearest(self, count: int = DHT_K) -> list[Contact]:
        """Give the nearest that have answered."""
        answered = (one for one in self.found.values() if one.state is State.ANSWERED)
        return [one.contact for one in nsmallest(count, answered, key=_distance)]

    def _settled(self) -> bool:
        """Say whether nobody who is still in flight, or was never asked, is nearer than the eight nearest answers."""
        for path in range(self.paths):
            if self._best(path) is not None:
                return False
        best = nsmallest(DHT_K, filter(self._counts, self.found.values()), key=_distance)
        return len(best) == DHT_K and all(one.state is State.ANSWERED for one in best)

    def _best(self, path: int) -> Candidate | None:
        """Give the nearest node to ask next on a path, if it is among the eight nearest that this path knows."""
        mine = (one for one in self.found.values() if one.path == path and self._counts(one))
        for one in nsmallest(DHT_K, mine, key=_distance):
            if one.state is State.NEW:
                return one
        return None

    def _counts(self, one: Candidate) -> bool:
        return one.state in _OPEN and not (one.state is State.NEW and self._crowded(one))

    def _crowded(self, one: Candidate) -> bool:
        """Say whether as many of a node's network have answered as are believed."""
        return self.ruled and self._near[networks(one.contact.host)[0]] >= PER_BUCKET_NEAR

    def _learn(self, contact: Contact, path: int, by: bytes) -> None:
        if contact.id == self.own or contact.id in self.found:
            return
        distance = contact.number ^ self._wanted
        if self._sizes[path] >= PATH_NODES:
            mine = (one for one in self.found.values() if one.path == path and one.state is State.NEW)
            worst = max(mine, key=_distance, default=None)
            if worst is None or worst.distance <= distance:
                return
            self._forget(worst)
        self.found[contact.id] = Candidate(contact, distance, path, by)
        self._sizes[path] += 1

    def _forget(self, one: Candidate) -> None:
        del self.found[one.contact.id]
        self._sizes[one.path] -= 1

    def _of(self, contact: Contact) -> Candidate | None:
        one = self.found.get(contact.id)
        return one if one is not None and one.contact == contact else None

    def _landed(self, one: Candidate) -> None:
        if one.state is State.ASKED:
            self._flying[one.path] -= 1

    def _blame(self, one: Candidate, weight: int) -> None:
        if not one.by:
            return
        before = self._deceived.get(one.by, 0)
        self._deceived[one.by] = before + weight
        if before < DECEIVED <= before + weight:
            for other in [each for each in self.found.values() if each.by == one.by and each.state is State.NEW]:
                self._forget(other)  # somebody else may name it


_OPEN: Final = frozenset((State.NEW, State.ASKED, State.ANSWERED))


def _distance(one: Candidate) -> int:
    return one.distance
