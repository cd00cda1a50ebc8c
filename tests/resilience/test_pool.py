"""Connections dialled ahead between real processes: kill -9, wrk, and what is left open afterwards."""

from __future__ import annotations

import re
import subprocess
import time

from tests.interop.daemons import Agent, Proxy, found, missing, until
from tests.resilience.rig import Load, fetched, note, open_descriptors
from tests.resilience.test_kill import DaemonCase

WRK_S = 3
"""Seconds of wrk."""


class PoolCase(DaemonCase):
    def two(self, more: str = "") -> tuple[Proxy, Agent, Agent]:
        """A server and two agents of one host, each with two connections that wait."""
        server = self.server(more, secrets=("web.test",))
        agents = self.agent(server, "web.test"), self.agent(server, "web.test")
        until("connections wait", lambda: self.count(server, "layer8_proxy_pool_idle") == 4)
        return server, *agents

    def count(self, server: Proxy, name: str) -> int:
        """One number of the server's metrics."""
        return int(server.ask("metrics.snapshot")["series"][name])


class KillTests(PoolCase):
    """kill -9 of an agent with connections that wait."""

    def test_the_next_request_works(self) -> None:
        server, first, second = self.two()
        first.program.kill()
        begun = time.monotonic()
        for _ in range(10):
            self.assertTrue(fetched(server.http, "web.test"))
        note(f"an agent of two killed: ten requests in {(time.monotonic() - begun) * 1000:.0f} ms, all answered")
        self.assertLess(time.monotonic() - begun, 2)
        until("the other's wait", lambda: self.count(server, "layer8_proxy_pool_idle") == 2)
        self.quiet(server, second)

    def test_under_load(self) -> None:
        """What was under way at the killed agent may be lost; what comes afterwards is not."""
        server, first, second = self.two()
        load = Load(self, server.http, "web.test")
        until("load", lambda: len(load.marks) > 20)
        self.assertEqual(load.bad_since(0), 0)
        first.program.kill()
        killed = time.monotonic()
        until("more visitors", lambda: len([when for when, _ in list(load.marks) if when > killed + 0.2]) > 50)
        load.stop()
        lost, late = load.bad_since(0), load.bad_since(killed + 0.2)
        note(f"an agent of two killed under load: {lost} of {len(load.marks)} lost, {late} of them later than 0.2 s")
        self.assertLessEqual(lost, 1)
        self.assertEqual(late, 0)
        until("all visitors have left", lambda: not server.ask("proxy.connections")["connections"])
        self.quiet(server, second)


class WrkTests(PoolCase):
    """wrk, whose every request is a visitor."""

    if gone := missing(wrk="wrk"):
        skip = gone

    def wrk(self, server: Proxy, connections: int) -> tuple[int, str]:
        """Requests that were answered, and what went wrong."""
        argv = [str(found("wrk")), "-t1", f"-c{connections}", f"-d{WRK_S}s", "-H", "Host: web.test"]
        argv += ["-H", "Connection: close", f"http://127.0.0.1:{server.http}/"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
        errors = re.search(r"Socket errors: (.*)", said)
        match = re.search(r"(\d+) requests in", said)
        assert match is not None
        return int(match[1]), errors[1] if errors else ""

    def close_per_request(self, more: str) -> None:
        """Nobody fails, and when all have left everything is closed but what waits."""
        server, first, second = self.two(more)
        before = open_descriptors(server.pid), open_descriptors(first.pid)
        answered, errors = self.wrk(server, 40)
        self.assertEqual(errors, "")
        self.assertGreater(answered, 100)
        hits = self.count(server, "layer8_proxy_pool_hits_total")
        note(f"{more.strip() or 'plain'}: {answered} visitors, {hits} of them had a connection waiting")
        self.assertGreater(hits, 0)
        until("all visitors have left", lambda: not server.ask("proxy.connections")["connections"])
        waits = self.count(server, "layer8_proxy_pool_idle")
        self.assertLessEqual(waits, 64)
        until("the rest is closed", lambda: open_descriptors(server.pid) <= before[0] - 4 + waits + 2)
        until("also here", lambda: open_descriptors(first.pid) <= before[1] + waits)
        self.quiet(server, first, second)

    def test_plain(self) -> None:
        self.close_per_request("")

    def test_inside_tls(self) -> None:
        self.close_per_request('data_tls = "always"\n')
