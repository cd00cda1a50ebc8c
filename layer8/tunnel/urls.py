"""URLs of http and https as browsers read them (URL Standard, as far as these two schemes go): resolved, in ASCII."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from attrs import evolve, frozen

from layer8.core.errors import ConfigError

_PORTS: Final = {"http": "80", "https": "443"}
_ABSOLUTE: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(.*)", re.DOTALL).fullmatch
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]*))?").fullmatch
_DROPPED: Final = re.compile(r"[\t\n\r]").sub
_DOT: Final = re.compile(r"%2e", re.IGNORECASE).sub
_PATH: Final = "!$%&'()+*,/:;=@[]~"
_QUERY: Final = "!$%&()+*,/:;=?@[]~|^`{}\\"


@frozen
class Url:
    """An absolute URL without a fragment."""

    scheme: str
    authority: str  # host in lower case, with the port if it is not the scheme's own
    path: str
    query: str | None  # None: without a question mark

    @property
    def target(self) -> str:
        """Give the path with the query."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    def __str__(self) -> str:
        """Write it."""
        return f"{self.scheme}://{self.authority}{self.target}"


def resolve(base: Url, text: str) -> Url:
    """Read a URL that may be relative to another one; raises `ConfigError` for what leads nowhere."""
    text = _DROPPED("", text.strip("".join(map(chr, range(33))))).partition("#")[0]
    scheme = base.scheme
    match = _ABSOLUTE(text)
    if match is not None:
        scheme, text = match[1].lower(), match[2]
        if scheme not in _PORTS:
            raise ConfigError("a URL of another scheme than https")
        if scheme != base.scheme:
            return _absolute(scheme, text.lstrip("/\\"))
    before, mark, query = text.partition("?")
    before = before.replace("\\", "/")
    if before.startswith("//"):
        return _absolute(scheme, before.lstrip("/") + mark + query)
    asked = _encode(query, _QUERY) if mark else None
    if not before:
        return evolve(base, query=asked if mark else base.query)
    path = before if before.startswith("/") else base.path[: base.path.rfind("/") + 1] + before
    return evolve(base, path=_resolved(path), query=asked)


def _absolute(scheme: str, rest: str) -> Url:
    before, mark, query = rest.partition("?")
    authority, slash, path = before.replace("\\", "/").partition("/")
    if "@" in authority:
        raise ConfigError("a URL with a user")
    return Url(scheme, _host(scheme, authority), _resolved(slash + path), _encode(query, _QUERY) if mark else None)


def _host(scheme: str, authority: str) -> str:
    try:
        if not authority.isascii():
            host, colon, port = authority.partition(":")
            authority = host.encode("idna").decode("ascii") + colon + port
    except UnicodeError:
        raise ConfigError("a URL whose host is no name") from None
    match = _HOST(authority.lower())
    if match is None or int(match[2] or 0) > 65_535:
        raise ConfigError("a URL whose host is no name")
    return match[1] if match[2] in (None, "", _PORTS[scheme]) else f"{match[1]}:{match[2]}"


def _resolved(path: str) -> str:
    kept: list[str] = []
    *folders, last = path.removeprefix("/").split("/")
    for segment in (*folders, last):
        plain = _DOT(".", segment)
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(_encode(segment, _PATH))
    if _DOT(".", last) in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _encode(text: str, safe: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe=safe)
