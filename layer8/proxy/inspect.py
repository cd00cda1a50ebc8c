"""Looks at the plain HTTP that an agent carries, and keeps a record of it; the bytes go on as they are.

::

    visitor ──▶ requests ──▶ target        a `Watch` is one connection: two filters for `Pump.join`, that both give
            ◀── answers  ◀──               what they were fed, and tell the `Record` what they understood of it

What is not HTTP/1.1, or leaves any doubt, is looked at no longer and goes on unharmed, as does what follows an
upgrade. From then on, and within bodies that nobody keeps, all bytes are free to stay in the kernel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from layer8.core.http1 import END, ENDLESS, Fields, Malformed, Reader, Request, Response, read_request, read_response
from layer8.proxy.record import BODY, Exchange, Record

SWITCHING: Final = 101
PIPELINED: Final = 64
"""Requests of one connection that may wait for their answers; beyond them nobody looks."""
BEGINNINGS: Final = frozenset(b"\r\nABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
"""Bytes that a request may begin with, for all who speak HTTP in earnest; TLS begins with another."""


class Watch:
    """One connection; `seconds` gives monotonic seconds and `wall` a date in seconds since 1970."""

    def __init__(
        self,
        record: Record,
        seconds: Callable[[], float],
        wall: Callable[[], float],
        host: str,
        target: str,
        replay_of: int | None = None,
    ) -> None:
        """`host` and `target` are what is shown where a request does not say it better."""
        self.record = record
        self.waiting: deque[Exchange] = deque()
        self.latest: Exchange | None = None
        self.requests = Requests(self)
        self.answers = Answers(self)
        self.seconds = seconds
        self._wall = wall
        self._host = host
        self._target = target
        self._replay_of = replay_of

    def begin(self, head: Request) -> Exchange:
        """Take a request's head."""
        self.latest = exchange = self.record.begin(
            self.seconds(),
            self._wall(),
            head.authority.decode("latin-1") or self._host,
            self._target,
            (_text(head.method), _text(head.target), f"HTTP/1.{head.minor}"),
            _fields(head.fields),
            head.raw,
            self._replay_of,
        )
        self.waiting.append(exchange)
        return exchange

    def blind(self) -> None:
        """Look no more."""
        self.requests.blind = self.answers.blind = True

    def closed(self) -> None:
        """Take the end of the connection: what has no whole answer will have none."""
        self.blind()
        now = self.seconds()
        while self.waiting:
            self.record.over(self.waiting.popleft(), now, "cut")


class Requests:
    """The filter of the bytes to the target."""

    def __init__(self, watch: Watch) -> None:
        """Belong to a connection."""
        self.blind = False
        self._watch = watch
        self._reader: Reader[Request] = Reader(read_request)
        self._body: Exchange | None = None

    @property
    def free(self) -> int:
        """Bytes that need not be seen."""
        if self.blind:
            return ENDLESS
        return 0 if self._body is not None and self._body.whole else self._reader.free

    def feed(self, data: bytes) -> bytes:
        """Look at what goes by."""
        if not self.blind:
            if self._watch.latest is None and data and data[0] not in BEGINNINGS and self._reader.between:
                self._watch.blind()
                return data
            self._reader.feed(data)
            self._look()
        return data

    def skipped(self, count: int) -> None:
        """Count a part of a body."""
        if not self.blind:
            if self._body is not None:
                self._watch.record.add_body(self._body, b"", count)
            self._reader.skipped(count)
            self._look()

    def ended(self) -> bytes:
        """Add nothing: a visitor may end its half and still read."""
        return b""

    def _look(self) -> None:
        record = self._watch.record
        try:
            while not self.blind and (part := self._reader.next()) is not None:
                if isinstance(part, Request):
                    self._begin(part)
                elif part is END:
                    if self._body is not None:
                        record.request_over(self._body)
                    self._body = None
                elif self._body is not None:
                    record.add_body(self._body, part)
        except Malformed:
            self.blind = True
            if not self._watch.waiting:
                self._watch.blind()
        if self.blind:
            self._reader.rest()

    def _begin(self, head: Request) -> None:
        if len(self._watch.waiting) >= PIPELINED:
            self._watch.closed()
            return
        self._body = self._watch.begin(head)
        if head.body > BODY:
            self._watch.record.keep_no_body(self._body)


class Answers:
    """The filter of the bytes from the target."""

    def __init__(self, watch: Watch) -> None:
        """Belong to a connection."""
        self.blind = False
        self._watch = watch
        self._reader: Reader[Response] = Reader(read_response)
        self._final = False

    @property
    def free(self) -> int:
        """Bytes that need not be seen."""
        return ENDLESS if self.blind else self._reader.free

    def feed(self, data: bytes) -> bytes:
        """Look at what goes by."""
        if not self.blind:
            self._reader.feed(data)
            self._look()
        return data

    def skipped(self, count: int) -> None:
        """Count a part of a body."""
        if not self.blind:
            self._count(count)
            self._reader.skipped(count)
            self._look()

    def ended(self) -> bytes:
        """Add nothing; an answer without a length ends here."""
        watch = self._watch
        if not self.blind and self._final and self._reader.whole and watch.waiting:
            watch.record.over(watch.waiting.popleft(), watch.seconds(), "done")
        watch.closed()
        return b""

    def _look(self) -> None:
        waiting = self._watch.waiting
        try:
            while not self.blind:
                self._reader.bare = bool(waiting) and waiting[0].method == "HEAD"
                part = self._reader.next()
                if part is None:
                    break
                if isinstance(part, Response):
                    self._begin(part)
                elif part is END:
                    self._end()
                else:
                    self._count(len(part))
        except Malformed:
            self._watch.closed()
        if self.blind:
            self._reader.rest()

    def _count(self, count: int) -> None:
        if self._final and self._watch.waiting:
            self._watch.waiting[0].answer_size += count

    def _begin(self, head: Response) -> None:
        watch = self._watch
        if not watch.waiting:
            watch.blind()  # an answer that nobody has asked for: the two sides are out of step
            return
        if head.status < 200 and head.status != SWITCHING:
            return
        self._final = True
        exchange, now = watch.waiting[0], watch.seconds()
        fields = _fields(head.fields)
        watch.record.answer(exchange, now, f"HTTP/1.{head.minor}", head.status, _text(head.reason), fields)
        if head.status == SWITCHING:
            watch.record.over(watch.waiting.popleft(), now, "upgraded")
            watch.closed()

    def _end(self) -> None:
        watch = self._watch
        if self._final and watch.waiting:
            watch.record.over(watch.waiting.popleft(), watch.seconds(), "done")
        self._final = False
        if self._watch.requests.blind and not watch.waiting:
            watch.blind()


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _fields(fields: Fields) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for _, name, value in fields)
