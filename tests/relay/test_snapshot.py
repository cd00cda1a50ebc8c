"""Lists of relays signed by k of n keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core import bencode
from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.crypto.descriptor import CLOCK
from layer8.relay.snapshot import SNAPSHOT_MAX, read, sign, write
from tests.descriptors import MAIN, NOW, TEST, key, node

KEYS = tuple(node(number) for number in (101, 102, 103))
IDS = frozenset(node(number) for number in range(5))


class SnapshotTests(SynchronousTestCase):
    def signed(self, *signers: int, expires: float = NOW + 1000) -> bytes:
        file = write(IDS, MAIN, NOW, expires)
        for number in signers:
            file = sign(file, key(number))
        return file

    def refused(self, file: bytes, need: int = 2, now: float = NOW) -> None:
        with self.assertRaises(RemoteProtocolError):
            read(file, KEYS, need, MAIN, now)

    def test_as_many_as_are_needed(self) -> None:
        self.assertEqual(read(self.signed(101, 103), KEYS, 2, MAIN, NOW), IDS)
        self.assertEqual(read(self.signed(101, 102, 103, 999), KEYS, 3, MAIN, NOW), IDS)
        for signers in ((), (101,), (101, 101), (101, 999)):
            self.refused(self.signed(*signers))
        self.refused(self.signed(101), need=0)

    def test_every_bit(self) -> None:
        file = self.signed(101, 102)
        for at in range(len(file)):
            flipped = bytearray(file)
            flipped[at] ^= 1
            self.refused(bytes(flipped))

    def test_time_and_network(self) -> None:
        file = self.signed(101, 102)
        self.refused(file, now=NOW + 1000)
        self.refused(file, now=NOW - CLOCK - 1)
        with self.assertRaises(RemoteProtocolError):
            read(file, KEYS, 2, TEST, NOW)

    def test_forms(self) -> None:
        for listed in (b"i1e", b"de", b"d1:ei1e1:i3:abc1:ti1ee"):
            file = bencode.encode({b"l": listed, b"s": {}})
            self.refused(sign(sign(file, key(101)), key(102)))
        for file in (b"i1e", b"de", b"d1:l1:x1:slee", b"d1:l1:x1:sd1:ai1eee"):
            self.refused(file)
        with self.assertRaises(LimitExceeded):
            read(bytes(SNAPSHOT_MAX + 1), KEYS, 1, MAIN, NOW)

    @given(st.binary(max_size=100))
    def test_any_noise(self, file: bytes) -> None:
        self.refused(file)
