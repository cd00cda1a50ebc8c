"""Where a server may have its agents dial back: an agent is no dialler for others.

A server names the places at which it takes data connections, and which of them each visitor's is. If an agent dialled
whatever it is told, a server could look around in the agent's own network, and join the agent's targets with what it
finds there. So it may name

* its own host, which is the one in the URL that the agent was given, at any port: ports are swapped and shared out;
* other hosts, the nodes beside it, at exactly the ports that it announced before;

and none of them may lead to an address that is nearer than the one at which the server itself was reached: a server on
the internet only to the internet, one in a private network not to the agent's own machine. Names are looked up first,
the server's own too, so that none of them can change what it leads to. `agent.data_networks` lets more in.

A proxy on the way looks names up itself: then literal addresses are held to this, names only if they are localhost.
"""

from __future__ import annotations

from typing import Final

from layer8.config.endpoint import is_loopback
from layer8.core.address import Fence, Networks, Scope, scope
from layer8.core.errors import ConfigError
from layer8.crypto.x509 import parse_pins
from layer8.net.dial import Where
from layer8.net.tls import Named, Pinned, client_context
from layer8.proxy.carry import Secured
from layer8.proxy.wire import DATA_ALPN, DataAddress

CONTEXTS: Final = 64  # TLS contexts kept, by name, port and pin
WHERES: Final = 64  # places kept that were dialled: reading an address again costs as much as half a visitor's headers
NOWHERE: Final = Networks(())


class DialBack:
    """What one server has announced, and how that is dialled."""

    def __init__(self, host: str, pin: str | None, also: Networks = NOWHERE) -> None:
        """`host` and `pin` are those of the server's URL, `also` networks that it may always name."""
        self.data: tuple[DataAddress, ...] = ()
        self.contexts: dict[tuple[str, int, str | None], Secured] = {}
        self._host = host
        self._pin = pin
        self._also = also
        self._wheres: dict[tuple[str, int], Where] = {}
        self._fence = Fence(_first(scope(host)), also)

    def reached(self, address: str | None) -> None:
        """Take the address at which the server was reached, None if a proxy on the way knows it."""
        self._wheres.clear()
        self._fence = Fence(_first(scope(address or self._host)), self._also)

    def announced(self, data: tuple[DataAddress, ...]) -> int:
        """Take what the server has announced; gives how many places it may not name, which are left out."""
        self.data = tuple(known for known in data if self._may_name(known.host))
        return len(data) - len(self.data)

    def find(self, host: object, port: int) -> DataAddress | None:
        """Find the announced place that a call names; without a `host` any will do, and then the server's own."""
        for known in self.data:
            if known.port == port and (host is None or known.host == host):
                return known
        return next((known for known in self.data if not known.host), None) if host in (None, "") else None

    def where(self, address: DataAddress, port: int) -> Where:
        """Say how a place is dialled."""
        host = address.host or self._host
        found = self._wheres.get((host, port))
        if found is None:
            if len(self._wheres) >= WHERES:
                self._wheres.clear()
            found = self._wheres[host, port] = Where(host, port, fence=self._fence)
        return found

    def secured(self, address: DataAddress) -> Secured:
        """Give the TLS of a place; raises `ConfigError` for a name or a pin that nobody can check."""
        name = address.host or self._host
        pin = address.pin or self._pin
        key = (name, address.port, pin)  # behind each port is another process, which knows its own tickets
        found = self.contexts.get(key)
        if found is None:
            if len(self.contexts) >= CONTEXTS:
                self.contexts.clear()
            if not name.isascii():
                raise ConfigError("a server's name has to be ASCII")
            expected = Named(name) if pin is None else Pinned(parse_pins(pin))
            found = Secured(client_context(expected, (DATA_ALPN,)), "" if scope(name) is not None else name)
            self.contexts[key] = found
        return found

    def _may_name(self, host: str) -> bool:
        if not host:
            return True
        if scope(host) is None:
            return self._fence.least is Scope.MACHINE or not is_loopback(host)
        return self._fence.admits(host)


def _first(found: Scope | None) -> Scope:
    """What is known by its name only is taken to be far away."""
    return Scope.INTERNET if found is None else found
