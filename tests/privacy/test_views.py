"""Who learns what: marks go in at every end, and each party's memory, log, answers and recorded bytes are searched.

::

    visitor 127.1.2.3 ──▶ server ◀── 127.4.5.6, a relay that records ◀── agent ──▶ services on 127.7.8.9

Each search also looks for a mark that has to be there, so that one that finds nothing by mistake fails.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from attrs import define
from twisted.trial.runner import TestLoader
from twisted.trial.unittest import SynchronousTestCase, TestSuite

from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import self_signed
from tests.accepting import Accepting
from tests.interop.daemons import Agent, Proxy, Scope, folder, until
from tests.privacy.relay import Relay
from tests.proxy.hellos import hello, records, sni
from tests.resilience.rig import memory, visit
from tests.resilience.wire import Closed, Line, Refused

VISITOR, ORIGIN, TARGET = "127.1.2.3", "127.4.5.6", "127.7.8.9"
"""The addresses of visitors, of the agent as the server sees it, and of the services behind the agent."""
WEB, TLS, POOLED = "web.marked.test", "tls.marked.test", "pooled.marked.test"
"""The agent is called for visitors of the first two, and dials ahead for those of the third."""
DOWN, REFUSED = "down.marked.test", "refused.marked.test"
"""Two more hosts of the agent: one whose target does not answer, one that the server does not let it have."""
UNKNOWN = "unknown.marked.test"
BODY = "MARK-of-a-body-4711"
PLAINTEXT = "MARK-inside-the-visitors-own-TLS-4712"
JUNK = "MARK-in-nonsense-4713"


class _Module:
    """The scope of what the tests of this module share: they talk through threads of this process, so they have to end
    before tests elsewhere that count its descriptors."""

    def __init__(self) -> None:
        self._ending = contextlib.ExitStack()
        atexit.register(self.end)

    def addCleanup(self, function: Callable[..., Any], /, *args: Any) -> None:
        self._ending.callback(function, *args)

    def end(self) -> None:
        self._ending.close()


MODULE = _Module()


@define(eq=False)
class Scene:
    """Everything that runs, and every mark in it."""

    server: Proxy
    agent: Agent
    relay: Relay
    secret: HostSecret
    token: str
    reader: str
    control: int
    held: socket.socket
    secure: ssl.SSLSocket
    replies: list[bytes]
    target: bytes

    @property
    def secrets(self) -> dict[str, bytes]:
        """What nobody may hold but who it belongs to."""
        return {
            "the host's secret": self.secret.value,
            "the host's secret in hex": self.secret.hex().encode(),
            "an owner's token": self.token.encode(),
            "a reader's token": self.reader.encode(),
        }


def service(scope: Scope, context: ssl.SSLContext | None = None) -> int:
    """Answer each read on TARGET with what was read, for as long as the visitor stays; give the port."""

    def echo(sock: socket.socket) -> None:
        with sock if context is None else context.wrap_socket(sock, server_side=True) as talk:
            while data := talk.recv(65536):
                talk.sendall(data)

    accepting = Accepting(echo, TARGET)
    scope.addCleanup(accepting.close)
    return accepting.port


@cache
def scene() -> Scene:
    """Start everything once, let visitors come, and leave two of them joined."""
    key, certificate = self_signed([TLS])
    home = folder(MODULE)
    (home / "pair.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "pair.pem")
    plain, secure = service(MODULE), service(MODULE, context)
    relay = Relay(MODULE, ORIGIN)
    server = Proxy.start(
        MODULE,
        '[control]\nlisten = ["tcp:0:interface=127.0.0.1"]\n[log]\nformat = "json"\nlevel = "debug"\nblur = 0\n',
    )
    token = server.ask("token.add", name="ann", roles=["owner"], hosts=["*.marked.test"])["token"]
    reader = server.ask("token.add", name="rita", roles=["read"])["token"]
    secret = HostSecret.make()
    owner = Line(server.agents, token=token)
    for host in (WEB, TLS, POOLED, DOWN):
        secret.save(server.secret(host))
        owner.call("proxy.register", host=host, secret_hash=secret.key.hex(), mode="raw")
    owner.close()
    targets = {
        WEB: {server.http: f"tcp:{TARGET}:{plain}"},
        POOLED: {server.http: f"tcp:{TARGET}:{plain}"},
        TLS: {server.https: f"tcp:{TARGET}:{secure}"},
        DOWN: {server.http: f"tcp:{TARGET}:1"},
    }
    called = dict.fromkeys((WEB, TLS, DOWN), "pool = 0")
    agent = Agent.start(MODULE, server, targets, f'via = "connect:127.0.0.1:{relay.port}"', more=called)
    path = agent.home / "test.toml"
    HostSecret.make().save(server.secret(REFUSED))
    wanted = f'host = "{REFUSED}"\nsecret_file = "{server.secret(REFUSED)}"\ntargets = {{ 80 = "tcp:{TARGET}:2" }}\n'
    path.write_text(path.read_text().replace("[log]\n", '[log]\nlevel = "debug"\n') + "[[agent.host]]\n" + wanted)
    agent.stop()
    agent.again(*targets)
    control = next(text for text in server.listening() if text.startswith("control on") and "127.0.0.1" in text)
    port = next(int(part) for part in control.replace(":", " ").split() if part.isdigit())
    words = f"POST / HTTP/1.1\r\nHost: {WEB}\r\n\r\n{BODY}".encode()
    held = socket.create_connection(("127.0.0.1", server.http), 10, (VISITOR, 0))
    held.sendall(words)
    replies = [held.recv(65536)]
    trust = ssl.create_default_context(cadata=certificate.decode())
    raw = socket.create_connection(("127.0.0.1", server.https), 10, (VISITOR, 0))
    inside = trust.wrap_socket(raw, server_hostname=TLS)
    inside.sendall(PLAINTEXT.encode())
    replies.append(inside.recv(65536))
    MODULE.addCleanup(held.close)
    MODULE.addCleanup(inside.close)
    made = Scene(server, agent, relay, secret, token, reader, port, held, inside, replies, struct_of(plain))
    nonsense(made)
    return made


def nonsense(made: Scene) -> None:
    """Send bad input to every listener, each with a mark."""
    server, mark = made.server, JUNK.encode()
    (data,) = server.data_ports()
    visit(server.http, f"GET / HTTP/1.1\r\nHost: {DOWN}\r\n\r\n".encode(), source=VISITOR)
    for request in (
        b"GET /%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (mark, UNKNOWN.encode()),
        b"GET /%b HTTP/1.1\r\nHost: a\r\nHost: %b\r\n\r\n" % (mark, mark),
        b"\x16\x03\x01" + mark,
        mark + b"\r\n\r\n",
    ):
        visit(server.http, request, source=VISITOR)
    for request in (records(hello(sni(UNKNOWN.encode()))), b"\x16\x03\x01\x00\x05" + mark, mark):
        visit(server.https, request + bytes(70_000), source=VISITOR)
    visit(data, mark.ljust(32, b"x"), source=VISITOR)
    for payload in (mark, b'{"jsonrpc": "2.0", "method": "%b", "id": 1}' % mark, b"\xff" + mark):
        line = Line(server.agents, source=VISITOR)
        line.frame(1, payload)
        line.close()
    for wrong in (made.token[:-4] + "xxxx", made.reader + "x"):
        try:
            Line(server.agents, token=wrong, source=VISITOR).close()
        except Closed:
            continue
    line = Line(server.agents, source=VISITOR)
    line.hello()
    for host in (WEB, UNKNOWN):
        try:
            line.call("proxy.subscribe", host=host, proof="0" * 64)
        except Refused:
            continue
    line.close()
    visit(server.agents, b"GET /%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (mark, mark), source=VISITOR)
    # Visitors who have left, so that there are access records.
    until("connections wait", lambda: server.ask("metrics.snapshot")["series"].get("layer8_proxy_pool_idle"))
    for host in (WEB, POOLED):
        gone = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n{BODY}".encode()
        with socket.create_connection(("127.0.0.1", server.http), 10, (VISITOR, 0)) as sock:
            sock.sendall(gone)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                continue


def struct_of(port: int) -> bytes:
    """Give port and address of a service as the kernel's calls have them."""
    return port.to_bytes(2, "big") + socket.inet_aton(TARGET)


class ViewCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.scene = scene()

    def search(self, where: bytes, there: dict[str, bytes], not_there: dict[str, bytes]) -> None:
        """Fail for what is missing, and for what is found."""
        self.assertEqual([what for what, mark in there.items() if mark not in where], [], "the search is blind")
        self.assertEqual([what for what, mark in not_there.items() if mark in where], [])

    def call_as_reader(self, method: str, **params: Any) -> Any:
        line = Line(self.scene.control, path="/ws", token=self.scene.reader)
        try:
            return line.call(method, **params)
        finally:
            line.close()


class PathTests(ViewCase):
    """Somebody between server and agent, who keeps everything."""

    def control(self) -> bytes:
        connections = self.scene.relay.to(self.scene.server.agents)
        self.assertGreaterEqual(len(connections), 2, "both starts of the agent")
        return b"\n".join(text for one in connections for text in [bytes(one.sent), bytes(one.got), *one.texts()])

    def told(self, method: str, least: int) -> list[dict[str, Any]]:
        """What the server has told its agent by one method."""
        connections = self.scene.relay.to(self.scene.server.agents)
        messages = [message for one in connections for message in one.messages()]
        found = [message["params"] for message in messages if message.get("method") == method]
        self.assertGreaterEqual(len(found), least)
        return found

    def calls(self) -> list[dict[str, Any]]:
        return self.told("proxy.connection", 3)

    def test_the_control_connection_holds_no_lasting_secret(self) -> None:
        made = self.scene
        secrets = {**made.secrets, "the hash of the secret": made.secret.key.hex().encode()}
        self.search(self.control(), {"the host": WEB.encode()}, secrets)

    def test_notifications_hold_no_visitor(self) -> None:
        for call in self.calls():
            self.assertEqual(call["result"].get("remote"), None)
        self.search(
            self.control(),
            {"a notification": b'"proxy.connection"'},
            {"the visitor": VISITOR.encode(), "content": BODY.encode(), "TLS": PLAINTEXT.encode()},
        )

    def test_data_connections_hold_no_visitor_and_no_inner_content(self) -> None:
        made = self.scene
        (port,) = made.server.data_ports()
        data = b"\n".join(bytes(one.sent + one.got) for one in made.relay.to(port))
        self.search(
            data,
            {
                "plain content on loopback": BODY.encode(),
                "the visitor's SNI": TLS.encode(),
                "a claimed host": b"\xe0\x00" + bytes([10 + len(POOLED)]),
            },
            {
                "the visitor": VISITOR.encode(),
                "the visitor as bytes": socket.inet_aton(VISITOR),
                "inside TLS": PLAINTEXT.encode(),
                **made.secrets,
            },
        )

    def test_recorded_secrets_open_nothing(self) -> None:
        """One-time secrets were spent or are void, and a proof is worth nothing on another connection."""
        made = self.scene
        (port,) = made.server.data_ports()
        for call in self.calls():
            self.assertEqual(visit(port, bytes.fromhex(call["result"]["secret"]), source="127.9.0.1"), b"")
        for token in [token for asked in self.told("proxy.pool", 1) for token in asked["tokens"]]:
            self.assertEqual(visit(port, bytes.fromhex(token["secret"]), source="127.9.0.1"), b"")
        messages = [message for one in made.relay.to(made.server.agents) for message in one.messages()]
        proofs = [message["params"] for message in messages if message.get("method") == "proxy.subscribe"]
        self.assertEqual({params["host"] for params in proofs}, {WEB, TLS, POOLED, DOWN, REFUSED})
        line = Line(made.server.agents, source="127.9.0.1")
        self.addCleanup(line.close)
        line.hello()
        for params in proofs:
            refused = self.assertRaises(
                Refused, line.call, "proxy.subscribe", host=params["host"], proof=params["proof"]
            )
            self.assertEqual(refused.code, -20001)


class ServerTests(ViewCase):
    """The server's process while it carries the two visitors."""

    def test_memory(self) -> None:
        made = self.scene
        self.search(
            memory(made.server.pid),
            {"the host": WEB.encode(), "the visitor": VISITOR.encode(), "the agent": ORIGIN.encode()},
            {
                "the host's secret": made.secret.value,
                "the host's secret in hex": made.secret.hex().encode(),
                "what is inside TLS": PLAINTEXT.encode(),
                "the target": TARGET.encode(),
                "the target's port and address as bytes": made.target,
            },
        )

    def test_state_folder(self) -> None:
        made = self.scene
        kept = b"".join(
            path.read_bytes()
            for path in sorted(made.server.home.rglob("*"))
            if path.is_file() and path.suffix not in (".secret", ".log", ".toml")
        )
        self.search(kept, {"the host": WEB.encode()}, {**made.secrets, "the visitor": VISITOR.encode()})


class AgentTests(ViewCase):
    """The agent's process while it carries the two visitors."""

    def test_memory(self) -> None:
        made = self.scene
        self.search(
            memory(made.agent.pid),
            {"the host": WEB.encode(), "the target": TARGET.encode()},
            {
                "the visitor": VISITOR.encode(),
                "inside TLS": PLAINTEXT.encode(),
                "the owner's token": made.token.encode(),
            },
        )


class VisitorTests(ViewCase):
    """What visitors get."""

    def test_only_the_service(self) -> None:
        made = self.scene
        self.assertEqual(made.replies[1], PLAINTEXT.encode())
        self.assertTrue(made.replies[0].startswith(b"POST / HTTP/1.1") and made.replies[0].endswith(BODY.encode()))
        self.assertEqual(made.held.getpeername(), ("127.0.0.1", made.server.http))
        everything = b"".join(made.replies)
        for mark in (ORIGIN, TARGET, "layer8", "127.0.0.1"):
            self.assertNotIn(mark.encode(), everything)

    def test_a_host_without_an_agent_looks_like_none(self) -> None:
        """Registered and not served, and not registered: the same silence."""
        server = self.scene.server
        server.ask("proxy.register", host="unserved.test", secret_hash="ab" * 32)
        self.addCleanup(server.ask, "proxy.unregister", host="unserved.test")
        for host in ("unserved.test", UNKNOWN):
            self.assertEqual(visit(server.http, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()), b"")
            self.assertEqual(visit(server.https, records(hello(sni(host.encode())))), b"")


class TenantTests(ViewCase):
    """Another tenant of the same server."""

    def test_unknown_and_wrong_are_one_answer(self) -> None:
        line = Line(self.scene.server.agents, source="127.9.1.1")
        self.addCleanup(line.close)
        line.hello()
        answers = []
        for host in (WEB, "never-registered.test", "*.test.test", "not a name", "a" * 300):
            refused = self.assertRaises(Refused, line.call, "proxy.subscribe", host=host, proof="1" * 64)
            answers.append(json.dumps(refused.error, sort_keys=True))
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(answers[0], answers[2])

    def test_another_owner_sees_nothing(self) -> None:
        server = self.scene.server
        token = server.ask("token.add", name="bob", roles=["owner"], hosts=["*.bob.example"])["token"]
        line = Line(server.agents, token=token)
        self.addCleanup(line.close)
        self.assertEqual(line.call("proxy.list")["hosts"], [])
        errors = [
            self.assertRaises(Refused, line.call, "proxy.get", host=host).error for host in (WEB, "never-there.test")
        ]
        self.assertEqual(errors[0], errors[1])
        for method in ("proxy.hosts", "proxy.connections", "proxy.subscribers", "proxy.stats", "node.status"):
            self.assertRaises(Refused, line.call, method)


class RoleTests(ViewCase):
    """Callers of the control listener, while visitors are joined."""

    READ = ("proxy.connections", "proxy.subscribers", "proxy.hosts", "proxy.stats", "node.status", "metrics.snapshot")
    ADDRESSES = (VISITOR, ORIGIN, TARGET)

    def test_read(self) -> None:
        said = json.dumps([self.call_as_reader(method) for method in self.READ])
        addresses = {address: address.encode() for address in self.ADDRESSES}
        self.search(said.encode(), {"the host": WEB.encode()}, {**addresses, **self.scene.secrets})
        for method in ("proxy.list", "config.show", "token.list", "log.tail"):
            self.assertRaises(Refused, self.call_as_reader, method)

    def test_admin(self) -> None:
        """The addresses of visitors and agents, but no secret and no target of an agent."""
        made = self.scene
        methods = (*self.READ, "proxy.list", "config.show", "token.list", "log.tail", "node.health")
        said = json.dumps([made.server.ask(method) for method in methods])
        self.search(
            said.encode(),
            {"the visitor": VISITOR.encode(), "the agent": ORIGIN.encode()},
            {**made.secrets, "the target": TARGET.encode(), "the whole hash": made.secret.key.hex().encode()},
        )

    def test_metrics(self) -> None:
        made = self.scene
        asked = Request(f"http://127.0.0.1:{made.control}/metrics", headers={"Authorization": f"Bearer {made.reader}"})
        with urlopen(asked, timeout=10) as answer:
            page = answer.read()
        marks = {mark: mark.encode() for mark in (*self.ADDRESSES, WEB, TLS, UNKNOWN, BODY, JUNK)}
        self.search(page, {"a count": b"layer8_proxy_open"}, {**marks, **made.secrets})


class LogTests(ViewCase):
    """The logs of both processes at level debug, after all of it and much nonsense."""

    def logs(self) -> dict[str, list[str]]:
        made = self.scene
        until("the access record", lambda: any(row["host"] == WEB for row in made.server.access()))
        time.sleep(0.3)
        return {name: one.program.said().splitlines() for name, one in (("server", made.server), ("agent", made.agent))}

    def test_no_mark(self) -> None:
        made = self.scene
        never = [VISITOR, ORIGIN, TARGET, BODY, PLAINTEXT, JUNK, UNKNOWN, made.token, made.reader, made.secret.hex()]
        never += [made.secret.key.hex(), made.token[:12], made.secret.hex()[:12]]
        for name, lines in self.logs().items():
            text = "\n".join(lines)
            self.assertIn("process.ready", text)
            self.assertEqual([mark for mark in never if mark in text], [], name)

    def test_hosts_only_in_access_records(self) -> None:
        logs = self.logs()
        self.assertTrue(any(WEB in line for line in logs["server"]))
        for name, lines in logs.items():
            found = [line for line in lines if "marked.test" in line and '"proxy.closed"' not in line]
            self.assertEqual(found, [], name)
        for event in ("agent.rejected", "agent.refused"):
            self.assertTrue(any(event in line for line in logs["agent"]), event)

    def test_no_defect(self) -> None:
        for daemon in (self.scene.server, self.scene.agent):
            self.assertEqual(daemon.defects(), [])


if not Path(f"/proc/{os.getpid()}/mem").exists():
    ServerTests.skip = AgentTests.skip = "needs /proc"


class _Suite(TestSuite):
    """Ends what its tests share after the last one."""

    def run(self, result: Any, debug: bool = False) -> Any:
        try:
            return super().run(result, debug)
        finally:
            MODULE.end()
            scene.cache_clear()


def test_suite() -> TestSuite:
    """Give trial the tests of this module; it asks for them here when it is not given single classes of them."""
    loader = TestLoader()
    return _Suite(loader.loadClass(one) for one in loader.findTestClasses(sys.modules[__name__]))
