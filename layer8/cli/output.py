"""What a command prints: for people on a terminal, as one JSON document for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_json(value: object) -> None:
    """Print a value as one JSON document."""
    click.echo(json.dumps(value, indent=None if not sys.stdout.isatty() else 2, default=str))


def coloured() -> bool:
    """Tell whether colour is wanted: a terminal, and no NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in left-aligned columns, two spaces apart."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def printable(text: str) -> str:
    """Escape what a terminal would obey instead of show."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
