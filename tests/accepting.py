"""Services of a test's own in threads: one accepts, and each connection has one more."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Accepting:
    """Accepts from its start until it is closed; `talk` has each connection, which is closed when it returns."""

    def __init__(self, talk: Callable[[socket.socket], None], host: str = "127.0.0.1") -> None:
        self._talk = talk
        self._sock = socket.create_server((host, 0), backlog=512)
        self.port: int = self._sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            self._talk(sock)

    def close(self) -> None:
        """Accept nobody any more; connections go on. Twice does nothing."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def pass_on(near: socket.socket, far: socket.socket, sent: bytearray, got: bytearray) -> None:
    """Copy both ways until both have ended; keeps what `near` and `far` have said."""
    for sock in (near, far):
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with far:
        back = threading.Thread(target=_copy, args=(far, near, got), daemon=True)
        back.start()
        _copy(near, far, sent)
        back.join()


def _copy(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
