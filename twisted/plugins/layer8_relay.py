"""The twistd command layer8-relay."""

from twisted.application.service import ServiceMaker

relay = ServiceMaker(
    "layer8-relay", "layer8.node.relay_tap", "A relay of the network: carries circuits of others.", "layer8-relay"
)
