"""The talks with proxies on the way, byte by byte and against noise."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError, Unavailable
from layer8.net.via import CONNECT_HEAD, Conversation, HttpConnect, Socks5, conversation


def feed(talk: Conversation, data: bytes, size: int) -> list[bytes | None]:
    return [talk.received(data[at : at + size]) for at in range(0, len(data), size)]


class HttpConnectTests(SynchronousTestCase):
    def test_request(self) -> None:
        self.assertEqual(
            HttpConnect("proxy.test", 443).opening(),
            b"CONNECT proxy.test:443 HTTP/1.1\r\nHost: proxy.test:443\r\n\r\n",
        )
        self.assertIn(b"CONNECT [::1]:80 ", HttpConnect("::1", 80).opening())

    def test_open_at_every_cut(self) -> None:
        answer = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n"
        for size in range(1, len(answer) + 1):
            steps = feed(HttpConnect("h.test", 1), answer, size)
            self.assertIsNone(steps[-1])
            self.assertEqual(set(steps[:-1]), set() if len(steps) == 1 else {b""})

    def test_refused(self) -> None:
        with self.assertRaisesRegex(Unavailable, "403"):
            HttpConnect("h.test", 1).received(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def test_nonsense(self) -> None:
        for bad in (b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"):
            with self.assertRaises(RemoteProtocolError):
                HttpConnect("h.test", 1).received(bad)
        with self.assertRaises(LimitExceeded):
            HttpConnect("h.test", 1).received(b"x" * (CONNECT_HEAD + 1))
        with self.assertRaises(RemoteProtocolError):
            HttpConnect("h.test", 1).received(b"HTTP/1.0 200 ok\r\n\r\nearly")


class Socks5Tests(SynchronousTestCase):
    def test_a_name_goes_as_a_name(self) -> None:
        talk = Socks5("h.test", 443)
        self.assertEqual(talk.opening(), b"\x05\x01\x00")
        self.assertEqual(talk.received(b"\x05\x00"), b"\x05\x01\x00\x03\x06h.test\x01\xbb")
        self.assertIsNone(talk.received(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"))

    def test_addresses(self) -> None:
        four, six = Socks5("127.0.0.1", 80), Socks5("::1", 80)
        self.assertEqual(four.received(b"\x05\x00"), b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
        self.assertEqual(six.received(b"\x05\x00"), b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50")
        self.assertIsNone(six.received(b"\x05\x00\x00\x04" + bytes(16) + b"\x00\x50"))

    def test_open_at_every_cut(self) -> None:
        answer = b"\x05\x00" + b"\x05\x00\x00\x03\x04name\x00\x50"
        for size in range(1, 3):
            steps = feed(Socks5("h.test", 1), answer, size)
            self.assertIsNone(steps[-1])

    def test_refusals(self) -> None:
        for code, words in ((5, "refused"), (2, "not allowed"), (99, "error 99")):
            talk = Socks5("h.test", 1)
            talk.received(b"\x05\x00")
            with self.assertRaisesRegex(Unavailable, words):
                talk.received(bytes((5, code, 0, 1)) + bytes(6))
        with self.assertRaises(RemoteProtocolError):
            Socks5("h.test", 1).received(b"\x05\xff")
        talk = Socks5("h.test", 1)
        talk.received(b"\x05\x00")
        with self.assertRaises(RemoteProtocolError):
            talk.received(b"\x05\x00\x00\x07" + bytes(6))

    def test_names_that_cannot_be_sent(self) -> None:
        with self.assertRaises(ConfigError):
            Socks5("x" * 256, 1)

    def test_kinds(self) -> None:
        with self.assertRaises(ConfigError):
            conversation("gopher", "h.test", 1)


class NoiseTests(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=64), max_size=20), st.sampled_from(["connect", "socks5"]))
    def test_any_noise_is_typed(self, parts: list[bytes], kind: str) -> None:
        talk = conversation(kind, "h.test", 1)
        try:
            for part in parts:
                if talk.received(part) is None:
                    break
        except (RemoteProtocolError, Unavailable):
            pass
