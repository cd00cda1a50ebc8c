"""`twistd layer8-tunnel`: from options to a service."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.control.frame import Frame
from layer8.net.process import or_exit, settle
from layer8.tunnel.service import Relay

Options = options_class("tunnel")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one relay; what cannot work ends the process with one line."""
    from twisted.internet import reactor

    with or_exit("layer8-tunnel"):
        frame = Frame(reactor, "tunnel", options, os.environ)
        relay = Relay(frame, options.config.tunnel)
        frame.run(relay, relay)
        reactor.callWhenRunning(settle)
        return frame.process
