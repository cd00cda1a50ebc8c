import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.crypto.keys import NodeKey
from tests.cli.test_demo import StayingCase
from tests.cli.test_main import LAYER8, layer8
from tests.interop.daemons import Program, folder, until

CONFIG = '[control]\nlisten = []\n[socks]\nlisten = ["tcp:0:interface=127.0.0.1"]\n'


class HomeCase(SynchronousTestCase):
    def home(self) -> Path:
        made = folder(self)
        (made / "layer8.toml").write_text(CONFIG)
        return made

    def layer8(self, home: Path, *words: str) -> tuple[int, str, str]:
        """Run a command in this process, as the user of a state folder."""
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": str(home)})
        return layer8(*words)

    def up(self, home: Path, *words: str) -> "tuple[Program, dict[str, object]]":
        """Start a node, and give what it says of itself."""
        program = Program.start(
            self,
            "up",
            [*LAYER8, "up", "--json", "--network", "test-up", *words],
            home,
            {"LAYER8_HOME": str(home)},
            lambda program: "}" in program.said(),
        )
        return program, json.loads(program.said())

    def relays(self, home: Path) -> "list[dict[str, object]]":
        """Ask the node of a state folder whom it knows."""
        found: list[dict[str, object]] = json.loads(self.layer8(home, "relays", "--full", "--json")[1])["relays"]
        return found


class UpTests(HomeCase):
    def test_a_node_with_a_key_of_openssl(self) -> None:
        if shutil.which("openssl") is None:
            raise SkipTest("needs the package openssl")
        home, other = self.home(), self.home()
        key = home / "mine.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", key], check=True, timeout=60)
        key.chmod(0o600)
        public = subprocess.run(
            ["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True, timeout=60
        ).stdout[-32:]
        program, said = self.up(home, "--id", str(key), "--listen", "tcp:0:interface=127.0.0.1")
        ident = base64.b32encode(public).decode().rstrip("=").lower()
        self.assertEqual((said["id"], said["network"]), (ident, "test-up"))
        where = re.findall(r"links on (\S+?)\"", program.said())[0]
        self.assertTrue(where.startswith(f"{ident}@tcp:127.0.0.1:"))
        # Another one, which knows the first by that and takes no links itself.
        second, also = self.up(other, "--no-listen", "--peer", where)
        self.assertNotIn("links on", second.said())
        found = until(
            "they have met", lambda: json.loads(self.layer8(other, "relays", "--full", "--json")[1])["relays"]
        )
        self.assertEqual([row["node"] for row in found], [ident])
        self.assertEqual(self.relays(home), [])
        # What we make openssl reads.
        made = subprocess.run(
            ["openssl", "pkey", "-in", other / "node.key", "-text"], check=True, capture_output=True, timeout=60
        )
        self.assertIn(b"ED25519 Private-Key", made.stdout)
        self.assertEqual(NodeKey.load(other / "node.key").text, also["id"])
        code, out, err = self.layer8(home, "up")
        self.assertEqual((code, out, len(err.splitlines())), (1, "", 1))
        self.assertIn("runs already", err)
        for one in (program, second):
            one.process.send_signal(2)
            self.assertEqual(one.process.wait(20), 0, one.said())

    def test_wrong_usage(self) -> None:
        home = self.home()
        for words, code in (
            (("up", "--listen", "tcp:0", "--no-listen"), 2),
            (("up", "--peer", "nobody"), 2),
            (("up", "--id", "/nowhere"), 2),
            (("socks", "--path", "rand>rand"), 2),
            (("tunnel", "1000"), 2),
            (("circuits", "--build", "rand", "--close", "1"), 2),
            (("circuits",), 1),
            (("relays",), 1),
            (("send", "a" * 52, "text"), 1),
            (("inbox",), 1),
        ):
            found, out, err = self.layer8(home, *words)
            self.assertEqual((found, out), (code, ""), f"{words}: {err}")
            self.assertEqual(len(err.splitlines()), 1, err)


class CommandTests(StayingCase):
    """On the network of `layer8 demo`."""

    def run_layer8(self, *words: str) -> str:
        code, out, err = layer8(*words)
        self.assertEqual((code, err), (0, ""), words)
        return out

    def test_everything_of_a_running_node(self) -> None:
        _, text = self.begin()
        home = re.findall(r"LAYER8_HOME=(\S+) \S+ circuits", text)[0]
        page = re.findall(r"curl --socks5-hostname \S+ (\S+)", text)[0]
        self.patch(os, "environ", {**os.environ, "LAYER8_HOME": home})
        built = json.loads(self.run_layer8("circuits", "--build", "rand>rand>rand>rand", "--json"))["circuits"][0]
        self.assertEqual((len(built["path"].split(">")), len(built["ms"])), (4, 4))
        self.assertRegex(self.run_layer8("circuits"), rf"(?m)^{built['circuit']} +open +{built['path']} ")
        self.run_layer8("circuits", "--close", str(built["circuit"]))
        self.assertNotRegex(self.run_layer8("circuits"), rf"(?m)^{built['circuit']} +open ")
        relays = json.loads(self.run_layer8("relays", "--full", "--json"))["relays"]
        self.assertEqual(len(relays), 8)
        self.assertIn("exit", self.run_layer8("relays"))
        self.assertIn("taken after", self.run_layer8("send", relays[0]["node"], "a line"))
        self.assertEqual(self.run_layer8("inbox"), "nothing has come\n")
        self.assertIn("node  well", self.run_layer8("status"))
        # A tunnel to the page, and a SOCKS port of five hops (G47).
        target = page.removeprefix("http://").rstrip("/")
        opened = json.loads(self.run_layer8("tunnel", f"0>rand>rand>rand>{target}", "--json"))
        port = int(opened["listening"][0].split(":")[1])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            self.assertIn(b"It came a long way", answer.read())
        path = "rand>rand>rand>rand>rand>internet"
        told = self.run_layer8("socks", "--listen", "tcp:0:interface=127.0.0.1", "--path", path)
        port = int(re.findall(r"on tcp:(\d+):", told)[0])
        words = ["curl", "-sS", "--noproxy", "", "--socks5-hostname", f"127.0.0.1:{port}", page]
        if shutil.which("curl") is None:
            raise SkipTest("needs the package curl")
        found = subprocess.run(words, capture_output=True, timeout=60, check=True).stdout
        self.assertIn(b"It came a long way", found)
        hops = [row["path"].split(">") for row in json.loads(self.run_layer8("circuits", "--json"))["circuits"]]
        self.assertIn(5, map(len, hops))
