"""The twistd command layer8-gateway."""

from twisted.application.service import ServiceMaker

gateway = ServiceMaker(
    "layer8-gateway",
    "layer8.tunnel.gateway_tap",
    "Gateway of the browser tunnel before a backend: sees what is asked, never who.",
    "layer8-gateway",
)
