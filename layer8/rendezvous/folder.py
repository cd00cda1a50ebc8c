"""A folder as a target of a virtual port: a web server of static files over streams, which listens nowhere.

::

    of("dir:site")  ->  Folder("site")      GET and HEAD, index.html or a list of each folder, parts of files by Range

Nothing outside of the folder is shown, also by no symbolic link, no device or pipe, and nothing whose name begins with
a dot, but `.well-known`. It tells neither which program it is nor what time it is here, and what visitors send beside
their question is read past.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site
from twisted.web.static import File
from zope.interface import implementer

from layer8.core.errors import ConfigError
from layer8.relay.client import Opened, Reason, Stream

IDLE: Final = 60.0  # seconds without a request, after which a stream ends
WELL_KNOWN: Final = ".well-known"  # RFC 8615
HIDDEN: Final = (b"server", b"date")  # headers
_NOWHERE: Final = UNIXAddress(b"")
_RANGE: Final = re.compile(rb"bytes=(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})\Z")


class Inside(File):
    """A file or folder below a root, and nothing else."""

    root = ""

    def createSimilarFile(self, path: str) -> Inside:
        """Make the resource of a path below the same root."""
        made = Inside(path, self.defaultType)
        made.root = self.root
        return made

    def getChild(self, path: bytes, request: Any) -> Any:
        """Give what is called so in this folder, unless it leads out of the root."""
        try:
            name = path.decode()
        except UnicodeDecodeError:
            return self.childNotFound
        if "\0" in name:
            return self.childNotFound
        found = super().getChild(name, request)  # type: ignore[no-untyped-call]
        return found if not isinstance(found, File) or self.shows(found.path) else self.childNotFound

    def shows(self, path: str) -> bool:
        """Say whether this may be shown."""
        real = os.path.realpath(path)
        below = real == self.root or real.startswith(os.path.join(self.root, ""))
        names = [os.path.basename(path), *real[len(self.root) :].split(os.sep)] if below and real != self.root else []
        if any(name.startswith(".") and name != WELL_KNOWN for name in names):
            return False
        return below and (os.path.isfile(real) or os.path.isdir(real))

    def listNames(self) -> list[str]:
        """Give the names that a list shows."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        return sorted(name for name in names if self.shows(os.path.join(self.path, name)))

    def makeProducer(self, request: Any, fileForReading: Any) -> Any:
        """Give one part of a file at most: several would be parted by our clock and process number."""
        if not _RANGE.match(request.getHeader(b"range") or b""):
            request.requestHeaders.removeHeader(b"range")
        return super().makeProducer(request, fileForReading)  # type: ignore[no-untyped-call]


class Question(Request):
    """A request whose answer does not tell whose machine this is."""

    def gotLength(self, length: int | None) -> None:
        """Keep no body."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Read past it."""

    def setHeader(self, name: Any, value: Any) -> None:
        """Set a header, unless it says too much."""
        if name.lower() not in HIDDEN:
            super().setHeader(name, value)  # type: ignore[no-untyped-call]


class Folder:
    """A function that makes the sinks of streams; raises ConfigError for what is no folder. `clock` has `callLater`."""

    def __init__(self, path: Path) -> None:
        """Look whether it is there."""
        if not path.is_dir():
            raise ConfigError(f"'dir:{path}': there is no such folder")
        self.clock: Any = None
        self._root = os.path.realpath(path)
        self._site: Site | None = None

    def __call__(self, stream: Stream) -> Visitor:
        """Answer what is asked on a stream."""
        if self._site is None:
            top = Inside(self._root, "application/octet-stream")
            top.root = self._root
            self._site = Site(top, requestFactory=Question, reactor=self.clock, timeout=IDLE)
        channel: Any = HTTPChannel()
        channel.site = channel.factory = self._site
        channel.requestFactory = Question
        channel.timeOut = IDLE if self.clock is not None else None
        if self.clock is not None:
            channel.callLater = self.clock.callLater
        return Visitor(stream, channel)


@implementer(ITransport, IPushProducer)
class Visitor:
    """The sink of a stream, and the transport of the web server's end of it."""

    disconnecting = False

    def __init__(self, stream: Stream, channel: Any) -> None:
        """Begin with nothing said."""
        self._stream = stream
        self._channel = channel
        self._producer: Any = None
        self._over = self._held = False

    # What the stream says.

    def begin(self) -> None:
        """Wait for a question: the stream has been accepted."""
        self._channel.makeConnection(self)

    def opened(self, opened: Opened) -> None:
        """Hear what only the other end of a stream does."""

    def data(self, pieces: list[bytes]) -> None:
        """Take what is asked."""
        if not self._over:
            self._channel.dataReceived(b"".join(pieces))

    def ended(self) -> None:
        """Answer what was asked before, and end then."""
        self._channel.persistent = 0
        if not self._channel.requests:
            self.loseConnection()

    def closed(self, reason: Reason) -> None:
        """Stop: nobody listens any more."""
        self._end(ConnectionDone() if reason is Reason.DONE else ConnectionLost())

    def hold(self) -> None:
        """Let the answer wait."""
        self._held = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def go_on(self) -> None:
        """Go on."""
        self._held = False
        if self._producer is not None:
            self._producer.resumeProducing()

    # What the web server says.

    def write(self, data: bytes) -> None:
        """Say a part of the answer."""
        if not self._over:
            self._stream.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Say parts of the answer."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """End, after what was said."""
        self._stream.close(Reason.DONE)
        self._end(ConnectionDone())

    def abortConnection(self) -> None:
        """End at once."""
        self._stream.close(Reason.RESET)
        self._end(ConnectionLost())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let somebody know when to wait."""
        self._producer = producer
        if self._held:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Let nobody know any more."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Hear no more questions for now."""
        self._stream.pause()

    def resumeProducing(self) -> None:
        """Hear them again."""
        self._stream.resume()

    def stopProducing(self) -> None:
        """End."""
        self.loseConnection()

    def getPeer(self) -> UNIXAddress:
        """Give nothing: there is no address."""
        return _NOWHERE

    def getHost(self) -> UNIXAddress:
        """Give nothing."""
        return _NOWHERE

    def _end(self, why: Exception) -> None:
        if not self._over:
            self._over = self.disconnecting = True
            self._producer = None
            self._channel.connectionLost(Failure(why))
