"""A page in a few lines, for tests of gateways in other processes: it waits for each answer, in its own thread."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from urllib.parse import urlencode

from attrs import define, field

from layer8.core.session import Send, Tell
from layer8.crypto.hpke_context import Private
from layer8.tunnel.bhttp import Fields, Request, Response
from layer8.tunnel.client_session import Answer, ClientExchange, Done, Failure, Piece, dressed
from layer8.tunnel.keys import KeySet
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH

AUTHORITY = "shop.example"
LIMIT_S = 30.0


class Failed(Exception):
    """A request that has failed; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@define(eq=False)
class Told:
    """An answer, opened; `outer` are the fields of the sealed one, `times` when each piece came."""

    status: int
    fields: Fields
    body: bytes
    outer: list[tuple[str, str]]
    pieces: list[bytes] = field(factory=list)
    times: list[float] = field(factory=list)

    def json(self) -> Any:
        return json.loads(self.body)

    def field(self, name: bytes) -> list[bytes]:
        return [value for one, value in self.fields if one == name]


def today() -> float:
    return datetime.now(UTC).timestamp()


def sealed(
    keys: KeySet,
    method: str,
    path: str,
    content: Iterable[bytes] = (),
    *,
    length: int | None = 0,
    fields: Fields = (),
    date: float | None = None,
) -> tuple[ClientExchange, Iterator[bytes]]:
    """Seal a request; give its exchange and its bytes as they come."""
    asked = Request(method.encode(), b"https", AUTHORITY.encode(), path.encode(), fields)
    asked = dressed(asked, f"https://{AUTHORITY}", today() if date is None else date)
    exchange = ClientExchange(keys, asked, Private.make(), 0.0, length=length)

    def pieces() -> Iterator[bytes]:
        for data in content:
            exchange.write(data, 0.0)
            yield from _sent(exchange)
        exchange.finish(0.0)
        yield from _sent(exchange)
        while exchange.padding:
            exchange.pad(0.0)
            yield from _sent(exchange)

    return exchange, pieces()


def _sent(exchange: ClientExchange) -> Iterator[bytes]:
    out = b"".join(effect.data for effect in exchange.effects() if isinstance(effect, Send))
    if out:
        yield out


@define(eq=False)
class Page:
    """Asks one gateway."""

    port: int
    pin: bytes
    gateway: str = "shop"
    keys: KeySet = field(init=False)
    cookies: dict[str, str] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        status, _, body = self.plain("GET", KEYS_PATH)
        assert status == 200, body
        self.keys = KeySet.read(body, [self.pin])
        self.keys.check(self.gateway, today())

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)

    def plain(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask past the tunnel."""
        link = self.connect()
        try:
            link.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = link.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            link.close()

    def post(self, data: bytes | Iterable[bytes], kind: str = "message/ohttp-chunked-req") -> Any:
        """Send bytes as they are; give the answer of `http.client`, whose connection ends with it."""
        link = self.connect()
        headers = {"Content-Type": kind, "Incremental": "?1"}
        link.request("POST", GATEWAY_PATH, data, headers, encode_chunked=not isinstance(data, bytes))
        return link.getresponse()

    def ask(self, method: str, path: str, content: bytes | Iterable[bytes] = b"", **more: Any) -> Told:
        """Ask through the tunnel, with what cookies we have; raises `Failed`."""
        known = isinstance(content, bytes)
        fields = more.pop("fields", ())
        if self.cookies:
            fields = (*fields, (b"cookie", "; ".join(f"{n}={v}" for n, v in self.cookies.items()).encode()))
        more.setdefault("length", len(content) if isinstance(content, bytes) else None)
        pieces = ((content,) if content else ()) if isinstance(content, bytes) else content
        exchange, out = sealed(self.keys, method, path, pieces, fields=fields, **more)
        answer = self.post(b"".join(out) if known else out, exchange.media.request)
        try:
            told = self.hear(exchange, answer)
        finally:
            answer.close()
        for value in told.field(b"set-cookie"):
            name, _, rest = value.decode().partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return told

    def form(self, path: str, **values: str) -> Told:
        """Send a form."""
        kind = ((b"content-type", b"application/x-www-form-urlencoded"),)
        return self.ask("POST", path, urlencode(values).encode(), fields=kind)

    @staticmethod
    def hear(exchange: ClientExchange, answer: Any) -> Told:
        """Open an answer as it comes."""
        told = Told(0, (), b"", answer.getheaders())
        exchange.answered(answer.status, answer.headers.get_content_type(), 0.0, answer.getheader("Retry-After", ""))
        done = False
        while data := answer.read1(65_536):
            exchange.received(data, 0.0)
            done = _take(exchange, told) or done
        exchange.ended(0.0)
        assert _take(exchange, told) or done, "an answer that is not whole"
        told.body = b"".join(told.pieces)
        return told


def _take(exchange: ClientExchange, told: Told) -> bool:
    done = False
    for effect in exchange.effects():
        if not isinstance(effect, Tell):
            continue
        match effect.what:
            case Answer(Response() as response):
                told.status, told.fields = response.status, response.fields
            case Piece(data):
                told.pieces.append(data)
                told.times.append(monotonic())
            case Done():
                done = True
            case Failure() as failure:
                raise Failed(failure)
            case _:
                pass
    return done
