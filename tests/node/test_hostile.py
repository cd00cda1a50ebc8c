"""What a mistake in a configuration, or a hurried reload, must not open."""

from __future__ import annotations

from layer8.config.load import load_text
from tests.node.test_service import NodeCase, config


class LoopbackTests(NodeCase):
    async def test_a_reload_opens_no_loopback_in_a_network_with_rules(self) -> None:
        """The network stays the old one until a restart, whatever name the file has by now."""
        ruled = config().replace('"test-node"', '"main"').replace("allow_loopback = true", "")
        node = self.start(ruled)
        fresh = load_text(config(), node._frame.environ, {})
        self.assertTrue(fresh.config.relay.allow_loopback)
        await node.apply(fresh.config)
        self.assertEqual(node.config.network, "main")
        self.assertFalse(node.relay.outward.guard.allow_loopback)
        self.assertIsNotNone(node.relay.outward.guard.refusal("127.0.0.1", 9))
