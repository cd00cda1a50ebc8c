"""Several trackers asked at once, over a wire of calls; the rows that people use."""

from __future__ import annotations

import random
from collections.abc import Container
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from layer8.control.errors import CallRefused, CallUnavailable
from layer8.control.table import Table
from layer8.core.errors import RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.descriptor import Descriptor, Role, pack
from layer8.crypto.keys import id_text
from layer8.relay.database import Database
from layer8.tracker.asking import Answer, Source, Trackers
from layer8.tracker.index import Index
from layer8.tracker.limits import ASK_TIME, TRACKERS
from layer8.tracker.operate import ListRows, TrackerRows
from layer8.tracker.service import Listed
from layer8.tracker.wire import GetRelays, Status, Track, Unpublish, ok
from tests.control.callers import caller, run
from tests.descriptors import MAIN, NOW, EasyWork, key, node, told


class Tracker:
    """A tracker at the end of a circuit that needs no time."""

    def __init__(self, number: int, *listed: Descriptor) -> None:
        self.identity = node(number)
        self.index = Index(MAIN, random.Random(number), lambda descriptor, port: False)
        self.asked = 0
        for one in listed:
            self.index.enlist(one, NOW)

    async def ask(self, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        """Answer as a tracker would."""
        self.asked += 1
        if command == Track.GET_RELAYS:
            assert Track.RELAY_LIST in answers
            return Track.RELAY_LIST, pack(self.index.sample(GetRelays.read(data), NOW))
        assert Track.OK in answers
        if command == Track.UNPUBLISH:
            return Track.OK, ok(self.index.remove(Unpublish.read(data), NOW))
        return Track.OK, ok(self.index.enlist(Descriptor.read(data), NOW))


class Liar(Tracker):
    """One that answers nonsense."""

    async def ask(self, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        """Say what no tracker says."""
        self.asked += 1
        return Track.RELAY_LIST, b"\xff"


class Bad(Tracker):
    """One whose descriptors are no good, but for one."""

    async def ask(self, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        """Give some of each."""
        return Track.RELAY_LIST, pack([b"bad", told(1).raw, b"", told(3, now=NOW - 10**6).raw])


class Dead(Tracker):
    """One that says nothing."""

    async def ask(self, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        """Wait for ever."""
        await Deferred()
        raise AssertionError


class Gone(Tracker):
    """One to which no circuit leads."""

    async def ask(self, command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
        """Fail at once."""
        raise Unavailable("no circuit")


class AskingTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.known = Database(MAIN, own=node(50))

    def trackers(self, *there: Tracker, count: int = 3) -> Trackers:
        sources = [Source(one.identity, one.ask) for one in there]
        return Trackers(lambda: sources, self.known, MAIN, random.Random(1), self.clock, lambda: NOW, count)

    def test_answers_of_three_are_merged(self) -> None:
        """G30: every descriptor keeps who told us."""
        there = [Tracker(number, told(1), told(number)) for number in (11, 12, 13, 14)]
        found = run(self.trackers(*there).relays(GetRelays()))
        self.assertEqual(sum(one.asked for one in there), 3)
        self.assertEqual(set(found), {one.identity for one in there if one.asked})
        peer = self.known.get(node(1))
        assert peer is not None
        self.assertEqual(set(peer.sources), set(found))
        self.assertEqual(len(self.known), 4)

    def test_so_many_are_told_at_a_time(self) -> None:
        there = [Tracker(number) for number in range(TRACKERS + 4)]
        answers = run(self.trackers(*there).publish(told(1)))
        self.assertEqual((len(answers), sum(one.asked for one in there)), (TRACKERS, TRACKERS))

    def test_those_that_fail_are_left_out(self) -> None:
        dead = Dead(12)
        asked = self.trackers(Tracker(11, told(1)), dead, Gone(13), Liar(14), count=4)
        found = Deferred.fromCoroutine(asked.relays(GetRelays()))
        self.assertNoResult(found)
        self.clock.advance(ASK_TIME)
        self.assertEqual(
            {one: [d.identity for d in raws] for one, raws in self.successResultOf(found).items()},
            {node(11): [node(1)]},
        )

    def test_nonsense_three_times_and_it_is_not_heard(self) -> None:
        asked = self.trackers(Liar(14))
        for _ in range(3):
            self.failureResultOf(Deferred.fromCoroutine(asked.relays(GetRelays())), Unavailable)
        self.assertTrue(self.known.distrusts(node(14), NOW))

    def test_bad_descriptors_are_dropped_one_by_one_and_counted(self) -> None:
        """G29."""
        found = run(self.trackers(Bad(11)).relays(GetRelays()))
        self.assertEqual(found, {node(11): [told(1)]})
        self.assertEqual([peer.identity for peer in self.known], [node(1)])
        self.assertTrue(self.known.distrusts(node(11), NOW))

    def test_none_and_none_that_answers(self) -> None:
        for asked, why in ((self.trackers(), "no tracker is known"), (self.trackers(Gone(1)), "no tracker answers")):
            for call in (asked.relays(GetRelays()), asked.publish(told(50)), asked.unpublish(key(50))):
                reason = self.failureResultOf(Deferred.fromCoroutine(call), Unavailable)
                self.assertEqual(str(reason.value), why)

    def test_publish_and_unpublish(self) -> None:
        there = [Tracker(number) for number in (11, 12, 13, 14)]
        asked = self.trackers(*there, Gone(15))
        told_to = run(asked.publish(told(50)))
        self.assertEqual(
            {(one.tracker, one.status) for one in told_to},
            {*((one.identity, Status.LISTED) for one in there), (node(15), None)},
        )
        self.assertEqual([len(one.index) for one in there], [1] * 4)
        told_to = run(asked.unpublish(key(50)))
        self.assertIn(Answer(node(11), Status.REMOVED), told_to)
        self.assertEqual([len(one.index) for one in there], [0] * 4)

    def test_a_bug_is_a_bug(self) -> None:
        async def broken(command: int, data: bytes, answers: Container[int]) -> tuple[int, bytes]:
            raise ZeroDivisionError

        asked = Trackers(lambda: [Source(node(1), broken)], self.known, MAIN, random.Random(1), self.clock, lambda: NOW)
        reason = self.failureResultOf(Deferred.fromCoroutine(asked.relays(GetRelays())))
        self.assertIn("ZeroDivisionError", str(reason))
        self.assertNotIsInstance(reason.value, (TimedOut, RemoteProtocolError))


class RowTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.known = Database(MAIN)
        self.there = [Tracker(number, told(1, roles=Role.RELAY | Role.EXIT), told(2)) for number in (11, 12, 13)]
        self.there[0].index.enlist(told(1, serial=2, roles=Role.RELAY | Role.EXIT, exits=b"80"), NOW)
        sources = [Source(one.identity, one.ask) for one in self.there]
        asked = Trackers(lambda: sources, self.known, MAIN, random.Random(1), Clock(), lambda: NOW)
        self.own: Descriptor | None = told(50)
        self.roles: tuple[str, ...] = ("read", "operate", "admin")
        self.table = Table(lambda: NOW)
        self.table.add(TrackerRows(asked, key(50), lambda: self.own))
        self.table.add(ListRows(self.there[0].index))

    def call(self, name: str, **params: Any) -> Any:
        return run(self.table.call(caller(*self.roles), name, params))

    def test_publish_and_unpublish(self) -> None:
        answer = self.call("tracker.publish")
        self.assertEqual({one["status"] for one in answer["trackers"]}, {"listed"})
        self.assertEqual({one["tracker"] for one in answer["trackers"]}, {id_text(one.identity) for one in self.there})
        self.assertEqual({one["status"] for one in self.call("tracker.unpublish")["trackers"]}, {"removed"})

    def test_publish_from_a_non_relay_is_refused_here(self) -> None:
        """G27."""
        self.own = None
        before = [one.asked for one in self.there]
        for name in ("tracker.publish", "tracker.unpublish"):
            with self.assertRaises(CallRefused):
                self.call(name)
        self.assertEqual([one.asked for one in self.there], before)

    def test_relays(self) -> None:
        found = {one["node"]: one for one in self.call("tracker.relays")["relays"]}
        self.assertEqual(set(found), {id_text(node(1)), id_text(node(2))})
        exits = found[id_text(node(1))]
        self.assertEqual((exits["roles"], exits["exits"], len(exits["trackers"])), (["relay", "exit"], "80", 3))
        self.assertEqual(exits["endpoints"], ["tcp:60.1.0.1:9000"])
        self.assertEqual(len(self.known), 2)
        self.assertEqual(
            [one["node"] for one in self.call("tracker.relays", role="exit")["relays"]], [id_text(node(1))]
        )
        self.assertEqual(len(self.call("tracker.relays", count=1, role="relay")["relays"]) > 0, True)
        with self.assertRaises(CallRefused):
            self.call("tracker.relays", role="king")

    def test_list(self) -> None:
        for number in range(20, 140):
            self.there[0].index.enlist(told(number, endpoints=(), via=(node(1000 + number),)), NOW)
        cursor, found = None, []
        while True:
            page = self.call("tracker.list", limit=50, **({"cursor": cursor} if cursor else {}))
            found += [one["node"] for one in page["relays"]]
            cursor = page.get("next")
            if cursor is None:
                break
        self.assertEqual((len(found), len(set(found))), (len(self.there[0].index), len(self.there[0].index)))
        self.assertEqual(len(found), 122)
        self.assertRegex(page["relays"][-1]["endpoints"][0], "via:[a-z2-7]{52}$")
        with self.assertRaises(CallRefused):
            self.call("tracker.list", cursor="x")

    def test_addresses_are_for_administrators(self) -> None:
        self.roles = ("read", "operate")
        for name in ("tracker.relays", "tracker.list"):
            rows = self.call(name)["relays"]
            self.assertTrue(rows)
            self.assertEqual({tuple(row["endpoints"]) for row in rows}, {()})

    def test_the_event(self) -> None:
        self.assertEqual(ListRows.events[0].name, "tracker.changed")
        self.table.publish("tracker.changed", Listed(3))

    def test_without_trackers(self) -> None:
        none = Trackers(list, self.known, MAIN, random.Random(1), Clock(), lambda: NOW)
        self.table = Table(lambda: NOW)
        self.table.add(TrackerRows(none, key(50), lambda: self.own))
        with self.assertRaises(CallUnavailable):
            self.call("tracker.relays")
