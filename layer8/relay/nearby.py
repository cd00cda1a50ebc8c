"""The beacon on its multicast group: whoever is heard there is linked with, as if the user had named it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from layer8.net.datagram import Datagrams
from layer8.relay.beacon import GROUP, PORT, Beacon, Nearby
from layer8.relay.neighbours import Neighbours


class Lan(Service):
    """Listens and speaks while it runs, if this machine has a network for it; else says so once, in the log."""

    _log = Logger(namespace="layer8.relay.lan")

    def __init__(self, reactor: Any, beacon: Beacon, neighbours: Neighbours, seconds: Callable[[], float]) -> None:
        """Take what says who is here, and who dials."""
        self._reactor = reactor
        self._neighbours = neighbours
        self._protocol = Datagrams(beacon, self, reactor, seconds)
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Join the group."""
        Service.startService(self)
        try:
            # Other programs of this machine may be in the same group.
            self._port = self._reactor.listenMulticast(PORT, self._protocol, listenMultiple=True)
            transport: Any = self._protocol.transport
            transport.setTTL(1)
            transport.setLoopbackMode(1)
            transport.joinGroup(GROUP).addErrback(self._unjoined)
        except OSError as error:
            self._log.warn("no local network to find peers on: {why}", event="relay.no_lan", why=str(error))

    def stopService(self) -> Deferred[None]:
        """Leave."""
        Service.stopService(self)
        port, self._port = self._port, None
        stopped: Deferred[None] = Deferred()
        leaving = maybeDeferred(port.stopListening if port is not None else lambda: None)
        leaving.addBoth(lambda _: stopped.callback(None))
        return stopped

    def told(self, port: Datagrams, what: object) -> None:
        """Link with a node that was heard; its descriptor comes with the link."""
        if isinstance(what, Nearby):
            host = what.host.replace(":", "\\:")
            self._neighbours.reach(what.identity, (f"tcp:{host}:{what.port}",), lambda way: None)

    def ended(self, port: Datagrams, reason: str) -> None:
        """Hear no more."""

    def _unjoined(self, failure: Any) -> None:
        self._log.warn("no local network to find peers on: {why}", event="relay.no_lan", why=failure.getErrorMessage())
