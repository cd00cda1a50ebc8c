"""The figures: each is one short measurement of one system, and gives one or more named values.

Bulk is counted in GB (10^9 bytes) of what the visitor gets or sends; processor time is that of the system's own
processes, with what the kernel does in their name.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from statistics import median

from attrs import frozen

from bench.load import Load, NoLoad
from bench.systems import HOSTS, Running, System

PINGS = 5
"""Connections of which the median one is a sample."""

Values = dict[str, float]


@frozen
class Effort:
    """How long and how often."""

    seconds: float
    repetitions: int
    idle: int
    quick: bool
    patience: float
    """Seconds to wait for a quiet moment before a sample."""


@frozen
class Figure:
    """A measurement; `takes` says for which systems it makes sense, `rounds` how often at most it is repeated."""

    name: str
    measure: Callable[[Load, Running, Effort], Values]
    quick: bool = True
    rounds: int = 1000
    far: bool = False
    """For systems with a long way between their ends, and no others."""
    fresh: bool = False
    """Right only in a process that has done nothing yet: memory once given out is kept, and would hide the rest."""
    takes: Callable[[System], bool] = lambda system: True

    def of(self, system: System) -> bool:
        """Say whether `system` is measured by it."""
        wanted = not system.only or self.name in system.only
        return wanted and self.far == system.far and self.takes(system)


def bulk(mode: str, streams: int) -> Callable[[Load, Running, Effort], Values]:
    """GB/s and processor milliseconds per GB of `streams` connections that all carry as much as they can."""

    def measure(load: Load, running: Running, effort: Effort) -> Values:
        before = running.cpu_s()
        got = load.run(mode, *running.at("bulk"), streams, effort.seconds)
        if got["failed"]:
            raise NoLoad(f"{got['failed']} of {streams} streams broke")
        name = f"{mode}{streams}"
        return {
            f"{name}.gbps": got["bytes"] / got["seconds"] / 1e9,
            f"{name}.cpu": (running.cpu_s() - before) * 1e3 / (got["all_bytes"] / 1e9),
            f"{name}.fair": got["least"] / max(got["most"], 1),
        }

    return measure


def requests(name: str, close: bool) -> Callable[[Load, Running, Effort], Values]:
    """Requests a second by 32 clients, and processor microseconds of each."""

    def measure(load: Load, running: Running, effort: Effort) -> Values:
        before = running.cpu_s()
        got = load.wrk(*running.at("web"), seconds=max(1, round(effort.seconds)), close=close)
        if not got.count:
            raise NoLoad("no request was answered")
        return {
            f"{name}.rate": got.per_second,
            f"{name}.cpu": (running.cpu_s() - before) * 1e6 / got.count,
            f"{name}.errors": got.errors,
        }

    return measure


def rate(load: Load, running: Running, effort: Effort) -> Values:
    """Fresh visitors a second by 32 clients that want one byte each, and processor microseconds of each."""
    before = running.cpu_s()
    got = load.run("rate", *running.at("ping"), 32, effort.seconds)
    if got["failed"] or not got["count"]:
        raise NoLoad(f"{got['failed']} of {got['failed'] + got['count']} visitors got nothing")
    return {
        "rate.rate": got["count"] / got["seconds"],
        "rate.cpu": (running.cpu_s() - before) * 1e6 / got["count"],
    }


def ping(load: Load, running: Running, effort: Effort) -> Values:
    """Microseconds of a round trip of 64 bytes on a quiet machine."""
    # The scheduler may leave both ends on one core or wake an idle one for each message, and keeps to it: ask anew.
    got = [_pinged(load, running, effort.seconds / 8) for _ in range(PINGS)]
    return {f"ping.{part}": median(one[part] for one in got) / 1e3 for part in ("p50", "p99")}


def _pinged(load: Load, running: Running, seconds: float) -> Values:
    got = load.run("ping", *running.at("ping"), seconds)
    if not got["count"]:
        raise NoLoad(f"fewer than 21 round trips in {seconds:g} s")
    return got


def loaded(load: Load, running: Running, effort: Effort) -> Values:
    """The same while eight streams fill the same proxy."""
    with load.running("down", *running.at("bulk"), 8, effort.seconds * 1.2):
        time.sleep(0.3)
        got = _pinged(load, running, effort.seconds)
    return {"loaded.p50": got["p50"] / 1e3, "loaded.p99": got["p99"] / 1e3}


def first(load: Load, running: Running, effort: Effort) -> Values:
    """Microseconds from connect to the first byte, one connection after the other."""
    got = load.run("first", *running.at("ping"), 200 if effort.quick else 400)
    return {"first.p50": got["p50"] / 1e3, "first.p99": got["p99"] / 1e3}


def idle(load: Load, running: Running, effort: Effort) -> Values:
    """User memory of one connection that has carried something and now says nothing."""
    load.run("first", *running.at("ping"), 100)
    time.sleep(0.2)
    before = running.memory()
    with load.running("idle", *running.at("ping"), effort.idle) as popen:
        if popen.stdout is None or not popen.stdout.readline():
            raise NoLoad(f"{effort.idle} idle connections could not be opened")
        time.sleep(0.3)
        each = (running.memory() - before) / effort.idle
    time.sleep(0.3)
    return {"idle.bytes": each, "base.mb": before / 1e6}


def held(load: Load, running: Running, effort: Effort) -> Values:
    """Milliseconds to the first byte while 2,000 connections have said nothing yet."""
    with load.running("hold", *running.at("ping"), 2000) as popen:
        if popen.stdout is None or not popen.stdout.readline():
            raise NoLoad("2000 silent connections could not be opened")
        got = load.run("first", *running.at("ping"), 200)
    time.sleep(0.3)
    return {"held.p99": got["p99"] / 1e6}


def scan(load: Load, running: Running, effort: Effort) -> Values:
    """Processor microseconds for each TLS visitor of an unknown name, and by how much such visitors make it grow."""
    where = running.secure, f"tls:scan.{HOSTS}"
    load.run("scan", *where, 5000, 1)
    memory, before = running.memory("Rss"), running.cpu_s()
    got = load.run("scan", *where, 5000, 2 if effort.quick else 30)
    if got["open"]:
        raise NoLoad(f"{got['open']} of {got['opened']} strangers were not refused")
    return {
        "scan.cpu": (running.cpu_s() - before) * 1e6 / max(got["closed"], 1),
        "scan.rate": got["closed"] / got["seconds"],
        "scan.grown": (running.memory("Rss") - memory) / 1e3,
    }


def killed(load: Load, running: Running, effort: Effort) -> Values:
    """What visitors notice when one agent of two ends without a word: `kill -9` of the last program."""
    where = running.at("ping")
    over = threading.Event()
    seen: list[tuple[float, float, bool]] = []

    def visitors() -> None:
        while not over.is_set():
            began = time.monotonic()
            fine = _one_byte(*where)
            seen.append((began, time.monotonic(), fine))

    threads = [threading.Thread(target=visitors) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    running.children[-1].popen.kill()
    time.sleep(3)
    over.set()
    for thread in threads:
        thread.join()
    after = [one for one in seen if one[0] >= begun]
    good = [ended for _, ended, fine in after if fine]
    if not good:
        raise NoLoad("no visitor was served any more")
    return {
        "killed.first": (min(good) - begun) * 1e3,
        "killed.longest": max(ended - began for began, ended, _ in after) * 1e3,
        "killed.failed": len(after) - len(good),
        "killed.visitors": len(after),
    }


def _one_byte(port: int, host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(f"GET /one HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return bool(sock.recv(100))
    return False


def iperf3(load: Load, running: Running, effort: Effort) -> Values:
    """GB/s of eight streams as iperf3 sees them: a check of our own load generator."""
    return {"iperf3.gbps": load.iperf3(running.at("iperf3")[0], seconds=1, streams=8) / 1e9}


def _proxy(system: System) -> bool:
    return system.name != "direct" and not system.forks


FIGURES: tuple[Figure, ...] = (
    Figure("idle", idle, rounds=1, fresh=True, takes=_proxy),
    Figure("down1", bulk("down", 1)),
    Figure("down8", bulk("down", 8)),
    Figure("down64", bulk("down", 64), quick=False),
    Figure("up8", bulk("up", 8), quick=False),
    Figure("close", requests("close", True)),
    Figure("keep", requests("keep", False)),
    Figure("ping", ping),
    Figure("loaded", loaded),
    Figure("first", first),
    Figure("held", held, quick=False, rounds=1, takes=_proxy),
    Figure("scan", scan, rounds=1, takes=lambda system: system.name in ("haproxy-sniff", "layer8")),
    Figure("rate", rate, takes=lambda system: system.tunnel),
    Figure("killed", killed, rounds=1, takes=lambda system: "killed" in system.only),
    Figure(
        "iperf3",
        iperf3,
        quick=False,
        rounds=3,
        takes=lambda system: system.name in ("direct", "haproxy-best", "haproxy", "nginx-256k"),
    ),
)
