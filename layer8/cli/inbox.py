"""`layer8 inbox`: the messages that have come to this machine's node."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from layer8.cli.output import json_option, print_json


@click.command()
@json_option
def inbox(as_json: bool) -> None:
    """List the messages that have come, the newest last."""
    from layer8.cli.network import pages, table

    rows = pages("relay.inbox", "letters", {})
    if as_json:
        print_json({"letters": rows})
        return
    cells = [
        [datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%S"), row["sender"] or "-", row["text"]]
        for row in rows
    ]
    table(["when (UTC)", "from", "text"], cells, "nothing has come")
