"""`layer8 tunnel "LISTEN>HOP>...>TARGET"`: a local listener whose far end is fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from layer8.cli.output import json_option, print_json

if TYPE_CHECKING:
    from layer8.node.service import Node


@click.command()
@click.argument("path")
@click.option("--keep", is_flag=True, help="Open it again whenever the node starts.")
@click.option("--no-listen", is_flag=True, help="Run a client here, even if a node of yours runs already.")
@click.option("--peer", "peers", multiple=True, metavar="ID@ENDPOINT", help="A node that is known; repeatable.")
@click.option("--network", metavar="NAME", help="Which network (main).")
@json_option
@click.pass_context
def tunnel(
    ctx: click.Context,
    path: str,
    keep: bool,
    no_listen: bool,
    peers: tuple[str, ...],
    network: str | None,
    as_json: bool,
) -> int:
    """Open PATH, for example "1000>rand>rand>example.com:80".

    The node that runs here opens it and keeps it open; without one a client runs in this command until Ctrl-C.
    """
    verbose = ctx.ensure_object(dict).get("verbose", False)
    return open_path(path, keep, no_listen, peers, network, as_json, verbose)


def open_path(
    path: str, keep: bool, alone: bool, peers: Sequence[str], network: str | None, as_json: bool, verbose: bool
) -> int:
    """Have a tunnel opened by the node that runs here, else by one of our own."""
    from layer8.cli.ask import ask
    from layer8.cli.network import own_client, run_node, running
    from layer8.relay.route import parse_tunnel

    parse_tunnel(path)
    there = running()
    if there is not None and not (alone or peers or network):
        row = ask(there, "tunnel.open", {"path": path, "keep": keep})
        _show(row, as_json)
        return 0
    said = own_client(there, peers, network)

    async def begun(node: Node) -> Sequence[str]:
        await node.tunnels.open(path, keep=keep)
        return ()

    return run_node(said, begun, as_json=as_json, verbose=verbose)


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    for text in row["listening"]:
        click.echo(f"tunnel {row['tunnel']} on {text}")
