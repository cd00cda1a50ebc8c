"""JSON-RPC 2.0 messages."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.errors import (
    ControlError,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    NoCapacity,
    ParseFailed,
)
from layer8.control.events import Delivery, Note
from layer8.control.jsonrpc import (
    BadMessage,
    Failure,
    Notification,
    Request,
    Result,
    decode,
    encode,
    encode_call,
    encode_error,
    encode_event,
    encode_notification,
    encode_result,
    parse,
)
from layer8.control.scalars import DEPTH, NUMBER


class Reading(SynchronousTestCase):
    """What is taken."""

    def test_a_call(self) -> None:
        self.assertEqual(
            parse(b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","params":{"a":[1,2.5,null]}}'),
            Request(1, "rpc.ping", {"a": [1, 2.5, None]}),
        )

    def test_params_may_be_left_out(self) -> None:
        self.assertEqual(parse(b'{"jsonrpc":"2.0","id":"x","method":"rpc.ping"}'), Request("x", "rpc.ping", {}))

    def test_a_notification(self) -> None:
        self.assertEqual(parse(b'{"jsonrpc":"2.0","method":"m","params":{}}'), Notification("m", {}))

    def test_answers(self) -> None:
        self.assertEqual(parse(b'{"jsonrpc":"2.0","id":1,"result":null}'), Result(1, None))
        self.assertEqual(parse(b'{"jsonrpc":"2.0","id":1,"result":{},"later":1}'), Result(1, {}))
        failure = parse(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32006,"message":"m","data":{"limit":"L"}}}')
        assert isinstance(failure, Failure)
        self.assertIsInstance(failure.error, NoCapacity)
        self.assertEqual((failure.id, failure.error.message, failure.error.data), (1, "m", {"limit": "L"}))

    def test_an_error_to_something_unreadable_has_no_id(self) -> None:
        failure = parse(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}')
        assert isinstance(failure, Failure)
        self.assertIsNone(failure.id)
        self.assertIsInstance(failure.error, ParseFailed)

    def test_a_code_that_we_do_not_know(self) -> None:
        failure = parse(b'{"jsonrpc":"2.0","id":1,"error":{"code":77,"message":"m","data":[1]}}')
        assert isinstance(failure, Failure)
        self.assertEqual((failure.error.code, failure.error.data), (77, {}))

    def test_brackets_in_strings_are_not_depth(self) -> None:
        text = "[{" * 50 + '\\"' + "]" * 9
        self.assertEqual(parse(encode_notification("m", {"a": text})), Notification("m", {"a": text}))

    def test_the_deepest_that_is_taken(self) -> None:
        for deeper, taken in ((DEPTH, True), (DEPTH + 1, False)):
            value = "[" * deeper + "]" * deeper
            if taken:
                decode(value.encode())
            else:
                self.assertRaises(ParseFailed, decode, value.encode())

    def test_wide_is_not_deep(self) -> None:
        self.assertEqual(len(decode(b"[" + b"[]," * 99 + b"{}]")), 100)

    def test_the_largest_numbers(self) -> None:
        self.assertEqual(decode(f"[{NUMBER},-{NUMBER}]".encode()), [NUMBER, -NUMBER])

    def test_ids_at_their_limits(self) -> None:
        for ident in ("", "x" * 64, "ä" * 32, 0, -NUMBER, NUMBER):
            message = parse(encode_call(ident, "m", {}))
            assert isinstance(message, Request)
            self.assertEqual(message.id, ident)

    def test_parameters_in_an_array_where_they_are_taken(self) -> None:
        body = b'{"jsonrpc":"2.0","id":1,"method":"webgw_unregisterClient","params":[7]}'
        self.assertEqual(parse(body, positional=True), Request(1, "webgw_unregisterClient", {"0": 7}))

    def test_astral_characters_escaped_as_a_pair(self) -> None:
        self.assertEqual(decode(b'"\\ud83d\\ude00"'), "\U0001f600")


class Refusing(SynchronousTestCase):
    """The bad input of control.md section 14, with the code each gets."""

    ROWS: tuple[tuple[bytes, type[ControlError], str | int | None], ...] = (
        (b"", ParseFailed, None),
        (b"not JSON", ParseFailed, None),
        (b"{", ParseFailed, None),
        (b"{} {}", ParseFailed, None),
        (b"\xef\xbb\xbf{}", ParseFailed, None),
        (b'{"a":1,"a":1}', ParseFailed, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":{"a":1,"\\u0061":2}}}', ParseFailed, None),
        (b'{"a":NaN}', ParseFailed, None),
        (b'{"a":Infinity}', ParseFailed, None),
        (b'{"a":-Infinity}', ParseFailed, None),
        (b'{"a":1e400}', ParseFailed, None),
        (b'{"a":-1e400}', ParseFailed, None),
        (b'{"a":9007199254740993}', ParseFailed, None),
        (b'{"a":1e17}', ParseFailed, None),
        (b'{"a":' + b"9" * 50_000 + b"}", ParseFailed, None),
        (b'{"a":' * 17 + b"1" + b"}" * 17, ParseFailed, None),
        (b"[" * 60_000, ParseFailed, None),
        (b'{"a":' * 10_000, ParseFailed, None),
        (b'"\\ud800"', ParseFailed, None),
        (b'{"\\udc00x":1}', ParseFailed, None),
        (b'{"a":"tab\there"}', ParseFailed, None),
        (b"[]", InvalidRequest, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', InvalidRequest, None),
        (b"3", InvalidRequest, None),
        (b"null", InvalidRequest, None),
        (b"{}", InvalidRequest, None),
        (b'{"id":1,"method":"m"}', InvalidRequest, 1),
        (b'{"jsonrpc":"1.0","id":1,"method":"m"}', InvalidRequest, 1),
        (b'{"jsonrpc":2.0,"id":1,"method":"m"}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":null,"method":"m"}', InvalidRequest, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"m"}', InvalidRequest, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"m"}', InvalidRequest, None),
        (b'{"jsonrpc":"2.0","id":[],"method":"m"}', InvalidRequest, None),
        (b'{"jsonrpc":"2.0","id":"' + b"x" * 65 + b'","method":"m"}', InvalidRequest, None),
        ('{"jsonrpc":"2.0","id":"ääääääääääääääääääääääääääääääääää","method":"m"}'.encode(), InvalidRequest, None),
        (b'{"jsonrpc":"2.0","id":1,"method":3}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":null}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":""}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"' + b"m" * 129 + b'"}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","roles":["admin"]}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}', InvalidParams, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":null}', InvalidParams, 1),
        (b'{"jsonrpc":"2.0","method":"m","params":"x"}', InvalidParams, None),
        (b'{"jsonrpc":"2.0","id":1}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":""}}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"error":"x"}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":""}}', InvalidRequest, 1),
        (b'{"jsonrpc":"2.0","result":1}', InvalidRequest, None),
    )

    def test_every_row(self) -> None:
        for body, kind, ident in self.ROWS:
            with self.assertRaises(BadMessage) as raised:
                parse(body)
            self.assertIs(type(raised.exception.error), kind, body[:60])
            self.assertEqual(raised.exception.id, ident, body[:60])

    def test_positional_parameters_stay_refused_elsewhere(self) -> None:
        with self.assertRaises(BadMessage):
            parse(b'{"jsonrpc":"2.0","id":1,"method":"m","params":3}', positional=True)

    def test_not_utf8(self) -> None:
        for body in (b"\xff", b'{"a":"\xed\xa0\x80"}', b'"\xc0\x80"'):
            self.assertRaises(UnicodeDecodeError, parse, body)


class Writing(SynchronousTestCase):
    """What we send."""

    def test_round_trips(self) -> None:
        self.assertEqual(parse(encode_call(1, "m", {"ä": 1})), Request(1, "m", {"ä": 1}))
        self.assertEqual(parse(encode_notification("m", {})), Notification("m", {}))
        self.assertEqual(parse(encode_result("i", [1])), Result("i", [1]))
        failure = parse(encode_error(1, MethodNotFound("m")))
        assert isinstance(failure, Failure)
        self.assertIsInstance(failure.error, MethodNotFound)
        self.assertEqual(failure.error.data, {"method": "m"})

    def test_no_data_is_left_out(self) -> None:
        self.assertNotIn(b"data", encode_error(None, ParseFailed()))

    def test_an_event(self) -> None:
        note = Note("relay.circuit", "2026-11-20T10:00:00.000Z", {"a": 1}, b'{"a":1}', None)
        self.assertEqual(
            json.loads(encode_event(Delivery(7, 1, note))),
            {
                "jsonrpc": "2.0",
                "method": "event",
                "params": {
                    "subscription": 7,
                    "seq": 1,
                    "name": "relay.circuit",
                    "at": "2026-11-20T10:00:00.000Z",
                    "data": {"a": 1},
                },
            },
        )

    def test_what_json_does_not_have(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        for value in (float("nan"), float("inf"), "\ud800", circle):
            self.assertRaises(ValueError, encode, value)
        self.assertRaises(TypeError, encode, {1, 2})


class AnyNoise(SynchronousTestCase):
    """Whatever comes: a message, BadMessage, or bytes that are not UTF-8."""

    def take(self, body: bytes) -> None:
        try:
            message = parse(body)
        except BadMessage as bad:
            parse(encode_error(bad.id, bad.error))
        except UnicodeDecodeError:
            with self.assertRaises(UnicodeDecodeError):
                body.decode()
        else:
            self.assertIsInstance(message, (Request, Notification, Result, Failure))

    @given(st.binary(max_size=300))
    def test_bytes(self, body: bytes) -> None:
        self.take(body)

    @given(st.text(alphabet='{}[]":,\\u0123dDeE+-.ntfrails \ud7ff', max_size=200))
    def test_texts_that_look_like_json(self, text: str) -> None:
        self.take(text.encode())

    @given(
        st.dictionaries(
            st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error", "x"]),
            st.sampled_from(["2.0", "m", 1, None, {}, [], {"code": 1, "message": "m"}, -1.5, True, "x" * 65]),
        )
    )
    def test_members_in_any_mixture(self, members: dict[str, Any]) -> None:
        self.take(json.dumps(members).encode())

    @given(st.integers(0, 10**6))
    def test_a_call_with_any_byte_changed(self, seed: int) -> None:
        body = bytearray(b'{"jsonrpc":"2.0","id":"k1","method":"proxy.hello","params":{"versions":[1],"s":"\\u00e4"}}')
        body[seed % len(body)] = seed // len(body) % 256
        self.take(bytes(body))
