"""A relay that a test tells what to do, with a gateway behind it that says what it was asked; one port of loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import maybeDeferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from layer8.core.session import Send, Tell
from layer8.crypto.keys import NodeKey
from layer8.tunnel.bhttp import Fields, Response
from layer8.tunnel.gateway_session import Begin, Body, Call, GatewayExchange, Remember, Reply, Rules, Whole
from layer8.tunnel.keys import GatewayKey, KeySet, Schedule, pin_text
from layer8.tunnel.relay_session import COMMON, PREFLIGHT
from layer8.tunnel.replay import ReplaySet
from layer8.tunnel.target import Allowed
from layer8.tunnel.wire import CHUNKED, MEDIA, PROBLEM_TYPE, Media, problem


def wall() -> float:
    return datetime.now(UTC).timestamp()


@define
class Outer:
    """What the relay says."""

    status: int
    kind: str = PROBLEM_TYPE
    body: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    cut: bool = False  # before the end

    @classmethod
    def of(cls, status: int, kind: str = "about:blank", **more: Any) -> Outer:
        return cls(status, body=problem(status, kind), **more)


@define
class Asked:
    """What the backend has heard."""

    method: str
    path: str
    fields: Fields
    body: bytes = b""


@define(eq=False)
class Crooked:
    """See the module; `how` takes a request's bytes and the honest answer, and gives another, or None for silence."""

    reactor: Any
    gateway: str = "shop"
    authority: str = "shop.test"
    identity: NodeKey = field(factory=NodeKey.make)
    key: GatewayKey = field(factory=lambda: GatewayKey.make(int(wall() // 3600)))
    how: Callable[[bytes, Outer], Outer | None] = field(default=lambda request, answer: answer)
    answer: Callable[[Asked], tuple[Response, bytes]] | None = None
    ahead: float = 0.0  # seconds that the gateway's clock is wrong
    old: list[GatewayKey] = field(factory=list)  # keys that still open
    chunked: bool = True
    calls: list[Asked] = field(factory=list)
    posts: list[bytes] = field(factory=list)  # sealed requests, by the relay
    looks: int = 0  # at the keys
    document: bytes | None = None  # other than what is right; b"" is no answer
    gone: bool = False  # no keys are given
    port: int = 0
    _marks: ReplaySet = field(factory=ReplaySet)
    _listening: Any = None
    _site: Any = None

    def listen(self) -> None:
        self._site = site = _Site(_Root(self))
        site.noisy = False
        site.log = lambda request: None  # type: ignore[method-assign]
        self._listening = self.reactor.listenTCP(self.port, site, interface="127.0.0.1")
        self.port = self._listening.getHost().port

    async def close(self) -> None:
        for link in list(self._site.links):
            link.abortConnection()
        listening, self._listening = self._listening, None
        if listening is not None:
            await maybeDeferred(listening.stopListening)

    @property
    def relay(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def keys(self, **more: Any) -> KeySet:
        return evolve(self.key.key_set(self.gateway, [self.authority], chunked=self.chunked), **more)

    def connect(self, **more: Any) -> dict[str, Any]:
        return {"relay": self.relay, "gateway": self.gateway, "pin": pin_text(self.identity.node_id), **more}

    def serve(self, media: Media, data: bytes) -> Outer:
        """Be the gateway and its backend."""
        schedule = Schedule(0)
        for key in (*self.old, self.key):
            schedule.add(key)
        rules = Rules(Allowed.of([self.authority]), schedule.find, self._marks.window)
        now = wall() + self.ahead
        session = GatewayExchange(media, rules, os.urandom(32), 0.0, now)
        session.received(data, 0.0)
        session.ended(0.0)
        out, asked, outer = b"", None, None
        while effects := session.effects():
            for effect in effects:
                what = effect.what if isinstance(effect, Tell) else None
                if isinstance(effect, Send):
                    out += effect.data
                elif isinstance(what, Reply):
                    outer = Outer.of(what.status, what.problem)
                elif isinstance(what, Begin):
                    outer = Outer(200, what.media.response)
                elif isinstance(what, Remember):
                    assert what.date is not None
                    session.remembered(self._marks.add(what.mark, what.date, now), 0.0)
                elif isinstance(what, Call):
                    asked = Asked(what.request.method.decode(), what.request.path.decode(), what.fields)
                elif isinstance(what, Body) and asked is not None:
                    asked.body += what.data
                elif isinstance(what, Whole) and asked is not None:
                    self.calls.append(asked)
                    told = json.dumps({"method": asked.method, "path": asked.path, "size": len(asked.body)}).encode()
                    response = Response(200, ((b"content-type", b"application/json"),))
                    response, told = self.answer(asked) if self.answer else (response, told)
                    session.respond(response, 0.0, length=len(told))
                    session.write(told, 0.0)
                    session.finish(0.0)
        assert outer is not None
        return evolve(outer, body=out or outer.body)


class _Site(Site):
    def __init__(self, resource: Resource) -> None:
        super().__init__(resource)  # type: ignore[no-untyped-call]
        self.links: set[Any] = set()

    def buildProtocol(self, addr: Any) -> Any:
        channel = super().buildProtocol(addr)  # type: ignore[no-untyped-call]
        made = channel.makeConnection

        def make_connection(transport: Any) -> None:
            self.links.add(transport)
            made(transport)

        channel.makeConnection = make_connection
        return channel


class _Root(Resource):
    isLeaf = True

    def __init__(self, crooked: Crooked) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._crooked = crooked

    def render(self, request: Request) -> Any:
        crooked = self._crooked
        for name, value in PREFLIGHT if request.method == b"OPTIONS" else COMMON:
            request.setHeader(name, value)
        if request.method == b"OPTIONS":
            request.setResponseCode(204)
            return b""
        if request.method == b"GET":
            crooked.looks += 1
            if crooked.gone or request.path.split(b"/")[2] != crooked.gateway.encode():
                request.setResponseCode(503 if crooked.gone else 404)
                return b""
            request.setHeader("content-type", "application/jose+json")
            right = crooked.keys().sign(crooked.identity)
            return right if crooked.document is None else crooked.document
        assert request.content is not None
        data = request.content.read()
        crooked.posts.append(data)
        media = MEDIA.get((request.requestHeaders.getRawHeaders("content-type") or [""])[0], CHUNKED)
        said = crooked.how(data, crooked.serve(media, data))
        if said is None:
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        request.setResponseCode(said.status)
        request.setHeader("content-type", said.kind)
        for name, value in said.fields:
            request.setHeader(name, value)
        if not said.cut:
            return said.body
        request.setHeader("content-length", str(len(said.body) + 1))
        request.write(said.body)
        assert request.channel is not None
        request.channel.loseConnection()
        return NOT_DONE_YET
