"""A folder becomes an app: what is built into it, what changes with it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import layer8
from layer8.core.errors import ConfigError
from layer8.crypto.keys import NodeKey
from layer8.tunnel import integrity, manifest
from layer8.tunnel.integrity import AppGateway, File, Manifest
from layer8.tunnel.keys import pin_text
from layer8.tunnel.manifest import App

ME = NodeKey.from_seed(bytes(range(32)))
OTHER = NodeKey.from_seed(bytes(32))
APP = App(
    "notes",
    "https://notes.relay.example/",
    {"shop": AppGateway(("https://relay.example",), ("shop.example",), (bytes(32),))},
)
PAGE = '<!doctype html><link rel="stylesheet" href="s.css"><script type="module" src="m.js"></script>'
TOML = """
[app]
name = "notes"
url = "https://notes.relay.example/"
[[gateway]]
id = "shop"
relays = ["https://relay.example/"]
authorities = ["shop.example"]
identities = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
"""


class BuildTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()) / "site"
        self.folder.mkdir(parents=True)
        self.put("index.html", PAGE)
        self.put("s.css", "p{}")
        self.put("m.js", "1")

    def put(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def signed(self) -> bytes:
        return (self.folder / ".well-known/l8/manifest.json").read_bytes()

    def test_what_is_written(self) -> None:
        made = manifest.build(self.folder, APP, ME)
        self.assertEqual(Manifest.read(self.signed(), [ME.node_id]), made)
        self.assertEqual(set(made.files), {"/index.html", "/s.css", "/m.js"})
        for path, file in made.files.items():
            self.assertEqual(file, File.of((self.folder / path[1:]).read_bytes()))
        self.assertEqual((self.folder / ".well-known/l8/manifests/1.json").read_bytes(), self.signed())
        waict, body = integrity.waict(made.files)
        self.assertEqual((self.folder / waict[1:]).read_bytes(), body)
        told = json.loads((self.folder / ".well-known/l8/headers.json").read_bytes())
        self.assertIn(waict, told["integrity-policy-waict-v1"])
        unsigned = json.loads((self.folder.parent / "site.webcat/manifest.json").read_bytes())
        self.assertEqual(set(unsigned["manifest"]["files"]), set(made.files))
        self.assertEqual(made.csp, integrity.csp(["https://relay.example"]))
        self.assertIsNone(made.wheel)

    def test_built_again(self) -> None:
        manifest.build(self.folder, APP, ME)
        before = self.signed()
        self.assertEqual(manifest.build(self.folder, APP, ME).version, 1)
        self.assertEqual(self.signed(), before)
        self.put("m.js", "2")
        made = manifest.build(self.folder, APP, ME)
        self.assertEqual((made.version, made.prev), (2, sha256(before).digest()))
        made.follows(before)
        self.assertEqual(len(list((self.folder / ".well-known/waict/manifests").iterdir())), 1)
        self.assertEqual((self.folder / ".well-known/l8/manifests/1.json").read_bytes(), before)

    def test_a_new_publisher(self) -> None:
        manifest.build(self.folder, APP, ME)
        self.assertRaises(ConfigError, manifest.build, self.folder, APP, OTHER)
        named = App(APP.name, APP.url, APP.gateways, next=OTHER.node_id)
        manifest.build(self.folder, named, ME)
        self.assertEqual(manifest.build(self.folder, APP, OTHER).version, 3)

    def test_what_is_refused(self) -> None:
        for name, text in (
            ("index.html", PAGE + "<script>1</script>"),
            ("index.html", PAGE + '<script src="gone.js"></script>'),
            ("index.html", PAGE + '<script src="https://cdn.example/x.js"></script>'),
            ("more.html", '<p onclick="x()">'),
            ("a b.js", ""),
            ("l8/x.js", ""),
        ):
            path = self.folder / name
            before = path.read_text() if path.exists() else None
            self.put(name, text)
            self.assertRaises(ConfigError, manifest.build, self.folder, APP, ME)
            if before is None:
                path.unlink()
            else:
                self.put(name, before)
        (self.folder / "link.js").symlink_to("m.js")
        self.assertRaises(ConfigError, manifest.build, self.folder, APP, ME)
        self.assertFalse((self.folder / ".well-known").exists())

    def test_what_comes_from_the_wheel(self) -> None:
        self.put("index.html", f'<script type="module" src="/l8/{layer8.__version__}/l8.js"></script>')
        digest = sha256(b"wheel").digest()
        made = manifest.build(self.folder, APP, ME, digest=digest)
        path = f"/l8/{layer8.__version__}/l8.js"
        data = manifest.from_wheel(path)
        assert data is not None
        self.assertEqual(made.files[path], File.of(data))
        self.assertEqual(made.wheel, (layer8.__version__, digest))
        self.assertIsNone(manifest.from_wheel("/l8/0.0.0/l8.js"))
        self.assertIsNone(manifest.from_wheel(f"/l8/{layer8.__version__}/../../py.typed"))

    def test_the_command(self) -> None:
        (self.folder.parent / "app.toml").write_text(TOML)

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "layer8.tunnel.manifest", *words]
            return subprocess.run(command, cwd=self.folder.parent, capture_output=True, text=True, timeout=60)

        key = run("key", "publisher.pem").stdout.strip()
        self.assertEqual(run("key", "publisher.pem").stdout.strip(), key)
        done = run("build", "site")
        self.assertEqual((done.returncode, done.stdout), (0, f"notes 1: 3 files, signed by {key}\n"), done.stderr)
        self.assertEqual(pin_text(Manifest.first(self.signed()).publisher), key)
        self.put("index.html", "<script>1</script>")
        done = run("build", "site")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)


class ConfigTests(SynchronousTestCase):
    def test_what_is_wrong(self) -> None:
        path = Path(self.mktemp())
        path.write_text(TOML)
        app, key = App.load(path)
        self.assertEqual((app, key.name), (APP, "publisher.pem"))
        for before, after in (
            ("[app]", "[other]"),
            ('name = "notes"', 'name = "No"'),
            ('name = "notes"', "name = 1"),
            ('name = "notes"', 'name = "notes"\nmore = 1'),
            ("https://notes.relay.example/", "notes.relay.example"),
            ("[[gateway]]", "[gateway]"),
            ('id = "shop"', 'id = "NO"'),
            ("https://relay.example/", "https://relay.example/x"),
            ('["shop.example"]', "[]"),
            ("AAAA", "AAA"),
            ("[app]", "[app"),
        ):
            path.write_text(TOML.replace(before, after, 1))
            self.assertRaises(ConfigError, App.load, path)
        self.assertRaises(ConfigError, App.load, Path("/nowhere/app.toml"))
