"""TLS over real loopback: raw sockets, Twisted transports, and openssl as a peer that we did not write."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.internet.utils import getProcessOutputAndValue
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from layer8.core.errors import ConfigError
from layer8.crypto.x509 import Identity, certificate_pin, self_signed
from layer8.net.tls import (
    Named,
    Pinned,
    TlsClient,
    TlsServer,
    WrongPeer,
    check_peer,
    client_context,
    negotiated,
    open_client,
    open_server,
    peer_pin,
    server_context,
)

SERVER = Identity.from_pem(*self_signed(["proxy.example", "127.0.0.1"]))
OTHER = Identity.from_pem(*self_signed(["proxy.example", "127.0.0.1"]))
PINNED = Pinned(frozenset({SERVER.pin}))


class Raw(SynchronousTestCase):
    """Blocking sockets: what the pump does, without the pump."""

    def _serve(
        self, context: SSL.Context, talk: Callable[[SSL.Connection], object]
    ) -> tuple[socket.socket, list[object]]:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        seen: list[object] = []

        def run() -> None:
            accepted, _ = listener.accept()
            accepted.settimeout(10)
            with accepted:
                accepted.setblocking(True)
                connection = open_server(context, accepted)
                try:
                    connection.do_handshake()
                    talk(connection)
                    seen.append(connection.recv(100))
                except (SSL.Error, OSError) as error:
                    seen.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        dialled = socket.create_connection(listener.getsockname())
        self.addCleanup(dialled.close)
        self._thread = thread
        return dialled, seen

    def test_right_pin_by_address(self) -> None:
        names: list[str] = []
        dialled, seen = self._serve(
            server_context(SERVER, ["layer8-data/1", "http/1.1"]),
            lambda connection: names.append(negotiated(connection)),
        )
        client = open_client(client_context(PINNED, ["http/1.1", "layer8-data/1"]), dialled)
        client.do_handshake()
        check_peer(client, PINNED)
        self.assertEqual(peer_pin(client), SERVER.pin)
        client.sendall(b"hello")
        self._thread.join(10)
        self.assertEqual(seen, [b"hello"])
        self.assertEqual(names, ["layer8-data/1"])  # the server's order counts
        self.assertEqual(negotiated(client), "layer8-data/1")
        self.assertEqual(client.get_protocol_version_name(), "TLSv1.3")

    def test_wrong_pin_sends_nothing(self) -> None:
        """The server's handshake fails: no byte of ours can have reached it."""
        dialled, seen = self._serve(server_context(OTHER), lambda connection: None)
        client = open_client(client_context(PINNED), dialled)
        self.assertIn("pinned", str(self.assertRaises(WrongPeer, client.do_handshake)))
        dialled.close()
        self._thread.join(10)
        self.assertEqual(len(seen), 1)
        self.assertIsInstance(seen[0], SSL.Error)

    def test_wrong_pin_in_tls_1_2(self) -> None:
        context = server_context(OTHER)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        dialled, seen = self._serve(context, lambda connection: None)
        client = open_client(client_context(PINNED), dialled)
        self.assertRaises(WrongPeer, client.do_handshake)
        dialled.close()
        self._thread.join(10)
        self.assertIsInstance(seen[0], SSL.Error)

    def test_check_peer_by_itself(self) -> None:
        """A context that verifies nothing is caught by the check after the handshake."""
        dialled, _ = self._serve(server_context(OTHER), lambda connection: None)
        client = open_client(SSL.Context(SSL.TLS_CLIENT_METHOD), dialled)
        client.do_handshake()
        self.assertRaises(WrongPeer, check_peer, client, PINNED)
        self.assertRaises(WrongPeer, check_peer, client, Named("proxy.example"))
        check_peer(client, Pinned(frozenset({OTHER.pin, SERVER.pin})))

    def test_names(self) -> None:
        trust = Path(self.mktemp())
        trust.mkdir()
        (trust / "server.pem").write_bytes(SERVER.chain_pem)
        for name, identity, right in (
            ("proxy.example", SERVER, True),
            ("127.0.0.1", SERVER, True),
            ("other.example", SERVER, False),
            ("127.0.0.2", SERVER, False),
            ("proxy.example", OTHER, False),
        ):
            for where in (trust, trust / "server.pem"):
                dialled, _ = self._serve(server_context(identity), lambda connection: None)
                expected = Named(name, where)
                client = open_client(client_context(expected), dialled, name)
                if right:
                    client.do_handshake()
                    check_peer(client, expected)
                else:
                    self.assertRaises(WrongPeer, client.do_handshake)
                dialled.close()
                self._thread.join(10)

    def test_system_trust_does_not_take_it(self) -> None:
        dialled, _ = self._serve(server_context(SERVER), lambda connection: None)
        client = open_client(client_context(Named("proxy.example")), dialled, "proxy.example")
        self.assertIn("not trusted", str(self.assertRaises(WrongPeer, client.do_handshake)))
        dialled.close()

    def test_old_versions(self) -> None:
        dialled, seen = self._serve(server_context(SERVER), lambda connection: None)
        old = SSL.Context(SSL.TLS_CLIENT_METHOD)
        old.set_max_proto_version(SSL.TLS1_1_VERSION)
        old.set_cipher_list(b"ALL:@SECLEVEL=0")
        self.assertRaises(SSL.Error, open_client(old, dialled).do_handshake)
        dialled.close()
        self._thread.join(10)
        self.assertIsInstance(seen[0], SSL.Error)

    def test_no_resumption(self) -> None:
        """A session that the client kept and offers again is not taken up: every handshake shows a certificate."""
        for most in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            ours = server_context(SERVER)
            theirs = ssl.create_default_context(cadata=SERVER.chain_pem.decode())
            theirs.maximum_version = most
            kept: ssl.SSLSession | None = None
            for _ in range(2):
                dialled, _seen = self._serve(ours, lambda connection: connection.sendall(b"x"))
                with theirs.wrap_socket(dialled, server_hostname="proxy.example", session=kept) as client:
                    self.assertEqual(client.recv(1), b"x")  # tickets of TLS 1.3 come before this
                    self.assertFalse(client.session_reused)
                    kept = client.session
                    client.sendall(b"bye")
                self._thread.join(10)

    def test_client_certificate(self) -> None:
        pins: list[str | None] = []
        for shown in (OTHER, None):
            context = server_context(SERVER, ask=True)
            dialled, _ = self._serve(context, lambda connection: pins.append(peer_pin(connection)))
            client = open_client(client_context(PINNED, identity=shown), dialled)
            client.do_handshake()
            client.sendall(b"x")
            self._thread.join(10)
        self.assertEqual(pins, [OTHER.pin, None])

    def test_no_common_alpn(self) -> None:
        names: list[str] = []
        dialled, _ = self._serve(
            server_context(SERVER, ["layer8-data/1"]), lambda connection: names.append(negotiated(connection))
        )
        client = open_client(client_context(PINNED, ["h2"]), dialled)
        client.do_handshake()
        client.sendall(b"x")
        self._thread.join(10)
        self.assertEqual(names, [""])

    def test_server_name(self) -> None:
        names: list[bytes | None] = []
        for name, wanted in (("proxy.example", b"proxy.example"), ("", None), ("192.0.2.1", None), ("::1", None)):
            dialled, _ = self._serve(
                server_context(SERVER), lambda connection: names.append(connection.get_servername())
            )
            client = open_client(client_context(PINNED), dialled, name)
            client.do_handshake()
            client.sendall(b"x")
            self._thread.join(10)
            self.assertEqual(names.pop(), wanted)

    def test_stdlib_client(self) -> None:
        """Python's own ssl module, which verifies names its own way."""
        dialled, seen = self._serve(server_context(SERVER, ["http/1.1"]), lambda connection: None)
        context = ssl.create_default_context(cadata=SERVER.chain_pem.decode())
        context.set_alpn_protocols(["http/1.1"])
        with context.wrap_socket(dialled, server_hostname="proxy.example") as client:
            self.assertEqual(client.selected_alpn_protocol(), "http/1.1")
            client.sendall(b"hello")
        self._thread.join(10)
        self.assertEqual(seen, [b"hello"])


class Contexts(SynchronousTestCase):
    def test_refused(self) -> None:
        empty = Path(self.mktemp())
        empty.mkdir()
        self.assertRaises(ConfigError, client_context, Pinned(frozenset()))
        self.assertRaises(ConfigError, client_context, Named("a.example", empty))
        self.assertRaises(ConfigError, client_context, Named("a.example", empty / "none.pem"))
        (empty / "bad.pem").write_bytes(b"not a certificate")
        self.assertRaises(ConfigError, client_context, Named("a.example", empty))
        self.assertRaises(ConfigError, server_context, SERVER, [""])
        self.assertRaises(ConfigError, server_context, SERVER, ["x" * 256])

    def test_wrong_peer_is_both(self) -> None:
        error = WrongPeer("why")
        self.assertIsInstance(error, SSL.Error)
        self.assertEqual(str(error), "why")


class _Talk(Protocol):
    def __init__(self, say: bytes = b"") -> None:
        self.say = say
        self.heard = b""
        self.first: Deferred[None] = Deferred()
        self.done: Deferred[object] = Deferred()

    def connectionMade(self) -> None:
        if self.say and self.transport is not None:
            self.transport.write(self.say)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if not self.first.called:
            self.first.callback(None)
        if not self.say and self.transport is not None:
            self.transport.write(data.upper())
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(_value(reason))


class Twisted(TestCase):
    """The same contexts through Twisted's TLS."""

    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = reactor

    async def _listen(self, creator: TlsServer) -> tuple[int, list[_Talk]]:
        accepted: list[_Talk] = []

        class Accept(Factory):
            def buildProtocol(self, addr: object) -> _Talk:
                accepted.append(_Talk())
                return accepted[-1]

        port = await TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1").listen(
            TLSMemoryBIOFactory(creator, False, Accept.forProtocol(_Talk))
        )
        self.addCleanup(port.stopListening)
        return port.getHost().port, accepted

    async def _dial(self, port: int, expected: Pinned) -> _Talk:
        talk = _Talk(b"hello")
        endpoint = wrapClientTLS(TlsClient(expected), TCP4ClientEndpoint(self.reactor, "127.0.0.1", port))
        await endpoint.connect(_Only(talk))
        return talk

    async def test_right_then_wrong_pin(self) -> None:
        port, accepted = await self._listen(TlsServer(SERVER))
        talk = await self._dial(port, PINNED)
        await talk.done
        self.assertEqual(talk.heard, b"HELLO")
        wrong = await self._dial(port, Pinned(frozenset({OTHER.pin})))
        self.assertIsInstance(await wrong.done, WrongPeer)
        await accepted[1].done
        self.assertEqual(accepted[1].heard, b"")

    async def test_replaced_certificate(self) -> None:
        creator = TlsServer(SERVER)
        port, _ = await self._listen(creator)
        creator.replace(OTHER)
        self.assertIsInstance(await (await self._dial(port, PINNED)).done, WrongPeer)
        talk = await self._dial(port, Pinned(frozenset({OTHER.pin})))
        await talk.done
        self.assertEqual(talk.heard, b"HELLO")

    async def test_openssl_client(self) -> None:
        """A foreign client with our certificate as its authority, checking name and ALPN."""
        openssl = _openssl()
        port, _ = await self._listen(TlsServer(SERVER, ("http/1.1",)))
        trust = Path(self.mktemp())
        trust.write_bytes(SERVER.chain_pem)
        arguments = ["s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(trust), "-alpn", "h2,http/1.1"]
        out, _, code = await getProcessOutputAndValue(
            openssl,
            [*arguments, "-verify_return_error", "-verify_hostname", "proxy.example", "-quiet"],
            stdinBytes=b"hello\n",
            reactor=self.reactor,
        )
        self.assertEqual((code, out), (0, b"HELLO\n"))
        out, _, code = await getProcessOutputAndValue(
            openssl, [*arguments, "-verify_return_error", "-verify_hostname", "x.example"], reactor=self.reactor
        )
        self.assertNotEqual(code, 0)
        out, _, code = await getProcessOutputAndValue(openssl, arguments, stdinBytes=b"Q\n", reactor=self.reactor)
        self.assertIn(b"ALPN protocol: http/1.1", out)

    async def test_openssl_server(self) -> None:
        """A foreign server: right pin talks, wrong pin is refused."""
        pem = Path(self.mktemp())
        pem.touch(0o600)
        pem.write_bytes(SERVER.pem())
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ready = _Started()
        arguments = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(pem), "-key", str(pem), "-rev"]
        process = self.reactor.spawnProcess(ready, _openssl(), arguments, usePTY=False)
        try:
            await ready.up
            talk = await self._dial(port, Pinned(frozenset({certificate_pin(OTHER.chain_pem)})))
            self.assertIsInstance((await talk.done), WrongPeer)
            right = _Talk(b"abc\n")
            endpoint = wrapClientTLS(TlsClient(PINNED), TCP4ClientEndpoint(self.reactor, "127.0.0.1", port))
            await endpoint.connect(_Only(right))
            await right.first
            self.assertEqual(right.heard, b"cba\n")
        finally:
            process.signalProcess("KILL")
            await ready.gone


def _value(reason: Failure) -> object:
    return reason.value


class _Only(Factory):
    def __init__(self, talk: _Talk) -> None:
        self.talk = talk

    def buildProtocol(self, addr: object) -> _Talk:
        return self.talk


class _Started(ProcessProtocol):
    def __init__(self) -> None:
        self.up: Deferred[None] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        if b"ACCEPT" in data and not self.up.called:
            self.up.callback(None)

    def processEnded(self, reason: Failure) -> None:
        self.gone.callback(None)


def _openssl() -> str:
    found = shutil.which("openssl")
    if found is None:
        raise SkipTest("package openssl is not installed")
    return found
