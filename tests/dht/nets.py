"""Networks of DHT nodes for tests."""

from __future__ import annotations

from layer8.testing.dhtnet import EPOCH, Net, key

__all__ = ["EPOCH", "Net", "key"]
