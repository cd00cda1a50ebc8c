"""Kernel pipes that splice borrows: a pool, because a pipe is worth having only while bytes are in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from attrs import frozen

PIPE = 1 << 20
"""Bytes that a pipe should hold; the size decides how much one splice moves, and so its cost per byte."""
PIPE_LEAST = 1 << 16
"""Bytes below which a pipe is not worth splicing through (the kernel gives 8 KiB past its per-user budget)."""
PIPES = 64
"""Pipes that may be in use at once; past that, bytes are copied. 64 of 1 MiB are an ordinary user's whole budget."""
PIPES_IDLE = 32
"""Empty pipes kept for the next use."""

_SOFT_PAGES = Path("/proc/sys/fs/pipe-user-pages-soft")
_PAGE = 4096


@frozen
class Pipe:
    """Both ends of one pipe, as descriptors."""

    read: int
    write: int

    def close(self) -> None:
        """Give both descriptors back to the kernel, with whatever is still inside."""
        os.close(self.read)
        os.close(self.write)


class PipePool:
    """Lends pipes of at least `PIPE_LEAST` bytes, never more than `most` at once."""

    __slots__ = ("_idle", "_starved", "most", "used")

    def __init__(self, most: int = PIPES) -> None:
        """Fix how many pipes may be lent at once."""
        self.most = most
        self.used = 0
        self._idle: list[Pipe] = []
        self._starved = False

    def borrow(self) -> Pipe | None:
        """Lend an empty pipe, or None when the pool or the kernel has no more."""
        if self._idle:
            self.used += 1
            return self._idle.pop()
        if self.used >= self.most or (self._starved and self.used):
            return None
        pipe = _open()
        self._starved = pipe is None
        if pipe is not None:
            self.used += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool = True) -> None:
        """Take a pipe back; one that still holds bytes is closed."""
        self.used -= 1
        if empty and len(self._idle) < PIPES_IDLE:
            self._idle.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close every idle pipe."""
        while self._idle:
            self._idle.pop().close()


def _open() -> Pipe | None:
    """Open a pipe as large as the kernel lets us, or nothing if that is too small to be of use."""
    try:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    for size in (PIPE, PIPE // 4, PIPE_LEAST):
        with contextlib.suppress(OSError):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, size)
            break
    pipe = Pipe(read, write)
    if fcntl.fcntl(write, fcntl.F_GETPIPE_SZ) < PIPE_LEAST:
        pipe.close()
        return None
    return pipe


def affordable(most: int = PIPES) -> int:
    """Give how many pipes of `PIPE` bytes an ordinary user may hold, at most `most`; root is not counted."""
    if os.geteuid() == 0:
        return most
    try:
        pages = int(_SOFT_PAGES.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return most
    return most if pages == 0 else max(1, min(most, pages * _PAGE // PIPE // 2))
