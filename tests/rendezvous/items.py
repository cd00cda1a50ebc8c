"""A DHT for tests: one that is a dictionary and can be silent, and the real one of `layer8.testing.dhtnet`."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from layer8.core.errors import Refused, RemoteProtocolError, Unavailable
from layer8.crypto.items import Immutable, Item, Items, Mutable, Record
from layer8.testing.dhtnet import Net


@define(eq=False)
class MemoryItems:
    """`layer8.crypto.items.Items`."""

    kept: dict[bytes, Item] = field(factory=dict)
    puts: list[Item] = field(factory=list)
    gets: list[bytes] = field(factory=list)
    silent: bool = False
    torn: set[bytes] = field(factory=set)  # targets where two with one seq stand
    hook: Callable[[], object] = lambda: None  # is called when something is put

    async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
        self.gets.append(target)
        if self.silent:
            raise Unavailable("no node of the DHT answers")
        if target in self.torn:
            raise RemoteProtocolError("two items of one key and seq that are not the same")
        found = self.kept.get(target)
        return found if isinstance(found, Mutable) and found.salt == salt and found.seq >= least else None

    async def fetch(self, target: bytes) -> Immutable | None:
        found = self.kept.get(target)
        return found if isinstance(found, Immutable) else None

    async def records(self, target: bytes) -> tuple[Record, ...]:
        return ()

    async def put(self, item: Item) -> int:
        self.hook()
        if self.silent:
            raise Unavailable("no node of the DHT answers")
        before = self.kept.get(item.target)
        if isinstance(before, Mutable) and isinstance(item, Mutable) and before != item and before.seq >= item.seq:
            raise Refused("there is a later one")
        self.puts.append(item)
        self.kept[item.target] = item
        return 8

    def mutable(self, target: bytes) -> Mutable:
        found = self.kept[target]
        assert isinstance(found, Mutable)
        return found


@define(eq=False)
class NetItems:
    """The same over sessions of real nodes, asked of one that is none of the holders."""

    net: Net
    by: int = 0

    async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
        found = self.net.get(self.by, target, salt).item
        return found if isinstance(found, Mutable) and found.seq >= least else None

    async def fetch(self, target: bytes) -> Immutable | None:
        found = self.net.get(self.by, target).item
        return found if isinstance(found, Immutable) else None

    async def records(self, target: bytes) -> tuple[Record, ...]:
        return self.net.listed(self.by, target).records

    async def put(self, item: Item) -> int:
        done = self.net.put(self.by, item)
        if not done.stored:
            raise Refused("a node has a later one") if done.refused else Unavailable("nobody has stored it")
        return done.stored


EITHER: tuple[type[Items], ...] = (MemoryItems, NetItems)
