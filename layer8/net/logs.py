"""The log: one line per fact, private by default.

`Logs` is the one observer of `twisted.logger` in a process. A line keeps the event's name, its level and namespace, and
the fields that are numbers and words; addresses go through the policy of `[log] addresses`, and what a peer sent never
gets here (see `layer8.core.logbook`). Other libraries' lines are kept from level warn on, as the constant texts that
stand in their source, without the values that they would fill in: those may be addresses or content.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import get_ident
from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.config.sections import LogConfig
from layer8.core.blur import AddressBlur, blur_bytes, blur_time
from layer8.core.errors import Layer8Error, RemoteProtocolError
from layer8.core.logbook import EVENTS, FOREIGN
from layer8.net.lines import LineWriter

LOG_LINE = 4096
"""Most bytes of one line."""
LOG_TAIL = 1000
"""Lines that are kept in memory."""
LEVELS: Mapping[str, int] = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
"""Our levels with their priorities in syslog(3)."""
OVERRIDES = 64
"""Namespaces that may have a level of their own at the same time."""

_TEXT = 512
_ITEMS = 16
_FRAMES = 8
_NEVER = {"authorization", "body", "cookie", "data", "key", "password", "payload", "proof", "secret", "token"}
_LEGACY = {"failure", "format", "isError", "message", "printed", "system", "time"}
_HEAD = {"t", "level", "ns", "event", "frames", "cut"}

Row = dict[str, Any]


@implementer(ILogObserver)
class Logs:
    """Turns events into lines, keeps the last of them, and says them to whoever listens."""

    _log = Logger()

    def __init__(
        self,
        config: LogConfig,
        environ: Mapping[str, str],
        *,
        descriptor: int = 2,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Write to `config.file`, else to the descriptor; raises OSError if the file cannot be opened."""
        self._environ = environ
        self._descriptor = descriptor
        self._clock = clock
        self._draw = draw
        self._tail: deque[Row] = deque(maxlen=LOG_TAIL)
        self._overrides: dict[str, tuple[int, float]] = {}
        self._watchers: list[Callable[[Row], None]] = []
        self._others: list[LineWriter] = []
        self._busy: set[int] = set()
        self._lost = 0
        self._hold = False
        self.config = config
        self.writer = self._open(config)
        self.addresses = AddressBlur(config.addresses, draw)

    def _open(self, config: LogConfig) -> LineWriter:
        if config.file:
            return LineWriter.to_path(Path(config.file))
        return LineWriter(self._descriptor, prefix=b"<6>" if on_journal(self._environ, self._descriptor) else b"")

    @property
    def text(self) -> bool:
        """Tell whether lines are for people rather than for programs."""
        if self.config.format == "auto":
            return not self.config.file and os.isatty(self._descriptor)
        return self.config.format == "text"

    def apply(self, config: LogConfig) -> None:
        """Take a new configuration; raises OSError, with nothing changed, if its file cannot be opened."""
        if config.file != self.config.file:
            fresh = self._open(config)
            self.writer.close()
            self.writer = fresh
        if config.addresses != self.config.addresses:
            self.addresses = AddressBlur(config.addresses, self._draw)
        self.config = config
        self.announce()

    def announce(self) -> None:
        """Say how much this log tells; it is written together with the next line, or at the next flush."""
        self._hold = True
        try:
            self._log.info(
                "the log begins",
                event="log.started",
                level_from=self.config.level,
                addresses=self.config.addresses,
                blur=self.config.blur,
            )
        finally:
            self._hold = False

    def access_writer(self, where: str) -> LineWriter | None:
        """Give the writer for access records: "-" is this log's own, "" none, else a file; raises OSError."""
        if where == "-":
            return self.writer
        if not where:
            return None
        writer = LineWriter.to_path(Path(where))
        self._others.append(writer)
        return writer

    def flush(self) -> None:
        """Write what waits in every writer, and open files anew that somebody has renamed."""
        for writer in (self.writer, *self._others):
            writer.flush()
            if writer.renamed():
                self._reopen(writer)
        lost = sum(writer.dropped for writer in (self.writer, *self._others))
        if lost > self._lost:
            count, self._lost = lost - self._lost, lost
            self._log.warn("lines were dropped", event="log.lost", count=count)

    def reopen(self) -> None:
        """Open every file anew, as after SIGHUP."""
        for writer in (self.writer, *self._others):
            self._reopen(writer)

    def _reopen(self, writer: LineWriter) -> None:
        try:
            writer.reopen()
        except OSError:
            # The old file goes on being written.
            return
        self._log.info("a log file was opened anew", event="log.reopened")

    def close(self) -> None:
        """Write what waits and close the files."""
        for writer in (self.writer, *self._others):
            writer.close()

    def set_level(self, namespace: str, level: str, ttl: float) -> None:
        """Log a namespace and those below it from another level for `ttl` seconds; 0 ends that."""
        now = self._clock()
        self._overrides = {name: kept for name, kept in self._overrides.items() if kept[1] > now and name != namespace}
        if ttl > 0:
            if len(self._overrides) >= OVERRIDES:
                raise Layer8Error(f"no more than {OVERRIDES} namespaces may have a level of their own")
            self._overrides[namespace] = (LEVELS[level], now + ttl)

    def tail(self, level: str = "debug", namespace: str = "", lines: int = LOG_TAIL) -> list[Row]:
        """Give the last lines from that level on and at or below that namespace, oldest first."""
        most = LEVELS[level]
        found = [row for row in self._tail if LEVELS[row["level"]] <= most and _below(row["ns"], namespace)]
        return found[-lines:] if lines > 0 else []

    def watch(self, watcher: Callable[[Row], None]) -> Callable[[], None]:
        """Call `watcher` with every line from now on, until the function given back is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def __call__(self, event: LogEvent) -> None:
        """Take one event from `twisted.logger`."""
        level = getattr(event.get("log_level"), "name", "info")
        namespace = str(event.get("log_namespace") or "")
        if LEVELS[level] > self._threshold(namespace):
            return
        thread = get_ident()
        if thread in self._busy:
            # A watcher that logs would call itself for ever.
            return
        self._busy.add(thread)
        try:
            row = self._row(event, level, namespace)
            self._tail.append(row)
            line = text_line(row) if self.text else json_line(row)
            prefix = b"<%d>" % LEVELS[level] if self.writer.prefix else b""
            self.writer.append(prefix + line)
            if not self._hold:
                self.writer.flush()
            for watcher in tuple(self._watchers):
                watcher(row)
        finally:
            self._busy.discard(thread)

    def _threshold(self, namespace: str) -> int:
        if self._overrides:
            now = self._clock()
            named = [name for name, (_, until) in self._overrides.items() if _below(namespace, name) and until > now]
            if named:
                return self._overrides[max(named, key=len)][0]
        least = LEVELS[self.config.level]
        return least if _below(namespace, "layer8") else min(least, LEVELS["warn"])

    def _row(self, event: LogEvent, level: str, namespace: str) -> Row:
        name = event.get("event")
        known = EVENTS.get(name) if isinstance(name, str) else None
        record = known is not None and known.record
        at = blur_time(event.get("log_time", 0.0), self.config.blur if record else 0)
        row: Row = {"t": _moment(at), "level": level, "ns": namespace[:_TEXT], "event": name if known else FOREIGN}
        if known:
            for field, value in event.items():
                if not field.startswith("log_") and field not in _LEGACY | _NEVER | _HEAD:
                    self._add(row, field, value, record)
        elif namespace in ("stdout", "stderr"):
            row["text"] = str(event.get("log_io", ""))[:_TEXT]
        else:
            row["text"] = str(event.get("log_format") or "")[:_TEXT]
        failure = event.get("log_failure") or event.get("failure")
        if isinstance(failure, Failure):
            row.update(_failure_fields(failure))
        return row

    def _add(self, row: Row, field: str, value: object, record: bool) -> None:
        if field in ("address", "peer"):
            word = self.addresses.word(str(getattr(value, "host", value)), self._clock())
            if word is not None:
                row[field] = word
            return
        if record and field.startswith("bytes") and isinstance(value, int):
            value = blur_bytes(value) if self.config.blur else value
        plain = _plain(value)
        if plain is not None:
            row[field] = plain


def _failure_fields(failure: Failure) -> Row:
    """Give the type and the places, not the text: the text of a bug may quote what a peer sent."""
    fields: Row = {"error": failure.type.__name__ if failure.type else "?"}
    if failure.check(Layer8Error) and not failure.check(RemoteProtocolError):
        fields["why"] = failure.getErrorMessage()[:_TEXT]
    elif isinstance(failure.value, OSError) and failure.value.strerror:
        fields["why"] = str(failure.value.strerror)
    fields["frames"] = [f"{_short(file)}:{line} {name}" for name, file, line, _, _ in failure.frames[-_FRAMES:]]
    return fields


def _short(path: str) -> str:
    return "/".join(path.split("/")[-3:])


def _below(namespace: str, top: str) -> bool:
    return not top or namespace == top or namespace.startswith(top + ".")


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> object:
    match value:
        case bool() | int() | float() | None:
            return value
        case str():
            return value[:_TEXT]
        case bytes() | bytearray() | memoryview():
            return f"({len(value)} bytes)"
        case tuple() | list() | set() | frozenset():
            return [_plain(item) for item in list(value)[:_ITEMS]]
        case _:
            return type(value).__name__


def json_line(row: Row) -> bytes:
    """Write a row as one line of ASCII JSON of at most LOG_LINE bytes."""
    line = json.dumps(row, separators=(",", ":"), default=str).encode() + b"\n"
    if len(line) <= LOG_LINE - 4:
        return line
    kept: Row = {name: row[name] for name in ("t", "level", "ns", "event") if name in row}
    for name, value in row.items():
        if name not in kept and len(json.dumps({**kept, name: value}, default=str)) < LOG_LINE - 64:
            kept[name] = value
    return json.dumps({**kept, "cut": True}, separators=(",", ":"), default=str).encode()[: LOG_LINE - 5] + b"\n"


def text_line(row: Row) -> bytes:
    """Write a row for a person: `10:00:00 info proxy closed host=app.example reason=done`."""
    words = [row["t"][11:19], row["level"], row["event"].replace(".", " ")]
    for name, value in row.items():
        if name in ("t", "level", "ns", "event", "frames"):
            continue
        words.append(value if name == "text" else f"{name}={_said(name, value)}")
    if row["event"] == FOREIGN:
        words.insert(2, row["ns"])
    words += [f"< {frame}" for frame in reversed(row.get("frames", ()))]
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(map(str, words)))
    return text.encode(errors="backslashreplace")[: LOG_LINE - 5] + b"\n"


def _said(name: str, value: object) -> str:
    if name.startswith("bytes") and isinstance(value, int):
        return size_words(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def size_words(count: float) -> str:
    """Give a byte count as people read it: 512 B, 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f}{unit}" if unit == "B" or count >= 100 else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}TB"


def on_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    """Tell whether a descriptor leads to the journal: $JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def levels() -> Iterable[str]:
    """Give the names of the levels, from the most to the least talkative."""
    return (level.name for level in LogLevel.iterconstants())
