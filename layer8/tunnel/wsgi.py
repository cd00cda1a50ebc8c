"""The gateway as WSGI middleware: the application gets ordinary requests; docs/tunnel-gateway.md is its manual.

    application = L8Middleware(application, gateway="shop", authorities=["shop.example"], state="/var/lib/shop")

A request's content is opened while the application reads it, an answer's is sealed as the application yields it.
Content of unknown length is read first, since most applications read nothing without a CONTENT_LENGTH.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from errno import ECONNRESET
from functools import lru_cache
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from time import monotonic
from types import TracebackType
from typing import IO, Any, Final

from layer8.core.errors import ConfigError, LocalProtocolError, StorageError, Unavailable
from layer8.tunnel import wire
from layer8.tunnel.bhttp import Fields
from layer8.tunnel.gateway import Gateway, Outcome
from layer8.tunnel.gateway_session import Reply
from layer8.tunnel.keys import SET_TYPE
from layer8.tunnel.serving import READ, Serving, declared, decoded, heard, length_told, server
from layer8.tunnel.settings import GATEWAY_PATH, KEYS_PATH, SOCKET_PATH

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

LINGER: Final = 5.0  # seconds, and
LINGER_BYTES: Final = 16 << 20  # bytes, for which a request is thrown away whose answer is there already
SPOOL: Final = 1 << 20  # bytes of content of unknown length that wait in memory; more waits in a file

_KEPT: Final = ("wsgi.version", "wsgi.errors", "wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once")
_python_log = logging.getLogger("layer8.gateway")  # these run where nobody listens to Twisted's


class L8Middleware:
    """Answers the gateway's paths, and hands everything else to the application.

    `gateway` is a gateway's name, with the names of `Settings` as further arguments, or a `Gateway` that is open.
    """

    def __init__(self, app: Application, gateway: str | Gateway, **settings: Any) -> None:
        """Open the gateway; raises `ConfigError` or `StorageError`."""
        self.gateway = Gateway.of(gateway, **settings)
        self._app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request."""
        gateway = self.gateway
        if gateway.due():
            _upkeep(gateway)
        path, method = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        if path == GATEWAY_PATH and method == "POST":
            return self._exchange(environ, start_response)
        if path in (GATEWAY_PATH, KEYS_PATH):
            if method not in ("GET", "HEAD"):
                return _problem(start_response, 405)
            return self._keys(path, start_response)
        if path == SOCKET_PATH:
            return _problem(start_response, 501)
        if any(map(gateway.guards, (path, environ.get("SCRIPT_NAME", "") + path, _raw(environ)))):
            gateway.count(Outcome.DIRECT)
            return _problem(start_response, 403)
        for name in ("HTTP_L8_ENCAPSULATED", "HTTP_L8_TOKEN"):
            environ.pop(name, None)
        environ["l8.encapsulated"] = False
        environ["l8.token"] = None
        return self._app(environ, start_response)

    def _keys(self, path: str, start_response: StartResponse) -> Iterable[bytes]:
        try:
            document = self.gateway.ohttp_keys() if path == GATEWAY_PATH else self.gateway.keys_document()
        except Unavailable:
            return _problem(start_response, 503)
        return _answer(start_response, 200, wire.KEYS_TYPE if path == GATEWAY_PATH else SET_TYPE, document, "no-cache")

    def _exchange(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        gateway = self.gateway
        if not gateway.admits(environ.get("HTTP_AUTHORIZATION")):
            return _problem(start_response, 401)
        exchange = gateway.exchange(environ.get("CONTENT_TYPE"), monotonic())
        if exchange is None:
            return _problem(start_response, 415)
        return _Exchange(Serving(gateway, exchange), environ, self._app).run(start_response)


class _Exchange:
    """One sealed request, in the thread that serves it."""

    def __init__(self, serving: Serving, environ: Environ, app: Application) -> None:
        self._serving = serving
        self._exchange = serving.exchange
        self._environ = environ
        self._app = app
        self._input: IO[bytes] = environ["wsgi.input"]
        self._left = _outer_length(environ)  # bytes of the sealed request, None if its end will show
        self._first = True
        self._over = False  # no more of it will come
        self._given = 0  # bytes of content that the application has
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._begun = False
        self._written: list[bytes] = []  # by the callable that start_response gives

    def run(self, start_response: StartResponse) -> Iterator[bytes]:
        """Open, call, seal."""
        serving = self._serving
        while serving.call is None and serving.end is None:
            self.pull()
        if serving.reply is not None:
            status, kind, body = serving.gateway.refused(serving.reply)
            yield from _answer(start_response, status, kind, body)
            return
        started = False
        for sealed in self._sealed():
            if not started:
                started = True
                assert serving.media is not None
                headers = [("Content-Type", serving.media.response), ("Cache-Control", "no-store")]
                if serving.end is not None and not serving.end.abort:
                    headers.append(("Content-Length", str(len(sealed))))
                start_response("200 OK", headers)
            yield sealed
        if serving.end is None or serving.end.abort or not started:
            # So that nobody takes it for whole; by this number servers know that there is nothing to log.
            raise ConnectionResetError(ECONNRESET, "an answer that is cut")
        ends, left = monotonic() + LINGER, LINGER_BYTES
        while self._left != 0 and left > 0 and monotonic() < ends and (data := self._read()):
            left -= len(data)  # servers keep a connection only if its request was read

    def pull(self) -> None:
        """Read some more of the sealed request."""
        exchange = self._exchange
        now = monotonic()
        deadline = exchange.deadline()
        if deadline is not None and now >= deadline:
            exchange.wake(now)
            self._settle()
            return
        data = self._read()
        self._over = not data or self._left == 0
        now = monotonic()
        if data is None:
            self._serving.lost(now)
        elif data:
            gateway = self._serving.gateway
            if self._first and gateway.lacks(data[0]):
                _quietly(gateway.reload)
            self._first = False
            exchange.received(data, now)
            if self._left == 0:
                exchange.ended(now)
        else:
            exchange.ended(now)
        self._settle()

    def piece(self) -> bytes:
        """Give the next piece of the opened content, nothing at its end; raises `OSError` if it does not come."""
        serving = self._serving
        while not serving.body:
            if serving.whole:
                return b""
            if serving.broken or serving.end is not None:
                raise ConnectionResetError("the request is not whole")
            self.pull()
        data = serving.body.popleft()
        self._given += len(data)
        if serving.call is not None and self._given == serving.call.length:
            self._wait()
        return data

    def _wait(self) -> None:
        """Let nobody have all of the content before the last chunk has opened; raises `OSError` if it does not."""
        serving = self._serving
        while not serving.whole:
            if serving.broken or serving.end is not None:
                raise ConnectionResetError("the request is not whole")
            self.pull()

    def _sealed(self) -> Iterator[bytes]:
        """Call the application, and give what is sent of its answer."""
        serving, answer = self._serving, None
        try:
            if serving.call is not None and serving.end is None and (environ := self._inner()) is not None:
                answer = self._app(environ, self._start_response)
                yield from self._pieces(answer)
                if serving.end is None:
                    self._begin(0)
                    self._exchange.finish(monotonic())
                    serving.sort()
                    if serving.cut:
                        _python_log.error("an application behind the tunnel has given less than it promised")
                    while self._exchange.padding:
                        if sealed := serving.sealed():
                            yield sealed
                        self._exchange.pad(monotonic())
                        serving.sort()
        except GeneratorExit:
            serving.lost(monotonic())
            raise
        except Exception as error:  # whatever it is, it is the application's, and its server would say 500
            if not isinstance(error, ConnectionResetError) or not serving.broken:
                _python_log.exception("an application behind the tunnel has failed")
            serving.failed(monotonic(), 500)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        serving.sort()
        while serving.end is None and not self._over:  # the answer may end when the request has
            self.pull()
            serving.body.clear()
        if sealed := serving.sealed():
            yield sealed

    def _pieces(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        serving = self._serving
        alone = len(answer) == 1 if isinstance(answer, list | tuple) else False
        for data in answer:
            for one in (*self._taken(), data):
                if one:
                    self._begin(len(one) if alone else None)
                    serving.write(one, monotonic())
            serving.sort()
            if serving.end is not None:
                return
            if not alone and (sealed := serving.sealed()):
                yield sealed
        for one in self._taken():
            self._begin(None)
            serving.write(one, monotonic())

    def _taken(self) -> list[bytes]:
        written, self._written = self._written, []
        return written

    def _begin(self, length: int | None) -> None:
        if self._begun:
            return
        if not self._status:
            raise LocalProtocolError("an answer without start_response")
        self._begun = True
        fields = tuple(
            (name.lower().encode("latin-1"), value.strip().encode("latin-1")) for name, value in self._headers
        )
        promised = declared(fields)
        self._serving.begin(int(self._status[:3]), fields, length if promised is None else promised, monotonic())

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if exc_info is not None and self._begun:
            raise exc_info[1].with_traceback(exc_info[2])
        if self._status and exc_info is None:
            raise LocalProtocolError("an answer that begins twice")
        self._status, self._headers = status, list(headers)
        return self._written.append

    def _inner(self) -> Environ | None:
        """Give the environ of the opened request, None if it does not become whole before the application is called."""
        call = self._serving.call
        assert call is not None
        target = call.target
        content = io.BytesIO() if call.length == 0 else io.BufferedReader(_Content(self), READ)
        length = length_told(call)
        host, port = server(call)
        environ: Environ = {name: self._environ[name] for name in _KEPT if name in self._environ}
        environ |= {
            "REQUEST_METHOD": call.request.method.decode("ascii"),
            "SCRIPT_NAME": "",
            "PATH_INFO": decoded(target.path).decode("latin-1"),
            "QUERY_STRING": target.query,
            "REQUEST_URI": (uri := target.path + ("?" + target.query if target.query else "")),
            "RAW_URI": uri,
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "",
            "HTTP_HOST": target.authority,
            "wsgi.url_scheme": target.scheme,
            "wsgi.input": content,
            "wsgi.input_terminated": True,
            "l8.encapsulated": True,
            "l8.token": None,
        }
        environ |= _variables(heard(call))
        try:
            if call.length is None:
                environ["wsgi.input"], length = self._spooled()
            elif not call.length:
                self._wait()
        except ConnectionResetError:
            return None
        if length is not None:
            environ["CONTENT_LENGTH"] = str(length)
        return environ

    def _spooled(self) -> tuple[Any, int | None]:
        """Read all of the content; give it and its length."""
        spooled: Any = SpooledTemporaryFile(SPOOL)  # noqa: SIM115, it lives as long as the environ
        while data := self.piece():
            spooled.write(data)
        length = spooled.tell() or None
        spooled.seek(0)
        return spooled, length

    def _settle(self) -> None:
        serving = self._serving
        serving.sort()
        while (asked := serving.asked) is not None:
            serving.asked = None
            try:
                self._exchange.remembered(serving.gateway.remember(asked), monotonic())
            except StorageError as error:
                _python_log.error("the replay set cannot be asked: %s", error)
                serving.failed(monotonic(), 503)
            serving.sort()

    def _read(self) -> bytes | None:
        """Give bytes of the sealed request, nothing at its end, None if it is cut."""
        size = READ if self._left is None else min(READ, self._left)
        try:
            data = self._input.read(size) if size else b""
        except OSError:
            return None
        if self._left is not None:
            self._left -= len(data)
            if size and not data:
                return None
        return data


class _Content(io.RawIOBase):
    """The opened content, for applications that read files."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest or self._exchange.piece()
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        self._rest = data[size:]
        return size


def _variables(fields: Fields) -> Environ:
    """Write fields as CGI does; those that come twice are joined."""
    found: dict[str, Any] = {}
    for name, value in fields:
        key, text = _variable(name), value.decode("latin-1")
        if key in found:
            text = f"{found[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{text}"
        found[key] = text
    return found


@lru_cache(maxsize=256)
def _variable(name: bytes) -> str:
    key = name.decode("ascii").upper().replace("-", "_")
    return key if key == "CONTENT_TYPE" else f"HTTP_{key}"


def _outer_length(environ: Mapping[str, Any]) -> int | None:
    text = environ.get("CONTENT_LENGTH") or ""
    if text.isdigit():
        return int(text)
    chunked = environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked"
    return None if chunked or environ.get("wsgi.input_terminated") else 0


def _raw(environ: Mapping[str, Any]) -> str:
    return str(environ.get("REQUEST_URI") or environ.get("RAW_URI") or "/")


def _upkeep(gateway: Gateway) -> None:
    _quietly(gateway.upkeep)


def _quietly(work: Callable[[], None]) -> None:
    try:
        work()
    except (ConfigError, StorageError) as error:
        _python_log.error("the gateway's keys cannot be read or written: %s", error)


def _problem(start_response: StartResponse, status: int) -> Iterable[bytes]:
    reply = Reply(status)
    return _answer(start_response, status, wire.PROBLEM_TYPE, wire.problem(status, reply.problem))


def _answer(
    start_response: StartResponse, status: int, kind: str, body: bytes, cache: str = "no-store"
) -> Iterable[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", cache)]
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [body]
