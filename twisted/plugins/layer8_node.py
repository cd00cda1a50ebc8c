"""The twistd command layer8-node."""

from twisted.application.service import ServiceMaker

node = ServiceMaker(
    "layer8-node", "layer8.node.tap", "A node of the network: relay, SOCKS and more, by configuration.", "layer8-node"
)
