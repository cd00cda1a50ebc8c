"""`twistd layer8-relay`: links, and other nodes' circuits."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.node.daemon import make_service

Options = options_class("relay")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one relay."""
    from twisted.internet import reactor

    return make_service(reactor, "relay", options, os.environ)
