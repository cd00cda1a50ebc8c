"""Looking at a published host from outside: blocking calls with short times, for threads of `layer8 expose`."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from attrs import frozen

from layer8.core.errors import Layer8Error, Unavailable
from layer8.crypto.x509 import certificate_pin
from layer8.net.dial import Where

PATIENCE = 4.0
"""Seconds for one look."""
HEAD = 16384
"""Most bytes of an answer that are read."""


@frozen
class Answer:
    """What came back: the first line if it was HTTP, its date if it had one, and how long it took in milliseconds."""

    line: str
    date: datetime | None
    ms: float

    @property
    def nothing(self) -> bool:
        """Whether the connection was closed without a byte."""
        return self.line == ""


def knock(where: Where) -> str:
    """Connect and close again; gives why that failed, or nothing."""
    try:
        _connect(where).close()
    except OSError as error:
        return _why(error)
    return ""


def addresses(host: str) -> frozenset[str]:
    """Look a host up; an unknown one has no address."""
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return frozenset()


def ask(where: Where, host: str) -> Answer:
    """Ask for the head of `host`'s front page at `where`; raises Unavailable if nobody can be reached there."""
    begun = time.monotonic()
    try:
        line = _connect(where)
    except OSError as error:
        raise Unavailable(_why(error)) from None
    with line:
        try:
            data = _head(line, host)
        except OSError as error:
            raise Layer8Error(_why(error)) from None
    return _answer(data, (time.monotonic() - begun) * 1000)


def key_at(where: Where, name: str) -> str:
    """Shake hands over TLS as a visitor of `name`, trusting anybody, and give the pin of the key that was shown.

    Raises Unavailable if nobody can be reached, Layer8Error if there is no TLS.
    """
    try:
        with _connect(where) as line:
            return certificate_pin(_certificate(line, name))
    except ssl.SSLError as error:
        raise Layer8Error(f"no TLS there: {error.reason or error}") from None
    except OSError as error:
        raise Unavailable(_why(error)) from None


def clock_of(where: Where, secure: bool, pin: str | None) -> datetime | None:
    """Give the date in a server's HTTP answer, None if it has none; over TLS from the right server only.

    Raises Unavailable if nobody can be reached, Layer8Error if it is somebody else.
    """
    try:
        with _connect(where) as line:
            if not secure:
                return _answer(_head(line, where.host), 0).date
            context = ssl.create_default_context()
            if pin is not None:
                context = _trusting()
            with context.wrap_socket(line, server_hostname=where.host) as inner:
                if pin is not None and certificate_pin(inner.getpeercert(True) or b"") not in pin.split(","):
                    raise Layer8Error("the server's key is not the pinned one")
                return _answer(_head(inner, where.host), 0).date
    except ssl.SSLError as error:
        raise Layer8Error(f"TLS failed: {error.reason or error}") from None
    except OSError as error:
        raise Unavailable(_why(error)) from None


def skew(date: datetime) -> float:
    """Give by how many seconds another clock is ahead of ours; an HTTP date has whole seconds."""
    return (date - datetime.now(UTC)).total_seconds() + 0.5


def _connect(where: Where) -> socket.socket:
    if where.path:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(PATIENCE)
        try:
            line.connect(where.path)
        except BaseException:
            line.close()
            raise
        return line
    return socket.create_connection((where.host, where.port), timeout=PATIENCE)


def _trusting() -> ssl.SSLContext:
    """Make a context that takes any certificate: what it shows is compared, not believed."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _certificate(line: socket.socket, name: str) -> bytes:
    with _trusting().wrap_socket(line, server_hostname=name) as inner:
        return inner.getpeercert(True) or b""


def _head(line: socket.socket, host: str) -> bytes:
    """Send a request and read until its answer's head is there, or the connection ends."""
    shown = f"[{host}]" if ":" in host else host
    line.sendall(
        f"HEAD / HTTP/1.1\r\nHost: {shown}\r\nUser-Agent: layer8-expose\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    until = time.monotonic() + PATIENCE
    data = b""
    while b"\r\n\r\n" not in data and len(data) < HEAD:
        line.settimeout(max(0.01, until - time.monotonic()))
        try:
            more = line.recv(4096)
        except ConnectionResetError:
            more = b""
        if not more:
            break
        data += more
    return data


def _answer(data: bytes, ms: float) -> Answer:
    first, *fields = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    date = None
    for name, _, value in (field.partition(":") for field in fields):
        if name.lower() == "date":
            try:
                date = parsedate_to_datetime(value.strip())
            except ValueError:
                continue
            date = date.replace(tzinfo=UTC) if date.tzinfo is None else date
    return Answer("(not HTTP)" if data and not first.startswith("HTTP/") else first[:80], date, ms)


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:g} s"
    return (error.strerror or str(error) or type(error).__name__).lower()
