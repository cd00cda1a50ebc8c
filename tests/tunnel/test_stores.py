"""Keys and marks in memory, in SQLite and in a real PostgreSQL: the same questions, the same answers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, StorageError
from layer8.tunnel import gateway_sqlite
from layer8.tunnel.gateway_sqlite import SqliteKeys, SqliteTables
from layer8.tunnel.keys import GatewayKey
from layer8.tunnel.keystore import KeyRow, KeyStore, MemoryKeys
from layer8.tunnel.limits import REPLAY_WINDOW
from layer8.tunnel.replay import MARK, MINUTE, Verdict, Window
from layer8.tunnel.replay_store import MemoryMarks, ReplayStore, TableMarks
from tests.proxy.postgres import Postgres, no_postgres, shared

NOW = 1_800_000_030.0
MOST = 1000


def row(epoch: int) -> KeyRow:
    return KeyRow.of(GatewayKey.make(epoch))


def mark() -> bytes:
    return os.urandom(MARK)


class Suite:
    """What every store does; `open` gives one worker's view of the same tables."""

    def open(self, most: int = MOST) -> tuple[KeyStore, ReplayStore]:
        raise NotImplementedError

    def opened(self: Any, most: int = MOST) -> tuple[KeyStore, ReplayStore]:
        keys, marks = self.open(most)
        self.addCleanup(keys.close)
        self.addCleanup(marks.close)
        return keys, marks

    def test_first_key_of_an_epoch_stays(self: Any) -> None:
        keys, _ = self.opened()
        first, second = row(500_000), row(500_000)
        self.assertEqual(keys.offer(first), first)
        self.assertEqual(keys.offer(second), first)
        self.assertEqual(keys.rows(), [first])
        keys.offer(other := KeyRow(500_001, first.secret, b"signed"))
        self.assertEqual(sorted(keys.rows(), key=lambda one: one.epoch), [first, other])
        keys.drop(500_000)
        keys.drop()
        self.assertEqual(keys.rows(), [other])

    def test_marks(self: Any) -> None:
        _, marks = self.opened()
        one, two = mark(), mark()
        self.assertIs(marks.add(one, NOW, NOW), Verdict.NEW)
        self.assertIs(marks.add(one, NOW, NOW), Verdict.REPEAT)
        self.assertIs(marks.add(one, NOW, NOW + 200), Verdict.REPEAT)
        self.assertIs(marks.add(two, NOW - REPLAY_WINDOW, NOW), Verdict.NEW)
        self.assertIs(marks.add(two, NOW - REPLAY_WINDOW, NOW), Verdict.REPEAT)
        self.assertIs(marks.add(mark(), NOW + REPLAY_WINDOW, NOW), Verdict.NEW)
        self.assertIs(marks.add(mark(), NOW + REPLAY_WINDOW + MINUTE, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(), NOW - REPLAY_WINDOW - MINUTE, NOW), Verdict.DATE)
        marks.tidy(NOW + 2 * REPLAY_WINDOW)
        self.assertIs(marks.add(one, NOW, NOW + 2 * REPLAY_WINDOW), Verdict.DATE)

    def test_window_shrinks_to_what_fits(self: Any) -> None:
        _, marks = self.opened(300)
        old = [mark() for _ in range(100)]
        for one in old:
            self.assertIs(marks.add(one, NOW - MINUTE, NOW), Verdict.NEW)
        for _ in range(600):
            marks.add(mark(), NOW, NOW)
        marks.tidy(NOW)
        for one in old:
            self.assertIsNot(marks.add(one, NOW - MINUTE, NOW), Verdict.NEW)
        self.assertIs(marks.add(mark(), NOW - MINUTE, NOW), Verdict.DATE)
        self.assertGreater(marks.window.since, NOW - MINUTE)

    def test_marks_without_dates(self: Any) -> None:
        _, marks = self.opened(5)
        one = mark()
        self.assertIs(marks.add_dateless(one, 500_000), Verdict.NEW)
        self.assertIs(marks.add_dateless(one, 500_000), Verdict.REPEAT)
        self.assertIs(marks.add_dateless(one, 500_001), Verdict.NEW)
        for _ in range(3):
            self.assertIs(marks.add_dateless(mark(), 500_001), Verdict.NEW)
        self.assertIs(marks.add_dateless(mark(), 500_001), Verdict.DATE)
        marks.forget(500_001)
        self.assertIs(marks.add_dateless(mark(), 500_002), Verdict.NEW)


class MemoryTests(Suite, SynchronousTestCase):
    """In memory."""

    def open(self, most: int = MOST) -> tuple[KeyStore, ReplayStore]:
        return MemoryKeys(), MemoryMarks(Window(most))


class Shared(Suite):
    """What workers share."""

    def test_one_worker_of_many_is_first(self: Any) -> None:
        workers = [self.opened() for _ in range(4)]
        rows = [row(500_000) for _ in workers]
        ones = [mark() for _ in range(200)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda both: both[0][0].offer(both[1]), zip(workers, rows, strict=True)))
            self.assertEqual(len(set(found)), 1)
            said = list(
                threads.map(lambda both: both[0][1].add(both[1], NOW, NOW), [(w, o) for o in ones for w in workers])
            )
        self.assertEqual(said.count(Verdict.NEW), len(ones))
        self.assertEqual(said.count(Verdict.REPEAT), 3 * len(ones))

    def test_restart(self: Any) -> None:
        keys, marks = self.open()
        kept, one = row(500_000), mark()
        keys.offer(kept)
        marks.add(one, NOW, NOW)
        marks.add_dateless(one, 500_000)
        marks.close()
        keys.close()
        keys, marks = self.opened()
        self.assertEqual(keys.rows(), [kept])
        self.assertIs(marks.add(one, NOW, NOW), Verdict.REPEAT)
        self.assertIs(marks.add_dateless(one, 500_000), Verdict.REPEAT)

    def test_what_another_worker_has_dropped_never_comes_back(self: Any) -> None:
        _, first = self.opened()
        _, second = self.opened()
        one = mark()
        self.assertIs(second.add(one, NOW, NOW), Verdict.NEW)
        first.tidy(NOW + REPLAY_WINDOW + MINUTE)  # its clock is ahead of the other's
        self.assertIs(second.add(one, NOW, NOW), Verdict.DATE)
        self.assertIs(second.add(mark(), NOW + MINUTE, NOW), Verdict.NEW)

    def test_what_is_too_much_for_all_is_dropped_for_all(self: Any) -> None:
        _, first = self.opened(300)
        _, second = self.opened(300)
        one = mark()
        second.add(one, NOW - MINUTE, NOW)
        for _ in range(300):
            first.add(mark(), NOW, NOW)
        second.tidy(NOW)
        first.tidy(NOW)
        self.assertIs(second.add(one, NOW - MINUTE, NOW), Verdict.DATE)

    def test_forked_worker(self: Any) -> None:
        """As with `gunicorn --preload`: the tables are opened before there are workers."""
        keys, marks = self.opened()
        one, kept = mark(), row(500_000)
        keys.offer(kept)
        marks.add(one, NOW, NOW)
        child = os.fork()
        if not child:
            same = False
            try:
                same = keys.rows() == [kept] and marks.add(one, NOW, NOW) is Verdict.REPEAT
                same = same and marks.add(bytes(MARK), NOW, NOW) is Verdict.NEW
            finally:
                os._exit(0 if same else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertIs(marks.add(bytes(MARK), NOW, NOW), Verdict.REPEAT)
        self.assertEqual(keys.rows(), [kept])


class SqliteTests(Shared, SynchronousTestCase):
    """In two files."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())

    def open(self, most: int = MOST) -> tuple[KeyStore, ReplayStore]:
        keys = SqliteKeys(self.folder, "shop")
        return keys, TableMarks(SqliteTables(keys), most)

    def lost(self) -> None:
        """Marks are lost, so nothing from before counts; keys stay, and later requests count."""
        keys, marks = self.opened()
        self.assertEqual([one.epoch for one in keys.rows()], [500_000])
        self.assertIs(marks.add(self.one, NOW, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(), NOW + MINUTE, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(), NOW + 2 * MINUTE, NOW), Verdict.NEW)
        self.assertIs(marks.add_dateless(self.one, 500_000), Verdict.DATE)
        self.assertIs(marks.add_dateless(self.one, 500_001), Verdict.NEW)

    def remember(self) -> None:
        keys, marks = self.open()
        self.one = mark()
        keys.offer(row(500_000))
        self.assertIs(marks.add(self.one, NOW, NOW), Verdict.NEW)
        marks.add(mark(), NOW + MINUTE, NOW)
        marks.add_dateless(self.one, 500_000)
        marks.close()
        keys.close()

    def test_machine_that_started_anew(self) -> None:
        self.remember()
        boot = self.folder / "boot"
        boot.write_text("another")
        self.patch(gateway_sqlite, "BOOT", boot)
        self.lost()
        _, marks = self.opened()  # once, not with each worker
        self.assertIs(marks.add(mark(), NOW + 2 * MINUTE, NOW), Verdict.NEW)

    def test_damaged_marks(self) -> None:
        self.remember()
        path = self.folder / "replay.sqlite3"
        path.write_bytes(b"no database " * 500)
        self.lost()

    def test_deleted_marks(self) -> None:
        self.remember()
        for path in self.folder.glob("replay*"):
            path.unlink()
        self.lost()

    def test_first_start_waits_for_nothing(self) -> None:
        _, marks = self.opened()
        self.assertIs(marks.add(mark(), NOW - REPLAY_WINDOW, NOW), Verdict.NEW)

    def test_files(self) -> None:
        keys, marks = self.opened()
        secret = row(500_000)
        keys.offer(secret)
        marks.add(mark(), NOW, NOW)
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        for path in self.folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        keys.drop(500_000)
        for path in self.folder.iterdir():
            self.assertNotIn(secret.secret[:32], path.read_bytes(), path)

    def test_another_gateways_folder(self) -> None:
        self.opened()
        with self.assertRaisesRegex(ConfigError, "another gateway, 'shop'"):
            SqliteKeys(self.folder, "other")

    def test_readable_file(self) -> None:
        self.opened()[0].close()
        (self.folder / "keys.sqlite3").chmod(0o644)
        with self.assertRaisesRegex(ConfigError, "chmod 600"):
            self.open()

    def test_damaged_keys_are_not_replaced(self) -> None:
        self.opened()[0].close()
        (self.folder / "keys.sqlite3").write_bytes(b"no database " * 500)
        with self.assertRaisesRegex(StorageError, "not a database"):
            self.open()


class PostgresTests(Shared, SynchronousTestCase):
    """In PostgreSQL."""

    skip = no_postgres()

    def setUp(self) -> None:
        self.conninfo = shared().database()

    def open(self, most: int = MOST) -> tuple[KeyStore, ReplayStore]:
        from layer8.tunnel.gateway_pg import PgKeys, PgTables

        keys = PgKeys(self.conninfo, "shop")
        return keys, TableMarks(PgTables(keys.pool), most)

    def test_gateways_have_keys_of_their_own(self) -> None:
        from layer8.tunnel.gateway_pg import PgKeys

        keys, _ = self.opened()
        other = PgKeys(self.conninfo, "other")
        self.addCleanup(other.close)
        keys.offer(row(500_000))
        self.assertEqual(other.rows(), [])

    def test_crash_of_the_database(self) -> None:
        server = Postgres.start(self)
        self.conninfo = server.database()
        keys, marks = self.opened()
        one = mark()
        keys.offer(kept := row(500_000))
        self.assertIs(marks.add(one, NOW, NOW), Verdict.NEW)
        marks.add(mark(), NOW + MINUTE, NOW)
        marks.add_dateless(one, 500_000)
        server.kill()
        with self.assertRaises(StorageError):
            marks.add(mark(), NOW, NOW)
        server.again()
        self.assertEqual(keys.rows(), [kept])
        self.assertIs(marks.add(one, NOW, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(), NOW + MINUTE, NOW), Verdict.DATE)
        self.assertIs(marks.add(mark(), NOW + 2 * MINUTE, NOW), Verdict.NEW)
        self.assertIs(marks.add_dateless(one, 500_000), Verdict.DATE)
        self.assertIs(marks.add_dateless(one, 500_001), Verdict.NEW)

    def test_no_database(self) -> None:
        from layer8.tunnel.gateway_pg import PgKeys

        with self.assertRaises(StorageError) as caught:
            PgKeys("host=127.0.0.1 port=1 password=hidden-word", "shop")
        self.assertNotIn("hidden-word", str(caught.exception))

    def test_a_string_that_cannot_be_read(self) -> None:
        """The password may be the word that the library stumbles over."""
        from layer8.tunnel.gateway_pg import PgKeys

        for wrong in ("hidden", "password=x hidden", "postgresql://u:hid hidden@h/db", "postgresql://u:hidden%zz@h/db"):
            with self.assertRaises(StorageError) as told:
                PgKeys(wrong, "shop")
            self.assertNotIn("hid", str(told.exception))
            self.assertIsNone(told.exception.__cause__)
