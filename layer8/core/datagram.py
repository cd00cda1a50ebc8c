"""The contract of a session that speaks in datagrams: as `layer8.core.session`, but with an address on each one.

One session has the whole socket: who is who is its own business, and so are the limits of what it keeps per peer.
There is no connection, so nothing is lost but datagrams, and nothing is joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from layer8.core.session import Close, Tell

Peer = tuple[str, int]  # an IP address as text, a port


@frozen
class SendTo:
    """Send one datagram; it may be lost, doubled or overtaken like any other."""

    data: bytes
    peer: Peer


DatagramEffect = SendTo | Close | Tell


class DatagramSession(Protocol):
    """One socket's state; a `Close` leaves the port."""

    def received(self, data: bytes, peer: Peer, now: float) -> None:
        """Take one datagram from an address that may be forged."""

    def wake(self, now: float) -> None:
        """Take the arrival of `deadline()`; early or repeated calls do nothing."""

    def effects(self) -> Sequence[DatagramEffect]:
        """Give what has to be done and forget it."""

    def deadline(self) -> float | None:
        """Give the monotonic second at which `wake` wants to be called."""
