"""The agent's side of a pool: connections to a server that are dialled ahead, and wait for their visitors.

::

    proxy.pool ──▶ dial server ──▶ (TLS) ──▶ 32 bytes of token ──▶ wait ──PROXY v2 header──▶ dial target ──▶ join
                                                                    │          the target refuses ──▶ proxy.reject,
                                                                    │          and wait for the server to close
                                                                    └── anything else: closed

It is the server that ends what has waited for long and asks for another one: if we did, a visitor might have been
given the connection just then. A server that stays away takes with it all that waited for it.
"""

from __future__ import annotations

import os
from enum import Enum
from math import inf
from typing import Any, Protocol

from layer8.net.dial import Attempt, Where
from layer8.net.entries import Dialing
from layer8.net.flow import BROKEN
from layer8.net.leg import Leg
from layer8.proxy.carry import Carried, Carrier, Secured
from layer8.proxy.limits import CALL_LIFE
from layer8.proxy.pp import CLAIM_MOST, Claim, Header, Reader, quick_claim, read_claim
from layer8.proxy.wire import SECRET_SIZE

FIRST_READ = 16384
"""Bytes of the first read of a claimed connection: the header, and usually all that the visitor has said."""
KEPT = 320
"""Connections ahead of one subscription at one place: of each kind 32 that wait and 128 for visitors that wait."""
KEPT_EVERYWHERE = 10 * KEPT
"""And at all nodes that have visitors for it."""

Dials = tuple[Where, Secured | None]


class Keeper(Protocol):
    """The link to a server, whose notifications ask for connections ahead."""

    def serves(self, subscription: object) -> bool:
        """Say whether a subscription is ours and alive."""

    def data_address(self, host: object, port: object, secure: object) -> Dials | None:
        """Give how a data address is dialled; None unless the server has announced it."""

    def claimed(self, subscription: int, claim: Claim, ahead: Kept) -> bool:
        """Carry a visitor on a connection that waited, or `refuse` it; False if the claim makes no sense."""

    def nonsense(self) -> None:
        """Count something that makes no sense."""


class Reserve:
    """All connections that wait for visitors of one server."""

    def __init__(self, carrier: Carrier, keeper: Keeper) -> None:
        """Dial and join as `carrier` does; `keeper` knows what is ours."""
        self.carrier = carrier
        self.keeper = keeper
        self.kept: dict[int, dict[Where, set[Kept]]] = {}

    def __len__(self) -> int:
        """Count what waits, or is on its way to waiting."""
        return len(self._all())

    def told(self, params: dict[str, Any]) -> None:
        """Take a `proxy.pool` notification; what cannot be understood is ignored and counted."""
        keeper = self.keeper
        subscription, tokens = params.get("subscription"), params.get("tokens")
        if type(subscription) is not int or not isinstance(tokens, list) or not keeper.serves(subscription):
            keeper.nonsense()
            return
        for token in tokens:
            try:
                secret = bytes.fromhex(token["secret"])
                port, secure = token["serverListeningPort"], token["tls"]
                host = token.get("serverListeningHost")
            except (KeyError, TypeError, ValueError, AttributeError):
                keeper.nonsense()
                continue
            where = keeper.data_address(host, port, secure) if len(secret) == SECRET_SIZE else None
            if where is None:
                keeper.nonsense()
                continue
            at = self.kept.get(subscription, {})
            if len(at.get(where[0], ())) >= KEPT or sum(map(len, at.values())) >= KEPT_EVERYWHERE:
                keeper.nonsense()
                break
            one = Kept(self, subscription, where[0], secret, where[1])
            self.kept.setdefault(subscription, {}).setdefault(where[0], set()).add(one)
            one.begin()

    def _all(self) -> list[Kept]:
        return [one for places in self.kept.values() for kept in places.values() for one in kept]

    def lose(self) -> None:
        """Take that the server is gone: other nodes, where some wait for its visitors, have `CALL_LIFE` to notice."""
        for one in self._all():
            one.lose()

    def close(self) -> None:
        """Close all that waits: we go."""
        for one in self._all():
            one.close()


class Step(Enum):
    """Where a connection stands."""

    COMING = "coming"  # dialled, TLS
    WAITING = "waiting"  # the token is shown
    CLAIMED = "claimed"  # a visitor's: the target is dialled
    REFUSED = "refused"  # the visitor is the server's to take back
    OVER = "over"


class Kept:
    """One connection that was dialled ahead; an entry of the pump until it is joined."""

    __slots__ = (
        "_attempt",
        "_carried",
        "_reader",
        "_reserve",
        "_secured",
        "_server",
        "_token",
        "_until",
        "fd",
        "leg",
        "rest",
        "step",
        "subscription",
    )

    def __init__(
        self, reserve: Reserve, subscription: int, server: Where, token: bytes, secured: Secured | None
    ) -> None:
        """Prepare to dial."""
        self._reserve = reserve
        self._token = token
        self._secured = secured
        self._server = server
        self._attempt: Attempt | Dialing | Leg | None = None
        self._reader: Reader | None = None
        self._until = inf
        self._carried: Carried | None = None
        self.subscription = subscription
        self.fd = -1
        self.leg: Leg | None = None
        self.rest = b""
        self.step = Step.COMING

    def begin(self) -> None:
        """Dial the server."""
        carrier = self._reserve.carrier
        carrier.limit(self)
        attempt = carrier.outward.dial(self._server, self._there)
        if attempt is not None and self.step is Step.COMING and self._attempt is None:
            self._attempt = attempt

    def _there(self, fd: int, error: Exception | None) -> None:
        pump = self._reserve.carrier.pump
        if self.step is not Step.COMING or error is not None:
            if fd >= 0:
                pump.close_fd(fd)
            self._leave()
        elif self._secured is None:
            self._show(fd, None)
        else:
            secured = self._secured
            name = secured.name.encode("ascii") or None
            leg = Leg(pump, fd, secured.context, client=True, done=self._shaken, name=name, ticket=secured.ticket)
            self._attempt = leg
            leg.start()

    def _shaken(self, leg: Leg, error: Exception | None) -> None:
        if error is not None:  # the leg has closed the descriptor
            self._leave()
        elif self.step is not Step.COMING:
            self._reserve.carrier.pump.close_fd(leg.fd)
        else:
            self._show(leg.fd, leg)

    def _show(self, fd: int, leg: Leg | None) -> None:
        """Show the token, and wait."""
        self._attempt = None
        self.fd, self.leg = fd, leg
        token, self._token = self._token, b""
        try:
            sent = os.write(fd, token) if leg is None else leg.send(token)
        except OSError:
            sent = 0
        if sent < len(token):  # 32 bytes on a fresh connection: it has room, or something is wrong
            self.close()
            return
        self.step = Step.WAITING
        self._reserve.carrier.pump.watch(fd, self)
        if leg is not None:
            self.ready(fd, 0)

    def ready(self, fd: int, events: int) -> None:
        """Read the header of a visitor, or notice that the server has gone or taken its visitor back.

        A visitor's FIN alone is no end yet, and whatever came before a reset is nobody's any more.
        """
        if events & BROKEN:
            if self._carried is not None:
                self._carried.close()
            self.close()
        elif self.step is Step.WAITING:
            self._read()

    def _read(self) -> None:
        while self.step is Step.WAITING:
            try:
                data = os.read(self.fd, FIRST_READ) if self.leg is None else self.leg.recv(FIRST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            reader = self._reader
            if reader is None:
                if (quick := quick_claim(data)) is not None:
                    self._heard(*quick)
                    return
                reader = self._reader = Reader(CLAIM_MOST)
            outcome = reader.feed(data)
            if outcome is not None:
                self._heard(read_claim(outcome) if isinstance(outcome, Header) else None, reader.data)
                return

    def _heard(self, claim: Claim | None, rest: bytes) -> None:
        """Take what a header says, and what followed it; None is for something else than a claim."""
        self._reader = None
        self._forget()
        keeper = self._reserve.keeper
        self.rest = rest
        if claim is None or not keeper.claimed(self.subscription, claim, self):
            keeper.nonsense()
            self.close()

    def take(self, carried: Carried) -> int:
        """Give the descriptor to whoever carries the visitor, until `left` is called."""
        self.step = Step.CLAIMED
        self._carried = carried
        return self.fd

    def left(self, joined: bool) -> None:
        """Take that the descriptor is joined or closed; or that its visitor was refused, and it is ours again."""
        self._carried = None
        if joined:
            self.step = Step.OVER
            self.fd = -1
            self.rest = b""
        else:
            self.refuse()

    def refuse(self) -> None:
        """Wait until the server has taken its visitor back, `CALL_LIFE` at most."""
        self.step = Step.REFUSED
        self.rest = b""
        self.lose()
        self._reserve.carrier.pump.watch(self.fd, self)

    def lose(self) -> None:
        """Wait `CALL_LIFE` more, at most."""
        carrier = self._reserve.carrier
        carrier.limit(self)
        self._until = carrier.pump.now + CALL_LIFE

    def late(self) -> None:
        """Take that dialling, or the server's taking back or noticing, took too long."""
        over = self._reserve.carrier.pump.now >= self._until
        if self.step is Step.COMING or (over and self.step in (Step.WAITING, Step.REFUSED)):
            self.close()

    def abandon(self) -> None:
        """Close what is still ours."""
        self.close()

    def close(self) -> None:
        """Close, unless somebody carries a visitor on it."""
        if self.step is Step.CLAIMED:
            return
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        self._leave()

    def _leave(self) -> None:
        self.step = Step.OVER
        self._reader = None
        self._forget()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._reserve.carrier.pump.close_fd(fd)

    def _forget(self) -> None:
        kept = self._reserve.kept
        places = kept.get(self.subscription, {})
        waiting = places.get(self._server)
        if waiting is not None:
            waiting.discard(self)
            if not waiting:
                del places[self._server]
                if not places:
                    del kept[self.subscription]
