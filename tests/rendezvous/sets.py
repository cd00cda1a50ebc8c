"""A DHT of sets for tests, as whoever asks it sees it: a dictionary that counts what it was asked."""

from __future__ import annotations

from attrs import define, field

from layer8.core.errors import Unavailable
from layer8.crypto.items import Draft, Immutable, Item, Items, Mutable, Record


@define(eq=False)
class MemorySets:
    """`layer8.crypto.items.Items`; what is put later takes the place of what was."""

    sets: dict[bytes, dict[tuple[int, bytes, bytes], Record]] = field(factory=dict)
    items: dict[bytes, Mutable] = field(factory=dict)
    asked: list[bytes] = field(factory=list)
    puts: int = 0
    silent: bool = False

    async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
        self._answer(target)
        return self.items.get(target)

    async def fetch(self, target: bytes) -> Immutable | None:
        self._answer(target)
        return None

    async def records(self, target: bytes) -> tuple[Record, ...]:
        self._answer(target)
        return tuple(self.sets.get(target, {}).values())

    async def put(self, item: Item) -> int:
        if self.silent:
            raise Unavailable("no node of the DHT answers")
        self.puts += 1
        if isinstance(item, Record):
            self.sets.setdefault(item.target, {})[item.name] = item
        elif isinstance(item, Mutable):
            self.items[item.target] = item
        return 8

    def add(self, *drafts: Draft) -> None:
        """Put records that cost nothing."""
        for draft in drafts:
            record = draft.record()
            self.sets.setdefault(record.target, {})[record.name] = record

    def state(self) -> set[bytes]:
        """Give all of it, to compare."""
        return {one.raw for records in self.sets.values() for one in records.values()}

    def _answer(self, target: bytes) -> None:
        self.asked.append(target)
        if self.silent:
            raise Unavailable("no node of the DHT answers")


ITEMS: type[Items] = MemorySets
