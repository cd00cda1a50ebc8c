"""What the network's ciphers cost here: `layer8 bench onion`, one processor, no network, no other program.

Each figure is the time of one body in one layer: a run of bodies goes through a function, again and again with bodies
that are in no cache, and the run's time is divided by bodies and layers. All figures take turns in every round, so a
neighbour who comes and goes is felt by all. In a run of 64 the ends change their keys once. Read the least value as the
machine's, the median as the day's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

import click
from attrs import frozen
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.stats import short
from layer8.crypto.ntor import OnionKey, SeenX, Terms, client_begin, client_finish, relay_answer
from layer8.crypto.onion import (
    KEYS,
    MESSAGE,
    Layer,
    client_backward,
    client_forward,
    layer,
    relay_backward,
    relay_forward,
    relay_receive,
    relay_send,
)

HOPS = 3
RELAY = 4
TARGET_US = 3.0
"""What a body may cost in one layer."""

Clock = Callable[[], float]
Row = tuple[str, str]
"""What is done, and by whom."""


@frozen
class Cost:
    """Microseconds of one figure: the least and the median of all rounds."""

    least: float
    median: float


def layers() -> tuple[list[Layer], list[Layer]]:
    """Give the layers of a fresh circuit in one direction, at the client and at the relays."""
    keys = [os.urandom(KEYS) for _ in range(HOPS)]
    return [layer(key) for key in keys], [layer(key) for key in keys]


def onion_round(run: int, clock: Clock) -> dict[Row, float]:
    """Take one run through a circuit of three hops and back: the seconds of each function per body and layer."""
    client, relays = layers()
    back, answering = layers()
    messages = [os.urandom(MESSAGE) for _ in range(run)]
    _open(client, relays, back, answering)
    began = clock()
    bodies = client_forward(client, RELAY, messages)
    sent = clock()
    bodies = relay_forward(relays[0], RELAY, bodies)
    bodies = relay_forward(relays[1], RELAY, bodies)
    arrived = clock()
    read = relay_receive(relays[2], RELAY, bodies)
    received = clock()
    bodies = relay_send(answering[2], RELAY, read)
    answered = clock()
    bodies = relay_backward(answering[1], RELAY, bodies)
    bodies = relay_backward(answering[0], RELAY, bodies)
    home = clock()
    assert client_backward(back, RELAY, bodies) == messages
    done = clock()
    spent = {
        ("client_forward", "client"): (sent - began) / HOPS,
        ("relay_forward", "relay between"): (arrived - sent) / 2,
        ("relay_receive", "last relay"): received - arrived,
        ("relay_send", "last relay"): answered - received,
        ("relay_backward", "relay between"): (home - answered) / 2,
        ("client_backward", "client"): (done - home) / HOPS,
    }
    return {row: seconds / run for row, seconds in spent.items()}


def _open(client: list[Layer], relays: list[Layer], back: list[Layer], answering: list[Layer]) -> None:
    """Let all layers take their keys, which a circuit does once."""
    client_forward(client, RELAY, [])
    client_backward(back, RELAY, [])
    for one in relays:
        relay_forward(one, RELAY, [])
    for one in answering:
        relay_backward(one, RELAY, [])


def ntor_round(clock: Clock) -> dict[Row, float]:
    """Shake hands once: the seconds of each step."""
    key, identity, network = OnionKey.make(), os.urandom(32), os.urandom(8)
    said = Terms(512, 64, (1,), 1).to_bytes()
    began = clock()
    begun, message = client_begin(identity, key.public, network, said)
    asked = clock()
    reply, keys, _ = relay_answer(identity, {key.public: key}, network, message, SeenX(), lambda cm: cm)
    answered = clock()
    assert client_finish(begun, reply) == keys
    done = clock()
    return {
        ("client_begin", "client"): asked - began,
        ("relay_answer", "relay"): answered - asked,
        ("client_finish", "client"): done - answered,
    }


def measure(rounds: int, run: int, clock: Clock = time.perf_counter) -> dict[str, dict[Row, Cost]]:
    """Measure everything `rounds` times, with short runs and long ones in turn."""
    samples: dict[str, dict[Row, list[float]]] = {}
    steps: Mapping[str, Callable[[], dict[Row, float]]] = {
        f"runs of {run}": lambda: onion_round(run, clock),
        "one by one": lambda: onion_round(1, clock),
        "handshake": lambda: ntor_round(clock),
    }
    for _ in range(rounds):
        for name, step in steps.items():
            for row, seconds in step().items():
                samples.setdefault(name, {}).setdefault(row, []).append(seconds * 1e6)
    return {
        name: {row: Cost(min(values), median(values)) for row, values in rows.items()} for name, rows in samples.items()
    }


@click.command()
@click.option("--rounds", default=2000, show_default=True, type=click.IntRange(min=1), help="How often.")
@click.option("--run", default=64, show_default=True, type=click.IntRange(min=1, max=1024), help="Bodies in a run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(rounds: int, run: int, as_json: bool) -> None:
    """Measure the onion layer, in microseconds for each 2043-byte body and layer, and the circuit handshake."""
    found = measure(rounds, run)
    facts = machine.describe()
    if as_json:
        costs = {
            name: {row[0]: {"least_us": cost.least, "median_us": cost.median} for row, cost in rows.items()}
            for name, rows in found.items()
        }
        json.dump({"facts": facts, "rounds": rounds, "run": run, "target_us": TARGET_US, **costs}, sys.stdout, indent=1)
        print()
        return
    console = Console()
    for name, text in facts.items():
        console.print(f"[dim]{name}:[/dim] {text}", highlight=False)
    for name, rows in found.items():
        title = "Handshake, us a side" if name == "handshake" else f"Onion layer, us a body and layer, {name}"
        table = Table(title=title, title_justify="left", title_style="bold")
        for head in ("function", "by", "least", "median"):
            table.add_column(head, justify="left" if head in ("function", "by") else "right")
        for (function, who), cost in rows.items():
            table.add_row(function, who, short(cost.least), short(cost.median))
        console.print(table)
    console.print(f"target: a body in one layer takes {TARGET_US:g} us at most", highlight=False)


if __name__ == "__main__":
    main(prog_name="layer8 bench onion")
