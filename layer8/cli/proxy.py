"""`layer8 proxy`: registrations on a proxy server, over its control API.

A secret is made here and stays here, in a private file for the agent; the server gets its hash.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from attrs import frozen

from layer8.cli.output import columns, json_option, print_json, printable
from layer8.cli.policy import policy_of, policy_options, shown
from layer8.config import home as config_home
from layer8.config.home import run_dir
from layer8.core.errors import ConfigError, Layer8Error, Unavailable

NOT_PROVEN: Final = -20003
WRONG_USAGE: Final = -32602  # JSON-RPC's invalid params
DAY: Final = 86_400
PROVE_TIME: Final = 30.0  # seconds for the server to ask DNS and a web server

_DURATION = re.compile(r"([0-9]{1,9})([smhd]?)\Z")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": DAY}

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[int]):
    """A time such as 90s, 15m, 12h or 30d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one."""
        if isinstance(value, int):
            return value
        match = _DURATION.match(value)
        if match is None:
            self.fail(f"{value!r} is not a time such as 90s, 15m, 12h or 30d", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


@frozen
class Where:
    """The server that is asked, and how it knows us; None is the one on this machine, by its Unix socket."""

    server: str | None
    token_file: Path | None
    pin: str | None

    def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """Make one call and give its result."""

        async def main(client: Any) -> Any:
            return await client.call(method, params)

        return self.talk(main)

    def talk(self, main: Callable[[Any], Any]) -> Any:
        """Run the command's one conversation with the server; what it says is wrong usage becomes ours."""
        from layer8.cli.run import on_reactor
        from layer8.control.client import connect
        from layer8.control.errors import ControlError

        url, token = self._url(), self._token()

        async def run(reactor: Any) -> Any:
            client = await connect(reactor, url, token=token, pin=self.pin)
            try:
                return await main(client)
            finally:
                client.close()

        try:
            return on_reactor(run)
        except ControlError as error:
            if error.code == WRONG_USAGE:
                raise click.UsageError(error.message) from None
            raise

    def _url(self) -> str:
        if self.server is not None:
            return self.server
        if self.token_file or self.pin:
            raise click.UsageError("--token-file and --pin belong to --server")
        path = run_dir(os.environ) / "proxy.sock"
        if not path.exists():
            raise Unavailable(f"no proxy of this user runs here (looked for {path}); name one with --server")
        return f"unix:{path}"

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        from layer8.config.files import forbidden
        from layer8.crypto.keyfile import read_private

        return read_private(self.token_file, forbidden=forbidden(self.token_file, os.environ)).decode().strip()


def where_options(command: F) -> F:
    """Add the options that say which server is meant."""
    for option in (
        click.option("--pin", metavar="KEYHASH", help="Key hash of a server without a public name."),
        click.option("--token-file", type=click.Path(path_type=Path), help="File with the token for --server."),
        click.option("--server", metavar="URL", help="A server elsewhere: wss://HOST:PORT or ws://127.0.0.1:PORT."),
    ):
        command = option(command)
    return command


secret_option = click.option(
    "--secret-file", type=click.Path(path_type=Path, dir_okay=False), help="Where the secret goes (the state folder)."
)


mode_option = click.option(
    "--mode", type=click.Choice(["raw", "guard", "proxy"]), help="How requests are looked at (the server's default)."
)


@click.group()
def proxy() -> None:
    """Look after the registrations of a proxy server."""


@proxy.command()
@click.argument("host")
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="Public port (all); repeatable.")
@mode_option
@policy_options
@click.option("--ttl", type=Duration(), help="How long the registration lasts (for ever): 12h, 30d.")
@click.option("--owner", help="Whose it is, if not yours; for admins.")
@click.option("--prove", is_flag=True, help="Show that the name is yours, once its DNS record or page is there.")
@secret_option
@where_options
@json_option
def register(
    host: str,
    ports: tuple[int, ...],
    mode: str | None,
    ttl: int | None,
    owner: str | None,
    prove: bool,
    secret_file: Path | None,
    server: str | None,
    token_file: Path | None,
    pin: str | None,
    as_json: bool,
    **policy: Any,
) -> int:
    """Register HOST and make its secret, in a private file for the agent."""
    where, name = Where(server, token_file, pin), host_name(host)
    path = secret_file or secret_path(name)
    if path.exists():
        if not prove:
            raise Layer8Error(f"{path} exists: use layer8 proxy rotate, or another --secret-file")
        found, proven = where.talk(partial(_proved, "proxy.get", {"host": name}, True))
    else:
        params: dict[str, Any] = {"host": name, "ports": list(ports), "mode": mode, "owner": owner, "ttl_s": ttl}
        params["policy"] = policy_of(policy) or None

        def use(key: str) -> Any:
            return where.talk(partial(_proved, "proxy.register", _given(params | {"secret_hash": key}), prove))

        found, proven = _with_secret(path, use)
    _show(found, path, as_json)
    if not proven:
        click.echo("layer8: the proof is not there yet: set it up, then run this again", err=True)
    return 0 if proven else 1


@proxy.command()
@click.argument("host")
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="Public port; repeatable.")
@mode_option
@policy_options
@click.option("--ttl", type=Duration(), help="How long it lasts from now on: 12h, 30d.")
@where_options
@json_option
def update(
    host: str,
    ports: tuple[int, ...],
    mode: str | None,
    ttl: int | None,
    server: str | None,
    token_file: Path | None,
    pin: str | None,
    as_json: bool,
    **policy: Any,
) -> None:
    """Change what is said, and only that, of HOST's registration; an empty --allow, --deny or --user empties the list.

    What is joined already goes on; a new bandwidth holds for it too.
    """
    name, asked = host_name(host), policy_of(policy)
    params: dict[str, Any] = _given({"host": name, "ports": list(ports), "mode": mode, "ttl_s": ttl})

    async def main(client: Any) -> Any:
        if not asked:
            return await client.call("proxy.update", params)
        row = await client.call("proxy.get", {"host": name})
        changed = {"policy": {**row["policy"], **asked}, "version": row["version"]}
        return await client.call("proxy.update", {**params, **changed})

    if len(params) == 1 and not asked:
        raise click.UsageError("say what is to be changed")
    row = Where(server, token_file, pin).talk(main)
    if as_json:
        print_json(row)
    else:
        _show_row(row)


@proxy.command()
@click.argument("host")
@where_options
@json_option
def show(host: str, server: str | None, token_file: Path | None, pin: str | None, as_json: bool) -> None:
    """Show what is registered for HOST, with its policy; of users only the names."""
    row = Where(server, token_file, pin).call("proxy.get", {"host": host_name(host)})
    if as_json:
        print_json(row)
        return
    _show_row(row)


@proxy.command("list")
@where_options
@json_option
def list_hosts(server: str | None, token_file: Path | None, pin: str | None, as_json: bool) -> None:
    """List your registrations, or everybody's for an admin."""

    async def main(client: Any) -> list[Any]:
        rows: list[Any] = []
        cursor: str | None = None
        while True:
            page = await client.call("proxy.list", _given({"cursor": cursor}))
            rows += page["hosts"]
            cursor = page.get("cursor")
            if not cursor:
                return rows

    rows = Where(server, token_file, pin).talk(main)
    if as_json:
        print_json({"hosts": rows})
        return
    if not rows:
        click.echo("no host is registered")
        return
    head = ["host", "state", "ports", "secrets", "owner", "expires"]
    for line in columns([head, *([printable(cell) for cell in _cells(row)] for row in rows)]):
        click.echo(line)


@proxy.command()
@click.argument("host")
@click.option("--kill", is_flag=True, help="Close joined connections too.")
@where_options
@json_option
def revoke(host: str, kill: bool, server: str | None, token_file: Path | None, pin: str | None, as_json: bool) -> None:
    """Take HOST away: no more visitors, no more agents; its secret file stays."""
    name = host_name(host)
    Where(server, token_file, pin).call("proxy.unregister", {"host": name, "kill": kill})
    if as_json:
        print_json({"host": name, "revoked": True})
    else:
        click.echo(f"{name} is not registered any more")


@proxy.command()
@click.argument("host")
@click.option("--grace", type=Duration(), default=DAY, show_default="1d", help="How long older secrets stay good.")
@secret_option
@where_options
@json_option
def rotate(
    host: str,
    grace: int,
    secret_file: Path | None,
    server: str | None,
    token_file: Path | None,
    pin: str | None,
    as_json: bool,
) -> None:
    """Give HOST a new secret, in place of the old one in its file; agents that have the old one have time to change."""
    where, name = Where(server, token_file, pin), host_name(host)
    path = secret_file or secret_path(name)
    new = path.with_name(path.name + ".new")
    params = {"host": name, "grace_s": grace}
    found = _with_secret(new, lambda key: where.call("proxy.rotate", params | {"secret_hash": key}))
    try:
        os.replace(new, path)
    except OSError as error:
        raise Layer8Error(f"the new secret is in {new}: {path}: {error.strerror}") from None
    _show(found, path, as_json)


def host_name(host: str) -> str:
    """Give the form under which a host is registered; raises ConfigError."""
    from layer8.core.names import InvalidName, encode

    try:
        return encode(host)
    except InvalidName as error:
        raise ConfigError(str(error)) from None


def secret_path(name: str) -> Path:
    """Give where the secret of a registered name is kept, unless somebody says otherwise."""
    return config_home.secret_path(name, os.environ)


def _with_secret(path: Path, use: Callable[[str], Any]) -> Any:
    """Write a new secret and use its hash; a server that does not take it leaves no file behind."""
    from layer8.crypto.secret import HostSecret

    secret = HostSecret.make()
    secret.save(path)
    try:
        return use(secret.key.hex())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def _proved(method: str, params: Mapping[str, Any], prove: bool, client: Any) -> tuple[Any, bool]:
    """Get a registration by `method`, and with `prove` have its proof looked for; False if that is not there."""
    from layer8.control.errors import ControlError

    found = await client.call(method, params)
    if not prove or not found.get("proof"):
        return found, True
    try:
        return await client.call("proxy.prove", {"host": found["host"]}, timeout=PROVE_TIME), True
    except ControlError as error:
        if error.code != NOT_PROVEN:
            raise
        return found, False


def _show(row: Mapping[str, Any], path: Path, as_json: bool) -> None:
    if as_json:
        print_json({**row, "secret_file": str(path)})
        return
    _show_row(row)
    click.echo(f"secret file  {path}")
    proof = row.get("proof")
    if proof:
        click.echo("to show that the name is yours, let one of these be found, then run register with --prove:")
        click.echo(f"  TXT record  {printable(proof['txt_name'])}  {printable(proof['txt_value'])}")
        if proof["url"]:
            click.echo(f"  page        {printable(proof['url'])}  with the text  {printable(proof['body'])}")


def _show_row(row: Mapping[str, Any]) -> None:
    _, _, ports, _, _, expires = _cells(row)
    click.echo(f"{printable(str(row['host']))}  {row['state']}")
    for key, value in (("ports", ports), ("mode", str(row["mode"])), ("expires", expires), *shown(row["policy"])):
        click.echo(f"{key:<11}  {printable(value)}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    from datetime import UTC, datetime

    expires = row.get("expires_at")
    return [
        str(row["host"]),
        str(row["state"]),
        ",".join(map(str, row["ports"])) or "all",
        ",".join(str(secret["starts_with"]) for secret in row["secrets"]) or "-",
        str(row["owner"]),
        "never" if expires is None else datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M"),
    ]


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not said."""
    return {name: value for name, value in params.items() if value not in (None, [])}
