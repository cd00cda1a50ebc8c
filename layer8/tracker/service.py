"""The tracker's side of its conversations: takes messages that come by circuits, and dials relays back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from layer8.core.errors import Layer8Error, LimitExceeded, RemoteProtocolError, StorageError
from layer8.core.roles import Asker
from layer8.crypto.descriptor import Descriptor, pack
from layer8.net.storage import Change, Drop, Put, Storage, Value
from layer8.net.tasks import TaskSet
from layer8.tracker.index import Index
from layer8.tracker.limits import ASKS, CIRCUITS, DIAL_TIME, DIALS, MISSED, MISSING
from layer8.tracker.wire import GetRelays, Status, Track, Unpublish, ok

Dial = Callable[[Descriptor], Awaitable[bool]]
"""Link to a relay at the addresses of its descriptor and say whether it proved its identity there, then let it go; what
goes wrong is a `Layer8Error`. Anybody can publish any address: it dials none that an exit would not (section 7)."""


@frozen
class Listed:
    """How many relays a tracker lists."""

    relays: int


class Tracker:
    """A role of a node, for the relay's table of roles (`layer8.core.roles.Answers`)."""

    commands: frozenset[int] = frozenset((Track.PUBLISH, Track.UNPUBLISH, Track.GET_RELAYS))

    def __init__(
        self,
        index: Index,
        dial: Dial,
        storage: Storage,
        tasks: TaskSet,
        clock: IReactorTime,
        wall: Callable[[], float],
        changed: Callable[[Listed], None] = lambda listed: None,
    ) -> None:
        """`storage` has a table `tracked` (id, descriptor, expires); `changed` hears how many are listed now."""
        self.index = index
        self._dial = dial
        self._storage = storage
        self._tasks = tasks
        self._clock = clock
        self._wall = wall
        self._changed = changed
        self._asks: dict[int, int] = {}
        self._dialled: set[bytes] = set()
        self._missing: dict[bytes, float] = {}  # when a relay was not there

    def load(self) -> None:
        """Read what was listed before a restart; waits for the disk, once at the start. Raises `StorageError`."""
        found = []
        for row in self._storage.rows("tracked"):
            try:
                found.append(Descriptor.parse(row["descriptor"] if isinstance(row["descriptor"], bytes) else b""))
            except RemoteProtocolError:
                continue  # written by another version
        now = self._wall()
        self.index.restore(found, now)
        gone = {one.identity for one in found if self.index.get(one.identity) is None}
        self._write(*(Drop("tracked", {"id": identity}) for identity in gone))

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Take a message; raises `RemoteProtocolError` for nonsense and `LimitExceeded` after ASKS of a circuit."""
        self._count(asker.circuit)
        wall = self._wall()
        self._prune(wall)
        if command == Track.GET_RELAYS:
            asker.answer(Track.RELAY_LIST, pack(self.index.sample(GetRelays.read(data), wall)))
        elif command == Track.UNPUBLISH:
            asked = Unpublish.read(data)
            status = self.index.remove(asked, wall)
            asker.answer(Track.OK, ok(status))
            if status is Status.REMOVED:
                self._write(Drop("tracked", {"id": asked.identity}))
                self._changed(Listed(len(self.index)))
        else:
            self._publish(asker, data, wall)

    def gone(self, circuit: int) -> None:
        """Forget a circuit that has ended."""
        self._asks.pop(circuit, None)

    def _count(self, circuit: int) -> None:
        count = self._asks.pop(circuit, 0) + 1
        self._asks[circuit] = count
        while len(self._asks) > CIRCUITS:
            del self._asks[next(iter(self._asks))]
        if count > ASKS:
            raise LimitExceeded("ASKS", ASKS)

    def _publish(self, asker: Asker, data: bytes, wall: float) -> None:
        try:
            descriptor = Descriptor.read(data)
        except RemoteProtocolError:
            asker.answer(Track.OK, ok(Status.BAD))
            return
        known = self.index.get(descriptor.identity)
        status = self.index.judge(descriptor, wall)
        if status is not None:
            asker.answer(Track.OK, ok(status))
            if known != self.index.get(descriptor.identity):
                self._listed(descriptor)
        elif self.index.ruled and wall - self._missing.get(descriptor.identity, float("-inf")) < MISSING:
            asker.answer(Track.OK, ok(Status.UNREACHABLE))
        elif len(self._dialled) >= DIALS or descriptor.identity in self._dialled:
            asker.answer(Track.OK, ok(Status.BUSY))
        else:
            self._dialled.add(descriptor.identity)
            self._tasks.start("dial back", self._look(asker, descriptor))

    async def _look(self, asker: Asker, descriptor: Descriptor) -> None:
        """List a relay if it is there."""
        status = Status.UNREACHABLE
        try:
            if await self._there(descriptor):
                status = self.index.enlist(descriptor, self._wall())
        finally:
            self._dialled.discard(descriptor.identity)
        if status is Status.UNREACHABLE:
            self._missing.pop(descriptor.identity, None)
            self._missing[descriptor.identity] = self._wall()
            while len(self._missing) > MISSED:
                del self._missing[next(iter(self._missing))]
        if status is Status.LISTED:
            self._listed(descriptor)
        if asker.alive:
            asker.answer(Track.OK, ok(status))

    async def _there(self, descriptor: Descriptor) -> bool:
        async def dial() -> bool:
            return await self._dial(descriptor)

        looking = Deferred.fromCoroutine(dial())
        looking.addTimeout(DIAL_TIME, self._clock, lambda _, __: False)
        try:
            return await looking
        except CancelledError:
            raise
        except Layer8Error:
            return False

    def _listed(self, descriptor: Descriptor) -> None:
        row: dict[str, Value] = {
            "id": descriptor.identity,
            "descriptor": descriptor.raw,
            "expires": float(descriptor.expires),
        }
        self._write(Put("tracked", row))
        self._changed(Listed(len(self.index)))

    def _prune(self, wall: float) -> None:
        gone = self.index.prune(wall)
        if gone:
            self._write(*(Drop("tracked", {"id": identity}) for identity in gone))
            self._changed(Listed(len(self.index)))

    def _write(self, *changes: Change) -> None:
        """Write down what the list is; a disk that fails costs the list of the next start, and shows in its health."""
        if changes:
            self._storage.write(*changes).addErrback(lambda reason: reason.trap(StorageError) and None)
