"""`twistd layer8-tracker`: a relay that lists others."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.node.daemon import make_service

Options = options_class("tracker")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one tracker."""
    from twisted.internet import reactor

    return make_service(reactor, "tracker", options, os.environ, tracker=True)
