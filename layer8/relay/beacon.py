r"""The beacon by which nodes of one local network find each other without a tracker: one datagram, said to a group.

```
"l8lan" | version u8 = 1 | network 8 | identity 32 | port u16 | time u64 | signature 64        120 bytes
```
It goes to GROUP at PORT with a time to live of 1, so no router passes it on. The signature is Ed25519 over
`"layer8/1 lan\0"` and everything between version and signature: nobody lures others to an address with somebody
else's name, and what is older than AGE is nobody's. Where the node is, says the datagram's own source address; only
addresses of a local network count. Whoever hears a node for the first time says its own name soon, so that the newcomer
does not have to wait. A beacon tells everybody on the local network that this node is here: it is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

from layer8.core.address import Scope, scope
from layer8.core.datagram import DatagramEffect, Peer, SendTo
from layer8.core.session import Tell
from layer8.crypto.keys import NodeKey, verify

GROUP: Final = "239.76.56.1"  # of the block for one's own use (RFC 2365)
PORT: Final = 9010
EVERY: Final = (25.0, 35.0)  # seconds between two beacons
SOON: Final = (0.2, 1.0)  # seconds until a newcomer is answered
AGE: Final = 600  # seconds that two clocks may differ by
HEARD: Final = 256  # nodes that are remembered
AGAIN: Final = 300.0  # seconds until the same node is told of again
CHECKS: Final = 20  # signatures that are checked in a second

_MAGIC: Final = b"l8lan\x01"
_SIGNED: Final = b"layer8/1 lan\0"
_LENGTH: Final = len(_MAGIC) + 8 + 32 + 2 + 8 + 64


@frozen
class Nearby:
    """A node of this network is at an address of the local network."""

    identity: bytes
    host: str
    port: int


class Beacon:
    """See the module. `port` gives where links are taken, 0 while nowhere; `wall` seconds since 1970."""

    def __init__(
        self,
        key: NodeKey,
        network: bytes,
        port: Callable[[], int],
        wall: Callable[[], float],
        between: Callable[[float, float], float],
    ) -> None:
        """Speak at once; `between` draws a number between two."""
        self._key = key
        self._network = network
        self._port = port
        self._wall = wall
        self._between = between
        self._due: float | None = 0.0
        self._heard: dict[bytes, float] = {}
        self._second = 0.0
        self._checked = 0
        self._out: list[DatagramEffect] = []

    def received(self, data: bytes, peer: Peer, now: float) -> None:
        """Take what somebody says; nonsense, strangers and what is old are passed over."""
        told = data[len(_MAGIC) : -64]
        if len(data) != _LENGTH or not data.startswith(_MAGIC + self._network):
            return
        identity, port = told[8:40], int.from_bytes(told[40:42], "big")
        if identity == self._key.node_id or not port or scope(peer[0]) in (None, Scope.INTERNET):
            return
        if now - self._heard.get(identity, -AGAIN) < AGAIN or not self._may_check(now):
            return
        if abs(self._wall() - int.from_bytes(told[42:50], "big")) > AGE:
            return
        if not verify(identity, data[-64:], _SIGNED + told):
            return
        fresh = identity not in self._heard
        self._heard.pop(identity, None)
        self._heard[identity] = now
        while len(self._heard) > HEARD:
            del self._heard[next(iter(self._heard))]
        self._out.append(Tell(Nearby(identity, peer[0], port)))
        if fresh:
            soon = now + self._between(*SOON)
            self._due = soon if self._due is None else min(self._due, soon)

    def wake(self, now: float) -> None:
        """Say who is here, when it is time."""
        if self._due is None or now < self._due:
            return
        self._due = now + self._between(*EVERY)
        port = self._port()
        if port:
            told = b"".join(
                (
                    self._network,
                    self._key.node_id,
                    port.to_bytes(2, "big"),
                    int(self._wall()).to_bytes(8, "big"),
                )
            )
            self._out.append(SendTo(_MAGIC + told + self._key.sign(_SIGNED + told), (GROUP, PORT)))

    def effects(self) -> Sequence[DatagramEffect]:
        """Give what has to be done."""
        out, self._out = self._out, []
        return out

    def deadline(self) -> float | None:
        """Give the time of the next beacon."""
        return self._due

    def _may_check(self, now: float) -> bool:
        if now - self._second >= 1.0:
            self._second, self._checked = now, 0
        self._checked += 1
        return self._checked <= CHECKS
