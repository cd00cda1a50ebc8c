"""Every role at every listener against every method: who gets past the permission check must be who the pages say.

Nothing is run: the calls carry a parameter that no method has, and parameters are looked at after permission.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from layer8.control.errors import Forbidden, InvalidParams
from layer8.control.table import Table
from tests.control.callers import caller, run

NO_METHOD_HAS_IT = {"no such parameter": 0}

# written out here, not taken from layer8.control.access: this is what the access module is tested against
MAY_ACT_AS: Mapping[str, frozenset[str]] = {
    "nobody": frozenset({"public"}),
    "public": frozenset({"public"}),
    "read": frozenset({"public", "read"}),
    "operate": frozenset({"public", "read", "operate"}),
    "admin": frozenset({"public", "read", "operate", "admin"}),
    "agent": frozenset({"public", "agent"}),
    "owner": frozenset({"public", "owner"}),
    "node": frozenset({"public", "node"}),
    "provider": frozenset({"public", "provider"}),
}
LISTENERS: Mapping[str, frozenset[str]] = {
    "local": frozenset(MAY_ACT_AS) - {"nobody"},
    "agents": frozenset({"agent", "owner"}),
    "readers": frozenset({"read"}),
    "operators": frozenset({"operate"}),
    "strangers": frozenset(),
}


class Cell(NamedTuple):
    """One role at one listener calling one method."""

    role: str
    listener: str
    method: str
    allowed: bool


def cells(expected: Mapping[str, Collection[str]], within: Mapping[str, str] | None = None) -> Iterator[Cell]:
    """What has to come of each call: `expected` names the roles of each method as the design page does."""
    for role, acts_as in MAY_ACT_AS.items():
        for listener, ceiling in LISTENERS.items():
            lets_through = frozenset({"public"}).union(*(MAY_ACT_AS[allowed] for allowed in ceiling))
            for method, roles in expected.items():
                wanted = (within or {}).get(method)
                fits = wanted is None or wanted in lets_through
                yield Cell(role, listener, method, fits and bool(acts_as & lets_through & set(roles)))


def wrong_cells(
    table: Table, expected: Mapping[str, Collection[str]], within: Mapping[str, str] | None = None
) -> list[str]:
    """Call every cell through `table`, and give those that came out otherwise, and rows that nobody expected."""
    wrong = [f"{name} is not in the matrix" for name in table.methods if name not in expected]
    wrong += [f"{name} is not in the table" for name in expected if name not in table.methods]
    for cell in cells({name: roles for name, roles in expected.items() if name in table.methods}, within):
        roles = () if cell.role == "nobody" else (cell.role,)
        who = caller(*roles, ceiling=LISTENERS[cell.listener])
        try:
            run(table.call(who, cell.method, NO_METHOD_HAS_IT))
        except InvalidParams:
            allowed = True
        except Forbidden:
            allowed = False
        else:
            wrong.append(f"{cell.method} took a parameter it does not have")
            continue
        if allowed is not cell.allowed:
            wrong.append(f"{cell.role} at {cell.listener}: {cell.method} {'runs' if allowed else 'is forbidden'}")
        if table.may(who, table.methods[cell.method]) is not allowed:
            wrong.append(f"{cell.role} at {cell.listener}: what is listed of {cell.method} is not what is checked")
    return wrong
