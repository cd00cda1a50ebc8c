"""The OpenRPC document is the table, no more and no less."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.access import Caller
from layer8.control.errors import Conflict, NotFound
from layer8.control.openrpc import document
from layer8.control.shape import member
from layer8.control.table import Event, Table, method
from tests.control.callers import caller


@frozen
class Hop:
    """A relay on the way."""

    relay: str


@frozen
class Build:
    """Which way."""

    path: tuple[Hop, ...]
    tries: int = member(3, least=1, most=9, doc="how often")


@frozen
class Built:
    """The circuit."""

    circuit: int
    last: Hop | None = None


class Relay:
    owns = ("relay",)
    events = (Event("relay.circuit", Built, role="read", key="circuit"), Event("relay.secret", Hop, role="admin"))

    @method("relay.build", role=("operate", "node"), errors=(Conflict, NotFound), timeout=60.0)
    async def build(self, caller: Caller, params: Build) -> Built:
        """Build a circuit."""
        return Built(1)

    @method("relay.hello", role="public", within="node")
    async def hello(self, caller: Caller) -> None:
        """Say hello."""


def a_table() -> Table:
    table = Table(lambda: 0.0)
    table.add(Relay())
    return table


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*map(references, node.values()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    return set()


# what each object must and may have (OpenRPC 1.3.2); members that begin with x- may stand in all of these
RULES: Mapping[str, tuple[set[str], set[str]]] = {
    "document": ({"openrpc", "info", "methods"}, {"servers", "components", "externalDocs"}),
    "info": ({"title", "version"}, {"description", "termsOfService", "contact", "license"}),
    "method": (
        {"name", "params"},
        {
            "result",
            "description",
            "summary",
            "tags",
            "errors",
            "links",
            "paramStructure",
            "examples",
            "deprecated",
            "servers",
            "externalDocs",
        },
    ),
    "content": ({"name", "schema"}, {"summary", "description", "required", "deprecated"}),
    "error": ({"code", "message"}, {"data"}),
}


def broken_rules(described: dict[str, Any]) -> list[str]:
    """Where a document breaks the structure of OpenRPC."""
    objects: list[tuple[str, dict[str, Any]]] = [("document", described), ("info", described["info"])]
    for method_ in described["methods"]:
        objects.append(("method", method_))
        objects += [("content", content) for content in (*method_["params"], method_["result"])]
        objects += [("error", error) for error in method_["errors"] if "$ref" not in error]
        optional = [param["name"] for param in method_["params"] if not param["required"]]
        if [param["name"] for param in method_["params"]][len(method_["params"]) - len(optional) :] != optional:
            objects.append(("error", {"optional parameters come last": method_["name"]}))
    objects += [("error", error) for error in described["components"]["errors"].values()]
    wrong = []
    for kind, one in objects:
        must, may = RULES[kind]
        keys = {key for key in one if not key.startswith("x-")}
        if not must <= keys or not keys <= must | may:
            wrong.append(f"{kind}: {sorted(keys)}")
    return wrong


class Document(SynchronousTestCase):
    """What `rpc.discover` answers."""

    def test_every_row_and_every_event(self) -> None:
        table = a_table()
        described = document(table)
        self.assertEqual({row["name"] for row in described["methods"]}, set(table.methods))
        self.assertEqual({event["name"] for event in described["x-events"]}, set(table.announced))

    def test_a_row(self) -> None:
        build = next(row for row in document(a_table())["methods"] if row["name"] == "relay.build")
        self.assertEqual(build["description"], "Build a circuit.")
        self.assertEqual((build["x-roles"], build["x-timeout-s"]), (["operate", "node"], 60.0))
        self.assertEqual(build["paramStructure"], "by-name")
        path, tries = build["params"]
        self.assertEqual((path["name"], path["required"]), ("path", True))
        self.assertEqual((tries["name"], tries["required"], tries["description"]), ("tries", False, "how often"))
        self.assertEqual(tries["schema"], {"type": "integer", "minimum": 1, "maximum": 9})
        self.assertEqual(build["result"], {"name": "result", "schema": {"$ref": "#/components/schemas/Built"}})
        self.assertEqual(
            build["errors"][:2], [{"code": -32004, "message": "conflict"}, {"code": -32003, "message": "not_found"}]
        )

    def test_the_structure_is_that_of_openrpc(self) -> None:
        described = document(a_table())
        self.assertEqual(broken_rules(described), [])
        self.assertEqual(described["openrpc"], "1.3.2")
        described["methods"][0]["role"] = "public"
        self.assertEqual(len(broken_rules(described)), 1)

    def test_every_reference_leads_somewhere(self) -> None:
        described = document(a_table())
        for reference in references(described):
            there: Any = described
            for step in reference.removeprefix("#/").split("/"):
                there = there[step]
        self.assertEqual(sorted(described["components"]["schemas"])[:2], ["Built", "Changed"])

    def test_only_what_this_caller_may(self) -> None:
        def seen(*roles: str, **where: Any) -> tuple[set[str], set[str]]:
            described = document(a_table(), caller(*roles, **where))
            return (
                {row["name"] for row in described["methods"]},
                {event["name"] for event in described["x-events"]} - {"rpc.changed", "event.lost"},
            )

        self.assertEqual(seen(), ({"relay.hello"}, set()))
        self.assertEqual(seen("read"), ({"relay.hello"}, {"relay.circuit"}))
        self.assertEqual(seen("operate"), ({"relay.hello", "relay.build"}, {"relay.circuit"}))
        self.assertEqual(seen("admin")[1], {"relay.circuit", "relay.secret"})
        self.assertEqual(seen("admin", ceiling=frozenset({"read"})), (set(), {"relay.circuit"}))

    def test_it_is_json_and_always_the_same(self) -> None:
        self.assertEqual(json.dumps(document(a_table())), json.dumps(document(a_table())))
