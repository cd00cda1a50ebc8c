"""How a section declares its keys: every field carries its documentation, its check and whether a reload reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import attrs
from attrs import field, frozen

Check = Callable[[Any], str | None]
"""Gives the reason why a value of the right type cannot work, or None."""

_KEY = "layer8"


@frozen
class Option:
    """What is known about one key besides its name, type and default.

    `unit` is the unit of a plain number ("s", "bytes", ...). `hot` keys change on reload, the others need a restart.
    `file` says what a path stands for, so that the loader can look at it: "secret", "read", "write", "socket" or
    "folder" ("" = no path).
    """

    doc: str
    check: Check | None = None
    hot: bool = True
    secret: bool = False
    unit: str = ""
    file: str = ""
    example: str = ""


@frozen
class Key:
    """One field of a section class, ready for the loader: its full type and what its author said about it."""

    name: str
    type: Any
    default: Any
    option: Option
    section: type | None
    repeated: bool
    named: bool = False


def option(
    default: object,
    *,
    doc: str,
    check: Check | None = None,
    hot: bool = True,
    secret: bool = False,
    unit: str = "",
    file: str = "",
    example: str = "",
) -> Any:
    """Declare a key with its default; see `Option` for the words."""
    about = Option(doc, check, hot, secret, unit, file, example)
    return field(default=default, metadata={_KEY: (about, None, "")}, repr=not secret)


def section(kind: type, *, doc: str) -> Any:
    """Declare a table inside a section, for example `[proxy.limits]`."""
    return field(factory=kind, metadata={_KEY: (Option(doc), kind, "")})


def sections(kind: type, *, doc: str) -> Any:
    """Declare an array of tables inside a section, for example `[[proxy.host]]`; empty by default."""
    return field(default=(), metadata={_KEY: (Option(doc), kind, "repeated")})


def named(kind: type, *, doc: str) -> Any:
    """Declare tables that have names, for example `[service.NAME]`: a map from name to section, empty by default."""
    return field(factory=dict, metadata={_KEY: (Option(doc), kind, "named")})


def keys(kind: type) -> Iterator[Key]:
    """Give the keys of a section class, in the order of their declaration."""
    types = get_type_hints(kind)
    defaults = kind()
    for attribute in attrs.fields(kind):
        about, nested, many = attribute.metadata[_KEY]
        default = getattr(defaults, attribute.name)
        yield Key(attribute.name, types[attribute.name], default, about, nested, many == "repeated", many == "named")
