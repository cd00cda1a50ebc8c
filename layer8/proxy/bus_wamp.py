"""Presence and messages between nodes over a WAMP router that learns node ids and times, and nothing else.

::

    layer8.NODE.proxy.call   one sealed message for that node, from `notify`: answered when it has been taken
    layer8.NODE.proxy.news   one sealed message of `layer8.proxy.roster`
    layer8.proxy.news        an event with such a message sealed for each node, for what all have to hear

NODE is a node's short id. While there is no router, our own subscriptions are served and routes are kept for STALE;
whoever joins tells all it has and asks all others. Messages of nodes whose key is not known are dropped, after the
book was asked for new ones.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from autobahn.wamp.types import RegisterOptions
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from layer8.core.errors import Layer8Error, RemoteProtocolError, TimedOut, Unavailable
from layer8.crypto.hpke import Sealer
from layer8.crypto.keys import SHORT, id_text
from layer8.proxy.bus import Lease, Presence, Stop
from layer8.proxy.roster import Roster

NOTIFY_TIME: Final = 1.5
"""Seconds that a node has to take a message: as long as an agent has to dial back."""
SOON: Final = 0.02
"""Seconds in which changes are told together."""
WONDER: Final = 5.0
"""Seconds between two looks at who the nodes are, when somebody speaks whom we do not know."""
TOPIC: Final = "layer8.proxy.news"
ALONE: Final = RegisterOptions(force_reregister=True)
"""A process that takes over from another, or one whose end the router has not seen, is in its way no longer."""


class LinkLike(Protocol):
    """What `layer8.net.wamp.Link` does for us."""

    def use(self, user: Any) -> None:
        """Tell `user` of each session."""

    def call(self, procedure: str, params: Mapping[str, Any], timeout: float) -> Deferred[Any]:
        """Call a procedure; fails with Unavailable, TimedOut or RouterError."""

    def publish(self, topic: str, params: Mapping[str, Any]) -> bool:
        """Publish an event; False if there is no session."""


class WampPresence:
    """The ephemeral half of a bus; a `User` of a `Link`."""

    _log = Logger(namespace="layer8.proxy.bus")

    def __init__(
        self,
        clock: IReactorTime,
        link: LinkLike,
        sealer: Sealer,
        start: int,
        unknown: Callable[[], None] = lambda: None,
    ) -> None:
        """`start` is in ms since 1970; `unknown` is told that somebody spoke whose key we do not have."""
        self.sealer = sealer
        self.dropped = 0
        self._clock = clock
        self._link = link
        self.unknown = unknown
        self._roster = Roster(sealer.node, start)
        self._listening: list[Callable[[bytes], None]] = []
        self._soon: IDelayedCall | None = None
        self._wondered = -WONDER
        self._session: Any = None
        link.use(self)

    # As a part of a bus.

    async def lease(self, presence: Presence) -> Lease:
        """Announce a subscription."""
        lease = self._roster.lease(presence, self._clock.seconds())
        self._tell_soon()
        return lease

    async def renew(self, leases: Iterable[Lease]) -> tuple[Lease, ...]:
        """Prolong leases and give those that cannot be."""
        lost = self._roster.renew(leases, self._clock.seconds())
        self._tell_soon()
        return lost

    async def release(self, lease: Lease) -> None:
        """End a lease now."""
        self._roster.release(lease)
        self._tell_soon()

    def lookup(self, host: str) -> tuple[Presence, ...]:
        """Give who is present for a registered name."""
        return self._roster.lookup(host, self._clock.seconds())

    async def notify(self, node: bytes, sealed: bytes) -> None:
        """Hand a sealed message to a node; raises `Unavailable`, at once if the router knows that it is gone."""
        if node == self.sealer.node:
            self._hear(sealed)
            return
        try:
            await self._link.call(_name(node, "call"), {"sealed": _text(sealed)}, NOTIFY_TIME)
        except Unavailable:
            raise
        except Layer8Error as error:
            if isinstance(error, TimedOut) or getattr(error, "uri", "") == "wamp.error.no_such_procedure":
                self._roster.lost(node)  # until it speaks again
            raise Unavailable(f"a node cannot be reached: {error}") from error

    def listen(self, told: Callable[[bytes], None]) -> Stop:
        """Take the sealed messages for this node."""
        self._listening.append(told)
        return lambda: self._listening.remove(told)

    def alive(self) -> frozenset[bytes]:
        """Give the other nodes that have spoken lately."""
        return self._roster.alive(self._clock.seconds())

    def renewed(self, node: bytes) -> None:
        """Take that a node has a new key: what it had before it started is over."""
        self._roster.lost(node)
        self.greet(node)

    def greet(self, node: bytes) -> None:
        """Tell a node all that we have, and ask for what it has."""
        self._send(node, {"ask": True})
        for part in self._roster.whole():
            self._send(node, part)

    def leave(self) -> None:
        """Tell what has not been told yet: this node stops."""
        if self._soon is not None:
            self._soon.cancel()
            self._tell()

    # As a user of the link.

    def joined(self, session: Any) -> None:
        """Register, then tell everybody what we have and ask for what they have."""
        self._session = session
        self._roster.joined(self._clock.seconds())
        waiting = [
            session.register(self._called, _name(self.sealer.node, "call"), ALONE),
            session.register(self._told_alone, _name(self.sealer.node, "news"), ALONE),
            session.subscribe(self._told_all, TOPIC),
        ]
        for one in waiting:
            one.addErrback(self._refused)
        waiting[-1].addCallback(lambda _: self._greet_all(session))

    def parted(self) -> None:
        """Keep what we know for a while."""
        self._session = None
        self._roster.cut(self._clock.seconds())

    def _refused(self, reason: Any) -> None:
        words = getattr(reason.value, "error", None) or reason.getErrorMessage()
        self._log.error("the router does not let us serve: {why}", event="router.refused", why=str(words)[:120])

    def _greet_all(self, session: Any) -> None:
        if session is self._session:
            self._roster.news()  # it is in the whole
            for node in self.sealer.nodes:
                self.greet(node)

    # What comes.

    def _called(self, sealed: str) -> dict[str, Any]:
        self._hear(_bytes(sealed))
        return {}

    def _told_alone(self, sealed: str) -> dict[str, Any]:
        self._news(_bytes(sealed))
        return {}

    def _told_all(self, boxes: Any = None) -> None:
        mine = boxes.get(_short(self.sealer.node)) if isinstance(boxes, dict) else None
        if isinstance(mine, str):
            self._news(_bytes(mine))

    def _hear(self, sealed: bytes) -> None:
        if not self._listening:
            raise Unavailable("nobody listens")
        for told in list(self._listening):
            told(sealed)

    def _news(self, sealed: bytes) -> None:
        node = sealed[:32]
        if node not in self.sealer.nodes:
            self.dropped += 1
            self._wonder()
            return
        try:
            sender, text = self.sealer.open(sealed)
            said = json.loads(text)
            if "ask" in said:
                for part in self._roster.whole():
                    self._send(sender, part)
            elif self._roster.heard(sender, said, self._clock.seconds()):
                self._send(sender, {"ask": True})
        except (RemoteProtocolError, ValueError, TypeError):
            self.dropped += 1
            self._wonder()

    def _wonder(self) -> None:
        """Have the nodes looked up again: there may be a new one, or a new key of one."""
        now = self._clock.seconds()
        if now - self._wondered >= WONDER:
            self._wondered = now
            self.unknown()

    # What goes.

    def _tell_soon(self) -> None:
        if self._soon is None:
            self._soon = self._clock.callLater(SOON, self._tell)

    def _tell(self) -> None:
        self._soon = None
        news = self._roster.news()
        if news is not None and self._session is not None:  # whoever joins tells all of it
            text = json.dumps(news, separators=(",", ":")).encode()
            boxes = {_short(node): _text(self.sealer.seal(node, text)) for node in self.sealer.nodes}
            if boxes:
                self._link.publish(TOPIC, {"boxes": boxes})

    def _send(self, node: bytes, message: dict[str, Any]) -> None:
        try:
            sealed = self.sealer.seal(node, json.dumps(message, separators=(",", ":")).encode())
        except Unavailable:
            return
        # a node that cannot be reached now asks for the whole when it can
        self._link.call(_name(node, "news"), {"sealed": _text(sealed)}, NOTIFY_TIME).addErrback(lambda _: None)


def _short(node: bytes) -> str:
    return id_text(node)[:SHORT]


def _name(node: bytes, what: str) -> str:
    return f"layer8.{_short(node)}.proxy.{what}"


def _text(sealed: bytes) -> str:
    return base64.b64encode(sealed).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        return b""
