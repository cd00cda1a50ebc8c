"""The page about links says what is so."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.keys import NodeKey
from layer8.crypto.noise import LINK, RECORD, REKEY_AFTER
from layer8.crypto.vouch import EXTENSION, check, sign
from layer8.relay import limits
from layer8.relay.wire import CELL, Cell, Destroy
from tests.names import ROOT, find_test
from tests.test_docs import rows


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "docs" / "links.md").read_text()
        self.rows = rows(self.text)

    def section(self, title: str) -> list[list[str]]:
        return rows(self.text.partition(f"\n## {title}\n")[2].partition("\n## ")[0])

    def test_the_vector(self) -> None:
        vector = {row[0]: bytes.fromhex(row[1].strip("`")) for row in self.section("TLS") if len(row[1]) > 60}
        key = NodeKey.from_seed(vector["seed of the identity"])
        self.assertEqual(key.node_id, vector["identity"])
        self.assertEqual(sign(key, vector["binding"]), vector["signature"])
        check(key.node_id, vector["signature"], vector["binding"])
        self.assertIn(EXTENSION.dotted_string, self.text)

    def test_commands_and_reasons(self) -> None:
        found = [row for row in self.section("Cells") if row[0].isdigit()]
        commands, reasons = found[: len(Cell)], found[len(Cell) :]
        self.assertEqual([(int(row[0]), row[1]) for row in commands], [(cell.value, cell.name) for cell in Cell])
        said = [(int(row[0]), row[1].upper().replace(" ", "_")) for row in reasons]
        self.assertEqual(said, [(reason.value, reason.name) for reason in Destroy])

    def test_limits(self) -> None:
        listed = {row[0].strip("`"): row[1] for row in self.section("Limits") if re.fullmatch("`[A-Z_]+`", row[0])}
        self.assertEqual(len(listed), 12)
        for name, said in listed.items():
            value = getattr(limits, name)
            number, _, unit = said.partition(" ")
            self.assertEqual(int(number) * (1024 if unit == "KiB" else 1), value, name)

    def test_noise(self) -> None:
        self.assertIn(LINK.name.decode(), self.text)
        self.assertIn(f"{RECORD:,} bytes, {RECORD // CELL} cells", self.text)
        self.assertEqual(REKEY_AFTER, 2**20)

    def test_times_of_the_text(self) -> None:
        self.assertIn(f"a PING within {limits.PROBE_TIME:g} s", self.text)
        self.assertIn(f"dialled each other within {limits.T_LINK:g} s", self.text)
        self.assertIn(f"draws of {limits.PAD_LEAST} to {limits.PAD_MOST} s", self.text)
        self.assertIn(f"{limits.QUANTUM} cells at a time", self.text)
        self.assertIn(f"halves in\n{limits.EWMA_HALF:g} s", self.text)

    def test_named_tests(self) -> None:
        named = [name for row in self.section("Bad peers")[1:] for name in re.findall("`([a-z0-9_.A-Z]+)`", row[2])]
        self.assertEqual(len(named), 11)
        for name in named:
            self.assertTrue(find_test(f"tests.{name}"), name)
