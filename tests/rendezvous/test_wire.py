"""Messages of hidden services: there and back, and anything else is refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.introduction import BLOB
from layer8.rendezvous.wire import (
    NO_WORK,
    REPLY_LEAST,
    REPLY_MOST,
    Answer,
    Connect,
    Join,
    Knock,
    Listen,
    Listening,
    Renzv,
    Status,
    Tune,
    Work,
    read_cookie,
)

WORK = Work(b"n" * 16, 1000, b"seed")
ALL: tuple[Any, ...] = (
    Listen(b"a" * 32, b"s" * 64),
    Listening(25, 200, 16_384),
    Tune(b"a" * 32, b"s" * 32, 2**32 - 1, 1_700_000_000),
    Connect(b"a" * 32, WORK.encode(), b"b" * BLOB),
    Answer(Status.WORK, 5000),
    Knock(b"a" * 32, 7, NO_WORK, b"b" * BLOB),
    Join(b"c" * 32, b"r" * REPLY_LEAST),
    Join(b"c" * 32, b"r" * REPLY_MOST),
    WORK,
)


class WireTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        for one in ALL:
            self.assertEqual(type(one).read(one.encode()), one)

    def test_each_fits_one_cell(self) -> None:
        from layer8.relay.wire import DATA

        for one in ALL:
            self.assertLessEqual(len(one.encode()), DATA)

    def test_numbers(self) -> None:
        self.assertEqual(sorted(Renzv), [*range(48, 58), 60, 61, 62])

    def test_no_work(self) -> None:
        self.assertIsNone(Work.read(NO_WORK))

    def test_wrong_lengths(self) -> None:
        for one in ALL:
            text = one.encode()
            for wrong in (b"", text[:4], text + bytes(REPLY_MOST)):
                with self.assertRaises(RemoteProtocolError):
                    type(one).read(wrong)
        for wrong in (b"", bytes(31), bytes(33)):
            with self.assertRaises(RemoteProtocolError):
                read_cookie(wrong)

    def test_unknown_status(self) -> None:
        with self.assertRaises(RemoteProtocolError):
            Answer.read(b"\x09" + bytes(4))

    @given(st.binary(max_size=2100))
    def test_any_noise(self, text: bytes) -> None:
        for kind in {type(one) for one in ALL}:
            try:
                kind.read(text)
            except RemoteProtocolError:
                continue
