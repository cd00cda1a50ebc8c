"""Listening sockets for the pump, opened by Twisted's endpoint strings and then taken over."""

from __future__ import annotations

import socket
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory

from layer8.config.endpoint import Endpoint, server
from layer8.net.entries import listening
from layer8.net.process import listening as one_line


@define(eq=False)
class Taken:
    """A listening socket that belongs to nobody's reactor, and how it was asked for."""

    sock: socket.socket
    endpoint: Endpoint
    port: int

    @property
    def text(self) -> str:
        """Say where it listens, with the port that was really taken."""
        where = self.sock.getsockname()
        if not isinstance(where, tuple):
            return f"unix:{where}"
        return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"


def take(reactor: Any, text: str, option: str, *, defer: int = 0) -> Taken:
    """Listen on an endpoint string that the configuration has checked; raises `Unavailable` that names `option`.

    `defer` is how many seconds the kernel keeps a connection until its first byte is there.
    """
    endpoint = server(text)
    with one_line(option, text):
        port = now(serverFromString(reactor, endpoint.twisted()).listen(Factory()))
        port.stopReading()  # type: ignore[attr-defined]  # a tcp.Port: the pump accepts from here on
        held = port.socket  # type: ignore[attr-defined]
        sock = socket.socket(held.family, socket.SOCK_STREAM, 0, held.detach())
        listening(sock, defer=defer)
    where = sock.getsockname()
    return Taken(sock, endpoint, where[1] if isinstance(where, tuple) else 0)


def now(opening: Deferred[IListeningPort]) -> IListeningPort:
    """Give the port that a server endpoint opens at once, or raise why it cannot."""
    ports: list[IListeningPort] = []
    failures: list[BaseException] = []
    opening.addCallbacks(ports.append, lambda failure: failures.append(failure.value))
    if failures:
        raise failures[0]
    return ports[0]
