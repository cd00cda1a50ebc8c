"""Proof of work: a nonce that cost about `effort` hashes to find and one to check.

A solution for (label, context 32, seed 32, effort E) is a nonce of 16 bytes with R * E < 2^64, where R is the 8-byte
BLAKE2b (person `layer8 pow 1`) of `label | context | seed | nonce | E u32` as a big-endian integer. E is part of what
is hashed, so it is chosen before searching. BLAKE2b favours graphics cards: this slows crowds down, it stops nobody.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

NONCE: Final = 16  # bytes
CONTEXT: Final = 32
SEED: Final = 32
EFFORT_MOST: Final = 2**32 - 1

_PERSON: Final = b"layer8 pow 1"


def search(label: bytes, context: bytes, seed: bytes, effort: int, start: bytes, tries: int) -> bytes | None:
    """Try so many nonces from `start` on and give the first good one, or None; about 0.5 us a try.

    `start` is random, so that two who search for the same do different work. Call it in a thread, in slices: the
    next one starts where this one ended, `following(start, tries)`.
    """
    first = int.from_bytes(start, "big")
    tail = _number(effort)
    bound = _bound(effort)
    begun = blake2b(_head(label, context, seed), digest_size=8, person=_PERSON).copy
    for number in range(first, first + tries):
        nonce = (number & _NONCES).to_bytes(NONCE, "big")
        tried = begun()
        tried.update(nonce + tail)
        if tried.digest() <= bound:
            return nonce
    return None


def following(start: bytes, tries: int) -> bytes:
    """Give the nonce after so many."""
    return (int.from_bytes(start, "big") + tries & _NONCES).to_bytes(NONCE, "big")


def check(label: bytes, context: bytes, seed: bytes, effort: int, nonce: bytes) -> bool:
    """Tell whether a nonce is a solution; about 2 us."""
    if len(nonce) != NONCE or len(context) != CONTEXT or len(seed) != SEED or not 0 < effort <= EFFORT_MOST:
        return False
    text = _head(label, context, seed) + nonce + _number(effort)
    return blake2b(text, digest_size=8, person=_PERSON).digest() <= _bound(effort)


def _head(label: bytes, context: bytes, seed: bytes) -> bytes:
    if len(context) != CONTEXT or len(seed) != SEED:
        raise ValueError("a context or seed of another length")
    return label + context + seed


def _number(effort: int) -> bytes:
    if not 0 < effort <= EFFORT_MOST:
        raise ValueError("an effort outside of 1 to 2^32 - 1")
    return effort.to_bytes(4, "big")


def _bound(effort: int) -> bytes:
    return ((2**64 - 1) // effort).to_bytes(8, "big")  # R * E < 2^64 is R <= this


_NONCES: Final = 2 ** (8 * NONCE) - 1
