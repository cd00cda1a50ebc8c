"""The last requests and answers that went through an agent, for the person who runs it.

Pure: times come in as arguments. What is kept stays in memory, up to three limits; heads are shown, bodies never, and
the values of `SECRET_FIELDS` leave in no form. The bodies of requests are kept, up to a limit, to send them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from attrs import define, field

EXCHANGES: Final = 100
"""Requests that are kept, the latest."""
BODY: Final = 1 << 16
"""Most bytes of a request's body that are kept; a longer one cannot be sent again."""
MEMORY: Final = 8 << 20
"""Bytes of heads and bodies that are kept in all; beyond it the oldest request goes."""
OVERHEAD: Final = 1 << 10
"""Bytes that a request counts for besides its head and body."""
SECRET_FIELDS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
"""Fields whose values are used to send a request again, and shown to nobody."""

Fields = tuple[tuple[str, str], ...]
State = Literal["sent", "answering", "done", "cut", "upgraded"]
"""The request is here; its answer's head is; all of it is; the connection ended before; it is no HTTP any more."""


@define(eq=False)
class Exchange:
    """A request and its answer; times are monotonic seconds but for `at`, which is a date in seconds since 1970."""

    id: int
    serial: int
    at: float
    begun: float
    host: str
    target: str
    method: str
    path: str
    version: str
    request: Fields = field(repr=False)
    head: bytes = field(repr=False)
    replay_of: int | None = None
    body: bytearray = field(factory=bytearray, repr=False)
    whole: bool = True
    request_size: int = 0
    request_ended: bool = False
    status: int | None = None
    reason: str = ""
    version_of_answer: str = ""
    answer: Fields = field(default=(), repr=False)
    answer_size: int = 0
    answered: float | None = None
    ended: float | None = None
    state: State = "sent"
    weight: int = 0

    @property
    def no_replay(self) -> str:
        """Say why the request cannot be sent again; nothing if it can."""
        if self.state == "upgraded":
            return "it changed the protocol"
        if not self.whole:
            return f"its body is longer than {BODY >> 10} KiB"
        if not self.request_ended:
            return "it has not ended"
        return ""

    def row(self) -> dict[str, Any]:
        """Give what may leave the program."""
        return {
            "id": self.id,
            "replay_of": self.replay_of,
            "at": int(self.at * 1000),
            "host": self.host,
            "target": self.target,
            "method": self.method,
            "path": self.path,
            "version": self.version,
            "request": shown(self.request),
            "request_size": self.request_size,
            "status": self.status,
            "reason": self.reason,
            "version_of_answer": self.version_of_answer,
            "answer": shown(self.answer),
            "answer_size": self.answer_size,
            "wait_ms": _ms(self.begun, self.answered),
            "total_ms": _ms(self.begun, self.ended),
            "state": self.state,
            "no_replay": self.no_replay,
        }


def shown(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str | None]]:
    """Give fields with None for the values that are hidden; to some programs an underscore is a hyphen."""
    return [(name, None if name.lower().replace("_", "-") in SECRET_FIELDS else value) for name, value in fields]


def _ms(begun: float, then: float | None) -> float | None:
    return None if then is None else round((then - begun) * 1000, 2)


class Record:
    """Keeps exchanges; `changed` is called after every change that is worth showing."""

    def __init__(self, *, most: int = EXCHANGES, memory: int = MEMORY) -> None:
        """Keep the last `most`, and fewer if they weigh more than `memory` bytes."""
        self._most = most
        self._memory = memory
        self._kept: dict[int, Exchange] = {}
        self._next = 1
        self.weight = 0
        self.serial = 0
        self.changed: Callable[[], None] = _nobody

    def begin(
        self,
        now: float,
        at: float,
        host: str,
        target: str,
        line: tuple[str, str, str],
        fields: Fields,
        head: bytes,
        replay_of: int | None = None,
    ) -> Exchange:
        """Keep a request whose head is here; `line` is method, path and version, `head` its very bytes."""
        exchange = Exchange(self._next, 0, at, now, host, target, *line, request=fields, head=head, replay_of=replay_of)
        self._next += 1
        self._kept[exchange.id] = exchange
        # The head stands there twice: its bytes, and its fields.
        self._weigh(exchange, OVERHEAD + 2 * len(head))
        while len(self._kept) > self._most:
            self._drop(next(iter(self._kept)))
        self._note(exchange)
        return exchange

    def add_body(self, exchange: Exchange, data: bytes, count: int | None = None) -> None:
        """Take a part of a request's body, or `count` bytes that nobody has seen."""
        exchange.request_size += len(data) if count is None else count
        if not exchange.whole:
            return
        if count is not None or len(exchange.body) + len(data) > BODY:
            self.keep_no_body(exchange)
            return
        exchange.body += data
        self._weigh(exchange, len(data))

    def keep_no_body(self, exchange: Exchange) -> None:
        """Forget a request's body: it is, or will be, too long to be sent again."""
        exchange.whole = False
        self._weigh(exchange, -len(exchange.body))
        exchange.body.clear()

    def request_over(self, exchange: Exchange) -> None:
        """Take that a request is complete."""
        exchange.request_ended = True
        self._note(exchange)

    def answer(self, exchange: Exchange, now: float, version: str, status: int, reason: str, fields: Fields) -> None:
        """Take the head of an answer."""
        exchange.version_of_answer, exchange.status, exchange.reason, exchange.answer = version, status, reason, fields
        exchange.answered = now
        exchange.state = "answering"
        self._weigh(exchange, sum(len(name) + len(value) for name, value in fields))
        self._note(exchange)

    def over(self, exchange: Exchange, now: float, state: State) -> None:
        """Take the end of an exchange; the first end counts."""
        if exchange.ended is None:
            exchange.ended, exchange.state = now, state
            self._note(exchange)

    def get(self, number: int) -> Exchange | None:
        """Give an exchange that is still kept."""
        return self._kept.get(number)

    def rows(self, after: int) -> list[dict[str, Any]]:
        """Give what has changed since the serial number `after`, oldest first."""
        return [exchange.row() for exchange in self._kept.values() if exchange.serial > after]

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of what is kept, oldest first."""
        return tuple(self._kept)

    def clear(self) -> None:
        """Forget everything."""
        for number in self.kept:
            self._drop(number)
        self._tell()

    def _weigh(self, exchange: Exchange, more: int) -> None:
        if exchange.id not in self._kept:
            return
        exchange.weight += more
        self.weight += more
        while self.weight > self._memory and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, number: int) -> None:
        gone = self._kept.pop(number)
        self.weight -= gone.weight
        gone.body.clear()
        gone.whole = False  # its connection may go on, and must not fill it again

    def _note(self, exchange: Exchange) -> None:
        if exchange.id in self._kept:
            exchange.serial = self.serial + 1
            self._tell()

    def _tell(self) -> None:
        self.serial += 1
        self.changed()


def _nobody() -> None:
    pass
