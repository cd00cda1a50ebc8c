"""The conversation before the bytes are a stream's: every turn it can take, however it is cut, whatever comes."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.session import Close, Effect, Send, Tell
from layer8.socks.server import Door, Table, Ways
from layer8.socks.session import REQUEST_TIME, Socks, Wanted
from layer8.socks.wire import REQUEST_MOST, Login, Request, reply
from layer8.testing.playbook import Lost, Playbook, Received, Wait
from tests.relay.exit_peers import Stream

HELLO = b"\x05\x01\x00"
LOGIN = b"\x05\x01\x02\x01\x01u\x01p"
NOBODY = Login(b"", b"")
TARGET = b"\x03\x0bexample.org\x01\xbb"
CONNECT = b"\x05\x01\x00" + TARGET
ASKED = Request(1, "example.org", 443, len(CONNECT))
HTTP = Send(b"HTTP/1.0 501 This is a SOCKS5 port, no HTTP proxy: curl --socks5-hostname HOST:PORT\r\n\r\n")
CUTS = (None, 1, 2, 3)


def run(data: bytes, cuts: list[int] | None = None, password: str = "") -> tuple[bytes, list[Effect], bytes]:
    """Give what a session says, what else it does, and what it takes as said early."""
    session = Socks(0.0, password)
    said = early = b""
    done: list[Effect] = []
    cuts = sorted(cuts or [])
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if any(isinstance(effect, Tell) for effect in done):
            early += data[start:end]  # the connection belongs to somebody else by now
            continue
        session.received(data[start:end], 1.0)
        for effect in session.effects():
            if isinstance(effect, Send):
                said += effect.data
            elif isinstance(effect, Tell):
                assert isinstance(effect.what, Wanted)
                early += effect.what.early
                done.append(Tell(Wanted(effect.what.request, effect.what.login, b"")))
            else:
                done.append(effect)
    return said, done, early


class Opens:
    """A client of the network that takes everything."""

    def open(self, *args: Any, **more: Any) -> Stream:
        return Stream()


class SessionTests(SynchronousTestCase):
    def book(self, cut: int | None, password: str = "") -> Playbook:
        return Playbook(Socks(1000.0, password), cut=cut)

    def test_request(self) -> None:
        for cut in CUTS:
            with self.book(cut) as book:
                book >> Received(b"\x05\x01\x00") << Send(b"\x05\x00")
                book >> Received(CONNECT) << Tell(Wanted(ASKED, NOBODY, b""))
                book >> Wait(100) >> Lost()

    def test_login_keeps_apart(self) -> None:
        for cut in CUTS:
            with self.book(cut) as book:
                book >> Received(b"\x05\x02\x00\x02") << Send(b"\x05\x02")
                book >> Received(b"\x01\x03bob\x02pw") << Send(b"\x01\x00")
                book >> Received(CONNECT) << Tell(Wanted(ASKED, Login(b"bob", b"pw"), b""))

    def test_everything_at_once(self) -> None:
        with self.book(None) as book:
            book >> Received(b"\x05\x01\x00" + CONNECT + b"GET /") << Send(b"\x05\x00")
            book << Tell(Wanted(ASKED, NOBODY, b"GET /"))

    def test_password(self) -> None:
        for cut in CUTS:
            with self.book(cut, "geheim") as book:
                book >> Received(b"\x05\x01\x00") << Send(b"\x05\xff") << Close("refused")
            with self.book(cut, "geheim") as book:
                book >> Received(b"\x05\x01\x02") << Send(b"\x05\x02")
                book >> Received(b"\x01\x01u\x05wrong") << Send(b"\x01\x01") << Close("refused")
            with self.book(cut, "geheim") as book:
                book >> Received(b"\x05\x02\x00\x02") << Send(b"\x05\x02")
                book >> Received(b"\x01\x01u\x06geheim") << Send(b"\x01\x00")
                book >> Received(CONNECT) << Tell(Wanted(ASKED, Login(b"u", b"geheim"), b""))

    def test_no_method_fits(self) -> None:
        for offered in (b"\x05\x00", b"\x05\x01\x01"):
            with self.book(None) as book:
                book >> Received(offered) << Send(b"\x05\xff") << Close("refused")

    def test_associate(self) -> None:
        with self.book(1) as book:
            book >> Received(b"\x05\x01\x00") << Send(b"\x05\x00")
            book >> Received(b"\x05\x03\x00\x01" + bytes(6)) << Tell(Wanted(Request(3, "0.0.0.0", 0, 10), NOBODY, b""))

    def test_bind_and_others_are_not_served(self) -> None:
        for ask in (0, 2, 4, 0xF0, 0xFF):
            with self.book(2) as book:
                book >> Received(b"\x05\x01\x00") << Send(b"\x05\x00")
                book >> Received(b"\x05" + bytes((ask,)) + b"\x00" + TARGET) << Send(reply(7)) << Close("refused")

    def test_unknown_addresses(self) -> None:
        for address in (b"\x00", b"\x02\x01", b"\x05\x01", b"\x03\x00\x00\x50", b"\x03\x02a \x00\x50"):
            with self.book(None) as book:
                book >> Received(b"\x05\x01\x00") << Send(b"\x05\x00")
                book >> Received(b"\x05\x01\x00" + address + b"\0\0") << Send(reply(8)) << Close("refused")

    def test_other_protocols(self) -> None:
        for cut in CUTS:
            with self.book(cut) as book:
                book >> Received(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00") << Close("protocol")
            with self.book(cut) as book:
                book >> Received(b"GET http://example.org/ HTTP/1.1\r\n\r\n") << HTTP << Close("protocol")
            with self.book(cut) as book:
                book >> Received(b"\x16\x03\x01\x02\x00") << Close("protocol")
            with self.book(cut) as book:
                book >> Received(b"\x05\x01\x00") << Send(b"\x05\x00")
                book >> Received(b"GET ") << Close("protocol")  # too late to be taken for HTTP
            with self.book(cut) as book:
                book >> Received(b"\x05\x01\x02") << Send(b"\x05\x02")
                book >> Received(b"\x05\x01") << Close("protocol")

    def test_time(self) -> None:
        for said in (b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x00" + CONNECT[:-1]):
            with self.book(None) as book:
                book >> Received(said)
                if len(said) > 2:
                    book << Send(b"\x05\x00")
                book >> Wait(REQUEST_TIME - 0.1)
                book >> Wait(0.2) << Close("timeout")

    def test_lost_at_any_time(self) -> None:
        whole = b"\x05\x01\x02\x01\x01u\x01p" + CONNECT
        for end in range(len(whole) + 1):
            session = Socks(0.0)
            session.received(whole[:end], 0.0)
            session.effects()
            session.lost(1.0)
            session.received(whole[end:] + b"\x05\x01\x00", 1.0)
            session.wake(100.0)
            self.assertEqual(list(session.effects()), [])
            self.assertIsNone(session.deadline())

    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        books = (
            b"\x05\x01\x00" + CONNECT + b"early words",
            b"\x05\x02\x00\x02" + b"\x01\x01u\x01p" + CONNECT,
            b"\x05\x01\x00\x05\x02\x00" + TARGET + b"more",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x05\x01\x00\x05\x01\x00\x07",
        )
        text = data.draw(st.sampled_from(books))
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
        self.assertEqual(run(text, cuts), run(text))

    @given(st.lists(st.binary(max_size=700), max_size=6), st.sampled_from((b"", b"\x05\x01\x00", b"\x05\x01\x02\x01")))
    def test_any_noise(self, pieces: list[bytes], start: bytes) -> None:
        session = Socks(0.0)
        session.received(start, 0.0)
        asked = closed = 0
        for piece in pieces:
            session.received(piece, 0.0)
            for effect in session.effects():
                asked += isinstance(effect, Tell)
                closed += isinstance(effect, Close)
            self.assertLessEqual(len(session._data), REQUEST_MOST)
        self.assertLessEqual(asked + closed, 1)

    @given(st.lists(st.binary(max_size=300), max_size=6), st.sampled_from((b"", HELLO, HELLO + CONNECT, LOGIN)))
    def test_any_noise_at_the_port(self, pieces: list[bytes], start: bytes) -> None:
        clock: Any = Clock()
        client: Any = Opens()
        table = Table(clock.seconds)
        door = Door(clock, "here", Ways(client), table)
        transport: Any = StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 4000))
        transport.setTcpNoDelay = transport.setTcpKeepAlive = lambda enabled: None
        transport.abortConnection = transport.loseWriteConnection = transport.loseConnection
        clock.listenUDP = lambda *args, **more: transport
        transport.stopListening = lambda: None
        protocol: Any = door.buildProtocol(None)
        protocol.makeConnection(transport)
        for piece in (start, *pieces):
            protocol.dataReceived(piece)
        door.close()
        protocol.connectionLost()
        clock.advance(1000.0)
        self.assertEqual((len(table), self.flushLoggedErrors(), clock.getDelayedCalls()), (0, [], []))
