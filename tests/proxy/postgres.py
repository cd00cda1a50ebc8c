"""A real PostgreSQL for tests, on loopback, with a password."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from attrs import define, field

from tests.interop.daemons import RUN, Program, Scope, answers, folder, free_port, until

BIN = Path("/usr/lib/postgresql/15/bin")
PASSWORD = "a-password-that-no-log-may-show"


def no_postgres() -> str | None:
    """Say that PostgreSQL is missing; None if it is here."""
    return None if (BIN / "postgres").exists() else "needs Debian's postgresql-15"


def _as_somebody() -> tuple[str, ...]:
    """Give what runs a command as an ordinary user: PostgreSQL refuses to be root."""
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--") if os.geteuid() == 0 else ()


@define(eq=False)
class Postgres:
    """One server; each test takes a database of its own."""

    home: Path
    port: int
    scope: Scope
    program: Program = field(init=False)
    _numbers: Iterator[int] = field(factory=count, init=False)

    @classmethod
    def start(cls, scope: Scope) -> Postgres:
        """Make a data folder and start."""
        made = cls(folder(scope), free_port(), scope)
        (made.home / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(made.home, user.pw_uid, user.pw_gid)
            os.chown(made.home / "password", user.pw_uid, user.pw_gid)
        words = [BIN / "initdb", "-D", made.home / "data", "-U", "layer8", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [*_as_somebody(), *map(str, words), f"--pwfile={made.home}/password", "--locale=C", "-E", "UTF8"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        made.again()
        return made

    def again(self) -> None:
        """Start (again)."""
        options = f"-F -p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        words = [*_as_somebody(), str(BIN / "postgres"), "-D", str(self.home / "data"), *options.split(" ")]
        self.program = Program.start(self.scope, "postgres", words, self.home, {}, self._ready)

    def _ready(self, program: Program) -> bool:
        ready = [str(BIN / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return answers(self.port) and subprocess.run(ready, timeout=10).returncode == 0

    def kill(self) -> None:
        """End it without a word; what it has started ends when it sees that."""
        children = _children(self.program.pid)
        self.program.kill()
        until("PostgreSQL's processes are gone", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes for a while."""
        pids = [self.program.pid, *_children(self.program.pid)]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def database(self) -> str:
        """Make a database and give its connection string."""
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.conninfo(name)

    def conninfo(self, name: str) -> str:
        """Say how a database is reached."""
        return f"host=127.0.0.1 port={self.port} user=layer8 password={PASSWORD} dbname={name}"


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


_shared: list[Postgres] = []


def shared() -> Postgres:
    """Give the server that all tests of a run share."""
    if not _shared:
        _shared.append(Postgres.start(RUN))
    return _shared[0]
