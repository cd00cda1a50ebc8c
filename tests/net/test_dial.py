"""Dialling for the pump: by address and by name, through proxies on the way, refused, late and cancelled."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred

from layer8.core.errors import ConfigError, RemoteProtocolError, TimedOut, Unavailable
from layer8.net import dial as dial_module
from layer8.net import entries as entries_module
from layer8.net.dial import Dialer, Via, Where, reason
from layer8.net.entries import DIAL, Dialing
from layer8.net.linger import LINGER_BYTES, answer_and_close
from tests.net.test_pump_hard import PumpCase


class Named:
    """The real reactor with a resolver that answers by hand."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = self
        self.asked: list[str] = []
        self.receivers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, receiver: Any, host: str, port: int) -> None:
        self.asked.append(host)
        self.receivers.append((receiver, port))

    def answer(self, *found: str) -> None:
        receiver, port = self.receivers.pop(0)
        receiver.resolutionBegan(None)
        for host in found:
            kind = IPv6Address if ":" in host else IPv4Address
            receiver.addressResolved(kind("TCP", host, port))
        receiver.resolutionComplete()


class Peer:
    """Accepts one connection in a thread, and answers what it reads with canned replies, one each."""

    def __init__(self, *replies: bytes | None) -> None:
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(8)
        self.port: int = self.sock.getsockname()[1]
        self.got: list[bytes] = []
        self._replies = replies
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        sock, _ = self.sock.accept()
        with sock:
            sock.settimeout(10)
            try:
                for reply in self._replies:
                    self.got.append(sock.recv(4096))
                    if reply is None:
                        return
                    sock.sendall(reply)
                while data := sock.recv(4096):
                    self.got.append(data)
                    sock.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.sock.close()
        self.thread.join(10)


class DialCase(PumpCase):
    def setUp(self) -> None:
        super().setUp()
        self.named = Named(self.reactor)
        self.dialer = Dialer(self.named, self.pump)
        self.ended: list[tuple[int, Exception | None]] = []

    def done(self, fd: int, error: Exception | None) -> None:
        self.ended.append((fd, error))

    def listener(self, host: str = "127.0.0.1", backlog: int = 8) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.bind((host, 0))
        sock.listen(backlog)
        self.open.append(sock)
        return sock

    def closed_port(self) -> int:
        """A port of 127.0.0.1 at which nobody listens."""
        sock = self.listener()
        port: int = sock.getsockname()[1]
        self.open.remove(sock)
        sock.close()
        return port

    def black_hole(self) -> int:
        """A port that never answers: its queue is full, and the kernel drops what comes."""
        sock = self.listener(backlog=0)
        port: int = sock.getsockname()[1]
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            self.open.append(one)
        return port

    async def end(self) -> tuple[int, Exception | None]:
        for _ in range(400):
            if self.ended:
                break
            await self.turn()
        self.assertEqual(len(self.ended), 1, "told once")
        return self.ended[0]

    async def there(self) -> int:
        fd, error = await self.end()
        self.assertIsNone(error)
        return fd

    async def fault(self) -> Exception:
        fd, error = await self.end()
        self.assertEqual(fd, -1)
        assert error is not None
        return error


class DirectTests(DialCase):
    async def test_an_address(self) -> None:
        sock = self.listener()
        self.dialer.dial(Where("127.0.0.1", sock.getsockname()[1]), self.done)
        self.pump.close_fd(await self.there())
        self.assertEqual(self.named.asked, [])

    async def test_a_unix_socket(self) -> None:
        path = self.mktemp()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen(1)
            self.dialer.dial(Where("", 0, path), self.done)
            self.pump.close_fd(await self.there())

    async def test_no_unix_socket(self) -> None:
        self.dialer.dial(Where("", 0, self.mktemp()), self.done)
        self.assertEqual(reason(await self.fault()), "no such file or directory")

    async def test_refused(self) -> None:
        self.dialer.dial(Where("127.0.0.1", self.closed_port()), self.done)
        error = await self.fault()
        assert isinstance(error, OSError)
        self.assertEqual(error.errno, errno.ECONNREFUSED)
        self.assertEqual(reason(error), "connection refused")

    async def test_a_port_that_cannot_be(self) -> None:
        self.dialer.dial(Where("127.0.0.1", 70000), self.done)
        error = await self.fault()
        self.assertEqual(error.args[0], errno.EINVAL)

    async def test_nobody_answers(self) -> None:
        now = [self.pump.look_at_clock()]
        self.pump._clock = lambda: now[0]
        dialing = self.dialer.dial(Where("127.0.0.1", self.black_hole()), self.done)
        self.assertIsInstance(dialing, Dialing)
        now[0] += DIAL - 0.1
        self.pump.sweep()
        self.assertEqual(self.ended, [])
        now[0] += 0.2
        self.pump.sweep()
        self.assertEqual((await self.fault()).args[0], errno.ETIMEDOUT)

    async def test_cancelled(self) -> None:
        dialing = self.dialer.dial(Where("127.0.0.1", self.black_hole()), self.done)
        assert dialing is not None
        dialing.cancel()
        dialing.cancel()
        await self.turn()
        self.assertEqual(self.ended, [])

    async def test_cancelled_after_its_end(self) -> None:
        """The descriptor is somebody else's by then."""
        sock = self.listener("127.0.0.1")
        dialing = self.dialer.dial(Where("127.0.0.1", sock.getsockname()[1]), self.done)
        fd = await self.there()
        if dialing is not None:
            dialing.cancel()
        os.fstat(fd)
        self.pump.close_fd(fd)

    def test_dials_when_the_pump_stops(self) -> None:
        self.dialer.dial(Where("127.0.0.1", self.black_hole()), self.done)
        self.pump.stop()

    def test_beyond_this_machine_with_keep_alive(self) -> None:
        for loopback, wanted in ((frozenset[str](), 1), (frozenset({"127.0.0.1"}), 0)):
            self.patch(entries_module, "_LOOPBACK", loopback)
            dialing = self.pump.dial((socket.AF_INET, ("127.0.0.1", self.black_hole())), self.done)
            assert dialing is not None
            with socket.socket(fileno=os.dup(dialing._fd)) as view:
                self.assertEqual(view.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), wanted)
                # Whoever reads nothing for a while is not gone.
                self.assertEqual(view.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 0)
            dialing.cancel()


class NameTests(DialCase):
    async def test_a_name_is_kept(self) -> None:
        port = self.listener().getsockname()[1]
        self.dialer.dial(Where("app.test", port), self.done)
        self.assertEqual(self.named.asked, ["app.test"])
        self.named.answer("127.0.0.1")
        self.pump.close_fd(await self.there())
        self.ended.clear()
        self.dialer.dial(Where("app.test", self.listener().getsockname()[1]), self.done)
        self.pump.close_fd(await self.there())
        self.assertEqual(self.named.asked, ["app.test"], "asked once")

    async def test_each_address_is_tried(self) -> None:
        """IPv4 first; one that refuses is followed by the next."""
        sock = self.listener("::1")
        self.dialer.dial(Where("app.test", sock.getsockname()[1]), self.done)
        self.named.answer("::1", "127.0.0.1")
        fd = await self.there()
        with socket.socket(fileno=os.dup(fd)) as view:
            self.assertEqual(view.family, socket.AF_INET6)
        self.pump.close_fd(fd)

    async def test_every_address_refuses(self) -> None:
        self.dialer.dial(Where("app.test", self.closed_port()), self.done)
        self.named.answer("127.0.0.1", "::1")
        self.assertEqual((await self.fault()).args[0], errno.ECONNREFUSED)

    async def test_no_address(self) -> None:
        self.dialer.dial(Where("app.test", 80), self.done)
        self.named.answer()
        self.assertIsInstance(await self.fault(), Unavailable)

    async def test_cancelled_while_it_is_looked_up(self) -> None:
        attempt = self.dialer.dial(Where("app.test", self.listener().getsockname()[1]), self.done)
        assert attempt is not None
        attempt.cancel()
        self.named.answer("127.0.0.1")
        await self.turn()
        self.assertEqual(self.ended, [])

    async def test_cancelled_while_it_is_dialled(self) -> None:
        attempt = self.dialer.dial(Where("app.test", self.black_hole()), self.done)
        assert attempt is not None
        self.named.answer("127.0.0.1", "127.0.0.1")
        attempt.cancel()
        attempt.cancel()
        await self.turn()
        self.assertEqual(self.ended, [])


class OpenTests(DialCase):
    async def test_what_is_opened(self) -> None:
        fd = await self.dialer.open(Where("127.0.0.1", self.listener().getsockname()[1]))
        os.fstat(fd)
        self.pump.close_fd(fd)

    async def test_what_is_not(self) -> None:
        with self.assertRaises(ConnectionRefusedError):
            await self.dialer.open(Where("127.0.0.1", self.closed_port()))
        opening = Deferred.fromCoroutine(self.dialer.open(Where("app.test", 1)))
        self.named.answer()
        await self.assertFailure(opening, Unavailable)

    async def test_who_stops_waiting_leaves_nothing_open(self) -> None:
        port = self.black_hole()
        await self.turn()
        before = set(os.listdir("/proc/self/fd"))
        for host in ("127.0.0.1", "app.test"):
            opening = Deferred.fromCoroutine(self.dialer.open(Where(host, port)))
            opening.cancel()
            await self.assertFailure(opening, CancelledError)
        self.named.answer("127.0.0.1")
        await self.turn()
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)


class ViaTests(DialCase):
    def through(self, kind: str, peer: Peer) -> Any:
        self.addCleanup(peer.close)
        dialer = Dialer(self.named, self.pump, Via(kind, Where("127.0.0.1", peer.port)))
        return dialer.dial(Where("far.test", 443), self.done)

    async def test_connect(self) -> None:
        peer = Peer(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.through("connect", peer)
        fd = await self.there()
        self.assertTrue(peer.got[0].startswith(b"CONNECT far.test:443 HTTP/1.1\r\n"))
        self.assertEqual(self.named.asked, [], "names are looked up by the proxy")
        os.write(fd, b"through")
        await self.turn(0.1)
        self.assertEqual(os.read(fd, 100), b"through")
        self.pump.close_fd(fd)

    async def test_socks5(self) -> None:
        peer = Peer(b"\x05\x00", b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x01")
        self.through("socks5", peer)
        fd = await self.there()
        self.assertEqual(peer.got, [b"\x05\x01\x00", b"\x05\x01\x00\x03\x08far.test\x01\xbb"])
        self.pump.close_fd(fd)

    async def test_every_no(self) -> None:
        cases: tuple[tuple[str, tuple[bytes | None, ...], type[Exception]], ...] = (
            ("connect", (b"HTTP/1.1 403 Forbidden\r\n\r\n",), Unavailable),
            ("connect", (b"SSH-2.0-nonsense\r\n\r\n",), RemoteProtocolError),
            ("connect", (None,), Unavailable),
            ("connect", (b"x" * 9000,), RemoteProtocolError),
            ("connect", (b"HTTP/1.1 200 OK\r\n\r\nearly",), RemoteProtocolError),
            ("socks5", (b"\x05\xff",), RemoteProtocolError),
            ("socks5", (b"\x05\x00", b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"), Unavailable),
            ("socks5", (b"\x05\x00", None), Unavailable),
        )
        for kind, replies, error in cases:
            self.ended.clear()
            self.through(kind, Peer(*replies))
            self.assertIsInstance(await self.fault(), error)

    async def test_the_proxy_refuses(self) -> None:
        dialer = Dialer(self.named, self.pump, Via("connect", Where("127.0.0.1", self.closed_port())))
        dialer.dial(Where("far.test", 443), self.done)
        error = await self.fault()
        self.assertIsInstance(error, Unavailable)
        self.assertIn("connection refused", str(error))

    async def test_the_proxy_says_nothing(self) -> None:
        self.patch(dial_module, "VIA_TIME", 0.1)
        sock = self.listener()
        dialer = Dialer(self.named, self.pump, Via("connect", Where("127.0.0.1", sock.getsockname()[1])))
        dialer.dial(Where("far.test", 443), self.done)
        self.assertIsInstance(await self.fault(), TimedOut)

    async def test_cancelled_in_every_state(self) -> None:
        """Asking for the proxy's name, dialling it, talking with it."""
        silent = self.listener().getsockname()[1]
        steps: tuple[tuple[Where, Callable[[], None]], ...] = (
            (Where("proxy.test", 1), lambda: None),
            (Where("proxy.test", self.black_hole()), lambda: self.named.answer("127.0.0.1")),
            (Where("127.0.0.1", silent), lambda: None),
        )
        for where, step in steps:
            dialer = Dialer(self.named, self.pump, Via("connect", where))
            attempt = dialer.dial(Where("far.test", 443), self.done)
            assert attempt is not None
            step()
            await self.turn()
            attempt.cancel()
            attempt.cancel()
        self.named.receivers.clear()
        await self.turn()
        self.assertEqual(self.ended, [])

    async def test_unix_sockets_are_dialled_directly(self) -> None:
        dialer = Dialer(self.named, self.pump, Via("connect", Where("127.0.0.1", self.closed_port())))
        path = self.mktemp()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen(1)
            dialer.dial(Where("", 0, path), self.done)
            self.pump.close_fd(await self.there())

    def test_a_talk_when_the_pump_stops(self) -> None:
        sock = self.listener()
        dialer = Dialer(self.named, self.pump, Via("connect", Where("127.0.0.1", sock.getsockname()[1])))
        dialer.dial(Where("far.test", 443), self.done)
        self.pump.stop()

    def test_texts(self) -> None:
        self.assertIsNone(Via.parse(""))
        self.assertEqual(Via.parse("tor:"), Via("socks5", Where("127.0.0.1", 9050)))
        self.assertEqual(Via.parse("connect:[::1]:3128"), Via("connect", Where("::1", 3128)))
        for text in ("connect:", "connect:host", "socks5:host:0", "socks5:host:65536", "ftp:host:1", "connect:h:x"):
            with self.assertRaises(ConfigError):
                Via.parse(text)


class LingerTests(PumpCase):
    async def test_an_answer_arrives_although_much_is_unread(self) -> None:
        """A close with unread bytes in the kernel would reset the answer away."""
        ours, fd = self.tcp()
        closed: list[int] = []
        ours.sendall(b"x" * 50_000)
        answer_and_close(self.reactor, self.pump, fd, b"no", lambda: closed.append(fd))
        await self.turn()
        self.assertEqual(ours.recv(10), b"no")
        self.assertEqual(ours.recv(10), b"")
        ours.close()
        await self.turn()
        self.assertEqual(closed, [fd])

    async def test_one_who_talks_on_is_closed(self) -> None:
        ours, fd = self.tcp()
        closed: list[int] = []
        answer_and_close(self.reactor, self.pump, fd, b"no", lambda: closed.append(fd))
        ours.setblocking(False)
        sent = 0
        for _ in range(200):
            try:
                sent += ours.send(b"x" * 16384)
            except BlockingIOError:
                pass
            except OSError:
                break
            await self.turn(0.001)
        self.assertEqual(closed, [fd])
        self.assertGreater(sent, LINGER_BYTES)

    async def test_one_who_is_gone(self) -> None:
        ours, fd = self.ends()
        ours.close()
        closed: list[int] = []
        answer_and_close(self.reactor, self.pump, fd, b"no", lambda: closed.append(fd))
        self.assertEqual(closed, [fd])

    def tcp(self) -> tuple[socket.socket, int]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            ours = socket.create_connection(listener.getsockname(), 5)
            theirs, _ = listener.accept()
        self.open.append(ours)
        theirs.setblocking(False)
        return ours, theirs.detach()
