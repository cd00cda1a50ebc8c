"""What a gateway is told once: the same names in a configuration file and as arguments of the middlewares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from attrs import field, frozen

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.tunnel.keys import gateway_id, read_pin
from layer8.tunnel.target import Allowed

GATEWAY_PATH: Final = "/.well-known/ohttp-gateway"
KEYS_PATH: Final = "/.well-known/l8/keys.json"
SOCKET_PATH: Final = "/.well-known/l8/ws"

_ENDS: Final = re.compile(r"[#\0]").split  # where some think that a path ends
_DECODED: Final = 2  # times that somebody behind us may decode a path

_BEARER = re.compile(r"[A-Za-z0-9._~+/-]{16,512}=*").fullmatch


def _names(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _path(value: str | Path | None) -> Path | None:
    return Path(value) if value else None


@frozen(kw_only=True)
class Settings:
    """One gateway; raises `ConfigError` for what cannot be.

    With `state`, a folder, keys and marks are in two SQLite files, which the workers of one machine share. With
    `database_file`, which holds a connection string, they are in PostgreSQL, for workers of several machines. With
    neither they are in memory, for one process, and every restart makes new keys.

    The identity key signs the sets of keys: `identity_file`, else `state`/identity.pem, which is made if it is missing.
    With `signed_file` the identity stays elsewhere, and has signed sets for some days.
    """

    gateway: str = field()
    authorities: tuple[str, ...] = field(converter=_names)
    identity_file: Path | None = field(default=None, converter=_path)
    signed_file: Path | None = field(default=None, converter=_path)
    state: Path | None = field(default=None, converter=_path)
    database_file: Path | None = field(default=None, converter=_path)
    bearer_file: Path | None = field(default=None, converter=_path)  # one token a line; relays show one of them
    next_identity: str = ""  # 43 letters: the pin of the key that is going to sign after this one
    require: tuple[str, ...] = field(default=(), converter=_names)  # paths that are answered through the tunnel only
    require_date: bool = True
    pad: bool = True
    pad_events: bool = False
    chacha: bool = False
    chunked: bool = True  # false: only requests that are sealed in one piece
    identity: NodeKey | None = field(default=None, repr=False)  # instead of `identity_file`, for tests and demos
    database: str = field(default="", repr=False)  # the connection string itself, instead of `database_file`
    allowed: Allowed = field(init=False, repr=False)
    following: bytes = field(init=False, repr=False)  # `next_identity`, read

    @gateway.validator
    def _a_name(self, _: object, value: str) -> None:
        try:
            gateway_id(value)
        except RemoteProtocolError as error:
            raise ConfigError(str(error)) from None

    @require.validator
    def _paths(self, _: object, value: tuple[str, ...]) -> None:
        for one in value:
            if not one.startswith("/") or "?" in one or "#" in one:
                raise ConfigError(f"{one!r} in require is no path: write /api")

    @allowed.default
    def _read_authorities(self) -> Allowed:
        return Allowed.of(self.authorities)

    @following.default
    def _read_next(self) -> bytes:
        return read_pin(self.next_identity) if self.next_identity else b""

    def __attrs_post_init__(self) -> None:
        """Check what contradicts itself."""
        if self.state and (self.database_file or self.database):
            raise ConfigError("state and database_file exclude each other: keys are in one place")
        if self.database_file and self.database:
            raise ConfigError("database and database_file exclude each other")
        if self.signed_file and (self.identity_file or self.identity):
            raise ConfigError("signed_file is for a gateway without its identity: leave out identity_file")
        if self.signed_file and not (self.state or self.database_file or self.database):
            raise ConfigError("signed_file needs state or database_file: its keys outlive what memory has seen")
        if (self.database_file or self.database) and not (self.identity_file or self.identity or self.signed_file):
            raise ConfigError("keys in a database need identity_file (the same on each machine) or signed_file")

    def guards(self, path: str) -> bool:
        """Say whether a path, as it came, is under `require`: however the backend may read it."""
        return bool(self.require) and any(_under(read, _root(one)) for read in _readings(path) for one in self.require)


def read_bearers(text: str) -> frozenset[str]:
    """Read a file of bearer tokens, one a line; raises `ConfigError`."""
    found = [line.strip() for line in text.splitlines()]
    tokens = frozenset(line for line in found if line and not line.startswith("#"))
    if not tokens or any(_BEARER(token) is None for token in tokens):
        raise ConfigError("a bearer file has tokens of 16 to 512 letters, one a line")
    return tokens


def _readings(path: str) -> set[str]:
    """Give what a path may be to somebody behind us: decoded or not, with or without parameters and double slashes.

    Letters beyond ASCII are the bytes of UTF-8, each a letter of Latin-1, as requests have them; a text is read so too.
    """
    texts = [path, _octets(path)]
    for _ in range(_DECODED):
        texts += [unquote(text, "latin-1") for text in texts[-2:]]
    texts += [_ENDS(text)[0] for text in texts]
    return {_plain(text, bare) for text in texts for bare in (False, True)}


def _root(required: str) -> str:
    return unquote(_octets(required), "latin-1").rstrip("/").lower()


def _octets(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _plain(path: str, bare: bool) -> str:
    kept: list[str] = []
    for segment in path.lower().partition("?")[0].replace("\\", "/").split("/"):
        name = segment.partition(";")[0] if bare else segment
        if name == "..":
            del kept[-1:]
        elif name not in ("", "."):
            kept.append(name)
    return "/" + "/".join(kept)


def _under(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(root + "/")
