"""The listeners of a daemon: files and their modes, busy ports, TLS, ceilings, proofs, and what is left behind."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SkipTest, TestCase

from layer8.config.sections import ControlConfig
from layer8.control.client import connect
from layer8.control.conversation import Known
from layer8.control.errors import CallRefused, Forbidden, NoCapacity, RateLimited, Unauthenticated
from layer8.control.limits import AGENTS, ANSWER_AGENT, MESSAGE_AGENT
from layer8.control.metrics import Metrics
from layer8.control.service import ControlService, wall_clock
from layer8.control.table import Table
from layer8.core.errors import ConfigError, Refused, RemoteProtocolError, Unavailable
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.tls import TlsServer
from tests.control.rig import Raw, raises, rig, until
from tests.control.test_http import UPGRADE, ask, status

AGENT_CEILING = frozenset({"agent", "owner"})


def mode(path: Path) -> int:
    """Give the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


class FileTests(TestCase):
    """What stands in the run folder."""

    def setUp(self) -> None:
        self.home = Path(mkdtemp(prefix="l8"))
        self.addCleanup(rmtree, self.home)

    def service(self, config: ControlConfig | None = None, home: Path | None = None, **more: Any) -> ControlService:
        from twisted.internet import reactor

        made = ControlService(
            reactor,
            "test",
            config or ControlConfig(listen=()),
            home or self.home,
            Table(wall_clock),
            Metrics(lambda: 0.0),
            tuple,
            **more,
        )
        self.addCleanup(lambda: made.stopService() if made.running else None)
        return made

    async def test_files_are_private_and_go(self) -> None:
        service = self.service()
        service.startService()
        modes = [mode(path) for path in (service.run, service.socket_path, service.cookie_path)]
        self.assertEqual(modes, [0o700, 0o600, 0o600])
        text = service.cookie_path.read_text().strip()
        self.assertEqual((text, len(text)), (service.keyring.cookie, 43))
        self.assertNotIn(text, repr(vars(service)))
        await service.stopService()
        self.assertEqual(list(service.run.iterdir()), [])

    async def test_the_cookie_is_new_at_each_start(self) -> None:
        cookies = set()
        for _ in range(3):
            service = self.service()
            service.startService()
            cookies.add(service.cookie_path.read_text())
            await service.stopService()
        self.assertEqual(len(cookies), 3)

    async def test_a_path_that_is_too_long(self) -> None:
        home = self.home / ("x" * 100)
        service = self.service(home=home)
        error = self.assertRaises(ConfigError, service.startService)
        self.assertIn("107 bytes", str(error))
        self.assertFalse(service.running)
        self.assertEqual(list((home / "run").iterdir()), [])

    async def test_a_socket_that_a_dead_process_left(self) -> None:
        service = self.service()
        service.run.mkdir()
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(service.socket_path))
        left.close()
        service.startService()
        self.assertEqual(service.listening, (f"unix:{service.socket_path}",))

    async def test_a_second_daemon_with_the_same_folder(self) -> None:
        first, second = self.service(), self.service()
        first.startService()
        self.assertIn("another test is running", str(self.assertRaises(Unavailable, second.startService)))
        self.assertTrue(first.socket_path.is_socket())

    async def test_a_busy_port(self) -> None:
        first = self.service(ControlConfig(listen=("tcp:0:interface=127.0.0.1",), socket=False))
        first.startService()
        listen = f"tcp:{first.port}:interface=127.0.0.1"
        second = self.service(ControlConfig(listen=(listen,)), self.home / "other")
        error = self.assertRaises(Unavailable, second.startService)
        self.assertEqual(
            str(error), f"cannot listen on {listen}: address already in use; choose another with --control"
        )
        self.assertFalse(second.running)
        await until(second._reactor, lambda: not list(second.run.iterdir()))

    async def test_plain_text_beyond_this_machine(self) -> None:
        for listen in ("tcp:0", "tcp:0:interface=0.0.0.0", "tcp:0:interface=192.0.2.1", "tcp6:0"):
            config = object.__new__(ControlConfig)
            for name, value in (("listen", (listen,)), ("socket", False), ("names", ()), ("metrics_open", False)):
                object.__setattr__(config, name, value)
            error = self.assertRaises(ConfigError, self.service(config).startService)
            self.assertIn("plain text", str(error))

    async def test_tls_without_a_certificate(self) -> None:
        service = self.service(ControlConfig(listen=("tls:0",), socket=False))
        self.assertIn("layer8 init", str(self.assertRaises(ConfigError, service.startService)))

    async def test_tokens_that_others_may_read(self) -> None:
        path = self.home / "tokens.toml"
        path.write_text("")
        path.chmod(0o644)
        self.assertIn("chmod 600", str(self.assertRaises(ConfigError, self.service)))

    async def test_tokens_outlive_the_process_and_are_stored_hashed(self) -> None:
        service = self.service()
        token = service.keyring.add("ops", frozenset({"operate"}), None)
        stored = (self.home / "tokens.toml").read_text()
        self.assertEqual((mode(self.home / "tokens.toml"), token in stored), (0o600, False))
        known = self.service().keyring.by_token(token, None)
        self.assertEqual(known, Known("ops", frozenset({"operate"})))

    async def test_tokens_expire(self) -> None:
        now = [1_000_000.0]
        keyring = self.service(wall=lambda: now[0]).keyring
        token = keyring.add("brief", frozenset({"read"}), 60)
        self.assertIsNotNone(keyring.by_token(token, None))
        now[0] += 60
        self.assertIsNone(keyring.by_token(token, None))

    async def test_a_guesser_is_banned_and_its_neighbours_with_it(self) -> None:
        now = [0.0]
        keyring = self.service(seconds=lambda: now[0]).keyring
        for _ in range(20):
            self.assertIsNone(keyring.by_token("wrong", "192.0.2.1"))
        self.assertRaises(RateLimited, keyring.by_token, keyring.cookie, "192.0.2.9")
        self.assertIsNotNone(keyring.by_token(keyring.cookie, "198.51.100.1"))
        self.assertIsNotNone(keyring.by_token(keyring.cookie, None))
        now[0] += 61
        self.assertIsNotNone(keyring.by_token(keyring.cookie, "192.0.2.1"))


class ProofTests(TestCase):
    """Who is known, by what."""

    async def test_an_upgrade_with_a_token(self) -> None:
        made = rig(self)
        token = made.service.keyring.add("ops", frozenset({"operate"}), None)
        client = await made.client("tls", token)
        self.assertEqual(await client.call("auth.whoami"), {"name": "ops", "roles": ["operate"]})
        await raises(Refused, made.client("tls", "wrong"))

    async def test_another_users_process(self) -> None:
        if os.getuid() != 0:
            raise SkipTest("needs root, to become somebody else")
        made = rig(self)
        for folder in (made.home, made.service.run):
            folder.chmod(0o755)
        made.service.socket_path.chmod(0o666)
        script = (
            "import os, socket, sys\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
            "s.sendall(sys.stdin.buffer.read())\nsys.stdout.buffer.write(s.recv(4096))"
        )
        command = [sys.executable, "-c", script, str(made.service.socket_path)]
        for question, code in ((UPGRADE + b"\r\n", 403), (ask("/metrics"), 403), (ask("/healthz"), 200)):
            done: Any = await deferToThread(subprocess.run, command, input=question, capture_output=True, timeout=20)
            self.assertEqual(status(done.stdout), code, done.stderr)

    async def test_a_client_certificate(self) -> None:
        ours = Identity.from_pem(*self_signed("client"))
        other = Identity.from_pem(*self_signed("client"))
        made = rig(self, certificates={ours.pin: Known("ann", frozenset({"operate"}))})
        for identity, name in ((ours, "ann"), (other, "anonymous"), (None, "anonymous")):
            client = await made.client("tls", identity=identity)
            self.assertEqual((await client.call("auth.whoami"))["name"], name)

    async def test_the_wrong_server(self) -> None:
        made = rig(self)
        for more in ({"pin": "A" * 43}, {"pin": None}):
            await raises(RemoteProtocolError, made.client("tls", made.service.keyring.cookie, **more))

    async def test_a_new_token_is_shown_only_in_private(self) -> None:
        made = rig(self)
        client = await made.admin()
        made.service.conversations()[0].private = False
        made.service.conversations()[0]._caller = None
        await raises(CallRefused, client.call("token.add", {"name": "x", "roles": ["read"]}))


class AgentListenerTests(TestCase):
    """A listener with a ceiling, as the proxy opens it for agents."""

    async def test_a_right_admin_token_gives_nothing(self) -> None:
        made = rig(self)
        url, pin = await self.listen(made)
        client = await connect(made.reactor, url, pin=pin, token=made.service.keyring.cookie)
        made.clients.append(client)
        self.assertEqual((await client.call("auth.whoami"))["roles"], [])
        for method in ("test.add", "node.status", "token.list", "config.show", "test.agent"):
            await raises(Forbidden, client.call(method))
        await client.call("test.grant")
        await client.call("test.agent")

    async def test_its_messages_are_smaller(self) -> None:
        made = rig(self)
        url, pin = await self.listen(made)
        client = await connect(made.reactor, url, pin=pin)
        made.clients.append(client)
        await client.call("test.echo", {"text": "x" * (MESSAGE_AGENT - 100)})
        await raises(NoCapacity, client.call("test.long", {"size": ANSWER_AGENT}))
        client._socket.send(b" " * (MESSAGE_AGENT + 1))  # type: ignore[union-attr]
        await until(made.reactor, lambda: client.reason)

    async def test_it_has_no_other_pages(self) -> None:
        made = rig(self)
        site = made.service.site("agents", AGENT_CEILING, paths=("/agent",), rules=AGENTS)
        port = made.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        for path in ("/metrics", "/healthz", "/ws", "/"):
            answer = await deferToThread(Raw(port.getHost().port).exchange, ask(path))
            self.assertEqual(status(answer), 404)

    async def test_any_host_name_and_many_connections(self) -> None:
        made = rig(self)
        site = made.service.site("agents", AGENT_CEILING, paths=("/agent",), connections=40, per_source=30)
        port = made.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"ws://localhost:{port.getHost().port}/agent"
        for _ in range(30):
            made.clients.append(await connect(made.reactor, url))
        await raises(Unavailable, connect(made.reactor, url))
        self.assertEqual((site.places.open, site.places.refused), (30, 1))
        made.clients[0].close()
        await until(made.reactor, lambda: site.places.open == 29)
        made.clients.append(await connect(made.reactor, url))

    async def test_a_wrong_token_counts_against_its_address(self) -> None:
        made = rig(self)
        url, pin = await self.listen(made)
        for _ in range(7):
            client = await connect(made.reactor, url, pin=pin)
            made.clients.append(client)
            for _ in range(3):
                error = await raises(Exception, client.call("auth.token", {"token": "wrong"}))
        self.assertIsInstance(error, RateLimited)
        self.assertNotIsInstance(error, Unauthenticated)

    async def listen(self, made: Any) -> tuple[str, str]:
        site = made.service.site("agents", AGENT_CEILING, paths=("/agent",), rules=AGENTS, connections=10_000)
        factory = TLSMemoryBIOFactory(TlsServer(made.identity, ("http/1.1",)), False, site)
        port = made.reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"wss://127.0.0.1:{port.getHost().port}/agent", made.identity.pin

    async def test_an_adopted_socket(self) -> None:
        """A connection that somebody else accepted is served like any other."""
        made = rig(self)
        site = made.service.site("agents", AGENT_CEILING, paths=("/agent",))
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)

        def accept() -> None:
            end, _ = listening.accept()
            end.setblocking(False)
            made.reactor.callFromThread(adopt, end)

        def adopt(end: socket.socket) -> None:
            made.reactor.adoptStreamConnection(end.fileno(), end.family, site)
            end.close()

        accepting: Deferred[None] = deferToThread(accept)
        client = await connect(made.reactor, f"ws://127.0.0.1:{listening.getsockname()[1]}/agent")
        made.clients.append(client)
        await accepting
        self.assertEqual(await client.call("rpc.ping"), {})


class ReloadTests(TestCase):
    """Another configuration for a service that runs."""

    async def test_listeners_come_and_go_and_the_others_stay(self) -> None:
        made = rig(self)
        before = made.service.listening
        client = await made.client("tcp")
        tcp = f"tcp:{made.port('tcp')}:interface=127.0.0.1"
        config = ControlConfig(
            listen=("tcp:0:interface=127.0.0.1", "tcp:0:interface=127.0.0.2"), names=("node.example",)
        )
        settle = made.service.prepare(config)
        self.assertEqual(made.service.listening, before)
        settle(True)
        self.assertEqual(made.service.listening[:2], before[:2])
        self.assertIn("interface=127.0.0.2", made.service.listening[2])
        self.assertIn(tcp, made.service.listening)
        self.assertEqual(await client.call("rpc.ping"), {})
        answer = await deferToThread(Raw(made.port("tcp")).exchange, ask("/healthz", host="node.example"))
        self.assertEqual(status(answer), 200)

    async def test_what_cannot_be_opened_changes_nothing(self) -> None:
        made = rig(self)
        before = made.service.listening
        busy = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(busy.close)
        taken = f"tcp:{busy.getsockname()[1]}:interface=127.0.0.1"
        free = "tcp:0:interface=127.0.0.3"
        self.assertRaises(Unavailable, made.service.prepare, ControlConfig(listen=(free, taken), socket=False))
        self.assertEqual(made.service.listening, before)
        made.service.prepare(ControlConfig(listen=(free,), socket=False))(False)
        self.assertEqual(made.service.listening, before)
        self.assertEqual(await (await made.client("unix")).call("rpc.ping"), {})

    async def test_tokens_and_certificates_are_read_again(self) -> None:
        made = rig(self)
        other = Identity.from_pem(*self_signed("127.0.0.1"))
        made.service._identity = lambda: other
        text = made.service.keyring.add("late", frozenset({"read"}), None)
        path = made.home / "tokens.toml"
        kept = path.read_text()
        made.service.keyring.revoke("late")
        path.write_text("nonsense")
        self.assertRaises(ConfigError, made.service.prepare, made.service.config)
        path.write_text(kept)
        self.assertIsNone(made.service.keyring.by_token(text, None))
        made.service.prepare(made.service.config)(True)
        self.assertIsNotNone(made.service.keyring.by_token(text, None))
        client = await made.client("tls", text, pin=other.pin)
        self.assertEqual((await client.call("auth.whoami"))["name"], "late")
