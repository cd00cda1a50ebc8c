"""`twistd layer8-node`: every role that the configuration switches on."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.node.daemon import make_service

Options = options_class("node")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one node, with SOCKS for the programs of this machine."""
    from twisted.internet import reactor

    return make_service(
        reactor,
        "node",
        options,
        os.environ,
        socks=True,
        tracker=options.config.tracker.enabled,
        dht=options.config.dht.enabled,
    )
