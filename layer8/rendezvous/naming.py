"""Whom a name leads to: what this user knows by himself, and else what the DHT says of it (docs/names.md).

::

    naming = Naming(items, wall, shelf, witness)
    answer = await naming.resolve("blog~k3f7")      everything that is said of a name, for people
    key = await naming.key("blog.l8.alt")           whom to open, or why not: what `Finding` takes as `names`

A name that is pinned, or has a petname, leads to its key without a word to anybody. What the DHT has said of others is
kept in memory for FRESH seconds, and nowhere else: there is no list of what somebody has looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred

from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.items import Items, Record, sha1
from layer8.rendezvous.address import Address, Named, parse_who
from layer8.rendezvous.claims import (
    Certificate,
    Claim,
    Seen,
    State,
    Verdict,
    Witness,
    claim_target,
    decide,
    read_claim,
    read_seen,
    seen_target,
)
from layer8.rendezvous.names import Answer, Names, RedFlag
from layer8.rendezvous.shelf import Shelf
from layer8.rendezvous.visits import BAD_ADDRESS, NO_DESCRIPTOR, NotFound

FRESH: Final = 300.0  # seconds for which the DHT's word is good
NAMES_KEPT: Final = 64  # names whose word is kept in memory
AT_ONCE: Final = 4  # sets that are asked for at a time
CLAIMS_READ: Final = 32  # of one name, those with most work first; two last hops give fewer
SIGNERS: Final = 16  # of certificates

Told = tuple[Verdict, tuple[Certificate, ...]]


@define(eq=False)
class Naming:
    """See the module. `witness` gives what we know of a node; `flagged` hears of new red flags."""

    _items: Items
    _wall: Callable[[], float]
    _shelf: Shelf
    _witness: Callable[[bytes], Witness | None]
    _ruled: bool = True
    _signers: tuple[bytes, ...] = ()
    _flagged: Callable[[RedFlag], object] = field(default=lambda flag: None)
    _kept: dict[str, tuple[float, Told]] = field(factory=dict, init=False, repr=False)

    async def resolve(self, text: str) -> Answer:
        """Say all that is known of a name or address, the DHT's word included; `~k3f7` and `.l8.alt` may stand behind.

        Raises `WrongName`, `WrongKey`, or `Unavailable` where nobody answers.
        """
        asked = parse_who(text)
        if isinstance(asked, Address):
            return self._weigh(asked, None)
        return self._weigh(asked, await self.ask(asked.name))

    async def key(self, host: str) -> bytes:
        """Give whom a host stands for; raises `WrongName`, `WrongKey` or `NotFound`, with one line for its user."""
        asked = parse_who(host)
        answer = self._weigh(asked, None)
        if answer.key is None and isinstance(asked, Named):
            try:
                answer = self._weigh(asked, self._remembered(asked.name) or await self.ask(asked.name))
            except (Unavailable, TimedOut) as error:
                raise NotFound(f"the network does not say who {asked.name} is: {error}") from None
        if answer.key is None:
            nobody = answer.verdict is None or answer.verdict.state is State.UNKNOWN
            raise NotFound(answer.why, NO_DESCRIPTOR if nobody else BAD_ADDRESS)
        if isinstance(asked, Named):
            self.meet(asked.name, answer)
        return answer.key

    def names(self) -> Names:
        """Give what this user knows by himself, as the files are now."""
        return self._shelf.names(self._signers)

    def meet(self, name: str, answer: Answer) -> None:
        """Hold a key against its pin before anything is sent to it; raises `WrongKey`."""
        names = self.names()
        assert answer.key is not None
        assert answer.layer is not None
        before = set(names.book.flags)
        try:
            names.book.meet(name, answer.key, answer.layer, self._wall())
        finally:
            self._save(names, before)

    def forget(self) -> None:
        """Forget what the DHT has said."""
        self._kept.clear()

    async def ask(self, name: str) -> Told:
        """Ask the DHT of a name: who claims it, who has seen that, and who certifies it."""
        certificates = await self._certificates(name)
        records = sorted(await self._items.records(claim_target(name)), key=lambda one: -one.effort)
        now = self._wall()
        claims = list(_claims(records, name, now, self._ruled))
        seen = await self._all_seen(name, [claim.key for claim in claims[:CLAIMS_READ]])
        known = {one.attester: witness for one in seen if (witness := self._witness(one.attester)) is not None}
        told = decide(name, claims, seen, known, now, ruled=self._ruled), certificates
        self._kept.pop(name, None)
        self._kept[name] = now, told
        while len(self._kept) > NAMES_KEPT:
            del self._kept[next(iter(self._kept))]
        return told

    def _remembered(self, name: str) -> Told | None:
        at, told = self._kept.get(name, (float("-inf"), None))
        return told if self._wall() - at < FRESH else None

    def _weigh(self, asked: Address | Named, told: Told | None) -> Answer:
        names = self.names()
        before = set(names.book.flags)
        verdict, certificates = told or (None, ())
        try:
            return names.resolve(asked, self._wall(), verdict, certificates)
        finally:
            self._save(names, before)

    def _save(self, names: Names, before: set[tuple[str, bytes]]) -> None:
        """Write red flags that are new, and tell of them."""
        fresh = [flag for place, flag in names.book.flags.items() if place not in before]
        if fresh:
            self._shelf.save(names.book)
        for flag in fresh:
            self._flagged(flag)

    async def _certificates(self, name: str) -> tuple[Certificate, ...]:
        """Read what signers say of a name: a mutable item of each one's key, its salt the name."""
        found = []
        for signer in self._signers[:SIGNERS]:
            salt = name.encode()
            item = await self._items.get(sha1(signer, salt), salt)
            try:
                certificate = Certificate.read(item.data) if item is not None else None
            except RemoteProtocolError:
                continue
            if certificate is not None and certificate.signer == signer:
                found.append(certificate)
        return tuple(found)

    async def _all_seen(self, name: str, keys: list[bytes]) -> list[Seen]:
        """Read the attestations of some claims; if one set cannot be had, none is believed."""
        found: list[Seen] = []
        for at in range(0, len(keys), AT_ONCE):
            waiting = [Deferred.fromCoroutine(self._seen(name, key)) for key in keys[at : at + AT_ONCE]]
            try:
                for one in waiting:
                    found += await one
            finally:
                for one in waiting:
                    one.addErrback(lambda failure: failure.trap(CancelledError, Layer8Error) and [])
                    one.cancel()
        return found

    async def _seen(self, name: str, key: bytes) -> list[Seen]:
        records = await self._items.records(seen_target(name, key))
        return list(attestations(records, name, key, self._wall(), ruled=self._ruled))


def attestations(records: Iterable[Record], name: str, key: bytes, now: float, *, ruled: bool = True) -> Iterable[Seen]:
    """Give those of a set's records that are attestations of this claim."""
    for record in records:
        try:
            yield read_seen(record, name, key, now, ruled=ruled)
        except RemoteProtocolError:
            continue


def _claims(records: Iterable[Record], name: str, now: float, ruled: bool) -> Iterable[Claim]:
    for record in records:
        try:
            yield read_claim(record, name, now, ruled=ruled)
        except RemoteProtocolError:
            continue
