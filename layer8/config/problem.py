"""What is wrong with a configuration, said so that it can be put right."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from layer8.core.errors import ConfigError

_SHOWN = 60


@frozen
class Origin:
    """Which source won, and where in it: `layer8.toml:12`, `LAYER8_PROXY__HTTP`, `--http`; empty for a default."""

    kind: str
    where: str = ""


@frozen
class Problem:
    """One thing to put right; `key` is dotted, `value` already fit to be shown."""

    origin: Origin
    key: str
    value: str
    reason: str

    def __str__(self) -> str:
        """Say it on one line."""
        parts = [self.origin.where, f"{self.key} = {self.value}" if self.value else self.key, self.reason]
        return ": ".join(part for part in parts if part)


class ConfigProblems(ConfigError):
    """Everything that is wrong, in one go; one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Keep the problems as `problems`."""
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def shown(value: object) -> str:
    """Give a short, printable form of any value."""
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, list | tuple):
        return _cut("[" + ", ".join(shown(item) for item in value[:4]) + (", ..." if len(value) > 4 else "") + "]")
    if isinstance(value, int) and not -(1 << 64) < value < 1 << 64:
        return "(a very long number)"
    return _cut(repr(value[: _SHOWN + 1] if isinstance(value, str) else value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
