"""`layer8 send ID TEXT`: a line of text to whoever has a key."""

from __future__ import annotations

import click

from layer8.cli.output import json_option, print_json


@click.command()
@click.argument("to", metavar="ID")
@click.argument("text")
@click.option("--signed", is_flag=True, help="Sign it with this node's own key, so that it is known who has sent it.")
@json_option
def send(to: str, text: str, signed: bool, as_json: bool) -> None:
    """Send TEXT to the node ID, by a circuit that ends there; it waits in its inbox."""
    from layer8.cli.network import BUILD_TIME, call

    sent = call("relay.send", {"to": to, "text": text, "signed": signed}, seconds=BUILD_TIME)
    if as_json:
        print_json(sent)
        return
    click.echo(f"taken after {sent['ms']:g} ms, by circuit {sent['circuit']}{', a new one' if sent['new'] else ''}")
