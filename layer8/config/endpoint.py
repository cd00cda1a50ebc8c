"""Endpoint strings read without a reactor: the same quoting as Twisted's, checked before anything listens or dials.

`kind:argument:key=value`, with a backslash before a colon, equals sign or backslash that belongs to a word.
One form is ours: the server string `tls:PORT` is `tcp:PORT` whose listener speaks TLS with the daemon's own identity.
So are the strings that lead to a gateway of the browser tunnel, see `way`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

from layer8.core.errors import ConfigError

_SERVER = {
    "tcp": ({"port"}, {"interface", "backlog"}),
    "tcp6": ({"port"}, {"interface", "backlog"}),
    "tls": ({"port"}, {"interface", "backlog"}),
    "ssl": ({"port"}, {"interface", "backlog", "privateKey", "certKey", "extraCertChain", "sslmethod", "dhParameters"}),
    "unix": ({"address"}, {"mode", "backlog", "lockfile"}),
    "systemd": (set[str](), {"domain", "name", "index"}),
}
_CLIENT = {
    "tcp": ({"host", "port"}, {"timeout", "bindAddress"}),
    "unix": ({"path"}, {"timeout", "lockfile"}),
}
_WAY = {
    **_CLIENT,
    "tls": ({"host", "port"}, {"name", "ca", "timeout"}),
    "tor": ({"host", "port"}, {"proxy", "tls", "timeout"}),
    "socks5": ({"host", "port", "proxy"}, {"tls", "timeout"}),
}
_ORDER = {
    ("way", "tcp"): ("host", "port"),
    ("way", "tls"): ("host", "port"),
    ("way", "tor"): ("host", "port"),
    ("way", "socks5"): ("host", "port"),
    ("way", "unix"): ("path",),
    ("server", "tcp"): ("port",),
    ("server", "tcp6"): ("port",),
    ("server", "tls"): ("port",),
    ("server", "ssl"): ("port",),
    ("server", "unix"): ("address",),
    ("server", "systemd"): ("domain", "index"),
    ("client", "tcp"): ("host", "port"),
    ("client", "unix"): ("path",),
}
TOR_PROXY = "127.0.0.1:9050"
"""Where a tor daemon takes SOCKS5."""
_PROXY = re.compile(r":proxy=([^:\\=]+):([0-9]{1,5})(?=:|\Z)")  # the colon of a proxy's port may go unescaped
UNIX_PATH = 107
"""Most bytes in the path of a Unix socket: sun_path of 108 with its NUL (unix(7))."""


@frozen
class Endpoint:
    """One endpoint string taken apart; `words` holds every argument by its name."""

    kind: str
    words: Mapping[str, str] = field(factory=dict)

    @property
    def port(self) -> int:
        """Give the TCP port, 0 where there is none."""
        return int(self.words.get("port", "0"))

    @property
    def interface(self) -> str:
        """Give the address to listen on, "" for all of them."""
        return self.words.get("interface", "")

    @property
    def tls(self) -> bool:
        """Say whether a listener for our own peers has to speak TLS here: all but plain TCP and Unix sockets."""
        return self.kind in ("tls", "systemd")

    @property
    def loopback(self) -> bool:
        """Say whether only this machine can reach it."""
        return self.kind == "unix" or is_loopback(self.words.get("interface", self.words.get("host", "")))

    def twisted(self) -> str:
        """Give the string for Twisted's own parsers: `tls:` becomes the `tcp:` underneath it."""
        kind = "tcp" if self.kind == "tls" else self.kind
        return ":".join([kind, *(f"{name}={quote(value)}" for name, value in self.words.items())])


def is_loopback(host: str) -> bool:
    """Say whether an address or name is this machine's own by its form alone; nothing is looked up."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.count(".") == 3)


def quote(word: str) -> str:
    """Escape a word for an endpoint string."""
    return word.replace("\\", "\\\\").replace(":", "\\:").replace("=", "\\=")


def split(text: str) -> tuple[list[str], dict[str, str]]:
    """Split into positional words and named ones, by the quoting rules of Twisted's endpoint strings.

    Raises ConfigError for a trailing backslash, which has nothing to escape.
    """
    positional: list[str] = []
    named: dict[str, str] = {}
    name: str | None = None
    word = ""
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            following = next(letters, None)
            if following is None:
                raise ConfigError("it ends in a backslash that escapes nothing")
            word += following
        elif letter == ":":
            if name is None:
                positional.append(word)
            else:
                named[name] = word
            name, word = None, ""
        elif letter == "=" and name is None:
            name, word = word, ""
        else:
            word += letter
    if name is None:
        positional.append(word)
    else:
        named[name] = word
    return positional, named


def server(text: str) -> Endpoint:
    """Read a string that says where to listen; raises ConfigError with the reason."""
    return _read(text, "server", _SERVER)


def client(text: str) -> Endpoint:
    """Read a string that says what to dial; raises ConfigError with the reason."""
    return _read(text, "client", _CLIENT)


def way(text: str) -> Endpoint:
    """Read a string that says how a gateway is reached; raises ConfigError with the reason.

    Beside `tcp:` and `unix:` there are `tls:HOST:PORT` (`name=` if its certificate has another, `ca=FILE` if its
    authority is not the system's), `socks5:HOST:PORT:proxy=HOST:PORT`, and `tor:HOST:PORT`, whose proxy is by default
    the one of this machine. `tls=NAME` speaks TLS behind a proxy. Nothing is said in plain text beyond this machine,
    but to a hidden service, which is encrypted as it is.
    """
    found = _read(_PROXY.sub(r":proxy=\1\\:\2", text), "way", _WAY)
    host = found.words.get("host", "")
    if found.kind == "tcp" and not found.loopback:
        raise ConfigError("it would speak plain text beyond this machine: write tls:")
    if found.kind in ("tor", "socks5"):
        _proxy(found.words.get("proxy", TOR_PROXY))
        if not found.words.get("tls") and not host.endswith((".onion", ".l8.alt")) and not found.loopback:
            raise ConfigError("it would speak plain text behind the proxy: add :tls=NAME")
    return found


def _proxy(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not is_loopback(host) or _number(port or "0", "the proxy's port", 65535) == 0:
        raise ConfigError("proxy= has to be the port of a proxy on this machine, for example 127.0.0.1:9050")


def _read(text: str, side: str, known: Mapping[str, tuple[set[str], set[str]]]) -> Endpoint:
    if "\0" in text:
        raise ConfigError("there is a NUL in it")
    positional, named = split(text)
    kind, *values = positional or [""]
    if kind not in known:
        raise ConfigError(f"it has to begin with one of {', '.join(f'{name}:' for name in known)}")
    needed, optional = known[kind]
    words: dict[str, str] = {}
    order = _ORDER[side, kind]
    if len(values) > len(order):
        raise ConfigError(f"{kind}: has no place for {values[len(order)]!r}; a colon inside a word is written \\:")
    words.update(zip(order, values, strict=False))
    for name, value in named.items():
        if name in words:
            raise ConfigError(f"{name} is given twice")
        if name not in needed | optional:
            raise ConfigError(f"{kind}: knows no {name!r}, only {', '.join(sorted(needed | optional))}")
        words[name] = value
    for name in sorted(needed):
        if not words.get(name):
            missing = " and ".join(order) if name in order else f"{name}="
            raise ConfigError(f"{kind}: needs {missing}")
    _check_words(kind, side, words)
    return Endpoint(kind, words)


def _check_words(kind: str, side: str, words: Mapping[str, str]) -> None:
    if "port" in words:
        port = _number(words["port"], "port", 65535)
        if side == "client" and port == 0:
            raise ConfigError("port 0 cannot be dialled")
    for name in ("backlog", "timeout", "index"):
        if name in words:
            _number(words[name], name, 2**31 - 1)
    if "mode" in words and not re.fullmatch("[0-7]{1,4}", words["mode"]):
        raise ConfigError("mode has to be octal digits, for example 600")
    if kind == "systemd":
        if words.get("domain") not in ("INET", "INET6", "UNIX"):
            raise ConfigError("systemd: needs domain=INET, INET6 or UNIX")
        if ("name" in words) == ("index" in words):
            raise ConfigError("systemd: needs either name= (FileDescriptorName of the socket unit) or index=")
    path = words.get("address", words.get("path", "")) if kind == "unix" else ""
    if len(path.encode("utf-8", "surrogatepass")) > UNIX_PATH:
        raise ConfigError(f"the path of a Unix socket has at most {UNIX_PATH} bytes")


def _number(text: str, name: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise ConfigError(f"{name} has to be a number from 0 to {most}, not {text!r}")
    return int(text)
