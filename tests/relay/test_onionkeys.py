"""Onion keys: how long each is used and taken, and what is in their file."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.crypto.ntor import HandshakeFailed, SeenX, client_begin, client_finish, relay_answer
from layer8.relay.circuit import choose_terms
from layer8.relay.onionkeys import KEY_AFTER, KEY_LIFE, OnionKeys
from layer8.relay.origin import OFFER

NOW = 1_800_000_000.0
RELAY = b"r" * 32
NETWORK = b"networks"


class OnionKeysTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def keys(self, now: float = NOW, path: Path | None = None) -> OnionKeys:
        keys = OnionKeys(path)
        keys.load(now)
        return keys

    def takes(self, keys: OnionKeys, public: bytes) -> bool:
        """Try to build through a relay by a key that its descriptor once named."""
        begun, asked = client_begin(RELAY, public, NETWORK, OFFER.to_bytes())
        try:
            reply, *_ = relay_answer(RELAY, keys.by_public, NETWORK, asked, SeenX(), choose_terms)
        except HandshakeFailed:
            return False
        client_finish(begun, reply)
        return True

    def test_four_weeks_in_use_and_one_more_taken(self) -> None:
        self.assertEqual((KEY_LIFE, KEY_AFTER), (28 * 86_400, 7 * 86_400))
        keys = self.keys()
        first = keys.public
        self.assertFalse(keys.turn(NOW + KEY_LIFE - 1))
        self.assertEqual(keys.public, first)
        self.assertTrue(keys.turn(NOW + KEY_LIFE))
        second = keys.public
        self.assertNotEqual(second, first)
        self.assertTrue(self.takes(keys, first) and self.takes(keys, second))
        keys.turn(NOW + KEY_LIFE + KEY_AFTER - 1)
        self.assertTrue(self.takes(keys, first))
        keys.turn(NOW + KEY_LIFE + KEY_AFTER)
        self.assertEqual((keys.public, self.takes(keys, first), self.takes(keys, second)), (second, False, True))

    def test_both_survive_a_restart_and_nobody_else_may_read_them(self) -> None:
        keys = self.keys(path=self.path)
        first = keys.public
        self.assertEqual((self.path.stat().st_mode & 0o777, self.keys(NOW + 5, self.path).public), (0o600, first))
        keys.turn(NOW + KEY_LIFE)
        again = self.keys(NOW + KEY_LIFE + 5, self.path)
        self.assertEqual((again.public, set(again.by_public)), (keys.public, {first, keys.public}))
        last = self.keys(NOW + KEY_LIFE + KEY_AFTER, self.path)
        self.assertEqual(set(last.by_public), {keys.public})
        self.assertEqual(set(self.keys(NOW + KEY_LIFE + KEY_AFTER, self.path).by_public), {keys.public})

    def test_what_expired_while_the_node_was_down(self) -> None:
        first = self.keys(path=self.path).public
        again = self.keys(NOW + 100 * KEY_LIFE, self.path)
        self.assertNotEqual(again.public, first)
        self.assertEqual(self.keys(NOW + 100 * KEY_LIFE, self.path).public, again.public)

    def test_a_clock_that_was_set_back_gives_no_key_a_longer_life(self) -> None:
        first = self.keys(path=self.path).public
        self.assertEqual(self.keys(NOW - KEY_LIFE + 1, self.path).public, first)
        self.assertNotEqual(self.keys(NOW - KEY_LIFE, self.path).public, first)

    def test_files_that_are_none(self) -> None:
        for content in (b"", b"nonsense", b"de", b"d4:keysle5:sincei1ee", b"d4:keysl1:xe5:sincei1ee"):
            self.path.unlink(missing_ok=True)
            self.path.touch(0o600)
            self.path.write_bytes(content)
            self.assertRaises(ConfigError, self.keys, NOW, self.path)
