"""The browser tunnel beside the same backends without it, and beside nginx: `layer8 bench tunnel`.

Requests are sealed one by one before each round, so that the gateway's replay set lets them in. The ways take turns in
random order, so that a slow hour of the machine hits all alike. Processor time is that of the processes, from /proc.
"""

from __future__ import annotations

import gzip
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import click
from attrs import define, field, frozen
from rich.console import Console

from bench import machine, report
from bench.load import NoLoad
from bench.processes import Child, DidNotStart
from bench.proxy import progress
from bench.report import Column, Layout, Results
from bench.stats import ratio, short
from bench.tunnel_backend import DOWN, UP
from bench.tunnel_browser import BROWSERS, Timed, measure
from bench.tunnel_load import POST, Loader, opened, seal, seal_body
from bench.tunnel_stand import ROLES, TITLES, Stand, Way

MIB: Final = 1 << 20
CONNECTIONS: Final = 32
SMALL_WAYS: Final = ("direct", "nginx", "layer8", "layer8-inside")
STREAM_WAYS: Final = ("direct", "nginx", "layer8")
SCRIPT_MOST: Final = 30  # KiB of l8.js, compressed

Values = dict[str, float]


@frozen
class Effort:
    """How long and how often."""

    seconds: int
    rounds: int
    streams: int  # rounds of them
    stream: int  # bytes
    fetches: int  # of a browser


FULL: Final = Effort(6, 5, 3, 1000 * MIB, 300)
QUICK: Final = Effort(1, 1, 1, 8 * MIB, 20)


@frozen
class Figure:
    """A measurement of one way; `takes` says of which."""

    name: str
    measure: Callable[[Stand, Way, Effort], Values]
    takes: Callable[[str], bool] = lambda name: True
    streams: bool = False


def rate(stand: Stand, way: Way, effort: Effort) -> Values:
    """As many requests as go, on 32 connections: how many, and processor microseconds of each by role."""
    before = {role: child.cpu_s() for role, child in way.roles.items()}
    found = stand.loader.wrk(way.target, seconds=effort.seconds, connections=CONNECTIONS)
    if found.errors:
        raise NoLoad(f"{found.errors} of {found.count} requests failed")
    spent = {role: (child.cpu_s() - before[role]) * 1e6 / found.count for role, child in way.roles.items()}
    return {"rate.rps": found.rate, **{f"rate.{role}": value for role, value in spent.items()}}


def alone(stand: Stand, way: Way, effort: Effort) -> Values:
    """One connection, one request after the other: ms."""
    found = stand.loader.wrk(way.target, seconds=max(1, effort.seconds // 3), connections=1)
    return {"one.p50": found.p50, "one.p99": found.p99}


def half(stand: Stand, way: Way, effort: Effort) -> Values:
    """Half as many requests as the way has been found to take: ms."""
    rps = way.saturation / 2
    found = stand.loader.wrk(way.target, seconds=max(1, effort.seconds // 2), connections=CONNECTIONS, rate=rps)
    return {"half.p50": found.p50, "half.p99": found.p99, "half.rps": found.rate}


def stream(stand: Stand, way: Way, effort: Effort) -> Values:
    """One body each way: GB/s, and by how many MiB relay and gateway grow meanwhile, at most."""
    size, found = effort.stream, {}
    answer = stand.folder / "answer"
    keys = way.target.keys
    for name in ("down", "up"):
        path = f"{DOWN}{size}" if name == "down" else UP
        file = stand.folder / f"{name}.body"
        context = None
        if keys is None:
            file.write_bytes(bytes(size) if name == "up" else b"")
        elif name == "up":
            context = seal_body(keys, path, size, file)
        else:
            file.write_bytes(seal(keys, path).body)
        watched = {role: Watched.begin(way.roles[role]) for role in ("relay", "gateway") if role in way.roles and keys}
        options: list[str] = []
        if name == "up" or keys is not None:
            options = ["-X", "POST", "-T", str(file), *(POST if keys is not None else ())]
        kept = str(answer if name == "up" else "/dev/null")
        seconds, came, _ = stand.loader.curl(way.target.url(path), *options, "-o", kept)
        if name == "down" and came < size:
            raise NoLoad(f"only {came} bytes came")
        if name == "up":
            data = answer.read_bytes()
            told = data if context is None else opened(context, data)[1]
            if told != b"%d" % size:
                raise NoLoad(f"the backend has got {told!r} bytes")
        file.unlink()
        found[f"{name}.gbps"] = size / 1e9 / seconds
        for role, one in watched.items():
            found[f"{name}.{role}"] = one.grown() / MIB
    return found


@frozen
class Watched:
    """The most memory that a program has at once from now on."""

    child: Child
    before: int

    @classmethod
    def begin(cls, child: Child) -> Watched:
        """Forget the peak that was (proc(5), clear_refs)."""
        for pid in child.pids():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        return cls(child, child.memory("Rss"))

    def grown(self) -> int:
        """Give by how many bytes it has grown, at most."""
        peak = 0
        for pid in self.child.pids():
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                peak += next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
        return max(0, peak - self.before)


def overhead(stand: Stand, way: Way, effort: Effort) -> Values:
    """What the tunnel adds to one message, padding apart: bytes."""
    up, down = stand.check(way)
    return {"bytes.up": float(up), "bytes.down": float(down)}


def _tunnel(name: str) -> bool:
    return name.startswith("layer8")


FIGURES: Final = (
    Figure("rate", rate),
    Figure("one", alone, lambda name: name in SMALL_WAYS),
    Figure("half", half, lambda name: name in SMALL_WAYS),
    Figure("stream", stream, lambda name: name in STREAM_WAYS, streams=True),
    Figure("bytes", overhead, _tunnel, streams=True),
)

LAYOUTS: Final = (
    Layout(
        f"Requests, {CONNECTIONS} connections",
        (
            Column("rate.rps", "req/s"),
            *(Column(f"rate.{role}", f"us CPU, {role}", True) for role in ROLES),
        ),
    ),
    Layout(
        "Latency, ms",
        (
            Column("one.p50", "1 connection p50", True),
            Column("one.p99", "p99", True),
            Column("half.p50", "half of saturation p50", True),
            Column("half.p99", "p99", True),
            Column("half.rps", "at req/s"),
        ),
    ),
    Layout(
        "One stream",
        (
            Column("down.gbps", "down, GB/s"),
            Column("up.gbps", "up, GB/s"),
            Column("down.relay", "relay grows, down, MiB", True),
            Column("up.relay", "up", True),
            Column("down.gateway", "gateway grows, down, MiB", True),
            Column("up.gateway", "up", True),
        ),
    ),
    Layout("Bytes over the padded message", (Column("bytes.up", "up", True), Column("bytes.down", "down", True))),
    Layout(
        "In the browser, ms",
        (Column("page.tunnel", "L8.fetch p50", True), Column("page.plain", "fetch p50", True)),
    ),
)


@frozen
class Gate:
    """A value of ours against another one, or alone: at least `gate`, at most if `lower`."""

    text: str
    ours: tuple[str, str]
    theirs: tuple[str, str] | None
    gate: float
    lower: bool = False

    def row(self, results: Results) -> list[str] | None:
        """Text, what was measured, what was wanted, and the verdict; None if it was not measured."""
        ours = results.summary(*self.ours)
        if ours is None:
            return None
        measured = ours.median if self.theirs is None else ratio(ours, results.summary(*self.theirs))
        if measured is None:
            return None
        met = measured <= self.gate if self.lower else measured >= self.gate
        return [self.text, short(measured), f"{'<=' if self.lower else '>='} {self.gate:g}", "met" if met else "MISSED"]


UNIT: Final = ("direct", "rate.backend")

GATES: Final = (
    Gate("requests/s against the backend alone", ("layer8", "rate.rps"), ("direct", "rate.rps"), 0.3),
    Gate("requests/s against nginx before it", ("layer8", "rate.rps"), ("nginx", "rate.rps"), 0.3),
    Gate("the same with the gateway inside", ("layer8-inside", "rate.rps"), ("direct", "rate.rps"), 0.3),
    Gate("Flask under gunicorn against Flask alone", ("layer8-flask", "rate.rps"), ("flask", "rate.rps"), 0.8),
    Gate("Django under gunicorn against Django alone", ("layer8-django", "rate.rps"), ("django", "rate.rps"), 0.8),
    Gate("relay's CPU in units of the backend's", ("layer8", "rate.relay"), UNIT, 2.5, True),
    Gate("sidecar's CPU in units of the backend's", ("layer8", "rate.gateway"), UNIT, 3.0, True),
    Gate("gateway's CPU, backend in it, in the same", ("layer8-inside", "rate.gateway"), UNIT, 4.0, True),
    Gate("p50 on one connection against the backend", ("layer8", "one.p50"), ("direct", "one.p50"), 4.0, True),
    Gate("p99 at half of saturation against the backend", ("layer8", "half.p99"), ("direct", "half.p99"), 4.0, True),
    Gate("bytes up over the padded request", ("layer8", "bytes.up"), None, 56, True),
    Gate("bytes down over the padded answer", ("layer8", "bytes.down"), None, 33, True),
    Gate("stream down against the backend alone", ("layer8", "down.gbps"), ("direct", "down.gbps"), 0.35),
    Gate("stream down against nginx", ("layer8", "down.gbps"), ("nginx", "down.gbps"), 0.35),
    Gate("stream up against the backend alone", ("layer8", "up.gbps"), ("direct", "up.gbps"), 0.35),
    Gate("stream up against nginx", ("layer8", "up.gbps"), ("nginx", "up.gbps"), 0.35),
    *(
        Gate(f"{role} grows by, {name}, MiB", ("layer8", f"{name}.{role}"), None, 16, True)
        for name in ("down", "up")
        for role in ("relay", "gateway")
    ),
    *(
        Gate(f"L8.fetch against fetch, {TITLES[name]}", (name, "page.tunnel"), (name, "page.plain"), 3.0, True)
        for name in BROWSERS
    ),
    Gate("l8.js, compressed, KiB", ("layer8", "script.kib"), None, SCRIPT_MOST, True),
)
GATE_HEAD: Final = ["figure", "measured", "target", "verdict"]


@define(eq=False)
class Bench:
    """One run."""

    stand: Stand
    effort: Effort
    results: Results
    turns: random.Random = field(factory=random.Random)
    progress: Callable[[str], object] = str

    def run(self) -> None:
        """Take all samples; whatever does not succeed leaves a reason."""
        for name, reason in self.stand.reasons.items():
            self.results.reasons[name] = reason
        for turn in range(self.effort.rounds):
            for figure in FIGURES:
                if figure.streams and turn >= self.effort.streams:
                    continue
                for way in self.turns.sample(list(self.stand.ways.values()), len(self.stand.ways)):
                    if figure.takes(way.name):
                        self.progress(f"{figure.name} {way.name}")
                        self.sample(figure, way)

    def sample(self, figure: Figure, way: Way) -> None:
        """Measure once."""
        foreign = machine.Foreign(self.stand.cpu_s)
        foreign.begin()
        try:
            values = figure.measure(self.stand, way, self.effort)
        except (NoLoad, OSError, TimeoutError) as problem:
            self.results.reasons[f"{way.name} {figure.name}"] = str(problem)
            return
        if "rate.rps" in values:
            way.saturation = values["rate.rps"]
        self.results.add(way.name, values, foreign.cores() > machine.QUIET)

    def samples(self) -> int:
        """Count the samples that `run` takes."""
        return sum(
            min(self.effort.rounds, self.effort.streams if figure.streams else self.effort.rounds)
            for figure in FIGURES
            for name in self.stand.ways
            if figure.takes(name)
        )

    def pages(self) -> None:
        """Measure in the browsers that are installed."""
        way = self.stand.ways.get("layer8")
        if way is None:
            return
        for name in BROWSERS:
            self.progress(f"page {name}")
            try:
                found: Timed = measure(name, self.stand, self.effort.fetches)
            except NoLoad as problem:
                self.results.reasons[name] = str(problem)
                continue
            for tunnel, plain in zip(found.tunnel, found.plain, strict=True):
                self.results.add(name, {"page.tunnel": tunnel, "page.plain": plain}, False)


def script_kib() -> float:
    """Give the size of l8.js as a web server sends it."""
    return len(gzip.compress((files("layer8") / "web" / "tunnel" / "l8.js").read_bytes(), 9)) / 1024


def tables(results: Results, ways: Sequence[str]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Give the figures, the processor time in units, and the targets."""
    made = []
    for layout in LAYOUTS:
        head, body = report.rows(layout, results, ways)
        if len(head) > 1:
            made.append((layout.title, head, body))
    units = []
    for name in ways:
        found = [ratio(results.summary(name, f"rate.{role}"), results.summary(*UNIT)) for role in ROLES]
        if any(found):
            units.append([results.titles[name], *("-" if one is None else short(one) for one in found)])
    if units:
        made.append(("CPU per request, in units of the backend's alone", ["system", *ROLES], units))
    verdicts = [row for gate in GATES if (row := gate.row(results)) is not None]
    return [*made, ("Targets of the tunnel", GATE_HEAD, verdicts)]


@click.command()
@click.option("--quick", is_flag=True, help="One short round, no browsers: half a minute, to see that all works.")
@click.option("--seconds", type=click.IntRange(1, 60), help="Of each round; 6 if nothing is said.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables to this page, as Markdown.")
@click.option("--only", multiple=True, metavar="ROW", help="Measure this way only, beside `direct`; may be repeated.")
def main(quick: bool, seconds: int | None, as_json: bool, markdown: Path | None, only: tuple[str, ...]) -> None:
    """Measure the browser tunnel beside the same backends without it, on this machine's loopback."""
    if odd := [name for name in only if name not in TITLES]:
        raise click.BadParameter(f"no such row: {', '.join(odd)}; there are {', '.join(TITLES)}", param_hint="--only")
    facts: dict[str, Any] = machine.describe()
    facts["versions"] = ", ".join(
        f"{name} {version}"
        for name, version in machine.versions().items()
        if name in ("nginx", "wrk", "Twisted", "layer8")
    )
    facts["network"] = machine.private_network().text()
    machine.most_descriptors()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through every `finally`
    wanted = [name for name in TITLES if name in BROWSERS or not only or name in (*only, "direct")]
    effort = QUICK if quick else FULL
    if seconds is not None:
        effort = Effort(seconds, effort.rounds, effort.streams, effort.stream, effort.fetches)
    results = Results(dict(TITLES))
    errors = Console(stderr=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="layer8-bench-") as folder:
        Path(folder).chmod(0o755)  # nginx's worker may run as another user
        loader = Loader(Path(folder))
        stand = Stand(Path(folder), loader)
        try:
            bench = Bench(stand, effort, results)
            with progress(errors, bench.samples) as bench.progress:
                bench.progress("starting")
                stand.start(wanted)
                bench.run()
                if not quick and (not only or set(only) & set(BROWSERS)):
                    bench.pages()
        except (NoLoad, DidNotStart) as problem:
            raise click.ClickException(str(problem)) from None
        except KeyboardInterrupt:
            errors.print("interrupted: what was measured so far follows")
        finally:
            stand.end()
            loader.close()
    results.add("layer8", {"script.kib": script_kib()}, False)
    facts["samples"] = (
        f"{effort.rounds} rounds of {effort.seconds} s in random order, {effort.streams} of streams of "
        f"{effort.stream // MIB} MiB, medians and (range); ~ marks cells whose samples were mostly taken while others "
        f"used more than {machine.QUIET:g} cores; {time.monotonic() - begun:.0f} s in all"
    )
    if results.reasons:
        facts["not measured"] = "; ".join(f"{name}: {reason}" for name, reason in results.reasons.items())
    made = tables(results, wanted)
    report.tell(made, facts, results.as_json(), markdown, as_json, "tunnel")


if __name__ == "__main__":
    main(prog_name="layer8 bench tunnel")
