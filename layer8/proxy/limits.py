"""The limits of the socket proxy that are the same everywhere, with unit and reason (proxy.md section 10).

Those that an operator may change stand in `layer8.config.proxy.ProxyLimits`; `RegistryLimits` and `SubscriberLimits`
are what the pure parts read of them. What a peer can grow, one of the two stops.
"""

from __future__ import annotations

from typing import Final, Protocol

LEASE: Final = 60.0  # seconds a subscription lives without any message from its agent
HEARTBEAT: Final = 15.0  # seconds between messages that an agent is asked for: one may be lost
SOURCES: Final = 10_000  # networks banned by hand
CALL_LIFE: Final = 5.0  # seconds a one-time secret is good for
NOD_TIME: Final = 0.4  # seconds an agent waits for its target's first word before it nods: well below `call_step`

OWNER_HOSTS: Final = 1_000  # registrations of one owner token: one tenant cannot take all
CLAIMS: Final = 100  # pending claims of one owner, each costs us DNS look-ups
HOST_CLAIMS: Final = 4  # pending claims of one host, oldest dropped first: a squatter cannot keep the real owner out
HASHES: Final = 4  # active secrets per host: every check does the work of all of them
GRACE: Final = 86_400  # seconds a rotated secret stays good
PROVE_AGAIN: Final = 86_400.0  # seconds between checks of a proven name
PROVE_LOST: Final = 7 * 86_400.0  # seconds without proof until a name is suspended: a DNS outage costs nothing
PROVING: Final = 16  # look-ups for `proxy.prove` at the same time
PROVE_TIME: Final = 10.0  # seconds for one look-up
PROVE_BODY: Final = 1024  # bytes of a well-known answer
CLAIM_TIME: Final = 7 * 86_400.0  # seconds a claim may stay unproven
TTL_MOST: Final = 10 * 365 * 86_400  # seconds: what is meant to last longer has no end
WEIGHT_MOST: Final = 1_000  # shares of one subscription
PRIORITY_MOST: Final = 1_000  # the last to be asked

LEGACY_IN: Final = 1024  # bytes of one webgw message, or of one body of its REST interface
LEGACY_OUT: Final = 511  # bytes; a webgw agent reads fewer than 512 of a notification
PAGE: Final = 500  # rows of one answer; the rest by `cursor`
BYTES_FLUSH: Final = 60.0  # seconds between writes of the byte counters: what a crash may lose
BUS_LEASE: Final = 30.0  # seconds a presence record lives on the bus
BUS_RENEW: Final = 10.0  # seconds between renewals: one may be lost


class RegistryLimits(Protocol):
    """What an operator sets of the registrations."""

    @property
    def hosts(self) -> int:
        """Registrations and claims in all."""

    @property
    def policy_rules(self) -> int:
        """`allow` and `deny` rules of one host together."""


class SubscriberLimits(Protocol):
    """What an operator sets of agents."""

    @property
    def subscriptions(self) -> int:
        """Of one connection."""

    @property
    def subscriptions_per_host(self) -> int:
        """Of one host."""
