"""The proxy wire: what server and agent say to each other, and the one thing a data connection carries.

::

    visitor ──TCP──▶ server ──(sniff)──▶ host ──▶ subscriber ──WebSocket──▶ agent
                       │  proxy.connection {secret, port, serverListeningPort}  │
                       ◀────────── TCP (TLS): 32 bytes of secret ───────────────┤──▶ local target
                       ├──────── sniffed bytes, then both ways, unframed ───────▶

    agent                                                                      server
      │ proxy.hello {versions, instance, features}                                │
      ├──────────────────────────────────────────────────────────────────────────▶│
      │◀────────── {version, node, nonce, heartbeat_s, limits, features, data} ───┤
      │ proxy.subscribe {host, proof}         proof = HMAC(K, nonce ‖ node ‖ host) │
      ├──────────────────────────────────────────────────────────────────────────▶│
      │◀─────────────────────────────────────── {subscription, lease_s, resume} ──┤
      │                                                    ... a visitor comes ... │
      │◀───────── proxy.connection {subscription, result: {secret, port, ...}} ───┤
      │ dials `data`, sends the 32 bytes; or proxy.reject {subscription, conn, code}
      ├──────────────────────────────────────────────────────────────────────────▶│

Control messages are JSON-RPC 2.0 objects (control.md section 3) whose `params` and `result` are the classes below,
named after their method; those of owners and operators stand in `layer8.proxy.orders`. Times are milliseconds where a
name ends in `_ms`, seconds where it ends in `_s`; wall times (`_at`) are whole seconds since 1970. Binary values are
lower-case hex. Camel-case names are webgw's.

A data connection, from the agent: ``secret: 32 bytes`` and then the target's bytes; from the server: the visitor's
bytes from the first one, exactly once. Nothing is framed, so one end's FIN is the other end's FIN.

With the feature `pool` an agent also dials ahead: `proxy.pool` gives it secrets, and what the server says first on
such a connection, when a visitor gets it, is one PROXY v2 header (`layer8.proxy.pp`) that says who the visitor is for.
The agent's first byte there is NOD, and then come the target's; without one in time the visitor is given to another.

The `host` inside a proof is the registered form: lower-case A-labels, a wildcard with its star.

Source: proxy.md sections 3, 4, 10 and 14.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal

from attrs import Factory, field, frozen

from layer8.core.errors import Layer8Error
from layer8.core.members import MEMBER, Bounds, Member, member
from layer8.proxy.limits import PRIORITY_MOST, WEIGHT_MOST

VERSION: Final = 1  # the only protocol version there is
SECRET_SIZE: Final = 32  # bytes of a one-time secret on a data connection
NONCE_SIZE: Final = 32  # bytes; one per control connection
POOLED: Final = "pool"  # the feature: the agent dials ahead, see `Pool`
FEATURES: Final[tuple[str, ...]] = (POOLED,)  # optional parts of this build; used if both ends name them
SUBPROTOCOL: Final = "jsonrpc.layer8.v1"
AGENT_PATH: Final = "/agent"  # where the agent listener takes WebSockets
NOD: Final = b"\x06"  # an agent's first byte on a claimed connection: the target is there
DATA_ALPN: Final = "layer8-data/1"  # of a dial-back inside TLS, which tells it from a control connection
LARGEST_ID: Final = 2**53 - 1  # subscriptions and connections are numbered below it: JSON numbers stay exact

HASH: Final = "[0-9a-f]{64}"  # a SHA-256, an HMAC or 32 random bytes
NAME_MOST: Final = 512  # characters of a host as people type it; what is registered has at most 253 octets

Up = Literal["up", "down", "drain"]
Scheme = Literal["http", "https"]
Host = Annotated[str, Bounds(1, NAME_MOST)]
Hex32 = Annotated[str, Bounds(pattern=HASH)]
Number = Annotated[int, Bounds(0, LARGEST_ID)]
Port = Annotated[int, Bounds(1, 65535)]
Alternatives = Annotated[tuple[Annotated[str, Bounds(1, 512)], ...], Bounds(0, 16)]
Words = Annotated[tuple[Annotated[str, Bounds(1, 64)], ...], Bounds(0, 64)]


class Code(IntEnum):
    """What a proxy method answers when it does not do what it was asked, or an agent when it rejects a visitor."""

    UNKNOWN_HOST = -20000  # legacy callers only: everybody else gets WRONG_SECRET
    WRONG_SECRET = -20001  # or a wrong proof, or no such host: nobody can tell which
    ALREADY_REGISTERED = -20002
    NOT_PROVEN = -20003  # the registration is there, ownership of the name is not
    RATE_LIMITED = -20004  # data: retry_after_ms
    QUOTA = -20005  # data: limit
    INVALID_HOST = -20006
    LEASE_EXPIRED = -20007  # or no such subscription
    AGENT_REFUSED = -20008  # the agent's target does not answer
    NO_CAPACITY = -20009  # data: limit
    DRAINING = -20010  # data: alternatives
    NO_COMMON_VERSION = -20011
    FORBIDDEN_BY_POLICY = -20012


class Denied(Layer8Error):
    """The proxy's pure parts say no; the method table makes a control error of it."""

    def __init__(self, code: Code, message: str, **data: int | str | tuple[str, ...]) -> None:
        """Take the code, one line for people, and what a program can act on."""
        super().__init__(message)
        self.code = code
        self.data = data


class OutOfOrder(Layer8Error):
    """The agent said something that its conversation does not allow yet, or not any more."""


class Reason(StrEnum):
    """Why a visitor's connection ended: the closed list of the access log and of the `reason` label."""

    # not yet named
    BANNED = "banned"  # the source is banned
    SOURCE_LIMIT = "source_limit"  # PER_SOURCE
    CROWDED_OUT = "crowded_out"  # the oldest without a name when SNIFFING was full
    FIRST_BYTE = "first_byte"  # nothing said in time while SNIFFING was half full
    SNIFF_TIME = "sniff_time"  # no name within SNIFF_TIME
    SNIFF_SIZE = "sniff_size"  # no name within SNIFF_TLS, SNIFF_HTTP or SNIFF_FIELDS
    BAD_TLS = "bad_tls"  # a ClientHello that leaves doubt
    BAD_HTTP = "bad_http"  # a request head that leaves doubt
    OTHER_PROTOCOL = "other_protocol"  # not what this port speaks
    BAD_PROXY_HEADER = "bad_proxy_header"  # PROXY header missing where required, or from where it is not believed
    NO_NAME = "no_name"  # well formed, names no host, and there is no default
    # named, not yet carried
    UNKNOWN_HOST = "unknown_host"  # nothing registered
    WRONG_PORT = "wrong_port"  # registered, but not for this port
    SUSPENDED = "suspended"  # ownership of the name was lost
    DENIED = "denied"  # the host's policy
    HOST_LIMIT = "host_limit"  # HOST_RATE or HOST_CONNS of the host
    NO_CERTIFICATE = "no_certificate"  # TLS ends here, and there is no certificate for the name
    CHALLENGED = "challenged"  # a certificate authority got the answer that we owed it
    NO_SUBSCRIBER = "no_subscriber"  # no live agent has it
    PENDING_LIMIT = "pending_limit"  # PENDING
    REJECTED = "rejected"  # every subscriber said no
    CALL_TIME = "call_time"  # nobody dialled back in time
    TARGET_REFUSED = "target_refused"  # a static host's own target did not answer
    DRAINING = "draining"  # the server takes no more
    VISITOR_LEFT = "visitor_left"  # gone before it was joined
    # joined
    DONE = "done"  # both sides ended
    VISITOR_RESET = "visitor_reset"
    AGENT_RESET = "agent_reset"
    HALF_CLOSED = "half_closed"  # one side ended, the other made no progress
    IDLE = "idle"
    MISDIRECTED = "misdirected"  # a request named another host than the first, or than TLS
    KILLED = "killed"  # by an operator or by revocation
    DRAINED = "drained"  # the drain's deadline came
    INTERNAL = "internal"  # our own fault; the log has more


@frozen
class Empty:
    """No parameters, or nothing to say but that it was done."""


@frozen
class DataAddress:
    """A place where agents dial back; a host of "" is the one that the agent reached the server by."""

    host: Annotated[str, Bounds(0, NAME_MOST)]
    port: Port
    tls: bool = False
    pin: str | None = None


@frozen
class Hello:
    """`proxy.hello`: the first message of an agent. `instance` is random and lasts as long as the agent's process."""

    versions: Annotated[tuple[int, ...], Bounds(1, 16)]
    instance: Annotated[str, Bounds(8, 64)]
    features: Words = ()


@frozen
class HelloResult:
    """What the agent has to know. `node` is the server's id (52 letters of base32), `nonce` 32 bytes in hex.

    `public` says on which ports visitors come, by scheme: what a person needs who wants to see the result.
    """

    version: int
    node: str
    nonce: Hex32
    heartbeat_s: int
    limits: dict[str, int]
    features: tuple[str, ...]
    data: tuple[DataAddress, ...]
    public: dict[str, int] = Factory(dict)


@frozen
class Subscribe:
    """`proxy.subscribe`: show the host's secret by `proof`, or show it itself over TLS.

    `host` is the registered name, a wildcard as such. `resume` is what an earlier subscription of the same instance
    got: that one is replaced at once. `pool` is a wish that a server without pools ignores.
    """

    host: Host
    proof: str | None = member(None, pattern=HASH, secret=True)
    secret: str | None = member(None, pattern="(?:[0-9a-fA-F]{2}){32,256}", secret=True)
    weight: int = member(1, least=1, most=WEIGHT_MOST)
    priority: int = member(0, least=0, most=PRIORITY_MOST)
    max_conns: int = member(0, least=0, most=10_000_000)
    pool: int = member(2, least=0, most=32)
    resume: str | None = member(None, least=1, most=64, secret=True)

    def __attrs_post_init__(self) -> None:
        """Refuse both or neither with ValueError."""
        if (self.proof is None) == (self.secret is None):
            raise ValueError("either proof or secret is wanted")


@frozen
class SubscribeResult:
    """A subscription, alive for `lease_s` after any message of this connection."""

    subscription: int
    lease_s: int
    resume: str = field(repr=False)


@frozen
class Unsubscribe:
    """`proxy.unsubscribe`: no new connections; joined ones go on unless `kill`."""

    subscription: Number
    kill: bool = False


@frozen
class Health:
    """`proxy.health`, a notification: the agent's target answers, does not, or is to get no more visitors."""

    subscription: Number
    state: Up


@frozen
class Reject:
    """`proxy.reject`, a notification: the agent will not carry `conn`; the next subscriber is asked at once."""

    subscription: int
    conn: int
    code: int


@frozen
class Call:
    """A visitor waits: dial back with `secret` within `expires_ms`.

    `port` is the public port the visitor came to. `data_host`, if present, must be one of the announced `data`
    addresses. `remote` is the visitor's `ADDRESS:PORT` and present only where the host's policy and the server agree.
    """

    secret: Hex32 = field(repr=False)
    port: Port
    data_port: Port = field(metadata={MEMBER: Member(name="serverListeningPort")})
    tls: bool
    conn: Number
    host: str
    scheme: Scheme
    expires_ms: Number
    data_host: str | None = member(None, name="serverListeningHost")
    alpn: str | None = None
    remote: str | None = None


@frozen
class Connection:
    """`proxy.connection`."""

    subscription: int
    result: Call


@frozen
class Token:
    """A secret for a connection that is dialled ahead: to be shown on it within `expires_ms`, good for one."""

    secret: Hex32 = field(repr=False)
    expires_ms: Number
    data_port: Port = field(metadata={MEMBER: Member(name="serverListeningPort")})
    tls: bool
    data_host: str | None = member(None, name="serverListeningHost")


@frozen
class Pool:
    """`proxy.pool`, a notification: dial back with each of these now and wait; a visitor's header starts the rest."""

    subscription: int
    tokens: Annotated[tuple[Token, ...], Bounds(1, 32)]


@frozen
class Nodes:
    """`proxy.nodes`: from now on dial back to these."""

    data: tuple[DataAddress, ...]


@frozen
class Draining:
    """`proxy.drain`, the notification: subscribe elsewhere; what is joined is closed after `deadline_ms`."""

    deadline_ms: int
    alternatives: Alternatives = ()
