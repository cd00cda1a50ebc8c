"""`layer8 status`: one block for each daemon of this user."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from layer8.cli.ask import ask
from layer8.cli.output import coloured, columns, json_option, print_json, printable
from layer8.config import endpoint
from layer8.config.home import run_dir
from layer8.core.errors import ConfigError, Layer8Error, Unavailable


@click.command()
@click.argument("name", required=False)
@click.option("--url", is_flag=True, help="Print the address of the status page, with this start's token.")
@click.option("--server", metavar="URL", help="Ask a daemon elsewhere: wss://HOST:PORT or ws://127.0.0.1:PORT.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token for --server.")
@click.option("--pin", metavar="KEYHASH", help="Key hash of a server without a public name.")
@json_option
def status(
    name: str | None, url: bool, server: str | None, token_file: Path | None, pin: str | None, as_json: bool
) -> int:
    """Show the daemons that run on this machine, or the one called NAME (proxy, agent, ...)."""
    if server is None and (token_file or pin):
        raise click.UsageError("--token-file and --pin belong to --server")
    if server is not None:
        found, failed = {server: _remote(server, token_file, pin)}, dict[str, str]()
    else:
        found, failed = _local(name)
    if as_json:
        print_json({"daemons": found, "failed": failed})
    elif url:
        for daemon, state in found.items():
            click.echo(_page(daemon, state))
    else:
        click.echo("\n\n".join("\n".join(_block(daemon, state)) for daemon, state in found.items()))
    for reason in failed.values():
        click.echo(f"layer8: {reason}", err=True)
    return 1 if failed else 0


def _local(name: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    folder = run_dir(os.environ)
    sockets = sorted(folder.glob("*.sock")) if name is None else [folder / f"{name}.sock"]
    if name is not None and "/" in name:
        raise ConfigError(f"{name!r} is no daemon's name")
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for path in sockets:
        try:
            found[path.stem] = ask(path, "node.status")
        except Unavailable as error:
            # A daemon that was killed leaves its socket behind.
            if name is not None:
                failed[path.stem] = f"{name} does not run here: {error}"
        except Layer8Error as error:
            failed[path.stem] = str(error)
    if not found and not failed:
        raise Unavailable(f"no daemon of this user runs here (looked in {folder})")
    return found, failed


def _remote(server: str, token_file: Path | None, pin: str | None) -> Any:
    from layer8.cli.run import on_reactor
    from layer8.config import files
    from layer8.control.client import connect
    from layer8.crypto.keyfile import read_private

    token = None
    if token_file is not None:
        token = read_private(token_file, forbidden=files.forbidden(token_file, os.environ)).decode().strip()

    async def main(reactor: Any) -> Any:
        client = await connect(reactor, server, token=token, pin=pin)
        try:
            return await client.call("node.status", {})
        finally:
            client.close()

    return on_reactor(main)


def _page(daemon: str, state: Mapping[str, Any]) -> str:
    token = run_dir(os.environ) / f"{daemon}.token"
    try:
        secret = token.read_text().strip()
    except OSError as error:
        raise Unavailable(f"{token}: {error.strerror}") from None
    for line in state.get("listening", ()):
        if found := _web_address(str(line)):
            return f"{found}/#{secret}"
    raise Unavailable(f"{daemon} has no control listener on TCP: see [control] listen")


def _web_address(line: str) -> str | None:
    try:
        found = endpoint.server(line.removeprefix("control on "))
    except ConfigError:
        return None
    if not line.startswith("control on ") or not found.port:
        return None
    host = found.interface or "localhost"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if found.tls else 'http'}://{host}:{found.port}"


def _block(daemon: str, state: Mapping[str, Any]) -> Iterator[str]:
    checks = [check for check in state.get("health", ()) if isinstance(check, Mapping)]
    bad = [check for check in checks if not check.get("ok")]
    mood = "draining" if state.get("drain") else "not well" if bad else "well"
    shown = click.style(mood, fg="green" if mood == "well" else "yellow") if coloured() else mood
    yield f"{printable(daemon)}  {shown}"
    rows = [
        ["  version", str(state.get("version", "?"))],
        ["  id", str(state.get("id", "?"))],
        ["  roles", ", ".join(map(str, state.get("roles", ())))],
        ["  started", str(state.get("started", "?"))],
        *(["  listening" if index == 0 else "", str(line)] for index, line in enumerate(state.get("listening", ()))),
        *(["  worker" if index == 0 else "", str(line)] for index, line in enumerate(state.get("workers", ()))),
        *(["  note", str(note)] for note in state.get("notes", ())),
        *(["  " + str(check.get("check")), str(check.get("why") or "not ok")] for check in bad),
    ]
    yield from columns([[printable(cell) for cell in row] for row in rows])
