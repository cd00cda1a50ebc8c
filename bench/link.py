"""What securing a link costs here: `layer8 bench link`, TLS beside Noise beside nothing, over real loopback sockets.

All nodes live in one process, so its processor time is that of both ends of every link, kernel included. `1 link` is a
link alone; `3 links` is a circuit of three hops with its onion layers, a window of 512 cells, and a source at its end.
The kinds take turns in every round.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import click
from attrs import define, field
from rich.console import Console
from rich.table import Table
from twisted.internet.defer import Deferred

from bench import machine
from bench.stats import Summary
from layer8.crypto.keys import NodeKey
from layer8.crypto.onion import KEYS, MESSAGE, Layer, client_backward, layer, relay_backward, relay_send
from layer8.relay.carrier import Carriers
from layer8.relay.limits import CIRC_WINDOW
from layer8.relay.link import Ground, Link, Why
from layer8.relay.links import Links
from layer8.relay.securing import NOISE, TLS, Security, Shown
from layer8.relay.slots import Place
from layer8.relay.turn import Slot, Turn
from layer8.relay.wire import BODY, Cell

PLAIN = "plain"
KINDS = (PLAIN, TLS, NOISE)
SHAPES = {"1 link": 1, "3 links": 3}
RUN = 32  # cells that the source makes at once
NETWORK = hashlib.sha256(b"test-bench").digest()[:8]


class Plain:
    """No security at all: each side says its id."""

    def __init__(self, identity: bytes) -> None:
        self._out = identity
        self._in = b""
        self.done = False

    def start(self) -> None:
        """Say the id in the next `take`."""

    def feed(self, data: bytes) -> bytes:
        """Take the peer's id off the front."""
        if self.done:
            return data
        self._in += data
        if len(self._in) < 32:
            return b""
        self._in, rest = self._in[:32], self._in[32:]
        self.done = True
        return rest

    def seal(self, data: bytes) -> bytes:
        """Give it as it is."""
        return data

    def take(self) -> bytes:
        """Give the id, once."""
        out, self._out = self._out, b""
        return out

    def shown(self) -> Shown:
        """Believe it."""
        return Shown(self._in)

    def end(self) -> bytes:
        """Say nothing."""
        return b""


class PlainSecurity(Security):
    """Makes what is none."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.named = True

    def dialling(self, kind: str) -> Plain:
        """Give one side."""
        return Plain(self.identity)

    def accepting(self, kind: str) -> Plain:
        """Give the other."""
        return Plain(self.identity)


class Ends:
    """What all takers of this measurement do alike: nothing."""

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """Nothing to do."""

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Nothing to do."""

    def gone(self, reason: int, now: float) -> None:
        """Nothing to do."""

    def room(self, now: float) -> None:
        """Nothing to do."""


class Passing(Ends):
    """A relay between: what comes from the source's side goes on to the client's."""

    def __init__(self, toward: Slot, onion: Layer | None) -> None:
        self._toward = toward
        self._onion = onion

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """Answer who has asked."""
        self._toward.created(kind, handshake)

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Pass on."""
        self._toward.send(cmd, bodies if self._onion is None else relay_backward(self._onion, cmd, bodies))


class Source(Ends):
    """The far end: says as much as its credit allows."""

    def __init__(self, slot: Slot, onion: Layer | None) -> None:
        self._slot = slot
        self._onion = onion
        self._messages = [os.urandom(MESSAGE) for _ in range(RUN)]
        self._bodies = [os.urandom(BODY) for _ in range(RUN)]
        self._credit = CIRC_WINDOW

    def credit(self, cells: int) -> None:
        """Go on."""
        self._credit += cells
        self.room(0.0)

    def room(self, now: float) -> None:
        """Say what may be said."""
        while self._credit >= RUN and not self._slot.full:
            self._credit -= RUN
            bodies = self._bodies if self._onion is None else relay_send(self._onion, Cell.RELAY, self._messages)
            self._slot.send(Cell.RELAY, bodies)


class Client(Ends):
    """The near end: reads, and gives credit without a cell, which costs all kinds alike nothing."""

    def __init__(self, onions: list[Layer], wanted: int) -> None:
        self._onions = onions
        self._left = wanted
        self.source: Source | None = None
        self.ready: Deferred[None] = Deferred()
        self.done: Deferred[None] = Deferred()

    def created(self, kind: int, handshake: bytes, now: float) -> None:
        """The way is there."""
        self.ready.callback(None)

    def cells(self, cmd: int, bodies: Sequence[memoryview], now: float) -> None:
        """Read."""
        if self._onions:
            client_backward(self._onions, cmd, bodies)
        before, self._left = self._left, self._left - len(bodies)
        if self._left > 0 and self.source is not None:
            self.source.credit(len(bodies))
        elif before > 0:
            self.done.callback(None)


@define(eq=False)
class Node:
    """One node of the chain; `made` are the takers that it has put on circuits."""

    reactor: Any
    kind: str
    onion: Layer | None = None
    following: Link | None = None
    source: Source | None = None
    carriers: Carriers = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make keys and tables."""
        key = NodeKey.make()
        turn = Turn(lambda end: self.reactor.callLater(0, end))
        wall = datetime.datetime.now(datetime.UTC)
        ground = Ground(NETWORK, turn, time.monotonic, wall.timestamp, os.urandom, lambda: 9.5)
        security = PlainSecurity(key.node_id) if self.kind == PLAIN else Security(key, NETWORK, wall)
        links = Links(key.node_id, self, prefixes=False)
        self.carriers = Carriers(self.reactor, ground, security, links, NOISE if self.kind == NOISE else TLS)

    def opened(self, link: Link, now: float) -> None:
        """Nothing to do."""

    def on_create(self, link: Link, slot: Place, kind: int, handshake: bytes, now: float) -> None:
        """Go on to the next node, or be the end."""
        if self.following is None:
            slot.taker = self.source = Source(slot, self.onion)
            slot.created(kind, handshake)
        else:
            slot.taker = Ends()
            self.following.slot(Passing(slot, self.onion)).create(kind, handshake)

    def noticed(self, link: Link, notice: int, now: float) -> None:
        """Nothing to do."""

    def refused(self, link: Link, now: float) -> None:
        """Nothing to do."""

    def closed(self, link: Link, why: Why, now: float) -> None:
        """Nothing to do."""


async def sample(reactor: Any, kind: str, links: int, mib: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Carry `mib` through a chain: MiB per second, and per second of processor time."""
    keys = [os.urandom(KEYS) for _ in range(links)] if links > 1 else []
    nodes = [Node(reactor, kind) for _ in range(links + 1)]
    for node, key in zip(nodes[1:], keys, strict=False):
        node.onion = layer(key)
    for near, far in pairwise(nodes):
        (port,) = far.carriers.listen("tcp:0:interface=127.0.0.1", "bench")
        where: Any = port.getHost()
        text = f"tcp:127.0.0.1:{where.port}"
        near.following = await near.carriers.dial(f"{text}:link=noise" if kind == NOISE else text)
    cells = mib * 1024 * 1024 // MESSAGE
    client = Client([layer(key) for key in keys], cells)
    assert nodes[0].following is not None
    nodes[0].following.slot(client).create(1, b"")
    await client.ready
    client.source = nodes[-1].source
    assert client.source is not None
    began, wall = clock(), time.monotonic()
    client.source.room(0.0)
    await client.done
    spent, took = clock() - began, time.monotonic() - wall
    for node in nodes:
        node.carriers.links.close(Why.DOWN, time.monotonic())
        await node.carriers.stop()
    return mib / took, mib / spent


Figures = dict[tuple[str, str], dict[str, list[float]]]


async def measure(reactor: Any, rounds: int, mib: int) -> Figures:
    """Let all kinds take turns."""
    found: Figures = {}
    for _ in range(rounds):
        for shape, links in SHAPES.items():
            for kind in KINDS:
                rate, per_cpu = await sample(reactor, kind, links, mib, time.process_time)
                row = found.setdefault((shape, kind), {"rate": [], "cpu": []})
                row["rate"].append(rate)
                row["cpu"].append(per_cpu)
    return found


def table(found: Figures) -> Table:
    """Draw what was found."""
    drawn = Table(title="Links, both ends in one process")
    for title in ("shape", "security", "MiB/s", "MiB per CPU-second", "of plain"):
        drawn.add_column(title)
    for (shape, kind), row in found.items():
        rate, cpu = Summary.of(row["rate"]), Summary.of(row["cpu"])
        plain = Summary.of(found[shape, PLAIN]["cpu"])
        assert rate and cpu and plain
        drawn.add_row(shape, kind, rate.text(), cpu.text(), f"{cpu.median / plain.median:.2f}")
    return drawn


@click.command()
@click.option("--rounds", default=7, show_default=True, help="How often each kind has its turn.")
@click.option("--mib", default=64, show_default=True, help="What one turn carries.")
@click.option("--json", "as_json", is_flag=True, help="Write the samples for programs.")
def main(rounds: int, mib: int, as_json: bool) -> None:
    """Compare TLS, Noise and nothing on links over loopback."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    results: list[Figures] = []

    def ended(result: Any) -> None:
        results.append(result)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(measure(reactor, rounds, mib)).addBoth(ended))
    reactor.run()
    (found,) = results
    if not isinstance(found, dict):
        raise SystemExit(str(found))
    if as_json:
        rows = [{"shape": shape, "security": kind, **row} for (shape, kind), row in found.items()]
        json.dump({"machine": machine.describe(), "rows": rows}, sys.stdout, indent=1)
    else:
        Console().print(table(found))


if __name__ == "__main__":
    main()
