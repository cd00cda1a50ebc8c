"""How `layer8 expose` comes by the secret of its host: from a file, or by registering the host with a new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from layer8.cli.output import printable
from layer8.control.client import connect
from layer8.control.errors import ControlError
from layer8.core.errors import Layer8Error, Refused, Unavailable
from layer8.crypto.secret import SHOWN, HostSecret
from layer8.proxy.wire import Code


@frozen
class Registrar:
    """Where hosts are registered, and as whom; a Unix socket knows its owner without a token.

    With `full` their agents are to learn visitors' addresses.
    """

    url: str
    path: str = "/ws"
    pin: str | None = None
    token: str | None = field(default=None, repr=False)
    full: bool = False

    async def secret(self, reactor: Any, host: str, path: Path, forbidden: int) -> HostSecret:
        """Give the secret in the file at `path` once `host` is registered with it, both made where they are missing.

        Raises Refused if the server has another secret for the host or wants the name to be proven first.
        """
        client = await connect(reactor, self.url, token=self.token, pin=self.pin, path=self.path)
        try:
            row = await _registered(client, host)
            if not path.exists():
                return await self._make(client, row, host, path)
            secret = HostSecret.load(path, forbidden=forbidden)
            if row is None:
                row = await self._register(client, host, secret)
            elif self.full and _knows(row, secret) and row["policy"]["visitor"] != "full":
                row = await _pass_addresses(client, row)
        finally:
            client.close()
        _check_state(row)
        if not _knows(row, secret):
            raise Refused(
                f"{host} is registered with another secret than the one in {path}: name the right file with "
                f"--secret-file, or make a new secret with layer8 proxy rotate {host}"
            )
        return secret

    async def _make(self, client: Any, row: Mapping[str, Any] | None, host: str, path: Path) -> HostSecret:
        if row is not None:
            raise Refused(
                f"{host} is registered already and its secret is not in {path}: name its file with --secret-file, "
                f"or make a new secret with layer8 proxy rotate {host}"
            )
        secret = HostSecret.make()
        secret.save(path)
        try:
            row = await self._register(client, host, secret)
        except Refused:
            # It is worth nothing. With any other end nobody knows whether the server has taken it.
            path.unlink(missing_ok=True)
            raise
        _check_state(row)
        return secret

    async def _register(self, client: Any, host: str, secret: HostSecret) -> Mapping[str, Any]:
        asked: dict[str, Any] = {"host": host, "secret_hash": secret.key.hex()}
        if self.full:
            asked["policy"] = {"visitor": "full"}
        try:
            row: Mapping[str, Any] = await client.call("proxy.register", asked)
        except ControlError as error:
            raise _said(host, error) from None
        return row


def from_file(path: Path, host: str, forbidden: int) -> HostSecret:
    """Read the secret of a host that is registered already; raises Unavailable if there is none."""
    if not path.exists():
        raise Unavailable(
            f"there is no secret for {host} (looked for {path}): name its file with --secret-file, "
            "or let the host be registered with --owner-token-file"
        )
    return HostSecret.load(path, forbidden=forbidden)


async def _registered(client: Any, host: str) -> Mapping[str, Any] | None:
    """Find our registration of a host; None if there is none, or somebody else's."""
    try:
        row: Mapping[str, Any] = await client.call("proxy.get", {"host": host})
    except ControlError as error:
        if error.code != Code.WRONG_SECRET:
            raise _said(host, error) from None
        return None
    return row


async def _pass_addresses(client: Any, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the agents of a registered host learn visitors' addresses."""
    changed = {"policy": {**row["policy"], "visitor": "full"}, "version": row["version"]}
    try:
        fresh: Mapping[str, Any] = await client.call("proxy.update", {"host": row["host"], **changed})
    except ControlError as error:
        raise _said(str(row["host"]), error) from None
    return fresh


def _knows(row: Mapping[str, Any], secret: HostSecret) -> bool:
    return secret.key.hex()[:SHOWN] in [str(known["starts_with"]) for known in row["secrets"]]


def _said(host: str, error: ControlError) -> Layer8Error:
    """Say what the server answered in words about the host."""
    if error.code == Code.ALREADY_REGISTERED:
        return Refused(f"{host} is registered by somebody else: take another name")
    return Refused(f"{host} cannot be registered: {printable(error.message)}")


def _check_state(row: Mapping[str, Any]) -> None:
    host, proof = printable(str(row["host"])), row.get("proof")
    if row["state"] in ("owned", "proven"):
        return
    wanted = printable(f": let the TXT record {proof['txt_name']} hold {proof['txt_value']}") if proof else ""
    raise Refused(
        f"{host} is not yet proven to be yours{wanted}, then run layer8 proxy register {host} --prove with your token"
    )
