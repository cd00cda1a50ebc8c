"""Whom a relay lets in: so many at once of one gateway and of one network, and so many a second of one network.

Networks are told apart by a keyed hash with a secret of this process, so that the table names nobody; whoever is quiet
for FORGOTTEN seconds leaves it, and so does the one that has been quiet longest when it is full.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from hashlib import blake2b
from typing import Final

from attrs import define, frozen

from layer8.core.address import source_key

IN_FLIGHT: Final = 1024  # exchanges of one gateway at once
IN_FLIGHT_NETWORK: Final = 64  # and of one /24 or /56
RATE: Final = 50.0  # exchanges a second of one /24 or /56
BURST: Final = 200.0  # of them at once after a pause
NETWORKS: Final = 65_536  # that are remembered
FORGOTTEN: Final = 600.0  # seconds of quiet after which one is not


@frozen
class Wait:
    """Not now: 429 if it is the network's own doing, 503 if the gateway has too many; and when to try again (s)."""

    status: int
    after: float


@frozen
class Pass:
    """What is handed back with `leave`."""

    gateway: str
    network: bytes


@define(eq=False)
class _Network:
    room: float
    at: float
    here: int = 0


class Admission:
    """The table; `secret` is random and made anew with each process. Times are monotonic seconds."""

    def __init__(self, secret: bytes) -> None:
        """Begin with nobody."""
        self._secret = secret
        self._networks: OrderedDict[bytes, _Network] = OrderedDict()
        self._gateways: Counter[str] = Counter()

    def __len__(self) -> int:
        """Count the networks that are remembered."""
        return len(self._networks)

    def enter(self, gateway: str, address: str, now: float) -> Pass | Wait:
        """Let an exchange in, or say how long to wait; an empty `address` is this machine's own, see the module."""
        self._forget(now)
        if not address:
            if self._gateways[gateway] >= IN_FLIGHT:
                return Wait(503, 1.0)
            self._gateways[gateway] += 1
            return Pass(gateway, b"")
        name = blake2b(source_key(address).encode(), key=self._secret, digest_size=16).digest()
        network = self._networks.get(name)
        if network is None:
            network = self._networks[name] = _Network(BURST, now)
            if len(self._networks) > NETWORKS:
                self._drop_one(name)
        network.room = min(BURST, network.room + max(0.0, now - network.at) * RATE)
        network.at = now
        self._networks.move_to_end(name)
        if network.here >= IN_FLIGHT_NETWORK:
            return Wait(429, 1.0)
        if network.room < 1.0:
            return Wait(429, (1.0 - network.room) / RATE)
        if self._gateways[gateway] >= IN_FLIGHT:
            return Wait(503, 1.0)
        network.room -= 1.0
        network.here += 1
        self._gateways[gateway] += 1
        return Pass(gateway, name)

    def leave(self, entered: Pass) -> None:
        """Take the end of an exchange that was let in."""
        self._gateways[entered.gateway] -= 1
        if not self._gateways[entered.gateway]:
            del self._gateways[entered.gateway]
        network = self._networks.get(entered.network)
        if network is not None:
            network.here -= 1

    def in_flight(self, gateway: str) -> int:
        """Count the exchanges of a gateway."""
        return self._gateways[gateway]

    def _forget(self, now: float) -> None:
        while self._networks:
            name, network = next(iter(self._networks.items()))
            if now - network.at < FORGOTTEN:
                return
            if network.here:
                network.at = now  # somebody is still being served
                self._networks.move_to_end(name)
            else:
                del self._networks[name]

    def _drop_one(self, new: bytes) -> None:
        quiet = next((name for name, network in self._networks.items() if not network.here and name != new), None)
        if quiet is not None:
            del self._networks[quiet]
