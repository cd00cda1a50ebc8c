"""Publishing: when a descriptor is put, with which seq, and what happens where somebody else has the key."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, RemoteProtocolError, Unavailable
from layer8.crypto.blind import blinded
from layer8.crypto.curtain import ClientKey, NotAuthorised
from layer8.crypto.items import SEQ_MOST, Item, Items, Mutable, sha1
from layer8.net.tasks import TaskSet
from layer8.rendezvous.address import OVERLAP, PERIOD, period, period_start
from layer8.rendezvous.descriptor import (
    SALT,
    Point,
    Price,
    ServiceDescriptor,
    find_cookie,
    publish,
    read_item,
    read_public,
    targets,
)
from layer8.rendezvous.publishing import AGAIN, APART, EXPIRES, LOOKED, REPUT, REPUT_SPREAD, SETTLED, Publishing
from layer8.testing.dhtnet import EPOCH, Net
from tests.descriptors import key
from tests.rendezvous.items import MemoryItems, NetItems

SERVICE = key(1)
A = SERVICE.node_id
NOON = period_start(20_833)
NOW = NOON + 6 * 3600  # far from the next change
COOKIE = b"c" * 32
ONE, TWO, THREE = (
    Point(key(100 + n).node_id, b"o" * 32, bytes((n,)) * 32, b"e" * 32, "tcp:192.0.2.1:9000") for n in (1, 2, 3)
)


class Losing(MemoryItems):
    """Holders of everything but one item."""

    def __init__(self, lost: bytes) -> None:
        super().__init__()
        self.lost = lost

    async def put(self, item: Item) -> int:
        if isinstance(item, Mutable) and item.target == self.lost:
            raise Unavailable("nobody takes it")
        return await super().put(item)


class PublishingCase(SynchronousTestCase):
    """A service that publishes, on a clock of ours."""

    start = float(NOW)

    def setUp(self) -> None:
        self.clock = Clock()
        self.drift = 0.0
        self.items = MemoryItems()
        self.kept: list[int] = []
        self.alerts: list[str] = []
        self.said: list[tuple[int, int]] = []
        self.tasks = TaskSet(Logger())

    def wall(self) -> float:
        return self.start + self.clock.seconds() + self.drift

    def publishing(self, items: Items | None = None, **more: Any) -> Publishing:
        def remember(seq: int) -> None:
            self.assertFalse(any(seq <= one.seq for one in self.items.puts if isinstance(one, Mutable)))
            self.kept.append(seq)

        return Publishing(
            items or self.items,
            SERVICE,
            self.tasks,
            self.clock.callLater,
            self.wall,
            chance=Random(1),
            kept=remember,
            alert=self.alerts.append,
            said=lambda seq, nodes: self.said.append((seq, nodes)),
            **more,
        )

    def go(self, seconds: float, step: float = 60.0) -> None:
        """Let so much time pass."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(step, end - self.clock.seconds()))

    def item(self, day: int | None = None) -> Mutable:
        return self.items.mutable(targets(A, period(self.wall()) if day is None else day)[0])

    def read(self, day: int | None = None, cookie: bytes = b"") -> ServiceDescriptor:
        day = period(self.wall()) if day is None else day
        return read_item(A, day, self.item(day), self.wall(), cookie=cookie)

    def stands(self, day: int) -> bool:
        return targets(A, day)[0] in self.items.kept

    def other(self, seq: int, day: int | None = None, points: tuple[Point, ...] = (THREE,)) -> Mutable:
        """Let somebody else publish who has the key."""
        now = int(self.wall())
        (item,) = publish(SERVICE, period(now) if day is None else day, ServiceDescriptor(now + EXPIRES, points), seq)
        self.items.kept[item.target] = item
        return item


class TimeTests(PublishingCase):
    def test_soon(self) -> None:
        one = self.publishing()
        self.go(3600)
        self.assertEqual((self.items.puts, one.published), ([], 0))
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.assertEqual(self.read().points, (ONE,))
        self.assertEqual(self.read().expires, int(self.wall()) + EXPIRES)
        self.assertEqual(one.published, int(self.wall()))
        self.assertEqual(self.said, [(one.published, 8)])
        self.assertEqual(self.kept, [one.published])

    def test_changes_within_a_second_are_one(self) -> None:
        one = self.publishing()
        for points in ((ONE,), (ONE, TWO), (ONE, TWO, THREE)):
            one.changed(points, None)
            self.clock.advance(SETTLED / 4)
        one.changed((ONE, TWO, THREE), Price(b"s" * 32, 8, NOW + 7200))
        self.go(SETTLED)
        self.assertEqual(len(self.items.puts), 1)
        self.assertEqual((self.read().points, self.read().price), ((ONE, TWO, THREE), Price(b"s" * 32, 8, NOW + 7200)))
        one.changed((ONE, TWO, THREE), Price(b"s" * 32, 8, NOW + 7200))
        self.go(60)
        self.assertEqual(len(self.items.puts), 1, "nothing had changed")

    def test_it_is_put_again_every_hour(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(12 * 3600)
        times = [item.seq for item in self.items.puts if isinstance(item, Mutable)]
        gaps = [later - sooner for sooner, later in pairwise(times)]
        self.assertGreaterEqual(min(gaps), REPUT - REPUT_SPREAD)
        self.assertLessEqual(max(gaps), REPUT + 1)
        self.assertGreater(len(set(gaps)), 1)
        self.assertEqual(self.kept, times)

    def test_without_points_nothing_is_said(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        one.changed((), None)
        self.go(5 * 3600)
        self.assertEqual(len(self.items.puts), 1)
        with self.assertRaisesRegex(RemoteProtocolError, "expired"):
            self.read()
        one.changed((TWO,), None)
        self.go(SETTLED)
        self.assertEqual(self.read().points, (TWO,))

    def test_a_change_while_it_is_being_put(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.items.hook = lambda: one.changed((TWO,), None)
        self.go(SETTLED)
        self.assertEqual(self.read().points, (ONE,))
        self.go(SETTLED)
        self.assertEqual(self.read().points, (TWO,))

    def test_stop(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        one.changed((TWO,), None)
        one.stop()
        one.changed((THREE,), None)
        self.go(24 * 3600)
        self.assertEqual(len(self.items.puts), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_clock_that_is_set(self) -> None:
        """Forward or back: it is put within an hour all the same, and no seq goes back."""
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        first = self.item().seq
        self.drift = -7200.0
        before = len(self.items.puts)
        self.go(REPUT + LOOKED)
        self.assertGreater(len(self.items.puts), before)
        self.assertEqual(self.item().seq, first + 1)
        self.drift = 3 * PERIOD
        self.go(LOOKED + APART[1])
        self.assertEqual(self.read().points, (ONE,))
        self.assertEqual(self.alerts, [])

    def test_what_cannot_be_published(self) -> None:
        one = self.publishing()
        one.changed((Point(A, b"o" * 32, b"a" * 32, b"e" * 32, "tcp:" + "n" * 99 + ":9000"),), None)
        self.go(SETTLED)
        self.assertEqual(len(self.alerts), 1)
        self.assertIn("cannot be published", self.alerts[0])
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.assertEqual(self.read().points, (ONE,))


class PeriodTests(PublishingCase):
    start = float(NOON + PERIOD - OVERLAP - 3600)

    def test_the_next_period_from_three_hours_before(self) -> None:
        today = period(self.start)
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(3590)
        self.assertFalse(self.stands(today + 1))
        self.go(LOOKED + APART[1])
        self.assertEqual(self.read(today + 1).points, (ONE,))
        self.go(OVERLAP)
        self.assertEqual(period(self.wall()), today + 1)
        self.assertEqual(self.read().points, (ONE,))
        puts = len([item for item in self.items.puts if item.target == targets(A, today)[0]])
        self.go(6 * 3600)
        self.assertEqual(len([item for item in self.items.puts if item.target == targets(A, today)[0]]), puts)
        self.assertEqual(self.read().points, (ONE,))
        self.assertFalse(self.stands(today + 2))

    def test_at_every_moment_of_three_days(self) -> None:
        """Whoever looks finds a descriptor that is good for two hours more, by his clock and by one an hour off."""
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        for _ in range(3 * 24 * 4):
            self.go(900)
            for off in (-3600.0, 0.0, 3600.0):
                now = self.wall() + off
                item = self.item(period(now))
                self.assertEqual(read_item(A, period(now), item, now).points, (ONE,))

    def test_the_two_are_never_seen_together(self) -> None:
        """A node that stores both must not tell by their times that they are of one service."""
        one = self.publishing()
        self.go(2 * 3600)
        for number in range(10):
            one.changed((ONE, TWO) if number % 2 else (ONE,), None)
            self.go(700, 1.0)
        today = period(self.start)
        now, then = (
            [item.seq for item in self.items.puts if isinstance(item, Mutable) and item.target == targets(A, day)[0]]
            for day in (today, today + 1)
        )
        self.assertEqual((len(now), len(then)), (10, 10))
        self.assertEqual(set(now) & set(then), set())
        self.assertGreaterEqual(min(abs(one - other) for one in now for other in then), 5)

    def test_what_is_stored_for_two_days_has_no_eight_bytes_in_common(self) -> None:
        own = ClientKey.make().public
        one = self.publishing(clients={"ann": own}, cookie=COOKIE)
        one.changed((ONE, TWO), None)
        self.go(3600 + LOOKED + APART[1])
        today = period(self.start)
        both = []
        for day in (today, today + 1):
            held = [self.items.mutable(where) for where in (targets(A, day)[0], targets(A, day)[1][0])]
            parts = [part for one in held for part in (one.key, one.signature, one.data, one.seq.to_bytes(8, "big"))]
            both.append({part[at : at + 8] for part in parts for at in range(len(part) - 7)})
        self.assertEqual(both[0] & both[1], set())


class SeqTests(PublishingCase):
    def test_after_a_restart(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        one.stop()
        again = self.publishing(seq=self.kept[-1])
        again.changed((TWO,), None)
        self.go(SETTLED)
        self.assertEqual(self.read().points, (TWO,))
        self.assertGreater(self.kept[-1], self.kept[0])
        self.assertEqual(self.alerts, [])

    def test_a_clock_that_is_behind(self) -> None:
        one = self.publishing(seq=NOW + 500)
        one.changed((ONE,), None)
        self.go(SETTLED)
        one.changed((TWO,), None)
        self.go(SETTLED)
        self.assertEqual(self.kept, [NOW + 501, NOW + 502])

    def test_a_state_that_was_lost(self) -> None:
        """Stopped hard, before the last seq was written down, or its folder is gone."""
        for seq, alerts in ((NOW - 100, 1), (0, 0)):
            self.setUp()
            self.other(int(self.wall()) + 1)
            one = self.publishing(seq=seq)
            one.changed((ONE,), None)
            self.go(SETTLED)
            self.assertEqual(self.read().points, (ONE,))
            self.assertEqual(len(self.alerts), alerts)
            self.assertFalse(one.clashed)


class StandsTests(PublishingCase):
    """What is told as published is what visitors find."""

    def test_all_that_is_looked_for(self) -> None:
        for way in ("address", "resource"):
            lost = sha1(A) if way == "resource" else targets(A, period(self.wall()))[0]
            holders = Losing(lost)
            one = self.publishing(holders, public=True)
            self.assertFalse(one.stands)
            one.changed((ONE,), None)
            self.go(SETTLED)
            self.assertEqual((len(holders.puts), bool(one.published), one.stands), (1, True, False), way)
            holders.lost = b""
            self.go(AGAIN[0], 0.1)
            self.assertEqual((len(holders.puts), one.stands), (2, True), way)

    def test_the_other_period_is_not_waited_for(self) -> None:
        self.start = float(period_start(20_834) - OVERLAP // 2)
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.assertEqual((len(self.items.puts), one.stands), (1, True))
        self.go(APART[1])
        self.assertEqual(len(self.items.puts), 2)
        self.go(OVERLAP)
        self.assertTrue(one.stands)


class FailureTests(PublishingCase):
    def test_nobody_answers(self) -> None:
        self.items.silent = True
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(6 * 3600)
        tries = len(self.kept)
        self.assertTrue(20 < tries < 100, tries)
        self.assertEqual(one.published, 0)
        self.assertEqual(self.kept, sorted(set(self.kept)))
        self.items.silent = False
        self.go(AGAIN[1] + 60)
        self.assertEqual(self.read().points, (ONE,))
        self.assertEqual(one.published, self.kept[-1])
        self.go(60)
        self.assertEqual(len(self.items.puts), 1)

    def test_for_a_moment(self) -> None:
        self.items.silent = True
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.items.silent = False
        self.go(AGAIN[0], 0.1)
        self.assertEqual(self.read().points, (ONE,))


class ClashTests(PublishingCase):
    """G55: two services with one key."""

    def test_a_newer_one_that_we_have_not_signed(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(1800)
        other = self.other(int(self.wall()))
        self.go(REPUT)
        self.assertEqual(len(self.alerts), 1)
        self.assertIn("the same key", self.alerts[0])
        self.assertNotIn("\n", self.alerts[0])
        self.assertTrue(one.clashed)
        self.assertEqual(self.item(), other, "there is no fight")
        one.changed((TWO,), None)
        self.go(60)
        self.assertEqual(self.item(), other, "not by a change either")
        self.assertEqual(len(self.alerts), 1)

    def test_it_comes_back_when_the_other_one_has_gone(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(1800)
        self.other(int(self.wall()))
        self.go(EXPIRES + REPUT + LOOKED)
        self.assertEqual(self.read().points, (ONE,))
        self.assertFalse(one.clashed)
        self.other(int(self.wall()))
        self.go(REPUT)
        self.assertEqual(len(self.alerts), 2)

    def test_the_same_seq(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.other(self.kept[-1])
        self.go(REPUT)
        self.assertEqual(len(self.alerts), 1)

    def test_two_with_one_seq_in_the_dht(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.items.torn.add(self.item().target)
        puts = len(self.items.puts)
        self.go(REPUT)
        self.assertEqual((len(self.alerts), len(self.items.puts)), (1, puts))

    def test_an_older_one_is_ours(self) -> None:
        """Some node has slept, and gives what we have said before: no alert."""
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        old = self.item()
        self.go(REPUT)
        self.items.kept[old.target] = old
        self.go(REPUT)
        self.assertEqual(self.alerts, [])
        self.assertGreater(self.item().seq, old.seq)

    def test_one_that_comes_between_a_look_and_the_put(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(SETTLED)
        other = self.other(int(self.wall()) + 100)
        one.changed((TWO,), None)  # so soon that nobody looks
        self.go(SETTLED)
        self.assertEqual(len(self.alerts), 1)
        self.assertEqual(self.item(), other)

    def test_in_the_next_period(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(PERIOD - OVERLAP - 6 * 3600 - 60)
        other = self.other(int(self.wall()), period(self.wall()) + 1)
        self.go(LOOKED + APART[1])
        self.assertEqual(len(self.alerts), 1)
        self.assertEqual(self.items.kept[other.target], other)
        self.assertEqual(self.read().points, (ONE,))

    def test_a_last_seq(self) -> None:
        """Whoever has the key can take its descriptor for ever; a node that begins then does not fall over it."""
        self.other(SEQ_MOST)
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(2 * REPUT)
        self.assertEqual(len(self.alerts), 1)
        self.assertEqual(self.items.puts, [])
        self.assertEqual(self.flushLoggedErrors(), [])


class ClientTests(PublishingCase):
    def test_lists(self) -> None:
        ann, bob = ClientKey.make(), ClientKey.make()
        one = self.publishing(clients={"ann": ann.public, "bob": bob.public}, cookie=COOKIE)
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.assertEqual([item.salt for item in self.items.puts if isinstance(item, Mutable)], [b"a0", SALT])
        with self.assertRaises(NotAuthorised):
            self.read()
        for who in (ann, bob):
            self.assertEqual(self.read(cookie=self.cookie(who)).points, (ONE,))
        one.admit({"ann": ann.public}, b"n" * 32)
        self.go(SETTLED)
        self.assertEqual(self.read(cookie=self.cookie(ann)).points, (ONE,))
        with self.assertRaises(NotAuthorised):
            self.cookie(bob)
        with self.assertRaises(NotAuthorised):
            self.read(cookie=COOKIE)

    def test_nobody_is_let_in_by_mistake(self) -> None:
        ann = ClientKey.make().public
        self.assertRaises(ConfigError, self.publishing, clients={"ann": ann})
        self.assertRaises(ConfigError, self.publishing, public=True, cookie=COOKIE)
        self.assertRaises(ConfigError, self.publishing().admit, {"ann": ann}, b"")

    def test_with_no_client_nobody_gets_in(self) -> None:
        one = self.publishing(cookie=COOKIE)
        one.changed((ONE,), None)
        self.go(SETTLED)
        with self.assertRaises(NotAuthorised):
            self.read()

    def cookie(self, who: ClientKey) -> bytes:
        day = period(self.wall())
        lists = [self.items.mutable(one) for one in targets(A, day)[1] if one in self.items.kept]
        return find_cookie(A, day, lists, who)


class PublicTests(PublishingCase):
    def test_a_resource_stands_under_its_hash_too(self) -> None:
        one = self.publishing(public=True)
        one.changed((ONE,), None)
        self.go(SETTLED)
        name = sha1(A)
        self.assertEqual(read_public(name, self.items.mutable(name), self.wall()).points, (ONE,))
        self.assertEqual(self.read().points, (ONE,))
        self.assertEqual(len(set(self.kept)), 2)
        self.go(2 * REPUT)
        self.assertGreater(self.items.mutable(name).seq, self.kept[1])

    def test_a_hidden_service_does_not(self) -> None:
        one = self.publishing()
        one.changed((ONE,), None)
        self.go(REPUT)
        self.assertNotIn(sha1(A), self.items.kept)

    def test_modes(self) -> None:
        one = self.publishing(modes=(0, 1))
        one.changed((ONE,), None)
        self.go(SETTLED)
        self.assertEqual(self.read().modes, (0, 1))


class NetTests(PublishingCase):
    """Over forty nodes of the DHT, on their clock."""

    def setUp(self) -> None:
        super().setUp()
        self.net = Net(40)
        self.one = self.publishing(NetItems(self.net))
        self.one.changed((ONE,), None)
        self.both(SETTLED + 1)
        self.target = targets(A, period(self.wall()))[0]

    def wall(self) -> float:
        return EPOCH + 8 * 3600 + self.net.swarm.now

    def both(self, seconds: float) -> None:
        """Let time pass for the nodes and for the service."""
        end = self.net.swarm.now + seconds
        while self.net.swarm.now < end:
            before = self.net.swarm.now
            self.net.swarm.run(seconds=min(60.0, end - before))
            self.clock.advance(self.net.swarm.now - before)

    def kill(self, count: int) -> None:
        for number in self.net.holders(self.target)[:count]:
            self.net.kill(number)

    def found(self) -> ServiceDescriptor:
        item = self.net.get(0, self.target, SALT).item
        assert isinstance(item, Mutable)
        return read_item(A, period(self.wall()), item, self.wall())

    def test_seven_of_eight_holders_go(self) -> None:
        """G34."""
        self.assertEqual(len(self.net.holders(self.target)), 8)
        self.kill(7)
        self.assertEqual(len(self.net.holders(self.target)), 1)
        self.both(REPUT + 60)
        self.assertGreaterEqual(len(self.net.holders(self.target)), 8)
        self.assertEqual(self.found().points, (ONE,))

    def test_all_holders_go(self) -> None:
        self.kill(8)
        self.assertIsNone(self.net.get(0, self.target, SALT).item)
        self.both(REPUT + 60)
        self.assertGreaterEqual(len(self.net.holders(self.target)), 8)
        self.assertEqual(self.found().points, (ONE,))

    def test_a_newer_one_takes_the_place_of_the_older(self) -> None:
        self.one.changed((TWO,), None)
        self.both(SETTLED + 1)
        self.assertEqual(self.found().points, (TWO,))
        self.assertEqual(self.alerts, [])

    def test_a_second_service_with_the_key(self) -> None:
        """It is found out when we put again; the later one stays, until it stops."""
        second = Publishing(
            NetItems(self.net, 1),
            SERVICE,
            self.tasks,
            self.clock.callLater,
            self.wall,
            chance=Random(2),
        )
        second.changed((THREE,), None)
        self.both(REPUT + 60)
        self.assertEqual(len(self.alerts), 1)
        self.assertFalse(second.clashed)
        self.assertEqual(self.found().points, (THREE,))
        second.stop()
        self.both(EXPIRES + REPUT)
        self.assertEqual(self.found().points, (ONE,))

    def test_a_key_for_each_day(self) -> None:
        self.assertEqual(sha1(blinded(A, period(self.wall())), SALT), self.target)
        for number in range(40):
            for held in self.net.all[number].store:
                self.assertNotIn(A, (getattr(held.item, "key", b""), getattr(held.item, "value", b"")))
