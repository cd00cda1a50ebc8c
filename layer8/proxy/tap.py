"""`twistd layer8-proxy`: from options to a service."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.control.frame import Frame
from layer8.core.errors import ConfigError
from layer8.net.listen import Sockets
from layer8.net.process import or_exit, settle
from layer8.proxy.place import Place, alone
from layer8.proxy.service import Server
from layer8.proxy.takeover import Takeover, take_over
from layer8.proxy.workers import Supervisor

Options = options_class("proxy")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one proxy server; what cannot work ends the process with one line."""
    from twisted.internet import reactor

    with or_exit("layer8-proxy"):
        config = options.config.proxy
        taken = take_over(Path(config.takeover)) if config.takeover else None
        given = None if taken is None else taken.given
        frame = Frame(reactor, "proxy", options, os.environ)
        frame.control.given = given
        parts: list[IService] = []
        server: Supervisor | Server
        if config.workers > 1:
            server = Supervisor(frame, given=given)
        else:
            place = _place(frame, given)
            parts += place.parts
            server = Server(frame, place=place)
        parts.append(server)
        if config.takeover:
            parts.append(Takeover(reactor, Path(config.takeover), server, lambda: frame.stop(server.drain_s), taken))
        frame.run(server, *parts)
        reactor.callWhenRunning(settle)
        return frame.process


def _place(frame: Frame, given: Sockets | None) -> Place:
    if frame.source.loaded.config.proxy.bus == "local":
        return alone(frame, given)
    try:
        from layer8.proxy.cluster import clustered  # only where it is used: it brings a database's client
    except ImportError:
        raise ConfigError("proxy.bus: several nodes need PostgreSQL's client: pip install layer8[postgres]") from None
    return clustered(frame, given)
