"""Looks whether a name is shown to be its owner's: a TXT record, or an answer on the name's own web server.

Whoever claims a name decides where we connect to, so over HTTP only public addresses are asked, on port 80, and no
redirect is followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import define
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IAddress, IHostResolution, IReactorTime, IResolutionReceiver
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.names.error import DNSQueryTimeoutError, DomainError, ResolverError
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from layer8.core.address import Scope, scope
from layer8.proxy.limits import PROVE_BODY, PROVE_TIME
from layer8.proxy.orders import ProofWanted

HTTP = 80
OK = 200


class Prover(Protocol):
    """Whoever can look a proof up."""

    async def look(self, wanted: ProofWanted) -> bool:
        """Say whether the proof is there; not being able to look is not seeing it."""


class Resolver(Protocol):
    """What is used of `twisted.names.client.Resolver`."""

    def lookupText(self, name: str, timeout: Any = None) -> Deferred[Any]:
        """Fire with answers, authority and additional records."""


def is_public(address: str) -> bool:
    """Say whether an address is one that anybody on the internet could ask."""
    return scope(address) is Scope.INTERNET


@define(eq=False)
class NetworkProver:
    """Asks DNS first, then HTTP. `port`, `may_ask` and `seconds` are what they are in the world; a test has its own."""

    reactor: Any  # IReactorTime, IReactorTCP and IReactorPluggableNameResolver in one
    resolver: Resolver
    port: int = HTTP
    may_ask: Callable[[str], bool] = is_public
    seconds: float = PROVE_TIME

    async def look(self, wanted: ProofWanted) -> bool:
        """Say whether one of the two proofs is there."""
        if await self._in_time(self._text(wanted.txt_name, wanted.txt_value)):
            return True
        return bool(wanted.url) and await self._in_time(self._answers(wanted.url, wanted.body))

    async def _in_time(self, look: Any) -> bool:
        clock: IReactorTime = self.reactor
        looked: Deferred[bool] = Deferred.fromCoroutine(look)
        try:
            return await looked.addTimeout(self.seconds, clock)
        except TimeoutError:
            return False

    async def _text(self, name: str, value: str) -> bool:
        try:
            answers, _, _ = await self.resolver.lookupText(name, timeout=(2, 4))
        except CancelledError:
            raise
        except (DomainError, ResolverError, DNSQueryTimeoutError):
            return False
        texts = (b"".join(answer.payload.data) for answer in answers if hasattr(answer.payload, "data"))
        return value.encode("ascii") in texts

    async def _answers(self, url: str, body: str) -> bool:
        host = URI.fromBytes(url.encode("ascii")).host.decode("ascii")
        for address in await self._addresses(host):
            if self.may_ask(address):
                return await self._answer(address, url) == body.encode("ascii")
        return False

    async def _addresses(self, host: str) -> list[str]:
        resolution = _Resolution(Deferred(), [])
        self.reactor.nameResolver.resolveHostName(resolution, host, self.port)
        await resolution.complete
        return resolution.found

    async def _answer(self, address: str, url: str) -> bytes:
        agent = Agent.usingEndpointFactory(self.reactor, _At(self.reactor, address, self.port))
        try:
            response = await agent.request(b"GET", url.encode("ascii"), Headers({b"User-Agent": [b"layer8"]}))
        except CancelledError:
            raise
        except (ConnectError, ConnectionClosed, DNSLookupError, ResponseFailed):
            return b""
        body = _Body()
        response.deliverBody(body)
        answer = await body.done
        return answer.strip() if response.code == OK else b""


@implementer(IAgentEndpointFactory)
class _At:
    """Connects to one address, whatever the URL says: it was looked at once, and is not looked up again."""

    def __init__(self, reactor: Any, address: str, port: int) -> None:
        self._reactor = reactor
        self._address = address
        self._port = port

    def endpointForURI(self, uri: URI) -> TCP4ClientEndpoint | TCP6ClientEndpoint:
        kind = TCP6ClientEndpoint if ":" in self._address else TCP4ClientEndpoint
        return kind(self._reactor, self._address, self._port, timeout=int(PROVE_TIME))


@implementer(IResolutionReceiver)
@define(eq=False)
class _Resolution:
    """Collects the addresses of a name."""

    complete: Deferred[None]
    found: list[str]

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing is cancelled: system look-ups cannot be."""

    def addressResolved(self, address: IAddress) -> None:
        self.found.append(str(getattr(address, "host", "")))

    def resolutionComplete(self) -> None:
        self.complete.callback(None)


class _Body(TwistedProtocol):
    """Takes a body, but not more of it than a proof can have."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._data = b""

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > PROVE_BODY:
            self._data = b""
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(self._data if reason.check(ResponseDone) else b"")

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.loseConnection()
