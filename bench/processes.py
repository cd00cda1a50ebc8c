"""Processes under measurement: started in their own session, ended by id, with their processor time and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import define

TICK = os.sysconf("SC_CLK_TCK")
START_S = 20.0
"""Seconds a process may take until it listens."""
END_S = 3.0
"""Seconds a process gets to leave before it is killed."""


class DidNotStart(Exception):
    """A process ended or never listened; the text is the last thing it said."""


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG; a termination and not a kill, so that nginx takes its workers along.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@define(eq=False)
class Child:
    """One started program and whatever it forks."""

    name: str
    popen: subprocess.Popen[bytes]
    output: Path

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        folder: Path,
        environ: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Child:
        """Start `argv` in `folder`; what it prints goes to NAME.out there."""
        output = folder / f"{name}.out"
        with output.open("wb") as out:
            popen = subprocess.Popen(
                argv,
                cwd=folder,
                env=None if environ is None else {**os.environ, **environ},
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return cls(name, popen, output)

    def pids(self) -> list[int]:
        """The process and its descendants that live."""
        found = [self.popen.pid]
        for pid in found:
            for path in _paths(f"/proc/{pid}/task", "*/children"):
                found.extend(map(int, _read(path).split()))
        return found

    def cpu_s(self) -> float:
        """Processor seconds so far: nanosecond counts of every live task, and ticks of the children that ended."""
        nanoseconds = 0
        for pid in self.pids():
            for path in _paths(f"/proc/{pid}/task", "*/schedstat"):
                nanoseconds += int((_read(path).split() or ["0"])[0])
        fields = _read(Path(f"/proc/{self.popen.pid}/stat")).rpartition(")")[2].split()
        waited = (int(fields[13]) + int(fields[14])) / TICK if len(fields) > 14 else 0.0
        return nanoseconds / 1e9 + waited

    def memory(self, kind: str = "Pss") -> int:
        """Bytes of memory, `Pss` (shared pages divided) or `Rss`, of all its processes."""
        return sum(rollup(_read(Path(f"/proc/{pid}/smaps_rollup")), kind) for pid in self.pids())

    def descriptors(self, pipes: bool = True) -> int:
        """Open descriptors of all its processes, with or without pipes, which may be kept for the next splice."""
        found = (path for pid in self.pids() for path in _paths(f"/proc/{pid}/fd", "*"))
        return sum(1 for path in found if pipes or not _link(path).startswith("pipe:"))

    def listening(self, port: int, address: str = "127.0.0.1") -> None:
        """Wait until `address`:`port` takes connections."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.popen.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
                return
            time.sleep(0.05)
        raise DidNotStart(f"{self.name}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line it printed."""
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "no output"

    def end(self) -> None:
        """End the whole session by its id and wait."""
        if self.popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(END_S)
        self.popen.wait()


def rollup(text: str, kind: str) -> int:
    """Bytes named `kind` in the text of a smaps_rollup."""
    for line in text.splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _paths(folder: str, pattern: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from Path(folder).glob(pattern)


def _link(path: Path) -> str:
    """Where a link in /proc leads; empty if its process has closed it."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: Path) -> str:
    """The text of a file in /proc; empty if its process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
