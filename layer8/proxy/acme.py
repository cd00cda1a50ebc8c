"""Certificates from an authority (RFC 8555) for hosts whose TLS ends here, asked for and renewed without anybody.

Only hosts that are registered, owned and set to `tls = terminate` are asked for: whoever visits an unknown name makes
nobody ask for anything. Everything stands in a folder of the state folder that only its owner may enter::

    acme/AUTHORITY/account.key          the account; one folder for each authority
                   certs/HOST.pem       key and chain in one file, so that they change in one step
                   challenges/TOKEN     what is shown to the authority, and to it alone, while it looks
                   tries.json           failures, and until when who is left alone
                   lock                 held by the one process of several that asks

All processes of a server read challenges and certificates there, whichever of them asked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from attrs import frozen
from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from layer8.core.errors import ConfigError, Layer8Error, StorageError, TimedOut
from layer8.crypto.keyfile import make_private_folder, read_private, write_private
from layer8.crypto.x509 import Identity, new_key, self_signed
from layer8.net.tasks import TaskSet
from layer8.net.tls import server_context
from layer8.proxy.certs import Folder
from layer8.proxy.renewal import NEVER, Patience, Tries, renew_at

if TYPE_CHECKING:
    from layer8.proxy.acme_ca import Authority, Order, Wanted

TURN: Final = 5.0
"""Seconds between two looks for hosts that need a certificate."""
ORDER_TIME: Final = 180.0
"""Seconds for one certificate, from the order to the file."""
POLL: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between questions whether a proof was seen; the last one again and again."""
PATH: Final = b"/.well-known/acme-challenge/"
ALPN: Final = "acme-tls/1"
HTTP: Final = "http-01"
TLS_ALPN: Final = "tls-alpn-01"

_TOKEN = re.compile(rb"[A-Za-z0-9_-]{16,128}")  # at least 128 bits in base64url (RFC 8555 section 8.1)
T = TypeVar("T")


@frozen
class Settings:
    """What an operator says: the authority's directory URL, an address for its letters, trust in its own API."""

    directory: str
    email: str = ""
    trust: str = ""

    @property
    def folder(self) -> str:
        """The name of the authority's folder: a test authority's certificates never pass for another's."""
        place = re.sub(r"[^a-z0-9.-]", "_", (urlsplit(self.directory).netloc or "authority").lower())[:100]
        return f"{place}-{hashlib.sha256(self.directory.encode()).hexdigest()[:8]}"


class Told(Protocol):
    """Where the state of things is reported."""

    def __call__(self, ok: bool, why: str) -> None:
        """Take whether every host has what it needs."""


class Acme(Service):
    """One authority's certificates; a `CertSource`, and what answers the authority's challenges.

    `wanted` gives the hosts that need a certificate, each with its owner, `kinds` the challenges that we can answer,
    the best first. `clock` is monotonic, `wall` is seconds since 1970. Raises `ConfigError` without the extra.
    """

    _log = Logger(namespace="layer8.proxy")

    def __init__(
        self,
        reactor: Any,
        home: Path,
        settings: Settings,
        wanted: Callable[[], Mapping[str, str]],
        kinds: Callable[[], Sequence[str]],
        told: Told,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """Prepare its folder; nothing is asked before it is started."""
        self._authority = _authority()
        self._reactor = reactor
        self._settings = settings
        self._wanted = wanted
        self._kinds = kinds
        self._told = told
        self._wall = wall
        self._tasks = TaskSet(self._log)
        self._ticker = LoopingCall(self.turn)
        self._ticker.clock = reactor
        self._folder = home / "acme" / settings.folder
        for name in ("certs", "challenges"):
            make_private_folder(self._folder / name)
        self._bad = ""
        self._why: dict[str, str] = {}
        self._certs = Folder(self._folder / "certs", clock, self._heard)
        self._patience = Patience()
        self._lock = -1
        self._busy = False
        self._proof: tuple[tuple[str, str], SSL.Context] | None = None

    def startService(self) -> None:
        """Begin to look."""
        Service.startService(self)
        self._tasks.restart()
        self._ticker.start(TURN)

    def stopService(self) -> Deferred[None]:
        """Give up what is under way; whoever starts next finds it counted."""
        Service.stopService(self)
        if self._ticker.running:
            self._ticker.stop()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._tasks.stop()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    # What visitors need.

    def context(self, name: str) -> SSL.Context | None:
        """Give the context for a host name."""
        return self._certs.context(name)

    def answer(self, host: str, target: bytes) -> bytes | None:
        """Give what the authority wants to read at a request target of a host, None for everything else."""
        if not target.startswith(PATH):
            return None
        token = target[len(PATH) :]
        if not _TOKEN.fullmatch(token):
            return None
        told = self._shown(token.decode())
        return told[1].encode() if told is not None and told[0] == host else None

    def challenge(self, host: str) -> SSL.Context | None:
        """Give what a visitor who offers only `acme-tls/1` is shown, None if nobody looks at this host now."""
        told = self._shown(_hidden(host))
        if told is None or told[0] != host:
            return None
        if self._proof is None or self._proof[0] != told:
            # One for all who look: an authority does so from several places, and anybody else may as well.
            identity = Identity.from_pem(*self_signed(host, acme=hashlib.sha256(told[1].encode()).digest()))
            self._proof = (told, server_context(identity, (ALPN,)))
        return self._proof[1]

    def _shown(self, name: str) -> tuple[str, str] | None:
        """Read a challenge: the host, and what proves it."""
        try:
            host, proof = read_private(self._folder / "challenges" / name).decode("ascii").split("\n")
        except (ConfigError, ValueError):
            return None
        return host, proof

    # What the clock brings.

    def turn(self) -> None:
        """Look for a host that needs a certificate, and ask for one at a time."""
        if not self.running:
            return
        try:
            hosts = self._wanted()
            now = self._wall()
            if self._busy or not self._alone():
                return
            self._patience.keep(hosts.keys(), now)
            self._why = {host: why for host, why in self._why.items() if host in hosts}
            self._tell()
            host = self._next(hosts, now)
            if host is not None:
                self._busy = True
                self._tasks.start("certificate", self._get(host, hosts[host]))
        except Layer8Error as error:
            self._told(False, str(error))
        except OSError as error:
            self._told(False, f"{self._folder}: {error.strerror}")

    def _alone(self) -> bool:
        """Say whether this is the process that asks; what the one before knew is read when it becomes so."""
        if self._lock < 0:
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                return False
            self._lock = lock
            for left in (self._folder / "challenges").iterdir():
                left.unlink(missing_ok=True)
            self._patience = Patience.of(self._read_tries(), self._wall())
        return True

    def _read_tries(self) -> object:
        path = self._folder / "tries.json"
        try:
            return json.loads(read_private(path, most=1 << 24)) if path.exists() else None
        except (ConfigError, ValueError):
            return None

    def _next(self, hosts: Mapping[str, str], now: float) -> str | None:
        """Give the host that is to be asked for now: each owner in turn, hosts without a certificate first."""
        if not self._patience.ready(now):
            return None
        patience = self._patience
        due: list[tuple[int, bool, int, str]] = []
        for host, owner in hosts.items():
            if not patience.may(host, now):
                continue
            pair = self._certs.pair(host)
            if pair is None or now >= renew_at(pair.since, pair.until, _share(host)):
                failures = patience.hosts.get(host, NEVER).failures
                due.append((patience.turn(owner), pair is not None, failures, host))
        return min(due)[3] if due else None

    async def _get(self, host: str, owner: str) -> None:
        from layer8.proxy.acme_ca import Refused  # an extra

        before = NEVER
        issued = False
        try:
            before = self._patience.begin(host, self._wall(), _chance(), owner)
            self._write_tries()  # if even this cannot be written, neither could the certificate
            key = new_key()
            chain = await self._ordered(host, key, before)
            issued = True
            self._keep(host, key, chain)
        except CancelledError:
            raise
        except Layer8Error as error:
            now = self._wall()
            code = "timeout"
            if isinstance(error, Refused):
                code = error.code
                if error.authority:
                    self._patience.silent(host, before, now, _chance())
                if code == "rateLimited":
                    self._patience.limited(host, now)
            elif issued:
                code = "not_kept"
                self._patience.lost(host, now)
            elif isinstance(error, StorageError):
                code = "storage"
            self._why[host] = str(error)
            self._log.warn("no certificate", event="acme.failed", host=host, reason=code)
        else:
            self._patience.done(host)
            self._why.pop(host, None)
            self._log.info("a certificate was issued", event="acme.issued", host=host)
        finally:
            self._busy = False
        self._tell()
        self._write_tries()
        if self.running:
            self._reactor.callLater(0, self.turn)  # the next host need not wait

    async def _ordered(self, host: str, key: bytes, before: Tries) -> bytes:
        """Ask, prove, wait; gives the chain (PEM)."""
        settings = self._settings
        authority = self._authority(settings.directory, self._account_key(), settings.email, settings.trust)
        kinds = list(self._kinds())
        if before.failures % 2:
            kinds.reverse()  # what has failed by one way may be possible by the other
        if not kinds:
            raise ConfigError("neither an http nor an https listener is there to prove anything")
        end = self._reactor.seconds() + ORDER_TIME
        order = await self._blocking(authority.order, host, key, kinds)
        shown = self._show(host, order.wanted)
        try:
            if shown:
                await self._blocking(authority.answer, order)
                await self._until(end, authority.proven, order)
            await self._blocking(authority.finish, order)
            return await self._until(end, authority.certificate, order)
        finally:
            for path in shown:
                path.unlink(missing_ok=True)

    async def _until(self, end: float, ask: Callable[[Order], T | None], order: Order) -> T:
        """Ask until there is an answer."""
        pauses = iter(POLL)
        while not (answer := await self._blocking(ask, order)):
            if self._reactor.seconds() > end:
                raise TimedOut(f"not within {ORDER_TIME:g} s")
            await deferLater(self._reactor, next(pauses, POLL[-1]))
        return answer

    async def _blocking(self, ask: Callable[..., T], *words: object) -> T:
        return await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), ask, *words)

    # Files.

    def _account_key(self) -> bytes:
        path = self._folder / "account.key"
        if not path.exists():
            write_private(path, new_key())
        return read_private(path)

    def _show(self, host: str, wanted: Wanted | None) -> list[Path]:
        """Put up what the authority wants to see."""
        if wanted is None:
            return []
        name = wanted.token if wanted.kind == HTTP else _hidden(host)
        if wanted.kind == HTTP and not _TOKEN.fullmatch(name.encode()):
            raise ConfigError("the authority's token is none")
        path = self._folder / "challenges" / name
        write_private(path, f"{host}\n{wanted.proof}".encode())
        return [path]

    def _keep(self, host: str, key: bytes, chain: bytes) -> None:
        """Write a certificate down and serve it from now on."""
        identity = Identity.from_pem(key, chain)
        since, until = identity.life
        if host not in identity.names or not since <= self._wall() + 3600 or until <= self._wall():
            raise ConfigError("the certificate is not for this host, or not for now")
        write_private(self._folder / "certs" / f"{_file(host)}.pem", identity.pem())
        self._certs.look()

    def _write_tries(self) -> None:
        write_private(self._folder / "tries.json", json.dumps(self._patience.record()).encode())

    # Health.

    def _heard(self, ok: bool, why: str) -> None:
        self._bad = "" if ok else why
        self._tell()

    def _tell(self) -> None:
        wrong = [f"{host}: {why}" for host, why in sorted(self._why.items())]
        more = [f"and {len(wrong) - 3} more hosts"] if len(wrong) > 3 else []
        words = [*([self._bad] if self._bad else []), *wrong[:3], *more]
        self._told(not words, "; ".join(words))


def _authority() -> type[Authority]:
    try:
        from layer8.proxy.acme_ca import Authority
    except ImportError as error:
        raise ConfigError("proxy.acme needs more than is installed: pip install 'layer8[acme]'") from error
    return Authority


def _chance() -> float:
    return secrets.randbelow(1 << 20) / (1 << 20)


def _share(host: str) -> float:
    """Give every host its own number from 0 to below 1, so that certificates issued together end apart."""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:4]) / (1 << 32)


def _file(host: str) -> str:
    """Give the file name for a host, which names nothing else on a disk."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,252}", host):
        raise ConfigError("an authority certifies host names only")
    return host if len(host) <= 200 else hashlib.sha256(host.encode()).hexdigest()


def _hidden(host: str) -> str:
    """Give the file name for what a host shows in TLS; no token has a dot."""
    return f"tls.{_file(host)}"
