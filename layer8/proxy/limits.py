"""Every limit of the socket proxy by name, with its unit and its reason (proxy.md section 10).

What a peer can grow, one of these stops. Those that an operator may change are fields of `layer8.config.proxy`
with these values as defaults; the rest are part of the wire and the same everywhere.
"""

from __future__ import annotations

from typing import Final

SNIFF_TLS: Final = 64 * 1024  # bytes; post-quantum hellos with tickets still fit
SNIFF_HTTP: Final = 32 * 1024  # bytes of request head; big cookies
SNIFF_FIELDS: Final = 100  # header fields
SNIFF_TIME: Final = 10.0  # seconds from accept to a name, whatever trickles in: slowloris
FIRST_BYTE: Final = 1.0  # seconds to the first byte once SNIFFING is half full
SNIFFING: Final = 10_000  # visitors without a name yet, the oldest dropped first: descriptors
PER_SOURCE_SNIFFING: Final = 200  # per /24 or /56: one network cannot take all
PER_SOURCE_OPEN: Final = 2_000  # per /24 or /56

SECRET_TIME: Final = 3.0  # seconds for a data connection to show its secret
CALL_STEP: Final = 1.5  # seconds for one agent to dial back before the next is asked
CALL_TIME: Final = 5.0  # seconds for all of them; also the life of a one-time secret
PENDING_HOST: Final = 1_000  # called and not yet answered, per host
PENDING: Final = 20_000  # the same, in all
DATA_UNAUTHENTICATED: Final = 1_000  # data connections that have not shown a secret: scans
DATA_PER_SOURCE: Final = 50  # the same, per source

AGENTS: Final = 10_000  # control connections on the agent listener
SUBSCRIPTIONS: Final = 64  # per connection: a stolen agent cannot take every host
SUBSCRIBERS: Final = 16  # per host: choosing looks at each of them
SUBSCRIBE_FAILS: Final = 20  # wrong secrets per minute and source, then a ban: guessing
SUBSCRIBE_BAN: Final = 60.0  # seconds of the first ban; each further one doubles it
SUBSCRIBE_BAN_MOST: Final = 3600.0  # seconds of the longest
BANS: Final = 10_000  # sources under watch, and the same of bans, oldest forgotten first: memory
LEASE: Final = 60.0  # seconds a subscription lives without any message from its agent
SILENCE: Final = 40.0  # seconds after which a silent control connection is gone
HEARTBEAT: Final = 15.0  # seconds between messages that an agent is asked for: two may be lost

HOSTS: Final = 100_000  # registrations: about 1 KiB each
OWNER_HOSTS: Final = 1_000  # registrations of one owner token: one tenant cannot take all
CLAIMS: Final = 100  # pending claims of one owner, each costs us DNS look-ups
POLICY_RULES: Final = 64  # CIDRs per registration: each visitor is held against all of them
HASHES: Final = 4  # active secrets per host: every check does the work of all of them
SECRET_LEAST: Final = 32  # bytes of a host secret
SECRET_MOST: Final = 256  # bytes; webgw allows as many
SECRET_KINDS: Final = 8  # distinct byte values a secret of ours has at least: not a typed word, not zeros
GRACE: Final = 86_400  # seconds a rotated secret stays good
PROVE_AGAIN: Final = 86_400.0  # seconds between checks of a proven name
PROVE_LOST: Final = 7 * 86_400.0  # seconds without proof until a name is suspended: a DNS outage costs nothing
PROVE_TIME: Final = 10.0  # seconds for one look-up
PROVE_BODY: Final = 1024  # bytes of a well-known answer
CLAIM_TIME: Final = 7 * 86_400.0  # seconds a claim may stay unproven

BUFFER: Final = 128 * 1024  # bytes per direction on the plain path
IDLE: Final = 3600.0  # seconds; quiet WebSockets live
HALF_CLOSED: Final = 60.0  # seconds without progress once one side has ended
DRAIN: Final = 30.0  # seconds joined connections get when the server drains

CONTROL: Final = 16 * 1024  # bytes of one control message on the agent listener
LEGACY_IN: Final = 1024  # bytes of one webgw message
LEGACY_OUT: Final = 512  # bytes; a webgw agent reads less than this of a notification
PAGE: Final = 500  # rows of one answer; the rest by `cursor`
BYTES_FLUSH: Final = 60.0  # seconds between writes of the byte counters: what a crash may lose
BUS_LEASE: Final = 30.0  # seconds a presence record lives on the bus
BUS_RENEW: Final = 10.0  # seconds between renewals: two may be lost
