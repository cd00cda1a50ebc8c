"""The example backends of the manual, as their users start them: gunicorn with workers, and uvicorn."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

from attrs import define, field

from layer8.crypto.keys import NodeKey
from layer8.tunnel.settings import KEYS_PATH
from tests.interop.daemons import ROOT, Program, Scope, folder, free_port
from tests.tunnel.sealed import LIMIT_S, Page

EXAMPLES = ROOT / "docs" / "examples" / "backends"
TARGETS = {
    "django": "app:application",
    "django-asgi": "app:asgi",
    "flask": "app:app",
    "fastapi": "app:app",
    "tiny": "tests.tunnel.tiny:wsgi()",
    "tiny-asgi": "tests.tunnel.tiny:asgi",
}


@define(eq=False)
class Backend:
    """One example with the gateway in it."""

    kind: str
    home: Path
    words: list[str]
    environ: dict[str, str]
    scope: Scope
    port: int
    identity: NodeKey
    program: Program = field(init=False)

    @classmethod
    def start(
        cls,
        scope: Scope,
        kind: str,
        *,
        workers: int = 1,
        worker: str = "",
        environ: dict[str, str] | None = None,
        home: Path | None = None,
    ) -> Backend:
        """Start it with SQLite in a folder of its own, or with what `environ` says."""
        home = home or folder(scope)
        port, identity = free_port(), home / "id.pem"
        key = NodeKey.load_or_make(identity)
        told = {"L8_IDENTITY_FILE": str(identity), "PYTHONPATH": str(ROOT)}
        if not environ or "L8_DATABASE_FILE" not in environ:
            told["L8_STATE"] = str(home / "state")
        where = ROOT if kind.startswith("tiny") else EXAMPLES / kind.removesuffix("-asgi")
        if kind in ("fastapi", "django-asgi", "tiny-asgi") and not worker:
            words = ["-m", "uvicorn", "--port", str(port), "--log-level", "warning", "--workers", str(workers)]
            words += ["--app-dir", str(where), *(["--factory"] if kind == "tiny-asgi" else []), TARGETS[kind]]
        else:
            words = ["-m", "gunicorn", "-b", f"127.0.0.1:{port}", "-w", str(workers), "--log-level", "warning"]
            words += ["--chdir", str(where), "--no-control-socket", *worker.split(), TARGETS[kind]]
        made = cls(kind, home, [sys.executable, *words], told | (environ or {}), scope, port, key)
        made.again()
        return made

    def again(self) -> None:
        """Start (again)."""
        self.program = Program.start(
            self.scope, self.kind, self.words, self.home, self.environ, lambda program: self._ready()
        )

    def _ready(self) -> bool:
        """Say whether a worker answers: the port is open before there is one."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            link.request("GET", KEYS_PATH)
            return link.getresponse().status == 200
        except OSError:
            return False
        finally:
            link.close()

    def page(self) -> Page:
        """Give a page that has the gateway's keys."""
        return Page(self.port, self.identity.node_id)
