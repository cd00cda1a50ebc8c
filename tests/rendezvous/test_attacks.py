"""What a party that works against the others tries, and what it gets for it."""

from __future__ import annotations

import os
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import Refused
from layer8.crypto.introduction import BLOB, Door, Meeting, knock
from layer8.crypto.items import Draft, Item, Kind, Record
from layer8.crypto.keys import NodeKey, id_text
from layer8.crypto.work import search
from layer8.net.sqlite import Database
from layer8.net.tasks import TaskSet
from layer8.node.hidden import trackers_told
from layer8.relay.limits import CIRC_QUEUE
from layer8.relay.origin import Hop, Origin
from layer8.rendezvous import access as at_access
from layer8.rendezvous import service as serving
from layer8.rendezvous import visits as visiting
from layer8.rendezvous.access import Access
from layer8.rendezvous.address import address_text
from layer8.rendezvous.archive import SCHEMA, Archive
from layer8.rendezvous.claiming import MORE_MOST, REPUT, Claiming
from layer8.rendezvous.claims import CLAIM_EFFORT, CLAIMS_SHOWN, claim_target, make_claim
from layer8.rendezvous.client import NotMet, Step
from layer8.rendezvous.descriptor import Price
from layer8.rendezvous.limits import INTRO_BURST, INTRO_RATE
from layer8.rendezvous.service import CROWD_TIME
from layer8.rendezvous.visits import VISITS, Found, Visits
from layer8.rendezvous.ways import Gone
from layer8.rendezvous.wire import (
    NO_WORK,
    WORK_LABEL,
    Alert,
    Connect,
    Knock,
    Listen,
    Listening,
    Renzv,
    Tune,
    Work,
    listen_text,
)
from layer8.testing.network import Heard
from layer8.testing.storage import InlineStorage
from tests.descriptors import NOW, key, node
from tests.rendezvous.askers import FakeAsker
from tests.rendezvous.net import MemoryWays, Told
from tests.rendezvous.sets import MemorySets
from tests.rendezvous.test_end_to_end import PORT, MeetCase
from tests.rendezvous.test_naming import A, NamingCase

SEED = b"s" * 32


class Asking(Heard):
    """A program that can be refused with a code."""

    code: int | None = None

    def refused(self, code: int) -> None:
        self.code = code


class AccessPointTests(MeetCase):
    """An access point that lies to its service."""

    def knocks(self, rate: float, seconds: float) -> None:
        """Have one access point pass on what nobody has knocked with, at no cost."""
        listener = next(one for access in self.access for one in access.listeners.values())
        for _ in range(int(seconds)):
            for _ in range(int(rate)):
                knock = Knock(listener.auth_key, 1, NO_WORK, os.urandom(BLOB))
                listener.asker.answer(Renzv.CONNECT, knock.encode())
            self.net.settle(1.0)

    def test_a_rate_that_is_a_lie(self) -> None:
        """Whoever says that he passes on one a second, and does so, cannot make everybody's visits dear."""

        def lies(rate: int, burst: int, most: int) -> Listening:
            return Listening(1, burst, most)

        self.patch(at_access, "Listening", lies)
        self.start()
        self.knocks(1, 60)
        self.assertIsNone(self.service.price)

    def test_knocks_without_work(self) -> None:
        """Once work is asked for, what comes without it does not raise the price."""
        self.start()
        self.knocks(INTRO_RATE, 30)
        first = self.service.price
        assert first is not None
        self.knocks(INTRO_RATE, 60)
        price = self.service.price
        assert price is not None
        self.assertLessEqual(price.effort, first.effort)


class SlowWays(MemoryWays):
    """Ways on which a hop of somebody's takes ten seconds not to answer."""

    async def to(self, last: Hop, before: int, *, layer2: bool = False, kept: bool = False) -> Origin:
        if last.identity in {one.identity for one in self.relays}:
            return await super().to(last, before, layer2=layer2, kept=kept)
        waiting: Deferred[None] = Deferred()
        self.later(10.0, lambda: waiting.callback(None))
        await waiting
        raise Gone("it hangs")


class ClientTests(MeetCase):
    """A client that wants nobody else to come."""

    def ways(self, name: str) -> MemoryWays:
        return SlowWays(self.net, self.net.client(name), self.relays, self.relays[:4])

    def knock(self, mode: int, count: int) -> None:
        """Have so many knocks passed on by each point, of somebody who names a hop that does not exist."""
        listeners = {one.auth_key: one for access in self.access for one in access.listeners.values()}
        for told in self.told.points:
            door = Door(self.there.network, self.key.node_id, told.auth_key, told.enc_key)
            for _ in range(count):
                cookie, node, onion_key = os.urandom(32), os.urandom(32), os.urandom(32)
                cookie, node, onion_key = os.urandom(32), os.urandom(32), os.urandom(32)
                meeting = Meeting(mode, int(self.there.wall()), cookie, node, onion_key, "tcp:198.51.100.1:1")
                blob = knock(door, meeting).blob
                listeners[told.auth_key].asker.answer(Renzv.CONNECT, Knock(told.auth_key, 1, NO_WORK, blob).encode())

    def test_knocks_that_are_refused(self) -> None:
        """Each makes room for the next one, and those that wait are not left waiting."""
        self.start()
        self.knock(0, 40)
        self.meet()
        self.assertEqual(self.service.counted["another mode"], 120)

    def test_strangers_who_stay(self) -> None:
        """Whoever takes all places, and says nothing on a stream for ever, has them for ten minutes."""
        self.patch(serving, "SESSIONS_PER_SERVICE", 3)
        self.start()
        crowd = [self.meet() for _ in range(3)]
        for origin in crowd:
            origin.open(PORT, Heard())
        self.net.settle(1.0)
        with self.assertRaises(NotMet):
            self.meet()
        self.assertEqual(self.service.counted["full"], 3)
        self.net.settle(CROWD_TIME)
        self.echoed(self.meet(), b"hello")
        self.assertEqual([origin.takes for origin in crowd], [False, True, True])

    def test_rendezvous_hops_that_hang(self) -> None:
        """Who names hops that say nothing holds up nobody; ten a second at a point are not worth a price."""
        self.start()
        for _ in range(5):
            self.knock(1, 10)
            self.net.settle(1.0)
        begun = self.net.clock.seconds()
        self.meet()
        self.assertLess(self.net.clock.seconds() - begun, 2.0)

    def test_a_flood_at_every_level_of_work(self) -> None:
        """What leaves at once does not end the service's circuit, whatever was paid for it."""
        asker, key = FakeAsker(1), NodeKey.make()
        role = Access()
        role.asked(asker, Renzv.RES_LISTEN, Listen(key.node_id, key.sign(listen_text(asker.binding))).encode(), 0.0)
        role.asked(asker, Renzv.RES_TUNE, Tune(key.node_id, SEED, 1, 0).encode(), 0.0)
        for effort in (1, 2, 4, 8, 16):
            for number in range(INTRO_BURST):
                nonce = search(WORK_LABEL, key.node_id, SEED, effort, os.urandom(16), 10_000)
                assert nonce is not None
                knock = Connect(key.node_id, Work(nonce, effort, SEED[:4]).encode(), bytes(BLOB))
                role.asked(FakeAsker(1000 * effort + number), Renzv.RES_CONNECT, knock.encode(), 0.0)
        self.assertLess(len(asker.said), CIRC_QUEUE)


class ServiceTests(MeetCase):
    """A service that wants to know of its clients, or to keep them busy."""

    def test_work_beyond_what_the_client_wants(self) -> None:
        self.start()
        self.told = Told(self.told.points, Price(SEED, 2**32 - 1, 2**40))
        done: list[str] = []
        work = self.here.work

        def counted(ways: object, what: Any) -> Any:
            done.append("work")
            return work(what)

        self.patch(MemoryWays, "work", counted)
        with self.assertRaises(NotMet) as caught:
            self.meet(max_effort=1000)
        self.assertIn("costs more work than 1000", str(caught.exception))
        self.assertEqual(len(done), 3)  # one blob for each point, and no search

    def test_alerts_without_end(self) -> None:
        self.start()
        heard: list[str] = []
        origin = self.meet(alert=heard.append)
        (session,) = self.service.sessions.values()
        for _ in range(10):
            session.origin.add(Renzv.ALERT, bytes((Alert.LOGIN_TWICE,)))
        self.echoed(origin, b"hello")
        self.assertEqual(heard, [])


class Standing:
    """A circuit as far as visits look at it."""

    takes = True
    number = 1
    at_end: Any = None

    def open(self, target: object, sink: object) -> Standing:
        return self

    def close(self) -> None:
        self.takes = False
        if self.at_end is not None:
            self.at_end(None)


@frozen
class Kept:
    """A circuit that visits keep."""

    origin: Standing

    @property
    def takes(self) -> bool:
        return self.origin.takes


class PageTests(SynchronousTestCase):
    """A web page in the browser of a visitor, which may name any host."""

    def setUp(self) -> None:
        self.key = NodeKey.make().node_id
        self.keys: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.met: list[bytes] = []
        self.origins: list[Standing] = []
        self.silent = False
        self.patch(visiting, "meet", self.meet)
        clock: Any = Clock()
        clock.later = clock.callLater
        self.patch(visiting, "Standing", lambda origin, *parts: Kept(origin))
        self.visits = Visits(clock, TaskSet(Logger()), self.find)

    async def find(self, name: str, fresh: bool) -> Found:
        self.asked.append(name)
        if self.silent:
            await Deferred()
        return Found(self.keys.get(name, self.key), Told(()))

    async def meet(self, ways: object, service: bytes, *parts: object, **more: object) -> Standing:
        self.met.append(service)
        self.origins.append(Standing())
        return self.origins[-1]

    def open(self, name: str) -> Asking:
        asking = Asking()
        self.visits.open(name, 80, asking, "user")
        return asking

    def test_labels_without_end(self) -> None:
        """Labels in front of an address are the service's business: one circuit carries them all."""
        address = address_text(self.key)
        for number in range(100):
            self.open(f"{number}.{address}.l8.alt")
        self.assertEqual(self.met, [self.key])

    def test_names_without_end(self) -> None:
        self.silent = True
        for number in range(VISITS):
            self.open(f"name-{number}.l8.alt")
        self.assertIsNotNone(self.open("one-more.l8.alt").code)
        self.assertEqual(len(self.asked), VISITS)

    def test_a_name_that_means_another_key_by_now(self) -> None:
        """What a name led to once is not remembered longer than the circuit that it led to: it may be pinned now."""
        other = NodeKey.make().node_id
        self.open("blog.l8.alt")
        self.origins[-1].close()
        self.open(f"{address_text(self.key)}.l8.alt")
        self.assertEqual(self.met, [self.key, self.key])
        self.keys["blog.l8.alt"] = other
        self.open("blog.l8.alt")
        self.assertEqual(self.met, [self.key, self.key, other])

    def test_a_name_that_means_another_key_a_moment_later(self) -> None:
        """A circuit to whoever has the name by now is nobody's circuit to the one who had it before."""
        other = NodeKey.make().node_id

        async def fails(ways: object, service: bytes, *parts: object, **more: object) -> Standing:
            self.keys["blog.l8.alt"] = other
            self.patch(visiting, "meet", self.meet)
            raise NotMet("it has not come", Step.LATE)

        self.patch(visiting, "meet", fails)
        self.open("blog.l8.alt")
        self.open(f"{address_text(self.key)}.l8.alt")
        self.assertIn(self.key, self.met)


class Crowded(MemorySets):
    """A DHT whose sets are full of claims with so much work."""

    least = 0

    async def put(self, item: Item) -> int:
        if isinstance(item, Record) and item.kind == Kind.CLAIM and item.effort <= self.least:
            raise Refused("there is a later one, or more work")
        return await super().put(item)


class ClaimerTests(NamingCase):
    """Somebody who wants a name that another one has."""

    def test_claims_with_more_work_hide_no_older_one(self) -> None:
        """Those that are looked at are all that the DHT gives, and not those with most work."""
        self.claim(A, 10, 11, 12)
        for number in range(CLAIMS_SHOWN):
            draft = make_claim(key(100 + number), "blog", NOW, ruled=False)
            self.items.add(evolve(draft, effort=1000))
        answer = self.run_(self.naming.key("blog.l8.alt"))
        self.assertEqual(answer, A.node_id)
        answer = self.run_(self.naming.resolve("blog"))
        self.assertEqual((len(answer.verdict.candidates), answer.verdict.others), (CLAIMS_SHOWN, 1))

    def test_claims_that_push_another_one_out(self) -> None:
        """Whoever is pushed out of a set does more work than those, once for all of them."""
        items = Crowded()
        archive = Archive(InlineStorage(Database(self.folder / "names.db", SCHEMA)))
        archive.load()
        clock = Clock()

        async def work(draft: Draft) -> Record:
            return draft.record()

        def start(name: str, work: Any) -> object:
            return Deferred.fromCoroutine(work)

        claiming = Claiming(items, archive, key(3), lambda file: A, work, lambda: NOW + clock.seconds(), clock, start)
        self.run_(claiming.claim("blog", "blog.pem"))
        first = archive.claims["blog"].claim
        self.assertEqual(first.effort, CLAIM_EFFORT)
        items.sets.clear()
        items.least = 5 * CLAIM_EFFORT
        clock.advance(REPUT)
        for _ in range(4):
            self.run_(claiming.put_all())
        (again,) = items.sets[claim_target("blog")].values()
        self.assertEqual((again.key, again.effort), (A.node_id, 8 * CLAIM_EFFORT))
        items.least = 2**32 - 1
        clock.advance(REPUT)
        for _ in range(9):
            self.run_(claiming.put_all())
        self.assertEqual(archive.claims["blog"].claim.effort, MORE_MOST * CLAIM_EFFORT)


class ReaderTests(SynchronousTestCase):
    """Somebody who reads what a service gives to everybody."""

    def test_links_say_nothing_of_where_the_service_is(self) -> None:
        """A tracker on the same machine or in the same house would: who runs one names it nowhere."""
        own, far = id_text(node(1)), f"{id_text(node(2))}@tcp:tracker.example:443"
        near = [f"{id_text(node(3))}@tcp:{host}:443" for host in ("192.168.1.7", "127.0.0.1", r"[fd00\:\:1]")]
        texts = (f"{own}@tcp:198.51.100.7:443", *near, far)
        self.assertEqual([str(one) for one in trackers_told(texts, node(1), True)], [far])
        self.assertEqual(len(trackers_told(texts, node(1), False)), 4)  # of one machine, as demos are
