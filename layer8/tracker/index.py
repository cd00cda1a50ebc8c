"""The list that a tracker keeps: descriptors that relays have signed, each until it expires. Times are since 1970."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from layer8.core.chance import Chance
from layer8.core.errors import RemoteProtocolError
from layer8.core.network import Network
from layer8.core.place import Crowd
from layer8.crypto.descriptor import DESC_LIFE, LISTED, Descriptor, Role
from layer8.tracker.limits import EXCUSED, PRUNE_EVERY, TRACKER_RELAYS
from layer8.tracker.wire import GetRelays, Status, Unpublish

_DRAWS = 4  # random looks for each one that is wanted, before the whole list is gone through


class Index:
    """Relays by id, in a list besides so that a random one is found at once."""

    def __init__(self, network: Network, chance: Chance, allows: Callable[[Descriptor, int], bool]) -> None:
        """`allows` tells whether an exit says that it reaches a port."""
        self._network = network
        self._chance = chance
        self._allows = allows
        self._listed: dict[bytes, Descriptor] = {}
        self._order: list[bytes] = []
        self._places: dict[bytes, int] = {}
        self._seen: dict[bytes, float] = {}  # when a relay was found at its addresses
        self._crowd = Crowd()
        self._gone: dict[bytes, int] = {}  # when a relay unpublished; what it signed before stays out
        self._pruned = float("-inf")

    @property
    def ruled(self) -> bool:
        """Tell whether its network has rules: others are a minute old, and everything there is tried at once."""
        return self._network.ruled

    def __len__(self) -> int:
        """Count the relays."""
        return len(self._listed)

    def __iter__(self) -> Iterator[Descriptor]:
        """Give every descriptor, in the order of its id."""
        return (self._listed[identity] for identity in sorted(self._listed))

    def get(self, identity: bytes) -> Descriptor | None:
        """Give a relay's descriptor."""
        return self._listed.get(identity)

    def judge(self, descriptor: Descriptor, now: float) -> Status | None:
        """Say what becomes of a descriptor without dialling anybody; None: dial back, then `enlist` it."""
        identity = descriptor.identity
        try:
            descriptor.check(self._network, now)
        except RemoteProtocolError:
            return Status.BAD
        if not descriptor.roles & Role.RELAY or not (descriptor.endpoints or descriptor.via):
            return Status.BAD
        known = self._listed.get(identity)
        if known == descriptor:
            return Status.LISTED
        if (known is not None and descriptor.serial <= known.serial) or descriptor.made <= self._gone.get(identity, -1):
            return Status.OLDER
        if not self._room(descriptor, known, now):
            return Status.FULL
        there = (descriptor.endpoints, descriptor.via)
        if known is not None and there == (known.endpoints, known.via) and now - self._seen[identity] < EXCUSED:
            self._replace(descriptor)
            return Status.LISTED
        return None

    def enlist(self, descriptor: Descriptor, now: float) -> Status:
        """List one that was found at its addresses; what has changed meanwhile is looked at again."""
        status = self.judge(descriptor, now)
        if status is None:
            self._replace(descriptor)
            self._seen[descriptor.identity] = now
        return status or Status.LISTED

    def remove(self, asked: Unpublish, now: float) -> Status:
        """Take out a relay that says it goes."""
        if not asked.good(self._network, now):
            return Status.BAD
        known = self._listed.get(asked.identity)
        if known is None:
            return Status.UNKNOWN
        if known.made > asked.time:
            return Status.OLDER  # said before it came back
        self._drop(known)
        self._gone[asked.identity] = asked.time
        while len(self._gone) > TRACKER_RELAYS:
            del self._gone[next(iter(self._gone))]
        return Status.REMOVED

    def sample(self, asked: GetRelays, now: float) -> list[bytes]:
        """Give so many random descriptors that fit, LISTED at most."""

        def fits(one: Descriptor) -> bool:
            if one.roles & asked.roles != asked.roles or one.expires <= now:
                return False
            return not asked.port or self._allows(one, asked.port)

        count = min(asked.count, LISTED)
        found: dict[bytes, Descriptor] = {}
        for _ in range(_DRAWS * count if self._order else 0):
            one = self._listed[self._order[self._chance.randrange(len(self._order))]]
            if fits(one):
                found[one.identity] = one
                if len(found) == count:
                    break
        else:
            fitting = [one for one in self._listed.values() if fits(one)]
            return [one.raw for one in self._chance.sample(fitting, min(count, len(fitting)))]
        return [one.raw for one in found.values()]

    def prune(self, now: float) -> list[bytes]:
        """Forget what has expired, and give the ids; it is looked for every PRUNE_EVERY at most."""
        if now - self._pruned < PRUNE_EVERY:
            return []
        self._pruned = now
        gone = [one for one in self._listed.values() if one.expires <= now]
        for one in gone:
            self._drop(one)
        self._gone = {identity: at for identity, at in self._gone.items() if at + 2 * DESC_LIFE > now}
        return [one.identity for one in gone]

    def restore(self, descriptors: Iterable[Descriptor], now: float) -> None:
        """Take back what was listed before a restart and has not expired."""
        for one in descriptors:
            if one.expires > now and one.network == self._network.mark and one.identity not in self._listed:
                self._seen[one.identity] = float("-inf")
                self._replace(one)

    def _room(self, descriptor: Descriptor, known: Descriptor | None, now: float) -> bool:
        if known is None and len(self._listed) >= TRACKER_RELAYS:
            return False
        if not self._network.ruled:
            return True
        if known is not None:
            self._crowd.drop(known.near, known.far)
        room = self._crowd.room(descriptor.near, descriptor.far)
        if known is not None:
            self._crowd.add(known.near, known.far)
        return room

    def _replace(self, descriptor: Descriptor) -> None:
        identity = descriptor.identity
        known = self._listed.get(identity)
        if known is not None:
            self._crowd.drop(known.near, known.far)
        else:
            self._places[identity] = len(self._order)
            self._order.append(identity)
        self._listed[identity] = descriptor
        self._crowd.add(descriptor.near, descriptor.far)

    def _drop(self, descriptor: Descriptor) -> None:
        identity = descriptor.identity
        del self._listed[identity]
        self._seen.pop(identity, None)
        self._crowd.drop(descriptor.near, descriptor.far)
        place, last = self._places.pop(identity), self._order.pop()
        if last != identity:
            self._order[place] = last
            self._places[last] = place
