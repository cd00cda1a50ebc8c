"""`layer8 name`: the names by which this user calls hidden services."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layer8.cli.output import columns, json_option, print_json, printable
from layer8.config.home import home
from layer8.core.errors import Layer8Error, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from layer8.rendezvous.files import Magnet, ServiceFile
    from layer8.rendezvous.names import Names
    from layer8.rendezvous.shelf import Shelf


DESKTOP_FILE = "layer8-magnet.desktop"
DESKTOP = """[Desktop Entry]
Type=Application
Name=layer8
Comment=Show which hidden service a link leads to
Exec="{program}" name resolve --wait %u
Terminal=true
NoDisplay=true
MimeType=x-scheme-handler/magnet;
"""
ASK_TIME = 60.0
CLAIM_TIME = 300.0
"""Seconds: work of 2^22 on a small machine, and a DHT that is slow."""


@click.group()
def name() -> None:
    """Look after the names by which you call hidden services."""


@name.command()
@click.argument("name")
@click.argument("what", metavar="ADDRESS|MAGNET|FILE|URL")
@click.option("--direct", is_flag=True, help="Fetch a URL from this machine's own address where no node runs here.")
@json_option
def pin(name: str, what: str, direct: bool, as_json: bool) -> None:
    """Pin NAME to a service for ever: another key is never opened under it.

    An address has 56 letters, with .l8.alt or without; a link begins with magnet:, and a file, NAME.l8 or a path, is
    what its service has written, or an index page on which it calls itself NAME; that goes into petnames.toml too.
    Such a file may stand at a URL: it is fetched through the SOCKS port of the node that runs here.
    """
    from layer8.rendezvous.address import address_text, check_name, shown
    from layer8.rendezvous.files import Magnet

    now = datetime.now(UTC).timestamp()
    try:
        check_name(name)
    except RemoteProtocolError as error:
        raise Layer8Error(f"{printable(name)[:80]}: {error}") from None
    found, key = _read(what, name, now, direct)
    shelf = _shelf()
    book = shelf.book()
    new = book.pin(name, key, now)
    if found is not None and not isinstance(found, Magnet):
        shelf.add_petname(name, key)
    if new:
        shelf.save(book)
    trackers = [str(tracker) for tracker in found.trackers] if found is not None else []
    if as_json:
        told = {"name": name, "shown": shown(name, key), "address": address_text(key), "new": new}
        print_json({**told, "trackers": trackers})
        return
    click.echo(f"{shown(name, key)} is pinned{'' if new else ' already'} to {address_text(key)}.l8.alt")
    if found is not None and found.name and found.name != name:
        click.echo(f"it calls itself {found.name}")
    for tracker in trackers:
        click.echo(f"tracker {printable(tracker)}")


@name.command()
@click.argument("name")
@json_option
def unpin(name: str, as_json: bool) -> None:
    """Take the pin of NAME away, so that it may be pinned to another key."""
    shelf = _shelf()
    book = shelf.book()
    if not book.unpin(name):
        raise Layer8Error(f"{printable(name)} is not pinned: layer8 name list shows what is")
    shelf.save(book)
    if as_json:
        print_json({"name": name, "unpinned": True})
    elif name in shelf.petnames():
        click.echo(f"{name} is not pinned any more; it still stands in petnames.toml")
    else:
        click.echo(f"{name} is not pinned any more")


@name.command()
@click.argument("name")
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with the service's key; else that of the service that layer8 hide or [service.NAME] calls NAME.",
)
@json_option
def claim(name: str, key: Path | None, as_json: bool) -> None:
    """Claim NAME for a service of yours, in the network; it takes some seconds of work.

    The node that runs here does it, and says it again every hour and before it expires. What a claim is worth shows
    with time: others see since when it is there, and whether anybody else wants the same name.
    """
    from layer8.cli.network import call

    file = "" if key is None else str(key.resolve())
    told = call("names.claim", {"name": name, "key": file}, seconds=CLAIM_TIME)
    if as_json:
        print_json({"name": name, **told})
        return
    click.echo(f"{told['shown']} is claimed for {told['address']}.l8.alt, at {told['nodes']} nodes of the DHT")
    click.echo(f"until {_day(told['expires'])}; this node renews it while it runs")


@name.command()
@click.argument("name")
@click.argument("what", metavar="ADDRESS|MAGNET|FILE|URL")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it is good for.")
@json_option
def certify(name: str, what: str, days: int, as_json: bool) -> None:
    """Certify, with the key of the node that runs here, that NAME is a service's.

    It counts for those who have the node's id among their name_signers.
    """
    from layer8.cli.network import call
    from layer8.rendezvous.address import address_text, shown

    _, key = _read(what, name, datetime.now(UTC).timestamp())
    said = {"name": name, "address": address_text(key), "days": days}
    told = call("names.certify", said, seconds=ASK_TIME)
    if as_json:
        print_json({**said, **told})
        return
    click.echo(f"{shown(name, key)} is certified for {days} days, at {told['nodes']} nodes of the DHT")


@name.command()
@click.argument("what", metavar="NAME|ADDRESS|MAGNET|FILE")
@click.option("--wait", is_flag=True, help="Wait for Enter at the end, in a window that would close.")
@json_option
def resolve(what: str, wait: bool, as_json: bool) -> None:
    """Say which service a name, an address, a link or a file leads to, what says so, and who else wants the name.

    Of a name the node that runs here asks the network; nobody there learns who has asked, and nothing is written down.
    """
    from layer8.cli.name_show import lines, resolved

    try:
        told = resolved(what, _read, _shelf().names())
        if as_json:
            print_json(told)
        else:
            for line in lines(told):
                click.echo(line)
        if not told["address"]:
            raise Layer8Error(told["why"])
    except Layer8Error as error:
        if not wait:
            raise
        click.echo(f"layer8: {error}", err=True)
    if wait:
        click.pause("Enter closes this.")


@name.command("handler")
@click.option("--install", is_flag=True, help="Write it where your desktop looks for it.")
def desktop_file(install: bool) -> None:
    """Print the file by which a desktop shows where magnet links lead, in a terminal; nothing is opened or pinned.

    Links of other kinds are shown to be none of ours, so it is not made the default: the last line says how.
    """
    program = shutil.which("layer8") or "layer8"
    text = DESKTOP.format(program=program)
    if not install:
        click.echo(text, nl=False)
        return
    folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "applications"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESKTOP_FILE).write_text(text)
    click.echo(f"{folder / DESKTOP_FILE} is written")
    click.echo(f"to have it called: xdg-mime default {DESKTOP_FILE} x-scheme-handler/magnet")


@name.command("list")
@click.option("--hosts", is_flag=True, help="Lines for a file of hosts, each name with a loopback address of its own.")
@json_option
def list_(hosts: bool, as_json: bool) -> None:
    """List pinned names and petnames, and the red flags of names that were answered by another key."""
    from layer8.rendezvous.address import address_text, parse_address
    from layer8.rendezvous.names import loopback

    names = _shelf().names()
    rows = _rows(names)
    where = loopback({row["name"]: parse_address(row["address"]) for row in rows})
    for row in rows:
        row["host"] = where[row["name"]]
    flags: list[dict[str, Any]] = [
        {"name": one.name, "address": address_text(one.key), "by": one.by.value, "at": one.at, "times": one.times}
        for one in names.book.flags.values()
    ]
    if as_json:
        print_json({"names": rows, "flags": flags})
        return
    if hosts:
        for row in rows:
            click.echo(f"{row['host']}\t{row['name']}.l8.alt\t# {row['address']}.l8.alt")
        return
    if not rows:
        click.echo("no name is pinned: layer8 name pin NAME ADDRESS")
    else:
        cells = [["name", "by", "since", "address"]]
        cells += [[row["shown"], row["layer"], _day(row["at"]), row["address"]] for row in rows]
        click.echo("\n".join(columns(cells)))
    for row in rows:
        if row["conflict"]:
            click.echo(f"red flag: petnames.toml says that {row['name']} is {row['conflict']}; the pin counts")
    for flag in flags:
        click.echo(
            f"red flag: {flag['name']} was answered by {flag['address']} ({flag['by']}, {flag['times']} times, "
            f"last on {_day(flag['at'])}); it was not opened"
        )


def _shelf() -> Shelf:
    from layer8.config.load import load
    from layer8.rendezvous.shelf import Shelf

    return Shelf(home(os.environ), load(None, os.environ, {}).config.names.petnames)


def _read(what: str, name: str, now: float, direct: bool = False) -> tuple[ServiceFile | Magnet | None, bytes]:
    """Read what leads to a service: the file or link, and its key; raises Layer8Error in one line."""
    from layer8.rendezvous.address import parse_address
    from layer8.rendezvous.files import Magnet

    found: ServiceFile | Magnet | None = None
    try:
        if what.lower().startswith("magnet:"):
            found = Magnet.parse(what)
        elif what.lower().startswith(("http://", "https://")):
            found = _service_file(_fetched(what, direct), name, now)
        elif what.endswith(".l8") or os.sep in what:
            found = _service_file(_content(Path(what)), name, now)
        return found, found.key if found is not None else parse_address(what)
    except RemoteProtocolError as error:
        raise Layer8Error(f"{printable(what)[:200]}: {error}") from None


def _content(path: Path) -> bytes:
    from layer8.rendezvous.index import INDEX_MAX

    with path.open("rb") as file:
        return file.read(INDEX_MAX + 1)


def _fetched(url: str, direct: bool) -> bytes:
    """Fetch a file; who serves it would know who is about to visit that service, so never directly unless told to."""
    from layer8.cli.fetch import fetch
    from layer8.cli.network import socks_port
    from layer8.rendezvous.index import INDEX_MAX

    port = socks_port()
    if port is None and not direct:
        raise Unavailable(
            f"{printable(url)[:200]}: no node with a SOCKS port runs here: layer8 up starts one; or pin --direct, "
            "which shows this machine's address to those who serve the file"
        )
    return fetch(url, INDEX_MAX, port)


def _service_file(raw: bytes, name: str, now: float) -> ServiceFile:
    """Read a service's own file, or find it on an index page by the name that it calls itself."""
    from layer8.rendezvous.files import ServiceFile
    from layer8.rendezvous.index import Index, is_index

    if is_index(raw):
        page = Index.read(raw)
        if not name:
            named = ", ".join(one.file.name for one in page.entries[:20])
            raise Layer8Error(f"this is an index page: layer8 name pin NAME takes one of {named or 'no service'}")
        return page.find(name, now).file
    found = ServiceFile.read(raw)
    found.check(now)
    return found


def _rows(names: Names) -> list[dict[str, Any]]:
    from layer8.rendezvous.address import address_text

    return [
        {
            "name": one.name,
            "shown": one.shown,
            "address": address_text(one.key),
            "layer": one.layer.value,
            "at": one.at,
            "conflict": None if one.other is None else address_text(one.other),
        }
        for one in names.known()
    ]


def _day(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
