"""One page of a list: as many rows as were asked for and as fit into one message of the smallest listener."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, TypeVar

from layer8.control.shape import to_json

PAGE_BYTES: Final = 12 * 1024  # of rows as JSON; the agent listener's messages have 16 KiB

T = TypeVar("T")


def fit(rows: Iterable[tuple[str, T]], limit: int) -> tuple[tuple[T, ...], str | None]:
    """Give the rows of one page, and the cursor after the last of them if there are more.

    `rows` are what follows the cursor that was asked for, in order, each with its own place.
    """
    page: list[T] = []
    size = 0
    last: str | None = None
    for place, row in rows:
        size += len(json.dumps(to_json(row))) + 1
        if page and (len(page) == limit or size > PAGE_BYTES):
            return tuple(page), last
        page.append(row)
        last = place
    return tuple(page), None
