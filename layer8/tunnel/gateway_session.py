"""One sealed request at the gateway: opened, checked, given to the backend as it comes, and answered under seal.

 request  header -> opening -> asking -> body -> whole | broken
 answer   none -> begun -> done

Until something has opened, a refusal is in the clear (`Reply`); from then on everything that is said is sealed in an
outer 200, so that a relay cannot tell a missing page from one that is there. The backend is called once the head is
whole, its date counts and its mark is new; a body that is not whole to its last chunk is never taken for a whole one.

The owner carries bytes and asks the replay set; `paused` says when it shall rest. Monotonic seconds in, as everywhere;
the time of day comes in once, since an exchange lasts no longer than EXCHANGE_TIME.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Final

from attrs import field, frozen

from layer8.core.errors import LocalProtocolError
from layer8.core.session import Close, Effect, Outbox, Send, Tell
from layer8.crypto.hpke_context import Aead, Context
from layer8.tunnel import bhttp, dates, target, wire
from layer8.tunnel.bhttp import END, SAFE, Fields, Malformed, Request, Response, Trailers
from layer8.tunnel.keys import GatewayKey
from layer8.tunnel.limits import EXCHANGE_TIME, HEAD_TIME, IDLE_TIME, MAX_FIELD_BYTES, MAX_SINGLE
from layer8.tunnel.outgoing import Outgoing
from layer8.tunnel.replay import Verdict, Window, mark
from layer8.tunnel.target import Allowed, Target
from layer8.tunnel.wire import HEAD, Head, Media, Opener, Refusal

RANDOM: Final = 32  # bytes that an exchange needs
_EMPTY: Final = frozenset((204, 205, 304))  # statuses without content
_ENDS: Final = MAX_FIELD_BYTES + 64  # bytes that may follow content


@frozen
class Reply:
    """Answer in the clear, and read no more: nothing has opened."""

    status: int
    problem: str = wire.ABOUT_BLANK


@frozen
class Remember:
    """Ask the replay set, and say `remembered`; without a date, by the epoch of the key."""

    mark: bytes
    date: int | None
    epoch: int


@frozen
class Call:
    """Call the backend; `fields` are those that it hears, `length` that of the content if it is known."""

    request: Request
    target: Target
    fields: Fields
    length: int | None


@frozen
class Body:
    """A piece of the request's content."""

    data: bytes = field(repr=False)


@frozen
class Whole:
    """The request is whole."""

    trailers: Fields = ()


@frozen
class Broken:
    """The request will not become whole: the backend's read of it fails, or it is not called at all."""


@frozen
class Leave:
    """Nobody waits for the backend's answer any more."""


@frozen
class Begin:
    """The answer begins: an outer 200 of the response type; what is sent follows."""

    media: Media


@frozen(eq=False)
class Rules:
    """What all exchanges of a gateway go by."""

    allowed: Allowed
    find: Callable[[int, float], GatewayKey | None] = field(repr=False)  # `Schedule.find`
    window: Window = field(repr=False)
    require_date: bool = True
    chacha: bool = False
    pad: bool = True


class _At(Enum):
    HEADER = auto()
    OPENING = auto()
    ASKING = auto()
    BODY = auto()
    WHOLE = auto()
    BROKEN = auto()
    CLOSED = auto()


# By these names, since Python 3.11 takes as long for `_At.HEADER` as for a call.
_AT_HEADER, _AT_OPENING, _AT_ASKING, _AT_BODY, _AT_WHOLE, _AT_BROKEN, _AT_CLOSED = _At


class GatewayExchange:
    """See the module; `random` are RANDOM bytes of the system's."""

    def __init__(self, media: Media, rules: Rules, random: bytes, now: float, wall: float) -> None:
        """Begin to wait for the head."""
        if len(random) != RANDOM:
            raise LocalProtocolError(f"an exchange needs {RANDOM} random bytes")
        self._media = media
        self._rules = rules
        self._random = random
        self._ahead = wall - now
        self._now = now
        self._ends = now + EXCHANGE_TIME
        self._deadline: float | None = now + (HEAD_TIME if media.chunked else IDLE_TIME)
        self._at = _AT_HEADER
        self._held = b""  # bytes that nobody has looked at
        self._texts: list[bytes] = []  # pieces that have opened and that nobody has read
        self._over = False  # no more bytes will come
        self._head: Head | None = None
        self._epoch = 0
        self._opener: Opener | None = None
        self._context: Context | None = None
        self._reader = bhttp.Reader(request=True)
        self._opened = False  # something has: from now on we answer under seal
        self._called = False
        self._request: Request | None = None
        self._call: Call | None = None
        self._waiting: list[bhttp.Event] = []  # what has been read and the backend is not called for yet
        self._trailers: Fields = ()
        self._answer: Outgoing | None = None
        self._mute = False  # the answer may have no content
        self._said = False  # the answer is whole; its end waits for the request's
        self._out = Outbox()

    @property
    def paused(self) -> bool:
        """Whether the owner shall read no more of the request for now."""
        return self._at is _AT_ASKING

    def received(self, data: bytes, now: float) -> None:
        """Take bytes of the outer request's body, cut anywhere; only what opens counts as a sign of life."""
        self._now = now
        if self._at in (_AT_WHOLE, _AT_BROKEN, _AT_CLOSED):
            return
        self._held += data
        self._go(now)

    def ended(self, now: float) -> None:
        """Take the end of the outer request's body."""
        self._now = now
        if self._at in (_AT_WHOLE, _AT_BROKEN, _AT_CLOSED):
            return
        self._over = True
        self._go(now)
        self._active(now)

    def remembered(self, verdict: Verdict, now: float) -> None:
        """Take the replay set's word on what `Remember` asked."""
        self._now = now
        if self._at is not _AT_ASKING or self._call is None:
            return
        if verdict is Verdict.NEW:
            self._at = _AT_BODY
            self._called = True
            self._out.add(Tell(self._call))
            waiting, self._waiting = self._waiting, []
            self._events(waiting)
            self._go(now)
        elif verdict is Verdict.REPEAT:
            self._break(425)
        else:
            self._break(400, wire.DATE)
        self._active(now)

    def respond(
        self,
        response: Response,
        now: float,
        *,
        length: int | None = None,
        early: Iterable[bhttp.Informational] = (),
    ) -> None:
        """Begin the answer with the backend's head; `length` is that of its content if it is known.

        Raises `LocalProtocolError` where no head is awaited, or for fields that cannot be written.
        """
        if self._at is _AT_CLOSED:
            return
        if not self._called or self._answer is not None:
            raise LocalProtocolError("no answer is awaited")
        self._mute = response.status in _EMPTY or (self._request is not None and self._request.method == b"HEAD")
        clean = Response(response.status, target.answered(response.fields))
        self._begin(clean, 0 if self._mute else length, early)
        self._active(now)

    def write(self, data: bytes, now: float) -> None:
        """Add content; raises `LocalProtocolError` for more than was promised. It leaves in full chunks.

        An answer of one piece that grows too long for that is cut.
        """
        if self._at is _AT_CLOSED or self._mute or self._said:
            return
        answer = self._answering()
        if not self._media.chunked and answer.size + len(data) > MAX_SINGLE - _ENDS:
            self._leave()
            self._end(Close("limit", abort=True))
            return
        self._send(answer.write(data))
        self._active(now)

    def flush(self, now: float) -> None:
        """Send what waits for a full chunk."""
        if self._at is not _AT_CLOSED and not self._said:
            self._send(self._answering().flush())
            self._active(now)

    def finish(self, now: float, trailers: Fields = ()) -> None:
        """End the answer; one with less content than was promised is cut.

        A backend knows when it has all of the content, but padding may follow: who is still sending would be cut, so
        `Close` waits until the request is whole. It waits for the answer's own padding as well, while there is some.
        """
        if self._at is _AT_CLOSED or self._said:
            return
        answer = self._answering()
        if answer.short:
            self._end(Close("backend", abort=True))
        else:
            self._said, self._called = True, False
            self._send(answer.finish(target.answered(trailers)))
            self._sent(now)

    @property
    def padding(self) -> bool:
        """Whether `pad` is to be called, as there is room."""
        return self._said and self._answer is not None and self._answer.owed > 0

    def pad(self, now: float) -> None:
        """Send some more of the padding behind the answer."""
        if self.padding:
            self._send(self._answering().pad())
            self._sent(now)

    def _sent(self, now: float) -> None:
        if self._at is _AT_BODY or self.padding:
            self._active(now)
        else:
            self._end(Close("done"))

    def failed(self, now: float, status: int = 502) -> None:
        """Take the backend's failure: a sealed status, or a cut answer if it has begun."""
        if self._at is _AT_CLOSED or self._said:
            return
        self._called = False
        if self._answer is None:
            self._break(status)
        else:
            self._end(Close("backend", abort=True))

    def lost(self, now: float) -> None:
        """Take the end of the connection: whoever asked has gone, or the relay."""
        if self._at is _AT_CLOSED:
            return
        if self._called:
            if self._at is _AT_BODY:
                self._out.add(Tell(Broken()))
            self._out.add(Tell(Leave()))
        self._end()

    def wake(self, now: float) -> None:
        """Give up whom nobody hears from any more."""
        if self._deadline is None or now < self._deadline:
            return
        self._now = now
        if not self._opened:
            self._end(Tell(Reply(408)), Close("timeout"))
        elif self._answer is not None:
            self._leave()
            self._end(Close("timeout", abort=True))
        else:
            self._break({_AT_WHOLE: 504, _AT_ASKING: 503}.get(self._at, 408))

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._out.take()

    def deadline(self) -> float | None:
        """Give the time of `wake`."""
        return self._deadline

    def _active(self, now: float) -> None:
        if self._at is not _AT_CLOSED and self._opened:
            self._deadline = min(now + IDLE_TIME, self._ends)

    def _go(self, now: float) -> None:
        """Read what has come, as far as nobody has to be asked first."""
        try:
            if self._at is _AT_HEADER:
                self._read_head()
            while self._opener is not None and self._at in (_AT_OPENING, _AT_BODY):
                if not self._texts:
                    data, self._held = self._held, b""
                    self._texts = self._opener.feed(data)
                    if not self._texts:
                        break
                    self._opened = True
                    self._active(now)
                self._events(self._reader.feed(self._texts.pop(0)))
            if self._over and self._opener is not None and self._at in (_AT_OPENING, _AT_BODY):
                text = self._opener.end()
                self._opened = True
                self._events(self._reader.feed(text))
                self._events(self._reader.end())
        except Refusal as error:
            self._refuse(error)
        except Malformed as error:
            self._break(error.status)

    def _read_head(self) -> None:
        if len(self._held) < HEAD:
            if self._over:
                raise Refusal("a sealed request without its head")
            return
        head, self._held = Head.read(self._held[:HEAD]), self._held[HEAD:]
        key = self._rules.find(head.key_id, self._wall())
        if key is None or (head.aead is Aead.CHACHA20_POLY1305 and not self._rules.chacha):
            raise Refusal("a key that is not ours, or no longer", 400, wire.OHTTP_KEY)
        self._head, self._epoch = head, key.epoch
        self._opener, self._context = wire.open_request(self._media, head, key.ohttp)
        self._at = _AT_OPENING

    def _events(self, events: list[bhttp.Event]) -> None:
        for event in events:
            if self._at is _AT_ASKING:
                self._waiting.append(event)
            elif isinstance(event, Request):
                self._check(event)
            elif isinstance(event, Trailers):
                self._trailers = target.told(event.fields)
            elif self._at is _AT_BODY and isinstance(event, bytes):
                if not self._said:
                    self._out.add(Tell(Body(event)))
            elif self._at is _AT_BODY and event is END:
                self._at = _AT_WHOLE
                if self._said:
                    self._sent(self._now)
                    return
                self._out.add(Tell(Whole(self._trailers)))

    def _check(self, request: Request) -> None:
        """Look at the head: where to, when from, and whether it has come before."""
        self._request = request
        found = target.find(request, self._rules.allowed)
        said = [value for name, value in request.fields if name == b"content-length"]
        if len(said) > 1 or (said and request.length is not None and said[0] != b"%d" % request.length):
            raise Malformed("a content length that is not the content's")
        self._call = Call(request, found, target.told(request.fields), request.length)
        texts = [value for name, value in request.fields if name == b"date"]
        date = dates.read(texts[0]) if len(texts) == 1 else None
        if texts and date is None:
            raise Malformed("a date that is none")
        wall = self._wall()
        dateless = date is None and not self._rules.require_date and request.method in SAFE
        if not dateless and (date is None or not self._rules.window.judge(date, wall)):
            self._break(400, wire.DATE)
            return
        assert self._head is not None
        self._at = _AT_ASKING
        self._out.add(Tell(Remember(mark(self._head.enc), date, self._epoch)))

    def _wall(self) -> float:
        return self._now + self._ahead

    def _refuse(self, error: Refusal) -> None:
        if self._opened:
            self._break(400)
        else:
            self._end(Tell(Reply(error.status, error.problem)), Close("refused"))

    def _break(self, status: int, problem: str = wire.ABOUT_BLANK) -> None:
        """The request is of no use: say so under seal, if nothing else has been said."""
        self._waiting.clear()
        self._texts.clear()
        self._held = b""
        if self._called and self._at is _AT_BODY:
            self._out.add(Tell(Broken()))
        self._at = _AT_BROKEN
        if self._said:
            self._sent(self._now)
            return
        if self._answer is not None:
            return  # the backend answers all the same, and learns from its read that the request was broken
        self._leave()
        fields = [(b"content-type", wire.PROBLEM_TYPE.encode())]
        if problem == wire.DATE:
            fields.append((b"date", dates.write(self._wall())))
        body = wire.problem(status, problem)
        answer = self._begin(Response(status, tuple(fields)), len(body))
        self._send(answer.write(body) + answer.finish())
        self._end(Close("done"))

    def _leave(self) -> None:
        if self._called:
            self._called = False
            self._out.add(Tell(Leave()))

    def _begin(self, response: Response, length: int | None, early: Iterable[bhttp.Informational] = ()) -> Outgoing:
        assert self._context is not None and self._head is not None
        aead = self._head.aead
        sealer = wire.seal_answer(self._media, self._context, aead, self._random[: wire.nonce_size(aead)])
        answer = Outgoing(sealer, response, length=length, pad=self._rules.pad, early=early)
        self._answer, self._context = answer, None
        self._out.add(Tell(Begin(self._media)))
        return answer

    def _answering(self) -> Outgoing:
        if self._answer is None:
            raise LocalProtocolError("content before its head")
        return self._answer

    def _send(self, sealed: bytes) -> None:
        if sealed:
            self._out.add(Send(sealed))

    def _end(self, *effects: Effect) -> None:
        self._out.add(*effects)
        self._at = _AT_CLOSED
        self._deadline = None
        self._opener = self._answer = self._context = None
        self._waiting.clear()
        self._texts.clear()
        self._held = b""
