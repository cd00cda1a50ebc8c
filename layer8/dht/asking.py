"""The side that asks: over circuits that end at nodes of the DHT, two at a time, and it believes neither of them.

::

    items = Asking(sources, network, chance, clock, wall)     sources() -> [Source(identity, ask), ...]
    item = await items.get(target, salt)                      the highest seq that two last hops give, checked here
    await items.put(item)

It is `layer8.crypto.items.Items`. That nothing is there is believed only when two last hops say so; where they differ,
two others are asked as well. A last hop sees no two items asked for by one circuit, nor items of two keys put by one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Coroutine, Sequence
from typing import Any, Final, TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from layer8.core.chance import Chance
from layer8.core.errors import Layer8Error, Refused, RemoteProtocolError, TimedOut, Unavailable
from layer8.core.network import Network
from layer8.crypto.descriptor import Descriptor
from layer8.crypto.items import (
    RECORD_EFFORT,
    Immutable,
    Item,
    Mutable,
    Record,
    part_count,
    part_salt,
    parts,
    sha1,
    whole,
)
from layer8.crypto.keys import NodeKey
from layer8.dht.answering import read_answer
from layer8.dht.limits import ASK_TIME
from layer8.dht.message import Command, Data, Kind, Nodes, Retrieve, Status, Store

T = TypeVar("T")
PAIR: Final = 2  # circuits that are asked at a time
ROUNDS: Final = 3  # of them, while answers differ
SILENT: Final = 8  # of them, while nobody answers
LOOK: Final = 0.1  # seconds between looks for somebody to ask

Ask = Callable[[bytes, int, bytes, Container[int]], Awaitable[tuple[int, bytes]]]
"""Send a message over a circuit that ends at a node of the DHT; gives command and data of the first answer wanted.

The first argument says what it is about: what is about different things never goes by one circuit, or the last hop
would know that one node wants or says both. Where it is empty, any circuit will do that no such thing goes by.
"""


@frozen
class Source:
    """A node of the DHT that can be asked."""

    identity: bytes
    ask: Ask


class Asking:
    """See the module. `sources` gives the nodes with the role `dht` that are known."""

    def __init__(
        self,
        sources: Callable[[], Sequence[Source]],
        network: Network,
        chance: Chance,
        clock: IReactorTime,
        wall: Callable[[], float],
        learn: Callable[[bytes, list[bytes]], object] = lambda source, raws: None,
        *,
        patience: float = 0.0,
    ) -> None:
        """Connect the parts; `learn` hears which descriptors a node has given, as the network's database takes them.

        For `patience` seconds from now on nobody is told that no node is known: there may be some soon.
        """
        self._patience = clock.seconds() + patience
        self._learn = learn
        self._sources = sources
        self._network = network
        self._chance = chance
        self._clock = clock
        self._wall = wall

    async def get(self, target: bytes, salt: bytes = b"", least: int = 0) -> Mutable | None:
        """Give the item with the highest `seq` that somebody has; see the module.

        Raises `RemoteProtocolError` where its key has signed two that are not the same: two hold it.
        """
        found = [one for one in await self._search(Kind.MUTABLE, target, salt, least) if isinstance(one, Mutable)]
        last = max(found, key=lambda one: one.seq, default=None)
        if any(last is not None and one.seq == last.seq and one.value != last.value for one in found):
            raise RemoteProtocolError("two items of one key and seq that are not the same: two hold this key")
        return last

    async def fetch(self, target: bytes) -> Immutable | None:
        """Give an immutable item."""
        return next((one for one in await self._search(Kind.IMMUTABLE, target) if isinstance(one, Immutable)), None)

    async def records(self, target: bytes) -> tuple[Record, ...]:
        """Give records of a set: what two last hops say, together."""
        records = [one for one in await self._search(Kind.RECORD, target) if isinstance(one, Record)]
        found = {one.name: one for one in sorted(records, key=lambda one: one.expires)}
        return tuple(found.values())

    async def put(self, item: Item) -> int:
        """Store an item, by two last hops: one that lies cannot keep it away. Says how many nodes took it."""
        about = item.target if isinstance(item, Immutable) else item.key

        async def store(source: Source) -> Data:
            return await self._ask(source, about, Command.STORE, lambda request: Store(request, item).encode())

        left = await self._shuffled()
        answers: list[Data] = []
        for start in range(0, min(len(left), PAIR * SILENT), PAIR):
            answers = [one for _, one in await self._pair(left[start : start + PAIR], store) if one is not None]
            if any(one.status is not Status.BUSY for one in answers):
                break
        stored = max((one.stored for one in answers if one.status is Status.STORED), default=0)
        if stored:
            return stored
        if any(one.status is Status.REFUSED for one in answers):
            raise Refused("the DHT does not take this item: it is not good, or there is a later one")
        raise Unavailable("no node of the DHT has stored this item")

    async def put_value(self, key: NodeKey, name: bytes, seq: int, data: bytes) -> int:
        """Store up to 4096 bytes in items under the salts `name/0` to `name/4`; says how many nodes took each."""
        return min([await self.put(one) for one in parts(key.node_id, key.sign, name, seq, data)])

    async def get_value(self, key: bytes, name: bytes) -> bytes | None:
        """Give what `put_value` has stored; raises `RemoteProtocolError` while its parts are of different times."""
        first = await self._part(key, name, 0, 0)
        if first is None:
            return None
        found = [first]
        for number in range(1, part_count(first)):
            part = await self._part(key, name, number, first.seq)
            if part is None:
                return None
            found.append(part)
        return whole(found)

    async def nodes(self, target: bytes) -> list[Descriptor]:
        """Give descriptors of nodes near a target, a random one for fresh peers (G17)."""

        async def near(source: Source) -> Data:
            return await self._ask(source, b"", Command.NODES, lambda request: Nodes(request, target).encode())

        answers = await self._pair((await self._shuffled())[:PAIR], near)
        if all(answer is None for _, answer in answers):
            raise Unavailable("no node of the DHT answers")
        found: dict[bytes, Descriptor] = {}
        for source, answer in answers:
            if answer is not None:
                self._learn(source, list(answer.items))
            for raw in () if answer is None else answer.items:
                one = self._descriptor(raw)
                if one is not None and (one.identity not in found or found[one.identity].serial < one.serial):
                    found[one.identity] = one
        return list(found.values())

    async def descriptor(self, identity: bytes) -> Descriptor | None:
        """Give what a node says of itself under its own key (G36): its addresses, or the gateways to it."""
        item = await self.get(sha1(identity))
        one = None if item is None else self._descriptor(item.data)
        return one if one is not None and one.identity == identity else None

    async def _part(self, key: bytes, name: bytes, number: int, least: int) -> Mutable | None:
        salt = part_salt(name, number)
        return await self.get(sha1(key, salt), salt, least)

    async def _search(self, kind: Kind, target: bytes, salt: bytes = b"", least: int = 0) -> Sequence[Item]:
        """Ask two last hops, and two others while they differ: whatever is good of what they say."""
        left = await self._shuffled()
        found: list[Item] = []
        nothing = rounds = silent = 0
        while left and rounds < ROUNDS and silent < SILENT:
            pair, left = left[:PAIR], left[PAIR:]

            async def retrieve(source: Source) -> tuple[Item, ...]:
                return await self._retrieve(source, kind, target, salt, least)

            answers = [answer for _, answer in await self._pair(pair, retrieve) if answer is not None]
            silent, rounds = (silent, rounds + 1) if answers else (silent + 1, rounds)
            found += [item for answer in answers for item in answer]
            nothing += sum(not answer for answer in answers)
            if kind is Kind.IMMUTABLE and found:
                break
            if len(answers) == PAIR and (kind is Kind.RECORD or answers[0] == answers[1]):
                break
        if not found and not nothing:
            raise Unavailable("no node of the DHT answers")
        if not found and nothing < PAIR:
            raise Unavailable("only one node of the DHT says that there is nothing: that is not believed")
        return found

    async def _retrieve(self, source: Source, kind: Kind, target: bytes, salt: bytes, least: int) -> tuple[Item, ...]:
        about = b"" if kind is Kind.RECORD else target
        answer = await self._ask(
            source, about, Command.RETR, lambda request: Retrieve(request, kind, target, least, salt).encode()
        )
        if answer.status is Status.NONE:
            return ()
        if answer.status is not Status.FOUND or not answer.items:
            raise Unavailable("a node of the DHT has no time")
        items = tuple(read_answer(kind, target, salt, raw) for raw in answer.items)
        if not all(self._good(one, least) for one in items):
            raise RemoteProtocolError("an item that is not good")
        return items

    def _good(self, item: Item, least: int) -> bool:
        if isinstance(item, Record):
            return item.good(self._wall(), least=RECORD_EFFORT if self._network.ruled else 0)
        return item.good() and not (isinstance(item, Mutable) and item.seq < least)

    def _descriptor(self, raw: bytes) -> Descriptor | None:
        try:
            found = Descriptor.read(raw)
            found.check(self._network, self._wall())
        except RemoteProtocolError:
            return None
        return found

    async def _shuffled(self) -> list[Source]:
        while not (known := list({one.identity: one for one in self._sources()}.values())):
            if self._clock.seconds() >= self._patience:
                raise Unavailable("no node of the DHT is known")
            await deferLater(self._clock, LOOK)
        return self._chance.sample(known, len(known))

    async def _ask(self, source: Source, about: bytes, command: Command, data: Callable[[int], bytes]) -> Data:
        request = self._chance.randrange(1 << 32)

        async def ask() -> tuple[int, bytes]:
            return await source.ask(about, command, data(request), (Command.DATA,))

        waiting = Deferred.fromCoroutine(ask())
        waiting.addTimeout(ASK_TIME, self._clock, _late)
        _, text = await waiting
        answer = Data.read(text)
        if answer.request != request:
            raise RemoteProtocolError("DHT_DATA that answers another question")
        return answer

    async def _pair(
        self, asked: Sequence[Source], each: Callable[[Source], Coroutine[Any, Any, T]]
    ) -> list[tuple[bytes, T | None]]:
        """Do the same with several last hops at once; None for one that failed, or lied."""

        async def one(source: Source) -> tuple[bytes, T | None]:
            try:
                return source.identity, await each(source)
            except CancelledError:
                raise
            except Layer8Error:
                return source.identity, None

        waiting = [Deferred.fromCoroutine(one(source)) for source in asked]
        try:
            return [await answer for answer in waiting]
        except CancelledError:
            for answer in waiting:
                answer.addErrback(lambda failure: failure.trap(CancelledError) and None)
                answer.cancel()
            raise


def _late(_: object, seconds: float) -> object:
    raise TimedOut(f"a node of the DHT said nothing for {seconds:.0f} s")
