"""One sealed request at the relay: who sends it is known here, what is in it is not, and nothing but it goes on.

 head -> dialling -> sending -> explaining | answering -> closed

The page names a gateway by its id; where that is, the operator's list says, and there is no other way to name a target.
Fields are made anew on both legs, from a handful of values: nothing of either side's passes through. The bodies do not
pass through here either: the owner pumps them, holds at most BUFFER of the page's while it dials, cuts both legs
together, and says `moved` so that idle exchanges end. A request whose page has gone is cut without its last chunk, so
that it cannot pass for a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Final

from attrs import field, frozen

from layer8.core.session import Close, Dial, Effect, Outbox, Tell
from layer8.crypto.hpke_context import TAG
from layer8.tunnel import wire
from layer8.tunnel.limits import (
    DIAL_TIME,
    EXCHANGE_TIME,
    HEAD_TIME,
    IDLE_TIME,
    MAX_CHUNKS,
    MAX_MESSAGE,
)
from layer8.tunnel.wire import HEAD, MEDIA, PROBLEM_TYPE, Media

BODY_LEAST: Final = HEAD + TAG  # bytes of a sealed request with nothing in it
BODY_MOST: Final = HEAD + MAX_MESSAGE + MAX_CHUNKS * (TAG + 4)  # bytes of either body
RETRY_AFTER: Final = 1  # seconds that a page is asked to wait before it tries again
MAX_AGE: Final = 7200  # seconds that a browser remembers what it was allowed

_PATH = re.compile(r"/r/([a-z0-9-]{1,63})").fullmatch
_LENGTH = re.compile(r"0|[1-9][0-9]{0,11}").fullmatch
_REBUILT: Final = frozenset((400, 422, 429, 503))  # a gateway's answers that a page learns of

Lines = tuple[tuple[str, str], ...]
"""Field names in lower case, with values."""

COMMON: Final[Lines] = (("access-control-allow-origin", "*"), ("cache-control", "no-store"))
EXPOSED: Final = ("access-control-expose-headers", "retry-after")  # or no page hears of it
PREFLIGHT: Final[Lines] = (
    *COMMON,
    ("access-control-allow-methods", "POST"),
    ("access-control-allow-headers", "content-type, incremental, authorization"),
    ("access-control-max-age", str(MAX_AGE)),
)


@frozen
class Route:
    """Where a gateway is: an endpoint string, the `Host` and path that it hears, and our word to it, if any."""

    endpoint: str
    host: str
    path: str = "/.well-known/ohttp-gateway"
    bearer: str = field(default="", repr=False)
    patience: float = DIAL_TIME  # seconds for a connection


@frozen
class Reply:
    """Answer the page in our own words; the gateway's leg, if there is one, is cut."""

    status: int
    fields: Lines
    body: bytes = b""


@frozen
class Forward:
    """Begin the request to the gateway: a POST of these fields, and no other; the page's body follows."""

    host: str
    path: str
    fields: Lines


@frozen
class Explain:
    """Read what the gateway's answer says, PROBLEM_MOST bytes of it, and say `explained`."""


@frozen
class Pass:
    """Begin the answer to the page: a 200 of these fields; the gateway's body follows."""

    fields: Lines


@frozen
class CutGateway:
    """End the gateway's leg at once, with no end of the request."""


class _At(Enum):
    HEAD = auto()
    DIALLING = auto()
    SENDING = auto()
    EXPLAINING = auto()
    ANSWERING = auto()
    CLOSED = auto()


# By these names, since Python 3.11 takes as long for `_At.HEAD` as for a call.
_AT_HEAD, _AT_DIALLING, _AT_SENDING, _AT_EXPLAINING, _AT_ANSWERING, _AT_CLOSED = _At


class RelayExchange:
    """See the module; `Dial` has 0 as its key, `Close` is for the page's leg."""

    def __init__(self, routes: Mapping[str, Route], now: float) -> None:
        """Begin to wait for a request's head."""
        self._routes = routes
        self._at = _AT_HEAD
        self._route: Route | None = None
        self._media: Media | None = None
        self._fields: Lines = ()
        self._status = 0
        self._moved = 0
        self._ends = now + EXCHANGE_TIME
        self._deadline: float | None = now + HEAD_TIME
        self._out = Outbox()
        self.gateway = ""  # the id, once it is known: for counting

    def asked(self, method: str, path: str, fields: Sequence[tuple[str, str]], now: float) -> None:
        """Take the page's head, names in lower case; four of its values are looked at, the rest is never read."""
        if self._at is not _AT_HEAD:
            return
        match = _PATH(path)
        route = self._routes.get(match[1]) if match is not None else None
        if match is None or route is None:
            self._reply(404)
            return
        if method == "OPTIONS":
            self._end(Tell(Reply(204, PREFLIGHT)), Close("done"))
            return
        if method != "POST":
            self._reply(405, more=(("allow", "POST, OPTIONS"),))
            return
        told: dict[str, list[str]] = {"content-type": [], "content-length": [], "incremental": []}
        for name, value in fields:
            if name in told:
                told[name].append(value)
        kinds, lengths, increments = told.values()
        self._media = MEDIA.get(kinds[0]) if len(kinds) == 1 else None
        if self._media is None:
            self._reply(415)
            return
        if len(lengths) > 1 or (lengths and _LENGTH(lengths[0]) is None):
            self._reply(400)
            return
        if lengths and not BODY_LEAST <= int(lengths[0]) <= BODY_MOST:
            self._reply(400 if int(lengths[0]) < BODY_LEAST else 413)
            return
        self._fields = (
            ("content-type", self._media.request),
            ("content-length", lengths[0]) if lengths else ("transfer-encoding", "chunked"),
            *((("incremental", "?1"),) if increments == ["?1"] else ()),
            *((("authorization", f"Bearer {route.bearer}"),) if route.bearer else ()),
        )
        self.gateway, self._route = match[1], route
        self._at = _AT_DIALLING
        self._deadline = now + route.patience
        self._out.add(Dial(0, route.endpoint))

    def turned_away(self, status: int, after: float, now: float) -> None:
        """Send the page away before anything went on: 429 or 503, and when it may come back (s)."""
        if self._at in (_AT_HEAD, _AT_DIALLING):
            self._reply(status, wire.NOT_FORWARDED, (("retry-after", str(max(1, round(after)))), EXPOSED))

    def dialled(self, now: float) -> None:
        """Take the connection to the gateway."""
        if self._at is _AT_DIALLING and self._route is not None:
            self._at = _AT_SENDING
            self._out.add(Tell(Forward(self._route.host, self._route.path, self._fields)))
            self._touch(now)
        else:
            self._out.add(Tell(CutGateway()))

    def unreachable(self, now: float) -> None:
        """Take that there is no connection to the gateway: nothing has gone on."""
        self.turned_away(503, RETRY_AFTER, now)

    def moved(self, count: int, now: float) -> None:
        """Take that so many bytes of either body have gone on."""
        self._moved += count
        if self._at in (_AT_SENDING, _AT_ANSWERING):
            self._touch(now)
            if self._moved > 2 * BODY_MOST:
                self._cut("limit")

    def answered(self, status: int, kind: str, now: float) -> None:
        """Take the gateway's head: its status and Content-Type; the rest of it is never read."""
        if self._at is not _AT_SENDING or self._media is None:
            return
        self._status = status
        if status == 200 and kind == self._media.response:
            self._at = _AT_ANSWERING
            self._out.add(Tell(Pass((("content-type", kind), *COMMON, ("incremental", "?1")))))
            self._touch(now)
        elif status in _REBUILT:
            self._at = _AT_EXPLAINING
            self._out.add(Tell(Explain()))
            self._touch(now)
        else:
            self._reply(502)

    def explained(self, body: bytes, now: float) -> None:
        """Take the body of a gateway's refusal: one word of it is believed, none is passed on."""
        if self._at is _AT_EXPLAINING:
            known = self._status == 400 and wire.read_problem(body) == wire.OHTTP_KEY
            self._reply(self._status, wire.OHTTP_KEY if known else wire.ABOUT_BLANK)

    def ended(self, now: float) -> None:
        """Take the end of the gateway's answer."""
        if self._at is _AT_ANSWERING:
            self._end(Close("done"))
        elif self._at is _AT_EXPLAINING:
            self.explained(b"", now)

    def lost(self, now: float) -> None:
        """Take that the page has gone."""
        if self._at is _AT_CLOSED:
            return
        if self._at is _AT_HEAD:
            self._end()
        else:
            self._end(Tell(CutGateway()))

    def gateway_lost(self, now: float) -> None:
        """Take that the gateway's leg has ended too early."""
        if self._at is _AT_DIALLING:
            self.unreachable(now)
        elif self._at in (_AT_SENDING, _AT_EXPLAINING):
            self._reply(502)
        elif self._at is _AT_ANSWERING:
            self._end(Close("gateway", abort=True))

    def wake(self, now: float) -> None:
        """Give up whom nothing is heard from."""
        if self._deadline is None or now < self._deadline:
            return
        if self._at is _AT_HEAD:
            self._reply(408)
        elif self._at is _AT_DIALLING:
            self.unreachable(now)
        elif self._at is _AT_ANSWERING:
            self._cut("timeout")
        else:
            self._reply(504)

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._out.take()

    def deadline(self) -> float | None:
        """Give the time of `wake`."""
        return self._deadline

    def _touch(self, now: float) -> None:
        self._deadline = min(now + IDLE_TIME, self._ends)

    def _reply(self, status: int, problem: str = wire.ABOUT_BLANK, more: Lines = ()) -> None:
        effects: list[Effect] = []
        if self._at not in (_AT_HEAD, _AT_CLOSED):
            effects.append(Tell(CutGateway()))
        fields = (*COMMON, ("content-type", PROBLEM_TYPE), *more)
        self._end(*effects, Tell(Reply(status, fields, wire.problem(status, problem))), Close("refused"))

    def _cut(self, reason: str) -> None:
        self._end(Tell(CutGateway()), Close(reason, abort=True))

    def _end(self, *effects: Effect) -> None:
        self._out.add(*effects)
        self._at = _AT_CLOSED
        self._deadline = None
