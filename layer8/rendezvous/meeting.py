"""The rendezvous hop: clients wait with a cookie, and a service that brings it is joined to the one that waits.

::

 waiting(cookie) -> joined -> closed

It sees a cookie, two circuits and how much goes over, and neither end nor which service it is. It is used once: what
was joined is a hop on the way like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, field

from layer8.core.errors import LimitExceeded, RemoteProtocolError
from layer8.core.lanes import Lane
from layer8.core.roles import Asker
from layer8.rendezvous.limits import COOKIE_LIFE, COOKIES
from layer8.rendezvous.wire import Join, Renzv, read_cookie

Joins = Callable[[int, int], bool]
"""`join(circuit, other)` lets two circuits that end here go over into each other; False if one of them cannot."""

COMMANDS: Final = frozenset((int(Renzv.LISTEN), int(Renzv.JOIN)))


@define(eq=False)
class Meeting:
    """The clients that wait here: `layer8.core.roles.Answers`."""

    commands = COMMANDS
    _join: Joins
    joined: int = field(default=0, init=False)  # so far
    _waiting: dict[bytes, Asker] = field(factory=dict, init=False, repr=False)
    _cookies: dict[int, bytes] = field(factory=dict, init=False, repr=False)  # by circuit
    _since: Lane[tuple[bytes, int]] = field(factory=lambda: Lane(COOKIE_LIFE), init=False, repr=False)

    @property
    def waiting(self) -> int:
        """Count the clients that wait."""
        return len(self._waiting)

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Take a client or a service; raises `RemoteProtocolError`."""
        for cookie, circuit in self._since.expired(now):
            if self._cookies.get(circuit) == cookie:
                self._forget(cookie)
        if command == Renzv.LISTEN:
            self._listen(asker, read_cookie(data), now)
        else:
            self._meet(asker, Join.read(data))

    def gone(self, circuit: int) -> None:
        """Let nobody wait on a circuit that has ended."""
        cookie = self._cookies.get(circuit)
        if cookie is not None:
            self._forget(cookie)

    def _listen(self, asker: Asker, cookie: bytes, now: float) -> None:
        if asker.circuit in self._cookies or cookie in self._waiting:
            raise RemoteProtocolError("a circuit that waits twice, or a cookie that somebody has")
        if len(self._waiting) >= COOKIES:
            raise LimitExceeded("COOKIES", COOKIES)
        self._waiting[cookie] = asker
        self._cookies[asker.circuit] = cookie
        self._since.add((cookie, asker.circuit), now)
        asker.answer(Renzv.LISTEN_OK, b"")

    def _meet(self, asker: Asker, said: Join) -> None:
        client = self._waiting.get(said.cookie)
        if client is None or asker.circuit in self._cookies:
            raise RemoteProtocolError("a cookie that nobody waits with")
        self._forget(said.cookie)
        client.answer(Renzv.CONNECT_OK, said.reply)
        if not self._join(asker.circuit, client.circuit):
            client.destroy()
            raise RemoteProtocolError("a circuit that cannot be joined")
        self.joined += 1

    def _forget(self, cookie: bytes) -> None:
        asker = self._waiting.pop(cookie)
        self._cookies.pop(asker.circuit, None)
