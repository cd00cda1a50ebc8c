"""What most interop tests visit: nginx with files, behind a server that dials it, and behind server and agent.

::

    visitor ──▶ server ──▶ agent ──▶ nginx        NAME.agent.test
    visitor ──▶ server ──────────▶ nginx          NAME.static.test

`web` is nginx in plain HTTP/1 on the http port and in TLS on the https port, `h2c` is HTTP/2 without TLS. The stage is
put up once for all tests of a run.
"""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from attrs import frozen

from layer8.crypto.x509 import self_signed
from tests.interop.daemons import RUN, Agent, Program, Proxy, Scope, answers, folder, found, free_port

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = {
    "1": 1,
    "1k": KIB,
    "64k-1": 64 * KIB - 1,
    "64k": 64 * KIB,
    "64k+1": 64 * KIB + 1,
    "1m": MIB,
    "100m": 100 * MIB,
}
"""Names of files and their sizes in bytes; 64 KiB is one read of the pump."""
NAMES = [f"{name}.{way}.test" for way in ("agent", "static") for name in ("web", "tls", "h2c")]
WAYS = ("agent", "static")
MODES = {"h2c": 'mode = "raw"\n'}
"""Keys of hosts that are not for HTTP/1: nobody could guard what only HTTP/2 can read."""
CURL = ("curl", "-sS", "--no-progress-meter", "--fail", "--noproxy", "*", "--max-time", "120")


def pattern(path: Path, size: int) -> str:
    """Write a file in which no two MiB are alike and give its SHA-256."""
    block = bytearray(os.urandom(MIB))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(0, size, MIB):
            block[:8] = number.to_bytes(8, "big")
            part = memoryview(block)[: min(MIB, size - number)]
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@frozen
class Nginx:
    """nginx with a folder of files, where a PUT below /up/ makes a file in `uploads`."""

    program: Program
    plain: int
    secure: int
    h2c: int
    files: Path
    uploads: Path
    certificate: Path

    @classmethod
    def start(cls, scope: Scope, names: Sequence[str], prefix: tuple[str, ...] = ()) -> "Nginx":
        """Start it with a certificate for `names`; with `prefix`, a command that runs another, it may be elsewhere."""
        home = folder(scope)
        os.chmod(home, 0o755)
        key, certificate = self_signed(names)
        (home / "key.pem").write_bytes(key)
        (home / "cert.pem").write_bytes(certificate)
        for name in ("files", "up"):
            (home / name).mkdir()
        plain, secure, h2c = free_port(), free_port(), free_port()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        place = """
        keepalive_requests 100000;
        client_max_body_size 0;
        location / { root files; }
        location /up/ { root .; dav_methods PUT; create_full_put_path on; }"""
        (home / "nginx.conf").write_text(f"""
daemon off;
user root;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4000; }}
http {{
    access_log off;
    sendfile on;
    {" ".join(f"{kind}_temp_path {kind};" for kind in kinds)}
    server {{ listen 127.0.0.1:{plain} backlog=4096; {place} }}
    server {{ listen 127.0.0.1:{h2c} http2; {place} }}
    server {{
        listen 127.0.0.1:{secure} ssl;
        ssl_certificate cert.pem;
        ssl_certificate_key key.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:s:1m;
        ssl_early_data on;
        {place}
    }}
}}
""")
        program = Program.start(
            scope,
            "nginx",
            [*prefix, str(found("nginx")), "-p", str(home), "-e", "error.log", "-c", "nginx.conf"],
            home,
            ready=lambda _: bool(prefix) or (answers(plain) and answers(secure) and answers(h2c)),
        )
        return cls(program, plain, secure, h2c, home / "files", home / "up", home / "cert.pem")


@frozen
class Stage:
    """nginx, a server and an agent."""

    nginx: Nginx
    server: Proxy
    agent: Agent
    sums: dict[str, str]

    def url(self, kind: str, way: str, path: str) -> tuple[str, ...]:
        """Give curl's words for a path: the host's name, and where it is."""
        scheme, port = ("https", self.server.https) if kind == "tls" else ("http", self.server.http)
        host = f"{kind}.{way}.test"
        trust = ("--cacert", str(self.nginx.certificate)) if kind == "tls" else ()
        return ("--resolve", f"{host}:{port}:127.0.0.1", *trust, f"{scheme}://{host}:{port}{path}")

    def fetched(self, *words: str) -> tuple[str, int]:
        """Let curl print something and give its hash and size."""
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(MIB))
        with subprocess.Popen([*CURL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
            assert curl.stdout is not None and curl.stderr is not None
            while got := os.readv(curl.stdout.fileno(), [buffer]):
                digest.update(buffer[:got])
                size += got
            complaint = curl.stderr.read().decode()
        if curl.returncode:
            raise AssertionError(f"curl {' '.join(words)}: {complaint.strip()}, after {size} bytes")
        return digest.hexdigest(), size

    def put(self, name: str, *words: str) -> tuple[str, int]:
        """Let curl upload a file as `name` (the last word is /up/ with its host), and give what nginx got."""
        subprocess.run([*CURL, *words[:-1], words[-1] + name], check=True, capture_output=True)
        arrived = self.nginx.uploads / name
        try:
            return sha256(arrived), arrived.stat().st_size
        finally:
            arrived.unlink()


def build(scope: Scope, text: str = "") -> Stage:
    """Put up a stage; `text` is more keys of [proxy]."""
    nginx = Nginx.start(scope, NAMES)
    sums = {name: pattern(nginx.files / name, size) for name, size in SIZES.items()}
    backends = {"web": nginx.plain, "tls": nginx.secure, "h2c": nginx.h2c}
    static = "".join(
        f'[[proxy.host]]\nhost = "{kind}.static.test"\ntarget = "tcp:127.0.0.1:{port}"\n{MODES.get(kind, "")}'
        for kind, port in backends.items()
    )
    server = Proxy.start(
        scope, f"{text}\n{static}", secrets={f"{kind}.agent.test": MODES.get(kind, "") for kind in backends}
    )
    agent = Agent.start(
        scope,
        server,
        {
            f"{kind}.agent.test": {(server.https if kind == "tls" else server.http): f"tcp:127.0.0.1:{port}"}
            for kind, port in backends.items()
        },
    )
    return Stage(nginx, server, agent, sums)


def pair(scope: Scope, *, plain: int = 0, tls: int = 0, text: str = "", agent_text: str = "") -> tuple[Proxy, Agent]:
    """Put up a server and an agent for a test's own backends on 127.0.0.1.

    `plain` is where visitors of the http port go, under `web.agent.test` and `web.static.test`; `tls` where those of
    the https port go, under `tls.agent.test` and `tls.static.test`. `text` is more keys of [proxy], then tables.
    """
    backends = {kind: port for kind, port in (("web", plain), ("tls", tls)) if port}
    static = "".join(
        f'\n[[proxy.host]]\nhost = "{kind}.static.test"\ntarget = "tcp:127.0.0.1:{port}"\n'
        for kind, port in backends.items()
    )
    server = Proxy.start(scope, text + static, secrets=[f"{kind}.agent.test" for kind in backends])
    ports = {"web": server.http, "tls": server.https}
    targets = {f"{kind}.agent.test": {ports[kind]: f"tcp:127.0.0.1:{port}"} for kind, port in backends.items()}
    return server, Agent.start(scope, server, targets, agent_text)


@cache
def stage() -> Stage:
    """Give the stage that all tests of this run share; everything in it is as shipped."""
    return build(RUN)


@cache
def ciphered() -> Stage:
    """Give the stage whose data connections are all inside TLS."""
    return build(RUN, 'data_tls = "always"')
