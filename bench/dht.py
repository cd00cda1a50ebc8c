"""The DHT: a simulated network in which some lie, and a real one on loopback in which some are dead, beside `kademlia`.

``layer8 bench dht`` prints tables of both. `kademlia` of PyPI runs in a process of its own, by the Python that
BENCH_KADEMLIA names, that of `~/.cache/layer8-ci/kademlia`, or this one; where it is in none of them, its row is left
out and the reason told. Both have as many nodes and take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from os import urandom
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final

import click
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from bench import machine, report
from bench.report import Column, Layout, Results
from layer8.control.service import wall_clock
from layer8.core.network import Network
from layer8.crypto.items import Mutable
from layer8.dht.service import DhtService
from layer8.testing.dhtnet import Net, key

DEAD: Final = 0.2
LISTEN: Final = "udp:0:interface=127.0.0.1"
PEER: Final = Path(__file__).with_name("kademlia_net.py")
OWNERS: Final = 1_000_000
SETTLE: Final = 30.0  # seconds that nodes have to meet

THEIRS: Final = 30  # most gets of `kademlia` in a round: one that meets a dead node takes five seconds
THEIRS_S: Final = 300.0  # seconds for them
KEPT: Final = "layer8-ci/kademlia/bin/python"

Row = dict[str, Any]


def item(number: int) -> Mutable:
    """Make an item of an owner of its own."""
    owner = key(OWNERS + number)
    return Mutable.make(owner.node_id, owner.sign, 1, b"value %d" % number)


def simulate(nodes: int, liars: float, lookups: int) -> Row:
    """Put and get in a network of which a share lies: how many lookups are right, and what they cost."""
    begun = time.process_time()
    net = Net(nodes, liars=liars, name="main")
    built = time.process_time() - begun
    honest, times, asked, right = net.honest(), [], 0, 0
    for number in range(lookups):
        net.put(net.chance.choice(honest), item(number))
        done = net.get(net.chance.choice(honest), item(number).target)
        right += done.item == item(number)
        times.append(done.seconds * 1000)
        asked += done.asked
    return {
        "right": 100 * right / lookups,
        "queries": asked / lookups,
        "built": built,
        **spread(times),
    }


async def real(reactor: Any, nodes: int, lookups: int, dead: float) -> Row:
    """Get items on loopback, a share of the nodes having gone the moment before."""
    chance = Random(1)
    services: list[DhtService] = []
    network = Network("test-bench")
    for number in range(nodes):
        known = [one.session.bound for one in services[-3:] if one.session.bound is not None]
        one = DhtService(
            reactor,
            key(number),
            network,
            LISTEN,
            SystemRandom(),
            urandom,
            wall_clock,
            time.monotonic,
            peers=lambda known=known: known,  # type: ignore[misc]
        )
        one.startService()
        services.append(one)
    end = time.monotonic() + SETTLE
    while time.monotonic() < end and min(len(one.entries()) for one in services) < min(nodes // 3, 16):
        await pause(reactor, 0.05)
    for number in range(lookups):
        await services[number % nodes].put(item(number))
    gone = set(chance.sample(range(nodes), int(nodes * dead)))
    for number in gone:
        await services[number].stopService()
    alive = [one for number, one in enumerate(services) if number not in gone]
    times, right = [], 0
    for number in range(lookups):
        begun = time.monotonic()
        done = await chance.choice(alive).get(item(number).target)
        times.append((time.monotonic() - begun) * 1000)
        right += done.item == item(number)
    for one in alive:
        await one.stopService()
    return {"right": 100 * right / lookups, **spread(times)}


def pause(reactor: Any, seconds: float) -> Deferred[None]:
    """Wait."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


def their_python() -> str:
    """Give the Python that is asked for `kademlia`."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / KEPT
    return os.environ.get("BENCH_KADEMLIA") or (str(kept) if kept.exists() else sys.executable)


def theirs(python: str, nodes: int, lookups: int, dead: float) -> Row:
    """Do the same with `kademlia`; raises NotThere."""
    words = [python, str(PEER), str(nodes), str(lookups), str(dead)]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=THEIRS_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NotThere(str(problem)) from None
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no word"])[-1]
        hint = " (`pip install kademlia` into a venv, BENCH_KADEMLIA=its python)" if "No module" in last else ""
        raise NotThere(last + hint)
    found = json.loads(ran.stdout.splitlines()[-1])
    return {"right": 100 * found["right"], **spread(found["times"])}


class NotThere(Exception):
    """The other program could not be measured; the text says why."""


def spread(times: list[float]) -> Row:
    """Give p50, p95 and the worst, in milliseconds."""
    ordered = sorted(times)
    return {"p50": ordered[len(ordered) // 2], "p95": ordered[int(len(ordered) * 0.95)], "max": ordered[-1]}


def layouts(nodes: int, real_nodes: int, liars: float) -> tuple[Layout, ...]:
    """Give the tables."""
    each = (("p50", "p50", True), ("p95", "p95", True), ("max", "max", True), ("right", "right, %", False))

    def columns(what: str) -> tuple[Column, ...]:
        return tuple(Column(f"{what}.{name}", title, lower) for name, title, lower in each)

    return (
        Layout(f"DHT: get on loopback, {real_nodes} nodes, all alive, ms", columns("alive")),
        Layout(f"DHT: the same, {DEAD:.0%} of them dead since a moment ago, ms", columns("dead")),
        Layout(
            f"DHT: get among {nodes} simulated nodes, {liars:.0%} of them liars, 5 to 50 ms each way, ms",
            (*columns("lied"), Column("lied.queries", "queries each", True)),
        ),
    )


TARGETS: Final = (
    ("get, all alive, p50, ms", "alive.p50", 10.0, True),
    ("get, a fifth dead, p50, ms", "dead.p50", 300.0, True),
    ("get, a fifth dead, p95, ms", "dead.p95", 1500.0, True),
    ("right among simulated nodes with liars, %", "lied.right", 99.0, False),
)
TITLES: Final = {"layer8": "layer8", "kademlia": "`kademlia` of PyPI"}


def tables(results: Results, made: tuple[Layout, ...]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Give every table that has something in it, and what was aimed at."""
    found = []
    for layout in made:
        head, body = report.rows(layout, results, list(TITLES))
        if body:
            found.append((layout.title, head, body))
    verdicts = []
    for text, value, bound, lower in TARGETS:
        summary = results.summary("layer8", value)
        if summary is not None:
            met = summary.median <= bound if lower else summary.median >= bound
            sign = "<=" if lower else ">="
            verdicts.append([text, f"{summary.median:.1f}", f"{sign} {bound:g}", "met" if met else "MISSED"])
    return [*found, ("Targets of the DHT", ["layer8", "measured", "target", "verdict"], verdicts)]


async def races(reactor: Any, results: Results, rounds: int, nodes: int, lookups: int) -> None:
    """Measure both on loopback, in turns."""

    def add(program: str, what: str, row: Row) -> None:
        results.add(program, {f"{what}.{name}": value for name, value in row.items()}, False)

    python = their_python()
    for _ in range(rounds):
        for what, dead in (("alive", 0.0), ("dead", DEAD)):
            add("layer8", what, await real(reactor, nodes, lookups, dead))
            if "kademlia" in results.reasons:
                continue
            try:
                # Nobody else is served meanwhile: our nodes have stopped.
                add("kademlia", what, theirs(python, nodes, min(lookups, THEIRS), dead))
            except NotThere as problem:
                results.reasons["kademlia"] = str(problem)


@click.command()
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1, 20), help="How often, on loopback.")
@click.option("--nodes", default=1000, show_default=True, help="Nodes of the simulated network; 0 for none.")
@click.option("--liars", default=0.2, show_default=True, help="The share of them that lies.")
@click.option("--lookups", default=200, show_default=True, help="Items that are put and searched.")
@click.option("--real-nodes", default=50, show_default=True, help="Nodes of the network on loopback.")
@click.option("--json", "as_json", is_flag=True, help="Write the figures for programs.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables to this page, as Markdown.")
def main(
    rounds: int, nodes: int, liars: float, lookups: int, real_nodes: int, as_json: bool, markdown: Path | None
) -> None:
    """Search in networks with liars and with dead nodes."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    results = Results(dict(TITLES))
    ends: list[Any] = []

    def ended(result: Any) -> None:
        ends.append(result)
        reactor.stop()

    racing = races(reactor, results, rounds, real_nodes, min(lookups, 100))
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(racing).addBoth(ended))
    reactor.run()
    if ends and isinstance(ends[0], Failure):
        ends[0].raiseException()
    if nodes:
        lied = simulate(nodes, liars, lookups)
        results.add("layer8", {f"lied.{name}": value for name, value in lied.items()}, False)
    facts = {**machine.describe(), "samples": f"{rounds} rounds on loopback, one of the simulation"}
    if results.reasons:
        facts["not measured"] = "; ".join(f"{name}: {reason}" for name, reason in results.reasons.items())
    if as_json:
        print(json.dumps({"facts": facts, **results.as_json()}))
        return
    made = tables(results, layouts(nodes, real_nodes, liars))
    if markdown is not None:
        report.keep(markdown, made, facts, "dht")
    report.show(made, facts)


if __name__ == "__main__":
    main(prog_name="layer8 bench dht")
