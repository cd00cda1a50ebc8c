"""The rows `proxy.*`: who may call which, what they do through the table, and that no result holds a secret."""

import json
from typing import Any

from attrs import define, evolve, field
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.access import Caller
from layer8.control.errors import (
    Conflict,
    ControlError,
    Forbidden,
    InvalidParams,
    InvalidRequest,
    NotFound,
    from_wire,
)
from layer8.control.table import Table
from layer8.proxy import errors
from layer8.proxy.bans import Bans
from layer8.proxy.choose import Seat
from layer8.proxy.methods import AgentRows, OwnerRows
from layer8.proxy.operate import BanRows, OperatorRows
from layer8.proxy.orders import ConnectionRow
from layer8.proxy.registration import proof_wanted
from layer8.proxy.tally import HostTally, Totals
from layer8.proxy.wire import Code, DataAddress, Reason
from tests.control.callers import KeptPeer, caller, run
from tests.control.matrix import LISTENERS, wrong_cells
from tests.proxy.desk import HOST, NONCE, OTHER, SECRET, Desk, key_of, proof, row

AGENT = frozenset({"agent", "owner"})
ROLES: dict[str, set[str]] = {
    "proxy.hello": {"public"},
    "proxy.subscribe": {"public"},
    "proxy.unsubscribe": {"agent"},
    "proxy.health": {"agent"},
    "proxy.reject": {"agent"},
    "proxy.register": {"owner", "admin"},
    "proxy.update": {"owner", "admin"},
    "proxy.unregister": {"owner", "admin"},
    "proxy.rotate": {"owner", "admin"},
    "proxy.get": {"owner", "admin"},
    "proxy.list": {"owner", "admin"},
    "proxy.prove": {"owner", "admin"},
    "proxy.hosts": {"read"},
    "proxy.subscribers": {"read"},
    "proxy.connections": {"read"},
    "proxy.stats": {"read"},
    "proxy.kill": {"operate"},
    "proxy.ban": {"operate"},
    "proxy.unban": {"operate"},
    "proxy.drain": {"operate"},
    "proxy.undrain": {"operate"},
}


@define(eq=False)
class Visitors:
    """Visitors that a test makes up, and what was done to them."""

    totals: Totals = field(factory=Totals)
    tallies: dict[str, HostTally] = field(factory=dict)
    pending: list[object] = field(factory=list)
    waiting: list[object] = field(factory=list)
    there: list[ConnectionRow] = field(factory=list)
    drained: list[tuple[int | None, tuple[str, ...]]] = field(factory=list)
    draining: bool = False
    agents: int = 0

    @property
    def visits(self) -> list[ConnectionRow]:
        return self.there

    def rows(self) -> Any:
        return iter(self.there)

    def kill(self, conns: Any, host: str | None) -> int:
        left = [one for one in self.there if not (one.host == host or (conns and one.conn in conns))]
        gone, self.there = len(self.there) - len(left), left
        return gone

    def drain(self, deadline_s: int | None, alternatives: tuple[str, ...]) -> None:
        self.drained.append((deadline_s, alternatives))
        self.draining = True

    def undrain(self) -> None:
        self.draining = False


def visitor(conn: int, host: str = HOST) -> ConnectionRow:
    return ConnectionRow(conn, host, 443, "https", "joined", 1, 5, 1001, 2001, "198.51.100.9")


class Rows(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = Desk(self.mktemp())
        self.visitors = Visitors()
        self.rejected: list[tuple[Seat, int]] = []
        self.bans = Bans()
        self.banned: list[tuple[str, float | None]] = []
        self.agent_rows = AgentRows(
            self.desk.house, self.desk.clock, lambda: NONCE, lambda seat, conn: self.rejected.append((seat, conn))
        )
        self.table = Table(self.desk.wall)
        for module in (
            self.agent_rows,
            OwnerRows(self.desk.ledger, lambda host: self.visitors.kill(None, host)),
            OperatorRows(
                self.desk.registry,
                self.desk.seats,
                self.bans,
                self.visitors,
                self.visitors,
                lambda host: (1001, 2001),
                self.desk.clock.seconds,
            ),
            BanRows(self.bans, self.desk.store, self.desk.wall, lambda *changed: self.banned.append(changed)),
        ):
            self.table.add(module)
        self.admin = caller("admin")
        self.ann = evolve(caller("owner"), name="ann", hosts=("*.ann.example", "ann.example"))
        self.bob = evolve(caller("owner"), name="bob")

    def call(self, who: Caller, name: str, **params: Any) -> Any:
        return run(self.table.call(who, name, params))

    def fails(self, kind: type[ControlError], who: Caller, name: str, **params: Any) -> Any:
        error = self.assertRaises(kind, self.call, who, name, **params)
        self.assertIn(kind, (*self.table.methods[name].errors, InvalidParams, Forbidden))
        return error

    def register(self, who: Caller, host: str, secret: bytes = SECRET, **more: Any) -> Any:
        return self.call(who, "proxy.register", host=host, secret_hash=key_of(secret).hex(), **more)


class MatrixTests(Rows):
    def test_every_role_at_every_listener(self) -> None:
        within = {"proxy.hello": "agent", "proxy.subscribe": "agent"}
        self.assertEqual(wrong_cells(self.table, ROLES, within), [])
        self.assertIn("agents", LISTENERS)

    def test_error_classes_have_the_codes_of_the_wire(self) -> None:
        names = set()
        for code in Code:
            kind = type(from_wire(code, "text"))
            self.assertEqual((kind.__module__, kind.code), (errors.__name__, code))
            names.add(kind.name)
        self.assertEqual(len(names), len(Code))


class AgentTests(Rows):
    def setUp(self) -> None:
        super().setUp()
        self.desk.registry.put(row())
        self.peer = KeptPeer()
        self.agent = caller("public", ceiling=AGENT, peer=self.peer)

    def known(self) -> Caller:
        """The agent after its subscription."""
        return self.agent.with_role("agent")

    def hello(self) -> Any:
        return self.call(self.agent, "proxy.hello", versions=[1], instance="instance 1")

    def test_hello_and_subscribe(self) -> None:
        told = self.hello()
        self.assertEqual((told["version"], told["nonce"]), (1, NONCE.hex()))
        self.assertEqual(told["data"], [{"host": "", "port": 4000, "tls": False}])
        self.assertEqual(self.peer.roles, set())
        got = self.call(self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.assertEqual(got, {"subscription": 1, "lease_s": 60, "resume": "resume 1"})
        self.assertEqual(self.peer.roles, {"agent"})
        self.assertEqual(len(self.agent_rows), 1)

    def test_out_of_order(self) -> None:
        self.fails(InvalidRequest, self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.hello()
        self.fails(InvalidRequest, self.agent, "proxy.hello", versions=[1], instance="instance 1")

    def test_wrong_proof_gives_no_role(self) -> None:
        self.hello()
        self.fails(errors.WrongSecret, self.agent, "proxy.subscribe", host=HOST, proof=proof(secret=OTHER))
        self.assertEqual(self.peer.roles, set())
        self.assertRaises(Forbidden, self.call, self.agent, "proxy.unsubscribe", subscription=1)

    def test_shapes(self) -> None:
        self.hello()
        for path, params in (
            ("", {"host": HOST}),
            ("", {"host": HOST, "proof": proof(), "secret": SECRET.hex()}),
            ("proof", {"host": HOST, "proof": "0" * 63}),
            ("proof", {"host": HOST, "proof": "G" * 64}),
            ("secret", {"host": HOST, "secret": "00" * 31}),
            ("secret", {"host": HOST, "secret": "00" * 257}),
            ("host", {"host": "", "proof": proof()}),
            ("host", {"host": "x" * 513, "proof": proof()}),
            ("weight", {"host": HOST, "proof": proof(), "weight": 0}),
            ("weight", {"host": HOST, "proof": proof(), "weight": 1.5}),
            ("priority", {"host": HOST, "proof": proof(), "priority": -1}),
            ("token", {"host": HOST, "proof": proof(), "token": "x"}),
        ):
            error = self.fails(InvalidParams, self.agent, "proxy.subscribe", **params)
            self.assertEqual(error.data, {"path": path})

    def test_lost_connection_ends_its_subscriptions(self) -> None:
        self.hello()
        self.call(self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.peer.close("silent")
        self.assertEqual((self.desk.gone, len(self.agent_rows)), ([(1, False)], 0))

    def test_reject_goes_to_the_visitors(self) -> None:
        self.hello()
        self.call(self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.call(self.known(), "proxy.reject", subscription=1, conn=7, code=-20008)
        self.call(self.known(), "proxy.reject", subscription=2, conn=7, code=-20008)
        self.assertEqual([(seat.number, conn) for seat, conn in self.rejected], [(1, 7)])

    def test_unsubscribe_and_health(self) -> None:
        self.hello()
        self.call(self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.assertEqual(self.call(self.known(), "proxy.health", subscription=1, state="down"), {})
        self.assertIsNone(self.desk.seats.best(HOST))
        self.assertEqual(self.call(self.known(), "proxy.unsubscribe", subscription=1), {})
        self.fails(errors.LeaseExpired, self.known(), "proxy.unsubscribe", subscription=1)

    def test_guessing_is_told_when_to_come_back(self) -> None:
        self.hello()
        for _ in range(20):
            self.fails(errors.WrongSecret, self.agent, "proxy.subscribe", host=HOST, proof="0" * 64)
        error = self.fails(errors.TooManyTries, self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.assertEqual(error.data, {"retry_after_ms": 60_001})

    def test_new_data_port_and_drain_are_told(self) -> None:
        self.hello()
        self.agent_rows.announce((DataAddress("", 4001, tls=True, pin="p"),))
        self.agent_rows.drain(("wss://b.example.net",), 30_000)
        self.assertEqual(
            self.peer.told,
            [
                ("proxy.nodes", {"data": [{"host": "", "port": 4001, "tls": True, "pin": "p"}]}),
                ("proxy.drain", {"deadline_ms": 30_000, "alternatives": ["wss://b.example.net"]}),
            ],
        )
        self.fails(errors.Draining, self.agent, "proxy.subscribe", host=HOST, proof=proof())
        self.agent_rows.undrain()
        self.call(self.agent, "proxy.subscribe", host=HOST, proof=proof())

    def test_an_agent_that_does_not_read_is_closed(self) -> None:
        self.hello()
        self.peer.full = True
        self.agent_rows.announce(())
        self.assertEqual(self.peer.closed, "slow_reader")


class OwnerTests(Rows):
    def test_inside_the_patterns(self) -> None:
        made = self.register(self.ann, "App.ann.example", ports=[443], ttl_s=60)
        self.assertEqual((made["host"], made["owner"], made["state"]), ("app.ann.example", "ann", "owned"))
        self.assertEqual((made["ports"], made["version"], made["static"]), ([443], 1, False))
        self.assertEqual(made["secrets"], [{"starts_with": key_of().hex()[:8]}])
        self.assertNotIn("proof", made)
        self.fails(errors.AlreadyRegistered, self.ann, "proxy.register", host="app.ann.example", secret_hash="0" * 64)

    def test_outside_the_patterns(self) -> None:
        made = self.register(self.bob, "shop.example.org")
        wanted = proof_wanted("shop.example.org", "bob")
        self.assertEqual(made["state"], "pending")
        self.assertEqual(made["proof"]["txt_value"], wanted.txt_value)
        error = self.fails(errors.NotProven, self.bob, "proxy.prove", host="shop.example.org")
        self.assertEqual(error.data["txt_name"], "_layer8.shop.example.org")
        self.desk.prover.there.add(wanted.txt_value)
        self.assertEqual(self.call(self.bob, "proxy.prove", host="shop.example.org")["state"], "proven")
        self.assertIsNotNone(self.desk.registry.lookup("shop.example.org"))

    def test_admin_skips_the_proof_and_names_the_owner(self) -> None:
        self.assertEqual(self.register(self.admin, "a.example.org")["owner"], "tester")
        made = self.register(self.admin, "b.example.org", owner="bob")
        self.assertEqual((made["owner"], made["state"]), ("bob", "owned"))
        self.assertEqual(self.call(self.bob, "proxy.get", host="b.example.org"), made)
        self.fails(
            errors.ForbiddenByPolicy,
            self.ann,
            "proxy.register",
            host="x.ann.example",
            secret_hash="0" * 64,
            owner="bob",
        )
        self.register(self.ann, "x.ann.example", owner="ann")

    def test_names_that_cannot_be(self) -> None:
        for host in ("localhost", "192.0.2.1", "*.com", "a" * 254, "proxy.example.net", "a_b.example.com"):
            self.fails(errors.InvalidHost, self.admin, "proxy.register", host=host, secret_hash="0" * 64)

    def test_shapes(self) -> None:
        for path, params in (
            ("secret_hash", {"host": HOST}),
            ("secret_hash", {"host": HOST, "secret_hash": "00" * 31}),
            ("secret", {"host": HOST, "secret_hash": "0" * 64, "secret": SECRET.hex()}),
            ("ports[1]", {"host": HOST, "secret_hash": "0" * 64, "ports": [80, 0]}),
            ("ports", {"host": HOST, "secret_hash": "0" * 64, "ports": [80] * 65}),
            ("mode", {"host": HOST, "secret_hash": "0" * 64, "mode": "glass"}),
            ("ttl_s", {"host": HOST, "secret_hash": "0" * 64, "ttl_s": 0}),
            ("policy.allow[0]", {"host": HOST, "secret_hash": "0" * 64, "policy": {"allow": [1]}}),
            ("policy.visitor", {"host": HOST, "secret_hash": "0" * 64, "policy": {"visitor": "some"}}),
        ):
            error = self.fails(InvalidParams, self.admin, "proxy.register", **params)
            self.assertEqual(error.data, {"path": path})

    def test_owners_see_their_own(self) -> None:
        self.register(self.ann, "a.ann.example")
        self.register(self.bob, "b.example.org")
        hosts = {who.name: self.call(who, "proxy.list")["hosts"] for who in (self.ann, self.bob, self.admin)}
        self.assertEqual([found["host"] for found in hosts["ann"]], ["a.ann.example"])
        self.assertEqual([found["host"] for found in hosts["bob"]], ["b.example.org"])
        self.assertEqual([found["host"] for found in hosts["tester"]], ["a.ann.example", "b.example.org"])
        for name in ("proxy.get", "proxy.unregister", "proxy.prove"):
            other = self.fails(errors.WrongSecret, self.bob, name, host="a.ann.example")
            none = self.fails(errors.WrongSecret, self.bob, name, host="none.example.org")
            self.assertEqual((str(other), other.data), (str(none), none.data))

    def test_a_claim_does_not_tell_whether_the_host_exists(self) -> None:
        self.register(self.ann, "a.ann.example")
        taken, free = self.register(self.bob, "a.ann.example"), self.register(self.bob, "free.ann.example")
        self.assertEqual(taken["state"], "pending")
        self.assertEqual(taken.keys(), free.keys())

    def test_update_rotate_unregister(self) -> None:
        version = self.register(self.ann, "a.ann.example")["version"]
        changed = self.call(self.ann, "proxy.update", host="a.ann.example", ports=[80], version=version)
        self.assertEqual(changed["ports"], [80])
        self.fails(Conflict, self.ann, "proxy.update", host="a.ann.example", version=version)
        both = self.call(self.ann, "proxy.rotate", host="a.ann.example", secret_hash=key_of(OTHER).hex(), grace_s=60)
        self.assertEqual([secret.get("retires_at") for secret in both["secrets"]], [int(self.desk.wall()) + 60, None])
        self.visitors.there = [visitor(1, "a.ann.example"), visitor(2)]
        self.assertEqual(self.call(self.ann, "proxy.unregister", host="a.ann.example"), {})
        self.assertEqual(len(self.visitors.there), 2)
        self.register(self.ann, "a.ann.example")
        self.call(self.ann, "proxy.unregister", host="a.ann.example", kill=True)
        self.assertEqual([left.conn for left in self.visitors.there], [2])

    def test_long_lists_come_in_pages_that_fit(self) -> None:
        for number in range(200):
            self.register(self.ann, f"h{number:03}.ann.example")
        seen: list[str] = []
        cursor: str | None = None
        pages = 0
        while True:
            page = self.call(self.ann, "proxy.list", **({} if cursor is None else {"cursor": cursor}))
            self.assertLess(len(json.dumps(page)), 16 * 1024)
            seen += [found["host"] for found in page["hosts"]]
            pages += 1
            cursor = page.get("cursor")
            if cursor is None:
                break
        self.assertEqual(seen, [f"h{number:03}.ann.example" for number in range(200)])
        self.assertGreater(pages, 1)
        self.assertEqual(len(self.call(self.ann, "proxy.list", limit=3)["hosts"]), 3)

    def test_no_result_holds_a_secret(self) -> None:
        self.register(self.ann, "a.ann.example")
        said = [
            self.call(self.ann, "proxy.get", host="a.ann.example"),
            self.call(self.admin, "proxy.list"),
            self.call(self.admin, "proxy.hosts"),
        ]
        for known in (SECRET.hex(), key_of().hex()):
            self.assertNotIn(known, json.dumps(said))


class OperatorTests(Rows):
    def setUp(self) -> None:
        super().setUp()
        self.desk.registry.put(row())
        self.seat = self.desk.seat(self.desk.agent()[0])
        self.visitors.there = [visitor(number) for number in (1, 2, 3)]
        self.visitors.tallies[HOST] = HostTally(HOST, open=3)
        self.visitors.totals.ended[Reason.DONE] = 4
        self.reader, self.operator = caller("read"), caller("operate")

    def test_hosts(self) -> None:
        (exact,) = self.call(self.admin, "proxy.hosts")["hosts"]
        self.assertEqual(
            exact,
            {"host": HOST, "state": "owned", "subscribers": 1, "open": 3, "bytes_in": 1001, "bytes_out": 2001},
        )
        (blurred,) = self.call(self.reader, "proxy.hosts")["hosts"]
        self.assertEqual((blurred["bytes_in"], blurred["bytes_out"]), (1024, 2048))

    def test_subscribers(self) -> None:
        (whole,) = self.call(self.admin, "proxy.subscribers")["subscribers"]
        self.assertEqual((whole["subscription"], whole["host"], whole["address"]), (1, HOST, "192.0.2.7"))
        (read,) = self.call(self.reader, "proxy.subscribers")["subscribers"]
        self.assertNotIn("address", read)
        self.assertNotIn(self.seat.resume, json.dumps(whole))
        self.assertEqual(self.call(self.reader, "proxy.subscribers", cursor="1")["subscribers"], [])

    def test_connections(self) -> None:
        page = self.call(self.admin, "proxy.connections", limit=2)
        self.assertEqual(([one["conn"] for one in page["connections"]], page["cursor"]), ([1, 2], "2"))
        rest = self.call(self.reader, "proxy.connections", cursor="2")
        self.assertEqual([one["conn"] for one in rest["connections"]], [3])
        self.assertNotIn("cursor", rest)
        self.assertNotIn("198.51.100.9", json.dumps(rest))
        self.assertIn("198.51.100.9", json.dumps(page))

    def test_stats(self) -> None:
        told = self.call(self.reader, "proxy.stats")
        self.assertEqual((told["hosts"], told["subscribers"], told["open"], told["bans"]), (1, 1, 3, 0))
        self.assertEqual(told["ended"], {"done": 4})

    def test_kill(self) -> None:
        self.assertEqual(self.call(self.operator, "proxy.kill", conn=2), {"closed": 1})
        self.fails(NotFound, self.operator, "proxy.kill", conn=2)
        self.assertEqual(self.call(self.operator, "proxy.kill", host=HOST.upper()), {"closed": 2})
        self.assertEqual(self.call(self.operator, "proxy.kill", host="none.example.com"), {"closed": 0})
        self.fails(InvalidParams, self.operator, "proxy.kill")
        self.fails(InvalidParams, self.operator, "proxy.kill", conn=1, host=HOST)

    def test_bans_are_kept(self) -> None:
        self.call(self.operator, "proxy.ban", cidr="192.0.2.0/24", ttl_s=60)
        self.assertIn("192.0.2.1", self.bans)
        (kept,) = self.desk.store.load().bans
        self.assertEqual((kept.cidr, kept.until), ("192.0.2.0/24", self.desk.wall() + 60))
        self.call(self.operator, "proxy.unban", cidr="192.0.2.0/24")
        self.assertNotIn("192.0.2.1", self.bans)
        self.assertEqual(self.desk.store.load().bans, ())
        self.fails(NotFound, self.operator, "proxy.unban", cidr="192.0.2.0/24")
        self.fails(errors.ForbiddenByPolicy, self.operator, "proxy.ban", cidr="nowhere", ttl_s=60)
        self.assertEqual(self.banned, [("192.0.2.0/24", kept.until), ("192.0.2.0/24", None)])

    def test_drain(self) -> None:
        self.assertEqual(self.call(self.operator, "proxy.drain", deadline_s=5), {"connections": 3})
        self.call(self.operator, "proxy.drain", alternatives=["wss://b.example.net"])
        self.assertEqual(self.visitors.drained, [(5, ()), (None, ("wss://b.example.net",))])
        self.assertTrue(self.call(self.reader, "proxy.stats")["draining"])
        self.call(self.operator, "proxy.undrain")
        self.assertFalse(self.call(self.reader, "proxy.stats")["draining"])
