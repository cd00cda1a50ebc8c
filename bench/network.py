"""Networks of relays side by side: `layer8 bench stream | build | web | hidden`.

Every network runs for the whole time, on this machine's loopback; per round and figure they take turns in random
order. What counts is MiB, circuits or requests for each second of processor time of the whole chain, beside the clock.
Run it from a checkout: `python -m bench.network stream build web --help`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
from attrs import define, field
from rich.console import Console

from bench import hidden_figures, machine, network_figures, report
from bench.layer8_net import Layer8Net
from bench.load import NoLoad
from bench.loopback import Outside, other_tors, stay_inside
from bench.network_figures import (
    Direct,
    Effort,
    Figure,
    Peer,
    Turn,
    chain_cpu_s,
    sample_lines,
    tables,
)
from bench.processes import Child, DidNotStart
from bench.socks_load import MIB, Address, SocksLoad, start_origin
from bench.tor_net import VARIANTS, TorNet, Variant, port_near
from layer8.relay.securing import NOISE, TLS

ORIGIN_PORT = 18080
GROUPS = (*network_figures.GROUPS, hidden_figures.GROUP)
FIGURES = (*network_figures.FIGURES, *hidden_figures.FIGURES)
SETTLE_S = 30.0
"""Seconds between the last network's coming up and the first sample; memory is looked at after them."""
FETCH_S = 60.0
"""Seconds in which a network that is up has to carry its first stream."""
HIDDEN_S = 120.0
"""Seconds in which its first hidden service has to be met."""
ROUND_S = 170.0
"""Seconds for all figures of one network in one round."""
MOST_S = 1200.0
"""Seconds after which no further sample is taken."""


@define(eq=False)
class Race:
    """One run."""

    effort: Effort
    results: report.Results
    origin: Address
    backend: Child
    tell: Callable[[str], object]
    line: Callable[[str], object]
    peers: list[tuple[Peer, SocksLoad]] = field(factory=list)
    turns: random.Random = field(factory=random.Random)
    resting: dict[str, float] = field(factory=dict)
    """Milliseconds of processor time that a network spends in a second without any load."""

    def start(self, wanted: Sequence[Peer]) -> None:
        """Start every network, all at once, and wait; those that do not come up leave a reason."""
        starting = []
        for peer in wanted:
            if reason := peer.absent():
                self.results.reasons[peer.name] = reason
                continue
            self.tell(f"starting {peer.name}")
            self.peers.append((peer, SocksLoad(None, self.origin)))
            if self._or_drop(peer, peer.start):
                starting.append(peer)
        for peer in starting:
            self.tell(f"waiting for {peer.name}")
            if self._or_drop(peer, peer.ready):
                load = next(load for one, load in self.peers if one is peer)
                load.socks = peer.socks
                if self._or_drop(peer, partial(_first_fetch, load, FETCH_S)) and peer.hidden:
                    there = load.at((peer.hidden[0], hidden_figures.PORT))
                    self._or_drop(peer, partial(_first_fetch, there, HIDDEN_S))
        if others := other_tors(self.pids()):
            raise Outside(f"another tor runs here: {', '.join(map(str, others))}")
        if any(peer.chain for peer, _ in self.peers):
            self.tell(f"resting for {SETTLE_S:g} s")
            before = {peer.name: chain_cpu_s(peer.chain) for peer, _ in self.peers}
            time.sleep(SETTLE_S)
            for peer, _ in self.peers:
                self.resting[peer.name] = (chain_cpu_s(peer.chain) - before[peer.name]) * 1e3 / SETTLE_S
        stay_inside(self.pids())

    def _or_drop(self, peer: Peer, step: Callable[[], object]) -> bool:
        try:
            step()
        except (DidNotStart, NoLoad, OSError, subprocess.SubprocessError) as problem:
            self.results.reasons[peer.name] = str(problem)
            self.peers = [(one, load) for one, load in self.peers if one is not peer]
            peer.end()
            return False
        return True

    def run(self, figures: Sequence[Figure]) -> None:
        """Take all samples; raises Outside."""
        over = time.monotonic() + MOST_S
        self.remember("idle", self.resting)
        for number in range(1, self.effort.rounds + 1):
            left = {peer.name: ROUND_S for peer, _ in self.peers}
            for figure in figures:
                for peer, load in self.turns.sample(self.peers, len(self.peers)):
                    begun = time.monotonic()
                    if begun >= over or left[peer.name] <= 0:
                        self.results.reasons[f"{peer.name} {figure.name} in round {number}"] = "no time left"
                        continue
                    load.end = min(over, begun + left[peer.name])
                    self.tell(f"round {number}: {figure.name} {peer.name}")
                    self.sample(figure, Turn(peer, load, self.effort), number)
                    left[peer.name] -= time.monotonic() - begun
                    stay_inside(self.pids())
        self.remember("after", {})

    def sample(self, figure: Figure, turn: Turn, number: int) -> None:
        """Measure once."""
        name = turn.peer.name
        if (figure.group == "build" and not turn.peer.chain) or (
            figure.group == hidden_figures.GROUP and not turn.peer.hidden
        ):
            return
        foreign = machine.Foreign(self.cpu_s)
        foreign.begin()
        try:
            n, taken = figure.measure(turn)
        except (NoLoad, DidNotStart, OSError) as problem:
            self.results.reasons[f"{name} {figure.name} in round {number}"] = str(problem)
            return
        values = {key: value for key, value in taken.items() if value is not None}
        self.results.add(name, values, foreign.cores() > machine.QUIET)
        for line in sample_lines(name, number, n, values, turn.cpu_s):
            self.line(line)

    def remember(self, when: str, cpu: Mapping[str, float]) -> None:
        """Look at the memory of relays, the median, and of the client; `cpu` is what each network spent at rest."""
        for peer, _ in self.peers:
            if peer.chain:
                relays = [child.memory("Rss") / MIB for child in peer.relays]
                values = {f"{when}.relay": median(relays), f"{when}.client": peer.chain[-1].memory("Rss") / MIB}
                if peer.name in cpu:
                    values[f"{when}.cpu"] = cpu[peer.name]
                self.results.add(peer.name, values, False)
                for line in sample_lines(peer.name, 0, len(relays), values, chain_cpu_s(peer.chain)):
                    self.line(line)

    def pids(self) -> list[int]:
        """Every process under measurement, and the origin."""
        children = [self.backend, *(child for peer, _ in self.peers for child in peer.chain)]
        return [pid for child in children for pid in child.pids()]

    def cpu_s(self) -> float:
        """Processor seconds of everything that belongs to the run and lives."""
        return self.backend.cpu_s() + sum(chain_cpu_s(peer.chain) for peer, _ in self.peers)

    def end(self) -> None:
        """End every process."""
        for peer, _ in self.peers:
            peer.end()
        self.backend.end()


def _first_fetch(load: SocksLoad, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            load.warm(load.users(1))
            return
        except NoLoad:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


Make = Callable[[Path, int, int, int], Peer]
"""An empty folder, the origin's port, a number of its own and hidden services make a network that is not started."""


def _direct(folder: Path, origin: int, number: int, services: int) -> Peer:
    return Direct()


def _tor(variant: Variant) -> Make:
    return lambda folder, origin, number, services: TorNet(variant, folder, origin, number, services)


def _layer8(link: str) -> Make:
    return lambda folder, origin, number, services: Layer8Net(folder, origin, number, link, services)


PEERS: dict[str, Make] = {"direct": _direct, "layer8": _layer8(TLS), "layer8-noise": _layer8(NOISE)}
PEERS.update((variant.name, _tor(variant)) for variant in VARIANTS)
USUAL = ("direct", "tor", "tor-vanilla", "layer8")


def tor_version() -> str:
    """The version of the tor that is installed."""
    if shutil.which("tor") is None:
        return "not installed"
    ran = subprocess.run(["tor", "--version"], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"Tor version (\S+?)\.?\s", ran.stdout)
    return found[1] if found else "unknown"


def _asked(groups: Sequence[str]) -> tuple[tuple[report.Layout, ...], tuple[network_figures.Gate, ...]]:
    """Give the tables and gates of some groups; memory is looked at for all but hidden services."""
    hidden = hidden_figures.GROUP in groups
    network = any(group != hidden_figures.GROUP for group in groups)
    return (
        network_figures.LAYOUTS * network + hidden_figures.LAYOUTS * hidden,
        network_figures.GATES * network + hidden_figures.GATES * hidden,
    )


def _loads() -> str:
    return " ".join(f"{one:.2f}" for one in os.getloadavg())


@click.command()
@click.argument("groups", nargs=-1, required=True, type=click.Choice(GROUPS))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="A claim wants 5.")
@click.option("--quick", is_flag=True, help="A quarter of every transfer and count.")
@click.option("--peer", "only", multiple=True, type=click.Choice(list(PEERS)), help="Measure this one; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each measurement instead of tables.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables to this file, as Markdown.")
def main(
    groups: tuple[str, ...], rounds: int, quick: bool, only: tuple[str, ...], as_json: bool, markdown: Path | None
) -> None:
    """Measure networks of relays beside each other: a private Tor network of the same shape, and layer8's own.

    `stream` is bulk through one circuit and through many, `build` is circuits, `web` is first bytes and small requests,
    `hidden` is hidden services.
    """
    facts = machine.describe()
    versions = machine.versions()
    known: dict[str, str] = {name: versions[name] for name in ("layer8", "Twisted") if name in versions}
    known["Tor"] = tor_version()
    facts["versions"] = ", ".join(f"{name} {text}" for name, text in known.items())
    facts["network"] = machine.private_network().text()
    facts["load before"] = _loads()
    machine.most_descriptors()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through every `finally`
    errors = Console(stderr=True, highlight=False)
    effort = Effort(rounds, 4 if quick else 1)
    figures = [figure for figure in FIGURES if figure.group in groups]
    services = hidden_figures.services(rounds) if hidden_figures.GROUP in groups else 0
    with tempfile.TemporaryDirectory(prefix="layer8-bench-") as folder:
        port = port_near(ORIGIN_PORT)
        wanted = []
        for number, name in enumerate(only or USUAL):
            place = Path(folder) / name
            place.mkdir()
            wanted.append(PEERS[name](place, port, number, services))
        results = report.Results({peer.name: peer.title for peer in wanted})
        try:
            backend = start_origin(port, Path(folder))
        except DidNotStart as problem:
            raise click.ClickException(str(problem)) from None
        line: Callable[[str], Any] = partial(print, flush=True) if as_json else len
        race = Race(effort, results, ("127.0.0.1", port), backend, errors.print, line)
        try:
            race.start(wanted)
            race.run(figures)
        except Outside as problem:
            raise click.ClickException(str(problem)) from None
        except KeyboardInterrupt:
            errors.print("interrupted: what was measured so far follows")
        finally:
            race.end()
    facts["load after"] = _loads()
    facts["samples"] = (
        f"{rounds} rounds{', a quarter of each figure' if quick else ''}; medians and (range); ~ marks cells "
        f"whose samples were mostly taken while others used more than {machine.QUIET:g} cores"
    )
    if results.reasons:
        facts["not measured"] = "; ".join(f"{name}: {reason}" for name, reason in results.reasons.items())
    made = tables(results, [peer.name for peer in wanted], *_asked(groups))
    if markdown is not None:
        part = hidden_figures.GROUP if groups == (hidden_figures.GROUP,) else ""
        report.keep(markdown, made, facts, part)
    if not as_json:
        report.show(made, facts)


if __name__ == "__main__":
    main(prog_name="layer8 bench")
