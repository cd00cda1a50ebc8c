r"""Pages that list services with what people think of them: an index page is a pack of kind `index` (docs/names.md).

```
page     signature 64 | canonical bencode, 64 KiB at most, of author 32, entries, kind "index", serial, time, title, v 1
entry    c  how many have rated it   f  its NAME.l8 file   g  list of tags, 16 at most  s  sum of the ratings  t  title
rating   signature 64 | canonical bencode, 512 bytes at most, of author 32, key 32 of the service, kind "rating", time,
         v 1, value 1 to 5
```
Both are signed by their author over `"layer8/1 pack\0" | SHA-256(bencode)`. The page is its author's word; whoever has
the ratings can add them up. They are votes of keys, not of people: anybody may have a thousand keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from attrs import field, frozen

from layer8.core import bencode
from layer8.core.errors import ConfigError, LimitExceeded, RemoteProtocolError
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, id_text, verify
from layer8.rendezvous.address import WrongName, address_text, check_name
from layer8.rendezvous.files import ServiceFile

INDEX_MAX: Final = 65_536 + SIGNATURE  # bytes
RATING_MAX: Final = 512
ENTRIES: Final = 512
TAGS: Final = 16
TITLE: Final = 256  # bytes
BEST: Final = 5
KEYS: Final = 32  # of a dictionary, unknown ones included
VERSION: Final = 1

_SIGNED: Final = b"layer8/1 pack\0"
_MOST: Final = 2**63 - 1


@frozen
class Entry:
    """One service of a page, and what its author says of it."""

    file: ServiceFile
    title: str = ""
    tags: tuple[str, ...] = ()
    sum: int = 0
    count: int = 0


@frozen
class Rating:
    """What one key thinks of a service; made by `read` only."""

    author: bytes = field(repr=id_text)
    key: bytes = field(repr=address_text)
    value: int
    time: int

    @classmethod
    def make(cls, author: NodeKey, key: bytes, value: int, time: int) -> bytes:
        """Write and sign one; raises `ConfigError`."""
        return _signed(
            author, {b"key": key, b"kind": b"rating", b"time": time, b"v": VERSION, b"value": value}, cls.read
        )

    @classmethod
    def read(cls, raw: bytes) -> Rating:
        """Read one and check whose it is; raises `RemoteProtocolError`."""
        if len(raw) > RATING_MAX:
            raise LimitExceeded("RATING_MAX", RATING_MAX)
        author, told = _opened(raw, b"rating")
        key, value = told.get(b"key"), _number(told, b"value", BEST)
        if not isinstance(key, bytes) or len(key) != NODE_ID or not value:
            raise RemoteProtocolError("a rating of nothing, or with no value")
        return cls(author, key, value, _number(told, b"time", _MOST))


@frozen
class Index:
    """One page; made by `read` only."""

    author: bytes = field(repr=id_text)
    serial: int  # a later one replaces this
    time: int
    title: str
    entries: tuple[Entry, ...]

    @classmethod
    def make(cls, author: NodeKey, serial: int, time: int, title: str, entries: Sequence[Entry]) -> bytes:
        """Write and sign a page; raises `ConfigError` for what nobody would take."""
        told: dict[bytes, bencode.Value] = {
            b"entries": [
                {
                    b"c": one.count,
                    b"f": one.file.raw,
                    b"g": [tag.encode() for tag in one.tags],
                    b"s": one.sum,
                    b"t": one.title.encode(),
                }
                for one in entries
            ],
            b"kind": b"index",
            b"serial": serial,
            b"time": time,
            b"title": title.encode(),
            b"v": VERSION,
        }
        return _signed(author, told, cls.read)

    @classmethod
    def read(cls, raw: bytes) -> Index:
        """Read a page, and each file in it; raises `RemoteProtocolError` if one of them is wrong."""
        if len(raw) > INDEX_MAX:
            raise LimitExceeded("INDEX_MAX", INDEX_MAX)
        author, told = _opened(raw, b"index")
        entries = told.get(b"entries")
        if not isinstance(entries, list):
            raise RemoteProtocolError("an index page without entries")
        if len(entries) > ENTRIES:
            raise LimitExceeded("ENTRIES", ENTRIES)
        read = tuple(_entry(one) for one in entries)
        if len({one.file.key for one in read}) != len(read):
            raise RemoteProtocolError("an index page that lists a service twice")
        return cls(author, _number(told, b"serial", _MOST), _number(told, b"time", _MOST), _text(told, b"title"), read)

    def find(self, name: str, now: float) -> Entry:
        """Give the one entry that calls itself so and has not expired; raises `WrongName`."""
        found = [one for one in self.entries if one.file.name == name and one.file.expires > now]
        if len(found) != 1:
            raise WrongName(f"{len(found) or 'none'} of the {len(self.entries)} services of this page is called {name}")
        return found[0]

    def unproven(self, ratings: Iterable[Rating]) -> tuple[Entry, ...]:
        """Give the entries whose sums are not those of these ratings."""
        sums = tally(ratings)
        return tuple(one for one in self.entries if sums.get(one.file.key, (0, 0)) != (one.sum, one.count))


def tally(ratings: Iterable[Rating]) -> Mapping[bytes, tuple[int, int]]:
    """Give sum and number of what each service got: the last word of each key, and none of a service's own."""
    last: dict[tuple[bytes, bytes], Rating] = {}
    for one in ratings:
        place = one.key, one.author
        if one.author != one.key:
            last[place] = max(last.get(place, one), one, key=lambda said: (said.time, -said.value))
    sums: dict[bytes, tuple[int, int]] = {}
    for (key, _), one in last.items():
        total, count = sums.get(key, (0, 0))
        sums[key] = total + one.value, count + 1
    return sums


def is_index(raw: bytes) -> bool:
    """Tell whether bytes say that they are an index page, and not a service's own file."""
    try:
        told = bencode.decode(raw[SIGNATURE : INDEX_MAX + 1])
    except RemoteProtocolError:
        return False
    return isinstance(told, dict) and told.get(b"kind") == b"index"


def _entry(value: bencode.Read) -> Entry:
    if not isinstance(value, dict) or len(value) > KEYS:
        raise RemoteProtocolError("an index page with a wrong entry")
    file, tags = value.get(b"f"), value.get(b"g")
    if not isinstance(file, bytes) or not isinstance(tags, list) or len(tags) > TAGS:
        raise RemoteProtocolError("an index page with a wrong entry")
    count = _number(value, b"c", _MOST)
    total = _number(value, b"s", _MOST)
    if not count <= total <= BEST * count:
        raise RemoteProtocolError("an index page with a sum that no ratings have")
    words = tuple(check_name(tag.decode("ascii", "replace")) for tag in tags if isinstance(tag, bytes))
    if len(words) != len(tags):
        raise RemoteProtocolError("an index page with a wrong tag")
    return Entry(ServiceFile.read(file), _text(value, b"t"), words, total, count)


def _opened(raw: bytes, kind: bytes) -> tuple[bytes, dict[bytes, bencode.Read]]:
    told = bencode.decode(raw[SIGNATURE:])
    if not isinstance(told, dict) or len(told) > KEYS or told.get(b"kind") != kind or told.get(b"v") != VERSION:
        raise RemoteProtocolError(f"a pack that is no {kind.decode()}, or of an unknown version")
    author = told.get(b"author")
    if not isinstance(author, bytes) or not verify(author, raw[:SIGNATURE], _message(raw[SIGNATURE:])):
        raise RemoteProtocolError(f"a pack of kind {kind.decode()} with a wrong signature")
    return author, told


def _signed(author: NodeKey, told: dict[bytes, bencode.Value], read: Callable[[bytes], object]) -> bytes:
    body = bencode.encode({**told, b"author": author.node_id})
    raw = author.sign(_message(body)) + body
    try:
        read(raw)
    except RemoteProtocolError as error:
        raise ConfigError(f"this would be refused: {error}") from error
    return raw


def _message(body: bytes) -> bytes:
    return _SIGNED + hashlib.sha256(body).digest()


def _number(told: Mapping[bytes, bencode.Read], word: bytes, most: int) -> int:
    value = told.get(word)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise RemoteProtocolError(f"an index page or rating with a wrong {word.decode()}")
    return value


def _text(told: Mapping[bytes, bencode.Read], word: bytes) -> str:
    value = told.get(word, b"")
    if not isinstance(value, bytes) or len(value) > TITLE:
        raise RemoteProtocolError("an index page with a wrong title")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("an index page with a title that is not UTF-8") from None
