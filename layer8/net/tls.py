"""TLS 1.2 and 1.3 for both ends, over Twisted transports and over plain sockets.

The same `OpenSSL.SSL.Context` serves both ways of use:

* Twisted: `TlsServer` and `TlsClient` are connection creators, for `TLSMemoryBIOFactory`, `wrapClientTLS`, `startTLS`;
* a socket: ``SSL.Connection(context, socket)``, or `open_client`, which also sets the server name; `do_handshake`.

Who the peer is, is decided inside the handshake: the client sends no application byte to a wrong server. What fails
is a `WrongPeer`, which is an `SSL.Error` too, because that is what Twisted and OpenSSL's callers catch.
A resumed handshake shows no certificate to check. So nobody resumes who does not ask for it: listeners by `resume`,
diallers by keeping a session that was checked (`layer8.net.leg.Ticket`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

import service_identity
from attrs import define, field, frozen
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, X509, dump_certificate
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from layer8.core.errors import ConfigError, RemoteProtocolError
from layer8.crypto.x509 import Identity, certificate_pin

CIPHERS_1_2 = b"ECDHE+AESGCM:ECDHE+CHACHA20"  # forward secret and authenticated; TLS 1.3 has no others
TICKET_LIFE = 7200  # seconds for which a session may be resumed
ALPN_MOST = 255  # bytes of one protocol name (RFC 7301)


class WrongPeer(RemoteProtocolError, SSL.Error):
    """The peer's key or certificate is not the one that was asked for."""

    def __init__(self, why: str) -> None:
        """Say what was wrong, without naming the peer."""
        # Twisted reads the reason of an SSL.Error out of a queue of (library, function, reason)
        super().__init__([("layer8", "verify", why)])
        self.why = why

    def __str__(self) -> str:
        """Give the reason alone."""
        return self.why


@frozen
class Pinned:
    """A peer known by key: any of these pins will do; names, dates and authorities say nothing."""

    pins: frozenset[str]


@frozen
class Named:
    """A peer known by name or IP address, vouched for by an authority.

    `trust` is a PEM file or a folder of them; None means the system's authorities.
    """

    name: str
    trust: Path | None = None


Expectation = Pinned | Named


def server_context(
    identity: Identity, alpn: Sequence[str] = (), *, ask: bool = False, resume: bool = False
) -> SSL.Context:
    """Make the listening side's context.

    `alpn` are protocol names in our order of preference; a client that offers none of them gets none, and whoever
    uses the connection decides. `ask` asks the client for a certificate and takes any: its `peer_pin` says who it is.
    `resume` gives out tickets, sealed with a key that lives and dies with this context; not together with `ask`.
    """
    context = _context(SSL.TLS_SERVER_METHOD, resume=resume)
    _use(context, identity)
    if alpn:
        ours = _alpn(alpn)

        def select(connection: SSL.Connection, offered: list[bytes]) -> bytes | SSL._NoOverlappingProtocols:
            return next((name for name in ours if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)

        context.set_alpn_select_callback(select)
    if ask:
        context.set_verify(SSL.VERIFY_PEER, lambda connection, certificate, error, depth, ok: True)
    return context


def client_context(expected: Expectation, alpn: Sequence[str] = (), identity: Identity | None = None) -> SSL.Context:
    """Make the dialling side's context, which refuses every peer but the expected one.

    `identity` is shown to a server that asks for a certificate. Raises `ConfigError` for trust that cannot be read.
    """
    context = _context(SSL.TLS_CLIENT_METHOD)
    if identity is not None:
        _use(context, identity)
    if alpn:
        context.set_alpn_protos(_alpn(alpn))
    match expected:
        case Pinned(pins=pins):
            if not pins:
                raise ConfigError("a pinned peer needs at least one pin")
        case Named(trust=Path() as trust):
            _load_trust(context, trust)
        case Named():
            context.set_default_verify_paths()

    def verify(connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
        if isinstance(expected, Named) and not ok:
            raise WrongPeer(f"the certificate is not trusted (OpenSSL verify error {error} at depth {depth})")
        if depth == 0:
            _check(certificate, expected)
        return True

    context.set_verify(SSL.VERIFY_PEER, verify)
    return context


def unnamed_context(identity: Identity | None, alpn: str, *, server: bool) -> SSL.Context:
    """Make a context of TLS 1.3 that takes any certificate, or none: who the peer is, is decided after the handshake.

    A server refuses clients that do not offer `alpn`. Nobody resumes.
    """
    context = _context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_verify(SSL.VERIFY_PEER, lambda connection, certificate, error, depth, ok: True)
    if identity is not None:
        _use(context, identity)
    name = alpn.encode("ascii")

    def select(connection: SSL.Connection, offered: list[bytes]) -> bytes:
        if name not in offered:
            raise WrongPeer("the peer speaks another protocol")
        return name

    if server:
        context.set_alpn_select_callback(select)
    else:
        context.set_alpn_protos([name])
    return context


def open_client(context: SSL.Context, sock: socket.socket | None, server_name: str = "") -> SSL.Connection:
    """Make the dialling side of a connection on `sock` (None: memory buffers), ready for `do_handshake`.

    `server_name` goes out as SNI, unless it is empty or an IP address (RFC 6066 section 3).
    """
    connection = SSL.Connection(context, sock)
    if server_name and not _is_address(server_name):
        connection.set_tlsext_host_name(server_name.encode("ascii"))
    connection.set_connect_state()
    return connection


def open_server(context: SSL.Context, sock: socket.socket | None) -> SSL.Connection:
    """Make the listening side of a connection on `sock` (None: memory buffers), ready for `do_handshake`."""
    connection = SSL.Connection(context, sock)
    connection.set_accept_state()
    return connection


def check_peer(connection: SSL.Connection, expected: Expectation) -> None:
    """Check who is at the other end of a finished handshake; raises `WrongPeer`.

    The context has checked the same inside the handshake. This is for code that did not make the context, and for
    those who want to be sure.
    """
    certificate = connection.get_peer_certificate()
    if certificate is None:
        raise WrongPeer("the peer showed no certificate")
    if isinstance(expected, Named) and connection.get_context().get_verify_mode() == SSL.VERIFY_NONE:
        raise WrongPeer("the peer's certificate was not verified")
    _check(certificate, expected)


def peer_pin(connection: SSL.Connection) -> str | None:
    """Give the pin of the peer's key after the handshake, or None if it showed no certificate."""
    certificate = connection.get_peer_certificate()
    return None if certificate is None else _pin(certificate)


def negotiated(connection: SSL.Connection) -> str:
    """Give the protocol that ALPN chose, or an empty string."""
    return connection.get_alpn_proto_negotiated().decode("ascii", "replace")


@implementer(IOpenSSLServerConnectionCreator)
@define(eq=False)
class TlsServer:
    """The listening side for Twisted; `replace` changes the certificate for connections that come after it."""

    identity: Identity
    alpn: tuple[str, ...] = ()
    ask: bool = False
    context: SSL.Context = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the context, which fails now or never."""
        self.context = server_context(self.identity, self.alpn, ask=self.ask)

    def replace(self, identity: Identity) -> None:
        """Show another certificate from the next connection on."""
        self.context = server_context(identity, self.alpn, ask=self.ask)
        self.identity = identity

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Make one connection in memory."""
        return SSL.Connection(self.context, None)


@implementer(IOpenSSLClientConnectionCreator)
@define(eq=False)
class TlsClient:
    """The dialling side for Twisted: one expectation, any number of connections."""

    expected: Expectation
    alpn: tuple[str, ...] = ()
    server_name: str = ""
    identity: Identity | None = None
    context: SSL.Context = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the context; a named peer is asked for by its name unless another was given."""
        self.context = client_context(self.expected, self.alpn, self.identity)
        if not self.server_name and isinstance(self.expected, Named):
            self.server_name = self.expected.name

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Make one connection in memory."""
        return open_client(self.context, None, self.server_name)


def _context(method: int, *, resume: bool = False) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS_1_2)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    if resume:
        context.set_session_id(b"layer8")
        context.set_timeout(TICKET_LIFE)
    else:
        context.set_options(SSL.OP_NO_TICKET)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection keeps no 32 KiB of buffers
    return context


def _use(context: SSL.Context, identity: Identity) -> None:
    try:
        context.use_certificate(identity.chain[0])
        for certificate in identity.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(identity.key)
        context.check_privatekey()
    except SSL.Error as error:
        raise ConfigError("OpenSSL refuses the key or the certificate, perhaps as too weak") from error


def _load_trust(context: SSL.Context, trust: Path) -> None:
    files = sorted(trust.glob("*.pem")) if trust.is_dir() else [trust]
    if not files:
        raise ConfigError(f"{trust}: holds no *.pem file")
    for file in files:
        try:
            context.load_verify_locations(str(file))
        except SSL.Error as error:
            raise ConfigError(f"{file}: holds no certificate in PEM form that can be read") from error


def _check(certificate: X509, expected: Expectation) -> None:
    match expected:
        case Pinned(pins=pins):
            if _pin(certificate) not in pins:
                raise WrongPeer("the peer's key is not the pinned one")
        case Named(name=name):
            wanted = IPAddress_ID(name) if _is_address(name) else DNS_ID(name)
            try:
                verify_service_identity(extract_patterns(certificate), obligatory_ids=[wanted], optional_ids=[])
            except (service_identity.VerificationError, service_identity.CertificateError) as error:
                raise WrongPeer("the certificate is for another name") from error


def _pin(certificate: X509) -> str:
    try:
        return certificate_pin(dump_certificate(FILETYPE_ASN1, certificate))
    except ConfigError as error:
        raise WrongPeer(str(error)) from error


def _alpn(names: Sequence[str]) -> list[bytes]:
    encoded = [name.encode("ascii", "replace") for name in names]
    if not all(name.isascii() and 0 < len(name) <= ALPN_MOST for name in names):
        raise ConfigError(f"an ALPN name has 1 to {ALPN_MOST} ASCII characters")
    return encoded


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
