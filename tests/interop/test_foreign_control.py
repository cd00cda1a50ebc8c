"""C7: a client made from the OpenRPC document alone, speaking through a WebSocket library that we did not write."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from tests.control.rig import Rig, Told, rig, until

try:
    from websockets.sync.client import ClientConnection, connect, unix_connect
except ImportError:
    connect = None  # type: ignore[assignment]

SUBPROTOCOL = "jsonrpc.layer8.v1"
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}


class Foreign:
    """A client that knows nothing but `rpc.discover` and what that answers."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.number = 0
        self.told: list[dict[str, Any]] = []
        self.document: dict[str, Any] = {"methods": [], "components": {}}
        self.document = self.raw("rpc.discover", {})["result"]
        self.methods = {row["name"]: row for row in self.document["methods"]}

    def raw(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Call, and give the whole answer; what comes without an id in between was told."""
        self.number += 1
        call = {"jsonrpc": "2.0", "id": f"n{self.number}", "method": method, "params": params}
        self.connection.send(json.dumps(call))
        while True:
            message: dict[str, Any] = json.loads(self.connection.recv(timeout=20))
            if message.get("id") == f"n{self.number}":
                return message
            self.told.append(message)

    def call(self, method: str, **params: Any) -> Any:
        """Call as the document says: its parameters, its result."""
        row = self.methods[method]
        for param in row["params"]:
            if param["name"] in params:
                self.check(params[param["name"]], param["schema"])
            elif param.get("required"):
                raise AssertionError(f"{method} needs {param['name']}")
        answer = self.raw(method, params)
        if "error" in answer:
            codes = {self.resolve(error)["code"] for error in row["errors"]}
            assert answer["error"]["code"] in codes, (method, answer)
            return answer["error"]
        self.check(answer["result"], row["result"]["schema"])
        return answer["result"]

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follow a reference into the document."""
        while "$ref" in schema:
            found: Any = self.document
            for word in schema["$ref"].removeprefix("#/").split("/"):
                found = found[word]
            schema = found
        return schema

    def check(self, value: Any, schema: dict[str, Any]) -> None:
        """Check a value by the few words of JSON Schema that the document uses."""
        schema = self.resolve(schema)
        if "anyOf" in schema:
            for each in schema["anyOf"]:
                try:
                    return self.check(value, each)
                except AssertionError:
                    continue
            raise AssertionError((value, schema))
        if "type" in schema:
            kinds = KINDS[schema["type"]]
            assert isinstance(value, kinds) and (not isinstance(value, bool) or kinds is bool), (value, schema)
        if "enum" in schema:
            assert value in schema["enum"]
        for name in schema.get("required", ()):
            assert name in value, (name, value)
        for name, part in schema.get("properties", {}).items():
            if name in value:
                self.check(value[name], part)
        for each in value if isinstance(value, list) else ():
            self.check(each, schema.get("items", {}))


class ForeignClientTests(TestCase):
    """PyPI's `websockets` against our listeners."""

    def setUp(self) -> None:
        if connect is None:
            raise SkipTest("needs the Python package websockets (Debian: python3-websockets)")
        self.rig: Rig = rig(self)

    async def with_client(self, work: Callable[[Foreign], Any], kind: str = "tcp") -> Any:
        """Run blocking work with a foreign client in a thread."""
        port, cookie = self.rig.port("tls" if kind == "tls" else "tcp"), self.rig.service.keyring.cookie
        path = str(self.rig.service.socket_path)

        def run() -> Any:
            more: dict[str, Any] = {"subprotocols": [SUBPROTOCOL], "compression": "deflate"}
            if kind == "unix":
                connection = unix_connect(path, "ws://localhost/ws", **more)
            else:
                more["additional_headers"] = {"Authorization": f"Bearer {cookie}"}
                if kind == "tls":
                    context = ssl.create_default_context()
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                    more["ssl"] = context
                connection = connect(f"{'wss' if kind == 'tls' else 'ws'}://127.0.0.1:{port}/ws", **more)
            with connection:
                assert connection.subprotocol == SUBPROTOCOL
                return work(Foreign(connection))

        return await deferToThread(run)

    def tour(self, client: Foreign) -> list[str]:
        """Call every method that needs no parameter, and some that do."""
        called = []
        for name, row in sorted(client.methods.items()):
            if not any(param.get("required") for param in row["params"]) and not name.startswith(("node.", "test.")):
                client.call(name)
                called.append(name)
        client.call("node.status")
        assert client.call("test.echo", text="grüße") == {"text": "grüße"}
        assert client.call("test.add", number=4) == {"number": 5}
        assert client.call("test.refused")["message"] == "the policy says no"
        assert client.raw("test.add", {"number": 4000})["error"]["data"] == {"path": "number"}
        return called

    async def test_a_tour_of_every_listener(self) -> None:
        for kind in ("tcp", "tls", "unix"):
            called = await self.with_client(self.tour, kind)
            self.assertGreaterEqual(len(called), 9, called)

    async def test_events(self) -> None:
        def listen(client: Foreign) -> list[dict[str, Any]]:
            number = client.call("events.subscribe", names=["test.read"])["subscription"]
            while len(client.told) < 3:
                client.told.append(json.loads(client.connection.recv(timeout=20)))
            assert {event["params"]["subscription"] for event in client.told} == {number}
            return client.told

        listening = self.with_client(listen)
        from twisted.internet.defer import Deferred

        waiting = Deferred.fromCoroutine(listening)
        await until(self.rig.reactor, lambda: self.rig.table.wanted("test.read"))
        for count in range(3):
            self.rig.table.publish("test.read", Told("key", count))
        told = await waiting
        self.assertEqual([event["params"]["data"]["count"] for event in told], [0, 1, 2])
        self.assertEqual({event["method"] for event in told}, {"event"})

    async def test_its_pings_and_long_messages(self) -> None:
        def work(client: Foreign) -> int:
            assert client.connection.ping().wait(20)
            return len(client.call("test.echo", text="x" * 32_000)["text"])

        self.assertEqual(await self.with_client(work), 32_000)

    async def test_it_can_be_told_to_go(self) -> None:
        from websockets.exceptions import ConnectionClosed

        def work(client: Foreign) -> int:
            try:
                client.connection.send(b"binary")
                client.connection.recv(timeout=20)
            except ConnectionClosed as closed:
                return 0 if closed.rcvd is None else closed.rcvd.code
            return -1

        self.assertEqual(await self.with_client(work), 1003)
