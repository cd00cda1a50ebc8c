"""`layer8 up`: this machine's node, with every role that its configuration switches on."""

from __future__ import annotations

from pathlib import Path

import click

from layer8.cli.output import json_option


@click.command()
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file (layer8.toml).")
@click.option("--listen", "listen", multiple=True, metavar="ENDPOINT", help="Where links are taken; repeatable.")
@click.option("--no-listen", is_flag=True, help="Take no links, and carry nothing for others.")
@click.option("--peer", "peers", multiple=True, metavar="ID@ENDPOINT", help="A node that is known; repeatable.")
@click.option(
    "--id",
    "identity",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the node's own key, an Ed25519 key in PEM (node.key in the state folder).",
)
@click.option("--network", metavar="NAME", help="Which network (main).")
@json_option
@click.pass_context
def up(
    ctx: click.Context,
    config: Path | None,
    listen: tuple[str, ...],
    no_listen: bool,
    peers: tuple[str, ...],
    identity: Path | None,
    network: str | None,
    as_json: bool,
) -> int:
    """Run this machine's node until Ctrl-C: it relays for others, and has a SOCKS port for your programs."""
    from layer8.cli.network import offered, run_node, running
    from layer8.core.errors import Unavailable
    from layer8.crypto.keys import NodeKey

    if listen and no_listen:
        raise click.UsageError("--listen and --no-listen do not go together")
    if (there := running()) is not None:
        raise Unavailable(f"a node of this user runs already ({there}); LAYER8_HOME=FOLDER gives another one a place")
    said: dict[str, object] = {}
    if listen:
        said["relay.listen"] = list(listen)
    if no_listen:
        said |= {"relay.listen": [], "relay.relay": False}
    if peers:
        said["relay.peers"] = list(peers)
    if network:
        said["relay.network"] = network
    key = None if identity is None else NodeKey.load(identity)
    verbose = ctx.ensure_object(dict).get("verbose", False)
    return run_node(said, offered, config=config, key=key, as_json=as_json, verbose=verbose)
