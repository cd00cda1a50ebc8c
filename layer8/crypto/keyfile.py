"""Files that hold secrets: 0600, replaced in one step, refused when others can read them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from layer8.core.errors import ConfigError, StorageError

FILE_MOST = 64 * 1024  # bytes; a key, a certificate chain or a secret is far smaller
OTHERS = 0o077  # permission bits that a file with a secret must not have
WRITTEN: Final = 0o022  # permission bits by which others could change what somebody relies on


def read_private(path: Path, *, most: int = FILE_MOST, forbidden: int = OTHERS) -> bytes:
    """Read a file that only its owner may read.

    `forbidden` are the permission bits that make it refused: systemd shows the mask of an access list as group bits
    on its credentials, so their reader passes 0o007. Raises `ConfigError` with the path and what to do.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            data = b""
            if stat.S_ISREG(found.st_mode) and not found.st_mode & forbidden:
                with open(descriptor, "rb", closefd=False) as file:
                    data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: is not a file")
    if found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        may = "read" if mode & forbidden & 0o444 else "change"
        raise ConfigError(f"{path}: others may {may} it (mode {mode:04o}); run: chmod 600 {path}")
    if len(data) > most:
        raise ConfigError(f"{path}: is larger than {most} bytes")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path` with mode 0600, so that a reader sees the old file or the new one and never a part.

    Missing parent folders are made with mode 0700. The bytes and the name are on the disk when this returns.
    Raises `StorageError`.
    """
    make_private_folder(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)  # a umask of 0777 must not make it unreadable to ourselves
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, parents included; one that exists is left as it is.

    Raises `StorageError`.
    """
    try:
        if not folder.is_dir():
            if folder.parent != folder:
                make_private_folder(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
