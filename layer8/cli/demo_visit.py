"""Visiting a page as anybody would: by curl where there is one, else by Python's own client."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import time
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from layer8.core.errors import Unavailable

LOOPBACK = "127.0.0.1"
PATIENCE = 10
"""Seconds for one visit."""
PAGE_MOST = 1 << 20
"""Bytes of a page that are read."""


@frozen
class Visited:
    """What a visitor got; times in milliseconds since it began."""

    program: str
    status: int
    size: int
    digest: str
    connected_ms: float
    first_ms: float
    total_ms: float


async def visit(reactor: Any, curl: str | None, folder: Path, url: str, host: str, port: int, trust: Path) -> Visited:
    """Fetch `url`, whose host is to be found at `port` of this machine; `trust` is the one certificate to believe.

    `curl` is the program's path, None for Python. Raises Unavailable if there is no answer, or not from who it should.
    """
    if curl is None:
        return await deferToThread(_by_python, host, port, trust if url.startswith("https:") else None)
    way = ["--noproxy", "*", "--resolve", f"{host}:{port}:{LOOPBACK}", "--cacert", str(trust)]
    return await _by_curl(reactor, curl, folder / "page", url, way)


async def visit_by_socks(reactor: Any, curl: str | None, folder: Path, url: str, port: int) -> Visited:
    """Fetch `url` through the SOCKS5 server at a port of this machine; raises Unavailable."""
    if curl is None:
        return await deferToThread(_by_socks, url, port)
    # Whoever has told curl to leave this machine's own addresses out would go past the network.
    way = ["--noproxy", "", "--socks5-hostname", f"{LOOPBACK}:{port}"]
    return await _by_curl(reactor, curl, folder / "page", url, way)


async def _by_curl(reactor: Any, curl: str, page: Path, url: str, way: Sequence[str]) -> Visited:
    words = ["-q", "-sS", "--http1.1", "--max-time", str(PATIENCE), "--max-filesize", str(PAGE_MOST), *way]
    words += ["-o", str(page), "-w", "%{http_code} %{time_connect} %{time_starttransfer} %{time_total}", url]
    page.unlink(missing_ok=True)
    out, err, code = await getProcessOutputAndValue(curl, words, {**os.environ, "LC_ALL": "C"}, reactor=reactor)
    if code != 0:
        said = [line for line in err.decode(errors="replace").splitlines() if line.startswith("curl: ")]
        raise Unavailable(f"{url}: {said[0] if said else f'curl ended with {code}'}")
    status, *times = out.decode("ascii").split()
    body = page.read_bytes() if page.exists() else b""  # curl makes no file for an empty body
    connected, first, total = (round(float(seconds) * 1000, 1) for seconds in times)
    return Visited("curl", int(status), len(body), hashlib.sha256(body).hexdigest(), connected, first, total)


def _by_python(host: str, port: int, trust: Path | None) -> Visited:
    """Do the same in a thread, with nothing but the standard library."""
    url = f"{'http' if trust is None else 'https'}://{host}:{port}/"
    begun = time.monotonic()

    def since() -> float:
        return round((time.monotonic() - begun) * 1000, 1)

    try:
        with socket.create_connection((LOOPBACK, port), timeout=PATIENCE) as plain:
            connected = since()
            line = plain
            if trust is not None:
                context = ssl.create_default_context(cafile=str(trust))
                # Newer Pythons would want more of a certificate that is its own authority than the name and the key.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                line = context.wrap_socket(plain, server_hostname=host)
            with line:
                line.sendall(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                answer = HTTPResponse(line)
                answer.begin()
                first = since()
                body = answer.read(PAGE_MOST)
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{url}: {str(error) or type(error).__name__}") from None
    return Visited("python", answer.status, len(body), hashlib.sha256(body).hexdigest(), connected, first, since())


def _by_socks(url: str, port: int) -> Visited:
    """Speak SOCKS5 (RFC 1928) as any program would."""
    where = urlsplit(url)
    host, target = str(where.hostname).encode(), where.port or 80
    begun = time.monotonic()

    def since() -> float:
        return round((time.monotonic() - begun) * 1000, 1)

    try:
        with socket.create_connection((LOOPBACK, port), timeout=PATIENCE) as line:
            line.sendall(b"\x05\x01\x00")
            if line.recv(2, socket.MSG_WAITALL) != b"\x05\x00":
                raise Unavailable(f"{url}: the SOCKS server refuses")
            line.sendall(b"\x05\x01\x00\x03" + bytes((len(host),)) + host + target.to_bytes(2, "big"))
            head = line.recv(4, socket.MSG_WAITALL)
            if head[:2] != b"\x05\x00":
                raise Unavailable(f"{url}: the SOCKS server answers {head[1:2].hex()}")
            line.recv({1: 6, 4: 18}.get(head[3], 6), socket.MSG_WAITALL)
            connected = since()
            line.sendall(f"GET / HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n\r\n".encode())
            answer = HTTPResponse(line)
            answer.begin()
            first = since()
            body = answer.read(PAGE_MOST)
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{url}: {str(error) or type(error).__name__}") from None
    return Visited("python", answer.status, len(body), hashlib.sha256(body).hexdigest(), connected, first, since())
