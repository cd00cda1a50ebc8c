"""`twistd layer8-proxy`: from options to a service."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.control.frame import Frame
from layer8.net.process import or_exit, settle
from layer8.proxy.service import Server
from layer8.proxy.workers import Supervisor

Options = options_class("proxy")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one proxy server; what cannot work ends the process with one line."""
    from twisted.internet import reactor

    with or_exit("layer8-proxy"):
        frame = Frame(reactor, "proxy", options, os.environ)
        several = options.config.proxy.workers > 1
        server = Supervisor(frame) if several else Server(frame)
        frame.run(server, server)
        reactor.callWhenRunning(settle)
        return frame.process
