"""TLS that ends at the server, for hosts whose policy says `tls = terminate`.

::

    ClientHello ──sniffed──▶ certificate for its name ──handshake──▶ plain HTTP, sniffed again ──▶ any visitor's way
                                    │ none                │ fails, or takes too long
                                    ▼ alert, closed       ▼ closed

The handshake has its place among the visitors without a name, and their time. The bytes that were sniffed are the
first that the TLS session gets. Here is also who answers a certificate authority that looks whether a host is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import define, field
from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from layer8.config.proxy import ProxyConfig
from layer8.net.leg import Leg
from layer8.net.pump import Pump
from layer8.net.service import Health
from layer8.net.tasks import TaskSet
from layer8.proxy.acme import HTTP, TLS_ALPN, Acme, Settings
from layer8.proxy.acme import PATH as CHALLENGES
from layer8.proxy.allowances import Allowances
from layer8.proxy.certs import Folder
from layer8.proxy.registration import Ownership, Registration
from layer8.proxy.registry import Registry
from layer8.proxy.sniff import alert
from layer8.proxy.visit import Visit
from layer8.proxy.wire import Reason

UNRECOGNIZED_NAME: Final = alert(112)
NO_APPLICATION_PROTOCOL: Final = alert(120)
_CHALLENGE: Final = (b"acme-tls/1",)
_OURS: Final = frozenset([b"http/1.1", b"http/1.0"])


class Keeper(Protocol):
    """Who keeps the visitors."""

    pump: Pump
    allowances: Allowances

    def shaking(self, visit: Visit) -> bool:
        """Give a visitor a place among those without a name; False if it was sent away instead."""

    def shaken(self, visit: Visit) -> None:
        """Take its place back."""

    def secured(self, visit: Visit, leg: Leg) -> None:
        """Take a visitor whose handshake is done."""

    def refuse(self, visit: Visit, reason: Reason, answer: bytes = b"") -> None:
        """Send a visitor away, with an answer that is sent as it is."""

    def abandon(self, visit: Visit) -> None:
        """End a visitor in whose handling something of ours went wrong."""


@define(eq=False)
class Terminator:
    """Shakes hands with visitors; also what `Traffic` asks for the answers to an authority."""

    certificates: Certificates
    keeper: Keeper

    def begin(self, visit: Visit, row: Registration, first: bytes, alpn: tuple[bytes, ...]) -> None:
        """Shake hands with a visitor whose ClientHello is in `first`; then the keeper hears of it."""
        host = visit.host or row.host
        if alpn == _CHALLENGE:
            context = self.certificates.challenge(host)
            if context is None:
                self.keeper.refuse(visit, Reason.OTHER_PROTOCOL, NO_APPLICATION_PROTOCOL)
                return
        elif alpn and _OURS.isdisjoint(alpn):
            self.keeper.refuse(visit, Reason.OTHER_PROTOCOL, NO_APPLICATION_PROTOCOL)
            return
        else:
            context = self.certificates.context(host)
            if context is None:
                self.keeper.refuse(visit, Reason.NO_CERTIFICATE, UNRECOGNIZED_NAME)
                return
        if not self.keeper.allowances.admits(row, self.keeper.pump.now):  # a handshake is work
            self.keeper.refuse(visit, Reason.HOST_LIMIT)
            return
        if not self.keeper.shaking(visit):
            return
        done = partial(self._shaken, visit, alpn == _CHALLENGE)
        leg = Leg(self.keeper.pump, visit.fd, context, client=False, done=done, first=first, lenient=True)
        visit.attempt, visit.fd = leg, -1  # the descriptor is the leg's until it is done
        leg.start()

    def _shaken(self, visit: Visit, proof: bool, leg: Leg, error: Exception | None) -> None:
        visit.attempt = None
        self.keeper.shaken(visit)
        if error is not None:
            self.keeper.refuse(visit, Reason.BAD_TLS if isinstance(error, SSL.Error) else Reason.VISITOR_LEFT)
            return
        visit.fd = leg.fd
        try:
            if proof:
                visit.leg = leg
                self.keeper.refuse(visit, Reason.CHALLENGED)
            else:
                self.keeper.secured(visit, leg)
        except Exception:
            self.keeper.abandon(visit)
            raise

    def answer(self, host: str, said: bytes) -> bytes:
        """Give the HTTP response to an authority's question, b"" for any other request; `said` begins with a head."""
        if CHALLENGES not in said[:64]:
            return b""
        words = said.split(b" ", 2)
        proof = self.certificates.answer(host, words[1]) if len(words) == 3 and words[0] == b"GET" else None
        if proof is None:
            return b""
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(proof), proof)
        )


@define(eq=False)
class Certificates(Service):
    """The certificates of one server, from its folder and its authority, as configured at the moment.

    `home` is the state folder; `clock` gives monotonic seconds, `wall` seconds since 1970.
    """

    _reactor: Any
    _home: Path
    _health: Health
    _registry: Registry
    _clock: Callable[[], float]
    _wall: Callable[[], float]
    _folder: Folder | None = field(default=None, init=False)
    _acme: Acme | None = field(default=None, init=False)
    _asked: tuple[str, Settings | None] = field(default=("", None), init=False)
    _kinds: tuple[str, ...] = field(default=(), init=False)
    _tasks: TaskSet = field(factory=lambda: TaskSet(Logger(namespace="layer8.proxy")), init=False)

    def prepare(self, config: ProxyConfig) -> Callable[[], None]:
        """Make what a configuration asks for; raises `ConfigError`, and then nothing has changed.

        Call what is given back to go by it. Files are looked at again in any case.
        """
        settings = Settings(config.acme, config.acme_email, config.acme_ca_file) if config.acme else None
        folder, acme = self._folder, self._acme
        if config.certs != self._asked[0]:
            told = partial(self._told, "certificates")
            folder = Folder(Path(config.certs), self._clock, told) if config.certs else None
        if settings != self._asked[1]:
            acme = None if settings is None else self._authority(settings)
        kinds = ((HTTP,) if config.http else ()) + ((TLS_ALPN,) if config.https else ())

        def settle() -> None:
            self._asked, self._kinds = (config.certs, settings), kinds
            if self._folder is not None and folder is None:
                self._health.forget("certificates")
            self._folder = folder
            if folder is not None:
                folder.look()
            self._swap(acme)

        return settle

    def _authority(self, settings: Settings) -> Acme:
        told = partial(self._told, "acme")
        return Acme(
            self._reactor, self._home, settings, self.wanted, lambda: self._kinds, told, self._clock, self._wall
        )

    def _swap(self, acme: Acme | None) -> None:
        old, self._acme = self._acme, acme
        if old is acme:
            return
        if old is not None and old.running:
            self._tasks.start("authority", _ended(old.stopService()))
        if acme is None:
            self._health.forget("acme")
        elif self.running:
            acme.startService()

    def _told(self, check: str, ok: bool, why: str) -> None:
        self._health.set(check, ok, why, needed=False)

    def startService(self) -> None:
        """Begin to ask for certificates."""
        Service.startService(self)
        self._tasks.restart()
        if self._acme is not None:
            self._acme.startService()

    def stopService(self) -> Deferred[None]:
        """Ask for nothing more."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._acme is not None and self._acme.running:
            await self._acme.stopService()
        await self._tasks.stop()

    def wanted(self) -> Mapping[str, str]:
        """Give the hosts for which an authority is to be asked, with their owners.

        Theirs is the name, and the folder has nothing for it.
        """
        folder = self._folder
        return {
            row.host: row.owner
            for row in self._registry.hosts()
            if row.policy.tls == "terminate"
            and row.state in (Ownership.OWNED, Ownership.PROVEN)
            and "." in row.host
            and row.host[0] not in "*["
            and not row.host[-1].isdigit()
            and (folder is None or folder.pair(row.host) is None)
        }

    def context(self, name: str) -> SSL.Context | None:
        """Give the context for a host name; the folder's comes first."""
        found = None if self._folder is None else self._folder.context(name)
        return self._acme.context(name) if found is None and self._acme is not None else found

    def challenge(self, host: str) -> SSL.Context | None:
        """Give what an authority is shown in TLS."""
        return None if self._acme is None else self._acme.challenge(host)

    def answer(self, host: str, target: bytes) -> bytes | None:
        """Give what an authority wants to read."""
        return None if self._acme is None else self._acme.answer(host, target)


async def _ended(stopping: Deferred[None]) -> None:
    await stopping
