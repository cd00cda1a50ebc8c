"""A service's descriptor in the DHT: put there, kept there, and watched, since nobody else may sign one.

::

    publishing = Publishing(items, key, tasks, reactor.callLater, wall, chance=chance, kept=keep, alert=tell)
    publishing.changed(points, price)          several changes within SETTLED are one publication

     nothing --changed--> due --> look --free--> put --> stored --REPUT--> due
                           ^        '--clash--> left alone until the other one has gone, and an alert
                           '------- later, and later still, while nobody answers

There is one item for this period, one for the next from OVERLAP before it begins, and for a resource one that everybody
can read. Each has times and sequence numbers of its own, or those who store them could tell by these that they are of
one service. `seq` is the second of publication, and never one that was used before: `kept` hears it before it is used.

Whoever else publishes with this key, by mistake or because it was stolen, shows by an item that we have not signed.
There is no fight about it: the owner is told, and ours is put again when the other's has expired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError

from layer8.core.chance import Chance
from layer8.core.errors import (
    ConfigError,
    Layer8Error,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    TimedOut,
    Unavailable,
)
from layer8.crypto.items import SEQ_MOST, Items, Mutable, sha1
from layer8.crypto.keys import NodeKey
from layer8.net.tasks import TaskSet
from layer8.rendezvous.address import address_text, period, published
from layer8.rendezvous.descriptor import (
    SALT,
    Point,
    Price,
    ServiceDescriptor,
    publish,
    publish_public,
    targets,
)

SETTLED: Final = 1.0  # seconds after a change in which others may come
REPUT: Final = 3600  # seconds after which an item is put again, at most
REPUT_SPREAD: Final = 600.0  # seconds that it may be sooner
EXPIRES: Final = 3 * 3600  # seconds that a descriptor is good for: three times REPUT
APART: Final = (60.0, 600.0)  # seconds that the other period's item waits, so that the two are not seen together
AGAIN: Final = (2.0, 600.0)  # seconds until the next try while nobody answers, doubled each time
LOOKED: Final = 300  # seconds in which we need not look again what stands there
BEFORE: Final = 60  # seconds: what is newer than our start by more has been signed by somebody else


@define(eq=False)
class Slot:
    """One item: that of a period, or of none where everybody can read it."""

    period: int | None
    due: float  # the second at which it is put
    last: Mutable | None = field(default=None, init=False)  # what we have put last
    stands: bool = field(default=False, init=False)  # some of it is stored somewhere
    looked: float = field(default=0.0, init=False)
    pause: float = field(default=AGAIN[0], init=False)
    busy: bool = field(default=False, init=False)
    stale: bool = field(default=False, init=False)  # there was a change while it was busy


@define(eq=False)
class Publishing:
    """See the module. `wall` gives seconds since 1970, `later` is a reactor's `callLater`.

    `clients` are those whom a service lets in, by name, with the `cookie` that their lists hand out. `said` hears after
    each publication at how many nodes it stands, `alert` one line about another holder of the key.
    """

    _items: Items
    _key: NodeKey
    _tasks: TaskSet
    _later: Callable[[float, Callable[[], None]], Any]
    _wall: Callable[[], float]
    _chance: Chance = field(kw_only=True)
    _clients: Mapping[str, bytes] = field(factory=dict, kw_only=True)
    _cookie: bytes = field(default=b"", kw_only=True, repr=False)
    _public: bool = field(default=False, kw_only=True)
    _modes: tuple[int, ...] = field(default=(1,), kw_only=True)
    _seq: int = field(default=0, kw_only=True)  # the last one, of an earlier run to begin with
    _kept: Callable[[int], object] = field(default=lambda seq: None, kw_only=True)
    _alert: Callable[[str], object] = field(default=lambda text: None, kw_only=True)
    _said: Callable[[int, int], object] = field(default=lambda seq, nodes: None, kw_only=True)
    published: int = field(default=0, init=False)  # the last seq that is stored somewhere
    clashed: bool = field(default=False, init=False)  # somebody else's item stands where ours should
    _told: tuple[tuple[Point, ...], Price | None] = field(default=((), None), init=False)
    _slots: dict[int | None, Slot] = field(factory=dict, init=False)
    _before: int = field(default=0, init=False)
    _since: int = field(default=0, init=False)
    _timer: Any = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        """Refuse what would let in everybody."""
        _check(self._clients, self._cookie, self._public)
        self._before = self._seq
        self._since = int(self._wall())

    def changed(self, points: tuple[Point, ...], price: Price | None) -> None:
        """Publish soon; without a point nothing is said, and what was said expires."""
        if (points, price) != self._told:
            self._told = (points, price)
            self._again()

    def admit(self, clients: Mapping[str, bytes], cookie: bytes) -> None:
        """Let in these clients from now on, by a new cookie where one has been taken away; raises `ConfigError`."""
        _check(clients, cookie, self._public)
        self._clients, self._cookie = clients, cookie
        self._again()

    def stop(self) -> None:
        """Publish no more; what was said expires."""
        self._stopped = True
        self._stop_timer()

    @property
    def stands(self) -> bool:
        """Whether all that visitors may look for now is stored: by the address, and by the resource if it is public."""
        wanted = (period(self._wall()), *((None,) if self._public else ()))
        return all(one in self._slots and self._slots[one].stands for one in wanted)

    # Times.

    def _again(self) -> None:
        """Let everything be put soon."""
        now = self._wall()
        self._arrange(now)
        for slot in self._slots.values():
            slot.stale = slot.busy
            slot.due = min(slot.due, now + self._settled(slot.period, now))
        self._set(now)

    def _arrange(self, now: float) -> None:
        """Have a slot for each item that is to stand at this time."""
        wanted: list[int | None] = [*published(now)]
        if self._public:
            wanted.append(None)
        self._slots = {one: self._slots.get(one) or Slot(one, now + self._settled(one, now)) for one in wanted}
        for slot in self._slots.values():
            slot.due = min(slot.due, now + REPUT)  # the clock may have been set back

    def _settled(self, number: int | None, now: float) -> float:
        return SETTLED if number is None or number == period(now) else self._chance.uniform(*APART)

    def _set(self, now: float) -> None:
        """Wake when something is due; now and then in any case, since the clock may be set."""
        self._stop_timer()
        if self._stopped or not self._told[0]:
            return
        soonest = min((slot.due - now for slot in self._slots.values() if not slot.busy), default=LOOKED)
        self._timer = self._later(min(max(soonest, 0.0), LOOKED), self._wake)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _wake(self) -> None:
        now = self._wall()
        self._arrange(now)
        for slot in self._slots.values():
            if slot.due <= now and not slot.busy:
                slot.busy, slot.stale = True, False
                self._tasks.start("service descriptor", self._publish(slot))
        self._set(self._wall())

    # Work.

    async def _publish(self, slot: Slot) -> None:
        pause = float(REPUT)
        try:
            if not await self._taken(slot):
                await self._put(slot)
            pause -= self._chance.uniform(0, REPUT_SPREAD)
            slot.pause = AGAIN[0]
        except CancelledError:
            raise
        except (ConfigError, LocalProtocolError) as error:
            self._alert(f"{self._name} cannot be published: {error}")
        except Layer8Error:
            pause = slot.pause * self._chance.uniform(0.5, 1.0)
            slot.pause = min(slot.pause * 2, AGAIN[1])
        finally:
            slot.busy = False
        now = self._wall()
        slot.due = now + (self._settled(slot.period, now) if slot.stale else pause)
        self._set(now)

    async def _put(self, slot: Slot) -> None:
        """Sign it and store it; raises `Unavailable` or `TimedOut` where nobody takes it."""
        if self._stopped or not self._told[0]:
            return
        seq = self._seq = max(int(self._wall()), self._seq + 1)
        # The lists come first, so that whoever reads the descriptor finds the cookie that opens it.
        descriptor, *lists = self._signed(slot.period, seq)
        self._kept(seq)
        slot.last = descriptor
        try:
            nodes = min([await self._items.put(one) for one in (*lists, descriptor)])
        except Refused as error:
            slot.looked = 0.0
            if await self._taken(slot):
                return
            raise Unavailable(str(error)) from error
        self.clashed, slot.stands = False, True
        self.published = max(self.published, seq)
        self._said(seq, nodes)

    def _signed(self, number: int | None, seq: int) -> list[Mutable]:
        points, price = self._told
        descriptor = ServiceDescriptor(int(self._wall()) + EXPIRES, points, self._modes, price)
        if number is None:
            return [publish_public(self._key, descriptor, seq)]
        clients = self._clients.values()
        return publish(self._key, number, descriptor, seq, cookie=self._cookie, clients=clients)

    async def _taken(self, slot: Slot) -> bool:
        """Look at what stands where ours should; say whether it is somebody else's, whom we leave there."""
        now = self._wall()
        if now - slot.looked < LOOKED:
            return False
        target, salt = self._place(slot.period)
        try:
            found = await self._items.get(target, salt)
        except (TimedOut, Unavailable):
            return False
        except RemoteProtocolError:
            return self._clash()  # two items with one seq: both are signed, and one of them was not by us
        if found is not None and not self._ours(slot, found) and found.seq + EXPIRES >= now:
            if slot.last is not None or found.seq > max(self._before, self._since + BEFORE):
                return self._clash()
            self._remember(found.seq)
        slot.looked = now
        return False

    def _ours(self, slot: Slot, found: Mutable) -> bool:
        return slot.last is not None and (found == slot.last or found.seq < slot.last.seq)

    def _remember(self, seq: int) -> None:
        """Go on behind what was there before we began: put by ourselves, if we remember it."""
        if self._before and seq > max(self._before, self._seq):
            self._alert(
                f"the descriptor of {self._name} in the DHT is newer than the last one that this node remembers: if it "
                "was stopped hard, nothing is wrong; if not, somebody else has the key"
            )
        self._seq = max(self._seq, min(seq, SEQ_MOST - 1))

    def _clash(self) -> bool:
        if not self.clashed:
            self.clashed = True
            self._alert(
                f"somebody else publishes {self._name} with the same key: stop one of the two, or if you know of none, "
                "make a new key; this node publishes again when the other one has stopped"
            )
        return True

    def _place(self, number: int | None) -> tuple[bytes, bytes]:
        if number is None:
            return sha1(self._key.node_id), b""
        return targets(self._key.node_id, number)[0], SALT

    @property
    def _name(self) -> str:
        return address_text(self._key.node_id)


def _check(clients: Mapping[str, bytes], cookie: bytes, public: bool) -> None:
    if clients and not cookie:
        raise ConfigError("clients without a cookie would shut out nobody")
    if public and cookie:
        raise ConfigError("a service is either for everybody who has a hash, or for clients that it knows")
