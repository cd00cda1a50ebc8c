"""A socket inside the tunnel, at the page's side and at the gateway's; see `layer8.tunnel.frames` for its bytes.

 page     greeting -> opening -> open -> closing -> closed
 gateway  waiting -> routed -> opening -> open -> closing -> closed

Data of `received` and `Send` are whole binary WebSocket messages. The gateway opens the backend's socket at the first
`open` frame: the first message alone may be anybody's recording. It does not say under which key it is sealed, so the
gateway tries those that it has, the newest first. What is idle is asked by a ping and lives on while it answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Final

from attrs import frozen

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.core.session import Close, Effect, Outbox, Send, Tell
from layer8.crypto.noise import Cipher, Handshake, nobody, somebody
from layer8.tunnel import bhttp, frames, target
from layer8.tunnel.bhttp import Malformed, Request, Response
from layer8.tunnel.frames import FIRST, FIRST_SIZE, SECOND, SECOND_SIZE, Assembly, BadFrame, Kind, Message
from layer8.tunnel.keys import GatewayKey, KeySet
from layer8.tunnel.limits import HEAD_TIME, SOCKET_DEAD, SOCKET_PING, SOCKET_REKEY
from layer8.tunnel.target import Allowed, Target

GONE: Final = 1006  # the code of an end that nobody announced


@frozen
class Routed:
    """At the gateway: somebody asks for a socket there; nothing is opened yet. Say `status`."""

    request: Request
    target: Target


@frozen
class Open:
    """At the gateway: whoever asked is live. Open the backend's socket, and say `opened`, or `close`."""


@frozen
class Opened:
    """At the page: the backend's socket stands; `protocol` is the subprotocol that it has chosen, or empty."""

    protocol: str


@frozen
class Refused:
    """At the page: the gateway answers with a status other than 200."""

    status: int


@frozen
class Closed:
    """The socket has ended, by the other side's close frame or by a breach of the rules."""

    code: int
    reason: str = ""


class _Channel:
    """Frames both ways, once the handshake is over."""

    __slots__ = ("_assembly", "_heard", "_in", "_out", "_said")

    def __init__(self, ciphers: tuple[Cipher, Cipher]) -> None:
        self._out, self._in = ciphers
        self._assembly = Assembly()
        self._said = self._heard = 0

    def seal(self, message: Message) -> list[bytes]:
        sealed = []
        for text in frames.frames(message):
            sealed.append(self._out.seal(text))
            self._said += 1
            if self._said % SOCKET_REKEY == 0:
                self._out.rekey()
        return sealed

    def open(self, data: bytes) -> Message | None:
        text = self._in.open(data)
        self._heard += 1
        if self._heard % SOCKET_REKEY == 0:
            self._in.rekey()
        return self._assembly.take(text)


class _At(Enum):
    HANDSHAKE = auto()
    ROUTED = auto()
    OPENING = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class _Side:
    """What both sides have: a state, frames, pings, and an end."""

    __slots__ = ("_asked", "_at", "_channel", "_deadline", "_heard", "_out")

    def __init__(self, now: float) -> None:
        self._at = _At.HANDSHAKE
        self._channel: _Channel | None = None
        self._deadline: float | None = now + HEAD_TIME
        self._heard = now
        self._asked = False
        self._out = Outbox()

    def begin(self, handshake: Handshake, now: float) -> None:
        """Take a handshake that is over."""
        self._channel = _Channel(handshake.split())
        self.hear(now)

    def hear(self, now: float) -> None:
        """Take a sign of life."""
        self._heard, self._asked = now, False
        if self._at is not _At.CLOSING:
            self._deadline = now + SOCKET_PING

    def say(self, message: Message) -> None:
        """Send a message in as many frames as it needs."""
        if self._channel is None:
            raise LocalProtocolError("a frame before the handshake is over")
        self._out.add(*map(Send, self._channel.seal(message)))

    def open(self, data: bytes, now: float) -> Message | None:
        """Open a frame and answer what answers itself; give what is the caller's. Raises `RemoteProtocolError`."""
        if self._channel is None:
            raise RemoteProtocolError("a frame before the handshake is over")
        message = self._channel.open(data)
        self.hear(now)
        if message is None or message.kind is Kind.PONG:
            return None
        if message.kind is Kind.PING:
            if self._at is not _At.CLOSING:
                self.say(Message(Kind.PONG, message.data))
            return None
        if message.kind is Kind.CLOSE:
            code, reason = frames.read_close(message.data)
            if self._at is not _At.CLOSING:
                self.say(Message(Kind.CLOSE, message.data))
            self.end(Closed(code, reason), Close("done"))
            return None
        return message

    def close(self, code: int, reason: str, now: float) -> None:
        """Begin to close; the other side's close frame ends it, or HEAD_TIME."""
        if self._at in (_At.CLOSING, _At.CLOSED):
            return
        if self._channel is None:
            self.end(None, Close("refused"))
            return
        self.say(frames.close(code, reason))
        self._at = _At.CLOSING
        self._deadline = now + HEAD_TIME

    def fault(self, error: RemoteProtocolError) -> None:
        """Leave a side that breaks the rules, with a word if it can hear one."""
        code = error.code if isinstance(error, BadFrame) else 1002
        if isinstance(error, BadFrame) and self._channel is not None and self._at is not _At.CLOSING:
            self.say(frames.close(code))
        self.end(Closed(code), Close("protocol"))

    def wake(self, now: float) -> None:
        if self._deadline is None or now < self._deadline:
            return
        if self._channel is None or self._at is _At.CLOSING or now >= self._heard + SOCKET_DEAD:
            self.end(Closed(GONE), Close("timeout", abort=True))
        else:
            if not self._asked:
                self._asked = True
                self.say(Message(Kind.PING))
            self._deadline = self._heard + SOCKET_DEAD

    def end(self, told: Closed | Refused | None, *effects: Effect) -> None:
        if self._at is _At.CLOSED:
            return
        self._at = _At.CLOSED
        self._deadline = None
        self._channel = None
        if told is not None:
            self._out.add(Tell(told))
        self._out.add(*effects)


class PageSocket:
    """The page's side: `message`s out, Tell(Message) in, from `Opened` on."""

    def __init__(self, keys: KeySet, request: Request, now: float) -> None:
        """Ask for a socket; raises `LocalProtocolError` for a request that does not fit into the first message."""
        self._side = _Side(now)
        self._handshake = nobody(keys.noise, frames.prologue(keys.gateway, keys.epoch))
        asked = frames.fill(bhttp.write(request), FIRST)
        self._side._out.add(Send(self._handshake.write(asked)))

    def received(self, data: bytes, now: float) -> None:
        """Take a binary message."""
        side = self._side
        if side._at is _At.CLOSED:
            return
        try:
            if side._at is _At.HANDSHAKE:
                self._greeted(data, now)
                return
            message = side.open(data, now)
            if message is None or side._at is _At.CLOSING:
                return
            if message.kind is Kind.OPENED and side._at is _At.OPENING:
                side._at = _At.OPEN
                side._out.add(Tell(Opened(message.data.decode("ascii", "replace"))))
            elif message.kind in (Kind.TEXT, Kind.BINARY) and side._at is _At.OPEN:
                side._out.add(Tell(message))
            else:
                raise BadFrame("a frame out of turn")
        except RemoteProtocolError as error:
            side.fault(error)

    def send(self, message: Message) -> None:
        """Send text or binary data; raises `LocalProtocolError` before `Opened`."""
        _send(self._side, message)

    def close(self, code: int, reason: str, now: float) -> None:
        """End it."""
        self._side.close(code, reason, now)

    def lost(self, now: float) -> None:
        """Take the end of the connection."""
        self._side.end(Closed(GONE))

    def wake(self, now: float) -> None:
        """Ask a silent gateway, or give it up."""
        self._side.wake(now)

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._side._out.take()

    def deadline(self) -> float | None:
        """Give the time of `wake`."""
        return self._side._deadline

    def _greeted(self, data: bytes, now: float) -> None:
        side = self._side
        if len(data) != SECOND_SIZE:
            raise RemoteProtocolError("a second message of a wrong length")
        head = bhttp.read(self._handshake.read(data), request=False)[0]
        if not isinstance(head, Response):
            raise RemoteProtocolError("a second message without a status")
        if head.status != 200:
            side.end(Refused(head.status), Close("refused"))
            return
        side.begin(self._handshake, now)
        side._at = _At.OPENING
        side.say(Message(Kind.OPEN))


class GatewaySocket:
    """The gateway's side; `keys` are all that still open something, newest first."""

    def __init__(self, gateway: str, keys: Iterable[GatewayKey], allowed: Allowed, now: float) -> None:
        """Begin to wait for the first message."""
        self._side = _Side(now)
        self._gateway = gateway
        self._keys = tuple(keys)
        self._allowed = allowed
        self._handshake: Handshake | None = None

    def received(self, data: bytes, now: float) -> None:
        """Take a binary message."""
        side = self._side
        if side._at is _At.CLOSED:
            return
        try:
            if side._at is _At.HANDSHAKE:
                self._greeted(data, now)
                return
            message = side.open(data, now)
            if message is None or side._at is _At.CLOSING:
                return
            if message.kind is Kind.OPEN and side._at is _At.OPENING and not message.data:
                side._at = _At.ROUTED
                side._out.add(Tell(Open()))
            elif message.kind in (Kind.TEXT, Kind.BINARY) and side._at is _At.OPEN:
                side._out.add(Tell(message))
            else:
                raise BadFrame("a frame out of turn")
        except RemoteProtocolError as error:
            side.fault(error)

    def status(self, status: int, now: float) -> None:
        """Answer `Routed`: 200, or why there is no such socket. The conversation goes on, or ends here."""
        if self._handshake is None or self._handshake.done:
            return
        self._answer(status, now)

    def opened(self, now: float, protocol: str = "") -> None:
        """Take that the backend's socket stands."""
        if self._side._at is _At.ROUTED and self._side._channel is not None:
            self._side.say(Message(Kind.OPENED, protocol.encode("ascii")))
            self._side._at = _At.OPEN

    def send(self, message: Message) -> None:
        """Send text or binary data of the backend's; raises `LocalProtocolError` before `opened`."""
        _send(self._side, message)

    def close(self, code: int, reason: str, now: float) -> None:
        """End it."""
        self._side.close(code, reason, now)

    def lost(self, now: float) -> None:
        """Take the end of the connection."""
        self._side.end(Closed(GONE))

    def wake(self, now: float) -> None:
        """Ask a silent page, or give it up."""
        self._side.wake(now)

    def effects(self) -> Sequence[Effect]:
        """Give what has to be done."""
        return self._side._out.take()

    def deadline(self) -> float | None:
        """Give the time of `wake`."""
        return self._side._deadline

    def _greeted(self, data: bytes, now: float) -> None:
        if len(data) != FIRST_SIZE or self._handshake is not None:
            raise RemoteProtocolError("a first message of a wrong length, or a second one")
        for key in self._keys:
            handshake = somebody(key.noise, frames.prologue(self._gateway, key.epoch))
            try:
                text = handshake.read(data)
            except RemoteProtocolError:
                continue
            break
        else:
            raise RemoteProtocolError("a first message under no key of ours")
        self._handshake = handshake
        try:
            request = bhttp.read(text, request=True)[0]
            if not isinstance(request, Request) or request.method != b"GET":
                raise Malformed("a socket is asked for by GET", 405)
            found = target.find(request, self._allowed)
        except Malformed as error:
            self._answer(error.status, now)
            return
        self._side._out.add(Tell(Routed(request, found)))

    def _answer(self, status: int, now: float) -> None:
        side, handshake = self._side, self._handshake
        assert handshake is not None
        text = frames.fill(bhttp.write(Response(status)), SECOND)
        side._out.add(Send(handshake.write(text)))
        if status == 200:
            side.begin(handshake, now)
            side._at = _At.OPENING
        else:
            side.end(None, Close("refused"))


def _send(side: _Side, message: Message) -> None:
    if side._at in (_At.CLOSING, _At.CLOSED):
        return
    if side._at is not _At.OPEN or message.kind not in (Kind.TEXT, Kind.BINARY):
        raise LocalProtocolError("data for a socket that is not open, or of another kind")
    side.say(message)
