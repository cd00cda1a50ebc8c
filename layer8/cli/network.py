"""What the commands of the network share: the node that runs on this machine, or one that a command runs itself."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layer8.cli.ask import ask
from layer8.cli.output import coloured, columns, printable
from layer8.config.home import run_dir
from layer8.core.errors import Unavailable

if TYPE_CHECKING:
    from layer8.crypto.keys import NodeKey
    from layer8.node.service import Node

_SOCKS = re.compile(r"SOCKS on tcp6?:(\d+)(?::interface=([0-9.]+))?\Z")
ROLES = ("node", "relay", "tracker", "dht", "rendezvous")
"""Daemons that are nodes of the network."""
BUILD_TIME = 95.0
"""Seconds until a circuit stands, or does not."""
_OWN_CLIENT: Mapping[str, object] = {
    "relay.relay": False,
    "relay.listen": [],
    "socks.listen": [],
    "control.listen": [],
    "debug.listen": [],
    "service": {},
}
"""A node that nobody can come to and nobody hears of; services of the configuration belong to another one."""

Begun = Callable[["Node"], Awaitable[Sequence[str]]]
"""What is done when a node listens; it gives lines to print."""


def running() -> Path | None:
    """Give the control socket of this user's node, if one runs."""
    for role in ROLES:
        path = run_dir(os.environ) / f"{role}.sock"
        if path.exists():
            try:
                ask(path, "rpc.ping")
            except Unavailable:
                continue  # a daemon that was killed leaves its socket behind
            return path
    return None


def own_client(there: Path | None, peers: Sequence[str], network: str | None, **more: object) -> dict[str, object]:
    """Give the options of a client node that a command runs itself; `there` is the control socket of another one."""
    said = {**_OWN_CLIENT, **more}
    if there is not None:
        said["control.socket"] = False  # it is the other node's
    if peers:
        said["relay.peers"] = list(peers)
    if network:
        said["relay.network"] = network
    return said


def call(method: str, params: dict[str, Any] | None = None, *, seconds: float = 5.0) -> Any:
    """Ask the node that runs here; raises Unavailable if none does, or Layer8Error with its own words."""
    path = running()
    if path is None:
        raise Unavailable("no node of this user runs here: layer8 up starts one")
    return ask(path, method, params, seconds=seconds)


def socks_port() -> tuple[str, int] | None:
    """Give where the node that runs here has a SOCKS port for this machine, if one does."""
    path = running()
    if path is None:
        return None
    for line in ask(path, "node.status")["listening"]:
        found = _SOCKS.match(str(line))
        if found is not None:
            return found[2] or "127.0.0.1", int(found[1])
    return None


def pages(method: str, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give all rows of a list."""
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = call(method, {**params, "cursor": cursor})
        rows += page[name]
        cursor = page.get("next") or ""
        if not cursor:
            return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print rows in columns, or say that there are none."""
    if not rows:
        click.echo(empty)
        return
    first, *rest = columns([head, *([printable(cell) for cell in row] for row in rows)])
    click.echo(click.style(first, bold=True) if coloured() else first)
    for line in rest:
        click.echo(line)


def run_node(
    said: Mapping[str, object],
    begun: Begun,
    *,
    config: Path | None = None,
    key: NodeKey | None = None,
    as_json: bool = False,
    verbose: bool = False,
    silent: bool = False,
) -> int:
    """Run a node in this process until Ctrl-C; raises Layer8Error if it cannot be. `silent`: `begun` prints itself."""
    from layer8.cli.run import on_reactor, show_log
    from layer8.config.load import load

    if not verbose:
        show_log("error")
    loaded = load(config, os.environ, said, role="node")

    async def main(reactor: Any) -> int:
        from twisted.internet.defer import CancelledError, Deferred

        from layer8.config.load import Loaded
        from layer8.control.frame import Frame
        from layer8.node.service import Node

        class Source:
            def __init__(self) -> None:
                self.loaded = loaded

            def reload(self) -> Loaded:
                return load(config, os.environ, said, role="node")

        frame = Frame(reactor, "node", Source(), os.environ, key=key)
        node = Node(
            frame, socks=loaded.config.socks, tracker=loaded.config.tracker.enabled, dht=loaded.config.dht.enabled
        )
        frame.run(node, node)
        frame.daemon.drain_seconds = 0.0  # whoever presses Ctrl-C does not want to wait
        frame.process.privilegedStartService()
        frame.process.startService()
        try:
            lines = [*await begun(node)]
            if not silent:
                _show(node, [*frame.listening(), *lines], as_json)
            with suppress(CancelledError):  # Ctrl-C is how this is meant to end
                await Deferred()
            return 0
        finally:
            await frame.process.stopService()

    return on_reactor(main)


def _show(node: Node, lines: Sequence[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"id": node.relay.key.text, "network": node.config.network, "listening": lines}))
    else:
        where = f"node {node.relay.key.short} of network {node.config.network}"
        click.echo(click.style(where, bold=True) if coloured() else where)
        for line in lines:
            click.echo(f"  {printable(line)}")
        click.echo("Ctrl-C ends it.")
    sys.stdout.flush()


async def offered(node: Node) -> Sequence[str]:
    """Say which hidden services a node offers, when it listens."""
    return [f"hidden service {one.name} at {one.address}" for one in node.hosts]
