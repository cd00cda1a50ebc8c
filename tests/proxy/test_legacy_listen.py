"""webgw on real sockets: its agents' WebSocket, and its REST interface on a control listener."""

import base64
import hashlib
import json
import os
import socket
import struct
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from layer8.control.conversation import Known
from layer8.control.http import Page as ControlPage
from layer8.control.http import Refusal, Request, Site
from layer8.core.errors import StorageError
from layer8.net.factory import Places
from layer8.proxy.legacy_listen import METHODS, PATH, LegacyApi, LegacyPage
from layer8.proxy.orders import Policy
from layer8.proxy.registration import Ownership
from layer8.proxy.registry import static
from tests.control.rig import pause
from tests.proxy.desk import HOST, OTHER, Desk, key_of, row
from tests.proxy.pair import PairCase, get
from tests.proxy.test_legacy import HEX64, VECTORS, ZEROS, lines

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)


class WebgwAgent:
    """A webgw agent on a blocking socket, for a thread: RFC 6455 by hand, without a subprotocol."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        key = base64.b64encode(os.urandom(16))
        self.sock.sendall(UPGRADE % key)
        self.waiting = b""
        while b"\r\n\r\n" not in self.waiting:
            self.more()
        self.head, _, self.waiting = self.waiting.partition(b"\r\n\r\n")
        accept = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        assert base64.b64encode(accept) in self.head

    def more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.waiting += data

    def send(self, data: bytes, opcode: int = TEXT) -> None:
        size = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0x80 | 126, len(data))
        self.sock.sendall(bytes((0x80 | opcode,)) + size + bytes(4) + data)

    def receive(self) -> tuple[int, bytes]:
        while len(self.waiting) < 2:
            self.more()
        size, start = self.waiting[1], 2
        if size == 126:
            while len(self.waiting) < 4:
                self.more()
            size, start = struct.unpack("!H", self.waiting[2:4])[0], 4
        while len(self.waiting) < start + size:
            self.more()
        opcode, data = self.waiting[0] & 15, self.waiting[start : start + size]
        self.waiting = self.waiting[start + size :]
        return opcode, data

    def call(self, text: str) -> Any:
        self.send(text.encode())
        return json.loads(self.receive()[1])

    def serve(self, note: Any, answer: bytes) -> bytes:
        """Dial back for a visitor as webgw does, answer its first bytes, and give them."""
        call = note["params"]["result"]
        with socket.create_connection(("127.0.0.1", call["serverListeningPort"]), timeout=10) as data:
            data.sendall(bytes.fromhex(call["secret"]))
            got = data.recv(65536)
            data.sendall(answer)
        return got


class ListenerTests(PairCase):
    async def server(self) -> int:
        """A server with the hosts of the recorded conversations; the port of its legacy listener."""
        self.made = self.serve('legacy = ["tcp:0:interface=127.0.0.1"]')
        for host in ("www.example.com", "shop.example.com"):
            self.made.registry.put(row(host, ZEROS, owner="ann", version=self.made.registry.version + 1))
        (port,) = [
            int(told.split(":")[1].split(" ")[0]) for told in self.made.listening() if told.startswith("agents on")
        ][1:]
        return port

    def ask(self, method: str, place: str = "", body: bytes = b"") -> bytes:
        """Make one HTTP request to the control socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.folder / "run" / "proxy.sock"))
            sock.sendall(
                f"{method} {PATH}{place} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            got = b""
            while part := sock.recv(65536):
                got += part
            return got

    async def test_recorded_conversations(self) -> None:
        port = await self.server()
        for path in sorted(VECTORS.glob("*.jsonl")):
            await self.thread(self.play, path.stem, port)

    def play(self, name: str, port: int) -> None:
        agent = WebgwAgent(port)
        numbers: dict[int, int] = {}
        try:
            for line in lines(name):
                match line:
                    case {"from": "agent", "text": text}:
                        for recorded, ours in numbers.items():
                            text = text.replace(str(recorded), str(ours))
                        agent.send(text.encode())
                    case {"from": "agent", "ping": data}:
                        agent.send(bytes.fromhex(data), PING)
                    case {"from": "server", "pong": data}:
                        self.assertEqual(agent.receive(), (PONG, bytes.fromhex(data)))
                    case {"from": "server", "close": code}:
                        opcode, data = agent.receive()
                        self.assertEqual((opcode, struct.unpack("!H", data[:2])[0]), (CLOSE, code))
                    case {"from": "server", "text": text}:
                        recorded = json.loads(text)
                        if "method" in recorded:
                            continue  # visitors come in the test below
                        opcode, data = agent.receive()
                        ours = json.loads(data)
                        self.assertEqual((opcode, set(ours), ours["id"]), (TEXT, set(recorded), recorded["id"]), name)
                        if "error" in recorded:
                            self.assertEqual(ours["error"]["code"], recorded["error"]["code"], name)
                        elif type(recorded["result"]) is int:
                            numbers[recorded["result"]] = ours["result"]
                        else:
                            self.assertEqual(ours["result"], recorded["result"])
        finally:
            agent.sock.close()

    async def test_a_webgw_agent_carries_a_visitor(self) -> None:
        port = await self.server()
        web = self.made.door.port_of("http")

        def all_of_it() -> tuple[bytes, bytes, Any, Any]:
            agent = WebgwAgent(port)
            (subscribe,) = [line["text"] for line in lines("subscribe_ok") if line["from"] == "agent"]
            subscribed = agent.call(subscribe)
            with socket.create_connection(("127.0.0.1", web), timeout=10) as visitor:
                visitor.sendall(get("WWW.example.com"))
                note = json.loads(agent.receive()[1])
                got = agent.serve(note, b"HTTP/1.0 200 OK\r\n\r\nhello")
                answer = b""
                while part := visitor.recv(65536):
                    answer += part
            agent.sock.close()
            return got, answer, subscribed, note

        got, answer, subscribed, note = await self.thread(all_of_it)
        self.assertEqual((got, answer), (get("WWW.example.com"), b"HTTP/1.0 200 OK\r\n\r\nhello"))
        self.assertEqual(set(note), {"jsonrpc", "method", "params"})
        self.assertEqual(note["params"]["subscription"], subscribed["result"])
        self.assertEqual(set(note["params"]["result"]), {"secret", "port", "serverListeningPort"})
        self.assertEqual(note["params"]["result"]["port"], web)
        self.assertRegex(note["params"]["result"]["secret"], HEX64)
        await self.until(lambda: len(self.made.seats) == 0)

    async def test_rest_on_the_control_listener(self) -> None:
        await self.server()
        told = json.dumps({"host": HOST, "hexSecretHash": key_of().hex()}).encode()

        self.assertTrue((await self.thread(self.ask, "POST", "", told)).startswith(b"HTTP/1.1 200"))
        self.assertIsNotNone(self.made.registry.lookup(HOST))
        listed = (await self.thread(self.ask, "GET")).partition(b"\r\n\r\n")[2]
        self.assertIn(HOST, [one["host"] for one in json.loads(listed)])
        self.assertTrue((await self.thread(self.ask, "DELETE", f"/{HOST}")).startswith(b"HTTP/1.1 200"))
        self.assertTrue((await self.thread(self.ask, "DELETE", f"/{HOST}")).startswith(b"HTTP/1.1 204"))

    async def test_no_rest_without_legacy(self) -> None:
        self.serve()
        got = await self.thread(self.ask, "GET")
        self.assertTrue(got.startswith(b"HTTP/1.1 404"))

    async def test_no_method_of_ours_is_there(self) -> None:
        port = await self.server()

        def ask() -> list[Any]:
            agent = WebgwAgent(port)
            asked = ("proxy.list", "node.status", "rpc.discover", "auth.token", "proxy.hello")
            return [agent.call(json.dumps({"jsonrpc": "2.0", "method": name, "params": {}, "id": 1})) for name in asked]

        self.assertEqual({answer["error"]["code"] for answer in await self.thread(ask)}, {-32601})


class RestTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor as global_reactor

        self.reactor: Any = global_reactor
        self.desk = Desk(self.mktemp())
        self.known = Known("ops", frozenset({"admin"}))
        api = LegacyApi(self.desk.ledger, lambda host: (11, 22))
        self.serve(LegacyPage(api, self.who))
        self.api = api

    def serve(self, page: LegacyPage) -> None:
        site = Site(self.reactor, None, Places(100, 100), 5.0)
        site.hang(PATH, ControlPage(page, frozenset(METHODS), tree=True))
        port = self.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.port = port.getHost().port
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop(port)))

    async def stop(self, port: Any) -> None:
        await port.stopListening()
        await pause(self.reactor, 0.05)

    def who(self, request: Request) -> Known:
        return self.known

    async def ask(self, method: str, place: str = "", body: bytes | Any = b"") -> tuple[int, Any]:
        """Make one request; the status, and the body as JSON if it is that."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = (
            f"{method} {PATH}{place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        ).encode() + data

        def exchange() -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
                sock.sendall(request)
                got = b""
                while part := sock.recv(65536):
                    got += part
                return got

        head, _, got = (await deferToThread(exchange)).partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        return status, json.loads(got) if b"application/json" in head else got

    def body(self, host: str = HOST, digits: str = key_of().hex()) -> dict[str, str]:
        return {"host": host, "hexSecretHash": digits}

    async def test_register_list_delete(self) -> None:
        status, made = await self.ask("POST", body=self.body("WWW.Example.com", key_of().hex().upper()))
        shown = {"host": "www.example.com", "hexSecretHash": key_of().hex()[:8], "read": 22, "written": 11}
        self.assertEqual((status, made), (200, shown))
        self.assertIsNotNone(self.desk.registry.lookup("www.example.com"))
        self.assertEqual(await self.ask("GET"), (200, [shown]))
        self.assertEqual((await self.ask("DELETE", "/www.example.com"))[0], 200)
        self.assertEqual((await self.ask("DELETE", "/www.example.com"))[0], 204)
        self.assertEqual(await self.ask("GET"), (200, []))

    async def test_registered_already(self) -> None:
        self.assertEqual((await self.ask("POST", body=self.body()))[0], 200)
        self.assertEqual((await self.ask("POST", body=self.body(digits=key_of(OTHER).hex())))[0], 409)
        (kept,) = self.desk.registry.of(HOST, None).secrets
        self.assertEqual(kept.key, key_of())

    async def test_bad_requests(self) -> None:
        for body in (
            b"",
            b"{",
            b"[]",
            b"\xff",
            b'{"host": 1, "host": 2}',
            {"host": HOST},
            {"hexSecretHash": key_of().hex()},
            self.body(digits="0" * 63),
            self.body(digits="g" * 64),
            self.body(digits=""),
            self.body(host=""),
            self.body(host="localhost"),
            self.body(host="192.0.2.1"),
            self.body(host="*.com"),
            {"host": HOST, "hexSecretHash": 7},
        ):
            self.assertEqual((await self.ask("POST", body=body))[0], 400, body)
        self.assertEqual(len(self.desk.registry), 0)

    async def test_long_body(self) -> None:
        fits = json.dumps(self.body()).encode()
        self.assertEqual((await self.ask("POST", body=fits + b" " * (1024 - len(fits))))[0], 200)
        self.assertEqual((await self.ask("POST", body=fits + b" " * (1025 - len(fits))))[0], 413)

    async def test_other_paths_and_methods(self) -> None:
        self.assertEqual((await self.ask("POST", "/x", self.body()))[0], 404)
        self.assertEqual((await self.ask("DELETE"))[0], 404)
        self.assertEqual((await self.ask("GET", "/x"))[0], 404)
        self.assertIn((await self.ask("PUT", body=self.body()))[0], (405, 501))

    async def test_needs_a_token(self) -> None:
        for roles in ({"public"}, {"read"}, {"operate"}, {"agent"}):
            self.known = Known("somebody", frozenset(roles))
            self.assertEqual((await self.ask("GET"))[0], 401)
            self.assertEqual((await self.ask("POST", body=self.body()))[0], 401)
        self.assertEqual(len(self.desk.registry), 0)

    async def test_open_is_for_this_machine(self) -> None:
        page = LegacyPage(self.api, self.who, open=True)
        self.known = Known("somebody", frozenset({"public"}))

        class Far:
            length = 0

            def getClientAddress(self) -> IPv4Address:
                return IPv4Address("TCP", "192.0.2.1", 1)

        self.assertRaises(Refusal, page.render, Far())

    async def test_open_on_loopback(self) -> None:
        self.known = Known("somebody", frozenset({"public"}))
        self.serve(LegacyPage(self.api, self.who, open=True))
        self.assertEqual((await self.ask("POST", body=self.body()))[0], 200)

    async def test_owners(self) -> None:
        self.desk.registry.put(row("other.example.com", owner="bob"))
        self.known = Known("ann", frozenset({"owner"}), ("*.example.com",))
        self.assertEqual((await self.ask("POST", body=self.body()))[0], 200)
        self.assertEqual([one["host"] for one in (await self.ask("GET"))[1]], [HOST])
        self.assertEqual((await self.ask("DELETE", "/other.example.com"))[0], 204)
        self.assertIsNotNone(self.desk.registry.lookup("other.example.com"))
        self.assertEqual((await self.ask("POST", body=self.body("shop.example.org")))[0], 200)
        claim = self.desk.registry.claim("shop.example.org", "ann")
        assert claim is not None
        self.assertEqual(claim.state, Ownership.PENDING)

    async def test_what_stands_in_the_file(self) -> None:
        host = static(HOST, key=key_of(), target=None, ports=(), mode="raw", policy=Policy(), rules=64)
        await self.desk.ledger.set_static([host])
        self.assertEqual((await self.ask("DELETE", f"/{HOST}"))[0], 403)

    async def test_disk_fails(self) -> None:
        self.desk.storage.close()
        status, why = await self.ask("POST", body=self.body())
        self.assertEqual((status, why), (503, b"storage is closed\n"))
        self.assertEqual(self.flushLoggedErrors(StorageError), [])

    async def test_no_answer_holds_the_hash(self) -> None:
        await self.ask("POST", body=self.body())
        self.assertNotIn(key_of().hex(), json.dumps(await self.ask("GET")))
