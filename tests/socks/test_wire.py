"""SOCKS5 as bytes: every message there and back, cut short, and noise."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.socks import wire
from layer8.socks.wire import Code, Login, Request, UnknownAddress

CONNECT = b"\x05\x01\x00\x03\x0bexample.org\x01\xbb"


class WireTests(SynchronousTestCase):
    def test_greeting(self) -> None:
        self.assertEqual(wire.greeting(b"\x05\x02\x00\x02rest"), (frozenset({0, 2}), 4))
        self.assertEqual(wire.greeting(b"\x05\x00"), (frozenset(), 2))
        for short in (b"", b"\x05", b"\x05\x02\x00"):
            self.assertIsNone(wire.greeting(short))
        for other in (b"\x04\x01\x00\x50", b"GET / HTTP/1.1", b"\0"):
            self.assertRaises(RemoteProtocolError, wire.greeting, other)

    def test_login(self) -> None:
        self.assertEqual(wire.login(b"\x01\x03bob\x02pwX"), (Login(b"bob", b"pw"), 8))
        self.assertEqual(wire.login(b"\x01\x00\x00"), (Login(b"", b""), 3))
        whole = b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
        self.assertEqual(wire.login(whole), (Login(b"u" * 255, b"p" * 255), len(whole)))
        for end in range(len(whole)):
            self.assertIsNone(wire.login(whole[:end]))
        self.assertRaises(RemoteProtocolError, wire.login, b"\x05\x01")
        self.assertNotIn("geheim", repr(Login(b"bob", b"geheim")))

    def test_requests(self) -> None:
        self.assertEqual(wire.request(CONNECT + b"early"), Request(1, "example.org", 443, len(CONNECT)))
        self.assertEqual(wire.request(b"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x35"), Request(3, "127.0.0.1", 53, 10))
        six = b"\x05\x01\x00\x04" + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x50"
        self.assertEqual(wire.request(six), Request(1, "2001:db8::1", 80, 22))
        for whole in (CONNECT, six):
            for end in range(len(whole)):
                self.assertIsNone(wire.request(whole[:end]))

    def test_names(self) -> None:
        def name(raw: bytes) -> str:
            found = wire.request(b"\x05\x01\x00\x03" + bytes((len(raw),)) + raw + b"\0\x50")
            assert found is not None
            return found.host

        self.assertEqual(name(b"Example.ORG."), "example.org")
        self.assertEqual(name(b"[2001:db8::1]"), "2001:db8::1")
        self.assertEqual(name(b"a" * 255), "a" * 255)
        for bad in (b"", b"a b", b"a\0b", b"\xc3\xa4", b"a\nb", b"[]"):
            self.assertRaises(UnknownAddress, name, bad)
        self.assertRaises(UnknownAddress, wire.request, b"\x05\x01\x00\x02\x01")

    def test_replies(self) -> None:
        self.assertEqual(wire.reply(Code.GRANTED), b"\x05\x00\x00\x01" + bytes(6))
        self.assertEqual(wire.reply(Code.NO_DESCRIPTOR), b"\x05\xf0\x00\x01" + bytes(6))
        self.assertEqual(wire.reply(0, "::1", 256), b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x01\x00")

    def test_datagrams(self) -> None:
        for host in ("192.0.2.7", "2001:db8::7"):
            self.assertEqual(wire.read_datagram(wire.datagram(host, 53, b"what")), (host, 53, b"what"))
        named = b"\0\0\0\x03\x04web.\0\x35question"
        self.assertEqual(wire.read_datagram(named), ("web", 53, b"question"))
        for bad in (b"", named[:8], b"\0\0\x01" + named[3:], b"\0\x01" + named[2:], b"\0\0\0\x02\x01\x01"):
            self.assertRaises(RemoteProtocolError, wire.read_datagram, bad)

    @given(st.binary(max_size=600))
    def test_noise(self, noise: bytes) -> None:
        for read in (wire.greeting, wire.login, wire.request, wire.read_datagram):
            for data in (noise, b"\x05" + noise, b"\x01" + noise, b"\x05\x01\0\x03" + noise, b"\0\0\0\x03" + noise):
                with contextlib.suppress(RemoteProtocolError):
                    read(data)
