"""UDP ASSOCIATE through a real network: questions to a DNS server behind the exit, and what is dropped."""

import socket
from typing import Any

from attrs import define, field
from twisted.internet.protocol import DatagramProtocol
from twisted.names import dns
from twisted.trial.unittest import TestCase

from layer8.config.network import SocksConfig
from layer8.socks import datagrams
from layer8.socks.wire import Code, datagram, read_datagram
from tests.socks.net import HERE, Net
from tests.socks.test_server import HELLO, Dialled

ASSOCIATE = b"\x05\x03\x00\x01" + bytes(6)


def question(number: int) -> bytes:
    """Ask for an address, as dig would."""
    asked = dns.Message(number)
    asked.addQuery(b"www.example.org", dns.A)
    text: bytes = asked.toStr()
    return text


def named(host: str, port: int, payload: bytes) -> bytes:
    """Make a program's datagram to a name."""
    return b"\0\0\0\x03" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big") + payload


class Responder(DatagramProtocol):
    """A DNS server that knows one address."""

    noisy = False
    transport: Any

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def datagramReceived(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        message = dns.Message()
        message.fromStr(data)
        message.answer = 1
        message.answers = [dns.RRHeader(b"www.example.org", dns.A, ttl=60, payload=dns.Record_A("192.0.2.80"))]
        self.transport.write(message.toStr(), addr)


@define(eq=False)
class Sender:
    """A program's UDP socket."""

    net: Net
    sock: socket.socket
    to: tuple[str, int] = ("", 0)
    got: list[bytes] = field(factory=list)

    def say(self, data: bytes) -> None:
        self.sock.sendto(data, self.to)

    async def hear(self) -> bytes:
        """Wait for the next datagram."""

        def look() -> bool:
            try:
                self.got.append(self.sock.recv(1 << 16))
            except BlockingIOError:
                return False
            return True

        await self.net.until(look)
        return self.got[-1]


class UdpTests(TestCase):
    timeout = 60

    async def begin(self, **more: Any) -> None:
        self.net = await Net.start(
            self, names={"ns.example.org": "127.0.0.1", **{f"n{n}.example.org": "127.0.0.1" for n in range(40)}}, **more
        )
        self.server = Responder()
        port = self.net.reactor.listenUDP(0, self.server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.port = int(port.getHost().port)

    def udp(self, host: str = "127.0.0.1") -> Sender:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind((host, 0))
        sock.setblocking(False)
        return Sender(self.net, sock)

    async def associated(self, request: bytes = ASSOCIATE, first: bytes = HELLO) -> tuple[Dialled, Sender]:
        sock = socket.create_connection(("127.0.0.1", self.net.port))
        self.addCleanup(sock.close)
        sock.setblocking(False)
        program = Dialled(self.net, sock)
        program.say(first + request)
        await program.until(lambda: len(program.got) >= 12)
        self.assertEqual((program.got[:3], program.got[3], len(program.got)), (b"\x05\x00\x05", Code.GRANTED, 12))
        self.assertEqual(program.got[6:10], b"\x7f\0\0\x01")
        sender = self.udp()
        sender.to = ("127.0.0.1", int.from_bytes(program.got[10:12], "big"))
        return program, sender

    def association(self) -> datagrams.Association:
        (row,) = self.net.socks.clients
        assert isinstance(row.program, datagrams.Association)
        return row.program

    def check(self, text: bytes, number: int) -> None:
        host, port, payload = read_datagram(text)
        message = dns.Message()
        message.fromStr(payload)
        self.assertEqual((host, port, message.id), ("127.0.0.1", self.port, number))
        record: Any = message.answers[0].payload
        self.assertEqual(record.dottedQuad(), "192.0.2.80")

    async def test_questions_by_name_and_by_address(self) -> None:
        await self.begin()
        _, sender = await self.associated()
        sender.say(named("ns.example.org", self.port, question(7)))
        self.check(await sender.hear(), 7)
        sender.say(datagram("127.0.0.1", self.port, question(8)))
        self.check(await sender.hear(), 8)
        sender.say(named("ns.example.org", self.port, question(9)))
        self.check(await sender.hear(), 9)
        self.assertEqual(self.net.asked, ["ns.example.org"])
        (circuit,) = self.net.circuits
        self.assertEqual(len(circuit.origin.streams.live), 2)

    async def test_only_the_program_itself_may_send(self) -> None:
        await self.begin()
        _, sender = await self.associated()
        stranger = self.udp("127.0.0.2")
        stranger.to = sender.to
        stranger.say(datagram("127.0.0.1", self.port, question(1)))
        sender.say(datagram("127.0.0.1", self.port, question(2)))
        self.check(await sender.hear(), 2)
        second = self.udp()
        second.to = sender.to
        second.say(datagram("127.0.0.1", self.port, question(3)))  # from another port than the first datagram
        sender.say(datagram("127.0.0.1", self.port, question(4)))
        self.check(await sender.hear(), 4)
        self.assertEqual((len(self.server.asked), self.association().dropped), (2, 2))

    async def test_a_named_port_is_the_only_one(self) -> None:
        await self.begin()
        mine, other = self.udp(), self.udp()
        request = b"\x05\x03\x00\x01" + bytes(4) + int(mine.sock.getsockname()[1]).to_bytes(2, "big")
        _, sender = await self.associated(request)
        mine.to = other.to = sender.to
        other.say(datagram("127.0.0.1", self.port, question(1)))
        mine.say(datagram("127.0.0.1", self.port, question(2)))
        self.check(await mine.hear(), 2)
        self.assertEqual(len(self.server.asked), 1)

    async def test_what_cannot_be_sent_is_dropped(self) -> None:
        await self.begin()
        _, sender = await self.associated()
        for bad in (
            b"",
            b"\0\0\x01" + datagram("127.0.0.1", self.port, b"fragment")[3:],
            datagram("127.0.0.1", 0, b"no port"),
            named("blog.l8.alt", 53, b"inside"),
            datagram("127.0.0.1", self.port, question(1))[:7],
        ):
            sender.say(bad)
        sender.say(named("nowhere.example.org", 53, b"no such name"))
        sender.say(datagram("127.0.0.1", self.port, bytes(3000)))
        sender.say(datagram("127.0.0.1", self.port, question(5)))
        self.check(await sender.hear(), 5)
        self.assertEqual((len(self.server.asked), self.association().dropped), (1, 5))

    async def test_it_ends_with_its_connection(self) -> None:
        await self.begin()
        program, sender = await self.associated()
        sender.say(datagram("127.0.0.1", self.port, question(1)))
        self.check(await sender.hear(), 1)
        (circuit,) = self.net.circuits
        program.sock.close()
        await self.net.until(lambda: not len(self.net.socks.clients) and not circuit.origin.streams.live)
        sender.sock.connect(sender.to)
        sender.sock.send(datagram("127.0.0.1", self.port, question(2)))
        with self.assertRaises(ConnectionRefusedError):
            sender.sock.setblocking(True)
            sender.sock.settimeout(5)
            sender.sock.recv(100)

    async def test_destinations_are_limited(self) -> None:
        await self.begin()
        _, sender = await self.associated()
        most = datagrams.FARS
        for number in range(most + 10):
            sender.say(named(f"n{number}.example.org", self.port, question(number)))
        fars = self.association()._fars
        await self.net.until(lambda: ("n34.example.org", self.port) in fars)
        self.assertEqual(len(fars), most)
        sender.say(named("n34.example.org", self.port, question(99)))
        await self.net.until(lambda: any(text[:2] == b"\0\x63" for text in self.server.asked))

    async def test_users_are_kept_apart(self) -> None:
        await self.begin(socks=SocksConfig(listen=(HERE,), isolate="stream"))
        _, sender = await self.associated()
        sender.say(named("ns.example.org", self.port, question(1)))
        self.check(await sender.hear(), 1)
        sender.say(datagram("127.0.0.1", self.port, question(2)))
        self.check(await sender.hear(), 2)
        self.assertEqual(len(self.net.circuits), 2)
