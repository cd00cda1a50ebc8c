"""Public names of a package that are imported when somebody asks for them, so that its small modules stay cheap."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(package: str, **places: str) -> Callable[[str], Any]:
    """Give a package's `__getattr__` (PEP 562): names, and the module below the package that each stands in."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return find
