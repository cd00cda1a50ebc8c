"""Descriptors of a relay: made, given their work, published, and made anew."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred

from layer8.core.errors import Unavailable
from layer8.core.network import Network as Name
from layer8.crypto import descriptor
from layer8.crypto.keys import NodeKey
from layer8.relay.limits import REPUBLISH, REPUBLISH_SPREAD
from layer8.relay.onionkeys import OnionKeys
from layer8.relay.publishing import Publishing
from layer8.testing.network import WALL
from tests.relay.pools import PoolCase


class Threads:
    """A reactor whose threads work at once."""

    def __init__(self, clock: Any) -> None:
        self.callLater = clock.callLater
        self.tries = 0

    def getThreadPool(self) -> Threads:
        return self

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:
        call(*args)

    def callInThreadWithCallback(self, done: Callable[[bool, Any], None], call: Callable[..., Any], *args: Any) -> None:
        self.tries += 1
        done(True, call(*args))


class Told:
    """Trackers that remember what they are told."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.gone = 0
        self.down = False

    async def publish(self, one: Any) -> None:
        if self.down:
            raise Unavailable("no tracker answers")
        self.published.append(one)

    async def unpublish(self) -> None:
        self.gone += 1

    async def relays(self) -> None:
        """Nothing is asked here."""


class PublishingTests(PoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(descriptor, "EFFORT", 2_000)
        self.key = NodeKey.make()
        self.threads = Threads(self.net.clock)
        self.ends: tuple[str, ...] = ("tcp:60.1.2.3:9000",)
        self.via: tuple[bytes, ...] = ()
        self.told = Told()
        keys = OnionKeys(None)
        keys.load(WALL)
        self.publishing = Publishing(
            self.threads,
            self.key,
            Name("main"),
            keys,
            self.net.chance,
            self.wall,
            lambda: (1, b""),
            lambda: self.ends,
            lambda: self.via,
        )
        self.publishing.lists = self.told

    def start(self) -> None:
        Deferred.fromCoroutine(self.publishing.keep()).addErrback(lambda failure: failure.trap(Exception))

    def test_work_is_found_for_each_day_and_once(self) -> None:
        self.start()
        (one,) = self.told.published
        one.check(Name("main"), self.wall())
        tries = self.threads.tries
        self.publishing.changed()
        self.net.settle(2)
        self.assertEqual((len(self.told.published), self.threads.tries), (2, tries))
        self.assertGreater(self.told.published[1].serial, one.serial)
        self.net.settle(86_400)
        self.assertGreater(self.threads.tries, tries)
        for last in self.told.published[2:]:
            self.assertNotEqual(last.work, b"")
        self.told.published[-1].check(Name("main"), self.wall())

    def test_it_is_published_every_six_hours_or_so(self) -> None:
        self.start()
        times = [one.made for one in self.told.published]
        for _ in range(400):
            self.net.settle(300)
            times += [one.made for one in self.told.published[len(times) :]]
        gaps = {later - earlier for earlier, later in pairwise(times)}
        self.assertTrue(len(gaps) > 3 and all(abs(gap - REPUBLISH) <= REPUBLISH_SPREAD + 300 for gap in gaps), gaps)

    def test_trackers_that_do_not_answer_are_asked_again_soon_and_then_rarely(self) -> None:
        self.told.down = True
        self.start()
        self.net.settle(30)
        self.told.down = False
        self.net.settle(61)
        self.assertEqual(len(self.told.published), 1)

    def test_whom_nobody_reaches_publishes_nothing(self) -> None:
        self.ends = ()
        self.start()
        self.assertEqual((self.told.published, self.publishing.descriptor), ([], None))
        self.via = (b"g" * 32,)
        self.publishing.changed()
        self.net.settle(2)
        self.assertEqual([one.via for one in self.told.published], [(b"g" * 32,)])

    def test_a_clean_end_is_said_if_there_was_a_beginning(self) -> None:
        self.told.down = True
        self.start()
        Deferred.fromCoroutine(self.publishing.withdraw())
        self.assertEqual(self.told.gone, 0)
        self.told.down = False
        self.net.settle(10)
        Deferred.fromCoroutine(self.publishing.withdraw())
        Deferred.fromCoroutine(self.publishing.withdraw())
        self.assertEqual(self.told.gone, 1)
