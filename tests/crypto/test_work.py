"""Proof of work, with little of it."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto.work import EFFORT_MOST, NONCE, check, following, search

LABEL, CONTEXT, SEED = b"test", bytes(range(32)), b"s" * 32


def found(effort: int, start: bytes = bytes(NONCE)) -> bytes:
    """Search until there is one."""
    nonce = search(LABEL, CONTEXT, SEED, effort, start, 1000 * effort)
    assert nonce is not None
    return nonce


class WorkTests(SynchronousTestCase):
    def test_as_it_is_written(self) -> None:
        nonce = found(300)
        text = LABEL + CONTEXT + SEED + nonce + (300).to_bytes(4, "big")
        result = int.from_bytes(blake2b(text, digest_size=8, person=b"layer8 pow 1").digest(), "big")
        self.assertLess(result * 300, 2**64)
        self.assertTrue(check(LABEL, CONTEXT, SEED, 300, nonce))

    def test_good_for_nothing_else(self) -> None:
        nonce = found(2000)
        for other in (
            (b"other", CONTEXT, SEED, 2000, nonce),
            (LABEL, bytes(32), SEED, 2000, nonce),
            (LABEL, CONTEXT, bytes(32), 2000, nonce),
            (LABEL, CONTEXT, SEED, 4000, nonce),
            (LABEL, CONTEXT, SEED, 1999, nonce),
            (LABEL, CONTEXT, SEED, 2000, following(nonce, 1)),
        ):
            self.assertFalse(check(*other))

    def test_the_effort_is_what_it_costs(self) -> None:
        good = sum(check(LABEL, CONTEXT, SEED, 10, number.to_bytes(NONCE, "big")) for number in range(20_000))
        self.assertTrue(1700 < good < 2300, good)

    def test_slices_find_the_same(self) -> None:
        start = b"\xff" * NONCE  # wraps around
        whole, nonce = found(500, start), None
        while nonce is None:
            nonce = search(LABEL, CONTEXT, SEED, 500, start, 64)
            start = following(start, 64)
        self.assertEqual(nonce, whole)

    def test_lengths_and_efforts_that_are_none(self) -> None:
        self.assertTrue(check(LABEL, CONTEXT, SEED, 1, bytes(NONCE)))
        for context, seed, effort, nonce in (
            (CONTEXT[1:], SEED, 1, bytes(NONCE)),
            (CONTEXT, SEED + b"x", 1, bytes(NONCE)),
            (CONTEXT, SEED, 0, bytes(NONCE)),
            (CONTEXT, SEED, EFFORT_MOST + 1, bytes(NONCE)),
            (CONTEXT, SEED, 1, bytes(NONCE - 1)),
        ):
            self.assertFalse(check(LABEL, context, seed, effort, nonce))
        for effort in (0, -1, EFFORT_MOST + 1):
            with self.assertRaises(ValueError):
                search(LABEL, CONTEXT, SEED, effort, bytes(NONCE), 1)
        with self.assertRaises(ValueError):
            search(LABEL, b"", SEED, 1, bytes(NONCE), 1)

    @given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=20), st.integers())
    def test_any_noise(self, context: bytes, seed: bytes, nonce: bytes, effort: int) -> None:
        self.assertIn(check(LABEL, context, seed, effort, nonce), (True, False))
