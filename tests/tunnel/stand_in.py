"""For the hours until relay and gateway stand: both in one, of the pure half. Goes as soon as they do."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from layer8.core.session import Close, Send, Tell
from layer8.tunnel.bhttp import Response
from layer8.tunnel.gateway_session import Begin, Body, Broken, Call, GatewayExchange, Leave, Remember, Reply, Rules
from layer8.tunnel.keys import GatewayKey, Schedule
from layer8.tunnel.relay_session import COMMON, PREFLIGHT
from layer8.tunnel.replay import ReplaySet
from layer8.tunnel.target import Allowed
from layer8.tunnel.wire import KEYS_TYPE, MEDIA, PROBLEM_TYPE, problem

PAGE = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><title>app</title>'
    b'<script type="module" src="/l8/0/l8.js"></script></html>'
)


class Held:
    """A gateway's keys and replay set."""

    def __init__(self, end: Any) -> None:
        self.end = end
        self.schedule = Schedule(0)
        self.marks = ReplaySet()
        self.rotate()
        self.rules = Rules(Allowed.of([end.authority]), self.schedule.find, self.marks.window)

    def rotate(self) -> None:
        epoch = int(wall() // 3600)
        while epoch in [key.epoch for key in self.schedule.live(wall())]:
            epoch -= 1
        self.schedule.add(GatewayKey.make(epoch))

    @property
    def key(self) -> GatewayKey:
        return self.schedule.live(wall())[0]

    def document(self) -> bytes:
        return self.key.key_set(self.end.id, [self.end.authority]).sign(self.end.identity)


def wall() -> float:
    return datetime.now(UTC).timestamp()


class StandIn:
    def __init__(self, reactor: Any, ends: dict[str, Any], app_files: dict[str, tuple[str, bytes]]) -> None:
        self.reactor, self.app_files = reactor, app_files
        self.held = {name: Held(end) for name, end in ends.items()}
        self.pool = HTTPConnectionPool(reactor, persistent=False)
        self.agent = Agent(reactor, pool=self.pool)
        site = Site(_Root(self))
        site.noisy = False
        site.log = lambda request: None  # type: ignore[method-assign]
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")

    async def close(self) -> None:
        await self.pool.closeCachedConnections()
        await self.port.stopListening()


class _Root(Resource):
    isLeaf = True

    def __init__(self, stand: StandIn) -> None:
        super().__init__()
        self.stand = stand

    def render(self, request: Request) -> Any:
        path = request.path.decode()
        words = path.strip("/").split("/")
        if words[0] == "r" and words[1] in self.stand.held:
            held = self.stand.held[words[1]]
            lines = PREFLIGHT if request.method == b"OPTIONS" else COMMON
            for name, value in lines:
                request.setHeader(name, value)
            if request.method == b"OPTIONS":
                request.setResponseCode(204)
                return b""
            if words[2:] == ["keys"]:
                raw = b"raw" in request.uri
                request.setHeader("content-type", KEYS_TYPE if raw else "application/jose+json")
                return held.key.config().document() if raw else held.document()
            kind = (request.requestHeaders.getRawHeaders("content-type") or [""])[0]
            if kind not in MEDIA:
                request.setResponseCode(415)
                return problem(415)
            assert request.content is not None
            _Exchange(self.stand, held, request, MEDIA[kind], request.content.read())
            return NOT_DONE_YET
        if words[0] == "l8":
            request.setHeader("content-type", "text/javascript")
            request.setHeader("access-control-allow-origin", "*")
            request.setHeader("service-worker-allowed", "/")
            return (files("layer8") / "web" / "tunnel" / words[-1]).read_bytes()
        if path in self.stand.app_files:
            kind, data = self.stand.app_files[path]
            request.setHeader("content-type", kind)
            return data
        if path == "/":
            request.setHeader("content-type", "text/html; charset=utf-8")
            return PAGE
        request.setResponseCode(404)
        return b""


class _Exchange:
    def __init__(self, stand: StandIn, held: Held, request: Request, media: Any, data: bytes) -> None:
        self.stand, self.held, self.request = stand, held, request
        self.now = stand.reactor.seconds
        self.gone = False
        request.notifyFinish().addBoth(self.left)
        self.session = GatewayExchange(media, held.rules, os.urandom(32), self.now(), wall())
        self.body = b""
        self.call: Call | None = None
        self.session.received(data, self.now())
        self.go()
        self.session.ended(self.now())
        self.go()

    def left(self, _: object) -> None:
        self.gone = True

    def go(self) -> None:
        for effect in self.session.effects():
            if self.gone:
                return
            if isinstance(effect, Send):
                self.request.write(effect.data)
            elif isinstance(effect, Close):
                if effect.abort:
                    assert self.request.channel is not None
                    self.request.channel.transport.abortConnection()
                else:
                    self.request.finish()
            elif isinstance(effect, Tell):
                self.told(effect.what)

    def told(self, what: Any) -> None:
        match what:
            case Reply(status, kind):
                self.request.setResponseCode(status)
                self.request.setHeader("content-type", PROBLEM_TYPE)
                self.request.write(problem(status, kind))
            case Begin(media):
                self.request.setHeader("content-type", media.response)
            case Remember(mark, date, epoch):
                marks = self.held.marks
                verdict = marks.add_dateless(mark, epoch) if date is None else marks.add(mark, date, wall())
                self.session.remembered(verdict, self.now())
                self.go()
            case Call():
                self.call = what
            case Body(data):
                self.body += data
            case Broken() | Leave():
                self.call = None
            case _ if self.call is not None:
                Deferred.fromCoroutine(self.ask(self.call)).addErrback(self.broke)

    def broke(self, failure: Any) -> None:
        self.session.failed(self.now())
        self.go()

    async def ask(self, call: Call) -> None:
        headers = Headers()
        for name, value in call.fields:
            headers.addRawHeader(name, value)
        headers.addRawHeader(b"l8-encapsulated", b"?1")
        headers.setRawHeaders(b"host", [call.target.authority.encode()])
        target = call.target.path + (f"?{call.target.query}" if call.target.query else "")
        url = f"{self.held.end.backend.origin}{target}".encode()
        content = _Content(self.body) if self.body or (call.length is not None and call.length) else None
        answer = await self.stand.agent.request(call.request.method, url, headers, content)
        fields = tuple((n.lower(), v) for n, vs in answer.headers.getAllRawHeaders() for v in vs)
        length = answer.length if isinstance(answer.length, int) else None
        if length is not None and not any(name == b"content-length" for name, _ in fields):
            fields = (*fields, (b"content-length", b"%d" % length))
        self.session.respond(Response(answer.code, fields), self.now(), length=length)
        self.session.flush(self.now()) if length is None else None
        self.go()
        answer.deliverBody(_Body(self))


class _Body(Protocol):
    def __init__(self, exchange: _Exchange) -> None:
        self.exchange = exchange

    def dataReceived(self, data: bytes) -> None:
        one = self.exchange
        one.session.write(data, one.now())
        one.session.flush(one.now())
        one.go()

    def connectionLost(self, reason: Any = None) -> None:
        from twisted.web.client import ResponseDone
        from twisted.web.http import PotentialDataLoss

        one = self.exchange
        if reason.check(ResponseDone, PotentialDataLoss):
            one.session.finish(one.now())
        else:
            one.session.failed(one.now())
        one.go()


@implementer(IBodyProducer)
class _Content:
    def __init__(self, data: bytes) -> None:
        self.data, self.length = data, len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self.data)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def stopProducing(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
