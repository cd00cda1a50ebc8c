"""What the demo writes down: at the relay all that it has of each exchange, at gateway and backend what has opened.

The relay's half is written where its server meets the network, the backend's half by the backend itself. The two are
joined afterwards, by what only an onlooker of both has: the one-time key at the front of a sealed request, of which the
gateway remembers a hash. Neither the relay nor the backend could do that.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from math import log2
from typing import Any, Final
from urllib.parse import quote

from attrs import define, field

from layer8.tunnel.replay import Verdict, mark
from layer8.tunnel.wire import ALGORITHMS, HEAD

ROWS: Final = 500
"""Exchanges that are kept."""
SHOWN: Final = 960
"""Bytes of a body whose hex is told; there is more on no screen."""
WHOLE: Final = 1 << 20
"""Bytes of one body that are kept, so that it can be sent again."""
HEARD: Final = 64 << 20
"""Bytes of all that the relay has had that are kept, to be searched."""
FRAMES: Final = 64
"""Messages of a socket that are told."""


@define
class Bytes:
    """One direction of an exchange."""

    size: int = 0
    kept: bytearray = field(factory=bytearray, repr=False)

    def add(self, data: bytes) -> None:
        """Take a piece."""
        self.size += len(data)
        self.kept += data[: WHOLE - len(self.kept)]

    def document(self) -> dict[str, Any]:
        """Give what the page draws."""
        return {"size": self.size, "hex": bytes(self.kept[:SHOWN]).hex()}


@define
class Opened:
    """A request as the backend got it."""

    line: str
    fields: list[tuple[str, str]]
    client: str
    text: str = ""
    status: int = 0
    size: int | None = None
    frames: list[tuple[bool, str]] = field(factory=list)

    def document(self) -> dict[str, Any]:
        """Give what the page draws."""
        return {
            "line": self.line,
            "fields": self.fields,
            "client": self.client,
            "text": self.text,
            "status": self.status,
            "size": self.size,
            "frames": self.frames[-FRAMES:],
        }


@define(eq=False)
class Row:
    """One exchange: the relay's half, and the backend's if there is one."""

    n: int
    kind: str  # request, bent, replayed, keys, swapped or socket
    gateway: str
    peer: str
    fields: list[tuple[str, str]]
    at: float = field(factory=lambda: datetime.now(UTC).timestamp())
    passed: list[tuple[str, str]] = field(factory=list)
    up: Bytes = field(factory=Bytes)
    down: Bytes = field(factory=Bytes)
    frames: list[tuple[bool, int]] = field(factory=list)
    status: int = 0
    over: bool = False
    verdict: str = ""  # of the gateway: opened, repeat, refused
    opened: Opened | None = None

    @property
    def mark(self) -> bytes:
        """Give the gateway's mark of it, empty before its head is there."""
        return mark(bytes(self.up.kept[ALGORITHMS:HEAD])) if len(self.up.kept) >= HEAD else b""

    def document(self) -> dict[str, Any]:
        """Give what the page draws."""
        return {
            "n": self.n,
            "kind": self.kind,
            "relay": {
                "gateway": self.gateway,
                "peer": self.peer,
                "at": self.at * 1000,
                "fields": self.fields,
                "passed": self.passed,
                "up": self.up.document(),
                "down": self.down.document(),
                "frames": self.frames[-FRAMES:],
                "status": self.status,
            },
            "gateway": self.verdict or None,
            "backend": None if self.opened is None else self.opened.document(),
        }


@define(eq=False)
class Recorder:
    """Everything that was written down; `changed` hears of each row that has something new."""

    rows: list[Row] = field(factory=list)
    calls: int = 0  # of the backend
    posts: int = 0  # sealed requests that have reached the relay
    given: int = 0  # key sets of the relay's own that it has handed out
    bent: int = 0  # requests in which it has changed something
    changed: list[Callable[[Row], None]] = field(factory=list)
    heard: bytearray = field(factory=bytearray, repr=False)  # all bytes that the relay has had, heads too
    _marks: dict[bytes, Row] = field(factory=dict, repr=False)
    _last: int = 0

    def begin(self, kind: str, gateway: str, peer: str, fields: list[tuple[str, str]]) -> Row:
        """Write down that somebody has come to the relay."""
        self._last += 1
        row = Row(self._last, kind, gateway, peer, fields)
        self.rows.append(row)
        if len(self.rows) > ROWS:
            gone = self.rows.pop(0)
            self._marks.pop(gone.mark, None)
        if kind == "request":
            self.posts += 1
        self.tell(row)
        return row

    def tell(self, row: Row) -> None:
        """Say that a row has something new."""
        for one in self.changed:
            one(row)

    def overhear(self, data: bytes) -> None:
        """Write down bytes that the relay has had."""
        if len(self.heard) < HEARD:
            self.heard += data

    def up(self, row: Row, data: bytes) -> None:
        """Take bytes of a sealed request."""
        known = bool(row.mark)
        row.up.add(data)
        self.overhear(data)
        if row.kind == "request" and not known and row.mark:
            if row.mark in self._marks:
                row.kind = "replayed"
            else:
                self._marks[row.mark] = row

    def down(self, row: Row, data: bytes) -> None:
        """Take bytes of an answer."""
        row.down.add(data)
        self.overhear(data)

    def find(self, of: bytes) -> Row | None:
        """Give the row of a gateway's mark: the last that has brought it."""
        if not of:
            return None
        return next((row for row in reversed(self.rows) if row.mark == of), None)

    def judged(self, of: bytes, verdict: Verdict) -> None:
        """Take what the gateway's replay set has said."""
        row = self.find(of)
        if row is not None:
            row.verdict = {Verdict.NEW: "opened", Verdict.REPEAT: "repeat"}.get(verdict, "refused")
            self.tell(row)

    def opened(self, row: Row | None, opened: Opened) -> None:
        """Take what the backend was asked."""
        self.calls += 1
        if row is not None:
            row.opened = opened
            self.tell(row)

    def last(self) -> Row | None:
        """Give the last request that a gateway has answered, to be sent again."""
        done = (row for row in reversed(self.rows) if row.kind == "request" and row.verdict == "opened" and row.over)
        return next((row for row in done if row.up.size == len(row.up.kept)), None)

    def search(self, words: Iterable[str]) -> list[str]:
        """Give the words, of at least four letters, that stand in what the relay has had, in any usual spelling."""
        heard = bytes(self.heard)
        lower = heard.lower()
        found = []
        for word in words:
            if len(word) >= 4 and any(one in (lower if one.islower() else heard) for one in spellings(word)):
                found.append(word)
        return found

    def entropy(self) -> float:
        """Give the bits of chance in each byte of the sealed bodies, 8 for pure chance."""
        seen: Counter[int] = Counter()
        for row in self.rows:
            if row.kind in ("request", "replayed"):
                seen.update(row.up.kept[HEAD:])
                seen.update(row.down.kept if row.status == 200 else b"")
        total = seen.total()
        return -sum(count / total * log2(count / total) for count in seen.values()) if total else 0.0


def spellings(word: str) -> set[bytes]:
    """Give the ways in which a word may stand in bytes: as it is, in UTF-16, in a URL, in hex, in base64."""
    plain = word.encode()
    ways = {plain, plain.lower(), word.encode("utf-16-le"), quote(word).encode(), plain.hex().encode()}
    for shift in range(3):  # base64 writes three bytes at a time: each place in them looks different
        first, last = -(-8 * shift // 6), 8 * (shift + len(plain)) // 6
        inside = b64encode(bytes(shift) + plain)[first:last]
        ways |= {inside, inside.replace(b"+", b"-").replace(b"/", b"_")}
    return {one for one in ways if len(one) >= 4}


def told(seconds: float) -> str:
    """Write a time of day with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03}"
