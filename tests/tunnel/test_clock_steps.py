"""A clock that is put forward, or back, costs nobody a second execution, and no gateway its keys."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import write_private
from layer8.crypto.keys import NodeKey
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.replay import ReplaySet, Verdict
from layer8.tunnel.settings import Settings
from layer8.tunnel.signed import sign_ahead

HOUR = 3600
WALL = 1_800_000_000.0


class ClockTests(SynchronousTestCase):
    """Steps of the time of day."""

    def test_marks_that_were_let_go_stay_known(self) -> None:
        """An hour forward and back again: what has come before does not count as new."""
        marks = ReplaySet()
        self.assertIs(marks.add(b"a" * 16, WALL, WALL), Verdict.NEW)
        self.assertIs(marks.add(b"b" * 16, WALL + HOUR, WALL + HOUR), Verdict.NEW)
        self.assertIsNot(marks.add(b"a" * 16, WALL, WALL), Verdict.NEW)
        self.assertIs(marks.add(b"c" * 16, WALL + 60, WALL), Verdict.NEW)

    def test_clock_that_was_ahead(self) -> None:
        """Keys are made for the time that it really is as soon as anybody asks."""
        now = [WALL + 10 * 24 * HOUR]
        gateway = Gateway.open(Settings(gateway="shop", authorities=["shop.example"]), wall=lambda: now[0])
        self.assertFalse(gateway.due())
        now[0] = WALL
        self.assertTrue(gateway.due())
        gateway.upkeep()
        self.assertFalse(gateway.due())
        self.assertTrue(gateway.keys_document())


class SignedTests(SynchronousTestCase):
    """Keys that outlive a process need marks that do."""

    def test_signed_keys_are_not_for_memory(self) -> None:
        identity, path = NodeKey.make(), Path(self.mktemp())
        told = Settings(gateway="shop", authorities=["shop.example"], identity=identity)
        write_private(path, sign_ahead(told, identity, WALL, 2))
        with self.assertRaisesRegex(ConfigError, "state"):
            Settings(gateway="shop", authorities=["shop.example"], signed_file=path)
        Settings(gateway="shop", authorities=["shop.example"], signed_file=path, state=self.mktemp())
