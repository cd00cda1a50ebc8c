"""Find a test by its dotted name in the source, without importing it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def find_test(dotted: str) -> bool:
    """Say whether `tests.<package>.<module>[.<Class>[.<method>]]` is there; a method may come from a mixin."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:cut]).with_suffix(".py")
        if path.is_file():
            rest = parts[cut:]
            break
    else:
        return False
    if not rest:
        return parts[cut - 1].startswith("test_")
    classes = {node.name: node for node in _parsed(path).body if isinstance(node, ast.ClassDef)}
    if rest[0] not in classes or len(rest) > 2:
        return False
    return len(rest) == 1 or _has_method(classes, rest[0], rest[1])


def _has_method(classes: dict[str, ast.ClassDef], name: str, method: str) -> bool:
    """Look in the class, and in its bases that the same module defines."""
    if name not in classes:
        return False
    node = classes[name]
    if any(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == method for part in node.body):
        return True
    return any(isinstance(base, ast.Name) and _has_method(classes, base.id, method) for base in node.bases)
