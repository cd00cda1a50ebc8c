"""One control connection: every state and input, the caps, any noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.connection import (
    Cancel,
    Connection,
    ControlEffect,
    Invoke,
    Notified,
    State,
    WrongToken,
)
from layer8.control.errors import (
    CallUnavailable,
    Forbidden,
    Unauthenticated,
)
from layer8.control.events import Delivery, Note
from layer8.control.jsonrpc import encode_call, encode_notification, encode_result, parse
from layer8.control.limits import (
    AGENTS,
    ANSWER_AGENT,
    AUTH_FAILS,
    AUTH_TIME,
    CALL_BURST,
    CALL_RATE,
    CALLS_OPEN,
    CLIENT,
    CLOSE_CODES,
    DEAD,
    ERRORS,
    LEGACY,
    SERVER,
    Rules,
)
from layer8.core.session import Close, Send, Tell

PROVE = Rules(must_prove=True)


def sent(connection: Connection) -> list[dict[str, Any]]:
    """Take the effects, all of which must be messages."""
    messages = []
    for effect in connection.effects():
        assert isinstance(effect, Send), effect
        messages.append(json.loads(effect.data))
    return messages


def codes(effects: Any) -> list[int]:
    return [json.loads(effect.data)["error"]["code"] for effect in effects if isinstance(effect, Send)]


def reasons(effects: Any) -> list[str]:
    return [effect.reason for effect in effects if isinstance(effect, Close)]


def call(ident: str | int, method: str = "a.b", **params: Any) -> bytes:
    return encode_call(ident, method, params)


class Calls(SynchronousTestCase):
    """The peer's calls: each answered once."""

    def test_a_call_and_its_result(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(call("k", x=1), 1.0)
        self.assertEqual(connection.effects(), [Invoke(1, "a.b", {"x": 1})])
        self.assertEqual(connection.effects(), [])
        connection.answered(1, {"y": 2}, 1.1)
        self.assertEqual(sent(connection), [{"jsonrpc": "2.0", "id": "k", "result": {"y": 2}}])
        connection.answered(1, {}, 1.2)
        connection.failed(1, Forbidden("read"), 1.2)
        self.assertEqual(connection.effects(), [])
        self.assertEqual(connection.running, 0)

    def test_an_error(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(call(7), 1.0)
        connection.effects()
        connection.failed(1, Forbidden("read"), 1.1)
        self.assertEqual(
            sent(connection),
            [
                {
                    "jsonrpc": "2.0",
                    "id": 7,
                    "error": {"code": -32002, "message": "needs the role read", "data": {"need": "read"}},
                }
            ],
        )

    def test_a_notification_runs_and_is_not_answered(self) -> None:
        connection = Connection(SERVER, 0.0)
        outcomes: tuple[Callable[[], None], ...] = (
            lambda: connection.answered(1, {}, 1.0),
            lambda: connection.failed(2, Forbidden("x"), 1.0),
        )
        for outcome in outcomes:
            connection.received(encode_notification("proxy.reject", {"conn": 1}), 1.0)
            (invoke,) = connection.effects()
            self.assertIsInstance(invoke, Invoke)
            outcome()
            self.assertEqual(connection.effects(), [])
        self.assertEqual(connection.running, 0)

    def test_the_same_id_in_flight(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(call(1), 1.0)
        connection.received(call(1), 1.0)
        connection.received(call("1"), 1.0)
        first, refused, other = connection.effects()
        self.assertEqual((first, other), (Invoke(1, "a.b", {}), Invoke(2, "a.b", {})))
        self.assertEqual(codes([refused]), [-32600])
        connection.answered(1, {}, 1.0)
        connection.effects()
        connection.received(call(1), 1.0)
        self.assertEqual(connection.effects(), [Invoke(3, "a.b", {})])

    def test_cancel(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(call("k"), 1.0)
        connection.effects()
        for other in ({"id": "other"}, {"id": 1}, {"id": True}, {"id": None}, {"id": ["k"]}, {}):
            connection.received(encode_notification("cancel", other), 1.0)
            self.assertEqual(connection.effects(), [], other)
        connection.received(encode_notification("cancel", {"id": "k"}), 1.0)
        self.assertEqual(connection.effects(), [Cancel(1)])
        self.assertEqual(connection.running, 1)
        connection.failed(1, CallUnavailable("cancelled"), 1.0)
        self.assertEqual(codes(connection.effects()), [-32008])

    def test_ten_thousand_at_once(self) -> None:
        connection = Connection(SERVER, 0.0)
        for ident in range(10_000):
            connection.received(call(ident), 1.0)
        effects = connection.effects()
        invokes = [effect for effect in effects if isinstance(effect, Invoke)]
        self.assertEqual(len(invokes), CALLS_OPEN)
        refused = [json.loads(effect.data)["error"] for effect in effects if isinstance(effect, Send)]
        self.assertEqual(len(refused), 10_000 - CALLS_OPEN)
        self.assertEqual({error["code"] for error in refused}, {-32005})
        self.assertTrue(all(0 < error["data"]["retry_after_ms"] <= 1000 for error in refused))
        self.assertEqual(connection.state, State.ANONYMOUS)

    def test_notifications_count_among_those_that_run(self) -> None:
        connection = Connection(SERVER, 0.0)
        for _ in range(CALLS_OPEN + 5):
            connection.received(encode_notification("a.b", {}), 1.0)
        self.assertEqual(len(connection.effects()), CALLS_OPEN)

    def test_the_rate(self) -> None:
        connection = Connection(SERVER, 0.0)

        def calls_that_run(now: float, count: int) -> int:
            ran = 0
            for ident in range(count):
                connection.received(call(ident), now)
                for effect in connection.effects():
                    if isinstance(effect, Invoke):
                        ran += 1
                        connection.answered(effect.call, {}, now)
            return ran

        self.assertEqual(calls_that_run(0.0, 1000), CALL_BURST)
        self.assertEqual(calls_that_run(0.5, 1000), CALL_RATE / 2)
        self.assertEqual(calls_that_run(1.0, 1000), CALL_RATE / 2)
        self.assertEqual(calls_that_run(1000.0, 1000), CALL_BURST)

    def test_a_result_over_the_cap(self) -> None:
        connection = Connection(AGENTS, 0.0)
        connection.received(call(1), 1.0)
        connection.effects()
        connection.answered(1, "x" * ANSWER_AGENT, 1.0)
        (message,) = sent(connection)
        self.assertEqual((message["error"]["code"], message["error"]["data"]), (-32006, {"limit": "MESSAGE"}))

    def test_an_error_over_the_cap(self) -> None:
        connection = Connection(LEGACY, 0.0)
        connection.received(call(1), 1.0)
        connection.effects()
        connection.failed(1, CallUnavailable("x" * 2000), 1.0)
        (message,) = sent(connection)
        self.assertEqual(message["error"]["code"], -32006)

    def test_a_result_that_json_does_not_have_leaves_the_call_running(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(call(1), 1.0)
        connection.effects()
        self.assertRaises(ValueError, connection.answered, 1, float("nan"), 1.0)
        self.assertRaises(TypeError, connection.answered, 1, object(), 1.0)
        connection.failed(1, Forbidden("x"), 1.0)
        self.assertEqual(codes(connection.effects()), [-32002])

    def test_nobody_is_served_by_a_client(self) -> None:
        connection = Connection(CLIENT, 0.0)
        connection.received(call(1), 1.0)
        self.assertEqual(codes(connection.effects()), [-32601])
        connection.received(encode_notification("proxy.connection", {"conn": 1}), 1.0)
        self.assertEqual(connection.effects(), [Tell(Notified("proxy.connection", {"conn": 1}))])

    def test_positional_parameters_of_legacy_agents(self) -> None:
        body = b'{"jsonrpc":"2.0","id":1,"method":"webgw_unregisterClient","params":[7]}'
        legacy, usual = Connection(LEGACY, 0.0), Connection(SERVER, 0.0)
        legacy.received(body, 1.0)
        usual.received(body, 1.0)
        self.assertEqual(legacy.effects(), [Invoke(1, "webgw_unregisterClient", {"0": 7})])
        self.assertEqual(codes(usual.effects()), [-32602])

    def test_a_caller_that_vanishes(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(call(1), 1.0)
        connection.received(encode_notification("a.b", {}), 1.0)
        connection.effects()
        connection.lost(2.0)
        self.assertEqual(connection.effects(), [Cancel(1), Cancel(2)])
        connection.failed(1, CallUnavailable("cancelled"), 2.0)
        connection.answered(2, {}, 2.0)
        self.assertEqual((connection.effects(), connection.running), ([], 0))


class Proving(SynchronousTestCase):
    """`auth.token`, and the time for it."""

    def token(self, connection: Connection, right: bool, now: float = 1.0) -> list[ControlEffect]:
        connection.received(call("t", "auth.token", token="x"), now)
        (invoke,) = connection.effects()
        assert isinstance(invoke, Invoke)
        if right:
            connection.answered(invoke.call, {"name": "ops", "roles": []}, now)
        else:
            connection.failed(invoke.call, Unauthenticated(), now)
        return list(connection.effects())

    def test_right(self) -> None:
        connection = Connection(PROVE, 0.0)
        self.assertEqual((connection.state, connection.deadline()), (State.ANONYMOUS, AUTH_TIME))
        self.token(connection, True)
        self.assertEqual((connection.state, connection.deadline()), (State.READY, 1.0 + DEAD))

    def test_the_third_wrong_one_closes(self) -> None:
        connection = Connection(SERVER, 0.0)
        for turn in range(AUTH_FAILS):
            effects = self.token(connection, False)
            self.assertEqual(codes(effects), [-32001])
            self.assertEqual([effect for effect in effects if isinstance(effect, Tell)], [Tell(WrongToken())])
            self.assertEqual(reasons(effects), ["wrong_token"] if turn == AUTH_FAILS - 1 else [])
        self.assertEqual(connection.state, State.CLOSED)

    def test_sixty_four_guesses_at_once_are_three(self) -> None:
        connection = Connection(SERVER, 0.0)
        for ident in range(64):
            connection.received(call(ident, "auth.token", token=str(ident)), 1.0)
        invokes = [effect for effect in connection.effects() if isinstance(effect, Invoke)]
        for invoke in invokes[:40]:
            connection.failed(invoke.call, Unauthenticated(), 1.0)
        connection.answered(invokes[40].call, {"name": "ops"}, 1.0)
        effects = connection.effects()
        self.assertEqual(codes(effects), [-32001] * AUTH_FAILS)
        self.assertEqual(reasons(effects), ["wrong_token"])
        self.assertEqual(connection.state, State.CLOSED)

    def test_in_time_or_closed(self) -> None:
        connection = Connection(PROVE, 0.0)
        connection.received(call(1, "rpc.ping"), 4.0)
        connection.effects()
        connection.wake(4.999)
        self.assertEqual(connection.effects(), [])
        connection.wake(AUTH_TIME)
        self.assertEqual(connection.effects(), [Close("unproven"), Cancel(1)])

    def test_no_hurry_where_something_is_public_or_the_handshake_told(self) -> None:
        for connection in (Connection(SERVER, 0.0), Connection(PROVE, 0.0, known=True)):
            connection.wake(AUTH_TIME)
            self.assertEqual(connection.effects(), [])

    def test_a_granted_role_is_proof_enough(self) -> None:
        connection = Connection(PROVE, 0.0)
        connection.known()
        connection.wake(AUTH_TIME)
        self.assertEqual(connection.state, State.READY)


class Frames(SynchronousTestCase):
    """What ends the connection at once, and what only after a while."""

    def test_over_the_cap(self) -> None:
        for rules in (SERVER, AGENTS, LEGACY):
            connection = Connection(rules, 0.0)
            body = call(1, x="")
            connection.received(body[:-3] + b"x" * (rules.message - len(body)) + body[-3:], 1.0)
            self.assertIsInstance(connection.effects()[0], Invoke)
            connection.received(b" " * (rules.message + 1), 1.0)
            self.assertEqual(reasons(connection.effects()), ["message_size"])

    def test_close_codes(self) -> None:
        expected = (("message_size", 1009), ("utf8", 1007), ("binary", 1003), ("errors", 1008), ("wrong_token", 1008))
        for reason, code in expected:
            self.assertEqual(CLOSE_CODES[reason], code)

    def test_not_utf8_and_binary(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(b'{"a":"\xff"}', 1.0)
        self.assertEqual(connection.effects(), [Close("utf8")])
        connection = Connection(SERVER, 0.0)
        connection.received_binary(1.0)
        self.assertEqual(connection.effects(), [Close("binary")])

    def test_twenty_unreadable_in_a_row(self) -> None:
        bad = (b"x", b"[]", b"{}", b'{"jsonrpc":"2.0","id":1,"method":"m","params":[]}')
        connection = Connection(SERVER, 0.0)
        for turn in range(ERRORS):
            self.assertEqual(connection.state, State.ANONYMOUS, turn)
            connection.received(bad[turn % 4], 1.0)
            self.assertIn(codes(connection.effects())[0], (-32700, -32600, -32602))
        self.assertEqual(connection.state, State.CLOSED)

    def test_a_good_one_between(self) -> None:
        connection = Connection(SERVER, 0.0)
        for _ in range(5):
            for _ in range(ERRORS - 1):
                connection.received(b"x", 1.0)
            connection.received(call(1), 1.0)
        self.assertEqual(connection.state, State.ANONYMOUS)

    def test_refused_calls_are_not_unreadable(self) -> None:
        connection = Connection(CLIENT, 0.0)
        for ident in range(ERRORS * 3):
            connection.received(call(ident), 1.0)
        self.assertEqual(connection.state, State.ANONYMOUS)

    def test_answers_to_nothing_are_ignored(self) -> None:
        connection = Connection(SERVER, 0.0)
        for body in (encode_result(1, {}), b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}'):
            connection.received(body, 1.0)
        self.assertEqual(connection.effects(), [])


class Silence(SynchronousTestCase):
    """Forty seconds without a sign of life."""

    def test_dead(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.wake(DEAD - 0.001)
        self.assertEqual(connection.effects(), [])
        connection.wake(DEAD)
        self.assertEqual(connection.effects(), [Close("silent", abort=True)])
        self.assertIsNone(connection.deadline())

    def test_messages_and_pings_are_life(self) -> None:
        connection = Connection(SERVER, 0.0)
        connection.received(b"x", 30.0)
        self.assertEqual(connection.deadline(), 30.0 + DEAD)
        connection.heard(60.0)
        connection.heard(50.0)
        self.assertEqual(connection.deadline(), 60.0 + DEAD)


class Draining(SynchronousTestCase):
    """A node that is about to stop."""

    def test_only_what_looks_after_the_node(self) -> None:
        connection = Connection(SERVER, 0.0, known=True)
        connection.received(call("before"), 1.0)
        connection.drain()
        connection.received(call("after"), 1.0)
        connection.received(call("status", "node.status"), 1.0)
        connection.received(encode_notification("proxy.reject", {}), 1.0)
        before, refused, status, told = connection.effects()
        self.assertEqual(before, Invoke(1, "a.b", {}))
        self.assertEqual(codes([refused]), [-32008])
        self.assertEqual((status, told), (Invoke(2, "node.status", {}), Invoke(3, "proxy.reject", {})))
        connection.answered(1, {}, 2.0)
        self.assertEqual(sent(connection)[0]["id"], "before")

    def test_back_again(self) -> None:
        for connection, state in (
            (Connection(SERVER, 0.0, known=True), State.READY),
            (Connection(PROVE, 0.0), State.ANONYMOUS),
        ):
            connection.drain()
            self.assertEqual(connection.state, State.DRAINING)
            connection.resume()
            self.assertEqual(connection.state, state)


NOTE = Delivery(1, 1, Note("a.b", "", {}, b"{}", None))

INPUTS: dict[str, Callable[[Connection], object]] = {
    "call": lambda c: c.received(call("x"), 1.0),
    "node call": lambda c: c.received(call("n", "node.status"), 1.0),
    "notification": lambda c: c.received(encode_notification("a.b", {}), 1.0),
    "cancel": lambda c: c.received(encode_notification("cancel", {"id": "r"}), 1.0),
    "answer": lambda c: c.received(encode_result(1, {}), 1.0),
    "nonsense": lambda c: c.received(b"x", 1.0),
    "right token": lambda c: c.answered(2, {}, 1.0),
    "wrong token": lambda c: c.failed(2, Unauthenticated(), 1.0),
    "result": lambda c: c.answered(1, {}, 1.0),
    "error": lambda c: c.failed(1, Forbidden("x"), 1.0),
    "known": lambda c: c.known(),
    "drain": lambda c: c.drain(),
    "resume": lambda c: c.resume(),
    "notify": lambda c: c.notify("a.b", {}),
    "deliver": lambda c: c.deliver([NOTE]),
    "forget": lambda c: c.forget(1),
    "ping": lambda c: c.heard(1.0),
    "woken early": lambda c: c.wake(1.0),
    "over the cap": lambda c: c.received(b" " * 100_000, 1.0),
    "not utf8": lambda c: c.received(b"\xff", 1.0),
    "binary": lambda c: c.received_binary(1.0),
    "unproven": lambda c: c.wake(AUTH_TIME),
    "silent": lambda c: c.wake(0.5 + DEAD),
    "close": lambda c: c.close("done"),
    "lost": lambda c: c.lost(1.0),
}
ENDS = {"over the cap", "not utf8", "binary", "silent", "close", "lost"}


def in_state(state: State) -> Connection:
    """A connection in this state with two calls running, one of them of a token, and one call of ours."""
    connection = Connection(PROVE, 0.0, known=state is State.READY)
    connection.received(call("r"), 0.5)
    connection.received(call("t", "auth.token"), 0.5)
    connection.call("a.b", {}, 0.5, 60.0)
    if state is State.DRAINING:
        connection.known()
        connection.drain()
    if state is State.CLOSED:
        connection.close("done")
    connection.effects()
    return connection


def next_state(state: State, cause: str) -> State:
    """The transition table of control.md section 3."""
    if state is State.CLOSED or cause in ENDS:
        return State.CLOSED
    if cause == "drain":
        return State.DRAINING
    if state is State.ANONYMOUS and cause in ("right token", "known"):
        return State.READY
    if state is State.ANONYMOUS and cause == "unproven":
        return State.CLOSED
    if state is State.DRAINING and cause == "resume":
        return State.READY
    return state


class EveryTransition(SynchronousTestCase):
    """Each input in each state."""

    def test_next_state(self) -> None:
        for state in State:
            for cause, act in INPUTS.items():
                connection = in_state(state)
                act(connection)
                self.assertEqual(connection.state, next_state(state, cause), (state, cause))

    def test_nothing_is_sent_once_closed(self) -> None:
        for cause, act in INPUTS.items():
            connection = in_state(State.CLOSED)
            act(connection)
            self.assertEqual(connection.effects(), [], cause)
            self.assertIsNone(connection.deadline())

    def test_closing_says_so_once_and_cancels(self) -> None:
        for state in (State.ANONYMOUS, State.READY, State.DRAINING):
            for cause in ENDS:
                connection = in_state(state)
                INPUTS[cause](connection)
                effects = connection.effects()
                self.assertEqual(len(reasons(effects)), 0 if cause == "lost" else 1, cause)
                self.assertEqual([effect for effect in effects if isinstance(effect, Cancel)], [Cancel(1), Cancel(2)])
                self.assertEqual(len([effect for effect in effects if isinstance(effect, Tell)]), 1)


class AnyNoise(SynchronousTestCase):
    """Whatever the peer sends, whenever: answers or a close, within the caps, never an exception."""

    MESSAGES = st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='{}[]":,\\u012ed+- nul', max_size=60).map(str.encode),
        st.builds(
            encode_call,
            st.integers(-3, 3) | st.text(max_size=3),
            st.sampled_from(["a.b", "auth.token", "node.x"]),
            st.dictionaries(st.text(max_size=3), st.integers(-9, 9), max_size=3),
        ),
        st.builds(
            encode_notification,
            st.sampled_from(["cancel", "a.b", "event"]),
            st.fixed_dictionaries({"id": st.integers(-3, 3) | st.text(max_size=3) | st.none()}),
        ),
        st.builds(encode_result, st.integers(-3, 3), st.none()),
        st.sampled_from([b"", b" " * 2000, b"[" * 500, b'{"jsonrpc":"2.0","id":1,"error":{}}']),
    )

    @given(
        st.sampled_from([SERVER, AGENTS, LEGACY, CLIENT, PROVE]),
        st.lists(st.tuples(MESSAGES, st.floats(0, 12), st.integers(0, 9)), max_size=60),
    )
    def test_any_messages_at_any_time(self, rules: Rules, steps: list[tuple[bytes, float, int]]) -> None:
        connection, now, running, closed = Connection(rules, 0.0), 0.0, set[int](), False
        invoked = set[int]()
        for message, pause, choice in steps:
            now += pause
            if choice == 0:
                connection.wake(now)
            if choice == 1 and connection.state is not State.CLOSED:
                connection.call("ours.x", {}, now, pause)
            connection.received(message, now)
            if choice in (2, 3) and running:
                ident = running.pop()
                if choice == 2:
                    connection.answered(ident, {}, now)
                else:
                    connection.failed(ident, Unauthenticated(), now)
            for effect in connection.effects():
                match effect:
                    case Send(data):
                        self.assertFalse(closed)
                        self.assertLessEqual(len(data), rules.message)
                        parse(data)
                    case Invoke(ident):
                        self.assertNotIn(ident, invoked)
                        invoked.add(ident)
                        running.add(ident)
                    case Cancel(ident):
                        self.assertIn(ident, invoked)
                    case Close():
                        self.assertFalse(closed)
                        closed = True
            self.assertLessEqual(connection.running, CALLS_OPEN)
            self.assertEqual(connection.state is State.CLOSED, closed)
        connection.lost(now)
        self.assertEqual([effect for effect in connection.effects() if isinstance(effect, Send)], [])
