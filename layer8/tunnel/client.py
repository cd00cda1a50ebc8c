"""A client of the browser tunnel for Python programs: what a page does with `L8.fetch`, on a reactor.

    client = L8Client(reactor, relay="https://relay.example", gateway="shop", pin="43 letters")
    answer = await client.get("/notes/7")
    answer.status, answer.header("content-type"), await answer.json()
    await client.post("/notes", json={"text": "..."})
    async for piece in await client.get("/events"):
        ...
    await client.close()

Nothing is sent but sealed to a key that the pinned identity has signed. Every failure is an `L8Error`, whose `code` is
the same word as in browsers.
"""

from __future__ import annotations

import json as codec
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import SystemRandom
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater
from twisted.python.failure import Failure as TwistedFailure

from layer8.core.chance import Chance
from layer8.core.errors import ConfigError, Layer8Error, LocalProtocolError, RemoteProtocolError, Unavailable
from layer8.core.session import Tell
from layer8.crypto.hpke_context import Private
from layer8.net.http_client import Pool, fetch
from layer8.net.site import Site
from layer8.tunnel import client_session, urls
from layer8.tunnel.bhttp import Fields, Request, Response
from layer8.tunnel.client_keys import Ask, ClientKeys, State
from layer8.tunnel.client_session import ClientExchange, Failure, Resend, dressed
from layer8.tunnel.jar import Jar, Place
from layer8.tunnel.keys import KeySet, gateway_id, read_pin
from layer8.tunnel.limits import DIAL_TIME, KEYS_MAX
from layer8.tunnel.target import Allowed
from layer8.tunnel.trip import Trip
from layer8.tunnel.urls import Url

REDIRECTS: Final = 20
KEYS_TIME: Final = 10.0  # seconds for a relay to give the keys
VIA_TIME: Final = 30.0  # seconds more by way of a proxy, which builds a circuit first
UNPACKED: Final = 64 * 1024  # bytes of compressed content that are unpacked at a time
QUEUE_TIME: Final = 600.0  # seconds that a request waits for others of this client, if there are more than go at once

CODES: Final[Mapping[str, str]] = {
    **client_session.CODES,
    "keys-form": "the key set has another form",
    "keys-signature": "none of the pinned keys has signed the key set: the relay may have swapped it",
    "keys-gateway": "the key set is another gateway's: the relay may have swapped it",
    "keys-epoch": "the key set is older than one that was seen before: the relay may have kept it back",
    "keys-time": "the key set is for another time",
    "keys-different": "the relays give different key sets: one of them, or the gateway, singles somebody out",
    "unreachable": "no relay has answered",
    "argument": "an argument is wrong",
    "unknown": "the gateway does not answer for this host",
    "closed": "the client is closed",
    "redirect": "a redirect that is not followed",
}
AGAIN: Final = frozenset(("keys", "busy", "lost", "slow", "cut", "unreachable"))

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Body = bytes | str | Mapping[str, str] | AsyncIterator[bytes] | None


class L8Error(Layer8Error):
    """Why a request has failed: `code` is a word of CODES, `leg` where, `retryable` whether asking again may help."""

    def __init__(self, code: str, leg: str, more: str = "") -> None:
        """Say it in words of our own."""
        super().__init__(f"{CODES[code]} ({leg})" + (f": {more}" if more else ""))
        self.code = code
        self.leg = leg
        self.retryable = code in AGAIN


@define(eq=False)
class L8Answer:
    """An answer whose content is still to be read, or dropped with `close`."""

    status: int
    headers: Sequence[tuple[str, str]]  # names in lower case, in the order that they came
    url: str
    redirected: bool
    _trip: Trip = field(repr=False)
    _plain: Any = field(default=None, repr=False)  # a decompressor

    def header(self, name: str) -> str | None:
        """Give a header's values, joined as browsers do it; None if it is not there."""
        found = [value for known, value in self.headers if known == name.lower()]
        return ", ".join(found) if found else None

    @property
    def trailers(self) -> Sequence[tuple[str, str]]:
        """Give the fields behind the content, once that has been read."""
        return _texts(self._trip.trailers)

    async def content(self) -> bytes:
        """Give all of the content; raises `L8Error` if it does not come whole."""
        return b"".join([piece async for piece in self])

    async def text(self, encoding: str = "utf-8") -> str:
        """Give the content as text."""
        return (await self.content()).decode(encoding, "replace")

    async def json(self) -> Any:
        """Give the content as what its JSON says; raises `ValueError`."""
        return codec.loads(await self.content())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the content as it comes; raises `L8Error` if it does not come whole."""
        try:
            while piece := await self._trip.read():
                for plain in (piece,) if self._plain is None else self._unpack(piece):
                    yield plain
        finally:
            if not self._trip.done:
                self._trip.cut()
        if self._trip.failure is not None:
            raise _error(self._trip.failure)
        if self._plain is not None and not self._plain.eof:
            raise L8Error("cut", "backend", "its compression has no end")

    def close(self) -> None:
        """Want no more of it."""
        self._trip.cut()

    def _unpack(self, piece: bytes) -> Iterator[bytes]:
        more = True
        while more:
            try:
                out = bytes(self._plain.decompress(piece, UNPACKED))
            except zlib.error:
                raise L8Error("cut", "backend", "it is no gzip") from None
            piece = self._plain.unconsumed_tail
            more = bool(piece) or len(out) == UNPACKED
            if out:
                yield out


@define
class _Relay:
    """One of the relays, with the connections to it."""

    site: Site
    pool: Pool


@define
class _Ask:
    """A request as it is sent, again if need be."""

    method: str
    url: Url
    headers: list[tuple[str, str]]
    body: bytes | AsyncIterator[bytes] = field(repr=False)
    allowed: frozenset[tuple[str, str]]  # where it may go, as the keys say
    resent: bool = False


class L8Client:
    """See the module. Every argument but the reactor is given by name.

    `relay`: the base URL of one, or several, of which one is taken at random, and all are asked for the keys.
    `pin`: the gateway's identity; two while it changes. `authority`: the host of relative URLs, else the first that the
    gateway answers for. `session`: True keeps cookies as long as the client, a `Jar` as long as that; False sends none.
    `compress="gzip"` asks for it: sizes then say more of what is in an answer. `pad=False` shows sizes as they are.
    `via` is a way to the relays as `net.site` has it, `ca` a file with the authorities that vouch for them.
    `timeout`: seconds for the head of an answer, redirects and all.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        relay: str | Sequence[str],
        gateway: str,
        pin: str | Sequence[str],
        authority: str | None = None,
        session: bool | Jar = False,
        pad: bool = True,
        compress: str | None = None,
        timeout: float | None = None,
        via: str = "",
        ca: str = "",
        seen: int = 0,
        wall: Callable[[], float] = lambda: datetime.now(UTC).timestamp(),
        chance: Chance | None = None,
    ) -> None:
        """Check the arguments; raises `ConfigError`. Nothing is sent before the first request."""
        relays = [relay] if isinstance(relay, str) else list(relay)
        if not relays or compress not in (None, "gzip"):
            raise ConfigError("a client needs a relay, and knows no compression but gzip")
        try:
            name = gateway_id(gateway)
        except RemoteProtocolError as error:
            raise ConfigError(str(error)) from None
        pins = [read_pin(one) for one in ([pin] if isinstance(pin, str) else pin)]
        self.jar = session if isinstance(session, Jar) else Jar() if session else None
        self._reactor = reactor
        self._wall = wall
        self._chance: Chance = SystemRandom() if chance is None else chance
        self._keys = ClientKeys(name, pins, seen)
        self._authority = authority
        self._pad = pad
        self._compress = compress
        self._timeout = timeout
        sites = [Site.of(one, via=via, ca=ca) for one in relays]
        self._slower = VIA_TIME if via else 0.0
        self._relays = [
            _Relay(site, site.pool(reactor, queue=QUEUE_TIME)) for site in self._chance.sample(sites, len(sites))
        ]
        self._waiting: list[Deferred[None]] = []
        self._looking: Deferred[None] | None = None
        self._doubted = False  # the gateway has said that it does not know the key

    @property
    def gateway(self) -> str:
        """Give the gateway's id."""
        return self._keys.gateway

    @property
    def state(self) -> str:
        """Give where it is: idle, keys, ready, refreshing, failed or closed."""
        return self._keys.state.value

    @property
    def epoch(self) -> int | None:
        """Give the epoch of the keys that it uses."""
        return self._keys.keys.epoch if self._keys.keys is not None else None

    async def get(self, url: str, **more: Any) -> L8Answer:
        """GET; see `request`."""
        return await self.request("GET", url, **more)

    async def head(self, url: str, **more: Any) -> L8Answer:
        """HEAD; see `request`."""
        return await self.request("HEAD", url, **more)

    async def post(self, url: str, data: Body = None, **more: Any) -> L8Answer:
        """POST; see `request`."""
        return await self.request("POST", url, data=data, **more)

    async def put(self, url: str, data: Body = None, **more: Any) -> L8Answer:
        """PUT; see `request`."""
        return await self.request("PUT", url, data=data, **more)

    async def patch(self, url: str, data: Body = None, **more: Any) -> L8Answer:
        """PATCH; see `request`."""
        return await self.request("PATCH", url, data=data, **more)

    async def delete(self, url: str, **more: Any) -> L8Answer:
        """DELETE; see `request`."""
        return await self.request("DELETE", url, **more)

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Headers = (),
        data: Body = None,
        json: Any = None,
        redirects: int = REDIRECTS,
        timeout: float | None = None,
    ) -> L8Answer:
        """Ask, and give the answer as soon as its head is there; raises `L8Error`.

        `data` is bytes, text, a form's fields, or what gives bytes when it is iterated over; such a request is never
        sent again. `redirects` are followed within the gateway's own names; 0 gives the redirect itself.
        """
        seconds = self._timeout if timeout is None else timeout
        work = self._follow(method, url, params, headers, data, json, redirects)
        if seconds is None:
            return await work
        task = Deferred.fromCoroutine(work)
        task.addTimeout(seconds, self._reactor)
        try:
            return await task
        except Late:
            raise L8Error("slow", "relay", f"{seconds:g} s are over") from None

    async def connect(self) -> None:
        """Get the keys now, also after they were refused; raises `L8Error`."""
        self._keys.connect(self._wall())
        self._look()
        await self._ready()

    async def close(self) -> None:
        """End every request and every connection."""
        self._keys.close()
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
        for relay in self._relays:
            relay.pool.abort()
        self._tell()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Close it."""
        await self.close()

    async def _follow(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Headers,
        data: Body,
        json: Any,
        redirects: int,
    ) -> L8Answer:
        told, body = _fields(headers), _content(data, json)
        kind = _kind(data, json)
        if kind is not None and not any(name == "content-type" for name, _ in told):
            told = sorted([*told, ("content-type", kind)])
        word = _method(method)
        allowed = Allowed.of((await self._ready()).authorities).pairs
        target = _url(self._base(allowed), url, "argument")
        if params:
            target = evolve(target, query="&".join(filter(None, (target.query, urlencode(params)))))
        if (target.scheme, target.authority) not in allowed:
            raise L8Error("unknown", "page", target.authority)
        ask = _Ask(word, target, told, body, allowed)
        redirected = False
        for left in range(redirects, -1, -1):
            answer = await self._ask(ask)
            location = answer.header("location")
            if answer.status not in (301, 302, 303, 307, 308) or location is None or not redirects:
                answer.redirected = redirected
                return answer
            answer.close()
            if not left:
                break
            redirected = True
            ask = _onward(ask, answer.status, location)
        raise L8Error("redirect", "backend", f"more than {redirects} of them")

    def _base(self, allowed: frozenset[tuple[str, str]]) -> Url:
        """Give what relative URLs are relative to."""
        keys = self._keys.keys
        authority = self._authority or (keys.authorities[0] if keys is not None else "")
        scheme, _, host = authority.rpartition("://")
        host = host.lower()
        return Url(scheme or ("https" if ("https", host) in allowed else "http"), host, "/", None)

    async def _ask(self, ask: _Ask) -> L8Answer:
        ask.resent = False
        date = None
        while True:
            keys = await self._ready()
            trip, place = self._seal(ask, keys, self._wall() if date is None else date)
            found = await self._carry(trip, ask.body)
            if isinstance(found, Response):
                return self._answer(ask, trip, found, place)
            if found.code == "keys":
                self._doubted = True
                self._keys.unknown(self._wall())
                self._look()
            if found.resend is None or not isinstance(ask.body, bytes):
                raise _error(found)
            ask.resent = True
            date = await self._rest(found)

    async def _rest(self, failure: Failure) -> float | None:
        """Wait as long as a failure asks for, and give the time of day to say, if it is not ours."""
        if failure.resend is Resend.KEYS:
            while self._looking is not None:
                await self._change()
            return None
        dated = failure.resend is Resend.DATE
        seconds = self._chance.uniform(0.1, 1.0) if dated else failure.after + self._chance.random()
        await deferLater(self._reactor, seconds, lambda: None)
        return failure.date if dated else None

    def _seal(self, ask: _Ask, keys: KeySet, date: float) -> tuple[Trip, Place]:
        scheme, authority, path = ask.url.scheme, ask.url.authority, ask.url.target
        place = Place.of(scheme, authority, path)
        fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in ask.headers]
        cookies = b"" if self.jar is None else self.jar.header(place, self._wall())
        if cookies:
            fields.append((b"cookie", cookies))
        if self._compress and not any(name == b"accept-encoding" for name, _ in fields):
            fields.append((b"accept-encoding", self._compress.encode()))
        request = Request(ask.method.encode(), scheme.encode(), authority.encode(), path.encode("ascii"), tuple(fields))
        length = len(ask.body) if isinstance(ask.body, bytes) else None
        try:
            exchange = ClientExchange(
                keys,
                dressed(request, f"{scheme}://{authority}", date),
                Private.make(),
                self._reactor.seconds(),
                length=length,
                pad=self._pad,
                resent=ask.resent,
            )
        except (LocalProtocolError, RemoteProtocolError) as error:
            raise L8Error("argument", "page", str(error)) from None
        return Trip(self._reactor, exchange), place

    async def _carry(self, trip: Trip, body: bytes | AsyncIterator[bytes]) -> Response | Failure:
        """Take the request to the first relay that there is a connection to: nothing has been sent before that."""
        why = ""
        for relay in list(self._relays):
            dial = relay.pool.take()
            busy = relay.pool.open >= relay.pool.most
            dial.addTimeout(QUEUE_TIME if busy else DIAL_TIME + self._slower, self._reactor, _late)
            try:
                line = await dial
            except Unavailable as error:
                why = str(error)
                continue
            self._relays.remove(relay)
            self._relays.insert(0, relay)
            try:
                return await trip.send(line, f"{relay.site.path}/r/{self.gateway}", relay.site.authority, body)
            except LocalProtocolError as error:
                trip.cut()
                raise L8Error("too-large", "page", str(error)) from None
            except BaseException:
                trip.cut()
                raise
        if self._keys.state is State.CLOSED:
            raise L8Error("closed", "page")
        raise L8Error("unreachable", "relay", why)

    def _answer(self, ask: _Ask, trip: Trip, head: Response, place: Place) -> L8Answer:
        if self.jar is not None:
            self.jar.store((value for name, value in head.fields if name == b"set-cookie"), place, self._wall())
        fields = list(_texts(head.fields))
        plain = None
        if self._compress and ("content-encoding", "gzip") in [(name, value.lower()) for name, value in fields]:
            plain = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if ask.method != "HEAD" else None
        return L8Answer(head.status, fields, str(ask.url), False, trip, plain)

    async def _ready(self) -> KeySet:
        """Give the keys, once they are there; raises `L8Error`."""
        for _ in range(2):
            keys = self._keys.wanted(self._wall())
            self._look()
            if keys is not None and not (self._doubted and self._looking is not None):
                return keys
            while self._looking is not None:
                await self._change()
            if self._keys.state not in (State.IDLE, State.READY, State.REFRESHING) or self._keys.keys is None:
                break
        if self._keys.state is State.CLOSED:
            raise L8Error("closed", "page")
        if self._keys.state is State.FAILED and self._keys.flaw is not None:
            raise L8Error(f"keys-{self._keys.flaw.value}", "relay")
        raise L8Error("unreachable", "relay", "none has given the gateway's keys")

    def _look(self) -> None:
        """Ask the relays for the keys, if that is due; one look at a time."""
        asked = any(isinstance(one, Tell) and isinstance(one.what, Ask) for one in self._keys.effects())
        if asked and self._looking is None:
            self._looking = looking = Deferred.fromCoroutine(self._collect())
            looking.addErrback(_cancelled)
            if looking.called:
                self._looking = None

    async def _collect(self) -> None:
        asked = [Deferred.fromCoroutine(self._document(relay)) for relay in self._relays]
        found: list[bytes] = []
        try:
            for one in asked:
                document = await one
                found += [document] if document is not None else []
        except CancelledError:
            for one in asked:
                one.cancel()
                one.addErrback(lambda _: None)
            raise
        self._keys.came(found, self._wall())
        self._keys.effects()
        self._looking = None
        self._doubted = False
        self._tell()

    async def _document(self, relay: _Relay) -> bytes | None:
        site = relay.site
        path = f"{site.path}/r/{self.gateway}/keys"
        asked = Deferred.fromCoroutine(fetch(relay.pool, "GET", path, site.authority, most=KEYS_MAX))
        asked.addTimeout(KEYS_TIME + self._slower, self._reactor, _late)
        try:
            answer = await asked
        except CancelledError:
            raise
        except Layer8Error:
            return None
        return answer.body if answer.status == 200 else None

    def _change(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:
                one.callback(None)


def _late(_: object, seconds: float) -> Any:
    raise Unavailable(f"no connection within {seconds:g} s")


def _cancelled(failure: TwistedFailure) -> None:
    failure.trap(CancelledError)


def _error(failure: Failure) -> L8Error:
    return L8Error(failure.code, failure.leg.value)


def _texts(fields: Fields) -> list[tuple[str, str]]:
    return [(name.decode("ascii"), value.decode("latin-1")) for name, value in fields]


def _method(method: str) -> str:
    upper = method.upper()
    if upper in ("CONNECT", "TRACE", "TRACK"):
        raise L8Error("argument", "page", f"{upper} does not go through a tunnel")
    return upper if upper in ("DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT") else method  # as `fetch` does it


def _fields(headers: Headers) -> list[tuple[str, str]]:
    """Give them as browsers do, in order and once each: nobody is to see by them which client it is."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    joined: dict[str, str] = {}
    for name, value in ((name.lower(), value.strip(" \t\r\n")) for name, value in pairs):
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    found = sorted(joined.items())
    for name, value in found:
        if not name.isascii() or any(letter in value for letter in "\0\r\n") or any(ord(one) > 255 for one in value):
            raise L8Error("argument", "page", "a header of other letters")
        if name in ("cookie", "host", "content-length", "connection", "transfer-encoding", "expect", "upgrade"):
            raise L8Error("argument", "page", f"{name} is not the caller's to set")
    return found


def _content(data: Body, json: Any) -> bytes | AsyncIterator[bytes]:
    if json is not None:
        return codec.dumps(json).encode()
    if isinstance(data, str):
        return data.encode()
    return urlencode(data).encode() if isinstance(data, Mapping) else data or b""


def _kind(data: Body, json: Any) -> str | None:
    """Give the type of a content that says by its form what it is."""
    if json is not None:
        return "application/json"
    if isinstance(data, str):
        return "text/plain;charset=UTF-8"
    return "application/x-www-form-urlencoded;charset=UTF-8" if isinstance(data, Mapping) else None


def _url(base: Url, text: str, code: str) -> Url:
    try:
        return urls.resolve(base, text)
    except ConfigError as error:
        raise L8Error(code, "backend" if code == "redirect" else "page", str(error)) from None


def _onward(ask: _Ask, status: int, location: str) -> _Ask:
    """Give the request that a redirect leads to (Fetch, section 4.4)."""
    raw = location.encode("latin-1")  # browsers take it for UTF-8, if it can be
    url = _url(ask.url, raw.decode("utf-8") if _is_utf8(raw) else location, "redirect")
    if (url.scheme, url.authority) not in ask.allowed:
        raise L8Error("redirect", "backend", f"it leaves the tunnel, to {url.authority}")
    if (url.scheme, url.authority) != (ask.url.scheme, ask.url.authority):
        ask = evolve(ask, headers=[(name, value) for name, value in ask.headers if name != "authorization"])
    changed = (status in (301, 302) and ask.method == "POST") or (status == 303 and ask.method not in ("GET", "HEAD"))
    if not changed:
        if not isinstance(ask.body, bytes):
            raise L8Error("redirect", "backend", "the content that was sent is gone")
        return evolve(ask, url=url, resent=False)
    headers = [(name, value) for name, value in ask.headers if not name.startswith("content-")]
    return evolve(ask, method="GET", url=url, headers=headers, body=b"", resent=False)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
