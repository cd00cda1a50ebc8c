"""Nothing that is shipped holds a key, or a way to write keys of connections down."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests.names import ROOT

SHIPPED = ("layer8", "twisted", "share", "docs", "bench")
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=\r\n]{40}")
LOG = re.compile(rb"(?i)sslkeylog|keylog_filename|set_keylog")


class SourceTests(SynchronousTestCase):
    def test_no_key_and_no_log_of_keys(self) -> None:
        looked = 0
        for folder in SHIPPED:
            for path in (ROOT / folder).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    data = path.read_bytes()
                    self.assertIsNone(KEY.search(data), path)
                    self.assertIsNone(LOG.search(data), path)
                    looked += 1
        self.assertGreater(looked, 300)

    def test_one_would_be_found(self) -> None:
        self.assertIsNotNone(KEY.search(b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 64))
        self.assertIsNotNone(LOG.search(b"context.keylog_filename = path"))
