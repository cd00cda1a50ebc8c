"""Real processes around a test: our daemons and other people's servers, on ports of the kernel's choice.

::

    server = Proxy.start(case, host_tables)            # twistd layer8-proxy, everything on 127.0.0.1 and port 0
    agent = Agent.start(case, server, {"app.test": {server.http: "tcp:127.0.0.1:8000"}})

Both return when they can be used: the server when its control socket answers, the agent when every host of its own is
subscribed. Everything is ended by its process id when the test ends; what it said stands in the trial folder.
"""

import atexit
import contextlib
import json
import os
import re
import secrets as randomness
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field

from layer8.cli.ask import ask
from layer8.core.errors import Layer8Error
from layer8.crypto.secret import HostSecret

ROOT = Path(__file__).parents[2]
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Servers are not on everybody's path."""
START_S = 30.0
"""Seconds a program may take until it can be used."""
END_S = 10.0
"""Seconds a program gets to leave before it is killed."""
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")


class Scope(Protocol):
    """What ends things: a test case, or the whole run (`RUN`)."""

    def addCleanup(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Call `function` at the end."""


class _Run:
    """The scope of what several tests share: the end of the process that runs them."""

    def addCleanup(self, function: Callable[..., Any], /, *args: Any) -> None:
        """Call `function` when Python ends, the last one first."""
        atexit.register(function, *args)


RUN = _Run()


def missing(**packages: str) -> str | None:
    """Say which programs are not here, with their Debian packages (`program="package"`); None if all are."""
    absent = sorted({package for name, package in packages.items() if found(name) is None})
    return f"needs Debian's {', '.join(absent)}" if absent else None


def found(name: str) -> str | None:
    """Give the path of a program."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PATH}")


def crossbar() -> str | None:
    """Give the path of Crossbar.io: what LAYER8_CROSSBAR names, one on the path, or what `.ci/run` has installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "layer8-ci" / "crossbar" / "bin" / "crossbar"
    return os.environ.get("LAYER8_CROSSBAR") or found("crossbar") or (str(kept) if kept.exists() else None)


def no_crossbar() -> str | None:
    """Say that Crossbar.io is missing, which no Debian package holds; None if it is here."""
    return None if crossbar() else "needs Crossbar.io, which .ci/run installs from .ci/crossbar.txt"


def resident(pid: int, what: str = "VmRSS") -> int:
    """Give the memory of a process, in bytes; VmHWM is the most that it has had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{what}:")[1].split()[0]) * 1024


def npm() -> Path | None:
    """Give the folder with the npm peers: what LAYER8_NPM names, or what `.ci/run` has installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("LAYER8_NPM") or cache / "layer8-ci" / "npm")
    return folder if (folder / "node_modules").is_dir() else None


def no_npm() -> str | None:
    """Say what is missing of Node and the npm peers; None if they are here."""
    if (reason := missing(node="nodejs")) is not None:
        return reason
    return None if npm() else "needs the npm peers, which .ci/run installs from .ci/npm"


def free_port() -> int:
    """Give a port that nobody listens on, for programs that cannot say which one the kernel chose.

    It is below those that the kernel gives to whoever dials, so nobody has it by chance a moment later.
    """
    while True:
        port = 12_000 + randomness.randbelow(20_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def until(what: str, condition: Callable[[], Any], seconds: float = START_S, pause: float = 0.02) -> Any:
    """Wait for a condition and give its value; raises AssertionError that says what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def folder(scope: Scope) -> Path:
    """Make a folder whose path is short enough for Unix sockets, and remove it at the end."""
    made = Path(tempfile.mkdtemp(prefix="l8-"))
    scope.addCleanup(shutil.rmtree, made, True)
    return made


@define(eq=False)
class Program:
    """One process; what it says on either channel goes to one file."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(
        cls,
        scope: Scope,
        name: str,
        words: Sequence[str],
        where: Path,
        environ: Mapping[str, str] | None = None,
        ready: Callable[["Program"], Any] = lambda program: True,
    ) -> "Program":
        """Start `words` in the folder `where` and wait until `ready`."""
        log = where / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [found(words[0]) or words[0], *words[1:]],
                cwd=where,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        program = cls(name, process, log)
        scope.addCleanup(program.stop)

        def usable() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}: {program.said()[-2000:]}")
            return bool(ready(program))

        try:
            until(f"{name} is ready", usable)
        except AssertionError as error:
            program.stop()
            raise AssertionError(f"{error}\n{program.said()[-2000:]}") from None
        return program

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def said(self) -> str:
        """Give all that it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """End it, at once if it does not leave, and whatever it has left running; twice does nothing."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it without a word (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def descriptors(self) -> int:
        """Count its open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@define(eq=False)
class Daemon:
    """One of our daemons under twistd, with a state folder of its own."""

    role: str
    home: Path
    scope: Scope
    prefix: tuple[str, ...]
    program: Program = field(init=False)

    def begin(self, ready: Callable[[], bool]) -> None:
        """Start, or start again with the same folder and configuration."""
        words = [*self.prefix, *TWISTD, f"layer8-{self.role}", "--config", str(self.home / "test.toml")]
        environ = {"LAYER8_HOME": str(self.home), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
        self.program = Program.start(self.scope, self.role, words, self.home, environ, lambda _: ready())

    @property
    def pid(self) -> int:
        """The process id."""
        return self.program.pid

    @property
    def socket(self) -> Path:
        """Its control socket."""
        return self.home / "run" / f"{self.role}.sock"

    def ask(self, method: str, **params: Any) -> Any:
        """Call one method over the control socket."""
        return ask(self.socket, method, params)

    def up(self) -> bool:
        """Say whether it answers."""
        with contextlib.suppress(Layer8Error):
            return bool(self.ask("node.status"))
        return False

    def reload(self, text: str) -> None:
        """Give it another configuration and tell it so."""
        (self.home / "test.toml").write_text(text)
        os.kill(self.pid, signal.SIGHUP)

    def lines(self) -> list[dict[str, Any]]:
        """Give its log, one object a line; whatever is not JSON becomes `{"text": ...}`."""
        read = []
        for line in self.program.said().splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            read.append(value if isinstance(value, dict) else {"text": line})
        return read

    def defects(self) -> list[dict[str, Any]]:
        """Give what it says of its own bugs: tracebacks, failed entries of the pump, Python's warnings."""
        words = ("Traceback", "pump.failed", "ResourceWarning", "Unhandled")
        return [line for line in self.lines() if any(word in json.dumps(line) for word in words)]

    def stop(self) -> None:
        """End it."""
        self.program.stop()


@define(eq=False)
class Proxy(Daemon):
    """`twistd layer8-proxy`; its ports are those the kernel chose."""

    http: int = 0
    https: int = 0
    agents: int = 0

    @classmethod
    def start(
        cls, scope: Scope, text: str = "", *, secrets: Iterable[str] = (), prefix: tuple[str, ...] = ()
    ) -> "Proxy":
        """Start one; `secrets` are hosts for agents, `text` is more TOML: keys of [proxy], then tables.

        As a mapping, `secrets` also holds more keys of each host.
        """
        server = cls("proxy", folder(scope), scope, prefix)
        more = secrets if isinstance(secrets, Mapping) else {}
        hosts = "".join(server.host(host) + more.get(host, "") for host in secrets)
        server.write(f"{text}\n{hosts}")
        server.again()
        return server

    def host(self, name: str) -> str:
        """Make a secret for a host, and give the table that registers it."""
        path = self.secret(name)
        if not path.exists():
            HostSecret.make().save(path)
        return f'\n[[proxy.host]]\nhost = "{name}"\nsecret_file = "{path}"\n'

    def secret(self, name: str) -> Path:
        """Say where the secret of a host stands."""
        return self.home / f"{name.replace('*', 'any')}.secret"

    def write(self, text: str) -> None:
        """Write the configuration: `text`, and the usual listeners where it names none."""
        head, *tables = re.split(r"(?m)^(?=\[)", text, maxsplit=1)
        usual = {name: f'["tcp:{port}:interface=127.0.0.1"]' for name, port in self._ports().items()}
        keys = "".join(f"{name} = {value}\n" for name, value in usual.items() if f"\n{name} =" not in f"\n{head}")
        quiet = "" if "[control]" in text else "[control]\nlisten = []\n"
        logs = "" if "[log]" in text else '[log]\nformat = "json"\nblur = 0\n'
        (self.home / "test.toml").write_text(f"{quiet}{logs}[proxy]\n{keys}{head}\n{''.join(tables)}")

    def _ports(self) -> dict[str, int]:
        return {"http": self.http, "https": self.https, "agents": self.agents, "data": 0}

    def again(self) -> None:
        """Start (again) with the configuration that was written."""
        self.begin(self.up)
        for words in self.listening():
            kind, _, where = words.partition(" on ")
            port = int(where.split(" ")[0].rpartition(":")[2]) if kind != "control" else 0
            match kind:
                case "http" if not self.http:
                    self.http = port
                case "https" if not self.https:
                    self.https = port
                case "agents" if not self.agents:
                    self.agents = port

    def listening(self) -> list[str]:
        """Give what listens where, in the daemon's own words."""
        return [str(words) for words in self.ask("node.status")["listening"]]

    def data_ports(self) -> list[int]:
        """Give the data ports of this moment."""
        words = [text for text in self.listening() if text.startswith("data on ")]
        return [int(text.rpartition(":")[2]) for text in words]

    @property
    def url(self) -> str:
        """Where agents connect."""
        return f"ws://127.0.0.1:{self.agents}"

    def access(self) -> list[dict[str, Any]]:
        """Give the access records written so far."""
        return [line for line in self.lines() if "reason" in line and "sniff_ms" in line]


@define(eq=False)
class Agent(Daemon):
    """`twistd layer8-agent`."""

    @classmethod
    def start(
        cls,
        scope: Scope,
        server: Proxy,
        hosts: Mapping[str, Mapping[int, str]],
        text: str = "",
        *,
        url: str | None = None,
        prefix: tuple[str, ...] = (),
        more: Mapping[str, str] | None = None,
    ) -> "Agent":
        """Publish `hosts` (targets by public port) with the secrets that `server` made.

        `text` is keys of [agent], `more` keys of a host.
        """
        agent = cls("agent", folder(scope), scope, prefix)
        tables = "".join(
            f'[[agent.host]]\nhost = "{host}"\nsecret_file = "{server.secret(host)}"\n'
            f"targets = {{ {', '.join(f'{port} = {json.dumps(target)}' for port, target in targets.items())} }}\n"
            f"{(more or {}).get(host, '')}\n"
            for host, targets in hosts.items()
        )
        (agent.home / "test.toml").write_text(
            '[control]\nlisten = []\n[log]\nformat = "json"\n[agent]\n'
            f'servers = ["{url or server.url}"]\n{text}\n{tables}'
        )
        agent.begin(lambda: agent.serves(*hosts))
        return agent

    def again(self, *hosts: str) -> None:
        """Start again, and wait until `hosts` are subscribed."""
        self.begin(lambda: self.serves(*hosts))

    def serves(self, *hosts: str) -> bool:
        """Say whether every one of `hosts` is subscribed at every server."""
        with contextlib.suppress(Layer8Error):
            rows = self.ask("agent.status")["servers"]
            return bool(rows) and all(set(hosts) <= set(row["hosts"]) for row in rows)
        return False
