"""Dates of HTTP (RFC 9110, section 5.6.7) in the one form that is written today: `Sun, 06 Nov 1994 08:49:37 GMT`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FORM = re.compile(
    rb"(%b), ([0-9]{2}) (%b) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
    % ("|".join(_DAYS).encode(), "|".join(_MONTHS).encode())
).fullmatch


def write(seconds: float) -> bytes:
    """Write seconds since 1970."""
    at = datetime.fromtimestamp(int(seconds), UTC)
    return f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} {at:%H:%M:%S} GMT".encode()


@lru_cache(maxsize=64)
def read(text: bytes) -> int | None:
    """Give seconds since 1970, None for what is no date, or one with another day of the week than it had.

    Pages write whole minutes, so that there are few at any time.
    """
    match = _FORM(text)
    if match is None:
        return None
    day, date, month, *rest = (part.decode() for part in match.groups())
    year, hour, minute, second = map(int, rest)
    try:
        at = datetime(year, _MONTHS.index(month) + 1, int(date), hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return int(at.timestamp()) if _DAYS[at.weekday()] == day else None
