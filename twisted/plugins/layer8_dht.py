"""The twistd command layer8-dht."""

from twisted.application.service import ServiceMaker

dht = ServiceMaker(
    "layer8-dht", "layer8.node.dht_tap", "A relay of the network that keeps a part of the DHT.", "layer8-dht"
)
