"""What `layer8 proxy register` and `update` say of a host's policy: who may visit, how much, and who learns of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([kMG]?)B?(?:/s)?\Z")
_UNITS: Final = {"": 1, "k": 1000, "M": 1000_000, "G": 1000_000_000}

KEYS: Final = ("allow", "deny", "max_conns", "rate", "bandwidth", "visitor", "tls", "users")
"""The members of a policy that have an option."""


class Size(click.ParamType[int]):
    """Bytes per second, such as 200k or 1.5M; a k is 1000."""

    name = "bytes/s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one."""
        if isinstance(value, int):
            return value
        match = _SIZE.match(value)
        if match is None:
            self.fail(f"{value!r} is not a number of bytes per second such as 200k or 1.5M", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


def policy_options(command: F) -> F:
    """Add the options that say what a host's policy is; `policy_of` takes what they gave."""
    for option in (
        click.option("--user", "users", multiple=True, metavar="NAME", help="Let only this user in, by a password."),
        click.option("--tls", type=click.Choice(["passthrough", "terminate"]), help="Who ends TLS: target or server."),
        click.option(
            "--visitor", type=click.Choice(["none", "full"]), help="Whether agents learn visitors' addresses."
        ),
        click.option(
            "--bandwidth", type=Size(), help="Bytes per second both ways, such as 200k; 0: the server decides."
        ),
        click.option(
            "--rate", type=click.FloatRange(0, 1e6), help="New connections per second; 0: the server decides."
        ),
        click.option(
            "--max-conns", type=click.IntRange(0, 10_000_000), help="Open connections; 0: the server decides."
        ),
        click.option("--deny", multiple=True, metavar="CIDR", help="Networks that may not visit; repeatable."),
        click.option("--allow", multiple=True, metavar="CIDR", help="Networks that alone may visit; repeatable."),
    ):
        command = option(command)
    return command


def policy_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """Give the members of a policy that were said; one empty text in a list means an empty list."""
    found: dict[str, Any] = {}
    for key in KEYS:
        value = said[key]
        if value is None or value == ():
            continue
        if isinstance(value, tuple):
            value = [_user(one) if key == "users" else one for one in value if one]
        found[key] = value
    return found


def _user(text: str) -> str:
    """Give the line of a user: as it is if it holds a hash already, else with that of a password that is asked for."""
    name, colon, rest = text.partition(":")
    if not name or (colon and not rest):
        raise click.UsageError(f"--user {text!r}: write a name")
    if colon:
        return text
    from layer8.crypto.password import hashed

    return f"{name}:{hashed(click.prompt(f'password of {name}', hide_input=True, confirmation_prompt=True, err=True))}"


def shown(policy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give what a policy says beyond nothing, for people; of users only the names."""
    lines = []
    for key in KEYS:
        value = policy.get(key)
        if not value or value in ("none", "passthrough"):
            continue
        if key == "users":
            text = ", ".join(str(line).partition(":")[0] for line in value)
        else:
            text = (
                ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if key == "rate" else str(value)
            )
        lines.append((key, text))
    return lines
