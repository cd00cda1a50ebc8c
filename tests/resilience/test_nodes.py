"""Daemons of the network as somebody runs them: wrong words, ports that are taken, a second one, signals, reloads."""

import re
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.test_main import LAYER8
from tests.interop.daemons import ROOT, TWISTD, Daemon, folder, until

PATIENCE = 60
ROLES = ("relay", "tracker", "node")
TEXT = """
[control]
listen = []
[log]
format = "json"
[relay]
network = "test-nodes"
listen = ["tcp:{port}:interface=127.0.0.1"]
drain_s = {drain}
[socks]
listen = ["tcp:0:interface=127.0.0.1"]
"""


def text(port: int = 0, drain: str = "0") -> str:
    """Make a configuration."""
    return TEXT.format(port=port, drain=drain)


class NodeCase(SynchronousTestCase):
    def daemon(self, role: str, home: Path | None = None) -> Daemon:
        daemon = Daemon(role, home or folder(self), self, ())
        (daemon.home / "test.toml").write_text(text())
        daemon.begin(daemon.up)
        return daemon

    def refused(self, words: list[str], home: Path) -> tuple[int, str]:
        """Run something that cannot be; give its exit code and the one line that it says."""
        environ = {"LAYER8_HOME": str(home), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        ran = subprocess.run(words, env=environ, cwd=home, capture_output=True, text=True, timeout=PATIENCE)
        lines = (ran.stdout + ran.stderr).splitlines()
        self.assertEqual(len(lines), 1, ran)
        return ran.returncode, lines[0]

    def twistd(self, role: str, *words: str, home: Path) -> tuple[int, str]:
        return self.refused([*TWISTD, f"layer8-{role}", *words], home)


class WrongTests(NodeCase):
    def test_words(self) -> None:
        home = folder(self)
        (home / "wrong.toml").write_text(text(drain='"x"'))
        for role in ROLES:
            code, said = self.twistd(role, "--nonsense", home=home)
            self.assertEqual((code, said.split(":")[0]), (2, f"layer8-{role}"), said)
            code, said = self.twistd(role, "--config", "wrong.toml", home=home)
            self.assertEqual(code, 2, said)
            self.assertIn("relay.drain_s = 'x': it has to be a whole number", said)

    def test_commands(self) -> None:
        home = folder(self)
        for words in (
            ["up", "--listen", "nonsense"], ["up", "--peer", "nonsense"], ["up", "--id", "/nowhere"],
            ["up", "--config", "/nowhere"], ["socks", "--listen", "nonsense"], ["socks", "--path", "rand>rand"],
            ["tunnel"], ["tunnel", "1000>rand>"], ["tunnel", "99999>rand>a:80"], ["circuits", "--close", "0"],
        ):  # fmt: skip
            code, said = self.refused([*LAYER8, *words], home)
            self.assertEqual((code, said.split(":")[0]), (2, "layer8"), said)
        for words in (["circuits"], ["relays"], ["inbox"], ["send", "x", "y"]):
            self.assertEqual(
                self.refused([*LAYER8, *words], home),
                (1, "layer8: no node of this user runs here: layer8 up starts one"),
            )

    def test_ports_that_are_taken(self) -> None:
        home = folder(self)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            (home / "taken.toml").write_text(text(port))
            for role in ROLES:
                code, said = self.twistd(role, "--config", "taken.toml", home=home)
                self.assertEqual(code, 1, said)
                self.assertIn(f"cannot listen on tcp:{port}:interface=127.0.0.1: address already in use", said)
            code, said = self.refused([*LAYER8, "up", "--config", "taken.toml"], home)
            self.assertEqual((code, "address already in use" in said), (1, True), said)


class LifeTests(NodeCase):
    def test_a_second_one_with_the_same_folder(self) -> None:
        for role in ROLES:
            daemon = self.daemon(role)
            code, said = self.twistd(role, "--config", "test.toml", home=daemon.home)
            self.assertEqual(code, 1, said)
            self.assertRegex(said, rf"^layer8-{role}: ")
            code, said = self.refused([*LAYER8, "up", "--config", "test.toml"], daemon.home)
            self.assertEqual(code, 1, said)
            self.assertIn("a node of this user runs already", said)
            self.assertTrue(daemon.up())  # it has lost nothing by that

    def test_signals_and_reloads(self) -> None:
        for role in ROLES:
            daemon = self.daemon(role)
            where = daemon.ask("node.status")["listening"]
            daemon.reload(text(drain="1"))
            until("it has taken the configuration", partial(self.events, daemon, "config.reloaded"))
            daemon.reload(text(drain='"x"'))
            until("it has refused the next one", partial(self.events, daemon, "config.refused"))
            self.assertEqual(daemon.ask("node.status")["listening"], where)
            for number in (signal.SIGTERM, signal.SIGINT):
                if daemon.program.process.poll() is not None:
                    (daemon.home / "test.toml").write_text(text())
                    daemon.begin(daemon.up)
                daemon.program.process.send_signal(number)
                daemon.program.process.wait(PATIENCE)
                self.assertIn(daemon.program.process.returncode, (0, -number))
            self.assertEqual(daemon.defects(), [])
            # Where it listens itself is all that its log has of addresses.
            said = [line for line in daemon.lines() if line.get("event") != "listen.opened"]
            self.assertEqual(re.findall(r"\d+\.\d+\.\d+\.\d+", str(said)), [])

    def events(self, daemon: Daemon, name: str) -> bool:
        return any(line.get("event") == name for line in daemon.lines())
