"""Where an opened request may go: one of the names that the gateway answers for, and a path that stays below its root.

No URL is ever joined: what comes out are a path and a query that no one parses again. Whatever two programs could read
in two ways is refused (`Malformed`, 400): each such doubt is somebody's way around a rule of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

from layer8.core.errors import ConfigError
from layer8.tunnel.bhttp import Fields, Malformed, Request
from layer8.tunnel.limits import AUTHORITIES, MAX_AUTHORITY, MAX_PATH

# What belongs to a connection, or tells who and whence: a gateway neither takes nor gives any of it.
HOP: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"te", b"trailer", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization", b"http2-settings"),
    )
)
ENCAPSULATED: Final = b"l8-encapsulated"  # by which a backend knows what has come sealed
OURS: Final = (ENCAPSULATED, b"l8-token")  # fields that only a gateway sets
SPOKEN_FOR: Final = frozenset((b"forwarded", b"via", b"x-real-ip", *OURS))
SPOKEN_FOR_PREFIX: Final = b"x-forwarded-"

_REFUSED: Final = frozenset((b"expect", b"upgrade"))
_UNHEARD: Final = HOP | SPOKEN_FOR | {b"content-length", b"host"}

_AUTHORITY = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?|\[[0-9a-f:]+\]"
).fullmatch
_PORT = re.compile(r"[1-9][0-9]{0,4}").fullmatch
_DOUBTFUL = re.compile(
    r"%00|%u[0-9a-f]{4}"  # a zero, and what only one maker's servers decode
    r"|%c[01]%[89ab][0-9a-f]|%e0%[89][0-9a-f]|%f0%8[0-9a-f]",  # longer forms of letters than UTF-8 has
    re.IGNORECASE,
).search
# Letters that nobody reads in two ways, and no dot at the beginning of a segment: nothing is there to be resolved.
_PLAIN = re.compile(r"(?:/[\w~!$&'(),*=+:@-][\w.~!$&'(),*=+:@-]*)+/?", re.ASCII).fullmatch
_DOT = re.compile(r"%2e", re.IGNORECASE).sub
_SEPARATOR = re.compile(r"%2f|%5c|[\\/]", re.IGNORECASE).split


@frozen
class Allowed:
    """The names that a gateway answers for, as `https` or, where it says so, as `http`."""

    pairs: frozenset[tuple[str, str]] = field(repr=False)

    @classmethod
    def of(cls, names: Iterable[str]) -> Allowed:
        """Take `shop.example`, `shop.example:8443` or `http://localhost`; raises `ConfigError`."""
        pairs = set()
        for name in names:
            scheme, found, authority = name.lower().rpartition("://")
            host, colon, port = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
            host = host if colon else authority
            wrong_port = colon and (_PORT(port) is None or int(port) > 65_535)
            if (found and scheme not in ("http", "https")) or _AUTHORITY(host) is None or wrong_port:
                raise ConfigError(f"{name!r} is no authority: write a host name, with a port if it has one")
            pairs.add((scheme or "https", authority))
        if not 0 < len(pairs) <= AUTHORITIES:
            raise ConfigError(f"a gateway answers for 1 to {AUTHORITIES} authorities")
        return cls(frozenset(pairs))


@frozen
class Target:
    """Where a request goes; `path` begins with one slash and has no dots to climb by, `query` is as it came."""

    scheme: str
    authority: str
    path: str
    query: str

    @property
    def origin(self) -> str:
        """Give the origin that browsers name it by."""
        return f"{self.scheme}://{self.authority}"


def find(request: Request, allowed: Allowed) -> Target:
    """Check the head of an opened request; raises `Malformed`."""
    if request.method == b"CONNECT":
        raise Malformed("a tunnel is no target", 400)
    hosts: list[bytes] = []
    for name, value in request.fields:
        if name == b"host":
            hosts.append(value)
        if name in _REFUSED or len(hosts) > 1:
            raise Malformed("a request that expects, upgrades, or names two hosts")
    authority = (request.authority or b"".join(hosts)).decode("ascii", "replace").lower()
    if hosts and hosts[0].decode("ascii", "replace").lower() != authority:
        raise Malformed("a request that names two hosts")
    scheme = request.scheme.decode("ascii", "replace").lower()
    if len(authority) > MAX_AUTHORITY or (scheme, authority) not in allowed.pairs:
        raise Malformed("a request for somebody else")
    text = request.path.decode("ascii", "replace")
    path, _, query = text.partition("?")
    if "#" in text:
        raise Malformed("a path with a fragment")
    return Target(scheme, authority, normal(path), query)


def normal(path: str) -> str:
    """Resolve the dots of a path; raises `Malformed` for one that climbs above its root, or that leaves doubt."""
    if len(path) > MAX_PATH:
        raise Malformed(f"over the limit MAX_PATH of {MAX_PATH}", 414)
    if path == "/" or _PLAIN(path) is not None:
        return path
    if not path.startswith("/") or path.startswith("//") or not path.isascii() or not path.isprintable():
        raise Malformed("a path that begins with other than one slash, or has strange letters")
    if " " in path or "\\" in path or _DOUBTFUL(path) is not None:
        raise Malformed("a path that programs read in two ways")
    kept: list[str] = []
    *folders, last = path[1:].split("/")
    for segment in (*folders, last):
        plain = _DOT(".", segment)
        if plain == "..":
            if not kept:
                raise Malformed("a path that climbs above its root")
            kept.pop()
        elif plain != ".":
            # Behind a semicolon stand parameters, for some; and some take a separator that is written as %2F for one.
            if any(part.partition(";")[0] in (".", "..") for part in _SEPARATOR(plain)):
                raise Malformed("a path with dots that only some would see")
            kept.append(segment)
    if _DOT(".", last) in (".", ".."):
        kept.append("")
    if len(kept) > 1 and not kept[0]:
        raise Malformed("a path that begins with two slashes once its dots are gone")
    return "/" + "/".join(kept)


def told(fields: Fields) -> Fields:
    """Give the fields that the backend hears: none of a connection, none that speaks for us, no second length.

    Nor any with `_` in its name: where names are those of CGI it is another one's, and SCRIPT_NAME moves the path.
    """
    gone = _with_named(_UNHEARD, fields)
    return tuple(
        [
            one
            for one in fields
            if one[0] not in gone and not one[0].startswith(SPOKEN_FOR_PREFIX) and b"_" not in one[0]
        ]
    )


def answered(fields: Fields) -> Fields:
    """Give the fields of a backend's answer that go to the page: none of a connection."""
    gone = _with_named(HOP, fields)
    return tuple([one for one in fields if one[0] not in gone])


def _with_named(gone: frozenset[bytes], fields: Fields) -> frozenset[bytes]:
    """Add the fields that Connection says belong to it."""
    for name, value in fields:
        if name == b"connection":
            gone |= {one.strip().lower() for one in value.split(b",")}
    return gone
