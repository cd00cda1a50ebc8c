"""A proxy in front that keeps its connections for whoever comes next: what leaks in raw, and what guard makes of it.

::

    visitors ──▶ nginx, upstream keep-alive ──▶ layer8 ──▶ one tenant
                                                      └──▶ another
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.backend import serve
from tests.interop.daemons import Agent, Program, Proxy, Scope, answers, folder, found, free_port, missing, until
from tests.interop.stage import CURL, WAYS, pair

TENANTS = ("one.test", "two.test")
READ_S = 20.0


def nginx(scope: Scope, name: str, text: str, *ports: int) -> Program:
    """Start nginx with these servers."""
    home = folder(scope)
    os.chmod(home, 0o755)
    kinds = " ".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        "daemon off; user root; worker_processes 1; pid nginx.pid; error_log error.log;\n"
        f"events {{ worker_connections 1000; }}\nhttp {{ access_log off; {kinds}\n{text} }}\n"
    )
    words = [str(found("nginx")), "-p", str(home), "-e", "error.log", "-c", "nginx.conf"]
    return Program.start(scope, name, words, home, ready=lambda _: all(map(answers, ports)))


def front(scope: Scope, server: Proxy) -> int:
    """Start a proxy that has a pool of connections to `server` for all its visitors; give its port."""
    port = free_port()
    text = f"""
    upstream layer8 {{ server 127.0.0.1:{server.http}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://layer8;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
        }}
    }}"""
    nginx(scope, "front", text, port)
    return port


class PooledFrontTests(SynchronousTestCase):
    skip = missing(nginx="nginx", curl="curl")

    def put_up(self, mode: str) -> tuple[Proxy, Agent, int]:
        """Two tenants of one agent's machine behind a server in that mode, and a pooling proxy before it."""
        ports = {host: free_port() for host in TENANTS}
        nginx(
            self,
            "tenants",
            "".join(f'server {{ listen 127.0.0.1:{port}; return 200 "{host}"; }}\n' for host, port in ports.items()),
            *ports.values(),
        )
        server = Proxy.start(self, f'mode = "{mode}"\n', secrets=TENANTS)
        targets = {host: {server.http: f"tcp:127.0.0.1:{port}"} for host, port in ports.items()}
        return server, Agent.start(self, server, targets), front(self, server)

    def visit(self, port: int, host: str) -> tuple[str, str]:
        words = [*CURL[:3], "--noproxy", "*", "--max-time", "20", "-H", f"Host: {host}", "-w", "\\n%{http_code}"]
        said = subprocess.run([*words, f"http://127.0.0.1:{port}/"], check=True, capture_output=True, text=True).stdout
        body, _, code = said.rpartition("\n")
        return code, body

    def reasons(self, server: Proxy) -> list[str]:
        return [row["reason"] for row in server.access()]

    def test_raw_leaks_what_guard_keeps_apart(self) -> None:
        """The same visits, and only the mode differs: in raw the second tenant's visitor is shown the first's page."""
        server, _, port = self.put_up("raw")
        self.assertEqual(self.visit(port, "one.test"), ("200", "one.test"))
        self.assertEqual(self.visit(port, "two.test"), ("200", "one.test"))
        server, agent, port = self.put_up("guard")
        self.assertEqual(self.visit(port, "one.test"), ("200", "one.test"))
        self.assertEqual(self.visit(port, "two.test")[0], "421")
        self.assertEqual(self.visit(port, "two.test"), ("200", "two.test"), "the connection it met is closed")
        self.assertEqual(self.visit(port, "two.test"), ("200", "two.test"))
        until("the access log says so", lambda: "misdirected" in self.reasons(server))
        self.assertEqual(json.dumps([*server.defects(), *agent.defects()]), "[]")

    def test_a_tenant_cannot_answer_for_another(self) -> None:
        server, agent = pair(self, plain=serve(self, lying))
        port = front(self, server)
        for way in (*WAYS, *WAYS):
            self.assertIn(self.visit(port, f"web.{way}.test"), [("200", "one"), ("421", "Misdirected Request\n")], way)
        self.assertEqual(json.dumps([*server.defects(), *agent.defects()]), "[]")

    def test_proxy_mode_brings_each_to_its_own(self) -> None:
        server, agent, port = self.put_up("proxy")
        for host in (*TENANTS, *TENANTS, "two.test"):
            self.assertEqual(self.visit(port, host), ("200", host))
        self.assertNotIn("misdirected", self.reasons(server))
        self.assertEqual(json.dumps([*server.defects(), *agent.defects()]), "[]")


def lying(connection: socket.socket) -> None:
    """Answer, and once the visitor has ended answer again, whatever it has asked of somebody else."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nlie")


def numbered(connection: socket.socket) -> None:
    """Answer each request with its number on this connection; slowly, and go on to the end of the visitor's half."""
    seen, number = b"", 0
    while data := connection.recv(65536):
        seen += data
        while b"\r\n\r\n" in seen:
            _, _, seen = seen.partition(b"\r\n\r\n")
            number += 1
            time.sleep(0.1)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)


class GuardTests(SynchronousTestCase):
    def visit(self, server: Proxy, data: bytes) -> bytes:
        """Say all of it, go on listening, and give what comes until the end."""
        with socket.create_connection(("127.0.0.1", server.http), READ_S) as visitor:
            visitor.sendall(data)
            return drained_bytes(visitor)

    def get(self, host: str, more: str = "") -> bytes:
        return f"GET / HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()

    def test_earlier_answers_come_first(self) -> None:
        server, agent = pair(self, plain=serve(self, numbered))
        for way in WAYS:
            host = f"web.{way}.test"
            said = self.visit(server, self.get(host) * 3 + self.get("other.test") + self.get(host))
            self.assertEqual(re.findall(rb"HTTP/1\.1 (\d+) ", said), [b"200", b"200", b"200", b"421"], way)
            self.assertTrue(said.endswith(b"Misdirected Request\n"))
        self.assertEqual(json.dumps([*server.defects(), *agent.defects()]), "[]")

    def test_a_later_upgrade_gets_a_connection_of_its_own(self) -> None:
        server, agent = pair(self, plain=serve(self, numbered))
        for way in WAYS:
            host = f"web.{way}.test"
            with socket.create_connection(("127.0.0.1", server.http), READ_S) as visitor:
                for request, number in (
                    (self.get(host), b"1"),
                    (self.get(host), b"2"),
                    (self.get(host, "Connection: upgrade\r\nUpgrade: websocket\r\n"), b"1"),
                    (self.get(host), b"2"),
                ):
                    visitor.sendall(request)
                    self.assertTrue(visitor.recv(1000).endswith(b"\r\n\r\n" + number))
        self.assertEqual(json.dumps([*server.defects(), *agent.defects()]), "[]")

    def test_doubt_reaches_nobody(self) -> None:
        def reached(connection: socket.socket) -> None:
            raise AssertionError("somebody was asked")

        server, _ = pair(self, plain=serve(self, reached))
        host = "web.static.test"
        for request, status in (
            (self.get(host, "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), b"400"),
            (self.get(host, "Content-Length: 1\r\nContent-Length: 1\r\n"), b"400"),
            (self.get(host, "Transfer-Encoding: gzip, chunked\r\n"), b"400"),
        ):
            self.assertEqual(self.visit(server, request)[9:12], status, request)


def drained_bytes(connection: socket.socket) -> bytes:
    """Read to the end."""
    data = b""
    while got := connection.recv(65536):
        data += got
    return data
