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
named after their method. Times are milliseconds where a name ends in `_ms`, seconds where it ends in
`_s`; wall times (`_at`) are whole seconds since 1970. Binary values are lower-case hex. Camel-case names are webgw's.

A data connection, from the agent: ``secret: 32 bytes`` and then the target's bytes; from the server: the visitor's
bytes from the first one, exactly once. Nothing is framed, so one end's FIN is the other end's FIN.

The `host` inside a proof is the registered form: lower-case A-labels, a wildcard with its star.

Source: proxy.md sections 3, 4, 10 and 14.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal

from attrs import field, frozen

from layer8.core.errors import Layer8Error
from layer8.core.members import MEMBER, Bounds, Member, member
from layer8.proxy.limits import GRACE, PAGE, PRIORITY_MOST, TTL_MOST, WEIGHT_MOST

VERSION: Final = 1  # the only protocol version there is
SECRET_SIZE: Final = 32  # bytes of a one-time secret on a data connection
NONCE_SIZE: Final = 32  # bytes; one per control connection
FEATURES: Final[tuple[str, ...]] = ()  # optional parts of this build; used if both ends name them
SUBPROTOCOL: Final = "jsonrpc.layer8.v1"
AGENT_PATH: Final = "/agent"  # where the agent listener takes WebSockets
LARGEST_ID: Final = 2**53 - 1  # subscriptions and connections are numbered below it: JSON numbers stay exact

HASH: Final = "[0-9a-f]{64}"  # a SHA-256, an HMAC or 32 random bytes
NAME_MOST: Final = 512  # characters of a host as people type it; what is registered has at most 253 octets

Mode = Literal["raw"]
Up = Literal["up", "down", "drain"]
Scheme = Literal["http", "https"]
Host = Annotated[str, Bounds(1, NAME_MOST)]
Hex32 = Annotated[str, Bounds(pattern=HASH)]
Number = Annotated[int, Bounds(0, LARGEST_ID)]
Port = Annotated[int, Bounds(1, 65535)]
Ports = Annotated[tuple[Port, ...], Bounds(0, 64)]
Cidr = Annotated[str, Bounds(2, 49)]
Cidrs = Annotated[tuple[Cidr, ...], Bounds(0, 4096)]
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
    MISDIRECTED = "misdirected"  # a later request named another host
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
    """What the agent has to know. `node` is the server's id (52 letters of base32), `nonce` 32 bytes in hex."""

    version: int
    node: str
    nonce: Hex32
    heartbeat_s: int
    limits: dict[str, int]
    features: tuple[str, ...]
    data: tuple[DataAddress, ...]


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
    addresses. `remote` is the visitor's address and present only where the host's policy and the server agree.
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
class Nodes:
    """`proxy.nodes`: from now on dial back to these."""

    data: tuple[DataAddress, ...]


@frozen
class Draining:
    """`proxy.drain`, the notification: subscribe elsewhere; what is joined is closed after `deadline_ms`."""

    deadline_ms: int
    alternatives: Alternatives = ()


@frozen
class Policy:
    """Who may visit a host and how much; empty and 0 mean everybody and the server's own limit.

    `deny` beats `allow`; `rate` is new connections per second, `bandwidth` bytes per second.
    """

    allow: Cidrs = ()
    deny: Cidrs = ()
    max_conns: int = member(0, least=0, most=10_000_000)
    rate: int = member(0, least=0, most=1_000_000)
    bandwidth: int = member(0, least=0, most=1 << 40)
    visitor: Literal["none", "full"] = "none"


EVERYBODY: Final = Policy()


@frozen
class Register:
    """`proxy.register`: `secret_hash` is the hex SHA-256 of the secret, which itself never travels.

    No `ports` means every public port. `owner` may be named by an admin only; anybody else owns what they register.
    """

    host: Host
    secret_hash: Hex32 = field(repr=False)
    ports: Ports = ()
    mode: Mode | None = None
    policy: Policy = EVERYBODY
    owner: str | None = member(None, least=1, most=64)
    ttl_s: int | None = member(None, least=1, most=TTL_MOST)


@frozen
class Update:
    """`proxy.update`: what is given replaces what was; a `version` that is not the current one is a conflict."""

    host: Host
    ports: Ports | None = None
    mode: Mode | None = None
    policy: Policy | None = None
    ttl_s: int | None = member(None, least=1, most=TTL_MOST)
    version: int | None = None


@frozen
class HostName:
    """Names one registration: `proxy.get` and `proxy.prove`."""

    host: Host


@frozen
class Unregister:
    """`proxy.unregister`: `kill` also closes what is joined."""

    host: Host
    kill: bool = False


@frozen
class Rotate:
    """`proxy.rotate`: one more secret becomes good, and those before it retire after `grace_s`."""

    host: Host
    secret_hash: Hex32 = field(repr=False)
    grace_s: int = member(GRACE, least=0, most=30 * GRACE)


@frozen
class SecretRow:
    """One active secret: enough of its hash to tell it from another, and when it retires."""

    starts_with: str
    retires_at: int | None = None


@frozen
class ProofWanted:
    """What shows that a name is the caller's: the TXT record, or the answer at the URL, whichever is found first."""

    txt_name: str
    txt_value: str
    url: str
    body: str


@frozen
class HostRow:
    """A registration as its owner and admins see it; never a secret."""

    host: str
    owner: str
    state: Literal["owned", "pending", "proven", "suspended"]
    ports: tuple[int, ...]
    mode: Mode
    policy: Policy
    secrets: tuple[SecretRow, ...]
    version: int
    expires_at: int | None = None
    static: bool = False
    proof: ProofWanted | None = None


@frozen
class Page:
    """Asks for one page of a list: rows after `cursor`, at most `limit`."""

    cursor: str | None = member(None, most=NAME_MOST)
    limit: int = member(PAGE, least=1, most=PAGE)


@frozen
class HostRows:
    """`proxy.list`; a `cursor` means that there is more."""

    hosts: tuple[HostRow, ...]
    cursor: str | None = None


@frozen
class HostCount:
    """One line of `proxy.hosts`."""

    host: str
    state: str
    subscribers: int
    open: int
    bytes_in: int
    bytes_out: int


@frozen
class HostCounts:
    """`proxy.hosts`."""

    hosts: tuple[HostCount, ...]
    cursor: str | None = None


@frozen
class SubscriberRow:
    """One line of `proxy.subscribers`."""

    subscription: int
    host: str
    state: Up
    open: int
    calling: int
    weight: int
    priority: int
    max_conns: int
    seconds: int
    address: str | None = None


@frozen
class SubscriberRows:
    """`proxy.subscribers`."""

    subscribers: tuple[SubscriberRow, ...]
    cursor: str | None = None


@frozen
class ConnectionRow:
    """One line of `proxy.connections`."""

    conn: int
    host: str
    port: int
    scheme: str
    state: str
    subscription: int | None
    seconds: int
    bytes_in: int
    bytes_out: int
    address: str | None = None


@frozen
class ConnectionRows:
    """`proxy.connections`."""

    connections: tuple[ConnectionRow, ...]
    cursor: str | None = None


@frozen
class Stats:
    """`proxy.stats`: totals since the start, and how many there are now."""

    hosts: int
    subscribers: int
    agents: int
    bans: int
    draining: bool
    open: int
    calling: int
    sniffing: int
    accepted: int
    bytes_in: int
    bytes_out: int
    ended: dict[str, int]


@frozen
class Kill:
    """`proxy.kill`: one connection, or all of a host."""

    conn: int | None = member(None, least=0)
    host: str | None = member(None, least=1, most=NAME_MOST)

    def __attrs_post_init__(self) -> None:
        """Refuse both or neither with ValueError."""
        if (self.conn is None) == (self.host is None):
            raise ValueError("either conn or host is wanted")


@frozen
class Closed:
    """How many connections were closed."""

    closed: int


@frozen
class Ban:
    """`proxy.ban`: nothing from `cidr` is accepted for `ttl_s`."""

    cidr: Cidr
    ttl_s: Annotated[int, Bounds(1, TTL_MOST)]


@frozen
class Unban:
    """`proxy.unban`."""

    cidr: Cidr


@frozen
class Drain:
    """`proxy.drain`, the call: stop accepting; `deadline_s` of None is the configured time."""

    deadline_s: int | None = member(None, least=0, most=86_400)
    alternatives: Alternatives = ()


@frozen
class Drained:
    """How many connections are still open."""

    connections: int
