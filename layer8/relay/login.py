r"""Who has built a circuit, proven to its last hop: for what a relay opens to single identities (`lan_targets`).

```
 LOGIN   identity 32 | signature 64       signed: "layer8/1 login\0" | network 8 | binding 32
```
The neighbour that cells come from is somebody else on longer paths. The binding is known to the two ends of one circuit
alone, so a login is good nowhere else, and nobody on the way can make or repeat one. It has no answer: whoever is not
listed is refused what a stranger is refused. A client says who it is to a node that its user has named, and only for an
address that only this node can reach.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from layer8.core.address import Scope, is_address, scope
from layer8.core.errors import RemoteProtocolError
from layer8.core.roles import Asker
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, verify
from layer8.relay.wire import Command

LOCAL: Final = (".lan", ".local", ".internal", ".localhost", ".home.arpa")
"""Ends of names that mean something on one network only."""

_SIGNED: Final = b"layer8/1 login\0"


def login(key: NodeKey, network: bytes, binding: bytes) -> bytes:
    """Make the data of LOGIN for the circuit with this binding; `network` are its 8 bytes."""
    return key.node_id + key.sign(_SIGNED + network + binding)


def local(host: str) -> bool:
    """Tell whether a host is one of some local network: a private address, a name without a dot, or one of LOCAL."""
    name = host.lower().rstrip(".")
    if is_address(name):
        return scope(name) is not Scope.INTERNET
    return bool(name) and ("." not in name or name.endswith(LOCAL))


@define(eq=False)
class Logins:
    """Who has logged in on which circuit: `layer8.core.roles.Answers`."""

    commands = frozenset((int(Command.LOGIN),))
    _network: bytes
    _known: dict[int, bytes] = field(factory=dict, init=False)

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Take a login; raises `RemoteProtocolError` for a false one, and for a second one."""
        if len(data) != NODE_ID + SIGNATURE or asker.circuit in self._known:
            raise RemoteProtocolError("a login of another form, or a second one")
        identity = bytes(data[:NODE_ID])
        if not verify(identity, bytes(data[NODE_ID:]), _SIGNED + self._network + asker.binding):
            raise RemoteProtocolError("a login with a wrong signature")
        self._known[asker.circuit] = identity

    def gone(self, circuit: int) -> None:
        """Forget a circuit that has ended."""
        self._known.pop(circuit, None)

    def of(self, circuit: int) -> bytes | None:
        """Give the identity that has built a circuit, None for somebody nameless."""
        return self._known.get(circuit)
