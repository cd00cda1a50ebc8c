"""`layer8 proxy` as a user runs it, against a real server, over its Unix socket and with an owner's token."""

import json
import os
import stat
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.cli.main import run
from layer8.control.tokens import Token, Tokens, digest_of, dump_tokens
from layer8.crypto.keyfile import write_private
from layer8.crypto.secret import HostSecret
from layer8.proxy.orders import Policy, ProofWanted
from layer8.proxy.registration import proof_wanted
from tests.proxy.desk import row
from tests.proxy.pair import PairCase

COMMAND = "import sys; from layer8.cli.main import run; sys.exit(run(sys.argv[1:]))"
HOST = "app.example.com"


class Seen:
    """A prover that sees what a test lets it see."""

    def __init__(self) -> None:
        self.there: set[str] = set()

    async def look(self, wanted: ProofWanted) -> bool:
        return wanted.txt_value in self.there


class CommandCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.prepare()
        self.server = self.serve()
        self.prover = Seen()
        self.server.ledger.prover = self.prover

    def prepare(self) -> None:
        """Put into the state folder what has to be there before the server starts."""

    async def layer8(self, *words: str, code: int = 0) -> tuple[str, str]:
        """Run a command to its end; what it wrote to standard output and standard error."""
        environ = {**os.environ, **self.environ, "NO_COLOR": "1"}

        def go() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", COMMAND, *words], env=environ, capture_output=True, text=True, timeout=50
            )

        done = await self.thread(go)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        if code:
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        return done.stdout, done.stderr

    async def json(self, *words: str, code: int = 0) -> Any:
        out, _ = await self.layer8(*words, "--json", code=code)
        return json.loads(out)

    def secret_file(self, name: str = HOST) -> Path:
        return self.folder / "secrets" / f"{name}.secret"


class AdminTests(CommandCase):
    async def test_register(self) -> None:
        out, _ = await self.layer8("proxy", "register", "App.Example.com", "--port", "443", "--port", "80")
        path = self.secret_file()
        self.assertIn(str(path), out)
        self.assertIn("owned", out)
        secret = HostSecret.load(path)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertNotIn(secret.hex(), out)
        found = self.server.registry.lookup(HOST)
        assert found is not None
        self.assertEqual(([one.key for one in found.secrets], found.ports), ([secret.key], (80, 443)))

    async def test_the_secret_never_leaves_this_machine(self) -> None:
        await self.layer8("proxy", "register", HOST)
        secret = HostSecret.load(self.secret_file())
        for path in self.folder.rglob("*"):
            if path.is_file() and path != self.secret_file():
                self.assertNotIn(secret.value, path.read_bytes())
                self.assertNotIn(secret.hex().encode(), path.read_bytes())

    async def test_register_twice(self) -> None:
        await self.layer8("proxy", "register", HOST)
        before = self.secret_file().read_bytes()
        _, why = await self.layer8("proxy", "register", HOST, code=1)
        self.assertIn("rotate", why)
        self.assertEqual(self.secret_file().read_bytes(), before)
        other = self.folder / "other.secret"
        _, why = await self.layer8("proxy", "register", HOST, "--secret-file", str(other), code=1)
        self.assertIn("registered already", why)
        self.assertFalse(other.exists())

    async def test_list(self) -> None:
        out, _ = await self.layer8("proxy", "list")
        self.assertEqual(out, "no host is registered\n")
        await self.layer8("proxy", "register", HOST, "--ttl", "30d", "--owner", "bob", "--port", "443")
        out, _ = await self.layer8("proxy", "list")
        head, line = out.splitlines()
        self.assertEqual(head.split(), ["host", "state", "ports", "secrets", "owner", "expires"])
        shown = HostSecret.load(self.secret_file()).shown
        self.assertEqual(line.split()[:5], [HOST, "owned", "443", shown, "bob"])
        (only,) = (await self.json("proxy", "list"))["hosts"]
        self.assertEqual((only["host"], only["owner"], only["ports"]), (HOST, "bob", [443]))

    async def test_policy(self) -> None:
        out, _ = await self.layer8(
            "proxy", "register", HOST, "--mode", "raw", "--allow", "192.0.2.0/24", "--allow", "2001:db8::/32",
            "--deny", "192.0.2.9", "--rate", "0.5", "--bandwidth", "200k", "--visitor", "full", "--max-conns", "7",
        )  # fmt: skip
        wanted = Policy(("192.0.2.0/24", "2001:db8::/32"), ("192.0.2.9",), 7, 0.5, 200_000, "full")
        row = self.server.registry.row(HOST)
        assert row is not None
        self.assertEqual((row.mode, row.policy), ("raw", wanted))
        again, _ = await self.layer8("proxy", "show", HOST)
        for line in ("allow        192.0.2.0/24, 2001:db8::/32", "rate         0.5", "mode         raw"):
            self.assertIn(line, out)
            self.assertIn(line, again)
        told = await self.json("proxy", "show", HOST)
        self.assertEqual(told["policy"]["bandwidth"], 200_000)

    async def test_update_changes_what_is_said_and_only_that(self) -> None:
        await self.layer8("proxy", "register", HOST, "--port", "443", "--allow", "192.0.2.0/24", "--rate", "5")
        out, _ = await self.layer8("proxy", "update", HOST, "--bandwidth", "1.5M", "--tls", "terminate")
        self.assertNotIn("secret", out)
        row = self.server.registry.row(HOST)
        assert row is not None
        self.assertEqual(row.policy, Policy(("192.0.2.0/24",), rate=5, bandwidth=1_500_000, tls="terminate"))
        told = await self.json(
            "proxy", "update", HOST, "--allow", "", "--deny", "10.0.0.0/8", "--rate", "0", "--mode", "raw",
            "--port", "80", "--ttl", "1h",
        )  # fmt: skip
        row = self.server.registry.row(HOST)
        assert row is not None
        self.assertEqual(row.policy, Policy((), ("10.0.0.0/8",), bandwidth=1_500_000, tls="terminate"))
        self.assertEqual((row.ports, row.mode, told["ports"]), ((80,), "raw", [80]))
        self.assertIsNotNone(row.expires)

    async def test_update_of_nothing(self) -> None:
        _, why = await self.layer8("proxy", "update", HOST, "--rate", "1", code=1)
        self.assertIn("no such registration", why)
        _, why = await self.layer8("proxy", "register", HOST, "--allow", "nonsense", code=1)
        self.assertIn("nonsense", why)

    async def test_a_long_list(self) -> None:
        for number in range(120):
            self.server.registry.put(row(f"h{number:03}.example.com"))
        rows = (await self.json("proxy", "list"))["hosts"]
        self.assertEqual([one["host"] for one in rows], [f"h{number:03}.example.com" for number in range(120)])

    async def test_rotate(self) -> None:
        await self.layer8("proxy", "register", HOST)
        old = HostSecret.load(self.secret_file())
        told = await self.json("proxy", "rotate", HOST, "--grace", "2h")
        new = HostSecret.load(self.secret_file())
        self.assertNotEqual(new.key, old.key)
        found = self.server.registry.lookup(HOST)
        assert found is not None
        self.assertEqual([one.key for one in found.secrets], [old.key, new.key])
        self.assertEqual([secret["starts_with"] for secret in told["secrets"]], [old.shown, new.shown])
        self.assertEqual(list(self.secret_file().parent.iterdir()), [self.secret_file()])

    async def test_rotate_what_is_not_there_leaves_the_file(self) -> None:
        HostSecret.make().save(self.secret_file())
        before = self.secret_file().read_bytes()
        await self.layer8("proxy", "rotate", HOST, code=1)
        self.assertEqual(self.secret_file().read_bytes(), before)
        self.assertEqual(list(self.secret_file().parent.iterdir()), [self.secret_file()])

    async def test_revoke(self) -> None:
        await self.layer8("proxy", "register", HOST)
        out, _ = await self.layer8("proxy", "revoke", HOST, "--kill")
        self.assertIn(HOST, out)
        self.assertIsNone(self.server.registry.lookup(HOST))
        _, why = await self.layer8("proxy", "revoke", HOST, code=1)
        self.assertIn("no such registration", why)

    async def test_wildcard(self) -> None:
        told = await self.json("proxy", "register", "*.Example.com")
        self.assertEqual(told["host"], "*.example.com")
        self.assertTrue(self.secret_file("_.example.com").exists())
        self.assertEqual(told["secret_file"], str(self.secret_file("_.example.com")))

    async def test_wrong_usage(self) -> None:
        for words in (
            ("proxy", "register"),
            ("proxy", "register", "localhost"),
            ("proxy", "register", "192.0.2.1"),
            ("proxy", "register", HOST, "--port", "0"),
            ("proxy", "register", HOST, "--ttl", "soon"),
            ("proxy", "register", HOST, "--ttl", "999999999d"),
            ("proxy", "register", HOST, "--mode", "watch"),
            ("proxy", "register", HOST, "--bandwidth", "fast"),
            ("proxy", "update", HOST),
            ("proxy", "rotate", HOST, "--grace", "-1"),
            ("proxy", "list", "--pin", "x"),
            ("proxy", "sell", HOST),
        ):
            await self.layer8(*words, code=2)
        self.assertFalse(self.secret_file().exists())
        self.assertEqual(len(self.server.registry), 0)


class OwnerTests(CommandCase):
    """A tenant with a token of role owner, on the listener for agents."""

    def prepare(self) -> None:
        token = "A" * 43
        kept = Token("ann", digest_of(token), frozenset({"owner"}), 0, None, ("*.ann.example",))
        write_private(self.folder / "tokens.toml", dump_tokens(Tokens([kept])).encode())
        self.token = self.folder / "ann.token"
        write_private(self.token, token.encode() + b"\n")

    def where(self) -> tuple[str, ...]:
        url = f"ws://127.0.0.1:{self.server.door.agents_port()}/agent"
        return ("--server", url, "--token-file", str(self.token))

    async def test_inside_and_outside_the_patterns(self) -> None:
        told = await self.json("proxy", "register", "a.ann.example", *self.where())
        self.assertEqual((told["state"], told["owner"]), ("owned", "ann"))
        out, _ = await self.layer8("proxy", "register", "shop.example.org", *self.where())
        wanted = proof_wanted("shop.example.org", "ann")
        self.assertIn("pending", out)
        self.assertIn(f"{wanted.txt_name}  {wanted.txt_value}", out)
        self.assertIn(wanted.url, out)

    async def test_prove(self) -> None:
        words = ("proxy", "register", "shop.example.org", "--prove", *self.where())
        out, why = await self.layer8(*words, code=1)
        self.assertIn("TXT record", out)
        self.assertIn("not there yet", why)
        self.prover.there.add(proof_wanted("shop.example.org", "ann").txt_value)
        out, _ = await self.layer8(*words)
        self.assertIn("proven", out)
        found = self.server.registry.lookup("shop.example.org")
        assert found is not None
        path = self.folder / "secrets" / "shop.example.org.secret"
        self.assertEqual([one.key for one in found.secrets], [HostSecret.load(path).key])


class NobodyThereTests(SynchronousTestCase):
    def test_no_server_runs(self) -> None:
        folder = self.mktemp()
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": folder})
        with redirect_stderr(StringIO()) as said:
            self.assertEqual(run(["proxy", "list"]), 1)
        self.assertRegex(said.getvalue(), r"\Alayer8: no proxy of this user runs here .* name one with --server\n\Z")
