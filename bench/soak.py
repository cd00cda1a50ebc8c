"""A long time under a steady load, and whether anything grows: `layer8 bench soak --minutes 60`.

::

    1,000 paused downloads ──▶             ──▶ agent ──▶ blast       one in ten is replaced and reads on meanwhile
      100 throttled ones   ──▶   server    ──▶                       by the host's policy of 2 MB/s
       20 visitors a second ─▶             ──▶ 100 agents ──▶ blast  of which one leaves and comes back each second

Memory and descriptors of server and agent are looked at all the time. After a warm-up of a quarter of the time, the
medians of the first and the last fifth of what remains may differ by 5 %.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import resource
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from attrs import asdict, define, field, frozen
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.load import NoLoad, build
from bench.processes import DidNotStart, free_port
from bench.systems import HOSTS, LIMITS, Running, twistd
from bench.tunnels import wait_until_served, write_secret

KERNEL = "4096 131072 262144"
"""Bytes that the kernel may keep for a connection in one direction: least, at first, most.

Its usual most is 6 MB, and a thousand paused downloads would take what all of the machine's connections share.
"""
FLAT = 0.05
"""By how much the end may differ from the beginning."""
WARM_UP = 0.25
"""The part of the time that does not count."""
BANDWIDTH = 2_000_000
"""Bytes per second of all throttled downloads together, by policy."""
CHANGING = 0.1
"""The part of the paused downloads that others take the place of."""
PAUSE_AFTER = 1 << 18
"""Bytes that a paused download reads before it rests, and once more in the middle of its life."""
RECEIVE = 1 << 17
"""Bytes that the kernel keeps for a visitor who rests.

What does not fit it drops, and sends again after a time that doubles: so loopback lets a paused connection stall, with
or without a proxy, and to read on may take minutes.
"""
OPENED = 8
"""Downloads of a host that begin at one look, ten times a second: a steady load, and no storm."""
PATIENCE = """call_step = 5.0
call_time = 10.0
"""
"""Limits for a machine that others use as well: what is looked for is growth, not speed."""
ROWS = 10
"""Lines of the table."""
VISITS = 20
"""Fresh visitors a second."""
ABORT = struct.pack("ii", 1, 0)
PAUSED, THROTTLED, CROWD = "stay", "slow", "crowd"


@define(eq=False)
class Download:
    """One visitor who reads without end, or rests."""

    sock: socket.socket
    host: str
    ends: float
    resumes: float
    left: int


@define(eq=False)
class Visitors:
    """All visitors of the run, in two threads of their own."""

    port: int
    paused: int
    throttled: int
    crowd: int
    life: float
    """Seconds that a download lasts at most."""
    counts: Counter[str] = field(factory=Counter)
    waits: list[float] = field(factory=list)
    over: threading.Event = field(factory=threading.Event)
    chance: random.Random = field(factory=random.Random)
    _selector: selectors.BaseSelector = field(factory=selectors.DefaultSelector)
    _downloads: dict[str, list[Download]] = field(factory=lambda: {PAUSED: [], THROTTLED: []})
    _threads: list[threading.Thread] = field(factory=list)

    def start(self) -> None:
        """Begin."""
        for work in (self._download, self._visit):
            self._threads.append(threading.Thread(target=work))
            self._threads[-1].start()

    def stop(self) -> None:
        """End, and wait for it."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def standing(self, host: str) -> int:
        """Count the downloads of a host at this moment."""
        return len(self._downloads[host])

    def _download(self) -> None:
        try:
            while not self.over.is_set():
                now = time.monotonic()
                for host, wanted in ((PAUSED, self.paused), (THROTTLED, self.throttled)):
                    self._renew(host, wanted, now)
                events = self._selector.select(0.05)
                for key, _ in events:
                    self._read(key.data)
                # Between two looks data gathers, so that a look is worth its price.
                time.sleep(0.05)
            for one in self._downloads[PAUSED]:
                self.counts["paused to the end"] += self._stands(one)
        finally:
            for downloads in self._downloads.values():
                for one in downloads:
                    one.sock.close()

    def _renew(self, host: str, wanted: int, now: float) -> None:
        downloads = self._downloads[host]
        for one in [one for one in downloads if one.ends <= now]:
            self._leave(one)
        for one in downloads:
            if one.resumes <= now and one.ends > now and one.sock not in self._selector.get_map():
                one.resumes = one.ends
                one.left = PAUSE_AFTER
                self.counts["resumed"] += 1
                self._selector.register(one.sock, selectors.EVENT_READ, one)
        for _ in range(min(OPENED, wanted - len(downloads))):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE)
            sock.settimeout(10)
            try:
                sock.connect(("127.0.0.1", self.port))
                sock.sendall(_request("down", f"{host}.{HOSTS}"))
            except OSError:
                sock.close()
                self.counts["broken"] += 1
                return
            sock.setblocking(False)
            ends = now + self.life * self.chance.uniform(0.5, 1)
            if host == THROTTLED:
                one = Download(sock, host, ends, ends, 1 << 60)
            elif sum(other.ends < math.inf for other in downloads) < wanted * CHANGING:
                one = Download(sock, host, ends, now + (ends - now) / 2, PAUSE_AFTER)
            else:
                one = Download(sock, host, math.inf, math.inf, PAUSE_AFTER)
            downloads.append(one)
            self._selector.register(sock, selectors.EVENT_READ, one)
            self.counts[f"{host} begun"] += 1

    def _leave(self, one: Download) -> None:
        """Leave by a reset: what waits in full buffers would keep the connection for minutes after an end."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(one.sock)
            if one.host == PAUSED:
                self.counts["still reading on"] += 1
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        one.sock.close()
        self._downloads[one.host].remove(one)

    def _read(self, one: Download) -> None:
        try:
            data = one.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.counts["broken"] += 1
            self._selector.unregister(one.sock)
            one.sock.close()
            self._downloads[one.host].remove(one)
            return
        self.counts[f"{one.host} bytes"] += len(data)
        one.left -= len(data)
        if one.left <= 0:
            self._selector.unregister(one.sock)

    def _stands(self, one: Download) -> bool:
        """Say whether a download that rested all the time is still there."""
        with contextlib.suppress(BlockingIOError):
            try:
                while data := one.sock.recv(1 << 16):
                    self.counts["bytes at the end"] += len(data)
            except ConnectionError:
                pass
            self.counts["broken"] += 1
            return False
        return True

    def _visit(self) -> None:
        """Ask for one byte again and again, of the agent that stays and of those that leave."""
        number = 0
        while not self.over.wait(1 / VISITS):
            number += 1
            crowd = number % 2
            host = f"{CROWD}{self.chance.randrange(self.crowd)}" if crowd else PAUSED
            begun = time.monotonic()
            served = _served(self.port, f"{host}.{HOSTS}")
            self.waits.append(time.monotonic() - begun)
            kind = "crowd" if crowd else "stay"
            self.counts[f"{kind} {'served' if served else 'refused'}"] += 1


def _request(mode: str, host: str) -> bytes:
    return f"GET /{mode} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def _served(port: int, host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(_request("one", host))
        return bool(sock.recv(100))
    return False


@frozen
class Look:
    """What server and agent hold at one moment: resident memory in bytes, and descriptors."""

    at: float
    server_rss: int
    server_fds: int
    agent_rss: int
    agent_fds: int


HELD = ("server_rss", "server_fds", "agent_rss", "agent_fds")


def drift(looks: Sequence[Look], warm_up: float = WARM_UP) -> dict[str, float]:
    """How much more is held at the end than after the warm-up, as a share, from medians of a fifth of the time each."""
    kept = looks[int(len(looks) * warm_up) :]
    fifth = max(1, len(kept) // 5)
    found = {}
    for name in HELD:
        begin, end = (median(getattr(look, name) for look in part) for part in (kept[:fifth], kept[-fifth:]))
        found[name] = end / begin - 1
    return found


def rows(looks: Sequence[Look]) -> list[list[str]]:
    """The table: medians of equal parts of the time."""
    made = []
    for number in range(ROWS):
        part = looks[len(looks) * number // ROWS : len(looks) * (number + 1) // ROWS]
        if part:
            held = [median(getattr(look, name) for look in part) for name in HELD]
            sizes = [
                f"{value / 1e6:.1f}" if "rss" in name else f"{value:.0f}"
                for name, value in zip(HELD, held, strict=True)
            ]
            made.append([f"{part[0].at / 60:.1f}-{part[-1].at / 60:.1f}", *sizes])
    return made


HEAD = ["minutes", "server RSS, MB", "server fds", "agent RSS, MB", "agent fds"]


def verdicts(
    drifts: Mapping[str, float], counts: Mapping[str, int], throttled_rate: float, wanted: Mapping[str, int]
) -> list[str]:
    """Everything that is wrong with a run; nothing if it is sound."""
    wrong = [f"{name} changed by {share:+.1%}" for name, share in drifts.items() if abs(share) > FLAT]
    if counts["broken"]:
        wrong.append(f"{counts['broken']} downloads broke")
    if counts["still reading on"] > counts["resumed"] * 0.5:
        wrong.append(f"{counts['still reading on']} paused downloads did not get on")
    if counts["stay refused"]:
        wrong.append(f"{counts['stay refused']} visitors of the agent that stays were not served")
    if counts["crowd refused"] > counts["crowd served"] * 0.05:
        wrong.append(f"{counts['crowd refused']} visitors of agents that come and go were not served")
    if throttled_rate > BANDWIDTH * 1.1:
        wrong.append(f"throttled downloads got {throttled_rate / 1e6:.1f} MB/s")
    wrong += [
        f"only {counts[f'{host} begun']} {host} downloads" for host in wanted if counts[f"{host} begun"] < wanted[host]
    ]
    return wrong


def _configure(folder: Path, crowd: int, port: int) -> tuple[int, list[tuple[str, Sequence[str]]]]:
    """Write every configuration; gives the port for visitors and the programs: server, agent, crowd."""
    front, agents, data = free_port(), free_port(), free_port()
    server = f"""[control]
listen = []

[proxy]
http = ["tcp:{front}:interface=127.0.0.1"]
https = []
agents = ["tcp:{agents}:interface=127.0.0.1"]
data = ["tcp:{data}:interface=127.0.0.1"]
public_http = 80
data_tls = "never"
access_log = "{folder}/access.log"
{LIMITS}{PATIENCE}"""
    head = f'[control]\nlisten = []\n\n[agent]\nservers = ["ws://127.0.0.1:{agents}"]\n'
    texts = {"agent": head, "crowd": head}
    secret = write_secret(folder / "secret")
    for name in (PAUSED, THROTTLED, *(f"{CROWD}{number}" for number in range(crowd))):
        host = f'host = "{name}.{HOSTS}"\nsecret_file = "{secret}"\n'
        server += f"\n[[proxy.host]]\n{host}" + (f"bandwidth = {BANDWIDTH}\n" if name == THROTTLED else "")
        target = f'targets = {{ 80 = "tcp:127.0.0.1:{port}" }}\n'
        texts["crowd" if name.startswith(CROWD) else "agent"] += f"\n[[agent.host]]\n{host}{target}"
    for name, text in (("server", server), *texts.items()):
        (folder / f"{name}.toml").write_text(text)
    return front, [
        ("layer8-proxy", twistd("layer8-proxy", folder / "server.toml")),
        ("layer8-agent", twistd("layer8-agent", folder / "agent.toml")),
        ("crowd", [sys.executable, "-m", "bench.crowd", str(folder / "crowd.toml"), str(crowd / 100)]),
    ]


def soak(folder: Path, seconds: float, paused: int, throttled: int, crowd: int, tell: Console) -> dict[str, Any]:
    """Run it; gives looks, counts, drifts and what is wrong. Raises NoLoad or DidNotStart."""
    blast = build(folder)
    if blast is None:
        raise NoLoad("no C compiler: apt install gcc")
    port = free_port()
    front, programs = _configure(folder, crowd, port)
    running = Running("soak", {"ping": front})
    visitors = Visitors(front, paused, throttled, crowd, min(300.0, seconds / 10))
    looks: list[Look] = []
    try:
        # Its buffers are small, so that a paused download is held up by its visitor and not by the kernel's memory.
        backend = running.add("blast", [str(blast), "serve", str(port), "127.0.0.1", "65536"], folder)
        backend.listening(port)
        for part, argv in programs:
            running.add(part, argv, folder)
        server, agent, agents = running.children[1:]
        wait_until_served(running, lambda: _must_serve(front, f"{PAUSED}.{HOSTS}"))
        wait_until_served(running, lambda: _must_serve(front, f"{CROWD}{crowd - 1}.{HOSTS}"))
        visitors.start()
        begun = time.monotonic()
        step = min(5.0, seconds / 100)
        throttled_from = 0
        while (now := time.monotonic() - begun) < seconds:
            time.sleep(step)
            if now < seconds * WARM_UP:
                throttled_from, since = visitors.counts[f"{THROTTLED} bytes"], time.monotonic()
            look = Look(
                now, server.memory("Rss"), server.descriptors(False), agent.memory("Rss"), agent.descriptors(False)
            )
            looks.append(look)
            tell.print(
                f"{now / 60:6.1f} min: server {look.server_rss / 1e6:.1f} MB {look.server_fds} fds, "
                f"agent {look.agent_rss / 1e6:.1f} MB {look.agent_fds} fds, {visitors.standing(PAUSED)} paused",
                highlight=False,
            )
        rate = (visitors.counts[f"{THROTTLED} bytes"] - throttled_from) / (time.monotonic() - since)
        visitors.stop()
        for child in (server, agent, agents):
            if child.popen.poll() is not None:
                raise DidNotStart(f"{child.name} ended: {child.last_words()}")
        counts: Counter[str] = Counter(visitors.counts)
        counts["agents replaced"] = int(agents.last_words() or 0)
        cpu = {child.name: child.cpu_s() for child in (server, agent)}
        said = {child.name: child.output.read_text(errors="replace") for child in (server, agent)}
        defects = [name for name, text in said.items() if "Traceback" in text]
    finally:
        visitors.stop()
        running.end()
    drifts = drift(looks)
    waits = sorted(visitors.waits)
    wrong = verdicts(drifts, counts, rate, {PAUSED: paused, THROTTLED: throttled})
    wrong += [f"{name} told of a bug of its own" for name in defects]
    return {
        "seconds": seconds,
        "looks": [asdict(look) for look in looks],
        "rows": rows(looks),
        "counts": dict(counts),
        "throttled_mb_s": rate / 1e6,
        "wait_p50_ms": waits[len(waits) // 2] * 1e3,
        "wait_p99_ms": waits[len(waits) * 99 // 100] * 1e3,
        "cpu_s": cpu,
        "drift": drifts,
        "wrong": wrong,
    }


def _must_serve(port: int, host: str) -> None:
    if not _served(port, host):
        raise NoLoad(f"{host} is not served")


@click.command()
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(min=0.2), help="How long.")
@click.option("--paused", default=1000, show_default=True, help="Downloads whose visitors rest.")
@click.option("--throttled", default=100, show_default=True, help="Downloads that the host's policy makes slow.")
@click.option("--agents", default=100, show_default=True, help="Agents of which 1 % leave and come back each second.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(minutes: float, paused: int, throttled: int, agents: int, as_json: bool) -> None:
    """Carry a steady load for a long time and see whether memory or descriptors grow; leaves with 1 if they do."""
    facts = machine.describe()
    facts["network"] = machine.private_network(tcp_rmem=KERNEL, tcp_wmem=KERNEL).text()
    machine.most_descriptors()
    needed = 2 * (paused + throttled) + 500
    if (have := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < needed:
        raise click.ClickException(f"at most {have} descriptors here (ulimit -n), {needed} are needed")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through every `finally`
    with tempfile.TemporaryDirectory(prefix="layer8-soak-") as folder:
        try:
            found = soak(Path(folder), minutes * 60, paused, throttled, agents, Console(stderr=True))
        except (NoLoad, DidNotStart) as problem:
            raise click.ClickException(str(problem)) from None
    if as_json:
        json.dump({"facts": facts, **found}, sys.stdout, indent=1)
        print()
    else:
        _show(Console(), facts, found)
    sys.exit(1 if found["wrong"] else 0)


def _show(console: Console, facts: Mapping[str, str], found: Mapping[str, Any]) -> None:
    for name, text in facts.items():
        console.print(f"[dim]{name}:[/dim] {text}", highlight=False)
    table = Table(title=f"{found['seconds'] / 60:g} minutes", title_justify="left", title_style="bold")
    for name in HEAD:
        table.add_column(name, justify="right")
    for cells in found["rows"]:
        table.add_row(*cells)
    console.print(table)
    for name, count in sorted(found["counts"].items()):
        console.print(f"{name}: {count}", highlight=False)
    waits = f"a visitor's wait: p50 {found['wait_p50_ms']:.1f} ms, p99 {found['wait_p99_ms']:.1f} ms"
    console.print(f"throttled downloads together: {found['throttled_mb_s']:.2f} MB/s; {waits}", highlight=False)
    for name, share in found["drift"].items():
        console.print(f"{name}: {share:+.1%} from after the warm-up to the end", highlight=False)
    console.print("; ".join(found["wrong"]) or "flat, and nobody was let down", highlight=False)


if __name__ == "__main__":
    main(prog_name="layer8 bench soak")
