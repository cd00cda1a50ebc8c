"""Listening on endpoint strings: who may listen where, what a taken port says, and that TLS and caps apply."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from layer8.core.errors import ConfigError, Unavailable
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.endpoints import Listening, ListenService, listen
from layer8.net.factory import Places
from layer8.net.tls import Pinned, TlsServer, client_context, open_client

SERVER = Identity.from_pem(*self_signed("a.example"))


class Greet(Protocol):
    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(b"hello")
            self.transport.loseConnection()


class Stay(Protocol):
    pass


class Listeners(TestCase):
    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.factory = Factory.forProtocol(Greet)

    def _listen(self, text: str, **how: Any) -> Listening:
        open_ = listen(self.reactor, text, self.factory, "--try", **how)
        self.addCleanup(open_.stop)
        return open_

    async def _hear(self, number: int) -> bytes:
        def dial() -> bytes:
            with socket.create_connection(("127.0.0.1", number), 5) as peer:
                return peer.recv(100)

        return await deferToThread(dial)

    async def test_plain_on_loopback(self) -> None:
        open_ = self._listen("tcp:0:interface=127.0.0.1")
        self.assertGreater(open_.number, 0)
        self.assertEqual(open_.text, f"tcp:{open_.number}:interface=127.0.0.1")
        self.assertEqual(await self._hear(open_.number), b"hello")

    async def test_text_can_be_listened_on(self) -> None:
        for text in ("tcp:0:interface=127.0.0.1", r"tcp:0:interface=\:\:1"):
            try:
                open_ = listen(self.reactor, text, self.factory, "--try")
            except Unavailable:
                continue  # a machine without IPv6
            again = open_.text
            await open_.stop()
            second = self._listen(again)
            self.assertEqual(second.text, again)

    async def test_backlog(self) -> None:
        if shutil.which("ss") is None:
            raise SkipTest("package iproute2 is not installed")
        open_ = self._listen("tcp:0:interface=127.0.0.1")
        listed = subprocess.run(["ss", "-Hltn", f"sport = :{open_.number}"], capture_output=True, check=True).stdout
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        self.assertEqual(int(listed.split()[2]), min(4096, most))

    async def test_taken_port(self) -> None:
        open_ = self._listen("tcp:0:interface=127.0.0.1")
        error = self.assertRaises(Unavailable, self._listen, f"tcp:{open_.number}:interface=127.0.0.1")
        self.assertIn("--try", str(error))
        self.assertIn(str(open_.number), str(error))

    async def test_plain_text_stays_here(self) -> None:
        for text in ("tcp:0", "tcp:0:interface=0.0.0.0", r"tcp:0:interface=\:\:", "tcp:0:interface=192.0.2.1"):
            error = self.assertRaises(ConfigError, self._listen, text)
            self.assertIn("plain text", str(error))
        self.assertRaises(ConfigError, self._listen, "tls:0")
        self.assertRaises(ConfigError, self._listen, "systemd:domain=INET:name=x")
        self.assertRaises(ConfigError, self._listen, "nonsense")
        open_ = self._listen("tcp:0:interface=0.0.0.0", plain=True)
        self.assertEqual(await self._hear(open_.number), b"hello")

    async def test_tls(self) -> None:
        open_ = self._listen("tls:0:interface=127.0.0.1", tls=TlsServer(SERVER))
        self.assertTrue(open_.text.startswith("tls:"))

        def dial() -> bytes:
            with socket.create_connection(("127.0.0.1", open_.number), 5) as peer:
                peer.settimeout(None)
                client = open_client(client_context(Pinned(frozenset({SERVER.pin}))), peer)
                client.do_handshake()
                return client.recv(100)

        self.assertEqual(await deferToThread(dial), b"hello")

    async def test_places_come_before_tls(self) -> None:
        places = Places(10, 0)
        open_ = self._listen("tls:0:interface=127.0.0.1", tls=TlsServer(SERVER), places=places)
        with self.assertRaises(ConnectionResetError):
            await self._hear(open_.number)
        self.assertEqual((places.refused, places.open), (1, 0))

    async def test_unix(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        path = os.path.relpath(folder / "s")
        open_ = self._listen(f"unix:{path}")
        self.assertEqual((open_.number, open_.text), (0, f"unix:{path}"))
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

        def dial() -> bytes:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(path)
                return peer.recv(100)

        self.assertEqual(await deferToThread(dial), b"hello")
        self.assertRaises(Unavailable, self._listen, f"unix:{path}")

    async def test_service(self) -> None:
        places = Places(10, 10)
        service = ListenService(
            self.reactor, "tcp:0:interface=127.0.0.1", Factory.forProtocol(Stay), "--try", places=places
        )
        service.startService()
        assert service.listening is not None
        number = service.listening.number
        with socket.create_connection(("127.0.0.1", number), 5):
            while places.open == 0:
                await deferLater(self.reactor, 0.002)
            await service.stopService()
            self.assertEqual(places.open, 1)  # what is under way goes on
            self.assertRaises(ConnectionRefusedError, socket.create_connection, ("127.0.0.1", number), 5)
        while places.open:
            await deferLater(self.reactor, 0.002)
        await service.stopService()

    async def test_service_with_a_taken_port(self) -> None:
        open_ = self._listen("tcp:0:interface=127.0.0.1")
        service = ListenService(self.reactor, open_.text, self.factory, "--try")
        self.assertRaises(Unavailable, service.startService)
        self.assertFalse(service.running)
