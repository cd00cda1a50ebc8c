"""The twistd command layer8-rendezvous."""

from twisted.application.service import ServiceMaker

rendezvous = ServiceMaker(
    "layer8-rendezvous",
    "layer8.node.rendezvous_tap",
    "A relay of the network where hidden services and their clients meet.",
    "layer8-rendezvous",
)
