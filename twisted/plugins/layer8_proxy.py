"""The twistd command layer8-proxy."""

from twisted.application.service import ServiceMaker

proxy = ServiceMaker(
    "layer8-proxy", "layer8.proxy.tap", "Socket proxy: publishes agents' local ports by Host and SNI.", "layer8-proxy"
)
