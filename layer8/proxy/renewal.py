"""When certificates are asked for: at two thirds of the old one's life, and after failures more and more rarely.

The waits keep every host and the whole server far below what public authorities allow (Let's Encrypt: 5 failed
validations of a host an hour, 300 orders in 3 hours, 5 certificates for the same names a week), whatever fails and
however often the process starts again: a try is written down before it is made. Times are seconds since 1970, because
they outlive the process; `chance` is a number from 0 to below 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any, Final

from attrs import define, field, frozen

LIFE_USED: Final = 2 / 3  # of a certificate's life, when another one is asked for
LIFE_SPREAD: Final = 0.05  # of its life, by which that may be sooner: what came in one hour does not end in one hour
HOST_FIRST: Final = 900.0  # seconds after the first failure of a host; each further wait is twice as long
HOST_LONGEST: Final = 86_400.0  # no wait of a host is longer, but for what follows
HOST_LIMITED: Final = 86_400.0  # seconds for a host for which the authority found that we ask too often
HOST_LOST: Final = 2 * 86_400.0  # seconds after a certificate that was issued and could not be kept
AUTHORITY_FIRST: Final = 60.0  # seconds after the authority itself could not be used; doubled each time
AUTHORITY_LONGEST: Final = 3_600.0
AUTHORITY_LIMITED: Final = 900.0  # seconds of silence after that; the limit may be one of that host's own domain
ORDERS_AT_ONCE: Final = 20  # orders that a server which has been quiet may make one after the other
OWNERS_AFRESH: Final = 86_400.0  # seconds after which it is forgotten how much was ordered for whom
ORDER_EVERY: Final = 60.0  # seconds for one more
SPREAD: Final = 0.25  # of a wait, added by chance


def renew_at(since: float, until: float, chance: float) -> float:
    """Give when a certificate that is good from `since` to `until` is to be replaced."""
    return since + (until - since) * (LIFE_USED - LIFE_SPREAD * chance)


def wait(failures: int, first: float, longest: float, chance: float) -> float:
    """Give the seconds to wait after so many failures in a row."""
    return min(longest, first * 2.0 ** min(failures - 1, 32)) * (1 + SPREAD * chance)


@frozen
class Tries:
    """What is known of one host's failures: how many in a row, and when it may be tried again."""

    failures: int = 0
    again: float = 0.0

    def begun(self, now: float, chance: float) -> Tries:
        """Count a try before it is made, as a failure: whoever dies in it has failed."""
        return self.failed(now + wait(self.failures + 1, HOST_FIRST, HOST_LONGEST, chance))

    def failed(self, again: float) -> Tries:
        """Count a failure."""
        return Tries(self.failures + 1, again)


NEVER: Final = Tries()


@define(eq=False)
class Patience:
    """All tries of one server; `orders` is what may be ordered at once, `owners` counts orders by the hosts' owners."""

    hosts: dict[str, Tries] = field(factory=dict)
    quiet_until: float = 0.0
    silences: int = 0
    orders: float = float(ORDERS_AT_ONCE)
    owners: Counter[str] = field(factory=Counter)
    _counted: float | None = None
    _day: float = 0.0

    def turn(self, owner: str) -> int:
        """Give how soon it is an owner's turn, least first: one who has a thousand hosts delays nobody else."""
        return self.owners[owner]

    def may(self, host: str, now: float) -> bool:
        """Say whether a host may be tried now."""
        return now >= self.hosts.get(host, NEVER).again

    def ready(self, now: float) -> bool:
        """Say whether anything may be ordered now."""
        if abs(now - self._day) > OWNERS_AFRESH:
            self.owners.clear()
            self._day = now
        earned = 0.0 if self._counted is None else max(0.0, now - self._counted) / ORDER_EVERY
        self.orders, self._counted = min(float(ORDERS_AT_ONCE), self.orders + earned), now
        return now >= self.quiet_until and self.orders >= 1

    def begin(self, host: str, now: float, chance: float, owner: str = "") -> Tries:
        """Count an order; gives what was known before it."""
        self.owners[owner] += 1
        before = self.hosts.get(host, NEVER)
        self.orders -= 1
        self.hosts[host] = before.begun(now, chance)
        return before

    def done(self, host: str) -> None:
        """Take that a host has its certificate."""
        self.hosts.pop(host, None)
        self.silences = 0

    def lost(self, host: str, now: float) -> None:
        """Take that a certificate was issued for nothing."""
        self.hosts[host] = Tries(self.hosts.get(host, NEVER).failures, now + HOST_LOST)

    def silent(self, host: str, before: Tries, now: float, chance: float) -> None:
        """Take that the authority could not be asked: the host is not to blame."""
        self.hosts[host] = before
        if not before.failures:
            del self.hosts[host]
        self.silences += 1
        self.quiet_until = now + wait(self.silences, AUTHORITY_FIRST, AUTHORITY_LONGEST, chance)

    def limited(self, host: str, now: float) -> None:
        """Take that the authority found us too busy when we asked for a host."""
        self.hosts[host] = Tries(self.hosts.get(host, NEVER).failures, now + HOST_LIMITED)
        self.quiet_until = max(self.quiet_until, now + AUTHORITY_LIMITED)

    def keep(self, hosts: Container[str], now: float) -> None:
        """Forget hosts that nobody wants any more, once their wait is over."""
        for host in [host for host, tries in self.hosts.items() if host not in hosts and now >= tries.again]:
            del self.hosts[host]

    def record(self) -> dict[str, Any]:
        """Give what is to be written down."""
        return {
            "quiet_until": self.quiet_until,
            "hosts": {host: [tries.failures, tries.again] for host, tries in sorted(self.hosts.items())},
        }

    @classmethod
    def of(cls, record: object, now: float) -> Patience:
        """Read a record; what cannot be understood is left out, and no wait reaches further than ours do.

        The wall clock may have been wrong when it was written.
        """
        known: Mapping[Any, Any] = record if isinstance(record, dict) else {}
        hosts = known.get("hosts")
        made = cls()
        quiet = known.get("quiet_until")
        if isinstance(quiet, int | float):
            made.quiet_until = min(float(quiet), now + AUTHORITY_LIMITED)
        for host, pair in hosts.items() if isinstance(hosts, dict) else ():
            match host, pair:
                case str(), [int() as failures, (int() | float()) as again] if failures >= 0:
                    made.hosts[host] = Tries(failures, min(float(again), now + HOST_LOST * (1 + SPREAD)))
        return made
