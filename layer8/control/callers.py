"""The rows about who calls: `auth.*` and `token.*`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from attrs import frozen

from layer8.control.access import Caller, reach
from layer8.control.conversation import Conversation
from layer8.control.errors import CallRefused, InvalidParams, NotFound, RateLimited, Unauthenticated
from layer8.control.keyring import Keyring
from layer8.control.shape import member
from layer8.control.table import method

TTL_MOST = 10 * 366 * 86_400
"""Seconds that a named token may live."""


@frozen
class Shown:
    """A token, by the one who has it."""

    token: str = member(secret=True)


@frozen
class Who:
    """A name, and the roles that count on this listener."""

    name: str
    roles: tuple[str, ...]


@frozen
class Add:
    """A token to be made; without `ttl_s` it does not expire, `hosts` are patterns for the role owner."""

    name: str
    roles: tuple[str, ...]
    ttl_s: int | None = member(None, least=1, most=TTL_MOST)
    hosts: tuple[str, ...] = ()


@frozen
class Made:
    """A new token, shown this once."""

    token: str = member(secret=True)


@frozen
class Named:
    """The name of a token."""

    name: str


@frozen
class Entry:
    """What is kept of a token; times are dates, `expires` is empty if it does not."""

    name: str
    roles: tuple[str, ...]
    created: str
    expires: str
    hosts: tuple[str, ...]


class Callers:
    """Who is known here, and how one becomes known."""

    owns = ("auth", "token")

    def __init__(self, keyring: Keyring, conversations: Callable[[], Iterable[Conversation]]) -> None:
        """Take the proofs, and the connections that a revoked token loses."""
        self._keyring = keyring
        self._conversations = conversations

    @method("auth.token", role="public", errors=(Unauthenticated, RateLimited))
    async def token(self, caller: Caller, params: Shown) -> Who:
        """Become the caller that a token names; only where nobody can read along."""
        if not caller.private:
            raise CallRefused("a token is taken only over TLS or on this machine")
        known = self._keyring.by_token(params.token, caller.address)
        if known is None:
            raise Unauthenticated("this token is not known")
        caller.peer.become(known.name, known.roles, known.hosts)
        return _who(known.name, known.roles, caller)

    @method("auth.whoami", role="public")
    async def whoami(self, caller: Caller) -> Who:
        """Say who is calling, as far as this listener lets it count."""
        return _who(caller.name, caller.roles, caller)

    @method("token.add", role="admin")
    async def add(self, caller: Caller, params: Add) -> Made:
        """Make a named token and show it, this once; only where nobody can read along."""
        if not caller.private:
            raise CallRefused("a token is shown only over TLS or on this machine")
        if params.name in self._keyring.tokens:
            raise CallRefused("there is a token of this name already")
        try:
            return Made(self._keyring.add(params.name, frozenset(params.roles), params.ttl_s, params.hosts))
        except ValueError as error:
            raise InvalidParams("", str(error)) from None

    @method("token.list", role="admin")
    async def list(self, caller: Caller) -> tuple[Entry, ...]:
        """List the named tokens, without anything that could be used as one."""
        return tuple(
            Entry(token.name, tuple(sorted(token.roles)), _date(token.created), _date(token.expires), token.hosts)
            for token in self._keyring.tokens
        )

    @method("token.revoke", role="admin", errors=(NotFound,))
    async def revoke(self, caller: Caller, params: Named) -> None:
        """Forget a named token and close the connections that it opened."""
        if not self._keyring.revoke(params.name):
            raise NotFound("token")
        for conversation in self._conversations():
            if conversation.who.name == params.name:
                conversation.close("revoked")


def _who(name: str, roles: frozenset[str], caller: Caller) -> Who:
    return Who(name, tuple(sorted(role for role in roles if role in reach(caller.ceiling))))


def _date(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
