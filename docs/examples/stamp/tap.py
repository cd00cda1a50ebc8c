"""`twistd stamp`: options, and the one place that knows the global reactor."""

from __future__ import annotations

from twisted.application.service import IService
from twisted.python import usage

from docs.examples.stamp.service import Stamps, stamp_service


class Options(usage.Options):
    """What can be said on the command line."""

    optParameters = [["listen", "l", "tcp:8765:interface=127.0.0.1", "Where clients connect."]]  # noqa: RUF012


def makeService(options: Options) -> IService:
    """Put the service together."""
    from twisted.internet import reactor

    return stamp_service(reactor, options["listen"], Stamps())
