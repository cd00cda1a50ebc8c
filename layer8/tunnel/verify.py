"""Looks at a site's app and at its gateways' keys from several places, for `layer8 verify`; `checks` judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults

from layer8.core.errors import ConfigError, Layer8Error, LimitExceeded, RemoteProtocolError, TimedOut
from layer8.net.http_client import Pool, fetch
from layer8.net.site import Site
from layer8.tunnel.checks import WAICT_FIELD, WEBCAT_PATH, Check, Got, Keys, Seen, View, checks
from layer8.tunnel.integrity import MANIFEST_MOST, OLD, PATH, BadManifest, Manifest, waict
from layer8.tunnel.limits import KEYS_MAX
from layer8.tunnel.manifest import FILE_MOST, SITE_MOST, from_wheel

AT_ONCE: Final = 8  # requests to one place
PATIENCE: Final = 60.0  # seconds for one file; a way through a network builds circuits first
MORE: Final = 16 * 1024  # bytes that a swapped file may be longer and still be looked into
HISTORY: Final = 256  # earlier manifests that are asked for

Step = Callable[[str], None]
"""Is told what is looked at."""


@frozen
class Report:
    """What was found, and what there was to see: None if there is no manifest to trust."""

    checks: Sequence[Check]
    places: Sequence[str]
    manifest: Manifest | None
    data: bytes = b""


@define(eq=False)
class _Place:
    """Somewhere to look from."""

    name: str
    via: str
    site: Site
    pool: Pool
    turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(AT_ONCE))

    async def get(self, clock: Any, path: str, most: int) -> Got:
        """Ask for one file."""
        await self.turns.acquire()
        try:
            asked = Deferred.fromCoroutine(
                fetch(self.pool, "GET", f"{self.site.path}{path}", self.site.authority, most=most)
            )
            asked.addTimeout(PATIENCE, clock, _late)
            answer = await asked
        except CancelledError:
            raise
        except LimitExceeded:
            return Got(200, why="it is longer than it may be")
        except Layer8Error as error:
            return Got(0, why=str(error))
        finally:
            self.turns.release()
        told: dict[str, str] = {}
        for name, value in answer.fields:
            told[name] = f"{told[name]}, {value}" if name in told else value
        return Got(answer.status, told, answer.body)


async def verify(
    reactor: Any,
    url: str,
    *,
    now: float,
    vias: Sequence[str] = (),
    publisher: bytes = b"",
    seen: Seen | None = None,
    ca: str = "",
    step: Step = lambda what: None,
) -> Report:
    """Look at everything and say what is so. Raises `ConfigError` for what cannot be asked at all.

    Raises `RemoteProtocolError` for a manifest of more files than anybody looks at.

    `vias` are further places, as `net.site` has them; `now` is seconds since 1970.
    """
    places = [_place(reactor, url, via, ca) for via in ("", *vias)]
    relays: list[_Place] = []
    try:
        step("the manifest")
        first = await _each(places, lambda place: place.get(reactor, PATH, MANIFEST_MOST))
        made = _peek(first[0])
        views = []
        for place, manifest in zip(places, first, strict=True):
            step(f"the files {place.name}")
            views.append(View(place.name, {PATH: manifest, **await _files(reactor, place, made)}))
        keys: list[Keys] = []
        old: list[bytes] = []
        if made is not None:
            step("the gateways' keys")
            proxies = ["", *(via for via in vias if via.partition(":")[0] in ("socks5", "tor"))]
            relays = [_place(reactor, relay, via, ca) for relay in made.relays for via in proxies]
            keys = await _keys(reactor, made, relays)
            step("earlier manifests")
            old = await _old(reactor, places[0], made, seen)
        found, trusted = checks(views, keys, now=now, publisher=publisher, seen=seen, old=old, wheel=from_wheel)
        return Report(found, [place.name for place in places], trusted, views[0].body(PATH) or b"")
    finally:
        for place in (*places, *relays):
            place.pool.abort()


def _place(reactor: Any, url: str, via: str, ca: str) -> _Place:
    site = Site.of(url, via=via, ca=ca)
    return _Place(f"by {via}" if via else "directly", via, site, site.pool(reactor))


def _peek(got: Got) -> Manifest | None:
    """Give the manifest that says what to look at; whether it is to be trusted is another question."""
    try:
        return Manifest.first(got.body) if got.status == 200 else None
    except BadManifest:
        return None


async def _files(reactor: Any, place: _Place, made: Manifest | None) -> dict[str, Got]:
    if made is None:
        return {"/": await place.get(reactor, "/", FILE_MOST)}
    sizes = {path: min(file.size, FILE_MOST) + MORE for path, file in made.files.items()}
    if sum(file.size for file in made.files.values()) > SITE_MOST:
        raise RemoteProtocolError(f"{place.site.url}: the manifest speaks of more than {SITE_MOST} bytes of files")
    sizes |= {"/": sizes.get("/index.html", FILE_MOST), WEBCAT_PATH: MANIFEST_MOST}
    found = await _each(list(sizes), lambda path: place.get(reactor, path, sizes[path]))
    got = dict(zip(sizes, found, strict=True))
    if WAICT_FIELD in got["/"].fields:
        path = waict(made.files)[0]
        got[path] = await place.get(reactor, path, MANIFEST_MOST)
    return got


async def _keys(reactor: Any, made: Manifest, relays: Sequence[_Place]) -> list[Keys]:
    asked = [(name, place) for name, one in made.gateways.items() for place in relays if _same(place.site, one.relays)]
    found = await _each(asked, lambda pair: pair[1].get(reactor, f"/r/{pair[0]}/keys", KEYS_MAX))
    return [
        Keys(name, place.site.url, place.name, got.body if got.status == 200 else None)
        for (name, place), got in zip(asked, found, strict=True)
    ]


def _same(site: Site, relays: Iterable[str]) -> bool:
    return site.url in [relay.lower() for relay in relays]


async def _old(reactor: Any, place: _Place, made: Manifest, seen: Seen | None) -> list[bytes]:
    least = max(seen.version if seen is not None else 1, made.version - HISTORY, 1)
    if not made.prev or (seen is not None and seen.version >= made.version):
        return []
    versions = range(made.version - 1, least - 1, -1)
    found = await _each(versions, lambda version: place.get(reactor, OLD.format(version), MANIFEST_MOST))
    return [got.body for got in found if got.status == 200]


async def _each(what: Iterable[Any], call: Callable[[Any], Any]) -> list[Any]:
    asked = [Deferred.fromCoroutine(call(one)) for one in what]
    return list(await gatherResults(asked, consumeErrors=True))


def _late(_: object, seconds: float) -> Any:
    raise TimedOut(f"no answer within {seconds:g} s")


def check_url(url: str) -> str:
    """Give the URL of a site as its origin; raises `ConfigError`."""
    site = Site.of(url)
    if site.path:
        raise ConfigError("an app is at the top of its origin: write https://HOST/")
    return site.url
