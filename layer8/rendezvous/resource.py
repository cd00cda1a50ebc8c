"""Resources: streams that a key stands for, and what answers them.

::

    resource = Resource(key, of("file:report.pdf"))      read by `nc` through a tunnel to resource.name
    resource = Resource(key, of("dir:site"))             a folder, read by a browser
    resource = Resource(key, Echo)                       a function that makes the sink of each stream
    resource = Resource(key, "tcp:localhost:80")         a program

A resource is a hidden service with one port, PORT, whose descriptor anybody can find by the SHA-1 of its key: 40 hex
digits, as a path ends in them. Every client has a stream of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define, field

from layer8.core.errors import ConfigError
from layer8.crypto.keys import NodeKey
from layer8.relay.client import Opened, Reason, Stream
from layer8.rendezvous.target import Function

PORT: Final = 1  # the one virtual port of a resource
CHUNK: Final = 64 * 1024  # bytes of a file that are read at a time


@define(eq=False)
class Resource:
    """A key, and what answers: an endpoint string or a function."""

    key: NodeKey
    handler: str | Function

    @property
    def name(self) -> bytes:
        """Give the 20 bytes by which it is found."""
        return resource_name(self.key.node_id)

    @property
    def targets(self) -> dict[int, str | Function]:
        """Give the ports of its service, for `layer8.rendezvous.target.Ports`."""
        return {PORT: self.handler}


def resource_name(key: bytes) -> bytes:
    """Give the SHA-1 of a resource's public key."""
    return hashlib.sha1(key, usedforsecurity=False).digest()


def of(text: str) -> str | Function:
    """Read what an operator has written: `file:PATH`, `dir:PATH`, `unix:PATH`, `HOST:PORT` or an endpoint.

    Raises ConfigError.
    """
    kind, _, rest = text.partition(":")
    if kind == "file":
        path = Path(rest)
        if not path.is_file():
            raise ConfigError(f"{text!r}: there is no such file")
        return lambda stream: Sends(stream, path)
    if kind == "dir":
        from layer8.rendezvous.folder import Folder  # a web server is needed where there is a folder alone

        return Folder(Path(rest))
    if rest.isdecimal() and kind not in ("tcp", "unix"):
        if not 0 < int(rest) < 65536:
            raise ConfigError(f"{text!r}: a port is 1 to 65535")
        return f"tcp:{kind or 'localhost'}:{rest}"
    if not rest:
        raise ConfigError(f"{text!r}: a target is HOST:PORT, unix:PATH, file:PATH or dir:PATH")
    return text


@define(eq=False)
class Sends:
    """The sink of a stream that says a file from its beginning to its end, as fast as it is taken."""

    _stream: Stream
    _path: Path
    _file: BinaryIO | None = field(default=None, init=False)
    _held: bool = field(default=False, init=False)
    _reading: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Begin: the stream has been accepted."""
        try:
            self._file = self._path.open("rb")
        except OSError:
            self._stream.close(Reason.INTERNAL)
            return
        self._read()

    def _read(self) -> None:
        if self._reading:
            return
        self._reading = True
        while self._file is not None and not self._held:
            data = self._file.read(CHUNK)
            if data:
                self._stream.write(data)
            else:
                self._close()
                self._stream.end()
        self._reading = False

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def opened(self, opened: Opened) -> None:
        """Hear what only the other end of a stream does."""

    def data(self, pieces: list[bytes]) -> None:
        """Read past what the client says: there is nothing to ask for."""

    def ended(self) -> None:
        """Go on: `nc` ends its half at once."""

    def closed(self, reason: Reason) -> None:
        """Stop: nobody listens any more."""
        self._close()

    def hold(self) -> None:
        """Wait."""
        self._held = True

    def go_on(self) -> None:
        """Go on."""
        self._held = False
        self._read()
