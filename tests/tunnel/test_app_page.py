"""The page about apps says what is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from layer8.tunnel import integrity
from layer8.tunnel.client import L8Client
from layer8.tunnel.manifest import App
from tests.names import ROOT
from tests.test_docs import rows
from tests.tunnel.test_integrity import ME, ONE, OTHER, payload


class AppPageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "docs" / "tunnel-app.md").read_text()

    def test_the_configuration(self) -> None:
        [block] = re.findall(r"^```toml\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        path = Path(self.mktemp())
        path.write_text(block)
        app, key = App.load(path)
        self.assertEqual((app.name, list(app.gateways), key.name), ("notes", ["notes"], "publisher.pem"))

    def test_the_members(self) -> None:
        told = rows(self.text.partition("\n## The manifest\n")[2].partition("\n## ")[0])[1:]
        full = evolve(ONE, next=OTHER.node_id, wheel=("1", bytes(32)))
        self.assertEqual({row[0].strip("`") for row in told}, set(payload(full.sign(ME))))

    def test_the_headers(self) -> None:
        for name, value in integrity.BESIDE:
            self.assertIn(f"{name}: {value}".lower(), self.text.lower().replace("\n", " "))
        for path in (integrity.PATH, integrity.HEADERS, "/.well-known/waict/manifests/app_"):
            self.assertIn(path, self.text)

    def test_the_client(self) -> None:
        [block] = re.findall(r"^```python\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        [words] = re.findall(r"L8Client\((.*)\) as", block)
        named = set(re.findall(r"(\w+)=", words)) | {"via"}
        self.assertLessEqual(named, set(inspect.signature(L8Client.__init__).parameters))
