"""The page of descriptors says what is so: its vectors, its codes, its tests."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.network import Network
from layer8.crypto.descriptor import EFFORT, Descriptor, Role, make
from layer8.crypto.keys import NodeKey
from layer8.crypto.work import check
from layer8.tracker.wire import Status, Track
from tests.names import ROOT, find_test

PAGE = (ROOT / "docs" / "directory.md").read_text()
KEY = NodeKey.from_seed(bytes(range(32)))


class PageTests(SynchronousTestCase):
    def test_the_descriptor(self) -> None:
        raw = bytes.fromhex(PAGE.partition("A vector:")[2].partition("```text")[2].partition("```")[0])
        made = make(
            KEY,
            Network("test"),
            onion_key=b"\x42" * 32,
            endpoints=("tcp:127.0.0.1:9000",),
            now=1_800_000_000,
            serial=7,
            roles=3,
            exits=b"80,443",
        )
        self.assertEqual(made, Descriptor.read(raw))

    def test_the_work(self) -> None:
        (nonce,) = re.findall(r"`([0-9a-f]{32})`", PAGE)
        day = (1_800_000_000 // 86_400).to_bytes(32, "big")
        self.assertTrue(check(b"layer8 node", KEY.node_id, day, EFFORT, bytes.fromhex(nonce)))

    def test_numbers(self) -> None:
        for status in Status:
            self.assertIn(f"| {status.value} `{status.name.lower()}` |", PAGE)
        for command in Track:
            self.assertIn(f"{command.value} TRACK_{command.name}", PAGE)
        for role in Role:
            self.assertRegex(PAGE, rf"(?i)\b{role.value} {role.name}\b")

    def test_every_test_is_there(self) -> None:
        names = re.findall(r"`((?:crypto|relay|tracker)\.test_[\w.]+)`", PAGE)
        self.assertGreater(len(names), 10)
        for name in names:
            self.assertTrue(find_test(f"tests.{name}"), name)
