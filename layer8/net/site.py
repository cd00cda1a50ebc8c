"""A web site by its base URL: what is dialled for it, and by which name it is asked."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from layer8.config.endpoint import quote, split, way
from layer8.core.errors import ConfigError
from layer8.net.http_client import QUEUE, Pool
from layer8.net.ways import connector

_PORTS = {"http": 80, "https": 443}


@frozen
class Site:
    """See the module; `way` is an endpoint string as `config.endpoint.way` reads them."""

    url: str  # without a slash at the end
    scheme: str
    authority: str  # as Host says it
    path: str  # of the URL, without a slash at the end
    way: str

    @classmethod
    def of(cls, url: str, *, via: str = "", ca: str = "") -> Site:
        """Take a URL; raises `ConfigError`.

        `via` is a proxy of this machine on the way (`socks5:127.0.0.1:1080`, `tor:`), or another place that answers
        for the same name (an endpoint string). `ca` is a file with the authorities that may vouch for the site.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise ConfigError(f"{url[:200]!r}: write https://HOST") from None
        plain = url.isascii() and url.isprintable() and " " not in url
        if not plain or not host or parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(f"{url[:200]!r}: write https://HOST")
        found = _way(parts.scheme == "https", host, port, via, ca)
        try:
            way(found)
        except ConfigError as error:
            raise ConfigError(f"{via or url}: {error}") from None
        path = parts.path.rstrip("/")
        return cls(f"{parts.scheme}://{parts.netloc.lower()}{path}", parts.scheme, parts.netloc.lower(), path, found)

    def pool(self, reactor: Any, *, queue: float = QUEUE) -> Pool:
        """Give connections to it; raises `ConfigError` for a file of authorities that cannot be read."""
        return Pool(reactor, connector(reactor, self.way), queue=queue)


def _way(secure: bool, host: str, port: int, via: str, ca: str) -> str:
    more = f":ca={quote(ca)}" if ca else ""
    kind, _, rest = via.partition(":")
    dialled = "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host  # nobody is asked (RFC 6761)
    if kind in ("socks5", "tor") and (not rest or _is_proxy(rest)):
        proxy = f":proxy={quote(rest)}" if rest else ""
        return f"{kind}:{quote(dialled)}:{port}{proxy}" + (f":tls={quote(host)}" if secure else "")
    if via:
        named = secure and kind == "tls" and "name" not in split(via)[1]
        return via + (f":name={quote(host)}" if named else "") + (more if kind == "tls" else "")
    if secure:
        return f"tls:{quote(dialled)}:{port}" + (f":name={quote(host)}" if dialled != host else "") + more
    return f"tcp:{quote(dialled)}:{port}"


def _is_proxy(rest: str) -> bool:
    host, _, port = rest.rpartition(":")
    return bool(host) and port.isdigit() and ":" not in host.strip("[]")
