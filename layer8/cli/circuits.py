"""`layer8 circuits`: the circuits of the node that runs here; builds and closes some by hand."""

from __future__ import annotations

from typing import Any

import click

from layer8.cli.output import json_option, print_json


@click.command()
@click.option("--build", metavar="PATH", help='Build one by hand, for example "rand>rand>rand".')
@click.option("--close", type=click.IntRange(1), metavar="N", help="Close one.")
@json_option
def circuits(build: str | None, close: int | None, as_json: bool) -> None:
    """List the circuits of this machine's node: their hops, and how long each took to build."""
    from layer8.cli.network import BUILD_TIME, call, pages, table

    if build and close:
        raise click.UsageError("--build and --close do not go together")
    if close:
        call("relay.close", {"circuit": close})
        if as_json:
            print_json({"circuit": close, "state": "closed"})
        return
    if build:
        rows = [call("relay.build", {"path": build}, seconds=BUILD_TIME)]
    else:
        rows = pages("relay.circuits", "circuits", {})
    if as_json:
        print_json({"circuits": rows})
        return
    head = ["circuit", "state", "path", "ms", "streams", "age", "purpose"]
    table(head, [_cells(row) for row in rows], "there is no circuit")


def _cells(row: dict[str, Any]) -> list[str]:
    ms = " ".join(f"{value:.1f}" for value in row["ms"])
    return [
        str(row["circuit"]),
        row["state"],
        row["path"],
        ms,
        str(row["streams"]),
        f"{row['age']} s",
        row["purpose"],
    ]
