"""Dialling by name or address for the pump, directly or through a proxy on the way."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred

from layer8.config.endpoint import client
from layer8.core.address import Fence, HostPort
from layer8.core.errors import ConfigError, Layer8Error, TimedOut, Unavailable
from layer8.net.entries import Address, Dialing
from layer8.net.lookup import Asking, Lookups, literal
from layer8.net.pump import Pump
from layer8.net.via import Conversation, conversation

BEYOND = "it leads to an address that may not be dialled for others"
"""What is said of addresses behind a fence."""
VIA_TIME = 10.0
"""Seconds for the talk with a proxy on the way."""
TOR_PORT = 9050
"""Where a tor daemon takes SOCKS5, on this machine."""

Done = Callable[[int, Exception | None], None]

_PORT = re.compile(r"[0-9]{1,5}\Z")


@frozen
class Where:
    """What can be dialled: a host (name or address) and a port, or the path of a Unix socket.

    `address` is the socket address if nothing has to be looked up, else None. Behind a `fence` only addresses that it
    admits are dialled, those of a name too; what a proxy on the way makes of a name is its own affair.
    """

    host: str
    port: int
    path: str = ""
    fence: Fence | None = field(default=None, eq=False, repr=False)
    address: Address | None = field(init=False, repr=False)

    @address.default
    def _literal(self) -> Address | None:
        if self.path:
            return socket.AF_UNIX, self.path
        return literal(self.host, self.port)

    @property
    def words(self) -> str:
        """Name it for people."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of(cls, endpoint: str) -> Where:
        """Read `tcp:HOST:PORT` or `unix:PATH`; raises `ConfigError`."""
        parsed = client(endpoint)
        return cls(parsed.words.get("host", ""), parsed.port, parsed.words.get("path", ""))

    @classmethod
    def read(cls, text: str) -> Where:
        """Read a port of this machine, HOST:PORT, or an endpoint string as above; raises `ConfigError`."""
        if text.startswith(("tcp:", "unix:")):
            try:
                return cls.of(text)
            except ConfigError as error:
                raise ConfigError(f"{text!r}: {error}") from None
        found = HostPort.parse(f"127.0.0.1:{text}" if _PORT.match(text) else text)
        return cls(found.host, found.port)


@frozen
class Via:
    """A proxy on the way: `connect` or `socks5`, and where it listens."""

    kind: str
    where: Where

    @classmethod
    def parse(cls, text: str) -> Via | None:
        """Read `connect:HOST:PORT`, `socks5:HOST:PORT` or `tor:`; an empty text is None. Raises `ConfigError`."""
        if not text:
            return None
        kind, _, rest = text.partition(":")
        if kind == "tor":
            host, _, port = rest.rpartition(":") if rest else ("127.0.0.1", "", str(TOR_PORT))
            kind = "socks5"
        else:
            host, _, port = rest.rpartition(":")
        conversation(kind, "localhost", 1)
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"via = {text!r}: a host and a port have to follow")
        return cls(kind, Where(host.strip("[]"), int(port)))


class Dialer:
    """Opens connections for the pump; the descriptors it gives are registered nowhere or in the pump's table."""

    def __init__(self, reactor: Any, pump: Pump, via: Via | None = None) -> None:
        """Dial through `via` unless it is None; Unix sockets are always dialled directly."""
        self._reactor = reactor
        self._pump = pump
        self._via = via
        self._lookups = Lookups(reactor)

    @property
    def direct(self) -> bool:
        """Whether there is no proxy on the way."""
        return self._via is None

    def dial(self, where: Where, done: Done) -> Attempt | Dialing | None:
        """Connect; `done(fd, None)` or `done(-1, error)` comes once, perhaps before this returns.

        What is given can be cancelled; None is given when it is all over already.
        """
        if where.fence is not None and where.address is not None and not where.fence.admits(where.host):
            done(-1, Unavailable(BEYOND))
            return None
        if self._via is None and where.address is not None:
            return self._pump.dial(where.address, done)
        attempt = Attempt(self._pump, done)
        if self._via is None or where.path:
            self._reach(where, attempt, attempt.finish)
            return None if attempt.over else attempt

        talk = conversation(self._via.kind, where.host, where.port)

        def reached(fd: int, error: Exception | None) -> None:
            if error is not None:
                attempt.finish(-1, Unavailable(f"the proxy on the way cannot be reached: {reason(error)}"))
                return
            attempt.waiting = Talking(self._reactor, self._pump, fd, talk, attempt.finish)
            attempt.waiting.start()

        self._reach(self._via.where, attempt, reached)
        return None if attempt.over else attempt

    async def open(self, where: Where) -> int:
        """Connect, and give the descriptor; raises `Layer8Error` or `OSError`. Cancelled, nothing stays open."""
        opened: Deferred[int] = Deferred()

        def done(fd: int, error: Exception | None) -> None:
            if opened.called:
                if fd >= 0:
                    self._pump.close_fd(fd)
            elif error is None:
                opened.callback(fd)
            else:
                opened.errback(error)

        attempt = self.dial(where, done)
        try:
            return await opened
        except CancelledError:
            if attempt is not None:
                attempt.cancel()
            raise

    def _reach(self, where: Where, attempt: Attempt, done: Done) -> None:
        if where.address is not None:
            self._try_each([where.address], attempt, done)
            return

        def resolved(addresses: list[Address]) -> None:
            if attempt.over:
                return
            if not addresses:
                done(-1, Unavailable(f"no address is known for {where.host}"))
                return
            if where.fence is not None:
                addresses = [one for one in addresses if where.fence.admits(one[1][0])]
                if not addresses:
                    done(-1, Unavailable(BEYOND))
                    return
            self._try_each(_with_port(addresses, where.port), attempt, done)

        asking = self._lookups.find(where.host, resolved)
        if asking is not None:
            attempt.waiting = asking

    def _try_each(self, addresses: list[Address], attempt: Attempt, done: Done) -> None:
        first, rest = addresses[0], addresses[1:]

        def tried(fd: int, error: Exception | None) -> None:
            if error is not None and rest and not attempt.over:
                self._try_each(rest, attempt, done)
            else:
                done(fd, error)

        waiting = self._pump.dial(first, tried)
        if waiting is not None:  # else `tried` has been called already
            attempt.waiting = waiting


class Attempt:
    """One dial on its way; `cancel` forgets it."""

    __slots__ = ("_done", "_pump", "over", "waiting")

    def __init__(self, pump: Pump, done: Done) -> None:
        """`done` is told the end, unless somebody cancels first."""
        self._pump = pump
        self._done = done
        self.over = False
        self.waiting: Asking | Dialing | Talking | None = None

    def finish(self, fd: int, error: Exception | None) -> None:
        """Tell the end once; a descriptor that nobody wants any more is closed."""
        self.waiting = None
        if self.over:
            if fd >= 0:
                self._pump.close_fd(fd)
            return
        self.over = True
        self._done(fd, error)

    def cancel(self) -> None:
        """Give up silently."""
        self.over = True
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.cancel()


class Talking:
    """The talk with a proxy on the way, as an entry of the pump."""

    __slots__ = ("_done", "_fd", "_out", "_pump", "_talk", "_timer")

    def __init__(self, reactor: Any, pump: Pump, fd: int, talk: Conversation, done: Done) -> None:
        """Talk on `fd`, which is connected."""
        self._pump = pump
        self._fd = fd
        self._talk = talk
        self._done: Done | None = done
        self._timer = reactor.callLater(VIA_TIME, self._finish, TimedOut("the proxy on the way does not answer"))

    def start(self) -> None:
        """Say the opening words."""
        self._pump.watch(self._fd, self)
        self._say(self._talk.opening())

    def ready(self, fd: int, events: int) -> None:
        """Hear the answer."""
        while self._done is not None:
            try:
                data = os.read(self._fd, 4096)
                answer = self._talk.received(data) if data else b""
            except BlockingIOError:
                return
            except (OSError, Layer8Error) as error:
                self._finish(error)
                return
            if not data:
                self._finish(Unavailable("the proxy on the way closed the connection"))
            elif answer is None:
                self._finish(None)
            elif answer:
                self._say(answer)

    def abandon(self) -> None:
        """Give up and say so, unless the end was told already."""
        self._finish(Unavailable("the talk with the proxy on the way was given up"))

    def _say(self, words: bytes) -> None:
        try:
            sent = os.write(self._fd, words)
        except OSError as error:
            self._finish(error)
            return
        if sent < len(words):  # a few dozen bytes on a fresh socket: it has room, or something is wrong
            self._finish(Unavailable("the proxy on the way takes no bytes"))

    def _finish(self, error: Exception | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if self._timer.active():
            self._timer.cancel()
        if error is not None:
            self._pump.close_fd(self._fd)
            done(-1, error)
        else:
            done(self._fd, None)

    def cancel(self) -> None:
        """Give up silently."""
        if self._done is not None:
            self._done = None
            if self._timer.active():
                self._timer.cancel()
            self._pump.close_fd(self._fd)


def reason(error: Exception) -> str:
    """Say in a few words why a dial failed."""
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return str(error)


def _with_port(addresses: list[Address], port: int) -> list[Address]:
    return [(family, (where[0], port)) for family, where in addresses]
