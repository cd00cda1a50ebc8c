"""The sniffing proxies of others, set up to route like ours: haproxy, nginx and sniproxy, each at its best.

`www.example.com` and `[2001:db8::1]` go to the backend A, `evil.example.net` and `other.example.net` to E, all else to
D. Buffers are as large as ours, so that a row is not lost to a default size.
"""

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from attrs import define, frozen

from tests.interop.recorder import Recorder
from tests.proxy.rows import Row

PATIENCE = 1.5  # seconds until a peer that neither forwards nor closes counts as waiting
GRACE = 0.05  # seconds that more bytes have after the first answer
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # servers are not on everybody's
_BLANK_LINE = re.compile(rb"\n\r?\n")


@frozen
class Ports:
    """Where a peer listens and where its backends are."""

    listen: int
    a: int
    e: int
    d: int


def haproxy(ports: Ports, scheme: str, folder: Path) -> list[str]:
    tls = """
    mode tcp
    tcp-request inspect-delay 1s
    tcp-request content accept if { req.ssl_hello_type 1 }
    tcp-request content reject
    use_backend a if { req.ssl_sni -i www.example.com }
    use_backend e if { req.ssl_sni -i evil.example.net other.example.net }"""
    http = """
    mode http
    use_backend a if { req.hdr(host),host_only -i www.example.com [2001:db8::1] }
    use_backend e if { req.hdr(host),host_only -i evil.example.net other.example.net }"""
    mode = "tcp" if scheme == "https" else "http"
    backends = "".join(
        f"backend {name}\n    mode {mode}\n    server {name} 127.0.0.1:{port}\n"
        for name, port in (("a", ports.a), ("e", ports.e), ("d", ports.d))
    )
    (folder / "haproxy.cfg").write_text(f"""
global
    maxconn 200
    nbthread 1
    tune.bufsize 131072
defaults
    timeout connect 1s
    timeout client 2s
    timeout server 2s
    timeout http-request 1s
frontend f
    bind 127.0.0.1:{ports.listen}{tls if scheme == "https" else http}
    default_backend d
{backends}""")
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


def nginx(ports: Ports, scheme: str, folder: Path) -> list[str]:
    stream = f"""
stream {{
    map $ssl_preread_server_name $backend {{
        www.example.com 127.0.0.1:{ports.a};
        evil.example.net 127.0.0.1:{ports.e};
        other.example.net 127.0.0.1:{ports.e};
        default 127.0.0.1:{ports.d};
    }}
    server {{
        listen 127.0.0.1:{ports.listen};
        ssl_preread on;
        preread_buffer_size 128k;
        preread_timeout 1s;
        proxy_pass $backend;
    }}
}}
"""
    servers = "".join(
        f"""
    server {{
        listen 127.0.0.1:{ports.listen}{extra};
        server_name {names};
        location / {{ proxy_pass http://127.0.0.1:{port}; proxy_set_header Host $http_host; }}
    }}"""
        for names, port, extra in (
            ("_", ports.d, " default_server"),
            ('www.example.com "[2001:db8::1]"', ports.a, ""),
            ("evil.example.net other.example.net", ports.e, ""),
        )
    )
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    http = f"""
http {{
    access_log off;
    large_client_header_buffers 4 64k;
    client_header_timeout 1s;
{temporary}{servers}
}}
"""
    (folder / "nginx.conf").write_text(f"""
{"load_module /usr/lib/nginx/modules/ngx_stream_module.so;" if scheme == "https" else ""}
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 200; }}
{stream if scheme == "https" else http}""")
    return ["nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def sniproxy(ports: Ports, scheme: str, folder: Path) -> list[str]:
    (folder / "sniproxy.conf").write_text(f"""
user root
pidfile {folder}/sniproxy.pid
error_log {{
    filename {folder}/error.log
}}
listen 127.0.0.1:{ports.listen} {{
    proto {"tls" if scheme == "https" else "http"}
    table t
    fallback 127.0.0.1:{ports.d}
}}
table t {{
    (?i)^www\\.example\\.com$ 127.0.0.1:{ports.a}
    (?i)^\\[2001:db8::1\\]$ 127.0.0.1:{ports.a}
    (?i)^evil\\.example\\.net$ 127.0.0.1:{ports.e}
    (?i)^other\\.example\\.net$ 127.0.0.1:{ports.e}
}}
""")
    return ["sniproxy", "-f", "-c", str(folder / "sniproxy.conf")]


Setup = Callable[[Ports, str, Path], list[str]]
PEERS: dict[str, Setup] = {"haproxy": haproxy, "nginx": nginx, "sniproxy": sniproxy}


def marker(letter: bytes) -> Callable[[bytes], bytes]:
    """An HTTP answer once a request's head is there, for the proxies that want one before they go on."""

    def reply(seen: bytes) -> bytes:
        if len(_BLANK_LINE.findall(seen)) == 1:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n" + letter
        return b""

    return reply


@define(eq=False)
class Peer:
    """A running peer and its three backends."""

    port: int
    backends: dict[str, Recorder]
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, name: str, scheme: str, folder: Path) -> "Peer":
        """Start the program on an ephemeral port and wait until it listens."""
        folder.mkdir(parents=True)
        backends = {letter: Recorder(marker(letter.encode())) for letter in "AED"}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        ports = Ports(port, backends["A"].port, backends["E"].port, backends["D"].port)
        command = PEERS[name](ports, scheme, folder.resolve())
        command[0] = shutil.which(command[0], path=PATH) or command[0]
        log = folder / "output.log"
        try:
            return cls(port, backends, command, log, launch(command, log, port))
        except AssertionError:
            for backend in backends.values():
                backend.close()
            raise

    def stop(self) -> None:
        """End the program by its process id, and the backends."""
        end(self.process)
        for backend in self.backends.values():
            backend.close()

    def outcome(self, row: Row) -> str:
        """Send one row and say what became of it; a peer that dies of it is started again for the next."""
        outcome = self._sent(row)
        if outcome in ("X", "waits"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                self.process = launch(self.command, self.log, self.port)
                return "dies"
        return outcome

    def _sent(self, row: Row) -> str:
        """Give A, D, E, an HTTP status, X for closed, or `waits`.

        A, D and E have a star if the bytes that reached the backend are not those that were sent.
        """
        before = {letter: len(backend.connections) for letter, backend in self.backends.items()}
        answer = b""
        closed = False
        until = time.monotonic() + PATIENCE
        with socket.create_connection(("127.0.0.1", self.port)) as visitor:
            visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pause = 0.02 if len(row.pieces) < 10 else 0.0005
            visitor.settimeout(PATIENCE)
            with contextlib.suppress(OSError):
                for piece in row.pieces:
                    visitor.sendall(piece)
                    if len(row.pieces) > 1:
                        time.sleep(pause)
            visitor.settimeout(0.01)
            while time.monotonic() < until and not closed:
                for letter, backend in self.backends.items():
                    for seen in backend.connections[before[letter] :]:
                        if seen == row.data:
                            return letter
                try:
                    data = visitor.recv(65536)
                    answer += data
                    closed = not data
                    until = min(until, time.monotonic() + GRACE)
                except TimeoutError:
                    continue
                except OSError:
                    closed = True
        for letter, backend in self.backends.items():
            if len(backend.connections) > before[letter]:
                return f"{letter}*"
        if answer.startswith(b"HTTP/1."):
            return answer[9:12].decode()
        return "X" if closed else "waits"


def launch(command: list[str], log: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a program and wait until it listens."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    for _ in range(200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return process
        time.sleep(0.05)
    end(process)
    raise AssertionError(f"{command[0]} does not start: {log.read_text()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program, at once if it does not within ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def missing(name: str) -> str | None:
    """Say why a peer cannot be run here, naming its Debian package."""
    if shutil.which(name, path=PATH) is None:
        return f"{name} is not installed (Debian package {name})"
    if name == "nginx" and not Path("/usr/lib/nginx/modules/ngx_stream_module.so").exists():
        return "nginx has no stream module (Debian package libnginx-mod-stream)"
    return None
