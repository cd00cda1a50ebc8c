"""`docs/openrpc.json` is the table of all daemons, frozen: a row that changes shows in a diff that somebody reads.

`LAYER8_FREEZE=1 trial tests.control.test_frozen` writes it anew.
"""

from __future__ import annotations

import json
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.control.callers import Callers
from layer8.control.limits import ANSWER, ANSWER_AGENT
from layer8.control.node import Node
from layer8.control.openrpc import document
from layer8.control.settings import Settings
from layer8.control.table import Table
from layer8.dht.operate import AskingRows, HoldingRows
from layer8.proxy.agent import AgentCommands
from layer8.proxy.methods import AgentRows, OwnerRows
from layer8.proxy.operate import BanRows, OperatorRows
from layer8.relay.operate import InboxRows, RelayRows
from layer8.rendezvous.operate import RendezvousRows
from layer8.rendezvous.operate_names import NamesRows
from layer8.socks.operate import SocksRows
from layer8.tracker.operate import ListRows, TrackerRows
from layer8.tunnel.operate import RelayRows as TunnelRows
from layer8.tunnel.operate_gateway import GatewayRows
from tests.control.callers import caller
from tests.names import ROOT

FILE = ROOT / "docs" / "openrpc.json"
Rows = tuple[type[Any], ...]
SHARED: Rows = (Node, Callers, Settings)
PROXY: Rows = (AgentRows, OwnerRows, OperatorRows, BanRows, AgentCommands)
HIDDEN: Rows = (AskingRows, HoldingRows, RendezvousRows, NamesRows)
TUNNEL: Rows = (TunnelRows, GatewayRows)
NETWORK: Rows = (RelayRows, InboxRows, SocksRows, TrackerRows, ListRows, *HIDDEN)


def whole_table(*modules: Rows) -> Table:
    """Make a table of every row that these have, or any daemon has; its methods are never run."""
    table = Table(lambda: 0.0)
    for module in (row for rows in (SHARED, *(modules or (PROXY, NETWORK, TUNNEL))) for row in rows):
        table.add(object.__new__(module))
    return table


class FrozenTests(SynchronousTestCase):
    """The frozen document."""

    def test_it_is_the_table(self) -> None:
        described = document(whole_table())
        described["info"]["version"] = "0"
        text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
        if os.environ.get("LAYER8_FREEZE") == "1":
            FILE.write_text(text)
        self.assertEqual(FILE.read_text(), text, "run LAYER8_FREEZE=1 trial tests.control.test_frozen")

    def test_what_a_caller_discovers_fits_into_a_message(self) -> None:
        """All rows of a daemon at once where messages are long; module by module on the agent listener."""
        for rows in (PROXY, NETWORK, TUNNEL):
            described = json.dumps(document(whole_table(rows), caller("admin")), separators=(",", ":"))
            self.assertLess(len(described), ANSWER - 100)
        table = whole_table(PROXY)
        for role in ("agent", "owner"):
            who = caller(role, ceiling=frozenset({"agent", "owner"}))
            for module in {name.partition(".")[0] for name in table.methods}:
                described = json.dumps(document(table, who, module), separators=(",", ":"))
                self.assertLess(len(described), ANSWER_AGENT - 100, (role, module))

    def test_every_row_is_described(self) -> None:
        for row in whole_table().methods.values():
            self.assertTrue(row.doc.endswith("."), row.name)
