"""Commands and configuration in the pages: each is read as the program would, and those that publish are run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
from twisted.trial.unittest import SynchronousTestCase

from layer8.cli.main import layer8
from layer8.config.load import load_text
from layer8.config.twistd import options_class
from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import Identity
from tests.cli.test_expose import ExposeCase, Running
from tests.interop.daemons import Proxy, folder
from tests.names import ROOT

PAGES = ("coming-from", "hidden", "network", "reference", "operate", "tour")
PIN = "A" * 43
IDENT = f"{'a' * 52}@"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# A line with one of these says how a command is written, not what to type.
PATTERN = re.compile(r"\[options\]|\b(COMMAND|LOCAL|HOST|NAME|DIR)\b|\.\.\.")


def page(name: str) -> str:
    """Read a page."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def commands(text: str) -> Iterator[str]:
    """Give every layer8 and twistd command of a page, from its blocks and from its lines."""
    fences = re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in fences for line in block.splitlines()]
    lines += re.findall(r"`((?:layer8|twistd -n layer8-\w+) [^`]+)`", FENCE.sub("", text))
    lines += re.findall(r"^    ((?:layer8|twistd -n layer8-\w+) .*)$", text, re.MULTILINE)
    for line in lines:
        if re.match(r"(layer8|twistd -n layer8-)", line) and not PATTERN.search(line):
            yield line


def leaf(words: list[str]) -> click.Context:
    """Read the words of a command as far as the program does before it begins; raises click.UsageError."""
    command: click.Command = layer8
    name, parent = "layer8", None
    while isinstance(command, click.Group):
        context = command.make_context(name, words, parent=parent)
        found, inner, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None and inner is not None
        name, command, parent = found, inner, context
    return command.make_context(name, words, parent=parent)


def conf() -> ModuleType:
    """Import what makes the pages."""
    spec = importlib.util.spec_from_file_location("layer8_docs_conf", ROOT / "docs" / "conf.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class ReadTests(SynchronousTestCase):
    def test_every_command_is_one(self) -> None:
        home = folder(self)
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": str(home)})
        HostSecret.make().save(home / "app.secret")
        here = Path.cwd()
        os.chdir(home)
        self.addCleanup(os.chdir, here)
        seen = 0
        for name in PAGES:
            for line in commands(page(name)):
                words = shlex.split(line.replace("PIN", PIN).replace("ID@", IDENT), comments=True)
                seen += 1
                try:
                    self.read(words)
                except (click.UsageError, SystemExit) as error:
                    self.fail(f"docs/{name}.md: {line}: {error}")
        self.assertGreater(seen, 45)

    def read(self, words: list[str]) -> None:
        if words[0] == "layer8":
            if len(words) > 2:
                leaf(words[1:])
            return
        options = options_class(words[2].removeprefix("layer8-"))()
        if "--config" not in words:
            options.parseOptions(words[3:])

    def test_every_block_of_configuration_is_one(self) -> None:
        home = folder(self)
        blocks = re.findall(r"^```toml\n(.*?)^```$", page("coming-from"), re.MULTILINE | re.DOTALL)
        self.assertEqual(len(blocks), 2)
        HostSecret.make().save(home / "app.secret")
        for block in blocks:
            load_text(block.replace("PIN", PIN), {}, {}, role="proxy", path=home / "layer8.toml")
        HostSecret.make().save(home / "blog-client.pem")
        blocks = re.findall(r"^```toml\n(.*?)^```$", page("hidden"), re.MULTILINE | re.DOTALL)
        loaded = [load_text(block, {}, {}, path=home / "layer8.toml").config for block in blocks]
        self.assertEqual([list({**one.service, **one.visit}) for one in loaded], [["blog"], ["blog"]])

    def test_a_wrong_one_would_be_noticed(self) -> None:
        for words in (["expose", "8000"], ["expose", "8000", "--host", "a.test", "--nothing"], ["proxy", "nothing"]):
            with self.assertRaises(click.UsageError):
                leaf(words)

    def test_the_reference_has_every_command_and_speaks_of_no_option_that_is_not_there(self) -> None:
        made = conf()
        known: dict[str, set[str]] = {}
        for command in (
            *("expose", "up", "socks", "tunnel", "hide", "circuits", "relays", "send", "inbox", "verify"),
            *(f"proxy {name}" for name in made.layer8_command.get_command(None, "proxy").commands),
        ):
            known[f"layer8 {command}"] = self.options(made.click_options(*command.split()))
        for role in ("proxy", "agent", "relay", "tracker", "dht", "rendezvous", "node", "tunnel", "gateway"):
            known[f"twistd layer8-{role}"] = self.options(made.twistd_options(role))
        text = page("reference")
        parts = re.split(r"^###? (.+)$", text, flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        self.assertLessEqual(set(known), set(sections))
        for name, prose in sections.items():
            table = re.search(r"\{\{ (options_\w+) \}\}", prose)
            if name in known:
                assert table is not None
                rows = made.myst_substitutions[table[1]].splitlines()[2:]
                self.assertEqual({row.split("`")[1].split(",")[-1].split()[0] for row in rows}, known[name])
            allowed = set().union(*known.values()) | {"--verbose", "--help"}
            allowed = (
                known.get(name, allowed) | {"--verbose", "--help"} | ({"--visitor"} if "expose" in name else set())
            )
            examples = prose.partition("**Examples.**")[0]
            self.assertLessEqual(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", examples)), allowed, name)

    def options(self, rows: Iterator[tuple[str, str]]) -> set[str]:
        return {words.split(",")[-1].split()[0] for words, _ in rows}


class RunTests(ExposeCase):
    """The ways from each of the others to here, word for word but for names and ports of this machine."""

    def setUp(self) -> None:
        server = re.findall(r"^```toml\n(.*?)^```$", page("coming-from"), re.MULTILINE | re.DOTALL)[0]
        self.assertIn('agents = ["tls:9081"]', server)
        self.server = Proxy.start(self, 'name = "proxy.example.org"\nagents = ["tls:0:interface=127.0.0.1"]\n')
        pin = Identity.load(self.server.home / "control.pem").pin
        self.url = f"wss://127.0.0.1:{self.server.agents}?pin={pin}"
        self.away = self.home()
        made = self.server.ask("token.add", name="ann", roles=["owner"], hosts=["*.example.org"])
        (self.away / "owner.token").write_text(made["token"])
        (self.away / "owner.token").chmod(0o600)

    def words(self, line: str, port: int) -> list[str]:
        """Take a command of the page to this machine."""
        found = line.replace("wss://proxy.example.org:9081?pin=PIN", self.url).replace(" 8000 ", f" {port} ")
        return shlex.split(found)

    def published(self, words: list[str], host: str = "app.example.org") -> None:
        self.assertEqual(words[:2], ["layer8", "expose"])
        running = Running(self, self.away, *words[2:])
        running.wait(f"^http://{re.escape(host)}")
        self.assertEqual(self.get(self.server.http, host), b"here")
        self.assertEqual(running.interrupt(), 0)

    def test_from_frp(self) -> None:
        """Registered on the server, the secret carried over, published from elsewhere."""
        text = page("coming-from")
        register = next(line for line in commands(text) if line.startswith("layer8 proxy register app"))
        code = self.run_layer8(self.server.home, shlex.split(register)[1:])
        self.assertEqual(code, 0)
        secret = self.server.home / "secrets" / "app.example.org.secret"
        secret.rename(self.away / "app.secret")
        frp = text.partition("## frp")[2].partition("## ngrok")[0]
        line = next(line for line in commands(frp) if "--secret-file" in line)
        self.published(self.words(line, self.web(b"here")))

    def test_from_ngrok_sish_and_localtunnel(self) -> None:
        text = page("coming-from")
        lines = {line for line in commands(text) if "--owner-token-file owner.token" in line}
        self.assertEqual(len(lines), 1, "all three are the same command")
        for line in lines:
            self.published(self.words(line, self.web(b"here")))

    def test_policies(self) -> None:
        """Every `proxy update` of the page, on the server."""
        register = ["proxy", "register", "app.example.org"]
        self.assertEqual(self.run_layer8(self.server.home, register), 0)
        updates = [line for line in commands(page("coming-from")) if line.startswith("layer8 proxy update")]
        self.assertGreater(len(updates), 3)
        for line in updates:
            answer = "secret words\nsecret words\n"
            self.assertEqual(self.run_layer8(self.server.home, shlex.split(line)[1:], answer), 0, line)
        (row,) = self.server.ask("proxy.list")["hosts"]
        self.assertEqual((row["mode"], row["policy"]["allow"]), ("proxy", ["192.0.2.0/24"]))

    def run_layer8(self, home: Path, words: list[str], typed: str = "") -> int:
        done = subprocess.run(
            [sys.executable, "-c", "from layer8.cli.main import main; main()", *words],
            env={**os.environ, "LAYER8_HOME": str(home)},
            cwd=home,
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode
