"""The cases of `test_bindings` over a real Crossbar.io, and what only a router can do wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.config.load import load_text
from layer8.config.problem import ConfigProblems
from layer8.config.sections import Role, WampConfig
from layer8.control.access import ROLES
from layer8.control.errors import (
    CallRefused,
    CallUnavailable,
    Forbidden,
    InvalidParams,
    MethodNotFound,
    NoCapacity,
    RateLimited,
)
from layer8.control.wamp import GUESTS, WampBinding
from layer8.crypto.x509 import self_signed
from tests.control.rig import Rig, pause, raises, rig, until
from tests.control.router import Caller, Router, passed, quiet, shared
from tests.control.test_bindings import Cases
from tests.interop.daemons import no_crossbar

NODE = "abcdefgh"


class Wamp:
    """A rig whose table is served over the router too."""

    skip = no_crossbar()
    rig: Rig
    timeout = 20

    def setUp(self) -> Any:
        self.rig = rig(self)  # type: ignore[arg-type]
        self.router = shared()
        self.callers: list[Caller] = []
        self.joins = 0
        return Deferred.fromCoroutine(self.serve())

    async def serve(self) -> None:
        self.binding = WampBinding(
            self.rig.service.pulse, self.rig.table, NODE, {"read": "read", "admin": "admin", "node": "public"}
        )
        self.rig.service.beside.append(self.binding)
        self.link = self.router.link(self.rig.reactor, "node0")
        self.link.use(self.binding)
        self.link.startService()
        case: Any = self
        case.addCleanup(lambda: Deferred.fromCoroutine(self.end()))
        await until(self.rig.reactor, lambda: self.link.session is not None)
        # the router has taken our registrations when it answers what we ask after them
        await passed(self.link)

    async def end(self) -> None:
        for caller in self.callers:
            await caller.close()
        await self.link.stopService()
        await quiet(self.rig.reactor)

    async def come(self, name: str) -> Caller:
        self.joins += 1
        link = self.router.link(self.rig.reactor, f"{name}{self.joins % 10}")
        caller = Caller(self.rig.reactor, link, NODE)
        self.callers.append(caller)
        return await caller.open()


class WampTests(Wamp, Cases, TestCase):
    """C12: what a caller sees over the router is what it sees over a socket; only who it is comes by another way."""

    kind = "wamp"
    known = False

    async def caller(self, token: str | None = None) -> Any:
        return await self.come("node")

    async def reader(self) -> Any:
        return await self.come("read")

    async def admin(self) -> Any:
        return await self.come("admin")

    async def test_who_an_anonymous_caller_is(self) -> None:
        for name, roles in (("node", ["public"]), ("hidden", ["public"]), ("read", ["read"]), ("admin", ["admin"])):
            self.same((await (await self.come(name)).call("auth.whoami"))["roles"], roles)

    async def test_the_cookie_is_admin(self) -> None:
        """Nor is any other token: the router would read it."""
        caller = await self.caller()
        await raises(CallRefused, caller.call("auth.token", {"token": self.rig.service.keyring.cookie}))
        self.same((await caller.call("auth.whoami"))["roles"], ["public"])

    async def test_auth_token_makes_known(self) -> None:
        await raises(Forbidden, (await self.caller()).call("test.add", {"number": 1}))
        self.same(await (await self.reader()).call("test.add", {"number": 1}), {"number": 2})

    async def test_a_wrong_token(self) -> None:
        await raises(CallRefused, (await self.caller()).call("auth.token", {"token": "wrong"}))

    async def test_tokens_of_all_lengths_are_wrong_alike(self) -> None:
        for text in ("", "x" * 43, "\U0001f600" * 10, "x" * 20_000):
            await raises(CallRefused, (await self.caller()).call("auth.token", {"token": text}))

    async def test_the_third_wrong_token_closes(self) -> None:
        """There are none to guess at."""
        caller = await self.caller()
        for _ in range(4):
            await raises(CallRefused, caller.call("auth.token", {"token": "wrong"}))
        self.same(await caller.call("rpc.ping"), {})

    async def test_a_named_token(self) -> None:
        reader = await self.reader()
        await reader.call("node.health")
        self.same((await raises(Forbidden, reader.call("node.drain", {}))).data, {"need": "operate"})

    async def test_tokens_come_and_go(self) -> None:
        """None is shown over a router, which would read it."""
        admin = await self.admin()
        await raises(CallRefused, admin.call("token.add", {"name": "ops", "roles": ["operate"], "ttl_s": 60}))
        self.same(await admin.call("token.list"), [])

    async def test_tokens_that_cannot_be(self) -> None:
        admin = await self.admin()
        await raises(InvalidParams, admin.call("token.add", {"name": "a", "roles": ["read"], "ttl_s": -1}))

    async def test_a_caller_that_vanishes_cancels_its_calls(self) -> None:
        client = await self.caller()
        waiting = Deferred.fromCoroutine(client.call("test.wait"))
        await until(self.rig.reactor, lambda: self.rig.rows.waiting)
        client.abort()
        await raises(CallUnavailable, waiting)
        await until(self.rig.reactor, lambda: self.rig.rows.cancelled == 1)
        await until(self.rig.reactor, lambda: not self.binding.crowd)

    async def test_a_notification_to_the_server_runs(self) -> None:
        """WAMP has none: a call whose answer nobody waits for is the same."""
        client = await self.caller()
        Deferred.fromCoroutine(client.call("test.wait")).addErrback(lambda _: None)
        await until(self.rig.reactor, lambda: self.rig.rows.ran == ["wait"])

    async def test_metrics(self) -> None:
        page = await (await self.reader()).call("metrics.snapshot", {"prefix": "layer8_control_connections"})
        self.same(list(page["series"]), ['layer8_control_connections{listener="local"}'])

    async def test_the_server_may_call_too(self) -> None:
        """Over a router a server calls what a caller registers there itself, so it has no way to here."""

    async def test_a_client_without_methods_has_none(self) -> None:
        caller = await self.caller()
        error = await raises(CallUnavailable, caller.invoke("layer8.somebody.node.status", {}))
        self.true("no_such_procedure" in str(error))

    async def test_closing_is_heard_at_both_ends(self) -> None:
        client = await self.caller()
        await client.call("rpc.ping")
        lost: list[str] = []
        next(iter(self.binding.crowd)).when_lost(lambda: lost.append("server"))
        await client.close()
        await until(self.rig.reactor, lambda: lost)
        self.same(self.rig.service.conversations(), [])

    async def test_the_service_ends(self) -> None:
        client = await self.caller()
        await client.call("rpc.ping")
        await self.link.stopService()
        self.same(len(self.binding.crowd), 0)
        await raises(CallUnavailable, client.call("rpc.ping"))

    async def test_twice_the_same_id(self) -> None:
        """The router numbers calls; two at once are two."""
        client = await self.caller()
        one, two = (Deferred.fromCoroutine(client.call("rpc.ping")) for _ in range(2))
        self.same((await one, await two), ({}, {}))


class SameAnswers(Wamp, TestCase):
    """C12, in bytes."""

    CALLS: ClassVar[tuple[tuple[str, dict[str, Any]], ...]] = (
        ("rpc.ping", {}),
        ("rpc.discover", {}),
        ("rpc.discover", {"module": "auth"}),
        ("test.echo", {"text": "grüße \U0001f600 \x00 \u2028"}),
        ("test.echo", {}),
        ("test.echo", {"text": 1}),
        ("test.echo", {"text": "", "more": None}),
        ("test.add", {"number": 7}),
        ("test.nothing", {}),
        ("test.refused", {}),
        ("test.peer", {}),
        ("test.agent", {}),
        ("test.long", {"size": 140_000}),
        ("knowledge.table", {"part": "proxy"}),
        ("node.health", {}),
        ("config.show", {}),
        ("config.check", {"toml": "[log]\nlevle = 1\n"}),
        ("log.tail", {"lines": 0}),
        ("token.list", {}),
    )

    async def said(self, client: Any, method: str, params: dict[str, Any]) -> str:
        from layer8.control.errors import ControlError

        try:
            return json.dumps(await client.call(method, params), sort_keys=True)
        except ControlError as error:
            return json.dumps([error.code, error.name, error.message, error.data], sort_keys=True)

    async def test_the_same_bytes_over_every_binding(self) -> None:
        self.rig.health.set("listener", True)
        for role in ("public", "read", "admin"):
            clients: list[Any] = [await self.come("node" if role == "public" else role)]
            for kind in ("tcp", "tls"):
                token = None
                if role != "public":
                    token = self.rig.service.keyring.add(f"{role}-{kind}", frozenset({role}), None)
                clients.append(await self.rig.client(kind, token))
            if role == "admin":  # what lists tokens is compared too
                for named in list(self.rig.service.keyring.tokens):
                    self.rig.service.keyring.revoke(named.name)
            for method, params in self.CALLS:
                answers = [await self.said(client, method, params) for client in clients]
                self.assertEqual(len(set(answers)), 1, (role, method, answers))


class RouterTests(Wamp, TestCase):
    """What only a router brings."""

    async def test_any_node(self) -> None:
        """Methods that answer alike on all nodes have a name that reaches any; others have not."""
        caller = await self.come("read")
        self.assertEqual(await caller.invoke("layer8.any.rpc.ping", {}), {})
        await raises(MethodNotFound, caller.invoke("layer8.any.node.status", {}))
        self.assertEqual((await caller.call("node.status"))["id"], NODE)

    async def test_a_process_that_takes_over(self) -> None:
        """The one that registers last has the node's name, though the other is still there."""
        binding = WampBinding(self.rig.service.pulse, self.rig.table, NODE, {"node": "read"})
        link = self.router.link(self.rig.reactor, "node1")
        link.use(binding)
        link.startService()
        self.addCleanup(link.stopService)
        await until(self.rig.reactor, lambda: link.session is not None)
        await passed(link)
        caller = await self.come("node")
        self.assertEqual(await caller.call("rpc.ping"), {})
        self.assertEqual((len(self.binding.crowd), len(binding.crowd)), (0, 1))

    async def test_positional_arguments(self) -> None:
        caller = await self.come("node")
        from autobahn.wamp.exception import ApplicationError

        error = await raises(ApplicationError, caller.link.session.call(f"layer8.{NODE}.test.echo", "text"))
        self.assertEqual((error.error, error.kwargs), ("layer8.error.invalid_params", {"path": ""}))

    async def test_an_undisclosed_caller_is_nobody_each_time(self) -> None:
        caller = await self.come("hidden")
        told: list[Any] = []
        caller.notified = lambda *what: told.append(what)
        await caller.call("test.grant")
        await raises(Forbidden, caller.call("test.agent"))
        await caller.call("test.tell", {"text": "hello"})
        await caller.call("rpc.ping")
        self.assertEqual((told, len(self.binding.crowd)), ([], 0))

    async def test_what_is_told_to_one_is_told_to_nobody_else(self) -> None:
        one, other = await self.come("read"), await self.come("node")
        told: dict[str, list[Any]] = {"one": [], "other": []}
        one.notified = lambda method, params: told["one"].append(params["data"])
        other.notified = lambda method, params: told["other"].append(params)
        await one.call("events.subscribe", {"names": ["node.health"]})
        await raises(Forbidden, other.call("events.subscribe", {"names": ["node.health"]}))
        self.rig.health.set("store", False, "the disk is full")
        await until(self.rig.reactor, lambda: told["one"])
        await other.call("rpc.ping")
        self.assertEqual((len(told["one"]), told["other"]), (1, []))

    async def test_too_many_guests(self) -> None:
        """The one that was quiet for longest makes room; with none quiet there is no room."""
        self.patch_guests(2)
        first, second, third = [await self.come("node") for _ in range(3)]
        for caller in (first, second, third):
            await caller.call("rpc.ping")
        self.assertEqual(len(self.binding.crowd), 2)
        waits = [Deferred.fromCoroutine(caller.call("test.wait")) for caller in (second, third)]
        await until(self.rig.reactor, lambda: len(self.rig.rows.waiting) == 2)
        await raises(RateLimited, first.call("rpc.ping"))
        for waiting in self.rig.rows.waiting:
            waiting.callback(None)
        for answer in waits:
            await answer
        await first.call("rpc.ping")

    def patch_guests(self, most: int) -> None:
        self.assertGreater(GUESTS, most)
        self.patch(__import__("layer8.control.wamp", fromlist=["GUESTS"]), "GUESTS", most)

    async def test_a_call_over_the_cap_that_a_router_lets_through(self) -> None:
        caller = await self.come("node")
        await raises(NoCapacity, caller.invoke(f"layer8.{NODE}.test.echo", {"text": "x" * 70_000}))
        self.assertEqual(await caller.call("rpc.ping"), {})


class LostRouterTests(TestCase):
    """A router that refuses, goes and comes back."""

    skip = no_crossbar()

    async def test_a_wrong_ticket_is_said_and_tried_again(self) -> None:
        from twisted.internet import reactor

        told: list[tuple[bool, str]] = []
        link = shared().link(reactor, "node9", ticket="wrong", report=lambda ok, why: told.append((ok, why)))
        link.startService()
        await until(reactor, lambda: len(told) > 1)
        await link.stopService()
        await quiet(reactor)
        self.assertFalse(any(ok for ok, _ in told))
        self.assertIn("ticket", told[1][1])

    async def test_tls_with_a_certificate_that_no_authority_signed(self) -> None:
        """The one in `ca_file` is trusted; another, or none, is not."""
        from twisted.internet import reactor

        router = Router.start(self, secure=True)
        other = Path(self.mktemp())
        other.write_bytes(self_signed("127.0.0.1")[1])
        told: list[str] = []
        for name, file in (("node1", ""), ("node2", str(other))):
            link = router.link(reactor, name, ca_file=file, report=lambda ok, why: told.append(why))
            link.startService()
            await until(reactor, lambda: len(told) > 1)
            await link.stopService()
            self.assertIn("certificate", told[1])
            told.clear()
        good = router.link(reactor, "node0", ca_file=str(router.certificate))
        good.startService()
        await until(reactor, lambda: good.session is not None)
        await good.stopService()
        await quiet(reactor)

    async def test_killed_and_started_again(self) -> None:
        """Local control is unaffected, and what was registered is registered again."""
        from twisted.internet import reactor

        made = rig(self)
        router = Router.start(self)
        binding = WampBinding(made.service.pulse, made.table, NODE, {"node": "read"})
        link = router.link(reactor, "node0")
        link.use(binding)
        link.startService()
        self.addCleanup(link.stopService)
        await until(made.reactor, lambda: link.session is not None)
        caller = Caller(made.reactor, router.link(reactor, "node1"), NODE)
        self.addCleanup(caller.close)
        await caller.open()
        self.assertEqual(await caller.call("rpc.ping"), {})
        router.kill()
        await until(made.reactor, lambda: link.session is None)
        self.assertEqual(len(binding.crowd), 0)
        local = await made.client("tcp")
        self.assertEqual(await local.call("rpc.ping"), {})
        router.again()
        await until(made.reactor, lambda: link.session is not None and caller.link.session is not None, 15)
        await pause(made.reactor, 0.1)
        self.assertEqual(await caller.call("rpc.ping"), {})
        await caller.close()
        await link.stopService()
        await quiet(reactor)

    timeout = 60


class ConfigTests(SynchronousTestCase):
    """`[control.wamp]`."""

    def test_roles_are_those_that_there_are(self) -> None:
        from typing import get_args

        self.assertEqual(set(get_args(Role)), set(ROLES))
        self.assertEqual(WampConfig().roles, {"node": "node"})

    def test_what_cannot_work(self) -> None:
        for text, key in (
            ('url = "ws://router.example.net/"', "url"),
            ('url = "http://127.0.0.1/"', "url"),
            ('url = "ws://127.0.0.1:1/?a=b"', "url"),
            ('url = "ws://127.0.0.1:8080/ws"', "secret_file"),
            (f'ca_file = "{__file__}"', "ca_file"),
            ('roles = { x = "king" }', "roles"),
            ('auth = "anonymous"', "auth"),
        ):
            problems = self.assertRaises(ConfigProblems, load_text, f"[control.wamp]\n{text}\n", {}, {}, role="proxy")
            self.assertEqual([row.key for row in problems.problems], [f"control.wamp.{key}"], text)
