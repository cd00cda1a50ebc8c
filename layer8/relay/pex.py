"""Peer exchange: a node asks its neighbour for some of the nodes that it knows.

```
 asker                                              neighbour, over a circuit of one hop
   |-- PEX_GET    count u8 <= 10 -------------------->|
   |<- PEX_PEERS  (len u16 | descriptor) * n --------|   n <= 10, which is below the 25 of any answer
```
Half of an answer are nodes that are in use here at present, half are remembered ones. Whoever asks again within an hour
gets the same answer, and all that have no name, or no descriptor that we know, are one asker: who wants to collect what
we know needs many relays. Guards are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from layer8.core.chance import Chance
from layer8.core.errors import RemoteProtocolError
from layer8.core.roles import Asker
from layer8.crypto.descriptor import pack, unpack
from layer8.relay.database import Database, Peer
from layer8.relay.guards import first_hop

PEX_GET: Final = 21
PEX_PEERS: Final = 22
PEX_MOST: Final = 10  # descriptors of one answer
SAME: Final = 3600.0  # seconds that an asker gets the same
ASKERS: Final = 4096  # whose answers are kept
LATELY: Final = 3600.0  # seconds since a good circuit that a node counts as live


def get(count: int = PEX_MOST) -> bytes:
    """Make the data of PEX_GET."""
    return bytes((min(count, PEX_MOST),))


def read_get(data: bytes) -> int:
    """Read it; raises `RemoteProtocolError`."""
    if len(data) != 1 or not 0 < data[0] <= PEX_MOST:
        raise RemoteProtocolError(f"PEX_GET asks for 1 to {PEX_MOST}")
    return data[0]


def read_peers(data: bytes) -> list[bytes]:
    """Read PEX_PEERS: the descriptors, for `Database.took`; raises `RemoteProtocolError`."""
    raws = unpack(data)
    if len(raws) > PEX_MOST:
        raise RemoteProtocolError(f"PEX_PEERS holds {PEX_MOST} descriptors at most")
    return raws


class Exchange:
    """The side that is asked, for the relay's table of roles."""

    commands = frozenset((PEX_GET,))

    def __init__(
        self,
        database: Database,
        chance: Chance,
        wall: Callable[[], float],
        linked: Callable[[bytes], bool] = lambda identity: False,
        hidden: Callable[[], frozenset[bytes]] = frozenset,
        same: float = SAME,
    ) -> None:
        """`linked` tells whether there is a link to a node, `hidden` gives the ids that nobody is told: the guards.

        For `same` seconds an asker gets the same answer.
        """
        self._database = database
        self._chance = chance
        self._wall = wall
        self._linked = linked
        self._hidden = hidden
        self._same = same
        self._answers: dict[bytes, tuple[float, tuple[bytes, ...]]] = {}

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Answer; raises `RemoteProtocolError` for what is no PEX_GET."""
        count = read_get(data)
        name = asker.neighbour or b""
        if self._database.network.ruled and self._database.get(name) is None:
            name = b""  # a name alone costs nothing; one with a descriptor has cost work
        at, raws = self._answers.get(name, (0.0, ()))
        if name not in self._answers or now - at >= self._same:
            self._answers.pop(name, None)
            raws = tuple(self._sample(name))
            self._answers[name] = now, raws
            while len(self._answers) > ASKERS:
                del self._answers[next(iter(self._answers))]
        asker.answer(PEX_PEERS, pack(raws[:count]))

    def gone(self, circuit: int) -> None:
        """Keep nothing of circuits: an asker that comes again gets the same."""

    def _sample(self, asker: bytes) -> list[bytes]:
        now = self._wall()
        kept = self._hidden() | {asker}
        peers = [peer for peer in self._database if peer.identity not in kept and first_hop(self._database, peer, now)]
        live = [peer for peer in peers if self._linked(peer.identity) or peer.last_good > now - LATELY]
        there = {peer.identity for peer in live}
        old = [peer for peer in peers if peer.identity not in there]
        fewest = PEX_MOST // 2
        of_live = min(len(live), max(fewest, PEX_MOST - len(old)))
        chosen: list[Peer] = self._chance.sample(live, of_live)
        chosen += self._chance.sample(old, min(len(old), PEX_MOST - of_live))
        return [peer.descriptor.raw for peer in self._chance.sample(chosen, len(chosen))]
