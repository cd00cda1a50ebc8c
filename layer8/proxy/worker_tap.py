"""The process of one worker: `python -m layer8.proxy.worker_tap`, started by `layer8.proxy.workers`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from twisted.logger import globalLogBeginner

from layer8.net.process import or_exit, settle
from layer8.proxy.worker import DESCRIPTOR, Worker, begin

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def run() -> None:
    """Be a worker until told to end; what cannot work ends the process with one line."""
    # A terminal sends these to the whole group; the supervisor passes on what concerns us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with or_exit("layer8-proxy worker"):
        end_with(int(sys.argv[1]))
        sock = socket.socket(fileno=DESCRIPTOR)
        os.set_inheritable(DESCRIPTOR, False)
        told, given = begin(sock)
        from twisted.internet import reactor

        def stop() -> None:
            if reactor.running:
                reactor.callLater(0, _stop_once)

        def _stop_once() -> None:
            if reactor.running:
                reactor.stop()

        worker = Worker(reactor, sock, told, given, os.environ, stop)
        globalLogBeginner.beginLoggingTo([worker.frame.logs], redirectStandardIO=False)
        worker.start()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        reactor.addSystemEventTrigger("before", "shutdown", worker.frame.process.stopService)
    reactor.callWhenRunning(settle)
    reactor.run()


if __name__ == "__main__":
    run()
