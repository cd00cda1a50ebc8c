"""The proxy's messages: what stands on the wire, what is refused, what is never shown."""

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.shape import ShapeError, from_json, from_result, json_schema, to_json
from layer8.proxy import orders, wire
from layer8.proxy.orders import Policy, Register
from layer8.proxy.wire import Call, Connection, DataAddress, Hello, HelloResult, Reason, Subscribe

MESSAGES = [
    kind
    for module in (wire, orders)
    for kind in vars(module).values()
    if isinstance(kind, type) and attrs.has(kind) and kind.__module__ == module.__name__
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
SECRET = "5ec1" * 16


def call(**more: Any) -> Call:
    return Call(SECRET, 443, 4000, True, 7, "app.example.com", "https", 5000, **more)


class WireTests(SynchronousTestCase):
    def test_every_message_has_a_shape(self) -> None:
        self.assertGreater(len(MESSAGES), 30)
        for kind in MESSAGES:
            self.assertEqual(json_schema(kind), {"$ref": f"#/components/schemas/{kind.__name__}"})

    def test_the_list_of_reasons_is_closed(self) -> None:
        self.assertEqual(len(Reason), 34)
        for reason in Reason:
            self.assertRegex(reason.value, r"\A[a-z_]{4,20}\Z")
            self.assertEqual(reason.value, reason.name.lower())

    def test_connection_as_it_stands_on_the_wire(self) -> None:
        told = Connection(3, call(data_host="data.example.net"))
        self.assertEqual(
            to_json(told),
            {
                "subscription": 3,
                "result": {
                    "secret": SECRET,
                    "port": 443,
                    "serverListeningPort": 4000,
                    "serverListeningHost": "data.example.net",
                    "tls": True,
                    "conn": 7,
                    "host": "app.example.com",
                    "scheme": "https",
                    "expires_ms": 5000,
                },
            },
        )
        self.assertEqual(from_result(Connection, to_json(told)), told)

    def test_round_trips(self) -> None:
        for message in (
            Hello((1, 2), "instance 1", ("pp2",)),
            HelloResult(1, "a" * 52, SECRET, 15, {"SUBSCRIPTIONS": 64}, (), (DataAddress("", 1, True, "pin"),)),
            Subscribe("*.example.com", proof=SECRET, weight=5, resume="r"),
            Register("a.example.com", SECRET, (80,), "raw", Policy(deny=("192.0.2.1",)), "ann", 60),
        ):
            self.assertEqual(from_json(type(message), to_json(message)), message)

    def test_results_may_grow(self) -> None:
        told = to_json(Connection(3, call()))
        told["result"]["unheard-of"] = 1
        self.assertEqual(from_result(Connection, told), Connection(3, call()))
        self.assertRaises(ShapeError, from_json, Connection, told)

    def test_secrets_are_not_shown(self) -> None:
        for message in (call(), Subscribe("a", secret=SECRET), Subscribe("a", proof=SECRET), Register("a", SECRET)):
            self.assertNotIn(SECRET, repr(message))

    @given(st.sampled_from(MESSAGES), JSON)
    def test_any_noise(self, kind: Any, noise: Any) -> None:
        try:
            message = from_json(kind, noise)
        except ShapeError as error:
            self.assertTrue(str(error))
        else:
            self.assertEqual(from_json(kind, to_json(message)), message)
