"""The load on any SOCKS port: an origin that answers `GET /N` with N bytes, and a client of plain sockets.

The origin is a process of its own, `python -m bench.socks_load PORT`, so that the client's threads do not share an
interpreter with it. Every peer meets the same origin and the same client. A user name stands for a circuit.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from attrs import define, evolve, field, frozen

from bench.load import NoLoad
from bench.processes import Child

Address = tuple[str, int]

MIB = 1 << 20
BLOCK = 256 << 10
"""Bytes that are written and read at once."""
TRANSFER_S = 120.0
"""Seconds that one transfer may take."""
WARM_UP = MIB
"""Bytes that a circuit carries before it is timed."""
WAITING = 1024
"""Connections that may wait to be accepted by the origin."""
HEAD = 4096
"""Most bytes of a request's or an answer's head."""


@frozen
class Fetched:
    """One answer: its bytes, and the seconds from connecting until its first and until its last byte were there."""

    size: int
    first_s: float
    all_s: float


@frozen
class Moved:
    """What several streams moved together."""

    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """MiB per second."""
        return self.size / MIB / self.seconds


@define(eq=False)
class SocksLoad:
    """Clients of one SOCKS port, or of the origin itself if there is none."""

    socks: Address | None
    origin: Address
    end: float = float("inf")
    """When, in monotonic seconds, everything has to be over."""
    _fresh: Iterator[int] = field(factory=count)

    def users(self, wanted: int) -> list[str]:
        """Names that this load has never used."""
        return [f"user{next(self._fresh)}" for _ in range(wanted)]

    def at(self, target: Address) -> SocksLoad:
        """The same clients, of something else by the same port."""
        return evolve(self, origin=target)

    def fetch(self, user: str, size: int) -> Fetched:
        """Fetch `size` bytes as `user`, on a connection of its own; raises NoLoad."""
        begun = time.monotonic()
        end = min(self.end, begun + TRANSFER_S)
        try:
            with socket.create_connection(self.socks or self.origin, _left(end)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.socks is not None:
                    connect(sock, self.origin, user)
                sock.sendall(b"GET /%d HTTP/1.0\r\n\r\n" % size)
                return _read(sock, size, begun, end)
        except OSError as problem:
            raise NoLoad(f"{user}: {problem}") from None

    def warm(self, users: Sequence[str], size: int = WARM_UP) -> None:
        """Let every user's circuit be built and carry `size` bytes, all at once; raises NoLoad."""
        together(lambda user: self.fetch(user, size), users)

    def one(self, user: str, size: int) -> Moved:
        """One stream, from its connecting to its last byte; raises NoLoad."""
        return Moved(size, self.fetch(user, size).all_s)

    def several(self, users: Sequence[str], size: int) -> Moved:
        """`size` bytes in all, split over streams that begin together; raises NoLoad."""
        share = size // len(users)
        begun = time.monotonic()
        together(lambda user: self.fetch(user, share), users)
        return Moved(share * len(users), time.monotonic() - begun)

    def small(self, users: Sequence[str], wanted: int, size: int) -> tuple[list[float], int, float]:
        """`wanted` fetches, one connection each and one at a time for each user.

        Gives the seconds of each that was answered, the number of those that were not, and the seconds for all.
        """
        waits: list[float] = []
        failed: list[str] = []

        def fetches(user: str) -> None:
            for _ in range(wanted // len(users)):
                try:
                    waits.append(self.fetch(user, size).all_s)
                except NoLoad as problem:
                    failed.append(str(problem))

        begun = time.monotonic()
        together(fetches, users)
        return waits, len(failed), time.monotonic() - begun


def connect(sock: socket.socket, target: Address, user: str) -> None:
    """Ask a SOCKS5 server (RFC 1928, RFC 1929) for `target` as `user`; raises ConnectionError."""
    sock.sendall(b"\5\1\2")
    if (got := _exactly(sock, 2)) != b"\5\2":
        raise ConnectionError(f"the server wants another way to log in: {got.hex()}")
    name = user.encode()
    sock.sendall(b"\1%c%b%c%b" % (len(name), name, len(name), name))
    if (got := _exactly(sock, 2))[1]:
        raise ConnectionError(f"not let in: {got.hex()}")
    host, port = target
    try:
        where = b"\1" + socket.inet_aton(host)
    except OSError:
        where = b"\3%c%b" % (len(host), host.encode())
    sock.sendall(b"\5\1\0" + where + port.to_bytes(2, "big"))
    version, reply, _, kind = _exactly(sock, 4)
    if version != 5 or reply:
        raise ConnectionError(f"the server answers {reply}")
    bound = {1: 4, 4: 16}.get(kind) or _exactly(sock, 1)[0]
    _exactly(sock, bound + 2)


def together(do: Callable[[str], object], users: Sequence[str]) -> None:
    """Do something for all users at once, each on a thread of its own; raises the first NoLoad of any."""
    problems: list[NoLoad] = []
    start = threading.Barrier(len(users))

    def run(user: str) -> None:
        start.wait(TRANSFER_S)
        try:
            do(user)
        except NoLoad as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(user,), daemon=True) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def _read(sock: socket.socket, size: int, begun: float, end: float) -> Fetched:
    """Read head and body; the body has to be as long as was asked for."""
    buffer = bytearray(BLOCK)
    head = b""
    first = 0.0
    while b"\r\n\r\n" not in head:
        sock.settimeout(_left(end))
        got = sock.recv_into(buffer)
        first = first or time.monotonic()
        head += bytes(buffer[:got])
        if not got or (len(head) > HEAD and b"\r\n\r\n" not in head):
            raise ConnectionError(f"no answer, but {head[:40]!r}")
    left = size - len(head.partition(b"\r\n\r\n")[2])
    while left > 0:
        sock.settimeout(_left(end))
        got = sock.recv_into(buffer)
        if not got:
            raise ConnectionError(f"ended {left} bytes too early")
        left -= got
    if left:
        raise ConnectionError(f"{-left} bytes too many")
    return Fetched(size, first - begun, time.monotonic() - begun)


def _exactly(sock: socket.socket, wanted: int) -> bytes:
    data = b""
    while len(data) < wanted:
        got = sock.recv(wanted - len(data))
        if not got:
            raise ConnectionError("the SOCKS server hung up")
        data += got
    return data


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time left")
    return min(left, TRANSFER_S)


def serve(port: int) -> None:
    """Answer for ever, with one thread for each connection."""
    block = os.urandom(BLOCK)
    with socket.create_server(("127.0.0.1", port), backlog=WAITING) as listener:
        while True:
            visitor, _ = listener.accept()
            threading.Thread(target=_answer, args=(visitor, memoryview(block)), daemon=True).start()


def _answer(visitor: socket.socket, block: memoryview) -> None:
    with visitor, contextlib.suppress(OSError, ValueError):
        visitor.settimeout(TRANSFER_S)
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b""
        while b"\r\n\r\n" not in request and len(request) < HEAD:
            got = visitor.recv(HEAD)
            if not got:
                return
            request += got
        size = int(request.split(b" ", 2)[1].removeprefix(b"/"))
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        visitor.sendall(head + block[:size])
        for begin in range(len(block), size, len(block)):
            visitor.sendall(block[: size - begin])


def start_origin(port: int, folder: Path) -> Child:
    """Start the origin as a process and wait until it listens; raises DidNotStart."""
    root = str(Path(__file__).resolve().parent.parent)
    argv = [sys.executable, "-m", "bench.socks_load", str(port)]
    child = Child.start("origin", argv, folder, {"PYTHONPATH": root})
    try:
        child.listening(port)
    except BaseException:
        child.end()
        raise
    return child


if __name__ == "__main__":
    serve(int(sys.argv[1]))
