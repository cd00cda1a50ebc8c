"""`layer8 socks`: a SOCKS5 port into the network."""

from __future__ import annotations

import click

from layer8.cli.output import json_option

LISTEN = "tcp:1080:interface=127.0.0.1"
PATH = "rand>rand>rand>internet"


@click.command()
@click.option("--listen", default=LISTEN, show_default=True, metavar="ENDPOINT", help="Where programs come.")
@click.option("--path", default=PATH, show_default=True, help="The way through the network; it ends in internet.")
@click.option("--peer", "peers", multiple=True, metavar="ID@ENDPOINT", help="A node that is known; repeatable.")
@click.option("--network", metavar="NAME", help="Which network (main).")
@json_option
@click.pass_context
def socks(
    ctx: click.Context, listen: str, path: str, peers: tuple[str, ...], network: str | None, as_json: bool
) -> int:
    """Let programs of this machine into the network by SOCKS5, until Ctrl-C.

    The node that runs here opens the port and keeps it open; without one a client runs in this command.
    """
    from layer8.cli.tunnel import open_path

    if not path.endswith("internet"):
        raise click.UsageError("the way of a SOCKS port ends in internet")
    verbose = ctx.ensure_object(dict).get("verbose", False)
    return open_path(f"{listen}>{path}", False, False, peers, network, as_json, verbose)
