"""The way out over UDP: only who was asked answers, and nobody is scanned or flooded."""

import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.keys import id_text
from layer8.relay.exit import LanTargets, Policy
from layer8.relay.limits import CIRC_BYTES, UDP_DESTS, UDP_IDLE, UDP_UNANSWERED
from layer8.relay.outward_udp import UDP_MOST
from layer8.relay.turn import Sink
from layer8.relay.wire import DATA_TAGGED, Address, Reason, datagram, read_datagram
from tests.relay.exit_peers import ExitCase, Stream

FRIEND = bytes(range(32))


class Far:
    """A UDP socket on loopback that remembers who has asked."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.at = Address(host, self.port)
        self.got: list[bytes] = []
        self.asker: Any = None

    def hear(self) -> int:
        """Take what is there, and count all."""
        try:
            while True:
                data, self.asker = self.sock.recvfrom(65536)
                self.got.append(data)
        except BlockingIOError:
            return len(self.got)

    def answer(self, data: bytes) -> None:
        self.sock.sendto(data, self.asker)


class UdpCase(ExitCase):
    def far(self, host: str = "127.0.0.1") -> Far:
        far = Far(host)
        self.addCleanup(far.sock.close)
        return far

    async def open(self, host: str = "", port: int = 0, exit_: Any = None, identity: bytes | None = None) -> Any:
        """An association that has begun; it ends with the test."""
        made = await (exit_ or self.exit).associate(host, port, self.account, identity)
        self.begin(made)
        return made

    def begin(self, made: Any, stream: Stream | None = None) -> None:
        sink: Sink = made
        made.start(stream or self.stream)
        self.addCleanup(sink.closed, Reason.DONE)

    def heard(self) -> list[tuple[Address, bytes]]:
        return [read_datagram(piece) for piece in self.stream.pieces]


class AskTests(UdpCase):
    async def test_there_and_back(self) -> None:
        far, other = self.far(), self.far("::1")
        made = await self.open()
        made.data([datagram(far.at, b"one"), datagram(far.at, b"two"), datagram(other.at, b"three")])
        await self.until(lambda: far.hear() == 2 and other.hear() == 1)
        self.assertEqual((far.got, other.got), ([b"one", b"two"], [b"three"]))
        far.answer(b"ONE")
        await self.until(lambda: len(self.heard()) == 1)
        other.answer(b"")
        await self.until(lambda: len(self.heard()) == 2)
        self.assertEqual(self.heard(), [(far.at, b"ONE"), (other.at, b"")])
        counts = self.exit.counts
        self.assertEqual((counts.sent, counts.received, counts.dropped), (3, 2, 0))
        self.assertEqual(self.account.moved, 14)

    async def test_a_name_is_looked_up_once(self) -> None:
        far = self.far()
        made = await self.answered(self.exit.associate("A.test", far.port, self.account), "127.0.0.1")
        self.begin(made)
        self.assertEqual((made.address, made.port), ("127.0.0.1", far.port))
        for _ in range(UDP_UNANSWERED):
            made.data([datagram(Address("", 0), b"x")])
        await self.until(lambda: far.hear() == UDP_UNANSWERED)
        self.assertEqual(self.named.asked, ["a.test."])

    async def test_what_has_no_address_needs_a_host(self) -> None:
        made = await self.open()
        made.data([datagram(Address("", 53), b"x")])
        self.assertEqual(self.exit.counts.dropped, 1)
        self.assertEqual(self.stream.told, [])

    async def test_refused_hosts(self) -> None:
        for host, wanted in (("10.0.0.1", Reason.POLICY), ("printer", Reason.RESOLVE)):
            self.assertIs(await self.no_way(self.exit.associate(host, 53, self.account)), wanted)
        way = self.no_way(self.exit.associate("a.test", 53, self.account))
        self.assertIs(await self.answered(way, "127.0.0.1", "10.0.0.1"), Reason.POLICY)

    async def test_refused_destinations(self) -> None:
        far = self.far()
        self.ports.add(far.port)
        made = await self.open()
        for host in (
            "127.0.0.1",
            "10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "255.255.255.255",
            "ff02::1",
            "0.0.0.0",
        ):
            made.data([datagram(Address(host, far.port), b"x")])
        made.data([datagram(Address("8.8.8.8", 0), b"x")])
        self.assertEqual((self.exit.counts.sent, self.exit.counts.dropped), (0, 8))
        await self.sleep(0.05)
        self.assertEqual(far.hear(), 0)
        self.assertEqual(made._sockets, {})

    async def test_rules_count(self) -> None:
        far = self.far()
        some = self.make(policy=Policy.parse([f"reject *:{far.port}", "accept *:*"]))
        made = await self.open(exit_=some)
        made.data([datagram(far.at, b"x")])
        self.assertEqual((some.counts.sent, some.counts.dropped), (0, 1))

    async def test_a_list_is_for_one_identity(self) -> None:
        far, other = self.far(), self.far()
        lists = LanTargets.parse({id_text(FRIEND): [f"127.0.0.1:{far.port}"]})
        shut = self.make(allow=False, policy=Policy.parse("off"), lists=lists)
        for identity in (None, bytes(32)):
            self.assertIs(await self.no_way(shut.associate("", 0, self.account, identity)), Reason.POLICY)
        made = await self.open(exit_=shut, identity=FRIEND)
        made.data([datagram(far.at, b"x"), datagram(other.at, b"x")])
        await self.until(lambda: far.hear() == 1)
        self.assertEqual((shut.counts.sent, shut.counts.dropped), (1, 1))
        self.assertEqual(other.hear(), 0)


class AnswerTests(UdpCase):
    async def test_strangers_are_not_heard(self) -> None:
        far, stranger = self.far(), self.far()
        made = await self.open()
        made.data([datagram(far.at, b"x")])
        await self.until(far.hear)
        stranger.sock.sendto(b"forged", far.asker)
        await self.until(lambda: self.exit.counts.dropped == 1)
        far.answer(b"true")
        await self.until(self.heard)
        self.assertEqual(self.heard(), [(far.at, b"true")])

    async def test_of_another_stream_neither(self) -> None:
        """One socket for each stream: what one has asked is no business of the other."""
        far = self.far()
        one, two = await self.open(), await self.exit.associate("", 0, self.account)
        second = Stream(2)
        self.begin(two, second)
        one.data([datagram(far.at, b"x")])
        await self.until(lambda: far.hear() == 1)
        first_asker = far.asker
        two.data([datagram(far.at, b"y")])
        await self.until(lambda: far.hear() == 2)
        self.assertNotEqual(first_asker, far.asker)
        far.answer(b"for two")
        await self.until(lambda: second.pieces)
        self.assertEqual(self.stream.pieces, [])

    async def test_what_fits_no_cell(self) -> None:
        far = self.far()
        made = await self.open()
        made.data([datagram(far.at, b"x")])
        await self.until(far.hear)
        far.answer(bytes(UDP_MOST + 1))
        await self.until(lambda: self.exit.counts.dropped == 1)
        far.answer(bytes(UDP_MOST))
        await self.until(self.heard)
        self.assertEqual(self.heard(), [(far.at, bytes(UDP_MOST))])
        self.assertLessEqual(len(datagram(Address("2600::1", 65535), bytes(UDP_MOST))), DATA_TAGGED)

    async def test_while_the_stream_takes_none(self) -> None:
        far = self.far()
        made = await self.open()
        made.data([datagram(far.at, b"x")])
        await self.until(far.hear)
        made.hold()
        far.answer(b"later")
        other = self.far("::1")
        made.data([datagram(other.at, b"x")])
        await self.until(other.hear)
        other.answer(b"later")
        await self.sleep(0.05)
        self.assertEqual(self.heard(), [])
        made.go_on()
        await self.until(lambda: len(self.heard()) == 2)


class LimitTests(UdpCase):
    async def test_unanswered(self) -> None:
        far = self.far()
        made = await self.open()
        made.data([datagram(far.at, b"x")] * (UDP_UNANSWERED + 2))
        await self.until(lambda: far.hear() == UDP_UNANSWERED)
        self.assertEqual(self.exit.counts.dropped, 2)
        far.answer(b"y")
        await self.until(self.heard)
        made.data([datagram(far.at, b"x")] * 20)
        await self.until(lambda: far.hear() == UDP_UNANSWERED + 20)

    async def test_destinations(self) -> None:
        made = await self.open()
        for number in range(UDP_DESTS + 3):
            made.data([datagram(Address("127.0.0.9", 20000 + number), b"x")])
        self.assertEqual((self.exit.counts.sent, self.exit.counts.dropped), (UDP_DESTS, 3))
        made.ended()
        self.assertEqual(self.stream.told, [Reason.DONE])
        self.assertEqual(self.account._far, {})

    async def test_silence_ends_it(self) -> None:
        clock = Clock()
        exit_ = self.make(clock=clock, seconds=clock.seconds)
        self.account = exit_.account()
        far = self.far()
        made = await self.open(exit_=exit_)
        clock.advance(UDP_IDLE - 1)
        made.data([datagram(far.at, b"x")])
        await self.until(far.hear)
        clock.advance(UDP_IDLE - 1)
        self.assertEqual(self.stream.told, [])
        far.answer(b"y")
        await self.until(self.heard)
        clock.advance(UDP_IDLE - 1)
        self.assertEqual(self.stream.told, [])
        clock.advance(1)
        self.assertEqual(self.stream.told, [Reason.DONE])
        self.assertEqual(clock.getDelayedCalls(), [])
        made.data([datagram(far.at, b"x")])
        made.ended()
        self.assertEqual(self.stream.told, [Reason.DONE])

    async def test_bytes_of_a_circuit(self) -> None:
        far = self.far()
        made = await self.open()
        self.account.moved = CIRC_BYTES - 2
        made.data([datagram(far.at, b"x")])
        await self.until(far.hear)
        far.answer(b"yy")
        await self.until(lambda: self.stream.told == [Reason.LIMIT])
        self.assertEqual(self.stream.pieces, [])
        self.account.moved = CIRC_BYTES
        other = Stream(2)
        made = await self.exit.associate("", 0, self.account)
        self.begin(made, other)
        made.data([datagram(far.at, b"x")])
        self.assertEqual(other.told, [Reason.LIMIT])

    async def test_nonsense_ends_it(self) -> None:
        for piece in (b"", b"\x05", b"\x04\x7f\0\0\1", b"\x06" + bytes(17)):
            made = await self.exit.associate("", 0, self.account)
            stream = Stream()
            self.begin(made, stream)
            made.data([piece, piece])
            self.assertEqual(stream.told, [Reason.PROTOCOL])


class FormTests(SynchronousTestCase):
    @given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=64))
    def test_round_trip(self, address: object, port: int, payload: bytes) -> None:
        self.assertEqual(
            read_datagram(datagram(Address(str(address), port), payload)), (Address(str(address), port), payload)
        )

    @given(st.binary(max_size=64))
    def test_noise(self, data: bytes) -> None:
        try:
            address, payload = read_datagram(data)
        except RemoteProtocolError:
            return
        self.assertEqual(datagram(address, payload), data)
