"""What this node says of names: those that it claims for services of its own, and those that it certifies.

Both are put every hour; a claim is said anew, with work, before it expires, and a certificate ends.

A claim needs its service's key only when it is made, so the file with that key is read then and not kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from attrs import define, field
from twisted.internet.task import LoopingCall

from layer8.core.errors import Layer8Error, Refused
from layer8.crypto.items import Draft, Items, Mutable, Record
from layer8.crypto.keys import NodeKey
from layer8.rendezvous.archive import Archive, Certified, Own
from layer8.rendezvous.claims import CLAIM_EFFORT, DAY, Certificate, make_claim, make_listing

REPUT: Final = 3600.0  # seconds: a DHT forgets after two hours
TRY: Final = 60.0  # seconds between looks at what is due, or failed
RENEW: Final = 5 * 86_400  # seconds before its end that a claim is said anew
CLAIMS: Final = 64  # of one node
MORE_MOST: Final = 16  # times the work that a claim has to be: half a minute, for one that others have pushed out
CERTIFICATES: Final = 1000

Work = Callable[[Draft], Awaitable[Record]]
"""Do the work of a record in slices, in a thread."""


@define(eq=False)
class Claiming:
    """See the module. `read_key` reads a service's key from its file and raises `ConfigError` or `StorageError`."""

    _items: Items
    _archive: Archive
    _signer: NodeKey
    _read_key: Callable[[str], NodeKey]
    _work: Work
    _wall: Callable[[], float]
    _clock: Any
    _start: Callable[[str, Coroutine[Any, Any, object]], object]
    _ruled: bool = True
    _loop: LoopingCall = field(init=False)
    _put_at: dict[str, float] = field(factory=dict, init=False)
    _certified_at: dict[str, float] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        """Put everything now and then."""
        self._loop = LoopingCall(lambda: self._start("claims", self.put_all()))
        self._loop.clock = self._clock

    def start(self) -> None:
        """Begin."""
        self._loop.start(TRY, now=False)

    def stop(self) -> None:
        """End; claims go on until they expire."""
        if self._loop.running:
            self._loop.stop()

    async def claim(self, name: str, file: str) -> tuple[Own, int]:
        """Claim a name for the service whose key stands in a file: the claim, and how many nodes of the DHT have it.

        Raises `WrongName`, `Refused`, and what reading a key and asking the DHT raise.
        """
        archive = self._archive
        if name not in archive.claims and len(archive.claims) >= CLAIMS:
            raise Refused(f"over the limit CLAIMS of {CLAIMS}")
        own = await self._made(name, file)
        await archive.claim(own)
        return own, await self._put(own)

    async def certify(self, name: str, key: bytes, days: int) -> int:
        """Certify that a name is a key's, for those who have named this node as a signer; says how many have it."""
        archive, now = self._archive, int(self._wall())
        if name not in archive.certificates and len(archive.certificates) >= CERTIFICATES:
            raise Refused(f"over the limit CERTIFICATES of {CERTIFICATES}")
        raw = Certificate.make(self._signer, name, key, now + days * DAY)
        before = archive.certificates.get(name)
        one = Certified(name, now if before is None else max(now, before.seq + 1), raw)
        await archive.certify(one)
        return await self._put_certificate(one)

    async def put_all(self) -> None:
        """Put again what was not put for an hour, anew where it expires soon; one that fails keeps no other."""
        for own in tuple(self._archive.claims.values()):
            if self._wall() - self._put_at.get(own.name, float("-inf")) < REPUT:
                continue
            try:
                fresh = await self._renewed(own)
                try:
                    await self._put(fresh)
                except Refused:
                    await self._outdo(fresh)
            except Layer8Error:
                continue  # nobody to ask yet, or the key's file is gone
        for one in tuple(self._archive.certificates.values()):
            if self._wall() - self._certified_at.get(one.name, float("-inf")) < REPUT:
                continue
            try:
                if Certificate.read(one.raw).expires <= self._wall():
                    await self._archive.uncertify(one.name)
                else:
                    await self._put_certificate(one)
            except Layer8Error:
                continue

    async def _put_certificate(self, one: Certified) -> int:
        signer = self._signer
        stored = await self._items.put(Mutable.make(signer.node_id, signer.sign, one.seq, one.raw, one.name.encode()))
        self._certified_at[one.name] = self._wall()
        return stored

    async def _renewed(self, own: Own) -> Own:
        if min(own.claim.expires, own.listing.expires) - self._wall() > RENEW:
            return own
        fresh = await self._made(own.name, own.file, _more(own))
        await self._archive.claim(fresh)
        return fresh

    async def _outdo(self, own: Own) -> None:
        """Say it with twice the work: sets are full, and those with more have pushed it out; else hourly as it is."""
        if not self._ruled or _more(own) >= MORE_MOST:
            self._put_at[own.name] = self._wall()
            return
        fresh = await self._made(own.name, own.file, 2 * _more(own))
        await self._archive.claim(fresh)
        await self._put(fresh)

    async def _made(self, name: str, file: str, more: int = 1) -> Own:
        key, now = self._read_key(file), self._wall()
        drafts = [make(key, name, now, ruled=self._ruled, more=more) for make in (make_claim, make_listing)]
        claim, listing = [await self._work(one) if self._ruled else one.record() for one in drafts]
        return Own(name, file, claim, listing)

    async def _put(self, own: Own) -> int:
        stored = await self._items.put(own.claim)
        await self._items.put(own.listing)
        self._put_at[own.name] = self._wall()
        return stored


def _more(own: Own) -> int:
    return max(1, own.claim.effort // CLAIM_EFFORT)
