"""`twistd layer8-agent`: from options to a service."""

from __future__ import annotations

import os

from twisted.application.service import IService

from layer8.config.twistd import DaemonOptions, options_class
from layer8.control.frame import Frame
from layer8.net.process import or_exit, settle
from layer8.proxy.agent import Agent, read_hosts

Options = options_class("agent")


def makeService(options: DaemonOptions) -> IService:
    """Make the service of one agent; what cannot work ends the process with one line."""
    from twisted.internet import reactor

    with or_exit("layer8-agent"):
        frame = Frame(reactor, "agent", options, os.environ)
        config = options.config
        served = frame.table if config.control.peer_read else None
        agent = Agent(reactor, config.agent, read_hosts(config.agent, os.environ), served=served)
        agent.show(frame.table, frame.metrics)
        frame.run(agent, agent)
        reactor.callWhenRunning(settle)
        return frame.process
