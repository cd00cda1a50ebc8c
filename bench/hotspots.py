"""Where layer8's process spends its time: perf for kernel and interpreter, cProfile for our own lines."""

from __future__ import annotations

import io
import pstats
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench.figures import Effort
from bench.load import Load
from bench.processes import Child, free_port
from bench.systems import Running, launch, layer8_config, twistd

LINES = 25
"""Most lines of each list."""


def show(load: Load, folder: Path, effort: Effort) -> None:
    """Print the hot spots of layer8's server under bulk, under new connections and under kept ones."""
    loads: Mapping[str, Callable[[Running], object]] = {
        "8 streams down": lambda running: load.run("down", *running.at("bulk"), 8, effort.seconds * 2),
        "new connections": lambda running: load.run("rate", *running.at("ping"), 32, effort.seconds * 2),
        "kept connections": lambda running: load.wrk(*running.at("web"), seconds=2, close=False),
    }
    if shutil.which("perf"):
        place = folder / "perf"
        place.mkdir()
        running = _start(load, place)
        try:
            for name, work in loads.items():
                print(f"\n== perf, {name}\n{_perf(place, running, partial(work, running))}")
        finally:
            running.end()
    else:
        print("perf is not installed: apt install linux-perf")
    for name, work in loads.items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        stats = place / "stats"
        running = _start(load, place, "--profile", str(stats), "--profiler", "cprofile", "--savestats")
        try:
            work(running)
        finally:
            _interrupt(running.children[-1])
            running.end()
        print(f"\n== cProfile, {name} (it slows Python down: read shares, not times)\n{_cprofile(stats)}")


def _start(load: Load, folder: Path, *before: str) -> Running:
    front = free_port()
    config = layer8_config(folder, front, load.backends)
    argv = twistd("layer8-proxy", config, before=before)
    return launch("layer8", [("layer8-proxy", argv)], folder, dict.fromkeys(load.backends, front))


def _interrupt(child: Child) -> None:
    """Let twistd leave by itself, since it writes the profile on its way out."""
    child.popen.send_signal(signal.SIGINT)
    end = time.monotonic() + 40
    while child.popen.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def _perf(folder: Path, running: Running, work: Callable[[], object]) -> str:
    data = folder / "perf.data"
    pid = str(running.children[-1].popen.pid)
    argv = ["perf", "record", "-q", "-F", "2000", "-g", "-o", str(data), "-p", pid]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as recorder:
        time.sleep(0.3)
        work()
        recorder.send_signal(signal.SIGINT)
        recorder.wait(20)
    by_object = _perf_report(data, "dso")
    by_symbol = _perf_report(data, "dso,symbol")
    return f"{by_object}\n\n{by_symbol}"


def _perf_report(data: Path, sort: str) -> str:
    argv = ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-g", "none", "--sort", sort]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return "\n".join(perf_lines(ran.stdout)) or ran.stderr.strip()[-300:]


def perf_lines(text: str) -> list[str]:
    """The lines of a perf report that carry a share, at most LINES."""
    return [line.rstrip() for line in text.splitlines() if re.match(r"\s+\d+\.\d+%", line)][:LINES]


def _cprofile(stats: Path) -> str:
    if not stats.exists():
        return "twistd wrote no profile"
    out = io.StringIO()
    pstats.Stats(str(stats), stream=out).sort_stats("tottime").print_stats(LINES)
    return "\n".join(line for line in out.getvalue().splitlines() if line.strip())
