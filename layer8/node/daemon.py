"""From options to the service of a node, for each of its commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.application.service import IService

from layer8.control.frame import Frame, Source
from layer8.net.process import or_exit
from layer8.node.service import Node


def make_service(
    reactor: Any,
    role: str,
    source: Source,
    environ: Mapping[str, str],
    *,
    socks: bool = False,
    tracker: bool = False,
    dht: bool = False,
    rendezvous: bool = False,
) -> IService:
    """Make what `twistd layer8-ROLE` runs; what cannot work ends the process with one line."""
    with or_exit(f"layer8-{role}"):
        frame = Frame(reactor, role, source, environ)
        config = source.loaded.config
        node = Node(frame, socks=config.socks if socks else None, tracker=tracker, dht=dht, rendezvous=rendezvous)
        frame.run(node, node)
        return frame.process
