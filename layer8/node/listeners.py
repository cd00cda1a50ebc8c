"""The ports that a process listens at: circuits must never lead to them."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import lru_cache
from typing import Final

from layer8.control.frame import Frame

_PORT: Final = re.compile(r"(?<!\\):(\d+)(?=:|$)")


class Listeners:
    """Links, SOCKS, tunnels, control and the debug port, as they stand each time that somebody asks."""

    def __init__(self, frame: Frame, links: Container[int]) -> None:
        """Ask a daemon, and the ports of its links."""
        self._frame = frame
        self._links = links

    def __contains__(self, port: object) -> bool:
        """Say whether this process listens at a port."""
        if port in self._links:
            return True
        return any(port in _listed(line) for line in self._frame.listening())


def ports(line: str) -> set[int]:
    """Give the ports that a line of `Frame.listening` names."""
    return set(map(int, _PORT.findall(line)))


@lru_cache(maxsize=256)
def _listed(line: str) -> frozenset[int]:
    """Give the same without reading a line again: every stream of an exit asks."""
    return frozenset(ports(line))
