"""One small file from the Web, with nothing but the standard library: through the node that runs here.

What somebody fetches says what he is about to visit, so where this machine's node has a SOCKS port the question goes
through the network, and never beside it.
"""

from __future__ import annotations

import socket
import ssl
import time
from http.client import HTTPException, HTTPResponse
from secrets import token_hex
from urllib.parse import SplitResult, urljoin, urlsplit

from layer8.core.errors import Layer8Error, TimedOut, Unavailable

REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
REASONS = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "refused",
    6: "it took too long",
    0xF0: "no such service is up, or nobody claims that name",
    0xF1: "its descriptor is wrong",
    0xF2: "its access points do not answer",
    0xF3: "the meeting with it failed",
    0xF4: "it lets in known clients only",
    0xF5: "it does not know this client",
    0xF6: "that is no address, or a name that leads to nobody",
    0xF7: "it was told, and has not come",
}


def fetch(url: str, most: int, socks: tuple[str, int] | None, *, seconds: float = 60.0) -> bytes:
    """Fetch at most so many bytes by GET; raises `Unavailable`, `TimedOut` or `Layer8Error`, each in one line.

    `socks` is where a SOCKS5 port listens; it looks the host up. From https no redirection leads to http.
    """
    deadline = time.monotonic() + seconds
    where = _where(url)
    for _ in range(REDIRECTS + 1):
        try:
            answer = _get(where, socks, deadline, most)
        except TimeoutError:
            raise TimedOut(f"{url}: no answer within {seconds:g} s") from None
        except (OSError, HTTPException) as error:
            raise Unavailable(f"{url}: {str(error) or type(error).__name__}") from None
        if isinstance(answer, bytes):
            return answer
        further = _where(urljoin(where.geturl(), answer))
        if where.scheme == "https" and further.scheme != "https":
            raise Layer8Error(f"{url}: it leads from https to http")
        where = further
    raise Layer8Error(f"{url}: it leads on and on")


def _where(url: str) -> SplitResult:
    try:
        where = urlsplit(url)
        port = where.port
    except ValueError:
        raise Layer8Error(f"{url[:200]}: is no URL") from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or where.scheme not in PORTS or not where.hostname or where.username is not None or port == 0:
        raise Layer8Error(f"{url[:200]!r}: write http:// or https://, and a host")
    return where


def _get(where: SplitResult, socks: tuple[str, int] | None, deadline: float, most: int) -> bytes | str:
    """Give the content, or where it leads on to."""
    host = str(where.hostname)
    port = where.port or PORTS[where.scheme]
    if socks is None and host.endswith(".l8.alt"):
        raise Unavailable(f"{host}: only a node leads there: layer8 up starts one")
    with socket.create_connection(socks or (host, port), timeout=_left(deadline)) as plain:
        if socks is not None:
            _through(plain, host, port, deadline)
        plain.settimeout(_left(deadline))
        line = plain
        if where.scheme == "https":
            line = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        with line:
            path = f"{where.path or '/'}{f'?{where.query}' if where.query else ''}"
            shown = f"[{host}]" if ":" in host else host
            shown += f":{where.port}" if where.port else ""
            line.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {shown}\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
            )
            answer = HTTPResponse(line)
            answer.begin()
            if answer.status in (301, 302, 303, 307, 308) and (further := answer.getheader("Location")):
                return further
            if answer.status != 200:
                raise Unavailable(f"{where.geturl()}: status {answer.status}")
            return _body(answer, line, deadline, most)


def _body(answer: HTTPResponse, line: socket.socket, deadline: float, most: int) -> bytes:
    body = b""
    while piece := answer.read1(8192):
        body += piece
        if len(body) > most:
            raise Layer8Error(f"this is no file of a service or index page: it is longer than {most} bytes")
        line.settimeout(_left(deadline))
    return body


def _through(line: socket.socket, host: str, port: int, deadline: float) -> None:
    """Have a SOCKS5 port connect (RFC 1928), as a user of our own where it asks who we are: by a circuit of our own."""
    name = host.encode("ascii")
    if len(name) > 255:
        raise Layer8Error("a host is longer than 255 letters")
    line.sendall(b"\x05\x02\x00\x02")
    method = _take(line, 2, deadline)
    if method == b"\x05\x02":
        user = token_hex(16).encode()
        line.sendall(b"\x01" + 2 * (bytes((len(user),)) + user))
        method = _take(line, 2, deadline)[1:]
    if method not in (b"\x05\x00", b"\x00"):
        raise Unavailable("the node's SOCKS port wants a password: fetch the file yourself, and pin it as a FILE")
    line.sendall(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big"))
    _, reply, _, kind = _take(line, 4, deadline)
    if reply:
        raise Unavailable(f"{host}: {REASONS.get(reply, f'the network says {reply}')}")
    size = {1: 4, 4: 16}.get(kind)
    _take(line, (_take(line, 1, deadline)[0] if size is None else size) + 2, deadline)


def _take(line: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        line.settimeout(_left(deadline))
        piece = line.recv(size - len(data))
        if not piece:
            raise Unavailable("the node's SOCKS port has closed the connection")
        data += piece
    return data


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
