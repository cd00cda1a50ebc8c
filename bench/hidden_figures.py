"""What is measured on hidden services: `layer8 bench hidden`, beside the onion services of a private Tor network.

Both sides take six hops: two of the client's, the one where they meet, three of the service's.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from bench.load import NoLoad
from bench.network_figures import BASE, Figure, Gate, Taken, Turn, percentile
from bench.report import Column, Layout
from bench.socks_load import MIB, SocksLoad

GROUP: Final = "hidden"
PORT: Final = 80
VISITORS: Final = 12  # new ones, each with circuits of its own
COLD: Final = 3  # services in each round whose descriptor the client has not read yet
PAUSE: Final = 0.1  # seconds between visits, as between people: latency is asked for, not how many fit in a second
LEAST: Final = 4  # of either, however short the run is


def services(rounds: int) -> int:
    """Give how many services a run of so many rounds needs: one for all, and those that are met once."""
    return 1 + COLD * rounds


def _at(turn: Turn, name: str) -> SocksLoad:
    return turn.load.at((name, PORT))


def _visit(load: SocksLoad, user: str) -> float | None:
    """Meet a service on new circuits: milliseconds to the first byte, None if it did not come."""
    time.sleep(PAUSE)
    try:
        return load.fetch(user, 100).first_s * 1e3
    except NoLoad:
        return None


def _meet(turn: Turn) -> Taken:
    load = _at(turn, turn.peer.hidden[0])
    load.warm(load.users(1), 100)
    users = load.users(max(LEAST, turn.effort.of(VISITORS)))
    host = turn.peer.service
    before = host.cpu_s() if host is not None else 0.0
    with turn.timed():
        waits = [_visit(load, user) for user in users]
    met = [wait for wait in waits if wait is not None]
    if not met:
        raise NoLoad("the service was never met")
    spent = host.cpu_s() - before if host is not None else 0.0
    return len(met), {
        "meet.p50": median(met),
        "meet.max": max(met),
        "meet.cpu": turn.per_one(len(met)),
        "meet.host": spent * 1e3 / len(met) if host is not None else None,
        "meet.taken": len(met) / spent if spent else None,
        "meet.failed": 100 * (len(users) - len(met)) / len(users),
    }


def _cold(turn: Turn) -> Taken:
    """Meet services that nobody here has met, which are not used again."""
    names = turn.peer.hidden[1 : 1 + COLD]
    del turn.peer.hidden[1 : 1 + COLD]
    with turn.timed():
        waits = [_visit(_at(turn, name), user) for name, user in zip(names, turn.load.users(len(names)), strict=True)]
    met = [wait for wait in waits if wait is not None]
    if not met:
        raise NoLoad("no service was met")
    return len(met), {
        "cold.p50": median(met),
        "cold.max": max(met),
        "cold.failed": 100 * (len(names) - len(met)) / len(names),
    }


def _again(turn: Turn) -> Taken:
    load = _at(turn, turn.peer.hidden[0])
    (user,) = users = load.users(1)
    load.warm(users)
    with turn.timed():
        waits = [load.fetch(user, 100).first_s * 1e3 for _ in range(max(LEAST, turn.effort.of(30)))]
    return len(waits), {"again.p50": median(waits), "again.p95": percentile(waits, 0.95)}


def _down(turn: Turn) -> Taken:
    load = _at(turn, turn.peer.hidden[0])
    (user,) = users = load.users(1)
    load.warm(users)
    size = turn.effort.of(32 * MIB)
    with turn.timed():
        moved = load.one(user, size)
    return 1, {
        "down.rate": moved.rate,
        "down.cpu": turn.per_cpu(size / MIB),
        "down.spent": turn.cpu_s if turn.peer.chain else None,
    }


FIGURES = (
    Figure("meet", GROUP, _meet),
    Figure("cold", GROUP, _cold),
    Figure("again", GROUP, _again),
    Figure("down", GROUP, _down),
)

LAYOUTS = (
    Layout(
        "Hidden services: a new visitor on circuits of its own, ms to the first byte",
        (
            Column("meet.p50", "p50", True),
            Column("meet.max", "max", True),
            Column("meet.failed", "failed, %", True),
            Column("meet.cpu", "CPU-ms of the network each", True),
            Column("meet.host", "of them the service's", True),
            Column("meet.taken", "visitors per CPU-second of the service"),
        ),
        BASE,
    ),
    Layout(
        "Hidden services: first contact, the descriptor is searched, ms to the first byte",
        (
            Column("cold.p50", "p50", True),
            Column("cold.max", "max", True),
            Column("cold.failed", "failed, %", True),
        ),
        BASE,
    ),
    Layout(
        "Hidden services: a request on circuits that stand, ms to the first byte",
        (Column("again.p50", "p50", True), Column("again.p95", "p95", True)),
        BASE,
    ),
    Layout(
        "Hidden services: a download of 32 MiB through six relays",
        (
            Column("down.rate", "MiB/s"),
            Column("down.cpu", "MiB per CPU-second"),
            Column("down.spent", "CPU-seconds of the network", True),
        ),
        BASE,
    ),
)

GATES = (
    Gate("hidden, new visitor p50, ms", "meet.p50", 60, lower=True),
    Gate("hidden, new visitor max, ms", "meet.max", 500, lower=True),
    Gate("hidden, new visitor p50 over Tor, default", "meet.p50", 0.5, "tor", lower=True),
    Gate("hidden, new visitor p50 over Tor, Vanilla", "meet.p50", 0.5, "tor-vanilla", lower=True),
    Gate("hidden, visitors per CPU-second of the service", "meet.taken", 500),
    Gate("hidden, warm request p50, ms", "again.p50", 5, lower=True),
    Gate("hidden, 32 MiB, MiB/s", "down.rate", 15),
    Gate("hidden, 32 MiB over Tor, default", "down.rate", 5, "tor"),
    Gate("hidden, 32 MiB over Tor, Vanilla", "down.rate", 5, "tor-vanilla"),
)
