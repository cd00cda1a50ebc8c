r"""What trackers are asked and answer: relay messages at the end of a circuit. All integers are big-endian.

```
 relay, client                                                       tracker
   |-- TRACK_PUBLISH     descriptor ------------------------------------->|   dials back once, then
   |<- TRACK_OK          status u8 ---------------------------------------|
   |-- TRACK_UNPUBLISH   identity 32 | time u64 | signature 64 ---------->|
   |<- TRACK_OK          status u8 ---------------------------------------|
   |-- TRACK_GET_RELAYS  count u8 <= 25 | roles u16 | port u16 ---------->|
   |<- TRACK_RELAY_LIST  (len u16 | descriptor) * n, n <= count ----------|   a random sample
```
`roles` is a mask: whoever has all of them; `port` 0 is any, else exits that say they reach it. TRACK_UNPUBLISH is
signed over `"layer8/1 unpublish\0" | network 8 | identity | time`, `time` being seconds since 1970.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from attrs import field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.core.network import Network
from layer8.crypto.descriptor import LISTED
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, verify
from layer8.tracker.limits import UNPUBLISH_TIME


class Track(IntEnum):
    """Commands of relay messages."""

    PUBLISH = 16
    UNPUBLISH = 17
    GET_RELAYS = 18
    RELAY_LIST = 19
    OK = 20


class Status(IntEnum):
    """What a tracker says to TRACK_PUBLISH and TRACK_UNPUBLISH."""

    LISTED = 0
    REMOVED = 1
    BAD = 2  # the descriptor breaks a rule: form, signature, time, network, work, or it is no relay's
    OLDER = 3  # a later one is listed, or has been unpublished
    FULL = 4  # no room, or none for this network
    UNREACHABLE = 5  # nobody is at its addresses
    BUSY = 6  # try again later
    UNKNOWN = 7  # nothing to unpublish


_GET: Final = struct.Struct(">BHH")
_SIGNED: Final = b"layer8/1 unpublish\0"


@frozen
class GetRelays:
    """TRACK_GET_RELAYS."""

    count: int = LISTED
    roles: int = 0
    port: int = 0

    def encode(self) -> bytes:
        """Give the data of the message."""
        return _GET.pack(self.count, self.roles, self.port)

    @classmethod
    def read(cls, data: bytes) -> GetRelays:
        """Read the data; raises `RemoteProtocolError`."""
        if len(data) != _GET.size or not 0 < data[0] <= LISTED:
            raise RemoteProtocolError(f"TRACK_GET_RELAYS asks for 1 to {LISTED}")
        return cls(*_GET.unpack(data))


@frozen
class Unpublish:
    """TRACK_UNPUBLISH: the relay is going."""

    identity: bytes
    time: int
    signature: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        return self.identity + self.time.to_bytes(8, "big") + self.signature

    @classmethod
    def make(cls, key: NodeKey, network: Network, now: float) -> Unpublish:
        """Sign one."""
        signed = _SIGNED + network.mark + key.node_id + int(now).to_bytes(8, "big")
        return cls(key.node_id, int(now), key.sign(signed))

    @classmethod
    def read(cls, data: bytes) -> Unpublish:
        """Read the data; raises `RemoteProtocolError`."""
        if len(data) != NODE_ID + 8 + SIGNATURE:
            raise RemoteProtocolError("TRACK_UNPUBLISH of another length")
        at = NODE_ID + 8
        return cls(bytes(data[:NODE_ID]), int.from_bytes(data[NODE_ID:at], "big"), bytes(data[at:]))

    def good(self, network: Network, now: float) -> bool:
        """Tell whether its relay has said so, just now and in this network."""
        signed = _SIGNED + network.mark + self.identity + self.time.to_bytes(8, "big")
        return abs(self.time - now) <= UNPUBLISH_TIME and verify(self.identity, self.signature, signed)


def ok(status: Status) -> bytes:
    """Make the data of TRACK_OK."""
    return bytes((status,))


def read_ok(data: bytes) -> Status:
    """Read it; raises `RemoteProtocolError`, also for a status that is unknown."""
    if len(data) != 1 or data[0] not in Status._value2member_map_:
        raise RemoteProtocolError("TRACK_OK without a status")
    return Status(data[0])
