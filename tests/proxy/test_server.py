"""Server and agent in one process on real sockets: the way of a visitor, and everything that can go wrong on it."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from layer8.control.client import connect
from layer8.control.errors import Forbidden, MethodNotFound
from layer8.core.errors import ConfigError, Layer8Error
from layer8.crypto.secret import HostSecret
from layer8.crypto.x509 import self_signed
from layer8.net.dial import Where
from layer8.proxy.uplink import ANY_PORT, Published
from layer8.proxy.wire import Reason
from tests.proxy.hellos import hello, records, sni
from tests.proxy.pair import Echo, PairCase, get, published, visit


class ServerCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    async def _shortly(self, true: Any) -> None:
        await PairCase.until(self, lambda: bool(self.told) and self.told[-1][0] == "refused")
        self.assertTrue(true())

    def with_agent_host(self, more: str = "") -> tuple[Any, HostSecret]:
        secret, path = self.secret()
        host = f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n'
        return self.serve(more, host), secret


class OneHopTests(ServerCase):
    """A host that the server itself dials."""

    def start(self, more: str = "") -> Any:
        host = f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n'
        return self.serve(more, host)

    async def test_whole(self) -> None:
        server = self.start()
        got = await self.thread(visit, server.door.port_of("http"), get("static.test"))
        self.assertTrue(got.endswith(get("static.test")))
        self.assertEqual(self.echo.got, [get("static.test")])
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual(server.traffic.totals.ended[Reason.DONE], 1)
        tally = server.traffic.tallies["static.test"]
        self.assertEqual((tally.open, tally.calling), (0, 0))
        self.assertEqual(tally.bytes_in, len(get("static.test")))

    async def test_in_pieces(self) -> None:
        """Slowly, byte by byte: the same bytes arrive, once."""
        server = self.start()
        request = get("static.test")

        def slowly() -> bytes:
            with socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(len(request)):
                    sock.sendall(request[at : at + 1])
                got = b""
                while part := sock.recv(65536):
                    got += part
                return got

        got = await self.thread(slowly)
        self.assertTrue(got.endswith(request))
        self.assertEqual(b"".join(self.echo.got), request)

    async def test_by_sni(self) -> None:
        server = self.start()
        data = records(hello(sni(b"static.test")))
        got = await self.thread(visit, server.door.port_of("https"), data)
        self.assertTrue(got.endswith(data))

    async def test_unknown_host_is_closed_without_a_byte(self) -> None:
        server = self.start()
        for port, data in (
            (server.door.port_of("http"), get("other.test")),
            (server.door.port_of("https"), records(hello(sni(b"other.test")))),
        ):
            self.assertEqual(await self.thread(visit, port, data), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.UNKNOWN_HOST], 2)
        self.assertEqual(self.echo.got, [])

    async def test_unknown_host_is_told_if_asked_for(self) -> None:
        server = self.start('unknown = "answer"')
        got = await self.thread(visit, server.door.port_of("http"), get("other.test"))
        self.assertTrue(got.startswith(b"HTTP/1.1 404 "))
        got = await self.thread(visit, server.door.port_of("https"), records(hello(sni(b"other.test"))))
        self.assertEqual(got, bytes((21, 3, 3, 0, 2, 2, 112)))

    async def test_default_host(self) -> None:
        server = self.start('default_host = "static.test"')
        got = await self.thread(visit, server.door.port_of("http"), b"GET / HTTP/1.0\r\n\r\n")
        self.assertTrue(got.endswith(b"GET / HTTP/1.0\r\n\r\n"))

    async def test_bad_request_is_answered_although_more_was_sent(self) -> None:
        """The answer arrives although bytes of the visitor are still unread."""
        server = self.start()
        data = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + b"x" * 60_000
        got = await self.thread(visit, server.door.port_of("http"), data, half=True)
        self.assertTrue(got.startswith(b"HTTP/1.1 400 "), got)
        self.assertNotIn(b"(reset)", got)

    async def test_refused_target(self) -> None:
        server = self.start('unknown = "answer"')
        self.echo.close()
        got = await self.thread(visit, server.door.port_of("http"), get("static.test"))
        self.assertTrue(got.startswith(b"HTTP/1.1 502 "), got)
        self.assertEqual(server.traffic.totals.ended[Reason.TARGET_REFUSED], 1)

    async def test_slow_visitors_get_408_and_silent_ones_nothing(self) -> None:
        server = self.start("[proxy.limits]\nsniff_time = 0.6")
        port = server.door.port_of("http")
        half, silent = await gatherResults(
            [
                self.thread(visit, port, b"GET / HTTP/1.1\r\nHost: sta"),
                self.thread(visit, server.door.port_of("https"), b"\x16"),
            ]
        )
        self.assertTrue(half.startswith(b"HTTP/1.1 408 "))
        self.assertEqual(silent, b"")
        self.assertEqual(server.traffic.totals.ended[Reason.SNIFF_TIME], 2)
        self.assertEqual(server.traffic.sniffing.open, 0)

    async def test_a_denied_source(self) -> None:
        server = self.start('deny = ["127.9.0.0/16"]')
        port = server.door.port_of("http")
        self.assertIn(await self.thread(visit, port, get("static.test"), source="127.9.1.1"), (b"", b"(reset)"))
        self.assertNotEqual(await self.thread(visit, port, get("static.test"), source="127.8.1.1"), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.DENIED], 1)

    async def test_too_many_of_one_source(self) -> None:
        server = self.start("[proxy.limits]\nper_source_open = 2")
        port = server.door.port_of("http")
        held = []
        for _ in range(2):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            sock.sendall(b"GET / HT")
            held.append(sock)
        await self.until(lambda: len(server.traffic.waiting) == 2)
        self.assertIn(await self.thread(visit, port, get("static.test")), (b"", b"(reset)"))
        self.assertNotEqual(await self.thread(visit, port, get("static.test"), source="127.8.1.1"), b"")
        for sock in held:
            sock.close()
        await self.until(lambda: not server.traffic.visits)
        self.assertEqual(server.traffic.open.open, 0)

    async def test_the_oldest_makes_room(self) -> None:
        server = self.start("[proxy.limits]\nsniffing = 3\nper_source_sniffing = 3")
        port = server.door.port_of("http")
        held = []
        for number in range(4):
            sock = socket.create_connection(("127.0.0.1", port), 10, (f"127.{number + 1}.1.1", 0))
            sock.sendall(b"GET / HT")
            held.append(sock)
            await self.until(lambda number=number: server.traffic.totals.accepted == number + 1)  # type: ignore[misc]
        await self.until(lambda: server.traffic.totals.ended[Reason.CROWDED_OUT] == 1)
        held[0].settimeout(10)
        self.assertEqual(held[0].recv(1), b"")
        for sock in held:
            sock.close()

    async def test_its_own_listener_as_target_is_refused(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        from tests.proxy import pair

        own = f'http = ["tcp:{port}:interface=127.0.0.1"]'
        self.patch(pair, "BASE", pair.BASE.replace('http = ["tcp:0:interface=127.0.0.1"]', own))
        with self.assertRaisesRegex(ConfigError, "itself"):
            self.serve("", f'[[proxy.host]]\nhost = "loop.test"\ntarget = "tcp:127.0.0.1:{port}"\n')


class AgentTests(ServerCase):
    """A host that an agent carries."""

    async def test_whole(self) -> None:
        server, secret = self.with_agent_host()
        agent = await self.publish(server, published("app.test", secret, self.echo.port))
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")))
        await self.until(lambda: not server.traffic.visits and not agent.carrier.open)
        self.assertEqual(agent.carrier.totals.bytes_in, len(get("app.test")))
        self.assertEqual(agent.carrier.totals.bytes_out, len(got))
        self.assertEqual(server.traffic.totals.bytes_out, len(got))
        (seat,) = server.seats
        self.assertEqual((seat.open, seat.calling), (0, 0))
        self.assertEqual(server.traffic.pending, {})

    async def test_many_at_once(self) -> None:
        server, secret = self.with_agent_host()
        await self.publish(server, published("app.test", secret, self.echo.port))
        wanted = [get("app.test", f"/{number}") for number in range(60)]
        got = await gatherResults([self.thread(visit, server.door.port_of("http"), one) for one in wanted])
        for one, answer in zip(wanted, got, strict=True):
            self.assertTrue(answer.endswith(one))

    async def test_dial_backs_inside_tls(self) -> None:
        server, secret = self.with_agent_host('data_tls = "always"')
        await self.publish(server, published("app.test", secret, self.echo.port))
        data = get("app.test")
        got = await self.thread(visit, server.door.port_of("http"), data)
        self.assertTrue(got.endswith(data))
        self.assertEqual(server.door.data.refused, 0)

    async def test_agents_over_tls_by_pin(self) -> None:
        _, path = self.secret()
        host = f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n'
        text = 'agents = ["tls:0:interface=127.0.0.1"]'
        from tests.proxy import pair

        self.patch(pair, "BASE", pair.BASE.replace('agents = ["tcp:0:interface=127.0.0.1"]', text))
        server = self.serve("", host)
        pin = server.identity().pin
        port = server.door.agents_port()
        client = await connect(self.reactor, f"wss://127.0.0.1:{port}", pin=pin, path="/agent")
        hello = await client.call("proxy.hello", {"versions": [1], "instance": "12345678"})
        self.assertEqual(hello["version"], 1)
        client.close()
        wrong = ("A" if pin[0] != "A" else "B") + pin[1:]
        with self.assertRaises(Layer8Error):
            await connect(self.reactor, f"wss://127.0.0.1:{port}", pin=wrong, path="/agent")

    async def test_refused_target_is_a_reject(self) -> None:
        server, secret = self.with_agent_host('unknown = "answer"')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        agent = await self.publish(server, published("app.test", secret, port))
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.startswith(b"HTTP/1.1 502 "))
        self.assertEqual(server.traffic.totals.ended[Reason.REJECTED], 1)
        self.assertEqual(agent.carrier.totals.rejected, 1)
        self.assertEqual(server.traffic.pending, {})
        self.assertEqual(len(agent.carrier.open), 0)

    async def test_the_next_agent_is_asked(self) -> None:
        """One whose target is down, one whose target answers: every visitor is served."""
        server, secret = self.with_agent_host()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        bad = await self.publish(server, published("app.test", secret, port))
        self.told.clear()
        good = await self.publish(server, published("app.test", secret, self.echo.port))
        for _ in range(6):
            got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
            self.assertTrue(got.endswith(get("app.test")))
        self.assertGreater(bad.carrier.totals.rejected, 0)
        self.assertEqual(good.carrier.totals.joined, 6)

    async def test_a_port_without_a_target_is_a_reject(self) -> None:
        server, secret = self.with_agent_host()
        one = Published("app.test", secret.key, {1: Where("127.0.0.1", self.echo.port)})
        agent = await self.publish(server, one)
        self.assertEqual(await self.thread(visit, server.door.port_of("http"), get("app.test")), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.REJECTED], 1)
        self.assertEqual(agent.carrier.totals.called, 0)

    async def test_wrong_secret(self) -> None:
        server, _ = self.with_agent_host()
        other = HostSecret.make()
        with self.assertRaises(self.failureException):
            self.patch(self, "until", self._shortly)
            await self.publish(server, published("app.test", other, self.echo.port))
        self.assertIn("refused", [what for what, _ in self.told])
        self.assertEqual(len(server.seats), 0)
        self.assertEqual(await self.thread(visit, server.door.port_of("http"), get("app.test")), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.NO_SUBSCRIBER], 1)

    async def test_the_secret_of_another_host(self) -> None:
        _, path = self.secret()
        other, other_path = self.secret("other.secret")
        hosts = "".join(
            f'[[proxy.host]]\nhost = "{host}"\nsecret_file = "{file}"\n'
            for host, file in (("app.test", path), ("other.test", other_path))
        )
        server = self.serve("", hosts)
        self.patch(self, "until", self._shortly)
        with self.assertRaises(self.failureException):
            await self.publish(server, published("app.test", other, self.echo.port))
        self.assertEqual(len(server.seats), 0)

    async def test_the_agent_comes_back(self) -> None:
        server, secret = self.with_agent_host()
        agent = await self.publish(server, published("app.test", secret, self.echo.port), options="retry_min = 0.1")
        for conversation in list(self.frame.control.conversations()):
            conversation.close("test")
        await self.until(lambda: [what for what, _ in self.told].count("subscribed") == 2)
        self.assertEqual(len(server.seats), 1)
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")))
        self.assertTrue(agent.uplinks[0].connected)

    async def test_what_was_refused_is_asked_for_again(self) -> None:
        """A host that is registered only later is served without a restart of its agent."""
        server = self.serve()
        secret = HostSecret.make()
        with self.assertRaises(self.failureException):
            self.patch(self, "until", self._shortly)
            await self.publish(
                server, published("app.test", secret, self.echo.port), options="retry_min = 0.1\nretry_max = 0.3"
            )
        client = await connect(self.reactor, f"unix:{self.folder}/run/proxy.sock")
        self.addCleanup(client.close)
        await client.call("proxy.register", {"host": "app.test", "secret_hash": secret.key.hex()})
        await PairCase.until(self, lambda: ("subscribed", "app.test") in self.told)
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")))

    async def test_what_a_server_may_ask_its_agent(self) -> None:
        """C11: nothing, unless the agent's `peer_read` says so; then rows of role read and no others."""
        server, secret = self.with_agent_host()
        agent = await self.publish(server, published("app.test", secret, self.echo.port), options="retry_min = 0.1")
        (conversation,) = self.frame.control.conversations()
        with self.assertRaises(MethodNotFound):
            await conversation.call("node.status", {})
        agent.uplinks[0].served = self.frame.table  # type: ignore[union-attr]
        conversation.close("test")
        await self.until(lambda: [what for what, _ in self.told].count("subscribed") == 2)
        (conversation,) = self.frame.control.conversations()
        self.assertEqual((await conversation.call("node.status", {}))["roles"], ["proxy"])
        with self.assertRaises(Forbidden):
            await conversation.call("proxy.drain", {})

    async def test_rotation_of_data_ports(self) -> None:
        """P23: the port changes while visitors come, and nobody notices."""
        server, secret = self.with_agent_host()
        await self.publish(server, published("app.test", secret, self.echo.port))
        ports = set()
        for _ in range(5):
            ports.add(server.door.addresses()[0].port)
            got = await gatherResults(
                [self.thread(visit, server.door.port_of("http"), get("app.test")) for _ in range(4)]
            )
            server.door.rotate()
            for answer in got:
                self.assertTrue(answer.endswith(get("app.test")))
        self.assertEqual(len(ports), 5)

    async def test_a_visitor_who_leaves_while_an_agent_is_called(self) -> None:
        """Its secret dies with it."""
        server, secret = self.with_agent_host()
        silent = await self.silent_agent(server, secret)
        sock = socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10)
        sock.sendall(get("app.test"))
        await self.until(lambda: len(silent) == 1)
        self.assertEqual(len(server.traffic.pending), 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        sock.close()
        await self.until(lambda: not server.traffic.pending)
        self.assertEqual(server.traffic.totals.ended[Reason.VISITOR_LEFT], 1)
        spent = bytes.fromhex(silent[0]["result"]["secret"])
        self.assertEqual(await self.thread(visit, silent[0]["result"]["serverListeningPort"], spent), b"")

    async def test_an_agent_that_never_dials(self) -> None:
        server, secret = self.with_agent_host("[proxy.limits]\ncall_step = 0.3\ncall_time = 0.5")
        await self.silent_agent(server, secret)
        self.assertEqual(await self.thread(visit, server.door.port_of("http"), get("app.test")), b"")
        self.assertEqual(server.traffic.totals.ended[Reason.CALL_TIME], 1)
        self.assertEqual(server.traffic.pending, {})
        (seat,) = server.seats
        self.assertEqual((seat.open, seat.calling), (0, 0))

    async def test_a_reject_for_somebody_elses_visitor_is_ignored(self) -> None:
        server, secret = self.with_agent_host()
        client = await self.subscriber(server, secret)
        client.notify("proxy.reject", {"subscription": 1, "conn": 12345, "code": -20008})
        client.notify("proxy.reject", {"subscription": 99, "conn": 1, "code": -20008})
        await client.call("rpc.ping", {})
        self.assertEqual(server.traffic.totals.rejects_ignored, 1)
        client.close()

    async def test_data_port(self) -> None:
        """Wrong, short, late and repeated secrets; the byte after the secret is content."""
        server, secret = self.with_agent_host("[proxy.limits]\nsecret_time = 0.5")
        calls = await self.silent_agent(server, secret)
        data = server.door.addresses()[0].port
        self.assertEqual(await self.thread(visit, data, b"w" * 32), b"")
        self.assertEqual(await self.thread(visit, data, b"w" * 31), b"", "31 bytes, then silence: closed in time")
        visiting = self.thread(visit, server.door.port_of("http"), get("app.test"))
        await self.until(lambda: len(calls) == 1)
        good = bytes.fromhex(calls[0]["result"]["secret"])

        def answer() -> tuple[bytes, bytes]:
            with socket.create_connection(("127.0.0.1", data), 10) as first:
                first.sendall(good + b"answer")
                first.settimeout(10)
                got = first.recv(65536)
                return got, visit(data, good)

        got, repeated = await self.thread(answer)
        self.assertEqual(got, get("app.test"))
        self.assertEqual(repeated, b"")
        self.assertEqual(await visiting, b"answer")
        await self.until(lambda: server.door.data.places.open == 0)

    async def subscriber(self, server: Any, secret: HostSecret) -> Any:
        """Subscribe to app.test by hand."""
        from layer8.crypto.keys import parse_id
        from layer8.crypto.proof import subscribe_proof

        client = await connect(self.reactor, f"ws://127.0.0.1:{server.door.agents_port()}", path="/agent")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.leave(client)))
        hello = await client.call("proxy.hello", {"versions": [1], "instance": "by hand 1"})
        proof = subscribe_proof(secret.key, bytes.fromhex(hello["nonce"]), parse_id(hello["node"]), "app.test")
        await client.call("proxy.subscribe", {"host": "app.test", "proof": proof})
        return client

    async def leave(self, client: Any) -> None:
        """Close a connection, and wait until that is done."""
        client.close()
        await self.until(lambda: client._socket is None)

    async def silent_agent(self, server: Any, secret: HostSecret) -> list[Any]:
        """An agent that hears of visitors and does nothing; gives what it hears."""
        client = await self.subscriber(server, secret)
        heard: list[Any] = []
        client.notified = lambda method, params: heard.append(params)
        return heard


class LegacyTests(ServerCase):
    """webgw's wire, at both ends."""

    async def test_our_agent_at_our_server(self) -> None:
        legacy = 'legacy = ["tcp:0:interface=127.0.0.1"]'
        secret, path = self.secret()
        server = self.serve(legacy, f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        one = Published("app.test", secret.key, {0: Where("127.0.0.1", self.echo.port)}, secret=secret.value)
        port = server.door.agents_port(legacy=True)
        self.patch(server.door, "agents_port", lambda: port)
        agent = await self.publish(server, one, options="legacy = true")
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")))
        (seat,) = server.seats
        self.assertTrue(seat.legacy)
        await self.until(lambda: not agent.carrier.open)

    async def test_wrong_secret(self) -> None:
        _, path = self.secret()
        server = self.serve(
            'legacy = ["tcp:0:interface=127.0.0.1"]', f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n'
        )
        wrong = HostSecret.make()
        one = Published("app.test", wrong.key, {0: Where("127.0.0.1", self.echo.port)}, secret=wrong.value)
        port = server.door.agents_port(legacy=True)
        self.patch(server.door, "agents_port", lambda: port)
        self.patch(self, "until", self._shortly)
        with self.assertRaises(self.failureException):
            await self.publish(server, one, options="legacy = true")
        self.assertEqual(len(server.seats), 0)


class TlsPassthroughTests(ServerCase):
    async def test_the_visitor_speaks_tls_with_the_service(self) -> None:
        """The certificate that the visitor checks is the service's own."""
        key, certificate = self_signed("app.test")
        pem = self.folder / "service.pem"
        pem.write_bytes(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.addCleanup(listening.close)

        def serve() -> bytes:
            sock, _ = listening.accept()
            with context.wrap_socket(sock, server_side=True) as secure:
                got = secure.recv(100)
                secure.sendall(b"secret answer")
                return got

        server, secret = self.with_agent_host()
        one = Published(
            "app.test", secret.key, {server.door.port_of("https"): Where("127.0.0.1", listening.getsockname()[1])}
        )
        await self.publish(server, one)
        trust = ssl.create_default_context(cadata=certificate.decode())

        def ask() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", server.door.port_of("https")), 10) as sock,
                trust.wrap_socket(sock, server_hostname="app.test") as secure,
            ):
                secure.sendall(b"secret question")
                return secure.recv(100)

        serving = self.thread(serve)
        self.assertEqual(await self.thread(ask), b"secret answer")
        self.assertEqual(await serving, b"secret question")


class OnePortTests(ServerCase):
    """The server's own name on the visitors' TLS port: agents need no other port."""

    async def test_control_and_dial_backs_on_the_visitors_port(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        from tests.proxy import pair

        base = pair.BASE.replace('https = ["tcp:0:interface=127.0.0.1"]', f'https = ["tcp:{port}:interface=127.0.0.1"]')
        self.patch(pair, "BASE", base)
        server, secret = self.with_agent_host(f'name = "localhost"\ndata_public = "localhost:{port}"')
        pin = server.identity().pin
        from layer8.config.load import load_text
        from layer8.proxy.agent import Agent

        text = f'[agent]\nservers = ["wss://localhost:{port}?pin={pin}"]\n'
        config = load_text(text, {}, {}, role="agent").config.agent
        agent = Agent(
            self.reactor,
            config,
            [Published("app.test", secret.key, {ANY_PORT: Where("127.0.0.1", self.echo.port)}, pool=2)],
            lambda what, _, word: self.told.append((what, word)),
        )
        agent.startService()
        self.addCleanup(agent.stopService)
        await self.until(lambda: ("subscribed", "app.test") in self.told)
        await self.until(lambda: server.ahead.pools.idle == 2)
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")))
        self.assertEqual(server.ahead.pools.hits, 1)
        server.ahead.rest()
        got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
        self.assertTrue(got.endswith(get("app.test")), "called")


class OperatorTests(ServerCase):
    """What operators see and do."""

    async def test_lists_kill_and_ban(self) -> None:
        server, secret = self.with_agent_host()
        await self.publish(server, published("app.test", secret, self.echo.port))
        client = await connect(self.reactor, f"unix:{self.folder}/run/proxy.sock")
        self.addCleanup(client.close)
        sock = socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10)
        self.addCleanup(sock.close)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
        await self.until(lambda: server.traffic.totals.joined == 1)
        connections = (await client.call("proxy.connections"))["connections"]
        self.assertEqual([(row["host"], row["state"]) for row in connections], [("app.test", "joined")])
        self.assertEqual(connections[0]["address"], "127.0.0.1")
        stats = await client.call("proxy.stats")
        self.assertEqual((stats["open"], stats["agents"]), (1, 1))
        self.assertEqual((await client.call("proxy.kill", {"host": "app.test"}))["closed"], 1)
        await self.until(lambda: not server.traffic.visits)
        await client.call("proxy.ban", {"cidr": "127.7.0.0/16", "ttl_s": 60})
        self.assertIn(
            await self.thread(visit, server.door.port_of("http"), get("app.test"), source="127.7.0.1"),
            (b"", b"(reset)"),
        )
        self.assertEqual(server.traffic.totals.ended[Reason.BANNED], 1)
        status = await client.call("node.status")
        self.assertTrue(any(line.startswith("http on ") for line in status["listening"]))
        series = (await client.call("metrics.snapshot", {"prefix": "layer8_proxy_"}))["series"]
        self.assertEqual(series['layer8_proxy_connections_total{result="joined"}'], 1.0)

    async def test_register_rotate_and_restart(self) -> None:
        """What was registered is there after a restart, with both secrets."""
        server = self.serve()
        client = await connect(self.reactor, f"unix:{self.folder}/run/proxy.sock")
        first, second = HostSecret.make(), HostSecret.make()
        await client.call("proxy.register", {"host": "app.test", "secret_hash": first.key.hex()})
        await client.call("proxy.rotate", {"host": "app.test", "secret_hash": second.key.hex(), "grace_s": 60})
        before = await client.call("proxy.list")
        client.close()
        await self.stop_server()
        server = self.serve()
        client = await connect(self.reactor, f"unix:{self.folder}/run/proxy.sock")
        self.addCleanup(client.close)
        self.assertEqual(await client.call("proxy.list"), before)
        for secret in (first, second):
            self.told.clear()
            agent = await self.publish(server, published("app.test", secret, self.echo.port))
            got = await self.thread(visit, server.door.port_of("http"), get("app.test"))
            self.assertTrue(got.endswith(get("app.test")))
            await agent.stopService()

    async def test_reload_switches_hosts_under_a_joined_connection(self) -> None:
        server = self.serve("", f'[[proxy.host]]\nhost = "one.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n')
        port = server.door.port_of("http")
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.settimeout(10)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
            await self.until(lambda: server.traffic.totals.joined == 1)
            self.source.text = self.source.text.replace("one.test", "two.test")
            await self.frame.settings.reload()
            self.assertTrue((await self.thread(sock.recv, 100)).startswith(b"HTTP/1.1 200"))
        self.assertEqual(await self.thread(visit, port, get("one.test")), b"")
        self.assertNotEqual(await self.thread(visit, port, get("two.test")), b"")

    async def test_a_reload_that_cannot_be_leaves_everything(self) -> None:
        server = self.serve("", f'[[proxy.host]]\nhost = "one.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n')
        port = server.door.port_of("http")
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            wanted = f'"tcp:0:interface=127.0.0.1", "tcp:{busy.getsockname()[1]}:interface=127.0.0.1"]\nhttps'
            self.source.text = self.source.text.replace('"tcp:0:interface=127.0.0.1"]\nhttps', wanted, 1).replace(
                "one.test", "two.test"
            )
            with self.assertRaises(Layer8Error):
                await self.frame.settings.reload()
        self.assertNotEqual(await self.thread(visit, port, get("one.test")), b"")
        self.assertEqual(await self.thread(visit, port, get("two.test")), b"")

    async def test_access_log(self) -> None:
        log = self.folder / "access.log"
        from tests.proxy import pair

        self.patch(pair, "BASE", pair.BASE.replace('access_log = ""', f'access_log = "{log}"'))
        host = f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n'
        server = self.serve("", host + "[log]\nblur = 0\n")
        got = await self.thread(visit, server.door.port_of("http"), get("static.test"))
        await self.thread(visit, server.door.port_of("http"), get("unknown.test"))
        await self.until(lambda: not server.traffic.visits)
        server.traffic.tick()
        (line,) = log.read_text().splitlines()
        row = json.loads(line)
        self.assertEqual(
            {key: row[key] for key in ("host", "scheme", "reason", "mode", "bytes_in", "bytes_out", "pooled", "event")},
            {
                "host": "static.test",
                "scheme": "http",
                "reason": "done",
                "mode": "guard",
                "bytes_in": len(get("static.test")),
                "bytes_out": len(got),
                "pooled": False,
                "event": "proxy.closed",
            },
        )
        self.assertNotIn("address", row)
        self.assertNotIn("127.0.0.1", line)

    async def test_drain(self) -> None:
        server = self.serve("", f'[[proxy.host]]\nhost = "one.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n')
        port = server.door.port_of("http")
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.settimeout(10)
            sock.sendall(b"GET / HT")
            await self.until(lambda: server.traffic.totals.accepted == 1)
            server.door.drain(1, ())
            sock.sendall(b"TP/1.1\r\nHost: one.test\r\n\r\n")
            self.assertTrue((await self.thread(sock.recv, 100)).startswith(b"HTTP/1.1 200"))
        await server.traffic.idle()
        server.door.undrain()
        self.assertNotEqual(await self.thread(visit, port, get("one.test")), b"")
