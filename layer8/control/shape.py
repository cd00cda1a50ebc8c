"""attrs classes as JSON values: checked on the way in, plain on the way out, described by JSON Schema.

A shape is made of bool, int (within +-2^53), float, str, bytes (base64url without padding), Literal, `T | None`,
`tuple[T, ...]`, `dict[str, T]`, nested attrs classes, and `Any` for JSON that is passed on as it is. Ranges are said
once, beside the field: `port: int = member(least=1, most=65535)`, or for elements `Annotated[int, Bounds(1, 65535)]`.

Each class is compiled once into plain closures; errors name the parameter (`data.path`), as in `hosts[3].name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
from attrs import NOTHING, Attribute, frozen

from layer8.control.scalars import (
    ANY,
    BOOLEAN,
    ITEMS,
    KEYS,
    NULL,
    Components,
    Dump,
    Load,
    Schema,
    Shape,
    byte_string,
    integer,
    literal,
    number,
    string,
)
from layer8.control.scalars import ShapeError as ShapeError
from layer8.core.members import MEMBER, Member
from layer8.core.members import Bounds as Bounds
from layer8.core.members import member as member

T = TypeVar("T")

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


def json_schema(kind: Any, components: Components | None = None) -> Schema:
    """Give the JSON Schema (draft 7) of a type.

    Nested classes go into `components` and are referred to as `#/components/schemas/NAME`, as OpenRPC wants it.
    """
    return shape_of(kind).schema(components or Components())


def object_schema(kind: type[Any], components: Components) -> Schema:
    """Give the schema of a class itself, where `json_schema` would give a reference to it."""
    return _describe(kind, _fields(kind, 0), components)


def _compile(kind: Any, bounds: Bounds, depth: int) -> Shape:
    if depth > _CLASSES_NESTED:
        raise TypeError(f"{kind!r}: shapes may not contain themselves")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = next((extra for extra in arguments[1:] if isinstance(extra, Bounds)), bounds)
        return _compile(arguments[0], inner, depth)
    if kind is Any or kind is object:
        return ANY
    if kind is None or kind is NoneType:
        return NULL
    if kind is bool:
        return BOOLEAN
    if kind is int:
        return integer(bounds)
    if kind is float:
        return number(bounds)
    if kind is str:
        return string(bounds)
    if kind is bytes:
        return byte_string(bounds)
    if origin is Literal:
        return literal(arguments)
    if origin in (Union, UnionType):
        return _optional(kind, arguments, bounds, depth)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _array(arguments[0], bounds, depth)
    if origin is dict and arguments[0] is str:
        return _mapping(arguments[1], bounds, depth)
    if isinstance(kind, type) and attrs.has(kind):
        return _instance(kind, depth)
    raise TypeError(f"{kind!r} has no JSON shape")


def _optional(kind: Any, arguments: tuple[Any, ...], bounds: Bounds, depth: int) -> Shape:
    rest = [argument for argument in arguments if argument is not NoneType]
    if len(rest) != 1 or len(arguments) != 2:
        raise TypeError(f"{kind!r}: of unions only `T | None` has a JSON shape")
    shape = _compile(rest[0], bounds, depth)
    dump = shape.dump

    def schema(components: Components) -> Schema:
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

    def schema(components: Components) -> Schema:
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

    def schema(components: Components) -> Schema:
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


def _fields(kind: type[Any], depth: int) -> list[_Field]:
    hints = get_type_hints(kind, include_extras=True)
    return [_field(attribute, hints[attribute.name], depth) for attribute in attrs.fields(kind) if attribute.init]


def _instance(kind: type[Any], depth: int) -> Shape:
    fields = _fields(kind, depth)
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

    def schema(components: Components) -> Schema:
        name = components.name(kind)
        if name not in components.schemas:
            components.schemas[name] = _describe(kind, fields, components)
        return {"$ref": f"#/components/schemas/{name}"}

    return Shape(
        loader({field.key: (field.argument, field.shape.load) for field in fields}, True),
        loader({field.key: (field.argument, field.shape.read) for field in fields}, False),
        dump,
        schema,
    )


def _describe(kind: type[Any], fields: list[_Field], components: Components) -> Schema:
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
