"""Endpoint strings served by a factory, sockets that processes share, and those that another process has opened."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from layer8.config.endpoint import server
from layer8.core.errors import Unavailable
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.listen import FIRST_DESCRIPTOR, Sockets, more_of, number, of_systemd, open_shared, serve, take
from layer8.net.tls import Pinned, TlsServer, client_context, open_client

LOCAL = "tcp:0:interface=127.0.0.1"


class ListenCase(TestCase):
    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor

    def keep(self, socks: list[socket.socket]) -> list[socket.socket]:
        for sock in socks:
            self.addCleanup(sock.close)
        return socks


class SharedTests(ListenCase):
    def test_one_queue_each(self) -> None:
        socks = self.keep(open_shared(LOCAL, "--http", 3, {}))
        self.assertEqual(len({number(sock) for sock in socks}), 1)
        visitors = self.keep([socket.create_connection(("127.0.0.1", number(socks[0])), 5) for _ in range(60)])
        counts = []
        for sock in socks:
            sock.setblocking(False)
            count = 0
            while True:
                try:
                    self.keep([sock.accept()[0]])
                except BlockingIOError:
                    break
                count += 1
            counts.append(count)
        self.assertEqual(sum(counts), len(visitors))
        self.assertGreater(min(counts), 0, "the kernel deals them out")

    def test_a_port_that_is_taken(self) -> None:
        """Also by somebody who shares it with others: two servers on one port would share visitors unnoticed."""
        for taken in (socket.create_server(("127.0.0.1", 0)), open_shared(LOCAL, "--http", 1, {})[0]):
            with taken:
                text = f"tcp:{number(taken)}:interface=127.0.0.1"
                error = self.assertRaises(Unavailable, open_shared, text, "--http", 2, {})
                self.assertIn("choose another with --http", str(error))

    def test_ipv6(self) -> None:
        (sock,) = self.keep(open_shared("tcp:0:interface=\\:\\:1", "--http", 1, {}))
        self.keep([socket.create_connection(("::1", number(sock)), 5)])

    def test_more_queues(self) -> None:
        shared = self.keep(open_shared(LOCAL, "--http", 2, {}))
        more = self.keep(more_of(shared, 4))
        self.assertEqual({number(sock) for sock in more}, {number(shared[0])})
        self.assertEqual(len(more), 4)
        self.assertEqual(more_of(shared, 1), shared, "none is given up: its queue would be")
        alone = socket.create_server(("127.0.0.1", 0))
        alone.setblocking(False)
        again = self.keep(more_of([alone], 3))
        self.assertRaises(BlockingIOError, alone.accept)  # somebody may be accepting from it now
        self.assertEqual(len({os.fstat(sock.fileno()).st_ino for sock in again}), 1, "the same one, for all")

    def test_systemd(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            held = [os.dup(place) if _is_open(place) else -1 for place in (FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 1)]
            try:
                os.dup2(one.fileno(), FIRST_DESCRIPTOR)
                os.dup2(two.fileno(), FIRST_DESCRIPTOR + 1)
                environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "data:data"}
                found = of_systemd(server("systemd:domain=INET:name=data"), environ)
                self.assertEqual([number(sock) for sock in found], [number(one), number(two)])
                for sock in found:
                    sock.close()
                (second,) = of_systemd(server("systemd:domain=INET:index=1"), environ)
                self.assertEqual(number(second), number(two))
                second.close()
                for wrong in ({"LISTEN_PID": "1"}, {"LISTEN_FDNAMES": "http:https"}, {"LISTEN_FDS": "0"}):
                    with self.assertRaises(Unavailable):
                        of_systemd(server("systemd:domain=INET:name=data"), environ | wrong)
            finally:
                for place, number_ in zip((FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 1), held, strict=True):
                    if number_ >= 0:
                        os.dup2(number_, place)
                        os.close(number_)
                    else:
                        os.close(place)

    def test_what_another_process_has_opened(self) -> None:
        given = Sockets()
        first, second = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
        given.put("--http", LOCAL, first)
        given.put("--http", LOCAL, second)
        unused = socket.create_server(("127.0.0.1", 0))
        given.put("--https", LOCAL, unused)
        taken = take(self.reactor, LOCAL, "--http", given=given)
        self.keep([one.sock for one in taken])
        self.assertEqual([one.port for one in taken], [number(first), number(second)])
        (opened,) = take(self.reactor, LOCAL, "--http", given=given)
        self.keep([opened.sock])
        self.assertNotIn(opened.port, (number(first), number(second)), "they are given once")
        self.assertEqual([option for option, _, _ in given], ["--https"])
        given.close()
        self.assertEqual(unused.fileno(), -1)


class Greet(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")
        self.transport.loseConnection()


class ServeTests(ListenCase):
    def serve(self, text: str = LOCAL, **more: Any) -> Any:
        (port,) = serve(self.reactor, text, "--agents", Factory.forProtocol(Greet), **more)
        self.addCleanup(port.stopListening)
        return port

    async def hear(self, port: int, tls: Identity | None = None) -> bytes:
        def dial() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                if tls is None:
                    return sock.recv(100)
                sock.settimeout(None)
                client = open_client(client_context(Pinned(frozenset({tls.pin}))), sock)
                client.do_handshake()
                return client.recv(100)

        return await deferToThread(dial)

    async def test_a_factory(self) -> None:
        port = self.serve()
        self.assertEqual(await self.hear(port.getHost().port), b"hello")

    async def test_a_port_that_is_taken(self) -> None:
        number = self.serve().getHost().port
        error = self.assertRaises(Unavailable, self.serve, f"tcp:{number}:interface=127.0.0.1")
        self.assertIn(f"cannot listen on tcp:{number}", str(error))
        self.assertIn("choose another with --agents", str(error))

    async def test_tls(self) -> None:
        identity = Identity.from_pem(*self_signed("a.example"))
        port = self.serve("tls:0:interface=127.0.0.1", tls=TlsServer(identity))
        self.assertEqual(await self.hear(port.getHost().port, identity), b"hello")

    async def test_many_may_wait(self) -> None:
        if shutil.which("ss") is None:
            raise SkipTest("package iproute2 is not installed")
        port = self.serve()
        words = ["ss", "-Hltn", f"sport = :{port.getHost().port}"]
        listed = subprocess.run(words, capture_output=True, check=True).stdout
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        self.assertEqual(int(listed.split()[2]), min(4096, most))

    async def test_a_port_that_ends_here_goes_on_elsewhere(self) -> None:
        """Twisted shuts the sockets down that it has opened itself, for whoever has a duplicate too; not ours."""
        port = self.serve()
        elsewhere = port.socket.dup()
        self.keep([elsewhere])
        await maybeDeferred(port.stopListening)
        self.keep([socket.create_connection(("127.0.0.1", number(elsewhere)), 5)])
        elsewhere.settimeout(5)
        self.keep([elsewhere.accept()[0]])

    async def test_a_given_socket(self) -> None:
        given, made = Sockets(), socket.create_server(("127.0.0.1", 0))
        where = number(made)
        given.put("--agents", LOCAL, made)
        self.assertEqual(self.serve(given=given).getHost().port, where)
        self.assertEqual(await self.hear(where), b"hello")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
