"""The JSON shapes of single values: what is taken, within which caps, and how JSON Schema says so."""

from __future__ import annotations

import binascii
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, Final

from attrs import field, frozen

from layer8.core.errors import Layer8Error
from layer8.core.members import Bounds

DEPTH: Final = 16  # objects and arrays inside each other
KEYS: Final = 256  # members of one object
ITEMS: Final = 1000  # elements of one array; lists are paged at 500
STRING: Final = 32 * 1024  # characters of a string, bytes of a byte string
NUMBER: Final = 2**53  # what every JSON reader keeps exactly

Load = Callable[[Any], Any]
Dump = Callable[[Any], Any]
Schema = dict[str, Any]

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")


class ShapeError(Layer8Error):
    """A value does not have its shape; `path` names the place, `why` says what is wanted."""

    def __init__(self, why: str, *path: str) -> None:
        """Start with the innermost place."""
        super().__init__(why)
        self.why = why
        self._path = list(path)

    def inside(self, place: str) -> ShapeError:
        """Note that this happened inside `place`: a member's name, or `[n]`."""
        self._path.insert(0, place)
        return self

    @property
    def path(self) -> str:
        """The place as one text, empty for the whole value."""
        return ".".join(self._path).replace(".[", "[")

    def __str__(self) -> str:
        return f"{self.path}: {self.why}" if self._path else self.why


@frozen
class Components:
    """The schemas of named classes, as far as something refers to them; each class has one name."""

    schemas: dict[str, Schema] = field(factory=dict)
    names: dict[type[Any], str] = field(factory=dict)

    def name(self, kind: type[Any]) -> str:
        """Give the name of a class: its own, or one with its module where two would share it."""
        known = self.names.get(kind)
        if known is None:
            known = kind.__name__
            if known in self.names.values():
                known = f"{kind.__module__}.{kind.__qualname__}".replace(".", "_")
            self.names[kind] = known
        return known


@frozen
class Shape:
    """One type, compiled: `load` (unknown members refused), `read` (unknown members ignored), `dump`, schema."""

    load: Load
    read: Load
    dump: Dump | None
    schema: Callable[[Components], Schema]


def _null(value: Any) -> None:
    if value is not None:
        raise ShapeError("null is wanted")


def _boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise ShapeError("true or false is wanted")


def _any(value: Any) -> Any:
    _bounded(value, DEPTH)
    return value


def _bounded(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str:
        if len(value) > STRING:
            raise ShapeError(f"more than {STRING} characters")
    elif kind is dict:
        if depth <= 0 or len(value) > KEYS:
            raise ShapeError("too deep" if depth <= 0 else f"more than {KEYS} members")
        for inner in value.values():
            _bounded(inner, depth - 1)
    elif kind is list:
        if depth <= 0 or len(value) > ITEMS:
            raise ShapeError("too deep" if depth <= 0 else f"more than {ITEMS} elements")
        for inner in value:
            _bounded(inner, depth - 1)


def integer(bounds: Bounds) -> Shape:
    """Whole numbers; true and false are none."""
    least = -NUMBER if bounds.least is None else int(bounds.least)
    most = NUMBER if bounds.most is None else int(bounds.most)

    def load(value: Any) -> int:
        if type(value) is int and least <= value <= most:
            return value
        raise ShapeError(f"an integer from {least} to {most} is wanted")

    return Shape(load, load, None, lambda components: {"type": "integer", "minimum": least, "maximum": most})


def number(bounds: Bounds) -> Shape:
    """Numbers, whole ones too, always given as float."""
    least = -math.inf if bounds.least is None else bounds.least
    most = math.inf if bounds.most is None else bounds.most
    schema: Schema = {"type": "number"}
    if bounds.least is not None:
        schema["minimum"] = bounds.least
    if bounds.most is not None:
        schema["maximum"] = bounds.most

    def load(value: Any) -> float:
        if type(value) in (float, int) and least <= value <= most and math.isfinite(value):
            return float(value)
        raise ShapeError(f"a number from {least} to {most} is wanted")

    return Shape(load, load, None, lambda components: dict(schema))


def string(bounds: Bounds) -> Shape:
    """Text, its length counted in characters."""
    least, most = int(bounds.least or 0), int(STRING if bounds.most is None else bounds.most)
    pattern = None if bounds.pattern is None else re.compile(bounds.pattern)
    schema: Schema = {"type": "string", "maxLength": most}
    if least:
        schema["minLength"] = least
    if bounds.pattern is not None:
        schema["pattern"] = f"^(?:{bounds.pattern})$"

    def load(value: Any) -> str:
        if type(value) is not str:
            raise ShapeError("a string is wanted")
        if not least <= len(value) <= most:
            raise ShapeError(f"{least} to {most} characters are wanted")
        if pattern is not None and pattern.fullmatch(value) is None:
            raise ShapeError(f"must match {pattern.pattern}")
        return value

    return Shape(load, load, None, lambda components: dict(schema))


def byte_string(bounds: Bounds) -> Shape:
    """Bytes as base64url without padding, in the one way there is to write them (RFC 4648 section 5)."""
    least, most = int(bounds.least or 0), int(STRING if bounds.most is None else bounds.most)
    longest = -(-most * 4 // 3)

    def load(value: Any) -> bytes:
        if type(value) is not str or len(value) > longest or _BASE64URL.match(value) is None:
            raise ShapeError("base64url without padding is wanted")
        try:
            raw = urlsafe_b64decode(value + "=" * (-len(value) % 4))
        except binascii.Error:
            raise ShapeError("base64url without padding is wanted") from None
        if _text(raw) != value:
            raise ShapeError("base64url with no stray bits is wanted")
        if not least <= len(raw) <= most:
            raise ShapeError(f"{least} to {most} bytes are wanted")
        return raw

    return Shape(
        load,
        load,
        _text,
        lambda components: {"type": "string", "contentEncoding": "base64url", "maxLength": longest},
    )


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def literal(words: tuple[Any, ...]) -> Shape:
    """One of some strings or integers."""
    if not all(type(word) in (str, int) for word in words):
        raise TypeError("literals are strings or integers")
    known = {(type(word), word) for word in words}
    wanted = "one of " + ", ".join(map(str, words)) + " is wanted"

    def load(value: Any) -> Any:
        if type(value) in (str, int) and (type(value), value) in known:
            return value
        raise ShapeError(wanted)

    return Shape(load, load, None, lambda components: {"enum": list(words)})


ANY: Final = Shape(_any, _any, None, lambda components: {})
NULL: Final = Shape(_null, _null, None, lambda components: {"type": "null"})
BOOLEAN: Final = Shape(_boolean, _boolean, None, lambda components: {"type": "boolean"})
