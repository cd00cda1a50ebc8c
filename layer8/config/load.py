"""Reading the configuration: options win over the environment, that over the file, that over the defaults.

Everything is checked here, before anything listens, and all problems come at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import attrs
from attrs import frozen

from layer8.config import files, position
from layer8.config.field import keys
from layer8.config.home import CONFIG_NAME, config_paths
from layer8.config.merge import Builder, Given, Tree, insert, tree_of
from layer8.config.problem import ConfigProblems, Origin, Problem
from layer8.config.sections import ROLE_PORTS
from layer8.config.tree import Config
from layer8.core.errors import ConfigError

__all__ = ["Changes", "ConfigProblems", "Loaded", "as_options", "diff", "load", "load_text", "show"]

_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_ENVIRONMENT = re.compile(r"LAYER8_([A-Z0-9_]*__[A-Z0-9_]*)\Z")


@frozen
class Loaded:
    """A checked configuration, where each value came from, and the file that was read, if any."""

    config: Config
    origins: Mapping[str, Origin]
    path: Path | None


@frozen
class Changes:
    """Dotted keys whose values differ; those in `restart_needed` do not change while the daemon runs."""

    changed: tuple[str, ...]
    restart_needed: tuple[str, ...]


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, object], *, role: str = "node") -> Loaded:
    """Read the file at `path`, else the first of `config_paths` that exists, and merge the other sources.

    `options` maps dotted keys to text, as typed, or to values as TOML would give them. `role` is the daemon's name:
    it decides what PORT means in `control.listen`. Raises ConfigProblems.
    """
    if path is None:
        path = next((place for place in config_paths(environ) if place.exists()), None)
        if path is None:
            return load_text("", environ, options, role=role)
    try:
        data = files.read_config(path)
    except ConfigError as error:
        raise ConfigProblems([Problem(Origin("file", str(path)), "", "", str(error))]) from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigProblems([Problem(Origin("file", f"{path}:{line}"), "", "", "it is not UTF-8 text")]) from None
    return load_text(text, environ, options, role=role, path=path)


def load_text(
    text: str,
    environ: Mapping[str, str],
    options: Mapping[str, object],
    *,
    role: str = "node",
    path: Path | None = None,
) -> Loaded:
    """Do the same with a text; `path` names it and is where relative paths start. Raises ConfigProblems."""
    name = str(path or CONFIG_NAME)
    problems: list[Problem] = []
    tree = _parse(text, name, problems)
    for variable, value in environ.items():
        if match := _ENVIRONMENT.match(variable):
            words = match.group(1).lower().split("__")
            insert(tree, words, Given(value, Origin("environment", variable), is_text=True), problems)
    for key, option in options.items():
        flag = "--" + key.rpartition(".")[2].replace("_", "-")
        given = Given(option, Origin("option", flag), is_text=isinstance(option, str))
        insert(tree, key.split("."), given, problems)
    builder = Builder(environ, (path.parent if path else Path.cwd()), problems, ROLE_PORTS[role])
    config = builder.build(Config, tree, "")
    if problems:
        raise ConfigProblems(problems)
    return Loaded(config, builder.origins, path)


def _parse(text: str, name: str, problems: list[Problem]) -> Tree:
    if len(text) > files.CONFIG_FILE:
        problems.append(Problem(Origin("file", name), "", "", f"it is larger than {files.CONFIG_FILE} bytes"))
        return {}
    text = text.replace("\r\n", "\n")
    try:
        lines = position.lines(text)
        document = tomllib.loads(text)
    except (ValueError, RecursionError, ConfigError) as error:
        reason = str(error)
        where = name
        if match := _LINE.search(reason):
            where = f"{name}:{match.group(1) or text.count(chr(10)) + 1}"
            reason = reason[: match.start()]
        elif match := re.match(r"line (\d+): ", reason):
            where = f"{name}:{match.group(1)}"
            reason = reason[match.end() :]
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else reason
        problems.append(Problem(Origin("file", where), "", "", _printable(reason)))
        return {}

    def locate(path: position.Path) -> Origin:
        while path:
            if line := lines.get(path):
                return Origin("file", f"{name}:{line}")
            path = path[:-1]
        return Origin("file", name)

    return tree_of(document, locate)


def _printable(reason: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in reason)[:200]


def show(loaded: Loaded) -> dict[str, dict[str, object]]:
    """Give every key with its value and origin; values of secret keys are hidden (file names are not)."""
    rows: dict[str, dict[str, object]] = {}
    for key, value, secret in _flat(loaded.config, ""):
        origin = loaded.origins.get(key, Origin("default"))
        rows[key] = {"value": "(hidden)" if secret and value else value, "origin": origin.kind, "where": origin.where}
    return rows


def _flat(section: object, prefix: str) -> list[tuple[str, object, bool]]:
    rows: list[tuple[str, object, bool]] = []
    for key in keys(type(section)):
        value = getattr(section, key.name)
        if key.section is None:
            plain = list(value) if isinstance(value, tuple) else value
            plain = {str(name): item for name, item in plain.items()} if isinstance(plain, Mapping) else plain
            rows.append((prefix + key.name, plain, key.option.secret))
        elif key.repeated:
            for index, item in enumerate(value):
                rows += _flat(item, f"{prefix}{key.name}[{index}].")
        elif key.named:
            for name, item in value.items():
                rows += _flat(item, f"{prefix}{key.name}.{name}.")
        else:
            rows += _flat(value, f"{prefix}{key.name}.")
    return rows


def as_options(section: object, prefix: str = "") -> dict[str, object]:
    """Give the options with which `load_text` makes the same configuration of nothing: JSON values by dotted key."""
    options: dict[str, object] = {}
    for key in keys(type(section)):
        value, path = getattr(section, key.name), prefix + key.name
        if value == key.default:
            continue
        if key.repeated:
            options[path] = [_as_table(item) for item in value]
        elif key.named:
            options[path] = {name: _as_table(item) for name, item in value.items()}
        elif key.section is not None:
            options |= as_options(value, path + ".")
        else:
            options[path] = _as_value(value)
    return options


def _as_table(section: object) -> dict[str, object]:
    table: dict[str, object] = {}
    for key in keys(type(section)):
        value = getattr(section, key.name)
        if value != key.default:
            table[key.name] = _as_value(value)
    return table


def _as_value(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def diff(old: Config, new: Config) -> Changes:
    """Compare two configurations key by key; an array of tables counts as one key, and so do tables with names."""
    changed: list[str] = []
    restart: list[str] = []
    _compare(old, new, "", changed, restart)
    return Changes(tuple(changed), tuple(restart))


def _compare(old: object, new: object, prefix: str, changed: list[str], restart: list[str]) -> None:
    for key in keys(type(old)):
        before, after = getattr(old, key.name), getattr(new, key.name)
        if before == after:
            continue
        if attrs.has(type(before)):
            _compare(before, after, f"{prefix}{key.name}.", changed, restart)
            continue
        changed.append(prefix + key.name)
        if not key.option.hot:
            restart.append(prefix + key.name)
