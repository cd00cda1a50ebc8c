"""A relay's own descriptor: made, given the work that its network wants, published by trackers, made anew in time.

```
 start, 6 h +- 1 h, a change --> introduce --> HELLO of every link, and TRACK_PUBLISH to all trackers, by circuits
 a clean end ------------------------------------------------------------> TRACK_UNPUBLISH
```
A node that does not relay has none. One that nobody can dial says `via:` its neighbours, which find it by the link that
is there. Guards are left out of those while there are others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from os import urandom
from typing import Any, Final, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.threads import deferToThreadPool

from layer8.core.chance import Chance
from layer8.core.errors import Layer8Error
from layer8.core.network import Network
from layer8.crypto.descriptor import DAY, Descriptor, find_work, make
from layer8.crypto.keys import NodeKey
from layer8.crypto.work import NONCE
from layer8.relay.limits import REPUBLISH, REPUBLISH_SPREAD
from layer8.relay.onionkeys import OnionKeys

TRIES: Final = 65_536  # of the work for a descriptor, in one go of a thread: 40 ms
AGAIN: Final = (1.0, 60.0)  # seconds until trackers are asked again that did not answer, doubled each time
SETTLED: Final = 1.0  # seconds after a change in which others may come
LAST_WORDS: Final = 3.0  # seconds that trackers have at the end


class Lists(Protocol):
    """The trackers that are known; every call raises `Layer8Error` when none answers."""

    def publish(self, descriptor: Descriptor) -> Awaitable[object]:
        """Have them list a descriptor."""

    def unpublish(self) -> Awaitable[object]:
        """Have them forget this node."""

    def relays(self) -> Awaitable[object]:
        """Ask some of them for relays; the database takes what they say."""


@define(eq=False)
class Publishing:
    """The descriptor of one relay.

    `says` gives roles and exit summary, `endpoints` the addresses that others can dial, `gateways` ids of neighbours.
    """

    _reactor: Any
    _key: NodeKey
    _network: Network
    _keys: OnionKeys
    _chance: Chance
    _wall: Callable[[], float]
    _says: Callable[[], tuple[int, bytes]]
    _endpoints: Callable[[], Sequence[str]]
    _gateways: Callable[[], Sequence[bytes]]
    lists: Lists | None = field(default=None, init=False)
    descriptor: Descriptor | None = field(default=None, init=False)
    _listed: bool = field(default=False, init=False)
    _work: tuple[int, bytes] = field(default=(-1, b""), init=False)  # day, nonce
    _stale: bool = field(default=False, init=False)
    _resting: Deferred[None] | None = field(default=None, init=False)

    async def keep(self) -> None:
        """Make descriptors and publish them, for ever."""
        pause = AGAIN[0]
        while True:
            self._stale = False
            made = await self.introduce()
            if made is None or await self._publish(made):
                pause, rest = AGAIN[0], REPUBLISH + self._chance.uniform(-REPUBLISH_SPREAD, REPUBLISH_SPREAD)
            else:
                pause, rest = min(pause * 2, AGAIN[1]), pause
            if not self._stale:
                await self._rest(rest)
            if self._stale:
                await self._rest(SETTLED)

    def changed(self) -> None:
        """Publish anew, soon: what the descriptor says has changed."""
        self._stale = True
        if self._resting is not None:
            resting, self._resting = self._resting, None
            resting.callback(None)

    async def introduce(self) -> Descriptor | None:
        """Make a new descriptor; None: there is no way to this node, so there is nothing to say."""
        if not (self._endpoints() or self._gateways() or not self._network.ruled):
            self.descriptor = None
            return None
        return self.renew(await self._worked() if self._network.ruled else b"")

    def renew(self, work: bytes = b"") -> Descriptor:
        """Make it at once."""
        now = int(self._wall())
        self._keys.turn(now)
        roles, exits = self._says()
        endpoints = self._endpoints()
        self.descriptor = make(
            self._key,
            self._network,
            onion_key=self._keys.public,
            endpoints=endpoints,
            via=() if endpoints else self._gateways(),
            now=now,
            serial=max(now, 0 if self.descriptor is None else self.descriptor.serial + 1),
            roles=roles,
            exits=exits,
            work=work,
        )
        return self.descriptor

    async def withdraw(self) -> None:
        """Have trackers forget this node, if they list it; at a clean end."""
        if self.lists is None or not self._listed:
            return
        self._listed = False
        lists = self.lists

        async def say() -> None:
            await lists.unpublish()

        try:
            await Deferred.fromCoroutine(say()).addTimeout(LAST_WORDS, self._reactor)
        except CancelledError:
            raise
        except (Layer8Error, TimeoutError):
            pass  # the listing expires

    async def _publish(self, descriptor: Descriptor) -> bool:
        if self.lists is None:
            return True
        try:
            await self.lists.publish(descriptor)
        except Layer8Error:
            return False
        self._listed = True
        return True

    async def _worked(self) -> bytes:
        """Find the work of today, which is a second of a thread's time."""
        start = urandom(NONCE)
        while True:
            now = self._wall()
            day = int(now) // DAY
            if self._work[0] == day:
                return self._work[1]
            look = partial(find_work, self._key.node_id, now, start, TRIES)
            work, start = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), look)
            if work is not None:
                self._work = day, work

    async def _rest(self, seconds: float) -> None:
        self._resting = resting = Deferred[None]()
        call = self._reactor.callLater(seconds, self._rested)
        try:
            await resting
        finally:
            if call.active():
                call.cancel()

    def _rested(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)
