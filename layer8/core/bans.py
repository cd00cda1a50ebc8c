"""Sources that guess: so many failures a minute, then a ban that doubles each time, from a minute to an hour."""

from __future__ import annotations

from typing import Final

from attrs import define

FAILS: Final = 20  # per WINDOW and source
WINDOW: Final = 60.0  # seconds
FIRST_BAN: Final = 60.0  # seconds; each further one twice as long
LONGEST_BAN: Final = 3600.0  # also how long a clean source is remembered
SOURCES: Final = 10_000  # remembered at once; the one that failed longest ago is forgotten first


@define(eq=False)
class _Record:
    since: float
    fails: int
    next_ban: float
    until: float


class Bans:
    """Failures per source (an address, or its network, as the owner names it), on the owner's monotonic clock."""

    def __init__(self, fails: int = FAILS) -> None:
        """Allow `fails` failures per minute and source; the one that reaches it bans."""
        self._allowed = fails
        self._records: dict[str, _Record] = {}

    def __len__(self) -> int:
        """Count the sources that are remembered."""
        return len(self._records)

    def failed(self, source: str, now: float) -> bool:
        """Count a failure; True when the source is banned from now on."""
        record = self._records.pop(source, None)
        if record is None or (now >= record.until + LONGEST_BAN and now >= record.since + LONGEST_BAN):
            record = _Record(now, 0, FIRST_BAN, now)
        self._records[source] = record
        if len(self._records) > SOURCES:
            del self._records[next(iter(self._records))]
        if now >= record.since + WINDOW:
            record.since, record.fails = now, 0
        record.fails += 1
        if record.fails < self._allowed:
            return False
        record.fails = 0
        record.until = now + record.next_ban
        record.next_ban = min(record.next_ban * 2, LONGEST_BAN)
        return True

    def banned(self, source: str, now: float) -> float:
        """Give the seconds that a ban still lasts, 0.0 for who is not banned."""
        record = self._records.get(source)
        return 0.0 if record is None else max(0.0, record.until - now)

    def pardon(self, source: str) -> None:
        """Forget a source."""
        self._records.pop(source, None)
