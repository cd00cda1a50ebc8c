"""Private files: who may read them, and that a reader never sees half of one."""

import os
from pathlib import Path
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import ConfigError, StorageError
from layer8.crypto.keyfile import make_private_folder, read_private, write_private


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.path = self.folder / "secret"

    def test_modes_whatever_the_umask(self) -> None:
        for number, umask in enumerate((0, 0o022, 0o277)):
            path = self.folder / str(number)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            old = os.umask(umask)
            try:
                write_private(path, b"x")
            finally:
                os.umask(old)
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
            self.assertEqual(read_private(path), b"x")

    def test_open_file_is_closed_again(self) -> None:
        """A file that others could read is replaced by one that they cannot."""
        self.folder.mkdir()
        self.path.write_bytes(b"old")
        self.path.chmod(0o644)
        write_private(self.path, b"new")
        self.assertEqual((self.path.stat().st_mode & 0o777, read_private(self.path)), (0o600, b"new"))

    def test_forbidden_bits(self) -> None:
        write_private(self.path, b"x")
        for mode in (0o640, 0o620, 0o610, 0o604, 0o602, 0o601):
            self.path.chmod(mode)
            self.assertIn("chmod 600", str(self.assertRaises(ConfigError, read_private, self.path)))
        self.path.chmod(0o440)  # as systemd shows a credential with an access list
        self.assertEqual(read_private(self.path, forbidden=0o007), b"x")

    def test_most(self) -> None:
        write_private(self.path, b"x" * 10)
        self.assertEqual(len(read_private(self.path, most=10)), 10)
        self.assertRaises(ConfigError, read_private, self.path, most=9)

    def test_never_half_a_file(self) -> None:
        """Readers see one of the contents, whole, while it is replaced again and again."""
        contents = {letter * 20_000 for letter in (b"a", b"b", b"c")}
        write_private(self.path, b"a" * 20_000)
        seen: set[bytes] = set()
        done: list[None] = []

        def read() -> None:
            while not done:
                seen.add(read_private(self.path))

        reader = Thread(target=read)
        reader.start()
        try:
            for _ in range(20):
                for content in contents:
                    write_private(self.path, content)
        finally:
            done.append(None)
            reader.join(10)
        self.assertLessEqual(seen, contents)
        self.assertEqual([entry.name for entry in self.folder.iterdir()], ["secret"])

    def test_failure_leaves_nothing_behind(self) -> None:
        self.path.mkdir(parents=True)
        (self.path / "in the way").touch()
        self.assertIn(str(self.path), str(self.assertRaises(StorageError, write_private, self.path, b"x")))
        self.assertEqual([entry.name for entry in self.folder.iterdir()], ["secret"])

    def test_what_is_no_file(self) -> None:
        self.folder.mkdir()
        for path in (self.folder, Path("/dev/null"), self.folder / "none", self.folder / "none" / "deeper"):
            self.assertIn(str(path), str(self.assertRaises(ConfigError, read_private, path)))

    def test_folders(self) -> None:
        deep = self.folder / "a" / "b"
        old = os.umask(0)
        try:
            make_private_folder(deep)
        finally:
            os.umask(old)
        for folder in (deep, deep.parent, self.folder):
            self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
        deep.chmod(0o750)
        make_private_folder(deep)
        self.assertEqual(deep.stat().st_mode & 0o777, 0o750)
        (deep / "file").touch()
        self.assertRaises(StorageError, make_private_folder, deep / "file" / "below")
