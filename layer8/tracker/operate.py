"""The rows `tracker.*`: publish this node, take it back, ask for relays; and on a tracker, what it lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Final

from attrs import frozen

from layer8.control.access import Caller
from layer8.control.table import Event, method
from layer8.core.errors import Refused
from layer8.core.members import Bounds, member
from layer8.crypto.descriptor import LISTED, Descriptor, Role
from layer8.crypto.keys import NodeKey, id_text, parse_id
from layer8.tracker.asking import Answer, Trackers
from layer8.tracker.index import Index
from layer8.tracker.service import Listed
from layer8.tracker.wire import GetRelays, Status

PAGE: Final = 50  # rows
ADMIN: Final = "admin"
ROLES: Final[Mapping[str, int]] = {role.name.lower(): int(role) for role in Role if role.name}


@frozen
class Told:
    """What a tracker made of it: `listed`, `removed`, `bad`, `older`, `full`, ...; None: it did not answer."""

    tracker: str
    status: str | None = None


@frozen
class Tolds:
    """What each tracker made of it."""

    trackers: tuple[Told, ...]


@frozen
class Wanted:
    """`tracker.relays`: so many relays, with a role and for a port of theirs if that is wanted."""

    count: int = member(10, least=1, most=LISTED)
    role: Annotated[str, Bounds(0, 16)] = ""
    port: int = member(0, least=0, most=65535)


@frozen
class RelayRow:
    """What a relay says of itself, and which trackers say so; its addresses for administrators only."""

    node: str
    roles: tuple[str, ...]
    endpoints: tuple[str, ...]
    exits: str
    expires: int
    trackers: tuple[str, ...] = ()


@frozen
class Relays:
    """Relays; `next` is the cursor of the next page if there is one."""

    relays: tuple[RelayRow, ...]
    next: str | None = None


@frozen
class After:
    """`tracker.list`: the rows after `cursor`, a node id."""

    cursor: str | None = member(None, most=64)
    limit: int = member(PAGE, least=1, most=PAGE)


class TrackerRows:
    """Asking trackers, for every node of the network."""

    owns = ("tracker",)

    def __init__(self, trackers: Trackers, key: NodeKey, own: Callable[[], Descriptor | None]) -> None:
        """`own` makes this node's descriptor; it gives None where relay mode is off."""
        self._trackers = trackers
        self._key = key
        self._own = own

    @method("tracker.publish", role="operate")
    async def publish(self, caller: Caller) -> Tolds:
        """Have trackers list this node; only a relay is listed."""
        own = self._own()
        if own is None:
            raise Refused("this node is no relay: nothing is published")
        return _tolds(await self._trackers.publish(own))

    @method("tracker.unpublish", role="operate")
    async def unpublish(self, caller: Caller) -> Tolds:
        """Have trackers forget this node; one that is no relay does not say its name for that."""
        if self._own() is None:
            raise Refused("this node is no relay: nothing is published")
        return _tolds(await self._trackers.unpublish(self._key))

    @method("tracker.relays", role="operate")
    async def relays(self, caller: Caller, params: Wanted) -> Relays:
        """Ask some trackers for relays, and keep what they say as anything else that is heard of relays."""
        if params.role and params.role not in ROLES:
            raise Refused(f"a role is one of {', '.join(ROLES)}")
        asked = GetRelays(params.count, ROLES.get(params.role, 0), params.port)
        found: dict[bytes, tuple[Descriptor, list[str]]] = {}
        for tracker, listed in (await self._trackers.relays(asked)).items():
            for one in listed:
                newest, told = found.get(one.identity, (one, []))
                later = one if one.serial > newest.serial else newest
                found[one.identity] = later, [*told, id_text(tracker)]
        full = caller.may(ADMIN)
        return Relays(tuple(_row(one, tuple(told), full=full) for one, told in found.values()))


class ListRows:
    """What a tracker lists, for those who look after it."""

    owns = ("tracker",)
    events = (Event("tracker.changed", Listed, role="read"),)

    def __init__(self, index: Index) -> None:
        """Take the list."""
        self._index = index

    @method("tracker.list", role="read")
    async def list(self, caller: Caller, params: After) -> Relays:
        """List the relays that this tracker lists."""
        after = parse_id(params.cursor) if params.cursor else b""
        rows = [one for one in self._index if one.identity > after]
        page = tuple(_row(one, full=caller.may(ADMIN)) for one in rows[: params.limit])
        return Relays(page, page[-1].node if len(rows) > len(page) else None)


def _row(one: Descriptor, trackers: tuple[str, ...] = (), *, full: bool) -> RelayRow:
    return RelayRow(
        node=id_text(one.identity),
        roles=tuple(name for name, bit in ROLES.items() if one.roles & bit),
        endpoints=(*one.endpoints, *(f"via:{id_text(gateway)}" for gateway in one.via)) if full else (),
        exits=one.exits.decode("ascii", "replace"),
        expires=one.expires,
        trackers=trackers,
    )


def _tolds(answers: Iterable[Answer]) -> Tolds:
    return Tolds(tuple(Told(id_text(one.tracker), _word(one.status)) for one in answers))


def _word(status: Status | None) -> str | None:
    return None if status is None else status.name.lower()
