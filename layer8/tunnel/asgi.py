"""The gateway as ASGI middleware, for servers that run asyncio; docs/tunnel-gateway.md is its manual.

    app = L8Middleware(app, gateway="shop", authorities=["shop.example"], state="/var/lib/shop")

The application gets ordinary requests, opened, and ordinary WebSockets; content is opened as it is received and sealed
as it is sent, so what the application does not take is not read from the relay either.
"""

from __future__ import annotations

import asyncio  # noqa: TID251, this runs in other people's servers
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any, Final
from urllib.parse import unquote

from layer8.core.errors import ConfigError, LocalProtocolError, StorageError, Unavailable
from layer8.core.http1 import plain
from layer8.core.session import Close, Effect, Send, Tell
from layer8.tunnel import wire
from layer8.tunnel.frames import PROTOCOL, Kind, Message
from layer8.tunnel.gateway import Gateway, Outcome
from layer8.tunnel.gateway_session import Call
from layer8.tunnel.keys import SET_TYPE
from layer8.tunnel.limits import BUFFER, IDLE_TIME
from layer8.tunnel.serving import Serving, declared, heard, length_told, server
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, SOCKET_PATH
from layer8.tunnel.socket_session import Closed, GatewaySocket, Open, Routed
from layer8.tunnel.target import OURS, told

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
SendEvent = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

LOOK: Final = 5.0  # seconds between two looks at whether a socket's deadline has moved

EVENT: Final = 256  # bytes that a message takes while it waits, beside what it says

STORAGE_TIME: Final = 10.0  # seconds that a database may take to say whether a request is new

_python_log = logging.getLogger("layer8.gateway")  # these run where nobody listens to Twisted's


class L8Middleware:
    """Answers the gateway's paths, and hands everything else to the application.

    `gateway` is a gateway's name, with the names of `Settings` as further arguments, or a `Gateway` that is open.
    """

    def __init__(self, app: Application, gateway: str | Gateway, **settings: Any) -> None:
        """Open the gateway; raises `ConfigError` or `StorageError`."""
        self.gateway = Gateway.of(gateway, **settings)
        self._app = app
        self._upkeep: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: SendEvent) -> None:
        """Serve a request, a socket, or the server's own events."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        gateway = self.gateway
        if gateway.due():
            await self._look_after()
        path = scope["path"]
        if kind == "websocket" and path == SOCKET_PATH:
            await self._socket(scope, receive, send)
        elif kind == "http" and path == GATEWAY_PATH and scope["method"] == "POST":
            await self._exchange(scope, receive, send)
        elif kind == "http" and path in (GATEWAY_PATH, KEYS_PATH):
            await self._keys(scope, send)
        elif any(map(gateway.guards, _paths(scope))):
            gateway.count(Outcome.DIRECT)
            if kind == "http":
                await _problem(send, 403)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(name, value) for name, value in scope["headers"] if plain(name) not in OURS]
            await self._app({**scope, "headers": headers, "l8.encapsulated": False, "l8.token": None}, receive, send)

    async def _look_after(self) -> None:
        """Let one request at a time do the upkeep; the first of a process waits for it, and others go on."""
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.ensure_future(asyncio.to_thread(_quietly, self.gateway.upkeep))
            await asyncio.shield(self._upkeep)

    async def _keys(self, scope: Scope, send: SendEvent) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await _problem(send, 405)
            return
        try:
            document = self.gateway.ohttp_keys() if path == GATEWAY_PATH else self.gateway.keys_document()
        except Unavailable:
            await _problem(send, 503)
            return
        await _answer(send, 200, wire.KEYS_TYPE if path == GATEWAY_PATH else SET_TYPE, document, b"no-cache")

    async def _exchange(self, scope: Scope, receive: Receive, send: SendEvent) -> None:
        gateway, fields = self.gateway, dict(scope["headers"])
        if not gateway.admits(fields.get(b"authorization")):
            await _problem(send, 401)
            return
        exchange = gateway.exchange(fields.get(b"content-type"), monotonic())
        if exchange is None:
            await _problem(send, 415)
            return
        await _Exchange(Serving(gateway, exchange), scope, receive, send, self._app).run()

    async def _socket(self, scope: Scope, receive: Receive, send: SendEvent) -> None:
        gateway = self.gateway
        if (await receive())["type"] != "websocket.connect":
            return
        welcome = PROTOCOL in scope.get("subprotocols", ()) and gateway.admits(
            dict(scope["headers"]).get(b"authorization")
        )
        session = gateway.socket(monotonic()) if welcome else None
        if session is None:
            await send({"type": "websocket.close", "code": 1013 if welcome else 1008})
            return
        try:
            await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
            await _Socket(session, scope, receive, send, self._app).run()
        finally:
            gateway.socket_over()


class _Exchange:
    """One sealed request."""

    def __init__(self, serving: Serving, scope: Scope, receive: Receive, send: SendEvent, app: Application) -> None:
        self._serving = serving
        self._exchange = serving.exchange
        self._scope = scope
        self._receive = receive
        self._send = send
        self._app = app
        self._first = True
        self._over = False  # the sealed request has ended
        self._told_whole = False
        self._head: Event | None = None  # the start of an answer that has no content yet
        self._begun = False
        self._started = self._ended = False  # of the outer answer
        self._reading = asyncio.Lock()
        self._whole = asyncio.Event()  # all of the sealed request is here
        self._gone = asyncio.Event()  # nobody waits for the answer

    async def run(self) -> None:
        """Open, call, seal."""
        serving = self._serving
        while serving.call is None and serving.end is None:
            await self._pull()
        if serving.reply is not None:
            status, kind, body = serving.gateway.refused(serving.reply)
            await _answer(self._send, status, kind, body)
            return
        if serving.call is not None and not serving.call.length and serving.call.length is not None:
            while not serving.whole and serving.end is None:  # without content there is nothing else to wait by
                await self._pull()
        if serving.call is not None and serving.end is None:
            await self._serve(asyncio.ensure_future(self._call(serving.call)))
        while serving.end is None and not self._over:  # the answer may end when the request has
            await self._pull()
            serving.body.clear()
        await self._flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_TIME):
                while not self._over and not serving.left:  # servers keep a connection only if its request was read
                    await self._take(await self._receive(), ignore=True)

    async def _serve(self, running: asyncio.Future[None]) -> None:
        """Wait for the application, no longer than the exchange does."""
        exchange, serving = self._exchange, self._serving
        watching = asyncio.ensure_future(self._watch())
        try:
            while not running.done() and not (serving.left and serving.end is not None):
                deadline = exchange.deadline()
                wait = None if deadline is None else max(0.0, deadline - monotonic())
                await asyncio.wait((running, watching), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if watching.done() and not serving.left:
                    serving.lost(monotonic())
                if not running.done():
                    exchange.wake(monotonic())
                    await self._settle()
        finally:
            watching.cancel()
            self._gone.set()
            if not running.done():
                running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def _call(self, call: Call) -> None:
        serving = self._serving
        try:
            await self._app(self._inner(call), self._app_receive, self._app_send)
            if not self._begun or self._head is not None:
                raise LocalProtocolError("an application that gave no answer")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it is, it is the application's, and its server would say 500
            if not (serving.left or serving.end is not None):
                _python_log.error("an application behind the tunnel has failed", exc_info=error)
        if serving.end is None:
            serving.failed(monotonic(), 500)
            serving.sort()

    async def _app_receive(self) -> Event:
        serving = self._serving
        async with self._reading:
            while not serving.body and not (serving.whole or serving.broken or serving.left or serving.end is not None):
                await self._pull()
        if serving.body or (serving.whole and not self._told_whole and serving.end is None):
            data = serving.body.popleft() if serving.body else b""
            self._told_whole = serving.whole and not serving.body
            return {"type": "http.request", "body": data, "more_body": not self._told_whole}
        if not (serving.broken or serving.left):
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _app_send(self, event: Event) -> None:
        serving, exchange, now = self._serving, self._exchange, monotonic()
        if serving.left or serving.end is not None:
            raise OSError("nobody waits for the answer")
        match event["type"]:
            case "http.response.start":
                if self._head is not None or self._begun:
                    raise LocalProtocolError("an answer that begins twice")
                self._head, self._begun = event, True
            case "http.response.body":
                data, more = event.get("body", b""), event.get("more_body", False)
                if self._head is not None:
                    head, self._head = self._head, None
                    fields = tuple((name.lower(), value.strip()) for name, value in head.get("headers", ()))
                    promised = declared(fields)
                    serving.begin(head["status"], fields, promised if more or promised is not None else len(data), now)
                serving.write(bytes(data), now)
                if not more:
                    exchange.finish(now)
                serving.sort()
                await self._flush()
                while exchange.padding:
                    exchange.pad(monotonic())
                    serving.sort()
                    await self._flush()

    async def _flush(self) -> None:
        """Send what is sealed, and the end of it; the server makes us wait while its buffer is full."""
        serving = self._serving
        sealed, done = serving.sealed(), serving.end is not None and not serving.end.abort
        if serving.media is None or self._ended or not (sealed or done):
            return
        if not self._started:
            self._started = True
            headers = [(b"content-type", serving.media.response.encode()), (b"cache-control", b"no-store")]
            if done:
                headers.append((b"content-length", b"%d" % len(sealed)))
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._ended = done
        await self._send({"type": "http.response.body", "body": sealed, "more_body": not done})

    async def _pull(self) -> None:
        """Take some more of the sealed request; it is over when nobody sends any more."""
        deadline = self._exchange.deadline()
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - monotonic())):
                event = await self._receive()
        except TimeoutError:
            self._exchange.wake(monotonic())
            await self._settle()
            return
        await self._take(event)

    async def _watch(self) -> None:
        """Once the request is whole, wait for nothing but that nobody waits for its answer any more."""
        while not self._serving.left:
            if self._over:
                await self._take(await self._receive(), ignore=True)
            else:
                await self._whole.wait()

    async def _take(self, event: Event, *, ignore: bool = False) -> None:
        exchange, serving, now = self._exchange, self._serving, monotonic()
        if event["type"] == "http.disconnect":
            self._over = True
            self._whole.set()
            self._gone.set()
            serving.lost(now)
            return
        data = event.get("body", b"")
        self._over = not event.get("more_body", False)
        if ignore:
            return
        if data:
            if self._first and serving.gateway.lacks(data[0]):
                await asyncio.to_thread(_quietly, serving.gateway.reload)
            self._first = False
            exchange.received(data, now)
            await self._settle()
        if self._over:
            self._whole.set()
            exchange.ended(now)
            await self._settle()

    async def _settle(self) -> None:
        serving = self._serving
        serving.sort()
        while (asked := serving.asked) is not None:
            serving.asked = None
            try:
                if serving.gateway.quick:
                    verdict = serving.gateway.remember(asked)
                else:
                    async with asyncio.timeout(STORAGE_TIME):
                        verdict = await asyncio.to_thread(serving.gateway.remember, asked)
                self._exchange.remembered(verdict, monotonic())
            except (StorageError, TimeoutError) as error:
                _python_log.error("the replay set cannot be asked: %s", error)
                serving.failed(monotonic(), 503)
            serving.sort()

    def _inner(self, call: Call) -> Scope:
        length = length_told(call)
        headers = [(b"host", call.target.authority.encode("ascii")), *heard(call)]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        return {
            **_parts(self._scope, call, headers),
            "type": "http",
            "method": call.request.method.decode("ascii"),
            "scheme": call.target.scheme,
        }


class _Socket:
    """One socket inside the tunnel; see `layer8.tunnel.socket_session`."""

    def __init__(
        self, session: GatewaySocket, scope: Scope, receive: Receive, send: SendEvent, app: Application
    ) -> None:
        self._session = session
        self._scope = scope
        self._receive = receive
        self._send = send
        self._app = app
        self._routed: Routed | None = None
        self._running: asyncio.Future[None] | None = None
        self._waiting: deque[Event] = deque(({"type": "websocket.connect"},))  # what the application has not taken
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._sending = asyncio.Lock()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Carry messages until the page, or the application, has ended it."""
        session, reading = self._session, asyncio.ensure_future(self._read())
        try:
            while not self._over.done() and not reading.done():
                deadline = session.deadline()
                wait = LOOK if deadline is None else min(LOOK, max(0.0, deadline - monotonic()))
                watched = {self._over, reading} | ({self._running} if self._running is not None else set())
                await asyncio.wait(watched, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                now = monotonic()
                if self._running is not None and self._running.done():
                    code = 1011 if self._running.exception() is not None else 1000
                    self._running = None
                    session.close(code, "", now)
                if self._room.is_set():  # whom we do not read from may well be alive
                    session.wake(now)
                await self._carry()
            with contextlib.suppress(OSError, RuntimeError):
                await self._send({"type": "websocket.close", "code": 1000})
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            self._tell({"type": "websocket.disconnect", "code": 1006})
            if self._running is not None:
                await self._end(self._running)

    async def _read(self) -> None:
        """Take what comes, as long as the application takes it."""
        session = self._session
        self._room.set()
        while not self._over.done():
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                session.lost(monotonic())
            elif event.get("bytes") is None:
                session.close(1003, "", monotonic())
            else:
                session.received(event["bytes"], monotonic())
            await self._carry()
            if event["type"] == "websocket.disconnect":
                return
            while sum(EVENT + len(one.get("bytes") or one.get("text") or "") for one in self._waiting) > BUFFER:
                self._room.clear()
                await self._room.wait()

    async def _carry(self) -> None:
        """Do what the session asks for, in its order."""
        async with self._sending:
            while effects := self._session.effects():
                for effect in effects:
                    await self._do(effect)

    async def _do(self, effect: Effect) -> None:
        match effect:
            case Send(data):
                await self._send({"type": "websocket.send", "bytes": data})
            case Close():
                if not self._over.done():
                    self._over.set_result(None)
            case Tell(Routed() as routed):
                self._routed = routed
                self._session.status(200, monotonic())
            case Tell(Open()):
                self._running = asyncio.ensure_future(self._call())
            case Tell(Message(Kind.TEXT, data)):
                self._tell({"type": "websocket.receive", "text": data.decode()})
            case Tell(Message(Kind.BINARY, data)):
                self._tell({"type": "websocket.receive", "bytes": data})
            case Tell(Closed(code, reason)):
                self._tell({"type": "websocket.disconnect", "code": code, "reason": reason})
            case _:
                pass

    def _tell(self, event: Event) -> None:
        self._waiting.append(event)
        self._news.set()

    async def _call(self) -> None:
        try:
            await self._app(self._inner(), self._app_receive, self._app_send)
        except Exception as error:  # whatever it is, it is the application's
            if not self._over.done():
                _python_log.error("an application behind the tunnel has failed", exc_info=error)
            raise

    async def _app_receive(self) -> Event:
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        event = self._waiting[0]
        if event["type"] != "websocket.disconnect":  # that is told as often as it is asked
            self._waiting.popleft()
            self._room.set()
        return event

    async def _app_send(self, event: Event) -> None:
        session, now = self._session, monotonic()
        if self._over.done():
            raise OSError("nobody listens any more")
        match event["type"]:
            case "websocket.accept":
                session.opened(now, event.get("subprotocol") or "")
            case "websocket.send":
                text = event.get("text")
                data = event.get("bytes") or b""
                session.send(Message(Kind.BINARY, data) if text is None else Message(Kind.TEXT, text.encode()))
            case "websocket.close":
                session.close(event.get("code") or 1000, event.get("reason") or "", now)
            case "websocket.http.response.start":
                session.close(1008, "", now)
            case _:
                pass
        await self._carry()

    async def _end(self, running: asyncio.Future[None]) -> None:
        await asyncio.wait((running,), timeout=IDLE_TIME)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await running

    def _inner(self) -> Scope:
        assert self._routed is not None
        request, target = self._routed.request, self._routed.target
        offered = [value for name, value in request.fields if name == b"sec-websocket-protocol"]
        fields = [(name, value) for name, value in told(request.fields) if not name.startswith(b"sec-websocket-")]
        call = Call(request, target, tuple(fields), None)
        return {
            **_parts(self._scope, call, [(b"host", target.authority.encode("ascii")), *heard(call)]),
            "type": "websocket",
            "scheme": "wss" if target.scheme == "https" else "ws",
            "subprotocols": [one.strip().decode("latin-1") for value in offered for one in value.split(b",")],
        }


def _paths(scope: Scope) -> tuple[str, ...]:
    """Give what a router may look at: with the prefix that the application is below, or without."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path, path.removeprefix(root), (scope.get("raw_path") or b"/").decode("latin-1")


def _parts(scope: Scope, call: Call, headers: list[tuple[bytes, bytes]]) -> Scope:
    """Give what the scopes of opened requests and sockets share: nothing of the connection, which is a relay's."""
    target = call.target
    made: Scope = {
        "asgi": {**scope["asgi"], "spec_version": "2.4"},  # whoever answers too late hears an OSError
        "http_version": "1.1",
        "path": unquote(target.path),
        "raw_path": target.path.encode("ascii"),
        "query_string": target.query.encode("ascii"),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": server(call),
        "extensions": {},
        "l8.encapsulated": True,
        "l8.token": None,
    }
    if "state" in scope:
        made["state"] = scope["state"]
    return made


def _quietly(work: Callable[[], None]) -> None:
    try:
        work()
    except (ConfigError, StorageError) as error:
        _python_log.error("the gateway's keys cannot be read or written: %s", error)


async def _problem(send: SendEvent, status: int) -> None:
    await _answer(send, status, wire.PROBLEM_TYPE, wire.problem(status))


async def _answer(send: SendEvent, status: int, kind: str, body: bytes, cache: bytes = b"no-store") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), (b"cache-control", cache)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
