"""The file that `layer8 init` writes: every key with its documentation and default, commented out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from layer8.config.convert import render
from layer8.config.field import Key, keys
from layer8.config.tree import Config

_HEAD = """\
# layer8 configuration: one file for all daemons of this machine. Every key is shown with its default.
# Stronger than this file: the environment (LAYER8_PROXY__HTTP=...), and stronger still: options (--http ...).
# Secrets stand in files of their own, readable only by their user; a plain name also finds a systemd credential.
"""
_WIDTH = 110


def template() -> str:
    """Give the text; as it is, it changes nothing."""
    return _HEAD + "".join(_lines(Config, ""))


def _lines(kind: type, prefix: str) -> Iterator[str]:
    for key in keys(kind):
        if key.section is None:
            yield from _key(key, "#")
    for key in keys(kind):
        if key.section is None:
            continue
        path = prefix + key.name
        yield "\n" + _comment(key.option.doc)
        if key.repeated or key.named:
            assert key.section is not None
            yield f"#[[{path}]]\n" if key.repeated else f"#[{path}.NAME]\n"
            for inner in keys(key.section):
                yield from _key(inner, "#")
        else:
            yield f"[{path}]\n"
            yield from _lines(key.section, path + ".")


def _key(key: Key, mark: str) -> Iterator[str]:
    words = [key.option.doc]
    if get_origin(key.type) is Literal:
        words.append(f"One of {', '.join(get_args(key.type))}.")
    if key.option.unit:
        words.append(f"Unit: {key.option.unit}.")
    if key.option.example:
        shown = key.option.example if key.option.example.startswith("{") else render(key.option.example)
        words.append(f"Example: {shown}.")
    if not key.option.hot:
        words.append("Takes a restart.")
    yield _comment(" ".join(words))
    default = key.default
    if isinstance(default, tuple) and len(default) == 1:
        default = default[0]
    yield f"{mark}{key.name} = {render(default)}\n"


def _comment(text: str) -> str:
    wrapped = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in wrapped)
