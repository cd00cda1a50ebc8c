"""Our own calls over a control connection, and two ends that talk to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.control.calls import CALLS_OUT
from layer8.control.connection import (
    Answered,
    Connection,
    Failed,
    Invoke,
    Notified,
)
from layer8.control.errors import (
    CallTimedOut,
    CallUnavailable,
    MethodNotFound,
    NoCapacity,
)
from layer8.control.events import Delivery, Note
from layer8.control.jsonrpc import encode_result
from layer8.control.limits import (
    AGENTS,
    ANSWER_AGENT,
    CLIENT,
    SERVER,
)
from layer8.core.session import Send, Tell


def sent(connection: Connection) -> list[dict[str, Any]]:
    """Take the effects, all of which must be messages."""
    messages = []
    for effect in connection.effects():
        assert isinstance(effect, Send), effect
        messages.append(json.loads(effect.data))
    return messages


class Ours(SynchronousTestCase):
    """Our calls to the peer."""

    def test_answer_and_error(self) -> None:
        connection = Connection(CLIENT, 0.0)
        first = connection.call("a.b", {"x": 1}, 0.0, 30.0)
        second = connection.call("a.c", {}, 0.0, 30.0)
        self.assertEqual(sent(connection)[0], {"jsonrpc": "2.0", "id": first, "method": "a.b", "params": {"x": 1}})
        connection.received(encode_result(second, [1]), 1.0)
        connection.received(
            b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no","data":{"method":"a.b"}}}', 1.0
        )
        answered, failed = (effect.what for effect in connection.effects() if isinstance(effect, Tell))
        self.assertEqual(answered, Answered(second, [1]))
        assert isinstance(failed, Failed)
        self.assertEqual(failed.id, first)
        self.assertIsInstance(failed.error, MethodNotFound)
        connection.received(encode_result(second, [1]), 1.0)
        self.assertEqual(connection.effects(), [])

    def test_each_has_its_own_time(self) -> None:
        connection = Connection(CLIENT, 0.0)
        slow, quick = connection.call("a.b", {}, 0.0, 30.0), connection.call("a.b", {}, 0.0, 2.0)
        connection.effects()
        self.assertEqual(connection.deadline(), 2.0)
        connection.wake(2.0)
        cancel, told = connection.effects()
        assert isinstance(cancel, Send) and isinstance(told, Tell) and isinstance(told.what, Failed)
        self.assertEqual(json.loads(cancel.data), {"jsonrpc": "2.0", "method": "cancel", "params": {"id": quick}})
        self.assertEqual((told.what.id, type(told.what.error)), (quick, CallTimedOut))
        self.assertEqual(connection.deadline(), 30.0)
        connection.received(encode_result(quick, "late"), 3.0)
        self.assertEqual(connection.effects(), [])
        self.assertNotEqual(slow, quick)

    def test_given_up(self) -> None:
        connection = Connection(CLIENT, 0.0)
        ident = connection.call("a.b", {}, 0.0, 30.0)
        connection.effects()
        connection.forget(ident)
        connection.forget(ident)
        self.assertEqual([message["method"] for message in sent(connection)], ["cancel"])
        connection.received(encode_result(ident, 1), 1.0)
        self.assertEqual(connection.effects(), [])

    def test_a_connection_that_goes_fails_them(self) -> None:
        ends: tuple[Callable[[Connection], None], ...] = (
            lambda c: c.lost(1.0),
            lambda c: c.close("done"),
            lambda c: c.received_binary(1.0),
        )
        for end in ends:
            connection = Connection(CLIENT, 0.0)
            ident = connection.call("a.b", {}, 0.0, 30.0)
            connection.effects()
            end(connection)
            (failed,) = (effect.what for effect in connection.effects() if isinstance(effect, Tell))
            assert isinstance(failed, Failed)
            self.assertEqual((failed.id, type(failed.error)), (ident, CallUnavailable))
            self.assertRaises(CallUnavailable, connection.call, "a.b", {}, 1.0, 30.0)

    def test_not_too_many_and_not_too_large(self) -> None:
        connection = Connection(AGENTS, 0.0)
        for size, limit in ((ANSWER_AGENT, "MESSAGE"), (0, "CALLS_OPEN")):
            with self.assertRaises(NoCapacity) as raised:
                for _ in range(CALLS_OUT + 1):
                    connection.call("a.b", {"x": "y" * size}, 0.0, 30.0)
            self.assertEqual(raised.exception.data, {"limit": limit})
        self.assertEqual(len(connection.effects()), CALLS_OUT)
        self.assertRaises(NoCapacity, connection.notify, "a.b", {"x": "y" * ANSWER_AGENT})

    def test_an_error_that_is_about_no_call(self) -> None:
        connection = Connection(CLIENT, 0.0)
        connection.received(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}', 1.0)
        (effect,) = connection.effects()
        assert isinstance(effect, Tell) and isinstance(effect.what, Failed)
        self.assertIsNone(effect.what.id)


NOTE = Delivery(1, 1, Note("a.b", "", {}, b"{}", None))


class TwoEnds(SynchronousTestCase):
    """A client and a server over a wire that is a list."""

    def setUp(self) -> None:
        self.server, self.client = Connection(SERVER, 0.0), Connection(CLIENT, 0.0)
        self.told: list[object] = []

    def exchange(self) -> None:
        for _ in range(10):
            for effect in self.client.effects():
                if isinstance(effect, Send):
                    self.server.received(effect.data, 0.0)
                elif isinstance(effect, Tell):
                    self.told.append(effect.what)
            for out in self.server.effects():
                if isinstance(out, Send):
                    self.client.received(out.data, 0.0)
                elif isinstance(out, Invoke):
                    self.serve(out)

    def serve(self, invoke: Invoke) -> None:
        if invoke.method == "echo.back":
            self.server.answered(invoke.call, invoke.params, 0.0)
        else:
            self.server.failed(invoke.call, MethodNotFound(invoke.method), 0.0)

    def test_many_calls_each_its_own_answer(self) -> None:
        idents = {self.client.call("echo.back", {"n": n}, 0.0, 30.0): n for n in range(CALLS_OUT)}
        self.exchange()
        answers = {what.id: what.result["n"] for what in self.told if isinstance(what, Answered)}
        self.assertEqual(answers, idents)

    def test_notifications_and_events_both_ways(self) -> None:
        self.server.notify("proxy.connection", {"conn": 7})
        self.server.deliver([NOTE])
        self.exchange()
        self.assertEqual(
            self.told,
            [
                Notified("proxy.connection", {"conn": 7}),
                Notified("event", {"subscription": 1, "seq": 1, "name": "a.b", "at": "", "data": {}}),
            ],
        )

    def test_an_error_keeps_its_class(self) -> None:
        self.client.call("no.such", {}, 0.0, 30.0)
        self.exchange()
        (failed,) = self.told
        assert isinstance(failed, Failed)
        self.assertIsInstance(failed.error, MethodNotFound)
        self.assertEqual(failed.error.data, {"method": "no.such"})

    def test_two_that_both_send_nonsense_do_not_answer_each_other_for_ever(self) -> None:
        self.server.received(b"x", 0.0)
        self.client.received(b'{"jsonrpc":"2.0","id":5,"error":"y"}', 0.0)
        self.exchange()
        self.assertEqual((list(self.client.effects()), list(self.server.effects())), ([], []))
