"""What the configuration may say about files: who may read them, and where a path really leads."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from layer8.core.errors import ConfigError

CONFIG_FILE = 1 << 20
"""Most bytes of a configuration file."""
SECRET_FILE = 1 << 16
"""Most bytes of a file with a secret or a key."""


def resolve(value: str, base: Path, environ: Mapping[str, str], kind: str) -> Path:
    """Give the full path: `base` is the folder that relative ones start from.

    A secret's plain name is looked up among systemd's credentials first ($CREDENTIALS_DIRECTORY, systemd.exec(5)).
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if kind in ("secret", "read") and credentials and "/" not in value and value not in (".", ".."):
        credential = Path(credentials) / value
        if credential.exists():
            return credential
    return Path(os.path.abspath(base / Path(value).expanduser()))


def why_not(path: Path, kind: str, environ: Mapping[str, str]) -> str | None:
    """Give why `path` cannot be used as `kind` ("secret", "read", "write", "socket" or "folder"), or None."""
    try:
        if reason := behind_symlink(path):
            return reason
        if kind == "socket":
            return None if path.parent.is_dir() else f"there is no folder {path.parent}"
        if kind == "folder":
            usable = path.is_dir() and os.access(path, os.R_OK | os.X_OK)
            return None if usable else "it is not a folder that this user can read"
        return _why_not_write(path) if kind == "write" else _why_not_read(path, kind, environ)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _why_not_read(path: Path, kind: str, environ: Mapping[str, str]) -> str | None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return "it is not a file"
    if not os.access(path, os.R_OK):
        return "it cannot be read by this user"
    if found.st_size > SECRET_FILE:
        return f"it is larger than {SECRET_FILE} bytes"
    if kind == "secret":
        if found.st_mode & forbidden(path, environ):
            return f"others can read or write it (mode {stat.S_IMODE(found.st_mode):04o}): chmod 600 {path}"
        if found.st_uid not in (os.geteuid(), 0):
            return "it belongs to another user"
    return None


def _why_not_write(path: Path) -> str | None:
    if path.is_dir():
        return "it is a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "it cannot be written by this user"
    return None


def behind_symlink(path: Path) -> str | None:
    """Give a reason against a path that a symbolic link leads into a folder where anybody can put files."""
    straight = Path(os.path.abspath(path))
    real = Path(os.path.realpath(straight))
    if real == straight:
        return None
    folder = real if real.is_dir() else real.parent
    if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
        return f"a symbolic link leads to {real}, in a folder where everybody can write"
    return None


def read_config(path: Path) -> bytes:
    """Read a configuration file whole; raises ConfigError with the reason."""
    try:
        if reason := behind_symlink(path):
            raise ConfigError(reason)
        return _read(path, CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(getattr(error, "strerror", None) or str(error)) from None


def forbidden(path: Path, environ: Mapping[str, str]) -> int:
    """Give the permission bits that a file with a secret must not have.

    systemd shows the mask of an access list as group bits on its credentials; the list names only the service's user.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    return 0o007 if credentials and path.parent == Path(credentials) else 0o077


def _read(path: Path, most: int) -> bytes:
    # Without O_NONBLOCK, opening a named pipe would wait for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError("it is not a file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ConfigError(f"it is larger than {most} bytes")
    return data
