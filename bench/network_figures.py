"""What is measured on networks of relays, how it is shown, and what layer8 wants to reach."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Protocol

from attrs import asdict, define, field, frozen

from bench import report
from bench.load import NoLoad
from bench.processes import Child
from bench.report import Column, Layout
from bench.socks_load import MIB, Address, SocksLoad
from bench.stats import ratio


class Peer(Protocol):
    """A network of relays with a SOCKS port."""

    @property
    def name(self) -> str:
        """What the row is called."""

    @property
    def title(self) -> str:
        """What the row says."""

    @property
    def socks(self) -> Address | None:
        """Where its client listens; None: the origin itself is asked."""

    @property
    def chain(self) -> list[Child]:
        """Its processes."""

    @property
    def relays(self) -> list[Child]:
        """Those of them that carry what others send."""

    @property
    def hidden(self) -> list[str]:
        """The names of its hidden services; figures take away those that nobody is to visit again."""

    @property
    def service(self) -> Child | None:
        """The process that has them."""

    def absent(self) -> str | None:
        """What is missing here; None if nothing is."""

    def start(self) -> None:
        """Start the processes; raises DidNotStart."""

    def ready(self) -> None:
        """Wait until it is up; raises DidNotStart."""

    def builds(self, wanted: int, at_once: int) -> list[float | None]:
        """Build circuits of three hops and close them: seconds for each, None for one that failed."""

    def crowd(self, circuits: int) -> tuple[int, float] | None:
        """Have so many circuits pass one relay: how many did, and its memory with them; None: not tried here."""

    def end(self) -> None:
        """End the processes."""


@define(eq=False)
class Direct:
    """No network: the client and the origin, which must not be what limits the others."""

    name: str = "direct"
    title: str = "direct, no network"
    socks: Address | None = None
    chain: list[Child] = field(factory=list)
    relays: list[Child] = field(factory=list)
    hidden: list[str] = field(factory=list)
    service: Child | None = None

    def absent(self) -> str | None:
        """Nothing is missing."""
        return None

    def start(self) -> None:
        """Nothing to start."""

    def ready(self) -> None:
        """Nothing to wait for."""

    def builds(self, wanted: int, at_once: int) -> list[float | None]:
        """There are no circuits."""
        raise NoLoad("there are no circuits")

    def crowd(self, circuits: int) -> tuple[int, float] | None:
        """There are no circuits."""
        return None

    def end(self) -> None:
        """Nothing to end."""


@frozen
class Effort:
    """How long a run is."""

    rounds: int
    share: int = 1
    """Transfers and counts are divided by this."""

    def of(self, whole: int) -> int:
        """That much of `whole`."""
        return max(1, whole // self.share)


@define(eq=False)
class Turn:
    """One network's turn at one figure."""

    peer: Peer
    load: SocksLoad
    effort: Effort
    cpu_s: float = 0.0
    """Processor seconds of the chain in what was timed."""

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the chain's processor time in here."""
        before = chain_cpu_s(self.peer.chain)
        yield
        self.cpu_s += chain_cpu_s(self.peer.chain) - before

    def per_cpu(self, amount: float) -> float | None:
        """`amount` for each second of processor time; None where nothing is between client and origin."""
        return amount / self.cpu_s if self.peer.chain and self.cpu_s else None

    def per_one(self, amount: float) -> float | None:
        """Milliseconds of processor time for each of `amount`."""
        return self.cpu_s * 1e3 / amount if self.peer.chain and amount else None


def chain_cpu_s(chain: Sequence[Child]) -> float:
    """Processor seconds so far of all processes of a network."""
    return sum(child.cpu_s() for child in chain)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank, for example 0.95."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


CROWD = 1000
"""Circuits that pass one relay while its memory is looked at."""

Taken = tuple[int, dict[str, float | None]]
"""How many things were measured, and what by name; None is left out."""


@frozen
class Figure:
    """One thing to measure."""

    name: str
    group: str
    measure: Callable[[Turn], Taken]


def _one(turn: Turn) -> Taken:
    (user,) = users = turn.load.users(1)
    turn.load.warm(users, turn.effort.of(8 * MIB))
    size = turn.effort.of(64 * MIB)
    with turn.timed():
        moved = turn.load.one(user, size)
    return 1, {"one.rate": moved.rate, "one.cpu": turn.per_cpu(size / MIB)}


def _users(turn: Turn) -> Taken:
    users = turn.load.users(14)
    turn.load.warm(users)
    size = turn.effort.of(16 * MIB)
    with turn.timed():
        rates = [turn.load.one(user, size).rate for user in users]
    cpu = turn.per_cpu(len(users) * size / MIB)
    return len(users), {"users.rate": median(rates), "users.least": min(rates), "users.cpu": cpu}


def _several(name: str, streams: int, size: int, turn: Turn) -> Taken:
    users = turn.load.users(streams)
    turn.load.warm(users)
    with turn.timed():
        moved = turn.load.several(users, turn.effort.of(size))
    return streams, {f"{name}.rate": moved.rate, f"{name}.cpu": turn.per_cpu(moved.size / MIB)}


def _builds(name: str, wanted: int, at_once: int, turn: Turn) -> Taken:
    wanted = turn.effort.of(wanted)
    begun = time.monotonic()
    with turn.timed():
        found = turn.peer.builds(wanted, at_once)
        seconds = time.monotonic() - begun
    built = [one * 1e3 for one in found if one is not None]
    if not built:
        raise NoLoad("no circuit was built")
    return len(built), {
        f"{name}.p50": median(built),
        f"{name}.p95": percentile(built, 0.95),
        f"{name}.rate": len(built) / seconds,
        f"{name}.cpu": turn.per_one(len(built)),
        f"{name}.failed": 100 * (wanted - len(built)) / wanted,
    }


def _crowd(turn: Turn) -> Taken:
    found = turn.peer.crowd(CROWD)
    if found is None:
        return 0, {}
    circuits, memory = found
    if circuits < CROWD:
        raise NoLoad(f"{circuits} of {CROWD} circuits")
    return circuits, {"crowd.relay": memory / MIB}


def _warm(turn: Turn) -> Taken:
    (user,) = users = turn.load.users(1)
    turn.load.warm(users)
    with turn.timed():
        waits = [turn.load.fetch(user, 100).first_s * 1e3 for _ in range(turn.effort.of(100))]
    return len(waits), {"warm.p50": median(waits), "warm.p95": percentile(waits, 0.95)}


def _new(turn: Turn) -> Taken:
    with turn.timed():
        waits = [turn.load.fetch(user, 100).first_s * 1e3 for user in turn.load.users(turn.effort.of(20))]
    return len(waits), {"new.p50": median(waits), "new.p95": percentile(waits, 0.95)}


def _small(turn: Turn) -> Taken:
    users = turn.load.users(8)
    turn.load.warm(users)
    wanted = turn.effort.of(2000)
    with turn.timed():
        waits, failed, seconds = turn.load.small(users, wanted, 1024)
    if not waits:
        raise NoLoad("no request was answered")
    return len(waits), {
        "small.rate": len(waits) / seconds,
        "small.p95": percentile(waits, 0.95) * 1e3,
        "small.cpu": turn.per_one(len(waits)),
        "small.failed": 100 * failed / (failed + len(waits)),
    }


FIGURES = (
    Figure("one", "stream", _one),
    Figure("users", "stream", _users),
    Figure("four", "stream", partial(_several, "four", 4, 64 * MIB)),
    Figure("sixteen", "stream", partial(_several, "sixteen", 16, 96 * MIB)),
    Figure("build", "build", partial(_builds, "build", 150, 1)),
    Figure("twenty", "build", partial(_builds, "twenty", 200, 20)),
    Figure("crowd", "build", _crowd),
    Figure("warm", "web", _warm),
    Figure("new", "web", _new),
    Figure("small", "web", _small),
)
GROUPS = ("stream", "build", "web")
BASE = ("tor-vanilla", "tor")

LAYOUTS = (
    Layout(
        "Streams, MiB/s",
        (
            Column("users.rate", "one stream, median of 14 users"),
            Column("users.least", "least of them"),
            Column("one.rate", "one stream, 64 MiB"),
            Column("four.rate", "4 streams"),
            Column("sixteen.rate", "16 streams"),
        ),
        BASE,
    ),
    Layout(
        "MiB for each second of processor time, whole chain",
        (
            Column("users.cpu", "one stream, 14 users"),
            Column("one.cpu", "one stream, 64 MiB"),
            Column("four.cpu", "4 streams"),
            Column("sixteen.cpu", "16 streams"),
        ),
        BASE,
    ),
    Layout(
        "Circuits of three hops, one at a time, ms",
        (
            Column("build.p50", "p50", True),
            Column("build.p95", "p95", True),
            Column("build.cpu", "CPU-ms each", True),
            Column("build.failed", "failed, %", True),
        ),
        BASE,
    ),
    Layout(
        "Circuits, 20 in flight",
        (
            Column("twenty.rate", "per second"),
            Column("twenty.p50", "p50, ms", True),
            Column("twenty.p95", "p95, ms", True),
            Column("twenty.cpu", "CPU-ms each", True),
            Column("twenty.failed", "failed, %", True),
        ),
        BASE,
    ),
    Layout(
        "First byte, ms",
        (
            Column("warm.p50", "warm circuit p50", True),
            Column("warm.p95", "p95", True),
            Column("new.p50", "new user p50", True),
            Column("new.p95", "p95", True),
        ),
        BASE,
    ),
    Layout(
        "GETs of 1 KiB, 8 users",
        (
            Column("small.rate", "per second"),
            Column("small.p95", "p95, ms", True),
            Column("small.cpu", "CPU-ms each", True),
            Column("small.failed", "failed, %", True),
        ),
        BASE,
    ),
    Layout(
        "At rest: memory (RSS), MiB, and processor time",
        (
            Column("idle.relay", "relay idle", True),
            Column("crowd.relay", "relay with 1000 circuits", True),
            Column("idle.client", "client idle", True),
            Column("idle.cpu", "all idle, CPU-ms per s", True),
            Column("after.relay", "relay after the run", True),
            Column("after.client", "client after the run", True),
        ),
        BASE,
    ),
)

UNITS = {
    "rate": "MiB/s",
    "least": "MiB/s",
    "cpu": "MiB/CPU-s",
    "failed": "%",
    "spent": "CPU-s",
    "host": "CPU-ms",
    "taken": "1/CPU-s",
}
PER_SECOND = frozenset({"build", "twenty", "small", "meet"})


def unit(value: str) -> str:
    """The unit of a value, for programs."""
    figure, _, kind = value.partition(".")
    if kind in ("relay", "client"):
        return "MiB"
    if figure == "idle":
        return "CPU-ms/s"
    if figure in PER_SECOND and kind in ("rate", "cpu"):
        return "1/s" if kind == "rate" else "CPU-ms"
    return UNITS.get(kind, "ms")


@frozen
class Gate:
    """What layer8 wants to reach: a figure of its own, or a ratio to another row's."""

    text: str
    value: str
    bound: float
    theirs: str = ""
    lower: bool = False


GATES = (
    Gate("one stream, 64 MiB, MiB/s", "one.rate", 40),
    Gate("one stream over Tor, Vanilla", "users.rate", 1.5, "tor-vanilla"),
    Gate("one stream over Tor, default", "users.rate", 5, "tor"),
    Gate("MiB per CPU-second, one stream", "users.cpu", 50),
    Gate("MiB per CPU-second over Tor, Vanilla, one stream", "users.cpu", 1, "tor-vanilla"),
    Gate("MiB per CPU-second over Tor, default, one stream", "users.cpu", 1, "tor"),
    Gate("MiB per CPU-second over Tor, Vanilla, 16 streams", "sixteen.cpu", 1, "tor-vanilla"),
    Gate("MiB per CPU-second over Tor, default, 16 streams", "sixteen.cpu", 1, "tor"),
    Gate("16 streams over Tor, Vanilla", "sixteen.rate", 1, "tor-vanilla"),
    Gate("16 streams over Tor, default", "sixteen.rate", 1, "tor"),
    Gate("circuit build p50, ms", "build.p50", 8, lower=True),
    Gate("circuit build p95, ms", "build.p95", 20, lower=True),
    Gate("builds per second, 20 in flight", "twenty.rate", 120),
    Gate("first byte, warm circuit, p50, ms", "warm.p50", 3, lower=True),
    Gate("first byte, warm circuit, p95, ms", "warm.p95", 10, lower=True),
    Gate("1 KiB GETs per second, warm circuits", "small.rate", 500),
    Gate("relay memory, idle, MiB", "idle.relay", 60, lower=True),
    Gate("relay memory, 1000 circuits, MiB", "crowd.relay", 120, lower=True),
)
GATE_HEAD = ["layer8, or layer8 over the other", "measured", "gate", "verdict"]


def gate_rows(results: report.Results, gates: Sequence[Gate] = GATES, ours: str = "layer8") -> list[list[str]]:
    """Text, measured value, gate and verdict of every gate whose sides were measured."""
    found = []
    for gate in gates:
        summary = results.summary(ours, gate.value)
        if gate.theirs:
            measured = ratio(summary, results.summary(gate.theirs, gate.value))
        else:
            measured = summary.median if summary is not None else None
        if measured is None:
            continue
        met = measured <= gate.bound if gate.lower else measured >= gate.bound
        sign = "<=" if gate.lower else ">="
        found.append([gate.text, f"{measured:.2f}", f"{sign} {gate.bound:g}", "met" if met else "MISSED"])
    return found


def tables(
    results: report.Results,
    peers: Sequence[str],
    layouts: Sequence[Layout] = LAYOUTS,
    gates: Sequence[Gate] = GATES,
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every table that has something in it: title, head, rows."""
    made = []
    for layout in layouts:
        head, body = report.rows(layout, results, peers)
        if body:
            made.append((layout.title, head, body))
    if judged := gate_rows(results, gates):
        made.append(("Gates", GATE_HEAD, judged))
    return made


@frozen
class Sample:
    """One measurement, as a line of JSON."""

    figure: str
    peer: str
    variant: str
    round: int
    n: int
    value: float
    unit: str
    cpu_s: float
    load: float


def sample_lines(peer: str, round_: int, n: int, values: Mapping[str, float], cpu_s: float) -> list[str]:
    """The lines of one turn."""
    kind, _, variant = peer.partition("-")
    load = round(os.getloadavg()[0], 2)
    return [
        json.dumps(asdict(Sample(name, kind, variant, round_, n, value, unit(name), round(cpu_s, 3), load)))
        for name, value in values.items()
    ]
