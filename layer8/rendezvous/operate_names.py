"""The rows `names.*`: what names lead to, which ones this node claims, and what it has seen of others' claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Final, Literal

from attrs import define, field, frozen

from layer8.control.access import Caller
from layer8.control.errors import NotFound
from layer8.control.table import Event, method
from layer8.core.members import Bounds, member
from layer8.crypto.items import Items
from layer8.crypto.keys import NodeKey
from layer8.rendezvous.address import HOST_MOST, NAME_LEAST, NAME_MOST, address_text, check_name, parse_address, shown
from layer8.rendezvous.archive import Archive, Probed
from layer8.rendezvous.claiming import Claiming, Work
from layer8.rendezvous.claims import DAY, Candidate, Flag, Seen, make_seen
from layer8.rendezvous.names import Answer, Known, RedFlag
from layer8.rendezvous.naming import Naming
from layer8.rendezvous.shelf import Shelf

OPERATE: Final = "operate"
ADMIN: Final = "admin"
PAGE: Final = 200  # rows
ASK_TIME: Final = 120.0  # seconds: one set of claims, and those of sixteen attestations, of a DHT that is slow
WORK_TIME: Final = 300.0  # seconds: work of 2^22 on a small machine, and asking
FLAG_NAMES: Final = {
    "silent": Flag.SILENT,
    "wrong_key": Flag.WRONG_KEY,
    "errors": Flag.ERRORS,
    "no_descriptor": Flag.NO_DESCRIPTOR,
}

Name = Annotated[str, Bounds(NAME_LEAST, NAME_MOST)]
AddressText = Annotated[str, Bounds(56, 63)]


@frozen
class AskedName:
    """A name, with the first letters of its address or not, or an address; a host's `.l8.alt` may stand behind."""

    name: Annotated[str, Bounds(1, HOST_MOST)]


@frozen
class FlagCounts:
    """How many say so."""

    silent: int = 0
    wrong_key: int = 0
    errors: int = 0
    no_descriptor: int = 0


@frozen
class ClaimRow:
    """A service that claims the name; `since` is the median of the days on which it was first seen, in seconds.

    `support` counts attesters of distinct networks and sources, `attesters` all that this node knows, and `strangers`
    those that it does not; `flags` are what the former say of the service, `rumours` what the latter say.
    """

    shown: str
    address: str
    support: int
    attesters: int
    strangers: int
    since: int | None
    flags: FlagCounts
    rumours: FlagCounts


@frozen
class Conflict:
    """Another key that goes by the name, and what says so."""

    address: str
    layer: str


@frozen
class Resolved:
    """Whom a name leads to: `address` is empty where it leads to nobody, and `why` says why in one line.

    `layer` is address, pin, petname, certificate or claim; what rests on claims alone is not `verified`. `state` is
    what claims say: unknown, claimed, ambiguous or decided.
    """

    name: str
    shown: str
    address: str
    layer: str
    verified: bool
    state: str
    why: str
    claims: tuple[ClaimRow, ...]
    others: int
    conflicts: tuple[Conflict, ...]


@frozen
class NewClaim:
    """`names.claim`: `key` is the file with the service's key, relative to the state folder.

    Without it that of `[service.NAME]` is taken. The file is read when the claim is made, and each time that it is
    made anew.
    """

    name: Name
    key: Annotated[str, Bounds(0, 4096)] = ""


@frozen
class Claimed:
    """A claim, and at how many nodes of the DHT it is; it is put again every hour."""

    shown: str
    address: str
    nodes: int
    expires: int


@frozen
class NewCertificate:
    """`names.certify`: whom a name leads to, for those who have this node among their `name_signers`."""

    name: Name
    address: AddressText
    days: int = member(365, least=1, most=3650)


@frozen
class NewPin:
    """A name, and whom it leads to for ever."""

    name: Name
    address: AddressText


@frozen
class Pinned:
    """`new`: it was not pinned before."""

    shown: str
    new: bool


@frozen
class PinnedName:
    """A name."""

    name: Name


@frozen
class Unpinned:
    """A name without a pin; `petname`: it still stands in the file of petnames."""

    petname: bool


@frozen
class NamesPage:
    """Rows from `cursor` on."""

    cursor: str = member("", most=NAME_MOST + 57)
    limit: int = member(PAGE, least=1, most=PAGE)


@frozen
class NameRow:
    """A name that is pinned or has a petname; `other` is the petname's address where the pin says something else."""

    name: str
    shown: str
    address: str
    layer: str
    at: int | None
    other: str | None


@frozen
class OwnRow:
    """A name that this node claims."""

    name: str
    address: str
    expires: int


@frozen
class NameList:
    """The user's names, and those that this node claims."""

    names: tuple[NameRow, ...]
    claims: tuple[OwnRow, ...]
    next: str = ""


@frozen
class Suspicion:
    """`names.flag`: what is wrong with a service that claims a name."""

    name: Name
    address: AddressText
    flag: Literal["silent", "wrong_key", "errors", "no_descriptor"]


@frozen
class Taken:
    """How many nodes of the DHT have taken it."""

    nodes: int


@frozen
class FlagRow:
    """Another key under a pinned name: what said so, when last, and how often."""

    name: str
    address: str
    by: str
    at: int
    times: int


@frozen
class ProbedRow:
    """A claim that this node knocks at by itself: `first` and `last` are days, in seconds since 1970."""

    name: str
    address: str
    first: int
    last: int
    flags: tuple[str, ...]
    asked: int
    answered: int


@frozen
class FlagList:
    """The red flags of this user's pins, and what a node with the role `names` has met; pages are of the latter."""

    flags: tuple[FlagRow, ...]
    probed: tuple[ProbedRow, ...]
    records: int
    next: str = ""


@define(eq=False)
class NamesRows:
    """Names for every node; `file_of` gives the file of a service's key by its name."""

    owns = ("names",)
    events = (Event("names.conflict", FlagRow, role=OPERATE),)

    _naming: Naming
    _shelf: Shelf
    _claiming: Claiming
    _archive: Archive
    _items: Items
    _work: Work
    _wall: Callable[[], float]
    _ruled: bool
    _file_of: Callable[[str], str] = field(default=lambda name: f"services/{name}.pem")

    @method("names.resolve", role=OPERATE, timeout=ASK_TIME)
    async def resolve(self, caller: Caller, params: AskedName) -> Resolved:
        """Say whom a name leads to and who else claims it: asks the DHT, by circuits, and writes nothing down."""
        return _resolved(await self._naming.resolve(params.name))

    @method("names.claim", role=ADMIN, timeout=WORK_TIME)
    async def claim(self, caller: Caller, params: NewClaim) -> Claimed:
        """Claim a name for a service of ours in the DHT, with seconds of work; it reads files: for administrators."""
        own, nodes = await self._claiming.claim(params.name, params.key or self._file_of(params.name))
        key = own.claim.key
        return Claimed(shown(own.name, key), address_text(key), nodes, own.claim.expires)

    @method("names.certify", role=ADMIN)
    async def certify(self, caller: Caller, params: NewCertificate) -> Taken:
        """Sign with this node's key that a name is an address's; it is put into the DHT every hour until it expires."""
        return Taken(await self._claiming.certify(params.name, parse_address(params.address), params.days))

    @method("names.pin", role=OPERATE)
    async def pin(self, caller: Caller, params: NewPin) -> Pinned:
        """Pin a name to a service for ever: another key is never opened under it."""
        key = parse_address(params.address)
        book = self._shelf.book()
        new = book.pin(params.name, key, self._wall())
        if new:
            self._shelf.save(book)
        return Pinned(shown(params.name, key), new)

    @method("names.unpin", role=OPERATE, errors=(NotFound,))
    async def unpin(self, caller: Caller, params: PinnedName) -> Unpinned:
        """Take a pin away: the only way to another key."""
        book = self._shelf.book()
        if not book.unpin(params.name):
            raise NotFound("pin")
        self._shelf.save(book)
        return Unpinned(params.name in self._shelf.petnames())

    @method("names.list", role=OPERATE)
    async def list(self, caller: Caller, params: NamesPage) -> NameList:
        """List the names that this user has given, and on the first page those that this node claims."""
        known = [one for one in self._naming.names().known() if one.name > params.cursor]
        own = () if params.cursor else tuple(self._archive.claims.values())
        page = known[: params.limit]
        return NameList(
            tuple(map(_name_row, page)),
            tuple(OwnRow(one.name, address_text(one.claim.key), one.claim.expires) for one in own),
            page[-1].name if len(known) > len(page) else "",
        )

    @method("names.flag", role=OPERATE, timeout=ASK_TIME)
    async def flag(self, caller: Caller, params: Suspicion) -> Taken:
        """Say in the DHT that something is wrong with a service, under a key that is made for it and thrown away.

        It is shown to those who resolve the name, and never counted.
        """
        name, key = check_name(params.name), parse_address(params.address)
        today = int(self._wall() // DAY)
        signer = NodeKey.make()
        seen = Seen(name, key, signer.node_id, today, today, FLAG_NAMES[params.flag], 1)
        draft = make_seen(signer, seen, self._wall(), ruled=self._ruled)
        record = await self._work(draft) if self._ruled else draft.record()
        return Taken(await self._items.put(record))

    @method("names.flags", role=OPERATE)
    async def flags(self, caller: Caller, params: NamesPage) -> FlagList:
        """List other keys under pinned names, and what this node has met where it knocks at claims by itself."""
        rows = sorted(self._archive.probed.values(), key=_cursor)
        rows = [one for one in rows if _cursor(one) > params.cursor]
        page = rows[: params.limit]
        red = () if params.cursor else list(self._naming.names().book.flags.values())[-PAGE:]
        return FlagList(
            tuple(map(flag_row, red)),
            tuple(map(_probed_row, page)),
            len(self._archive.records),
            _cursor(page[-1]) if len(rows) > len(page) else "",
        )


def flag_row(flag: RedFlag) -> FlagRow:
    """Show a red flag."""
    return FlagRow(flag.name, address_text(flag.key), flag.by.value, flag.at, flag.times)


def _resolved(answer: Answer) -> Resolved:
    verdict = answer.verdict
    claims = verdict.candidates if verdict is not None else ()
    keys = [one.key for one in claims] + [key for _, key in answer.conflicts]
    return Resolved(
        name=answer.name,
        shown=answer.shown,
        address=address_text(answer.key) if answer.key is not None else "",
        layer=answer.layer.value if answer.layer is not None else "",
        verified=answer.verified,
        state=verdict.state.value if verdict is not None else "unknown",
        why=answer.why,
        claims=tuple(_claim_row(answer.name, one, keys) for one in claims),
        others=verdict.others if verdict is not None else 0,
        conflicts=tuple(Conflict(address_text(key), layer.value) for layer, key in answer.conflicts),
    )


def _claim_row(name: str, one: Candidate, keys: Iterable[bytes]) -> ClaimRow:
    return ClaimRow(
        shown=shown(name, one.key, keys),
        address=address_text(one.key),
        support=one.support,
        attesters=one.attesters,
        strangers=one.strangers,
        since=one.day * DAY if one.day is not None else None,
        flags=_counts(one.flags),
        rumours=_counts(one.rumours),
    )


def _counts(flags: Mapping[Flag, int]) -> FlagCounts:
    return FlagCounts(**{word: flags.get(flag, 0) for word, flag in FLAG_NAMES.items()})


def _name_row(one: Known) -> NameRow:
    other = None if one.other is None else address_text(one.other)
    return NameRow(one.name, one.shown, address_text(one.key), one.layer.value, one.at, other)


def _probed_row(one: Probed) -> ProbedRow:
    flags = tuple(word for word, flag in FLAG_NAMES.items() if one.flags & flag)
    return ProbedRow(one.name, address_text(one.key), one.first * DAY, one.last * DAY, flags, one.asked, one.answered)


def _cursor(one: Probed) -> str:
    return f"{one.name} {address_text(one.key)}"
