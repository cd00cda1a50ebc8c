"""The relay of the demo with a pen in its hand: all that it has is written down, and it can be made to cheat.

What comes to the port is given to the relay's own handler. In between, each exchange is an `_Overheard`: it does what
the real one does, and writes down what passes. A bad relay is made here too, of what any relay could do: it changes a
bit of what it passes on, hands out a key of its own, sends again what it has, and looks for words in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, cast

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from layer8.core.errors import Layer8Error, RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.net.http import Handler, Incoming
from layer8.net.http_client import Pool
from layer8.net.http_wire import Lines, Listener
from layer8.tunnel import wire
from layer8.tunnel.demo_record import Recorder, Row, spellings
from layer8.tunnel.keys import GatewayKey
from layer8.tunnel.wire import CHUNKED, HEAD, Head, Refusal

OWN: Final = "/demo/"
"""Paths of the demo's own page; no relay has them."""
ASK_MOST: Final = 16 * 1024
"""Bytes that the page says to us."""
PAGES: Final = 16
"""Pages that watch."""
BEFORE: Final = 60
"""Exchanges that a page is told of that comes later."""
_NO_STORE: Final = (("cache-control", "no-store"), ("cross-origin-resource-policy", "same-origin"))


@define(eq=False)
class Front:
    """Stands between the relay's port and its handler; `gateway` is the id, `leg` the pool of its way there."""

    recorder: Recorder
    handler: Handler
    gateway: str
    authority: str
    replay: Callable[[Row], Deferred[Any]] | None = None
    bend: bool = False  # the next request
    key: GatewayKey | None = None  # that is handed out instead of the gateway's
    _pages: list[Incoming] = field(factory=list, init=False)
    _identity: NodeKey = field(factory=NodeKey.make, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Listen to what is written down."""
        self.recorder.changed.append(self._changed)

    def take(self, exchange: Incoming) -> None:
        """Take a request: ours, or the relay's."""
        path = exchange.path
        if path.startswith(OWN):
            self._ours(exchange, path.removeprefix(OWN))
            return
        kind = {
            f"/r/{self.gateway}": "request" if exchange.method == "POST" else "",
            f"/r/{self.gateway}/keys": "keys",
            f"/ws/{self.gateway}": "socket",
        }.get(path, "")
        self.recorder.overhear(exchange.head.raw)
        if not kind:
            self.handler(exchange)
            return
        peer: Any = exchange.peer
        row = self.recorder.begin(kind, self.gateway, f"{peer.host}:{peer.port}", exchange.fields)
        if kind == "keys" and self.key is not None:
            self._hand_out(row, exchange)
            return
        bend, self.bend = self.bend and kind == "request", self.bend and kind != "request"
        self.handler(cast(Incoming, _Overheard(exchange, row, self.recorder, bend=bend)))

    def close(self) -> None:
        """Let the pages go."""
        pages, self._pages = self._pages, []
        for page in pages:
            page.abort()

    # What a bad relay does.

    def _hand_out(self, row: Row, exchange: Incoming) -> None:
        """Give a key set that we have signed, since we cannot sign for the gateway."""
        assert self.key is not None
        document = self.key.key_set(self.gateway, [self.authority]).sign(self._identity)
        self.recorder.given += 1
        row.status, row.over, row.kind = 200, True, "swapped"
        self.recorder.down(row, document)
        fields = (("content-type", "application/jose+json"), ("access-control-allow-origin", "*"), *_NO_STORE)
        exchange.answer(200, fields, document)
        self.recorder.tell(row)

    def opens(self) -> bool:
        """Say whether a key of the relay's own opens any sealed request that it has."""
        key = GatewayKey.make(int(datetime.now(UTC).timestamp() // 3600))
        for row in self.recorder.rows:
            data = bytes(row.up.kept)
            if row.kind != "request" or len(data) <= HEAD:
                continue
            try:
                opener, _ = wire.open_request(CHUNKED, Head.read(data[:HEAD]), key.ohttp)
                if opener.feed(data[HEAD:]) or opener.end():
                    return True
            except (Refusal, RemoteProtocolError):
                continue
        return False

    # Our own page.

    def _ours(self, exchange: Incoming, what: str) -> None:
        site = exchange.only("sec-fetch-site")
        if site not in (None, "same-origin") or not exchange.host.endswith(".localhost"):
            exchange.answer(403, _NO_STORE, b"from this page only\n")
        elif what == "feed" and exchange.method == "GET" and len(self._pages) < PAGES:
            exchange.begin(200, (("content-type", "text/event-stream"), *_NO_STORE))
            exchange.to(_Gone(self._pages, exchange))
            self._pages.append(exchange)
            for row in self.recorder.rows[-BEFORE:]:
                exchange.write(_event(row))
        elif exchange.method == "POST" and what in ("replay", "keys", "change", "read", "counts"):
            Deferred.fromCoroutine(self._told(exchange, what)).addErrback(lambda failure: _sorry(exchange, failure))
        else:
            exchange.answer(404, _NO_STORE, b"there is no such thing\n")

    async def _told(self, exchange: Incoming, what: str) -> None:
        try:
            said = json.loads(await exchange.read(ASK_MOST) or b"{}")
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            exchange.answer(400, _NO_STORE, b"that is no JSON object\n")
            return
        body = json.dumps(await self.do(what, said)).encode()
        exchange.answer(200, (("content-type", "application/json"), *_NO_STORE), body)

    async def do(self, what: str, said: dict[str, Any]) -> dict[str, Any]:
        """Do what the page asks the relay to do, or say how many there were of what."""
        recorder = self.recorder
        if what == "change":
            self.bend = True
        elif what == "keys":
            wanted = said.get("on") is True
            self.key = GatewayKey.make(int(datetime.now(UTC).timestamp() // 3600)) if wanted else None
        elif what == "read":
            words = [word for word in said.get("words", []) if isinstance(word, str)][:64]
            return {
                "words": len(words),
                "bytes": len(recorder.heard),
                "spellings": max((len(spellings(word)) for word in words), default=0),
                "found": recorder.search(words),
                "opened": self.opens(),
                "entropy": recorder.entropy(),
            }
        elif what == "replay":
            return await self._replayed()
        return {"calls": recorder.calls, "posts": recorder.posts, "given": recorder.given, "changed": recorder.bent}

    async def _replayed(self) -> dict[str, Any]:
        recorder = self.recorder
        row = recorder.last()
        if row is None or self.replay is None:
            return {"status": 0, "noticed": "", "size": 0, "calls_before": 0, "calls_after": 0}
        calls = recorder.calls
        again = recorder.begin("replayed", self.gateway, "the relay itself", [])
        recorder.up(again, bytes(row.up.kept))
        again.status, answer = await self.replay(row)
        recorder.down(again, answer)
        again.over = True
        recorder.tell(again)
        return {
            "status": again.status,
            "noticed": again.verdict,
            "size": again.down.size,
            "calls_before": calls,
            "calls_after": recorder.calls,
        }

    def _changed(self, row: Row) -> None:
        for page in self._pages:
            if page.open and not page.crowded:
                page.write(_event(row))


class _Overheard:
    """An exchange that is written down; else it is the one that it stands for."""

    def __init__(self, exchange: Incoming, row: Row, recorder: Recorder, *, bend: bool) -> None:
        self._exchange = exchange
        self._row = row
        self._recorder = recorder
        self._bend = bend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    def to(self, listener: Listener) -> None:
        self._exchange.to(_Ear(listener, self._row, self._recorder, bend=self._bend))

    def begin(self, status: int, fields: Lines = (), length: int | None = None) -> None:
        self._row.status = status
        self._exchange.begin(status, fields, length)

    def write(self, data: bytes) -> None:
        self._recorder.down(self._row, data)
        self._exchange.write(data)
        if self._row.kind != "socket":
            self._recorder.tell(self._row)

    def finish(self) -> None:
        self._exchange.finish()
        self._over()

    def answer(self, status: int, fields: Lines = (), body: bytes = b"") -> None:
        self._row.status = status
        if status != 200:
            self._row.verdict = self._row.verdict or "refused"
        self._recorder.down(self._row, body)
        self._exchange.answer(status, fields, body)
        self._over()

    def abort(self) -> None:
        self._exchange.abort()
        self._over()

    def hand_over(self, successor: Protocol, said: bytes | None = None) -> None:
        wrapper = _Socket(successor, self._row, self._recorder, begun=said == b"")
        self._exchange.hand_over(wrapper, said)

    def _over(self) -> None:
        self._row.over = True
        self._recorder.tell(self._row)


class _Ear:
    """Hears a body for somebody else, and may bend a bit of it."""

    def __init__(self, listener: Listener, row: Row, recorder: Recorder, *, bend: bool) -> None:
        self._listener = listener
        self._row = row
        self._recorder = recorder
        self._bend = bend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def received(self, data: bytes) -> None:
        before = self._row.up.size
        self._recorder.up(self._row, data)
        place = HEAD + 20 - before  # behind the head, in what is sealed
        if self._bend and 0 <= place < len(data):
            self._bend = False
            self._recorder.bent += 1
            self._row.kind = "bent"
            data = data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]
        self._listener.received(data)


class _Socket(ProtocolWrapper):
    """A WebSocket that is passed on: the sizes of what goes either way."""

    def __init__(self, wrapped: Protocol, row: Row, recorder: Recorder, *, begun: bool) -> None:
        super().__init__(WrappingFactory(Factory()), wrapped)
        self._row = row
        self._recorder = recorder
        self._begun = begun

    def dataReceived(self, data: bytes) -> None:
        if self._begun:
            self._recorder.up(self._row, data)
            self._note(True, data)
        self._begun = True  # the first may be the head, which stands in the row already
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def write(self, data: bytes) -> None:
        if not self._row.status:
            self._row.status = int(data[9:12]) if data[9:12].isdigit() else 0
        else:
            self._recorder.down(self._row, data)
            self._note(False, data)
        super().write(data)  # type: ignore[no-untyped-call]

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._row.over = True
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _note(self, up: bool, data: bytes) -> None:
        self._row.frames.append((up, len(data)))
        self._recorder.tell(self._row)


class _Gone:
    """Hears that a page has gone."""

    def __init__(self, pages: list[Incoming], page: Incoming) -> None:
        self._pages = pages
        self._page = page

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None: ...

    def full(self) -> None: ...

    def room(self) -> None: ...

    def lost(self) -> None:
        if self._page in self._pages:
            self._pages.remove(self._page)


def _event(row: Row) -> bytes:
    return b"data: " + json.dumps(row.document()).encode() + b"\n\n"


def _sorry(exchange: Incoming, failure: Any) -> None:
    failure.trap(Layer8Error)
    exchange.answer(503, _NO_STORE, f"{failure.value}\n".encode())


async def again(pool: Pool, path: str, host: str, row: Row) -> tuple[int, bytes]:
    """Send the bytes of an exchange once more, as the relay does; gives status and body of what comes back."""
    line = await pool.take()
    answer = _Answer()
    fields = [("content-type", CHUNKED.request), ("incremental", "?1")]
    line.request("POST", path, host, fields, answer, row.up.size)
    line.write(bytes(row.up.kept))
    line.finish()
    return await answer.done


class _Answer:
    """Keeps an answer."""

    def __init__(self) -> None:
        self.done: Deferred[tuple[int, bytes]] = Deferred()
        self._status = 0
        self._body = bytearray()

    def answered(self, status: int, fields: Any, length: int | None) -> None:
        self._status = status

    def received(self, data: bytes) -> None:
        self._body += data

    def ended(self) -> None:
        self.done.callback((self._status, bytes(self._body)))

    def lost(self) -> None:
        self.done.callback((self._status, bytes(self._body)))

    def full(self) -> None: ...

    def room(self) -> None: ...
