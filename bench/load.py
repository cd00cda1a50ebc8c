"""What makes the load: blast (built here from blast.c), wrk and iperf3."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, frozen

from bench.processes import Child, free_port

SLACK_S = 20.0
"""Seconds a load generator may take longer than it was asked to run."""


class NoLoad(Exception):
    """A load generator is missing or failed; the text says which and why."""


@frozen
class Requests:
    """What wrk counted."""

    count: int
    per_second: float
    errors: int


def parse_wrk(text: str) -> Requests:
    """Read wrk's report; raises NoLoad if it is not one."""
    count = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if not count or not rate:
        raise NoLoad(f"wrk said: {text.strip()[-200:]}")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    statuses = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, socket_errors.groups())) if socket_errors else 0
    return Requests(int(count[1]), float(rate[1]), errors + (int(statuses[1]) if statuses else 0))


def parse_iperf3(text: str) -> float:
    """Received bytes per second in iperf3's JSON report; raises NoLoad if it failed."""
    report = json.loads(text)
    if "error" in report:
        raise NoLoad(f"iperf3 said: {report['error']}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8


@define(eq=False)
class Load:
    """The load generators and the backends they end at."""

    folder: Path
    blast: Path | None
    children: list[Child]
    backends: dict[str, int]
    """Route to port: `bulk` and `ping` end at blast, `web` at nginx, `iperf3` at itself."""

    @classmethod
    def start(cls, folder: Path) -> Load:
        """Build blast and start every backend whose program is installed."""
        load = cls(folder, build(folder), [], {})
        if load.blast is not None:
            for route in ("bulk", "ping"):
                load._serve(route, [str(load.blast), "serve", str(port := free_port())], port)
        if shutil.which("nginx"):
            port = free_port()
            (folder / "web.conf").write_text(WEB.format(folder=folder, port=port, body="x" * 128))
            load._serve("web", ["nginx", "-p", str(folder), "-c", str(folder / "web.conf")], port)
        if shutil.which("iperf3"):
            load._serve("iperf3", ["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port := free_port())], port)
        return load

    def _serve(self, route: str, argv: list[str], port: int) -> None:
        child = Child.start(f"backend-{route}", argv, self.folder)
        self.children.append(child)
        child.listening(port)
        self.backends[route] = port

    def run(self, mode: str, port: int, host: str, *arguments: float) -> dict[str, Any]:
        """Run one blast client to its end and return what it measured."""
        argv = self._argv(mode, port, host, *arguments)
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=sum(arguments[-1:]) + SLACK_S, check=False)
        if ran.returncode:
            raise NoLoad(ran.stderr.strip() or f"blast {mode} failed")
        return dict(json.loads(ran.stdout))

    @contextlib.contextmanager
    def running(self, mode: str, port: int, host: str, *arguments: float) -> Iterator[subprocess.Popen[str]]:
        """A blast client that works meanwhile; its stdin is closed and it is waited for at the end."""
        argv = self._argv(mode, port, host, *arguments)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
            try:
                yield popen
            finally:
                if popen.stdin is not None:
                    popen.stdin.close()
                try:
                    popen.wait(SLACK_S)
                except subprocess.TimeoutExpired:
                    popen.kill()

    def _argv(self, mode: str, port: int, host: str, *arguments: float) -> list[str]:
        if self.blast is None:
            raise NoLoad("no C compiler: apt install gcc")
        return [str(self.blast), mode, str(port), host, *(f"{argument:g}" for argument in arguments)]

    def wrk(self, port: int, host: str, *, seconds: int, close: bool, connections: int = 32) -> Requests:
        """Requests for a small page, each on a connection of its own (`close`) or all on kept ones."""
        if shutil.which("wrk") is None:
            raise NoLoad("no wrk: apt install wrk")
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-H", f"Host: {host}"]
        argv += ["-H", "Connection: close"] if close else []
        argv.append(f"http://127.0.0.1:{port}/")
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + SLACK_S, check=False)
        return parse_wrk(ran.stdout + ran.stderr)

    def iperf3(self, port: int, *, seconds: int, streams: int) -> float:
        """Bytes per second towards us, as iperf3 sees it."""
        argv = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-R", "-J", "-t", str(seconds), "-P", str(streams)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + SLACK_S, check=False)
        return parse_iperf3(ran.stdout)


def build(folder: Path, name: str = "blast") -> Path | None:
    """Compile one of our C programs into `folder`; None if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    ran = subprocess.run([compiler, "-O2", "-o", program, source], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NoLoad(f"{name}.c does not compile: {ran.stderr.strip()[-300:]}")
    return program


WEB = """daemon off; worker_processes 1; pid {folder}/web.pid; error_log {folder}/web.log crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 20000; }}
http {{
    access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/web.body;
    proxy_temp_path {folder}/web.proxy; fastcgi_temp_path {folder}/web.fastcgi;
    uwsgi_temp_path {folder}/web.uwsgi; scgi_temp_path {folder}/web.scgi;
    server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 "{body}"; }} }}
}}
"""
