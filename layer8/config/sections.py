"""The sections that every daemon has: control, log, debug."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from layer8.config import accept
from layer8.config.field import option

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
        (), doc="Endpoint of the debug port.", check=accept.not_built((), "the debug port")
    )
