"""The browser tunnel as it is deployed: nginx ends TLS in front of the relay and of the gateway.

The web server's configuration is the one that docs/tunnel-relay.md gives, with other ports and files in it.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.crypto.x509 import self_signed
from layer8.tunnel.client import L8Client
from tests.interop.daemons import Program, answers, folder, found, free_port, missing
from tests.interop.tunnels import Tunnel
from tests.names import ROOT

KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
BLOCK = re.compile(r"```nginx\n(.*?)```", re.DOTALL)
UPGRADE = [
    *("-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"),
    *("-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "-H", "Sec-WebSocket-Protocol: l8.noise.v1"),
]


class NginxTests(TestCase):
    """L35."""

    timeout = 60
    skip = missing(nginx="nginx", curl="curl")

    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return Deferred.fromCoroutine(self.begin())

    async def begin(self) -> None:
        home = self.home = folder(self)
        home.chmod(0o755)
        key, certificate = self_signed(["localhost"])
        self.authority = home / "cert.pem"
        (home / "key.pem").write_bytes(key)
        self.authority.write_bytes(certificate)
        self.port, self.inner, self.relay = free_port(), free_port(), free_port()
        self.tunnel = await deferToThread(Tunnel.start, self, relays=0)
        await deferToThread(self.start)
        await deferToThread(self.tunnel.add_relay, f"tls:localhost:{self.inner}:ca={self.authority}", self.relay)

    def start(self) -> None:
        """Start nginx with the page's lines for the relay, and the same ones for the gateway."""
        [page] = BLOCK.findall((ROOT / "docs" / "tunnel-relay.md").read_text())
        server, found_map, last = page.partition("map $http_upgrade")
        (self.home / "nginx.conf").write_text(
            "daemon off;\nuser root;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log;\nevents {}\nhttp {\n"
            + "".join(f"{kind}_temp_path {kind};\n" for kind in KINDS)
            + self.lines(server, self.port, self.relay)
            + self.lines(server, self.inner, self.tunnel.gateway_port).replace(
                "access_log off;", "access_log inner.log;"
            )
            + f"{found_map}{last}}}\n"
        )
        words = [str(found("nginx")), "-p", str(self.home), "-e", "error.log", "-c", "nginx.conf"]
        self.nginx = Program.start(
            self, "nginx", words, self.home, None, lambda _: answers(self.port) and answers(self.inner)
        )

    def lines(self, page: str, port: int, behind: int) -> str:
        """Give the page's server with other ports and files."""
        for said, here in (
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
            ("relay.example *.relay.example", "localhost"),
            ("/etc/ssl/relay.pem", "cert.pem"),
            ("/etc/ssl/relay.key", "key.pem"),
            ("http://127.0.0.1:5000", f"http://127.0.0.1:{behind}"),
        ):
            self.assertIn(said, page)
            page = page.replace(said, here)
        return page

    def client(self) -> L8Client:
        from twisted.internet import reactor

        where = f"https://localhost:{self.port}"
        client = L8Client(reactor, **{**self.tunnel.connect(), "relay": where, "ca": str(self.authority)})
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    def curl(self, *words: str) -> bytes:
        line = [str(found("curl")), "-sS", "--max-time", "10", "--cacert", str(self.authority), *words]
        return subprocess.run(line, check=True, capture_output=True, timeout=20).stdout

    async def test_both_legs(self) -> None:
        client = self.client()
        answer = await client.post("/notes?x=1", "words", timeout=20)
        told: dict[str, Any] = await answer.json()
        self.assertEqual((answer.status, told["uri"], told["body"]), (200, "/notes?x=1", "words"))
        answer = await client.get("/big/3000000", timeout=20)
        self.assertEqual(len(await answer.content()), 3_000_000)
        inner = (self.home / "inner.log").read_text()
        self.assertIn("POST /.well-known/ohttp-gateway", inner)
        self.assertNotIn("notes", inner)
        self.assertEqual([path.name for path in self.home.rglob("access*")], [], "who asks is not written down")

    async def test_keys_over_http_2(self) -> None:
        said = await deferToThread(
            self.curl, "--http2", "-w", "\n%{http_version} %{http_code}", f"https://localhost:{self.port}/r/shop/keys"
        )
        document, _, end = said.rpartition(b"\n")
        self.assertEqual(end, b"2 200")
        self.assertEqual(set(json.loads(document)), {"protected", "payload", "signature"})

    async def test_it_writes_down_nobody(self) -> None:
        """Neither who is answered, nor who finds the relay away."""
        words = ("--interface", "127.9.9.9", "-o", "/dev/null", "-w", "%{http_code}")
        url = f"https://localhost:{self.port}/r/shop/keys"
        self.assertEqual(await deferToThread(self.curl, *words, url), b"200")
        await deferToThread(self.tunnel.relay.program.stop)
        self.assertEqual(await deferToThread(self.curl, *words, url), b"502")
        await deferToThread(self.nginx.stop)
        said = "".join(path.read_text(errors="replace") for path in self.home.glob("*.log"))
        self.assertNotIn("127.9.9.9", said)

    async def test_sockets_are_let_through(self) -> None:
        url = f"https://localhost:{self.port}/ws/shop"
        words = ("--http1.1", "-N", "-i", "--max-time", "2", *UPGRADE, url)
        line = [str(found("curl")), "-sS", "--cacert", str(self.authority), *words]
        done = await deferToThread(lambda: subprocess.run(line, capture_output=True, timeout=20))
        self.assertIn(b" 101 ", done.stdout.split(b"\r\n")[0])
        self.assertIn(b"l8.noise.v1", done.stdout)
