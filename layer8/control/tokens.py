"""Named tokens: what `tokens.toml` holds, and the check of a token that somebody shows.

The file holds no token, only SHA-256 of each (256 random bits need no slow hash)::

    [[token]]
    name = "ops"
    sha256 = "64 hex digits"
    roles = ["operate"]
    hosts = []                          # host patterns of an owner
    created = 2026-11-20T10:00:00Z
    expires = 2027-11-20T10:00:00Z      # or left out
"""

from __future__ import annotations

import json
import re
import tomllib
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final

from attrs import field, frozen

from layer8.control.access import ROLES
from layer8.core.errors import ConfigError

SECRET_SIZE: Final = 32  # random bytes of a token, 43 characters
TEXT_SIZE: Final = 256  # characters of a token that is looked at
TOKENS: Final = 10_000
HOSTS: Final = 256  # patterns of one token
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[!-~]{1,253}")
_KEYS: Final = frozenset({"name", "sha256", "roles", "hosts", "created", "expires"})


@frozen
class Token:
    """What is kept of a token; times are whole seconds since 1970."""

    name: str
    digest: bytes = field(repr=False)
    roles: frozenset[str]
    created: int
    expires: int | None = None
    hosts: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse what could not have been made here; the text of the ValueError says what."""
        if _NAME.fullmatch(self.name) is None:
            raise ValueError("a name is 1 to 64 letters, digits, dots, dashes and underscores")
        if len(self.digest) != 32:
            raise ValueError("sha256 is 64 hex digits")
        if not self.roles or not self.roles <= ROLES:
            raise ValueError(f"roles are some of {', '.join(sorted(ROLES))}")
        if self.hosts and "owner" not in self.roles:
            raise ValueError("only the role owner has hosts")
        if len(self.hosts) > HOSTS or any(_HOST.fullmatch(host) is None for host in self.hosts):
            raise ValueError(f"at most {HOSTS} hosts, each 1 to 253 printable ASCII characters")


def digest_of(text: str) -> bytes:
    """Give what is stored of a token; one that is too long to be one is hashed as if it were empty."""
    return sha256(text.encode("utf-8", "surrogatepass") if len(text) <= TEXT_SIZE else b"").digest()


def token_text(secret: bytes) -> str:
    """Give the text of a new token from SECRET_SIZE random bytes; shown once, never stored."""
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"{SECRET_SIZE} random bytes are wanted")
    return urlsafe_b64encode(secret).rstrip(b"=").decode("ascii")


class Tokens:
    """A set of tokens, never changed: adding or removing one gives another set."""

    def __init__(self, entries: Iterable[Token] = ()) -> None:
        """Take the tokens; ValueError for two of one name, for two alike, or for too many."""
        self._by_name: dict[str, Token] = {}
        self._by_digest: dict[bytes, Token] = {}
        for token in entries:
            if token.name in self._by_name:
                raise ValueError(f"there is a token {token.name} already")
            if token.digest[:8] in self._by_digest:
                raise ValueError(f"the token {token.name} is not its own")
            self._by_name[token.name] = token
            self._by_digest[token.digest[:8]] = token
        if len(self._by_name) > TOKENS:
            raise ValueError(f"more than {TOKENS} tokens")

    def __len__(self) -> int:
        """Count the tokens, expired ones too."""
        return len(self._by_name)

    def __iter__(self) -> Iterator[Token]:
        """Give the tokens in the order in which they were made."""
        return iter(self._by_name.values())

    def __contains__(self, name: object) -> bool:
        """Say whether there is a token of this name."""
        return name in self._by_name

    def check(self, text: str, wall: float) -> Token | None:
        """Find the token that was shown, None if it is none or has expired by `wall` (seconds since 1970).

        An unknown token costs the same work: it is compared with a stand-in, in constant time.
        """
        shown = digest_of(text)
        token = self._by_digest.get(shown[:8], _STAND_IN)
        same = compare_digest(token.digest, shown)
        alive = token.expires is None or wall < token.expires
        return token if same and alive and token is not _STAND_IN else None

    def with_token(self, token: Token) -> Tokens:
        """Give a set that has one token more; ValueError if its name is taken."""
        return Tokens((*self, token))

    def without(self, name: str) -> Tokens:
        """Give a set that lacks the token of this name; the same if there is none."""
        return Tokens(token for token in self if token.name != name)


_STAND_IN: Final = Token("nobody", bytes(32), frozenset({"public"}), 0)


def parse_tokens(text: str) -> Tokens:
    """Read `tokens.toml`; ConfigError with all that is wrong, a line each."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    except RecursionError:
        raise ConfigError("nested too deep") from None
    problems = [f"unknown key {key}" for key in tree if key != "token"]
    entries = tree.get("token", [])
    if not isinstance(entries, list):
        raise ConfigError("tokens are written as [[token]]")
    tokens = []
    for place, entry in enumerate(entries, 1):
        try:
            tokens.append(_token(entry))
        except ValueError as error:
            problems.append(f"token {place}: {error}")
    try:
        found = Tokens(tokens)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _token(entry: Any) -> Token:
    if not isinstance(entry, dict):
        raise ValueError("a table is wanted")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]}")
    name, digest = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not isinstance(digest, str):
        raise ValueError("name and sha256 are wanted")
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ValueError("sha256 is 64 hex digits")
    return Token(
        name=name,
        digest=bytes.fromhex(digest),
        roles=frozenset(_texts(entry.get("roles"), "roles")),
        created=_seconds(entry.get("created"), "created"),
        expires=_seconds(entry["expires"], "expires") if "expires" in entry else None,
        hosts=_texts(entry.get("hosts", []), "hosts"),
    )


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{key} is a list of strings")
    return tuple(value)


def _seconds(value: Any, key: str) -> int:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{key} is a date and time with its offset, such as 2026-11-20T10:00:00Z")
    return int(value.timestamp())


def dump_tokens(tokens: Tokens) -> str:
    """Write `tokens.toml`."""
    return "\n".join(_dump(token) for token in tokens)


def _dump(token: Token) -> str:
    lines = [
        "[[token]]",
        f'name = "{token.name}"',
        f'sha256 = "{token.digest.hex()}"',
        f"roles = {json.dumps(sorted(token.roles))}",
        f"created = {_date(token.created)}",
    ]
    if token.hosts:
        lines.append(f"hosts = {json.dumps(token.hosts)}")
    if token.expires is not None:
        lines.append(f"expires = {_date(token.expires)}")
    return "\n".join(lines) + "\n"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
