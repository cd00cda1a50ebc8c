"""Each limit of the proxy reached by itself on a real server, then attacks in rounds: nothing is left of either."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.secret import HostSecret
from tests.interop.daemons import Agent, Proxy, missing, until
from tests.proxy.hellos import hello, records, sni
from tests.resilience.rig import (
    ANSWER,
    Download,
    Service,
    abort,
    drained,
    fetched,
    note,
    open_descriptors,
    request,
    resident,
    visit,
)
from tests.resilience.wire import Closed, Line, Refused

WRONG = "0" * 64
POOL = 2
"""Connections that an agent of one host has waiting."""
SWEEP = 5.0
"""Seconds between two looks of the pump at idle pairs."""


class LimitCase(SynchronousTestCase):
    """One server with small limits for each test, and a look at what is left of it afterwards."""

    def start(self, limits: str = "", *, keys: str = "", hosts: Iterable[str] = ("web.test",), more: str = "") -> Proxy:
        """Start a server with a host that it dials itself, static.test, and some for agents."""
        self.service = Service(self)
        static = f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{self.service.port}"\n{more}\n'
        text = f"{keys}\n[proxy.limits]\n{limits}\n{static}"
        self.server = server = Proxy.start(self, text, secrets=hosts)
        self.assertTrue(fetched(server.http, "static.test"))
        self.rest()
        self.descriptors = open_descriptors(server.pid)
        self.addCleanup(self.sound)
        return server

    def rest(self) -> None:
        """Wait until nobody is there any more."""

        def nobody() -> bool:
            stats = self.server.ask("proxy.stats")
            return not any(stats[name] for name in ("open", "calling", "sniffing", "subscribers", "agents"))

        until("everybody has left", nobody)
        until("every list is empty", lambda: not self.server.ask("proxy.connections")["connections"])

    def sound(self) -> None:
        """Fail unless all counts are back, every descriptor is closed and it serves as before."""
        self.rest()
        until("descriptors", lambda: open_descriptors(self.server.pid) <= self.descriptors)
        self.assertTrue(fetched(self.server.http, "static.test"))
        self.assertTrue(fetched(self.server.http, "static.test", source="127.5.5.5"))
        self.assertEqual(self.server.defects(), [])

    def ended(self, reason: str) -> int:
        """Give how many visitors ended so."""
        return int(self.server.ask("proxy.stats")["ended"].get(reason, 0))

    def knock(self, data: bytes, *, source: str = "127.0.0.1", port: int = 0) -> socket.socket:
        """Connect, say something and stay."""
        sock = socket.create_connection(("127.0.0.1", port or self.server.http), 10, (source, 0))
        self.addCleanup(sock.close)
        sock.settimeout(10)
        sock.sendall(data)
        return sock

    def agent(self, host: str = "web.test", *, source: str = "127.0.0.1") -> Line:
        """Subscribe by hand."""
        line = Line(self.server.agents, source=source)
        self.addCleanup(line.close)
        line.hello()
        line.subscribe(host, self.key(host))
        return line

    def key(self, host: str = "web.test") -> bytes:
        """Give the hash of a host's secret."""
        return HostSecret.load(self.server.secret(host)).key

    def denied(self, code: int, line: Line, method: str, **params: object) -> Refused:
        """Call and take the refusal that is expected."""
        refused = self.assertRaises(Refused, line.call, method, **params)
        self.assertEqual(refused.code, code, refused.error)
        assert isinstance(refused, Refused)
        return refused

    def gone(self, sock: socket.socket, seconds: float = 10) -> bool:
        """Say whether the server has closed, in time."""
        sock.settimeout(seconds)
        try:
            return drained(sock) is not None
        except TimeoutError:
            return False


class SniffingTests(LimitCase):
    def test_sniffing_per_source(self) -> None:
        server = self.start("sniffing = 8\nper_source_sniffing = 3")
        held = [self.knock(b"G") for _ in range(3)]
        until("three are known", lambda: server.ask("proxy.stats")["sniffing"] == 3)
        self.assertTrue(self.gone(self.knock(b"G")))
        self.assertEqual(self.ended("source_limit"), 1)
        self.assertTrue(fetched(server.http, "static.test"), "a whole request needs no place")
        other = self.knock(b"G", source="127.0.9.1")
        self.assertFalse(self.gone(other, 1), "another network has places of its own")
        held[0].sendall(request("static.test")[1:])
        self.assertEqual(drained(held[0]), ANSWER)
        for sock in (*held, other):
            sock.close()

    def test_the_oldest_makes_room(self) -> None:
        server = self.start("sniffing = 4\nper_source_sniffing = 4")
        held = []
        for number in range(4):
            held.append(self.knock(b"G", source=f"127.1.{number}.1"))
            until("known", lambda: server.ask("proxy.stats")["sniffing"] == len(held))
        last = self.knock(b"G", source="127.1.9.1")
        self.assertTrue(self.gone(held[0]))
        self.assertEqual(self.ended("crowded_out"), 1)
        self.assertEqual([self.gone(sock, 1) for sock in (held[1], last)], [False, False])
        for sock in (*held, last):
            sock.close()

    def test_time(self) -> None:
        """Slow, halted and silent visitors; the kernel keeps the silent to itself for some seconds first."""
        server = self.start("sniff_time = 1\nfirst_byte = 0.5\nsniffing = 4\nper_source_sniffing = 4")
        silent = socket.create_connection(("127.0.0.1", server.http), 10)
        self.addCleanup(silent.close)
        started = time.monotonic()
        slow = self.knock(b"")
        with contextlib.suppress(OSError):
            for byte in request("static.test").ljust(400, b"x"):
                slow.sendall(bytes([byte]))
                time.sleep(0.05)
        self.assertTrue(drained(slow).startswith(b"HTTP/1.1 408 "))
        self.assertLess(time.monotonic() - started, 15)
        begun = time.monotonic()
        halted = self.knock(b"\x16", port=server.https)
        self.assertEqual(drained(halted), b"")
        self.assertTrue(0.9 < time.monotonic() - begun < 8)
        self.assertEqual(self.ended("sniff_time"), 2)
        silent.settimeout(30)
        drained(silent)
        self.assertLess(time.monotonic() - started, 25)
        self.assertEqual(self.ended("sniff_time"), 3)

    def test_silent_ones_under_pressure(self) -> None:
        server = self.start("sniff_time = 60\nfirst_byte = 0.5\nsniffing = 4\nper_source_sniffing = 4")
        silent = socket.create_connection(("127.0.0.1", server.http), 10)
        self.addCleanup(silent.close)
        held = [self.knock(b"G") for _ in range(3)]
        silent.settimeout(30)
        drained(silent)
        self.assertEqual(self.ended("first_byte"), 1)
        self.assertEqual(server.ask("proxy.stats")["sniffing"], 3, "those who have said something may go on")
        for sock in held:
            sock.close()

    def test_size(self) -> None:
        server = self.start()
        head = b"GET / HTTP/1.1\r\nX: " + b"x" * (33 << 10) + b"\r\nHost: static.test\r\n\r\n"
        self.assertTrue(visit(server.http, head).startswith(b"HTTP/1.1 431 "))
        fields = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"Host: static.test\r\n\r\n"
        self.assertTrue(visit(server.http, fields).startswith(b"HTTP/1.1 431 "))
        self.assertEqual(visit(server.https, b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(1 << 17)), b"")
        self.assertEqual(self.ended("sniff_size"), 3)
        self.assertEqual(visit(server.https, records(hello(sni(b"unknown.test")))), b"")
        self.assertEqual(self.ended("unknown_host"), 1)

    def test_open_per_source(self) -> None:
        server = self.start("per_source_open = 2")
        held = [self.knock(request("static.test", "/hold")) for _ in range(2)]
        until("two are joined", lambda: server.ask("proxy.stats")["open"] == 2)
        self.assertFalse(fetched(server.http, "static.test"))
        self.assertEqual(self.ended("source_limit"), 1)
        self.assertTrue(fetched(server.http, "static.test", source="127.0.9.1"))
        abort(held[0])
        until("a place is free", lambda: server.ask("proxy.stats")["open"] == 1)
        self.assertTrue(fetched(server.http, "static.test"))
        abort(held[1])

    def test_bans_and_policy(self) -> None:
        server = self.start(keys='deny = ["127.7.7.0/24"]')
        server.ask("proxy.ban", cidr="127.8.0.0/16", ttl_s=600)
        self.assertEqual(visit(server.http, request("static.test"), source="127.8.1.1"), b"")
        self.assertEqual(visit(server.http, request("static.test"), source="127.7.7.1"), b"")
        self.assertEqual((self.ended("banned"), self.ended("denied")), (1, 1))
        server.ask("proxy.unban", cidr="127.8.0.0/16")
        self.assertTrue(fetched(server.http, "static.test", source="127.8.1.1"))


class CallTests(LimitCase):
    """Visitors who wait for an agent, by agents who do not come."""

    def test_pending(self) -> None:
        server = self.start(
            "pending_per_host = 2\npending = 3\ncall_step = 5\ncall_time = 5", hosts=("a.test", "b.test")
        )
        lines = [self.agent("a.test"), self.agent("b.test")]
        held = [self.knock(request("a.test")) for _ in range(2)]
        until("two wait", lambda: server.ask("proxy.stats")["calling"] == 2)
        begun = time.monotonic()
        self.assertEqual(visit(server.http, request("a.test")), b"")
        held.append(self.knock(request("b.test")))
        until("three wait", lambda: server.ask("proxy.stats")["calling"] == 3)
        self.assertEqual(visit(server.http, request("b.test")), b"")
        self.assertLess(time.monotonic() - begun, 4.5)
        self.assertEqual(self.ended("pending_limit"), 2)
        self.assertTrue(fetched(server.http, "static.test"), "nobody has to be called for this one")
        for sock in held:
            abort(sock)
        until("they have left", lambda: self.ended("visitor_left") == 3)
        self.assertEqual(server.ask("proxy.stats")["calling"], 0)
        for line in lines:
            line.close()

    def test_times(self) -> None:
        """CALL_STEP for each agent, CALL_TIME for all of them."""
        server = self.start("call_step = 0.4\ncall_time = 1")
        lines = [self.agent() for _ in range(2)]
        begun = time.monotonic()
        self.assertEqual(visit(server.http, request("web.test")), b"")
        self.assertTrue(0.7 < time.monotonic() - begun < 4)
        lines += [self.agent() for _ in range(4)]
        begun = time.monotonic()
        self.assertEqual(visit(server.http, request("web.test")), b"")
        self.assertTrue(0.9 < time.monotonic() - begun < 2.3)
        self.assertEqual(self.ended("call_time"), 2)
        for line in lines:
            line.close()

    def test_connections_of_a_host(self) -> None:
        server = self.start("host_conns = 2")
        held = [self.knock(request("static.test", "/hold")) for _ in range(2)]
        until("two are joined", lambda: server.ask("proxy.stats")["open"] == 2)
        self.assertEqual(visit(server.http, request("static.test"), source="127.4.4.4"), b"")
        self.assertEqual(self.ended("host_limit"), 1)
        for sock in held:
            abort(sock)

    def test_idle_and_half_closed(self) -> None:
        server = self.start("idle = 3\nhalf_closed = 1")
        begun = time.monotonic()
        idle = self.knock(request("static.test", "/hold"))
        half = self.knock(request("static.test", "/hold"))
        half.shutdown(socket.SHUT_WR)
        self.assertEqual(drained(half), b"")
        self.assertLess(time.monotonic() - begun, 1 + SWEEP + 5)
        self.assertEqual(drained(idle), b"")
        self.assertTrue(3 <= time.monotonic() - begun < 3 + SWEEP + 5)
        self.assertEqual((self.ended("idle"), self.ended("half_closed")), (1, 1))
        self.assertEqual(server.ask("proxy.stats")["open"], 0)


class DataTests(LimitCase):
    """Dial-backs that show no secret."""

    def test_unauthenticated(self) -> None:
        server = self.start(
            "data_unauthenticated = 4\ndata_unauthenticated_per_source = 2\nsecret_time = 3\ncall_step = 5"
        )
        (port,) = server.data_ports()
        first = [self.knock(b"x", port=port) for _ in range(2)]
        self.assertTrue(self.gone(self.knock(b"x", port=port), 2), "two of one network")
        second = [self.knock(b"x", port=port, source="127.1.0.1") for _ in range(2)]
        self.assertTrue(self.gone(self.knock(b"x", port=port, source="127.2.0.1"), 2), "four in all")
        begun = time.monotonic()
        for sock in (*first, *second):
            self.assertEqual(drained(sock), b"", "no answer")
        self.assertLess(time.monotonic() - begun, 8)
        self.assertEqual(visit(port, bytes(33)), b"", "nobody waits for this one")
        line = self.agent()
        visitor = self.knock(request("web.test"))
        secret = bytes.fromhex(line.hear()["result"]["secret"])
        self.assertEqual(visit(port, secret[:31]), b"")
        with socket.create_connection(("127.0.0.1", port), 5) as good:
            good.sendall(secret[:31])
            time.sleep(0.1)
            good.sendall(secret[31:] + b"the 33rd byte is content")
            self.assertEqual(good.recv(1024), request("web.test"))
        self.assertEqual(drained(visitor), b"the 33rd byte is content")
        line.close()

    def test_two_at_the_same_time(self) -> None:
        """The first one wins, the other is closed."""
        server = self.start()
        (port,) = server.data_ports()
        line = self.agent()
        visitor = self.knock(request("web.test"))
        secret = bytes.fromhex(line.hear()["result"]["secret"])
        socks = [self.knock(secret, port=port) for _ in range(5)]
        got = []
        for sock in socks:
            sock.settimeout(1)
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                got.append(sock.recv(1024))
        self.assertEqual(sorted(got), [b""] * 4 + [request("web.test")])
        visitor.close()
        line.close()


class AgentTests(LimitCase):
    """What agents may take."""

    def test_agents(self) -> None:
        server = self.start("agents = 2")
        lines = [self.agent() for _ in range(2)]
        with self.assertRaises((Closed, OSError)):
            self.agent()
        lines[0].close()
        until("a place is free", lambda: server.ask("proxy.stats")["agents"] == 1)
        again = self.agent()
        for line in (*lines, again):
            line.close()

    def test_subscriptions(self) -> None:
        self.start("subscriptions = 2\nsubscriptions_per_host = 3", hosts=("a.test", "b.test", "c.test"))
        line = self.agent("a.test")
        line.subscribe("b.test", self.key("b.test"))
        proof = line.proof("c.test", self.key("c.test"))
        refused = self.denied(-20009, line, "proxy.subscribe", host="c.test", proof=proof)
        self.assertEqual(refused.error["data"]["limit"], "SUBSCRIPTIONS")
        more = [self.agent("a.test") for _ in range(2)]
        fourth = Line(self.server.agents)
        fourth.hello()
        proof = fourth.proof("a.test", self.key("a.test"))
        refused = self.denied(-20009, fourth, "proxy.subscribe", host="a.test", proof=proof)
        self.assertEqual(refused.error["data"]["limit"], "SUBSCRIBERS")
        more[0].close()
        until("a place is free", lambda: len(self.server.ask("proxy.subscribers")["subscribers"]) == 3)
        fourth.subscribe("a.test", self.key("a.test"))
        for one in (line, more[1], fourth):
            one.close()

    def test_wrong_secrets(self) -> None:
        """A source has to wait, twice as long each time; others have not."""
        self.start("subscribe_fails = 3\nban_shortest = 1\nban_longest = 60")
        line = Line(self.server.agents)
        line.hello()
        for length in (1, 2):
            for _ in range(3):
                self.denied(-20001, line, "proxy.subscribe", host="web.test", proof=WRONG)
            proof = line.proof("web.test", self.key())
            refused = self.denied(-20004, line, "proxy.subscribe", host="web.test", proof=proof)
            wait = refused.error["data"]["retry_after_ms"]
            self.assertTrue(1000 * length - 500 < wait <= 1000 * length + 1, wait)
            another = self.agent(source="127.3.3.3")
            another.close()
            time.sleep(wait / 1000 + 0.05)
        line.subscribe("web.test", self.key())
        line.close()

    def test_messages(self) -> None:
        server = self.start(
            "control_message = 4096\nlegacy_message = 600", keys='legacy = ["tcp:0:interface=127.0.0.1"]'
        )
        (legacy,) = (
            text for text in server.listening() if text.startswith("agents on ") and str(server.agents) not in text
        )
        port = int(legacy.split(" ")[2].rpartition(":")[2])
        for line, most in (
            (Line(server.agents), 4096),
            (Line(port, path="/", protocol=""), 600),
        ):
            frame = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{}}'
            line.frame(1, frame.ljust(most))
            self.assertRaises(Refused, line.call, "x")
            line.frame(1, frame.ljust(most + 1))
            self.assertIn(line.ended(), (0, 1009))
            line.close()

    def test_registrations(self) -> None:
        server = self.start("hosts = 3\npolicy_rules = 2")
        line = Line(
            server.agents, token=server.ask("token.add", name="ann", roles=["owner"], hosts=["*.ann.test"])["token"]
        )
        hashed = HostSecret.make().key.hex()
        rules = {"deny": ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"]}
        self.denied(-20005, line, "proxy.register", host="a.ann.test", secret_hash=hashed, policy=rules)
        line.call("proxy.register", host="a.ann.test", secret_hash=hashed)
        refused = self.denied(-20009, line, "proxy.register", host="b.ann.test", secret_hash=hashed)
        self.assertEqual(refused.error["data"]["limit"], "HOSTS")
        line.call("proxy.unregister", host="a.ann.test")
        line.call("proxy.register", host="b.ann.test", secret_hash=hashed)
        line.close()


def waiting(server: Proxy) -> int:
    """Connections that agents have waiting."""
    return int(server.ask("metrics.snapshot")["series"]["layer8_proxy_pool_idle"])


class AttackTests(LimitCase):
    """Rounds of each attack on one server with an agent: memory and descriptors stay where they are."""

    ROUNDS = 4
    GROWTH = 3000
    """Kilobytes that all rounds after the first may add: the allocator's own unrest."""

    def setUp(self) -> None:
        self.grown = 0

    def crowd(self, port: int, data: bytes, count: int, source: str = "127.0.{0}.1") -> list[socket.socket]:
        held = []
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", port), 10, (source.format(number % 200), 0))
            with contextlib.suppress(OSError):
                sock.sendall(data)
            held.append(sock)
        return held

    def scan(self, seconds: float) -> int:
        """Ask for hosts that nobody has, as fast as two threads can."""
        asked = [0, 0]

        def ask(which: int) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                name = f"n{which}-{asked[which]}.scan.test"
                if asked[which] % 2:
                    visit(self.server.http, request(name))
                else:
                    visit(self.server.https, records(hello(sni(name.encode()))))
                asked[which] += 1

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(asked)

    def upload(self, host: str, most: int) -> int:
        """Send as much as is taken within two seconds, and give how much that was."""
        sock = self.knock(request(host))
        sock.settimeout(1)
        block = memoryview(bytes(1 << 20))
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
            while sent < most:
                sent += sock.send(block)
        self.grown = max(self.grown, resident(self.server.pid))
        sock.close()
        return sent

    def test_rounds(self) -> None:
        server = self.start(
            "secret_time = 1\nsniff_time = 2\ncall_step = 4\ncall_time = 4", hosts=("web.test", "silent.test")
        )
        agent = Agent.start(self, server, {"web.test": {server.http: f"tcp:127.0.0.1:{self.service.port}"}})
        (data,) = server.data_ports()
        sizes, agents, counts = [], [], []
        scanned = 0
        most = 300 << 20
        for _ in range(self.ROUNDS):
            scanned += self.scan(1.5)
            for port, say in (
                (server.http, b"GET / HTTP/1.1\r\nHo"),
                (server.https, b"\x16\x03\x01"),
                (data, b"x" * 31),
            ):
                for sock in self.crowd(port, say, 150):
                    sock.close()
            for sock in self.crowd(server.agents, b"GET /agent HTTP/1.1\r\n", 50):
                sock.close()
            before = resident(server.pid)
            line = self.agent("silent.test")
            taken = self.upload("silent.test", most)
            self.assertLess(taken, most // 3, "the visitor is stopped while its agent is called")
            visitor = socket.create_connection(("127.0.0.1", server.http), 10)
            visitor.sendall(request("silent.test"))
            calls = [line.hear()["result"] for _ in range(2)]
            back = socket.create_connection(("127.0.0.1", data), 10)
            back.sendall(bytes.fromhex(calls[1]["secret"]))
            visitor.settimeout(1)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < most:
                    sent += visitor.send(bytes(1 << 20))
            self.assertLess(sent, most // 3, "the visitor is stopped by an agent that does not read")
            self.grown = max(self.grown, resident(server.pid))
            back.close()
            visitor.close()
            line.close()
            self.assertLess(self.grown - before, 4 << 10, "all of it waits in the kernel")
            flood = self.knock(request("web.test", "/flood"))
            time.sleep(0.5)
            self.assertLess(resident(server.pid) - before, 4 << 10, "a visitor that does not read")
            flood.close()
            self.assertTrue(fetched(server.http, "web.test"))
            until("the agent carries nobody", lambda: agent.ask("agent.status")["open"] == 0)
            until("nobody is left", lambda: not server.ask("proxy.connections")["connections"])
            until("connections wait", lambda: waiting(server) == POOL)
            until("dial-backs are given up", lambda: open_descriptors(server.pid) <= self.descriptors + 1 + POOL)
            sizes.append(resident(server.pid))
            agents.append(resident(agent.pid))
            counts.append((open_descriptors(server.pid), open_descriptors(agent.pid)))
        note(f"{scanned} unknown hosts asked for; server {sizes} kB, agent {agents} kB after each round")
        self.assertLess(sizes[-1] - sizes[0], self.GROWTH, sizes)
        self.assertLess(agents[-1] - agents[0], self.GROWTH, agents)
        self.assertEqual(len(set(counts)), 1, counts)
        self.assertEqual(agent.defects(), [])
        agent.stop()
        self.assertNotIn("scan.test", server.program.said(), "no line for hosts that nobody has")

    def test_no_descriptor_left(self) -> None:
        """Accepting rests; who is joined goes on, and all is well when there are descriptors again."""
        self.service = Service(self)
        static = f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{self.service.port}"\n'
        self.server = server = Proxy.start(self, static, prefix=("prlimit", "--nofile=90:90"))
        self.descriptors = open_descriptors(server.pid)
        self.addCleanup(self.sound)
        download = Download.start(server.http, "static.test")
        held = self.crowd(server.http, b"GET / HT", 120)
        until("it says so", lambda: "pump.starved" in server.program.said())
        before = len(download.got)
        until("the download goes on", lambda: len(download.got) > before + 20)
        for sock in held:
            abort(sock)
        until("visitors are served", lambda: fetched(server.http, "static.test", seconds=2))
        self.service.finish.set()
        self.assertTrue(download.ended.wait(20) and download.whole)

    if missing(prlimit="util-linux"):
        test_no_descriptor_left.skip = missing(prlimit="util-linux")  # type: ignore[attr-defined]

    def test_a_caller_who_never_reads(self) -> None:
        """Its answers wait up to a limit and it is not heard any more; others notice nothing."""
        server = self.start()
        line = self.agent()
        before = resident(server.pid)
        line.sock.settimeout(1)
        end = time.monotonic() + 6
        number = 0
        slowest = 0.0
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                for _ in range(100):
                    number += 1
                    line.say("knowledge.table", {}, number)
                time.sleep(0.1)
                begun = time.monotonic()
                self.assertTrue(fetched(server.http, "static.test"))
                slowest = max(slowest, time.monotonic() - begun)
        grown = resident(server.pid) - before
        note(f"{number} calls of somebody who does not read: {grown} kB, others waited {slowest * 1000:.0f} ms at most")
        self.assertLess(grown, 6 << 10)
        self.assertLess(slowest, 3)
        abort(line.sock)
