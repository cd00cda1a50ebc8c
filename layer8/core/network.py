"""Which network a node belongs to: its name, the mark that every message carries, and the rules that hold there."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from attrs import field, frozen

MARK: Final = 8  # bytes
UNRULED: Final = ("demo", "test")  # beginnings of names of networks that live for minutes on one machine


@frozen
class Network:
    """One network; nodes of two never talk to each other.

    `mark` is the start of the SHA-256 of the name. `ruled` is False where every node is 127.0.0.1 and a minute old:
    proof of work, prefixes, acquaintance, vetting and sources mean nothing there and are not asked for, and addresses
    of this machine are published there and nowhere else.
    """

    name: str
    mark: bytes = field(init=False, repr=False)
    ruled: bool = field(init=False, repr=False)

    @mark.default
    def _mark(self) -> bytes:
        return sha256(self.name.encode()).digest()[:MARK]

    @ruled.default
    def _ruled(self) -> bool:
        return not self.name.startswith(UNRULED)
