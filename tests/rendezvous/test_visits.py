"""curl through a SOCKS port to a web server behind a hidden service, on loopback; and what a program is told if not."""

from __future__ import annotations

import hashlib
from os import urandom
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.web.server import Site
from twisted.web.static import File

from layer8.config.network import SocksConfig
from layer8.core.errors import ConfigError
from layer8.relay.client import Reason
from layer8.rendezvous import target
from layer8.rendezvous.target import Ports
from layer8.rendezvous.visits import BAD_ADDRESS, INTRODUCTION_FAILED, Call, Found, NotFound, Visits
from layer8.socks.server import SocksServer
from layer8.testing.network import Echo
from tests.interop.daemons import found
from tests.relay.nodes import Heard
from tests.rendezvous.net import Told
from tests.rendezvous.test_nodes import HiddenNodesCase

HERE = "tcp:0:interface=127.0.0.1"
NAME = "service.l8.alt"


class Asking(Heard):
    """A program that can be refused with a code."""

    code: int | None = None

    def refused(self, code: int) -> None:
        self.code = code


class VisitsCase(HiddenNodesCase):
    async def begin(self, targets: dict[int, Any] | None = None) -> None:
        self.ports = Ports(self.reactor, self.tasks, targets or {7: Echo})
        await self.start()
        self.service.asked = self.ports.asked
        self.found: list[str] = []
        self.kept: Told | None = None
        self.visits = Visits(self.ways(self.here), self.tasks, self.find)
        self.addCleanup(self.visits.close)
        self.addCleanup(self.ports.close)

    async def find(self, name: str, fresh: bool) -> Found:
        self.found.append("fresh" if fresh else name)
        if name != NAME:
            raise NotFound("a wrong address", BAD_ADDRESS)
        return Found(self.key.node_id, self.told if fresh or self.kept is None else self.kept)

    def visit(self, name: str = NAME, port: int = 7, key: str = "") -> tuple[Asking, Call]:
        asking = Asking()
        call = self.visits.open(name, port, asking, key)
        assert isinstance(call, Call)
        return asking, call

    def listen(self, factory: Any) -> str:
        port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"tcp:127.0.0.1:{port.getHost().port}"


class StreamTests(VisitsCase):
    async def test_what_is_said_early(self) -> None:
        await self.begin()
        asking, call = self.visit()
        call.write(b"hello")
        call.end()
        await self.until(lambda: "ended" in asking.words)
        self.assertEqual(asking.all, b"hello")

    async def test_one_circuit_for_each_user(self) -> None:
        await self.begin()
        first = [self.visit() for _ in range(3)]
        await self.until(lambda: all("opened" in asking.words for asking, _ in first))
        again, other = self.visit()[0], self.visit(key="another")[0]
        await self.until(lambda: "opened" in again.words and "opened" in other.words)
        self.assertEqual(len(self.service.sessions), 2)
        self.assertEqual(set(self.found), {NAME})

    async def test_a_new_circuit_when_one_is_lost(self) -> None:
        await self.begin()
        asking, _ = self.visit()
        await self.until(lambda: "opened" in asking.words)
        for session in list(self.service.sessions.values()):
            session.origin.close()
        await self.until(lambda: "closed" in asking.words)
        asking, call = self.visit()
        call.write(b"again")
        await self.until(lambda: asking.all == b"again")

    async def test_what_was_kept_is_old(self) -> None:
        """The points are others by now: a fresh descriptor is asked for, once."""
        await self.begin()
        self.kept = Told(tuple(evolve(point, auth_key=bytes(32)) for point in self.told.points))
        asking, call = self.visit()
        call.write(b"hello")
        await self.until(lambda: asking.all == b"hello")
        self.assertEqual(self.found, [NAME, "fresh"])

    async def test_refusals(self) -> None:
        await self.begin()
        self.assertIsNotNone(self.told.points)
        wrong, _ = self.visit("wrong.l8.alt")
        await self.until(lambda: wrong.code == BAD_ADDRESS)
        self.told = Told(())
        none, _ = self.visit(key="nobody")
        await self.until(lambda: none.code == INTRODUCTION_FAILED)

    async def test_a_program_that_does_not_wait(self) -> None:
        await self.begin()
        asking, call = self.visit()
        call.close()
        await self.until(lambda: len(self.service.sessions) == 1)
        self.assertEqual(asking.words, [])

    async def test_more_than_is_kept(self) -> None:
        await self.begin()
        asking, call = self.visit()
        text = urandom(2**20)
        call.write(text)
        self.assertEqual(asking.words, ["hold"])
        call.end()
        await self.until(lambda: "ended" in asking.words)
        self.assertEqual(asking.all, text)


class TargetTests(VisitsCase):
    async def reason(self, port: int) -> Reason:
        asking, _ = self.visit(port=port)
        await self.until(lambda: asking.reason is not None)
        assert asking.reason is not None
        return asking.reason

    async def test_ports_that_lead_nowhere(self) -> None:
        await self.begin({80: "tcp:127.0.0.1:1"})
        self.assertEqual(await self.reason(80), Reason.REFUSED)
        self.assertEqual(await self.reason(81), Reason.NO_PORT)

    async def test_wrong_targets(self) -> None:
        for targets in ({0: "tcp:localhost:80"}, {80: "nonsense"}):
            with self.assertRaises(ConfigError):
                Ports(self.reactor, self.tasks, targets)

    async def test_a_program_that_hangs_up(self) -> None:
        class Rude(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.abortConnection()  # type: ignore[attr-defined]

        await self.begin({80: self.listen(Factory.forProtocol(Rude))})
        self.assertEqual(await self.reason(80), Reason.RESET)

    async def test_a_client_that_leaves_before(self) -> None:
        """Nobody goes on dialling a program for a stream that is gone."""
        gone: list[str] = []
        dials: list[Deferred[Any]] = []

        class Nowhere:
            def connect(self, factory: Any) -> Deferred[Any]:
                waiting: Deferred[Any] = Deferred(lambda cancelled: gone.append("cancelled"))
                dials.append(waiting)
                return waiting

        self.patch(target, "clientFromString", lambda reactor, text: Nowhere())
        await self.begin({80: "tcp:127.0.0.1:1"})
        _, call = self.visit(port=80)
        await self.until(lambda: dials)
        call.close(Reason.RESET)
        await self.until(lambda: gone)

    async def test_a_client_that_leaves(self) -> None:
        gone: Deferred[None] = Deferred()

        class Quiet(Protocol):
            def connectionLost(self, reason: Failure = connectionDone) -> None:
                gone.callback(None)

        await self.begin({80: self.listen(Factory.forProtocol(Quiet))})
        asking, call = self.visit(port=80)
        await self.until(lambda: "opened" in asking.words)
        call.close(Reason.RESET)
        await gone


class CurlTests(VisitsCase):
    skip = None if found("curl") else "curl is not installed (package curl)"

    async def test_pages(self) -> None:
        """G37, G40: a web server that nobody wrote for us, by its name in the URL, through a SOCKS port."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "small").write_text("hello")
        (folder / "large").write_bytes(urandom(4 * 2**20))
        await self.begin({80: self.listen(Site(File(str(folder))))})
        server = SocksServer(self.reactor, SocksConfig(listen=(HERE,)), self.here.client, hidden=self.visits)
        server.startService()
        self.addCleanup(self.leave, server)
        self.assertEqual(await self.curl(server, f"http://{NAME}/small"), b"hello")
        large = await self.curl(server, f"http://{NAME}/large")
        self.assertEqual(hashlib.sha256(large).digest(), hashlib.sha256((folder / "large").read_bytes()).digest())
        self.assertEqual(len(self.service.sessions), 1)

    async def leave(self, server: SocksServer) -> None:
        await server.stopService()
        await self.until(lambda: not len(server.clients))

    async def curl(self, server: SocksServer, url: str) -> bytes:
        proxy = "127.0.0.1:" + server.listening[0].split(":")[1]
        words = ("-sS", "--max-time", "30", "--noproxy", "", "--socks5-hostname", proxy, url)
        out, err, code = await getProcessOutputAndValue(found("curl") or "curl", words, reactor=self.reactor)
        self.assertEqual((err, code), (b"", 0))
        return bytes(out)
