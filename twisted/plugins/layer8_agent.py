"""The twistd command layer8-agent."""

from twisted.application.service import ServiceMaker

agent = ServiceMaker(
    "layer8-agent", "layer8.proxy.agent_tap", "Socket proxy agent: publishes local ports, dialling out.", "layer8-agent"
)
