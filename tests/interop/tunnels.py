"""A relay, a gateway and a backend of the browser tunnel, each a process of its own.

::

    tunnel = Tunnel.start(case)                              a backend, twistd layer8-gateway, twistd layer8-tunnel
    client = L8Client(reactor, **tunnel.connect())
    tunnel.relay.again(); tunnel.gateway.again()             ended, and started with the same folder and ports
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.interop.daemons import Daemon, Program, Scope, answers, folder, free_port

BACKEND = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together
    def do_GET(self):
        size = int(self.headers.get("content-length") or 0)
        told = {"method": self.command, "uri": self.path, "body": self.rfile.read(size).decode("latin-1"),
                "fields": [[name.lower(), value] for name, value in self.headers.items()]}
        if self.path.startswith("/big/"):
            body = b"x" * int(self.path.split("/")[2])
        else:
            body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_PUT = do_GET
    def log_message(self, *words):
        print(self.command, self.path, flush=True)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""


@define(eq=False)
class Part(Daemon):
    """A relay or a gateway, which may be ended and started again."""

    ports: Sequence[int] = ()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.begin(lambda: self.up() and all(answers(port) for port in self.ports))

    def again(self, *, kill: bool = False) -> None:
        """End it and start it with the same folder."""
        if kill:
            self.program.kill()
        else:
            self.program.stop()
        self.start()


@define(eq=False)
class Tunnel:
    """See the module."""

    scope: Scope
    home: Path
    relays: list[Part] = field(factory=list)
    gateway: Part = field(init=False)
    backend: Program = field(init=False)
    backend_port: int = field(factory=free_port)
    gateway_port: int = field(factory=free_port)
    relay_ports: list[int] = field(factory=list)

    @classmethod
    def start(cls, scope: Scope, *, endpoint: str = "", relays: int = 1) -> Tunnel:
        """Start all of it; `endpoint` is how relays reach the gateway, else directly."""
        tunnel = cls(scope, folder(scope))
        tunnel.start_backend()
        tunnel.gateway = tunnel._part(
            "gateway",
            (tunnel.gateway_port,),
            '[gateway]\ngateway = "shop"\nauthorities = ["shop.test"]\n'
            f'listen = ["tcp:{tunnel.gateway_port}:interface=127.0.0.1"]\n'
            f'backend = "tcp:127.0.0.1:{tunnel.backend_port}"\n',
        )
        for _ in range(relays):
            tunnel.add_relay(endpoint)
        return tunnel

    def start_backend(self) -> None:
        """Start the backend, or start it again."""
        words = [sys.executable, "-c", BACKEND, str(self.backend_port)]
        self.backend = Program.start(
            self.scope, "backend", words, self.home, None, lambda _: answers(self.backend_port)
        )

    def add_relay(self, endpoint: str = "", port: int = 0, *, certificate: Path | None = None) -> Part:
        """Start a relay, at a port that somebody may know already; with a `certificate`, its key beside it, by TLS."""
        port = port or free_port()
        self.relay_ports.append(port)
        where = endpoint or f"tcp:127.0.0.1:{self.gateway_port}"
        kind, files = "tcp", ""
        if certificate is not None:
            key = certificate.with_name("key.pem")
            kind, files = "tls", f'tls_cert_file = "{certificate}"\ntls_key_file = "{key}"\n'
        text = (
            f'[tunnel]\nlisten = ["{kind}:{port}:interface=127.0.0.1"]\n{files}[[tunnel.gateway]]\nid = "shop"\n'
            f'endpoint = "{where}"\nhost = "shop.test"\nidentity = ["{self.pin}"]\n'
        )
        relay = self._part("tunnel", (port,), text)
        self.relays.append(relay)
        return relay

    @property
    def relay(self) -> Part:
        """Give the first relay."""
        return self.relays[0]

    @property
    def pin(self) -> str:
        """Give the gateway's identity."""
        return str(self.gateway.ask("gateway.keys")["pin"])

    def connect(self, **more: Any) -> dict[str, Any]:
        """Give what a client connects with."""
        relays = [f"http://127.0.0.1:{port}" for port in self.relay_ports]
        return {"relay": relays, "gateway": "shop", "pin": self.pin, **more}

    def _part(self, role: str, ports: Sequence[int], text: str) -> Part:
        home = folder(self.scope)
        (home / "test.toml").write_text(f"{text}\n[control]\nlisten = []\n")
        part = Part(role, home, self.scope, (), ports=ports)
        part.start()
        return part
