"""From what TOML, the environment or an option gives to the type that a section declares."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from layer8.core.errors import ConfigError

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
    datetime: "a date",
    date: "a date",
    time: "a time of day",
    NoneType: "nothing",
}
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def convert(value: Any, kind: Any) -> Any:
    """Give `value` as `kind`; raises ConfigError with what it has to be.

    A list of texts is also accepted as one text, and "" is the empty list.
    """
    if get_origin(kind) is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise ConfigError(f"it has to be one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        return _list(value, get_args(kind)[0])
    if get_origin(kind) is Mapping:
        return _map(value, *get_args(kind))
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"it has to be {_WORDS[kind]}, not {_WORDS.get(type(value), type(value).__name__)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError("it has to be a finite number")
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError("it is too large for a number")
    if kind is str:
        _check_text(value)
    return value


def _check_text(value: str) -> None:
    if "\0" in value:
        raise ConfigError("there is a NUL in it")
    if any(letter < " " or letter == "\x7f" for letter in value):
        raise ConfigError("there is a control character in it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError("it is not valid Unicode") from None


def _list(value: object, kind: Any) -> tuple[Any, ...]:
    if isinstance(value, str) and kind is str:
        value = [value] if value else []
    if not isinstance(value, list | tuple):
        raise ConfigError(f"it has to be a list, not {_WORDS.get(type(value), type(value).__name__)}")
    items = []
    for index, item in enumerate(value):
        try:
            items.append(convert(item, kind))
        except ConfigError as error:
            raise ConfigError(f"item {index + 1}: {error}") from None
        if item == "":
            raise ConfigError(f"item {index + 1} is empty")
    return tuple(items)


def _map(value: object, key_kind: Any, kind: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"it has to be a table, not {_WORDS.get(type(value), type(value).__name__)}")
    items = {}
    for name, item in value.items():
        key = name
        if key_kind is int:
            if not (isinstance(name, int) or (name.isascii() and name.isdigit() and len(name) < 10)):
                raise ConfigError(f"{name!r} has to be a number")
            key = int(name)
        try:
            items[key] = convert(item, kind)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    return items


def from_text(text: str, kind: Any) -> Any:
    """Read a value from the environment or an option, where everything is text, and give it as `kind`.

    Lists may be written as one item or as a TOML array, tables as a TOML inline table. Raises ConfigError.
    """
    structured = get_origin(kind) in (tuple, Mapping)
    if structured and text.lstrip().startswith(("[", "{")):
        return convert(toml_value(text), kind)
    if get_origin(kind) is tuple and get_args(kind)[0] is int:
        return convert([from_text(item.strip(), int) for item in text.split(",")], kind)
    if kind is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise ConfigError("it has to be true or false")
        return text.lower() in _TRUE
    if kind in (int, float):
        try:
            return convert(kind(text), kind)
        except ValueError:
            raise ConfigError(f"it has to be {_WORDS[kind]}") from None
    return convert(text, kind)


def toml_value(text: str) -> object:
    """Read one TOML value of at most 64 KiB; raises ConfigError."""
    from layer8.config import position

    if len(text) > 65536 or "\n" in text:
        raise ConfigError("it has to be one line of TOML")
    document = f"value = {text}\n"
    try:
        position.lines(document)
        return tomllib.loads(document)["value"]
    except (ValueError, RecursionError):
        raise ConfigError("it is no TOML value") from None


def render(value: object) -> str:
    """Write a value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escape(letter) for letter in value) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(render(item) for item in value) + "]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{render(str(name))} = {render(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return repr(value)


def _escape(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 65536 else f"\\U{ord(letter):08x}"
