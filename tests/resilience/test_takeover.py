"""A new server process in the place of the old one, with visitors all the time: nobody is refused, reset or forgotten.

What is counted: wrk opens a connection for each request, and every connect, read or write error and every answer that
is not 200 is one failure; a thread beside it compares whole answers. A visitor may wait for the agent to come back.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from itertools import pairwise
from typing import Any, ClassVar

from layer8.net.courier import send_now
from tests.interop.daemons import Program, Proxy, found, free_port, missing, until
from tests.resilience.rig import Download, Load, fetched, note, registered, visit
from tests.resilience.test_kill import DaemonCase

MISSING = missing(wrk="wrk")


class Wrk:
    """wrk for some seconds, each request on a connection of its own."""

    def __init__(self, scope: Any, port: int, host: str, seconds: float, connections: int = 16) -> None:
        words = [str(found("wrk")), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "15s"]
        words += ["-H", f"Host: {host}", "-H", "Connection: close", f"http://127.0.0.1:{port}/"]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        scope.addCleanup(self.stop)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def result(self) -> tuple[int, dict[str, int], str]:
        """Wait, and give the requests that were answered, the errors by kind, and what wrk said."""
        said = self._process.communicate(timeout=60)[0]
        answered = re.search(r"(\d+) requests in", said)
        errors = {kind: int(count) for kind, count in re.findall(r"(connect|read|write|timeout) (\d+)", said)}
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
        errors["status"] = int(refused.group(1)) if refused else 0
        return int(answered.group(1)) if answered else 0, errors, said


def longest(load: Load) -> float:
    """Give the longest time between two answers that one visitor after the other got."""
    times = [when for when, _ in load.marks]
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


class TakeoverCase(DaemonCase):
    skip = MISSING
    KEYS: ClassVar[str] = ""

    def begin(self) -> Proxy:
        server = Proxy.start(self, self.KEYS, secrets=("web.test",))
        self.path = server.home / "takeover.sock"
        self.text = f'{self.KEYS}takeover = "{self.path}"\n' + server.host("web.test")
        server.stop()
        server.write(self.text)
        server.again()
        until("it can be taken over", self.path.exists)
        return server

    def replace(self, server: Proxy) -> tuple[Program, float]:
        """Start a process in the place of the one that runs, and give the old one, ended, and the seconds it took."""
        old, begun = server.program, time.monotonic()
        server.begin(server.up)
        until("the old process has ended", lambda: old.process.poll() is not None)
        self.assertIn(old.process.returncode, (0, -signal.SIGTERM), old.said()[-3000:])
        return old, time.monotonic() - begun


class TakeoverTests(TakeoverCase):
    KEYS = 'drain_s = 5\nunknown = "close"\n'

    def test_under_load(self) -> None:
        server = self.begin()
        agent = self.agent(server, "web.test")
        wrk = Wrk(self, server.http, "web.test", 9)
        load = Load(self, server.http, "web.test")
        until("load", lambda: len(load.marks) > 20)
        before = registered(server)
        pid = server.pid
        _, took = self.replace(server)
        self.assertNotEqual(server.pid, pid)
        answered, errors, said = wrk.result()
        load.stop()
        note(f"taken over in {took:.1f} s: {answered} requests, errors {errors}, longest wait {longest(load):.2f} s")
        self.assertGreater(answered, 200, said)
        self.assertEqual({kind for kind, count in errors.items() if count}, set(), said)
        self.assertEqual(load.bad_since(0), 0)
        self.assertEqual(registered(server), before)
        self.assertTrue(fetched(server.http, "web.test"))
        self.assertIn("takeover.done", server.program.said())
        counted = server.ask("proxy.hosts")["hosts"][0]["bytes_out"]
        self.assertGreaterEqual(counted, answered * 62, "what the old process carried is counted on")
        self.quiet(server, agent)

    def test_what_is_joined_goes_on(self) -> None:
        self.patch(self, "KEYS", self.KEYS.replace("drain_s = 5", "drain_s = 60"))
        server = self.begin()
        agent = self.agent(server, "web.test")
        download = Download.start(server.http, "web.test")
        old = server.program
        server.begin(server.up)
        until("visitors arrive at the new one", lambda: "takeover.done" in server.program.said())
        self.assertIsNone(old.process.poll(), "somebody is still there")
        until("the new one serves", lambda: fetched(server.http, "web.test"))
        got = len(download.got)
        until("more bytes", lambda: len(download.got) > got)
        self.service.finish.set()
        self.assertTrue(download.ended.wait(20) and download.whole)
        until("the old one ends by itself", lambda: old.process.poll() is not None)
        until("bytes are counted", lambda: server.ask("proxy.hosts")["hosts"][0]["bytes_out"] >= len(download.got))
        self.quiet(server, agent)

    def test_a_new_one_that_does_not_come(self) -> None:
        """It has got the listeners and dies: the old one goes on, all rows work, and the next one may come."""
        server = self.begin()
        agent = self.agent(server, "web.test")
        load = Load(self, server.http, "web.test")
        until("load", lambda: len(load.marks) > 20)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.connect(str(self.path))
            asking.settimeout(20)
            send_now(asking, b'{"id":1,"call":"takeover.ask","params":{"version":1}}')
            while b'"result"' not in (message := asking.recv(65536)):
                self.assertIn(b"takeover.socket", message)
        until("it is its old self", server.up)
        server.ask("proxy.register", host="other.test", secret_hash="ab" * 32)
        self.assertEqual(load.bad_since(0), 0)
        _, took = self.replace(server)
        note(f"the next one took {took:.1f} s")
        until("more visitors", lambda: (load.good_since(time.monotonic() - 0.2) or 0) > 0)
        load.stop()
        self.assertEqual(load.bad_since(0), 0)
        self.assertEqual({row["host"] for row in registered(server)}, {"web.test", "other.test"})
        self.quiet(server, agent)

    def test_who_may_ask(self) -> None:
        server = self.begin()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        for words in (
            b"nonsense",
            b'{"id":1,"call":"takeover.ask","params":{"version":9}}',
            b'{"id":1,"call":"node.stop","params":{}}',
        ):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                asking.connect(str(self.path))
                asking.settimeout(20)
                asking.send(words)
                answer = asking.recv(65536)
                self.assertEqual(b'"error"' in answer, words.startswith(b"{"))
                self.assertNotIn(b"takeover.socket", answer)
        self.assertTrue(server.up())
        self.quiet(server)


class NumberTests(TakeoverCase):
    """One process hands over to two workers, and they to one again; the control listener goes along."""

    def test_under_load(self) -> None:
        port = free_port()
        control = f'[control]\nlisten = ["tcp:{port}:interface=127.0.0.1"]\n'
        server = Proxy.start(self, f"drain_s = 3\n{control}", secrets=("web.test",))
        self.path = server.home / "takeover.sock"
        server.stop()

        def write(workers: int) -> None:
            keys = f'workers = {workers}\ndrain_s = 3\ntakeover = "{self.path}"\n'
            server.write(keys + control + server.host("web.test"))

        write(1)
        server.again()
        until("it can be taken over", self.path.exists)
        agent = self.agent(server, "web.test")
        load = Load(self, server.http, "web.test")
        asked: list[bytes] = []
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.05):
                asked.append(visit(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[:15])

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            until("load", lambda: len(load.marks) > 20)
            for workers in (2, 1):
                write(workers)
                self.replace(server)
                since = time.monotonic()
                until("visitors", lambda since=since: load.good_since(since), 15)  # type: ignore[misc]
                self.assertEqual(len(server.ask("node.status")["workers"]), 2 if workers == 2 else 0)
                self.assertTrue(fetched(server.http, "web.test"))
        finally:
            over.set()
            thread.join()
        load.stop()
        note(f"one, two, one: longest wait {longest(load):.2f} s; {len(asked)} looks at /healthz")
        self.assertEqual(load.bad_since(0), 0)
        self.assertEqual({answer for answer in asked if answer != b"HTTP/1.1 200 OK"}, set())
        self.quiet(server, agent)


class WorkersTakeoverTests(TakeoverCase):
    KEYS = "workers = 2\ndrain_s = 5\n"

    def test_under_load(self) -> None:
        server = self.begin()
        agent = self.agent(server, "web.test")
        wrk = Wrk(self, server.http, "web.test", 12)
        load = Load(self, server.http, "web.test")
        until("load", lambda: len(load.marks) > 20)
        _, took = self.replace(server)
        answered, errors, said = wrk.result()
        load.stop()
        waited = longest(load)
        note(f"two workers taken over in {took:.1f} s: {answered} requests, {errors}, longest wait {waited:.2f} s")
        self.assertGreater(answered, 200, said)
        self.assertEqual({kind for kind, count in errors.items() if count}, set(), said)
        self.assertEqual(load.bad_since(0), 0)
        counted = server.ask("proxy.hosts")["hosts"][0]["bytes_out"]
        self.assertGreaterEqual(counted, answered * 62, "with what the old workers have carried to the very end")
        server.stop()
        server.again()
        kept = server.ask("proxy.hosts")["hosts"][0]["bytes_out"]
        self.assertGreaterEqual(kept, counted, "and it is written down")
        self.quiet(server, agent)
