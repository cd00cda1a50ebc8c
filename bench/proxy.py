"""The socket proxy beside haproxy, nginx, socat, rathole and frp: `layer8 bench proxy`.

Every system runs for the whole time; per repetition and figure they take turns in random order, so that a slow hour of
the machine hits all alike. Run it from a checkout: `python -m bench.proxy --help`.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import click
from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import hotspots, machine, report
from bench.delay import Delay, far_figures, far_systems
from bench.figures import FIGURES, Effort, Figure, Values
from bench.load import Load, NoLoad
from bench.processes import DidNotStart
from bench.systems import ONE_HOP, Running, System
from bench.tunnels import TUNNELS, wait_until_served

FULL = Effort(seconds=1.0, repetitions=3, idle=4000, quick=False, patience=2.0)
QUICK = Effort(seconds=0.5, repetitions=2, idle=2000, quick=True, patience=0.5)
MOST_S = {True: 110.0, False: 570.0}
"""Seconds after which, once every figure was taken, no further one is; quick or not."""


@define(eq=False)
class Bench:
    """One run."""

    effort: Effort
    results: report.Results
    load: Load
    figures: Sequence[Figure]
    link: Delay
    turns: random.Random = field(factory=random.Random)
    systems: dict[str, tuple[System, Running]] = field(factory=dict)
    progress: Callable[[str], object] = str
    patient_until: float = 0.0
    """When we stop waiting for quiet moments and retaking noisy samples: nobody gives way, and time is short."""

    def start(self, wanted: Sequence[System], folder: Path) -> None:
        """Start every wanted system that is installed; the others leave a reason."""
        for system in wanted:
            if reason := system.absent():
                self.results.reasons[system.name] = reason
                continue
            self.progress(f"starting {system.name}")
            place = folder / system.name
            place.mkdir()
            try:
                if system.far and self.link.child is None:
                    self.link.start(self.load)
                backends = self.link.backends() if system.far else self.load.backends
                running = system.start(system.name, place, backends)
                self.systems[system.name] = (system, running)
                wait_until_served(running, partial(self.warm, running))
            except (DidNotStart, NoLoad, KeyError, subprocess.TimeoutExpired) as problem:
                self.results.reasons[system.name] = str(problem)
                self.drop(system.name)

    def warm(self, running: Running) -> None:
        """Send a few connections through."""
        for route in ("ping", "bulk"):
            if route in running.ports:
                self.load.run("first", *running.at(route), 20)

    def drop(self, name: str) -> None:
        """End one system."""
        if name in self.systems:
            self.systems.pop(name)[1].end()

    def end(self) -> None:
        """End everything that was started."""
        for name in list(self.systems):
            self.drop(name)
        for child in self.load.children:
            child.end()

    def cpu_s(self) -> float:
        """Processor seconds of everything that belongs to the measurement and lives."""
        ours = sum(running.cpu_s() for _, running in self.systems.values())
        return ours + sum(child.cpu_s() for child in self.load.children)

    def run(self) -> None:
        """Take all samples."""
        figures = [figure for figure in self.figures if figure.quick or not self.effort.quick]
        begun = time.monotonic()
        end = begun + MOST_S[self.effort.quick]
        self.patient_until = (begun + end) / 2
        for repetition in range(self.effort.repetitions):
            for figure in figures:
                if repetition >= figure.rounds:
                    continue
                if repetition and time.monotonic() > end:
                    return
                for system, running in self.turns.sample(list(self.systems.values()), len(self.systems)):
                    if figure.of(system):
                        self.progress(f"{figure.name} {system.name}")
                        self.sample(figure, system, running)

    def sample(self, figure: Figure, system: System, running: Running) -> None:
        """Measure once; if others used the machine, once more, and the quieter of the two is kept."""
        foreign = machine.Foreign(self.cpu_s)
        best: tuple[float, Values] | None = None
        patient = time.monotonic() < self.patient_until
        for _ in range(2 if patient and not figure.fresh else 1):
            foreign.wait_for_quiet(self.effort.patience if patient else 0)
            foreign.begin()
            try:
                values = figure.measure(self.load, running, self.effort)
            except (NoLoad, KeyError, OSError, subprocess.TimeoutExpired) as problem:
                self.results.reasons[f"{system.name} {figure.name}"] = str(problem)
                break
            cores = foreign.cores()
            if best is None or cores < best[0]:
                best = (cores, values)
            if cores <= machine.QUIET:
                break
        if best is not None:
            self.results.add(system.name, best[1], best[0] > machine.QUIET)

    def samples(self) -> int:
        """How many samples `run` takes if none is left out."""
        return sum(
            min(figure.rounds, self.effort.repetitions)
            for figure in self.figures
            if figure.quick or not self.effort.quick
            for system, _ in self.systems.values()
            if figure.of(system)
        )


@contextlib.contextmanager
def progress(console: Console, total: Callable[[], int]) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, silence in a pipe."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(text: str) -> None:
            starting = text.startswith("starting")
            bar.update(task, description=text, advance=0 if starting else 1, total=None if starting else total())

        yield tell


@click.command()
@click.option("--quick", is_flag=True, help="Fewer figures, shorter samples: about two minutes instead of ten.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    help="Also write the tables as Markdown to this file, between its two `measured` marks if it has them.",
)
@click.option("--only", multiple=True, metavar="ROW", help="Measure this system only; may be repeated.")
@click.option("--profile", is_flag=True, help="Show where layer8's process spends its time instead of comparing it.")
def main(quick: bool, as_json: bool, markdown: Path | None, only: tuple[str, ...], profile: bool) -> None:
    """Measure the socket proxy beside what others run in its place, on this machine's loopback."""
    link = Delay()
    far = far_systems(link)
    known = {system.name: system for system in (*ONE_HOP, *TUNNELS, *far)}
    if odd := [name for name in only if name not in known]:
        raise click.BadParameter(f"no such row: {', '.join(odd)}; there are {', '.join(known)}", param_hint="--only")
    facts = machine.describe() | {"versions": ", ".join(f"{k} {v}" for k, v in machine.versions().items())}
    network = machine.private_network()
    machine.most_descriptors()
    facts["network"] = network.text()
    wanted = [system for name, system in known.items() if not only or name in only]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through every `finally`
    errors = Console(stderr=True)
    results = report.Results({name: system.title for name, system in known.items()})
    effort = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="layer8-bench-") as folder:
        Path(folder).chmod(0o755)  # nginx's worker may run as another user
        try:
            bench = Bench(effort, results, Load.start(Path(folder)), (*FIGURES, *far_figures(link)), link)
        except (NoLoad, DidNotStart) as problem:
            raise click.ClickException(str(problem)) from None
        try:
            if profile:
                hotspots.show(bench.load, Path(folder), effort)
                return
            with progress(errors, lambda: bench.samples()) as bench.progress:
                bench.start(wanted, Path(folder))
                bench.run()
        except KeyboardInterrupt:
            errors.print("interrupted: what was measured so far follows")
        finally:
            bench.end()
    facts["samples"] = (
        f"{effort.repetitions} repetitions of {effort.seconds:g} s in random order, medians and (range); "
        f"~ marks cells whose samples were mostly taken while others used more than {machine.QUIET:g} cores"
    )
    if results.reasons:
        facts["not measured"] = "; ".join(f"{name}: {reason}" for name, reason in results.reasons.items())
    one_hop = [system.name for system in ONE_HOP if system in wanted]
    tunnels = [system.name for system in TUNNELS if system in wanted]
    distant = [system.name for system in far if system in wanted]
    made = report.tables(results, (("One hop", one_hop), ("Server and agent", tunnels), ("A long way", distant)))
    report.tell(made, facts, results.as_json(), markdown, as_json)


if __name__ == "__main__":
    main(prog_name="layer8 bench proxy")
