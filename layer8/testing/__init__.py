"""Fakes that are the real thing on a fake wire, and a real server and agent in one process."""

from typing import TYPE_CHECKING

from layer8.core.lazy import lazily

if TYPE_CHECKING:
    from layer8.testing.pair import ProxyPair, proxy_pair

__all__ = ["ProxyPair", "proxy_pair"]
__getattr__ = lazily(__name__, ProxyPair="pair", proxy_pair="pair")
