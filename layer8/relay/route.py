"""The path syntax: `LISTEN>HOP>...>TARGET`, by which a way through the network is written by hand.

LISTEN  `1000`, `localhost:1000`, or an endpoint string such as `tcp:1000:interface=127.0.0.1`
HOP     `rand` or `*`
        a node's id, 8 or more letters of it, or its alias, in brackets or not
        `HOST:PORT` of a node; `HOST` with a dot in it for port 9000
        `via:N`, last: the hop before it goes on through N peers of its own
        `ADDRESS.l8.alt`, or its 56 letters alone: a hidden service, the only hop
TARGET  `HOST:PORT`
        `internet`: whatever a SOCKS client asks for
        `PORT` of the last hop itself
        40 hex digits: a resource, with no hop before it
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from layer8.core.address import HostPort, is_address
from layer8.core.errors import ConfigError
from layer8.relay.wire import HOST_MOST

MAX_HOPS: Final = 8
DEFAULT_PORT: Final = 9000
PREFIX: Final = 8  # letters of an id that are enough to name it
HIDDEN: Final = ".l8.alt"
PATH_MOST: Final = 2048  # characters

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
_HOST = re.compile(r"[^\s/@>\[\]?#\\]+\Z")
_RESOURCE = re.compile(r"[0-9a-f]{40}\Z", re.IGNORECASE)
_ENDPOINT = re.compile(r"(tcp|tcp6|unix|systemd):")
_ADDRESS = re.compile(r"[a-z2-7]{56}\Z")
_HIDDEN = re.compile(r"(?:[a-z0-9_~-]+\.)+l8\.alt\Z")


@frozen
class Rand:
    """Whatever node the path selection likes."""


@frozen
class Named:
    """A node by id, by the first letters of its id, or by alias."""

    name: str


@frozen
class At:
    """A node by an address in its descriptor."""

    host: str
    port: int


@frozen
class Via:
    """The hop before goes on through `count` peers of its own choice; the last of a path."""

    count: int


@frozen
class Hidden:
    """A hidden service, by address or petname; the only hop."""

    name: str


Hop = Rand | Named | At | Via | Hidden


@frozen
class Host:
    """A host and port that the last hop reaches for us."""

    host: str
    port: int


@frozen
class Internet:
    """Whatever the program at the SOCKS port asks for."""


@frozen
class Port:
    """A port of the last hop itself."""

    port: int


@frozen
class Resource:
    """A resource by its SHA-1 name."""

    name: bytes


Target = Host | Internet | Port | Resource


@frozen
class Route:
    """The hops of a circuit, in order; none means the usual number of random ones."""

    hops: tuple[Hop, ...] = ()

    @property
    def text(self) -> str:
        """Write it as it is read."""
        return ">".join(_written(hop) for hop in self.hops)


@frozen
class Tunnel:
    """A local listener (an endpoint string), the way, and what stands at its end."""

    listen: str
    route: Route
    target: Target


def parse_tunnel(text: str) -> Tunnel:
    """Read `LISTEN>HOP>...>TARGET`; raises ConfigError that names the part that is wrong."""
    words = _words(text)
    if len(words) < 2:
        raise ConfigError(f"{text!r}: a tunnel is written LISTEN>HOP>...>TARGET")
    route = _route(words[1:-1])
    return Tunnel(_listen(words[0]), route, _target(words[-1], route))


def parse_way(text: str) -> tuple[Route, Target]:
    """Read `HOP>...>TARGET`, as `layer8 socks --path` takes it; raises ConfigError."""
    words = _words(text)
    route = _route(words[:-1])
    return route, _target(words[-1], route)


def parse_route(text: str) -> Route:
    """Read `HOP>...>HOP`; raises ConfigError."""
    return _route(_words(text))


def _words(text: str) -> list[str]:
    if len(text) > PATH_MOST:
        raise ConfigError(f"a path has at most {PATH_MOST} characters")
    words = [word.strip() for word in text.split(">")]
    if not all(words):
        raise ConfigError(f"{text!r}: a part between two > is empty")
    return words


def _listen(word: str) -> str:
    if _ENDPOINT.match(word):
        return word
    host, _, port = word.rpartition(":")
    interface = host.strip("[]") or "127.0.0.1"
    if interface == "localhost":
        interface = "127.0.0.1"
    if not is_address(interface):
        raise ConfigError(f"{word!r}: listen on a port, ADDRESS:PORT or an endpoint string")
    kind, quoted = ("tcp6", interface.replace(":", "\\:")) if ":" in interface else ("tcp", interface)
    return f"{kind}:{_port(port, word, least=0)}:interface={quoted}"


def _route(words: list[str]) -> Route:
    hops = tuple(_hop(word) for word in words)
    if len(hops) > MAX_HOPS:
        raise ConfigError(f"a path has at most {MAX_HOPS} hops")
    for hop in hops[:-1]:
        if isinstance(hop, Hidden):
            raise ConfigError(f"{hop.name!r} is where a path ends; behind it comes a port")
    if len(hops) > 1 and isinstance(last := hops[-1], Hidden):
        raise ConfigError(f"{last.name!r} has no hop before it: the way to a hidden service is made when it is met")
    return Route(hops)


def _hop(word: str) -> Hop:
    if word in ("rand", "*"):
        return Rand()
    if word.startswith("via:"):
        count = word.removeprefix("via:")
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_HOPS):
            raise ConfigError(f"{word!r}: via:N with N from 1 to {MAX_HOPS}")
        return Via(int(count))
    if _ADDRESS.match(word):
        return Hidden(word + HIDDEN)
    if word.endswith(HIDDEN):
        if not _HIDDEN.match(word):
            raise ConfigError(f"{word!r} is no name of a hidden service")
        return Hidden(word)
    bare = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    if _NAME.match(bare):
        return Named(bare)
    if ":" not in word.rpartition("]")[2]:
        word = f"{word}:{DEFAULT_PORT}" if word.startswith("[") or ":" not in word else f"[{word}]:{DEFAULT_PORT}"
    return At(*_host_port(word))


def _target(word: str, route: Route) -> Target:
    hidden = bool(route.hops) and isinstance(route.hops[-1], Hidden)
    if word.isascii() and word.isdigit() and len(word) <= 5:
        if not route.hops:
            raise ConfigError(f"{word!r}: a port alone belongs to the hop before it, and there is none")
        return Port(_port(word, word))
    if hidden:
        raise ConfigError(f"{word!r}: behind a hidden service comes a port")
    if word == "internet":
        return Internet()
    if _RESOURCE.match(word):
        if route.hops:
            raise ConfigError(f"{word!r} has no hop before it: the way to a resource is made when it is met")
        return Resource(bytes.fromhex(word))
    return Host(*_host_port(word))


def _host_port(word: str) -> tuple[str, int]:
    try:
        found = HostPort.parse(word)
    except ConfigError as error:
        raise ConfigError(f"{word!r}: it has to be HOST:PORT ({error})") from None
    if not _HOST.match(found.host) or len(found.host.encode()) > HOST_MOST:
        raise ConfigError(f"{word!r}: {found.host!r} is no host")
    return found.host, found.port


def _port(text: str, word: str, *, least: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= 65535):
        raise ConfigError(f"{word!r}: {text!r} is no port")
    return int(text)


def _written(hop: Hop) -> str:
    match hop:
        case Rand():
            return "rand"
        case Named(name=name) | Hidden(name=name):
            return name
        case At(host=host, port=port):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case Via(count=count):
            return f"via:{count}"
