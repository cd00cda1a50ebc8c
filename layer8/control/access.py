"""Who may call what: roles and their ladder, the caller of one connection, what a method may do with its peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

from attrs import evolve, field, frozen

LADDER: Final = ("public", "read", "operate", "admin")  # each may do all that those before it may
BESIDE: Final = ("agent", "owner", "node", "provider")  # their own rows only
ROLES: Final = frozenset(LADDER + BESIDE)
EVERYTHING: Final = ROLES  # the ceiling of a listener that stops nobody


@lru_cache(maxsize=256)
def reach(roles: frozenset[str]) -> frozenset[str]:
    """Give all roles that holders of `roles` may act in: the ladder downwards, `public` always."""
    highest = max((LADDER.index(role) for role in roles if role in LADDER), default=0)
    return frozenset(LADDER[: highest + 1]) | (roles & frozenset(BESIDE))


@lru_cache(maxsize=1024)
def effective(roles: frozenset[str], ceiling: frozenset[str]) -> frozenset[str]:
    """Give what is left of `roles` on a listener with this ceiling."""
    return reach(roles) & reach(ceiling)


class Peer(Protocol):
    """What a method may do with the connection that called it."""

    slots: dict[str, object]
    """What a module keeps per connection, under its own namespace word."""

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Send a notification; False, and nothing sent, when the write buffer is full."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection is gone, at once if it is gone already."""

    def grant(self, role: str) -> None:
        """Give the connection one more role; the listener's ceiling still stands over it."""

    def become(self, name: str, roles: frozenset[str], hosts: tuple[str, ...]) -> None:
        """Make the connection that of a named caller whose proof was right."""

    def close(self, reason: str) -> None:
        """End the connection after what was sent has left; `reason` is for the log."""


@frozen
class Caller:
    """Who calls, as it stands when the call starts.

    `roles` is what the proof gave, before the listener's `ceiling`. `private` says that nobody on the way can read
    along (TLS, or this machine). `hosts` are the host patterns of an owner token. `address` is None on Unix sockets.
    """

    name: str
    roles: frozenset[str]
    ceiling: frozenset[str]
    private: bool
    address: str | None
    hosts: tuple[str, ...]
    peer: Peer = field(repr=False)

    def may(self, role: str) -> bool:
        """Say whether the caller may act in `role` here."""
        return role in effective(self.roles, self.ceiling)

    def with_role(self, role: str) -> Caller:
        """Give the same caller with one more role."""
        return evolve(self, roles=self.roles | {role})
