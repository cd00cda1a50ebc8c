"""A server that is told to go by another configuration, to swap ports and to drain: whole or not at all."""

import json
import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from layer8.control.node import Node
from layer8.core.errors import Layer8Error, Unavailable
from layer8.crypto.x509 import Identity, certificate_pin, self_signed
from layer8.proxy.service import Server
from layer8.proxy.uplink import Published
from tests.proxy import pair
from tests.proxy.pair import Echo, PairCase, get, published, visit


class ReloadCase(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.close)

    def start(self, proxy: str = "", rest: str = "") -> Server:
        host = f'[[proxy.host]]\nhost = "static.test"\ntarget = "tcp:127.0.0.1:{self.echo.port}"\n'
        return self.serve(proxy, host + rest)

    def instead(self, **options: str) -> None:
        """Let the file of the next server say other things than the usual ones."""
        text = pair.BASE
        for key, value in options.items():
            lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines()]
            text = "\n".join(lines) + "\n"
        self.patch(pair, "BASE", text)

    async def reload(self, old: str, new: str) -> None:
        self.assertIn(old, self.source.text)
        self.source.text = self.source.text.replace(old, new)
        await self.frame.settings.reload()

    async def get(self, server: Server, host: str = "static.test") -> bytes:
        got: bytes = await self.thread(visit, server.door.port_of("http"), get(host))
        return got


class ReloadTests(ReloadCase):
    async def test_hosts_that_cannot_be_taken_leave_the_listeners(self) -> None:
        server = self.start()
        before = server.listening()

        async def fail(ledger: object, rows: object) -> None:
            raise Unavailable("not today")

        self.patch(type(server.ledger), "set_static", fail)
        with self.assertRaises(Layer8Error):
            await self.reload(
                'http = ["tcp:0:interface=127.0.0.1"]',
                'http = ["tcp:0:interface=127.0.0.2"]\npublic_http = 8000',
            )
        self.assertEqual(server.listening(), before)
        self.assertEqual(server.door.public()["http"], server.door.port_of("http"))
        self.assertNotEqual(await self.get(server), b"")

    async def test_a_certificate_that_cannot_be_read_leaves_everything(self) -> None:
        server = self.start()
        before = server.listening()
        cert, key = self.files("bad", b"nonsense", b"nonsense")
        with self.assertRaises(Layer8Error):
            await self.reload("drain_s = 0", f'drain_s = 0\ntls_cert_file = "{cert}"\ntls_key_file = "{key}"')
        self.assertEqual(server.listening(), before)
        self.assertEqual(server.config.tls_cert_file, "")

    async def test_limits_count_from_then_on(self) -> None:
        server = self.start("[proxy.limits]\nidle = 100\nhalf_closed = 50\nsecret_time = 2\nhosts = 10\npipes = 4")
        await self.reload(
            "idle = 100\nhalf_closed = 50\nsecret_time = 2", "idle = 70\nhalf_closed = 7\nsecret_time = 1"
        )
        await self.reload("hosts = 10\npipes = 4", "hosts = 11\npipes = 2\ndata_unauthenticated_per_source = 3")
        self.assertEqual((server.pump.idle, server.pump.half_closed, server.pump.pipes.most), (70, 7, 2))
        self.assertEqual((server.door.data.seconds, server.door.data.places.most_per_source), (1, 3))
        self.assertEqual(
            (server.registry.limits.hosts, server.guesses.fails), (11, server.config.limits.subscribe_fails)
        )

    async def test_what_needs_a_restart_says_so(self) -> None:
        self.start()
        self.source.text = self.source.text.replace(
            'agents = ["tcp:0:interface=127.0.0.1"]', 'agents = ["tcp:0:interface=127.0.0.2"]'
        )
        changes = await self.frame.settings.reload()
        self.assertIn("proxy.agents", changes.restart_needed)

    async def test_public_ports_of_listeners_that_stand(self) -> None:
        secret, path = self.secret()
        host = f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\nports = [4000]\n'
        server = self.start("", host)
        self.assertEqual(await self.get(server, "app.test"), b"")
        await self.reload("drain_s = 0", "drain_s = 0\npublic_http = 4000")
        agent = await self.publish(server, published("app.test", secret, self.echo.port))
        self.assertNotEqual(await self.get(server, "app.test"), b"")
        self.assertEqual(agent.uplinks[0].public["http"], 4000)

    def files(self, name: str, chain: bytes, key: bytes) -> tuple[Path, Path]:
        cert_path, key_path = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, text in ((cert_path, chain), (key_path, key)):
            path.write_bytes(text)
            path.chmod(0o600)
        return cert_path, key_path

    async def test_agents_see_the_new_certificate(self) -> None:
        pins, texts = [], []
        for name in ("one", "two"):
            key, chain = self_signed(("proxy.test",))
            pins.append(Identity.from_pem(key, chain).pin)
            cert_path, key_path = self.files(name, chain, key)
            texts.append(f'tls_cert_file = "{cert_path}"\ntls_key_file = "{key_path}"')
        self.instead(agents='["tls:0:interface=127.0.0.1"]')
        server = self.start(texts[0])
        self.assertEqual(await self.thread(shown_pin, server.door.agents_port()), pins[0])
        await self.reload(texts[0], texts[1])
        self.assertEqual(await self.thread(shown_pin, server.door.agents_port()), pins[1])


def shown_pin(port: int) -> str:
    """Give the pin of the certificate that a TLS port shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as sock, context.wrap_socket(sock) as secure:
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return certificate_pin(der)


class PrivacyTests(ReloadCase):
    async def test_addresses_and_times_go_by_the_new_policy(self) -> None:
        """Who stops showing addresses by a reload has stopped showing them everywhere."""
        log = self.folder / "access.log"
        self.instead(access_log=f'"{log}"')
        server = self.start("", '[log]\naddresses = "clear"\nblur = 0\n')
        await self.get(server)
        await self.until(lambda: not server.traffic.visits)
        await self.reload('addresses = "clear"\nblur = 0', 'addresses = "none"\nblur = 60')
        server.traffic.tick()
        await self.get(server)
        await self.until(lambda: not server.traffic.visits)
        server.traffic.tick()
        exact, vague = (json.loads(line) for line in log.read_text().splitlines())
        self.assertEqual(exact["address"], "127.0.0.1")
        self.assertNotIn("address", vague)
        self.assertTrue(vague["t"].endswith(":00Z"), vague["t"])
        self.assertEqual(exact["bytes_in"], len(get("static.test")))
        self.assertNotEqual(vague["bytes_in"], len(get("static.test")))


class DataPortTests(ReloadCase):
    def listens(self, port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except ConnectionRefusedError:
            return False
        return True

    async def test_a_swap_that_fails_is_tried_again(self) -> None:
        server = self.start()
        door = server.door
        real, before = door._open_data, door.addresses()
        failing = [True]

        def open_data(texts: tuple[str, ...]) -> None:
            real(texts)
            if failing:
                raise Unavailable("no descriptor left")

        self.patch(door, "_open_data", open_data)
        door._rotate()
        self.assertEqual(door.addresses(), before)
        self.assertTrue(self.listens(before[0].port))
        failing.clear()
        door._rotate()
        self.assertNotEqual(door.addresses(), before)

    async def test_swapped_ports_are_closed_with_the_rest(self) -> None:
        server = self.start()
        ports = [server.door.addresses()[0].port]
        for _ in range(3):
            server.door.rotate()
            ports.append(server.door.addresses()[0].port)
        self.assertEqual(len(set(ports)), 4)
        self.assertTrue(all(map(self.listens, ports)))
        await self.stop_server()
        self.assertFalse(any(map(self.listens, ports)))

    async def test_a_call_while_everything_is_being_closed(self) -> None:
        secret, path = self.secret()
        server = self.start("", f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        await self.publish(server, published("app.test", secret, self.echo.port))
        self.patch(server.door, "_data", [])
        self.assertEqual(await self.get(server, "app.test"), b"")
        self.assertEqual(server.pump.failures, 0)

    async def test_an_agent_that_cannot_be_told_is_sent_away(self) -> None:
        secret, path = self.secret()
        server = self.start("", f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        await self.publish(server, published("app.test", secret, self.echo.port))
        (seat,) = server.seats
        self.patch(type(seat.voice), "notify", lambda *_: False)
        self.told.clear()
        self.assertEqual(await self.get(server, "app.test"), b"")
        await self.until(lambda: any(what == "lost" for what, _ in self.told))
        self.assertEqual(server.traffic.pending, {})


class CircleTests(ReloadCase):
    async def test_a_target_that_is_the_servers_own_port(self) -> None:
        """Each visitor would be carried to the server, which would call the agent, and so on."""
        secret, path = self.secret()
        server = self.start("", f'[[proxy.host]]\nhost = "app.test"\nsecret_file = "{path}"\n')
        port = server.door.port_of("http")
        one: Published = published("app.test", secret, port)
        with self.assertRaises(self.failureException):
            await self.publish_soon(server, one)
        self.assertIn(("refused", "app.test: its target is the server itself"), self.told)
        self.assertEqual(len(server.seats), 0)

    async def publish_soon(self, server: Server, one: Published) -> None:
        until = self.until

        async def shortly(true: Any, seconds: float = 1.0) -> None:
            await until(true, 1.0)

        self.patch(self, "until", shortly)
        await self.publish(server, one)


class DrainTests(ReloadCase):
    async def test_a_stop_ends_a_longer_drain(self) -> None:
        """An operator's drain of five minutes does not keep a SIGTERM waiting that long."""
        server = self.start()
        with socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10) as sock:
            sock.sendall(b"GET / HT")
            await self.until(lambda: bool(server.traffic.visits))
            self.frame.drain(300)
            self.frame.daemon.drain_seconds = 0.2
            ended: list[object] = []
            stopping: Deferred[None] = self.frame.daemon.stopService()
            stopping.addCallback(ended.append)
            await self.until(lambda: bool(ended), 5)
        self.assertEqual(server.traffic.visits, set())

    async def test_a_drain_after_a_resume_is_one(self) -> None:
        server = self.start()
        with socket.create_connection(("127.0.0.1", server.door.port_of("http")), 10) as sock:
            sock.sendall(b"GET / HT")
            await self.until(lambda: bool(server.traffic.visits))
            self.frame.drain(300)
            self.assertFalse(self.frame.health.ready)
            self.frame.resume()
            self.assertTrue(self.frame.health.ready)
            self.frame.drain(300)
            self.assertFalse(self.frame.health.ready)
            self.frame.daemon.hurry()
        assert isinstance(self.frame.node, Node)


class IdentityTests(ReloadCase):
    async def test_a_reload_that_fails_keeps_announcing_the_key_that_is_shown(self) -> None:
        """The files have changed on disk, the reload was refused: what agents are told has to fit what they meet."""
        paths = [self.folder / name for name in ("cert.pem", "key.pem")]

        def write() -> str:
            key, chain = self_signed(("proxy.test",))
            for path, text in zip(paths, (chain, key), strict=True):
                path.write_bytes(text)
                path.chmod(0o600)
            return Identity.from_pem(key, chain).pin

        first = write()
        server = self.start(f'data_tls = "always"\ntls_cert_file = "{paths[0]}"\ntls_key_file = "{paths[1]}"')
        self.assertEqual(server.door.addresses()[0].pin, first)
        second = write()

        async def fail(ledger: object, rows: object) -> None:
            raise Unavailable("not today")

        failing = self.patch(type(server.ledger), "set_static", fail)
        with self.assertRaises(Layer8Error):
            await self.frame.settings.reload()
        self.assertEqual(server.door.addresses()[0].pin, first)
        failing.restore()
        await self.frame.settings.reload()
        self.assertEqual(server.door.addresses()[0].pin, second)
