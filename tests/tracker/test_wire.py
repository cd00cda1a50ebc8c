"""The messages of trackers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.tracker.limits import UNPUBLISH_TIME
from layer8.tracker.wire import GetRelays, Status, Track, Unpublish, ok, read_ok
from tests.descriptors import MAIN, NOW, TEST, key


class WireTests(SynchronousTestCase):
    def test_numbers(self) -> None:
        self.assertEqual([int(one) for one in Track], [16, 17, 18, 19, 20])

    def test_get_relays(self) -> None:
        self.assertEqual(GetRelays(25, 3, 443).encode(), b"\x19\0\x03\x01\xbb")
        self.assertEqual(GetRelays.read(b"\x19\0\x03\x01\xbb"), GetRelays(25, 3, 443))
        for data in (b"", b"\0\0\0\0\0", b"\x1a\0\0\0\0", b"\1\0\0\0", b"\1\0\0\0\0\0"):
            with self.assertRaises(RemoteProtocolError):
                GetRelays.read(data)

    def test_ok(self) -> None:
        for status in Status:
            self.assertIs(read_ok(ok(status)), status)
        for data in (b"", b"\x63", b"\0\0"):
            with self.assertRaises(RemoteProtocolError):
                read_ok(data)

    def test_unpublish(self) -> None:
        one = Unpublish.make(key(1), MAIN, NOW)
        data = one.encode()
        self.assertEqual((len(data), data[:40]), (104, key(1).node_id + int(NOW).to_bytes(8, "big")))
        self.assertEqual(Unpublish.read(data), one)
        for now in (NOW, NOW - UNPUBLISH_TIME, NOW + UNPUBLISH_TIME):
            self.assertTrue(one.good(MAIN, now))
        for now in (NOW - UNPUBLISH_TIME - 1, NOW + UNPUBLISH_TIME + 1):
            self.assertFalse(one.good(MAIN, now))
        self.assertFalse(one.good(TEST, NOW))
        for at in (0, 39, 40, 103):
            flipped = bytearray(data)
            flipped[at] ^= 1
            self.assertFalse(Unpublish.read(bytes(flipped)).good(MAIN, NOW))
        with self.assertRaises(RemoteProtocolError):
            Unpublish.read(data[1:])

    @given(st.binary(max_size=110))
    def test_any_noise(self, data: bytes) -> None:
        for reader in (GetRelays.read, Unpublish.read, read_ok):
            try:
                reader(data)
            except RemoteProtocolError:
                continue
