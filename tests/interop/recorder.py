"""A loopback server that keeps what each connection sends, for tests that look at the far side of a peer."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType


class Recorder:
    """Accepts on an ephemeral port; `reply` is asked after each read what to send back, from all bytes so far."""

    def __init__(self, reply: Callable[[bytes], bytes] = lambda seen: b"") -> None:
        self.connections: list[bytearray] = []
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        seen = bytearray()
        with contextlib.suppress(OSError), connection:
            connection.settimeout(20)
            while data := connection.recv(65536):
                if not seen:
                    self.connections.append(seen)
                seen += data
                if answer := self._reply(bytes(seen)):
                    connection.sendall(answer)
