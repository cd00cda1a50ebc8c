"""Certificates for hosts whose TLS ends here: found by the names inside them, read again when their files change.

A folder holds pairs as people and certbot leave them::

    NAME.pem or NAME.crt    with NAME.key beside it, or the key in the same file
    NAME/fullchain.pem      with NAME/privkey.pem

File names mean nothing: a certificate serves the names that it is for, an exact one before a wildcard, and the one
that ends last before others. A pair that cannot be used is reported in one line, and what its files held before is
served on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from attrs import define, field
from OpenSSL import SSL
from twisted.logger import Logger

from layer8.control.service import wall_clock
from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import FILE_MOST
from layer8.crypto.x509 import Identity
from layer8.net.tls import server_context

CHECK: Final = 5.0
"""Seconds between two looks whether files have changed; nobody looks while no visitor comes."""
SHARE: Final = 100.0
"""Times as long as a look has taken it is until the next one: a folder of thousands may not hold visitors up."""
PAIRS: Final = 10_000
"""Pairs read from one folder; the rest is left out, and said."""
TICKET_KEY: Final = 43_200.0
"""Seconds for which one key seals tickets: whoever gets it reads recordings of TLS 1.2 sessions that were resumed."""
HTTP_ALPN: Final = ("http/1.1",)

Told = Callable[[bool, str], None]
"""Takes whether all is well, and if not, why."""


class CertSource(Protocol):
    """Where the certificates for visitors come from."""

    def context(self, name: str) -> SSL.Context | None:
        """Give the context that shows a certificate for a host name, or None without one."""


@define(eq=False)
class Pair:
    """One certificate that can be shown; `since` and `until` are seconds since 1970, `made` is monotonic.

    Raises `ConfigError` if it is for no name, or OpenSSL refuses it.
    """

    identity: Identity = field(repr=False)
    made: float
    names: tuple[str, ...] = field(init=False)
    since: float = field(init=False)
    until: float = field(init=False)
    context: SSL.Context = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Make its context."""
        self.names = self.identity.names
        if not self.names:
            raise ConfigError("the certificate is for no host name (subjectAltName)")
        self.since, self.until = self.identity.life
        self.context = self._new()

    def fresh(self, now: float) -> SSL.Context:
        """Give its context, a new one if the last has sealed tickets for long enough."""
        if now - self.made >= TICKET_KEY:
            self.context, self.made = self._new(), now
        return self.context

    def _new(self) -> SSL.Context:
        return server_context(self.identity, HTTP_ALPN, resume=True)


Stamp = tuple[tuple[int, int, int] | None, ...]
"""What shows that files have changed: time, size and number of each, None for one that cannot be found."""


@define(eq=False)
class _Read:
    """Two files as they were read last; `pair` is the last that could be used."""

    stamp: Stamp
    pair: Pair | None = None
    why: str = ""


@define(eq=False)
class Folder:
    """The certificates of one folder; `clock` gives monotonic seconds, `wall` seconds since 1970."""

    folder: Path
    clock: Callable[[], float]
    told: Told
    wall: Callable[[], float] = wall_clock
    _read: dict[Path, _Read] = field(factory=dict, init=False)
    _by_name: Mapping[str, Pair] = field(factory=dict, init=False)
    _due: float | None = field(default=None, init=False)

    _log = Logger(namespace="layer8.proxy")

    def context(self, name: str) -> SSL.Context | None:
        """Give the context for a host name, after a look at the files if the last one is long ago."""
        pair = self.pair(name)
        return None if pair is None else pair.fresh(self.clock())

    def pair(self, name: str) -> Pair | None:
        """Give the certificate for a host name or a `*.` pattern."""
        if self._due is None or self.clock() >= self._due:
            self.look()
        found = self._by_name.get(name)
        if found is None and not name.startswith("*."):
            found = self._by_name.get("*." + name.partition(".")[2])
        return found

    def look(self) -> None:
        """Read what has changed since the last look; nothing is raised, what is wrong is told."""
        began = self.clock()
        self._look()
        ended = self.clock()
        self._due = ended + max(CHECK, (ended - began) * SHARE)

    def _look(self) -> None:
        found: dict[Path, _Read] = {}
        wrong: list[str] = []
        changed = False
        try:
            for number, (chain, key) in enumerate(pairs(self.folder)):
                if number >= PAIRS:
                    wrong.append(f"{self.folder}: holds more than {PAIRS} certificates")
                    break
                found[chain], fresh = self._look_at(chain, key)
                changed |= fresh
                if found[chain].why:
                    wrong.append(found[chain].why)
        except OSError as error:
            # What was read before serves on: a folder that is away for a moment must not take hosts down.
            self.told(False, f"{self.folder}: cannot be read: {error.strerror}")
            return
        if changed or found.keys() != self._read.keys():
            self._by_name = _index(one.pair for one in found.values() if one.pair is not None)
        self._read = found
        now = self.wall()
        ended = {pair.names[0] for pair in self._by_name.values() if pair.until <= now}
        wrong += [f"{name}: the certificate has expired" for name in sorted(ended)]
        self.told(not wrong, "; ".join(wrong[:3]))

    def _look_at(self, chain: Path, key: Path) -> tuple[_Read, bool]:
        """Give a pair of files as it is now, and whether it was read anew."""
        old = self._read.get(chain)
        stamp = _stamp(chain, key)
        if old is not None and old.stamp == stamp:
            return old, False
        fresh = _Read(stamp, None if old is None else old.pair)
        try:
            if key == chain and not _holds_key(chain):
                raise ConfigError(f"{chain}: there is no {chain.stem}.key beside it, and no key inside")
            fresh.pair = Pair(Identity.load(key, chain), self.clock())
        except ConfigError as error:
            fresh.why = str(error) if str(chain.parent) in str(error) else f"{chain}: {error}"
            self._log.warn(
                "a certificate cannot be used", event="certs.refused", reason=fresh.why, kept=fresh.pair is not None
            )
        else:
            self._log.info("a certificate is served", event="certs.loaded", names=len(fresh.pair.names))
        return fresh, True


def pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Give the certificate and key files of a folder, in the order of their names; raises `OSError`."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.suffix in (".pem", ".crt"):
            key = entry.with_suffix(".key")
            yield entry, (key if key.exists() else entry)
        elif (entry / "fullchain.pem").exists():
            yield entry / "fullchain.pem", entry / "privkey.pem"


def _stamp(*files: Path) -> Stamp:
    def one(file: Path) -> tuple[int, int, int] | None:
        try:
            found = file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    return tuple(one(file) for file in files)


def _holds_key(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return b"PRIVATE KEY-----" in opened.read(FILE_MOST)
    except OSError:
        return True  # reading it again says why it cannot be


def _index(found: Iterator[Pair]) -> Mapping[str, Pair]:
    by_name: dict[str, Pair] = {}
    for pair in found:
        for name in pair.names:
            rival = by_name.get(name)
            if rival is None or pair.until > rival.until:
                by_name[name] = pair
    return by_name


@define(eq=False)
class Sources:
    """Several sources; the first that has a certificate for a name is asked no further."""

    sources: tuple[CertSource, ...]

    def context(self, name: str) -> SSL.Context | None:
        """Give the first context found."""
        for source in self.sources:
            if (context := source.context(name)) is not None:
                return context
        return None
