"""A tracker as its circuits see it: publish, unpublish, ask; dialling back; restarts."""

from __future__ import annotations

import random
from pathlib import Path

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import Logger

from layer8.core.errors import LimitExceeded, RemoteProtocolError, StorageError, Unavailable
from layer8.core.roles import Answers
from layer8.crypto.descriptor import DESC_LIFE, LISTED, Descriptor, unpack
from layer8.net.sqlite import Database as File
from layer8.net.storage import Change
from layer8.net.tasks import TaskSet
from layer8.relay.memory import SCHEMA
from layer8.testing.storage import InlineStorage
from layer8.tracker import service
from layer8.tracker.index import Index
from layer8.tracker.limits import ASKS, DIAL_TIME, DIALS, MISSING
from layer8.tracker.service import Listed, Tracker
from layer8.tracker.wire import GetRelays, Status, Track, Unpublish, read_ok
from tests.descriptors import MAIN, NOW, EasyWork, FakeAsker, key, node, told


class Full(InlineStorage):
    """A disk that takes nothing more."""

    def write(self, *changes: Change) -> Deferred[None]:
        """Fail."""
        return fail(StorageError("disk full"))


class TrackerTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.now = NOW
        self.path = Path(self.mktemp()) / "node.db"
        self.storage = InlineStorage(File(self.path, SCHEMA))
        self.addCleanup(lambda: self.storage.close().addErrback(lambda _: None))
        self.dialled: list[Deferred[bool]] = []
        self.heard: list[Listed] = []
        self.tracker = self.made()

    def made(self, storage: InlineStorage | None = None) -> Tracker:
        """Make a tracker as at a start."""

        async def dial(descriptor: Descriptor) -> bool:
            waiting: Deferred[bool] = Deferred()
            self.dialled.append(waiting)
            return await waiting

        tasks = TaskSet(Logger())
        self.addCleanup(tasks.stop)
        index = Index(MAIN, random.Random(1), lambda descriptor, port: False)
        kept = storage or self.storage
        return Tracker(index, dial, kept, tasks, self.clock, lambda: self.now, self.heard.append)

    def ask(self, command: Track, data: bytes, asker: FakeAsker | None = None) -> FakeAsker:
        asker = asker or FakeAsker()
        self.tracker.asked(asker, command, data, self.clock.seconds())
        return asker

    def publish(self, descriptor: Descriptor, there: bool = True) -> FakeAsker:
        asker = self.ask(Track.PUBLISH, descriptor.raw)
        self.dialled.pop().callback(there)
        self.tracker.gone(asker.circuit)
        return asker

    def statuses(self, asker: FakeAsker) -> list[Status]:
        self.assertEqual({command for command, _ in asker.got}, {Track.OK})
        return [read_ok(data) for _, data in asker.got]

    def test_it_is_a_role(self) -> None:
        role: Answers = self.tracker
        self.assertEqual(role.commands, {16, 17, 18})

    def test_publish(self) -> None:
        """G27: nothing is listed before the relay has been found at its addresses."""
        asker = self.ask(Track.PUBLISH, told(1).raw)
        self.assertEqual((asker.got, len(self.tracker.index)), ([], 0))
        self.dialled.pop().callback(True)
        self.assertEqual((self.statuses(asker), len(self.tracker.index)), ([Status.LISTED], 1))
        again = self.ask(Track.PUBLISH, told(1).raw)
        self.assertEqual((self.statuses(again), self.dialled), ([Status.LISTED], []))
        self.assertEqual(self.heard, [Listed(1)])

    def test_nobody_there(self) -> None:
        self.assertEqual(self.statuses(self.publish(told(1), there=False)), [Status.UNREACHABLE])
        asker = self.ask(Track.PUBLISH, told(2).raw)
        self.dialled.pop().errback(Unavailable("no route"))
        self.assertEqual(self.statuses(asker), [Status.UNREACHABLE])
        asker = self.ask(Track.PUBLISH, told(3).raw)
        self.clock.advance(DIAL_TIME)
        self.assertEqual((self.statuses(asker), len(self.tracker.index)), ([Status.UNREACHABLE], 0))
        self.assertEqual(self.heard, [])

    def test_bad_ones(self) -> None:
        self.assertEqual(self.statuses(self.ask(Track.PUBLISH, b"noise")), [Status.BAD])
        late = told(1, now=NOW - DESC_LIFE)
        self.assertEqual(self.statuses(self.ask(Track.PUBLISH, late.raw)), [Status.BAD])
        self.publish(told(1, serial=2))
        self.assertEqual(self.statuses(self.ask(Track.PUBLISH, told(1).raw)), [Status.OLDER])
        self.assertEqual(self.dialled, [])

    def test_one_dial_for_a_relay_and_so_many_at_a_time(self) -> None:
        self.ask(Track.PUBLISH, told(0).raw, FakeAsker(circuit=100))
        self.assertEqual(self.statuses(self.ask(Track.PUBLISH, told(0, serial=2).raw)), [Status.BUSY])
        for number in range(1, DIALS):
            self.ask(Track.PUBLISH, told(number).raw, FakeAsker(circuit=100 + number))
        self.assertEqual(self.statuses(self.ask(Track.PUBLISH, told(99).raw)), [Status.BUSY])
        self.dialled.pop().callback(False)
        self.assertEqual(self.ask(Track.PUBLISH, told(99).raw).got, [])

    def test_an_asker_that_has_gone_is_listed_all_the_same(self) -> None:
        asker = self.ask(Track.PUBLISH, told(1).raw)
        asker.alive = False
        self.tracker.gone(asker.circuit)
        self.dialled.pop().callback(True)
        self.assertEqual((asker.got, len(self.tracker.index)), ([], 1))

    def test_unpublish(self) -> None:
        """G28."""
        self.publish(told(1))
        data = Unpublish.make(key(1), MAIN, NOW).encode()
        self.assertEqual(self.statuses(self.ask(Track.UNPUBLISH, data)), [Status.REMOVED])
        self.assertEqual((len(self.tracker.index), self.storage.rows("tracked")), (0, []))
        self.assertEqual(self.statuses(self.ask(Track.UNPUBLISH, data)), [Status.UNKNOWN])
        self.assertEqual(self.heard, [Listed(1), Listed(0)])
        with self.assertRaises(RemoteProtocolError):
            self.ask(Track.UNPUBLISH, data[1:])

    def test_relays_never_more_than_25_and_ten_times_a_circuit(self) -> None:
        """G29, G1."""
        for number in range(40):
            self.tracker.index.enlist(told(number), NOW)
        asker = FakeAsker(circuit=7)
        for _ in range(ASKS):
            self.ask(Track.GET_RELAYS, GetRelays(25).encode(), asker)
        for command, data in asker.got:
            self.assertEqual(command, Track.RELAY_LIST)
            self.assertEqual(len({Descriptor.read(raw).identity for raw in unpack(data)}), LISTED)
        with self.assertRaises(LimitExceeded):
            self.ask(Track.GET_RELAYS, GetRelays(1).encode(), asker)
        self.tracker.gone(7)
        self.ask(Track.GET_RELAYS, GetRelays(1).encode(), asker)
        with self.assertRaises(RemoteProtocolError):
            self.ask(Track.GET_RELAYS, b"\x1a\0\0\0\0")

    def test_circuits_are_counted_up_to_a_limit(self) -> None:
        self.patch(service, "CIRCUITS", 3)
        for circuit in (1, 2, 3, 1, 4):
            self.ask(Track.GET_RELAYS, GetRelays(1).encode(), FakeAsker(circuit=circuit))
        self.assertEqual(self.tracker._asks, {3: 1, 1: 2, 4: 1})  # whoever has said nothing for longest is forgotten

    def test_a_restart(self) -> None:
        """What was listed is there, until it expires."""
        self.publish(told(1))
        self.now += 600
        self.publish(told(2, now=NOW + 600))
        self.assertEqual(len(self.storage.rows("tracked")), 2)
        for now, left in ((NOW + 900, {node(1), node(2)}), (NOW + DESC_LIFE, {node(2)}), (NOW + 2 * DESC_LIFE, set())):
            self.now = now
            self.tracker = self.made()
            self.tracker.load()
            self.assertEqual({one.identity for one in self.tracker.index}, left)
            self.assertEqual(len(self.storage.rows("tracked")), len(left))

    def test_what_expires_is_struck_out(self) -> None:
        self.publish(told(1))
        self.now += DESC_LIFE
        self.ask(Track.GET_RELAYS, GetRelays(1).encode())
        self.assertEqual((len(self.tracker.index), self.storage.rows("tracked")), (0, []))
        self.assertEqual(self.heard[-1], Listed(0))

    def test_a_disk_that_fails_costs_no_answer(self) -> None:
        self.tracker = self.made(Full(File(self.path, SCHEMA)))
        self.assertEqual(self.statuses(self.publish(told(1))), [Status.LISTED])

    def test_who_was_not_there_does_not_keep_others_from_being_dialled(self) -> None:
        """Thirty-two names that nobody answers for would keep a tracker busy for ever."""
        for number in range(DIALS):
            self.assertEqual(self.statuses(self.publish(told(number), there=False)), [Status.UNREACHABLE])
        for number in range(DIALS):
            asker = self.ask(Track.PUBLISH, told(number, serial=2).raw, FakeAsker(circuit=number))
            self.assertEqual(self.statuses(asker), [Status.UNREACHABLE])
        self.assertEqual(self.dialled, [])
        self.assertEqual(self.statuses(self.publish(told(DIALS))), [Status.LISTED])
        self.now += MISSING
        self.assertEqual(self.statuses(self.publish(told(1, serial=3))), [Status.LISTED])

    def test_the_missing_are_remembered_up_to_a_limit(self) -> None:
        self.patch(service, "MISSED", 2)
        for number in range(3):
            self.publish(told(number), there=False)
        self.assertEqual(list(self.tracker._missing), [node(1), node(2)])
        self.assertEqual(self.statuses(self.publish(told(0))), [Status.LISTED])
