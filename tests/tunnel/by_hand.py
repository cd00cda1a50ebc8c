"""Sealed requests written by hand, so that every byte of them can be wrong, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import define, field, frozen
from twisted.internet.task import deferLater

from layer8.core.session import Send, Tell
from layer8.crypto.hpke_context import Aead, Context, Private, sender
from layer8.net.http_client import Answer, Pool, fetch
from layer8.net.ways import connector
from layer8.tunnel import bhttp, wire
from layer8.tunnel.bhttp import END, Fields, Request, Response, Trailers
from layer8.tunnel.client_session import dressed
from layer8.tunnel.frames import PROTOCOL, Message
from layer8.tunnel.gateway_sockets import Wire
from layer8.tunnel.keys import KeySet
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, SOCKET_PATH
from layer8.tunnel.socket_session import PageSocket
from layer8.tunnel.wire import CHUNKED, KeyConfig, Media

FINAL = b"final"


def wall() -> float:
    return datetime.now(UTC).timestamp()


def asked(
    method: bytes = b"GET",
    path: bytes = b"/echo",
    *,
    authority: bytes = b"shop.test",
    fields: Fields = (),
    date: float | None = None,
    scheme: bytes = b"https",
) -> Request:
    """Make a head as every page's are."""
    plain = Request(method, scheme, authority, path, fields)
    return dressed(plain, f"{scheme.decode()}://{authority.decode()}", wall() if date is None else date)


@frozen
class Told:
    """An answer that was opened."""

    status: int
    fields: Fields
    body: bytes
    trailers: Fields = ()
    outer: Answer | None = None

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found == name]


@define(eq=False)
class Sealed:
    """One request under seal: `body` is what is posted."""

    media: Media
    context: Context
    head: bytes
    body: bytes = b""
    aead: Aead = Aead.AES_128_GCM

    def open(self, data: bytes) -> Told:
        """Open an answer; raises where it does not."""
        opener = wire.open_answer(self.media, self.context, self.aead)
        text = b"".join(opener.feed(data))
        text += opener.end()
        events = bhttp.read(text, request=False)
        heads = [event for event in events if isinstance(event, Response)]
        trailers = [event.fields for event in events if isinstance(event, Trailers)]
        assert events[-1] is END
        body = b"".join(event for event in events if isinstance(event, bytes))
        return Told(heads[0].status, heads[0].fields, body, trailers[0] if trailers else ())

    def chunk(self, text: bytes, *, last: bool = False, length: Callable[[int], bytes] = bhttp.varint) -> bytes:
        """Seal the next chunk."""
        sealed = self.context.messages.seal(text, FINAL if last else b"")
        return (b"\0" if last else length(len(sealed))) + sealed


def begin(config: KeyConfig, media: Media = CHUNKED, **head: Any) -> Sealed:
    """Begin a request; `head` may say another key_id or aead than the configuration."""
    key_id, aead = head.get("key_id", config.key_id), head.get("aead", Aead.AES_128_GCM)
    context = sender(aead, config.public, wire.info(media, key_id, aead), Private.make())
    return Sealed(media, context, wire.Head(key_id, aead, context.enc).encode(), aead=aead)


def seal(config: KeyConfig, request: Request, content: bytes = b"", media: Media = CHUNKED, **more: Any) -> Sealed:
    """Seal a request as a page does."""
    return seal_text(config, bhttp.write(request, content, **more), media)


def seal_text(config: KeyConfig, text: bytes, media: Media = CHUNKED, step: int = 16_384) -> Sealed:
    """Seal any bytes."""
    sealed = begin(config, media)
    if not media.chunked:
        sealed.body = sealed.head + sealed.context.messages.seal(text)
        return sealed
    pieces = [text[at : at + step] for at in range(0, len(text), step)] or [b""]
    out = [sealed.chunk(piece) for piece in pieces[:-1]]
    sealed.body = b"".join([sealed.head, *out, sealed.chunk(pieces[-1], last=True)])
    return sealed


@define(eq=False)
class Hand:
    """Posts to a gateway on a port of loopback."""

    reactor: Any
    port: int
    pins: Sequence[bytes] = ()
    path: str = GATEWAY_PATH
    host: str = "gateway.test"
    pool: Pool = field(init=False)
    config: KeyConfig = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = Pool(self.reactor, connector(self.reactor, f"tcp:127.0.0.1:{self.port}"))

    async def keys(self) -> KeySet:
        """Fetch the gateway's keys."""
        answer = await fetch(self.pool, "GET", KEYS_PATH, self.host, most=65_536)
        assert answer.status == 200, answer
        found = KeySet.read(answer.body, self.pins)
        self.config = found.config
        return found

    async def post(self, body: bytes, media: str = CHUNKED.request, most: int = 1 << 26, **fields: str) -> Answer:
        """Post bytes."""
        lines = [("content-type", media), *((name.replace("_", "-"), value) for name, value in fields.items())]
        return await fetch(self.pool, "POST", self.path, self.host, lines, body, most=most)

    async def ask(self, request: Request, content: bytes = b"", media: Media = CHUNKED, **more: Any) -> Told:
        """Seal, post and open."""
        if not hasattr(self, "config"):
            await self.keys()
        return await self.send(seal(self.config, request, content, media, **more))

    async def send(self, sealed: Sealed) -> Told:
        """Post what is sealed, and open the answer."""
        answer = await self.post(sealed.body, sealed.media.request)
        assert answer.status == 200, (answer.status, answer.body)
        assert answer.only("content-type") == sealed.media.response
        told = sealed.open(answer.body)
        return Told(told.status, told.fields, told.body, told.trailers, answer)

    def close(self) -> None:
        self.pool.abort()


class Page:
    """A page's socket, straight to a gateway."""

    def __init__(self, hand: Hand, keys: KeySet, request: Request) -> None:
        self.hand = hand
        self.session = PageSocket(keys, request, hand.reactor.seconds())
        self.wire: Wire | None = None
        self.status = 0
        self.told: list[Any] = []
        self.ends: list[tuple[int, str]] = []
        self._line: Any = None

    async def open(self) -> Page:
        """Shake hands with the gateway; `status` is other than 101 if it does not want to."""
        self._line = await self.hand.pool.take()
        fields = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AQIDBAUGBwgJCgsMDQ4PEC=="),
            ("sec-websocket-protocol", PROTOCOL),
        ]
        self._line.request("GET", SOCKET_PATH, self.hand.host, fields, self)
        await self.until(lambda: self.status)
        return self

    async def until(self, condition: Callable[[], Any], seconds: float = 5.0) -> Any:
        end = self.hand.reactor.seconds() + seconds
        while not (found := condition()):
            if self.hand.reactor.seconds() > end:
                raise AssertionError("nothing happened")
            await deferLater(self.hand.reactor, 0.002, lambda: None)
        return found

    async def find(self, kind: type[Any], count: int = 1) -> list[Any]:
        """Wait until so many of a kind were told."""
        await self.until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)

    def all(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.told if isinstance(one, kind)]

    def say(self, message: Message) -> None:
        self.session.send(message)
        self.settle()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.session.close(code, reason, self.hand.reactor.seconds())
        self.settle()

    def settle(self) -> None:
        while effects := self.session.effects():
            for effect in effects:
                if isinstance(effect, Send) and self.wire is not None:
                    self.wire.send(2, effect.data)
                elif isinstance(effect, Tell):
                    self.told.append(effect.what)

    def heard(self, wire: Wire, opcode: int, data: bytes) -> None:
        self.session.received(data, self.hand.reactor.seconds())
        self.settle()

    def ended(self, wire: Wire | None = None, code: int = 0, reason: str = "") -> None:
        self.ends.append((code, reason))
        self.session.lost(self.hand.reactor.seconds())
        self.settle()

    def crowded(self, wire: Wire, wanted: bool) -> None:
        pass

    def answered(self, status: int, fields: Any, length: int | None) -> None:
        if status == 101:
            self.wire = Wire(self, self.hand.reactor, client=True, most=65_535)
            self._line.hand_over(self.wire)
            self.settle()
        self.status = status

    def received(self, data: bytes) -> None:
        pass

    def lost(self) -> None:
        self.status = self.status or -1

    def full(self) -> None:
        pass

    def room(self) -> None:
        pass
