"""One sealed request at the page's side: sealed as its content comes, sent whole, its answer opened as that comes.

 request  -> writing -> waiting -> opening | explaining -> closed

What goes wrong is told as a `Failure`: on which leg, and whether the same request may be sent again, sealed anew. What
the relay says in the clear may be a lie, so on its word alone only what changes nothing is sent again; what the gateway
has sealed is its own word. Nothing is ever sent a third time.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from attrs import evolve, field, frozen

from layer8.core.errors import LocalProtocolError
from layer8.core.session import Close, Effect, Outbox, Send, Tell
from layer8.crypto.hpke_context import Private
from layer8.tunnel import bhttp, dates, wire
from layer8.tunnel.bhttp import END, SAFE, Fields, Informational, Malformed, Request, Response, Trailers
from layer8.tunnel.keys import KeySet
from layer8.tunnel.limits import IDLE_TIME
from layer8.tunnel.outgoing import Outgoing
from layer8.tunnel.replay import minute
from layer8.tunnel.wire import MEDIA, PROBLEM_MOST, PROBLEM_TYPE, Media, Refusal

AGENT: Final = b"L8"
RETRY_MOST: Final = 60.0  # seconds that a relay may ask to wait


class Leg(Enum):
    """Where something went wrong."""

    RELAY = "relay"  # or on the way to it
    GATEWAY = "gateway"


class Resend(Enum):
    """What to do before the same request is sealed and sent again, once."""

    KEYS = "keys"  # get the gateway's new keys
    LATER = "later"  # wait `after` seconds, and up to one more
    DATE = "date"  # 0.1 to 1 second, then with `date` as the time of day, in this request only


@frozen
class Failure:
    """The request has failed; `code` is a word of CODES."""

    code: str
    leg: Leg
    resend: Resend | None = None
    after: float = 0.0
    date: int | None = None


CODES: Final = {
    "keys": "the gateway does not know the key any more",
    "date": "the clocks of page and gateway differ",
    "repeated": "the gateway has seen this very message before: somebody has sent it twice",
    "framing": "the relay or the gateway could not read the message",
    "no-gateway": "the relay knows no such gateway",
    "media": "the other side does not speak this form of message",
    "too-large": "the message is larger than the gateway takes",
    "unopened": "the gateway could not open the message: it was changed on the way, or sealed to another key",
    "busy": "the relay or the gateway has no room now",
    "lost": "the connection was lost; the request may have been processed",
    "slow": "the gateway did not answer in time; the request may have been processed",
    "tampered": "the answer does not open: somebody has changed it, or it belongs to another request",
    "cut": "the answer ends too early",
    "strange": "the relay answers as no relay does",
}
_BY_STATUS: Final = {
    400: ("framing", Leg.GATEWAY),
    404: ("no-gateway", Leg.RELAY),
    408: ("slow", Leg.RELAY),
    413: ("too-large", Leg.GATEWAY),
    415: ("media", Leg.GATEWAY),
    422: ("unopened", Leg.GATEWAY),
    429: ("busy", Leg.RELAY),
    502: ("lost", Leg.GATEWAY),
    503: ("busy", Leg.RELAY),
    504: ("slow", Leg.GATEWAY),
}


@frozen
class Early:
    """A response that comes before the final one."""

    response: Informational


@frozen
class Answer:
    """The head of the backend's answer."""

    response: Response


@frozen
class Piece:
    """A piece of its content."""

    data: bytes = field(repr=False)


@frozen
class Done:
    """The answer is whole."""

    trailers: Fields = ()


def dressed(request: Request, origin: str, date: float) -> Request:
    """Give a request the fields that all have, so that none of them tells one page or browser from another.

    `date` in seconds since 1970 is rounded down to its minute. What the page may set itself is `accept`.
    """
    own = {b"date", b"origin", b"user-agent", b"host"}
    kept = tuple((name, value) for name, value in request.fields if name.lower() not in own)
    fields = [(b"date", dates.write(minute(date))), (b"origin", origin.encode()), (b"user-agent", AGENT)]
    if not any(name.lower() == b"accept" for name, _ in kept):
        fields.append((b"accept", b"*/*"))
    return evolve(request, fields=(*fields, *kept))


class _At(Enum):
    WRITING = auto()
    WAITING = auto()
    OPENING = auto()
    EXPLAINING = auto()
    CLOSED = auto()


class ClientExchange:
    """See the module; `ephemeral` is a new key pair, `resent` says that this is the second time.

    `media` is the form, and so the type, that the request goes out in: the gateway's first that we know, always.
    """

    def __init__(
        self,
        keys: KeySet,
        request: Request,
        ephemeral: Private,
        now: float,
        *,
        length: int | None = 0,
        pad: bool = True,
        resent: bool = False,
    ) -> None:
        """Begin with a `dressed` head; raises `RemoteProtocolError` for a gateway's key of low order."""
        self.media: Media = MEDIA[keys.media[0]]
        self._request = request
        self._resent = resent
        aead = keys.config.aeads[0]
        sealer, context = wire.seal_request(self.media, keys.config, aead, ephemeral)
        self._writing: Outgoing | None = Outgoing(sealer, request, length=length, pad=pad)
        self._opener = wire.open_answer(self.media, context, aead)
        self._reader = bhttp.Reader(request=False)
        self._at = _At.WRITING
        self._status = 0
        self._after = 0.0
        self._plain = bytearray()  # a problem, in the clear or sealed
        self._held: Response | None = None  # the head of an answer that may be a problem of the gateway's
        self._trailers: Fields = ()
        self._deadline: float | None = now + IDLE_TIME
        self._out = Outbox()

    def write(self, data: bytes, now: float) -> None:
        """Add content; it leaves in full chunks."""
        if self._writing is not None:
            self._send(self._writing.write(data))
            self._deadline = now + IDLE_TIME

    def finish(self, now: float, trailers: Fields = ()) -> None:
        """End the request; while `padding`, its end is still to come."""
        if self._writing is not None:
            self._send(self._writing.finish(trailers))
            self._sent(now)

    @property
    def padding(self) -> bool:
        """Whether `pad` is to be called, as there is room."""
        return self._writing is not None and self._writing.owed > 0

    def pad(self, now: float) -> None:
        """Send some more of the padding behind the content."""
        if self._writing is not None and self._writing.owed:
            self._send(self._writing.pad())
            self._sent(now)

    def _sent(self, now: float) -> None:
        self._deadline = now + IDLE_TIME
        if not self.padding:
            self._writing = None
            if self._at is _At.WRITING:
                self._at = _At.WAITING

    def answered(self, status: int, kind: str, now: float, retry_after: str = "") -> None:
        """Take the head of the outer answer: its status, Content-Type and Retry-After."""
        if self._at not in (_At.WRITING, _At.WAITING):
            raise LocalProtocolError("no answer is awaited")
        self._deadline = now + IDLE_TIME
        self._status = status
        if status == 200:
            if kind != self.media.response:
                self._fail(Failure("media", Leg.RELAY))
            else:
                self._at = _At.OPENING
            return
        self._at = _At.EXPLAINING
        if retry_after.isascii() and retry_after.isdigit():
            self._after = min(float(retry_after[:4]), RETRY_MOST)

    def received(self, data: bytes, now: float) -> None:
        """Take bytes of the outer answer's body, cut anywhere."""
        if self._at is _At.EXPLAINING:
            self._plain += data[: PROBLEM_MOST + 1 - len(self._plain)]
        elif self._at is _At.OPENING:
            self._deadline = now + IDLE_TIME
            try:
                while texts := self._opener.feed(data):
                    data = b""
                    for text in texts:
                        self._events(self._reader.feed(text))
            except (Refusal, Malformed):
                self._fail(Failure("tampered", Leg.RELAY))

    def ended(self, now: float) -> None:
        """Take the end of the outer answer's body."""
        if self._at is _At.EXPLAINING:
            self._explain()
        elif self._at is _At.OPENING:
            try:
                self._events(self._reader.feed(self._opener.end()))
                self._events(self._reader.end())
            except Refusal as error:
                self._fail(Failure("cut" if error.status == 400 else "tampered", Leg.RELAY))
            except Malformed:
                self._fail(Failure("tampered", Leg.GATEWAY))
        elif self._at is not _At.CLOSED:
            self.lost(now)

    def lost(self, now: float) -> None:
        """Take the end of the connection to the relay, before the answer's."""
        if self._at is not _At.CLOSED:
            self._fail(Failure("cut" if self._at is _At.OPENING else "lost", Leg.RELAY))

    def wake(self, now: float) -> None:
        """Give up a relay that nothing is heard from."""
        if self._deadline is not None and now >= self._deadline:
            self._fail(Failure("slow", Leg.RELAY))

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._out.take()

    def deadline(self) -> float | None:
        """Give the time of `wake`."""
        return self._deadline

    def _send(self, sealed: bytes) -> None:
        if sealed:
            self._out.add(Send(sealed))

    def _events(self, events: list[bhttp.Event]) -> None:
        for event in events:
            if isinstance(event, Informational):
                self._out.add(Tell(Early(event)))
            elif isinstance(event, Response):
                if event.status in (400, 425) and (b"content-type", PROBLEM_TYPE.encode()) in event.fields:
                    self._held = event
                else:
                    self._out.add(Tell(Answer(event)))
            elif isinstance(event, bytes):
                self._content(event)
            elif isinstance(event, Trailers):
                self._trailers = event.fields
            elif event is END:
                self._finish_answer()

    def _content(self, data: bytes) -> None:
        if self._held is None:
            self._out.add(Tell(Piece(data)))
            return
        self._plain += data
        if len(self._plain) > PROBLEM_MOST:
            self._release()

    def _release(self) -> None:
        """It is the backend's own answer after all."""
        if self._held is not None:
            self._out.add(Tell(Answer(self._held)))
            self._held = None
            if self._plain:
                self._out.add(Tell(Piece(bytes(self._plain))))
                self._plain.clear()

    def _finish_answer(self) -> None:
        held = self._held
        if held is not None:
            kind = wire.read_problem(bytes(self._plain))
            texts = [value for name, value in held.fields if name == b"date"]
            date = dates.read(texts[0]) if len(texts) == 1 else None
            if held.status == 400 and kind == wire.DATE and date is not None:
                again = None if self._resent else Resend.DATE
                self._fail(Failure("date", Leg.GATEWAY, again, 0.1, date))
                return
            if held.status == 425 and kind == wire.ABOUT_BLANK:
                self._fail(Failure("repeated", Leg.RELAY))
                return
            self._release()
        self._out.add(Tell(Done(self._trailers)), Close("done"))
        self._close()

    def _explain(self) -> None:
        kind = wire.read_problem(bytes(self._plain))
        if self._status == 400 and kind == wire.OHTTP_KEY:
            self._fail(Failure("keys", Leg.GATEWAY, self._again(Resend.KEYS)))
        elif self._status in (429, 503) and kind == wire.NOT_FORWARDED:
            self._fail(Failure("busy", Leg.RELAY, self._again(Resend.LATER), self._after))
        else:
            self._fail(Failure(*_BY_STATUS.get(self._status, ("strange", Leg.RELAY))))

    def _again(self, how: Resend) -> Resend | None:
        """Whether to send again on a word that was not sealed: never twice, and only what may come twice."""
        named = any(name.lower() == b"idempotency-key" for name, _ in self._request.fields)
        return how if not self._resent and (self._request.method in SAFE or named) else None

    def _fail(self, failure: Failure) -> None:
        self._out.add(Tell(failure), Close(failure.code, abort=True))
        self._close()

    def _close(self) -> None:
        self._at = _At.CLOSED
        self._deadline = None
        self._writing = None
        self._plain.clear()
