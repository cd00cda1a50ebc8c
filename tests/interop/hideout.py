"""`layer8 hide` beside the demo's network, as somebody runs it: a node of its own, in a state folder of its own.

::

    web = Hide.start(RUN, "localhost:8080", "--port", "22=localhost:2222")     when it returns it can be found
    curl(f"http://{web.address}/")                                             through the demo's SOCKS port
"""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from attrs import define

from tests.cli.test_main import LAYER8
from tests.interop.daemons import RUN, Program, Scope, folder, free_port
from tests.interop.stage import MIB, Nginx, pattern
from tests.interop.test_demo_tour import demo, layer8
from tests.interop.test_socks_ssh import start_sshd

SIZE = 16 * MIB


@cache
def tracker() -> str:
    """Give somebody whom every new node of the demo's network can ask."""
    full = json.loads(layer8("relays", "--full", "--json"))["relays"]
    return next(f"{row['node']}@tcp:{row['address']}" for row in full if "tracker" in row["roles"])


@define(eq=False)
class Hide:
    """A hidden service, with a node of its own."""

    program: Program
    home: Path
    told: dict[str, Any]  # what `layer8 hide --json` says

    @classmethod
    def start(cls, scope: Scope, *words: str, home: Path | None = None) -> "Hide":
        """Start one, and wait until it can be found."""
        home = home or folder(scope)
        command = [*LAYER8, "hide", *words, "--json", "--network", demo().network, "--peer", tracker()]

        before = (home / "hide.log").stat().st_size if (home / "hide.log").exists() else 0

        def told(program: Program) -> Any:
            return [line for line in program.said()[before:].splitlines() if line.startswith("{")]

        program = Program.start(scope, "hide", command, home, {"LAYER8_HOME": str(home)}, told)
        return cls(program, home, json.loads(told(program)[0]))

    @property
    def address(self) -> str:
        """The host that programs ask for."""
        return str(self.told["address"])


@define(eq=False)
class Offered:
    """nginx and sshd behind one address."""

    nginx: Nginx
    hide: Hide
    sums: dict[str, str]
    keys: Path  # of ssh

    @property
    def url(self) -> str:
        """Where nginx is."""
        return f"http://{self.hide.address}"


@cache
def offered() -> Offered:
    """Start what the tests of this run visit."""
    nginx = Nginx.start(RUN, ["web.example.org"])
    sums = {name: pattern(nginx.files / name, size) for name, size in {"1k": 1024, "16m": SIZE}.items()}
    port = free_port()
    keys = start_sshd(RUN, port)
    hide = Hide.start(RUN, f"localhost:{nginx.plain}", "--port", f"22=127.0.0.1:{port}", "--name", "web")
    return Offered(nginx, hide, sums, keys)


def git(where: Path, *words: str) -> str:
    """Run git with nobody's configuration."""
    environ = {**os.environ, "HOME": str(where), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    ran = subprocess.run(["git", *who, *words], cwd=where, env=environ, capture_output=True, text=True, timeout=60)
    if ran.returncode:
        raise AssertionError(f"git {' '.join(words)}: {ran.stderr[-500:]}")
    return ran.stdout
