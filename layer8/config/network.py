"""The sections of the anonymous network: relay, tracker, DHT and SOCKS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from attrs import Factory, frozen

from layer8.config import accept
from layer8.config.endpoint import Endpoint, client, server, split
from layer8.config.field import Check, option
from layer8.core.address import is_address
from layer8.core.errors import ConfigError, Layer8Error
from layer8.crypto.keys import parse_id
from layer8.relay.exit import LanTargets, Policy
from layer8.relay.route import Internet, parse_way

PEERS = 256  # entries of `peers`
ADVERTISED = 8  # addresses of one descriptor
TEST_NAMES = ("demo", "test")


def is_test_network(name: str) -> bool:
    """Say whether a network is for tests: there is no proof of work, and loopback may be an exit's target."""
    return name.startswith(TEST_NAMES)


def parse_peer(text: str) -> tuple[bytes, str]:
    """Read `ID@ENDPOINT`; raises ConfigError."""
    ident, found, endpoint = text.partition("@")
    if not found:
        raise ConfigError("it has to be ID@ENDPOINT, for example ID@tcp:192.0.2.1:9000")
    try:
        node = parse_id(ident)
    except Layer8Error as error:
        raise ConfigError(str(error)) from None
    dialled(endpoint)
    return node, endpoint


def dialled(text: str) -> Endpoint:
    """Read the address of a peer, `tcp:HOST:PORT` with `:link=noise` or not; raises ConfigError."""
    plain = text.removesuffix(":link=noise").removesuffix(":link=tls")
    found = client(plain)
    if found.kind != "tcp":
        raise ConfigError("only tcp: is a way to a peer")
    return found


def listened(text: str) -> Endpoint:
    """Read where links are taken; raises ConfigError."""
    found = server(text.removesuffix(":link=noise").removesuffix(":link=tls"))
    if found.kind not in ("tcp", "tcp6", "systemd"):
        raise ConfigError("links are taken on tcp:, tcp6: and systemd: only; they bring their own encryption")
    return found


def _each(reader: Callable[[str], object]) -> Check:
    def check(value: tuple[str, ...]) -> str | None:
        for text in value:
            try:
                reader(text)
            except Layer8Error as error:
                return f"{text!r}: {error}"
        return None

    return check


def _exit(value: tuple[str, ...]) -> str | None:
    try:
        Policy.parse(value)
    except ConfigError as error:
        return str(error)
    return None


def _lan_targets(value: Mapping[str, str]) -> str | None:
    try:
        LanTargets.parse(value)
    except ConfigError as error:
        return str(error)
    return None


def _way(value: str) -> str | None:
    try:
        target = parse_way(value)[1] if value else Internet()
    except ConfigError as error:
        return str(error)
    return None if isinstance(target, Internet) else "the way of a SOCKS port ends in internet"


def _udp(value: str) -> str | None:
    try:
        positional, _ = split(value)
    except ConfigError as error:
        return str(error)
    return None if positional[:1] == ["udp"] else "it has to be udp:PORT or udp:PORT:interface=ADDRESS"


def _udp_peers(value: tuple[str, ...]) -> str | None:
    for text in value:
        host, _, port = text.rpartition(":")
        if not is_address(host.strip("[]")) or not port.isdigit() or not 0 < int(port) < 1 << 16:
            return f"{text!r}: it has to be ADDRESS:PORT, IPv6 in brackets"
    return None


def _signers(value: tuple[str, ...]) -> str | None:
    return "at most 16" if len(value) > 16 else _each(parse_id)(value)


@frozen
class RelayConfig:
    """Links with other nodes, and what this node does for circuits."""

    listen: tuple[str, ...] = option(
        ("tcp:9000:interface=127.0.0.1",),
        doc="Where links are taken; empty: nowhere. With :link=noise Noise instead of TLS.",
        check=_each(listened),
        hot=False,
    )
    advertise: tuple[str, ...] = option(
        (),
        doc="Addresses by which others reach this node, written into its descriptor.",
        check=_each(dialled),
        example="tcp:192.0.2.1:9000",
    )
    relay: bool = option(True, doc="Carry other nodes' circuits; without it no descriptor is published.", hot=False)
    exit: tuple[str, ...] = option(
        ("off",),
        doc="What circuits may reach outside the network: off, reduced (80, 443 and a list of hosts), or rules "
        "`accept|reject HOST|CIDR|*:PORT|LO-HI|*`, the first that matches.",
        check=_exit,
        example="reduced",
    )
    allow_single_hop: bool = option(False, doc="Let clients that are linked directly use the exit: an open proxy.")
    allow_loopback: bool = option(
        False, doc="Let the exit reach this machine itself; only in a network whose name begins with demo or test."
    )
    delegate: bool = option(False, doc="Extend circuits through peers of ours when their client asks for it.")
    lan_targets: Mapping[str, str] = option(
        Factory(dict),
        doc="Node id to HOST:PORT,HOST:PORT that this node, and nobody else, reaches from here.",
        check=_lan_targets,
    )
    lan: bool = option(
        False, doc="Find peers on the local network by a beacon, and be found there by everybody.", hot=False
    )
    link: Literal["tls", "noise"] = option("tls", doc="How links are secured where `listen` does not say.")
    network: str = option("main", doc="Nodes of networks with different names never talk to each other.", hot=False)
    hops: int = option(3, doc="Hops of a circuit.", check=accept.between(1, 8))
    guards: int = option(2, doc="First hops that are kept for months.", check=accept.between(1, 16), hot=False)
    links: int = option(12, doc="Links that a relay keeps.", check=accept.between(1, 2048))
    credit: bool = option(True, doc="Serve those first who relay for us.")
    peer_hub: bool = option(False, doc="Take four times as many links, and introduce peers to each other.")
    peers: tuple[str, ...] = option((), doc="Nodes that are known by hand: ID@ENDPOINT.", check=_each(parse_peer))
    trusted: tuple[str, ...] = option((), doc="Ids of nodes that need no vetting.", check=_each(parse_id))
    trackers: tuple[str, ...] = option((), doc="Trackers that are asked: ID@ENDPOINT.", check=_each(parse_peer))
    snapshot_keys: tuple[str, ...] = option(
        (), doc="Keys whose holders sign lists of relays; empty: no such list is used.", check=_each(parse_id)
    )
    snapshot_file: str = option(
        "", doc="Such a list, relative to the state folder; it is read again when it changes.", example="relays.signed"
    )
    snapshot_need: int = option(1, doc="How many of snapshot_keys have to agree.", check=accept.between(1, 64))
    drain_s: int = option(30, doc="How long circuits may go on at the end.", check=accept.between(0, 86400), unit="s")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if self.lan and not self.relay:
            yield "lan", "a node that relays nothing says to nobody that it is here"
        if self.allow_loopback and not is_test_network(self.network):
            yield "allow_loopback", "it works only in a network whose name begins with demo or test"
        if len(self.peers) > PEERS:
            yield "peers", f"at most {PEERS}"
        if len(self.advertise) > ADVERTISED:
            yield "advertise", f"a descriptor has at most {ADVERTISED} addresses"
        if self.snapshot_keys and not self.snapshot_file:
            yield "snapshot_keys", "they need a snapshot_file"
        if self.snapshot_keys and self.snapshot_need > len(self.snapshot_keys):
            yield "snapshot_need", "more than there are snapshot_keys"


@frozen
class TrackerConfig:
    """Lists of relays, for those who ask by a circuit."""

    enabled: bool = option(False, doc="Answer as a tracker (`twistd layer8-tracker` always does).", hot=False)
    ask: int = option(
        3, doc="How many trackers are asked, and their answers merged.", check=accept.between(1, 16), hot=False
    )


@frozen
class DhtConfig:
    """A part of the table of signed items, kept for those who ask by circuits."""

    enabled: bool = option(False, doc="Keep a part of the DHT (`twistd layer8-dht` always does).", hot=False)
    listen: str = option(
        "udp:9000:interface=127.0.0.1",
        doc="Where nodes of the DHT reach this one. Others look for it at the port number of its links.",
        check=_udp,
        hot=False,
    )
    open: bool = option(
        False, doc="Know nodes of other networks and programs too, which prove no key; for tests.", hot=False
    )
    bootstrap: tuple[str, ...] = option(
        (),
        doc="Nodes that are asked first, ADDRESS:PORT; empty: the peers of this node.",
        check=_udp_peers,
        example="192.0.2.1:9000",
        hot=False,
    )
    read_only: bool = option(
        False,
        doc="Ask, and be listed nowhere: for a node that others cannot reach by UDP. After a while it notices itself.",
        hot=False,
    )


@frozen
class RendezvousConfig:
    """What a node does for hidden services, other nodes' and its own."""

    enabled: bool = option(
        True,
        doc="Be an access point and a rendezvous hop for others, where circuits are carried "
        "(`twistd layer8-rendezvous` always is).",
        hot=False,
    )
    points: int = option(3, doc="Access points of each service of ours.", check=accept.between(1, 5), hot=False)
    max_effort: int = option(
        50_000_000,
        doc="Work that knocking at a service of ours may cost, and that we do for one knock at another's; "
        "the usual value is about ten seconds.",
        check=accept.between(0, 2**32 - 1),
        hot=False,
    )


@frozen
class NamesConfig:
    """Names of hidden services."""

    enabled: bool = option(
        False,
        doc="Knock at services that claim names, once a day, and say in the DHT what was met; keep the sets seen.",
        hot=False,
    )
    petnames: str = option(
        "petnames.toml", doc='Your own names, lines of NAME = "ADDRESS"; relative to the state folder.', hot=False
    )
    name_signers: tuple[str, ...] = option(
        (), doc="Ids of those whose certificates of names count; at most 16.", check=_signers, example="ID", hot=False
    )


@frozen
class SocksConfig:
    """The SOCKS5 port for programs of this machine."""

    listen: tuple[str, ...] = option(
        ("tcp:1080:interface=127.0.0.1",),
        doc="Endpoints of the SOCKS5 server; empty: none. It is for this machine only, unless a password is set.",
        check=accept.listens("tcp", "tcp6", "unix", "systemd"),
    )
    isolate: Literal["user", "dest", "stream"] = option(
        "user", doc="What may not share a circuit: users, also destinations, or any two connections."
    )
    password: str = option("", doc="Wanted from every program, with any user name; empty: none.", secret=True)
    path: str = option(
        "",
        doc="The way through the network, rand>rand>rand>internet; empty: by [relay] hops.",
        check=_way,
        example="rand>rand>rand>internet",
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Give keys that do not go together, with the reason."""
        if not self.password and not all(server(text).loopback for text in self.listen):
            yield "listen", "beyond this machine a password is needed"
