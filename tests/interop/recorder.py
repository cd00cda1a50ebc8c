"""A loopback server that keeps what each connection sends, for tests that look at the far side of a peer."""

import socket
from collections.abc import Callable
from types import TracebackType

from tests.accepting import Accepting


class Recorder:
    """Accepts on an ephemeral port; `reply` is asked after each read what to send back, from all bytes so far."""

    def __init__(self, reply: Callable[[bytes], bytes] = lambda seen: b"") -> None:
        self.connections: list[bytearray] = []
        self._reply = reply
        accepting = Accepting(self._talk)
        self.port, self.close = accepting.port, accepting.close

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _talk(self, connection: socket.socket) -> None:
        seen = bytearray()
        connection.settimeout(20)
        while data := connection.recv(65536):
            if not seen:
                self.connections.append(seen)
            seen += data
            if answer := self._reply(bytes(seen)):
                connection.sendall(answer)
