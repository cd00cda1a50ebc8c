"""The user's names on disk: `pins.toml`, which layer8 writes, and `petnames.toml`, which its owner may edit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import define, field

from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import WRITTEN, read_private, write_private
from layer8.rendezvous.names import TEXT_MAX, Book, Names, add_petname, parse_petnames

PINS_FILE: Final = "pins.toml"
PETNAMES_FILE: Final = "petnames.toml"


@define(eq=False)
class Shelf:
    """Both files of one folder; everything here raises `ConfigError` or `StorageError` with the path."""

    folder: Path
    petnames_file: str = PETNAMES_FILE  # in the folder, or a whole path
    _stamp: tuple[tuple[int, int], ...] = field(default=(), init=False)
    _names: Names = field(factory=Names, init=False, repr=False)

    def names(self, signers: Iterable[bytes] = ()) -> Names:
        """Read everything that has changed since the last time."""
        stamp = tuple(_stamp(path) for path in (self.folder / PINS_FILE, self._petnames))
        if stamp != self._stamp:
            self._names = Names(self.book(), self.petnames())
            self._stamp = stamp
        self._names.signers = frozenset(signers)
        return self._names

    @property
    def _petnames(self) -> Path:
        return self.folder / self.petnames_file

    def book(self) -> Book:
        """Read the pins and red flags."""
        path = self.folder / PINS_FILE
        try:
            return Book.parse(_read(path))
        except ConfigError as error:
            raise _with(path, error) from error

    def save(self, book: Book) -> None:
        """Write them."""
        write_private(self.folder / PINS_FILE, book.dump().encode())

    def petnames(self) -> dict[str, bytes]:
        """Read the petnames."""
        path = self._petnames
        try:
            return parse_petnames(_read(path))
        except ConfigError as error:
            raise _with(path, error) from error

    def add_petname(self, name: str, key: bytes) -> None:
        """Add one, and leave everything else in the file as it is; raises `WrongKey` too."""
        path = self._petnames
        try:
            before = _read(path)
            after = add_petname(before, name, key)
        except ConfigError as error:
            raise _with(path, error) from error
        if after != before:
            write_private(path, after.encode())


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _read(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return read_private(path, most=TEXT_MAX, forbidden=WRITTEN).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8") from None


def _with(path: Path, error: ConfigError) -> ConfigError:
    return error if str(error).startswith(str(path)) else ConfigError(f"{path}: {error}")
