"""`twistd layer8-gateway`: from options to a service; and what is done once, by `--init`."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService

from layer8.config.home import home
from layer8.config.twistd import DaemonOptions, options_class
from layer8.control.frame import Frame
from layer8.core.errors import ConfigError
from layer8.net.process import or_exit, settle
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.gateway_service import GatewayServer, settings_of

_Options: Any = options_class("gateway")


class Options(_Options):  # type: ignore[misc]
    """The keys of [gateway], and what is done once instead of serving."""

    def opt_init(self) -> None:
        """Make what is missing of keys, say the pin of the identity key, and end."""
        self["init"] = True

    def postOptions(self) -> None:
        """Check everything; with --init, do that and end the process."""
        super().postOptions()
        try:
            settings_of(self.config.gateway, home(os.environ))
        except ConfigError as error:
            self._refuse([str(error)])
        if self.get("init"):
            with or_exit("layer8-gateway"):
                print(initialise(self))
            raise SystemExit(0)


def initialise(options: DaemonOptions) -> str:
    """Make what is missing, and say what relays and pages need to know."""
    gateway = Gateway.open(settings_of(options.config.gateway, home(os.environ)))
    try:
        return f"gateway  {gateway.id}\npin      {gateway.pin}"
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
