"""`layer8 init`: an identity, a certificate and a commented configuration; or a named token."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import click

from layer8.cli.output import json_option, print_json
from layer8.config.home import CONFIG_NAME, CONTROL_PEM, NODE_KEY, TOKENS, home
from layer8.core.errors import Layer8Error

_DAY = 86400


@click.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--token", "name", metavar="NAME", help="Also make a named token for the control API and print it, once.")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="What the token may do (read); may be repeated.")
@click.option(
    "--host", "hosts", multiple=True, metavar="PATTERN", help="Hosts that a token of role owner may register."
)
@click.option("--days", type=click.IntRange(0, 36500), default=0, help="Days until the token expires (0: never).")
@json_option
def init(
    folder: Path | None, name: str | None, roles: tuple[str, ...], hosts: tuple[str, ...], days: int, as_json: bool
) -> None:
    """Write an identity and a commented layer8.toml to DIR (the state folder); nothing that exists is changed."""
    from layer8.config.state import identity, node_key
    from layer8.config.template import template
    from layer8.crypto.keyfile import make_private_folder

    if name is None and (roles or hosts or days):
        raise click.UsageError("--role, --host and --days belong to --token NAME")
    folder = Path(os.path.abspath(folder or home(os.environ)))
    make_private_folder(folder)
    made = [file for file in (NODE_KEY, CONTROL_PEM, CONFIG_NAME) if not (folder / file).exists()]
    key = node_key(folder)
    certificate = identity(folder, os.environ)
    if CONFIG_NAME in made:
        # It names secrets' files and holds none; a service's own user has to read it in /etc/layer8.
        descriptor = os.open(folder / CONFIG_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(template())
    token = _add_token(folder / TOKENS, name, roles or ("read",), hosts, days) if name else None
    if as_json:
        found = {"folder": str(folder), "made": made, "id": key.text, "pin": certificate.pin}
        print_json({**found, "token": token} if token else found)
        return
    click.echo(f"state folder  {folder}")
    click.echo(f"node id       {key.short}  ({key.text})")
    click.echo(f"pin           {certificate.pin}")
    click.echo(f"written       {', '.join(made) or 'nothing: everything is there'}")
    if token:
        click.echo(f"token         {token}  (shown this once; only its hash is kept)")


def _add_token(path: Path, name: str, roles: tuple[str, ...], hosts: tuple[str, ...], days: int) -> str:
    from layer8.control.tokens import SECRET_SIZE, Token, Tokens, digest_of, dump_tokens, parse_tokens, token_text
    from layer8.crypto.keyfile import read_private, write_private

    tokens = parse_tokens(read_private(path, most=1 << 24).decode()) if path.exists() else Tokens()
    text = token_text(secrets.token_bytes(SECRET_SIZE))
    now = int(datetime.now(UTC).timestamp())
    expires = now + days * _DAY if days else None
    try:
        token = Token(name, digest_of(text), frozenset(roles), now, expires, hosts)
        write_private(path, dump_tokens(tokens.with_token(token)).encode())
    except ValueError as error:
        raise Layer8Error(str(error)) from None
    return text
