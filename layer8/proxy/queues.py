"""The listening sockets of a server of several processes: opened here once, a queue of its own for each of them.

This process never accepts; it keeps the sockets open, so a queue outlives the process that serves it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field

from layer8.config.endpoint import server as read_endpoint
from layer8.config.proxy import ProxyConfig
from layer8.core.errors import Unavailable
from layer8.net.listen import Sockets, Taken, more_of, number, open_shared

Key = tuple[str, str]
"""An option and an endpoint string."""

LISTENS: Final = (("--http", "http"), ("--https", "https"), ("--agents", "agents"), ("--legacy", "legacy"))
VISITED: Final = ("--http", "--https")
"""Options whose listeners come and go with a reload."""


@define(eq=False)
class Queues:
    """See the module; `given` holds what another process has opened."""

    count: int
    environ: Mapping[str, str]
    given: Sockets
    _socks: dict[Key, list[socket.socket]] = field(factory=dict, init=False)

    def open(self, config: ProxyConfig) -> None:
        """Open everything that is configured; raises `Unavailable` with nothing left open."""
        try:
            for key in _wanted(config):
                self._socks[key] = self._open(*key)
        except BaseException:
            self.close()
            raise

    def prepare(self, config: ProxyConfig) -> dict[Key, list[socket.socket]]:
        """Open the visitors' listeners that are new; raises `Unavailable`, and then nothing has changed."""
        opened: dict[Key, list[socket.socket]] = {}
        try:
            for key in _wanted(config):
                if key not in self._socks and key[0] in VISITED:
                    opened[key] = self._open(*key)
        except BaseException:
            drop(opened)
            raise
        return opened

    def settle(self, config: ProxyConfig, opened: Mapping[Key, list[socket.socket]]) -> None:
        """Keep what was opened, and close the visitors' listeners that another configuration lacks."""
        wanted = _wanted(config)
        self._socks.update(opened)
        gone = [key for key in self._socks if key not in wanted and key[0] in VISITED]
        drop({key: self._socks.pop(key) for key in gone})

    def close(self) -> None:
        """Close everything."""
        drop(self._socks)
        self._socks.clear()

    def share(
        self, place: int, socks: Mapping[Key, Sequence[socket.socket]] | None = None
    ) -> Iterator[tuple[Key, int]]:
        """Give the descriptors for the process in a place, counted from 0; of some sockets, by default of all."""
        for key, found in (self._socks if socks is None else socks).items():
            for at, sock in enumerate(found):
                if at % self.count == place:
                    yield key, sock.fileno()

    def sockets(self) -> list[tuple[str, str, socket.socket]]:
        """Give every socket by option and endpoint string."""
        return [(option, text, sock) for (option, text), socks in self._socks.items() for sock in socks]

    def words(self) -> list[str]:
        """Say where visitors and agents may come."""
        found: list[str] = []
        for (option, text), socks in self._socks.items():
            endpoint = read_endpoint(text)
            where = Taken(socks[0], endpoint, number(socks[0])).text
            if option in VISITED:
                found.append(f"{option[2:]} on {where}")
            elif option != "--data":
                found.append(f"agents on {where} ({endpoint.kind})")
        return found

    def _open(self, option: str, text: str) -> list[socket.socket]:
        inherited = self.given.take(option, text)
        if inherited:
            return more_of(inherited, self.count)
        socks = open_shared(text, option, self.count, self.environ)
        if option == "--data" and len({number(sock) for sock in socks}) < self.count:
            drop({(option, text): socks})
            raise Unavailable(f"{text}: each of {self.count} workers needs a data socket of its own")
        return socks


def drop(socks: Mapping[Key, Sequence[socket.socket]]) -> None:
    """Close sockets."""
    for found in socks.values():
        for sock in found:
            sock.close()


def _wanted(config: ProxyConfig) -> list[Key]:
    """Give what is opened here: data ports are each worker's own, unless systemd has opened them."""
    found = [(option, text) for option, name in LISTENS for text in getattr(config, name)]
    data = [("--data", text) for text in config.data if read_endpoint(text).kind == "systemd"]
    return list(dict.fromkeys(found + data))
