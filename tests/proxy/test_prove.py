"""Looking ownership up, at a real DNS server and a real web server on loopback."""

from typing import Any

from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IHostResolution, IReactorTime
from twisted.names import dns, server
from twisted.names.client import Resolver
from twisted.names.common import ResolverBase
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from zope.interface import implementer

from layer8.proxy.orders import ProofWanted
from layer8.proxy.prove import NetworkProver, is_public
from layer8.proxy.registration import proof_wanted
from tests.control.rig import pause
from tests.proxy.desk import HOST

WANTED = proof_wanted(HOST, "ann")


class Zone(ResolverBase):
    """Answers TXT queries with what a test put there; for all else there is no such name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.texts: dict[str, list[list[bytes]]] = {}
        self.silent = False
        self.asked: list[str] = []

    def _lookup(self, name: bytes, cls: int, type: int, timeout: Any) -> Deferred[Any]:
        asked = name.decode("ascii").lower()
        self.asked.append(asked)
        if self.silent:
            return Deferred()
        if type == dns.TXT and asked in self.texts:
            answers = [dns.RRHeader(name, dns.TXT, payload=dns.Record_TXT(*parts)) for parts in self.texts[asked]]
            return succeed((answers, [], []))
        return fail(dns.DomainError(name))


class Page(Resource):
    """A web server's answer to everything."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.code, self.body, self.headers = 200, b"", dict[bytes, bytes]()
        self.asked: list[tuple[bytes, str]] = []
        self.silent = False

    def render(self, request: Request) -> Any:
        self.asked.append((request.uri, request.getHeader("Host") or ""))
        if self.silent:
            return 1
        request.setResponseCode(self.code)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return self.body


@define(eq=False)
class Names:
    """A resolver of host names that knows what a test tells it."""

    addresses: list[str] = field(factory=lambda: ["127.0.0.1"])

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any, **__: Any) -> Any:
        receiver.resolutionBegan(None)
        for address in self.addresses:
            receiver.addressResolved(IPv4Address("TCP", address, portNumber))
        receiver.resolutionComplete()


@implementer(IHostResolution)
class Wheel:
    """The reactor with another resolver of names."""

    def __init__(self, reactor: Any, names: Names) -> None:
        self._reactor = reactor
        self.nameResolver = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class ProveTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor as global_reactor

        reactor: Any = global_reactor
        self.clock: IReactorTime = reactor
        self.zone, self.page, self.names = Zone(), Page(), Names()
        factory = server.DNSServerFactory(clients=[self.zone])
        protocol = dns.DNSDatagramProtocol(factory)
        factory.noisy = protocol.noisy = False
        udp = reactor.listenUDP(0, protocol, interface="127.0.0.1")
        tcp = reactor.listenTCP(0, Site(self.page), interface="127.0.0.1")
        self.addCleanup(udp.stopListening)
        self.addCleanup(tcp.stopListening)
        resolver = Resolver(servers=[("127.0.0.1", udp.getHost().port)], reactor=reactor)
        self.prover = NetworkProver(
            Wheel(reactor, self.names), resolver, tcp.getHost().port, lambda address: address.startswith("127.")
        )
        self.zone.texts["_layer8.shop.example.org"] = [[b"something else"]]
        self.addCleanup(lambda: Deferred.fromCoroutine(pause(self.clock, 0.05)))

    def text(self, *parts: bytes) -> None:
        self.zone.texts[WANTED.txt_name] = [[b"v=spf1 -all"], list(parts)]

    async def test_text_record(self) -> None:
        self.text(WANTED.txt_value.encode())
        self.assertTrue(await self.prover.look(WANTED))
        self.assertEqual((self.zone.asked, self.page.asked), ([WANTED.txt_name], []))

    async def test_text_record_in_parts(self) -> None:
        value = WANTED.txt_value.encode()
        self.text(value[:7], value[7:])
        self.assertTrue(await self.prover.look(WANTED))

    async def test_for_wildcards(self) -> None:
        wanted = proof_wanted("*.example.com", "ann")
        self.zone.texts["_layer8.example.com"] = [[wanted.txt_value.encode()]]
        self.assertTrue(await self.prover.look(wanted))
        self.zone.texts.clear()
        self.page.body = wanted.txt_value[3:].encode()
        self.assertFalse(await self.prover.look(wanted))
        self.assertEqual(self.page.asked, [])

    async def test_another_owners_record(self) -> None:
        self.text(proof_wanted(HOST, "bob").txt_value.encode())
        self.assertFalse(await self.prover.look(WANTED))

    async def test_nothing_there(self) -> None:
        self.page.code = 404
        self.assertFalse(await self.prover.look(WANTED))
        token = WANTED.body
        self.assertEqual([uri for uri, _ in self.page.asked], [f"/.well-known/layer8/{token}".encode()])
        self.assertTrue(self.page.asked[0][1].startswith(HOST))

    async def test_page(self) -> None:
        self.page.body = WANTED.body.encode() + b"\r\n"
        self.assertTrue(await self.prover.look(WANTED))

    async def test_pages_that_prove_nothing(self) -> None:
        for code, body in (
            (404, WANTED.body.encode()),
            (200, b""),
            (200, b"no such page: /.well-known/layer8/" + WANTED.body.encode()),
            (200, WANTED.body.encode() + b" " * 2000),
            (200, b"x" * 5_000_000),
        ):
            self.page.code, self.page.body = code, body
            self.assertFalse(await self.prover.look(WANTED), (code, body[:40]))

    async def test_no_redirect_is_followed(self) -> None:
        self.page.code, self.page.headers = 302, {b"Location": WANTED.url.encode()}
        self.assertFalse(await self.prover.look(WANTED))
        self.assertEqual(len(self.page.asked), 1)

    async def test_inner_addresses_are_not_asked(self) -> None:
        self.page.body = WANTED.body.encode()
        self.prover.may_ask = is_public
        self.assertFalse(await self.prover.look(WANTED))
        self.assertEqual(self.page.asked, [])

    async def test_which_addresses_are_public(self) -> None:
        for address in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1"):
            self.assertFalse(is_public(address), address)
        for address in ("fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "224.0.0.1", "ff02::1", "x"):
            self.assertFalse(is_public(address), address)
        for address in ("8.8.8.8", "2606:4700::1111"):
            self.assertTrue(is_public(address), address)

    async def test_name_without_address(self) -> None:
        self.names.addresses = []
        self.assertFalse(await self.prover.look(WANTED))

    async def test_nobody_listens(self) -> None:
        self.names.addresses = ["127.77.0.1"]
        self.assertFalse(await self.prover.look(WANTED))

    async def test_a_silent_web_server(self) -> None:
        self.page.silent = True
        self.prover.seconds = 0.2
        self.assertFalse(await self.prover.look(ProofWanted(WANTED.txt_name, "", WANTED.url, WANTED.body)))
