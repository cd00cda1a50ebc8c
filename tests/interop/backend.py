"""A backend of a test's own: one thread per connection, for what no ready-made server does."""

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

from tests.accepting import Accepting
from tests.interop.daemons import Scope

TIME_S = 30.0


def serve(scope: Scope, talk: Callable[[socket.socket], None]) -> int:
    """Let `talk` have each connection, which is closed when it returns; give the port on 127.0.0.1."""

    def timed(connection: socket.socket) -> None:
        connection.settimeout(TIME_S)
        talk(connection)

    accepting = Accepting(timed)
    scope.addCleanup(accepting.close)
    return accepting.port


def buffers(connections: int) -> int:
    """Give more bytes than the kernel keeps for so many TCP connections in a row, and for a pipe of each."""
    kept = [int(Path(f"/proc/sys/net/ipv4/tcp_{which}").read_text().split()[2]) for which in ("rmem", "wmem")]
    return connections * (sum(kept) + (1 << 20))


def drained(connection: socket.socket) -> tuple[str, int]:
    """Read to the end of the other side's half, and give hash and size."""
    digest, size = hashlib.sha256(), 0
    while data := connection.recv(1 << 18):
        digest.update(data)
        size += len(data)
    return digest.hexdigest(), size


def summed(connection: socket.socket) -> None:
    """Say what came, once its end has come."""
    digest, size = drained(connection)
    connection.sendall(f"{digest} {size}\n".encode())
