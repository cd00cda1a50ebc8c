"""Durable state: the same tests over the writing thread and over the inline fake, then what goes wrong with disks."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from layer8.core.errors import StorageError
from layer8.net import storage as storage_module
from layer8.net.sqlite import Database, StorageFailed
from layer8.net.storage import Drop, Put, Storage, ThreadedStorage, Value
from layer8.testing.storage import InlineStorage
from tests.net import storage_child
from tests.net.storage_child import MIGRATIONS


class Shared:
    """Keeps trial from running the base by itself."""

    class AnyStorage(TestCase):
        """What every storage does."""

        timeout = 30

        def setUp(self) -> None:
            self.path = Path(self.mktemp()).absolute() / "state" / "test.db"

        def open(self) -> Storage:
            raise NotImplementedError

        async def test_rows_survive(self) -> None:
            storage = self.open()
            row: dict[str, Value] = {"number": 1, "word": "b\u00fccher", "data": b"\0\xff"}
            await storage.write(Put("things", row), Put("things", {"number": 2}))
            self.assertEqual(storage.rows("things")[0], row)
            await storage.close()
            again = self.open()
            self.assertEqual(again.rows("things"), [row, {"number": 2, "word": "", "data": None}])
            await again.close()

        async def test_put_updates_by_key(self) -> None:
            storage = self.open()
            await storage.write(Put("things", {"number": 1, "word": "a", "data": b"x"}))
            await storage.write(Put("things", {"number": 1, "word": "b"}))
            self.assertEqual(storage.rows("things"), [{"number": 1, "word": "b", "data": b"x"}])
            await storage.close()

        async def test_drop(self) -> None:
            storage = self.open()
            await storage.write(*(Put("things", {"number": number, "word": "ab"[number % 2]}) for number in range(6)))
            await storage.write(Drop("things", {"word": "a", "number": 2}), Drop("things", {"number": 99}))
            self.assertEqual(sorted(str(row["number"]) for row in storage.rows("things")), ["0", "1", "3", "4", "5"])
            await storage.write(Drop("things", {"data": None, "word": "b"}))
            self.assertEqual(len(storage.rows("things")), 2)
            await storage.write(Drop("things", {}))
            self.assertEqual(storage.rows("things"), [])
            await storage.close()

        async def test_all_or_nothing(self) -> None:
            storage = self.open()
            failed = storage.write(Put("things", {"number": 1}), Put("things", {"number": 2, "word": None}))
            with self.assertRaises(StorageFailed) as caught:
                await failed
            self.assertEqual(caught.exception.reason, "refused")
            self.assertEqual(storage.rows("things"), [])
            await storage.write(Put("things", {"number": 1}))
            await storage.close()

        async def test_order(self) -> None:
            storage = self.open()
            await gatherResults([storage.write(Put("things", {"number": 1, "word": str(n)})) for n in range(50)])
            self.assertEqual(storage.rows("things")[0]["word"], "49")
            await storage.close()

        async def test_names_are_ours(self) -> None:
            storage = self.open()
            for change in (
                Put("things; DROP TABLE things", {"number": 1}),
                Put("things", {"number) VALUES (1); --": 1}),
                Drop("things", {"1=1 OR number": 1}),
            ):
                with self.assertRaises(ValueError):
                    await storage.write(change)
            self.assertRaises(ValueError, storage.rows, "sqlite_master WHERE 1")
            await storage.close()

        async def test_backup(self) -> None:
            storage = self.open()
            await storage.write(Put("things", {"number": 1}))
            target = self.path.parent / "copies" / "one.db"
            await storage.backup(target)
            await storage.write(Put("things", {"number": 2}))
            self.assertEqual(target.stat().st_mode & 0o777, 0o600)
            self.assertEqual([entry.name for entry in target.parent.iterdir()], ["one.db"])
            with self.assertRaises(StorageFailed):
                await storage.backup(target)
            copy = Database(target, MIGRATIONS)
            self.assertEqual([row["number"] for row in copy.rows("things")], [1])
            copy.close()
            await storage.close()

        async def test_closed(self) -> None:
            storage = self.open()
            last = storage.write(Put("things", {"number": 1}))
            await storage.close()
            await last
            for again in (storage.write(Put("things", {"number": 2})), storage.backup(self.path), storage.close()):
                with self.assertRaises(StorageError):
                    await again
            check = Database(self.path, MIGRATIONS)
            self.assertEqual(len(check.rows("things")), 1)
            check.close()


class Inline(Shared.AnyStorage):
    def open(self) -> Storage:
        return InlineStorage(Database(self.path, MIGRATIONS))


class Threaded(Shared.AnyStorage):
    def open(self) -> ThreadedStorage:
        from twisted.internet import reactor

        self.told: list[tuple[bool, str]] = []
        return ThreadedStorage(
            cast(IReactorFromThreads, reactor),
            Database(self.path, MIGRATIONS, 0.05),
            lambda ok, why: self.told.append((ok, why)),
        )

    async def test_locked(self) -> None:
        """Another process holds the file: writes fail with the reason, reads go on, later writes work."""
        storage = self.open()
        await storage.write(Put("things", {"number": 1}))
        other = sqlite3.connect(self.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with self.assertRaises(StorageFailed) as caught:
            await storage.write(Put("things", {"number": 2}))
        self.assertEqual(caught.exception.reason, "locked")
        self.assertEqual(len(storage.rows("things")), 1)
        other.execute("COMMIT")
        other.close()
        await storage.write(Put("things", {"number": 3}))
        self.assertEqual([row["number"] for row in storage.rows("things")], [1, 3])
        self.assertEqual([ok for ok, _ in self.told], [True, False, True])
        self.assertIn("locked", self.told[1][1])
        await storage.close()

    async def test_too_many_waiting(self) -> None:
        self.patch(storage_module, "WRITES_WAITING", 2)
        storage = self.open()
        writes = [storage.write(Put("things", {"number": number})) for number in range(4)]
        results = [await write.addBoth(lambda result: result is None) for write in writes]
        self.assertEqual(results, [True, True, False, False])
        await storage.write(Put("things", {"number": 9}))
        self.assertEqual(len(storage.rows("things")), 3)
        await storage.close()

    async def test_cancelled_is_still_written(self) -> None:
        storage = self.open()
        write = storage.write(Put("things", {"number": 1}))
        write.cancel()
        with self.assertRaises(CancelledError):
            await write
        await storage.close()
        again = self.open()
        self.assertEqual(len(again.rows("things")), 1)
        await again.close()


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "state" / "test.db"

    def _failure(self, *migrations: str) -> str:
        return str(self.assertRaises(StorageFailed, Database, self.path, migrations or MIGRATIONS).reason)

    def test_private(self) -> None:
        old = os.umask(0)
        try:
            database = Database(self.path, MIGRATIONS)
            database.apply([Put("things", {"number": 1})])
        finally:
            os.umask(old)
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)
        names = sorted(entry.name for entry in self.path.parent.iterdir())
        self.assertEqual(names, ["test.db", "test.db-shm", "test.db-wal"])
        for name in names:
            self.assertEqual((self.path.parent / name).stat().st_mode & 0o777, 0o600, name)
        database.close()
        self.path.chmod(0o640)
        self.assertEqual(self._failure(), "cannot be opened")

    def test_dropped_is_gone(self) -> None:
        """A retired secret's hash does not stay in the file."""
        database = Database(self.path, MIGRATIONS)
        database.apply([Put("things", {"number": 1, "data": b"MARKMARKMARK" * 8})])
        database.apply([Drop("things", {"number": 1})])
        database.close()
        self.assertNotIn(b"MARKMARK", self.path.read_bytes())

    def test_migrations(self) -> None:
        Database(self.path, MIGRATIONS).close()
        more = (*MIGRATIONS, "ALTER TABLE things ADD COLUMN more TEXT; CREATE TABLE others (name TEXT PRIMARY KEY)")
        database = Database(self.path, more)
        database.apply([Put("things", {"number": 1, "more": "x"}), Put("others", {"name": "y"})])
        database.close()
        database = Database(self.path, more)
        self.assertEqual(database.rows("others"), [{"name": "y"}])
        database.close()
        self.assertEqual(self._failure(*MIGRATIONS), "newer")

    def test_a_migration_that_fails_changes_nothing(self) -> None:
        Database(self.path, MIGRATIONS).close()
        broken = (*MIGRATIONS, "CREATE TABLE others (name TEXT); INSERT INTO nowhere VALUES (1)")
        self.assertEqual(self._failure(*broken), "refused")
        database = Database(self.path, (*MIGRATIONS, "CREATE TABLE others (name TEXT)"))  # not made twice
        self.assertEqual(database.rows("others"), [])
        database.close()

    def test_damaged(self) -> None:
        Database(self.path, MIGRATIONS).close()
        self.path.write_bytes(b"this is no database" * 1000)
        self.assertEqual(self._failure(), "damaged")

    def test_damaged_inside(self) -> None:
        database = Database(self.path, MIGRATIONS)
        database.apply([Put("things", {"number": number, "data": bytes(3000)}) for number in range(50)])
        database.close()
        with self.path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8 * 4096)
        database = Database(self.path, MIGRATIONS)
        self.assertEqual(self.assertRaises(StorageFailed, database.rows, "things").reason, "damaged")
        database.close()

    def test_no_place(self) -> None:
        self.path.parent.parent.mkdir(parents=True)
        self.path.parent.write_bytes(b"a file where the folder should be")
        self.assertRaises(StorageError, Database, self.path, MIGRATIONS)

    @given(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.binary(max_size=8),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
    )
    def test_values(self, word: str, data: bytes, number: int, real: float) -> None:
        database = Database(self.path, (*MIGRATIONS, "ALTER TABLE things ADD COLUMN real_number REAL"))
        row: dict[str, Value] = {"number": number, "word": word, "data": data, "real_number": real}
        database.apply([Drop("things", {}), Put("things", row)])
        self.assertEqual(database.rows("things"), [row])
        database.close()


class Disasters(SynchronousTestCase):
    def test_kill_9(self) -> None:
        """Three times: what was acknowledged is there, whole transactions only, and the file opens."""
        path = Path(self.mktemp()).absolute() / "test.db"
        for acknowledged_least in (1, 7, 40):
            child = subprocess.Popen(
                [sys.executable, storage_child.__file__, "write", str(path)],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            assert child.stdout is not None
            acknowledged = -1
            with child.stdout:
                while acknowledged < acknowledged_least:
                    acknowledged = int(child.stdout.readline())
                child.send_signal(signal.SIGKILL)
                for line in child.stdout.read().splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        acknowledged = int(line)
            child.wait(10)
            database = Database(path, MIGRATIONS)
            found = {int(row["number"] or 0) for row in database.rows("things")}
            database.close()
            self.assertLessEqual(set(range(acknowledged + 1)), found)
            self.assertEqual({-number - 1 for number in found if number >= 0}, {n for n in found if n < 0})

    def test_full_disk(self) -> None:
        """On a disk of 1 MiB of its own: writes fail with the reason, reads go on, with room they work again."""
        if shutil.which("unshare") is None:
            raise SkipTest("package util-linux is not installed")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        script = 'mount -t tmpfs -o size=1m,mode=700 tmpfs "$1" || exit 77; exec "$2" "$3" fill "$1"'
        arguments = [str(folder), sys.executable, storage_child.__file__]
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *arguments],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
        )
        if done.returncode == 77 or b"unshare" in done.stderr:
            raise SkipTest("this machine lets nobody mount a tmpfs in a namespace of its own")
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        told = json.loads(done.stdout)
        self.assertEqual(set(told["reasons"]), {"disk full"})
        self.assertGreater(told["done"], 3)
        self.assertEqual(told["readable"], told["done"])
        self.assertEqual(told["after"], told["done"])
