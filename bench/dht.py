"""The DHT: a simulated network in which some lie, and a real one on loopback in which some are dead, beside `kademlia`.

``layer8 bench dht`` prints two tables. `kademlia` of PyPI runs in a process of its own; its rows may be left out.
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
from rich.console import Console
from rich.table import Table
from twisted.internet.defer import Deferred

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
        "nodes": nodes,
        "liars": liars,
        "lookups": lookups,
        "right": right / lookups,
        "queries": asked / lookups,
        "built s": built,
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
    return {"program": "layer8", "nodes": nodes, "dead": dead, "right": right / lookups, **spread(times)}


def pause(reactor: Any, seconds: float) -> Deferred[None]:
    """Wait."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


def theirs(nodes: int, lookups: int, dead: float) -> Row | None:
    """Do the same with `kademlia`, in a Python that has it: BENCH_KADEMLIA or this one."""
    python = os.environ.get("BENCH_KADEMLIA", sys.executable)
    words = [python, str(PEER), str(nodes), str(lookups), str(dead)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if ran.returncode:
        return None
    found = json.loads(ran.stdout.splitlines()[-1])
    return {"program": "kademlia", "nodes": nodes, "dead": dead, "right": found["right"], **spread(found["times"])}


def spread(times: list[float]) -> Row:
    """Give p50, p95 and the worst, in milliseconds."""
    ordered = sorted(times)
    return {
        "p50 ms": ordered[len(ordered) // 2],
        "p95 ms": ordered[int(len(ordered) * 0.95)],
        "max ms": ordered[-1],
    }


def table(title: str, rows: list[Row]) -> Table:
    """Draw rows that have the same columns."""
    drawn = Table(title=title)
    for name in rows[0]:
        drawn.add_column(name)
    for row in rows:
        drawn.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    return drawn


@click.command()
@click.option("--nodes", default=1000, show_default=True, help="Nodes of the simulated network.")
@click.option("--liars", default=0.2, show_default=True, help="The share of them that lies.")
@click.option("--lookups", default=200, show_default=True, help="Items that are put and searched.")
@click.option("--real-nodes", default=50, show_default=True, help="Nodes of the network on loopback.")
@click.option("--json", "as_json", is_flag=True, help="Write the rows for programs.")
def main(nodes: int, liars: float, lookups: int, real_nodes: int, as_json: bool) -> None:
    """Search in networks with liars and with dead nodes."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    results: list[Any] = []

    async def both() -> list[Row]:
        return [await real(reactor, real_nodes, min(lookups, 100), dead) for dead in (0.0, DEAD)]

    def ended(result: Any) -> None:
        results.append(result)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(both()).addBoth(ended))
    reactor.run()
    (found,) = results
    if not isinstance(found, list):
        found.raiseException()
    others = [theirs(real_nodes, min(lookups, 30), dead) for dead in (0.0, DEAD)]
    rows = [*found, *(one for one in others if one is not None)]
    simulated = [simulate(nodes, liars, lookups)] if nodes else []
    if as_json:
        print(json.dumps({"loopback": rows, "simulated": simulated}))
        return
    console = Console()
    console.print(table("get on loopback", rows))
    if simulated:
        console.print(table("simulated, 5 to 50 ms each way", simulated))


if __name__ == "__main__":
    main()
