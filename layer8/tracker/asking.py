"""The side that asks trackers: several at a time, over circuits that somebody else makes, and merges what they say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from layer8.core.chance import Chance
from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable
from layer8.core.network import Network
from layer8.crypto.descriptor import Descriptor, unpack
from layer8.crypto.keys import NodeKey
from layer8.tracker.limits import ASK_TIME, TRACKERS
from layer8.tracker.wire import GetRelays, Status, Track, Unpublish, read_ok

T = TypeVar("T")

Ask = Callable[[int, bytes, Container[int]], Awaitable[tuple[int, bytes]]]
"""Send a message over a circuit that ends at the tracker; gives command and data of the first answer that is wanted."""


class Learns(Protocol):
    """Where what trackers say is judged and kept: the node's database."""

    def took(self, source: bytes, raws: Iterable[bytes], now: float) -> object:
        """Take the descriptors that a source answered with."""


@frozen
class Source:
    """A tracker that can be asked."""

    identity: bytes
    ask: Ask


@frozen
class Answer:
    """What one tracker made of a descriptor; None: it did not answer."""

    tracker: bytes
    status: Status | None


class Trackers:
    """The trackers that this node knows; every call raises `Unavailable` when there are none, or none answers."""

    def __init__(
        self,
        sources: Callable[[], Sequence[Source]],
        learns: Learns,
        network: Network,
        chance: Chance,
        clock: IReactorTime,
        wall: Callable[[], float],
        count: int = 3,
    ) -> None:
        """`count` of those that `sources` gives, at random, are asked each time, and their answers merged."""
        self._sources = sources
        self._learns = learns
        self._network = network
        self._chance = chance
        self._clock = clock
        self._wall = wall
        self._count = count

    async def relays(self, asked: GetRelays) -> dict[bytes, list[Descriptor]]:
        """Ask for relays: the good descriptors by the tracker that gave them, which the database has taken already."""
        request = asked.encode()
        answers = await self._all(self._count, lambda one: self._list(one, request))
        if not any(answer is not None for _, answer in answers):
            raise Unavailable("no tracker answers")
        return {identity: listed for identity, listed in answers if listed is not None}

    async def publish(self, descriptor: Descriptor) -> list[Answer]:
        """Have every tracker list a descriptor."""
        return await self._tell(Track.PUBLISH, descriptor.raw)

    async def unpublish(self, key: NodeKey) -> list[Answer]:
        """Have every tracker forget this node."""
        return await self._tell(Track.UNPUBLISH, Unpublish.make(key, self._network, self._wall()).encode())

    async def _tell(self, command: Track, data: bytes) -> list[Answer]:
        async def tell(one: Source) -> Status:
            _, answer = await self._ask(one, command, data, Track.OK)
            return read_ok(answer)

        answers = [Answer(identity, status) for identity, status in await self._all(TRACKERS, tell)]
        if all(answer.status is None for answer in answers):
            raise Unavailable("no tracker answers")
        return answers

    async def _list(self, one: Source, request: bytes) -> list[Descriptor]:
        _, data = await self._ask(one, Track.GET_RELAYS, request, Track.RELAY_LIST)
        raws, now = unpack(data), self._wall()
        self._learns.took(one.identity, raws, now)
        return [descriptor for raw in raws if (descriptor := self._good(raw, now)) is not None]

    def _good(self, raw: bytes, now: float) -> Descriptor | None:
        try:
            descriptor = Descriptor.read(raw)
            descriptor.check(self._network, now)
        except RemoteProtocolError:
            return None
        return descriptor

    async def _ask(self, one: Source, command: Track, data: bytes, wanted: Track) -> tuple[int, bytes]:
        async def ask() -> tuple[int, bytes]:
            return await one.ask(command, data, (wanted,))

        waiting = Deferred.fromCoroutine(ask())
        waiting.addTimeout(ASK_TIME, self._clock, _late)
        return await waiting

    async def _all(self, count: int, each: Callable[[Source], Coroutine[Any, Any, T]]) -> list[tuple[bytes, T | None]]:
        """Do the same with several trackers at once; None for one that failed."""
        known = list(self._sources())
        if not known:
            raise Unavailable("no tracker is known")

        async def one(source: Source) -> tuple[bytes, T | None]:
            try:
                return source.identity, await each(source)
            except CancelledError:
                raise
            except RemoteProtocolError:
                self._learns.took(source.identity, (b"",), self._wall())  # counts as one bad descriptor
            except Layer8Error:
                pass
            return source.identity, None

        asked = self._chance.sample(known, min(count, len(known)))
        waiting = [Deferred.fromCoroutine(one(source)) for source in asked]
        try:
            return [await answer for answer in waiting]
        except CancelledError:
            for answer in waiting:
                answer.addErrback(lambda failure: failure.trap(CancelledError))
                answer.cancel()
            raise


def _late(_: object, seconds: float) -> object:
    raise TimedOut(f"a tracker said nothing for {seconds:.0f} s")
