"""The section of a gateway of the browser tunnel that stands before any backend."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from layer8.config import accept, endpoint
from layer8.config.field import option
from layer8.core.errors import ConfigError
from layer8.tunnel.target import Allowed


def _backend(value: str) -> str | None:
    """Accept what a backend is dialled by: on another machine too, for its network is the operator's."""
    if endpoint.split(value)[0][:1] in (["tls"], ["tor"], ["socks5"]):
        return accept.ways(value)
    return accept.dials(value) if value else "it is empty"


def _authorities(value: tuple[str, ...]) -> str | None:
    try:
        if value:
            Allowed.of(value)
    except ConfigError as error:
        return str(error)
    return None


def _paths(value: tuple[str, ...]) -> str | None:
    wrong = [text for text in value if not text.startswith("/") or "?" in text or "#" in text]
    return f"{wrong[0]!r} is no path: write /api" if wrong else None


def _pin(value: str) -> str | None:
    return accept.pins((value,)) if value else None


def _name(value: str) -> str | None:
    return accept.gateway_id(value) if value else None


@frozen
class GatewayConfig:
    """A gateway before a backend: it sees what is asked, never who asks."""

    gateway: str = option(
        "local",
        doc="Its name, by which relays and pages know it: 1 to 63 of a-z, 0-9 and -.",
        check=_name,
        hot=False,
        example="shop",
    )
    authorities: tuple[str, ...] = option(
        ("localhost",),
        doc="Names that it answers for, with a port where pages write one; https:// unless it says http://.",
        check=_authorities,
        hot=False,
        example="shop.example",
    )
    listen: tuple[str, ...] = option(
        ("tcp:5002:interface=127.0.0.1",),
        doc="Where relays come; plain tcp: only on this machine, for a web server in front of it.",
        check=accept.listens("tcp", "tcp6", "tls", "unix", "systemd", plain_only_on_loopback=True),
        hot=False,
    )
    backend: str = option(
        "tcp:127.0.0.1:8000",
        doc="What answers: tcp:HOST:PORT, unix:PATH or tls:HOST:PORT. Everything goes there.",
        check=_backend,
        hot=False,
    )
    require: tuple[str, ...] = option(
        (),
        doc="Paths that are answered through the tunnel only: 403 to whoever asks past it.",
        check=_paths,
        hot=False,
        example="/api",
    )
    require_date: bool = option(
        True,
        doc="Refuse requests without a date; without it those that change nothing are remembered until their key dies.",
        hot=False,
    )
    state: str = option(
        "",
        doc="Folder of its keys and of what it has seen, shared by the workers of one machine; empty: gateway in the "
        "state folder.",
    )
    database_file: str = option(
        "",
        doc="File with the connection string of a PostgreSQL, instead of that folder, for several machines.",
        file="secret",
        hot=False,
    )
    identity_file: str = option(
        "",
        doc="Its identity key (Ed25519, PEM), which signs its sets of keys; empty: identity.pem in its folder, made if "
        "it is missing.",
        file="secret",
        hot=False,
    )
    signed_file: str = option(
        "",
        doc="Keys with signed sets for some days, made by --sign-days where the identity is; then it is not here.",
        file="secret",
        hot=False,
    )
    next_identity: str = option(
        "",
        doc="Pin of the identity key that is going to sign after this one, 43 letters: announced in the sets.",
        check=_pin,
        hot=False,
    )
    bearer_file: str = option(
        "",
        doc="File with tokens, one a line, of which relays have to show one; empty: every relay may come.",
        file="secret",
        hot=False,
    )
    pad: bool = option(True, doc="Fill answers up to one of a few sizes.", hot=False)
    pad_events: bool = option(False, doc="Fill up each piece of an event stream too.", hot=False)
    chunked: bool = option(
        True, doc="Take requests in chunks, so that they and their answers may be streamed.", hot=False
    )
    chacha: bool = option(False, doc="Offer ChaCha20-Poly1305 too, which not all browsers have.", hot=False)
    tls_cert_file: str = option("", doc="Certificate chain for tls: (PEM); empty: self-signed.", file="read")
    tls_key_file: str = option("", doc="Its key.", file="secret")
    drain_s: int = option(30, doc="How long requests may go on at the end.", check=accept.between(0, 86400), unit="s")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            yield "tls_cert_file", "tls_cert_file and tls_key_file need each other"
        if self.state and self.database_file:
            yield "state", "state and database_file exclude each other: keys are in one place"
        if self.signed_file and self.identity_file:
            yield "signed_file", "it is for a gateway without its identity: leave out identity_file"
        if self.database_file and not (self.identity_file or self.signed_file):
            yield "database_file", "keys that machines share need identity_file, the same on each, or signed_file"
