"""Names to addresses, with limits of its own: a name that nobody answers for must not hold up the rest of a process.

The system's resolver runs in the reactor's few threads, for as long as it likes. So whoever asks for a name that is
being looked up waits with the others, only a few names are looked up at the same time, and nobody waits for long.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attrs import define
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

from layer8.net.entries import Address

KEPT: Final = 30.0  # seconds that an answer is believed
FAILED_KEPT: Final = 1.0  # the same of having found nothing: a visitor each millisecond must not ask each time
NAMES: Final = 1024  # answers kept
AT_ONCE: Final = 6  # names looked up at the same time; the reactor has ten threads
WAITING: Final = 4096  # who may wait for names
TIME: Final = 5.0  # seconds that anybody waits; the look-up itself cannot be ended

Told = Callable[[list[Address]], None]


def literal(host: str, port: int) -> Address | None:
    """Give the socket address of an IP literal, None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (socket.AF_INET if address.version == 4 else socket.AF_INET6), (host, port)


@define(eq=False)
class Asking:
    """Somebody who wants to know a name."""

    lookups: Lookups
    host: str
    told: Told | None

    def cancel(self) -> None:
        """Be told nothing."""
        self.told = None
        self.lookups.forget(self)


@define(eq=False)
class _Asked:
    """All who want to know a name, and until when."""

    asking: dict[Asking, None]
    timer: Any = None


class Lookups:
    """The names that one dialler asks for."""

    def __init__(self, reactor: Any) -> None:
        """Use the reactor's resolver and clock."""
        self._reactor = reactor
        self._kept: dict[str, tuple[float, list[Address]]] = {}
        self._asked: dict[str, _Asked] = {}
        self._queue: dict[str, None] = {}  # names that wait for their turn
        self._running: set[str] = set()
        self._waiting = 0

    def find(self, host: str, told: Told) -> Asking | None:
        """Tell the addresses of a name, with port 0, IPv4 first; none if there are none, or it takes too long.

        `told` may be called before this returns, and then there is nothing to cancel.
        """
        known = self._kept.get(host)
        if known is not None and known[0] > time.monotonic():
            told(known[1])
            return None
        if self._waiting >= WAITING:
            told([])
            return None
        self._waiting += 1
        asking = Asking(self, host, told)
        asked = self._asked.get(host)
        if asked is not None:
            asked.asking[asking] = None
            return asking
        asked = self._asked[host] = _Asked({asking: None})
        asked.timer = self._reactor.callLater(TIME, self._tell, host, [])
        self._queue[host] = None
        self._next()
        return None if asking.told is None else asking

    def forget(self, asking: Asking) -> None:
        """Let somebody not wait any more; with the last one goes the look-up, unless it has begun."""
        asked = self._asked.get(asking.host)
        if asked is not None and asking in asked.asking:
            del asked.asking[asking]
            self._waiting -= 1
            if not asked.asking:
                self._tell(asking.host, [])

    def _next(self) -> None:
        """Look up what waits; a name whose look-up nobody waited out is not looked up twice at the same time."""
        while len(self._running) < AT_ONCE:
            host = next((name for name in self._queue if name not in self._running), None)
            if host is None:
                return
            del self._queue[host]
            self._running.add(host)
            self._reactor.nameResolver.resolveHostName(Resolution(partial(self._found, host)), host, 0)

    def _found(self, host: str, addresses: list[Address]) -> None:
        self._running.discard(host)
        if len(self._kept) >= NAMES:
            self._kept.clear()
        self._kept[host] = time.monotonic() + (KEPT if addresses else FAILED_KEPT), addresses
        self._tell(host, addresses)
        self._next()

    def _tell(self, host: str, addresses: list[Address]) -> None:
        """Tell everybody who waits for a name."""
        self._queue.pop(host, None)
        asked = self._asked.pop(host, None)
        if asked is None:
            return
        if asked.timer.active():
            asked.timer.cancel()
        self._waiting -= len(asked.asking)
        for asking in asked.asking:
            told, asking.told = asking.told, None
            if told is not None:
                told(addresses)


@implementer(IResolutionReceiver)
class Resolution:
    """Collects what the resolver finds."""

    def __init__(self, resolved: Callable[[list[Address]], None]) -> None:
        """`resolved` is told every address, in the resolver's order, once it is complete."""
        self._resolved = resolved
        self._found: list[Address] = []

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """Nothing to do yet."""

    def addressResolved(self, address: IAddress) -> None:
        """Keep one."""
        found = literal(getattr(address, "host", ""), getattr(address, "port", 0))
        if found is not None:
            self._found.append(found)

    def resolutionComplete(self) -> None:
        """Hand over what there is; IPv4 first, which local services listen on most."""
        self._resolved(sorted(self._found, key=lambda address: address[0] != socket.AF_INET))
