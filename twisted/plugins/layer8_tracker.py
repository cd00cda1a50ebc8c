"""The twistd command layer8-tracker."""

from twisted.application.service import ServiceMaker

tracker = ServiceMaker(
    "layer8-tracker", "layer8.node.tracker_tap", "A relay of the network that lists others.", "layer8-tracker"
)
