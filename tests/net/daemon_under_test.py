"""A small daemon with `layer8.net.process` around it, run by twistd in tests/net/test_process.py."""

import os
from typing import Any

from twisted.application.service import Service
from twisted.application.strports import service
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from layer8.config import endpoint
from layer8.config.proxy import ProxyConfig
from layer8.config.twistd import DaemonOptions, options_class
from layer8.core.errors import Unavailable
from layer8.net.logs import Logs
from layer8.net.process import Process, listening

Options = options_class("proxy")
_log = Logger(namespace="layer8.test")


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class EchoService(Service):
    def __init__(self, config: ProxyConfig, process: Process) -> None:
        self.config = config
        self.process = process

    def startService(self) -> None:
        from twisted.internet import reactor

        for text in self.config.http:
            with listening("--http", text):
                port = service(endpoint.server(text).twisted(), Factory.forProtocol(Echo), reactor)
                port.privilegedStartService()
                port.startService()
        print("printed by a library")
        _log.info("PLAIN {mark}", event="pump.starved", mark="marked")
        if self.config.default_host == "late.example":
            reactor.callLater(0.1, self.process.fail, Unavailable("it failed later; try again"))
        if self.config.default_host == "bug.example":
            raise ZeroDivisionError("a bug")


def makeService(options: DaemonOptions) -> Process:
    from twisted.internet import reactor

    any_reactor: Any = reactor
    logs = Logs(options.config.log, os.environ)
    process = Process(any_reactor, "layer8-test", logs, os.environ, reload=lambda: print("reload"))
    EchoService(options.config.proxy, process).setServiceParent(process)
    return process
