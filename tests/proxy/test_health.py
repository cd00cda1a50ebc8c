"""Targets that come and go: what an agent sees of them, and what servers make of it."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from layer8.config.load import load_text
from layer8.config.problem import ConfigProblems
from layer8.control.access import Caller
from layer8.control.errors import NotFound
from layer8.net.dial import Where
from layer8.proxy import health as health_module
from layer8.proxy.agent import Agent, AgentCommands, CheckHost
from layer8.proxy.health import FAILURES, Health, judge, request
from layer8.proxy.uplink import Published
from tests.proxy.pair import Echo, get, visit
from tests.proxy.test_pooling import PoolCase


class PureTests(SynchronousTestCase):
    def test_down_after_failures_in_a_row_and_up_after_one_success(self) -> None:
        health = Health(80, Where("127.0.0.1", 80))
        changes = [health.looked(why, 1) for why in ("", "x", "", "x", "x", "x", "", "x", "")]
        self.assertEqual(changes, [False, False, False, False, True, False, True, False, False])
        self.assertEqual(FAILURES, 2)

    def test_answers(self) -> None:
        for answer, why in (
            (b"HTTP/1.1 200 OK\r\n", ""),
            (b"HTTP/1.0 301 Moved\r\n", ""),
            (b"HTTP/1.1 404 Not Found\n", ""),
            (b"HTTP/1.1 499 x\r\n", ""),
            (b"HTTP/1.1 500 Oops\r\n", "status 500"),
            (b"HTTP/1.1 503\r\n", "status 503"),
            (b"", "closed without an answer"),
            (b"SSH-2.0-x\r\n", "no HTTP"),
            (b"HTTP/1.1 2000 x\r\n", "no HTTP"),
            (b"HTTP/1.1 abc x\r\n", "no HTTP"),
            (b"HTTP/1.1", "no HTTP"),
        ):
            self.assertEqual(judge(answer), why, answer)

    def test_words(self) -> None:
        self.assertEqual(Where("127.0.0.1", 80).words, "127.0.0.1:80")
        self.assertEqual(Where("::1", 80).words, "[::1]:80")
        self.assertEqual(Where("", 0, "/run/app").words, "unix:/run/app")

    def test_the_path_is_a_path(self) -> None:
        for path in ("health", "/a b", "/\\r\\nHost: x", "/é"):
            text = '[[agent.host]]\nhost = "a.test"\nsecret_file = "/x"\ntargets = { 80 = "tcp:127.0.0.1:1" }\n'
            with self.assertRaises(ConfigProblems):
                load_text(f'{text}check_path = "{path}"', {}, {}, role="agent")


class HealthCase(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(health_module, "EVERY", 0.2)
        self.patch(health_module, "TURN", 0.1)
        self.patch(health_module, "DOUBT", 0.05)
        self.patch(health_module, "PATIENCE", 0.5)

    def of(self, agent: Agent, what: CheckHost) -> Deferred[Any]:
        caller: Any = Caller
        return Deferred.fromCoroutine(AgentCommands(agent).check(caller, what))


class CheckTests(HealthCase):
    async def test_down_and_up_again(self) -> None:
        server, secret = self.start()
        port = self.echo.port
        agent = await self.publish(server, self.host(secret, check="tcp"))
        (seat,) = server.seats
        self.assertEqual(seat.state, "up")
        self.echo.close()
        await self.until(lambda: seat.state == "down")
        self.assertEqual((agent.checks.down, server.ahead.pools.held), ({"app.test"}, 0))
        self.assertEqual(await self.get(server), b"")
        back = socket.create_server(("127.0.0.1", port))
        self.addCleanup(back.close)
        await self.until(lambda: seat.state == "up")
        self.assertEqual(agent.checks.down, set())
        await self.full(server)

    async def test_one_target_is_enough(self) -> None:
        server, secret = self.start()
        targets = {80: Where("127.0.0.1", self.echo.port), 443: Where("127.0.0.1", 1)}
        agent = await self.publish(server, Published("app.test", secret.key, targets, check="tcp"))
        healths = agent.checks._healths["app.test"]
        await self.until(lambda: not healths[443].up)
        self.assertEqual((healths[80].up, agent.checks.down), (True, set()))

    async def test_by_http(self) -> None:
        """What is asked, and that TLS targets are asked nothing."""
        server, secret = self.start()
        plain, tls = Echo(b"HTTP/1.1 503 Sorry\r\n\r\n"), Echo()
        self.addCleanup(plain.close)
        self.addCleanup(tls.close)
        targets = {80: Where("127.0.0.1", plain.port), 443: Where("127.0.0.1", tls.port)}
        one = Published("app.test", secret.key, targets, check="http", check_path="/health", proxy_protocol="v1")
        agent = await self.publish(server, one)
        healths = agent.checks._healths["app.test"]
        await self.until(lambda: not healths[80].up)
        self.assertEqual((healths[80].why, healths[443].up), ("status 503", True))
        self.assertEqual(plain.got[0], b"PROXY UNKNOWN\r\n" + request("app.test", "/health"))
        self.assertEqual([said for said in tls.got if said], [])

    async def test_a_target_that_accepts_and_says_nothing(self) -> None:
        server, secret = self.start()
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        one = self.host(secret, port=silent.getsockname()[1], check="http")
        agent = await self.publish(server, one)
        await self.until(lambda: agent.checks.down == {"app.test"})
        self.assertEqual(agent.checks._healths["app.test"][0].why, "no answer in time")

    async def test_refused_visitors_are_a_reason_to_look(self) -> None:
        """The second of two is not the first that an operator hears of it."""
        self.patch(health_module, "EVERY", 60.0)
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret, check="tcp"))
        other = Echo()
        self.addCleanup(other.close)
        await self.second(server, self.host(secret, port=other.port))
        await self.full(server, 4)
        self.echo.close()
        for _ in range(6):
            self.assertTrue((await self.get(server)).endswith(get("app.test")))
        await self.until(lambda: agent.checks.down == {"app.test"})
        await self.until(lambda: [seat.state for seat in server.seats] == ["down", "up"])

    async def test_told_to_a_server_that_comes_later(self) -> None:
        server, secret = self.start()
        self.echo.close()
        agent = await self.publish(server, self.host(secret, check="tcp"))
        await self.until(lambda: agent.checks.down == {"app.test"})
        (seat,) = server.seats
        seat.voice.close("revoked")
        await self.until(lambda: len(server.seats) == 1 and next(iter(server.seats)) is not seat)
        await self.until(lambda: next(iter(server.seats)).state == "down")

    async def test_other_agents_serve_without_a_failure(self) -> None:
        """A target goes down under visitors."""
        server, secret = self.start()
        other = Echo()
        self.addCleanup(other.close)
        await self.publish(server, self.host(secret, check="tcp"))
        await self.second(server, self.host(secret, port=other.port, check="tcp"))
        await self.full(server, 4)
        bad = 0
        for number in range(60):
            if number == 10:
                self.echo.close()
            got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
            bad += not got.endswith(get("app.test"))
        self.assertEqual(bad, 0)


class CommandTests(HealthCase):
    async def test_check(self) -> None:
        server, secret = self.start()
        agent = await self.publish(server, self.host(secret))
        (row,) = (await self.of(agent, CheckHost())).hosts
        self.assertEqual((row.host, row.check, row.up), ("app.test", "none", True))
        (target,) = row.targets
        self.assertEqual((target.target, target.up, target.why), (f"127.0.0.1:{self.echo.port}", True, ""))
        self.echo.close()
        for _ in range(3):
            (row,) = (await self.of(agent, CheckHost("app.test"))).hosts
        self.assertEqual((row.up, row.targets[0].up), (True, False), "seen, and nobody is told: it is not looked after")
        self.assertEqual(row.targets[0].why, "connection refused")
        with self.assertRaises(NotFound):
            await self.of(agent, CheckHost("other.test"))

    async def test_nothing_left_when_stopped_in_the_middle(self) -> None:
        server, secret = self.start()
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        agent = await self.publish(server, self.host(secret, port=silent.getsockname()[1], check="http"))
        looking = self.of(agent, CheckHost())
        await agent.stopService()
        (row,) = (await looking).hosts
        self.assertEqual((row.targets[0].up, row.targets[0].why), (False, "given up"))
