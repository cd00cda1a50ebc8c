"""`twistd layer8-gateway`: from options to a service; and what is done once, by `--init` and `--sign-days`."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.application.service import IService

from layer8.config.home import home
from layer8.config.twistd import DaemonOptions, options_class
from layer8.control.frame import Frame
from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import write_private
from layer8.net.process import or_exit, settle
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.gateway_service import GatewayServer, settings_of
from layer8.tunnel.keys import AHEAD
from layer8.tunnel.signed import sign_ahead

_Options: Any = options_class("gateway")


class Options(_Options):  # type: ignore[misc]
    """The keys of [gateway], and what is done once instead of serving."""

    def postOptions(self) -> None:
        """Check everything; with --init or --sign-days, do that and end the process."""
        super().postOptions()
        try:
            settings_of(self.config.gateway, home(os.environ))
        except ConfigError as error:
            self._refuse([str(error)])
        days, to = self.get("sign-days"), self.get("sign-to")
        if (days is None) != (to is None):
            self._refuse(["--sign-days and --sign-to need each other"])
        if days is not None and not (days.isascii() and days.isdigit() and 0 < int(days) <= AHEAD):
            self._refuse([f"--sign-days has to be from 1 to {AHEAD}"])
        if self.get("init") or days is not None:
            with or_exit("layer8-gateway"):
                print(initialise(self) if days is None else sign(self, int(days), Path(os.path.abspath(to))))
            raise SystemExit(0)


def initialise(options: DaemonOptions) -> str:
    """Make what is missing, and say what relays and pages need to know."""
    gateway = Gateway.open(settings_of(options.config.gateway, home(os.environ)))
    try:
        return f"gateway  {gateway.id}\npin      {gateway.pin}"
    finally:
        gateway.close()


def sign(options: DaemonOptions, days: int, to: Path) -> str:
    """Write keys with their sets for some days to a private file, by the identity key that is here."""
    gateway = Gateway.open(settings_of(options.config.gateway, home(os.environ)))
    try:
        if gateway.identity is None:
            raise ConfigError("the identity key is not here: leave out signed_file where sets are signed")
        now = datetime.now(UTC)
        write_private(to, sign_ahead(gateway.settings, gateway.identity, now.timestamp(), days))
        until = now + timedelta(days=days)
        return f"gateway  {gateway.id}\npin      {gateway.pin}\nsigned   {days} days, to {until:%Y-%m-%d}"
    finally:
        gateway.close()


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one gateway; what cannot work ends the process with one line."""
    from twisted.internet import reactor

    with or_exit("layer8-gateway"):
        frame = Frame(reactor, "gateway", options, os.environ)
        server = GatewayServer(frame)
        frame.run(server, server)
        reactor.callWhenRunning(settle)
        return frame.process
