"""Stamp on real sockets: what listens, and what owns the connections."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import Any, Final

from twisted.application.internet import StreamServerEndpointService
from twisted.application.strports import service

from docs.examples.stamp.session import StampSession
from layer8.core.errors import LocalProtocolError
from layer8.net.factory import CountingFactory, Places
from layer8.net.stream import Stream, StreamFactory

CONNECTIONS: Final = 1000  # in all
PER_SOURCE: Final = 50  # from one /24 or /56


class Stamps:
    """Owner of all connections: counts why they ended, which is all there is to know."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.ended_by: Counter[str] = Counter()

    def ended(self, stream: Stream, reason: str) -> None:
        """Count the end of a connection."""
        self.ended_by[reason] += 1

    def told(self, stream: Stream, what: object) -> None:
        """Refuse it, like the two below: a stamp session only sends and closes."""
        raise LocalProtocolError("told")

    def dial(self, stream: Stream, key: int, address: str) -> None:
        """Refuse it."""
        raise LocalProtocolError("dial")

    def join(self, stream: Stream, key: int, first: bytes) -> None:
        """Refuse it."""
        raise LocalProtocolError("join")


def stamp_service(reactor: Any, listen: str, stamps: Stamps) -> StreamServerEndpointService:
    """Listen on an endpoint string; starting it raises at once when the port is taken."""
    streams = StreamFactory(lambda address: StampSession(monotonic()), stamps, reactor)
    return service(listen, CountingFactory(streams, Places(CONNECTIONS, PER_SOURCE)), reactor)
