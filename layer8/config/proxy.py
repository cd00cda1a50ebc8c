"""The sections of the socket proxy: server, its limits and static hosts, agent and its hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal
from urllib.parse import urlsplit

from attrs import Factory, frozen

from layer8.config import accept
from layer8.config.endpoint import is_loopback
from layer8.config.field import option, section, sections

_count = accept.between(1, 10_000_000)
_size = accept.between(512, 1 << 30)
_time = accept.between(0.05, 86400 * 30)


@frozen
class ProxyLimits:
    """What no peer can make larger; times in seconds, sizes in bytes."""

    sniff_time: float = option(10.0, doc="From accept to a known host, slow senders included.", check=_time, unit="s")
    first_byte: float = option(
        1.0, doc="From accept to the first byte while more than half of `sniffing` is in use.", check=_time, unit="s"
    )
    sniffing: int = option(
        10_000, doc="Visitors whose host is not known yet; the oldest is dropped first.", check=_count
    )
    per_source_sniffing: int = option(200, doc="Of these from one /24 or /56 network.", check=_count)
    per_source_open: int = option(2000, doc="Open visitors from one /24 or /56 network.", check=_count)
    secret_time: float = option(3.0, doc="From accept of a data connection to its secret.", check=_time, unit="s")
    call_step: float = option(
        1.5, doc="How long one agent has to dial back before the next is asked.", check=_time, unit="s"
    )
    call_time: float = option(5.0, doc="How long a visitor waits for all agents together.", check=_time, unit="s")
    pending_per_host: int = option(1000, doc="Visitors of one host that wait for an agent.", check=_count)
    pending: int = option(20_000, doc="Visitors of all hosts that wait for an agent.", check=_count)
    data_unauthenticated: int = option(1000, doc="Data connections that have not sent their secret.", check=_count)
    data_unauthenticated_per_source: int = option(
        50, doc="Of these from one /24 or /56 network, beside those that agents were asked for.", check=_count
    )
    agents: int = option(10_000, doc="Connected agents.", check=_count, hot=False)
    subscriptions: int = option(64, doc="Subscriptions of one agent connection.", check=_count)
    subscriptions_per_host: int = option(16, doc="Subscriptions of one host.", check=_count)
    subscribe_fails: int = option(20, doc="Wrong proofs per minute from one network before it is banned.", check=_count)
    ban_shortest: float = option(60.0, doc="The first ban; each further one is twice as long.", check=_time, unit="s")
    ban_longest: float = option(3600.0, doc="No ban is longer.", check=_time, unit="s")
    pipes: int = option(
        32,
        doc="Most pipes; 32 of 1 MiB are half of what the kernel grants an ordinary user.",
        check=accept.between(0, 65536),
    )
    idle: float = option(3600.0, doc="A joined connection without a byte is closed after this.", check=_time, unit="s")
    half_closed: float = option(60.0, doc="The same once one side has ended its half.", check=_time, unit="s")
    hosts: int = option(100_000, doc="Registrations.", check=_count)
    policy_rules: int = option(64, doc="allow and deny rules of one host.", check=_count)
    pool: int = option(
        32, doc="Pre-dialled connections of one subscription, whatever its agent wishes.", check=accept.between(0, 1024)
    )
    pools: int = option(5000, doc="Pre-dialled connections of all subscriptions together.", check=_count)
    pool_time: float = option(
        60.0, doc="How long a pre-dialled connection may wait before it is renewed.", check=_time, unit="s"
    )
    host_rate: float = option(
        0.0,
        doc="New connections per second of a host that names no rate; 0 is off.",
        check=accept.between(0, 1e6),
    )
    bandwidth: int = option(
        0,
        doc="Bytes per second of a host that names no bandwidth, both ways together; 0 is off.",
        check=accept.between(0, 1e12),
    )
    host_conns: int = option(
        0, doc="Open connections of a host that names none; 0 is off.", check=accept.between(0, 1e7)
    )
    control_message: int = option(
        16_384, doc="Most bytes of one message from an agent.", check=_size, unit="bytes", hot=False
    )
    legacy_message: int = option(
        1024, doc="Most bytes of one message from a legacy agent.", check=_size, unit="bytes", hot=False
    )


@frozen
class ProxyHostConfig:
    """A host that is registered by the file itself."""

    host: str = option(
        "", doc="Host name, or *. and at least two labels.", check=accept.host_pattern, example="app.example.org"
    )
    secret_file: str = option("", doc="File with the secret that agents prove (at least 32 bytes).", file="secret")
    target: str = option(
        "",
        doc="Instead of a secret: what the server itself dials for this host, without an agent.",
        check=accept.dials,
        example="tcp:127.0.0.1:8000",
    )
    ports: tuple[int, ...] = option(
        (), doc="Public ports on which this host is served; empty: all.", check=accept.ports
    )
    mode: Literal["", "raw", "guard", "proxy"] = option("", doc="How HTTP is carried; empty: as the server's `mode`.")
    tls: Literal["passthrough", "terminate"] = option(
        "passthrough", doc="terminate: the server itself ends TLS for this host, with a certificate of `certs` or acme."
    )
    allow: tuple[str, ...] = option((), doc="Networks that may visit; empty: all.", check=accept.networks)
    deny: tuple[str, ...] = option((), doc="Networks that may not, whatever `allow` says.", check=accept.networks)
    max_conns: int = option(0, doc="Open connections; 0: the limit host_conns.", check=accept.between(0, 1e7))
    rate: float = option(0.0, doc="New connections per second; 0: the limit host_rate.", check=accept.between(0, 1e6))
    bandwidth: int = option(
        0, doc="Bytes per second, both ways together; 0: the limit bandwidth.", check=accept.between(0, 1e12)
    )
    visitor: Literal["none", "full"] = option(
        "none", doc="full: agent and target learn visitors' addresses, if the server's `visitor` agrees."
    )
    users: tuple[str, ...] = option(
        (),
        doc="Users (name:hash) who alone may visit, by password, in mode proxy; empty: everybody.",
        check=accept.users,
    )
    proxy_protocol: Literal["none", "v1", "v2"] = option("none", doc="PROXY header sent to `target`.")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if bool(self.secret_file) == bool(self.target):
            yield "secret_file", "a host needs either secret_file (agents) or target (dialled by the server)"


@frozen
class ProxyConfig:
    """The public server of the socket proxy."""

    http: tuple[str, ...] = option(
        ("tcp:8080:interface=127.0.0.1",),
        doc="Where plain HTTP visitors arrive.",
        check=accept.listens("tcp", "systemd"),
        example="tcp:80",
    )
    https: tuple[str, ...] = option(
        ("tcp:8443:interface=127.0.0.1",),
        doc="Where TLS visitors arrive.",
        check=accept.listens("tcp", "systemd"),
        example="tcp:443",
    )
    agents: tuple[str, ...] = option(
        ("tcp:9081:interface=127.0.0.1",),
        doc="Where agents connect. Beyond this machine only with TLS: tls:9081.",
        check=accept.listens("tcp", "tls", "systemd", plain_only_on_loopback=True),
        example="tls:9081",
        hot=False,
    )
    data: tuple[str, ...] = option(
        ("tcp:0:interface=127.0.0.1",),
        doc="Where agents dial back; port 0 is chosen anew at every start.",
        check=accept.listens("tcp", "systemd"),
        example="tcp:0",
        hot=False,
    )
    legacy: tuple[str, ...] = option(
        (),
        doc="Where webgw agents connect, in plain text; their own default is port 9080. Empty: off.",
        check=accept.listens("tcp", "systemd"),
        example="tcp:9080:interface=127.0.0.1",
        hot=False,
    )
    legacy_open: bool = option(
        False,
        doc="Serve the legacy registration API without a token; only with control on loopback.",
        hot=False,
    )
    name: str = option("", doc="The server's own public name, announced to agents.", check=accept.host_name, hot=False)
    tls_cert_file: str = option(
        "", doc="Certificate chain (PEM) for that name; empty: self-signed and pinned.", file="read"
    )
    tls_key_file: str = option("", doc="Its private key (PEM).", file="secret")
    workers: int = option(
        1,
        doc="Processes that share the listeners; each has a data port of its own, a fixed one and those behind it.",
        check=accept.between(1, 256),
        hot=False,
    )
    takeover: str = option(
        "",
        doc="Unix socket by which a newly started server gets the listeners of the one that runs; empty: none.",
        file="socket",
        hot=False,
    )
    certs: str = option(
        "", doc="Folder with certificates (PEM) for hosts whose TLS the server ends; empty: none.", file="folder"
    )
    acme: str = option(
        "",
        doc="Directory URL of a certificate authority (RFC 8555) for hosts whose TLS the server ends; empty: none.",
        check=accept.authority,
        example="https://acme-v02.api.letsencrypt.org/directory",
    )
    acme_email: str = option("", doc="Address that the authority may write to.")
    acme_ca_file: str = option(
        "", doc="Root certificate (PEM) of the authority's own API; empty: the public authorities.", file="read"
    )
    public_http: int = option(
        0,
        doc="Port that visitors see for `http` when it is forwarded; 0: the listener's own.",
        check=accept.between(0, 65535),
    )
    public_https: int = option(
        0,
        doc="Port that visitors see for `https` when it is forwarded; 0: the listener's own.",
        check=accept.between(0, 65535),
    )
    data_public: str = option(
        "", doc="host:port that agents dial for data when it is forwarded.", check=accept.host_and_port
    )
    data_tls: Literal["auto", "always", "never"] = option(
        "auto", doc="TLS on data connections; auto: for plain HTTP visitors, since others bring their own."
    )
    data_rotate: int = option(
        0,
        doc="Seconds after which the data port is swapped for a new one; 0: never.",
        check=accept.between(0, 86400),
        unit="s",
    )
    unknown: Literal["close", "answer"] = option(
        "close", doc="What a visitor of an unknown or unserved host gets: nothing, or a 404 or TLS alert."
    )
    default_host: str = option("", doc="Host for visitors that name none.", check=accept.host_name)
    sni_dot: Literal["close", "strip"] = option("close", doc="What to do about a dot at the end of a TLS server name.")
    mode: Literal["raw", "guard", "proxy"] = option(
        "guard",
        doc="HTTP of hosts that name no mode. raw: routed by the first request; guard: a later request for "
        "another host is refused; proxy: every request is routed, its forwarding headers are ours.",
    )
    visitor: Literal["none", "full"] = option(
        "none", doc="full: a host's policy may pass visitors' addresses on to its agents."
    )
    proxy_from: tuple[str, ...] = option(
        (), doc="Networks whose connections have to begin with a PROXY header, v1 or v2.", check=accept.networks
    )
    allow: tuple[str, ...] = option((), doc="Networks that may visit; empty: all.", check=accept.networks)
    deny: tuple[str, ...] = option((), doc="Networks that may not, whatever `allow` says.", check=accept.networks)
    bus: Literal["local", "wamp"] = option(
        "local",
        doc="How several nodes find each other; wamp: by a router ([control.wamp]) and the database of database_file.",
        hot=False,
    )
    database_file: str = option(
        "",
        doc="File with the PostgreSQL connection string that all nodes of a `wamp` bus share.",
        file="secret",
        hot=False,
    )
    drain_s: int = option(
        30, doc="How long joined connections may go on at the end.", check=accept.between(0, 86400), unit="s"
    )
    access_log: str = option(
        "-",
        doc="One JSON line per connection: - with the log, a path, or empty for none.",
        file="write",
        hot=False,
    )
    host_label: bool = option(False, doc="Count by host in the metrics (at most 100 hosts).", hot=False)
    limits: ProxyLimits = section(ProxyLimits, doc="What no peer can make larger.")
    host: tuple[ProxyHostConfig, ...] = sections(ProxyHostConfig, doc="A host that is registered by this file.")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            yield "tls_cert_file", "tls_cert_file and tls_key_file need each other"
        if self.data_rotate and self.data_public:
            yield "data_rotate", "the port that data_public forwards to cannot be swapped"
        if self.workers > 1 and self.data_public:
            yield "data_public", "each of several workers has a data port of its own, and all have to be reachable"
        if self.workers > 1 and self.bus != "local":
            yield "workers", "several workers share one machine; a node of a cluster is one process"
        if self.takeover and self.bus != "local":
            yield "takeover", "two processes cannot be the same node of a cluster; drain it and start it again"
        if self.limits.per_source_sniffing > self.limits.sniffing:
            yield "limits.per_source_sniffing", "it cannot be more than sniffing"
        if self.limits.call_step > self.limits.call_time:
            yield "limits.call_step", "it cannot be longer than call_time"
        if self.limits.ban_shortest > self.limits.ban_longest:
            yield "limits.ban_shortest", "it cannot be longer than ban_longest"
        seen: set[str] = set()
        for index, host in enumerate(self.host):
            if host.host in seen:
                yield f"host[{index}].host", "this host is registered twice"
            if host.tls == "terminate" and not (self.certs or self.acme):
                yield f"host[{index}].tls", "there is no certificate to show: say where by certs or acme"
            if host.users and (host.mode or self.mode) != "proxy":
                yield f"host[{index}].users", "only mode proxy can ask for passwords"
            seen.add(host.host)


@frozen
class AgentHostConfig:
    """A host that this agent publishes."""

    host: str = option("", doc="Host name, as registered.", check=accept.host_pattern, example="app.example.org")
    secret_file: str = option("", doc="File with the host's secret.", file="secret", example="app.secret")
    targets: Mapping[int, str] = option(
        Factory(dict),
        doc="Local endpoint for each public port.",
        check=accept.targets,
        example='{ 80 = "tcp:127.0.0.1:8000" }',
    )
    weight: int = option(1, doc="Share among agents of the same priority.", check=accept.between(1, 1000))
    priority: int = option(0, doc="Lower numbers are asked first.", check=accept.between(0, 1000))
    max_conns: int = option(
        0, doc="Connections this agent takes at the same time; 0: any.", check=accept.between(0, 1e7)
    )
    pool: int = option(2, doc="Connections dialled ahead, at least; 0: none.", check=accept.between(0, 32))
    check: Literal["none", "tcp", "http"] = option("none", doc="How the target's health is watched.")
    check_path: str = option("/", doc="What `check = http` asks for.")
    proxy_protocol: Literal["none", "v1", "v2"] = option("none", doc="PROXY header sent to the target.")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if not self.secret_file:
            yield "secret_file", "the host's secret is needed"
        if (
            not self.check_path.startswith("/")
            or not self.check_path.isascii()
            or any(c <= " " for c in self.check_path)
        ):
            yield "check_path", "it begins with / and has neither spaces nor letters that a URL would encode"
        if not self.targets:
            yield "targets", 'at least one target is needed, for example { 80 = "tcp:127.0.0.1:8000" }'


@frozen
class AgentConfig:
    """The agent of the socket proxy, beside the web services that it publishes."""

    servers: tuple[str, ...] = option(
        ("ws://127.0.0.1:9081",),
        doc="Proxy servers: wss://HOST:PORT, with ?pin=KEYHASH if it has no public name; ws:// only on this machine.",
        check=accept.servers,
        example="wss://proxy.example.org:9081?pin=KEYHASH",
    )
    retry_min: float = option(
        0.5, doc="First wait before a lost server is dialled again.", check=_time, unit="s", hot=False
    )
    retry_max: float = option(30.0, doc="Longest such wait.", check=_time, unit="s", hot=False)
    via: str = option(
        "",
        doc="Dial everything through connect:HOST:PORT, socks5:HOST:PORT or tor:; empty: directly.",
        check=accept.via,
        hot=False,
    )
    data_networks: tuple[str, ...] = option(
        (),
        doc="Networks in which a server may have us dial back although it is itself reached farther away.",
        check=accept.networks,
        example="10.0.0.0/8",
        hot=False,
    )
    legacy: bool = option(False, doc="Speak to webgw servers: plain text, the secret itself is sent.", hot=False)
    drain_s: int = option(
        30, doc="How long joined connections may go on at the end.", check=accept.between(0, 86400), unit="s"
    )
    host: tuple[AgentHostConfig, ...] = sections(AgentHostConfig, doc="A host that this agent publishes.")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if self.retry_min > self.retry_max:
            yield "retry_min", "it cannot be longer than retry_max"
        for url in self.servers:
            parts = urlsplit(url)
            if parts.scheme == "ws" and not self.legacy and not is_loopback(parts.hostname or ""):
                yield "servers", f"{url!r} would speak plain text beyond this machine: write wss://"
        seen: set[str] = set()
        for index, host in enumerate(self.host):
            if host.host in seen:
                yield f"host[{index}].host", "this host is published twice"
            seen.add(host.host)
