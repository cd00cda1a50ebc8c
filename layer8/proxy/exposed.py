"""A host that a program publishes through an agent, until it closes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from layer8.core.errors import Refused, Unavailable
from layer8.proxy.uplink import Published, ServerLink

State = Literal["connecting", "serving", "refused", "closed"]
"""No server has answered yet or all are lost; one sends us visitors; all that answer refuse; `close` was called."""

_DEFAULT: Final = {"http": 80, "https": 443}


class Exposed:
    """What `Agent.expose` gives."""

    def __init__(
        self,
        clock: IReactorTime,
        published: Published,
        uplinks: Sequence[ServerLink],
        withdraw: Callable[[], Awaitable[None]],
    ) -> None:
        """Take what is published, and where."""
        self.published = published
        self._clock = clock
        self._soon: IDelayedCall | None = None
        self._uplinks = uplinks
        self._withdraw = withdraw
        self._closed = False
        self._waiting: list[Deferred[None]] = []

    @property
    def host(self) -> str:
        """The public name."""
        return self.published.host

    @property
    def state(self) -> State:
        """How it stands now."""
        if self._closed:
            return "closed"
        if any(self._serves(uplink) for uplink in self._uplinks):
            return "serving"
        connected = [uplink for uplink in self._uplinks if uplink.connected]
        if connected and all(self.host in uplink.refusals for uplink in connected):
            return "refused"
        return "connecting"

    @property
    def url(self) -> str:
        """The first of `urls`, empty while nobody serves it."""
        return next(iter(self.urls), "")

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses that visitors may use, as the servers tell their public ports; HTTP before HTTPS."""
        found = []
        for scheme, usual in _DEFAULT.items():
            for uplink in self._uplinks:
                port = uplink.public.get(scheme)
                if port is None or not self._serves(uplink) or self.published.target(port, scheme) is None:
                    continue
                found.append(f"{scheme}://{self.host}{'' if port == usual else f':{port}'}")
        return tuple(dict.fromkeys(found))

    def ready(self) -> Deferred[None]:
        """Fire when it is served; fails with Refused if it is refused, with Unavailable if it is closed."""
        waiter: Deferred[None] = Deferred(lambda gone: self._waiting.remove(gone) if gone in self._waiting else None)
        self._waiting.append(waiter)
        self.look()
        return waiter

    async def close(self) -> None:
        """Publish it no longer; what is joined goes on. Twice does nothing."""
        if not self._closed:
            self.end()
            await self._withdraw()

    def end(self) -> None:
        """Take that the agent stops."""
        self._closed = True
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        self._tell()

    def look(self) -> None:
        """Take that something has changed; called by the agent, which may be stopped only once it has finished that."""
        if self._waiting and (self._soon is None or not self._soon.active()):
            self._soon = self._clock.callLater(0, self._tell)

    def _tell(self) -> None:
        state = self.state
        if state == "connecting":
            return
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if state == "serving":
                waiter.callback(None)
            elif state == "refused":
                waiter.errback(Refused(f"{self.host} is refused: {self._why()}"))
            else:
                waiter.errback(Unavailable(f"{self.host} is published no longer"))

    def _serves(self, uplink: ServerLink) -> bool:
        return any(one.host == self.host for one in uplink.subscriptions.values())

    def _why(self) -> str:
        return next((uplink.refusals[self.host] for uplink in self._uplinks if self.host in uplink.refusals), "")
