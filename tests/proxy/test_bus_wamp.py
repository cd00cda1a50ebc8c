"""Three nodes on a bus of PostgreSQL and a router: on a switch in this process, and on a real Crossbar.io."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from layer8.core.errors import ConfigError, StorageError, TimedOut, Unavailable
from layer8.crypto.hpke import Sealer
from layer8.crypto.keys import NodeKey
from layer8.net.wamp import Link, RouterError
from layer8.proxy import bus_pg
from layer8.proxy.bus import Bus, Presence, Put
from layer8.proxy.bus_cluster import ClusterBus
from layer8.proxy.bus_pg import PgBook
from layer8.proxy.bus_wamp import SOON, TOPIC, WampPresence
from layer8.proxy.limits import BUS_LEASE, BUS_RENEW
from layer8.proxy.roster import STALE
from tests.control import router as routers
from tests.control.rig import pause, raises, until
from tests.interop.daemons import no_crossbar
from tests.proxy import postgres
from tests.proxy.bus_suite import Suite
from tests.proxy.desk import HOST, row

KEYS = [NodeKey.from_seed(bytes([number]) * 32) for number in range(1, 5)]


@define(eq=False)
class Switch:
    """A router without a network: what is sent has arrived when the call returns; `view` is what it could read."""

    procedures: dict[str, Callable[..., Any]] = field(factory=dict)
    listeners: dict[Any, Callable[..., Any]] = field(factory=dict)
    view: list[str] = field(factory=list)


@define(eq=False)
class SwitchLink:
    """One node's session with a switch, in the place of `layer8.net.wamp.Link`."""

    switch: Switch
    session: Any = None
    user: Any = None
    own: list[str] = field(factory=list)

    def use(self, user: Any) -> None:
        self.user = user

    def join(self) -> None:
        self.session = self
        self.user.joined(self)

    def part(self) -> None:
        """Lose the session."""
        self.session = None
        for name in self.own:
            self.switch.procedures.pop(name, None)
        self.switch.listeners.pop(self, None)
        self.user.parted()

    def register(self, run: Callable[..., Any], name: str, options: Any) -> Deferred[Any]:
        self.switch.procedures[name] = run
        self.own.append(name)
        return succeed(None)

    def subscribe(self, told: Callable[..., Any], topic: str) -> Deferred[Any]:
        self.switch.listeners[self] = told
        return succeed(None)

    def publish(self, topic: str, words: Any) -> bool:
        self.switch.view.append(json.dumps([topic, words]))
        for link, told in list(self.switch.listeners.items()):
            if link is not self:
                told(**words)
        return True

    def call(self, name: str, params: dict[str, Any], timeout: float) -> Deferred[Any]:
        self.switch.view.append(json.dumps([name, params]))
        if self.session is None:
            return fail(Unavailable("no router"))
        if name not in self.switch.procedures:
            return fail(RouterError("wamp.error.no_such_procedure", "", None))  # type: ignore[arg-type]
        try:
            return succeed(self.switch.procedures[name](**params))
        except Unavailable as error:
            return fail(RouterError("wamp.error.runtime_error", str(error), None))  # type: ignore[arg-type]


class Nodes:
    """Three nodes on one database, each with a book of its own."""

    nodes: ClassVar[int] = 3
    skip = postgres.no_postgres()
    timeout = 60
    clock: Clock
    buses: list[Bus]

    def setUp(self) -> Any:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.conninfo = postgres.shared().database()
        self.books: list[PgBook] = []
        self.presents: list[WampPresence] = []
        self.reports: list[tuple[bool, str]] = []
        self.starts = 1_800_000_000_000
        super().setUp()  # type: ignore[misc]
        return Deferred.fromCoroutine(self.start())

    def node(self, number: int = 0) -> bytes:
        return KEYS[number].node_id

    def link(self, number: int) -> Any:
        raise NotImplementedError

    def make(self, number: int) -> Bus:
        self.starts += 1
        sealer = Sealer(KEYS[number])
        present = WampPresence(self.clock, self.link(number), sealer, self.starts)
        book = PgBook(self.reactor, self.conninfo, sealer.node, sealer.announcement)
        book.report = lambda ok, why: self.reports.append((ok, why))
        bus = ClusterBus(book, present, sealer)
        book.members = bus.members
        book.open()
        self.books.append(book)
        self.presents.append(present)
        return bus

    def again(self) -> Bus:
        return self.make(0)

    async def start(self) -> None:
        case: Any = self
        for book in self.books:
            book.startService()
            case.addCleanup(book.stopService)
        await until(self.reactor, lambda: all(book._ear is not None for book in self.books))
        await self.join()
        await until(self.reactor, lambda: all(len(one.sealer.nodes) == self.nodes - 1 for one in self.presents))
        await self.settle()

    async def join(self) -> None:
        """Let all nodes join the router."""

    async def pass_on(self) -> None:
        """Wait until what went to the router has come to everybody."""

    async def settle(self) -> None:
        self.clock.advance(SOON)
        await self.pass_on()
        highest = self.highest()
        await until(self.reactor, lambda: all(book._serial >= highest for book in self.books[: self.nodes]))
        self.clock.advance(SOON)

    def highest(self) -> int:
        import psycopg

        with psycopg.connect(self.conninfo) as connection:
            found = connection.execute("SELECT max(serial) FROM layer8.registration").fetchone()
        return int((found and found[0]) or 0)


class SwitchTests(Nodes, Suite.BusTests):
    """Three nodes in one process on one clock."""

    def setUp(self) -> Any:
        self.switch = Switch()
        self.links: list[SwitchLink] = []
        return super().setUp()

    def link(self, number: int) -> Any:
        link = SwitchLink(self.switch)
        self.links.append(link)
        return link

    async def join(self) -> None:
        for link in self.links:
            link.join()

    # Nodes that come and go.

    async def test_a_node_that_joins_late_learns_all(self) -> None:
        await self.here(1)
        await self.settle()
        self.links[2].part()
        second = await self.here(2)
        await self.settle()
        self.assertEqual(len(self.buses[2].lookup(HOST)), 1)
        self.links[2].join()
        self.assertEqual(len(self.buses[2].lookup(HOST)), 2)
        await self.buses[0].release(second)
        await self.settle()
        self.assertEqual([one.subscription for one in self.buses[2].lookup(HOST)], [1])

    async def test_a_node_is_restarted(self) -> None:
        """What it held before is over as soon as it speaks again, though nobody said so."""
        await self.here(1)
        await self.settle()
        self.links[0].part()
        again = self.make(0)
        await until(self.reactor, lambda: self.presents[1].sealer.nodes >= {self.node(0)})
        self.links[-1].join()
        await until(self.reactor, lambda: self.keys_know(self.presents[-1]))
        new = await again.lease(Presence(HOST, self.node(0), 9))
        await self.settle()
        self.assertEqual(self.buses[1].lookup(HOST), (new.presence,))

    def keys_know(self, present: WampPresence) -> bool:
        known: Any = self.buses[1]
        return bool(known._keys.get(self.node(0)) == present.sealer.announcement)

    async def test_a_dead_node_is_out_at_the_first_message(self) -> None:
        await self.here(1)
        await self.settle()
        self.links[0].part()
        self.assertEqual(len(self.buses[1].lookup(HOST)), 1)
        await raises(Unavailable, self.buses[1].notify(self.node(0), b"sealed"))
        self.assertEqual(self.buses[1].lookup(HOST), ())
        self.assertEqual(len(self.buses[2].lookup(HOST)), 1, "nobody told the others")

    async def test_a_node_that_does_not_answer_is_out_until_it_speaks(self) -> None:
        lease = await self.here(1)
        await self.settle()
        answering = SwitchLink.call
        self.patch(SwitchLink, "call", lambda *words: fail(TimedOut("no answer in time")))
        await raises(Unavailable, self.buses[1].notify(self.node(0), b"sealed"))
        self.assertEqual(self.buses[1].lookup(HOST), ())
        self.patch(SwitchLink, "call", answering)
        await self.buses[0].renew([lease])
        await self.settle()
        self.assertEqual(self.buses[1].lookup(HOST), (lease.presence,))

    async def test_without_a_router_routes_are_kept_for_a_while(self) -> None:
        own = await self.buses[1].lease(Presence(HOST, self.node(1), 5))
        await self.here(1)
        await self.settle()
        for link in self.links:
            link.part()
        self.clock.advance(STALE - 1)
        self.assertEqual({one.subscription for one in self.buses[1].lookup(HOST)}, {1})
        self.assertEqual(await self.buses[1].renew([own]), (own,), "nobody renewed it")
        self.clock.advance(1)
        self.assertEqual(self.buses[1].lookup(HOST), ())
        await raises(Unavailable, self.buses[1].notify(self.node(0), b"sealed"))
        fresh = await self.buses[1].lease(Presence(HOST, self.node(1), 6))
        self.assertEqual(self.buses[1].lookup(HOST), (fresh.presence,), "our own subscriptions are served")

    async def test_a_router_that_comes_back_finds_everybody(self) -> None:
        lease = await self.here(1)
        await self.settle()
        for link in self.links:
            link.part()
        for _ in range(4):
            self.clock.advance(BUS_RENEW)
            self.assertEqual(await self.buses[0].renew([lease]), ())
        for link in self.links:
            link.join()
        await self.settle()
        self.clock.advance(BUS_LEASE - 1)
        for bus in self.buses[1:]:
            self.assertEqual(bus.lookup(HOST), (lease.presence,))

    async def test_an_event_that_is_lost_is_noticed(self) -> None:
        self.switch.listeners.pop(self.links[1])
        first = await self.here(1)
        self.clock.advance(SOON)
        self.assertEqual(self.buses[1].lookup(HOST), ())
        self.links[1].subscribe(self.presents[1]._told_all, TOPIC)
        await self.buses[0].renew([first])
        await self.settle()
        self.assertEqual(self.buses[1].lookup(HOST), (first.presence,))

    async def test_strangers_and_replays(self) -> None:
        """The router's operator can neither make up a node nor say something twice."""
        lease = await self.here(1)
        await self.settle()
        recorded = [json.loads(said) for said in self.switch.view]
        await self.buses[0].release(lease)
        await self.settle()
        dropped = self.presents[1].dropped
        for name, words in recorded:
            if name == TOPIC:
                self.presents[1]._told_all(**words)
            elif name.endswith("proxy.news"):
                self.presents[1]._told_alone(**words)
        self.assertEqual(self.buses[1].lookup(HOST), ())
        self.assertGreater(self.presents[1].dropped, dropped)
        stranger = Sealer(NodeKey.make())
        own: Any = self.buses[1]
        stranger.know(self.node(1), own.sealer.announcement)
        import base64

        said = {"start": 1, "seq": 1, "add": [[HOST, 1, 1, 0, 1]], "gone": [], "renew": True}
        sealed = stranger.seal(self.node(1), json.dumps(said).encode())
        self.presents[1]._told_alone(base64.b64encode(sealed).decode())
        for noise in ("", "?", "AAAA", base64.b64encode(bytes(500)).decode()):
            self.presents[1]._told_alone(noise)
        oddities: tuple[Any, ...] = (None, [], {"x": 1}, {self.node(1).hex(): ""})
        for strange in oddities:
            self.presents[1]._told_all(strange)
        self.assertEqual(self.buses[1].lookup(HOST), ())

    async def test_the_router_learns_no_host_and_no_secret(self) -> None:
        await self.here(1, "secret-host.example.com")
        await self.settle()
        self.links[1].part()
        self.links[1].join()
        await self.settle()
        self.assertTrue(self.switch.view)
        for said in self.switch.view:
            self.assertNotIn("secret-host", said)

    # The database.

    async def test_a_node_that_was_taken_out_is_not_heard(self) -> None:
        import psycopg

        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute("DELETE FROM layer8.node WHERE id = %s", (self.node(0),))
            connection.execute("SELECT pg_notify('layer8', 'node')")
        await until(self.reactor, lambda: self.node(0) not in self.presents[1].sealer.nodes)
        await self.here(1)
        await self.settle()
        self.assertEqual(self.buses[1].lookup(HOST), ())

    async def test_what_is_gone_keeps_no_hash(self) -> None:
        import psycopg

        await self.buses[0].register(row())
        await self.buses[0].remove(row())
        with psycopg.connect(self.conninfo) as connection:
            found = connection.execute("SELECT gone, body FROM layer8.registration").fetchall()
        self.assertEqual(found, [(True, {})])

    async def test_no_connection_string(self) -> None:
        error = self.assertRaises(ConfigError, PgBook, self.reactor, "password=hidden nonsense")
        self.assertNotIn("hidden", str(error))

    async def test_no_database_at_the_start(self) -> None:
        book = PgBook(self.reactor, f"host=127.0.0.1 port=9 user=x password={postgres.PASSWORD}")
        error = self.assertRaises(StorageError, book.open)
        self.assertNotIn(postgres.PASSWORD, str(error))
        self.assertIn("PostgreSQL: ", str(error))


class RealTests(Nodes, Suite.BusTests):
    """The same over a real Crossbar.io."""

    skip = postgres.no_postgres() or no_crossbar()

    def setUp(self) -> Any:
        self.links: list[Link] = []
        return super().setUp()

    def link(self, number: int) -> Link:
        link = routers.shared().link(self.reactor, f"node{number}")
        self.links.append(link)
        return link

    async def join(self) -> None:
        case: Any = self
        for link in self.links:
            link.startService()
        case.addCleanup(lambda: Deferred.fromCoroutine(self.leave()))
        await until(self.reactor, lambda: all(link.session is not None for link in self.links))
        await self.pass_on()

    async def leave(self) -> None:
        for link in self.links:
            await link.stopService()
        await routers.quiet(self.reactor)

    async def pass_on(self) -> None:
        for _ in range(3):
            for link in self.links[: self.nodes]:
                await routers.passed(link)
            self.clock.advance(0)


class CrashTests(Nodes, TestCase):
    """PostgreSQL is killed and started again."""

    def setUp(self) -> Any:
        self.clock = Clock()
        self.server = postgres.Postgres.start(self)
        self.switch = Switch()
        self.links: list[SwitchLink] = []
        from twisted.internet import reactor

        self.reactor = reactor
        self.conninfo = self.server.database()
        self.books, self.presents, self.reports, self.starts = [], [], [], 1_800_000_000_000
        self.buses = [self.make(number) for number in range(self.nodes)]
        return Deferred.fromCoroutine(self.start())

    def link(self, number: int) -> Any:
        link = SwitchLink(self.switch)
        self.links.append(link)
        return link

    async def join(self) -> None:
        for link in self.links:
            link.join()

    async def test_frozen(self) -> None:
        """It is there and says nothing: whoever waits is told, and nobody else waits."""
        self.patch(bus_pg, "ANSWER_TIME", 0.3)
        await self.buses[0].register(row())
        await self.settle()
        with self.server.frozen():
            error = await raises(StorageError, self.buses[0].register(row("b.example.com", version=2)))
            self.assertIn("no answer within 0.3 s", str(error))
            self.assertEqual(self.reports[-1][0], False)
            self.assertEqual(await self.buses[1].registrations(), (row(),))
        await pause(self.reactor, 0.1)
        await self.buses[0].register(row("c.example.com", version=3))
        self.assertEqual(self.reports[-1], (True, ""))
        await self.settle()
        self.assertIn("c.example.com", {one.host for one in await self.buses[2].registrations()})

    async def test_killed(self) -> None:
        heard: list[Any] = []
        self.buses[1].watch(heard.append)
        await self.buses[0].register(row())
        await self.settle()
        self.server.kill()
        await until(self.reactor, lambda: all(book._ear is None for book in self.books))
        self.assertEqual(self.reports[-1][0], False)
        self.assertEqual(await self.buses[1].registrations(), (row(),), "reading goes on")
        error = await raises(StorageError, self.buses[0].register(row("b.example.com", version=2)))
        self.assertIn("PostgreSQL: ", str(error))
        self.assertNotIn(postgres.PASSWORD, str(error))
        self.server.again()
        await until(self.reactor, lambda: all(book._ear is not None for book in self.books), 20)
        await pause(self.reactor, 0.1)
        await self.buses[0].register(row("b.example.com", version=2))
        await self.settle()
        self.assertEqual(heard, [Put(row()), Put(row("b.example.com", version=2))])
        self.assertTrue(self.reports[-1][0])
        self.assertFalse(any(postgres.PASSWORD in why for _, why in self.reports))
