"""Who does not read makes the other side wait, and nothing in between grows; who reads late gets every byte."""

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.backend import TIME_S, buffers, drained, serve
from tests.interop.daemons import Agent, Daemon, Proxy, folder, missing, until
from tests.interop.stage import CURL, MIB, SIZES, WAYS, ciphered, pair, sha256, stage
from tests.resilience.rig import open_descriptors

HEAD = "GET / HTTP/1.1\r\nHost: web.{}.test\r\n\r\n"
STUCK_S = 0.5
GROWTH = 6 * MIB
LEGS = ("auto", "always")
SMALL = [name for name in SIZES if name != "100m"]


def memory(daemon: Daemon) -> int:
    found = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    return int(found[0]) * 1024


class WaitingTests(SynchronousTestCase):
    def stuffed(self, line: socket.socket) -> int:
        """Send until nothing goes any more, and give how much went."""
        line.settimeout(STUCK_S)
        block, sent = bytes(MIB), 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 30:
                sent += line.send(block)
        self.assertLess(sent, buffers(3))
        line.settimeout(TIME_S)
        return sent

    def flat(self, daemons: tuple[Proxy, Agent], before: list[int]) -> None:
        for daemon, size in zip(daemons, before, strict=True):
            self.assertLess(memory(daemon) - size, GROWTH, daemon.role)
            self.assertEqual(daemon.defects(), [])

    def test_a_visitor_who_does_not_read_and_then_does(self) -> None:
        sent: list[int] = []

        def talk(connection: socket.socket) -> None:
            connection.recv(4096)
            sent.append(self.stuffed(connection))

        for leg in LEGS:
            daemons = pair(self, plain=serve(self, talk), text=f'data_tls = "{leg}"\n')
            for way in WAYS:
                before = [memory(daemon) for daemon in daemons]
                lines = [socket.create_connection(("127.0.0.1", daemons[0].http), TIME_S) for _ in range(3)]
                for line in lines:
                    self.addCleanup(line.close)
                    line.sendall(HEAD.format(way).encode())
                until("all backends are stuck", lambda: len(sent) == 3)
                self.flat(daemons, before)
                self.assertEqual(sum(drained(line)[1] for line in lines), sum(sent))
                sent.clear()

    def test_a_backend_that_does_not_read_and_then_does(self) -> None:
        got: list[int] = []

        def talk(connection: socket.socket) -> None:
            until("it may read", lambda: may)
            got.append(drained(connection)[1])

        may: list[bool] = []
        for leg in LEGS:
            daemons = pair(self, plain=serve(self, talk), text=f'mode = "raw"\ndata_tls = "{leg}"\n')
            for way in WAYS:
                before = [memory(daemon) for daemon in daemons]
                total = 0
                for _ in range(3):
                    line = socket.create_connection(("127.0.0.1", daemons[0].http), TIME_S)
                    line.sendall(HEAD.format(way).encode())
                    total += len(HEAD.format(way)) + self.stuffed(line)
                    line.close()
                self.flat(daemons, before)
                may.append(True)
                until("all has arrived", lambda: len(got) == 3)
                self.assertEqual(sum(got), total)
                got.clear()
                may.clear()


def waiting(server: Proxy) -> int:
    """Connections that agents have waiting at a server."""
    return int(server.ask("metrics.snapshot")["series"]["layer8_proxy_pool_idle"])


class CrowdTests(SynchronousTestCase):
    skip = missing(nginx="nginx", curl="curl")

    def test_many_at_the_same_time_get_their_own_bytes(self) -> None:
        for here in (stage(), ciphered()):
            waited = waiting(here.server)
            before = (open_descriptors(here.server.pid), open_descriptors(here.agent.pid))
            target = Path(self.mktemp())
            words = ["--parallel", "--parallel-immediate", "--parallel-max", "40", "--create-dirs"]
            wanted = SMALL * 20
            for number, name in enumerate(wanted):
                kind, way = ("web", "tls")[number % 2], WAYS[number // 2 % 2]
                *options, url = here.url(kind, way, f"/{name}")
                words += [*options, url, "-o", f"{target}/{number}"]
            subprocess.run([*CURL, *words], check=True, capture_output=True)
            for number, name in enumerate(wanted):
                self.assertEqual(sha256(target / str(number)), here.sums[name])
            for daemon, most in zip((here.server, here.agent), before, strict=True):
                self.settled(daemon, most - waited, here.server)

    def settled(self, daemon: Daemon, most: int, server: Proxy) -> None:
        """Wait until nothing is open but what waits for visitors, of which there may be more after a crowd."""
        asking = 1  # our own question
        until("nothing is left behind", lambda: open_descriptors(daemon.pid) <= most + asking + waiting(server))

    def test_bulk_does_not_keep_others_waiting(self) -> None:
        for here in (stage(), ciphered()):
            bulk = [
                subprocess.Popen([*CURL, "-o", "/dev/null", *here.url("web", way, "/100m")])
                for way in WAYS
                for _ in range(3)
            ]
            slowest = 0.0
            for number in range(20):
                began = time.monotonic()
                self.assertEqual(here.fetched(*here.url("web", WAYS[number % 2], "/1k"))[0], here.sums["1k"])
                slowest = max(slowest, time.monotonic() - began)
            self.assertEqual([curl.wait(TIME_S) for curl in bulk], [0] * 6)
            self.assertLess(slowest, 2.0)


class WhereTests(SynchronousTestCase):
    """Targets on Unix sockets, and everything over IPv6."""

    def test_a_target_on_a_unix_socket(self) -> None:
        words = os.urandom(MIB)
        path = folder(self) / "app.sock"
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.settimeout(TIME_S)
        listener.bind(str(path))
        listener.listen()
        table = f'[[proxy.host]]\nhost = "static.test"\ntarget = "unix:{path}"\n'
        server = Proxy.start(self, f'mode = "raw"\n{table}', secrets=["app.test"])
        agent = Agent.start(self, server, {"app.test": {server.http: f"unix:{path}"}})
        for host in ("static.test", "app.test"):
            with socket.create_connection(("127.0.0.1", server.http), TIME_S) as visitor:
                head = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
                visitor.sendall(head)
                target, _ = listener.accept()
                target.settimeout(TIME_S)
                with target:
                    target.sendall(words)
                    visitor.sendall(words)
                    target.shutdown(socket.SHUT_WR)
                    self.assertEqual(drained(visitor)[0], hashlib.sha256(words).hexdigest())
                    visitor.shutdown(socket.SHUT_WR)
                    self.assertEqual(drained(target)[0], hashlib.sha256(head + words).hexdigest())
        self.assertEqual([*server.defects(), *agent.defects()], [])

    def test_ipv6(self) -> None:
        words = os.urandom(MIB)
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self.addCleanup(listener.close)
        listener.settimeout(TIME_S)
        port = listener.getsockname()[1]
        inside = "interface=\\\\:\\\\:1"
        server = Proxy.start(
            self,
            f'http = ["tcp:0:{inside}"]\nagents = ["tcp:0:{inside}"]\ndata = ["tcp:0:{inside}"]\ndata_tls = "always"\n'
            f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:\\\\:\\\\:1:{port}"\n',
            secrets=["app.test"],
        )
        agent = Agent.start(
            self, server, {"app.test": {server.http: f"tcp:\\:\\:1:{port}"}}, url=f"ws://[::1]:{server.agents}"
        )
        for host in ("static.test", "app.test"):
            with socket.create_connection(("::1", server.http), TIME_S) as visitor:
                visitor.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                target, _ = listener.accept()
                target.settimeout(TIME_S)
                with target:
                    target.sendall(words)
                    target.shutdown(socket.SHUT_WR)
                    self.assertEqual(drained(visitor)[0], hashlib.sha256(words).hexdigest())
        self.assertEqual([*server.defects(), *agent.defects()], [])
