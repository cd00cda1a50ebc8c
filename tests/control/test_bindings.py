"""The same cases over a Unix socket, TCP and TLS: what a caller sees does not depend on how it came."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from layer8.control.client import Client
from layer8.control.errors import (
    CallRefused,
    CallTimedOut,
    CallUnavailable,
    ControlError,
    Forbidden,
    Internal,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    NoCapacity,
    NotFound,
    RateLimited,
    Unauthenticated,
)
from layer8.control.node import Check, Draining
from layer8.control.table import Table, method
from tests.control.rig import BUG, Number, Rig, Told, pause, raises, rig, until


class Cases:
    """What every binding has to do; `kind` is the listener, `known` whether it knows its callers by itself."""

    kind = ""
    known = False

    def setUp(self) -> None:
        self.rig: Rig = rig(self)  # type: ignore[arg-type]

    async def caller(self, token: str | None = None) -> Client:
        return await self.rig.client(self.kind, token)

    async def reader(self) -> Client:
        token = self.rig.service.keyring.add("reader", frozenset({"read"}), None)
        client = await self.caller()
        await client.call("auth.token", {"token": token})
        return client

    async def admin(self) -> Client:
        return await self.rig.admin(self.kind)

    def same(self, one: object, other: object) -> None:
        case: Any = self
        case.assertEqual(one, other)

    def true(self, value: object) -> None:
        case: Any = self
        case.assertTrue(value)

    def forgive(self, kind: type[BaseException], times: int = 1) -> None:
        case: Any = self
        self.same(len(case.flushLoggedErrors(kind)), times)

    async def test_a_call_and_its_result(self) -> None:
        client = await self.caller()
        self.same(await client.call("test.echo", {"text": "grüße \U0001f600 \x00"}), {"text": "grüße \U0001f600 \x00"})

    async def test_a_result_that_is_nothing(self) -> None:
        self.same(await (await self.caller()).call("rpc.ping"), {})

    async def test_who_an_anonymous_caller_is(self) -> None:
        answer = await (await self.caller()).call("auth.whoami")
        wanted = ("local", ["admin"]) if self.known else ("anonymous", ["public"])
        self.same((answer["name"], answer["roles"]), wanted)

    async def test_the_cookie_is_admin(self) -> None:
        client = await self.caller(self.rig.service.keyring.cookie)
        self.same((await client.call("auth.whoami"))["roles"], ["admin"])

    async def test_auth_token_makes_known(self) -> None:
        client = await self.caller()
        answer = await client.call("auth.token", {"token": self.rig.service.keyring.cookie})
        self.same(answer, {"name": "cookie", "roles": ["admin"]})
        self.same(await client.call("test.add", {"number": 1}), {"number": 2})

    async def test_a_wrong_token(self) -> None:
        client = await self.caller()
        error = await raises(Unauthenticated, client.call("auth.token", {"token": "wrong"}))
        self.same(error.code, -32001)

    async def test_tokens_of_all_lengths_are_wrong_alike(self) -> None:
        for text in ("", "x" * 43, "\U0001f600" * 10, "x" * 20_000):
            await raises(Unauthenticated, (await self.caller()).call("auth.token", {"token": text}))

    async def test_the_third_wrong_token_closes(self) -> None:
        client = await self.caller()
        for _ in range(3):
            await raises(Unauthenticated, client.call("auth.token", {"token": "wrong"}))
        await until(self.rig.reactor, lambda: client.reason)
        await raises(CallUnavailable, client.call("rpc.ping"))

    async def test_a_named_token(self) -> None:
        client = await self.reader()
        self.same(await client.call("auth.whoami"), {"name": "reader", "roles": ["read"]})
        await client.call("node.health")
        error = await raises(Forbidden, client.call("node.drain", {}))
        self.same(error.data, {"need": "operate"})

    async def test_a_role_in_params_is_an_unknown_parameter(self) -> None:
        error = await raises(InvalidParams, (await self.caller()).call("test.echo", {"text": "", "roles": ["admin"]}))
        self.same(error.data, {"path": "roles"})

    async def test_tokens_come_and_go(self) -> None:
        admin = await self.admin()
        made = await admin.call("token.add", {"name": "ops", "roles": ["operate"], "ttl_s": 60})
        listed = await admin.call("token.list")
        self.same([(row["name"], row["roles"]) for row in listed], [("ops", ["operate"])])
        other = await self.caller()
        await other.call("auth.token", {"token": made["token"]})
        await admin.call("token.revoke", {"name": "ops"})
        await until(self.rig.reactor, lambda: other.reason)
        await raises(Unauthenticated, (await self.caller()).call("auth.token", {"token": made["token"]}))
        await raises(NotFound, admin.call("token.revoke", {"name": "ops"}))

    async def test_tokens_that_cannot_be(self) -> None:
        admin = await self.admin()
        await raises(InvalidParams, admin.call("token.add", {"name": "a b", "roles": ["read"]}))
        await raises(InvalidParams, admin.call("token.add", {"name": "a", "roles": ["king"]}))
        await raises(InvalidParams, admin.call("token.add", {"name": "a", "roles": ["read"], "ttl_s": -1}))
        await admin.call("token.add", {"name": "a", "roles": ["read"]})
        await raises(CallRefused, admin.call("token.add", {"name": "a", "roles": ["read"]}))

    async def test_an_unknown_method(self) -> None:
        error = await raises(MethodNotFound, (await self.caller()).call("test.nothing"))
        self.same((error.code, error.data), (-32601, {"method": "test.nothing"}))

    async def test_a_missing_parameter(self) -> None:
        error = await raises(InvalidParams, (await self.caller()).call("test.echo"))
        self.same((error.code, error.data), (-32602, {"path": "text"}))

    async def test_a_parameter_out_of_range(self) -> None:
        error = await raises(InvalidParams, (await self.reader()).call("test.add", {"number": 1001}))
        self.same(error.data, {"path": "number"})

    async def test_a_parameter_of_another_type(self) -> None:
        for wrong in ("1", 1.5, True, None, [1], {"number": 1}):
            await raises(InvalidParams, (await self.reader_once()).call("test.add", {"number": wrong}))

    async def reader_once(self) -> Client:
        if not hasattr(self, "_reader"):
            self._reader = await self.reader()
        return self._reader

    async def test_a_bug_shows_an_id_and_nothing_else(self) -> None:
        error = await raises(Internal, (await self.caller()).call("test.bug"))
        self.same((error.code, list(error.data), BUG in str(error) + str(error.data)), (-32603, ["id"], False))
        self.forgive(KeyError)

    async def test_a_result_that_is_no_json(self) -> None:
        await raises(Internal, (await self.caller()).call("test.odd"))
        self.forgive(TypeError)

    async def test_policy(self) -> None:
        error = await raises(CallRefused, (await self.caller()).call("test.refused"))
        self.same((error.code, error.message), (-32009, "the policy says no"))

    async def test_a_peers_nonsense_is_refused(self) -> None:
        self.same((await raises(CallRefused, (await self.caller()).call("test.peer"))).code, -32009)

    async def test_a_method_has_its_time(self) -> None:
        error = await raises(CallTimedOut, (await self.caller()).call("test.short"))
        self.same((error.code, self.rig.rows.cancelled), (-32007, 1))

    async def test_a_callers_patience_ends_the_call(self) -> None:
        client = await self.caller()
        await raises(CallTimedOut, client.call("test.wait", timeout=0.05))
        await until(self.rig.reactor, lambda: self.rig.rows.cancelled == 1)
        self.same(await client.call("rpc.ping"), {})

    async def test_a_cancelled_wait_cancels_the_call(self) -> None:
        client = await self.caller()
        waiting = Deferred.fromCoroutine(client.call("test.wait"))
        await until(self.rig.reactor, lambda: self.rig.rows.waiting)
        waiting.cancel()
        await raises(CancelledError, waiting)
        await until(self.rig.reactor, lambda: self.rig.rows.cancelled == 1)

    async def test_a_caller_that_vanishes_cancels_its_calls(self) -> None:
        client = await self.caller()
        waiting = Deferred.fromCoroutine(client.call("test.wait"))
        await until(self.rig.reactor, lambda: self.rig.rows.waiting)
        client._socket.abort("gone")  # type: ignore[union-attr]
        await raises(CallUnavailable, waiting)
        await until(self.rig.reactor, lambda: self.rig.rows.cancelled == 1)

    async def test_answers_come_in_the_order_of_their_ends(self) -> None:
        client = await self.caller()
        slow = Deferred.fromCoroutine(client.call("test.wait"))
        await until(self.rig.reactor, lambda: self.rig.rows.waiting)
        self.same(await client.call("rpc.ping"), {})
        self.true(not slow.called)
        self.rig.rows.waiting[0].callback(None)
        self.same(await slow, {})

    async def test_no_more_than_64_at_once(self) -> None:
        client = await self.caller()
        waiting = [Deferred.fromCoroutine(client.call("test.wait")) for _ in range(64)]
        await until(self.rig.reactor, lambda: len(self.rig.rows.waiting) == 64)
        await raises(NoCapacity, client.call("rpc.ping"))
        for call in self.rig.rows.waiting:
            call.callback(None)
        for answer in waiting:
            await answer
        self.same(await client.call("rpc.ping"), {})

    async def test_a_result_over_the_cap(self) -> None:
        client = await self.caller()
        error = await raises(NoCapacity, client.call("test.long", {"size": 140_000}))
        self.same(error.data, {"limit": "MESSAGE"})
        self.same(len((await client.call("test.long", {"size": 65_000}))["text"]), 65_000)

    async def test_a_call_over_the_cap_is_not_sent(self) -> None:
        client = await self.caller()
        await raises(NoCapacity, client.call("test.echo", {"text": "x" * 70_000}))
        self.same(await client.call("rpc.ping"), {})

    async def test_a_role_granted_on_the_way(self) -> None:
        client = await self.caller()
        if not self.known:
            await raises(Forbidden, client.call("test.agent"))
        await client.call("test.grant")
        self.same(await client.call("test.agent"), {})

    async def test_a_notification_from_a_method(self) -> None:
        client = await self.caller()
        told: list[tuple[str, dict[str, Any]]] = []
        client.notified = lambda name, params: told.append((name, params))
        await client.call("test.tell", {"text": "hello"})
        self.same(told, [("told", {"text": "hello"})])

    async def test_a_notification_to_the_server_runs(self) -> None:
        client = await self.caller()
        client.notify("test.wait", {})
        await until(self.rig.reactor, lambda: self.rig.rows.ran == ["wait"])

    async def test_many_calls_at_once_keep_their_answers_apart(self) -> None:
        client = await self.caller()
        waiting = [Deferred.fromCoroutine(client.call("test.echo", {"text": str(n)})) for n in range(60)]
        self.same([(await answer)["text"] for answer in waiting], [str(n) for n in range(60)])

    async def test_too_many_calls_in_a_second(self) -> None:
        client = await self.caller()
        limited = 0
        for _ in range(12):
            for answer in [Deferred.fromCoroutine(client.call("rpc.ping")) for _ in range(60)]:
                try:
                    await answer
                except RateLimited as error:
                    self.true(error.data["retry_after_ms"] >= 1)
                    limited += 1
        self.true(0 < limited < 320)

    async def test_events(self) -> None:
        client = await self.reader()
        told: list[dict[str, Any]] = []
        client.notified = lambda name, params: told.append(params)
        number = (await client.call("events.subscribe", {"names": ["test.read", "test.public"]}))["subscription"]
        self.rig.table.publish("test.read", Told("a", 1))
        self.rig.table.publish("test.public", Told("b", 2))
        await until(self.rig.reactor, lambda: len(told) == 2)
        self.same(
            [(row["subscription"], row["seq"], row["name"], row["data"]) for row in told],
            [
                (number, 1, "test.read", {"key": "a", "count": 1}),
                (number, 2, "test.public", {"key": "b", "count": 2}),
            ],
        )
        await client.call("events.unsubscribe", {"subscription": number})
        self.true(not self.rig.table.wanted("test.read"))

    async def test_events_of_one_kind_coalesce_by_key(self) -> None:
        client = await self.reader()
        told: list[dict[str, Any]] = []
        client.notified = lambda name, params: told.append(params["data"])
        await client.call("events.subscribe", {"names": ["test.read"], "every_ms": 100})
        for count in range(50):
            self.rig.table.publish("test.read", Told("a", count))
        await until(self.rig.reactor, lambda: told)
        for count in range(50, 100):
            self.rig.table.publish("test.read", Told("a", count))
            await pause(self.rig.reactor, 0)
        await until(self.rig.reactor, lambda: told[-1]["count"] == 99)
        self.true(len(told) <= 4)

    async def test_events_that_match(self) -> None:
        client = await self.reader()
        told: list[dict[str, Any]] = []
        client.notified = lambda name, params: told.append(params["data"])
        await client.call("events.subscribe", {"names": ["test.read"], "match": {"key": "b"}})
        for key in "abc":
            self.rig.table.publish("test.read", Told(key, 0))
        await until(self.rig.reactor, lambda: told)
        self.same(told, [{"key": "b", "count": 0}])

    async def test_an_event_needs_its_role(self) -> None:
        if self.known:
            return
        client = await self.caller()
        await raises(Forbidden, client.call("events.subscribe", {"names": ["test.read"]}))
        await raises(NotFound, client.call("events.subscribe", {"names": ["test.unheard"]}))
        await client.call("events.subscribe", {"names": ["test.public"]})

    async def test_subscriptions_end_with_the_connection(self) -> None:
        client = await self.reader()
        await client.call("events.subscribe", {"names": ["test.read"]})
        client.close()
        await until(self.rig.reactor, lambda: not self.rig.table.wanted("test.read"))

    async def test_at_most_32_subscriptions(self) -> None:
        client = await self.reader()
        for _ in range(32):
            await client.call("events.subscribe", {"names": ["test.public"]})
        self.same(
            (await raises(NoCapacity, client.call("events.subscribe", {"names": ["test.public"]}))).data,
            {"limit": "SUBSCRIPTIONS"},
        )

    async def test_status(self) -> None:
        self.rig.health.set("listener", True)
        status = await (await self.reader()).call("node.status")
        self.same((status["id"], status["roles"], status["drain"]), ("abcdefgh", ["proxy"], False))
        self.same([row["check"] for row in status["health"]], ["listener"])
        self.true(any(text.startswith("tcp:") for text in status["listening"]))

    async def test_health_is_told(self) -> None:
        client = await self.reader()
        told: list[dict[str, Any]] = []
        client.notified = lambda name, params: told.append(params["data"])
        await client.call("events.subscribe", {"names": ["node.health"]})
        self.rig.health.set("store", False, "the disk is full")
        await until(self.rig.reactor, lambda: told)
        self.same((told[0]["check"], told[0]["ok"], told[0]["why"]), ("store", False, "the disk is full"))
        self.same(set(told[0]), set(Check.__annotations__))

    async def test_drain_and_resume(self) -> None:
        admin, other = await self.admin(), await self.reader()
        told: list[dict[str, Any]] = []
        other.notified = lambda name, params: told.append(params["data"])
        await other.call("events.subscribe", {"names": ["node.draining"]})
        self.same(await admin.call("node.drain", {"deadline_s": 7}), {"connections": 3})
        await until(self.rig.reactor, lambda: told)
        self.same(told, [{"deadline_s": 7.0}])
        self.same(set(told[0]), set(Draining.__annotations__))
        error = await raises(CallUnavailable, other.call("rpc.ping"))
        self.same(error.data, {"why": "draining"})
        await other.call("node.health")
        late = await self.admin()
        await raises(CallUnavailable, late.call("rpc.ping"))
        await admin.call("node.resume")
        await other.call("rpc.ping")
        self.same(self.rig.process.asked, ["drain 7", "resume"])

    async def test_stop(self) -> None:
        await (await self.admin()).call("node.stop", {"deadline_s": 0})
        await until(self.rig.reactor, lambda: self.rig.process.asked)
        self.same(self.rig.process.asked, ["stop 0"])

    async def test_the_configuration(self) -> None:
        admin = await self.admin()
        values = (await admin.call("config.show"))["values"]
        self.same((values["log.level"]["value"], values["log.level"]["origin"]), ("info", "file"))
        self.same(await admin.call("config.check", {"toml": '[log]\nlevel = "debug"\n'}), [])
        problems = await admin.call("config.check", {"toml": '[log]\nlevle = "debug"\nblur = -1\n'})
        self.same({row["key"] for row in problems}, {"log.levle", "log.blur"})

    async def test_reload(self) -> None:
        admin = await self.admin()
        told: list[dict[str, Any]] = []
        admin.notified = lambda name, params: told.append(params["data"])
        await admin.call("events.subscribe", {"names": ["config.reloaded"]})
        self.rig.text[0] = '[log]\nlevel = "debug"\n'
        self.same(await admin.call("config.reload"), {"changed": ["log.level"], "restart_needed": []})
        await until(self.rig.reactor, lambda: told)
        self.same(told, [{"changed": ["log.level"]}])
        self.rig.text[0] = "[log]\nlevel = 7\n"
        await raises(CallRefused, admin.call("config.reload"))
        self.same(self.rig.configuration.loaded.config.log.level, "debug")

    async def test_the_log(self) -> None:
        admin = await self.admin()
        told: list[dict[str, Any]] = []
        admin.notified = lambda name, params: told.append(params["data"])
        await admin.call("events.subscribe", {"names": ["log.line"]})
        self.rig.logs.add({"level": "info", "event": "test"})
        await until(self.rig.reactor, lambda: told)
        self.same(told, [{"line": {"level": "info", "event": "test"}}])
        self.same(await admin.call("log.tail", {}), {"lines": [{"level": "info", "event": "test"}], "cut": False})
        for number in range(999):
            self.rig.logs.rows.append({"level": "info", "text": "x" * 100, "number": number})
        tail = await admin.call("log.tail", {"lines": 1000})
        self.same((tail["cut"], tail["lines"][-1]["number"]), (True, 998))
        await admin.call("log.level", {"namespace": "layer8.proxy", "level": "debug", "ttl_s": 60})
        self.same(self.rig.logs.levels, [("layer8.proxy", "debug", 60.0)])

    async def test_metrics(self) -> None:
        page = await (await self.reader()).call("metrics.snapshot", {"prefix": "layer8_control_connections"})
        self.same(page, {"series": {'layer8_control_connections{listener="local"}': 1.0}, "cursor": ""})

    async def test_ticks(self) -> None:
        client = await self.reader()
        told: list[dict[str, Any]] = []
        client.notified = lambda name, params: told.append(params["data"]["series"])
        await client.call("events.subscribe", {"names": ["stats.tick"]})
        await until(self.rig.reactor, lambda: told)
        self.true(all(name.startswith("layer8_") and gain for name, gain in told[0].items()))

    async def test_discovery(self) -> None:
        client = await self.caller()
        names = {row["name"] for row in (await client.call("rpc.discover"))["methods"]}
        self.true({"rpc.ping", "test.echo"} <= names)
        self.same("test.add" in names, self.known)
        only = await client.call("rpc.discover", {"module": "auth"})
        self.same({row["name"] for row in only["methods"]}, {"auth.token", "auth.whoami"})

    async def test_rows_come_and_go_while_connected(self) -> None:
        """C10: a role that is switched on brings its methods without a restart, and says so."""

        class Late:
            owns = ("test",)

            @method("test.late", role="public")
            async def late(self, caller: Any) -> None:
                """Be there at last."""

        client, module = await self.caller(), Late()
        told: list[dict[str, Any]] = []
        client.notified = lambda name, params: told.append(params["data"])
        await client.call("events.subscribe", {"names": ["rpc.changed"]})
        await raises(MethodNotFound, client.call("test.late"))
        self.rig.table.add(module)
        await client.call("test.late")
        self.rig.table.remove(module)
        await raises(MethodNotFound, client.call("test.late"))
        await until(self.rig.reactor, lambda: len(told) == 2)
        self.same(told, [{"added": ["test.late"], "removed": []}, {"added": [], "removed": ["test.late"]}])

    async def test_what_is_known_about_whom(self) -> None:
        rows = await (await self.caller()).call("knowledge.table", {"part": "proxy"})
        self.true(any(row["party"] == "visitor" for row in rows))

    async def test_the_server_may_call_too(self) -> None:
        class Agent:
            owns = ("test",)

            @method("test.agent_status", role="read")
            async def status(self, caller: Any, params: Number) -> Number:
                """Say how it goes."""
                return Number(params.number * 2)

        table = Table(lambda: 0.0)
        table.add(Agent())
        for roles, allowed in ((frozenset({"read"}), True), (frozenset({"public"}), False)):
            await self.rig.client(self.kind, table=table, roles=roles)
            served = next(each for each in self.rig.service.conversations() if "asked" not in each.slots)
            served.slots["asked"] = True
            if allowed:
                self.same(await served.call("test.agent_status", {"number": 4}), {"number": 8})
            else:
                await raises(Forbidden, served.call("test.agent_status", {"number": 4}))

    async def test_a_client_without_methods_has_none(self) -> None:
        await self.caller()
        served = self.rig.service.conversations()[0]
        await raises(MethodNotFound, served.call("node.status"))

    async def test_closing_is_heard_at_both_ends(self) -> None:
        client = await self.caller()
        lost: list[str] = []
        served = self.rig.service.conversations()[0]
        client.when_lost(lambda: lost.append("client"))
        served.when_lost(lambda: lost.append("server"))
        client.close()
        await until(self.rig.reactor, lambda: len(lost) == 2)
        client.when_lost(lambda: lost.append("late"))
        self.same(sorted(lost), ["client", "late", "server"])
        self.same(self.rig.service.conversations(), [])

    async def test_the_service_ends(self) -> None:
        client = await self.caller()
        await self.rig.service.stopService()
        await until(self.rig.reactor, lambda: client.reason)
        await raises(CallUnavailable, client.call("rpc.ping"))
        self.same(client.notify("x", {}), False)

    async def test_twice_the_same_id(self) -> None:
        client = await self.caller()
        waiting = Deferred.fromCoroutine(client.call("test.wait"))
        await until(self.rig.reactor, lambda: self.rig.rows.waiting)
        client._socket.send(b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","params":{}}')  # type: ignore[union-attr]
        error = await raises(InvalidRequest, waiting)
        self.true(isinstance(error, ControlError))


class UnixTests(Cases, TestCase):
    """Over a Unix socket, where the peer's uid says who it is."""

    kind = "unix"
    known = True


class TcpTests(Cases, TestCase):
    """Over TCP on loopback."""

    kind = "tcp"


class TlsTests(Cases, TestCase):
    """Over TLS, the server known by its pin."""

    kind = "tls"
