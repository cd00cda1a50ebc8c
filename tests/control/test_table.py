"""The table: rows added and removed, called, refused; permission cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.access import Caller
from layer8.control.errors import (
    CallRefused,
    CallTimedOut,
    CallUnavailable,
    Conflict,
    ControlError,
    Forbidden,
    Internal,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    NoCapacity,
    NotFound,
    ParseFailed,
    RateLimited,
    Unauthenticated,
    answer_to,
    from_wire,
    known,
    translate,
)
from layer8.control.events import Subscriber
from layer8.control.shape import member
from layer8.control.table import Changed, Event, Table, method
from layer8.core.errors import (
    ConfigError,
    LimitExceeded,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    StorageError,
    TimedOut,
    Unavailable,
)
from tests.control.callers import caller, run
from tests.control.matrix import wrong_cells


@frozen
class Say:
    """What to say."""

    text: str = member(most=20)
    times: int = member(1, least=1, most=3)


@frozen
class Said:
    """What was said."""

    text: str
    by: str


@frozen
class Heard:
    """Somebody spoke."""

    text: str


class Parrot:
    """Repeats."""

    owns = ("parrot",)
    events = (Event("parrot.heard", Heard),)

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.then = then

    @method("parrot.say", role="read", errors=(NotFound,), timeout=3.0)
    async def say(self, caller: Caller, params: Say) -> Said:
        """Repeat a text
        as often as wanted.

        Not more often.
        """
        self.then()
        return Said(params.text * params.times, caller.name)

    @method("parrot.feed", role=("owner", "admin"))
    async def feed(self, caller: Caller) -> None:
        """Feed it."""

    @method("parrot.list", role="public")
    async def list(self, caller: Caller) -> tuple[Said, ...]:
        """What it can say."""
        return (Said("a", "b"),)

    @method("parrot.hello", role="public", within="agent")
    async def hello(self, caller: Caller) -> dict[str, int]:
        """Greet an agent."""
        return {"version": 1}


def a_table(*modules: Any) -> Table:
    table = Table(lambda: 0.0)
    for module in modules:
        table.add(module)
    return table


class Calling(SynchronousTestCase):
    """One call, from parsed parameters to a JSON value."""

    def setUp(self) -> None:
        self.table = a_table(Parrot())

    def test_result(self) -> None:
        self.assertEqual(
            run(self.table.call(caller("read"), "parrot.say", {"text": "hi", "times": 2})),
            {"text": "hihi", "by": "tester"},
        )

    def test_no_parameters_no_result(self) -> None:
        self.assertEqual(run(self.table.call(caller("admin"), "parrot.feed", {})), {})
        with self.assertRaises(InvalidParams):
            run(self.table.call(caller("admin"), "parrot.feed", {"with": "nuts"}))

    def test_results_that_are_no_objects(self) -> None:
        self.assertEqual(run(self.table.call(caller(), "parrot.list", {})), [{"text": "a", "by": "b"}])

    def test_unknown_method(self) -> None:
        for name in ("", "parrot", "parrot.fly", "parrot.say ", "Parrot.say", "_check", "x" * 1000):
            with self.assertRaises(MethodNotFound):
                run(self.table.call(caller("admin"), name, {}))

    def test_bad_parameters_name_themselves(self) -> None:
        for params, path in (
            ({}, "text"),
            ({"text": 1}, "text"),
            ({"text": "x" * 21}, "text"),
            ({"text": "x", "times": 4}, "times"),
            ({"text": "x", "roles": ["admin"]}, "roles"),
        ):
            with self.assertRaises(InvalidParams) as raised:
                run(self.table.call(caller("read"), "parrot.say", params))
            self.assertEqual(raised.exception.data, {"path": path})

    def test_permission_comes_before_parameters(self) -> None:
        with self.assertRaises(Forbidden) as raised:
            run(self.table.call(caller(), "parrot.say", {"roles": ["admin"]}))
        self.assertEqual(raised.exception.data, {"need": "read"})

    def test_the_role_is_the_one_of_this_call(self) -> None:
        who = caller(ceiling=frozenset({"read"}))
        with self.assertRaises(Forbidden):
            run(self.table.call(who, "parrot.say", {"text": "x"}))
        run(self.table.call(who.with_role("read"), "parrot.say", {"text": "x"}))
        with self.assertRaises(Forbidden):
            run(self.table.call(who, "parrot.say", {"text": "x"}))

    def test_a_method_of_another_listener(self) -> None:
        with self.assertRaises(Forbidden) as raised:
            run(self.table.call(caller("admin", ceiling=frozenset({"admin"})), "parrot.hello", {}))
        self.assertEqual(raised.exception.data, {"need": "agent"})

    def test_what_a_row_says(self) -> None:
        row = self.table.methods["parrot.say"]
        self.assertEqual((row.doc, row.timeout, row.errors), ("Repeat a text as often as wanted.", 3.0, (NotFound,)))
        self.assertEqual((row.params, row.result, row.roles), (Say, Said, ("read",)))


class Failing(SynchronousTestCase):
    """What a method raises, and what the caller gets."""

    def outcome(self, error: BaseException) -> ControlError:
        def then() -> None:
            raise error

        with self.assertRaises(ControlError) as raised:
            run(a_table(Parrot(then)).call(caller("read"), "parrot.say", {"text": "x"}))
        answer = raised.exception
        assert isinstance(answer, ControlError)
        return answer

    def test_errors_that_are_answers(self) -> None:
        for error, kind in (
            (Refused("not on Sundays"), CallRefused),
            (RemoteProtocolError("the peer lied"), CallRefused),
            (LimitExceeded("POOL", 3), CallRefused),
            (ConfigError("no such key"), CallRefused),
            (Unavailable("starting"), CallUnavailable),
            (StorageError("disk full"), CallUnavailable),
            (TimedOut("5 s"), CallTimedOut),
        ):
            answer = self.outcome(error)
            self.assertIs(type(answer), kind)
            self.assertEqual(answer.message, str(error))

    def test_an_answer_stays_itself(self) -> None:
        mine = NotFound("parrot")
        self.assertIs(self.outcome(mine), mine)

    def test_why_storage_does_not_work(self) -> None:
        self.assertEqual(self.outcome(StorageError("disk full")).data, {"why": "disk full"})

    def test_our_own_bugs_go_up(self) -> None:
        for error in (ZeroDivisionError(), LocalProtocolError("twice"), KeyError("x")):

            def then(error: Exception = error) -> None:
                raise error

            with self.assertRaises(type(error)):
                run(a_table(Parrot(then)).call(caller("read"), "parrot.say", {"text": "x"}))
            self.assertIsNone(translate(error))
            answer = answer_to(error, "e7")
            self.assertIsInstance(answer, Internal)
            self.assertEqual((answer.message, answer.data), ("internal error", {"id": "e7"}))
        self.assertIsInstance(answer_to(Refused("no"), "e8"), CallRefused)


class ErrorTree(SynchronousTestCase):
    """Codes and names, as control.md section 5 has them."""

    def test_every_code(self) -> None:
        rows: list[tuple[ControlError, int, str, dict[str, Any]]] = [
            (ParseFailed(), -32700, "parse", {}),
            (InvalidRequest(), -32600, "invalid_request", {}),
            (MethodNotFound("m"), -32601, "method_not_found", {"method": "m"}),
            (InvalidParams("a.b", "wrong"), -32602, "invalid_params", {"path": "a.b"}),
            (Internal("e1"), -32603, "internal", {"id": "e1"}),
            (Unauthenticated(), -32001, "unauthenticated", {}),
            (Forbidden("read"), -32002, "forbidden", {"need": "read"}),
            (NotFound("host"), -32003, "not_found", {"what": "host"}),
            (Conflict(3), -32004, "conflict", {"version": 3}),
            (RateLimited(5), -32005, "rate_limited", {"retry_after_ms": 5}),
            (NoCapacity("POOL"), -32006, "no_capacity", {"limit": "POOL"}),
            (CallTimedOut(), -32007, "timed_out", {}),
            (CallUnavailable("draining"), -32008, "unavailable", {"why": "draining"}),
            (CallRefused("no"), -32009, "refused", {}),
        ]
        for error, code, name, data in rows:
            self.assertEqual((error.code, error.name, error.data), (code, name, data))
            self.assertIs(known(name), type(error))
            back = from_wire(code, error.message, data)
            self.assertEqual((type(back), back.message, back.data), (type(error), error.message, data))

    def test_a_code_or_a_name_is_taken_once(self) -> None:
        for code, name in ((-32001, "mine"), (-31999, "forbidden")):
            with self.assertRaises(TypeError):
                type("Mine", (ControlError,), {"code": code, "name": name})
        self.assertIsNone(known("nobody"))


class Adding(SynchronousTestCase):
    """What a module may bring."""

    def test_twice(self) -> None:
        table = a_table(Parrot())
        self.assertRaises(ValueError, table.add, Parrot())

    def test_words_of_others(self) -> None:
        class Thief:
            owns = ("parrot",)

            @method("parrot.steal", role="public")
            async def steal(self, caller: Caller) -> None:
                """Steal it."""

        class Sneak:
            owns = ("sneak",)

            @method("parrot.peek", role="public")
            async def peek(self, caller: Caller) -> None:
                """Look at it."""

        class Herald:
            owns = ("herald",)
            events = (Event("parrot.flew", Heard),)

        Thief.__module__ = "elsewhere.thief"
        table = a_table(Parrot())
        for module in (Thief(), Sneak(), Herald()):
            self.assertRaises(ValueError, table.add, module)
        self.assertNotIn("parrot.steal", table.methods)
        self.assertNotIn("parrot.flew", table.announced)
        table.remove(Parrot())
        table.add(Thief())

    def test_two_modules_of_one_package_may_share_a_word(self) -> None:
        class Cage:
            owns = ("parrot",)

            @method("parrot.lock", role="admin")
            async def lock(self, caller: Caller) -> None:
                """Lock it."""

        self.assertIn("parrot.lock", a_table(Parrot(), Cage()).methods)

    def test_names_without_a_word(self) -> None:
        class Bare:
            owns = ("bare",)

            @method("bare", role="public")
            async def bare(self, caller: Caller) -> None:
                """Nothing."""

        self.assertRaises(ValueError, a_table, Bare())

    def test_a_role_that_is_none(self) -> None:
        self.assertRaises(ValueError, method, "a.b", role="king")
        self.assertRaises(ValueError, method, "a.b", role="read", within="king")
        self.assertRaises(ValueError, Event, "a.b", Heard, role="king")

    def test_functions_that_are_no_methods(self) -> None:
        class NotAsync:
            owns = ("x",)

            @method("x.y", role="public")
            def y(self, caller: Caller) -> None:
                """No coroutine."""

        class Unshaped:
            owns = ("x",)

            @method("x.y", role="public")
            async def y(self, caller: Caller, params: Say) -> set[int]:
                """A result that is no JSON."""
                return set()

        class Untyped:
            owns = ("x",)

            @method("x.y", role="public")
            async def y(self, caller, params):  # type: ignore[no-untyped-def]
                """No types."""

        class TooMany:
            owns = ("x",)

            @method("x.y", role="public")
            async def y(self, caller: Caller, params: Say, more: int) -> None:
                """Too many."""

        for module in (NotAsync(), Unshaped(), Untyped(), TooMany()):
            self.assertRaises(TypeError, a_table, module)

    def test_removed_rows_answer_nobody(self) -> None:
        module = Parrot()
        table = a_table(module)
        table.remove(module)
        with self.assertRaises(MethodNotFound):
            run(table.call(caller("admin"), "parrot.say", {"text": "x"}))
        self.assertNotIn("parrot.heard", table.announced)
        table.add(module)
        self.assertIn("parrot.say", table.methods)

    def test_coming_and_going_is_told(self) -> None:
        table, module = a_table(), Parrot()
        subscriber = Subscriber(lambda: None, 65536)
        table.subscribe(caller(), subscriber, ["rpc.changed"])
        table.add(module)
        table.remove(module)
        added, removed = (delivery.note.data for delivery in subscriber.take(0.0))
        names = ["parrot.feed", "parrot.hello", "parrot.list", "parrot.say", "parrot.heard"]
        self.assertEqual(added, {"added": names, "removed": []})
        self.assertEqual(removed, {"added": [], "removed": names})
        self.assertEqual(Changed(), Changed((), ()))


EXPECTED = {
    "parrot.say": ("read",),
    "parrot.feed": ("owner", "admin"),
    "parrot.list": ("public",),
    "parrot.hello": ("public",),
}


class Permission(SynchronousTestCase):
    """Role by listener by method, every cell called; and that the matrix would notice."""

    def test_every_cell(self) -> None:
        self.assertEqual(wrong_cells(a_table(Parrot()), EXPECTED, within={"parrot.hello": "agent"}), [])

    def test_the_matrix_notices(self) -> None:
        table = a_table(Parrot())
        for name, roles in (("parrot.say", ("public",)), ("parrot.say", ("operate",)), ("parrot.feed", ("admin",))):
            self.assertTrue(wrong_cells(table, EXPECTED | {name: roles}, within={"parrot.hello": "agent"}))
        self.assertTrue(wrong_cells(table, EXPECTED))
        self.assertIn("x.y is not in the table", wrong_cells(table, EXPECTED | {"x.y": ("public",)}))
        self.assertIn("parrot.say is not in the matrix", wrong_cells(table, {}))
