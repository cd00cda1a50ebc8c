r"""Files and links by which people hand hidden services on (docs/names.md).

```
NAME.l8   signature 64 | canonical bencode, 8 KiB at most, of
          key 32, name, created, expires, trackers (16 at most, `ID@ENDPOINT`), ports (number -> what), title, text
          Ed25519 by the service's key over "layer8/1 file\0" | bencode
magnet    magnet:?xt=urn:l8:ADDRESS&dn=NAME&tr=ID@ENDPOINT...     of which only xt has to be there
```
Only the service itself can say more than its address in a file; a magnet link is anybody's word, but for the key in it.
Trackers are places to ask beside those that are known, never the only ones. Unknown parts are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, quote

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError
from layer8.core.place import place
from layer8.crypto.blind import valid
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, id_text, parse_id, verify
from layer8.rendezvous.address import (
    DOMAIN,
    Address,
    WrongName,
    address_text,
    check_name,
    fits,
    parse_address,
    parse_host,
    split_suffix,
)

FILE_MAX: Final = 8192  # bytes of a file, and letters of a magnet link
TRACKERS: Final = 16
ENDPOINT: Final = 128  # bytes
PORTS: Final = 64
WHAT: Final = 64  # bytes of what stands at a port
TITLE: Final = 256
TEXT: Final = 4096
KEYS: Final = 32  # of the dictionary, unknown ones included
SCHEME: Final = "magnet:?"
URN: Final = "urn:l8:"

_SIGNED: Final = b"layer8/1 file\0"
_PARTS: Final = 64  # of a magnet link
_MOST: Final = 2**63 - 1


@frozen
class Tracker:
    """Somewhere to ask: a node and where it listens."""

    node: bytes = field(repr=id_text)
    endpoint: str

    @classmethod
    def parse(cls, text: str) -> Tracker:
        """Read `ID@ENDPOINT`; raises `RemoteProtocolError`."""
        ident, found, endpoint = text.partition("@")
        if not found or not 0 < len(endpoint) <= ENDPOINT:
            raise RemoteProtocolError("a tracker that is not ID@ENDPOINT")
        place(endpoint)
        return cls(parse_id(ident), endpoint)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return f"{id_text(self.node)}@{self.endpoint}"


@frozen
class ServiceFile:
    """What a service says of itself in a file; made by `make` or `read` only."""

    key: bytes = field(repr=address_text)
    name: str
    created: int
    expires: int
    trackers: tuple[Tracker, ...] = ()
    ports: Mapping[int, str] = field(factory=dict)
    title: str = ""
    text: str = ""
    raw: bytes = field(default=b"", repr=False, eq=False)

    @classmethod
    def read(cls, raw: bytes) -> ServiceFile:
        """Read a file and check whose it is; raises `RemoteProtocolError` that says what is wrong."""
        if len(raw) > FILE_MAX:
            raise LimitExceeded("FILE_MAX", FILE_MAX)
        told = bencode.decode(raw[SIGNATURE:])
        if not isinstance(told, dict) or len(told) > KEYS:
            raise RemoteProtocolError("a service's file that is no dictionary")
        key = told.get(b"key")
        if not isinstance(key, bytes) or len(key) != NODE_ID or not valid(key):
            raise RemoteProtocolError("a service's file with a wrong key")
        if not verify(key, raw[:SIGNATURE], _SIGNED + raw[SIGNATURE:]):
            raise RemoteProtocolError("a service's file with a wrong signature: it is not the word of the key in it")
        created, expires = (_number(told, name) for name in (b"created", b"expires"))
        if expires <= created:
            raise RemoteProtocolError("a service's file that expires before it was made")
        trackers = told.get(b"trackers", [])
        if not isinstance(trackers, list):
            raise RemoteProtocolError("a service's file with wrong trackers")
        if len(trackers) > TRACKERS:
            raise LimitExceeded("TRACKERS", TRACKERS)
        return cls(
            key=key,
            name=check_name(_text(told, b"name", 64)),
            created=created,
            expires=expires,
            trackers=tuple(Tracker.parse(_decoded(one, ENDPOINT + 64)) for one in trackers),
            ports=_ports(told.get(b"ports", {})),
            title=_text(told, b"title", TITLE),
            text=_text(told, b"text", TEXT),
            raw=bytes(raw),
        )

    @classmethod
    def make(
        cls,
        key: NodeKey,
        name: str,
        created: int,
        expires: int,
        *,
        trackers: Sequence[Tracker] = (),
        ports: Mapping[int, str] | None = None,
        title: str = "",
        text: str = "",
    ) -> ServiceFile:
        """Write and sign a file; raises `ConfigError` for what nobody would take."""
        told: dict[bytes, bencode.Value] = {
            b"key": key.node_id,
            b"name": name.encode(),
            b"created": created,
            b"expires": expires,
        }
        optional: dict[bytes, bencode.Value] = {
            b"trackers": [str(one).encode() for one in trackers],
            b"ports": {str(port).encode(): what.encode() for port, what in (ports or {}).items()},
            b"title": title.encode(),
            b"text": text.encode(),
        }
        told.update((word, value) for word, value in optional.items() if value)
        body = bencode.encode(told)
        try:
            return cls.read(key.sign(_SIGNED + body) + body)
        except RemoteProtocolError as error:
            raise ConfigError(f"this file would be refused: {error}") from error

    def check(self, now: float) -> None:
        """Raise `RemoteProtocolError` if it has expired."""
        if self.expires <= now:
            raise RemoteProtocolError("a service's file that has expired: ask for a new one")

    @property
    def magnet(self) -> Magnet:
        """The link that says as much of it as a link can."""
        return Magnet(self.key, self.name, self.trackers)


@frozen
class Magnet:
    """A link to a service; `name` is what its writer calls it, or empty."""

    key: bytes = field(repr=address_text)
    name: str = ""
    trackers: tuple[Tracker, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Magnet:
        """Read a link; raises `WrongName` or another `RemoteProtocolError` that says what is wrong."""
        if len(text) > FILE_MAX:
            raise LimitExceeded("FILE_MAX", FILE_MAX)
        if not text.lower().startswith(SCHEME):
            raise WrongName(f"a magnet link begins with {SCHEME}")
        try:
            parts = parse_qsl(text[len(SCHEME) :], keep_blank_values=True, errors="strict", max_num_fields=_PARTS)
        except ValueError:
            raise WrongName(f"a magnet link of other letters than UTF-8's, or of more than {_PARTS} parts") from None
        topics = [value[len(URN) :] for word, value in parts if word == "xt" and value.lower().startswith(URN)]
        if not topics:
            raise WrongName(f"a magnet link of something else: it has no xt={URN}ADDRESS")
        key = parse_address(topics[0])
        if any(parse_address(other) != key for other in topics):
            raise WrongName("a magnet link that names two keys")
        names = {_link_name(value, key) for word, value in parts if word == "dn" and value}
        if len(names) > 1:
            raise WrongName("a magnet link with two names")
        trackers = tuple(dict.fromkeys(Tracker.parse(value) for word, value in parts if word == "tr"))
        if len(trackers) > TRACKERS:
            raise LimitExceeded("TRACKERS", TRACKERS)
        return cls(key, names.pop() if names else "", trackers)

    def __str__(self) -> str:
        """Write the link."""
        parts = [f"xt={URN}{address_text(self.key)}"]
        parts += [f"dn={quote(self.name, safe='')}"] if self.name else []
        parts += [f"tr={quote(str(one), safe='@')}" for one in self.trackers]
        return SCHEME + "&".join(parts)


def _link_name(text: str, key: bytes) -> str:
    """Give the name of a link, which may carry a suffix or be a whole address if they are the key's."""
    if text.lower().endswith(DOMAIN):
        host = parse_host(text)
        if isinstance(host, Address):
            if host.key != key:
                raise WrongName("a magnet link whose name is the address of another key")
            return ""
        name, suffix = host.name, host.suffix
    else:
        name, suffix = split_suffix(text)
    if not fits(key, suffix):
        raise WrongName(f"a magnet link whose name {text} claims another key than its own")
    return name


def _ports(value: bencode.Read) -> dict[int, str]:
    if not isinstance(value, dict):
        raise RemoteProtocolError("a service's file with wrong ports")
    if len(value) > PORTS:
        raise LimitExceeded("PORTS", PORTS)
    found: dict[int, str] = {}
    for number, what in value.items():
        if not number.isdigit() or len(number) > 5 or number[:1] == b"0" or int(number) > 65535:
            raise RemoteProtocolError("a service's file with a port that is none")
        found[int(number)] = _decoded(what, WHAT)
    return found


def _number(told: dict[bytes, bencode.Read], word: bytes) -> int:
    value = told.get(word)
    if not isinstance(value, int) or not 0 <= value <= _MOST:
        raise RemoteProtocolError(f"a service's file with a wrong {word.decode()}")
    return value


def _text(told: dict[bytes, bencode.Read], word: bytes, most: int) -> str:
    return _decoded(told.get(word, b""), most)


def _decoded(value: bencode.Read, most: int) -> str:
    if not isinstance(value, bytes) or len(value) > most:
        raise RemoteProtocolError("a service's file with a text of no kind or too long")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("a service's file with a text that is not UTF-8") from None
