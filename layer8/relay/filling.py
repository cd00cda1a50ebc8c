"""How a node comes to know others, and goes on knowing them: by its neighbours, by trackers, from memory.

```
 peers by hand --dial, HELLO--> their descriptors        pinned: the user has named them
 neighbours ----PEX, a circuit of one hop--> 10 more     once an hour each, while few are known
 trackers ------a circuit--> 3 lists of 25 merged        at the start, then every hour or six
 the unknown ---3 good circuits--> vetted                in networks with rules
 relays --------dial--> `links` neighbours               who dials is introduced in turn
```
Trackers are asked over circuits of the usual length. Only whoever knows too few relays for one asks directly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable
from typing import Any, Final

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from layer8.config.network import RelayConfig, parse_peer
from layer8.core.chance import Chance
from layer8.core.errors import Layer8Error, RemoteProtocolError, Unavailable
from layer8.crypto.descriptor import Role
from layer8.crypto.keys import id_text, parse_id
from layer8.relay.circuit import Way
from layer8.relay.client import Client, Need
from layer8.relay.database import Database, Peer
from layer8.relay.guards import first_hop
from layer8.relay.links import Links
from layer8.relay.neighbours import Neighbours
from layer8.relay.path import NoPath
from layer8.relay.pex import PEX_GET, PEX_PEERS, SAME, get, read_peers
from layer8.relay.publishing import Lists
from layer8.relay.route import Named, Route
from layer8.relay.wire import Reason

LOOK: Final = 1.0  # seconds between looks at what is missing
LOOK_YOUNG: Final = 0.25  # the same while less than FEW nodes are known
FEW: Final = 20  # live relays, below which trackers are asked again soon and vetting does not rest
ENOUGH: Final = 200  # live relays, from which on neighbours are not asked any more
ASK_AGAIN: Final = (2.0, 60.0)  # seconds until trackers are asked again that did not answer, doubled each time
ASK_SOON: Final = 3600.0  # seconds between questions to trackers while less than ENOUGH are known
ASK_LATER: Final = 6 * 3600.0
VET_EVERY: Final = 60.0  # seconds between circuits that try a node, where enough are known
REDIAL: Final = 600.0  # seconds until a node is dialled again that did not answer
DIALS: Final = 2  # at a time
AGAIN_YOUNG: Final = 3.0  # seconds until a neighbour is asked again in a network of tests
ANSWER_TIME: Final = 10.0  # seconds
HUB: Final = 4  # times as many links as others want
ASKS: Final = 5  # questions to trackers before circuits to them are built anew: they take 10 on each

Ask = Callable[[int, bytes, Container[int]], Awaitable[tuple[int, bytes]]]


@define(eq=False)
class Filling:
    """Keeps the database of one node full. `wall` gives seconds since 1970, `seconds` monotonic ones."""

    _reactor: Any
    _config: Callable[[], RelayConfig]
    _own: bytes
    _database: Database
    _client: Client
    _links: Links
    _neighbours: Neighbours
    _chance: Chance
    _wall: Callable[[], float]
    _seconds: Callable[[], float]
    lists: Lists | None = field(default=None, init=False)
    _asked: dict[bytes, float] = field(factory=dict, init=False)  # neighbours, by PEX
    _young: tuple[int, float] = field(default=(0, 0.0), init=False)  # so many live relays are known, and since when
    _failed: dict[bytes, float] = field(factory=dict, init=False)  # dials
    _lists_at: float = field(default=0.0, init=False)
    _pause: float = field(default=ASK_AGAIN[0], init=False)
    _vet_at: float = field(default=0.0, init=False)
    _version: int = field(default=0, init=False)
    _asks: int = field(default=0, init=False)

    async def keep(self) -> None:
        """Do so for ever."""
        config = self._config()
        for text in config.trusted:
            self._database.pin(parse_id(text))
        for text in config.peers:
            self._database.pin(parse_peer(text)[0])
        self._lists_at = self._vet_at = self._seconds()
        # Whoever does not answer when dialled must not keep us from asking those who do.
        await _all([self._again(self._meet, self._dial), self._again(self._exchange, self._ask, self._vet)])

    async def _again(self, *steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do these one after the other, for ever."""
        while True:
            for step in steps:
                await step()
            self._learned()
            await deferLater(self._reactor, LOOK if len(self._database) >= FEW else LOOK_YOUNG)

    def trackers(self) -> list[tuple[bytes, Ask]]:
        """Give the trackers that are known, by the configuration or by their descriptors, and how to ask each."""
        now = self._wall()
        known = {parse_peer(text)[0] for text in self._config().trackers}
        known.update(
            peer.identity
            for peer in self._database
            if peer.descriptor.roles & Role.TRACKER and self._database.live(peer, now)
        )
        return [(identity, self._asking(identity)) for identity in sorted(known - {self._own})]

    async def link(self, identity: bytes, endpoints: Iterable[str], *, named: bool) -> Way:
        """Open a link, or give the one that is there; raises `Unavailable`. `named`: by the user, with its address."""
        linked: Deferred[Way | Reason] = Deferred()
        reach = self._neighbours.reach if named else self._neighbours.reach_said
        reach(identity, tuple(endpoints), linked.callback)
        way = await linked
        if isinstance(way, Reason):
            raise Unavailable(f"no link to {id_text(identity)}: {way.name.lower()}")
        return way

    def _learned(self) -> None:
        """Let whoever had no path try again."""
        if self._database.version != self._version:
            self._version = self._database.version
            self._client.pool.hurry()

    def _live(self) -> list[Peer]:
        now = self._wall()
        return [peer for peer in self._database if first_hop(self._database, peer, now)]

    async def _meet(self) -> None:
        """Dial those whom the user has named, until each has said who it is; keep links to peers."""
        config = self._config()
        named = [parse_peer(text) for text in (*config.peers, *config.trackers)]
        peers = {parse_peer(text)[0] for text in config.peers}
        missing = [
            self._dialled(identity, (endpoint,), named=True)
            for identity, endpoint in named
            if identity != self._own
            and self._rested(identity)
            and (
                self._database.get(identity) is None
                or (identity in peers and config.relay and self._links.get(identity) is None)
            )
        ]
        await _all(missing)

    async def _dial(self) -> None:
        """Dial until there are as many links as this relay wants."""
        config = self._config()
        linked = {link.peer for link in self._links if link.peer is not None}
        wanted = config.links * (HUB if config.peer_hub else 1)
        if not config.relay or len(linked) >= wanted:
            return
        others = [one for one in self._live() if one.identity not in linked and self._rested(one.identity)]
        chosen = self._chance.sample(others, min(DIALS, wanted - len(linked), len(others)))
        await _all(self._dialled(one.identity, one.descriptor.endpoints, named=False) for one in chosen)

    async def _dialled(self, identity: bytes, endpoints: Iterable[str], *, named: bool) -> None:
        try:
            await self.link(identity, endpoints, named=named)
        except Unavailable:
            self._failed[identity] = self._seconds()
        else:
            self._failed.pop(identity, None)

    def _rested(self, identity: bytes) -> bool:
        """Say whether a node may be dialled: it has not just failed, unless hardly anybody else is known."""
        since = self._seconds() - self._failed.get(identity, float("-inf"))
        return since >= (REDIAL if len(self._database) >= FEW else 5 * LOOK)

    async def _exchange(self) -> None:
        """Ask neighbours that have not been asked for an hour."""
        live = len(self._live())
        if live >= ENOUGH:
            return
        now = self._seconds()
        # Networks of tests are a minute old, and whoever is asked there knows more with every second.
        # It is asked less and less as nothing new comes.
        young = not self._database.network.ruled and live < FEW
        if live != self._young[0]:
            self._young = live, now
        again = max(AGAIN_YOUNG, now - self._young[1]) if young else SAME
        self._asked = {one: at for one, at in self._asked.items() if now - at < min(again, SAME)}
        linked = {link.peer for link in self._links if link.peer is not None}
        fresh = [one for one in linked - self._asked.keys() if self._database.get(one) is not None]
        await _all(self._peers(one) for one in sorted(fresh)[:DIALS])

    async def _peers(self, neighbour: bytes) -> None:
        self._asked[neighbour] = self._seconds()
        try:
            _, data = await self._direct(neighbour, PEX_GET, get(), (PEX_PEERS,))
            self._database.took(neighbour, read_peers(data), self._wall())
        except RemoteProtocolError:
            self._database.took(neighbour, (b"",), self._wall())  # counts as one bad descriptor
        except Layer8Error:
            self._asked[neighbour] -= SAME - 30 * LOOK

    async def _ask(self) -> None:
        """Ask trackers, if it is time."""
        now = self._seconds()
        if self.lists is None or now < self._lists_at:
            return
        if not any(self._database.get(identity) is not None for identity, _ in self.trackers()):
            return
        before = len(self._database)
        try:
            await self.lists.relays()
        except Layer8Error:
            rest, self._pause = self._pause, min(2 * self._pause, ASK_AGAIN[1])
        else:
            few = len(self._live()) < FEW
            grown = len(self._database) > before
            rest = self._pause if few else ASK_SOON if len(self._live()) < ENOUGH else ASK_LATER
            self._pause = ASK_AGAIN[0] if grown or not few else min(2 * self._pause, ASK_AGAIN[1])
        self._lists_at = self._seconds() + rest

    async def _vet(self) -> None:
        """Try nodes that nobody has used yet."""
        database = self._database
        while database.network.ruled and self._seconds() >= self._vet_at:
            vetted = sum(1 for peer in self._live() if database.vetted(peer))
            self._vet_at = self._seconds() + (VET_EVERY if vetted >= FEW else LOOK)
            dead = frozenset(one for one in self._failed if not self._rested(one))
            try:
                path = self._client.pool.paths.vetting(self._wall(), self._client.hops, dead)
            except NoPath:
                return
            route = Route(tuple(Named(id_text(one.identity)) for one in path))
            try:
                circuit = await self._client.build(Need(route=route))
            except Layer8Error:
                self._failed[path[-1].identity] = self._seconds()
                return
            circuit.close()
            if vetted < FEW:
                self._vet_at = self._seconds()

    def _asking(self, identity: bytes) -> Ask:
        async def ask(command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
            if self._database.get(identity) is None:
                raise Unavailable("this tracker has not been met yet")
            self._asks += 1
            # What is published says who we are; what is asked must not come by the same circuit.
            need = Need(key=("trackers", command, self._asks // ASKS), last=identity, hops=self._client.hops)
            try:
                return await self._client.ask(need, command, data, answers, ANSWER_TIME)
            except NoPath:
                if len(self._live()) > self._client.hops:
                    raise
            return await self._direct(identity, command, data, answers)

        return ask

    async def _direct(self, identity: bytes, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        """Ask a node over a circuit of one hop."""
        circuit = await self._client.build(Need(last=identity, hops=1))
        try:
            return await self._client.ask_on(circuit, command, data, answers, ANSWER_TIME)
        finally:
            circuit.close()


async def _all(doing: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do several things at once, none of which raises."""
    waiting = [Deferred.fromCoroutine(one) for one in doing]
    try:
        for one in waiting:
            await one
    except CancelledError:
        for one in waiting:
            one.addErrback(lambda failure: failure.trap(CancelledError))
            one.cancel()
        raise
