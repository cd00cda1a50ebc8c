"""Sockets at a gateway on Twisted: the relay's WebSocket, the session that is sealed inside, the backend's WebSocket.

::

    relay ══binary messages══ Wire ── GatewaySocket ── Wire ══text and binary══ backend
                                        opened at the first sealed word: only a live page can say it

Whoever does not take what comes lets the other side rest: BUFFER of it waits at most. Autobahn is not used here, since
its hands are full of options and its log of addresses.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from layer8.core.errors import LocalProtocolError, Unavailable
from layer8.core.session import Close, Send, Tell
from layer8.net.http_client import Fields as Texts
from layer8.net.http_client import Line, Pool
from layer8.net.timer import Timer
from layer8.tunnel import passage, target
from layer8.tunnel.driving import Gate
from layer8.tunnel.frames import Kind, Message
from layer8.tunnel.limits import DIAL_TIME, HEAD_TIME, SOCKET_MESSAGE
from layer8.tunnel.messages import Messages, frame, read_close, write_close
from layer8.tunnel.passage import (
    BINARY,
    BROKEN,
    CLOSE,
    MESSAGE_MOST,
    NO_CODE,
    PING,
    PONG,
    PROTOCOL,
    TEXT,
    WRONG_KIND,
    Breach,
)
from layer8.tunnel.socket_session import GONE, Closed, GatewaySocket, Open, Routed

BACKEND: Final = 1014  # the code of a backend that cannot be reached, or does not agree
LINGER: Final = 2.0  # seconds that a side has to say the end too

_KEPT: Final = frozenset((b"sec-websocket-protocol",))  # of a handshake's own fields


class Speaker(Protocol):
    """Whoever hears what comes over a `Wire`."""

    def heard(self, wire: Wire, opcode: int, data: bytes) -> None:
        """Take a message."""

    def ended(self, wire: Wire, code: int, reason: str) -> None:
        """Take the end, once."""

    def crowded(self, wire: Wire, wanted: bool) -> None:
        """Take whether enough waits to be sent."""


@implementer(IPushProducer)
class Wire(TwistedProtocol):
    """One WebSocket after its handshake, as a server or as a client."""

    transport: Any

    def __init__(
        self,
        speaker: Speaker,
        clock: Any,
        *,
        client: bool,
        most: int,
        greeting: bytes = b"",
        among: set[Wire] | None = None,
    ) -> None:
        """Hear messages of at most `most` bytes; a server's `greeting` is its answer to the handshake.

        It is `among` the others for as long as its connection stands.
        """
        self._among: set[Wire] = set() if among is None else among
        self._greeting = greeting
        self._speaker = speaker
        self._clock = clock
        self._client = client
        self._messages = Messages(masked=not client, most=most)
        self._over = self._said = self._crowded = False
        self._late: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin."""
        self._among.add(self)
        self.transport.registerProducer(self, True)
        if self._greeting:
            self.transport.write(self._greeting)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, cut anywhere."""
        if self._over:
            if self._said:
                self._hear_close(data)
            return
        try:
            for opcode, payload in self._messages.feed(data):
                if opcode == PING:
                    if not self._crowded:
                        self._write(PONG, payload)
                elif opcode == CLOSE:
                    code, reason = read_close(payload)
                    self._write(CLOSE, write_close(code) if code != NO_CODE else b"")
                    self._finish(code, reason)
                elif opcode != PONG:
                    self._hear(opcode, payload)
        except Breach as error:
            self._write(CLOSE, write_close(error.code))
            self._finish(error.code, "")

    def _hear(self, opcode: int, payload: bytes) -> None:
        if not self._over:
            self._speaker.heard(self, opcode, payload)

    def _hear_close(self, data: bytes) -> None:
        """We have said the end; the other side says it too, behind whatever it said before."""
        try:
            if any(opcode == CLOSE for opcode, _ in self._messages.feed(data)):
                self.transport.loseConnection()
        except Breach:
            self.transport.loseConnection()

    def _finish(self, code: int, reason: str) -> None:
        """Let go: nothing more is heard."""
        if not self._over:
            self._over = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._speaker.ended(self, code, reason)

    def _write(self, opcode: int, payload: bytes) -> None:
        self.transport.write(frame(opcode, payload, secrets.token_bytes(4) if self._client else b""))

    def send(self, opcode: int, data: bytes) -> None:
        """Send a message."""
        if not self._over:
            self._write(opcode, data)

    def close(self, code: int, reason: str = "") -> None:
        """Say the end, and wait a while for the same word; the speaker hears nothing more."""
        if self._over:
            return
        self._over = self._said = True
        self._write(CLOSE, write_close(code, reason))
        self.transport.unregisterProducer()
        self.transport.resumeProducing()
        self._late = self._clock.callLater(LINGER, self.abort)

    def abort(self) -> None:
        """Cut it; the speaker hears nothing more."""
        self._over = True
        if self._late is not None and self._late.active():
            self._late.cancel()
        self._late = None
        self.transport.abortConnection()

    def rest(self, wanted: bool) -> None:
        """Read no more, or again."""
        if self._over:
            return
        if wanted:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the end of the connection."""
        self._among.discard(self)
        if self._late is not None and self._late.active():
            self._late.cancel()
        if not self._over:
            self._over = True
            self._speaker.ended(self, GONE, "")

    def pauseProducing(self) -> None:
        """Enough waits to be sent."""
        self._crowded = True
        self._speaker.crowded(self, True)

    def resumeProducing(self) -> None:
        """All of it has left."""
        self._crowded = False
        self._speaker.crowded(self, False)

    def stopProducing(self) -> None:
        """The transport ends; `connectionLost` follows."""


class Sockets:
    """The sockets of a gateway, and how its backend is asked for more."""

    def __init__(self, gate: Gate, pool: Pool, encapsulated: tuple[str, str]) -> None:
        """Ask along the same way as requests; `encapsulated` is the field that says how they came."""
        self.gate = gate
        self.pool = pool
        self.encapsulated = encapsulated
        self.open: set[Conversation] = set()
        self.wires: set[Wire] = set()  # of both sides, also those that only wait for the other's word of the end
        self.stopping = False

    def enter(self, fields: Texts, take: Callable[[Wire], None]) -> int | None:
        """Answer a relay's handshake: `take` gives its connection to a wire, which says the yes; else a status."""
        key = passage.offered(fields)
        if key is None:
            return 400
        tokens = [value for name, value in fields if name == "authorization"]
        if not self.gate.gateway.admits(tokens[0] if len(tokens) == 1 else None):
            return 401
        session = None if self.stopping else self.gate.gateway.socket(self.gate.seconds())
        if session is None:
            return 503
        yes = (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-accept: {passage.accept(key)}\r\nsec-websocket-protocol: {PROTOCOL}\r\n\r\n"
        )
        conversation = Conversation(session, self, yes.encode("ascii"))
        self.open.add(conversation)
        take(conversation.front)
        return None

    def over(self, conversation: Conversation) -> None:
        """Take the end of one."""
        if conversation in self.open:
            self.open.discard(conversation)
            self.gate.gateway.socket_over()

    def drain(self) -> None:
        """Take no more, and let the pages go elsewhere."""
        self.stopping = True
        for one in list(self.open):
            one.close(1001)

    def stop(self) -> None:
        """Cut all."""
        self.stopping = True
        for one in list(self.open):
            one.cut()
        for wire in list(self.wires):
            wire.abort()


class Conversation:
    """One socket: the relay's wire, the session, the backend's wire."""

    log = Logger()

    def __init__(self, session: GatewaySocket, sockets: Sockets, greeting: bytes) -> None:
        """Wait for the first message."""
        gate = sockets.gate
        self._session = session
        self._sockets = sockets
        self._timer = Timer(gate.reactor, gate.seconds, self._due)
        self._routed: Routed | None = None
        self._dial: _Dial | None = None
        self._back: Wire | None = None
        self._busy = self._over = self._front_full = self._back_full = False
        self.front = Wire(self, gate.reactor, client=False, most=MESSAGE_MOST, greeting=greeting, among=sockets.wires)
        self._timer.set(session.deadline())

    def close(self, code: int) -> None:
        """End it in order."""
        self._session.close(code, "", self._now())
        if self._back is not None:
            self._back.close(code)
        self._settle()

    def cut(self) -> None:
        """End it at once."""
        self._session.lost(self._now())
        self._settle()
        self._end()
        self.front.abort()

    # What the wires say.

    def heard(self, wire: Wire, opcode: int, data: bytes) -> None:
        """Take a message."""
        if wire is self.front:
            if opcode != BINARY:
                self.front.close(WRONG_KIND)
                self._session.lost(self._now())
                self._settle()
                self._end()
                return
            self._session.received(data, self._now())
        elif not self._over:
            try:
                self._session.send(Message(Kind(opcode), data))
            except LocalProtocolError:
                self._session.close(BROKEN, "", self._now())  # never: the backend speaks once the page has heard of it
        self._settle()

    def ended(self, wire: Wire, code: int, reason: str) -> None:
        """Take the end of one side."""
        if wire is self.front:
            self._session.lost(self._now())
            self._settle()
            self._end()
        else:
            self._back = None
            self._session.close(1000 if code == NO_CODE else 1011 if code == GONE else code, reason, self._now())
            self._settle()

    def crowded(self, wire: Wire, wanted: bool) -> None:
        """Let rest whoever makes it more: the other side, and a page too, whose words are answered here."""
        if wire is self.front:
            self._front_full = wanted
            if self._back is not None:
                self._back.rest(wanted)
        else:
            self._back_full = wanted
        self.front.rest(self._front_full or self._back_full)

    # What the dial says.

    def dialled(self, back: Wire, protocol: str) -> None:
        """Take the backend's socket."""
        self._dial = None
        self._back = back
        self._session.opened(self._now(), protocol)
        self._settle()

    def undialled(self) -> None:
        """Take that there is none."""
        self._dial = None
        self._session.close(BACKEND, "", self._now())
        self._settle()

    def _now(self) -> float:
        return self._sockets.gate.seconds()

    def _due(self) -> None:
        self._session.wake(self._now())
        self._settle()

    def _settle(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while effects := self._session.effects():
                for effect in effects:
                    self._do(effect)
        except Exception:  # a peer cannot cause one: it is a bug, and costs this socket only
            self.log.failure("a socket failed", event="gateway.bug")
            self._end()
            self.front.abort()
        finally:
            self._busy = False
        if not self._over:
            self._timer.set(self._session.deadline())

    def _do(self, effect: object) -> None:
        match effect:
            case Send(data=data):
                self.front.send(BINARY, data)
            case Tell(what=Routed() as routed):
                self._routed = routed
                self._session.status(200, self._now())
            case Tell(what=Open()) if self._routed is not None:
                self._dial = _Dial(self._routed, self, self._sockets)
            case Tell(what=Message(kind=kind, data=data)) if self._back is not None:
                self._back.send(TEXT if kind is Kind.TEXT else BINARY, data)
            case Tell(what=Closed(code=code, reason=reason)) if self._back is not None:
                back, self._back = self._back, None
                if code == GONE:
                    back.close(1001)
                else:
                    back.close(code, reason)
            case Close(abort=abort):
                self._end()
                if abort:
                    self.front.abort()
                else:
                    self.front.close(1000)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self._timer.stop()
        back, self._back = self._back, None
        if back is not None:
            back.close(1001)
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._sockets.over(self)


class _Dial:
    """Asking the backend for a socket; to the pool who takes the answer."""

    def __init__(self, routed: Routed, asking: Conversation, sockets: Sockets) -> None:
        self._routed = routed
        self._asking: Conversation | None = asking
        self._sockets = sockets
        self._key = b64encode(secrets.token_bytes(16)).decode()
        self._line: Line | None = None
        clock = sockets.gate.reactor
        self._late: IDelayedCall | None = clock.callLater(DIAL_TIME + HEAD_TIME, self.lost)
        self._taking: Deferred[Line] | None = None
        self._taking = taking = sockets.pool.take()
        taking.addCallbacks(self._took, self._untaken)

    def cancel(self) -> None:
        """Ask no more."""
        self._asking = None
        self._stop()

    def _stop(self) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
        self._late = None
        if self._taking is not None and not self._taking.called:
            self._taking.cancel()
        line, self._line = self._line, None
        if line is not None:
            line.cut()

    def _untaken(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            if not failure.check(Unavailable):
                Conversation.log.failure("no way to the backend", failure, event="gateway.bug")
            self.lost()

    def _took(self, line: Line) -> None:
        if self._asking is None:
            self._sockets.pool.give_back(line)
            return
        self._line = line
        routed = self._routed
        told = target.told(routed.request.fields)
        fields = [
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in told
            if name in _KEPT or not name.startswith(b"sec-websocket-")
        ]
        fields += [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", passage.VERSION),
            ("sec-websocket-key", self._key),
            self._sockets.encapsulated,
        ]
        where = routed.target.path + (f"?{routed.target.query}" if routed.target.query else "")
        try:
            line.request("GET", where, routed.target.authority, fields, self)
        except LocalProtocolError:
            self.lost()

    def answered(self, status: int, fields: Texts, length: int | None) -> None:
        """Take the backend's answer to the handshake."""
        told = dict(fields)
        line, asking = self._line, self._asking
        chosen = told.get("sec-websocket-protocol", "")
        wanted = [value for name, value in self._routed.request.fields if name == b"sec-websocket-protocol"]
        offered = [word.strip() for value in wanted for word in value.decode("latin-1").split(",")]
        good = (
            status == 101
            and told.get("upgrade", "").lower() == "websocket"
            and told.get("sec-websocket-accept") == passage.accept(self._key)
            and "sec-websocket-extensions" not in told
            and (not chosen or chosen in offered)
        )
        if not good or line is None or asking is None:
            self.lost()
            return
        self._line = None
        self._stop()
        back = Wire(asking, self._sockets.gate.reactor, client=True, most=SOCKET_MESSAGE, among=self._sockets.wires)
        # what has followed the answer's head is heard when the page knows that the socket stands
        early = _Early()
        line.hand_over(early)
        early.become(back)
        asking.dialled(back, chosen)
        early.go_on()

    def received(self, data: bytes) -> None:
        """Take the body of a refusal."""

    def ended(self) -> None:
        """Take its end."""

    def lost(self) -> None:
        """Take that there will be no socket."""
        asking, self._asking = self._asking, None
        self._stop()
        if asking is not None:
            asking.undialled()

    def full(self) -> None:
        """Do nothing: there is no body."""

    def room(self) -> None:
        """Do nothing."""


class _Early(TwistedProtocol):
    """Keeps what comes between the handshake and the moment at which somebody listens."""

    transport: Any

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._next: Wire | None = None
        self._going = False

    def become(self, successor: Wire) -> None:
        """Make the connection a wire's."""
        self._next = successor
        successor.makeConnection(self.transport)  # type: ignore[no-untyped-call]

    def go_on(self) -> None:
        """Say what was kept."""
        self._going = True
        held, self._held = self._held, []
        for data in held:
            if self._next is not None:
                self._next.dataReceived(data)

    def dataReceived(self, data: bytes) -> None:
        if self._going and self._next is not None:
            self._next.dataReceived(data)
        else:
            self._held.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._next is not None:
            self._next.connectionLost(reason)
