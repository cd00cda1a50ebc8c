"""How a role of a node (tracker, DHT, rendezvous) answers messages that come by a circuit, without knowing circuits.

The relay is given one `Answers` for each range of commands; so no protocol package imports another.
"""

from __future__ import annotations

from typing import Protocol


class Asker(Protocol):
    """The far end of a circuit that ends here, as much as there is to know of it."""

    @property
    def circuit(self) -> int:
        """Give a number of this process, not the one on the link."""

    @property
    def neighbour(self) -> bytes | None:
        """Give the node id of the link that it came by; None where that has none."""

    @property
    def binding(self) -> bytes:
        """Give 32 bytes that only the two ends of this circuit know."""

    @property
    def alive(self) -> bool:
        """Say whether an answer would get there."""

    def answer(self, command: int, data: bytes) -> None:
        """Send a message of any size up to MESSAGE_MAX back, on the stream that was asked on; once, or more often."""

    def destroy(self) -> None:
        """End the circuit: it has broken the protocol."""


class Answers(Protocol):
    """A role's side: raises `RemoteProtocolError` for what costs the asker its circuit."""

    commands: frozenset[int]

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Take a whole message."""

    def gone(self, circuit: int) -> None:
        """Forget a circuit that has ended."""
