"""P3: agents whose only way out is somebody's proxy, down to one that lets nothing but CONNECT to port 443 pass."""

import os
import socket
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.x509 import Identity
from tests.interop.daemons import Agent, Program, Proxy, answers, folder, found, free_port, missing
from tests.interop.stage import CURL, MIB, Nginx, pattern, sha256

NAME = "proxy.test"
CHECKS = (("http", "web.test"), ("https", "tls.test"))


def _name() -> str:
    """Give a name of 127.0.0.1 that the proxy has to look up; where localhost is ::1 first, there is none for sure."""
    first, *_ = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    return "localhost" if first[0] == socket.AF_INET else "127.0.0.1"


class Case(SynchronousTestCase):
    def nginx(self) -> Nginx:
        nginx = Nginx.start(self, ["web.test", "tls.test"])
        self.sum = pattern(nginx.files / "10m", 10 * MIB)
        return nginx

    def fetch(self, nginx: Nginx, host: str, scheme: str, port: int, *prefix: str) -> None:
        """Get a file and put it, and compare."""
        url = ("--resolve", f"{host}:{port}:127.0.0.1", "--cacert", str(nginx.certificate), f"{scheme}://{host}:{port}")
        curl = [*prefix, *CURL, *url[:-1]]
        target = folder(self) / "got"
        subprocess.run([*curl, "-o", str(target), f"{url[-1]}/10m"], check=True)
        self.assertEqual(sha256(target), self.sum)
        subprocess.run([*curl, "-T", str(target), f"{url[-1]}/up/10m"], check=True)
        self.assertEqual(sha256(nginx.uploads / "10m"), self.sum)


class ProxyOnTheWayTests(Case):
    """The agent reaches the server's usual ports through a proxy; nothing of it goes another way."""

    def through(self, via: str) -> None:
        nginx = self.nginx()
        for leg in ("auto", "always"):
            server = Proxy.start(self, f'data_tls = "{leg}"\n', secrets=["web.test", "tls.test"])
            agent = Agent.start(
                self,
                server,
                {
                    "web.test": {server.http: f"tcp:127.0.0.1:{nginx.plain}"},
                    "tls.test": {server.https: f"tcp:127.0.0.1:{nginx.secure}"},
                },
                f'via = "{via}"\n',
                url=f"ws://{_name()}:{server.agents}",
            )
            for scheme, host in CHECKS:
                self.fetch(nginx, host, scheme, server.http if scheme == "http" else server.https)
            peers = subprocess.run(["ss", "-Htnp"], check=True, capture_output=True, text=True).stdout.splitlines()
            direct = [line for line in peers if f"pid={agent.pid}," in line and f":{server.agents} " in line]
            self.assertEqual(direct, [])
            self.assertEqual([*server.defects(), *agent.defects()], [])

    def test_http_connect_by_ncat(self) -> None:
        port, where = free_port(), folder(self)
        # As a proxy it listens on every address, whatever it is told.
        words = ["ncat", "-l", "-k", "--proxy-type", "http", "--allow", "127.0.0.1", str(port)]
        Program.start(self, "ncat", words, where, ready=lambda _: answers(port))
        self.through(f"connect:127.0.0.1:{port}")

    def test_socks5_by_microsocks(self) -> None:
        port, where = free_port(), folder(self)
        words = ["microsocks", "-i", "127.0.0.1", "-p", str(port)]
        Program.start(self, "socks", words, where, ready=lambda _: answers(port))
        self.through(f"socks5:127.0.0.1:{port}")

    test_http_connect_by_ncat.skip = missing(  # type: ignore[attr-defined]
        nginx="nginx", curl="curl", ncat="ncat", ss="iproute2"
    )
    test_socks5_by_microsocks.skip = missing(  # type: ignore[attr-defined]
        nginx="nginx", curl="curl", microsocks="microsocks", ss="iproute2"
    )


class OnePortTests(Case):
    """One public port, 443, behind a squid that allows CONNECT to it and nothing else, in a network of its own."""

    skip = missing(
        nginx="nginx", curl="curl", squid="squid", unshare="util-linux", nsenter="util-linux", ip="iproute2"
    ) or (None if os.geteuid() == 0 else "needs root, for port 443 in a network namespace")

    def test_visitors_agent_and_data_on_443(self) -> None:
        where = folder(self)
        ours = os.readlink("/proc/self/ns/net")
        network = Program.start(
            self,
            "network",
            ["unshare", "--net", "sleep", "600"],
            where,
            ready=lambda program: os.readlink(f"/proc/{program.pid}/ns/net") != ours,
        )
        inside = (str(found("nsenter")), "--target", str(network.pid), "--net")
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        nginx = Nginx.start(self, ["web.test", "tls.test"], inside)
        self.sum = pattern(nginx.files / "10m", 10 * MIB)
        self.squid(inside)
        server = Proxy.start(
            self,
            f'name = "{NAME}"\nhttp = []\nagents = []\nhttps = ["tcp:443:interface=127.0.0.1"]\n'
            f'data_public = "{NAME}:443"\n',
            secrets=["tls.test"],
            prefix=inside,
        )
        pin = Identity.load(server.home / "control.pem").pin
        agent = Agent.start(
            self,
            server,
            {"tls.test": {443: f"tcp:127.0.0.1:{nginx.secure}"}},
            'via = "connect:127.0.0.1:3128"\n',
            url=f"wss://{NAME}:443?pin={pin}",
            prefix=inside,
        )
        for _ in range(3):
            self.fetch(nginx, "tls.test", "https", 443, *inside)
        self.assertEqual(agent.ask("agent.status")["rejected"], 0)
        asked = self.asked.read_text()
        self.assertGreaterEqual(asked.count(f"CONNECT {NAME}:443"), 6)  # a dial-back for each of curl's visits
        self.assertNotIn("DENIED", asked)
        self.assertEqual([*server.defects(), *agent.defects()], [])

    def squid(self, inside: tuple[str, ...]) -> None:
        where = folder(self)
        os.chmod(where, 0o777)  # squid gives root away
        (where / "hosts").write_text(f"127.0.0.1 {NAME}\n")
        (where / "squid.conf").write_text(f"""
http_port 127.0.0.1:3128
acl tls port 443
acl tunnel method CONNECT
http_access allow tunnel tls
http_access deny all
hosts_file {where}/hosts
dns_nameservers 127.0.0.1
cache deny all
cache_log {where}/cache.log
access_log stdio:{where}/access.log
pid_filename none
coredump_dir {where}
max_filedescriptors 1024
shutdown_lifetime 0 seconds
""")
        connected = [*inside, "bash", "-c", ": < /dev/tcp/127.0.0.1/3128"]
        Program.start(
            self,
            "squid",
            [*inside, "squid", "-N", "-f", str(where / "squid.conf")],
            where,
            ready=lambda _: subprocess.run(connected, capture_output=True).returncode == 0,
        )
        self.asked = where / "access.log"
