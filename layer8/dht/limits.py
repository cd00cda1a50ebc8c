"""What a DHT node holds itself and others to (hidden.md section 10); sizes of items stand in `layer8.crypto.items`."""

from __future__ import annotations

from typing import Final

DHT_K: Final = 8  # nodes of a bucket, and holders of an item
ALPHA: Final = 4  # queries in flight per path
PATHS: Final = 4  # disjoint ones, when storing or when an answer is missing
REPLACEMENTS: Final = 8  # of a bucket
PER_BUCKET_NEAR: Final = 2  # nodes of one /24 or /48 in a bucket
PER_TABLE_NEAR: Final = 8  # and in the table
FAILURES: Final = 2  # answers in a row that did not come before a node leaves the table
FRESH: Final = 900.0  # seconds after an answer that a node needs no ping
ITEMS: Final = 50_000
ITEM_BYTES: Final = 64 * 1024 * 1024
PER_SOURCE: Final = 256  # items and records that one /24 or /48 has put here
SET_RECORDS: Final = 64  # per target and holder
SET_ANSWER: Final = 10  # records
SET_HOUR: Final = 3600.0  # seconds in which the same question has the same answer
KRPC_MAX: Final = 2048  # bytes of a datagram that is read
ANSWER_MAX: Final = 1400  # bytes of one that is sent
TID_MAX: Final = 32  # bytes of a transaction id
KRPC_IN: Final = 20  # queries a second of one address
KRPC_IN_NEAR: Final = 100  # of one /24 or /48
KRPC_IN_ALL: Final = 2000
ERRORS: Final = 1  # a second and address, for what cannot be read
TOKEN_LIFE: Final = 600.0  # seconds
ITEM_LIFE: Final = 7200.0
REPUT: Final = 3600.0
HELD_LIFE: Final = 86_400.0  # seconds after its owner's last put that holders go on putting an item again
REPUTS: Final = 8  # at a time
LOOKUP_QUERIES: Final = 64
LOOKUP_TIME: Final = 4.0
PATH_NODES: Final = 64  # candidates that a lookup remembers for a path
LOOKUPS: Final = 512  # at a time
DHT_PER_CIRC: Final = 4  # requests at a time
DHT_PER_MINUTE: Final = 30  # of one circuit
CIRCUITS: Final = 65_536  # whose requests are counted
RTT_TIMES: Final = 4.0
TIMEOUT_LEAST: Final = 0.1
TIMEOUT_MOST: Final = 1.0
LATE: Final = 2.0  # seconds after which an answer is not waited for at all
PENDING: Final = 8192  # queries of ours that are not answered yet
REFRESH: Final = 900.0  # seconds between lookups of random targets
PROOFS: Final = 256  # nodes at a time that are asked for a proof of their key
BOOTSTRAP: Final = 20.0  # seconds between tries while nobody is known
ASK_TIME: Final = 20.0  # seconds that a client waits for the last hop of a circuit
SAVED_NODES: Final = 200
