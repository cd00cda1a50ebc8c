import json
import os
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.config.load import load
from layer8.control.tokens import parse_tokens
from layer8.crypto.keys import NodeKey
from layer8.crypto.x509 import Identity
from tests.cli.test_main import layer8


class InitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).resolve() / "new"
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": str(self.home)})

    def init(self, *words: str) -> dict[str, object]:
        code, out, err = layer8("init", "--json", *words)
        self.assertEqual((code, err), (0, ""))
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    def test_writes_everything_once(self) -> None:
        found = self.init()
        self.assertEqual(found["made"], ["node.key", "control.pem", "layer8.toml"])
        self.assertEqual(NodeKey.load(self.home / "node.key").text, found["id"])
        self.assertEqual(Identity.load(self.home / "control.pem").pin, found["pin"])
        self.assertEqual(load(None, os.environ, {}).path, self.home / "layer8.toml")
        tomllib.loads((self.home / "layer8.toml").read_text())
        self.assertEqual(self.home.stat().st_mode & 0o777, 0o700)
        before = {path: path.read_bytes() for path in self.home.iterdir()}
        again = self.init()
        self.assertEqual((again["made"], again["id"], again["pin"]), ([], found["id"], found["pin"]))
        self.assertEqual({path: path.read_bytes() for path in self.home.iterdir()}, before)

    def test_keeps_a_file_of_the_user(self) -> None:
        self.home.mkdir(parents=True)
        (self.home / "layer8.toml").write_text("# mine\n")
        self.assertNotIn("layer8.toml", str(self.init()["made"]))
        self.assertEqual((self.home / "layer8.toml").read_text(), "# mine\n")

    def test_another_folder(self) -> None:
        other = self.home.parent / "other"
        self.assertEqual(self.init(str(other))["folder"], str(other))
        self.assertTrue((other / "layer8.toml").exists())
        self.assertFalse(self.home.exists())

    def test_a_token_is_shown_once_and_kept_as_a_hash(self) -> None:
        token = self.init("--token", "ops", "--role", "operate", "--days", "2")["token"]
        assert isinstance(token, str)
        path = self.home / "tokens.toml"
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertNotIn(token, path.read_text())
        kept = next(iter(parse_tokens(path.read_text())))
        assert kept.expires is not None
        self.assertEqual((kept.name, kept.roles, kept.expires - kept.created), ("ops", {"operate"}, 2 * 86400))
        self.assertIsNotNone(parse_tokens(path.read_text()).check(token, kept.created))
        self.init("--token", "own", "--role", "owner", "--host", "*.example.org")
        self.assertEqual([token.hosts for token in parse_tokens(path.read_text())], [(), ("*.example.org",)])

    def test_role_read_unless_told(self) -> None:
        self.init("--token", "dash")
        self.assertEqual(next(iter(parse_tokens((self.home / "tokens.toml").read_text()))).roles, {"read"})

    def test_refusals(self) -> None:
        self.init("--token", "ops")
        for words, code, text in [
            (["--token", "ops"], 1, "there is a token ops already"),
            (["--token", "x", "--role", "king"], 1, "roles are"),
            (["--token", "a b"], 1, "a name is"),
            (["--role", "read"], 2, "belong to --token"),
        ]:
            found = layer8("init", *words)
            self.assertEqual(found[0], code, found)
            self.assertIn(text, found[2])
            self.assertEqual(len(found[2].splitlines()), 1)

    def test_what_people_see(self) -> None:
        code, out, _ = layer8("init")
        self.assertEqual(code, 0)
        self.assertIn("pin ", out)
        self.assertIn("node.key, control.pem, layer8.toml", out)

    def test_a_folder_that_cannot_be(self) -> None:
        code, out, err = layer8("init", "/dev/null/x")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(len(err.splitlines()), 1)
