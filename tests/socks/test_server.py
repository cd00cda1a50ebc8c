"""The SOCKS port of a real network on loopback: what it answers, what it carries, what it keeps apart."""

import socket
from collections.abc import Callable, Hashable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from layer8.config.network import SocksConfig
from layer8.core.errors import ConfigError
from layer8.relay.carried import WRITE_MOST
from layer8.relay.client import Opened, Reason, StreamLike
from layer8.relay.wire import Address
from layer8.socks.datagrams import Association
from layer8.socks.program import Caller, Program
from layer8.socks.server import SocksServer, Table
from layer8.socks.wire import Code, reply
from tests.interop.daemons import folder
from tests.socks.net import HERE, Net

NAMES = {"echo.example.org": "127.0.0.1", "other.example.org": "127.0.0.1"}
HELLO = b"\x05\x01\x00"
MIB = 1 << 20


def connect(host: str, port: int, ask: int = 1) -> bytes:
    """Make a request for a name."""
    return b"\x05" + bytes((ask, 0, 3, len(host))) + host.encode() + port.to_bytes(2, "big")


def login(user: bytes, password: bytes) -> bytes:
    """Make greeting and login in one."""
    return b"\x05\x01\x02\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password


@define(eq=False)
class Dialled:
    """A program's connection, by hand."""

    net: Net
    sock: socket.socket
    got: bytearray = field(factory=bytearray)
    over: str = ""

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self, most: int = 1 << 16) -> None:
        while not self.over:
            try:
                data = self.sock.recv(most)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.over = "reset"
                return
            self.got += data
            self.over = "" if data else "end"

    async def until(self, so: Callable[[], Any]) -> Any:
        def look() -> Any:
            self.read()
            return so()

        return await self.net.until(look)

    async def hear(self, data: bytes) -> None:
        """Wait for these very bytes, and no others."""
        await self.until(lambda: len(self.got) >= len(data) or self.over)
        self.net.case.assertEqual(bytes(self.got), data)
        self.got.clear()

    async def ends(self) -> bytes:
        """Wait for the end, and give what came before."""
        await self.until(lambda: self.over)
        return bytes(self.got)


@implementer(IHalfCloseableProtocol)
class Target(Protocol):
    """What stands behind the exit: remembers, answers what it is told to, keeps its half."""

    transport: Any

    def __init__(self) -> None:
        self.got = bytearray()
        self.over = self.half = False

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def readConnectionLost(self) -> None:
        self.half = True

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Any = None) -> None:
        self.over = True


class Targets(Factory):
    noisy = False

    def __init__(self) -> None:
        self.all: list[Target] = []

    def buildProtocol(self, addr: Any) -> Any:
        target = Target()
        self.all.append(target)
        return target


class SocksCase(TestCase):
    """A network, a target behind its exit, programs by hand."""

    timeout = 60

    async def begin(self, **more: Any) -> Net:
        self.net = await Net.start(self, **{"names": NAMES, **more})
        self.targets = Targets()
        port = self.net.reactor.listenTCP(0, self.targets, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.port = int(port.getHost().port)
        return self.net

    def dial(self, port: int = 0, path: str = "") -> Dialled:
        sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.addCleanup(sock.close)
        sock.connect(path or ("127.0.0.1", port or self.net.port))
        sock.setblocking(False)
        return Dialled(self.net, sock)

    async def joined(self, first: bytes = HELLO, host: str = "echo.example.org", port: int = 0) -> Dialled:
        """Give a program that is connected with a new target, `self.targets.all[-1]`."""
        count = len(self.targets.all)
        program = self.dial(port)
        program.say(first + connect(host, self.port))
        head = b"\x05\x00" if first == HELLO else b"\x05\x02\x01\x00"
        await program.hear(head + reply(Code.GRANTED))
        self.assertEqual(len(self.targets.all), count + 1)
        return program

    async def answered(self, host: str, port: int, ask: int = 1) -> int:
        """Give the code that a request is answered with; the connection has to end after it."""
        program = self.dial()
        program.say(HELLO + connect(host, port, ask))
        said = await program.ends()
        self.assertEqual((said[:2], len(said), program.over), (b"\x05\x00", 12, "end"))
        self.assertEqual(said[2:], reply(said[3]))
        return said[3]


@define(eq=False)
class Services:
    """Reaches hidden services for a test: one that is there, one that wants another key."""

    asked: list[tuple[str, int, Hashable]] = field(factory=list)
    said: list[bytes] = field(factory=list)
    caller: Caller | None = None
    number: int = 7

    def open(self, name: str, port: int, caller: Caller, key: Hashable) -> StreamLike:
        self.asked.append((name, port, key))
        self.caller = caller
        if name == "locked.l8.alt":
            caller.refused(Code.AUTH_MISSING)
        else:
            caller.opened(Opened(Address(""), 0))
        return self

    def write(self, data: bytes) -> None:
        assert self.caller is not None
        self.said.append(data)
        self.caller.data([data.upper()])

    def end(self) -> None:
        assert self.caller is not None
        self.caller.ended()
        self.caller.closed(Reason.DONE)

    def close(self, reason: Reason = Reason.DONE) -> None:
        self.said.append(reason.name.encode())

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


class AnswerTests(SocksCase):
    async def test_reasons_become_codes(self) -> None:
        await self.begin(rules=("reject *:25", "accept *:*"))
        free = socket.socket()
        free.bind(("127.0.0.1", 0))
        self.addCleanup(free.close)
        for host, port, code in (
            ("echo.example.org", 25, Code.NET_UNREACHABLE),  # no exit says that it reaches this port
            ("nowhere.example.org", 80, Code.HOST_UNREACHABLE),
            ("wpad", 80, Code.HOST_UNREACHABLE),
            ("secret.onion", 80, Code.HOST_UNREACHABLE),
            ("10.1.2.3", 80, Code.POLICY),
            ("echo.example.org", free.getsockname()[1], Code.REFUSED),
            ("echo.example.org", 0, Code.FAILED),
            ("echo.example.org", self.port, Code.GRANTED),
        ):
            if code == Code.GRANTED:
                await self.joined()
            else:
                self.assertEqual((host, port, await self.answered(host, port)), (host, port, code))
        self.assertNotIn("wpad", self.net.asked)

    async def test_the_exit_refuses_what_its_descriptor_does_not_tell(self) -> None:
        await self.begin(rules=("reject other.example.org:*", "accept *:*"))
        self.assertEqual(await self.answered("other.example.org", self.port), Code.POLICY)
        self.assertEqual(self.net.asked, [])

    async def test_bind_is_not_served(self) -> None:
        await self.begin()
        self.assertEqual(await self.answered("echo.example.org", self.port, 2), Code.UNKNOWN_COMMAND)

    async def test_other_protocols(self) -> None:
        await self.begin()
        for said, answer in (
            (
                b"GET http://echo.example.org/ HTTP/1.1\r\nHost: echo.example.org\r\n\r\n",
                b"HTTP/1.0 501 This is a SOCKS5",
            ),
            (b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00", b""),
            (b"\x16\x03\x01\x02\x00" + bytes(512), b""),
        ):
            program = self.dial()
            program.say(said)
            heard = await program.ends()
            self.assertEqual((heard[: len(answer)], bool(heard), program.over), (answer, bool(answer), "end"))

    async def test_names_of_this_network_never_leave(self) -> None:
        await self.begin()
        wrong = ("blog.l8.alt:80", "http://blog.l8.alt/", "l8.alt/x", "www.blog.l8.alt,")
        for name in ("ab" * 20, "blog.l8.alt", "BLOG.l8.alt.", "l8.alt", f"{'a' * 56}.l8.alt", *wrong):
            self.assertEqual(await self.answered(name, 80), Code.NO_DESCRIPTOR)
        self.assertEqual((self.net.asked, self.net.circuits), ([], []))

    async def test_hidden_services(self) -> None:
        services = Services()
        await self.begin(hidden=services)
        self.assertEqual(await self.answered("locked.l8.alt", 80), Code.AUTH_MISSING)
        program = self.dial()
        program.say(HELLO + connect("Blog.l8.alt", 443) + b"early")
        await program.hear(b"\x05\x00" + reply(Code.GRANTED) + b"EARLY")
        program.say(b" more")
        await program.hear(b" MORE")
        program.sock.shutdown(socket.SHUT_WR)
        self.assertEqual((await program.ends(), program.over), (b"", "end"))
        self.assertEqual([asked[:2] for asked in services.asked], [("locked.l8.alt", 80), ("blog.l8.alt", 443)])

    async def test_password(self) -> None:
        await self.begin(socks=SocksConfig(listen=(HERE,), password="geheim"))
        for first, answer in ((HELLO, b"\x05\xff"), (login(b"u", b"wrong"), b"\x05\x02\x01\x01")):
            program = self.dial()
            program.say(first)
            self.assertEqual((await program.ends(), program.over), (answer, "end"))
        await self.joined(login(b"u", b"geheim"))


class CarryTests(SocksCase):
    async def still(self, program: Program | Association) -> None:
        """Wait until nothing has come for a while."""
        seen = [-1]

        def unchanged() -> bool:
            seen.append(program.received)
            return len(seen) > 50 and len(set(seen[-50:])) == 1

        await self.net.until(unchanged)

    async def test_early_words_travel_with_the_question(self) -> None:
        await self.begin()
        program = self.dial()
        program.say(HELLO + connect("echo.example.org", self.port) + b"x" * 100_000)
        await self.net.until(lambda: self.targets.all and len(self.targets.all[0].got) == 100_000)
        await program.hear(b"\x05\x00" + reply(Code.GRANTED))

    async def test_half_closes(self) -> None:
        await self.begin()
        program = await self.joined()
        target = self.targets.all[0]
        program.say(b"question")
        program.sock.shutdown(socket.SHUT_WR)
        await self.net.until(lambda: target.half)
        self.assertEqual(bytes(target.got), b"question")
        target.transport.write(b"answer" * 50_000)
        await program.until(lambda: len(program.got) == 300_000)
        self.assertEqual(program.over, "")
        target.transport.loseConnection()
        await program.ends()
        self.assertEqual((len(program.got), program.over), (300_000, "end"))

        program = await self.joined()
        target = self.targets.all[1]
        target.transport.write(b"all I say")
        target.transport.loseWriteConnection()
        self.assertEqual(await program.ends(), b"all I say")
        program.say(b"late words")
        await self.net.until(lambda: target.got == b"late words")
        self.assertFalse(target.half)
        program.sock.close()
        await self.net.until(lambda: target.half and not len(self.net.socks.clients))

    async def test_end_before_the_answer(self) -> None:
        await self.begin()
        program = self.dial()
        program.say(HELLO + connect("echo.example.org", self.port) + b"all at once")
        program.sock.shutdown(socket.SHUT_WR)
        await self.net.until(lambda: self.targets.all and self.targets.all[0].half)
        self.assertEqual(bytes(self.targets.all[0].got), b"all at once")
        self.targets.all[0].transport.write(b"thanks")
        self.targets.all[0].transport.loseConnection()
        self.assertEqual(await program.ends(), b"\x05\x00" + reply(0) + b"thanks")

    async def test_resets_travel(self) -> None:
        await self.begin()
        program = await self.joined()
        program.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        program.sock.close()
        await self.net.until(lambda: self.targets.all[0].over)
        program = await self.joined()
        self.targets.all[1].transport.abortConnection()
        await program.ends()
        self.assertEqual(program.over, "reset")

    async def test_a_program_that_does_not_read_stops_the_target(self) -> None:
        await self.begin()
        program = await self.joined()
        size = 16 * MIB
        self.targets.all[0].transport.write(bytes(size))
        (row,) = self.net.socks.clients
        await self.still(row.program)
        # What the kernel keeps for two connections on loopback, and our own buffers.
        self.assertLess(row.program.received, 12 * MIB)
        assert isinstance(row.program, Program)
        self.assertLess(row.program._unsent, WRITE_MOST)
        await program.until(lambda: len(program.got) == size)

    async def test_a_target_that_does_not_read_stops_the_program(self) -> None:
        await self.begin()
        program = await self.joined()
        target = self.targets.all[0]
        target.transport.pauseProducing()
        sent = 0
        quiet = 0
        while quiet < 50:
            try:
                sent += program.sock.send(bytes(1 << 16))
                quiet = 0
            except BlockingIOError:
                quiet += 1
                waiting: Deferred[None] = Deferred()
                self.net.reactor.callLater(0.01, waiting.callback, None)
                await waiting
            self.assertLess(sent, 64 * MIB)
        (row,) = self.net.socks.clients
        self.assertLess(row.program.sent, sent)
        target.transport.resumeProducing()
        await self.net.until(lambda: len(target.got) == sent)

    async def test_a_slow_program_gets_the_last_bytes(self) -> None:
        await self.begin()
        program = await self.joined()
        size = 8 * MIB
        self.targets.all[0].transport.write(bytes(size))
        self.targets.all[0].transport.loseConnection()
        (row,) = self.net.socks.clients
        await self.still(row.program)
        await program.until(lambda: len(program.got) == size)

    async def test_unix_socket(self) -> None:
        path = str(folder(self) / "socks")
        await self.begin(socks=SocksConfig(listen=(f"unix:{path}",)))
        self.assertEqual(self.net.socks.listening, (f"unix:{path}",))
        program = self.dial(path=path)
        program.say(HELLO + connect("echo.example.org", self.port))
        await program.hear(b"\x05\x00" + reply(0))
        self.targets.all[0].transport.write(b"hello")
        await program.hear(b"hello")
        program = self.dial(path=path)
        program.say(HELLO + connect("echo.example.org", 53, 3))
        self.assertEqual(await program.ends(), b"\x05\x00" + reply(Code.UNKNOWN_COMMAND))


class ApartTests(SocksCase):
    async def test_listeners_and_users(self) -> None:
        await self.begin(socks=SocksConfig(listen=(HERE, "tcp:0:interface=127.0.0.2")))
        await self.joined()
        await self.joined(login(b"a", b"1"))
        await self.joined(login(b"a", b"1"), "other.example.org")
        second = int(self.net.socks.listening[1].split(":")[1])
        sock = socket.create_connection(("127.0.0.2", second))
        self.addCleanup(sock.close)
        sock.setblocking(False)
        program = Dialled(self.net, sock)
        program.say(HELLO + connect("echo.example.org", self.port))
        await program.hear(b"\x05\x00" + reply(0))
        self.assertEqual(self.net.keys, [((b"", b""), 1), ((b"", b""), 1), ((b"a", b"1"), 2)])

    async def test_destinations(self) -> None:
        await self.begin(socks=SocksConfig(listen=(HERE,), isolate="dest"))
        for host in ("echo.example.org", "other.example.org", "echo.example.org"):
            await self.joined(host=host)
        self.assertEqual(self.net.keys, [((b"", b"", "echo.example.org"), 2), ((b"", b"", "other.example.org"), 1)])

    async def test_streams(self) -> None:
        await self.begin(socks=SocksConfig(listen=(HERE,), isolate="stream"))
        for _ in range(3):
            await self.joined()
        self.assertEqual(self.net.keys, [((b"", b""), 1)] * 3)

    async def test_path(self) -> None:
        way = ">".join(["rand"] * 5) + ">internet"
        await self.begin(socks=SocksConfig(listen=(HERE,), path=way))
        await self.joined()
        (circuit,) = self.net.circuits
        self.assertEqual(len(set(circuit.hops)), 5)
        for wrong in ("rand>example.org:80", "rand>rand>22"):
            self.assertRaises(
                ConfigError, SocksServer, self.net.reactor, SocksConfig(path=wrong), self.net.client.client
            )

    async def test_as_many_as_may_be(self) -> None:
        await self.begin()
        self.assertEqual(Table().places.most, 1024)
        self.net.socks.clients.places.most = 2
        programs = [await self.joined(), self.dial()]
        await self.net.until(lambda: self.net.socks.clients.places.open == 2)
        self.assertEqual((await self.dial().ends(), self.net.socks.clients.places.refused), (b"", 1))
        programs[0].sock.close()
        await self.net.until(lambda: self.targets.all[0].half)
        self.targets.all[0].transport.loseConnection()
        await self.net.until(lambda: self.net.socks.clients.places.open == 1)
        await self.joined()

    async def test_more_at_once_than_one_circuit_takes(self) -> None:
        hosts = {f"n{number}.example.org": f"127.0.1.{number}" for number in range(1, 8)}
        await self.begin(names=hosts)
        for address in hosts.values():  # to each of them an exit lets 64 streams of a circuit
            port = self.net.reactor.listenTCP(self.port, self.targets, interface=address)
            self.addCleanup(port.stopListening)
        programs = [self.dial() for _ in range(400)]
        for number, program in enumerate(programs):
            program.say(login(b"u", b"p") + connect(f"n{number % 7 + 1}.example.org", self.port))
        for program in programs:
            await program.hear(b"\x05\x02\x01\x00" + reply(Code.GRANTED))
        self.assertEqual({key for key, _ in self.net.keys}, {(b"u", b"p")})
        self.assertLessEqual(len(self.net.circuits), 3)
        self.assertLessEqual(max(len(one.origin.streams.live) for one in self.net.circuits), 256)

    async def test_the_end_of_the_server(self) -> None:
        await self.begin()
        programs = [await self.joined(), self.dial()]
        programs[1].say(HELLO)
        await programs[1].hear(b"\x05\x00")
        await self.net.socks.stopService()
        for program in programs:
            await program.ends()
        await self.net.until(lambda: self.targets.all[0].over)
        self.assertEqual(self.net.socks.clients.places.open, 0)
