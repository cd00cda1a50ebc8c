"""What a name at a SOCKS port leads to: a service's key, and then what the DHT has of it under that key.

::

    finding = Finding(items, wall, names=naming.key, met=Pins(shelf, wall), visit=visit)
    found = await finding.find("www.ADDRESS.l8.alt", fresh=False)      raises NotFound, with a code for SOCKS

     host ---> address -----------------------> key --> item of this period --> open --> descriptor
          |--> name --names--> key, its pin? --'                                 '--NotAuthorised--> lists, cookie
          '--> 40 hex digits --> item under this hash: it says the key ---------------------------> descriptor

A key that came by a name is held against the user's pins before anything is asked about it. A descriptor that was found
is kept until it expires or its period ends, unless a `fresh` one is wanted; none that is older than it takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from attrs import define, field, frozen

from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.blind import valid
from layer8.crypto.curtain import ClientKey, NotAuthorised
from layer8.crypto.items import Items, Mutable
from layer8.crypto.keys import NodeKey
from layer8.rendezvous.address import DOMAIN, Address, Named, WrongName, fits, parse_host, period
from layer8.rendezvous.descriptor import (
    LIST_SALTS,
    SALT,
    ServiceDescriptor,
    clash,
    find_cookie,
    read_item,
    read_public,
    targets,
)
from layer8.rendezvous.names import Layer, WrongKey
from layer8.rendezvous.shelf import Shelf
from layer8.rendezvous.visits import (
    BAD_ADDRESS,
    BAD_DESCRIPTOR,
    CLIENT_MISSING,
    CLIENT_WRONG,
    Found,
    NotFound,
)

REMEMBERED: Final = 256  # descriptors that are remembered, the oldest forgotten

_HASH = re.compile(r"[0-9a-f]{40}\Z")


@frozen
class Visit:
    """How this node shows itself to one service: as a client that it knows, and by a key that it may know again."""

    client: ClientKey | None = None
    login: NodeKey | None = None


@frozen
class Kept:
    """A descriptor as it was found."""

    item: Mutable = field(repr=False)
    told: ServiceDescriptor
    cookie: bytes = field(default=b"", repr=False)


@frozen
class Pins:
    """Holds keys against the pins of a user, and writes down which did not fit."""

    shelf: Shelf
    wall: Callable[[], float]

    def __call__(self, name: str, key: bytes) -> None:
        """Raise `WrongKey` where this name is pinned to another key."""
        book = self.shelf.book()
        try:
            book.meet(name, key, Layer.CLAIM, self.wall())
        except WrongKey:
            self.shelf.save(book)
            raise


async def nobody(host: str) -> bytes:
    """Know no name."""
    raise NotFound(f"{host}: this node knows no names: write the service's address")


@define(eq=False)
class Finding:
    """See the module. `names` gives the key of a host that is no address, `met` takes each before it is used.

    `visit` says how this node shows itself to a service; None if it does not.
    """

    _items: Items
    _wall: Callable[[], float]
    _names: Callable[[str], Awaitable[bytes]] = field(default=nobody, kw_only=True)
    _met: Callable[[str, bytes], object] = field(default=lambda name, key: None, kw_only=True)
    _visit: Callable[[bytes], Visit | None] = field(default=lambda key: None, kw_only=True)
    _kept: dict[tuple[bytes, int | None], Kept] = field(factory=dict, init=False, repr=False)

    async def find(self, name: str, fresh: bool) -> Found:
        """Find what a host or 40 hex digits lead to; raises `NotFound`."""
        text = name.lower().removesuffix(".").removesuffix(DOMAIN)
        if name.isascii() and _HASH.match(text):
            return await self._resource(bytes.fromhex(text), fresh)
        try:
            asked = parse_host(name)
            key = asked.key if isinstance(asked, Address) else await self._named(asked, name)
        except NotFound:
            raise
        except (WrongName, WrongKey) as error:
            raise NotFound(str(error), BAD_ADDRESS) from error
        except Layer8Error as error:
            raise NotFound(f"{name}: {error}") from error
        return await self._service(name, key, fresh)

    def forget(self) -> None:
        """Remember no descriptor."""
        self._kept.clear()

    async def _named(self, asked: Named, host: str) -> bytes:
        key = await self._names(host)
        if not valid(key) or not fits(key, asked.suffix):
            raise WrongName(f"{host} leads to a key that is not the one it says")
        self._met(asked.name, key)
        return key

    async def _service(self, host: str, key: bytes, fresh: bool) -> Found:
        now = self._wall()
        day = period(now)
        kept = self._remembered((key, day), now)
        if kept is None or fresh:
            target, _ = targets(key, day)
            item = await self._get(host, target, SALT, kept)
            if kept is None or item != kept.item:
                kept = await self._open(host, key, day, item)
                self._keep((key, day), kept)
        return self._found(key, kept)

    async def _resource(self, target: bytes, fresh: bool) -> Found:
        kept = self._remembered((target, None), self._wall())
        if kept is None or fresh:
            item = await self._get(target.hex(), target, b"", kept)
            try:
                kept = Kept(item, read_public(target, item, self._wall()))
            except RemoteProtocolError as error:
                raise _bad(target.hex(), error) from error
            self._keep((target, None), kept)
        return self._found(kept.item.key, kept)

    def _found(self, key: bytes, kept: Kept) -> Found:
        visit = self._visit(key) or Visit()
        return Found(key, kept.told, kept.cookie, visit.login)

    async def _get(self, host: str, target: bytes, salt: bytes, kept: Kept | None) -> Mutable:
        """Ask the DHT for a descriptor; what was kept is given where nobody has a later one."""
        try:
            item = await self._items.get(target, salt)
        except (TimedOut, Unavailable) as error:
            if kept is not None:
                return kept.item
            raise NotFound(f"{host}: the network does not say where it is, try again: {error}") from error
        except RemoteProtocolError as error:
            raise _bad(host, error) from error
        if item is None and kept is None:
            raise NotFound(f"{host}: no such service is up, or its address is written wrongly")
        if item is None or (kept is not None and item.seq < kept.item.seq):
            assert kept is not None
            return kept.item
        if kept is not None and clash(kept.item, item):
            raise NotFound(f"{host}: two services have its key and say different things: not opened", BAD_DESCRIPTOR)
        return item

    async def _open(self, host: str, key: bytes, day: int, item: Mutable) -> Kept:
        try:
            try:
                return Kept(item, read_item(key, day, item, self._wall()))
            except NotAuthorised:
                visit = self._visit(key)
                if visit is None or visit.client is None:
                    raise NotFound(
                        f"{host}: this service lets in clients that it knows: set client_key in a [visit.NAME]",
                        CLIENT_MISSING,
                    ) from None
                return await self._let_in(host, key, day, item, visit.client)
        except RemoteProtocolError as error:
            raise _bad(host, error) from error

    async def _let_in(self, host: str, key: bytes, day: int, item: Mutable, client: ClientKey) -> Kept:
        """Find the cookie in the lists that opens the item; raises `NotFound` and `RemoteProtocolError`."""
        for target, salt in zip(targets(key, day)[1], LIST_SALTS, strict=True):
            try:
                one = await self._items.get(target, salt)
            except (TimedOut, Unavailable) as error:
                raise NotFound(f"{host}: the network does not say who is let in, try again: {error}") from error
            if one is None:
                break
            if one.seq > item.seq:  # the service is just publishing anew, its lists first
                item = await self._get(host, targets(key, day)[0], SALT, None)
            try:
                cookie = find_cookie(key, day, [one], client)
                return Kept(item, read_item(key, day, item, self._wall(), cookie=cookie), cookie)
            except NotAuthorised:
                continue
        raise NotFound(
            f"{host}: this service lets in clients that it knows, and your client_key is none of theirs", CLIENT_WRONG
        )

    def _remembered(self, place: tuple[bytes, int | None], now: float) -> Kept | None:
        kept = self._kept.get(place)
        if kept is not None and kept.told.expires <= now:
            del self._kept[place]
            return None
        return kept

    def _keep(self, place: tuple[bytes, int | None], kept: Kept) -> None:
        self._kept.pop(place, None)
        self._kept[place] = kept
        while len(self._kept) > REMEMBERED:
            del self._kept[next(iter(self._kept))]


def _bad(host: str, error: Exception) -> NotFound:
    return NotFound(f"{host}: {error}: not opened", BAD_DESCRIPTOR)
