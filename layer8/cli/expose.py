"""`layer8 expose LOCAL --host NAME`: an agent for one host, from the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from attrs import evolve

from layer8.cli.output import json_option
from layer8.cli.proxy import host_name, secret_path
from layer8.config.home import run_dir

if TYPE_CHECKING:
    from layer8.cli.expose_secret import Registrar
    from layer8.cli.exposure import Plan
    from layer8.net.dial import Where

_PORT = re.compile(r"[0-9]{1,5}\Z")


def target(text: str) -> Where:
    """Read LOCAL: a port of this machine, HOST:PORT, or an endpoint string; raises ConfigError."""
    from layer8.net.dial import Where

    return Where.read(text)


class PortTarget(click.ParamType[tuple[int, str]]):
    """A public port and what stands behind it, as 443=8443."""

    name = "port=local"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, str]:
        """Read one."""
        if isinstance(value, tuple):
            return value
        port, equals, local = str(value).partition("=")
        if not equals or not _PORT.match(port) or not 0 < int(port) < 1 << 16:
            self.fail(f"{value!r}: write PUBLIC=LOCAL, for example 443=8443", param, ctx)
        return int(port), local


@click.command()
@click.argument("local")
@click.option("--host", required=True, metavar="NAME", help="The name under which it is published.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="Proxy server: wss://HOST:PORT, with ?pin=KEYHASH if it has no public name (ws://127.0.0.1:9081); repeatable.",
)
@click.option(
    "--port",
    "ports",
    type=PortTarget(),
    multiple=True,
    help="What stands behind another public port; 443=LOCAL2 gets TLS visitors as they come. Repeatable.",
)
@click.option(
    "--owner-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with an owner's token: registers the host and makes its secret.",
)
@click.option("--control", metavar="URL", help="Where to register the host, if not on the server's agent listener.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the host's secret (in the state folder).",
)
@click.option("--check", is_flag=True, help="Look at DNS, ports, clock, certificate and dial-back, and leave: 0 or 1.")
@click.option(
    "--pass-address",
    type=click.Choice(["v1", "v2"]),
    is_flag=False,
    flag_value="v2",
    help="Let LOCAL hear each visitor's address first, in a PROXY header (v2), if the server agrees.",
)
@click.option(
    "--health",
    type=click.Choice(["tcp", "http"]),
    help="Look after LOCAL: while it does not answer, or says 500 or more, servers let other agents have its visitors.",
)
@click.option("--inspect", is_flag=True, help="Show the last requests on a page of this machine, and send them again.")
@click.option(
    "--inspect-at", metavar="ENDPOINT", help="Where that page is (tcp:4040:interface=127.0.0.1 or the next free port)."
)
@json_option
@click.pass_context
def expose(
    ctx: click.Context,
    local: str,
    host: str,
    servers: tuple[str, ...],
    ports: tuple[tuple[int, str], ...],
    owner_token_file: Path | None,
    control: str | None,
    secret_file: Path | None,
    check: bool,
    pass_address: Literal["v1", "v2"] | None,
    health: Literal["tcp", "http"] | None,
    inspect: bool,
    inspect_at: str | None,
    as_json: bool,
) -> int:
    """Publish LOCAL (a port, HOST:PORT or an endpoint string) as NAME until Ctrl-C.

    The host's secret is read from --secret-file, or made when the host is registered: with an owner's token, or
    beside a server of yours on this machine.
    """
    if check and (inspect or inspect_at):
        raise click.UsageError("--check leaves at once: there is nothing to inspect")
    from layer8.cli.expose_show import screen
    from layer8.cli.exposure import run
    from layer8.cli.run import on_reactor, show_log

    if not ctx.ensure_object(dict).get("verbose"):
        show_log("error")
    plan = _plan(local, host_name(host), servers, dict(ports), secret_file)
    if inspect or inspect_at:
        plan = evolve(plan, inspect=inspect_at or "")
    if health:
        plan = evolve(plan, health=health)
    if pass_address:
        plan = evolve(plan, proxy_protocol=pass_address)
    registrar = _registrar(plan, owner_token_file, control, secret_file)
    return on_reactor(lambda reactor: run(reactor, plan, registrar, screen(as_json), check))


def _plan(local: str, host: str, servers: tuple[str, ...], ports: Mapping[int, str], secret_file: Path | None) -> Plan:
    from layer8.cli.exposure import Plan
    from layer8.config.load import load
    from layer8.proxy.uplink import ANY_PORT

    said: dict[str, object] = {"agent.servers": list(servers)} if servers else {}
    config = load(None, os.environ, said, role="agent").config.agent
    targets = {ANY_PORT: target(local)} | {port: target(text) for port, text in ports.items()}
    return Plan(host, local, targets, secret_file or secret_path(host), config)


def _registrar(
    plan: Plan, owner_token_file: Path | None, control: str | None, secret_file: Path | None
) -> Registrar | None:
    """Find out where the host may be registered; None if a secret has to be there already."""
    from layer8.cli.expose_secret import Registrar
    from layer8.config.endpoint import is_loopback
    from layer8.config.files import forbidden
    from layer8.crypto.keyfile import read_private
    from layer8.proxy.uplink import Address
    from layer8.proxy.wire import AGENT_PATH

    server = Address.parse(plan.config.servers[0])
    full = plan.proxy_protocol != "none"
    token = None
    if owner_token_file is not None:
        token = read_private(owner_token_file, forbidden=forbidden(owner_token_file, os.environ)).decode().strip()
    if control is not None:
        if control.startswith("unix:"):
            return Registrar(control, token=token, full=full)
        address = Address.parse(control)
        return Registrar(address.url, pin=address.pin, token=token, full=full)
    if token is not None:
        return Registrar(server.url, AGENT_PATH, server.pin, token, full)
    socket = run_dir(os.environ) / "proxy.sock"
    if secret_file is None and is_loopback(server.host) and socket.is_socket():
        return Registrar(f"unix:{socket}", full=full)
    return None
