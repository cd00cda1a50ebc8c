"""A long way between server and agent: a link that takes its time into a network namespace of its own.

::

    visitor ──▶ server ──▶ 10.98.0.1 ~~ delay ~~ 10.98.0.2 ──▶ agent ──▶ blast
            near namespace                          far namespace

The visitor is next to the server, so what it waits for is round trips of that link: nginx alone needs two (SYN, data).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Mapping

from attrs import define

from bench import tunnels
from bench.figures import Effort, Figure, Values
from bench.load import Load, NoLoad, build
from bench.processes import START_S, Child, free_port
from bench.systems import Running, System, nginx

NEAR, FAR = "10.98.0.1", "10.98.0.2"
VISITORS = 30
"""Fresh visitors of one sample, one after the other."""


@define(eq=False)
class Delay:
    """The link; it does nothing until it is started."""

    child: Child | None = None
    port: int = 0
    """Where blast listens at the far end, on every address."""

    def start(self, load: Load) -> None:
        """Make both ends and start blast at the far one; raises NoLoad where that is not possible."""
        program = build(load.folder, "delay")
        if program is None or load.blast is None:
            raise NoLoad("no C compiler: apt install gcc")
        if shutil.which("nsenter") is None:
            raise NoLoad("no nsenter: apt install util-linux")
        argv = [str(program), NEAR, FAR, "0"]
        child = self.child = Child.start("delay", argv, load.folder, stdin=subprocess.PIPE)
        load.children.append(child)
        end = time.monotonic() + START_S
        while child.last_words() != "ready":
            if child.popen.poll() is not None or time.monotonic() > end:
                raise NoLoad(f"no link between two namespaces: {child.last_words()}")
            time.sleep(0.02)
        self.port = free_port()
        served = (*self.place().enter, str(load.blast), "serve", str(self.port), "0.0.0.0")
        backend = Child.start("backend-far", served, load.folder)
        load.children.append(backend)
        backend.listening(self.port, FAR)

    def place(self) -> tunnels.Place:
        """The server's address as it is seen from the far end, and how one gets there."""
        if self.child is None:
            raise NoLoad("there is no link")
        return tunnels.Place(NEAR, ("nsenter", f"--net=/proc/{self.child.popen.pid}/ns/net", "--"))

    def backends(self) -> Mapping[str, int]:
        """What the systems across the link lead to."""
        return {"ping": self.port}

    def set(self, round_trip_ms: float) -> None:
        """Let a packet and its answer take so long from now on."""
        if self.child is None or self.child.popen.stdin is None:
            raise NoLoad("there is no link")
        with contextlib.suppress(BrokenPipeError):
            self.child.popen.stdin.write(b"%d\n" % round(round_trip_ms * 500))
            self.child.popen.stdin.flush()


def far(link: Delay, round_trip_ms: int) -> Figure:
    """Milliseconds from connect to the first byte of visitors beside the server, and how many round trips that is."""
    name = f"far{round_trip_ms}"

    def measure(load: Load, running: Running, effort: Effort) -> Values:
        link.set(0)
        load.run("first", *running.at("ping"), 4)
        link.set(round_trip_ms)
        time.sleep(round_trip_ms * 5 / 1e3)  # what was kept ready is replaced at the new distance
        try:
            got = load.run("first", *running.at("ping"), VISITORS)
        finally:
            link.set(0)
        median, last = got["p50"] / 1e6, got["p99"] / 1e6
        return {
            f"{name}.p50": median,
            f"{name}.p99": last,
            f"{name}.trips": median / round_trip_ms,
            f"{name}.spread": last / median,
        }

    return Figure(name, measure, quick=round_trip_ms <= 40, rounds=3, far=True)


def far_figures(link: Delay) -> tuple[Figure, ...]:
    """What is measured across the link."""
    return far(link, 40), far(link, 80)


def far_systems(link: Delay) -> tuple[System, ...]:
    """The rows that have the link between their two ends."""
    return (
        System("far-nginx", "nginx stream, one hop", nginx(target=lambda: FAR), ("nginx",), far=True),
        System("far-layer8", "layer8 server + agent", tunnels.layer8("never", link.place), far=True),
        System("far-layer8-bare", "layer8, no pool", tunnels.layer8("never", link.place, pool=0), far=True),
        System("far-rathole", "rathole", tunnels.rathole(link.place), ("rathole",), far=True),
        System("far-frp", "frp, tcp_mux as shipped", tunnels.frp(True, link.place), ("frps", "frpc"), far=True),
    )
