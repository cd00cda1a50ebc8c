"""A real Crossbar.io for tests, and a client of the control table that comes through it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import SubscribeOptions
from twisted.internet.defer import Deferred

from layer8.config.sections import WampConfig
from layer8.control.errors import CallTimedOut, CallUnavailable, ControlError, NoCapacity, known
from layer8.control.jsonrpc import encode
from layer8.control.limits import CALLS_OPEN, MESSAGE
from layer8.control.table import CALL_TIME
from layer8.control.wamp import ERROR
from layer8.core.errors import TimedOut, Unavailable
from layer8.crypto.x509 import self_signed
from layer8.net.wamp import Link, RouterError
from tests.control.rig import pause
from tests.interop.daemons import RUN, Program, Scope, answers, crossbar, folder, free_port
from tests.names import ROOT

TICKET = "a ticket of 24 letters.."
ROLES = ("node", "hidden", "read", "admin")  # of the router; `hidden` is not disclosed to those it calls


@define(eq=False)
class Router:
    """One Crossbar.io with the permissions of docs/examples/crossbar.json; who is named like a role has that role."""

    home: Path
    port: int
    scope: Scope
    secure: bool = False
    program: Program = field(init=False)

    @classmethod
    def start(cls, scope: Scope, *, secure: bool = False) -> Router:
        """Start one on a free port, with a certificate of its own making if it is `secure`."""
        made = cls(folder(scope), free_port(), scope, secure)
        names = {f"{role}{number}": role for role in ROLES for number in range(10)}
        shown = json.loads((ROOT / "docs" / "examples" / "crossbar.json").read_text())
        worker = shown["workers"][0]
        granted = {role["name"]: role["permissions"] for role in worker["realms"][0]["roles"]}
        granted["hidden"] = [{**granted["operators"][0], "disclose": {"caller": False}}]
        granted["read"] = granted["admin"] = granted["operators"]
        roles = [{"name": role, "permissions": granted[role]} for role in ROLES]
        auth = {
            "type": "static",
            "principals": {name: {"ticket": TICKET, "role": role} for name, role in names.items()},
        }
        transport = {
            "type": "websocket",
            "endpoint": {"type": "tcp", "port": made.port, "interface": "127.0.0.1", **made.tls()},
            "serializers": ["json"],
            "auth": {"ticket": auth},
        }
        worker["realms"][0]["roles"], worker["transports"] = roles, [transport]
        text = json.dumps(shown)
        (made.home / "config.json").write_text(text)
        made.again()
        return made

    def tls(self) -> dict[str, Any]:
        """Make key and certificate, where they are wanted, and say where they are."""
        if not self.secure:
            return {}
        key, certificate = self_signed("127.0.0.1")
        (self.home / "key.pem").write_bytes(key)
        self.certificate.write_bytes(certificate)
        return {"tls": {"key": "key.pem", "certificate": "cert.pem"}}

    @property
    def certificate(self) -> Path:
        """Where the certificate is."""
        return self.home / "cert.pem"

    def again(self) -> None:
        """Start it (again)."""
        for name in ("node.pid",):
            (self.home / name).unlink(missing_ok=True)
        words = [str(crossbar()), "start", "--cbdir", str(self.home), "--loglevel", "info", "--color", "false"]
        self.program = Program.start(self.scope, "crossbar", words, self.home, {}, lambda _: answers(self.port))

    def kill(self) -> None:
        """End all its processes without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.program.pid, signal.SIGKILL)
        self.program.process.wait()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'wss' if self.secure else 'ws'}://127.0.0.1:{self.port}/ws"

    def link(self, reactor: Any, name: str = "node0", **more: Any) -> Link:
        """Make a session, not started yet."""
        config = WampConfig(url=self.url, ca_file=more.pop("ca_file", ""))
        return Link(reactor, config, name, more.pop("ticket", TICKET), **more)


_shared: list[Router] = []


def shared() -> Router:
    """Give the router that all tests of a run share."""
    if not _shared:
        _shared.append(Router.start(RUN))
    return _shared[0]


@define(eq=False)
class Caller:
    """Speaks like `layer8.control.client.Client`, over the router; what an answer was is in `answers` as it came."""

    reactor: Any
    link: Link
    node: str
    notified: Callable[[str, dict[str, Any]], None] = lambda method, params: None
    reason: str = ""
    _joined: Deferred[None] | None = None
    _ours: set[Deferred[Any]] = field(factory=set)

    async def open(self) -> Caller:
        """Join and listen to what is told to us."""
        joined: Deferred[None] = Deferred()
        self._joined = joined
        self.link.use(self)
        self.link.startService()
        joined.addTimeout(10, self.reactor)
        await joined
        return self

    def joined(self, session: Any) -> None:
        prefix = SubscribeOptions(match="prefix", details_arg="details")
        subscribed = session.subscribe(self._told, f"layer8.{self.node}.", prefix)
        subscribed.addCallback(lambda _: self._here())

    def _here(self) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            joined.callback(None)

    def parted(self) -> None:
        self.reason = self.reason or "gone"

    def _told(self, *_args: Any, details: Any = None, **words: Any) -> None:
        kind, _, name = details.topic.removeprefix(f"layer8.{self.node}.").partition(".")
        self.notified("event" if kind == "event" else name, {"name": name, **words} if kind == "event" else words)

    async def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float = CALL_TIME) -> Any:
        """Call, with the caps and errors of a control client."""
        if self.link.session is None:
            raise CallUnavailable("the connection is closed")
        if len(encode(dict(params or {}))) > MESSAGE:
            raise NoCapacity("MESSAGE")
        if len(self._ours) >= CALLS_OPEN:
            raise NoCapacity("CALLS_OPEN")
        return await self.invoke(f"layer8.{self.node}.{method}", params or {}, timeout)

    async def invoke(self, procedure: str, params: Mapping[str, Any], timeout: float = CALL_TIME) -> Any:
        """Call any procedure."""
        waiting = self.link.call(procedure, params, timeout)
        self._ours.add(waiting)
        try:
            return await waiting
        except TimedOut:
            raise CallTimedOut from None
        except Unavailable:
            raise CallUnavailable("gone") from None
        except RouterError as error:
            raise self._error(error.answer) from None
        finally:
            self._ours.discard(waiting)

    def _error(self, error: ApplicationError) -> Exception:
        if not error.error.startswith(ERROR):
            return CallUnavailable(f"{error.error}: {error.error_message()}")
        kind = known(error.error.removeprefix(ERROR))
        assert kind is not None, error.error
        made = kind.__new__(kind)
        ControlError.__init__(made, str(error.args[0]), error.kwargs)
        return made

    def close(self) -> Deferred[None]:
        """Leave."""
        self.reason = self.reason or "done"
        return self.link.stopService()

    def abort(self) -> None:
        """Go without a word."""
        self.link.session._transport.abort()


async def quiet(reactor: Any) -> None:
    """End Autobahn's timers, which it rounds up to whole seconds and leaves behind."""
    await pause(reactor, 0.02)
    for call in reactor.getDelayedCalls():
        if "_BatchedTimer" in repr(call.func):
            call.cancel()


async def passed(link: Any) -> None:
    """Wait until the router has done what was asked of it before: it answers in order, if only that there is nobody."""
    try:
        await link.call("layer8.nobody.rpc.ping", {}, 5)
    except RouterError as error:
        assert error.uri == "wamp.error.no_such_procedure", error
