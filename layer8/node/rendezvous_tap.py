"""`twistd layer8-rendezvous`: a relay where hidden services and their clients meet."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.node.daemon import make_service

Options = options_class("rendezvous")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one node where they meet."""
    from twisted.internet import reactor

    return make_service(reactor, "rendezvous", options, os.environ, rendezvous=True)
