"""Gateways' key sets at a relay: one copy of each, looked for on its own clock, and compared with other relays'.

A gateway that is asked when the relay likes, and whose answer goes to everybody, cannot tell people apart by their
keys. One that gives different relays different keys is found out: every hour the copies of the other relays that the
operator, or the app's manifest, names are looked at, and two that differ within one epoch are told to whoever operates
this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from layer8.core.errors import Layer8Error, RemoteProtocolError
from layer8.net.http import Incoming
from layer8.net.http_client import Pool, fetch
from layer8.net.tasks import TaskSet
from layer8.net.ways import connector
from layer8.tunnel import jws, wire
from layer8.tunnel.keys import SET_TYPE
from layer8.tunnel.limits import KEYS_MAX
from layer8.tunnel.relay_keys import KeyCopy
from layer8.tunnel.relay_session import COMMON, EXPOSED
from layer8.tunnel.wire import KEYS_TYPE, PROBLEM_TYPE

FETCH_TIME: Final = 30.0  # seconds for a key set, a circuit on the way included
RETRY_FIRST: Final = 1.0  # seconds after which a gateway that has given none is asked again; twice as many each time
RETRY_LAST: Final = 60.0
FIRST_TIME: Final = 5.0  # seconds that pages wait for the first answer of a gateway
WAITERS: Final = 1024  # of them at once
COMPARE_EVERY: Final = 3600.0  # seconds
COMPARED: Final = 16  # other relays of one gateway

PREFLIGHT: Final = (
    *COMMON,
    ("access-control-allow-methods", "GET"),
    ("access-control-allow-headers", "content-type"),
    ("access-control-max-age", "7200"),
)


@frozen
class Source:
    """Where a gateway's key set is, and who may be asked whether it is everybody's; `others` are relays' base URLs."""

    path: str
    host: str
    bearer: str = field(default="", repr=False)
    others: tuple[str, ...] = ()


@define(eq=False)
class Kept:
    """What is known of one gateway's keys."""

    gateway: str
    source: Source
    copy: KeyCopy
    pool: Pool
    tried: int = 0  # times in a row that there was no answer
    apart: tuple[str, ...] = ()  # other relays that have other keys of the same epoch
    asked: bool = False  # it has been asked once
    since: float | None = None  # when it was asked with success
    waiters: list[Deferred[None]] = field(factory=list, repr=False)
    timer: IDelayedCall | None = field(default=None, repr=False)

    @property
    def document(self) -> bytes | None:
        """The set as it is given to pages."""
        return self.copy.document

    @property
    def epoch(self) -> int | None:
        """The epoch that the set names."""
        return None if self.copy.document is None else _epoch(self.copy.document)


class Keeping:
    """See the module; `told(kept)` hears of every look."""

    def __init__(
        self,
        clock: Any,
        wall: Callable[[], float],
        log: Logger,
        told: Callable[[Kept], None],
    ) -> None:
        """Keep nothing yet."""
        self._clock = clock
        self._wall = wall
        self._log = log
        self._told = told
        self._tasks = TaskSet(log)
        self._compare: IDelayedCall | None = None
        self._running = False
        self.kept: dict[str, Kept] = {}

    def configure(self, sources: Mapping[str, tuple[Source, Pool, tuple[bytes, ...]]]) -> None:
        """Keep these from now on; one that is as it was keeps its copy."""
        for gateway in set(self.kept) - set(sources):
            self._forget(self.kept.pop(gateway))
        for gateway, (source, pool, identities) in sources.items():
            old = self.kept.get(gateway)
            if old is not None and (old.source, old.pool, old.copy.identities) == (source, pool, identities):
                continue
            if old is not None:
                self._forget(old)
            self.kept[gateway] = Kept(gateway, source, KeyCopy(gateway, identities), pool)
            if self._running:
                self._look(self.kept[gateway])

    def age(self, kept: Kept) -> int:
        """Give the seconds since a gateway was asked with success, 0 if it never was."""
        return 0 if kept.since is None else int(self._clock.seconds() - kept.since)

    def start(self) -> None:
        """Begin to ask."""
        self._running = True
        self._tasks = TaskSet(self._log)
        for kept in self.kept.values():
            self._look(kept)
        self._compare = self._clock.callLater(COMPARE_EVERY / 60, self._compare_all)

    def stop(self) -> Deferred[None]:
        """Ask no more."""
        self._running = False
        for kept in self.kept.values():
            self._forget(kept)
        if self._compare is not None:
            self._compare.cancel()
            self._compare = None
        return self._tasks.stop()

    def hurry(self, gateway: str) -> None:
        """Take that a gateway has another key than a page thought: look sooner, if the last look is long ago enough."""
        kept = self.kept.get(gateway)
        if kept is not None and kept.document is not None and not kept.tried:  # else the next look is near
            kept.copy.answered(wire.OHTTP_KEY)
            self._arm(kept)

    def show(self, page: Incoming, gateway: str) -> None:
        """Answer a request to `/r/GATEWAY/keys`."""
        kept = self.kept.get(gateway)
        if kept is None:
            self._say(page, 404)
        elif page.method == "OPTIONS":
            page.answer(204, PREFLIGHT)
        elif page.method not in ("GET", "HEAD"):
            self._say(page, 405, (("allow", "GET, HEAD, OPTIONS"),))
        elif kept.document is None and not kept.asked and len(kept.waiters) < WAITERS:
            waiter: Deferred[None] = Deferred()
            kept.waiters.append(waiter)
            waiter.addTimeout(FIRST_TIME, self._clock)
            waiter.addBoth(lambda _: self._give(page, kept))
        else:
            self._give(page, kept)

    async def compare(self, kept: Kept) -> None:
        """Look at the other relays' copies."""
        ours = kept.document
        if ours is None:
            return
        apart: list[str] = []
        for relay in kept.source.others[:COMPARED]:
            theirs = await self._theirs(relay, kept.gateway)
            if theirs is not None and differs(kept.copy, ours, theirs):
                apart.append(relay)
        if tuple(apart) != kept.apart:
            kept.apart = tuple(apart)
            if apart:
                self._log.warn(
                    "other relays have other keys of a gateway", event="tunnel.keys_differ", relays=len(apart)
                )
        self._told(kept)

    def _compare_all(self) -> None:
        self._compare = self._clock.callLater(COMPARE_EVERY, self._compare_all)
        for kept in self.kept.values():
            if kept.source.others:
                self._tasks.start("a comparison of keys", self.compare(kept))

    async def _theirs(self, relay: str, gateway: str) -> bytes | None:
        parts = urlsplit(relay)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").replace(":", "\\:")
        way = f"tls:{host}:{port}" if parts.scheme == "https" else f"tcp:{host}:{port}"
        try:
            pool = Pool(self._clock, connector(self._clock, way), most=1)
        except Layer8Error:
            return None
        asked = Deferred.fromCoroutine(fetch(pool, "GET", f"/r/{gateway}/keys", parts.netloc, most=KEYS_MAX))
        try:
            answer = await asked.addTimeout(FETCH_TIME, self._clock)
        except (Layer8Error, TimeoutError):
            return None
        finally:
            pool.abort()
        return answer.body if answer.status == 200 else None

    def _look(self, kept: Kept) -> None:
        if kept.copy.due(self._clock.seconds()):
            self._tasks.start("a look for keys", self._ask(kept))
        else:
            self._arm(kept)

    async def _ask(self, kept: Kept) -> None:
        source = kept.source
        fields = (("authorization", f"Bearer {source.bearer}"),) if source.bearer else ()
        asked = Deferred.fromCoroutine(fetch(kept.pool, "GET", source.path, source.host, fields, most=KEYS_MAX))
        try:
            answer = await asked.addTimeout(FETCH_TIME, self._clock)
            if answer.status != 200:
                raise RemoteProtocolError("a gateway that gives no key set")
            raw_keys(answer.body)
            kept.copy.take(answer.body, self._wall())
            kept.tried, kept.since = 0, self._clock.seconds()
        except CancelledError:
            raise
        except (Layer8Error, TimeoutError) as error:
            kept.tried += 1
            if kept.tried == 1:
                refused = isinstance(error, RemoteProtocolError)
                self._log.warn("no key set of a gateway", event="tunnel.no_keys", refused=refused)
        kept.asked = True
        if self.kept.get(kept.gateway) is kept:
            self._arm(kept)
            self._told(kept)
        self._release(kept)

    def _arm(self, kept: Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        if not self._running:
            return
        now = self._clock.seconds()
        if kept.tried:
            wait = min(RETRY_LAST, RETRY_FIRST * 2 ** min(kept.tried - 1, 16))
        else:
            wait = max(0.0, kept.copy.deadline(now) - now)
        kept.timer = self._clock.callLater(wait, self._again, kept)

    def _again(self, kept: Kept) -> None:
        kept.timer = None
        kept.copy.due(self._clock.seconds())  # counts this look, also one that comes early since the last has failed
        self._tasks.start("a look for keys", self._ask(kept))

    def _forget(self, kept: Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        self._release(kept)

    @staticmethod
    def _release(kept: Kept) -> None:
        waiters, kept.waiters = kept.waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _give(self, page: Incoming, kept: Kept) -> None:
        document = kept.document
        if document is None:
            self._say(page, 503, (("retry-after", "1"), EXPOSED), wire.NOT_FORWARDED)
        elif page.query == "raw":
            page.answer(200, (("content-type", KEYS_TYPE), *COMMON), raw_keys(document))
        elif page.query:
            self._say(page, 404)
        else:
            page.answer(200, (("content-type", SET_TYPE), *COMMON), document)

    @staticmethod
    def _say(
        page: Incoming, status: int, more: Iterable[tuple[str, str]] = (), problem: str = wire.ABOUT_BLANK
    ) -> None:
        fields = (*COMMON, ("content-type", PROBLEM_TYPE), *more)
        page.answer(status, fields, wire.problem(status, problem))


def raw_keys(document: bytes) -> bytes:
    """Give the key configurations in a set, whoever has signed it; raises `RemoteProtocolError`."""
    text = jws.peek(document).get("ohttp_keys")
    if not isinstance(text, str):
        raise RemoteProtocolError("a key set without keys")
    found = jws.unletters(text)
    wire.KeyConfig.read_document(found)
    return found


def differs(copy: KeyCopy, ours: bytes, theirs: bytes) -> bool:
    """Say whether another relay's copy cannot be of the same gateway: not signed by it, or other keys of one epoch."""
    if not copy.genuine(theirs):
        return True
    return _epoch(ours) == _epoch(theirs) and ours != theirs


def _epoch(document: bytes) -> int | None:
    try:
        epoch = jws.peek(document).get("epoch")
    except RemoteProtocolError:
        return None
    return epoch if isinstance(epoch, int) else None
