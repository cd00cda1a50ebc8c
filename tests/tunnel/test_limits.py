"""Limits that no other test reaches: each is let stand once, and gone beyond once."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from layer8.config.tunnel import TunnelGatewayConfig
from layer8.control.errors import ControlError
from layer8.core.errors import ConfigError, StorageError
from layer8.crypto.keyfile import write_private
from layer8.crypto.keys import NodeKey
from layer8.net.http_client import Pool
from layer8.net.site import Site
from layer8.tunnel import client as client_module
from layer8.tunnel import (
    gateway_sockets,
    gateway_sqlite,
    integrity,
    jws,
    keeping,
    manifest,
    markup,
    mirror,
    piping,
    resource,
    verify,
    wsgi,
)
from layer8.tunnel.admission import IN_FLIGHT, Admission, Pass, Wait
from layer8.tunnel.bhttp import Malformed, Reader, varint
from layer8.tunnel.checks import Got
from layer8.tunnel.client import L8Client, L8Error
from layer8.tunnel.gateway import SIGNED_MOST, Gateway
from layer8.tunnel.gateway_service import BACKEND
from layer8.tunnel.gateway_sockets import Wire
from layer8.tunnel.gateway_sqlite import SqliteKeys, SqliteTables
from layer8.tunnel.integrity import FILES_MOST, GATEWAYS_MOST, MANIFEST_MOST, RELAYS_MOST, BadManifest, Manifest
from layer8.tunnel.keeping import COMPARED, FETCH_TIME, FIRST_TIME, RETRY_LAST, WAITERS, Keeping, Kept, Source
from layer8.tunnel.keys import pin_text
from layer8.tunnel.limits import DIAL_TIME, MAX_AUTHORITY, MAX_METHOD, MAX_SCHEME
from layer8.tunnel.mirror import PATH_MOST, SETTINGS_MOST, App
from layer8.tunnel.operate import PAGE
from layer8.tunnel.passage import BINARY, TEXT
from layer8.tunnel.relay_keys import KeyCopy
from layer8.tunnel.replay_store import TableMarks
from layer8.tunnel.service import PATIENCE
from layer8.tunnel.settings import GATEWAY_PATH, Settings
from layer8.tunnel.wire import CHUNKED
from layer8.tunnel.wsgi import L8Middleware
from tests.control.callers import caller
from tests.proxy.postgres import no_postgres, shared
from tests.tunnel.test_client import ClientCase
from tests.tunnel.test_gateways import Rig
from tests.tunnel.test_integrity import ME, ONE, payload
from tests.tunnel.test_manifest import APP
from tests.tunnel.test_middleware import Base
from tests.tunnel.test_passage import frame
from tests.tunnel.test_relay import RelayCase
from tests.tunnel.test_relay_sockets import PipeCase
from tests.tunnel.test_stores import MOST, NOW, mark


class MessageTests(SynchronousTestCase):
    def test_the_request_line(self) -> None:
        for at, most in enumerate((MAX_METHOD, MAX_SCHEME, MAX_AUTHORITY)):
            for size in (most, most + 1):
                parts = [b"GET", b"https", b"a", b"/"]
                parts[at] = b"a" * size
                line = b"\0" + b"".join(varint(len(part)) + part for part in parts) + b"\0\0\0"
                reader = Reader(request=True)
                if size == most:
                    self.assertEqual(len(reader.feed(line)), 1)
                else:
                    self.assertEqual(self.assertRaises(Malformed, reader.feed, line).status, 400)


class DoorTests(SynchronousTestCase):
    def test_this_machine_is_let_in_so_often_at_once(self) -> None:
        """Whoever asks from here is no network, yet a gateway has no more places for that."""
        door = Admission(b"secret")
        inside = [door.enter("shop", "", 0.0) for _ in range(IN_FLIGHT)]
        self.assertEqual(door.enter("shop", "", 0.0), Wait(503, 1.0))
        self.assertEqual((door.in_flight("shop"), len(door)), (IN_FLIGHT, 0))
        assert isinstance(inside[0], Pass)
        door.leave(inside[0])
        self.assertIsInstance(door.enter("shop", "", 0.0), Pass)

    def test_gateways_that_nobody_asks_are_forgotten(self) -> None:
        door = Admission(b"secret")
        one, other = door.enter("shop", "192.0.2.1", 0.0), door.enter("shop", "192.0.2.2", 0.0)
        assert isinstance(one, Pass)
        assert isinstance(other, Pass)
        door.leave(one)
        self.assertEqual(dict(door._gateways), {"shop": 1})
        door.leave(other)
        self.assertEqual(dict(door._gateways), {})


class AppTests(SynchronousTestCase):
    def signed(self, **change: Any) -> bytes:
        return jws.sign(ME, "l8-app+jws", {**payload(ONE.sign(ME)), **change})

    def test_manifests(self) -> None:
        good = payload(ONE.sign(ME))
        file, gateway = good["files"]["/index.html"], good["gateways"]["shop"]
        for size, fits in ((0, True), (1, False)):
            for data in (
                self.signed(files={f"/{number}": file for number in range(FILES_MOST + size)}),
                self.signed(gateways={f"g{number}": gateway for number in range(GATEWAYS_MOST + size)}),
                self.signed(
                    gateways={
                        "shop": {**gateway, "relays": [f"https://r{number}" for number in range(RELAYS_MOST + size)]}
                    }
                ),
            ):
                if fits:
                    Manifest.read(data, [ME.node_id])
                else:
                    self.assertRaises(BadManifest, Manifest.read, data, [ME.node_id])
        for read in (lambda data: Manifest.read(data, [ME.node_id]), Manifest.first):
            read(ONE.sign(ME).ljust(MANIFEST_MOST))
            self.assertRaises(BadManifest, read, ONE.sign(ME).ljust(MANIFEST_MOST + 1))

    def test_a_folder(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "index.html").write_text("<!doctype html>")
        manifest.build(folder, APP, ME)
        (folder / "large.bin").touch()
        os.truncate(folder / "large.bin", manifest.FILE_MOST + 1)
        self.assertRaisesRegex(ConfigError, "larger than", manifest.build, folder, APP, ME)
        os.truncate(folder / "large.bin", 100)
        self.patch(manifest, "SITE_MOST", 114)
        self.assertRaisesRegex(ConfigError, "holds more than", manifest.build, folder, APP, ME)
        self.patch(manifest, "SITE_MOST", 115)
        manifest.build(folder, APP, ME)

    def test_modules(self) -> None:
        """A chain of modules that never ends is followed so far; what was not looked at is told of."""
        asked: list[str] = []

        def read(path: str) -> bytes:
            asked.append(path)
            return b'import "./m%d.js"' % (int(path[2:-3]) + 1)

        page = '<script type="module" src="m0.js" integrity="x"></script>'
        found = markup.missing("/index.html", page, read, lambda data: "x")
        self.assertEqual(len(found), markup.IMPORTS_MOST - 1)
        self.assertLess(len(asked), 3 * markup.IMPORTS_MOST)

    def test_what_is_shown(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        app = App(folder)
        for name, size, status in (("a", mirror.FILE_MOST, 200), ("b", mirror.FILE_MOST + 1, 404)):
            (folder / name).touch()
            os.truncate(folder / name, size)
            self.assertEqual(app.find(f"/{name}").status, status)
        (folder / "c").write_text("c")
        for path, status in (("/%63".ljust(PATH_MOST + 1, "x"), 404), ("/c", 200)):
            self.assertEqual(app.find(path).status, status)
        deep = folder.joinpath(*["d" * 200] * 5)
        deep.mkdir(parents=True)
        for length, status in ((PATH_MOST, 200), (PATH_MOST + 1, 404)):
            name = "e" * (length - len("/" + "/".join(["d" * 200] * 5) + "/"))
            (deep / name).write_text("e")
            self.assertEqual(app.find("/" + "/".join((*["d" * 200] * 5, name))).status, status)

    def test_what_a_folder_says_of_itself(self) -> None:
        folder = Path(self.mktemp())
        (folder / ".well-known/l8").mkdir(parents=True)
        (folder / "index.html").touch()
        signed = self.signed(csp="default-src 'none'")
        headers = b'{"permissions-policy": "camera=()"}'
        for more, found in ((0, True), (1, False)):
            (folder / mirror.MANIFEST).write_bytes(signed.ljust(SETTINGS_MOST + more))
            (folder / mirror.HEADERS).write_bytes(headers.ljust(SETTINGS_MOST + more))
            fields = dict(App(folder).fields())
            policy = fields["content-security-policy"]
            self.assertEqual((policy == "default-src 'none'", "permissions-policy" in fields), (found, found))
            self.assertTrue(policy == integrity.csp(()) or found)
        for count, named in ((mirror.RELAYS_MOST, mirror.RELAYS_MOST), (mirror.RELAYS_MOST + 1, 0)):
            relays = [f"https://r{number}.example" for number in range(count)]
            gateway = {**payload(ONE.sign(ME))["gateways"]["shop"], "relays": relays}
            (folder / mirror.MANIFEST).write_bytes(self.signed(gateways={"shop": gateway}))
            self.assertEqual(len(App(folder).relays("shop")), named)


class KeepingTests(SynchronousTestCase):
    """A relay's copy of the keys, on a clock by hand."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.keeping = Keeping(self.clock, lambda: 0.0, Logger(), lambda kept: None)
        self.dials: list[Deferred[Any]] = []
        pool: Any = SimpleNamespace(take=self.take, ready=lambda: None)
        others = tuple(f"https://r{number}.example" for number in range(COMPARED + 4))
        self.kept = Kept("shop", Source("/", "shop.example", others=others), KeyCopy("shop"), pool)
        self.keeping.kept["shop"] = self.kept

    def take(self) -> Deferred[Any]:
        self.dials.append(Deferred())
        return self.dials[-1]

    def test_pages_that_wait(self) -> None:
        answers: list[int] = []
        page: Any = SimpleNamespace(method="GET", query="", answer=lambda status, *_: answers.append(status))
        for _ in range(WAITERS):
            self.keeping.show(page, "shop")
        self.assertEqual(answers, [])
        self.keeping.show(page, "shop")
        self.assertEqual(answers, [503])
        self.clock.advance(FIRST_TIME - 0.1)
        self.assertEqual(len(answers), 1)
        self.clock.advance(0.1)
        self.assertEqual(answers, [503] * (WAITERS + 1))

    def test_a_gateway_that_never_answers(self) -> None:
        self.keeping.start()
        self.clock.pump([FETCH_TIME - 0.1])
        self.assertEqual((len(self.dials), self.kept.tried), (1, 0))
        self.clock.advance(0.1)
        self.assertEqual(self.kept.tried, 1)
        waits: list[float] = []
        for _ in range(9):
            assert self.kept.timer is not None
            waits.append(self.kept.timer.getTime() - self.clock.seconds())
            self.clock.advance(waits[-1])
            self.clock.advance(FETCH_TIME)
        for found, wanted in zip(waits, (1, 2, 4, 8, 16, 32, RETRY_LAST, RETRY_LAST, RETRY_LAST), strict=True):
            self.assertAlmostEqual(found, wanted)
        self.successResultOf(self.keeping.stop())

    def test_so_many_relays_are_compared_with(self) -> None:
        asked: list[str] = []

        async def theirs(relay: str, gateway: str) -> None:
            asked.append(relay)

        self.kept.copy.document = b"{}"
        self.patch(self.keeping, "_theirs", theirs)
        self.successResultOf(Deferred.fromCoroutine(self.keeping.compare(self.kept)))
        self.assertEqual(asked, list(self.kept.source.others[:COMPARED]))

    def test_once_an_hour(self) -> None:
        asked: list[str] = []

        async def theirs(relay: str, gateway: str) -> None:
            asked.append(relay)

        self.kept.copy.document = b"{}"
        self.patch(self.keeping, "_theirs", theirs)
        self.keeping.start()
        self.clock.advance(keeping.COMPARE_EVERY / 60)
        self.assertEqual(len(asked), COMPARED)
        self.clock.advance(keeping.COMPARE_EVERY - 1)
        self.assertEqual(len(asked), COMPARED)
        self.clock.advance(1)
        self.assertEqual(len(asked), 2 * COMPARED)
        self.keeping.stop().addErrback(lambda _: None)


class GatewayTests(SynchronousTestCase):
    def test_a_file_of_signed_sets(self) -> None:
        path = Path(self.mktemp())
        write_private(path, b" " * (SIGNED_MOST + 1))
        with self.assertRaisesRegex(ConfigError, str(SIGNED_MOST)):
            Gateway.open(Settings(gateway="shop", authorities="shop.example", signed_file=path, state=self.mktemp()))

    def test_a_worker_that_holds_the_file(self) -> None:
        """Nobody waits for it for ever."""
        self.patch(gateway_sqlite, "BUSY", 0.1)
        folder = Path(self.mktemp())
        keys = SqliteKeys(folder, "shop")
        marks = TableMarks(SqliteTables(keys), MOST)
        self.addCleanup(keys.close)
        self.addCleanup(marks.close)
        marks.add(mark(), NOW, NOW)
        other = sqlite3.connect(folder / gateway_sqlite.MARKS, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.assertRaises(StorageError, marks.add, mark(), NOW, NOW)
        other.execute("ROLLBACK")
        marks.add(mark(), NOW, NOW)

    def test_a_socket_that_says_no_end(self) -> None:
        clock, transport = Clock(), StringTransport()
        gone: list[bool] = []
        transport.abortConnection = lambda: gone.append(True)  # type: ignore[method-assign]
        speaker: Any = SimpleNamespace(heard=None, ended=lambda *_: None, crowded=lambda *_: None)
        wire = Wire(speaker, clock, client=False, most=100)
        wire.makeConnection(transport)  # type: ignore[no-untyped-call]
        wire.close(1000)
        clock.advance(gateway_sockets.LINGER - 0.1)
        self.assertEqual(gone, [])
        clock.advance(0.1)
        self.assertEqual(gone, [True])
        wire.connectionLost(Failure(ConnectionDone()))


class PoolTests(SynchronousTestCase):
    def test_connections_of_a_sidecar_to_its_backend(self) -> None:
        dials: list[Deferred[Any]] = []

        def dial(factory: object) -> Deferred[Any]:
            dials.append(Deferred())
            return dials[-1]

        clock = Clock()
        pool = Pool(clock, dial, most=BACKEND)
        for _ in range(BACKEND + 1):
            pool.take().addErrback(lambda _: None)
        self.assertEqual((len(dials), BACKEND), (BACKEND, IN_FLIGHT))
        pool.abort()


class RowTests(RelayCase):
    async def test_a_page_of_gateways(self) -> None:
        relay = self.start(
            others=tuple(TunnelGatewayConfig(id=f"g{number:04}", endpoint="tcp:127.0.0.1:9") for number in range(PAGE))
        )

        async def call(**params: object) -> Any:
            return await relay._ground.table.call(caller("read"), "ohttp.gateways", params)

        found = await call()
        self.assertEqual((len(found["gateways"]), found["next"]), (PAGE, f"g{PAGE - 1:04}"))
        self.assertEqual([row["gateway"] for row in (await call(cursor=found["next"]))["gateways"]], ["shop"])
        await self.assertFailure(Deferred.fromCoroutine(call(limit=PAGE + 1)), ControlError)
        await self.assertFailure(Deferred.fromCoroutine(call(limit=0)), ControlError)

    async def test_a_dial_by_way_of_a_proxy(self) -> None:
        """It has more time, since a circuit may have to be built."""
        self.start(
            others=(
                TunnelGatewayConfig(id="far", endpoint="socks5:x.l8.alt:80:proxy=127.0.0.1:9", host="x"),
                TunnelGatewayConfig(id="near", endpoint="tcp:127.0.0.1:9"),
            )
        )
        assert self.relay is not None
        routes = self.relay.relaying.routes
        self.assertEqual((routes["far"].patience, routes["near"].patience), (PATIENCE, DIAL_TIME))


class PostgresTests(SynchronousTestCase):
    skip = no_postgres()

    def test_statements_and_connections(self) -> None:
        from layer8.tunnel import gateway_pg

        pool = gateway_pg.Pool(shared().database())
        self.addCleanup(pool.close)
        with contextlib.ExitStack() as stack:
            inside = [stack.enter_context(pool.use()) for _ in range(gateway_pg.IDLE + 2)]
            said = inside[0].execute("SHOW statement_timeout").fetchone()
            self.assertEqual(said, (f"{gateway_pg.STATEMENT_TIME}s",))
        self.assertEqual((len(pool._idle), sum(one.closed for one in inside)), (gateway_pg.IDLE, 2))
        with self.assertRaises(StorageError) as caught, pool.use() as connection:
            connection.execute("SELECT * FROM " + ", ".join(["nowhere"] * 100))
        self.assertLessEqual(len(str(caught.exception)), len("PostgreSQL: ") + gateway_pg.REASON)

    def test_a_database_that_never_shakes_hands(self) -> None:
        from layer8.tunnel import gateway_pg

        self.patch(gateway_pg, "CONNECT_TIME", 2)  # seconds, the least that the library knows
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = monotonic()
            self.assertRaises(StorageError, gateway_pg.Pool, f"host=127.0.0.1 port={silent.getsockname()[1]}")
            self.assertLess(monotonic() - began, 5)


class ResourceTests(TestCase):
    """A Twisted resource whose answer is there before the request is whole."""

    timeout = 20

    async def refused(self, more: bytes) -> float:
        """Send a head that nobody can open, then more and no end; give the time until the connection is cut."""
        from twisted.internet import reactor

        some: Any = reactor
        rig = Rig(some, "resource")
        self.addCleanup(lambda: Deferred.fromCoroutine(rig.close()))
        heard: list[bytes] = []
        gone: Deferred[None] = Deferred()

        class Page(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)

            def connectionLost(self, reason: object = None) -> None:
                gone.callback(None)

        end = TCP4ClientEndpoint(some, "127.0.0.1", rig.port.getHost().port)
        page: Any = await end.connect(Factory.forProtocol(Page))
        began = some.seconds()
        page.transport.write(
            b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: 9000000\r\n\r\n%b"
            % (GATEWAY_PATH.encode(), CHUNKED.request.encode(), bytes(100))
        )
        await deferLater(some, 0.1)
        page.transport.write(more)
        await gone
        self.assertTrue(b"".join(heard).startswith(b"HTTP/1.1 400 "))
        return float(some.seconds() - began)

    async def test_so_long(self) -> None:
        self.patch(resource, "LINGER", 0.3)
        self.assertGreaterEqual(await self.refused(b""), 0.3)

    async def test_so_many_bytes(self) -> None:
        self.patch(resource, "LINGER", 10)
        self.patch(resource, "LINGER_BYTES", 1000)
        self.assertLess(await self.refused(bytes(2000)), 5)


class WsgiTests(Base):
    """The same under WSGI, where nobody else can read meanwhile."""

    def test_so_long(self) -> None:
        self.patch(wsgi, "LINGER", 0.3)
        _, data = self.seal("POST", "/", bytes(40_000), date=1.0)

        class Slow:
            said = False

            def read(self, size: int) -> bytes:
                if not self.said:
                    self.said = True
                    return data[:size]
                sleep(0.05)
                return b"a"

        environ: Any = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": GATEWAY_PATH,
            "CONTENT_TYPE": CHUNKED.request,
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input": Slow(),
        }
        began = monotonic()
        b"".join(L8Middleware(None, self.gateway)(environ, lambda status, headers: None))  # type: ignore[arg-type]
        self.assertGreaterEqual(monotonic() - began, 0.3)
        self.assertLess(monotonic() - began, 3)


class LookingTests(TestCase):
    """What `layer8 verify` asks of a site."""

    timeout = 20

    async def test_so_many_at_once_and_for_so_long(self) -> None:
        from twisted.internet import reactor

        self.patch(verify, "PATIENCE", 0.3)
        some: Any = reactor
        made: list[Any] = []

        class Silent(Protocol):
            def connectionMade(self) -> None:
                made.append(self.transport)

        port = some.listenTCP(0, Factory.forProtocol(Silent), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        site = Site.of(f"http://127.0.0.1:{port.getHost().port}")
        pool = site.pool(some)
        self.addCleanup(pool.abort)
        place = verify._Place("here", "", site, pool)
        asked = [Deferred.fromCoroutine(place.get(some, "/", 100)) for _ in range(verify.AT_ONCE + 3)]
        await deferLater(some, 0.2)
        self.assertEqual(len(made), verify.AT_ONCE)
        for got in await gatherResults(asked):
            self.assertEqual((got.status, got.why), (0, "no answer within 0.3 s"))

    async def test_so_far_back(self) -> None:
        asked: list[str] = []

        async def get(clock: object, path: str, most: int) -> Got:
            asked.append(path)
            return Got(404)

        place: Any = SimpleNamespace(get=get)
        await verify._old(None, place, evolve(ONE, version=verify.HISTORY + 50, prev=bytes(32)), None)
        self.assertEqual(len(asked), verify.HISTORY)
        self.assertEqual((asked[0][-8:], asked[-1][-7:]), ("305.json", "50.json"))


class PipeTests(PipeCase):
    async def test_a_side_that_does_not_take_the_end(self) -> None:
        """It has so long to take what was sent, then it is cut."""
        self.patch(piping, "CLOSE_TIME", 0.3)
        relay = self.start()
        client = await self.open()
        client.transport.pauseProducing()  # type: ignore[union-attr]
        end = self.gateway.ends[0]
        end.transport.write(frame(BINARY, bytes(65_535), mask=b"") * 400)  # type: ignore[union-attr]
        (pipe,) = relay.piping._live
        assert pipe._legs is not None
        leg = pipe._legs[0]
        await self.settle(lambda: leg.full_since > 0)
        began = self.reactor.seconds()
        client.transport.write(frame(TEXT, b"text"))  # type: ignore[union-attr]
        await self.settle(lambda: leg.gone)
        self.assertGreaterEqual(self.reactor.seconds() - began, 0.3)
        self.assertEqual(len(relay.piping), 0)


class ClientTests(ClientCase):
    async def test_a_queue_that_does_not_move(self) -> None:
        self.patch(client_module, "QUEUE_TIME", 0.3)
        client = await self.client()
        await client.get("/echo")
        (relay,) = client._relays
        relay.pool.most = 1
        held = await client.get("/events")
        await self.fails("unreachable", client.get("/echo"))
        held.close()
        self.assertEqual((await client.get("/echo")).status, 200)


class SilentRelayTests(TestCase):
    timeout = 20

    async def test_keys_that_never_come(self) -> None:
        """By way of a proxy there is more time for them."""
        from twisted.internet import reactor

        self.patch(client_module, "KEYS_TIME", 0.2)
        self.patch(client_module, "VIA_TIME", 0.5)
        made: list[Any] = []
        some: Any = reactor

        class Silent(Protocol):
            def connectionMade(self) -> None:
                made.append(self.transport)

        port = some.listenTCP(0, Factory.forProtocol(Silent), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: [one.abortConnection() for one in made])
        relay = f"http://127.0.0.1:{port.getHost().port}"
        for via, least in (("", 0.2), (f"socks5:127.0.0.1:{port.getHost().port}", 0.7)):
            client = L8Client(reactor, relay=relay, gateway="shop", pin=pin_text(NodeKey.make().node_id), via=via)
            began = some.seconds()
            error: Any = await self.assertFailure(Deferred.fromCoroutine(client.get("/echo")), L8Error)
            self.assertIn(error.code, ("no-keys", "unreachable", "slow"))
            self.assertGreaterEqual(some.seconds() - began, least - 0.05)
            self.assertLess(some.seconds() - began, 5)
            await client.close()
