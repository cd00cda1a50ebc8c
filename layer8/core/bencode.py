"""Canonical bencode (BEP 3): integers, byte strings, lists, dictionaries with sorted keys; one value has one text.

What is not canonical is refused, so that whoever has read a text may sign, compare or pass on the bytes themselves:
no leading zeros, no `-0`, no key twice or out of order, nothing behind the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from layer8.core.errors import LimitExceeded, RemoteProtocolError

DEPTH: Final = 8  # lists and dictionaries inside each other
DIGITS: Final = 20  # of an integer, its sign included: 64 bits

Value: TypeAlias = "int | bytes | Sequence[Value] | Mapping[bytes, Value]"
Read: TypeAlias = "int | bytes | list[Read] | dict[bytes, Read]"

_DIGITS: Final = frozenset(b"0123456789")


def encode(value: Value) -> bytes:
    """Write a value; a bool, a text or anything else that bencode has no form for is a `TypeError`."""
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def decode(text: bytes) -> Read:
    """Read a whole text; raises `RemoteProtocolError` for every other one than `encode` would write."""
    value, end = _read(bytes(text), 0, DEPTH)
    if end != len(text):
        raise RemoteProtocolError("bencode with something behind its end")
    return value


def _write(value: Value, parts: list[bytes]) -> None:
    if type(value) is int:
        parts.append(b"i%de" % value)
    elif isinstance(value, bytes):
        parts.append(b"%d:" % len(value))
        parts.append(value)
    elif isinstance(value, Mapping):
        parts.append(b"d")
        for key in sorted(value):
            _write(key, parts)
            _write(value[key], parts)
        parts.append(b"e")
    elif isinstance(value, list | tuple):
        parts.append(b"l")
        for one in value:
            _write(one, parts)
        parts.append(b"e")
    else:
        raise TypeError(f"bencode has no form for {type(value).__qualname__}")


def _read(text: bytes, at: int, depth: int) -> tuple[Read, int]:
    first = text[at : at + 1]
    if first == b"i":
        end = text.find(b"e", at, at + DIGITS + 3)
        return _number(text[at + 1 : max(end, 0)]), end + 1
    if first.isdigit():
        return _string(text, at)
    if first not in (b"l", b"d"):
        raise RemoteProtocolError("bencode that ends too early, or of no known type")
    if not depth:
        raise LimitExceeded("DEPTH", DEPTH)
    at += 1
    return _dictionary(text, at, depth - 1) if first == b"d" else _list(text, at, depth - 1)


def _list(text: bytes, at: int, depth: int) -> tuple[Read, int]:
    found: list[Read] = []
    while text[at : at + 1] != b"e":
        one, at = _read(text, at, depth)
        found.append(one)
    return found, at + 1


def _dictionary(text: bytes, at: int, depth: int) -> tuple[Read, int]:
    found: dict[bytes, Read] = {}
    last: bytes | None = None
    while text[at : at + 1] != b"e":
        key, at = _string(text, at)
        if last is not None and key <= last:
            raise RemoteProtocolError("bencode with keys twice or out of order")
        found[key], at = _read(text, at, depth)
        last = key
    return found, at + 1


def _string(text: bytes, at: int) -> tuple[bytes, int]:
    colon = text.find(b":", at, at + DIGITS)
    size = text[at : max(colon, 0)]
    if not size or not _DIGITS.issuperset(size):
        raise RemoteProtocolError("bencode with a string of no length")
    start = colon + 1
    end = start + _number(size)
    if end > len(text):
        raise RemoteProtocolError("bencode that ends too early")
    return text[start:end], end


def _number(text: bytes) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits or not _DIGITS.issuperset(digits) or len(text) > DIGITS:
        raise RemoteProtocolError("bencode with a wrong number")
    if digits[:1] == b"0" and len(text) > 1:
        raise RemoteProtocolError("bencode with a number in another form than its shortest")
    return int(text)
