"""What may be done to visitors between their name and their host, by those whom `Traffic` is handed.

None of them is needed: without one, its feature is off.
"""

from __future__ import annotations

from typing import Any, Protocol

from attrs import define

from layer8.net.flow import Filter
from layer8.proxy.registration import Registration
from layer8.proxy.visit import Visit


class Terminator(Protocol):
    """Ends TLS for hosts that want it so."""

    def begin(self, visit: Visit, row: Registration, first: bytes, alpn: tuple[bytes, ...]) -> None:
        """Shake hands with a visitor whose ClientHello is in `first`; then `Traffic.secured` hears of it."""

    def answer(self, host: str, said: bytes) -> bytes:
        """Give the response to a certificate authority that asks for a proof, b"" to everybody else."""


class Modes(Protocol):
    """Sees to it that HTTP is carried as its host's mode says."""

    def doubt(self, visit: Visit, first: bytes) -> int | None:
        """Give the status for a visitor whose first request is refused before anybody is called; 0 is silence.

        `filters` is asked with the same `first` later.
        """

    def filters(self, visit: Visit, row: Registration, first: bytes, rest: bytes) -> Filters | None:
        """Give the filters for a visitor that is about to be joined, with what they make of what was said already.

        None if its bytes need not be seen.
        """


@define(eq=False)
class Filters:
    """Filters of a visitor's link, and what of its first bytes goes on: `first` to the host, `rest` to the visitor."""

    first: bytes
    rest: bytes
    up: Filter | None
    down: Filter | None


class Own(Protocol):
    """Takes connections to the server's own name: its agents' control and data connections on the public port."""

    def adopt(self, fd: int, peer: Any, first: bytes, alpn: tuple[bytes, ...]) -> None:
        """Take over a descriptor whose ClientHello, `first`, has been read."""
