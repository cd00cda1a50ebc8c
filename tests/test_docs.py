"""The pages say what is so: vectors, example messages, codes, names of tests."""

from __future__ import annotations

import importlib
import json
import re
from enum import Enum

from twisted.trial.unittest import SynchronousTestCase

import layer8.proxy.errors  # noqa: F401  (makes the proxy's codes known)
from layer8.control.errors import ControlError, from_wire
from layer8.control.jsonrpc import parse
from layer8.crypto.keys import parse_id
from layer8.crypto.proof import secret_key, subscribe_proof
from layer8.proxy.wire import Code
from layer8.relay import circuit, flow, guards, link, origin
from layer8.relay import limits as relay_limits
from layer8.socks import session
from layer8.tracker import limits as tracker_limits
from tests.names import ROOT, find_test


def page(name: str) -> str:
    """Read one page."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def rows(text: str) -> list[list[str]]:
    """Give the cells of every table row of a page."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[|\- :]+", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


class ProxyWireTests(SynchronousTestCase):
    def test_the_vector_of_the_proof(self) -> None:
        text = page("proxy-wire").partition("A vector:")[2].partition("\n\nThe secret")[0]
        vector = {row[0].strip("`"): row[1].strip("`") for row in rows(text)}
        key = secret_key(bytes.fromhex(vector["secret"]))
        node = bytes.fromhex(vector["node id"])
        self.assertEqual(key.hex(), vector["K"])
        self.assertEqual(parse_id(vector["node"]), node)
        self.assertEqual(subscribe_proof(key, bytes.fromhex(vector["nonce"]), node, vector["host"]), vector["proof"])

    def test_every_code_with_its_name(self) -> None:
        text = page("proxy-wire")
        self.assertNotEqual(list(Code), [])
        for code in Code:
            name = type(from_wire(code, "")).name
            self.assertRegex(text, rf"\| {code.value} \| `{name}`", f"{code.value} is {name}")


class ControlWireTests(SynchronousTestCase):
    def test_every_example_message_is_one(self) -> None:
        found = re.findall(r"^\S.*?(\{\"jsonrpc\".*\})$", page("control-wire") + page("proxy-wire"), re.MULTILINE)
        self.assertGreaterEqual(len(found), 9)
        for message in found:
            parse(message.encode(), positional=True)
            json.loads(message)

    def test_every_shared_code_with_its_name(self) -> None:
        listed = {int(row[0]): row[1].strip("`") for row in rows(page("control-wire")) if re.fullmatch(r"-\d+", row[0])}
        self.assertEqual(len(listed), 14)
        for code, name in listed.items():
            self.assertEqual(type(from_wire(code, "")).name, name)
            self.assertIsNot(type(from_wire(code, "")), ControlError)


class RequirementsTests(SynchronousTestCase):
    def wanted(self) -> set[str]:
        proxy = {f"P{number}" for number in range(1, 38)}
        network = {f"G{number}" for number in (*range(1, 62), 80)}
        return proxy | network | {f"C{number}" for number in (*range(1, 13), *range(16, 20), 21)}

    def test_every_requirement_has_its_row(self) -> None:
        listed = [row[0] for row in rows(page("requirements")) if re.fullmatch(r"[PCG]\d+", row[0])]
        self.assertEqual(sorted(listed), sorted(self.wanted()))

    def test_every_named_test_exists(self) -> None:
        shown = [row for row in rows(page("requirements")) if re.fullmatch(r"[PCG]\d+", row[0])]
        self.assertNotEqual(shown, [])
        for ident, _, cell in shown:
            names = re.findall(r"`((?:\w+\.)*test_\w+(?:\.\w+)*)`", cell)
            others = set(re.findall(r"\b[PCG]\d+\b", cell)) if cell.startswith("as ") else set()
            self.assertTrue(names or others & self.wanted() or "not shown yet" in cell, f"{ident} names nothing")
            for name in names:
                self.assertTrue(find_test(f"tests.{name}"), f"{ident}: there is no tests.{name}")


class NetworkTests(SynchronousTestCase):
    """What the page about requirements says of the network's limits, states and bad input."""

    def section(self, name: str) -> list[list[str]]:
        return rows(page("requirements").partition(f"\n## Network: {name}\n")[2].partition("\n## ")[0])[1:]

    def test_every_limit_has_its_value(self) -> None:
        listed: dict[str, set[str]] = {}
        for name, value, _ in self.section("limits"):
            module, _, constant = name.strip("`").rpartition(".")
            number = getattr(importlib.import_module(f"layer8.{module}"), constant)
            self.assertEqual(float(value.split()[0].replace(",", "")), number, name)
            self.assertNotIn(constant, listed.setdefault(module, set()))
            listed[module].add(constant)
        for limits in (relay_limits, tracker_limits):
            named = {name for name in vars(limits) if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}
            self.assertEqual(named, listed[limits.__name__.removeprefix("layer8.")])

    def test_every_state_of_every_conversation(self) -> None:
        conversations: dict[str, type[Enum]] = {
            "link": link.State,
            "circuit at its client": origin.State,
            "circuit at a relay": circuit.State,
            "stream": flow.State,
            "SOCKS client": session._At,
            "guard": guards.State,
        }
        wanted = [
            (name, state.name.lower().replace("_", " ")) for name, states in conversations.items() for state in states
        ]
        self.assertEqual([(row[0], row[1]) for row in self.section("states")], wanted)

    def test_every_row_names_tests_that_are_there(self) -> None:
        for section, least in (("limits", 100), ("states", 30), ("who learns what", 5), ("bad input", 18)):
            shown = self.section(section)
            self.assertGreaterEqual(len(shown), least)
            for row in shown:
                names = re.findall(r"`((?:\w+\.)*test_\w+(?:\.\w+)*)`", row[-1])
                self.assertTrue(names or row[-1] == "missing", f"{row[0]} names nothing")
                for name in names:
                    self.assertTrue(find_test(f"tests.{name}"), f"{row[0]}: there is no tests.{name}")
