"""What a field of a message says about itself beyond its type: a range, another name on the wire, a sentence."""

from __future__ import annotations

from typing import Any, Final

import attrs
from attrs import NOTHING, frozen

MEMBER: Final = "layer8.member"  # the key of a `Member` in a field's metadata


@frozen
class Bounds:
    """A range for numbers; a length for strings, byte strings and arrays; a pattern that a whole string matches.

    Used as `Annotated[int, Bounds(1, 65535)]` where there is no field to say it beside.
    """

    least: float | None = None
    most: float | None = None
    pattern: str | None = None


@frozen
class Member:
    """The bounds of a field, its name on the wire if that is another one, and what it means."""

    bounds: Bounds = Bounds()
    name: str | None = None
    doc: str = ""


def member(
    default: Any = NOTHING,
    *,
    least: float | None = None,
    most: float | None = None,
    pattern: str | None = None,
    name: str | None = None,
    doc: str = "",
    secret: bool = False,
) -> Any:
    """Declare an attrs field with bounds, a wire name of its own, or a sentence; `secret` keeps it out of `repr`."""
    if isinstance(default, dict | list | set):
        raise TypeError("a default must be immutable")
    said = Member(Bounds(least, most, pattern), name, doc)
    return attrs.field(default=default, metadata={MEMBER: said}, repr=not secret)
