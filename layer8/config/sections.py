"""The sections that every daemon has: control, log, debug."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from attrs import Factory, frozen

from layer8.config import accept
from layer8.config.field import option, section

ROLE_PORTS = {
    "node": 9751,
    "relay": 9751,
    "tracker": 9751,
    "dht": 9751,
    "rendezvous": 9751,
    "proxy": 9752,
    "agent": 9753,
    "mix": 9754,
    "mailbox": 9755,
    "tunnel": 9756,
    "gateway": 9757,
    "auth": 9758,
    "revproxy": 9759,
}
"""The control port of each daemon; the word PORT in `control.listen` stands for it, so one file serves all roles."""


Role = Literal["public", "read", "operate", "admin", "agent", "owner", "node", "provider"]


@frozen
class WampConfig:
    """The router by which nodes find each other and by which the control API can be called too."""

    url: str = option(
        "",
        doc="WebSocket of a WAMP router, wss://HOST:PORT/PATH, or ws:// on this machine; empty: none.",
        check=accept.router,
        example="wss://router.example.net/ws",
        hot=False,
    )
    ca_file: str = option(
        "",
        doc="Certificate (PEM) that the router's own has to be, or be signed by; empty: the system's authorities.",
        file="read",
        hot=False,
    )
    realm: str = option("layer8", doc="The router's realm for these nodes.", hot=False)
    auth: Literal["ticket"] = option("ticket", doc="How we prove who we are.", hot=False)
    auth_id: str = option("", doc="Our name at the router; empty: the short id of this node.", hot=False)
    secret_file: str = option("", doc="File with the ticket.", file="secret", hot=False)
    roles: Mapping[str, Role] = option(
        Factory(lambda: {"node": "node"}),
        doc="What callers with a role of the router may do here; those that it does not disclose are public.",
        example='{ node = "node", operators = "operate" }',
        hot=False,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if self.url and not self.secret_file:
            yield "secret_file", "a router wants a ticket: write it into a file and name that here"
        if self.ca_file and not self.url.startswith("wss:"):
            yield "ca_file", "only a wss:// router shows a certificate"


@frozen
class ControlConfig:
    """Who may look at and steer a running daemon, and where."""

    listen: tuple[str, ...] = option(
        ("tcp:PORT:interface=127.0.0.1",),
        doc="Endpoints of the control API and metrics. PORT is the daemon's own: proxy 9752, agent 9753. "
        "Beyond this machine only with TLS: tls:PORT. Empty: only the Unix socket.",
        check=accept.listens("tcp", "tls", "unix", "systemd", plain_only_on_loopback=True),
    )
    socket: bool = option(True, doc="Open the Unix socket $LAYER8_HOME/run/NAME.sock, which `layer8 status` uses.")
    names: tuple[str, ...] = option(
        (), doc="Host names besides localhost by which browsers may reach the control API.", check=accept.names
    )
    metrics_open: bool = option(False, doc="Answer /metrics without a token to callers on this machine.")
    peer_read: bool = option(False, doc="Let the other end of an agent connection ask for node.status.")
    wamp: WampConfig = section(WampConfig, doc="A router by which the control API can be called too.")


@frozen
class LogConfig:
    """What is written down, and what is left out."""

    level: Literal["debug", "info", "warn", "error"] = option("info", doc="Least level that is logged.")
    format: Literal["auto", "text", "json"] = option(
        "auto", doc="text, json (one object per line), or auto: text on a terminal, json otherwise."
    )
    addresses: Literal["none", "prefix", "keyed", "clear"] = option(
        "none",
        doc="Peer addresses: none leaves them out, prefix keeps /24 or /48, keyed gives a word that stays the same "
        "for one visitor and one day, clear writes them as they are.",
    )
    blur: int = option(
        60,
        doc="Times in access records are rounded down to this many seconds and byte counts to two significant binary "
        "digits; 0 is exact.",
        check=accept.between(0, 86400),
        unit="s",
    )
    file: str = option("", doc="Where the log goes; empty: standard error.", file="write")


@frozen
class DebugConfig:
    """The port for netcat."""

    listen: tuple[str, ...] = option(
        (),
        doc="Endpoints of the debug port, for this machine only; beside them it is on the Unix socket "
        "$LAYER8_HOME/run/NAME.debug.",
        check=accept.listens("tcp", "unix", plain_only_on_loopback=True),
        example="tcp:9009:interface=127.0.0.1",
    )
