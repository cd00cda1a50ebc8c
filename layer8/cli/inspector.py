"""The web page of `layer8 expose --inspect`: a listener on loopback, its files, and the calls that the page makes.

::

    GET  /                          the page and its files, for anybody who reaches the port
    GET  /api/exchanges?after=N     what has changed since serial number N, or the next change
    POST /api/replay {"id": N}      send that request to its target once more; {id, why}
    POST /api/clear {}              forget everything

All of `/api/` needs the token that stands in the fragment of the printed address, as `Authorization: Bearer`. What
Host, Origin and bodies may be is checked by `layer8.control.http`; a browser that says that another site asks gets
nothing at all.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Coroutine, Iterator
from hmac import compare_digest
from importlib.resources import files
from typing import Any, Final

from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from layer8.config.endpoint import server as read_endpoint
from layer8.control.http import Answer, Page, Refusal, Request, Site, TextPage
from layer8.core.errors import ConfigError, Layer8Error, Unavailable
from layer8.net.factory import Places
from layer8.net.listen import now
from layer8.net.tasks import TaskSet
from layer8.proxy.record import Record

PORT: Final = 4040
"""Where the page is, or the next free port."""
PORTS: Final = 20
"""Ports that are tried."""
CONNECTIONS: Final = 64
"""Connections of browsers at the same time."""
POLL: Final = 20.0
"""Seconds after which a page that waits for news is told that there are none."""
GATHER: Final = 0.15
"""Seconds that news are gathered before they are told: a page need not draw thousands of times a second."""
FILES: Final = {
    "index.html": b"text/html; charset=utf-8",
    "inspect.js": b"text/javascript; charset=utf-8",
    "inspect.css": b"text/css; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
_JSON: Final = b"application/json"
_OWN: Final = ((b"Cross-Origin-Resource-Policy", b"same-origin"),)

Replay = Callable[[int], Coroutine[Any, Any, tuple[int, str]]]
"""Sends the request of that number again; gives the new number, and why there is no whole answer or nothing."""


class Inspector:
    """Serves the page for one record."""

    _log = Logger(namespace="layer8.cli.inspector")

    def __init__(self, reactor: Any, record: Record, route: str, replay: Replay) -> None:
        """Take what is shown; `route` says in one line what is published."""
        self.token = secrets.token_urlsafe(24)
        self.url = ""
        self._reactor = reactor
        self._record = record
        self._route = route
        self._replay = replay
        self._polls: dict[Request, tuple[int, IDelayedCall]] = {}
        self._port: IListeningPort | None = None
        self._tasks = TaskSet(self._log)
        self._soon: IDelayedCall | None = None
        self.site = site = Site(reactor, (), Places(CONNECTIONS, CONNECTIONS))
        for name, kind in FILES.items():
            site.hang("/" if name == "index.html" else f"/{name}", _file(name, kind))
        site.hang("/api/exchanges", self._call(self._exchanges))
        site.hang("/api/replay", self._call(self._send_again, b"POST"))
        site.hang("/api/clear", self._call(self._clear, b"POST"))

    def listen(self, where: str = "") -> None:
        """Open the listener at an endpoint string, or at the first free port from PORT on; raises Layer8Error."""
        for text in (where,) if where else _usual():
            endpoint = read_endpoint(text)
            if endpoint.kind != "tcp" or not endpoint.loopback:
                raise ConfigError(f"{text!r}: the page is for this machine only: write tcp:4040:interface=127.0.0.1")
            try:
                self._port = now(serverFromString(self._reactor, endpoint.twisted()).listen(self.site))
                break
            except CannotListenError:
                continue
        if self._port is None:
            raise Unavailable(f"no free port for the page (tried {where or f'{PORT} to {PORT + PORTS - 1}'})")
        address: Any = self._port.getHost()
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"http://{host}:{address.port}/#{self.token}"
        self._record.changed = self._changed

    async def close(self) -> None:
        """Close the listener and let every page that waits go."""
        self._record.changed = lambda: None
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        for request in list(self._polls):
            self._tell(request)
        await self._tasks.stop()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)

    # News.

    def _changed(self) -> None:
        """Tell the pages that wait, once for all that changes within a moment."""
        if self._polls and (self._soon is None or not self._soon.active()):
            self._soon = self._reactor.callLater(GATHER, self._tell_all)

    def _tell_all(self) -> None:
        for request, (after, _) in list(self._polls.items()):
            if self._record.serial > after:
                self._tell(request)

    def _exchanges(self, request: Request) -> Answer | None:
        after = _number(request)
        if after < 0:
            return self._news(after)
        late = self._reactor.callLater(POLL, self._tell, request)
        self._polls[request] = after, late
        if self._record.serial > after:
            self._changed()
        request.notifyFinish().addErrback(lambda _: self._forget(request))
        return None

    def _news(self, after: int) -> Answer:
        record = self._record
        return _json(
            {
                "serial": record.serial,
                "route": self._route,
                "kept": record.kept,
                "exchanges": record.rows(after),
            }
        )

    def _tell(self, request: Request) -> None:
        after = self._forget(request)
        if after is not None:
            _finish(request, self._news(after))

    def _forget(self, request: Request) -> int | None:
        after, late = self._polls.pop(request, (None, None))
        if late is not None and late.active():
            late.cancel()
        return after

    # Calls.

    def _send_again(self, request: Request) -> None:
        number = _body(request).get("id")
        if type(number) is not int:
            raise Refusal(400, "which request is meant is not said")
        self._tasks.start("replay", self._sent_again(request, number))

    async def _sent_again(self, request: Request, number: int) -> None:
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        try:
            new, why = await self._replay(number)
            answer = _json({"id": new, "why": why})
        except CancelledError:
            answer = Answer(503, b"the program ends\n")
        except Layer8Error as error:
            answer = Answer(409, str(error).encode())
        if not gone:
            _finish(request, answer)

    def _clear(self, request: Request) -> Answer:
        self._record.clear()
        return _json({})

    def _call(self, answer: Callable[[Request], Answer | None], method: bytes = b"GET") -> Page:
        def checked(request: Request) -> Answer | None:
            self._let_in(request)
            return answer(request)

        return Page(_Later(checked), frozenset({method}))

    def _let_in(self, request: Request) -> None:
        """Let in who has the token; raises Refusal."""
        _from_here(request)
        if not compare_digest((request.bearer() or "").encode(), self.token.encode()):
            raise Refusal(401, "open the address that layer8 expose printed", (b"WWW-Authenticate", b"Bearer"))


@implementer(IResource)
class _Later:
    """A page whose answer may come later: then `answer` gives None, and somebody calls `_finish`."""

    isLeaf = True

    def __init__(self, answer: Callable[[Request], Answer | None]) -> None:
        self._answer = answer

    def render(self, request: Request) -> bytes | int:
        answer = self._answer(request)
        return NOT_DONE_YET if answer is None else request.say(answer)

    def getChildWithDefault(self, name: bytes, request: Request) -> _Later:
        raise LookupError(name)

    def putChild(self, path: bytes, child: IResource) -> None:
        raise LookupError(path)


def _from_here(request: Request) -> None:
    """Let nobody in who comes from another site, if the browser says so; raises Refusal."""
    if request.only(b"Sec-Fetch-Site") not in (None, "same-origin", "none"):
        raise Refusal(403, "another site may not ask here")


def _file(name: str, kind: bytes) -> Page:
    content = (files("layer8") / "web" / "inspect" / name).read_bytes()

    def answer(request: Request) -> Answer:
        _from_here(request)
        return Answer(200, content, kind, _OWN)

    return Page(TextPage(answer))


def _usual() -> Iterator[str]:
    return (f"tcp:{port}:interface=127.0.0.1" for port in range(PORT, PORT + PORTS))


def _number(request: Request) -> int:
    """Read `after`; what is none is the beginning."""
    found = (request.args or {}).get(b"after", [b""])[0]
    return int(found) if found.isdigit() and len(found) < 16 else -1


def _body(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(request.content.read() if request.content is not None else b"")
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the body is no JSON object")
    return found


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), _JSON, _OWN)


def _finish(request: Request, answer: Answer) -> None:
    request.write(request.say(answer))
    request.finish()
