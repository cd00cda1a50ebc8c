"""What owners, operators and onlookers say to a proxy server: registrations, tables, bans, drain.

These are the params and results of the `proxy.*` methods that are not an agent's; `layer8.proxy.wire` holds those, and
what names and units mean. Source: proxy.md sections 3 and 4.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from attrs import field, frozen

from layer8.core.members import Bounds, member
from layer8.proxy.limits import GRACE, PAGE, TTL_MOST
from layer8.proxy.users import is_user
from layer8.proxy.wire import NAME_MOST, Alternatives, Hex32, Host, Port, Up

Mode = Literal["raw", "guard", "proxy"]
Tls = Literal["passthrough", "terminate"]
Ports = Annotated[tuple[Port, ...], Bounds(0, 64)]
Cidr = Annotated[str, Bounds(2, 49)]
Users = Annotated[tuple[Annotated[str, Bounds(3, 256)], ...], Bounds(0, 64)]
Cidrs = Annotated[tuple[Cidr, ...], Bounds(0, 4096)]


@frozen
class Policy:
    """Who may visit a host and how much; empty and 0 mean everybody and the server's own limit.

    `deny` beats `allow`. `rate` is new connections per second, `bandwidth` bytes per second both ways together.
    `visitor` says whether agents learn visitors' addresses, `tls` who ends TLS: the target or the server. `users` are
    lines `name:hash` (`layer8.crypto.password`) of those who may come in, in mode proxy.
    """

    allow: Cidrs = ()
    deny: Cidrs = ()
    max_conns: int = member(0, least=0, most=10_000_000)
    rate: float = member(0.0, least=0, most=1_000_000)
    bandwidth: int = member(0, least=0, most=10**12)
    visitor: Literal["none", "full"] = "none"
    tls: Tls = "passthrough"
    users: Users = ()

    def __attrs_post_init__(self) -> None:
        """Refuse users without a proper hash with ValueError."""
        if not all(is_user(line) for line in self.users):
            raise ValueError("users are lines of name:hash, as `layer8 proxy register --user` makes them")


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
