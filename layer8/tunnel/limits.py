"""The limits of the tunnel, with unit and reason (tunnel.md section 8); lengths of fixed fields stand in `wire`.

What a peer can grow, one of them stops.
"""

from __future__ import annotations

from typing import Final

CHUNK_PLAIN: Final = 16_384  # bytes of plaintext in one chunk: what every implementation takes
CHUNK_SEALED: Final = CHUNK_PLAIN + 16  # the same under its tag
MAX_MESSAGE: Final = 1 << 30  # bytes of one message's plaintext, and
MAX_CHUNKS: Final = 1 << 20  # of its chunks: together they keep AES-128-GCM's margin at 2^-50
MAX_SINGLE: Final = 1 << 20  # bytes of a message that is sealed in one piece, and so held in memory

MAX_FIELDS: Final = 128  # of one section of binary HTTP
MAX_FIELD_BYTES: Final = 32 * 1024  # bytes of one section
MAX_PATH: Final = 8192  # bytes
MAX_METHOD: Final = 32  # bytes
MAX_SCHEME: Final = 16  # bytes
MAX_AUTHORITY: Final = 261  # bytes: a name of 255 with a port
MAX_INFORMATIONAL: Final = 4  # responses before the final one

BUFFER: Final = 64 * 1024  # bytes that wait in one direction of one leg; then its source rests

HEAD_TIME: Final = 10.0  # seconds until a request's head, and of a sealed one its first chunk, is there
DIAL_TIME: Final = 5.0  # seconds for a connection to a gateway
IDLE_TIME: Final = 60.0  # seconds without a byte either way
EXCHANGE_TIME: Final = 3600.0  # seconds of one exchange in all

KEYS_MAX: Final = 64 * 1024  # bytes of a signed key set
KEYS_REFRESH: Final = 3600.0  # seconds between two looks at a gateway's keys
KEYS_HURRY: Final = 600.0  # seconds between two looks that clients have given cause for
AUTHORITIES: Final = 64  # names that one gateway answers for

REPLAY_WINDOW: Final = 300  # seconds that a request's date may be off, each way
REPLAY_ENTRIES: Final = 1_000_000  # requests remembered; more, and the window shrinks to what fits

SOCKET_MESSAGE: Final = 1 << 20  # bytes of one WebSocket message inside
SOCKET_SESSIONS: Final = 1024  # per gateway
SOCKET_PING: Final = 30.0  # seconds without a frame, after which one asks whether the other is there
SOCKET_DEAD: Final = 60.0  # seconds without a frame, after which nobody is
SOCKET_REKEY: Final = 1 << 20  # frames of one direction under one key

RESENDS: Final = 1  # times that a client sends a request again
