"""attrs classes as JSON values."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from attrs import define, field, frozen, validators
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.scalars import DEPTH, ITEMS, KEYS, NUMBER, STRING, Components
from layer8.control.shape import (
    Bounds,
    ShapeError,
    from_json,
    from_result,
    json_schema,
    member,
    object_schema,
    shape_of,
    to_json,
)


@frozen
class Inner:
    """Something inside.

    With more to say.
    """

    name: str
    count: int = member(0, least=0, most=9)


@frozen
class Everything:
    """One of each."""

    flag: bool
    whole: int
    real: float
    text: str
    raw: bytes
    word: Literal["up", "down", 3]
    maybe: int | None
    several: tuple[Inner, ...]
    table: dict[str, bytes]
    nested: Inner
    free: Any = None
    left_out: str | None = None


@frozen
class Bounded:
    """Ranges and lengths."""

    port: int = member(1, least=1, most=65535, doc="a TCP port")
    ratio: float = member(0.5, least=0, most=1)
    word: str = member("abc", least=2, most=4, pattern="[a-z]+")
    key: bytes = member(b"\0" * 32, least=32, most=32)
    ports: tuple[Annotated[int, Bounds(1, 65535)], ...] = member((), most=3)
    some: tuple[str, ...] = member(("x",), least=1)
    serverPort: int = member(0, name="server_port")
    hidden: str = member("", secret=True)


@define
class Judged:
    """Judged by attrs' own validators too."""

    size: int = field(validator=validators.ge(3))
    word: str = field(default="a", validator=validators.in_(("a", "b")))
    odd: int = 1

    def __attrs_post_init__(self) -> None:
        if self.odd % 2 == 0:
            raise ValueError("odd wants to be odd")


@frozen
class Endless:
    """A class inside itself."""

    more: tuple[Endless, ...] = ()


EVERYTHING_JSON: dict[str, Any] = {
    "flag": True,
    "whole": -3,
    "real": 0.5,
    "text": "ä",
    "raw": "AAH_",
    "word": "down",
    "maybe": None,
    "several": [{"name": "a", "count": 1}, {"name": "b"}],
    "table": {"k": ""},
    "nested": {"name": "n"},
    "free": {"any": [1, None, "x"]},
}


def path_of(test: SynchronousTestCase, kind: type[Any], value: Any) -> str:
    with test.assertRaises(ShapeError) as raised:
        from_json(kind, value)
    error = raised.exception
    assert isinstance(error, ShapeError)
    return error.path


class There(SynchronousTestCase):
    """From JSON to instances."""

    def test_one_of_each(self) -> None:
        self.assertEqual(
            from_json(Everything, EVERYTHING_JSON),
            Everything(
                flag=True,
                whole=-3,
                real=0.5,
                text="ä",
                raw=b"\x00\x01\xff",
                word="down",
                maybe=None,
                several=(Inner("a", 1), Inner("b")),
                table={"k": b""},
                nested=Inner("n"),
                free={"any": [1, None, "x"]},
            ),
        )

    def test_wrong_types_name_their_place(self) -> None:
        rows: list[tuple[str, Any, str]] = [
            ("flag", 1, "flag"),
            ("flag", None, "flag"),
            ("whole", True, "whole"),
            ("whole", 1.0, "whole"),
            ("whole", "1", "whole"),
            ("whole", NUMBER + 1, "whole"),
            ("real", True, "real"),
            ("real", math.inf, "real"),
            ("real", math.nan, "real"),
            ("text", 1, "text"),
            ("text", "x" * (STRING + 1), "text"),
            ("raw", "AAH/", "raw"),
            ("raw", "AAH_=", "raw"),
            ("raw", "AAH_\n", "raw"),
            ("raw", "AAF", "raw"),
            ("raw", "A", "raw"),
            ("raw", 3, "raw"),
            ("raw", "A" * 100_000, "raw"),
            ("word", "sideways", "word"),
            ("word", True, "word"),
            ("word", 3.0, "word"),
            ("word", [], "word"),
            ("maybe", "", "maybe"),
            ("several", {}, "several"),
            ("several", [{"name": "a"}, {"name": 3}], "several[1].name"),
            ("several", [[]], "several[0]"),
            ("several", [{}], "several[0].name"),
            ("several", [{"name": "", "more": 0}], "several[0].more"),
            ("several", [{"name": ""}] * (ITEMS + 1), "several"),
            ("table", {"k": 1}, "table.k"),
            ("table", [], "table"),
            ("table", {str(key): "" for key in range(KEYS + 1)}, "table"),
            ("nested", {"name": "", "count": 10}, "nested.count"),
            ("nested", None, "nested"),
            ("free", "x" * (STRING + 1), "free"),
            ("free", {str(key): 0 for key in range(KEYS + 1)}, "free"),
            ("free", [0] * (ITEMS + 1), "free"),
            ("unknown", 1, "unknown"),
        ]
        for key, value, path in rows:
            self.assertEqual(path_of(self, Everything, EVERYTHING_JSON | {key: value}), path, (key, str(value)[:40]))

    def test_a_missing_member_is_named(self) -> None:
        for key in EVERYTHING_JSON:
            if key != "free":
                left = {name: value for name, value in EVERYTHING_JSON.items() if name != key}
                self.assertEqual(path_of(self, Everything, left), key)

    def test_the_whole_is_no_object(self) -> None:
        values: tuple[Any, ...] = (None, [], "x", 3, True)
        for value in values:
            self.assertEqual(path_of(self, Everything, value), "")

    def test_a_long_unknown_name_is_not_repeated_whole(self) -> None:
        self.assertEqual(len(path_of(self, Inner, {"x" * 10_000: 1})), 64)

    def test_too_deep(self) -> None:
        free: Any = 0
        for _ in range(DEPTH + 1):
            free = [free]
        self.assertEqual(path_of(self, Everything, EVERYTHING_JSON | {"free": free}), "free")

    def test_bounds(self) -> None:
        self.assertEqual(from_json(Bounded, {}), Bounded())
        good = {"port": 65535, "ratio": 1, "word": "zz", "key": "A" * 43, "ports": [1, 2, 3], "server_port": 7}
        self.assertEqual(from_json(Bounded, good).serverPort, 7)
        self.assertIs(type(from_json(Bounded, good).ratio), float)
        for key, value, path in [
            ("port", 0, "port"),
            ("port", 65536, "port"),
            ("ratio", 1.01, "ratio"),
            ("word", "a", "word"),
            ("word", "abcde", "word"),
            ("word", "a1", "word"),
            ("word", "ab\n", "word"),
            ("key", "A" * 42, "key"),
            ("key", "AAAA", "key"),
            ("ports", [1, 2, 0], "ports[2]"),
            ("ports", [1, 2, 3, 4], "ports"),
            ("some", [], "some"),
            ("serverPort", 7, "serverPort"),
        ]:
            self.assertEqual(path_of(self, Bounded, {key: value}), path)

    def test_validators_of_the_class(self) -> None:
        self.assertEqual(from_json(Judged, {"size": 3}), Judged(3))
        self.assertEqual(path_of(self, Judged, {"size": 3, "word": "c"}), "word")
        self.assertEqual(path_of(self, Judged, {"size": 3, "odd": 2}), "")
        self.assertEqual(path_of(self, Judged, {"size": 2}), "")

    def test_results_may_have_more_members(self) -> None:
        self.assertEqual(from_result(Inner, {"name": "a", "later": 1}), Inner("a"))
        more = EVERYTHING_JSON | {"later": 1, "nested": {"name": "n", "later": 2}, "several": [{"name": "x", "y": 1}]}
        self.assertEqual(from_result(Everything, more).several, (Inner("x"),))
        with self.assertRaises(ShapeError):
            from_result(Inner, {"name": 3})

    def test_a_secret_is_not_in_repr(self) -> None:
        self.assertNotIn("hunter2", repr(from_json(Bounded, {"hidden": "hunter2"})))


class Back(SynchronousTestCase):
    """From instances to JSON."""

    @given(
        st.builds(
            Everything,
            flag=st.booleans(),
            whole=st.integers(-NUMBER, NUMBER),
            real=st.floats(allow_nan=False, allow_infinity=False),
            text=st.text(max_size=40),
            raw=st.binary(max_size=40),
            word=st.sampled_from(["up", "down", 3]),
            maybe=st.none() | st.integers(-5, 5),
            several=st.lists(st.builds(Inner, name=st.text(max_size=9), count=st.integers(0, 9))).map(tuple),
            table=st.dictionaries(st.text(max_size=9), st.binary(max_size=9)),
            nested=st.builds(Inner, name=st.text(max_size=9)),
            free=st.none() | st.integers(-5, 5) | st.lists(st.text(max_size=3)),
            left_out=st.none() | st.text(max_size=9),
        )
    )
    def test_round_trip(self, value: Everything) -> None:
        self.assertEqual(from_json(Everything, to_json(value)), value)

    def test_none_by_default_is_left_out(self) -> None:
        value = from_json(Everything, EVERYTHING_JSON | {"free": None})
        self.assertNotIn("left_out", to_json(value))
        self.assertNotIn("free", to_json(value))
        self.assertIn("maybe", to_json(value))

    def test_names_on_the_wire(self) -> None:
        self.assertEqual(to_json(Bounded())["server_port"], 0)
        self.assertNotIn("serverPort", to_json(Bounded()))


class Refused(SynchronousTestCase):
    """Types that have no JSON shape are found when a module is added, not when a peer calls."""

    def test_types_without_a_shape(self) -> None:
        for kind in (set, list[int], dict[int, str], tuple[int, int], int | str, Literal[True], object(), Endless):
            with self.assertRaises(TypeError, msg=str(kind)):
                shape_of(kind)

    def test_mutable_defaults(self) -> None:
        defaults: tuple[Any, ...] = ({}, [], set())
        for default in defaults:
            with self.assertRaises(TypeError):
                member(default)


class Described(SynchronousTestCase):
    """JSON Schema."""

    def test_a_class_is_referred_to(self) -> None:
        components = Components()
        self.assertEqual(json_schema(Everything, components), {"$ref": "#/components/schemas/Everything"})
        self.assertEqual(sorted(components.schemas), ["Everything", "Inner"])
        inner = components.schemas["Inner"]
        self.assertEqual(inner["description"], "Something inside.")
        self.assertEqual(inner["required"], ["name"])
        self.assertFalse(inner["additionalProperties"])
        self.assertEqual(inner["properties"]["count"], {"type": "integer", "minimum": 0, "maximum": 9})

    def test_every_type(self) -> None:
        described = object_schema(Everything, Components())["properties"]
        self.assertEqual(described["flag"], {"type": "boolean"})
        self.assertEqual(described["real"], {"type": "number"})
        self.assertEqual(described["word"], {"enum": ["up", "down", 3]})
        self.assertEqual(described["maybe"]["anyOf"][1], {"type": "null"})
        self.assertEqual(described["several"]["items"], {"$ref": "#/components/schemas/Inner"})
        self.assertEqual(described["table"]["additionalProperties"]["contentEncoding"], "base64url")
        self.assertEqual(described["free"], {})
        self.assertEqual(described["raw"]["type"], "string")

    def test_bounds_and_names(self) -> None:
        described = object_schema(Bounded, Components())["properties"]
        self.assertEqual(described["port"]["description"], "a TCP port")
        self.assertEqual((described["ratio"]["minimum"], described["ratio"]["maximum"]), (0, 1))
        self.assertEqual(described["word"]["pattern"], "^(?:[a-z]+)$")
        self.assertEqual((described["word"]["minLength"], described["word"]["maxLength"]), (2, 4))
        self.assertEqual(described["some"]["minItems"], 1)
        self.assertIn("server_port", described)

    def test_two_classes_of_one_name(self) -> None:
        @frozen
        class Inner:
            other: int = 0

        components = Components()
        first = json_schema(Everything, components)
        second = json_schema(Inner, components)
        self.assertNotEqual(second["$ref"], "#/components/schemas/Inner")
        self.assertEqual(first["$ref"], "#/components/schemas/Everything")
        self.assertIn("other", components.schemas[second["$ref"].rpartition("/")[2]]["properties"])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


class AnyNoise(SynchronousTestCase):
    """Whatever value comes, an instance or a ShapeError comes out."""

    @given(JSON_VALUES, st.sampled_from(sorted(EVERYTHING_JSON)))
    def test_any_value_anywhere(self, value: Any, key: str) -> None:
        for candidate in (value, EVERYTHING_JSON | {key: value}):
            try:
                loaded = from_json(Everything, candidate)
            except ShapeError as error:
                self.assertTrue(error.why)
            else:
                self.assertEqual(from_json(Everything, to_json(loaded)), loaded)
