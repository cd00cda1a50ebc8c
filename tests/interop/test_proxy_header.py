"""PROXY protocol with those who have it: haproxy in front of us, haproxy and nginx behind us, both versions.

::

    curl ──▶ haproxy ──header──▶ server ──▶ agent ──header──▶ haproxy or nginx

Visitors come from an address of their own, 127.0.0.77, so that whoever is asked can say whom it sees.
"""

import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.x509 import self_signed
from tests.interop.daemons import RUN, Agent, Program, Proxy, Scope, answers, folder, found, free_port, missing, until
from tests.interop.stage import CURL

VISITOR = "127.0.0.77"
BALANCER = "127.0.0.1"
VERSIONS = ("v1", "v2")
AGENTS = ("v1.agent.test", "v2.agent.test", "hidden.agent.test")
NAMES = (*AGENTS, "v1.static.test", "v2.static.test", "hidden.static.test")


class Behind:
    """haproxy and nginx that want a header, on ports for HTTP and TLS, and say whom they see."""

    def __init__(self, scope: Scope) -> None:
        home = folder(scope)
        home.chmod(0o755)
        key, certificate = self_signed(NAMES)
        (home / "key.pem").write_bytes(key)
        (home / "cert.pem").write_bytes(certificate)
        (home / "both.pem").write_bytes(certificate + key)
        self.certificate = home / "cert.pem"
        self.nginx, self.nginx_tls, self.haproxy, self.haproxy_tls = (free_port() for _ in range(4))
        self._start_nginx(scope, home)
        self._start_haproxy(scope, home)

    def _start_nginx(self, scope: Scope, home: Path) -> None:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        place = 'location / { return 200 "nginx sees [$proxy_protocol_addr]\\n"; }'
        (home / "nginx.conf").write_text(f"""
daemon off;
user root;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 200; }}
http {{
    access_log off;
    {" ".join(f"{kind}_temp_path {kind};" for kind in kinds)}
    server {{ listen 127.0.0.1:{self.nginx} proxy_protocol; {place} }}
    server {{
        listen 127.0.0.1:{self.nginx_tls} ssl proxy_protocol;
        ssl_certificate cert.pem;
        ssl_certificate_key key.pem;
        {place}
    }}
}}
""")
        words = [str(found("nginx")), "-p", str(home), "-e", "error.log", "-c", "nginx.conf"]
        Program.start(scope, "nginx", words, home, ready=lambda _: answers(self.nginx) and answers(self.nginx_tls))

    def _start_haproxy(self, scope: Scope, home: Path) -> None:
        (home / "behind.cfg").write_text(f"""
global
    maxconn 200
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
frontend f
    bind 127.0.0.1:{self.haproxy} accept-proxy
    bind 127.0.0.1:{self.haproxy_tls} ssl crt {home}/both.pem accept-proxy
    http-request return status 200 content-type text/plain lf-string "haproxy sees [%[src]]\\n"
""")
        words = [str(found("haproxy")), "-db", "-f", str(home / "behind.cfg")]
        Program.start(scope, "behind", words, home, ready=lambda _: answers(self.haproxy) and answers(self.haproxy_tls))


def in_front(scope: Scope, server: Proxy, version: str) -> tuple[int, int]:
    """Put haproxy in front of a server and give its ports for HTTP and TLS."""
    home = folder(scope)
    plain, secure = free_port(), free_port()
    option = "send-proxy" if version == "v1" else "send-proxy-v2"
    (home / "front.cfg").write_text(f"""
global
    maxconn 200
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 10s
    timeout server 10s
listen plain
    bind 127.0.0.1:{plain}
    server layer8 127.0.0.1:{server.http} {option}
listen secure
    bind 127.0.0.1:{secure}
    server layer8 127.0.0.1:{server.https} {option}
""")
    words = [str(found("haproxy")), "-db", "-f", str(home / "front.cfg")]
    Program.start(scope, "front", words, home, ready=lambda _: answers(plain) and answers(secure))
    return plain, secure


class Stage:
    """A server that passes addresses on, its agent, and those behind them; a server that believes haproxy."""

    def __init__(self, scope: Scope) -> None:
        self.behind = behind = Behind(scope)
        self.open = self._server(scope, "")
        self.believing = self._server(scope, f'proxy_from = ["{BALANCER}"]\n')
        self.fronts = {version: in_front(scope, self.believing, version) for version in VERSIONS}
        for server in (self.open, self.believing):
            targets = {
                server.http: f"tcp:127.0.0.1:{behind.haproxy}",
                server.https: f"tcp:127.0.0.1:{behind.nginx_tls}",
            }
            Agent.start(
                scope,
                server,
                dict.fromkeys(AGENTS, targets),
                more={
                    "v1.agent.test": 'proxy_protocol = "v1"',
                    "v2.agent.test": 'proxy_protocol = "v2"',
                    "hidden.agent.test": 'proxy_protocol = "v2"',
                },
            )

    def _server(self, scope: Scope, text: str) -> Proxy:
        behind = self.behind
        static = "".join(
            f'[[proxy.host]]\nhost = "{version}.static.test"\ntarget = "tcp:127.0.0.1:{behind.nginx}"\n'
            f'proxy_protocol = "{version}"\nvisitor = "full"\n'
            for version in VERSIONS
        )
        static += (
            f'[[proxy.host]]\nhost = "hidden.static.test"\ntarget = "tcp:127.0.0.1:{behind.nginx}"\n'
            'proxy_protocol = "v1"\n'
        )
        full = 'visitor = "full"\n'
        return Proxy.start(
            scope,
            f'visitor = "full"\n{text}\n[log]\nformat = "json"\nblur = 0\naddresses = "clear"\n{static}',
            secrets={"v1.agent.test": full, "v2.agent.test": full, "hidden.agent.test": ""},
        )


class _Once:
    stage: Stage | None = None


def stage() -> Stage:
    """Give the stage of this run."""
    if _Once.stage is None:
        _Once.stage = Stage(RUN)
    return _Once.stage


class HeaderCase(SynchronousTestCase):
    skip = missing(haproxy="haproxy", nginx="nginx", curl="curl")

    def fetch(self, host: str, plain: int, secure: int = 0) -> str:
        """Visit a host through haproxy in front, or directly, from the visitor's address."""
        port, scheme = (secure, "https") if secure else (plain, "http")
        trust = ("--cacert", str(stage().behind.certificate)) if secure else ()
        words = ("--interface", VISITOR, "--resolve", f"{host}:{port}:127.0.0.1", *trust, f"{scheme}://{host}:{port}/")
        done = subprocess.run([*CURL, *words], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()


class BehindTests(HeaderCase):
    """Agents and servers that introduce visitors to what is behind them."""

    def test_an_agent_to_haproxy(self) -> None:
        for version in VERSIONS:
            said = self.fetch(f"{version}.agent.test", stage().open.http)
            self.assertEqual(said, f"haproxy sees [{VISITOR}]")

    def test_an_agent_to_nginx_in_front_of_tls(self) -> None:
        for version in VERSIONS:
            said = self.fetch(f"{version}.agent.test", 0, stage().open.https)
            self.assertEqual(said, f"nginx sees [{VISITOR}]")

    def test_a_server_to_nginx(self) -> None:
        for version in VERSIONS:
            self.assertEqual(self.fetch(f"{version}.static.test", stage().open.http), f"nginx sees [{VISITOR}]")

    def test_hosts_that_do_not_want_it(self) -> None:
        """Both take a header that says nothing: v2 LOCAL, v1 UNKNOWN."""
        self.assertEqual(self.fetch("hidden.agent.test", stage().open.http), f"haproxy sees [{BALANCER}]")
        self.assertEqual(self.fetch("hidden.agent.test", 0, stage().open.https), "nginx sees []")
        self.assertEqual(self.fetch("hidden.static.test", stage().open.http), "nginx sees []")


class InFrontTests(HeaderCase):
    """haproxy in front: what it says is believed, logged, and passed on to the end."""

    def test_whole_way(self) -> None:
        for version, (plain, secure) in stage().fronts.items():
            for host in ("v1.agent.test", "v2.agent.test"):
                self.assertEqual(self.fetch(host, plain), f"haproxy sees [{VISITOR}]", version)
                self.assertEqual(self.fetch(host, 0, secure), f"nginx sees [{VISITOR}]", version)
            self.assertEqual(self.fetch("v2.static.test", plain), f"nginx sees [{VISITOR}]", version)
            self.assertEqual(self.fetch("hidden.agent.test", plain), f"haproxy sees [{BALANCER}]", version)

    def test_the_log_names_the_visitor(self) -> None:
        plain, _ = stage().fronts["v2"]
        self.fetch("hidden.static.test", plain)
        server = stage().believing

        def logged() -> list[str]:
            return [str(row.get("address")) for row in server.access() if row["host"] == "hidden.static.test"]

        until("the visit is logged", logged)
        self.assertEqual(set(logged()), {VISITOR})

    def test_nobody_comes_in_beside_it(self) -> None:
        """A visitor from the balancer's network without a header is closed, whoever it is."""
        words = ("--resolve", f"v1.static.test:{stage().believing.http}:127.0.0.1")
        url = f"http://v1.static.test:{stage().believing.http}/"
        done = subprocess.run([*CURL, *words, url], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 52, done.stderr)  # an empty reply

    def test_from_elsewhere_the_server_is_as_any_other(self) -> None:
        for version in VERSIONS:
            said = self.fetch(f"{version}.static.test", stage().believing.http)
            self.assertEqual(said, f"nginx sees [{VISITOR}]")

    def test_no_defects(self) -> None:
        for server in (stage().open, stage().believing):
            self.assertEqual(server.defects(), [])
