"""Several processes for one server, whole: what any of them knows all know, and the death of one is nobody else's.

What is counted under load is what wrk counts: a connection for each request, and every connect, read or write error.
kill -9 of a worker takes the connections with it that are in its hands at that moment; those count as read errors. If
the agent was connected to that worker, and is the only one of its host, visitors wait for it to come back to any
worker; should it take longer than they may wait, the access log says so of each. Nothing else may fail.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from layer8.crypto.keyfile import write_private
from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import self_signed
from tests.interop.daemons import Agent, Proxy, folder, free_port, missing, until
from tests.resilience.rig import Load, fetched, note, registered, request, visit
from tests.resilience.test_kill import DaemonCase
from tests.resilience.test_takeover import Wrk
from tests.resilience.wire import Line, Refused

TWO = "workers = 2\n"
AGENTLESS = ("no_subscriber", "rejected", "call_time")
"""Reasons for which a visitor is sent away while the only agent of its host is too long on its way back."""


class WorkersCase(DaemonCase):
    def two(self, text: str = "", *, secrets: tuple[str, ...] = ("web.test",)) -> Proxy:
        """Start a server with two workers that serve."""
        ports = "".join(f'{name} = ["tcp:{free_port()}:interface=127.0.0.1"]\n' for name in ("http", "https", "agents"))
        server = self.server(ports + TWO + text, secrets=secrets)
        self.all_serve(server)
        return server

    def all_serve(self, server: Proxy, seconds: float = 20) -> None:
        until("all workers serve", lambda: all("serves" in line for line in self.workers(server)), seconds)

    def workers(self, server: Proxy) -> list[str]:
        """Give the lines about workers."""
        lines: list[str] = server.ask("node.status")["workers"]
        return lines

    def pids(self, server: Proxy) -> list[int]:
        """Give the process ids of the workers that there are."""
        return [int(found) for line in self.workers(server) for found in re.findall(r"pid (\d+)", line)]

    def everywhere(self, server: Proxy, host: str, *, times: int = 24, source: str = "127.0.0.1") -> list[bool]:
        """Visit so often that each worker has had somebody, and give how it went."""
        return [fetched(server.http, host, source=source) for _ in range(times)]

    def both_had_visitors(self, server: Proxy) -> None:
        """See numbers of both workers in the access log."""
        until("both had", lambda: {int(line["conn"][1:]) % 2 for line in server.access()} == {0, 1})


class WorkersTests(WorkersCase):
    def test_one_agent_serves_all(self) -> None:
        server = self.two()
        self.assertEqual(len(set(self.pids(server))), 2)
        words = [sys.executable, "-c", "from layer8.cli.main import main; main()", "status"]
        environ = {**os.environ, "LAYER8_HOME": str(server.home)}
        shown = subprocess.run(words, env=environ, capture_output=True, text=True, check=False, timeout=20).stdout
        self.assertEqual(len(re.findall(r"\d: pid \d+, serves", shown)), 2, shown)
        agent = self.agent(server, "web.test")
        self.assertEqual(set(self.everywhere(server, "web.test")), {True})
        until("both had visitors", lambda: len({line["conn"] for line in server.access()}) >= 24)
        self.both_had_visitors(server)
        self.assertEqual(len(server.data_ports()), 2, "each has a data port of its own")
        rows = server.ask("proxy.subscribers")["subscribers"]
        self.assertEqual([row["host"] for row in rows], ["web.test"])
        agent.program.kill()
        until("nobody has it", lambda: not server.ask("proxy.subscribers")["subscribers"])
        until("all know", lambda: visit(server.http, request("web.test")) == b"")
        self.assertEqual(set(self.everywhere(server, "web.test", times=12)), {False})
        agent.again("web.test")
        self.assertEqual(set(self.everywhere(server, "web.test")), {True}, "as soon as the agent says so")
        self.quiet(server, agent)

    def test_a_webgw_agent_serves_all(self) -> None:
        port = free_port()
        server = self.two(f'legacy = ["tcp:{port}:interface=127.0.0.1"]\n')
        hosts = {"web.test": {server.http: self.target}}
        agent = Agent.start(self, server, hosts, "legacy = true", url=f"ws://127.0.0.1:{port}")
        until("both know", lambda: set(self.everywhere(server, "web.test", times=12)) == {True})
        self.both_had_visitors(server)
        self.quiet(server, agent)

    def test_registrations_reach_all(self) -> None:
        server = self.two()
        token = server.ask("token.add", name="ann", roles=["owner"], hosts=["*.ann.test"])["token"]
        secret = HostSecret.make()
        for _ in range(2):
            owner = Line(server.agents, token=token)  # arrives at any worker
            host = f"n{owner.sock.getsockname()[1]}.ann.test"
            owner.call("proxy.register", host=host, secret_hash=secret.key.hex())
            self.assertIn(host, {row["host"] for row in registered(server)})
            owner.close()
        hosts = {row["host"] for row in registered(server)}
        self.assertEqual(len(hosts), 3)
        server.ask("proxy.register", host="admin.test", secret_hash=secret.key.hex())
        lines = [Line(server.agents) for _ in range(8)]
        for line in lines:
            line.hello()
            line.subscribe("admin.test", secret.key)
        self.assertEqual(len(server.ask("proxy.subscribers")["subscribers"]), 8)
        server.ask("proxy.unregister", host="admin.test")
        for line in lines:
            line.ended()
        server.ask("token.revoke", name="ann")
        for _ in range(6):
            with self.assertRaises(Exception):  # noqa: B017  (closed, or refused: the token is not known)
                owner = Line(server.agents, token=token)
                owner.call("proxy.list")
        server.program.kill()
        server.again()
        self.all_serve(server)
        self.assertEqual({row["host"] for row in registered(server)}, hosts, "what was acknowledged is written down")
        self.quiet(server)

    def test_bans_and_guesses_reach_all(self) -> None:
        server = self.two("[proxy.limits]\nsubscribe_fails = 4\n")
        agent = self.agent(server, "web.test")
        server.ask("proxy.ban", cidr="127.66.0.0/16", ttl_s=600)
        self.assertEqual(set(self.everywhere(server, "web.test", source="127.66.0.1")), {False})
        self.assertEqual(server.ask("proxy.stats")["bans"], 1)
        server.ask("proxy.unban", cidr="127.66.0.0/16")
        self.assertEqual(set(self.everywhere(server, "web.test", source="127.66.0.1")), {True})
        codes = []
        for _ in range(12):
            line = Line(server.agents, source="127.77.0.1")
            line.hello()
            try:
                line.subscribe("web.test", b"x" * 32)
            except Refused as refused:
                codes.append(refused.code)
            line.close()
        self.assertEqual(codes[:4], [-20001] * 4)
        self.assertEqual(codes[6:], [-20004] * 6, "however they are dealt out")
        self.quiet(server, agent)

    def test_operators_see_all(self) -> None:
        server = self.two('[control]\nlisten = ["tcp:0:interface=127.0.0.1"]\nmetrics_open = true\n')
        agent = self.agent(server, "web.test")
        held = []
        for _ in range(16):
            sock = socket.create_connection(("127.0.0.1", server.http), 10)
            sock.sendall(request("web.test", "/hold"))
            self.addCleanup(sock.close)
            held.append(sock)
        until("all are joined", lambda: server.ask("proxy.stats")["open"] == 16)
        rows = server.ask("proxy.connections")["connections"]
        self.assertEqual([row["conn"] for row in rows], sorted({row["conn"] for row in rows}))
        self.assertEqual(len(rows), 16)
        paged, cursor = [], None
        while True:
            page = server.ask("proxy.connections", limit=3, **({"cursor": cursor} if cursor else {}))
            paged += page["connections"]
            cursor = page.get("cursor")
            if not cursor:
                break
        self.assertEqual([row["conn"] for row in paged], [row["conn"] for row in rows], "the same page by page")
        self.assertEqual(server.ask("proxy.kill", conn=rows[0]["conn"])["closed"], 1)
        self.assertEqual(server.ask("proxy.hosts")["hosts"][0]["open"], 15)
        text = self.metrics(server)
        self.assertRegex(text, r'layer8_proxy_connections_total\{result="joined"\} 16\.0')
        gauges = dict(re.findall(r'layer8_proxy_open\{worker="(\d)"\} (\d+)\.0', text))
        self.assertEqual((set(gauges), sum(map(int, gauges.values()))), ({"1", "2"}, 15))
        self.assertEqual(server.ask("proxy.kill", host="web.test")["closed"], 15)
        until("nobody is left", lambda: server.ask("proxy.stats")["open"] == 0)
        joined = server.ask("proxy.stats")["ended"]["killed"]
        self.assertEqual(joined, 16)
        os.kill(self.pids(server)[0], signal.SIGKILL)
        self.all_serve(server)
        until("counters never fall", lambda: 'result="joined"} 16.0' in self.metrics(server))
        self.assertIn("layer8_proxy_worker_restarts_total 1.0", self.metrics(server))
        self.assertEqual(agent.defects(), [])

    def metrics(self, server: Proxy) -> str:
        """Scrape, when a second has passed since the last change."""
        time.sleep(2.1)
        where = next(text for text in server.listening() if text.startswith("control on tcp"))
        port = int(re.findall(r"tcp:(\d+)", where)[-1])
        answer = visit(port, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        self.assertIn(b" 200 ", answer[:20])
        return answer.decode()

    def test_what_is_wrong_with_a_worker_is_shown(self) -> None:
        certs = folder(self)
        (certs / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        server = self.two(f'certs = "{certs}"\n')
        rows = {row["check"]: row for row in server.ask("node.health")}
        self.assertEqual((rows["workers"]["ok"], rows["certificates"]["ok"]), (True, False))
        self.assertFalse(rows["certificates"]["needed"])
        (certs / "bad.pem").unlink()
        os.kill(server.pid, signal.SIGHUP)

        def well() -> bool:
            return all(row["ok"] for row in server.ask("node.health"))

        until("all is well", well)

    def test_a_configuration_that_a_worker_refuses(self) -> None:
        """The files of a certificate are read by the workers: if one cannot use them, nothing changes for any."""
        server = self.two()
        agent = self.agent(server, "web.test")
        text = (server.home / "test.toml").read_text()
        for name in ("one", "two"):
            key, cert = self_signed(["proxy.test"])
            write_private(server.home / f"{name}.key", key)
            write_private(server.home / f"{name}.pem", cert)
        pair = f'tls_cert_file = "{server.home}/one.pem"\ntls_key_file = "{server.home}/two.key"\n'
        static = f'\n[[proxy.host]]\nhost = "static.test"\ntarget = "{self.target}"\n'
        server.reload(text.replace(TWO, TWO + pair) + static)
        until("it is refused", lambda: "config.refused" in server.program.said())
        self.assertEqual(set(self.everywhere(server, "static.test", times=12)), {False})
        self.assertEqual(set(self.everywhere(server, "web.test", times=12)), {True})
        server.reload(text.replace(TWO, TWO + pair.replace("two", "one")) + static)
        until("it is taken", lambda: "config.reloaded" in server.program.said())
        self.assertEqual(set(self.everywhere(server, "static.test", times=12)), {True})
        self.quiet(server, agent)

    def test_none_outlives_its_supervisor(self) -> None:
        server = self.two()
        pids = self.pids(server)
        server.program.kill()
        until("they are gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        server.again()
        self.all_serve(server)
        pids = self.pids(server)
        start = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        server.program.process.wait(20)
        self.assertLess(time.monotonic() - start, 10)
        self.assertFalse([pid for pid in pids if Path(f"/proc/{pid}").exists()])
        self.quiet(server)

    def test_a_worker_that_dies_goes_by_the_latest_configuration(self) -> None:
        """And one that begins while the configuration changes does too; a file that was not read counts for nobody."""
        server = self.two()
        static = f'\n[[proxy.host]]\nhost = "{{}}"\ntarget = "{self.target}"\n'
        text = (server.home / "test.toml").read_text()
        server.reload(text + static.format("one.test"))
        until("it is known", lambda: "config.reloaded" in server.program.said())
        (server.home / "test.toml").write_text(text + static.format("two.test"))
        os.kill(self.pids(server)[1], signal.SIGKILL)
        until("it is gone", lambda: len(self.pids(server)) == 1 or "starts" in " ".join(self.workers(server)))
        self.all_serve(server)
        self.assertEqual(set(self.everywhere(server, "one.test", times=12)), {True})
        self.assertEqual(set(self.everywhere(server, "two.test", times=12)), {False})
        os.kill(self.pids(server)[0], signal.SIGKILL)
        time.sleep(0.3)
        server.reload(text + static.format("two.test"))
        until("it is known", lambda: fetched(server.http, "two.test"))
        self.all_serve(server)
        time.sleep(1)
        self.all_serve(server)
        self.assertEqual(set(self.everywhere(server, "two.test", times=12)), {True})
        self.assertEqual(set(self.everywhere(server, "one.test", times=12)), {False})
        self.quiet(server)

    def test_one_that_cannot_start(self) -> None:
        server = Proxy("proxy", folder(self), self, ())
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server.http = taken.getsockname()[1]
            server.write(TWO)
            said = self.fails(server)
        self.assertIn("choose another with --http", said)
        server.http = 0
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server.write(f'{TWO}data = ["tcp:{taken.getsockname()[1]}:interface=127.0.0.1"]\n')
            said = self.fails(server)
        self.assertIn("--data", said)

    def fails(self, server: Proxy) -> str:
        try:
            server.begin(lambda: False)
        except AssertionError as error:
            return str(error)
        raise AssertionError("it started")


class LoadTests(WorkersCase):
    skip = missing(wrk="wrk")

    def test_killed_under_load(self) -> None:
        server = self.two()
        agent = self.agent(server, "web.test")
        wrk = Wrk(self, server.http, "web.test", 7, connections=8)
        time.sleep(1)
        victims = self.pids(server)
        row = server.ask("proxy.subscribers")["subscribers"][0]["subscription"]
        victim = victims[(row - 1) % 2]  # the one that has the agent: the harder case
        os.kill(victim, signal.SIGKILL)
        until("it is started again", lambda: victim not in self.pids(server))
        self.all_serve(server)
        answered, errors, said = wrk.result()
        turned = sum(line["reason"] in AGENTLESS for line in server.access())
        note(f"a worker killed under load: {answered} requests, errors {errors}, {turned} found no agent meanwhile")
        self.assertEqual((errors.get("connect", 0), errors.get("write", 0), errors.get("timeout", 0)), (0, 0, 0), said)
        self.assertLessEqual(errors.get("read", 0), 8 + turned, "at most what was in its hands")
        self.assertGreater(answered, 200, said)
        self.assertEqual(set(self.everywhere(server, "web.test")), {True})
        self.assertIn("worker.ended", server.program.said())
        self.quiet(server, agent)

    def test_reloaded_under_load(self) -> None:
        server = self.two()
        agent = self.agent(server, "web.test")
        wrk = Wrk(self, server.http, "web.test", 5)
        text = (server.home / "test.toml").read_text()
        static = f'\n[[proxy.host]]\nhost = "static.test"\ntarget = "{self.target}"\n'
        for number in range(4):
            time.sleep(0.6)
            server.reload(text + (static if number % 2 == 0 else ""))
        until("the host is gone again", lambda: not fetched(server.http, "static.test"))
        extra = self.reload_with_more(server, text, static)
        answered, errors, said = wrk.result()
        note(f"reloaded five times under load: {answered} requests, errors {errors}")
        self.assertEqual({kind for kind, count in errors.items() if count}, set(), said)
        self.assertEqual({fetched(extra, "static.test") for _ in range(12)}, {True}, "a new listener, at all workers")
        self.quiet(server, agent)

    def reload_with_more(self, server: Proxy, text: str, static: str) -> int:
        """Add a listener and a host, and give its port."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        before = f'http = ["tcp:{server.http}:interface=127.0.0.1"'
        self.assertIn(before, text)
        more = text.replace(before, f'{before}, "tcp:{port}:interface=127.0.0.1"') + static
        server.reload(more)
        until("it listens", lambda: f"http on 127.0.0.1:{port}" in server.listening())
        bad = more.replace("workers = 2", "workers = 2\nunknown = 7")
        server.reload(bad)
        until("it is refused", lambda: "config.refused" in server.program.said())
        return port

    def test_drained_under_load(self) -> None:
        """What is joined ends by itself, new ones are turned away by both, and all is well when that is over."""
        server = self.two("drain_s = 5\n")
        agent = self.agent(server, "web.test")
        load = Load(self, server.http, "web.test")
        until("load", lambda: len(load.marks) > 20)
        server.ask("proxy.drain", deadline_s=3)
        self.assertTrue(server.ask("proxy.stats")["draining"])
        self.assertEqual(set(self.everywhere(server, "web.test", times=12)), {False})
        server.ask("proxy.undrain")
        start = time.monotonic()
        until("visitors are served", lambda: load.good_since(start))
        load.stop()
        self.assertEqual(set(self.everywhere(server, "web.test", times=12)), {True})
        self.quiet(server, agent)
