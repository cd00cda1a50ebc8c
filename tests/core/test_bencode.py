"""Canonical bencode: one value, one text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.bencode import DEPTH, decode, encode
from layer8.core.errors import LimitExceeded, RemoteProtocolError

NUMBERS = st.integers(-(2**63), 2**63 - 1)
VALUES = st.recursive(
    NUMBERS | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=6), inner, max_size=4),
    max_leaves=12,
)
TOKENS = st.sampled_from([b"i", b"e", b"l", b"d", b"1:a", b"1:b", b"0:", b"-", b"0", b"12", b":", b"i3e", b"\xff"])


class BencodeTests(SynchronousTestCase):
    def test_the_examples_of_bep_3(self) -> None:
        for value, text in (
            (b"spam", b"4:spam"),
            (3, b"i3e"),
            (-3, b"i-3e"),
            (0, b"i0e"),
            ([b"spam", b"eggs"], b"l4:spam4:eggse"),
            ({b"cow": b"moo", b"spam": b"eggs"}, b"d3:cow3:moo4:spam4:eggse"),
            ({b"spam": [b"a", b"b"]}, b"d4:spaml1:a1:bee"),
            ({}, b"de"),
            (b"", b"0:"),
        ):
            self.assertEqual(encode(value), text)
            self.assertEqual(decode(text), value)

    def test_keys_are_sorted(self) -> None:
        self.assertEqual(encode({b"fam": 1, b"f": 2, b"b": 3}), b"d1:bi3e1:fi2e3:fami1ee")

    def test_whatever_is_not_canonical(self) -> None:
        for text in (
            b"", b"i", b"ie", b"i-e", b"i-0e", b"i03e", b"i+3e", b"i 3e", b"i3", b"i1_0e", b"i\xd9\xa3e",
            b"i" + b"9" * 21 + b"e", b"03:abc", b"3:ab", b"-1:a", b"3abc", b":", b"l", b"li3e", b"d", b"d1:ae",
            b"di1ei2ee", b"d1:bi1e1:ai2ee", b"d1:ai1e1:ai2ee", b"i3ei4e", b"4:spamx", b"x", b"e", b"n" * 40,
        ):  # fmt: skip
            with self.assertRaises(RemoteProtocolError, msg=repr(text)):
                decode(text)

    def test_depth(self) -> None:
        decode(b"l" * DEPTH + b"e" * DEPTH)
        with self.assertRaises(LimitExceeded):
            decode(b"l" * (DEPTH + 1) + b"e" * (DEPTH + 1))
        with self.assertRaises(LimitExceeded):
            decode(b"l" * 100_000)

    def test_what_has_no_form(self) -> None:
        for value in (True, "text", 1.5, None, {b"a": True}):
            with self.assertRaises(TypeError):
                encode(value)  # type: ignore[arg-type]

    @given(VALUES)
    def test_round_trip(self, value: object) -> None:
        self.assertEqual(decode(encode(value)), value)  # type: ignore[arg-type]

    @given(st.lists(TOKENS, max_size=14).map(b"".join) | st.binary(max_size=60))
    def test_any_noise(self, text: bytes) -> None:
        try:
            value = decode(text)
        except RemoteProtocolError:
            return
        self.assertEqual(encode(value), text)
