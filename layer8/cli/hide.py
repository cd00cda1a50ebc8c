"""`layer8 hide LOCAL`: a hidden service in front of a program, a file or a folder of this machine."""

from __future__ import annotations

import base64
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from layer8.cli.output import coloured, json_option, print_json, printable
from layer8.config.home import home

if TYPE_CHECKING:
    from layer8.node.service import Node

WEB: Final = 80
"""The port at which a program answers that has no number below KEPT of its own."""
KEPT: Final = 1024
RESOURCE: Final = 1
OPEN_TIME: Final = 90.0
"""Seconds until the descriptor of a service stands in the DHT; then it is said that it does not yet."""
LOOK: Final = 0.3  # seconds between looks whether it can be found
WATCH: Final = 2.0  # seconds between looks whether the node still offers it
PATHS: Final = ("file", "dir", "unix")

_NOT_NAME = re.compile(r"[^a-z0-9]+")


class PortLocal(click.ParamType[tuple[int, str]]):
    """A port of the service and what answers there, as 80=localhost:8080."""

    name = "port=local"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, str]:
        """Read one."""
        if isinstance(value, tuple):
            return value
        port, equals, local = str(value).partition("=")
        if not (equals and local and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
            self.fail(f"{value!r}: write PORT=LOCAL, for example 80=localhost:8080", param, ctx)
        return int(port), local


@click.command()
@click.argument("local", required=False)
@click.option(
    "--port", "ports", type=PortLocal(), multiple=True, help="What answers at another port of the service; repeatable."
)
@click.option("--name", metavar="NAME", help="What the service is called here and in its file, a to z, 0 to 9 and -.")
@click.option(
    "--client-auth",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of those who may come, `name = key` a line: X25519 keys in base32. Nobody else learns that it is up.",
)
@click.option("--allow", multiple=True, metavar="IDS", help="Login keys of those who may come; repeatable.")
@click.option(
    "--mode",
    type=click.Choice(["0", "1"]),
    default="1",
    show_default=True,
    help="0: clients save a circuit, and access points see volume and time.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the service's key, made if it is missing (services/NAME.pem in the state folder).",
)
@click.option("--list", "as_list", is_flag=True, help="List the services of the node that runs here, and leave.")
@click.option("--end", metavar="NAME", help="End a service of the node that runs here for which no command stays.")
@click.option("--no-listen", is_flag=True, help="Run a node here, even if one of yours runs already.")
@click.option("--peer", "peers", multiple=True, metavar="ID@ENDPOINT", help="A node that is known; repeatable.")
@click.option("--network", metavar="NAME", help="Which network (main).")
@json_option
@click.pass_context
def hide(
    ctx: click.Context,
    local: str | None,
    ports: tuple[tuple[int, str], ...],
    name: str | None,
    client_auth: Path | None,
    allow: tuple[str, ...],
    mode: str,
    key: Path | None,
    as_list: bool,
    end: str | None,
    no_listen: bool,
    peers: tuple[str, ...],
    network: str | None,
    as_json: bool,
) -> int:
    """Publish LOCAL as a hidden service until Ctrl-C: HOST:PORT, unix:PATH, file:PATH or dir:PATH.

    A program answers at port 80 of the service, or at its own port if that is below 1024; a file and a folder at
    port 1, and whoever has 40 hex digits finds them; a folder at port 80 too, for browsers. The node that runs here
    offers the service; without one a node that takes no links runs in this command.
    """
    from layer8.cli.network import own_client, run_node, running

    if as_list or end is not None:
        if local is not None or ports or (as_list and end is not None):
            raise click.UsageError("--list and --end go with nothing else")
        return list_services(as_json) if end is None else end_service(end, as_json)
    if local is None and not ports:
        raise click.UsageError("what shall it lead to? LOCAL, for example localhost:8080, or --port 80=localhost:8080")
    targets = {port: whole(text) for port, text in ports}
    if local is not None and targets.setdefault(own_port(local), whole(local)) != whole(local):
        raise click.UsageError(f"--port {own_port(local)} and LOCAL are for the same port")
    if local is not None and local.startswith("dir:"):
        targets.setdefault(WEB, whole(local))
    name = name or usual_name(local or ports[0][1])
    said: dict[str, Any] = {
        "ports": {str(port): text for port, text in targets.items()},
        "client_auth": "" if client_auth is None else os.path.abspath(client_auth),
        "allow": [one for word in allow for one in word.split(",") if one],
        "data_through_access_point": mode == "0",
        "public": client_auth is None and RESOURCE in targets and len(set(targets.values())) == 1,
        "key": "" if key is None else os.path.abspath(key),
    }
    check(name, said)
    there = running()
    if there is not None and not (no_listen or peers or network):
        return by_running_node(there, name, said, as_json)
    options = own_client(there, peers, network, service={name: said})

    async def begun(node: Node) -> Sequence[str]:
        await by_own_node(node, name, said, as_json)
        return ()

    verbose = ctx.ensure_object(dict).get("verbose", False)
    return run_node(options, begun, verbose=verbose, silent=True)


def list_services(as_json: bool) -> int:
    """Print the services of the node that runs here."""
    from layer8.cli.network import call, table

    found = call("rendezvous.services")
    if as_json:
        print_json(found)
        return 0
    rows = [
        [row["name"], row["state"], str(row["points"]), str(row["sessions"]), row["address"]]
        for row in found["services"]
    ]
    table(["name", "state", "points", "sessions", "address"], rows, "no service is hidden: layer8 hide LOCAL hides one")
    return 0


def end_service(name: str, as_json: bool) -> int:
    """Have the node that runs here offer a service no more."""
    from layer8.cli.network import call
    from layer8.core.errors import Layer8Error

    if not any(row["name"] == name for row in call("rendezvous.services")["services"]):
        raise Layer8Error(f"no service is called {printable(name)[:80]}: layer8 hide --list shows those that there are")
    call("rendezvous.unhide", {"name": name})
    if as_json:
        print_json({"name": name, "ended": True})
    else:
        click.echo(f"{name} is not offered any more; its key stays where it is")
    return 0


def own_port(local: str) -> int:
    """Give the port of the service at which LOCAL answers."""
    if local.startswith(("file:", "dir:")):
        return RESOURCE
    number = local.rpartition(":")[2]
    return int(number) if number.isascii() and number.isdigit() and 0 < int(number) < KEPT else WEB


def whole(local: str) -> str:
    """Write a path so that it can be found from anywhere; a number alone is a port of this machine."""
    kind, colon, path = local.partition(":")
    if colon and path and kind in PATHS:
        return f"{kind}:{os.path.abspath(os.path.expanduser(path))}"
    return f"localhost:{local}" if local.isascii() and local.isdigit() else local


def usual_name(local: str) -> str:
    """Give a name to a service that has none: the same for the same LOCAL, and so the same key."""
    kind, colon, rest = local.partition(":")
    if colon and kind in PATHS:
        words = _NOT_NAME.sub("-", Path(rest).name.lower()).strip("-")[:32].strip("-")
        return words if len(words) > 1 else f"{kind}-{words or 'hidden'}"
    return f"port-{local.rpartition(':')[2]}"[:32] if rest or local.isdigit() else "hidden"


def check(name: str, said: Mapping[str, Any]) -> None:
    """Raise ConfigError for what no node would take, before one is asked."""
    from layer8.config.load import load_text
    from layer8.core.errors import ConfigError, RemoteProtocolError
    from layer8.crypto.keys import NodeKey
    from layer8.rendezvous.address import check_name
    from layer8.rendezvous.hosting import read_clients
    from layer8.rendezvous.resource import of

    try:
        check_name(name)
    except RemoteProtocolError as error:
        raise ConfigError(f"--name {printable(name)[:80]}: {error}") from None
    load_text("", {}, {"service": {name: dict(said)}})
    for text in said["ports"].values():
        of(text)
    if said["client_auth"]:
        read_clients(Path(said["client_auth"]))
    if said["key"] and Path(said["key"]).exists():
        NodeKey.load(Path(said["key"]))


def by_running_node(socket: Path, name: str, said: Mapping[str, Any], as_json: bool) -> int:
    """Have the node that runs here offer a service until Ctrl-C."""
    from layer8.cli.ask import ask
    from layer8.core.errors import Layer8Error, Unavailable

    for number in (signal.SIGTERM, signal.SIGHUP):  # who closes the window does not mean to go on showing his files
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    ports = [{"port": int(port), "target": text} for port, text in said["ports"].items()]
    row = ask(socket, "rendezvous.hide", {**said, "name": name, "ports": ports})
    try:
        shown = Shown(row, said, as_json)
        while True:
            rows = ask(socket, "rendezvous.services")["services"]
            found = next((one for one in rows if one["name"] == name), None)
            if found is None:
                raise Unavailable(f"the node does not offer {name} any more")
            time.sleep(WATCH if shown.stands(found["state"]) else LOOK)
    except KeyboardInterrupt:
        return 0
    finally:
        with suppress(Layer8Error):
            ask(socket, "rendezvous.unhide", {"name": name})


async def by_own_node(node: Node, name: str, said: Mapping[str, Any], as_json: bool) -> None:
    """Show the service of a node of ours, and wait until it can be found."""
    from twisted.internet.task import deferLater

    from layer8.control.shape import to_json
    from layer8.rendezvous.operate import hidden_row

    hosting = node.hosts.get(name)
    assert hosting is not None
    shown = Shown(to_json(hidden_row(hosting)), said, as_json)
    while not shown.stands(hosting.state):
        await deferLater(node.relay.reactor, LOOK)


class Shown:
    """What is printed of a service: where it is, once; and when it can be found. Its file is written here."""

    def __init__(self, row: Mapping[str, Any], said: Mapping[str, Any], as_json: bool) -> None:
        """Print where it is; as JSON everything comes at once, when it can be found."""
        service = row["service"]
        folder = home(os.environ) / "services"
        self._said = False
        self._ports = ", ".join(f"{port} = {text}" for port, text in said["ports"].items())
        self._since = time.monotonic()
        self._json = as_json
        self._told = {
            "name": service["name"],
            "address": service["address"],
            "resource": service["resource"] or None,
            "ports": service["ports"],
            "file": str(folder / f"{service['name']}.l8"),
            "magnet": service["magnet"],
            "key": said["key"] or str(folder / f"{service['name']}.pem"),
            "made": row["made"],
            "exposed": row["exposed"],
        }
        from layer8.crypto.keyfile import write_private

        write_private(Path(self._told["file"]), base64.urlsafe_b64decode(row["file"] + "=="))
        if not as_json:
            self._show()

    def _show(self) -> None:
        told = self._told
        lines = [("address", told["address"]), ("ports", self._ports)]
        lines += [("resource", told["resource"])] if told["resource"] else []
        lines += [("file", told["file"]), ("magnet", told["magnet"])]
        for word, text in lines:
            click.echo(f"{click.style(word.ljust(8), bold=True) if coloured() else word.ljust(8)}  {printable(text)}")
        if told["made"]:
            click.echo(f"its key is new, in {told['key']}: whoever loses it loses the address, so keep a copy")
        for text in told["exposed"]:
            click.echo(f"warning: {printable(text)}, where it can be reached without this address", err=True)
        sys.stdout.flush()

    def stands(self, state: str) -> bool:
        """Say once that it can be found, or that it cannot yet; gives whether that was said."""
        late = time.monotonic() - self._since > OPEN_TIME
        if self._said or not (late or state == "published"):
            return self._said
        self._said = True
        if self._json:
            print_json({**self._told, "state": state})
        elif state == "published":
            click.echo("it can be found now; Ctrl-C ends it.")
        else:
            click.echo(f"it cannot be found yet ({state}): does this node know others, and one of them with the DHT?")
        sys.stdout.flush()
        return True
