"""A proxy server's registrations and agents without its sockets: what tests of the method rows stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.task import Clock

from layer8.config.proxy import ProxyLimits
from layer8.core.guesses import Guesses
from layer8.crypto.proof import subscribe_proof
from layer8.net.sqlite import Database
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.choose import Seat, Seats
from layer8.proxy.ledger import Ledger
from layer8.proxy.orders import ProofWanted, Register
from layer8.proxy.registration import Ownership, Registration, StoredSecret
from layer8.proxy.registry import Registry
from layer8.proxy.store import SCHEMA, Store
from layer8.proxy.subscriber import Agent, House, Origin
from layer8.proxy.wire import DataAddress, Hello, Subscribe
from layer8.testing.storage import InlineStorage

NODE = bytes(range(32))
NONCE = bytes(reversed(range(32)))
SECRET = bytes(range(100, 132))
OTHER = bytes(range(50, 82))
WALL = 1_800_000_000.0  # seconds since 1970 when the tests begin
HOST = "app.example.com"


def key_of(secret: bytes = SECRET) -> bytes:
    """What the server stores of a secret."""
    return hashlib.sha256(secret).digest()


def row(host: str = HOST, *secrets: bytes, **more: Any) -> Registration:
    """A registration as it stands in the table."""
    keys = tuple(StoredSecret(key_of(secret)) for secret in secrets or (SECRET,))
    fields: dict[str, Any] = {"host": host, "owner": "ann", "secrets": keys, "version": 1}
    return Registration(**(fields | more))


def asked(host: str = HOST, secret: bytes = SECRET, **more: Any) -> Register:
    """A registration as its owner asks for it."""
    return Register(host, key_of(secret).hex(), **more)


def proof(host: str = HOST, secret: bytes = SECRET, nonce: bytes = NONCE, node: bytes = NODE) -> str:
    """What an agent shows."""
    return subscribe_proof(key_of(secret), nonce, node, host)


@define(eq=False)
class Voice:
    """An agent's connection that keeps what it was told."""

    told: list[tuple[str, Mapping[str, Any]]] = field(factory=list)
    closed: list[str] = field(factory=list)

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        self.told.append((method, params))
        return not self.closed

    def close(self, reason: str) -> None:
        self.closed.append(reason)


@define(eq=False)
class Seen:
    """A prover that sees what a test lets it see, and keeps what it was asked for."""

    there: set[str] = field(factory=set)
    asked: list[ProofWanted] = field(factory=list)

    async def look(self, wanted: ProofWanted) -> bool:
        self.asked.append(wanted)
        return wanted.txt_value in self.there


class Desk:
    """Everything between the method rows and the store."""

    def __init__(self, path: str, **limits: Any) -> None:
        self.path = path
        self.clock = Clock()
        self.limits = ProxyLimits(**limits)
        self.storage = InlineStorage(Database(Path(path).absolute() / "proxy.db", SCHEMA))
        self.store = Store(self.storage, self.limits.policy_rules)
        self.gone: list[tuple[int, bool]] = []
        self.registry = Registry(self.limits, bytes(32), ("proxy.example.net",))
        self.seats = Seats(lambda seat, kill: self.gone.append((seat.number, kill)))
        self.kept = self.store.load()
        self.bus = LocalBus(self.clock, self.store, NODE, self.kept.rows)
        self.prover = Seen()
        self.ledger = Ledger(self.registry, self.bus, self.seats, self.prover, self.wall)
        self.tokens = 0
        self.house = House(
            self.registry,
            self.seats,
            Guesses(),
            self.limits,
            NODE,
            self.wall,
            self.token,
            data=(DataAddress("", 4000),),
        )

    def wall(self) -> float:
        return WALL + self.clock.seconds()

    def token(self) -> str:
        self.tokens += 1
        return f"resume {self.tokens}"

    def agent(self, hello: str | None = "instance 1", address: str = "192.0.2.7", **origin: Any) -> tuple[Agent, Voice]:
        """A connection that has said hello, or not yet."""
        voice = Voice()
        agent = Agent(self.house, voice, Origin(address, **({"private": True} | origin)), NONCE)
        if hello is not None:
            agent.hello(Hello((1,), hello))
        return agent, voice

    def seat(self, agent: Agent, host: str = HOST, **more: Any) -> Seat:
        """Subscribe with the right proof, and give the seat."""
        said = Subscribe(host, **({"proof": proof(host)} | more))
        seat = self.seats.by_number(agent.subscribe(said, self.clock.seconds()).subscription)
        assert seat is not None
        return seat


__all__ = [
    "HOST",
    "NODE",
    "NONCE",
    "OTHER",
    "SECRET",
    "WALL",
    "Desk",
    "Ownership",
    "Seen",
    "Voice",
    "asked",
    "proof",
    "row",
]
