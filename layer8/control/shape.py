"""attrs classes as JSON values: checked on the way in, plain on the way out, described by JSON Schema.

A shape is made of bool, int (within +-2^53), float, str, bytes (base64url without padding), Literal, `T | None`,
`tuple[T, ...]`, `dict[str, T]`, nested attrs classes, and `Any` for JSON that is passed on as it is. Ranges are said
once, beside the field: `port: int = member(least=1, most=65535)`, or for elements `Annotated[int, Bounds(1, 65535)]`.

Each class is compiled once into plain closures; errors name the parameter (`data.path`), as in `hosts[3].name`.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
from attrs import NOTHING, Attribute, frozen

from layer8.core.errors import Layer8Error
from layer8.core.members import MEMBER, Member
from layer8.core.members import Bounds as Bounds
from layer8.core.members import member as member

DEPTH: Final = 16  # objects and arrays inside each other
KEYS: Final = 256  # members of one object
ITEMS: Final = 1000  # elements of one array; lists are paged at 500
STRING: Final = 32 * 1024  # characters of a string, bytes of a byte string
NUMBER: Final = 2**53  # what every JSON reader keeps exactly

T = TypeVar("T")
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
class Shape:
    """One type, compiled: `load` (unknown members refused), `read` (unknown members ignored), `dump`, schema."""

    load: Load
    read: Load
    dump: Dump | None
    schema: Callable[[dict[str, Schema]], Schema]


_NO_BOUNDS = Bounds()
_PLAIN = Member()
_compiled: dict[Any, Shape] = {}
_CLASSES_NESTED: Final = 12


def shape_of(kind: Any) -> Shape:
    """Compile a type, or give what was compiled before; raises TypeError for a type that has no JSON shape."""
    shape = _compiled.get(kind)
    if shape is None:
        shape = _compiled[kind] = _compile(kind, _NO_BOUNDS, 0)
    return shape


def from_json(kind: type[T], value: Any) -> T:
    """Make an instance of `kind` from a parsed JSON value; raises ShapeError, also for unknown members."""
    return cast(T, shape_of(kind).load(value))


def from_result(kind: type[T], value: Any) -> T:
    """Make an instance of `kind` from a peer's result; members that we do not know are ignored."""
    return cast(T, shape_of(kind).read(value))


def to_json(value: Any) -> Any:
    """Give the JSON value of an attrs instance; members that are None by default are left out when they are None."""
    dump = shape_of(type(value)).dump
    return value if dump is None else dump(value)


def json_schema(kind: Any, components: dict[str, Schema] | None = None) -> Schema:
    """Give the JSON Schema (draft 7) of a type.

    Nested classes go into `components` and are referred to as `#/components/schemas/NAME`, as OpenRPC wants it.
    """
    return shape_of(kind).schema({} if components is None else components)


def _compile(kind: Any, bounds: Bounds, depth: int) -> Shape:
    if depth > _CLASSES_NESTED:
        raise TypeError(f"{kind!r}: shapes may not contain themselves")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = next((extra for extra in arguments[1:] if isinstance(extra, Bounds)), bounds)
        return _compile(arguments[0], inner, depth)
    if kind is Any or kind is object:
        return Shape(_any, _any, None, lambda components: {})
    if kind is None or kind is NoneType:
        return Shape(_null, _null, None, lambda components: {"type": "null"})
    if kind is bool:
        return Shape(_boolean, _boolean, None, lambda components: {"type": "boolean"})
    if kind is int:
        return _integer(bounds)
    if kind is float:
        return _number(bounds)
    if kind is str:
        return _string(bounds)
    if kind is bytes:
        return _bytes(bounds)
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, UnionType):
        return _optional(kind, arguments, bounds, depth)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _array(arguments[0], bounds, depth)
    if origin is dict and arguments[0] is str:
        return _mapping(arguments[1], bounds, depth)
    if isinstance(kind, type) and attrs.has(kind):
        return _instance(kind, depth)
    raise TypeError(f"{kind!r} has no JSON shape")


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


def _integer(bounds: Bounds) -> Shape:
    least = -NUMBER if bounds.least is None else int(bounds.least)
    most = NUMBER if bounds.most is None else int(bounds.most)

    def load(value: Any) -> int:
        if type(value) is int and least <= value <= most:
            return value
        raise ShapeError(f"an integer from {least} to {most} is wanted")

    return Shape(load, load, None, lambda components: {"type": "integer", "minimum": least, "maximum": most})


def _number(bounds: Bounds) -> Shape:
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


def _string(bounds: Bounds) -> Shape:
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


def _bytes(bounds: Bounds) -> Shape:
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


def _literal(words: tuple[Any, ...]) -> Shape:
    if not all(type(word) in (str, int) for word in words):
        raise TypeError("literals are strings or integers")
    known = {(type(word), word) for word in words}
    wanted = "one of " + ", ".join(map(str, words)) + " is wanted"

    def load(value: Any) -> Any:
        if type(value) in (str, int) and (type(value), value) in known:
            return value
        raise ShapeError(wanted)

    return Shape(load, load, None, lambda components: {"enum": list(words)})


def _optional(kind: Any, arguments: tuple[Any, ...], bounds: Bounds, depth: int) -> Shape:
    rest = [argument for argument in arguments if argument is not NoneType]
    if len(rest) != 1 or len(arguments) != 2:
        raise TypeError(f"{kind!r}: of unions only `T | None` has a JSON shape")
    shape = _compile(rest[0], bounds, depth)
    dump = shape.dump

    def schema(components: dict[str, Schema]) -> Schema:
        return {"anyOf": [shape.schema(components), {"type": "null"}]}

    return Shape(
        lambda value: None if value is None else shape.load(value),
        lambda value: None if value is None else shape.read(value),
        None if dump is None else lambda value: None if value is None else dump(value),
        schema,
    )


def _array(kind: Any, bounds: Bounds, depth: int) -> Shape:
    least, most = int(bounds.least or 0), int(ITEMS if bounds.most is None else bounds.most)
    shape = _compile(kind, Bounds(pattern=bounds.pattern), depth)

    def loader(each: Load) -> Load:
        def load(value: Any) -> tuple[Any, ...]:
            if type(value) is not list:
                raise ShapeError("an array is wanted")
            if not least <= len(value) <= most:
                raise ShapeError(f"{least} to {most} elements are wanted")
            loaded: list[Any] = []
            try:
                for inner in value:
                    loaded.append(each(inner))  # how many there are is the place of an error
            except ShapeError as error:
                raise error.inside(f"[{len(loaded)}]") from None
            return tuple(loaded)

        return load

    def schema(components: dict[str, Schema]) -> Schema:
        described: Schema = {"type": "array", "items": shape.schema(components), "maxItems": most}
        return described | {"minItems": least} if least else described

    each = shape.dump
    dump: Dump = list if each is None else lambda value: [each(inner) for inner in value]
    return Shape(loader(shape.load), loader(shape.read), dump, schema)


def _mapping(kind: Any, bounds: Bounds, depth: int) -> Shape:
    most = int(KEYS if bounds.most is None else bounds.most)
    shape = _compile(kind, _NO_BOUNDS, depth)

    def loader(each: Load) -> Load:
        def load(value: Any) -> dict[str, Any]:
            if type(value) is not dict:
                raise ShapeError("an object is wanted")
            if len(value) > most:
                raise ShapeError(f"at most {most} members are wanted")
            loaded = {}
            for key, inner in value.items():
                try:
                    loaded[key] = each(inner)
                except ShapeError as error:
                    raise error.inside(key[:64]) from None
            return loaded

        return load

    def schema(components: dict[str, Schema]) -> Schema:
        return {"type": "object", "additionalProperties": shape.schema(components), "maxProperties": most}

    each = shape.dump
    dump: Dump = dict if each is None else lambda value: {key: each(inner) for key, inner in value.items()}
    return Shape(loader(shape.load), loader(shape.read), dump, schema)


@frozen
class _Field:
    key: str
    argument: str
    attribute: str
    shape: Shape
    required: bool
    left_out: bool
    doc: str


def _field(attribute: Attribute[Any], kind: Any, depth: int) -> _Field:
    said = attribute.metadata.get(MEMBER, _PLAIN)
    return _Field(
        key=said.name or attribute.name,
        argument=attribute.alias or attribute.name,
        attribute=attribute.name,
        shape=_compile(kind, said.bounds, depth + 1),
        required=attribute.default is NOTHING,
        left_out=attribute.default is None,
        doc=said.doc,
    )


def _instance(kind: type[Any], depth: int) -> Shape:
    hints = get_type_hints(kind, include_extras=True)
    fields = [
        _field(attribute, hints[attribute.name], depth) for attribute in attrs.fields(kind) if attribute.init
    ]
    required = [(field.key, field.argument) for field in fields if field.required]

    def loader(loads: Mapping[str, tuple[str, Load]], strict: bool) -> Load:
        def load(value: Any) -> Any:
            if type(value) is not dict:
                raise ShapeError("an object is wanted")
            arguments = {}
            key = ""
            try:
                for key, inner in value.items():
                    known = loads.get(key)
                    if known is not None:
                        arguments[known[0]] = known[1](inner)
                    elif strict:
                        raise ShapeError("unknown parameter")
            except ShapeError as error:
                raise error.inside(key[:64]) from None
            for key, argument in required:
                if argument not in arguments:
                    raise ShapeError("missing", key)
            try:
                return kind(**arguments)
            except ValueError as error:  # of a validator: attrs' own pass the attribute along
                place = [said.name for said in error.args if isinstance(said, Attribute)]
                raise ShapeError(str(error.args[0]) if error.args else "refused", *place) from None

        return load

    dumps = [(field.key, field.attribute, field.shape.dump, field.left_out) for field in fields]

    def dump(instance: Any) -> dict[str, Any]:
        members = {}
        for key, attribute, convert, left_out in dumps:
            value = getattr(instance, attribute)
            if value is None and left_out:
                continue
            members[key] = value if convert is None else convert(value)
        return members

    def schema(components: dict[str, Schema]) -> Schema:
        name = kind.__name__
        if name in components and components[name].get("$comment") != kind.__module__:
            name = f"{kind.__module__}.{kind.__qualname__}".replace(".", "_")
        if name not in components:
            components[name] = {"$comment": kind.__module__}
            components[name] |= _describe(kind, fields, components)
        return {"$ref": f"#/components/schemas/{name}"}

    return Shape(
        loader({field.key: (field.argument, field.shape.load) for field in fields}, True),
        loader({field.key: (field.argument, field.shape.read) for field in fields}, False),
        dump,
        schema,
    )


def _describe(kind: type[Any], fields: list[_Field], components: dict[str, Schema]) -> Schema:
    properties = {}
    for field in fields:
        described = field.shape.schema(components)
        properties[field.key] = described | {"description": field.doc} if field.doc else described
    return {
        "description": (kind.__doc__ or "").strip().partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": [field.key for field in fields if field.required],
        "additionalProperties": False,
    }
