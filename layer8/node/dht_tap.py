"""`twistd layer8-dht`: a relay that keeps a part of the DHT."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.node.daemon import make_service

Options = options_class("dht")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one node of the DHT."""
    from twisted.internet import reactor

    return make_service(reactor, "dht", options, os.environ, dht=True)
