"""What tests of whole processes share: a web service in threads, visitors, load, looks at a process from outside."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define

from tests.accepting import Accepting
from tests.interop.daemons import Scope, found

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
TICK = 0.02


def note(text: str) -> None:
    """Show a figure in the test's output."""
    sys.stdout.write(f"\n    {text}\n")
    sys.stdout.flush()


class Service:
    """A web service: /stream goes on until `finish` is set, /hold says nothing until then, /flood says all it can.

    All else gets a short answer.
    """

    def __init__(self, scope: Scope) -> None:
        self.finish = threading.Event()
        self.heads: list[bytes] = []
        self._accepting = Accepting(self._talk)
        self.port = self._accepting.port
        scope.addCleanup(self.close)

    def close(self) -> None:
        self.finish.set()
        self._accepting.close()

    def _talk(self, sock: socket.socket) -> None:
        head = sock.recv(65536)
        if b"/stream" in head:
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            number = 0
            while not self.finish.wait(TICK):
                sock.sendall(b"%08d" % number)
                number += 1
            sock.sendall(b"finished")
        elif b"/flood" in head:
            while not self.finish.is_set():
                sock.sendall(bytes(1 << 16))
        elif b"/hold" in head:
            self.finish.wait(60)
            sock.sendall(ANSWER)
        elif head:
            self.heads.append(head)
            del self.heads[:-100]
            sock.sendall(ANSWER)


def request(host: str, path: str = "/") -> bytes:
    """A request whose answer ends the connection."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def drained(sock: socket.socket) -> bytes:
    """Give everything until the end; a reset ends it too."""
    got = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := sock.recv(65536):
            got += part
    return got


def abort(sock: socket.socket) -> None:
    """Leave by a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def visit(port: int, data: bytes, *, source: str = "127.0.0.1", seconds: float = 10.0) -> bytes:
    """Send something to a port and give what comes back; nothing if nobody is there, TimeoutError if it never ends."""
    try:
        sock = socket.create_connection(("127.0.0.1", port), seconds, (source, 0))
    except ConnectionError:
        return b""
    with sock:
        sock.settimeout(seconds)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(data)
        return drained(sock)


def fetched(port: int, host: str, *, source: str = "127.0.0.1", seconds: float = 10.0) -> bool:
    """Say whether a visitor of a host gets the answer of the service."""
    return visit(port, request(host), source=source, seconds=seconds) == ANSWER


@define(eq=False)
class Download:
    """A visitor who reads /stream; `got` grows as the bytes come."""

    sock: socket.socket
    got: bytearray
    ended: threading.Event

    @classmethod
    def start(cls, port: int, host: str) -> Download:
        """Ask, and wait for the first bytes."""
        sock = socket.create_connection(("127.0.0.1", port), 10)
        sock.sendall(request(host, "/stream"))
        sock.settimeout(30)
        made = cls(sock, bytearray(sock.recv(1024)), threading.Event())
        threading.Thread(target=made._read, daemon=True).start()
        return made

    def _read(self) -> None:
        with contextlib.suppress(OSError), self.sock:
            while part := self.sock.recv(65536):
                self.got += part
        self.ended.set()

    @property
    def whole(self) -> bool:
        """Whether it came to the end that the service gives it, without a hole."""
        body = bytes(self.got).partition(b"\r\n\r\n")[2]
        numbers = [body[at : at + 8] for at in range(0, len(body), 8)]
        return numbers[-1:] == [b"finished"] and numbers[:-1] == [b"%08d" % n for n in range(len(numbers) - 1)]


class Load:
    """Visitors all the time: wrk if it is here, else threads; and one more whose luck is written down."""

    def __init__(self, scope: Scope, port: int, host: str) -> None:
        self.marks: list[tuple[float, bool]] = []
        self._port, self._host = port, host
        self._over = threading.Event()
        self._wrk: subprocess.Popen[bytes] | None = None
        scope.addCleanup(self.stop)
        wrk = found("wrk")
        if wrk is not None:
            words = [wrk, "-t1", "-c8", "-d120s", "-H", f"Host: {host}", "-H", "Connection: close"]
            self._wrk = subprocess.Popen(
                [*words, f"http://127.0.0.1:{port}/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        else:
            for _ in range(4):
                threading.Thread(target=self._loop, args=(lambda ok: None,), daemon=True).start()
        threading.Thread(target=self._loop, args=(self._mark,), daemon=True).start()

    def _mark(self, ok: bool) -> None:
        self.marks.append((time.monotonic(), ok))

    def _loop(self, told: Callable[[bool], None]) -> None:
        while not self._over.wait(TICK):
            try:
                told(fetched(self._port, self._host))
            except OSError:
                told(False)

    def stop(self) -> None:
        self._over.set()
        if self._wrk is not None and self._wrk.poll() is None:
            self._wrk.kill()
            self._wrk.wait()

    def good_since(self, start: float) -> float | None:
        """Give when the first visitor after `start` got an answer."""
        return next((when for when, ok in list(self.marks) if ok and when >= start), None)

    def bad_since(self, start: float) -> int:
        """Count those after `start` who got none."""
        return sum(not ok for when, ok in list(self.marks) if when >= start)


def resident(pid: int) -> int:
    """Give the resident memory of a process that is its own, in kilobytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", text)[0])


def memory(pid: int) -> bytes:
    """Give everything that a process has in its readable and writable memory."""
    parts = []
    with open(f"/proc/{pid}/mem", "rb", 0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            if not rights.startswith("rw") or "[v" in line:
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            with contextlib.suppress(OSError, OverflowError, ValueError):
                file.seek(start)
                left = end - start
                while left > 0 and (part := file.read(min(left, 1 << 24))):
                    parts.append(part)
                    left -= len(part)
    return b"".join(parts)


def open_descriptors(pid: int) -> int:
    """Count the descriptors of a process, without the pipes that are kept for the next splice."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            count += not os.readlink(f"/proc/{pid}/fd/{name}").startswith("pipe:")
    return count


def registered(server: Any) -> Any:
    """Give every registration there is, as an admin sees it; what the file registers is counted anew at each start."""
    rows = server.ask("proxy.list")["hosts"]
    return [{**row, "version": 0 if row["static"] else row["version"]} for row in rows]
