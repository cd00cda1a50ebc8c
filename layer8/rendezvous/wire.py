"""Messages of access points and rendezvous hops: bytes <-> frozen values. All integers are big-endian.

```
client C            rendezvous hop R          access point P               service S
  |--RENZV_LISTEN cookie-->|                        |<--RES_LISTEN auth key, sig--|
  |<----RENZV_LISTEN_OK----|                        |---------RES_LISTEN_OK------>|
  |--RES_CONNECT auth key, work, blob (other circuit)-->|--RENZV_CONNECT src, work, blob-->|
  |<-----------------RES_CONNECT_OK------------------|                            |
  |                        |<------RENZV_JOIN cookie, reply (another circuit)-----|
  |<-RENZV_CONNECT_OK reply|  R joins the two circuits
```
| #      | message               | data                                                                         |
|--------|-----------------------|------------------------------------------------------------------------------|
| 48, 49 | RES_LISTEN, _OK       | `auth key 32, signature 64`; `rate u16, burst u16, introductions u32`          |
| 50     | RES_TUNE              | `auth key 32, seed 32, effort u32, expires u32`                                |
| 51, 52 | RES_CONNECT, _OK      | `auth key 32, work 25, len u16, blob 1600`; `status u8, effort u32`            |
| 53, 54 | RENZV_LISTEN, _OK     | `cookie 32`; nothing                                                           |
| 55     | RENZV_JOIN            | `cookie 32, reply`                                                             |
| 56     | RENZV_CONNECT         | `auth key 32, src u32, work 25, blob 1600`                                     |
| 57     | RENZV_CONNECT_OK      | `reply`                                                                        |
| 60, 61 | RENZV_PING, _OK       | nothing; nothing: after the join either end to the other, or an access point   |
| 62     | RENZV_ALERT           | `what u8`: after the join, from the service                                    |

work = `version u8, nonce 16, effort u32, seed head 4`, all zeros for none. In mode 0 the access point is the rendezvous
hop too, and RENZV_LISTEN and RES_CONNECT go by one circuit.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from attrs import field, frozen

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.introduction import BLOB
from layer8.crypto.keys import SIGNATURE

KEY: Final = 32
COOKIE: Final = 32
REPLY_LEAST: Final = 1168  # bytes of a reply with nothing said in it
REPLY_MOST: Final = 1900  # what goes into one cell with a cookie before it
SEED_HEAD: Final = 4
WORK_VERSION: Final = 1
NO_WORK: Final = bytes(25)
LISTEN_LABEL: Final = b"layer8/1 listen\0"
WORK_LABEL: Final = b"layer8/1 knock work\0"

_WORK = struct.Struct(">B16sI4s")
_TUNE = struct.Struct(">32s32sII")
_LIMITS = struct.Struct(">HHI")
_CONNECT = struct.Struct(">32s25sH")
_PASSED = struct.Struct(">32sI25s")
_STATUS = struct.Struct(">BI")


class Renzv(IntEnum):
    """Commands of relay messages that belong to hidden services: 48 to 63."""

    RES_LISTEN = 48
    RES_LISTEN_OK = 49
    RES_TUNE = 50
    RES_CONNECT = 51
    RES_CONNECT_OK = 52
    LISTEN = 53
    LISTEN_OK = 54
    JOIN = 55
    CONNECT = 56
    CONNECT_OK = 57
    PING = 60
    PING_OK = 61
    ALERT = 62


class Status(IntEnum):
    """What an access point says to a knock."""

    PASSED = 0
    UNKNOWN = 1
    WORK = 2
    BUSY = 3


class Alert(IntEnum):
    """What a service tells a client unasked."""

    LOGIN_TWICE = 1


def listen_text(binding: bytes) -> bytes:
    """Give what an auth key signs to listen on the circuit with this binding."""
    return LISTEN_LABEL + binding


def _sized(data: bytes, size: int) -> None:
    if len(data) != size:
        raise RemoteProtocolError("a message of hidden services with a wrong length")


@frozen
class Listen:
    """RES_LISTEN: take knocks for this auth key and pass them on here."""

    auth_key: bytes
    signature: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        return self.auth_key + self.signature

    @classmethod
    def read(cls, data: bytes) -> Listen:
        """Read the data; raises `RemoteProtocolError`."""
        _sized(data, KEY + SIGNATURE)
        return cls(data[:KEY], data[KEY:])


@frozen
class Listening:
    """RES_LISTEN_OK: how many knocks a second, at once and in all are passed on."""

    rate: int
    burst: int
    introductions: int

    def encode(self) -> bytes:
        """Give the data of the message."""
        return _LIMITS.pack(self.rate, self.burst, self.introductions)

    @classmethod
    def read(cls, data: bytes) -> Listening:
        """Read the data; raises `RemoteProtocolError`."""
        _sized(data, _LIMITS.size)
        return cls(*_LIMITS.unpack(data))


@frozen
class Tune:
    """RES_TUNE: pass on no knock without this much work; an effort of 0 asks for none."""

    auth_key: bytes
    seed: bytes = field(repr=False)
    effort: int
    expires: int  # second since 1970

    def encode(self) -> bytes:
        """Give the data of the message."""
        return _TUNE.pack(self.auth_key, self.seed, self.effort, self.expires)

    @classmethod
    def read(cls, data: bytes) -> Tune:
        """Read the data; raises `RemoteProtocolError`."""
        _sized(data, _TUNE.size)
        return cls(*_TUNE.unpack(data))


@frozen
class Work:
    """A solution that a knock brings; the first bytes of the seed say which one it is for."""

    nonce: bytes = field(repr=False)
    effort: int
    head: bytes

    def encode(self) -> bytes:
        """Give its 25 bytes."""
        return _WORK.pack(WORK_VERSION, self.nonce, self.effort, self.head)

    @classmethod
    def read(cls, data: bytes) -> Work | None:
        """Read 25 bytes; None for no work and for work of a version that is not known."""
        _sized(data, _WORK.size)
        version, nonce, effort, head = _WORK.unpack(data)
        return cls(nonce, effort, head) if version == WORK_VERSION else None


@frozen
class Connect:
    """RES_CONNECT: pass this on to whoever listens for the auth key."""

    auth_key: bytes
    work: bytes = field(repr=False)
    blob: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        return _CONNECT.pack(self.auth_key, self.work, len(self.blob)) + self.blob

    @classmethod
    def read(cls, data: bytes) -> Connect:
        """Read the data; raises `RemoteProtocolError`."""
        _sized(data, _CONNECT.size + BLOB)
        auth_key, work, size = _CONNECT.unpack_from(data)
        if size != BLOB:
            raise RemoteProtocolError("a blob with a wrong length")
        return cls(auth_key, work, data[_CONNECT.size :])


@frozen
class Answer:
    """RES_CONNECT_OK: what has become of a knock; with `WORK` the effort that is wanted."""

    status: Status
    effort: int = 0

    def encode(self) -> bytes:
        """Give the data of the message."""
        return _STATUS.pack(self.status, self.effort)

    @classmethod
    def read(cls, data: bytes) -> Answer:
        """Read the data; raises `RemoteProtocolError`."""
        _sized(data, _STATUS.size)
        status, effort = _STATUS.unpack(data)
        if status not in Status._value2member_map_:
            raise RemoteProtocolError("an access point's answer that is not known")
        return cls(Status(status), effort)


@frozen
class Knock:
    """RENZV_CONNECT: a knock as the service gets it, from client number `src` of this access point."""

    auth_key: bytes
    src: int
    work: bytes = field(repr=False)
    blob: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        return _PASSED.pack(self.auth_key, self.src, self.work) + self.blob

    @classmethod
    def read(cls, data: bytes) -> Knock:
        """Read the data; raises `RemoteProtocolError`."""
        _sized(data, _PASSED.size + BLOB)
        auth_key, src, work = _PASSED.unpack_from(data)
        return cls(auth_key, src, work, data[_PASSED.size :])


@frozen
class Join:
    """RENZV_JOIN: let this circuit go over into that of whoever waits with the cookie, and hand it the reply."""

    cookie: bytes = field(repr=False)
    reply: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the data of the message."""
        return self.cookie + self.reply

    @classmethod
    def read(cls, data: bytes) -> Join:
        """Read the data; raises `RemoteProtocolError`."""
        if not COOKIE + REPLY_LEAST <= len(data) <= COOKIE + REPLY_MOST:
            raise RemoteProtocolError("a reply with a wrong length")
        return cls(data[:COOKIE], data[COOKIE:])


def read_cookie(data: bytes) -> bytes:
    """Read RENZV_LISTEN; raises `RemoteProtocolError`."""
    _sized(data, COOKIE)
    return data
