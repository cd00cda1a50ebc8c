"""The cookies of one gateway, as browsers keep them (RFC 6265 and its revision): sent inside of the seal only.

Nothing here reads a clock: `now` is seconds since 1970. Bytes that are no ASCII come and go as they are. A jar belongs
to one gateway and is asked for the hosts of that gateway only, so it needs no list of public suffixes; a domain without
a dot is taken from that very host alone. All requests of a page come from the origin that they go to, so SameSite has
no effect.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from attrs import evolve, field, frozen

COOKIES: Final = 50  # of one jar; the one that has been unused longest goes
COOKIE: Final = 4096  # bytes of a name and its value; a larger cookie is passed over
ATTRIBUTE: Final = 1024  # bytes of an attribute's value; a longer one is passed over
LONGEST: Final = 400 * 86_400  # seconds that a cookie may live (the revision's bound)

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
_DELIMITER = re.compile(r"[\t\x20-\x2f\x3b-\x40\x5b-\x60\x7b-\x7e]+").split
_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\D|\Z)", re.ASCII).match
_DAY = re.compile(r"(\d{1,2})(?:\D|\Z)", re.ASCII).match
_YEAR = re.compile(r"(\d{2,4})(?:\D|\Z)", re.ASCII).match
_SECONDS = re.compile(r"-?\d{1,19}", re.ASCII).fullmatch
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@frozen
class Place:
    """Where a request goes: what decides which cookies it has and may set."""

    scheme: str
    host: str  # without its port, in lower case
    path: str  # without its query

    @classmethod
    def of(cls, scheme: str, authority: str, path: str) -> Place:
        """Take the parts of a request's target."""
        host = authority.lower()
        if not host.endswith("]"):
            host = host.rpartition(":")[0] or host
        return cls(scheme, host.strip("[]"), path.partition("?")[0] or "/")

    @property
    def secure(self) -> bool:
        """Whether nobody on the way can read it: by https, or on this machine."""
        loopback = self.host in ("localhost", "::1") or self.host.endswith(".localhost") or self.host.startswith("127.")
        return self.scheme == "https" or loopback

    @property
    def folder(self) -> str:
        """Give the default path of cookies (RFC 6265, section 5.1.4)."""
        return self.path[: self.path.rfind("/")] or "/" if self.path.startswith("/") else "/"


@frozen
class Cookie:
    """One cookie as it is kept."""

    name: str
    value: str = field(repr=False)
    domain: str
    path: str
    host_only: bool
    secure: bool
    expires: float | None  # None: as long as the jar
    made: float
    order: int  # of cookies that were made in the same instant
    used: float

    @property
    def key(self) -> tuple[str, str, str]:
        """Give what it takes the place of."""
        return self.domain, self.path, self.name

    def goes_to(self, place: Place, now: float) -> bool:
        """Say whether it is sent there."""
        host = place.host == self.domain if self.host_only else _within(place.host, self.domain)
        return host and _below(place.path, self.path) and (place.secure or not self.secure) and not self.over(now)

    def over(self, now: float) -> bool:
        """Say whether its time is over."""
        return self.expires is not None and self.expires <= now


class Jar:
    """See the module."""

    def __init__(self) -> None:
        """Begin with no cookie."""
        self._cookies: dict[tuple[str, str, str], Cookie] = {}
        self._made = 0

    def __len__(self) -> int:
        """Count them."""
        return len(self._cookies)

    def store(self, lines: Iterable[bytes], place: Place, now: float) -> None:
        """Take the values of an answer's Set-Cookie fields, one each."""
        for line in lines:
            cookie = _read(line.decode("latin-1"), place, now)
            if cookie is not None:
                self._put(cookie, place, now)

    def header(self, place: Place, now: float) -> bytes:
        """Give the value of a request's Cookie field, nothing if there is none."""
        for key in [key for key, one in self._cookies.items() if one.over(now)]:
            del self._cookies[key]
        found = [one for one in self._cookies.values() if one.goes_to(place, now)]
        for one in found:
            self._cookies[one.key] = evolve(one, used=now)
        found.sort(key=lambda one: (-len(one.path), one.made, one.order))
        pairs = [f"{one.name}={one.value}" if one.name else one.value for one in found]
        return "; ".join(pairs).encode("latin-1")

    def clear(self) -> None:
        """Forget them all."""
        self._cookies.clear()

    def dump(self) -> list[dict[str, Any]]:
        """Give them as JSON takes them, for who keeps them; they are secret."""
        names = [attribute.name for attribute in Cookie.__attrs_attrs__]
        return [{name: getattr(one, name) for name in names} for one in self._cookies.values()]

    @classmethod
    def load(cls, kept: Iterable[dict[str, Any]]) -> Jar:
        """Take what `dump` has given."""
        jar = cls()
        for told in kept:
            one = Cookie(**told)
            jar._cookies[one.key] = one
            jar._made = max(jar._made, one.order)
        return jar

    def _put(self, cookie: Cookie, place: Place, now: float) -> None:
        old = self._cookies.get(cookie.key)
        if not place.secure and any(_hides(one, cookie) for one in self._cookies.values()):
            return
        self._made += 1
        made, order = (old.made, old.order) if old is not None else (now, self._made)
        if cookie.over(now):
            self._cookies.pop(cookie.key, None)
            return
        self._cookies[cookie.key] = evolve(cookie, made=made, order=order)
        if len(self._cookies) > COOKIES:
            gone = [key for key, one in self._cookies.items() if one.over(now)]
            if not gone:
                gone = [min(self._cookies.values(), key=lambda one: (one.used, one.order)).key]
            for key in gone:
                del self._cookies[key]


def _read(line: str, place: Place, now: float) -> Cookie | None:
    """Read one Set-Cookie (section 5.2, and 5.3 up to what needs the jar)."""
    if _CONTROL(line) is not None:
        return None
    pair, *rest = line.split(";")
    name, equals, value = pair.partition("=")
    name, value = (name.strip(" \t"), value.strip(" \t")) if equals else ("", pair.strip(" \t"))
    if not (name or value) or len(name) + len(value) > COOKIE:
        return None
    told: dict[str, str] = {}
    for one in rest:
        word, _, text = one.partition("=")
        text = text.strip(" \t")
        if len(text) <= ATTRIBUTE:
            told[word.strip(" \t").lower()] = text
    domain = told.get("domain", "").lower().removeprefix(".")
    if domain and domain != place.host and (not _within(place.host, domain) or "." not in domain):
        return None
    path = told["path"] if told.get("path", "").startswith("/") else place.folder
    secure = "secure" in told
    if secure and not place.secure:
        return None
    lower = (name or value).lower()
    if lower.startswith("__secure-") and not (secure and name):
        return None
    if lower.startswith("__host-") and not (secure and name and not domain and told.get("path") == "/"):
        return None
    # A domain that is the host itself lets the hosts below it in too, but an address has none below it.
    host_only = not domain or _is_address(place.host)
    return Cookie(name, value, domain or place.host, path, host_only, secure, _expires(told, now), now, 0, now)


def _expires(told: dict[str, str], now: float) -> float | None:
    if _SECONDS(told.get("max-age", "")) is not None:
        seconds = int(told["max-age"])
        return now + min(seconds, LONGEST) if seconds > 0 else float("-inf")
    if "expires" in told:
        at = date(told["expires"])
        return None if at is None else min(at, now + LONGEST)
    return None


def date(text: str) -> float | None:
    """Read a date as cookies have them, in any order and form (section 5.1.1); None for what is none."""
    time = day = month = year = None
    for token in _DELIMITER(text):
        if time is None and (found := _TIME(token)) is not None:
            time = [int(one) for one in found.groups()]
        elif day is None and (found := _DAY(token)) is not None:
            day = int(found[1])
        elif month is None and token[:3].lower() in _MONTHS:
            month = _MONTHS.index(token[:3].lower()) + 1
        elif year is None and (found := _YEAR(token)) is not None:
            year = int(found[1])
    if time is None or day is None or month is None or year is None:
        return None
    year += 1900 if 70 <= year <= 99 else 2000 if year <= 69 else 0
    try:
        hour, minute, second = time
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp() if year >= 1601 else None
    except ValueError:
        return None


def _within(host: str, domain: str) -> bool:
    """Whether a host is a domain or below it (section 5.1.3)."""
    return host == domain or (host.endswith(f".{domain}") and not _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _below(path: str, folder: str) -> bool:
    """Whether a path is a cookie's path or below it (section 5.1.4)."""
    return path == folder or (path.startswith(folder) and (folder.endswith("/") or path[len(folder)] == "/"))


def _hides(old: Cookie, new: Cookie) -> bool:
    """Whether a cookie of http would lie over one of https that it cannot read."""
    near = _within(old.domain, new.domain) or _within(new.domain, old.domain)
    return old.secure and old.name == new.name and near and _below(new.path, old.path)
