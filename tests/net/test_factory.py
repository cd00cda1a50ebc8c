"""Caps on accepted connections, on real loopback and by random walks."""

import socket

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from layer8.net.factory import CountingFactory, Places


@implementer(IHalfCloseableProtocol)
class Half(Protocol):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def readConnectionLost(self) -> None:
        self.heard.append("read end")

    def writeConnectionLost(self) -> None:
        self.heard.append("write end")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append("lost")


def _at(host: str) -> IPv4Address | IPv6Address:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)


class Counts(SynchronousTestCase):
    def test_per_source(self) -> None:
        places = Places(most=10, most_per_source=2)
        first = places.take("192.0.2.1")
        self.assertIsNotNone(places.take("192.0.2.200"))
        self.assertIsNone(places.take("192.0.2.3"))
        self.assertIsNone(places.take("::ffff:192.0.2.4"))
        self.assertIsNotNone(places.take("192.0.3.1"))
        self.assertIsNotNone(places.take("2001:db8::1"))
        self.assertEqual((places.open, places.refused, places.of("192.0.2.9")), (4, 2, 2))
        places.give(first or "")
        self.assertIsNotNone(places.take("192.0.2.3"))

    def test_unix_peers_have_no_source(self) -> None:
        places = Places(most=3, most_per_source=1)
        self.assertEqual([places.take("") for _ in range(4)], ["", "", "", None])

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=80))
    def test_never_over_and_never_lost(self, steps: list[tuple[bool, int]]) -> None:
        places, held = Places(most=6, most_per_source=3), list[str]()
        for come, number in steps:
            if come:
                source = places.take(f"10.0.{number % 3}.{number}")
                if source is not None:
                    held.append(source)
            elif held:
                places.give(held.pop(number % len(held)))
            self.assertEqual(places.open, len(held))
            self.assertLessEqual(len(held), 6)
            self.assertLessEqual(max(map(held.count, held), default=0), 3)
        for source in held:
            places.give(source)
        self.assertEqual((places.open, places._sources), (0, {}))

    def test_everything_passes(self) -> None:
        places = Places(2, 2)
        factory = CountingFactory(Factory.forProtocol(Half), places)
        factory.doStart()
        counted = factory.buildProtocol(_at("192.0.2.1"))
        inner = counted._inner  # type: ignore[attr-defined]  # no other way to see what a factory's protocol heard
        transport = StringTransport()
        counted.makeConnection(transport)
        self.assertIs(inner.transport, transport)
        counted.dataReceived(b"a")
        IHalfCloseableProtocol(counted).readConnectionLost()
        IHalfCloseableProtocol(counted).writeConnectionLost()
        self.assertEqual(places.open, 1)
        counted.connectionLost(connectionDone)
        counted.connectionLost(connectionDone)
        self.assertEqual(inner.heard, [b"a", "read end", "write end", "lost", "lost"])
        self.assertEqual(places.open, 0)
        plain = CountingFactory(Factory.forProtocol(Protocol), places).buildProtocol(UNIXAddress("/x"))
        self.assertFalse(IHalfCloseableProtocol.providedBy(plain))
        factory.doStop()

    def test_inner_says_no(self) -> None:
        class No(Factory):
            def buildProtocol(self, addr: IAddress | None) -> None:
                return None

        class Bug(Factory):
            def buildProtocol(self, addr: IAddress | None) -> None:
                raise ZeroDivisionError

        places = Places(1, 1)
        transport = StringTransport()
        CountingFactory(No(), places).buildProtocol(_at("192.0.2.1")).makeConnection(transport)
        self.assertTrue(transport.disconnecting)
        self.assertRaises(ZeroDivisionError, CountingFactory(Bug(), places).buildProtocol, _at("192.0.2.1"))
        self.assertEqual((places.open, places.accepted), (0, 2))


class Loopback(TestCase):
    timeout = 20

    async def test_third_is_reset(self) -> None:
        from twisted.internet import reactor

        places = Places(most=10, most_per_source=2)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            CountingFactory(Factory.forProtocol(Protocol), places)
        )
        self.addCleanup(port.stopListening)

        def dial() -> socket.socket:
            dialled = socket.create_connection(("127.0.0.1", port.getHost().port), 5)
            self.addCleanup(dialled.close)
            return dialled

        one = await deferToThread(dial)
        await deferToThread(dial)
        with self.assertRaises(ConnectionResetError):  # by the dial or by the read, whichever sees it first
            await deferToThread(lambda: dial().recv(1))
        self.assertEqual((places.open, places.refused), (2, 1))
        one.close()
        while places.open == 2:
            await _turn(reactor)
        fourth = await deferToThread(dial)
        while places.open == 1:
            await _turn(reactor)
        fourth.sendall(b"x")
        self.assertEqual(places.refused, 1)


def _turn(reactor: IReactorTime) -> Deferred[None]:
    return deferLater(reactor, 0.005)
