"""`layer8 relays`: the nodes that the node of this machine knows."""

from __future__ import annotations

import click

from layer8.cli.output import json_option, print_json


@click.command()
@click.option("--full", is_flag=True, help="With whole ids and addresses.")
@json_option
def relays(full: bool, as_json: bool) -> None:
    """List the nodes that this machine's node knows, and how circuits through them went."""
    from layer8.cli.network import pages, table

    rows = pages("relay.peers", "peers", {"full": full})
    if as_json:
        print_json({"relays": rows})
        return
    head = ["node", "roles", "address", "linked", "vetted", "good", "bad", "heard of"]
    cells = [
        [
            row["node"],
            ",".join(row["roles"]) or "-",
            row["address"] or "-",
            "yes" if row["linked"] else "-",
            "yes" if row["vetted"] else "-",
            str(row["good"]),
            str(row["bad"]),
            f"{row['seen']} s ago",
        ]
        for row in rows
    ]
    table(head, cells, "no other node is known")
