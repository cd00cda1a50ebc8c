"""The pages say what is so: vectors, example messages, codes, names of tests."""

from __future__ import annotations

import ast
import importlib
import json
import re
from enum import Enum
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

import layer8.proxy.errors  # noqa: F401  (makes the proxy's codes known)
from layer8.control.errors import ControlError, from_wire
from layer8.control.jsonrpc import parse
from layer8.crypto.keys import parse_id
from layer8.crypto.proof import secret_key, subscribe_proof
from layer8.dht import limits as dht_limits
from layer8.dht import lookup
from layer8.proxy.wire import Code
from layer8.relay import circuit, flow, guards, link, origin
from layer8.relay import limits as relay_limits
from layer8.rendezvous import claims, client, names, wire
from layer8.rendezvous import limits as rendezvous_limits
from layer8.socks import session
from layer8.tracker import limits as tracker_limits
from layer8.tunnel import admission, client_keys, client_session, gateway_session, relay_session, socket_session
from layer8.tunnel import limits as tunnel_limits
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
        tunnel = {f"L{number}" for number in (*range(1, 11), *range(12, 37))}
        return proxy | network | tunnel | {f"C{number}" for number in (*range(1, 13), *range(16, 20), 21)}

    def test_every_requirement_has_its_row(self) -> None:
        listed = [row[0] for row in rows(page("requirements")) if re.fullmatch(r"[PCGL]\d+", row[0])]
        self.assertEqual(sorted(listed), sorted(self.wanted()))

    def test_every_named_test_exists(self) -> None:
        shown = [row for row in rows(page("requirements")) if re.fullmatch(r"[PCGL]\d+", row[0])]
        self.assertNotEqual(shown, [])
        for ident, _, cell in shown:
            names = re.findall(r"`((?:\w+\.)*test_\w+(?:\.\w+)*)`", cell)
            others = set(re.findall(r"\b[PCGL]\d+\b", cell)) if cell.startswith("as ") else set()
            self.assertTrue(names or others & self.wanted() or "not shown yet" in cell, f"{ident} names nothing")
            for name in names:
                self.assertTrue(find_test(f"tests.{name}"), f"{ident}: there is no tests.{name}")


class PartCase(SynchronousTestCase):
    """What the page about requirements says of one part's limits, states and bad input."""

    part: str

    def section(self, name: str) -> list[list[str]]:
        return rows(page("requirements").partition(f"\n## {self.part}: {name}\n")[2].partition("\n## ")[0])[1:]

    def limits(self, *modules: ModuleType) -> None:
        """Hold every listed limit equal to the code, and every limit of these modules listed."""
        listed: dict[str, set[str]] = {}
        for name, value, _ in self.section("limits"):
            module, _, constant = name.strip("`").rpartition(".")
            number = getattr(importlib.import_module(f"layer8.{module}"), constant)
            self.assertEqual(float(value.split()[0].replace(",", "")), number, name)
            self.assertNotIn(constant, listed.setdefault(module, set()))
            listed[module].add(constant)
        for one in modules:
            named = {name for name in vars(one) if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}
            self.assertEqual(named, listed[one.__name__.removeprefix("layer8.")])

    def states(self, conversations: dict[str, type[Enum] | tuple[str, ...]]) -> None:
        wanted = [
            (name, state.lower().replace("_", " "))
            for name, states in conversations.items()
            for state in (states if isinstance(states, tuple) else tuple(states.__members__))
        ]
        self.assertEqual([(row[0], row[1]) for row in self.section("states")], wanted)

    def named(self, **least: int) -> None:
        """Hold every row to tests that are there."""
        for section, count in least.items():
            shown = self.section(section.replace("_", " "))
            self.assertGreaterEqual(len(shown), count)
            for row in shown:
                names = re.findall(r"`((?:\w+\.)*test_\w+(?:\.\w+)*)`", row[-1])
                self.assertTrue(names or row[-1] == "missing", f"{row[0]} names nothing")
                for name in names:
                    self.assertTrue(find_test(f"tests.{name}"), f"{row[0]}: there is no tests.{name}")


class NetworkTests(PartCase):
    part = "Network"

    def test_every_limit_has_its_value(self) -> None:
        self.limits(relay_limits, tracker_limits)

    def test_every_state_of_every_conversation(self) -> None:
        self.states(
            {
                "link": link.State,
                "circuit at its client": origin.State,
                "circuit at a relay": circuit.State,
                "stream": flow.State,
                "SOCKS client": session._At,
                "guard": guards.State,
            }
        )

    def test_every_row_names_tests_that_are_there(self) -> None:
        self.named(limits=100, states=30, who_learns_what=5, bad_input=18)


class HiddenTests(PartCase):
    part = "Hidden services"

    def test_every_limit_has_its_value(self) -> None:
        self.limits(dht_limits, rendezvous_limits)

    def test_every_state_of_every_conversation(self) -> None:
        self.states(
            {
                "service": ("off", "picking points", "listening", "published", "stopping"),
                "client": ("have name", "descriptor", "work", "waiting rendezvous", "introduced", "joined", "closed"),
                "client that fails": client.Step,
                "access point": ("idle", "listening", "busy", "gone"),
                "answer to a knock": wire.Status,
                "rendezvous hop": ("waiting", "joined", "closed"),
                "DHT lookup": ("seeding", "running", "storing", "done", "none"),
                "node in a lookup": lookup.State,
                "name": claims.State,
                "layer of a name": names.Layer,
            }
        )

    def test_every_row_names_tests_that_are_there(self) -> None:
        self.named(limits=75, states=45, what_survives=6, who_learns_what=9, bad_input=20)


class TunnelTests(PartCase):
    part = "Browser tunnel"

    # Numbers that bound nothing a peer could grow: forms on the wire, codes, how often something is done, by how much.
    others = frozenset(
        (
            *("tunnel.bhttp.VARINT_MOST", "tunnel.wire.ALGORITHMS", "tunnel.wire.HEAD", "tunnel.jws.KID"),
            *("tunnel.keys.HOUR", "tunnel.replay.MARK", "tunnel.replay.MINUTE"),
            *("tunnel.gateway_session.RANDOM", "tunnel.gateway_sockets.BACKEND", "tunnel.socket_session.GONE"),
            *("tunnel.messages.NOT_TEXT", "tunnel.gateway_pg.LOCK"),
            *(
                f"tunnel.frames.{name}"
                for name in ["FIRST", "SECOND", "FIRST_SIZE", "SECOND_SIZE", "HEAD", "LAST", "DATA"]
            ),
            *(
                f"tunnel.passage.{name}"
                for name in ["NORMAL", "GOING_AWAY", "BROKEN", "WRONG_KIND", "NO_CODE", "TOO_LONG"]
            ),
            *("tunnel.asgi.LOOK", "tunnel.driving.FLUSH", "tunnel.driving.SWEEP", "tunnel.gateway.UPKEEP"),
            *("tunnel.piping.SWEEP", "tunnel.relaying.SWEEP", "tunnel.replay_store.TOGETHER", "tunnel.resource.PIECE"),
            *("tunnel.service.FAREWELL", "tunnel.service.SETTLE", "tunnel.serving.READ", "tunnel.wsgi.SPOOL"),
            *("tunnel.checks.TOLD", "tunnel.client.UNPACKED", "net.http.SWEEP"),
        )
    )

    def test_every_limit_has_its_value(self) -> None:
        self.limits(tunnel_limits, admission)

    def test_every_number_is_a_limit_or_known_to_be_none(self) -> None:
        listed = {row[0].strip("`") for row in self.section("limits")}
        found = set()
        for path in sorted((ROOT / "layer8").glob("tunnel/*.py")) + sorted((ROOT / "layer8").glob("net/http*.py")):
            name = f"{path.parent.name}.{path.stem}"
            module = importlib.import_module(f"layer8.{name}")
            for line in ast.parse(path.read_text()).body:
                target = line.target if isinstance(line, ast.AnnAssign) else None
                constant = target.id if isinstance(target, ast.Name) else ""
                if re.fullmatch(r"[A-Z][A-Z0-9_]+", constant) and type(getattr(module, constant, None)) in (int, float):
                    found.add(f"{name}.{constant}")
        shown = {one for one in found if one.startswith("tunnel.demo_")}
        self.assertEqual(found - self.others - shown | (shown & listed), listed)
        self.assertLessEqual(self.others, found)

    def test_every_state_of_every_conversation(self) -> None:
        self.states(
            {
                "sealed request at the relay": relay_session._At,
                "sealed request at the gateway": gateway_session._At,
                "tunnel of a page": client_keys.State,
                "request of a client": client_session._At,
                "socket inside": socket_session._At,
                "socket at the relay": ("handshake", "joined", "closing"),
            }
        )

    def test_every_row_names_tests_that_are_there(self) -> None:
        self.named(limits=110, states=30, who_learns_what=9, bad_input=25)
