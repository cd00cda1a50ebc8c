"""The sections of hidden services: those that this node offers, and what it shows of itself to others'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from attrs import Factory, frozen

from layer8.config.field import option
from layer8.core.errors import Layer8Error
from layer8.crypto.keys import parse_id

PORTS = 64  # of one service
TARGET_MOST = 1024  # characters


def _ports(value: Mapping[int, str]) -> str | None:
    if len(value) > PORTS:
        return f"at most {PORTS}"
    for port, text in value.items():
        if not 0 < port < 65536:
            return f"{port}: a port is 1 to 65535"
        if not 0 < len(text) <= TARGET_MOST:
            return f"{port}: a target is HOST:PORT, unix:PATH, file:PATH or dir:PATH"
    return None


def _ids(value: tuple[str, ...]) -> str | None:
    for text in value:
        if reason := _why_not(lambda: parse_id(text)):  # noqa: B023
            return f"{text!r}: {reason}"
    return None


def _why_not(read: Callable[[], object]) -> str | None:
    try:
        read()
    except Layer8Error as error:
        return str(error)
    return None


@frozen
class ServiceConfig:
    """A hidden service: a key, and what answers at its ports."""

    key: str = option(
        "",
        doc="File with its key (Ed25519, PEM), relative to the state folder, made if it is missing; empty: "
        "services/NAME.pem. Whoever loses it loses the address.",
        example="services/blog.pem",
    )
    ports: Mapping[int, str] = option(
        Factory(dict),
        doc="Its ports, and what answers there: HOST:PORT, unix:PATH, file:PATH or dir:PATH.",
        check=_ports,
        example='{ 80 = "localhost:8080" }',
    )
    client_auth: str = option(
        "",
        doc="File of the clients that may come, `name = key` a line, the key (X25519) as 52 letters of base32; "
        "empty: everybody who knows the address.",
        file="read",
    )
    allow: tuple[str, ...] = option(
        (), doc="Login keys of those who may come; empty: no login is needed.", check=_ids, example="ID"
    )
    deny: tuple[str, ...] = option((), doc="Login keys of those who may not.", check=_ids)
    data_through_access_point: bool = option(
        False,
        doc="Let clients save a circuit: their access point joins them to the service too, and sees volume and time.",
    )
    public: bool = option(
        False, doc="Whoever has the SHA-1 of its key, 40 hex digits, may find it: a resource, not hidden from the DHT."
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if not self.ports:
            yield "ports", 'a service needs a port: ports = { 80 = "localhost:8080" }'
        if self.public and self.client_auth:
            yield "public", "what anybody may find cannot be kept for known clients: leave client_auth or public out"
        if both := set(self.allow) & set(self.deny):
            yield "deny", f"{min(both)} is in allow too"


@frozen
class VisitConfig:
    """What this node shows of itself to one hidden service, and to no other."""

    address: str = option("", doc="The service: 56 letters, with .l8.alt or without.")
    client_key: str = option(
        "", doc="File with the key (X25519, PEM) by which the service knows this client.", file="secret"
    )
    identity: str = option("", doc="File with the login key (Ed25519, PEM) that the service is shown.", file="secret")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if not self.address:
            yield "address", "which service? Write its address"
        if not self.client_key and not self.identity:
            yield "client_key", "without client_key and identity there is nothing to show"
