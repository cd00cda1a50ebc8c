"""The twistd command layer8-tunnel."""

from twisted.application.service import ServiceMaker

tunnel = ServiceMaker(
    "layer8-tunnel", "layer8.tunnel.tap", "Relay of the browser tunnel: sees who asks, never what.", "layer8-tunnel"
)
