"""What `layer8 bench tunnel` measures: backends alone, nginx before one, and the tunnel before each of them.

    twisted.web <- direct                      one backend process, asked in three ways
                <- nginx                       stock reverse proxy, with kept connections
                <- sidecar <- relay            layer8
    twisted.web with L8Resource <- relay       layer8-inside
    gunicorn    <- direct                      Flask and Django, two workers each
    gunicorn with L8Middleware <- relay

One relay serves all the gateways. Everything runs for the whole time; only one way is asked at a time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from attrs import define, field

from bench.load import NoLoad
from bench.processes import Child, DidNotStart, free_port
from bench.systems import twistd
from bench.tunnel_backend import AUTHORITY, SMALL, TEXT
from bench.tunnel_load import Loader, Target, opened, seal

WORKERS: Final = 2
PAGE_TEXT: Final = b"Buy 7 &amp; more"
FRAMEWORKS: Final = {"flask": "Flask", "django": "Django"}
ROLES: Final = ("relay", "gateway", "backend")
TITLES: Final = {
    "direct": "direct, twisted.web",
    "nginx": "nginx before it",
    "layer8": "layer8: relay, sidecar",
    "layer8-inside": "layer8: relay, L8Resource",
    "flask": f"direct, Flask, gunicorn with {WORKERS} workers",
    "layer8-flask": "layer8: relay, L8Middleware, Flask",
    "django": f"direct, Django, gunicorn with {WORKERS} workers",
    "layer8-django": "layer8: relay, L8Middleware, Django",
    "chromium": "Chromium",
    "firefox": "Firefox",
}


@define(eq=False)
class Way:
    """One way to a backend, and the processes on it by what they do."""

    name: str
    target: Target
    saturation: float = 1000.0  # requests a second
    roles: Mapping[str, Child] = field(factory=dict)


@define(eq=False)
class Stand:
    """Everything that was started."""

    folder: Path
    loader: Loader
    ways: dict[str, Way] = field(factory=dict)
    reasons: dict[str, str] = field(factory=dict)
    children: list[Child] = field(factory=list)
    relay_port: int = 0
    pin: str = ""
    gateways: dict[str, int] = field(factory=dict)

    def start(self, wanted: Sequence[str]) -> None:
        """Start what the wanted ways need; a way that cannot be had leaves a reason."""
        port = free_port()
        backend = self.launch("backend", [sys.executable, "-m", "bench.tunnel_backend", str(port)], port)
        self.ways["direct"] = Way("direct", Target(f"http://127.0.0.1:{port}"), roles={"backend": backend})
        roles: dict[str, dict[str, Child]] = {}
        if "nginx" in wanted:
            self._try("nginx", lambda: self._nginx(port, backend))
        if "layer8" in wanted:
            roles["layer8"] = {"gateway": self._sidecar(port), "backend": backend}
        if "layer8-inside" in wanted:
            roles["layer8-inside"] = {"gateway": self._inside()}
        for name in FRAMEWORKS:
            if name in wanted or f"layer8-{name}" in wanted:
                self._try(name, partial(self._gunicorn, name, roles))
        if roles:
            relay = self._relay()
            for name, found in roles.items():
                target = Target(f"http://127.0.0.1:{self.relay_port}", name)
                target.learn()
                self.ways[name] = Way(name, target, roles={"relay": relay, **found})
        for way in list(self.ways.values()):
            self._try(way.name, partial(self.check, way))

    def check(self, way: Way) -> tuple[int, int]:
        """Ask once, and see that the answer is the backend's; how many bytes the tunnel adds, up and down."""
        keys, answer = way.target.keys, self.folder / "answer"
        wanted = PAGE_TEXT if way.name.removeprefix("layer8-") in FRAMEWORKS else TEXT
        if keys is None:
            self.loader.curl(way.target.url(SMALL), "-o", str(answer))
            if wanted not in answer.read_bytes():
                raise NoLoad("another answer")
            return 0, 0
        sealed = seal(keys, SMALL)
        self.loader.post(way.target, sealed.body, answer)
        data = answer.read_bytes()
        status, body, inner = opened(sealed.context, data)
        if status != 200 or wanted not in body:
            raise NoLoad(f"the gateway answered {status}")
        return len(sealed.body) - sealed.inner, len(data) - inner

    def cpu_s(self) -> float:
        """Processor seconds of everything that was started."""
        return sum(child.cpu_s() for child in self.children)

    def launch(self, name: str, argv: Sequence[str], port: int, **environ: str) -> Child:
        """Start a program that listens."""
        more = {"LAYER8_HOME": str(self.folder / f"{name}.home"), "PYTHONDONTWRITEBYTECODE": "1"}
        root = str(Path(__file__).parents[1])
        child = Child.start(name, argv, self.folder, {**more, "PYTHONPATH": root, **environ})
        self.children.append(child)
        child.listening(port)
        return child

    def end(self) -> None:
        """End everything."""
        for child in reversed(self.children):
            child.end()

    def _try(self, name: str, start: Callable[[], object]) -> None:
        try:
            start()
        except (DidNotStart, NoLoad, OSError, subprocess.TimeoutExpired) as problem:
            self.reasons[name] = str(problem)
            self.ways.pop(name, None)

    def _nginx(self, backend: int, child: Child) -> None:
        if shutil.which("nginx") is None:
            raise NoLoad("no nginx: apt install nginx")
        port = free_port()
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder, port=port, backend=backend))
        found = self.launch("nginx", ["nginx", "-p", str(self.folder), "-c", str(config)], port)
        self.ways["nginx"] = Way("nginx", Target(f"http://127.0.0.1:{port}"), roles={"relay": found, "backend": child})

    def _sidecar(self, backend: int) -> Child:
        port = free_port()
        config = self.folder / "gateway.toml"
        config.write_text(GATEWAY.format(port=port, backend=backend, authority=AUTHORITY))
        argv = twistd("layer8-gateway", config)
        home = {"LAYER8_HOME": str(self.folder / "sidecar.home")}
        made = Child.start("init", [*argv, "--init"], self.folder, home)
        made.popen.wait(60)
        words = made.output.read_text().split()
        self.pin = words[words.index("pin") + 1] if "pin" in words else ""
        self.gateways["layer8"] = port
        return self.launch("sidecar", argv, port)

    def _inside(self) -> Child:
        port = self.gateways["layer8-inside"] = free_port()
        state = self.folder / "layer8-inside"
        state.mkdir()
        return self.launch("inside", [sys.executable, "-m", "bench.tunnel_backend", str(port), str(state)], port)

    def _gunicorn(self, name: str, roles: dict[str, dict[str, Child]]) -> None:
        for guarded in (False, True):
            row = f"layer8-{name}" if guarded else name
            port, environ = free_port(), {}
            if guarded:
                state = self.folder / row
                state.mkdir()
                environ["L8_STATE"] = str(state)
            argv = [sys.executable, "-m", "gunicorn", "-w", str(WORKERS), "-b", f"127.0.0.1:{port}"]
            child = self.launch(row, [*argv, f"bench.tunnel_backend:{name}()"], port, **environ)
            if guarded:
                roles[row] = {"gateway": child}
                self.gateways[row] = port
            else:
                self.ways[row] = Way(row, Target(f"http://127.0.0.1:{port}"), roles={"backend": child})

    def _relay(self) -> Child:
        port = self.relay_port = free_port()
        app = self.folder / "app"
        app.mkdir()
        (app / "index.html").write_text("<!doctype html><title>tunnel</title>")
        text = RELAY.format(port=port)
        for name, gateway in self.gateways.items():
            text += f'\n[[tunnel.gateway]]\nid = "{name}"\nendpoint = "tcp:127.0.0.1:{gateway}"\n'
            text += f'app = "{app}"\n' if name == "layer8" else ""
        config = self.folder / "relay.toml"
        config.write_text(text)
        return self.launch("relay", twistd("layer8-tunnel", config), port)


RELAY: Final = """[control]
listen = []

[tunnel]
listen = ["tcp:{port}:interface=127.0.0.1"]
"""
GATEWAY: Final = """[control]
listen = []

[gateway]
gateway = "layer8"
authorities = ["{authority}"]
listen = ["tcp:{port}:interface=127.0.0.1"]
backend = "tcp:127.0.0.1:{backend}"
"""
NGINX: Final = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
    access_log off; keepalive_requests 100000000; client_max_body_size 0;
    client_body_temp_path {folder}/n.body; proxy_temp_path {folder}/n.proxy; fastcgi_temp_path {folder}/n.fastcgi;
    uwsgi_temp_path {folder}/n.uwsgi; scgi_temp_path {folder}/n.scgi;
    upstream backend {{ server 127.0.0.1:{backend}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""
