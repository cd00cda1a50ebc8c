"""The services as other programs use them: from `layer8.proxy`, without a daemon, a control port or files."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import sys
import tempfile
from pathlib import Path
from subprocess import run
from typing import Any

from attrs import evolve
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

import layer8.proxy
from layer8.config.proxy import AgentConfig, ProxyConfig, ProxyHostConfig
from layer8.core.errors import ConfigError, Refused, Unavailable
from layer8.crypto.keys import NodeKey
from layer8.crypto.secret import HostSecret
from layer8.proxy import Agent, Exposed, Gateway
from layer8.proxy.bus_local import LocalBus
from layer8.proxy.orders import Policy
from layer8.proxy.wire import Denied
from layer8.testing import ProxyPair, proxy_pair
from layer8.testing.pair import ANYWHERE, get, visit
from tests.proxy.pair import Echo

QUIET = ProxyConfig(http=ANYWHERE, https=(), agents=ANYWHERE, access_log="")


class LibraryCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    def pair(self, **options: Any) -> ProxyPair:
        pair = proxy_pair(self.reactor, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(pair.close()))
        return pair

    def gateway(self, config: ProxyConfig = QUIET, **options: Any) -> Gateway:
        gateway = Gateway(self.reactor, config, **options)
        gateway.startService()
        self.addCleanup(lambda: gateway.stopService() if gateway.running else None)
        return gateway

    def agent(self, *urls: str) -> Agent:
        agent = Agent(self.reactor, AgentConfig(servers=urls))
        agent.startService()
        self.addCleanup(lambda: agent.stopService() if agent.running else None)
        return agent

    async def visit(self, port: int, host: str) -> bytes:
        answer: bytes = await deferToThread(visit, port, get(host))
        return answer


class ExampleTests(LibraryCase):
    async def test_the_example_in_the_docstring(self) -> None:
        text = str(layer8.proxy.__doc__).partition("::\n\n")[2].partition("\n\nUsually")[0]
        example = "\n".join(line.removeprefix("    ") for line in text.splitlines())
        self.assertIn("async def main(reactor):", example)
        said: list[tuple[object, ...]] = []
        names: dict[str, Any] = {"print": lambda *words: said.append(words)}
        exec(compile(example, "the example", "exec"), names)
        # The agents' port is the usual one, as in a program of one's own; only tests need another.
        own = ProxyConfig
        names["ProxyConfig"] = lambda **keys: own(agents=ANYWHERE, **keys)
        await names["main"](self.reactor)
        ((url, state),) = said
        self.assertRegex(str(url), r"^http://app\.example\.org:\d+$")
        self.assertEqual(state, "serving")

    def test_the_names_come_when_they_are_asked_for(self) -> None:
        for package in (layer8.proxy, layer8.testing):
            for name in package.__all__:
                self.assertTrue(callable(getattr(package, name)))
            with self.assertRaises(AttributeError):
                package.nothing  # noqa: B018


class PairTests(LibraryCase):
    async def test_a_visitor(self) -> None:
        pair = self.pair()
        for service in (pair.gateway, pair.agent):
            verifyObject(IService, service)
        app = await pair.publish("app.test", self.echo.port)
        self.assertIsInstance(app, Exposed)
        self.assertEqual((app.state, app.url), ("serving", f"http://app.test:{pair.port()}"))
        self.assertIn(b"Host: app.test", await self.visit(pair.port(), "app.test"))
        await app.close()
        self.assertEqual((app.state, app.url, app.urls), ("closed", "", ()))
        self.assertEqual(await self.visit(pair.port(), "app.test"), b"")
        await app.close()
        again = pair.agent.expose("app.test", self.echo.port, HostSecret(app.published.secret))
        await again.ready()
        self.assertIn(b"Host", await self.visit(pair.port(), "app.test"))

    async def test_targets_by_port(self) -> None:
        pair = self.pair()
        tls = pair.port("https")
        app = await pair.publish("app.test", {pair.port(): self.echo.port, tls: f"127.0.0.1:{self.echo.port}"})
        self.assertEqual(app.urls, (f"http://app.test:{pair.port()}", f"https://app.test:{tls}"))

    async def test_it_leaves_nothing_behind(self) -> None:
        before: set[str] = set()
        for _ in range(2):  # what is left after the first is the process's own: the reactor's waker, the thread pool
            before = self.open_files()
            async with proxy_pair(self.reactor) as pair:
                await pair.publish("app.test", self.echo.port)
                await self.visit(pair.port(), "app.test")
            await pair.close()
            await self.settle()
        self.assertEqual(self.open_files() - before, set())

    def open_files(self) -> set[str]:
        """Say what is open."""
        found = set()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        return found

    async def settle(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.reactor.callLater(0.3, waiting.callback, None)
        await waiting

    async def test_what_cannot_be_exposed(self) -> None:
        pair = self.pair()
        secret = HostSecret.make()
        self.assertRaises(ConfigError, pair.agent.expose, "app.test", "nonsense", secret)
        self.assertRaises(ConfigError, pair.agent.expose, "127.0.0.1", 80, secret)
        self.assertRaises(ConfigError, pair.agent.expose, "no-secret-of-this-name.test", 80)
        unknown = pair.agent.expose("unknown.test", 80, secret)
        await self.assertFailure(unknown.ready(), Refused)
        self.assertEqual((unknown.state, unknown.url), ("refused", ""))
        self.assertRaises(Refused, pair.agent.expose, "unknown.test", 80, secret)

    async def test_before_the_start_and_after_the_end(self) -> None:
        gateway = self.gateway()
        secret = await gateway.register("app.test")
        agent = Agent(self.reactor, AgentConfig(servers=(gateway.url,)))
        app = agent.expose("app.test", self.echo.port, secret)
        self.assertEqual(app.state, "connecting")
        ready = app.ready()
        agent.startService()
        await ready
        await gateway.stopService()
        await self.until(lambda: app.state == "connecting")
        late = app.ready()
        await agent.stopService()
        await self.assertFailure(late, Unavailable)

    async def until(self, true: Any) -> None:
        for _ in range(200):
            if true():
                return
            waiting: Deferred[None] = Deferred()
            self.reactor.callLater(0.02, waiting.callback, None)
            await waiting
        self.fail("it did not become true")


class GatewayTests(LibraryCase):
    async def test_over_tls_by_pin(self) -> None:
        gateway = self.gateway(evolve(QUIET, agents=("tls:0:interface=127.0.0.1",)))
        self.assertRegex(gateway.url, r"^wss://127\.0\.0\.1:\d+\?pin=")
        secret = await gateway.register("app.test")
        app = self.agent(gateway.url).expose("app.test", self.echo.port, secret)
        await app.ready()
        self.assertIn(b"Host", await self.visit(gateway.port(), "app.test"))

    async def test_a_policy_and_a_secret_of_ones_own(self) -> None:
        gateway = self.gateway()
        mine = HostSecret.make()
        self.assertIs(await gateway.register("app.test", mine, policy=Policy(deny=("127.0.0.0/8",))), mine)
        app = self.agent(gateway.url).expose("app.test", self.echo.port, mine)
        await app.ready()
        self.assertEqual(await self.visit(gateway.port(), "app.test"), b"")
        with self.assertRaises(Denied):
            await gateway.register("app.test")
        await gateway.unregister("app.test")
        await gateway.register("app.test")

    async def test_what_survives_when_it_has_a_place(self) -> None:
        state = Path(tempfile.mkdtemp(prefix="l8", dir="/tmp"))
        self.addCleanup(lambda: run(["rm", "-r", str(state)], check=True))
        os.chmod(state, 0o700)
        first = self.gateway(state=state)
        secret = await first.register("app.test")
        await first.stopService()
        self.assertEqual(stat.S_IMODE((state / "proxy.db").stat().st_mode), 0o600)
        second = self.gateway(state=state)
        app = self.agent(second.url).expose("app.test", self.echo.port, secret)
        await app.ready()
        self.assertEqual([path.name for path in state.iterdir() if path.suffix == ".sock"], [])

    async def test_a_bus_of_the_program(self) -> None:
        class Rows:
            async def save(self, row: object) -> None:
                saved.append(row)

            async def drop(self, row: object) -> None:
                saved.remove(row)

        saved: list[object] = []
        key = NodeKey.make()
        gateway = self.gateway(bus=LocalBus(self.reactor, Rows(), key.node_id), key=key)
        await gateway.register("app.test")
        self.assertEqual(len(saved), 1)

    async def test_hosts_of_the_configuration(self) -> None:
        static = ProxyHostConfig(host="static.test", target=f"tcp:127.0.0.1:{self.echo.port}")
        gateway = self.gateway(evolve(QUIET, host=(static,)))
        self.assertIn(b"Host: static.test", await self.visit(gateway.port(), "static.test"))

    def test_a_configuration_is_checked_as_a_file_would_be(self) -> None:
        for wrong in (
            {"agents": ("tcp:9081",)},
            {"http": ("nonsense",)},
            {"unknown": "maybe"},
            {"workers": 2},
            {"bus": "wamp"},
            {"host": (ProxyHostConfig(host="app.test"),)},
            {"tls_cert_file": "/nowhere"},
        ):
            with self.assertRaises(ConfigError):
                Gateway(self.reactor, evolve(QUIET, **wrong))

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            config = evolve(QUIET, http=(f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1",))
            gateway = Gateway(self.reactor, config)
            self.assertRaises(Unavailable, gateway.startService)
            self.assertFalse(gateway.running)


class CostTests(SynchronousTestCase):
    def test_a_small_module_brings_no_service_along(self) -> None:
        script = "import sys, layer8.proxy.wire; print([name for name in sys.modules if name.startswith('twisted')])"
        done = run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        self.assertEqual(re.findall(r"twisted[\w.]*", done.stdout), [])
