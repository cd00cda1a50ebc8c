"""webgw's wire: recorded conversations against our server and our agent's half, and its mistakes not made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.control.shape import to_json
from layer8.core.errors import RemoteProtocolError
from layer8.proxy.choose import Seat
from layer8.proxy.legacy import (
    LegacyClient,
    LegacyServer,
    LegacyVoice,
    NotSubscribed,
    Subscribed,
    Unsubscribed,
    Visitor,
    visitor_note,
)
from layer8.proxy.limits import LEGACY_IN, LEGACY_OUT
from layer8.proxy.subscriber import Agent, Origin
from layer8.proxy.wire import LARGEST_ID, Call, Connection, DataAddress, Nodes
from tests.proxy.desk import Desk, row

VECTORS = Path(__file__).parent.parent / "vectors" / "webgw"
NAMES = sorted(path.stem for path in VECTORS.glob("*.jsonl"))
ZEROS = b"0" * 32
HOSTS = ("www.example.com", "shop.example.com")
DATA_PORT = 4658
HEX64 = r"\A[0-9a-f]{64}\Z"


def lines(name: str) -> Iterator[dict[str, Any]]:
    for line in (VECTORS / f"{name}.jsonl").read_text().splitlines():
        yield json.loads(line)


class Line:
    """A server's end of one webgw connection, without a socket."""

    def __init__(self, desk: Desk) -> None:
        self.sent: list[bytes] = []
        self.closed: list[str] = []
        self.full = False
        self.voice = LegacyVoice(self._send, self.closed.append)
        self.agent = Agent(desk.house, self.voice, Origin("192.0.2.7", private=False, legacy=True), bytes(32))
        self.server = LegacyServer(self.agent, lambda host: desk.registry.row(host) is not None)
        self.desk = desk

    def _send(self, message: bytes) -> bool:
        if self.full:
            return False
        self.sent.append(message)
        return True

    def says(self, text: str | bytes) -> dict[str, Any] | None:
        answer = self.server.received(text.encode() if isinstance(text, str) else text, self.desk.clock.seconds())
        return None if answer is None else json.loads(answer)

    def register(self, number: int, host: str = HOSTS[0], secret: str = ZEROS.hex(), **more: Any) -> Any:
        params = {"host": host, "hex_secret": secret} | more
        return self.says(
            json.dumps({"jsonrpc": "2.0", "method": "webgw_registerClient", "params": params, "id": number})
        )


class LegacyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = Desk(self.mktemp())
        for host in HOSTS:
            self.desk.registry.put(row(host, ZEROS))
        self.line = Line(self.desk)

    def visit(self, host: str, port: int) -> Seat | None:
        """Let a visitor come: the best subscriber is notified as the server does it."""
        seat = self.desk.seats.best(host)
        if seat is not None:
            call = Call(
                "ab" * 32, port, DATA_PORT, False, 77, host, "http", 5000, "data.example.net", "h2", "198.51.100.9"
            )
            seat.voice.notify("proxy.connection", to_json(Connection(seat.number, call)))
        return seat


class VectorTests(LegacyTests):
    def test_there_are_all_of_them(self) -> None:
        self.assertEqual(
            NAMES,
            [
                "body_1024",
                "body_1025",
                "not_hex",
                "notification",
                "ping",
                "short_hex",
                "subscribe_ok",
                "two_hosts",
                "unknown_host",
                "unsubscribe",
                "wrong_secret",
            ],
        )

    def test_against_our_server(self) -> None:
        for name in NAMES:
            self.setUp()
            self.play_agent(name)

    def play_agent(self, name: str) -> None:
        numbers: dict[int, int] = {}  # the recorded subscriptions, and ours
        answers: list[Any] = []
        for line in lines(name):
            match line:
                case {"from": "agent", "text": text}:
                    for recorded, ours in numbers.items():
                        text = text.replace(str(recorded), str(ours))
                    try:
                        answers.append(self.line.says(text))
                    except RemoteProtocolError:
                        answers.append("closed")
                case {"event": "visitor", "host": host, "port": port}:
                    self.visit(host, port)
                    answers += [json.loads(sent) for sent in self.line.sent]
                    self.line.sent.clear()
                case {"from": "server", "text": text}:
                    self.compare(name, json.loads(text), answers.pop(0), numbers)
                case {"from": "server", "close": 1009}:
                    self.assertEqual(answers.pop(0), "closed", name)
        self.assertEqual(answers, [], f"{name}: more was sent than recorded")

    def compare(self, name: str, recorded: Any, ours: Any, numbers: dict[int, int]) -> None:
        self.assertEqual(set(ours), set(recorded), name)
        self.assertEqual((ours["jsonrpc"], ours.get("id")), ("2.0", recorded.get("id")), name)
        if "error" in recorded:
            self.assertEqual(ours["error"]["code"], recorded["error"]["code"], name)
            self.assertIsInstance(ours["error"]["message"], str)
        elif "method" in recorded:
            params, wanted = ours["params"], recorded["params"]
            self.assertEqual(ours["method"], recorded["method"])
            self.assertEqual((set(params), set(params["result"])), (set(wanted), set(wanted["result"])), name)
            self.assertEqual(params["subscription"], numbers[wanted["subscription"]], name)
            self.assertEqual(params["result"]["port"], wanted["result"]["port"], name)
            self.assertEqual(params["result"]["serverListeningPort"], DATA_PORT, name)
            self.assertRegex(params["result"]["secret"], HEX64)
        elif type(recorded["result"]) is int:
            self.assertIs(type(ours["result"]), int, name)
            numbers[recorded["result"]] = ours["result"]
        else:
            self.assertEqual(ours["result"], recorded["result"], name)

    def test_against_our_agent(self) -> None:
        for name in NAMES:
            self.play_server(name)

    def play_server(self, name: str) -> None:
        """The agent's half says what the recorded agent says, and understands the recorded server."""
        client = LegacyClient()
        asked: list[dict[str, Any]] = []
        visitors: list[tuple[str, int]] = []
        subscribed: dict[int, str] = {}
        for line in lines(name):
            match line:
                case {"from": "agent", "text": text}:
                    said = json.loads(text)
                    asked.append(said)
                    if said["method"] == "webgw_unregisterClient":
                        ours = client.unsubscribe(said["params"][0])
                    else:
                        secret = said["params"]["hex_secret"]
                        if name in ("not_hex", "short_hex"):
                            secret = ZEROS.hex()  # our agent has no way to say what is not hex
                            said["params"]["hex_secret"] = secret
                        ours = client.subscribe(said["params"]["host"], bytes.fromhex(secret))
                    self.assertEqual(json.loads(ours), said, name)
                    self.assertLessEqual(len(ours), LEGACY_IN)
                case {"event": "visitor", "host": host, "port": port}:
                    visitors.append((host, port))
                case {"from": "server", "text": text}:
                    self.understand(name, client.received(text.encode()), json.loads(text), asked, visitors, subscribed)

    def understand(
        self,
        name: str,
        happened: Any,
        said: Any,
        asked: list[dict[str, Any]],
        visitors: list[tuple[str, int]],
        subscribed: dict[int, str],
    ) -> None:
        match happened:
            case Subscribed(host, number):
                self.assertEqual((host, number), (asked.pop(0)["params"]["host"], said["result"]), name)
                subscribed[number] = host
            case NotSubscribed(host, code, _):
                self.assertEqual((host, code), (asked.pop(0)["params"]["host"], said["error"]["code"]), name)
            case Unsubscribed(number):
                self.assertEqual(number, asked.pop(0)["params"][0], name)
            case Visitor(number, host, port, data_port, secret):
                self.assertEqual((host, port), visitors.pop(0), name)
                self.assertEqual((subscribed[number], data_port), (host, DATA_PORT), name)
                self.assertEqual(secret.hex(), said["params"]["result"]["secret"], name)
            case _:
                self.fail(f"{name}: {happened!r}")


class ServerTests(LegacyTests):
    def test_errors_are_the_documented_ones(self) -> None:
        for expected, host, secret in (
            (-20000, "nobody.example.com", ZEROS.hex()),
            (-20000, "no host name", ZEROS.hex()),
            (-20001, HOSTS[0], "11" * 32),
            (-32602, HOSTS[0], ""),
            (-32602, HOSTS[0], "0" * 65),
            (-32602, "", ZEROS.hex()),
        ):
            answer = self.line.register(1, host, secret)
            self.assertEqual((answer["error"]["code"], answer["id"]), (expected, 1))
        self.assertEqual(self.line.register(1, more=1)["error"]["code"], -32602)

    def test_case_and_name(self) -> None:
        self.assertIn("result", self.line.register(1, "WWW.Example.COM"))

    def test_unknown_and_wrong_take_the_same_work(self) -> None:
        works = []
        for host, secret in (("nobody.example.com", ZEROS), (HOSTS[0], b"1" * 32), (HOSTS[0], ZEROS)):
            before = self.desk.registry.hashed
            self.line.register(1, host, secret.hex())
            works.append(self.desk.registry.hashed - before)
        self.assertEqual(works, [1, 1, 1])

    def test_wire_errors(self) -> None:
        for code, text in (
            (-32700, "{"),
            (-32700, '{"jsonrpc":"2.0","jsonrpc":"2.0","method":"webgw_registerClient","id":1}'),
            (-32600, "[]"),
            (-32600, '{"method":"webgw_registerClient","id":1}'),
            (-32601, '{"jsonrpc":"2.0","method":"webgw_other","id":1}'),
            (-32602, '{"jsonrpc":"2.0","method":"webgw_registerClient","params":["www.example.com","00"],"id":1}'),
            (-32602, '{"jsonrpc":"2.0","method":"webgw_unregisterClient","params":[],"id":1}'),
            (-32602, '{"jsonrpc":"2.0","method":"webgw_unregisterClient","params":[true],"id":1}'),
            (-32602, '{"jsonrpc":"2.0","method":"webgw_unregisterClient","params":[1,2],"id":1}'),
            (-32601, '{"jsonrpc":"2.0","method":"proxy.hello","params":{"versions":[1],"instance":"12345678"},"id":1}'),
        ):
            answer = self.line.says(text)
            assert answer is not None
            self.assertEqual(answer["error"]["code"], code, text)
        self.assertIsNone(self.line.says('{"jsonrpc":"2.0","method":"webgw_registerClient","params":{}}'))

    def test_nonsense_in_a_row_closes(self) -> None:
        for _ in range(19):
            self.line.says("{")
        self.line.register(1)
        for _ in range(19):
            self.line.says("{")
        self.assertRaises(RemoteProtocolError, self.line.says, "{")

    def test_too_long_and_not_utf8_close(self) -> None:
        self.assertRaises(RemoteProtocolError, self.line.says, b" " * 1025)
        self.assertRaises(RemoteProtocolError, self.line.says, b"\xff")

    def test_unsubscribe_what_is_not_ours(self) -> None:
        number = self.line.register(1)["result"]
        other = Line(self.desk)
        text = json.dumps({"jsonrpc": "2.0", "method": "webgw_unregisterClient", "params": [number], "id": 9})
        self.assertEqual(other.says(text), {"jsonrpc": "2.0", "result": False, "id": 9})
        self.assertEqual(len(self.desk.seats), 1)

    def test_guessing_is_slowed_down_here_too(self) -> None:
        for _ in range(20):
            self.line.register(1, secret="11" * 32)
        self.assertEqual(self.line.register(1)["error"]["code"], -20004)

    @given(st.binary(max_size=1100))
    def test_any_noise(self, noise: bytes) -> None:
        try:
            self.line.says(noise)
        except RemoteProtocolError:
            self.line = Line(self.desk)


class NotificationTests(LegacyTests):
    def test_exactly_these_fields_in_this_order_and_short(self) -> None:
        longest = visitor_note(LARGEST_ID, "f" * 64, 65535, 65535)
        self.assertLessEqual(len(longest), LEGACY_OUT)
        self.assertEqual(
            visitor_note(3, "0" * 64, 80, 4658),
            b'{"jsonrpc":"2.0","method":"webgw_registerClient","params":{"subscription":3,"result":{"secret":"'
            + b"0" * 64
            + b'","port":80,"serverListeningPort":4658}}}',
        )

    def test_nothing_else_of_ours_is_told(self) -> None:
        self.line.register(1)
        self.visit(HOSTS[0], 80)
        (note,) = self.line.sent
        for word in (b"198.51.100.9", b"data.example.net", b"h2", b"77", b"expires", b"tls", b"host"):
            self.assertNotIn(word, note)
        self.assertTrue(self.line.voice.notify("proxy.nodes", to_json(Nodes((DataAddress("x", 1),)))))
        self.assertTrue(self.line.voice.notify("proxy.drain", {"deadline_ms": 1, "alternatives": []}))
        self.assertEqual(len(self.line.sent), 1)

    def test_a_full_buffer_is_said(self) -> None:
        self.line.register(1)
        self.line.full = True
        self.assertFalse(self.line.voice.notify("proxy.connection", to_json(_connection())))


class ClientTests(SynchronousTestCase):
    def test_nonsense_of_a_server(self) -> None:
        for text in (
            b"",
            b"\xff",
            b"[]",
            b'{"jsonrpc":"2.0","method":"webgw_registerClient","params":{}}',
            b'{"jsonrpc":"2.0","method":"webgw_registerClient","params":{"subscription":"1","result":{}}}',
            visitor_note(1, "0" * 63, 80, 1),
            visitor_note(1, "0" * 64, 0, 1),
            visitor_note(1, "0" * 64, 80, 65536),
        ):
            self.assertRaises(RemoteProtocolError, LegacyClient().received, text)

    def test_what_does_not_concern_us(self) -> None:
        client = LegacyClient()
        for text in (
            b'{"jsonrpc":"2.0","result":5,"id":9}',
            b'{"jsonrpc":"2.0","error":{"code":-20001,"message":"x"},"id":9}',
            b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"},"id":null}',
            b'{"jsonrpc":"2.0","method":"webgw_other","params":{}}',
            visitor_note(9, "0" * 64, 80, 1),
        ):
            self.assertIsNone(client.received(text))

    def test_no_visitor_after_leaving(self) -> None:
        client = LegacyClient()
        client.subscribe("a.example.com", ZEROS)
        self.assertEqual(client.received(b'{"jsonrpc":"2.0","result":4,"id":1}'), Subscribed("a.example.com", 4))
        self.assertIsInstance(client.received(visitor_note(4, "0" * 64, 80, 1)), Visitor)
        client.unsubscribe(4)
        self.assertIsNone(client.received(visitor_note(4, "0" * 64, 80, 1)))

    def test_a_subscription_is_a_number(self) -> None:
        client = LegacyClient()
        client.subscribe("a.example.com", ZEROS)
        self.assertRaises(RemoteProtocolError, client.received, b'{"jsonrpc":"2.0","result":"4","id":1}')

    def test_the_secret_of_a_visitor_is_not_shown(self) -> None:
        self.assertNotIn("abab", repr(Visitor(1, "a.example.com", 80, 1, b"\xab" * 32)))

    @given(st.binary(max_size=600))
    def test_any_noise(self, noise: bytes) -> None:
        try:
            LegacyClient().received(noise)
        except RemoteProtocolError as error:
            self.assertTrue(str(error))


class MistakeTests(LegacyTests):
    """What webgw did wrong on this wire (proxy.md section 17)."""

    def test_port_443_is_not_announced_as_80(self) -> None:
        self.line.register(1)
        self.visit(HOSTS[0], 443)
        self.assertEqual(json.loads(self.line.sent[0])["params"]["result"]["port"], 443)

    def test_dead_subscribers_are_not_kept(self) -> None:
        self.line.register(1)
        self.line.server.lost()
        self.assertIsNone(self.visit(HOSTS[0], 80))
        self.assertEqual(len(self.desk.seats), 0)

    def test_the_last_subscriber_does_not_win_silently(self) -> None:
        second = Line(self.desk)
        self.line.register(1)
        second.register(1)
        for _ in range(4):
            seat = self.visit(HOSTS[0], 80)
            assert seat is not None
            self.desk.seats.called(seat)
        self.assertEqual((len(self.line.sent), len(second.sent)), (2, 2))

    def test_nobody_hears_of_hosts_that_are_not_theirs(self) -> None:
        self.line.register(1)
        self.assertIsNone(self.visit(HOSTS[1], 80))
        self.assertEqual(self.line.sent, [])


def _connection() -> Connection:
    return Connection(1, Call("ab" * 32, 80, DATA_PORT, False, 1, HOSTS[0], "http", 5000))
