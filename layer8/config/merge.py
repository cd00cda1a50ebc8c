"""Laying the sources over each other, and building the sections from what lies on top."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

from attrs import frozen

from layer8.config import files
from layer8.config.convert import convert, from_text, toml_value
from layer8.config.field import Key, keys
from layer8.config.position import Path as KeyPath
from layer8.config.problem import Origin, Problem, shown
from layer8.core.errors import ConfigError

T = TypeVar("T")

NAME_MOST = 32  # letters of `[service.NAME]`

_PORT = re.compile(r"(tcp6?|tls):PORT(?=:|\Z)")
"""The only placeholder: in `control.listen`, it stands for the port of the daemon that reads the file."""

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*\Z")
_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")


@frozen
class Given:
    """One value of one source; `is_text` if it came as text and has still to be read as its type."""

    value: object
    origin: Origin
    is_text: bool = False


@frozen
class Tables:
    """An array of tables and where its first one stands."""

    items: Sequence[Tree]
    origin: Origin


Tree = dict[str, Union[Given, Tables, "Tree"]]
"""Values by key; a nested dict is a table, and its own place is under the key "" (no TOML key of ours is empty)."""


def tree_of(table: Mapping[str, object], locate: Callable[[KeyPath], Origin], path: KeyPath = ()) -> Tree:
    """Turn a TOML table into a tree that knows where everything stands."""
    tree: Tree = {"": Given(None, locate(path))}
    for name, value in table.items():
        inner = (*path, name)
        if isinstance(value, dict):
            tree[name] = tree_of(value, locate, inner)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            items = [tree_of(item, locate, (*inner, index)) for index, item in enumerate(value)]
            tree[name] = Tables(items, locate((*inner, 0)))
        else:
            tree[name] = Given(value, locate(inner))
    return tree


def _plain(node: Given | Tables | Tree) -> object:
    match node:
        case Given(value=value):
            return value
        case Tables(items=items):
            return [_plain(item) for item in items]
        case _:
            return {name: _plain(inner) for name, inner in node.items() if name or not _is_place(inner)}


def _is_place(node: Given | Tables | Tree) -> bool:
    return isinstance(node, Given) and node.value is None


def insert(tree: Tree, words: Sequence[str], given: Given, problems: list[Problem]) -> None:
    """Lay one value of a stronger source over the tree."""
    for word in words[:-1]:
        inner = tree.setdefault(word, {"": Given(None, given.origin)})
        if not isinstance(inner, dict):
            problems.append(
                Problem(given.origin, ".".join(words), shown(given.value), "it is inside a value, not a table")
            )
            return
        tree = inner
    tree[words[-1]] = given


class Builder:
    """Makes sections out of a tree and gathers every problem on the way."""

    def __init__(self, environ: Mapping[str, str], base: Path, problems: list[Problem], port: int) -> None:
        """Take the folder where relative paths of the file start, the list to add to, and the control port."""
        self.origins: dict[str, Origin] = {}
        self._places: dict[str, Origin] = {}
        self._environ = environ
        self._base = base
        self._problems = problems
        self._port = port

    def build(self, kind: type[T], tree: Tree, prefix: str) -> T:
        """Give the section; what is wrong is in the list of problems, and has its default here."""
        before = len(self._problems)
        known = {key.name: key for key in keys(kind)}
        for name, node in tree.items():
            if name not in known and not (name == "" and _is_place(node)):
                self._unknown(name, node, list(known), prefix)
        values: dict[str, Any] = {}
        for name, key in known.items():
            path = prefix + name
            if key.section is None:
                values[name] = self._value(key, tree.get(name), path)
            elif key.repeated:
                values[name] = self._tables(key.section, tree.get(name), path)
            elif key.named:
                values[name] = self._named(key.section, tree.get(name), path)
            else:
                values[name] = self.build(key.section, self._table(tree.get(name), path), path + ".")
        self._places[prefix] = _place(tree)
        section = kind(**values)
        if len(self._problems) == before and hasattr(section, "conflicts"):
            for name, reason in section.conflicts():
                self._conflict(section, prefix, name, reason)
        return section

    def _unknown(self, name: str, node: Given | Tables | Tree, known: list[str], prefix: str) -> None:
        near = difflib.get_close_matches(name[:64], known, 1, 0.0) or known
        what = "key" if isinstance(node, Given) else "section"
        reason = f"unknown {what}; the nearest known one is {prefix}{near[0]}"
        self._problems.append(Problem(_place(node), prefix + _short(name), "", reason))

    def _structure(self, node: Given | Tables | Tree | None, path: str) -> Given | Tables | Tree | None:
        """Take a table or an array of tables that came as one value, as text or from an option, apart."""
        if not isinstance(node, Given):
            return node
        origin, value = node.origin, node.value
        if node.is_text:
            try:
                value = toml_value(str(value))
            except ConfigError as error:
                self._add(origin, path, value, str(error))
                return None
        if isinstance(value, Mapping):
            return tree_of(value, lambda _: origin)
        if isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
            return Tables([tree_of(item, lambda _: origin) for item in value], origin)
        return Given(value, origin)

    def _table(self, node: Given | Tables | Tree | None, path: str) -> Tree:
        found = self._structure(node, path)
        if isinstance(found, dict):
            return found
        if found is not None:
            self._add(_place(found), path, _plain(found), f"it has to be a table, [{path}]")
        return {}

    def _tables(self, kind: type, node: Given | Tables | Tree | None, path: str) -> tuple[Any, ...]:
        found = self._structure(node, path)
        self.origins[path] = _place(found) if found is not None else Origin("default")
        if isinstance(found, Tables):
            return tuple(self.build(kind, item, f"{path}[{index}].") for index, item in enumerate(found.items))
        if found is not None:
            self._add(_place(found), path, _plain(found), f"it has to be an array of tables, [[{path}]]")
        return ()

    def _named(self, kind: type, node: Given | Tables | Tree | None, path: str) -> dict[str, Any]:
        tables = self._table(node, f"{path}.NAME") if node is not None else {}
        self.origins[path] = _place(tables) if tables else Origin("default")
        found: dict[str, Any] = {}
        for name, inner in tables.items():
            if name == "" and _is_place(inner):
                continue
            if not _NAME.match(name) or len(name) > NAME_MOST:
                reason = f"a name here is made of a to z, 0 to 9 and single - in between, {NAME_MOST} at most"
                self._problems.append(Problem(_place(inner), f"{path}.{_short(name)}", "", reason))
                continue
            table = self._table(inner, f"{path}.{name}")
            if table:
                found[name] = self.build(kind, table, f"{path}.{name}.")
        return found

    def _value(self, key: Key, node: Given | Tables | Tree | None, path: str) -> Any:
        if node is None:
            self.origins[path] = Origin("default")
            return self._named_port(path, key.default)
        self.origins[path] = _place(node)
        try:
            if isinstance(node, Given) and node.is_text:
                value = from_text(str(node.value), key.type)
            else:
                value = convert(_plain(node), key.type)
            value = self._named_port(path, value)
            reason = key.option.check(value) if key.option.check else None
            if reason is None and key.option.file and value not in ("", "-"):
                value, reason = self._file(key, value, _place(node))
        except ConfigError as error:
            reason = str(error)
        if reason is None:
            return value
        self._add(_place(node), path, "(hidden)" if key.option.secret else _plain(node), reason)
        return key.default

    def _file(self, key: Key, value: str, origin: Origin) -> tuple[str, str | None]:
        base = self._base if origin.kind == "file" else Path.cwd()
        path = files.resolve(value, base, self._environ, key.option.file)
        return str(path), files.why_not(path, key.option.file, self._environ)

    def _named_port(self, path: str, value: Any) -> Any:
        if path != "control.listen":
            return value
        return tuple(_PORT.sub(rf"\1:{self._port}", text) for text in value)

    def _conflict(self, section: object, prefix: str, name: str, reason: str) -> None:
        value = section
        for word, index in _STEP.findall(name):
            value = getattr(value, word)
            value = value[int(index)] if index else value
        origin = self.origins[prefix + name]
        if origin.kind == "default":
            table = prefix + name[: name.rfind(".") + 1]
            origin = self._places[table]
        self._add(origin, prefix + name, value, reason)

    def _add(self, origin: Origin, path: str, value: object, reason: str) -> None:
        self._problems.append(Problem(origin, path, shown(value), reason))


def _place(node: Given | Tables | Tree) -> Origin:
    if isinstance(node, Given | Tables):
        return node.origin
    place = node.get("")
    return place.origin if isinstance(place, Given) else Origin("default")


def _short(name: str) -> str:
    """Write a foreign key so that it fits into a line."""
    return shown(name) if len(name) > 40 or not name.isprintable() or not name else name
