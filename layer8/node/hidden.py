"""A node and hidden services: it is an access point and a rendezvous hop, and gives its own ones their ways."""

from __future__ import annotations

from os import urandom

from layer8.control.service import wall_clock
from layer8.crypto.descriptor import Descriptor, Role
from layer8.relay.service import Relay
from layer8.rendezvous.access import Access
from layer8.rendezvous.meeting import Meeting
from layer8.rendezvous.ways import NetworkWays


def serve_rendezvous(relay: Relay) -> tuple[Access, Meeting]:
    """Let services listen at a node, and clients wait there, before it starts."""
    access, meeting = Access(), Meeting(relay.circuits.join)
    relay.serve(access, Role.RENDEZVOUS)
    relay.serve(meeting, Role.RENDEZVOUS)
    return access, meeting


def hidden_ways(relay: Relay) -> NetworkWays:
    """Give a node's own services and visits what they need of the network."""

    def known() -> list[Descriptor]:
        now = wall_clock()
        return [peer.descriptor for peer in relay.database if relay.database.live(peer, now)]

    return NetworkWays(relay.client, relay.reactor, wall_clock, urandom, relay.chance, known)
