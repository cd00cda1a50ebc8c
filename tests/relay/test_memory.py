"""What survives a restart: a file that is closed and opened again, and one that fails."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

from twisted.internet.defer import Deferred, fail

from layer8.core.errors import StorageError
from layer8.crypto.descriptor import DAY
from layer8.net.sqlite import Database as File
from layer8.net.storage import Change
from layer8.relay import memory
from layer8.relay.credit import Owed
from layer8.relay.database import Database
from layer8.relay.guards import Guards, SecondHops, State
from layer8.relay.memory import SCHEMA, Kept, Letter, Memory
from layer8.relay.path import Paths, Want
from layer8.testing.storage import InlineStorage
from tests.descriptors import MAIN, NOW, EasyWork, node
from tests.relay.peers import vetted


class Full(InlineStorage):
    """A disk that takes nothing more."""

    def write(self, *changes: Change) -> Deferred[None]:
        """Fail."""
        return fail(StorageError("disk full"))


class Written(InlineStorage):
    """One that says what was written."""

    written: list[Change]

    def write(self, *changes: Change) -> Deferred[None]:
        """Write, and remember."""
        self.written += changes
        return super().write(*changes)


class MemoryTests(EasyWork):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp()) / "node.db"

    def opened(self) -> tuple[Memory, InlineStorage]:
        storage = InlineStorage(File(self.path, SCHEMA))
        self.addCleanup(lambda: storage.close().addErrback(lambda _: None))
        return Memory(storage), storage

    def again(self, now: float = NOW) -> tuple[Database, Guards, SecondHops, Kept]:
        """Start as after a restart."""
        known = Database(MAIN)
        guards, layer2 = Guards(known, random.Random(9)), SecondHops(known, random.Random(9))
        kept, storage = self.opened()
        found = kept.load(known, guards, layer2, now)
        self.successResultOf(storage.close())
        return known, guards, layer2, found

    def saved(self, count: int = 12) -> tuple[Database, Guards, SecondHops]:
        """Write a node's memory down, and close the file."""
        known = vetted(range(count))
        known.measured(node(1), 1234.5)
        known.failed(node(2))
        known.pin(node(3))
        chance = random.Random(4)
        guards, layer2 = Guards(known, chance), SecondHops(known, chance)
        chosen = Paths(known, guards, chance, layer2=layer2).choose(Want(layer2=True), NOW)
        guards.worked(chosen[0].identity, NOW + 1)
        mine, storage = self.opened()
        for deferred in (
            mine.save(known, guards, layer2),
            mine.pin(node(3), "tcp:192.0.2.1:9000"),
            mine.alias("home", node(4)),
            mine.keep_tunnel("1000>rand>host:80", NOW),
            mine.keep_tunnel("900>rand>host:80", NOW + 1),
            mine.keep_letter(Letter(b"n" * 16, NOW, b"", b"hello")),
            mine.save_credit({node(5): Owed(10, 20, NOW)}),
        ):
            self.successResultOf(Deferred.fromCoroutine(deferred))
        self.successResultOf(storage.close())
        return known, guards, layer2

    def lives(self, layer2: SecondHops) -> set[tuple[bytes, float]]:
        return {(hop.identity, hop.expires) for hop in layer2.rows}

    def test_everything_of_section_15(self) -> None:
        known, guards, layer2 = self.saved()
        after, guards_after, layer2_after, kept = self.again()
        self.assertEqual(
            [(p.descriptor, p.first, p.seen, p.sources, p.good, p.bad, p.speed, p.last_good) for p in after],
            sorted(
                ((p.descriptor, p.first, p.seen, p.sources, p.good, p.bad, p.speed, p.last_good) for p in known),
                key=lambda row: [p.identity for p in after].index(row[0].identity),
            ),
        )
        self.assertEqual(after.pins, {node(3)})
        self.assertEqual(
            [(g.identity, g.since, g.expires, g.state, g.confirmed) for g in guards_after.rows],
            [(g.identity, g.since, g.expires, g.state, g.confirmed) for g in guards.rows],
        )
        self.assertEqual(
            {h.identity: h.expires for h in layer2_after.rows}, {h.identity: h.expires for h in layer2.rows}
        )
        self.assertEqual(kept.pins, {node(3): "tcp:192.0.2.1:9000"})
        self.assertEqual(kept.aliases, {"home": node(4)})
        self.assertEqual(kept.tunnels, ("1000>rand>host:80", "900>rand>host:80"))
        self.assertEqual(kept.inbox, (Letter(b"n" * 16, NOW, b"", b"hello"),))
        self.assertEqual(kept.credit, {node(5): Owed(10, 20, NOW)})

    def test_circuits_from_memory_after_every_tracker_has_died(self) -> None:
        """G11: nobody is asked anything, also days after the last descriptor has expired."""
        _, guards, _ = self.saved()
        for now in (NOW + 3600, NOW + 10 * DAY):
            after, guards_after, layer2, _ = self.again(now)
            chosen = Paths(after, guards_after, random.Random(1), layer2=layer2).choose(Want(), now)
            self.assertEqual(len(chosen), 3)
            self.assertIn(chosen[0].identity, guards.ids())

    def test_only_what_has_changed_is_written(self) -> None:
        self.saved()
        known = Database(MAIN)
        guards, layer2 = Guards(known, random.Random(9)), SecondHops(known, random.Random(9))
        storage = Written(File(self.path, SCHEMA))
        written: list[Change] = []
        storage.written = written
        self.addCleanup(storage.close)
        mine = Memory(storage)
        mine.load(known, guards, layer2, NOW)
        self.successResultOf(Deferred.fromCoroutine(mine.save(known, guards, layer2)))
        self.assertEqual(written, [])
        known.worked(node(1), NOW)
        self.successResultOf(Deferred.fromCoroutine(mine.save(known, guards, layer2)))
        self.assertEqual(len(written), 3)  # the peer, and its two sources
        known.prune(NOW + 100 * DAY)
        guards.first(NOW, lambda peer: True, lambda peer: 1.0)
        self.successResultOf(Deferred.fromCoroutine(mine.save(known, guards, layer2)))
        self.assertEqual([storage.rows(table) for table in ("peers", "sources", "guards")], [[], [], []])

    def test_a_disk_that_fails_loses_nothing(self) -> None:
        known = vetted(range(3))
        guards, layer2 = Guards(known, random.Random(9)), SecondHops(known, random.Random(9))
        file = File(self.path, SCHEMA)
        full = Memory(Full(file))
        self.failureResultOf(Deferred.fromCoroutine(full.save(known, guards, layer2)), StorageError)
        storage = InlineStorage(file)
        self.addCleanup(storage.close)
        self.successResultOf(Deferred.fromCoroutine(Memory(storage).save(known, guards, layer2)))
        self.assertEqual(len(storage.rows("peers")), 3)

    def test_forgetting(self) -> None:
        self.saved()
        mine, storage = self.opened()
        for deferred in (
            mine.unpin(node(3)),
            mine.unalias("home"),
            mine.drop_tunnel("1000>rand>host:80"),
            mine.save_credit({}, gone=(node(5),)),
            mine.save_credit({}),
        ):
            self.successResultOf(Deferred.fromCoroutine(deferred))
        self.successResultOf(storage.close())
        kept = self.again()[3]
        self.assertEqual((kept.pins, kept.aliases, kept.credit, kept.tunnels), ({}, {}, {}, ("900>rand>host:80",)))

    def test_an_inbox_has_an_end(self) -> None:
        self.patch(memory, "INBOX", 3)
        self.saved()
        mine, storage = self.opened()
        known = Database(MAIN)
        mine.load(known, Guards(known, random.Random(1)), SecondHops(known, random.Random(1)), NOW)
        for number in range(5):
            letter = Letter(b"%016d" % number, NOW + 1 + number, node(1), b"text")
            self.successResultOf(Deferred.fromCoroutine(mine.keep_letter(letter)))
        self.successResultOf(storage.close())
        self.assertEqual([letter.number for letter in self.again()[3].inbox], [b"%016d" % n for n in (2, 3, 4)])

    def test_rows_of_another_version_are_left_out(self) -> None:
        self.saved()
        with sqlite3.connect(self.path) as file:
            file.execute("UPDATE peers SET descriptor = x'00' WHERE id = ?", (node(1),))
        file.close()
        self.assertEqual(len(self.again()[0]), 11)

    def test_guards_are_in_the_state_that_they_were_in(self) -> None:
        _, guards, _ = self.saved()
        self.assertIn(State.PRIMARY, {guard.state for guard in guards.rows})
        self.assertEqual(
            {guard.identity: guard.state for guard in self.again()[1].rows},
            {guard.identity: guard.state for guard in guards.rows},
        )

    def test_nobody_else_may_read_it(self) -> None:
        self.saved()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)
