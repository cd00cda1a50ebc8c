"""WebSocket under both ends of a control connection: whole text messages in and out, nothing here knows a method.

The handshake and every unusual frame (fragments, pings, closes, violations) are Autobahn's. Whole unfragmented text
frames, which is what peers send, are taken out of the segment and written by flat code, because the proxy sends one
for each visitor. Timers are ours: one pulse for all sockets of a process pings and buries them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from secrets import token_bytes
from time import monotonic
from typing import Any, ClassVar, Protocol, cast

import txaio
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.control.http import HTTP_HEAD
from layer8.control.limits import CLOSE_CODES, DEAD
from layer8.core.lanes import Lane

txaio.use_twisted()

from autobahn.websocket import protocol as autobahn  # noqa: E402  (it wants to know its framework first)
from autobahn.websocket.types import ConnectingRequest as ConnectingRequest  # noqa: E402

PING = 15.0
"""Seconds of silence after which a peer is pinged."""

PULSE = 5.0
"""Seconds between looks at one socket, so PING is kept to within that."""

CLOSE_TIME = 5.0
"""Seconds that a peer has to read what was sent and to answer our close."""

WRITE_BUFFER = 1024 * 1024
"""Bytes that may wait for a slow reader; one more closes its connection."""

_HANDSHAKE = ("http_headers", "http_request_data", "http_response_data", "utf8validator")
"""What Autobahn keeps of a handshake and nobody needs after it: a kilobyte per idle connection."""

_OPEN = autobahn.WebSocketProtocol.STATE_OPEN
_CONNECTING = autobahn.WebSocketProtocol.STATE_CONNECTING
_CLOSED = autobahn.WebSocketProtocol.STATE_CLOSED


class Owner(Protocol):
    """Whoever speaks over a socket; every call comes from the reactor."""

    def opened(self, socket: Socket) -> None:
        """The upgrade is done: messages may be sent."""

    def received(self, message: bytes) -> None:
        """A whole text message came; whether it is UTF-8 is not known yet."""

    def writable(self) -> None:
        """What waited for a slow reader has left."""

    def lost(self, reason: str) -> None:
        """The connection is gone; called once, also if it never opened."""


class _Quiet:
    """What Autobahn logs to: nothing, because its lines hold addresses and messages."""

    def debug(self, *_words: object, **_fields: object) -> None:
        """Drop a line."""

    trace = info = warn = error = failure = critical = debug


class Pulse:
    """Pings silent sockets, by one delayed call for all of them, and holds the clocks that sockets go by."""

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float] = monotonic) -> None:
        """Take who calls later and a clock that never jumps; nothing runs while there is no socket."""
        self.clock = clock
        self.seconds = seconds
        self._lane: Lane[Socket] = Lane(PULSE)
        self.open = 0
        self._call: IDelayedCall | None = None

    def add(self, socket: Socket) -> None:
        """Ping a socket from now on, until `remove`."""
        self.open += 1
        self._lane.add(socket, self.seconds())
        if self._call is None:
            self._call = self.clock.callLater(PULSE, self._beat)

    def remove(self) -> None:
        """Forget one socket, which is gone; after the last one nothing runs any more."""
        self.open -= 1
        if not self.open and self._call is not None:
            self._call.cancel()
            self._call = None
            self._lane = Lane(PULSE)

    def _beat(self) -> None:
        """Look at every socket whose turn it is."""
        now = self.seconds()
        for socket in self._lane.expired(now):
            if socket.look(now):
                self._lane.add(socket, now)
        # a second is fine enough for PING, and keeps a crowd of sockets from waking us one by one
        self._call = self.clock.callLater(1.0, self._beat) if self.open else None


@implementer(IPushProducer)
class Socket(TwistedProtocol):
    """What both ends share: the frames. A server or a client class adds Autobahn's half of the handshake."""

    # Autobahn's options, here once instead of copied into each connection
    CONFIG_ATTRS: ClassVar[list[str]] = []
    logOctets = logFrames = trackTimings = utf8validateIncoming = failByDrop = echoCloseCodeReason = False
    applyMask = tcpNoDelay = autoPingRestartOnAnyTraffic = True
    maxFramePayloadSize = maxMessagePayloadSize = autoFragmentSize = 0
    openHandshakeTimeout = closeHandshakeTimeout = autoPingInterval = autoPingTimeout = 0
    autoPingSize = 12
    log = _Quiet()

    _masks = False
    _reads_masked = False

    # Autobahn's state, of which we read this
    state: int = _CONNECTING
    data: bytes
    current_frame: Any
    inside_message: bool
    failedByMe: bool
    wasClean: bool
    message_data: list[bytes]
    is_closed: Any

    owner: Owner
    pulse: Pulse
    leave: Callable[[], None] | None = None
    heard = 0.0
    _pinged = 0.0
    _blocked = False
    _reading = True
    _waiting = 0
    _why = ""
    _linger: IDelayedCall | None = None
    _gone = False
    _watched = False
    error: BaseException | None = None
    """What the transport said when it was lost."""

    def connectionMade(self) -> None:
        """Begin the handshake."""
        transport: Any = self.transport
        with suppress(AttributeError, OSError):  # a Unix socket has no such option
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self.heard = self.pulse.seconds()
        cast(Any, self)._connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, cut anywhere."""
        self.heard = self.pulse.seconds()
        if self.state == _OPEN and self.current_frame is None and not self.data and not self.inside_message:
            data = self._whole_frames(data)
            if not data:
                return
        if self.state == _CONNECTING:
            self._shake(data)
        else:
            cast(Any, self)._dataReceived(data)

    def _shake(self, data: bytes) -> None:
        """Go on with the handshake; Autobahn lets errors out for heads that it cannot read."""
        if len(self.data) + len(data) > HTTP_HEAD:
            self.abort("handshake")
            return
        try:
            cast(Any, self)._dataReceived(data)
        except (ValueError, LookupError):
            self.abort("handshake")

    def _whole_frames(self, data: bytes) -> bytes:
        """Hand on the whole unfragmented text frames that `data` begins with, and give the rest."""
        at, end = 0, len(data)
        most = self.maxMessagePayloadSize
        while end - at >= 2 and data[at] == 0x81 and self.state == _OPEN:
            size = data[at + 1]
            if (size >= 0x80) is not self._reads_masked:
                break
            size &= 0x7F
            start = at + 2
            if size == 126:
                if end - at < 4:
                    break
                size = data[at + 2] << 8 | data[at + 3]
                start = at + 4
                if size < 126:
                    break
            elif size == 127:
                break
            if self._reads_masked:
                start += 4
            stop = start + size
            if stop > end or size > most:
                break
            payload = data[start:stop]
            if self._reads_masked:
                payload = _masked(payload, data[start - 4 : start])
            at = stop
            self.owner.received(payload)
        return data[at:] if at else data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the owner, once, and let go of everything."""
        self.state = _CLOSED
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if not self._gone:
            self._gone = True
            self.error = reason.value
            self.is_closed = None
            if self._watched:
                self.pulse.remove()
            if self.leave is not None:
                self.leave()
            self.owner.lost(self._why or "peer")

    def pauseProducing(self) -> None:
        """Stop taking calls while the peer does not read the answers.

        Before the upgrade is done reading goes on: TLS may be blocked in its own handshake, which has to be read.
        """
        if self._blocked:
            return  # the transport says so again at each write
        self._blocked = True
        self._waiting = _waiting(self.transport, 0)
        if self.state == _OPEN:
            self._reading = False
            cast(Any, self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        """Go on: all that waited has left."""
        self._blocked = False
        if not self._reading:
            self._reading = True
            cast(Any, self.transport).resumeProducing()
        if self.state == _OPEN:
            self.owner.writable()

    def stopProducing(self) -> None:
        """The transport ends; `connectionLost` follows."""

    @property
    def blocked(self) -> bool:
        """Whether the transport holds more than it can send just now: a good time to send only what has to be sent."""
        return self._blocked

    def send(self, message: bytes) -> bool:
        """Send one text message, UTF-8; False, with nothing sent, if the socket is not open or WRITE_BUFFER is full."""
        if self.state != _OPEN:
            return False
        size = len(message)
        if self._blocked:
            # from the pause on count upwards; only when that is too much ask what really waits
            self._waiting += size + 4
            if self._waiting > WRITE_BUFFER:
                self._waiting = _waiting(self.transport, self._waiting) + size
                if self._waiting > WRITE_BUFFER:
                    self.abort("slow_reader")
                    return False
        mask = 0x80 if self._masks else 0
        if size < 126:
            head = bytes((0x81, mask | size))
        elif size < 65536:
            head = bytes((0x81, mask | 126, size >> 8, size & 0xFF))
        else:
            head = bytes((0x81, mask | 127)) + size.to_bytes(8, "big")
        if mask:
            key = token_bytes(4)
            self.transport.write(head + key + _masked(message, key))  # type: ignore[union-attr]
        else:
            self.transport.write(head + message)  # type: ignore[union-attr]
        return True

    def end(self, why: str) -> None:
        """Close after what was sent has left; `why` is one of `limits.CLOSE_CODES`, or another for the owner only."""
        if self.state == _OPEN:
            self._why = self._why or why
            cast(Any, self).sendCloseFrame(code=CLOSE_CODES.get(why, 1000))
        self._give_up_later(why)

    def abort(self, why: str) -> None:
        """Drop the connection now, with whatever still waits."""
        self._why = self._why or why
        self.state = _CLOSED
        cast(Any, self.transport).abortConnection()

    def look(self, now: float) -> bool:
        """Ping a silent peer, drop a dead one; False when there is nothing left to look after."""
        if now - self.heard >= DEAD and not self._gone:
            self.abort("silent")  # for owners without a session that would have seen to it already
        elif now - self.heard >= PING and now - self._pinged >= PING and self.state == _OPEN:
            self._pinged = now
            cast(Any, self).sendPing()
        return not self._gone

    def _give_up_later(self, why: str) -> None:
        if self._linger is None and not self._gone:
            self._linger = self.pulse.clock.callLater(CLOSE_TIME, self._give_up, why)

    def _give_up(self, why: str) -> None:
        self._linger = None
        self.abort(why)

    def _closeConnection(self, abort: bool = False) -> None:
        """Let the transport go: after the last byte, and in CLOSE_TIME at the latest."""
        if self.transport is not None:
            self.transport.loseConnection()
        self._give_up_later("closed")

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        """Close for a message over the cap."""
        self._fail("message_size")

    def _fail_connection(self, code: int = 1002, reason: str = "") -> None:
        """Close for a violation that Autobahn found; its reason quotes the peer, so it goes nowhere."""
        self._fail("frame")

    def _fail(self, why: str) -> None:
        self.failedByMe = True
        self.end(why)

    def _onMessageBegin(self, isBinary: bool) -> None:
        cast(Any, self).onMessageBegin(isBinary)
        if isBinary:
            self._fail("binary")

    def _onMessageFrameBegin(self, length: int) -> None:
        cast(Any, self).onMessageFrameBegin(length)

    def _onMessageFrameData(self, payload: bytes) -> None:
        cast(Any, self).onMessageFrameData(payload)

    def _onMessageFrameEnd(self) -> None:
        cast(Any, self).onMessageFrameEnd()

    def _onMessageFrame(self, payload: list[bytes]) -> None:
        cast(Any, self).onMessageFrame(payload)

    def _onMessageEnd(self) -> None:
        if not self.failedByMe and self.state == _OPEN:
            self.owner.received(b"".join(self.message_data))
        self.message_data = []

    def _onPing(self, payload: bytes) -> None:
        if not self._blocked:
            cast(Any, self).sendPong(payload)

    def _onPong(self, payload: bytes) -> None:
        """Any byte counts as a sign of life, this one too."""

    def _onOpen(self) -> None:
        for name in _HANDSHAKE:
            self.__dict__.pop(name, None)
        self._watched = True
        self.pulse.add(self)
        self.owner.opened(self)

    def _onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Our own `connectionLost` tells the owner."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Autobahn's API for streaming, which nobody here uses."""

    def unregisterProducer(self) -> None:
        """Called before the transport is let go."""
        cast(Any, self.transport).unregisterProducer()


class ServerSocket(Socket, autobahn.WebSocketServerProtocol):
    """The accepting end, after `layer8.control.http` has read and checked the request."""

    versions = (13,)
    webStatus = maskServerFrames = serveFlashSocketPolicy = allowNullOrigin = False
    requireMaskedClientFrames = True
    maxConnections = trustXForwardedFor = 0
    allowedOriginsPatterns = ()
    _reads_masked = True

    def __init__(self, owner: Owner, pulse: Pulse, message: int, subprotocol: str | None) -> None:
        """Take the largest message in bytes, and the subprotocol to agree to (None: none was asked for)."""
        autobahn.WebSocketServerProtocol.__init__(self)
        self.factory = _SERVER
        self.owner = owner
        self.pulse = pulse
        self.maxMessagePayloadSize = message
        self._subprotocol = subprotocol

    @staticmethod
    def perMessageCompressionAccept(_offers: object) -> None:
        """Compress nothing: small messages gain little, and secrets beside chosen text leak by length."""

    def onConnect(self, request: object) -> str | None:
        """Agree to the subprotocol."""
        return self._subprotocol


class ClientSocket(Socket, autobahn.WebSocketClientProtocol):
    """The dialling end."""

    version = autobahn.WebSocketProtocol.DEFAULT_SPEC_VERSION
    acceptMaskedServerFrames = False
    maskClientFrames = True
    serverConnectionDropTimeout = 0
    perMessageCompressionOffers = ()
    _masks = True

    def __init__(self, owner: Owner, pulse: Pulse, message: int, request: ConnectingRequest) -> None:
        """Take the largest message in bytes, and what to ask for: host, port, path, headers, subprotocols."""
        autobahn.WebSocketClientProtocol.__init__(self)
        factory = autobahn.WebSocketClientFactory()
        factory.protocols = request.protocols
        self.factory = factory
        self.owner = owner
        self.pulse = pulse
        self.maxMessagePayloadSize = message
        self._request = request
        self.http_status_line = ""
        self.websocket_protocol_in_use: str | None = None

    def startHandshake(self) -> None:
        """Ask for the upgrade."""
        self._actuallyStartHandshake(self._request)

    def _onConnect(self, response: object) -> None:
        """Take any answer that Autobahn found right; the owner looks at the subprotocol in `opened`."""


_SERVER = autobahn.WebSocketServerFactory(server="")


def _masked(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask (RFC 6455 section 5.3), as one exclusive-or of two long integers."""
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


def _waiting(transport: Any, counted: int) -> int:
    """Give the bytes that wait in a transport and in those below it, or `counted` if they do not say."""
    total = 0
    while transport is not None:
        buffered = getattr(transport, "dataBuffer", None)
        if buffered is not None:
            return total + len(buffered) - int(transport.offset) + int(transport._tempDataLen)
        total += sum(map(len, getattr(transport, "_appSendBuffer", ())))
        transport = getattr(transport, "transport", None)
    return counted
