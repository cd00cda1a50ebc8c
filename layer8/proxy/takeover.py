"""One server process in the place of another, without a connection refused, reset or turned away.

::

    new                                                      old
     │ connects to the Unix socket (0600, same user)           │
     ├─ call takeover.ask ────────────────────────────────────▶│ registrations are frozen, byte counts written
     │◀─ takeover.socket, one for each listener (SCM_RIGHTS) ──┤
     │◀─ result ───────────────────────────────────────────────┤
     │ starts: agents are let in, visitors wait in the queues  │
     ├─ call takeover.ready ──────────────────────────────────▶│ lets nobody in, joins whom it has called an agent for,
     │◀─ result {hosts} ───────────────────────────────────────┤ sends its agents away, drains, ends
     │ visitors are let in as soon as the agents are back      │
     │◀─ takeover.carried, at its very end ────────────────────┤

A listening socket lives as long as one process has it, so its queue is never lost. If the new one ends before it is
ready, the old one goes on as if nothing had been. Source: proxy.md section 9, unix(7).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import define
from twisted.application.service import Service
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.control.errors import CallRefused, Conflict, MethodNotFound
from layer8.control.inside import Inside, parse, write_call
from layer8.core.errors import Layer8Error, Refused, Unavailable
from layer8.net.courier import peer_uid, receive, send_now
from layer8.net.listen import Sockets
from layer8.net.tasks import TaskSet
from layer8.proxy.bans import Banned
from layer8.proxy.place import Books
from layer8.proxy.store import Carried

ASKED: Final = 15.0
"""Seconds that the old process has to hand over what it has."""
BACK: Final = 8.0
"""Seconds that visitors wait for their hosts' agents to come back; usually it is less than one."""
LOOK: Final = 0.02
QUEUE: Final = 4
CARRIED: Final = 400
"""Hosts in one message about bytes."""
_VERSION: Final = 1


class Gives(Protocol):
    """What can be replaced: a server or a supervisor."""

    async def freeze(self) -> Sequence[tuple[str, str, socket.socket]]:
        """Change nothing durable any more, and give every listener by option and endpoint string."""

    def thaw(self) -> None:
        """Go on: nobody comes in our place."""

    async def give_way(self) -> list[str]:
        """Let nobody in any more and send agents away; gives the hosts that had some."""

    def standing(self) -> dict[str, Carried]:
        """Give the bytes of every host, as they were written last."""

    def write_to(self, books: Books) -> None:
        """Write byte counts and bans elsewhere from now on."""


class Takes(Protocol):
    """What comes in its place."""

    def serves(self) -> bool:
        """Say whether everything listens."""

    def hold(self, on: bool, *, data: bool) -> None:
        """Leave visitors in the kernel's queue, or take them; with `data` dial-backs too."""

    def has_agents(self, hosts: Sequence[str]) -> bool:
        """Say whether each of these hosts has an agent."""

    def add_carried(self, carried: Mapping[str, Sequence[int]]) -> None:
        """Count bytes that another process has carried."""


@define(eq=False)
class Differences:
    """Books of a server whose place another has taken: what was carried since is told, once, and nothing is written."""

    known: dict[str, Carried]  # what the other has read, and then what it has been told
    tell: Callable[[Mapping[str, Sequence[int]]], None]

    async def ban(self, ban: Banned) -> None:
        """Leave it to the other."""

    async def unban(self, cidrs: Iterable[str]) -> None:
        """Leave it to the other."""

    async def carry(self, carried: Mapping[str, Carried]) -> None:
        """Tell what these hosts have gained."""
        rows = list(carried.items())
        for place in range(0, len(rows), CARRIED):
            some = {host: self._gain(host, count) for host, count in rows[place : place + CARRIED]}
            self.tell(some)

    def _gain(self, host: str, now: Carried) -> list[int]:
        before, self.known[host] = self.known.get(host, Carried()), now
        return [now.bytes_in - before.bytes_in, now.bytes_out - before.bytes_out]


@define(eq=False)
class Taken:
    """A process that waits for our word, and its listeners."""

    sock: socket.socket
    given: Sockets


def take_over(path: Path) -> Taken | None:
    """Ask the process behind a socket for its listeners; None if there is none.

    This waits, so it is for the start. Raises `Refused`, `TimedOut` or `Unavailable`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise Unavailable(f"cannot ask at {path}: {error.strerror or error}; choose another with --takeover") from None
    given = Sockets()
    try:
        if peer_uid(sock) not in (0, os.getuid()):
            raise Refused(f"{path}: another user's process listens there")
        send_now(sock, write_call(1, "takeover.ask", {"version": _VERSION}))
        while True:
            message, descriptors = receive(sock, ASKED)
            said = parse(message)
            if "tell" in said:
                for descriptor in descriptors:
                    params = said["params"]
                    given.put(params["option"], params["text"], socket.socket(fileno=descriptor))
            elif "error" in said:
                raise Unavailable(f"{path}: the server that runs does not hand over: {said['error']['message']}")
            else:
                return Taken(sock, given)
    except BaseException:
        given.close()
        sock.close()
        raise


@implementer(IReadDescriptor)
class Takeover(Service):
    """Listens for a process that wants to take over; and, if this one came in another's place, ends the change.

    `ends` ends this process when those who are joined have left.
    """

    _log = Logger(namespace="layer8.proxy.takeover")

    def __init__(
        self, reactor: Any, path: Path, role: Any, ends: Callable[[], None], taken: Taken | None = None
    ) -> None:
        """Take the server, which is both `Gives` and `Takes`."""
        self._reactor = reactor
        self._path = path
        self._role = role
        self._ends = ends
        self._taken = taken
        self._sock: socket.socket | None = None
        self._talk: Inside | None = None
        self._given_away = self._frozen = False
        self._standing: dict[str, Carried] = {}
        self._tasks = TaskSet(self._log)

    def startService(self) -> None:
        """Listen; raises `Unavailable`. Visitors wait if somebody is to hand them over."""
        Service.startService(self)
        self._tasks.restart()
        if self._taken is not None:
            self._role.hold(True, data=True)
            self._talk = Inside(self._reactor, self._taken.sock, told=self._told)
            self._reactor.callWhenRunning(lambda: self._tasks.start("takeover", self._come()))
        self._sock = _listen(self._path)
        self._reactor.addReader(self)

    def stopService(self) -> Any:
        """Listen no more."""
        Service.stopService(self)
        if self._sock is not None:
            self._reactor.removeReader(self)
            self._sock.close()
            self._sock = None
            if not self._given_away:
                self._path.unlink(missing_ok=True)
        return self._tasks.stop()

    async def _come(self) -> None:
        """Say that everything listens, and let visitors in when their agents are here."""
        talk, role, taken = self._talk, self._role, self._taken
        assert talk is not None and taken is not None
        taken.given.close()  # what this one does not listen on any more
        hosts: list[str] = []
        end = self._reactor.seconds() + ASKED
        while not role.serves() and self._reactor.seconds() < end:
            await self._pause()
        try:
            hosts = (await talk.call("takeover.ready", {}, ASKED))["hosts"]
        except Layer8Error as error:
            self._log.warn("the old process did not end as it should", event="takeover.failed", reason=str(error))
        role.hold(True, data=False)
        end = self._reactor.seconds() + BACK
        while not role.has_agents(hosts) and self._reactor.seconds() < end:
            await self._pause()
        role.hold(False, data=False)
        self._log.info("this process has taken over", event="takeover.done", hosts=len(hosts))

    async def _pause(self) -> None:
        await deferLater(self._reactor, LOOK, lambda: None)

    def _told(self, what: str, params: dict[str, Any], descriptors: list[int]) -> None:
        _close(descriptors)
        if what == "takeover.carried":
            self._role.add_carried(params["hosts"])

    # For whoever comes in our place.

    def fileno(self) -> int:
        """Give the listening socket's number."""
        return -1 if self._sock is None else self._sock.fileno()

    def logPrefix(self) -> str:
        """Name this for a reactor's own messages."""
        return "takeover"

    def connectionLost(self, reason: Failure) -> None:
        """Take that the reactor gives the descriptor up."""

    def doRead(self) -> None:
        """Take a process that asks, one at a time and of our own user."""
        assert self._sock is not None
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        busy = self._talk is not None and self._talk.open
        if busy or self._given_away or peer_uid(sock) not in (0, os.getuid()):
            sock.close()
            return
        self._talk = Inside(
            self._reactor, sock, serve=self._serve, told=lambda what, params, fds: _close(fds), lost=self._left
        )

    async def _serve(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "takeover.ask":
                if params.get("version") != _VERSION:
                    raise Conflict(_VERSION)
                return await self._give()
            case "takeover.ready":
                return await self._go()
        raise MethodNotFound(method)

    async def _give(self) -> dict[str, Any]:
        talk = self._talk
        assert talk is not None
        self._log.info("another process asks for the listeners", event="takeover.asked")
        self._frozen = True
        for option, text, sock in await self._role.freeze():
            talk.tell("takeover.socket", {"option": option, "text": text}, [sock.fileno()])
        self._standing = self._role.standing()
        return {}

    async def _go(self) -> dict[str, Any]:
        if not self._frozen:
            raise CallRefused("first ask, then be ready")
        self._given_away = True
        hosts = await self._role.give_way()
        self._role.write_to(Differences(self._standing, self._report))
        self._reactor.callLater(0, self._ends)
        return {"hosts": hosts}

    def _report(self, carried: Mapping[str, Sequence[int]]) -> None:
        if self._talk is not None:
            self._talk.tell("takeover.carried", {"hosts": carried})

    def _left(self) -> None:
        if self._frozen and not self._given_away:
            self._frozen = False
            self._log.warn("the other process ended; this one goes on", event="takeover.failed", reason="it ended")
            self._role.thaw()


def _close(descriptors: Iterable[int]) -> None:
    for number in descriptors:
        os.close(number)


def _listen(path: Path) -> socket.socket:
    """Open the socket in place of what was there before; raises `Unavailable`."""
    fresh = path.with_name(path.name + ".new")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        if path.exists() and not path.is_socket():
            raise FileExistsError(0, "a file of another kind is there")
        fresh.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            sock.bind(os.fspath(fresh))
        finally:
            os.umask(mask)
        sock.listen(QUEUE)
        fresh.replace(path)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"cannot listen on {path}: {error.strerror or error}; choose another with --takeover"
        ) from None
    return sock
