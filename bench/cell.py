"""What a cell costs at each hop: `layer8 bench cell`, real links, circuits and streams over carriers in memory.

A client and three relays live in one process on one clock. A stream carries bytes through them, once toward the client
and once away from it; the time that each node works on what comes by its links is its own, sockets and TLS left out
(`layer8 bench link` measures those). `whole chain` is all processor time of the process over the same cells, the
carriers in memory included. `one by one` are single cells, which have no run to share their calls with.
`network` is what a net of twelve nodes with a thousand circuits takes, handshakes included.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import time
from collections.abc import Callable
from statistics import median

import click
from attrs import define, field
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.stats import short
from layer8.relay.limits import CIRCS_NAMELESS
from layer8.relay.origin import Origin
from layer8.relay.stream import Stream
from layer8.relay.turn import Sink
from layer8.relay.wire import DATA, Open, Opened, Proto, Reason
from layer8.testing.network import Heard, Network, Node

MIB = 1 << 20
CHUNK = 65_536  # bytes of one write, as a socket gives them
NODES = 12
CIRCUITS = 1000
STREAM_MIB = 40.0
"""MiB a second that one stream through three hops is to reach on two processors."""
CHAIN_MIB = 50.0
"""MiB that the whole chain is to carry in a second of one processor, TLS and sockets included."""
NETWORK_S = 20.0
"""Seconds of processor time that the network may take."""


@define(eq=False)
class Source:
    """Says so many bytes as fast as they are taken, then ends."""

    left: int
    stream: Stream | None = None
    held: bool = field(default=False, init=False)

    def run(self) -> None:
        """Say on."""
        stream = self.stream
        while stream is not None and self.left > 0 and not self.held:
            size = min(CHUNK, self.left)
            self.left -= size
            stream.write(_CHUNK[:size])
        if stream is not None and not self.left and not stream.said_end:
            stream.end()

    def opened(self, opened: Opened) -> None:
        """Nothing waits for it."""

    def data(self, pieces: list[bytes]) -> None:
        """Begin: somebody has asked."""
        self.run()

    def ended(self) -> None:
        """Say on all the same."""

    def closed(self, reason: Reason) -> None:
        """Stop."""
        self.left = 0

    def hold(self) -> None:
        """Wait."""
        self.held = True

    def go_on(self) -> None:
        """Say on."""
        self.held = False
        self.run()


@define(eq=False)
class Count:
    """Counts the bytes that it gets."""

    size: int = field(default=0, init=False)

    def opened(self, opened: Opened) -> None:
        """Nothing waits for it."""

    def data(self, pieces: list[bytes]) -> None:
        """Join them, as a socket would."""
        self.size += len(b"".join(pieces))

    def ended(self) -> None:
        """Nothing follows."""

    def closed(self, reason: Reason) -> None:
        """Nothing follows."""

    def hold(self) -> None:
        """There is nothing to say."""

    def go_on(self) -> None:
        """There is nothing to say."""


_CHUNK = bytes(range(256)) * (CHUNK // 256)


def chain(clock: Callable[[], float]) -> tuple[Network, list[Node], Origin]:
    """Build a client, three relays and their circuit."""
    net = Network(recording=False, meter=clock)
    nodes = [net.client("client"), *(net.relay(name) for name in ("guard", "middle", "exit"))]
    return net, nodes, net.build(nodes[0], *nodes[1:])


def bulk(down: bool, mib: int, clock: Callable[[], float]) -> dict[str, float]:
    """Carry so many MiB through one stream: microseconds of each party for each data cell."""
    net, nodes, circuit = chain(clock)
    leaving = nodes[-1]
    source, count = Source(mib * MIB), Count()

    def service(stream: Stream) -> Sink:
        if down:
            source.stream = stream
        return source if down else count

    leaving.serve("bulk.test", 1, service)
    stream = circuit.open(Open(Proto.TCP, "bulk.test", 1), count if down else source)
    net.run(lambda: stream.opened)
    for node in nodes:
        node.spent = 0.0
    begun = clock()
    if down:
        stream.write(b"go")
    else:
        source.stream = stream
        source.run()
    net.run(lambda: count.size == mib * MIB, 1e9)
    spent = clock() - begun
    cells = mib * MIB / DATA
    client, guard, middle, last = (node.spent / cells * 1e6 for node in nodes)
    return {
        "client": client,
        "relay between": (guard + middle) / 2,
        "last relay": last,
        "whole chain": spent / cells * 1e6,
    }


def single(cells: int, clock: Callable[[], float]) -> dict[str, float]:
    """Send so many single cells toward the client, each in a turn of its own."""
    net, nodes, circuit = chain(clock)
    heard = Heard()
    nodes[-1].serve("ping.test", 1, lambda stream: Heard())
    stream = circuit.open(Open(Proto.TCP, "ping.test", 1), heard)
    net.run(lambda: stream.opened)
    for node in nodes:
        node.spent = 0.0
    begun = clock()
    far = nodes[-1].streams[-1]
    for number in range(1, cells + 1):
        far.write(b"x")
        net.run(lambda: len(heard.pieces) >= number)  # noqa: B023 (it runs at once)
    spent = clock() - begun
    client, guard, middle, _ = (node.spent / cells * 1e6 for node in nodes)
    return {"client": client, "relay between": (guard + middle) / 2, "whole chain": spent / cells * 1e6}


def network(clock: Callable[[], float], nodes: int = NODES, circuits: int = CIRCUITS) -> float:
    """Build so many circuits of three hops through so many relays, say a word on each: seconds of processor time."""
    begun = clock()
    net = Network(recording=False)
    relays = [net.relay(f"relay {number}") for number in range(nodes)]
    for relay in relays:
        relay.serve("echo.test", 7, lambda stream: Heard(stream=stream))
    clients = [net.client(f"client {number}") for number in range(-(-circuits // CIRCS_NAMELESS))]
    buildings = []
    for number in range(circuits):
        hops = [relays[(number + step) % nodes] for step in (0, 1 + number % 5, 6 + number % 5)]
        buildings.append(net.begin(clients[number // CIRCS_NAMELESS], *hops))
    net.run(lambda: buildings[-1].stands and all(one.stands for one in buildings))
    for building in buildings:
        building.circuit.open(Open(Proto.TCP, "echo.test", 7), Heard()).write(b"hello")
    wanted = len(buildings)
    net.run(lambda: sum(len(relay.streams) for relay in relays) == wanted)
    return clock() - begun


def profile(mib: int) -> None:
    """Print where the time goes while a stream carries `mib` toward the client."""
    profiler = cProfile.Profile()
    profiler.enable()
    bulk(True, mib, time.process_time)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="How often.")
@click.option("--mib", default=16, show_default=True, type=click.IntRange(min=1, max=4096), help="MiB of each stream.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--hotspots", is_flag=True, help="Print where the time goes instead.")
def main(rounds: int, mib: int, as_json: bool, hotspots: bool) -> None:
    """Measure what a cell costs at each hop, in microseconds of processor time, and a network in memory."""
    if hotspots:
        profile(mib)
        return
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, found in (
            ("down", bulk(True, mib, time.process_time)),
            ("up", bulk(False, mib, time.process_time)),
            ("one by one", single(500, time.process_time)),
        ):
            for who, us in found.items():
                samples.setdefault((name, who), []).append(us)
    whole = network(time.process_time)
    facts = machine.describe()
    costs = {row: (min(values), median(values)) for row, values in samples.items()}
    if as_json:
        rows = [
            {"cells": name, "by": who, "least_us": least, "median_us": middle, "mib_per_cpu_s": _mib(least)}
            for (name, who), (least, middle) in costs.items()
        ]
        result = {"facts": facts, "rounds": rounds, "mib": mib, "rows": rows, "network_s": whole}
        json.dump(result, sys.stdout, indent=1)
        print()
        return
    console = Console()
    for name, text in facts.items():
        console.print(f"[dim]{name}:[/dim] {text}", highlight=False)
    table = Table(title="A data cell, us of processor time", title_justify="left", title_style="bold")
    for head in ("cells", "by", "least", "median", "cells/s", "MiB/CPU-s"):
        table.add_column(head, justify="left" if head in ("cells", "by") else "right")
    for (name, who), (least, middle) in costs.items():
        table.add_row(name, who, short(least), short(middle), short(1e6 / least), short(_mib(least)))
    console.print(table)
    console.print(f"{NODES} nodes, {CIRCUITS} circuits: {short(whole)} s of processor time", highlight=False)
    console.print(
        f"targets: {STREAM_MIB:g} MiB/s of one stream, {CHAIN_MIB:g} MiB/CPU-s of the whole chain with TLS and "
        f"sockets, {NETWORK_S:g} s for the network",
        highlight=False,
    )


def _mib(us: float) -> float:
    """Give MiB of data for each second of a processor, at so many microseconds a cell."""
    return DATA / us * 1e6 / MIB


if __name__ == "__main__":
    main(prog_name="layer8 bench cell")
