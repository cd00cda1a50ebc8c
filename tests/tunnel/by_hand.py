"""Sealed requests written by hand, so that every byte of them can be wrong, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import define, field, frozen

from layer8.crypto.hpke_context import Aead, Context, Private, sender
from layer8.net.http_client import Answer, Pool, fetch
from layer8.net.ways import connector
from layer8.tunnel import bhttp, wire
from layer8.tunnel.bhttp import END, Fields, Request, Response, Trailers
from layer8.tunnel.client_session import dressed
from layer8.tunnel.keys import KeySet
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH
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
