"""What a node with the role `names` does: it finds claims by itself, knocks at them, and says what it met (G58).

::

    list of names in the DHT, one part every ten minutes -> claims of a name -> probed: once a day, at a random time
                                                                                   | knock, over circuits of its own
                                                               attestation in the DHT <- first day, last day, flags

What its user visits never comes here: claims come out of the list alone, and times out of chance. An attestation that
followed a visit would be a signed log of visits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from attrs import define, evolve, field
from twisted.internet.task import LoopingCall

from layer8.core.chance import Chance
from layer8.core.errors import Layer8Error, RemoteProtocolError
from layer8.crypto.items import Items, Record
from layer8.crypto.keys import NodeKey
from layer8.rendezvous.archive import Archive, Probed
from layer8.rendezvous.claiming import Work
from layer8.rendezvous.claims import (
    DAY,
    SHARDS,
    Flag,
    Seen,
    claim_target,
    listing_target,
    make_seen,
    read_claim,
    read_listing,
    seen_target,
)

TICK: Final = 30.0  # seconds between looks at what is to be done
LOOK: Final = 600.0  # seconds between parts of the list, half as long or half as long again
FIRST: Final = 3600.0  # seconds within which a claim that is new here is knocked at
LATER: Final = 3600.0  # seconds after which a knock is tried again that failed here, not there
PUT_AGAIN: Final = 11 * 3600.0  # seconds: holders keep an item for a day after its owner has put it
PROBED: Final = 1024  # claims that one node knocks at
PER_NAME: Final = 16  # of one name
TRIES: Final = 3  # knocks that nobody answered, after which a claim makes room for another

Knock = Callable[[bytes], Awaitable[Flag | None]]
"""Knock at the service of a key: `Flag(0)` where it answered, what was wrong, or None where it lets nobody in whom it
does not know; raises `Layer8Error` where it is this node that cannot."""


@define(eq=False)
class Attesting:
    """See the module; `key` is the node's own. In networks without rules all waiting is divided by `pace`."""

    _items: Items
    _key: NodeKey
    _knock: Knock
    _archive: Archive
    _work: Work
    _chance: Chance
    _wall: Callable[[], float]
    _clock: Any
    _start: Callable[[str, Coroutine[Any, Any, object]], object]
    _ruled: bool = True
    _pace: float = 1.0
    _loop: LoopingCall = field(init=False)
    _parts: list[int] = field(factory=list, init=False, repr=False)
    _look_at: float = field(default=0.0, init=False)
    _busy: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        """Look now and then."""
        self._loop = LoopingCall(lambda: self._start("names", self.round()))
        self._loop.clock = self._clock

    def start(self) -> None:
        """Begin."""
        self._loop.start(TICK / self._pace, now=False)

    def stop(self) -> None:
        """End."""
        if self._loop.running:
            self._loop.stop()

    async def round(self) -> None:
        """Do what is due: look at a part of the list, knock at one claim, put one attestation again."""
        if self._busy:
            return
        self._busy = True
        try:
            now = self._wall()
            if now >= self._look_at:
                self._look_at = now + LOOK / self._pace * (0.5 + self._chance.random())
                await self.look(self._next_part())
            await self._probe_one(now)
            await self._put_one(now)
        finally:
            self._busy = False

    async def look(self, part: int) -> None:
        """Take the names of one part of the list, and the claims of each; what was seen is archived."""
        listed = await self._items.records(listing_target(part))
        await self._archive.keep(listed, self._wall())
        names = set()
        for record in listed:
            try:
                names.add(read_listing(record, part, self._wall(), ruled=self._ruled))
            except RemoteProtocolError:
                continue
        for name in sorted(names):
            await self._claims(name)

    async def probe(self, one: Probed) -> None:
        """Knock at a claim, and say what came of it; raises `Layer8Error` where this node cannot."""
        said = await self._knock(one.key)
        now = self._wall()
        today = int(now // DAY)
        until = (today + 1 + self._chance.random()) * DAY if self._pace == 1 else now + DAY / self._pace
        met = evolve(
            one,
            last=today,
            flags=int(said or 0),
            asked=one.asked + 1,
            answered=one.answered + (said == Flag(0)),
            next=until,
        )
        await self._archive.probe(met)
        record = await self._word(met)
        await self._archive.probe(evolve(met, record=record.raw, put=0.0))
        await self._put(self._archive.probed[one.name, one.key])
        await self._archive.keep(await self._items.records(record.target), now)

    def _next_part(self) -> int:
        if not self._parts:
            self._parts = self._chance.sample(range(SHARDS), SHARDS)
        return self._parts.pop()

    async def _claims(self, name: str) -> None:
        records = await self._items.records(claim_target(name))
        now = self._wall()
        await self._archive.keep(records, now)
        probed = self._archive.probed
        for record in sorted(records, key=lambda one: -one.effort):
            try:
                claim = read_claim(record, name, now, ruled=self._ruled)
            except RemoteProtocolError:
                continue
            known = probed.get((name, claim.key))
            if known is not None:
                if known.expires < record.expires:
                    await self._archive.probe(evolve(known, expires=float(record.expires)))
            elif await self._room(name):
                at = now + FIRST / self._pace * self._chance.random()
                await self._archive.probe(Probed(name, claim.key, int(now // DAY), float(record.expires), at))

    async def _room(self, name: str) -> bool:
        """Say whether one more claim of a name can be knocked at: those that have never answered go first."""
        every = list(self._archive.probed.values())
        same = [one for one in every if one.name == name]
        if len(same) < PER_NAME and len(every) < PROBED:
            return True
        some = same if len(same) >= PER_NAME else every
        silent = [one for one in some if one.asked >= TRIES and not one.answered]
        if silent:
            await self._archive.forget(silent[self._chance.randrange(len(silent))])
        return bool(silent)

    async def _probe_one(self, now: float) -> None:
        for gone in [one for one in self._archive.probed.values() if one.expires <= now]:
            await self._archive.forget(gone)
        due = [one for one in self._archive.probed.values() if one.next <= now]
        if not due:
            return
        one = due[self._chance.randrange(len(due))]
        try:
            await self.probe(one)
        except Layer8Error:
            found = self._archive.probed.get((one.name, one.key))
            if found is not None and found.next <= now:
                self._archive.postponed(found, now + LATER / self._pace)
            raise

    async def _put_one(self, now: float) -> None:
        for one in self._archive.probed.values():
            if one.record and now - one.put >= PUT_AGAIN:
                await self._put(one)
                return

    async def _put(self, one: Probed) -> None:
        await self._items.put(Record.parse(seen_target(one.name, one.key), one.record))
        await self._archive.probe(evolve(one, put=self._wall()))

    async def _word(self, one: Probed) -> Record:
        seen = Seen(one.name, one.key, self._key.node_id, one.first, one.last, one.flags, one.asked, one.answered)
        draft = make_seen(self._key, seen, self._wall(), ruled=self._ruled)
        return await self._work(draft) if self._ruled else draft.record()
