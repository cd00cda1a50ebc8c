"""What is measured in one hop: nothing at all, the proxies that others run, and layer8's server.

Each has a front port per route and leads it to the backend of the same name, or one port for all of them if it looks
at the Host field. `start` returns when every port takes connections.
"""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

from bench.processes import Child, free_port

ROUTES = ("bulk", "ping", "web", "iperf3")
HOSTS = "bench.test"
"""Every route's host name is ROUTE.bench.test."""


@define(eq=False)
class Running:
    """A system that carries load: where its routes are reached and which processes do it."""

    name: str
    ports: dict[str, int]
    children: list[Child] = field(factory=list)
    tls: bool = False
    """Whether its visitors begin with a TLS hello."""
    secure: int = 0
    """Another port, where visitors begin with a TLS hello and are routed by its name; 0 if there is none."""

    def at(self, route: str) -> tuple[int, str]:
        """Port and host name of a route; raises KeyError if the backend is missing."""
        return self.ports[route], f"{'tls:' if self.tls else ''}{route}.{HOSTS}"

    def cpu_s(self) -> float:
        """Processor seconds so far."""
        return sum(child.cpu_s() for child in self.children)

    def memory(self, kind: str = "Pss") -> int:
        """Bytes of memory."""
        return sum(child.memory(kind) for child in self.children)

    def add(self, part: str, argv: Sequence[str], folder: Path) -> Child:
        """Start one more of its programs, with a home of its own."""
        environ = {"LAYER8_HOME": str(folder / f"{part}.home"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.children.append(Child.start(part, argv, folder, environ))
        return self.children[-1]

    def end(self) -> None:
        """End its processes."""
        for child in reversed(self.children):
            child.end()


Start = Callable[[str, Path, Mapping[str, int]], Running]
"""Name, an empty folder of its own and the backends' ports by route give a running system."""


@frozen
class System:
    """One row of the tables."""

    name: str
    title: str
    start: Start
    needs: tuple[str, ...] = ()
    sniffs: bool = False
    """Routes by Host, so it can refuse strangers, and cannot carry iperf3."""
    forks: bool = False
    """One process per connection: left out of what opens thousands."""
    tunnel: bool = False
    """Has two ends, a server and an agent."""
    far: bool = False
    """With a long way between its two ends, and measured by that alone."""
    only: tuple[str, ...] = ()
    """The figures that say something about it; empty: all."""

    def absent(self) -> str | None:
        """The program that is not installed; None if nothing is missing."""
        return next((f"{program} is not installed" for program in self.needs if not shutil.which(program)), None)


def launch(name: str, programs: Sequence[tuple[str, Sequence[str]]], folder: Path, ports: dict[str, int]) -> Running:
    """Start programs one after the other; the last one's ports are waited for."""
    running = Running(name, ports)
    try:
        for part, argv in programs:
            running.add(part, argv, folder)
        for port in sorted(set(ports.values())):
            running.children[-1].listening(port)
    except BaseException:
        running.end()
        raise
    return running


def direct(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
    """No proxy: the backends themselves."""
    return Running(name, dict(backends))


def _fronts(backends: Mapping[str, int]) -> dict[str, int]:
    return {route: free_port() for route in backends}


HAPROXY = """global
    maxconn {connections}
    nbthread 1
    log stdout format raw local0
    {tune}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {options}
"""


PIPES = "tune.pipesize 1048576"
SPLICE = "option splice-request\n    option splice-response"


def haproxy(tune: str = "", options: str = "") -> Start:
    """The field's best, haproxy, in TCP mode with one thread."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        fronts = _fronts(backends)
        text = _haproxy_head(tune, options)
        for route, port in backends.items():
            text += f"listen {route}\n    bind 127.0.0.1:{fronts[route]} backlog 4096\n"
            text += f"    server {route} 127.0.0.1:{port}\n"
        return _haproxy(name, folder, text, fronts)

    return start


def haproxy_sniffing(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
    """The same doing layer8's work: it routes by Host, refuses strangers, logs each connection, and splices."""
    plain, secure = free_port(), free_port()
    text = _haproxy_head(PIPES, SPLICE)
    hosts = " ".join(f"{route}.{HOSTS}" for route in backends)
    for front, named, known in (
        (plain, "req.hdr(host)", "HTTP"),
        (secure, "req.ssl_sni", "{ req.ssl_hello_type 1 }"),
    ):
        text += f"frontend f{front}\n    bind 127.0.0.1:{front} backlog 4096\n    log global\n    option tcplog\n"
        text += "    tcp-request inspect-delay 10s\n"
        text += f"    tcp-request content accept if {{ {named} -i {hosts} }}\n"
        text += f"    tcp-request content reject if {known} or WAIT_END\n"
        for route in backends:
            text += f"    use_backend {route} if {{ {named} -i {route}.{HOSTS} }}\n"
    for route, port in backends.items():
        text += f"backend {route}\n    server {route} 127.0.0.1:{port}\n"
    running = _haproxy(name, folder, text, dict.fromkeys(backends, plain))
    running.secure = secure
    return running


def _haproxy_head(tune: str, options: str) -> str:
    # haproxy wants two descriptors per connection and half a pipe beside them, or it does not start.
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HAPROXY.format(tune=tune, options=options, connections=min(20000, int((files - 200) / 2.6)))


def _haproxy(name: str, folder: Path, text: str, ports: dict[str, int]) -> Running:
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return launch(name, [("haproxy", ["haproxy", "-db", "-f", str(path)])], folder, ports)


NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
worker_rlimit_nofile 40000; {module}
events {{ worker_connections 40000; }}
stream {{
    {options}
    {servers}
}}
"""


def nginx(options: str = "", target: Callable[[], str] = lambda: "127.0.0.1") -> Start:
    """One worker of nginx with its stream module."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        fronts = _fronts(backends)
        servers = "\n    ".join(
            f"server {{ listen 127.0.0.1:{fronts[route]} backlog=4096; proxy_pass {target()}:{port}; }}"
            for route, port in backends.items()
        )
        found = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        module = f"load_module {found};" if found.exists() else ""
        path = folder / "nginx.conf"
        path.write_text(NGINX.format(folder=folder, module=module, options=options, servers=servers))
        return launch(name, [("nginx", ["nginx", "-p", str(folder), "-c", str(path)])], folder, fronts)

    return start


def socat(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
    """socat, which forks a process per connection."""
    fronts = _fronts(backends)
    running = Running(name, fronts)
    try:
        for route, port in backends.items():
            listen = f"TCP-LISTEN:{fronts[route]},bind=127.0.0.1,reuseaddr,fork,backlog=4096"
            child = Child.start(f"socat-{route}", ["socat", listen, f"TCP:127.0.0.1:{port}"], folder)
            running.children.append(child)
            child.listening(fronts[route])
    except BaseException:
        running.end()
        raise
    return running


LIMITS = """
[proxy.limits]
per_source_sniffing = 10000
per_source_open = 20000
data_unauthenticated_per_source = 1000
pending_per_host = 10000
"""
"""All load comes from one address, so what bounds one address is raised; nothing else is."""


def twistd(plugin: str, config: Path, *, before: Sequence[str] = ()) -> list[str]:
    """The command line of a twistd plugin under this interpreter, in the foreground."""
    run = "from twisted.scripts.twistd import run; run()"
    return [sys.executable, "-c", run, "-n", "--pidfile=", *before, plugin, "--config", str(config)]


def layer8_config(
    folder: Path, front: int, backends: Mapping[str, int], *, secure: int = 0, keys: str = "", host_keys: str = ""
) -> Path:
    """Write the server's configuration: each route's host dialled by the server, the access log on."""
    text = f"""[control]
listen = []

[proxy]
http = ["tcp:{front}:interface=127.0.0.1"]
https = [{f'"tcp:{secure}:interface=127.0.0.1"' if secure else ""}]
agents = []
data = []
public_http = 80
public_https = 443
access_log = "{folder}/access.log"
{keys}{LIMITS}"""
    for route, port in backends.items():
        text += f'\n[[proxy.host]]\nhost = "{route}.{HOSTS}"\ntarget = "tcp:127.0.0.1:{port}"\n{host_keys}'
    path = folder / "layer8.toml"
    path.write_text(text)
    return path


def layer8(keys: str = "", host_keys: str = "") -> Start:
    """layer8's server with hosts that it dials itself: sniffing, accounting and access log on."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        front, secure = free_port(), free_port()
        config = layer8_config(folder, front, backends, secure=secure, keys=keys, host_keys=host_keys)
        programs = [("layer8-proxy", twistd("layer8-proxy", config))]
        running = launch(name, programs, folder, dict.fromkeys(backends, front))
        running.secure = secure
        return running

    return start


_BULK = ("down1", "down8", "down64", "up8", "iperf3")
_WORK = ("idle", "down8", "close", "keep", "ping", "first", "held", "scan")

ONE_HOP: tuple[System, ...] = (
    System("direct", "direct, no proxy", direct),
    System(
        "haproxy-best",
        "haproxy, splice, 1 MiB pipes",
        haproxy(PIPES, SPLICE),
        ("haproxy",),
        only=(*_BULK, "idle", "close", "ping", "loaded"),
    ),
    System("haproxy", "haproxy, mode tcp as shipped", haproxy(), ("haproxy",)),
    System("haproxy-sniff", "haproxy, splice + Host + log", haproxy_sniffing, ("haproxy",), sniffs=True, only=_WORK),
    System("nginx", "nginx stream as shipped", nginx(), ("nginx",), only=_WORK),
    System("nginx-256k", "nginx stream, 256k buffer", nginx("proxy_buffer_size 256k;"), ("nginx",), only=_BULK),
    System("socat", "socat, fork", socat, ("socat",), forks=True, only=("down8", "close", "first")),
    System("layer8", "layer8 (guard, limits, log)", layer8(), sniffs=True),
    System(
        "layer8-raw",
        "layer8, mode raw",
        layer8(host_keys='mode = "raw"\n'),
        sniffs=True,
        only=("idle", "down8", "close", "keep", "ping", "first"),
    ),
    System(
        "layer8-2",
        "layer8, 2 workers",
        layer8("workers = 2\n"),
        sniffs=True,
        only=("down8", "close", "keep", "first"),
    ),
)
