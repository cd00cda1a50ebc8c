"""Databases of nodes that have carried circuits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from layer8.crypto.descriptor import DAY
from layer8.relay.database import VETTED, Database
from tests.descriptors import MAIN, NOW, node, told


def vetted(
    numbers: Iterable[int], sources: Callable[[int], Iterable[int]] = lambda number: (9001, 9002), **changed: Any
) -> Database:
    """Make a database of nodes that are known for two days from two sources, and have carried circuits."""
    network = changed.pop("network", MAIN)
    known = Database(network)
    for number in numbers:
        one = told(number, network, **changed)
        for source in sources(number):
            known.learn(one, node(source), NOW)
        for _ in range(VETTED):
            known.worked(one.identity, NOW)
        peer = known.get(one.identity)
        assert peer is not None
        peer.first -= 2 * DAY
    return known
