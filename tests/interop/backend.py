"""A backend of a test's own: one thread per connection, for what no ready-made server does."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable

from tests.interop.daemons import Scope

TIME_S = 30.0


def serve(scope: Scope, talk: Callable[[socket.socket], None]) -> int:
    """Let `talk` have each connection, which is closed when it returns; give the port on 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def run(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(TIME_S)
            talk(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=run, args=(connection,), daemon=True).start()

    def close() -> None:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    scope.addCleanup(close)
    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


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
