"""The limits of hidden services, with unit and reason (docs/rendezvous.md)."""

from __future__ import annotations

from typing import Final

POINTS: Final = 3  # access points of a service
POINT_LIFE: Final = 86_400.0  # seconds
POINT_INTROS: Final = 16_384  # introductions by one point: bounds what is remembered against replays
LISTENERS_PER_NODE: Final = 1024  # auth keys that an access point holds
LISTENERS_PER_CIRC: Final = 4  # of them on one circuit
INTRO_RATE: Final = 25.0  # knocks a second and auth key that an access point passes on
INTRO_BURST: Final = 200  # at once
KNOCKS_PER_CIRC: Final = 8  # of one client's circuit: an honest one asks again with more work, then takes another point
INTRO_QUEUE: Final = 1024  # introductions that wait at a service
INTRO_AGE: Final = 30.0  # seconds that one of them waits
BLOB_AGE: Final = 600.0  # seconds that a blob's time may differ from ours
COOKIES: Final = 4096  # clients that wait at a rendezvous hop
COOKIE_LIFE: Final = 120.0  # seconds that one of them waits
SEEN_NONCES: Final = 262_144  # of work, for each seed: a solution is good once
SEED_LIFE: Final = 7200.0  # seconds that a seed of work is good for, and then for as long beside the next one
SESSIONS_PER_SERVICE: Final = 1024
STREAMS_PER_SESSION: Final = 64
STREAM_RATE: Final = 100.0  # streams a second that a client may open: each is a connection to the program
STREAM_BURST: Final = 500  # at once
BAD_PORTS: Final = 8  # wrong virtual ports that a client may ask for
SETUP_CELLS: Final = 10  # that leave on each circuit of these kinds before it says anything of its own
T_INTRO: Final = 10.0  # seconds that a step of an introduction takes
T_PING: Final = 5.0  # seconds that the other end of a circuit has to answer whether it is there
T_RENDEZVOUS: Final = 30.0  # seconds that a client waits for the service
MAX_EFFORT: Final = 50_000_000  # of work that a service asks for, and a client does: about ten seconds
