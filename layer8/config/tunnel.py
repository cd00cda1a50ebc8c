"""The sections of the browser tunnel's relay: where it listens, and the gateways that it knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from attrs import frozen

from layer8.config import accept
from layer8.config.field import option, sections


@frozen
class TunnelGatewayConfig:
    """A gateway that pages may name, and the app whose files are mirrored for it; either may be missing."""

    id: str = option("", doc="Its name in URLs: 1 to 63 of a-z, 0-9 and -.", check=accept.gateway_id, example="shop")
    endpoint: str = option(
        "",
        doc="How it is reached: tls:HOST:PORT, unix:PATH, tcp: on this machine, tor:HOST:PORT or "
        "socks5:HOST:PORT:proxy=HOST:PORT.",
        check=accept.ways,
        example="tls:shop.example:443",
    )
    host: str = option(
        "", doc="The Host that it hears; empty: the endpoint's.", check=accept.http_host, example="shop.example"
    )
    path: str = option("/.well-known/ohttp-gateway", doc="The path that sealed requests are posted to.")
    keys_path: str = option("/.well-known/l8/keys.json", doc="The path of its signed key set.")
    socket_path: str = option("/.well-known/l8/ws", doc="The path of its WebSocket.")
    bearer_file: str = option(
        "", doc="File with the token by which it knows this relay; empty: it asks for none.", file="secret"
    )
    identity: tuple[str, ...] = option(
        (),
        doc="Its identity key, 43 letters of base64url, and the next one if that is announced; key sets that neither "
        "has signed are refused. Empty: pages check them all the same.",
        check=accept.pins,
        example="1oHnLaVgqY7hv2FHqpg3vFbXGcpZoPu9gGLlxG2fZxs",
    )
    app: str = option(
        "",
        doc="Folder with the files of its app, served at ID.NAME and ID.localhost.",
        file="folder",
        example="/srv/shop",
    )
    compare: tuple[str, ...] = option(
        (),
        doc="Other relays whose copy of its key set is compared with ours every hour, beside those that the app's "
        "manifest names.",
        check=accept.origins,
        example="https://relay.example.net",
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if not self.id:
            yield "id", "a gateway needs a name"
        if not self.endpoint and not self.app:
            yield "endpoint", "where is it? Write its endpoint, or the folder of its app"
        for name in ("path", "keys_path", "socket_path"):
            text: str = getattr(self, name)
            if (
                not text.startswith("/")
                or not text.isascii()
                or any(letter <= " " or letter in "#\x7f" for letter in text)
            ):
                yield name, "it begins with / and has neither spaces nor letters that a URL would encode"


@frozen
class TunnelConfig:
    """The relay of the browser tunnel: it sees who asks, never what."""

    listen: tuple[str, ...] = option(
        ("tcp:5000:interface=127.0.0.1",),
        doc="Where pages come; plain tcp: only on this machine, for a web server in front of it.",
        check=accept.listens("tcp", "tcp6", "tls", "unix", "systemd", plain_only_on_loopback=True),
        hot=False,
    )
    role: Literal["relay", "mirror", "both"] = option(
        "both",
        doc="relay: sealed requests only; mirror: the files of apps only, best run by somebody else; both.",
        hot=False,
    )
    name: str = option(
        "",
        doc="Public host name; apps are mirrored at ID.NAME, each an origin of its own.",
        check=accept.host_name,
        example="relay.example",
    )
    tls_cert_file: str = option("", doc="Certificate chain for tls: (PEM); empty: self-signed.", file="read")
    tls_key_file: str = option("", doc="Its key.", file="secret")
    forwarded_from: tuple[str, ...] = option(
        (),
        doc="Networks of web servers in front of it: the last address of their X-Forwarded-For is the client's, which "
        "only the limits look at.",
        check=accept.networks,
        example="127.0.0.1",
    )
    drain_s: int = option(30, doc="How long requests may go on at the end.", check=accept.between(0, 86400), unit="s")
    gateway: tuple[TunnelGatewayConfig, ...] = sections(TunnelGatewayConfig, doc="A gateway that pages may name.")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            yield "tls_cert_file", "tls_cert_file and tls_key_file need each other"
        seen: set[str] = set()
        for index, gateway in enumerate(self.gateway):
            if gateway.id in seen:
                yield f"gateway[{index}].id", "this gateway is there twice"
            seen.add(gateway.id)
            if self.role == "mirror" and not gateway.app:
                yield f"gateway[{index}].app", "a mirror needs the folder of the app"
            if self.role == "relay" and not gateway.endpoint:
                yield f"gateway[{index}].endpoint", "a relay needs to know how it is reached"
