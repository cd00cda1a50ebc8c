"""What l8.js says of itself, its limits and its failures is what the rest of layer8 says."""

from __future__ import annotations

import gzip
import re

from twisted.trial.unittest import SynchronousTestCase

import layer8
from layer8.tunnel import client_session, keys, limits, wire
from layer8.tunnel.keys import Flaw
from tests.names import ROOT
from tests.test_docs import rows
from tests.tunnel.browsers import script

MOST = 30 * 1024  # bytes, compressed
NUMBER = re.compile(r"^const ([A-Z_]+) = ([0-9_]+|2 \*\* [0-9]+);", re.MULTILINE).findall
CODE = re.compile(
    r'^  (?:"([a-z-]+)"|([a-z]+)): \[\s*"(page|relay|gateway|backend)",\s*"((?:[^"\\]|\\.)+)",', re.MULTILINE
).findall


class WordTests(SynchronousTestCase):
    """Words and numbers."""

    def setUp(self) -> None:
        """Read the script."""
        self.script = script()
        self.numbers = {name: eval(value) for name, value in NUMBER(self.script)}
        self.codes = {one or other: (leg, what) for one, other, leg, what in CODE(self.script)}

    def test_size(self) -> None:
        self.assertLessEqual(len(gzip.compress(self.script.encode(), 9)), MOST)
        self.assertIn(f'const VERSION = "{layer8.__version__}";', self.script)

    def test_limits(self) -> None:
        found = self.numbers
        for name in ("MAX_MESSAGE", "MAX_CHUNKS", "MAX_SINGLE", "MAX_FIELDS", "MAX_FIELD_BYTES", "MAX_INFORMATIONAL"):
            self.assertEqual(found[name], getattr(limits, name), name)
        self.assertEqual(found["CHUNK"], limits.CHUNK_PLAIN)
        self.assertEqual((found["KEYS_MAX"], found["KEYS_HURRY"]), (limits.KEYS_MAX, limits.KEYS_HURRY))
        self.assertEqual((found["EARLY"], found["FRESH"]), (keys.EARLY, keys.FRESH))
        self.assertEqual((found["PROBLEM_MOST"], found["RETRY_MOST"]), (wire.PROBLEM_MOST, client_session.RETRY_MOST))
        self.assertEqual(found["IDLE"], limits.IDLE_TIME * 1000)

    def test_codes(self) -> None:
        for code, words in client_session.CODES.items():
            self.assertEqual(self.codes[code][1], words)
        self.assertLessEqual({f"keys-{flaw.value}" for flaw in Flaw}, self.codes.keys())

    def test_the_page_lists_them(self) -> None:
        text = (ROOT / "docs" / "tunnel-js.md").read_text()
        listed = rows(text.partition("\n## When something fails\n")[2].partition("\n## ")[0])[1:]
        self.assertEqual({row[0].strip("`"): (row[1], row[2]) for row in listed}, self.codes)
