"""Where each key of a TOML text stands, since `tomllib` does not say.

The scanner knows just enough of TOML (https://toml.io/en/v1.0.0) to find keys and table headers in one pass. It reads
before `tomllib` does and refuses nesting that only an attacker writes, because `tomllib` takes quadratic time for it.
Text that is not TOML gives positions that mean nothing; `tomllib` then says what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from layer8.core.errors import ConfigError

DEPTH = 16
"""Most levels of tables, arrays or dotted words."""

Path = tuple[str | int, ...]

_WORD = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\[^\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_LINE_END = re.compile(r"[^\n]*")
_MARK = re.compile(r"\"\"\"|'''|[\"'\[\]{}#\n.,=]")
# Only single characters repeat possessively: Python before 3.11.5 gets possessive groups wrong.
_ENDS = {
    '"""': re.compile(r'[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*"""', re.DOTALL),
    "'''": re.compile(r"[^']*+(?:'(?!'')[^']*+)*'''", re.DOTALL),
    '"': re.compile(r'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*"'),
    "'": re.compile(r"[^'\n]*+'"),
}


def lines(text: str) -> Mapping[Path, int]:
    """Give the line, from 1, of each table and key by its path; raises ConfigError over DEPTH.

    Elements of an array of tables have their index in the path: `("proxy", "host", 0, "target")`.
    """
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    at, line, seen = 0, 1, 0
    while True:
        at = _end(_SPACE, text, at)
        if at >= len(text):
            return found
        line, seen = line + text.count("\n", seen, at), at
        header = len(_BRACKETS.match(text, at).group()) if text[at] == "[" else 0  # type: ignore[union-attr]
        words, at = _words(text, at + header, line)
        if header:
            table = _table(words, counts, array=header == 2)
            found.setdefault(table, line)
            at = _end(_LINE_END, text, at)
        elif words and text[at : at + 1] == "=":
            for size in range(1, len(words) + 1):
                found.setdefault(table + words[:size], line)
            at = _value(text, at + 1, line)
        else:
            at = _end(_LINE_END, text, at)


_BRACKETS = re.compile(r"\[{1,2}")


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _words(text: str, at: int, line: int) -> tuple[tuple[str, ...], int]:
    words: list[str] = []
    while match := _WORD.match(text, at):
        words.append(_plain(match.group(1)))
        at = match.end()
        if len(words) > DEPTH:
            raise ConfigError(f"line {line}: names are nested deeper than {DEPTH}")
        if text[at : at + 1] != ".":
            break
        at += 1
    return tuple(words), at


def _plain(word: str) -> str:
    if word[0] == "'":
        return word[1:-1]
    if word[0] == '"':
        try:
            return str(json.loads(word, strict=False))
        except ValueError:
            return word[1:-1]
    return word


def _table(words: tuple[str, ...], counts: dict[Path, int], *, array: bool) -> Path:
    path: Path = ()
    for depth, word in enumerate(words, 1):
        path = (*path, word)
        if array and depth == len(words):
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = (*path, counts[path] - 1)
    return path


def _value(text: str, at: int, line: int) -> int:
    depth = dots = 0
    while match := _MARK.search(text, at):
        mark, at = match.group(), match.end()
        if mark in _ENDS:
            at = _end(_ENDS[mark], text, at)
        elif mark in "[{":
            depth, dots = depth + 1, 0
        elif mark in "]}":
            depth -= 1
        elif mark == "#":
            at = _end(_LINE_END, text, at)
        elif mark == ".":
            dots += 1
        elif mark == "\n":
            if depth <= 0:
                return at - 1
        else:
            dots = 0
        if depth > DEPTH or dots > DEPTH:
            raise ConfigError(f"line {line}: the value is nested deeper than {DEPTH}")
    return len(text)
