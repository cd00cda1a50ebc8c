"""The tables: what was measured, side by side, for a terminal, for docs/performance.md and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table as RichTable

from bench.stats import Summary, ratio


@frozen
class Column:
    """One value and how it is written; `lower` is better if set."""

    value: str
    title: str
    lower: bool = False


@frozen
class Layout:
    """A table: its caption and columns; the last column compares the first value with the row `base`."""

    title: str
    columns: tuple[Column, ...]
    base: tuple[str, ...] = ()
    """The first of these that is in the table."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "Bulk, GB/s",
        (
            Column("down8.gbps", "8 down"),
            Column("down1.gbps", "1 down"),
            Column("down64.gbps", "64 down"),
            Column("up8.gbps", "8 up"),
            Column("iperf3.gbps", "iperf3 -P8"),
        ),
        ("haproxy-best", "rathole"),
    ),
    Layout(
        "Proxy processor time per GB, ms",
        (
            Column("down8.cpu", "8 down", True),
            Column("down1.cpu", "1 down", True),
            Column("down64.cpu", "64 down", True),
            Column("up8.cpu", "8 up", True),
        ),
        ("haproxy-best", "rathole"),
    ),
    Layout(
        "Connections and requests (wrk -c32, 128 bytes)",
        (
            Column("close.rate", "new conn/s"),
            Column("close.cpu", "us CPU/conn", True),
            Column("keep.rate", "keep-alive req/s"),
            Column("keep.cpu", "us CPU/req", True),
            Column("rate.rate", "visitors/s"),
            Column("rate.cpu", "us CPU/visitor", True),
        ),
        ("haproxy", "rathole"),
    ),
    Layout(
        "Latency, us",
        (
            Column("ping.p50", "ping p50", True),
            Column("ping.p99", "ping p99", True),
            Column("loaded.p50", "p50 under 8 streams", True),
            Column("loaded.p99", "p99 under 8 streams", True),
            Column("first.p50", "connect + first byte p50", True),
            Column("first.p99", "p99", True),
        ),
        ("haproxy", "rathole"),
    ),
    Layout(
        "Idle and hostile",
        (
            Column("idle.bytes", "user B/idle conn", True),
            Column("base.mb", "base MB", True),
            Column("held.p99", "first byte p99 beside 2,000 silent, ms", True),
            Column("scan.cpu", "us CPU/stranger", True),
            Column("scan.rate", "strangers/s"),
            Column("scan.grown", "grown by, kB", True),
        ),
        ("haproxy", "rathole"),
    ),
    Layout(
        "An agent ends without a word",
        (
            Column("killed.first", "first answer to a later visitor, ms", True),
            Column("killed.longest", "longest wait, ms", True),
            Column("killed.failed", "visitors not served", True),
            Column("killed.visitors", "of"),
        ),
    ),
    Layout(
        "First byte to a visitor beside the server, ms",
        (
            Column("far40.p50", "40 ms p50", True),
            Column("far40.p99", "p99", True),
            Column("far40.trips", "round trips", True),
            Column("far80.p50", "80 ms p50", True),
            Column("far80.p99", "p99", True),
            Column("far80.trips", "round trips", True),
            Column("far80.spread", "p99/p50", True),
        ),
        ("far-nginx",),
    ),
)


@frozen
class Target:
    """A ratio that we want, ours over theirs, or a figure of ours, if `theirs` is empty: at least `gate`.

    At most, if `lower`.
    """

    text: str
    value: str
    ours: str
    theirs: str
    gate: float
    ambitious: float
    lower: bool = False


TARGETS: tuple[Target, ...] = (
    Target("bulk, 8 streams, against haproxy's best", "down8.gbps", "layer8", "haproxy-best", 0.85, 1.0),
    Target("bulk against haproxy as shipped", "down8.gbps", "layer8", "haproxy", 2.5, 3.3),
    Target("bulk against nginx stream as shipped", "down8.gbps", "layer8", "nginx", 2.5, 3.3),
    Target("bulk against socat", "down8.gbps", "layer8", "socat", 2.0, 2.7),
    Target("bulk against no proxy", "down8.gbps", "layer8", "direct", 0.55, 0.7),
    Target("CPU per GB against haproxy's best", "down8.cpu", "layer8", "haproxy-best", 1.4, 1.1, True),
    Target("CPU per GB against haproxy as shipped", "down8.cpu", "layer8", "haproxy", 0.25, 0.17, True),
    Target("CPU per GB against nginx as shipped", "down8.cpu", "layer8", "nginx", 0.25, 0.17, True),
    Target("new connections/s against haproxy", "close.rate", "layer8", "haproxy", 0.8, 0.95),
    Target("CPU per new connection against haproxy", "close.cpu", "layer8", "haproxy", 1.3, 1.08, True),
    Target("keep-alive requests/s against haproxy", "keep.rate", "layer8", "haproxy", 0.9, 1.0),
    Target("ping p50 against haproxy", "ping.p50", "layer8", "haproxy", 1.2, 1.1, True),
    Target("ping p99 under load against haproxy's best", "loaded.p99", "layer8", "haproxy-best", 1.0, 0.3, True),
    Target("memory per idle connection against haproxy", "idle.bytes", "layer8", "haproxy", 0.3, 0.2, True),
    Target("CPU per refused stranger against haproxy", "scan.cpu", "layer8", "haproxy-sniff", 4.0, 2.0, True),
    Target("memory that 150,000 strangers leave, kB", "scan.grown", "layer8", "", 0.0, 0.0, True),
    Target("CPU per kept request, guard against raw", "keep.cpu", "layer8", "layer8-raw", 1.6, 1.2, True),
    Target("first byte at 40 ms, round trips", "far40.trips", "far-layer8", "", 1.1, 1.03, True),
    Target("first byte at 80 ms against nginx, one hop", "far80.p50", "far-layer8", "far-nginx", 0.55, 0.52, True),
    Target("first byte at 80 ms, p99 over p50", "far80.spread", "far-layer8", "", 1.5, 1.1, True),
    Target("first answer after an agent of two died, ms", "killed.first", "layer8-two", "", 2000.0, 100.0, True),
    Target("CPU per tunnel connection against rathole", "close.cpu", "layer8-tunnel", "rathole", 2.5, 1.5, True),
    Target("tunnel bulk against rathole", "down8.gbps", "layer8-tunnel", "rathole", 2.5, 4.0),
    Target("tunnel bulk against frp as shipped", "down8.gbps", "layer8-tunnel", "frp", 5.0, 7.0),
    Target("tunnel bulk against frp without mux", "down8.gbps", "layer8-tunnel", "frp-no-mux", 1.6, 2.3),
    Target("tunnel CPU per GB against frp as shipped", "down8.cpu", "layer8-tunnel", "frp", 0.12, 0.06, True),
    Target("tunnel CPU per GB against frp without mux", "down8.cpu", "layer8-tunnel", "frp-no-mux", 0.45, 0.33, True),
    Target("tunnel visitors/s against rathole", "close.rate", "layer8-tunnel", "rathole", 0.75, 0.9),
    Target("tunnel visitors/s against frp as shipped", "close.rate", "layer8-tunnel", "frp", 1.2, 1.4),
    Target("tunnel idle memory against rathole", "idle.bytes", "layer8-tunnel", "rathole", 0.05, 0.03, True),
    Target("tunnel idle memory against frp as shipped", "idle.bytes", "layer8-tunnel", "frp", 0.02, 0.01, True),
)


@define(eq=False)
class Results:
    """Samples by system and value, and the reason wherever there are none."""

    titles: dict[str, str]
    samples: dict[tuple[str, str], list[float]] = field(factory=dict)
    noisy: dict[tuple[str, str], int] = field(factory=dict)
    reasons: dict[str, str] = field(factory=dict)
    """Why a system, or `system figure`, has no numbers."""

    def add(self, system: str, values: Mapping[str, float], noisy: bool) -> None:
        """Keep one sample's values."""
        for name, value in values.items():
            key = (system, name)
            self.samples.setdefault(key, []).append(value)
            self.noisy[key] = self.noisy.get(key, 0) + noisy

    def summary(self, system: str, value: str) -> Summary | None:
        """What the samples of a value say."""
        return Summary.of(self.samples.get((system, value), []), self.noisy.get((system, value), 0))

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        rows: dict[str, Any] = {}
        for (system, value), samples in self.samples.items():
            summary = self.summary(system, value)
            if summary is not None:
                rows.setdefault(system, {})[value] = {
                    "median": summary.median,
                    "least": summary.least,
                    "most": summary.most,
                    "noisy": summary.noisy,
                    "samples": samples,
                }
        return {"systems": rows, "missing": self.reasons}


def rows(layout: Layout, results: Results, systems: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one table; columns and systems without numbers are left out."""
    columns = [c for c in layout.columns if any((system, c.value) in results.samples for system in systems)]
    base_name = next((name for name in layout.base if name in systems and columns), None)
    base = results.summary(base_name, columns[0].value) if base_name else None
    head = ["system", *(column.title for column in columns)]
    if base is not None:
        head += [f"{columns[0].title} vs {base_name}", "n"]
    body = []
    for system in systems:
        summaries = [results.summary(system, column.value) for column in columns]
        if not any(summaries):
            continue
        cells = ["-" if summary is None else summary.text() for summary in summaries]
        if base is not None:
            against = ratio(summaries[0], base)
            cells += ["-" if against is None else f"{against:.2f}", str(max(s.n for s in summaries if s))]
        body.append([results.titles[system], *cells])
    return head, body


def target_rows(results: Results) -> list[list[str]]:
    """Text, measured ratio, gate, ambition and verdict of every target whose two sides were measured."""
    found = []
    for target in TARGETS:
        ours = results.summary(target.ours, target.value)
        if target.theirs:
            measured = ratio(ours, results.summary(target.theirs, target.value))
        else:
            measured = ours.median if ours is not None else None
        if measured is None:
            continue
        sign = "<=" if target.lower else ">="
        better = -1 if target.lower else 1
        verdict = (
            "ambitious"
            if better * measured >= better * target.ambitious
            else "met"
            if better * measured >= better * target.gate
            else "MISSED"
        )
        found.append(
            [target.text, f"{measured:.2f}", f"{sign} {target.gate:g}", f"{sign} {target.ambitious:g}", verdict]
        )
    return found


TARGET_HEAD = ["ours over theirs, or ours alone", "measured", "gate", "ambitious", "verdict"]


def tables(
    results: Results, groups: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every table that has something in it: title, head, rows."""
    made = []
    for group, systems in groups:
        for layout in LAYOUTS:
            head, body = rows(layout, results, systems)
            if len(head) > 1:
                made.append((f"{group}: {layout.title}", head, body))
    if targets := target_rows(results):
        made.append(("Targets", TARGET_HEAD, targets))
    return made


def markdown(made: Iterable[tuple[str, list[str], list[list[str]]]], facts: Mapping[str, str]) -> str:
    """The tables and the machine's description as Markdown."""
    lines = [f"- {name}: {text}" for name, text in facts.items()]
    for title, head, body in made:
        lines += ["", f"### {title}", "", _line(head), _line(["---"] * len(head)), *map(_line, body)]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
"""What stands between these lines of a page is replaced by the next run."""


def into_page(page: str, measured: str, part: str = "") -> str:
    """The page with `measured` between its two marks; `measured` alone if the page has none.

    A page on which several runs write has a pair of marks with a name for each `part`.
    """
    begin, end = (mark.replace("measured", f"measured {part}".strip(), 1) for mark in (BEGIN, END))
    before, mark, rest = page.partition(begin)
    _, closing, after = rest.partition(end)
    return f"{before}{begin}\n{measured}{end}{after}" if mark and closing else measured


def keep(
    path: Path, made: Iterable[tuple[str, list[str], list[list[str]]]], facts: Mapping[str, str], part: str = ""
) -> None:
    """Write the tables where a page has the last run of them."""
    page = path.read_text() if path.exists() else ""
    path.write_text(into_page(page, markdown(made, facts), part))


def tell(
    made: Sequence[tuple[str, list[str], list[list[str]]]],
    facts: Mapping[str, str],
    values: Mapping[str, Any],
    page: Path | None,
    as_json: bool,
    part: str = "",
) -> None:
    """Put the tables into a page if there is one, and print them, or the values as JSON."""
    if page is not None:
        keep(page, made, facts, part)
    if as_json:
        json.dump({"facts": facts, **values}, sys.stdout, indent=1)
        print()
    else:
        show(made, facts)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def show(made: Iterable[tuple[str, list[str], list[list[str]]]], facts: Mapping[str, str]) -> None:
    """Print the tables, in wide lines where it is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    for name, text in facts.items():
        console.print(f"[dim]{name}:[/dim] {text}", highlight=False)
    for title, head, body in made:
        table = RichTable(title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left")
        for cells in body:
            table.add_row(*cells, style="bold" if cells[0].startswith("layer8") else None)
        console.print(table)
