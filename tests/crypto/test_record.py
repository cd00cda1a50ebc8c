"""Records of sets: their form, whose word they are, and their work."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.crypto.record import DATA_MAX, RECORD_MAX, Kind, Record, set_target
from tests.descriptors import NOW

KEY = NodeKey.from_seed(bytes(range(32)))
TARGET = set_target("layer8/1 name", b"blog")
EFFORT = 4


def paid(one: Record, effort: int = EFFORT) -> Record:
    """Add work."""
    nonce, start = None, bytes(16)
    while nonce is None:
        nonce, start = one.search(effort, start, 64)
    return one.worked(nonce, effort)


def made(data: bytes = b"data", expires: int = int(NOW) + 60) -> Record:
    return paid(Record.make(KEY, TARGET, Kind.NAME, data, expires))


class FormTests(SynchronousTestCase):
    def test_layout(self) -> None:
        one = made()
        raw = one.encode()
        head = struct.pack("!IBH", int(NOW) + 60, 5, 4) + b"data" + KEY.node_id
        self.assertEqual(raw[: len(head)], head)
        self.assertEqual(raw[len(head) : len(head) + 64], KEY.sign(b"layer8/1 set\0" + TARGET + head))
        self.assertEqual(raw[-4:], struct.pack("!I", EFFORT))
        self.assertEqual(len(raw), len(head) + 64 + 16 + 4)
        self.assertEqual(Record.read(raw), one)

    def test_target(self) -> None:
        self.assertEqual(TARGET.hex(), "da24e04e4ce4e57c039867cac64d4e1dc588c60d")

    def test_the_largest(self) -> None:
        raw = made(b"d" * DATA_MAX).encode()
        self.assertEqual(len(raw), RECORD_MAX)
        Record.read(raw).check(TARGET, EFFORT, NOW)
        with self.assertRaises(LocalProtocolError):
            made(b"d" * (DATA_MAX + 1))
        with self.assertRaises(LimitExceeded):
            Record.read(raw + b".")

    def test_lengths(self) -> None:
        raw = made().encode()
        for wrong in (b"", raw[:-1], raw[1:], raw + b".", raw[:5] + b"\0\5" + raw[7:]):
            with self.assertRaises(RemoteProtocolError):
                Record.read(wrong)

    @given(st.binary(max_size=RECORD_MAX + 4))
    def test_any_noise(self, data: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            one = Record.read(data)
            self.assertEqual(one.encode(), data)
            one.check(TARGET, 1, 0)


class CheckTests(SynchronousTestCase):
    def test_good(self) -> None:
        made().check(TARGET, EFFORT, NOW)

    def test_every_byte_counts(self) -> None:
        raw = made().encode()
        for at in range(len(raw)):
            wrong = bytearray(raw)
            wrong[at] ^= 0x80
            with self.assertRaises(RemoteProtocolError, msg=str(at)):
                Record.read(bytes(wrong)).check(TARGET, 1 << 20 if at >= len(raw) - 20 else EFFORT, NOW)

    def test_expired_other_set_too_little_work(self) -> None:
        one = made()
        for target, least, now in (
            (TARGET, EFFORT, NOW + 60),
            (set_target("layer8/1 name", b"other"), EFFORT, NOW),
            (TARGET, EFFORT + 1, NOW),
        ):
            with self.assertRaises(RemoteProtocolError):
                one.check(target, least, now)

    def test_work_is_of_this_record_and_effort(self) -> None:
        one = Record.make(KEY, TARGET, Kind.NAME, b"one", int(NOW) + 60)
        with self.assertRaises(RemoteProtocolError):
            one.worked(bytes(16), 2**31).check(TARGET, EFFORT, NOW)
        other = Record.make(KEY, TARGET, Kind.NAME, b"two", int(NOW) + 60)
        good = paid(one, 4096)
        good.check(TARGET, 4096, NOW)
        with self.assertRaises(RemoteProtocolError):
            other.worked(good.nonce, 4096).check(TARGET, 4096, NOW)
        with self.assertRaises(RemoteProtocolError):
            one.check(TARGET, EFFORT, NOW)
