"""The limits of the network, with unit and reason (network.md section 11); lengths of cells stand in `wire`.

Those of SOCKS, of trackers and of what an operator may set stand where they are read. What a peer can grow, one of them
stops.
"""

from __future__ import annotations

from typing import Final

MAX_HOPS: Final = 8
EARLY_CELLS: Final = 8  # cells of a circuit that may extend it: no endless circuits
STREAMS_PER_CIRC: Final = 256
CIRC_WINDOW: Final = 512  # data cells under way in one direction of a circuit: 1 MiB
STREAM_WINDOW: Final = 256  # data cells under way in one direction of a stream
ACK_EVERY: Final = 32  # data cells
STALLED: Final = 4096  # data cells of one circuit that its sinks have not taken yet: 8 MiB, then no more ACKs
PROCESS_STALLED: Final = 65_536  # such cells of all circuits, 128 MiB; beyond it the circuit that has most goes
LINGERING: Final = 1024  # numbers of closed streams that a circuit remembers
BURST: Final = 64  # data cells that a circuit makes at a time, and waits for when it has run out of credit: 128 KiB

CIRC_QUEUE: Final = 640  # cells of a circuit on one link: window and control; more kills the circuit
PROCESS_QUEUE: Final = 32_768  # cells that wait on all links, 64 MiB; beyond it the fullest circuit goes
LINK_HIGH: Final = 128 * 1024  # bytes of a link's output that pause its circuits
LINK_LOW: Final = 32 * 1024  # bytes that let them go on
LINKS: Final = 2048
LINKS_PER_PREFIX: Final = 16  # per /24 or /48: one network cannot take the table
LINK_RATE: Final = 10.0  # connections a second of one /24 or /48: each costs us a handshake
LINK_BURST: Final = 64  # at once
CIRCS_PER_LINK: Final = 4096
CIRCUITS: Final = 32_768  # of others at a relay, some 300 MB; beyond it the oldest one of the link that has most goes
CIRCS_NAMELESS: Final = 64  # a nameless link is one user

HANDSHAKES: Final = 256  # that wait for the worker, the oldest dropped: CPU is the first limit of such systems
HANDSHAKE_RATE: Final = 250.0  # a second and link
HANDSHAKE_BURST: Final = 500  # at once
SEEN_X: Final = 65_536  # client keys remembered per onion key, against replays

SPARE_CIRCS: Final = 2  # built before anybody asks
BUILD_AT_ONCE: Final = 4
CIRC_DIRTY: Final = 600.0  # seconds of use after which a circuit takes no new stream
CIRC_IDLE: Final = 600.0  # seconds without a stream
CIRC_LIFE: Final = 86_400.0  # seconds

EXIT_CONNECTS: Final = 100.0  # streams and new UDP destinations a second and circuit
EXIT_CONNECTS_BURST: Final = 500
EXIT_OPEN: Final = 8192  # connections and UDP sockets of an exit in all, or half of the descriptors that it may have
EXIT_SAME_DEST: Final = 64  # connections of one circuit to one destination at a time
CIRC_BYTES: Final = 10 * 1024**3  # of one circuit through an exit
UDP_DESTS: Final = 25  # destinations of one circuit at a time: no scanner
UDP_UNANSWERED: Final = 3  # datagrams to a destination that has not answered: no amplifier
UDP_IDLE: Final = 60.0  # seconds after which a silent destination is forgotten, and a silent stream ends

REPUBLISH: Final = 6 * 3600.0  # seconds between descriptors: two misses are survived
REPUBLISH_SPREAD: Final = 3600.0  # seconds sooner or later
PEERS_KEPT: Final = 5_000
PEERS_AFTER: Final = 14 * 86_400.0  # seconds past expiry that a peer is remembered

T_LINK: Final = 10.0  # seconds from dialling to HELLO
T_HOP_LEAST: Final = 1.5  # seconds for one hop; 1.5 times what four of five circuits took, within these two
T_HOP_MOST: Final = 10.0
T_STREAM: Final = 30.0  # seconds for the far end's answer
T_SILENT: Final = 3.0  # seconds without an answer, after which a circuit is asked whether it still stands
T_PROBE: Final = 5.0  # seconds that it has to answer that
T_SHUN: Final = 60.0  # seconds that other circuits do without its hops, where they can
SHUNNED: Final = 8  # nodes at a time
T_LINGER: Final = 15.0  # seconds that a closed stream is remembered, or may pass without any of its last bytes leaving
PING_EVERY: Final = 30.0  # seconds
PING_DEAD: Final = 60.0  # seconds without a word
PROBE_TIME: Final = 2.0  # seconds that a link has to answer when its identity comes a second time
PAD_LEAST: Final = 1.5  # seconds of silence before padding: the greater of two draws between these
PAD_MOST: Final = 9.5
CLOCK_APART: Final = 3600.0  # seconds that two clocks may differ before somebody says so
BAD_CELLS: Final = 100  # that mean nothing, within BAD_TIME
BAD_TIME: Final = 60.0  # seconds
CLOSED_KEPT: Final = 16_384  # numbers of circuits closed within BAD_TIME, whose last cells are no offence
CONTROL_MOST: Final = CIRCS_PER_LINK + 64  # cells beside the circuits' own that a link owes to a peer who does not read
EWMA_HALF: Final = 10.0  # seconds in which a circuit's volume counts half
QUANTUM: Final = 32  # cells of one circuit before another has its turn: long runs are cheap at the next node
