"""One exchange on its way through a middleware: what it tells, sorted by what is done with it."""

from __future__ import annotations

from collections import deque
from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import define, field

from layer8.core.session import Close, Send, Tell
from layer8.tunnel.bhttp import SAFE, Fields, Response
from layer8.tunnel.gateway import Gateway, Outcome, pad_event
from layer8.tunnel.gateway_session import (
    Begin,
    Body,
    Broken,
    Call,
    GatewayExchange,
    Leave,
    Remember,
    Reply,
    Whole,
)
from layer8.tunnel.wire import Media

READ: Final = 32 * 1024  # bytes of a request that are read at a time


@define(eq=False)
class Serving:
    """What an exchange has told since it began; the owner calls `sort` after each call of the exchange."""

    gateway: Gateway
    exchange: GatewayExchange
    asked: Remember | None = None  # ask the replay set, and say `remembered`
    call: Call | None = None
    reply: Reply | None = None
    media: Media | None = None  # the answer has begun
    body: deque[bytes] = field(factory=deque)
    whole: bool = False
    broken: bool = False
    left: bool = False  # nobody waits for the backend's answer
    end: Close | None = None
    _out: list[bytes] = field(factory=list)
    _padding: bool = False
    _flushing: bool = False

    @property
    def cut(self) -> bool:
        """Whether it has ended so that nobody takes the answer for whole."""
        return self.end is not None and self.end.abort

    def sort(self) -> None:
        """Look at what the exchange asks for."""
        for effect in self.exchange.effects():
            kind = type(effect)  # three of them, for each piece of each request
            if kind is Send:
                self._out.append(effect.data)  # type: ignore[union-attr]
            elif kind is Tell:
                what = effect.what  # type: ignore[union-attr]
                if type(what) is Body:
                    self.body.append(what.data)
                else:
                    self._told(what)
            elif isinstance(effect, Close):
                self.end = effect
                if effect.reason == "done" and not self.left and not self.broken and self.call is not None:
                    self.gateway.count(Outcome.ANSWERED)

    def sealed(self) -> bytes:
        """Give what is to be sent now."""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return out

    def begin(self, status: int, fields: Fields, length: int | None, now: float) -> None:
        """Begin the answer; raises `LocalProtocolError`. Its pieces leave as they come if their length is not known."""
        self._padding = self.gateway.event_padding(fields)
        self._flushing = length is None
        self.exchange.respond(Response(status, fields), now, length=length)

    def write(self, data: bytes, now: float) -> None:
        """Add to the answer; raises `LocalProtocolError`."""
        if data:
            self.exchange.write(pad_event(data) if self._padding else data, now)
            if self._flushing:
                self.exchange.flush(now)

    def failed(self, now: float, status: int) -> None:
        """Take that the backend, or what we keep, has failed."""
        if self.end is None:
            self.gateway.count(Outcome.FAILED)
            self.exchange.failed(now, status)

    def lost(self, now: float) -> None:
        """Take that whoever asked has gone."""
        self.exchange.lost(now)
        self.sort()
        self.left = True
        self.end = self.end or Close("lost", abort=True)

    def _told(self, what: object) -> None:
        match what:
            case Remember():
                self.asked = what
            case Call():
                self.call = what
            case Reply():
                self.reply = what
            case Whole():
                self.whole = True
            case Broken():
                self.broken = True
                self.gateway.count(Outcome.BROKEN)
            case Leave():
                self.left = True
            case Begin(media):
                self.media = media


def heard(call: Call) -> Fields:
    """Give the fields for a backend that writes `-` and `_` alike: one of two spellings could speak for us."""
    return tuple((name, value) for name, value in call.fields if b"_" not in name)


def length_told(call: Call) -> int | None:
    """Give the length that a backend is told: none where browsers send none, either."""
    return None if not call.length and call.request.method in SAFE else call.length


def decoded(path: str) -> bytes:
    """Give a path as programs have it that never see a URL."""
    return unquote_to_bytes(path) if "%" in path else path.encode("ascii")


def server(call: Call) -> tuple[str, int]:
    """Give the host and the port that were asked for."""
    authority = call.target.authority
    host, colon, port = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
    return (host, int(port)) if colon else (authority, 443 if call.target.scheme == "https" else 80)


def declared(fields: Fields) -> int | None:
    """Give the length that an answer's fields promise, if they do."""
    texts = [value for name, value in fields if name == b"content-length"]
    return int(texts[0]) if len(texts) == 1 and texts[0].isdigit() else None
