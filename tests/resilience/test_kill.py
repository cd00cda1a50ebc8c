"""What is left after kill -9, a halt, SIGTERM, SIGHUP and a bad start: real processes, under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.secret import HostSecret
from tests.interop.daemons import ROOT, TWISTD, Agent, Proxy, folder, until
from tests.resilience.rig import Download, Load, Service, fetched, note, registered, request, visit
from tests.resilience.wire import Line, Refused

CONTROL = '[control]\nlisten = ["tcp:0:interface=127.0.0.1"]\n'
AGENT_BACK = 5.0
"""Seconds from the start of an agent's process to its first visitor."""
SERVER_BACK = 10.0
PATIENCE = 20.0
"""Seconds for what is soon over, but not on a busy machine."""
"""The same of a server, whose agents wait between two dials."""
ENDED = (0, -signal.SIGTERM)
"""How twistd leaves when it was told to: it ends by the very signal."""
DEAD = 40.0
"""Seconds of silence after which a server gives an agent up."""


class DaemonCase(SynchronousTestCase):
    """Starts daemons, and finds no defect in what they said."""

    def setUp(self) -> None:
        self.service = Service(self)
        self.target = f"tcp:127.0.0.1:{self.service.port}"

    def quiet(self, *daemons: Any) -> None:
        """Fail if a daemon told of a bug of its own."""
        for daemon in daemons:
            self.assertEqual(daemon.defects(), [])

    def server(self, text: str = "", *, secrets: tuple[str, ...] = ()) -> Proxy:
        """Start a server whose ports stay the same when it starts again."""
        server = Proxy.start(self, text, secrets=secrets)
        server.write(text + "\n" + "".join(server.host(host) for host in secrets))
        return server

    def agent(self, server: Proxy, *hosts: str, text: str = "") -> Agent:
        """Start an agent whose hosts lead to the service."""
        return Agent.start(self, server, {host: {server.http: self.target} for host in hosts}, text)

    def secret(self, server: Proxy, host: str, number: int = 0) -> HostSecret:
        """Make a secret, in the file where an agent for `server` looks."""
        made = HostSecret.make()
        made.save(server.secret(host) if not number else server.home / f"{host}.{number}.secret")
        return made


class KillTests(DaemonCase):
    """kill -9."""

    def test_agent_under_load(self) -> None:
        server = self.server(secrets=("web.test",))
        agent = self.agent(server, "web.test")
        load = Load(self, server.http, "web.test")
        until("load", lambda: len(load.marks) > 20)
        self.assertEqual(load.bad_since(0), 0)
        before = registered(server)
        agent.program.kill()
        until("nobody is subscribed", lambda: not server.ask("proxy.subscribers")["subscribers"])
        start = time.monotonic()
        self.assertEqual(visit(server.http, request("web.test")), b"", "refused without a byte")
        self.assertLess(time.monotonic() - start, 2, "and at once")
        start = time.monotonic()
        agent.again("web.test")
        good = until("a visitor", lambda: load.good_since(start), AGENT_BACK) - start
        note(f"agent killed under load: first visitor {good:.2f} s after it was started again")
        self.assertLess(good, AGENT_BACK)
        settled = time.monotonic() + 0.5
        until("more visitors", lambda: (load.good_since(settled) or 0) > 0)
        self.assertEqual(load.bad_since(settled), 0)
        load.stop()
        self.assertEqual(registered(server), before)
        until("all visitors have left", lambda: not server.ask("proxy.connections")["connections"])
        self.quiet(server, agent)

    def test_server_under_load(self) -> None:
        """Registrations by an admin and by an owner, one of them rotated, and the agents that use them."""
        server = self.server(CONTROL, secrets=("file.test",))
        token = server.ask("token.add", name="ann", roles=["owner"], hosts=["*.ann.test"])["token"]
        first, second = self.secret(server, "admin.test"), self.secret(server, "admin.test", 2)
        third = self.secret(server, "one.ann.test")
        server.ask("proxy.register", host="admin.test", secret_hash=first.key.hex(), ports=[server.http])
        server.ask("proxy.rotate", host="admin.test", secret_hash=second.key.hex(), grace_s=3600)
        owner = Line(server.agents, token=token)
        self.addCleanup(owner.close)
        policy = {"deny": ["192.0.2.0/24"], "max_conns": 50}
        owner.call("proxy.register", host="one.ann.test", secret_hash=third.key.hex(), policy=policy)
        server.ask("proxy.ban", cidr="127.66.0.0/16", ttl_s=600)
        agent = self.agent(server, "file.test", "admin.test", "one.ann.test")
        load = Load(self, server.http, "admin.test")
        until("load", lambda: len(load.marks) > 20)
        download = Download.start(server.http, "one.ann.test")
        before = registered(server)
        one = server.ask("proxy.get", host="admin.test")
        self.assertEqual(len(one["secrets"]), 2)
        server.program.kill()
        self.assertTrue(download.ended.wait(PATIENCE), "a visitor sees that its server is gone")
        time.sleep(1)
        start = time.monotonic()
        server.again()
        good = until("a visitor", lambda: load.good_since(start), SERVER_BACK + 5) - start
        note(f"server killed under load: first visitor {good:.2f} s after it was started again")
        self.assertLess(good, SERVER_BACK)
        self.assertEqual(registered(server), before)
        self.assertEqual(server.ask("proxy.get", host="admin.test"), one)
        until("all hosts are back", lambda: agent.serves("file.test", "admin.test", "one.ann.test"))
        for host in ("file.test", "admin.test", "one.ann.test"):
            self.assertTrue(fetched(server.http, host), host)
        self.assertFalse(fetched(server.http, "admin.test", source="127.66.0.1"), "a ban lives on")
        for secret in (first, second):
            line = Line(server.agents)
            line.hello()
            line.subscribe("admin.test", secret.key)
            line.close()
        again = Line(server.agents, token=token)
        self.addCleanup(again.close)
        self.assertEqual([row["host"] for row in again.call("proxy.list")["hosts"]], ["one.ann.test"])
        load.stop()
        until("all visitors have left", lambda: not server.ask("proxy.connections")["connections"])
        until("the agent carries nobody", lambda: agent.ask("agent.status")["open"] == 0)
        self.quiet(server, agent)

    def test_what_was_acknowledged_is_not_lost(self) -> None:
        """Killed in the moment of the answer, several times: every change before it stands."""
        server = self.server()
        kept: dict[str, str] = {}
        for number in range(4):
            secret, newer = HostSecret.make(), HostSecret.make()
            host = f"n{number}.test"
            if number:
                server.ask("proxy.unregister", host=f"n{number - 1}.test")
                del kept[f"n{number - 1}.test"]
            server.ask("proxy.register", host=f"keep{number}.test", secret_hash=secret.key.hex())
            server.ask("proxy.register", host=host, secret_hash=secret.key.hex())
            kept[f"keep{number}.test"] = secret.key.hex()[:8]
            match number % 3:
                case 0:
                    server.ask("proxy.register", host=f"last{number}.test", secret_hash=secret.key.hex())
                    kept[f"last{number}.test"] = secret.key.hex()[:8]
                case 1:
                    server.ask("proxy.rotate", host=host, secret_hash=newer.key.hex(), grace_s=600)
                case 2:
                    server.ask("proxy.update", host=host, ports=[number])
            os.kill(server.pid, signal.SIGKILL)
            server.program.process.wait()
            kept[host] = secret.key.hex()[:8]
            server.again()
            rows = {row["host"]: row for row in registered(server)}
            self.assertEqual(sorted(rows), sorted(kept))
            shown = {name: {one["starts_with"] for one in row["secrets"]} for name, row in rows.items()}
            self.assertEqual([name for name in kept if kept[name] not in shown[name]], [])
            if number % 3 == 1:
                self.assertIn(newer.key.hex()[:8], shown[host])
            if number % 3 == 2:
                self.assertEqual(rows[host]["ports"], [number])
        self.quiet(server)

    def test_pending_secrets_die(self) -> None:
        """A one-time secret that was not used opens nothing after the server's end, nor a spent one before it."""
        server = self.server(secrets=("web.test",))
        key = HostSecret.load(server.secret("web.test")).key
        line = Line(server.agents)
        line.hello()
        line.subscribe("web.test", key)
        visitor = socket.create_connection(("127.0.0.1", server.http), 10)
        self.addCleanup(visitor.close)
        visitor.sendall(request("web.test"))
        secret = bytes.fromhex(line.hear()["result"]["secret"])
        server.program.kill()
        line.close()
        server.again()
        (data,) = server.data_ports()
        self.assertEqual(visit(data, secret + b"hello"), b"")
        again = Line(server.agents)
        self.addCleanup(again.close)
        again.hello()
        again.subscribe("web.test", key)
        with socket.create_connection(("127.0.0.1", server.http), 10) as other:
            other.sendall(request("web.test"))
            fresh = bytes.fromhex(again.hear()["result"]["secret"])
            self.assertEqual(visit(data, secret), b"", "somebody waits now, but not for this one")
            with socket.create_connection(("127.0.0.1", data), 10) as good:
                good.sendall(fresh)
                self.assertEqual(good.recv(1024), request("web.test"))
                self.assertEqual(visit(data, fresh), b"", "spent")
        self.quiet(server)


class HaltTests(DaemonCase):
    """SIGSTOP: a process that is there and says nothing."""

    def test_an_agent_that_hangs(self) -> None:
        server = self.server(secrets=("two.test", "one.test"))
        stopped = self.agent(server, "two.test", "one.test")
        other = self.agent(server, "two.test")
        self.addCleanup(os.kill, stopped.pid, signal.SIGCONT)
        os.kill(stopped.pid, signal.SIGSTOP)
        start = time.monotonic()
        slowest = 0.0
        for _ in range(4):
            begun = time.monotonic()
            self.assertTrue(fetched(server.http, "two.test"), "the other agent is asked")
            slowest = max(slowest, time.monotonic() - begun)
        self.assertLess(slowest, 3, "after one CALL_STEP")
        begun = time.monotonic()
        self.assertEqual(visit(server.http, request("one.test")), b"")
        self.assertLess(time.monotonic() - begun, 9)
        until(
            "the server gives it up",
            lambda: len(server.ask("proxy.subscribers")["subscribers"]) == 1,
            DEAD + 10,
            pause=0.2,
        )
        noticed = time.monotonic() - start
        begun = time.monotonic()
        for _ in range(4):
            self.assertTrue(fetched(server.http, "two.test"))
        self.assertLess(time.monotonic() - begun, 1, "nobody asks it any more")
        os.kill(stopped.pid, signal.SIGCONT)
        begun = time.monotonic()
        until("it is back", lambda: len(server.ask("proxy.subscribers")["subscribers"]) == 3, 10, pause=0.2)
        self.assertTrue(fetched(server.http, "one.test"))
        note(
            f"agent halted: failover in {slowest:.2f} s, noticed after {noticed:.0f} s,"
            f" back {time.monotonic() - begun:.2f} s after it went on"
        )
        self.quiet(server, stopped, other)


class SignalTests(DaemonCase):
    """SIGTERM and SIGHUP."""

    def test_drain_of_a_server(self) -> None:
        server = self.server("drain_s = 20", secrets=("web.test",))
        agent = self.agent(server, "web.test")
        downloads = [Download.start(server.http, "web.test") for _ in range(3)]
        os.kill(server.pid, signal.SIGTERM)
        until("it drains", lambda: not fetched(server.http, "web.test"))
        begun = time.monotonic()
        self.assertEqual(visit(server.http, request("web.test")), b"")
        self.assertLess(time.monotonic() - begun, 3, "turned away at once")
        time.sleep(0.5)
        self.assertIsNone(server.program.process.poll(), "it waits for those who are joined")
        self.service.finish.set()
        server.program.process.wait(PATIENCE)
        for download in downloads:
            self.assertTrue(download.ended.wait(PATIENCE))
            self.assertTrue(download.whole, bytes(download.got[-40:]))
        self.assertIn(server.program.process.returncode, ENDED)
        self.quiet(server, agent)

    def test_drain_of_a_server_has_an_end(self) -> None:
        server = self.server("drain_s = 1", secrets=("web.test",))
        self.agent(server, "web.test")
        download = Download.start(server.http, "web.test")
        begun = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        server.program.process.wait(PATIENCE)
        took = time.monotonic() - begun
        self.assertTrue(0.9 < took < 10, took)
        self.assertTrue(download.ended.wait(PATIENCE))
        self.assertFalse(download.whole)
        self.quiet(server)

    def test_second_sigterm(self) -> None:
        server = self.server("drain_s = 60", secrets=("web.test",))
        agent = self.agent(server, "web.test", text="drain_s = 60")
        for daemon in (agent, server):
            download = Download.start(server.http, "web.test")
            os.kill(daemon.pid, signal.SIGTERM)
            until("it drains", lambda: not fetched(server.http, "web.test"))
            self.assertIsNone(daemon.program.process.poll())
            self.assertFalse(download.ended.is_set())
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.program.process.wait(PATIENCE)
            self.assertIn(daemon.program.process.returncode, ENDED)
            self.assertTrue(download.ended.wait(PATIENCE))
            if daemon is agent:
                agent.again("web.test")
        self.quiet(server, agent)

    def test_drain_of_an_agent(self) -> None:
        server = self.server(secrets=("web.test",))
        agent = self.agent(server, "web.test", text="drain_s = 20")
        download = Download.start(server.http, "web.test")
        os.kill(agent.pid, signal.SIGTERM)
        until("it drains", lambda: not fetched(server.http, "web.test"))
        self.assertIsNone(agent.program.process.poll())
        self.service.finish.set()
        self.assertTrue(download.ended.wait(PATIENCE))
        self.assertTrue(download.whole)
        agent.program.process.wait(PATIENCE)
        self.assertIn(agent.program.process.returncode, ENDED)
        self.quiet(server, agent)

    def test_reload_of_a_server(self) -> None:
        """Hosts come and go under joined connections; a file that is no good changes nothing."""
        old = f'[[proxy.host]]\nhost = "old.test"\ntarget = "{self.target}"\n'
        server = Proxy.start(self, old)
        download = Download.start(server.http, "old.test")
        server.reload((server.home / "test.toml").read_text().replace("old.test", "new.test"))
        until("the new host", lambda: fetched(server.http, "new.test"))
        self.assertFalse(fetched(server.http, "old.test"))
        good = (server.home / "test.toml").read_text()
        for bad in (good.replace('host = "new.test"', 'host = "not a name"'), good + "\n[nonsense]\n", "no toml ["):
            said = len(server.lines())
            server.reload(bad)
            until("it says no", lambda: any("config.refused" in str(line) for line in server.lines()[said:]), 5)  # noqa: B023
            self.assertTrue(fetched(server.http, "new.test"))
        (server.home / "test.toml").write_text(good)
        for _ in range(20):
            os.kill(server.pid, signal.SIGHUP)
        until("it still serves", lambda: fetched(server.http, "new.test"))
        self.assertFalse(download.ended.is_set())
        self.service.finish.set()
        self.assertTrue(download.ended.wait(PATIENCE) and download.whole)
        self.quiet(server)

    def test_reload_of_an_agent(self) -> None:
        """Targets change for the next visitor, hosts come and go, and who is joined notices nothing."""
        server = self.server(secrets=("a.test", "b.test"))
        agent = self.agent(server, "a.test")
        download = Download.start(server.http, "a.test")
        other = Service(self)
        path = agent.home / "test.toml"
        first = path.read_text()
        path.write_text(first.replace(self.target, f"tcp:127.0.0.1:{other.port}"))
        os.kill(agent.pid, signal.SIGHUP)
        until("the new target", lambda: fetched(server.http, "a.test") and other.heads)
        path.write_text(first.replace('"a.test"', '"b.test"').replace("a.test.secret", "b.test.secret"))
        os.kill(agent.pid, signal.SIGHUP)
        until("the new host", lambda: fetched(server.http, "b.test"))
        until("the old host is gone", lambda: not fetched(server.http, "a.test"))
        path.write_text("[agent]\nnonsense = 1\n")
        os.kill(agent.pid, signal.SIGHUP)
        until("it says no", lambda: any("config.refused" in str(line) for line in agent.lines()))
        self.assertTrue(fetched(server.http, "b.test"))
        self.assertFalse(download.ended.is_set())
        self.service.finish.set()
        self.assertTrue(download.ended.wait(PATIENCE) and download.whole)
        self.quiet(server, agent)


class UnderLoadTests(DaemonCase):
    """What an operator does to a server that is at work costs no visitor."""

    def test_data_ports_that_change(self) -> None:
        server = self.server("data_rotate = 1", secrets=("web.test",))
        agent = self.agent(server, "web.test")
        download = Download.start(server.http, "web.test")
        load = Load(self, server.http, "web.test")
        seen: set[int] = set()

        def changed() -> bool:
            seen.update(server.data_ports())
            return len(seen) > 3 and len(load.marks) > 50

        until("the ports have changed under load", changed)
        load.stop()
        self.assertEqual(load.bad_since(0), 0)
        self.service.finish.set()
        self.assertTrue(download.ended.wait(PATIENCE) and download.whole)
        self.quiet(server, agent)

    def test_reloads(self) -> None:
        server = Proxy.start(self, secrets=("web.test",))
        agent = self.agent(server, "web.test")
        load = Load(self, server.http, "web.test")
        (agent_file, server_file) = (daemon.home / "test.toml" for daemon in (agent, server))
        first = agent_file.read_text()
        for number in range(10):
            weight = f"[[agent.host]]\nweight = {number // 2 + 1}\n"  # every second time something to tell the server
            agent_file.write_text(first.replace("[[agent.host]]\n", weight))
            server_file.write_text(f"# {number}\n" + server_file.read_text())
            for daemon in (server, agent):
                os.kill(daemon.pid, signal.SIGHUP)
            time.sleep(0.2)
        until("visitors", lambda: len(load.marks) > 30)
        load.stop()
        self.assertEqual(load.bad_since(0), 0)
        self.quiet(server, agent)

    def test_drain_and_resume(self) -> None:
        """node.drain turns newcomers away and node.resume lets them in, with the same agents."""
        server = self.server("drain_s = 30", secrets=("web.test",))
        agent = self.agent(server, "web.test")
        download = Download.start(server.http, "web.test")
        for _ in range(2):
            server.ask("node.drain", deadline_s=30)
            self.assertEqual(visit(server.http, request("web.test")), b"")
            server.ask("node.resume")
            until("visitors are let in", lambda: fetched(server.http, "web.test"))
        self.assertFalse(download.ended.is_set())
        self.service.finish.set()
        self.assertTrue(download.ended.wait(PATIENCE) and download.whole)
        self.quiet(server, agent)


class StartTests(SynchronousTestCase):
    """What cannot start says why, once, and leaves with the right code."""

    def run_daemon(self, *words: str, text: str | None = None, role: str = "proxy") -> subprocess.CompletedProcess[str]:
        home = folder(self)
        options = list(words)
        if text is not None:
            (home / "test.toml").write_text(text)
            options += ["--config", str(home / "test.toml")]
        return subprocess.run(
            [*TWISTD, f"layer8-{role}", *options],
            cwd=home,
            env={**os.environ, "LAYER8_HOME": str(home), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def test_busy_port(self) -> None:
        loopback = ":interface=127.0.0.1"
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            for key in ("http", "https", "agents", "data"):
                listeners = dict.fromkeys(("http", "https", "agents", "data"), f"tcp:0{loopback}")
                listeners[key] = f"tcp:{port}{loopback}"
                lines = "".join(f'{name} = ["{where}"]\n' for name, where in listeners.items())
                ended = self.run_daemon(text=f"[control]\nlisten = []\n[proxy]\n{lines}")
                self.assertEqual(ended.returncode, 1, ended.stderr)
                said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
                self.assertEqual(len(said), 1, ended.stderr)
                self.assertIn(str(port), said[0])
                self.assertIn(f"--{key}", said[0])
                self.assertNotIn("Traceback", ended.stderr + ended.stdout)

    def test_bad_configuration(self) -> None:
        for role, key in (("proxy", "http"), ("agent", "servers")):
            ended = self.run_daemon(text=f'[{role}]\n\n{key} = ["nonsense"]\ndrain_s = "long"\n', role=role)
            self.assertEqual(ended.returncode, 2, ended.stderr)
            self.assertIn("test.toml:3", ended.stderr)
            self.assertIn("test.toml:4", ended.stderr)
            self.assertNotIn("Traceback", ended.stderr)

    def test_every_plugin_starts_with_no_option(self) -> None:
        """On this machine somebody may have the default ports: then that is said; nothing else may be."""
        plugins = sorted(path.stem for path in (ROOT / "twisted" / "plugins").glob("layer8_*.py"))
        self.assertTrue(plugins)
        for plugin in plugins:
            home = folder(self)
            with subprocess.Popen(
                [*TWISTD, plugin.replace("_", "-")],
                cwd=home,
                env={**os.environ, "LAYER8_HOME": str(home), "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                try:
                    ready = home / "run" / f"{plugin.removeprefix('layer8_')}.sock"
                    until(f"{plugin} listens or ends", lambda: ready.exists() or process.poll() is not None, 20)  # noqa: B023
                    time.sleep(0.2)
                finally:
                    process.terminate()
                    said, _ = process.communicate(timeout=15)
            self.assertNotIn("Traceback", said)
            if process.returncode not in ENDED:
                self.assertIn("cannot listen on", said)
                self.assertEqual(process.returncode, 1)


class OwnerTests(DaemonCase):
    """What a token was good for, it is good for after a kill; what it was not, it still is not."""

    def test_owner_after_kill(self) -> None:
        server = self.server(CONTROL)
        token = server.ask("token.add", name="bob", roles=["owner"], hosts=["*.bob.test"])["token"]
        secret = HostSecret.make().key.hex()
        for again in (False, True):
            if again:
                server.program.kill()
                server.again()
            line = Line(server.agents, token=token)
            if not again:
                line.call("proxy.register", host="a.bob.test", secret_hash=secret)
                server.ask("proxy.register", host="not.test", secret_hash=secret)
            self.assertEqual([row["host"] for row in line.call("proxy.list")["hosts"]], ["a.bob.test"])
            refused = self.assertRaises(Refused, line.call, "proxy.get", host="not.test")
            unknown = self.assertRaises(Refused, line.call, "proxy.get", host="nowhere.test")
            self.assertEqual(refused.error, unknown.error)
            line.close()
        self.quiet(server)


if not sys.platform.startswith("linux"):
    HaltTests.skip = "needs /proc"
