"""What trackers are held to, and hold others to (network.md sections 8 and 11)."""

from __future__ import annotations

from typing import Final

TRACKER_RELAYS: Final = 20_000  # descriptors that are listed; per network layer8.core.place has PER_NEAR and PER_FAR
ASKS: Final = 10  # messages of one circuit
CIRCUITS: Final = 65_536  # whose messages are counted
DIALS: Final = 32  # relays that are dialled back at a time, to see whether they are there
DIAL_TIME: Final = 10.0  # seconds for one of them
MISSING: Final = 300.0  # seconds that a relay is not dialled again which was not there, in networks with rules
MISSED: Final = 4096  # relays of which that is remembered
UNPUBLISH_TIME: Final = 600.0  # seconds that the clock of who unpublishes may be off
ASK_TIME: Final = 20.0  # seconds that we wait for a tracker's answer; a dial back takes some of them
TRACKERS: Final = 16  # that are asked or told at a time
PRUNE_EVERY: Final = 60.0  # seconds between looks for what has expired
EXCUSED: Final = 3600.0  # seconds that a relay need not be dialled again for the same addresses
