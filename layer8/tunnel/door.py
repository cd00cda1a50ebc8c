"""Where pages come in: an HTTP server of which no network takes every place."""

from __future__ import annotations

from typing import Any, Final

from attrs import define, field
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol

from layer8.net.factory import Places
from layer8.net.http import CONNECTIONS, Server

CONNECTIONS_NETWORK: Final = 512  # connections of one /24 or /56 at once; sockets that are joined do not count
HERE: Final = frozenset(("", "127.0.0.1", "::1", "::ffff:127.0.0.1"))  # this machine, which is no network


@define(eq=False)
class Door(Server):
    """See the module; `places` counts."""

    places: Places = field(factory=lambda: Places(CONNECTIONS, CONNECTIONS_NETWORK), init=False)
    _taken: dict[Any, str] = field(factory=dict, init=False, repr=False)

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Take a connection, unless there are too many of its network, or at all."""
        address = getattr(addr, "host", None) or ""
        place = self.places.take("" if address in HERE else address)
        if place is None:
            return None
        wire = Server.buildProtocol(self, addr)
        if wire is None:
            self.places.give(place)
        else:
            self._taken[wire] = place
        return wire

    def closed(self, wire: Any) -> None:
        """Take the end of one, or that it belongs to somebody else now."""
        place = self._taken.pop(wire, None)
        if place is not None:
            self.places.give(place)
        Server.closed(self, wire)
