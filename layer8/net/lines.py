"""Lines to a file or descriptor, cheap enough for the data path."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Lock

WAITING = 1 << 20
"""Most bytes that wait for a slow reader; what comes on top is dropped and counted."""
_ATOMIC = 4096
"""PIPE_BUF of Linux (pipe(7)): so much fits without waiting into a pipe that is ready."""


class LineWriter:
    """Collects ready-made lines and writes them joined.

    `append(line)` takes bytes that end in a newline, and is a plain list append. `flush()` writes them with one system
    call to a file; a pipe, socket or terminal gets no more than it takes without waiting, the rest stays for the next
    flush. `prefix` is what a line for the same place has to begin with (see `journal_prefix`), empty by default.
    """

    append: Callable[[bytes], None]

    def __init__(self, descriptor: int, path: Path | None = None, *, prefix: bytes = b"") -> None:
        """Write to an open descriptor; with `path` it is owned, and can be opened anew."""
        self.prefix = prefix
        self.dropped = 0
        self._descriptor = descriptor
        self._path = path
        self._lines: list[bytes] = []
        self._rest = b""
        self._lock = Lock()
        self.append = self._lines.append

    @classmethod
    def to_path(cls, path: Path) -> LineWriter:
        """Append to a file, created for this user alone; raises OSError."""
        return cls(_open(path), path)

    def flush(self) -> None:
        """Write what waits, as far as it goes without waiting; any thread may."""
        if self._lines or self._rest:
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        # Another thread may append meanwhile, so no more is taken out than was joined.
        count = len(self._lines)
        data = self._rest + b"".join(self._lines[:count])
        del self._lines[:count]
        self._rest = b""
        try:
            written = self._write(data)
        except OSError:
            # A full disk or a closed terminal must not stop the service.
            self.dropped += data.count(b"\n")
            return
        if written < len(data):
            self._keep(data[written:])

    def _write(self, data: bytes) -> int:
        if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return os.write(self._descriptor, data)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        at = 0
        while at < len(data) and poll.poll(0):
            try:
                at += os.write(self._descriptor, data[at : at + _ATOMIC])
            except BlockingIOError:
                break
        return at

    def _keep(self, rest: bytes) -> None:
        if len(rest) > WAITING:
            end = rest.rfind(b"\n", 0, WAITING) + 1
            self.dropped += rest.count(b"\n", end)
            rest = rest[:end]
        self._rest = rest

    def reopen(self) -> None:
        """Open the file anew, after it was renamed or on demand; raises OSError and then keeps the old one."""
        if self._path is None:
            return
        self.flush()
        fresh = _open(self._path)
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = fresh

    def renamed(self) -> bool:
        """Tell whether another file, or none, now has the path."""
        if self._path is None:
            return False
        ours = os.fstat(self._descriptor)
        try:
            theirs = os.stat(self._path)
        except OSError:
            return True
        return (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)

    def close(self) -> None:
        """Write what waits and close an owned file."""
        self.flush()
        if self._path is not None:
            os.close(self._descriptor)
            self._path = None


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
