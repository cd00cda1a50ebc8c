"""What an exit does for strangers: rules of its own, a guard that no rule opens, and an account for every circuit.

```
 host, port --Policy.may--> look up once --Guard, every answer--> Policy.allows --Account--> dial the checked address
                                            LanTargets: what one identity may reach all the same
```
Everything here is a choice: addresses and monotonic seconds come in, answers go out.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from layer8.core.address import HostPort, Networks, Scope, canonical, is_address, scope, special, unwrapped
from layer8.core.errors import ConfigError, Layer8Error, LimitExceeded, RemoteProtocolError
from layer8.crypto.keys import parse_id
from layer8.relay.limits import (
    CIRC_BYTES,
    EXIT_CONNECTS,
    EXIT_CONNECTS_BURST,
    EXIT_OPEN,
    EXIT_SAME_DEST,
    UDP_DESTS,
    UDP_IDLE,
    UDP_UNANSWERED,
)
from layer8.relay.wire import Reason

EXIT_TIME: Final = 15.0  # seconds for a look-up and all dials of a stream; who asked waits T_STREAM, which is longer
SUMMARY: Final = 256  # bytes of a policy in a descriptor
RULES: Final = 256  # rules of a policy
NAME: Final = 253  # letters of a host name

REDUCED: Final = (
    "accept *:80",
    "accept *:443",
    *(f"accept {host}:22" for host in ("github.com", "gitlab.com", "codeberg.org", "salsa.debian.org")),
    *(f"accept {host}:53" for host in ("9.9.9.9", "1.1.1.1", "8.8.8.8", "[2620:fe::fe]")),
    *(f"accept {host}:853" for host in ("9.9.9.9", "1.1.1.1", "8.8.8.8", "[2620:fe::fe]")),
)
"""`exit = "reduced"`: the web anywhere; code hosts by SSH and public resolvers besides."""
NOT_RESOLVED: Final = frozenset(("alt", "internal", "invalid", "local", "localhost", "onion"))
"""Last labels of names that DNS does not know, or that mean the exit's own network (RFC 6761, 6762, 7686, 9476)."""

_FORM = "write accept|reject HOST|CIDR|*:PORT|LO-HI|*"
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_NUMERIC = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\Z")  # getaddrinfo takes 127.1 and 0x7f000001 for addresses
_NUMBER = re.compile(r"[1-9][0-9]{0,4}\Z")
_LAST = 65535

_Range = tuple[int, int]

LOOPBACK: Final = "127.0.0.0/8"


class NoWay(Layer8Error):
    """A stream cannot have what it asked for; `reason` is what RELAY_DISCONNECT says."""

    def __init__(self, reason: Reason, text: str) -> None:
        """Keep the reason; the text names no address, since it may be logged."""
        super().__init__(text)
        self.reason = reason


def target(host: str) -> str:
    """Give the one text of a host that somebody asked for: an address, or a name in lower case with no last dot.

    Raises `NoWay` for what is neither, numbers that only old libraries read as addresses among them.
    """
    if is_address(host) and "%" not in host:
        return canonical(host)
    name = host.lower().removesuffix(".")
    if len(name) > NAME or not _NAME.match(name) or _NUMERIC.match(name):
        raise NoWay(Reason.RESOLVE, "that is no host name")
    return name


def resolvable(name: str) -> bool:
    """Say whether a name is one of the DNS that all know: not one of the exit's own network, nor of another system."""
    _, dot, last = name.rpartition(".")
    return bool(dot) and last not in NOT_RESOLVED and not name.endswith(".home.arpa")


@frozen
class Ports:
    """Ports as ascending ranges that do not touch: what a descriptor says of an exit."""

    ranges: tuple[_Range, ...] = ()

    def allows_port(self, port: int) -> bool:
        """Tell whether a port is one of them."""
        return any(low <= port <= high for low, high in self.ranges)

    def encode(self) -> bytes:
        """Write them as `80,443,8000-8999`, empty for none, in at most SUMMARY bytes; the last ones are left out."""
        kept = b""
        for low, high in self.ranges:
            word = str(low) if low == high else f"{low}-{high}"
            longer = kept + b"," * bool(kept) + word.encode()
            if len(longer) > SUMMARY:
                break
            kept = longer
        return kept


def parse_summary(data: bytes) -> Ports:
    """Read what `Ports.encode` writes, in its one form; raises `RemoteProtocolError`."""
    if len(data) > SUMMARY:
        raise LimitExceeded("SUMMARY", SUMMARY)
    ranges: list[_Range] = []
    for word in data.decode("latin-1").split(",") if data else ():
        try:
            low, high = _ports(word)
        except ValueError as error:
            raise RemoteProtocolError("an exit summary holds ports and ranges of them") from error
        if "-" in word and low == high:
            raise RemoteProtocolError("an exit summary has a range of one port")
        if ranges and low <= ranges[-1][1] + 1:
            raise RemoteProtocolError("an exit summary is ascending, and its ranges do not touch")
        ranges.append((low, high))
    return Ports(tuple(ranges))


@frozen
class Rule:
    """One line of a policy: `host` is `*`, a name, or the text of `networks`."""

    accept: bool
    host: str
    networks: Networks | None = field(eq=False)
    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read one; raises `ConfigError` that says what is wrong, without naming the rule."""
        words = text.split()
        if len(words) != 2 or words[0] not in ("accept", "reject"):
            raise ConfigError(_FORM)
        host, colon, ports = words[1].rpartition(":")
        if not colon or not host:
            raise ConfigError(_FORM)
        try:
            low, high = (1, _LAST) if ports == "*" else _ports(ports)
        except ValueError:
            raise ConfigError(f"{ports!r} is no port and no range of ports from 1 to {_LAST}") from None
        name, networks = _host(host)
        return cls(words[0] == "accept", name, networks, low, high)

    def concerns(self, host: str, address: str, port: int) -> bool:
        """Tell whether it is about this target: `host` as it was asked for, `address` where it leads."""
        if not self.low <= port <= self.high:
            return False
        if self.networks is not None:
            return address in self.networks
        return self.host in ("*", host)

    @property
    def general(self) -> bool:
        """Tell whether it is about every host, at least with IPv4."""
        return self.host in ("*", "0.0.0.0/0")


@frozen
class Policy:
    """Where an exit lets strangers go: the first rule that fits decides, and what none fits is refused."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, setting: str | Sequence[str]) -> Policy:
        """Read `off`, `reduced`, as a text or alone in a list, or a list of rules.

        Raises `ConfigError` that names the bad rule.
        """
        word = setting if isinstance(setting, str) else setting[0] if len(setting) == 1 else ""
        if word in ("off", "reduced"):
            setting = REDUCED if word == "reduced" else ()
        elif isinstance(setting, str):
            raise ConfigError(f'{setting!r}: write "off", "reduced" or a list of rules')
        if len(setting) > RULES:
            raise ConfigError(f"more than {RULES} rules")
        rules = []
        for number, text in enumerate(setting, 1):
            try:
                rules.append(Rule.parse(text))
            except ConfigError as error:
                raise ConfigError(f"rule {number}, {text!r}: {error}") from None
        return cls(tuple(rules))

    def __bool__(self) -> bool:
        """Tell whether anything at all is let through."""
        return any(rule.accept for rule in self.rules)

    def allows(self, host: str, address: str, port: int) -> bool:
        """Decide about `host`, which leads to `address`, both in their one text."""
        return next((rule.accept for rule in self.rules if rule.concerns(host, address, port)), False)

    def may(self, host: str, port: int) -> bool:
        """Tell whether any answer for `host` could be allowed: a name that has no chance is not looked up."""
        if is_address(host):
            return self.allows(host, host, port)
        for rule in self.rules:
            if rule.networks is not None:
                if rule.accept and rule.low <= port <= rule.high:
                    return True
            elif rule.concerns(host, "", port):
                return rule.accept
        return False

    def ports(self, *, loopback: bool = False) -> Ports:
        """Give the ports that are open for hosts in general: rules about single hosts and networks do not count.

        With `loopback` those for 127.0.0.0/8 do: in a network of tests there is nothing else.
        """
        left: list[_Range] = [(1, _LAST)]
        taken: list[_Range] = []
        for rule in self.rules:
            if rule.general or (loopback and rule.accept and rule.host == LOOPBACK):
                if rule.accept:
                    taken += [
                        (max(a, rule.low), min(b, rule.high)) for a, b in left if a <= rule.high and b >= rule.low
                    ]
                left = [
                    (low, high)
                    for a, b in left
                    for low, high in ((a, min(b, rule.low - 1)), (max(a, rule.high + 1), b))
                    if low <= high
                ]
        return Ports(_joined(taken))

    def allows_port(self, port: int) -> bool:
        """Tell whether a port is open for hosts in general."""
        return self.ports().allows_port(port)

    def summary(self, *, loopback: bool = False) -> bytes:
        """Write for a descriptor what `parse_summary` reads: `ports`, in at most SUMMARY bytes."""
        return self.ports(loopback=loopback).encode()


@frozen
class Guard:
    """What no rule opens: networks that are not the internet, and this machine.

    `own` holds this machine's addresses, `ports` those it listens at. Both are asked each time, so they may change.
    """

    own: Container[str]
    ports: Container[int]
    allow_loopback: bool = False

    def refusal(self, address: str, port: int) -> str | None:
        """Say why strangers may not be led to an address, None where they may; `target` has made its text."""
        if not is_address(address):
            return "no address"
        if not 0 < port <= _LAST:
            return "no port"
        plain, inner = canonical(address), unwrapped(address)
        if self.listens(plain, port):
            return "own listening port"
        if self.allow_loopback and special(plain) == "loopback" and plain == inner:
            return None
        return "own address" if plain in self.own or inner in self.own else special(plain)

    def listens(self, address: str, port: int) -> bool:
        """Tell whether an address and a port are where this program itself listens, which is open to nobody at all."""
        if port not in self.ports:
            return False
        return scope(address) is Scope.MACHINE or address in self.own or unwrapped(address) in self.own


@frozen
class LanTargets:
    """What single identities may reach besides, past guard and rules: each has its own list, and nobody else's."""

    _rows: Mapping[bytes, frozenset[HostPort]] = field(factory=dict)

    @classmethod
    def parse(cls, table: Mapping[str, str | Iterable[str]]) -> LanTargets:
        """Read node ids with `host:port` in a list, or in a text with commas; raises `ConfigError` that names it."""
        rows: dict[bytes, frozenset[HostPort]] = {}
        for identity, texts in table.items():
            try:
                node = parse_id(identity)
            except RemoteProtocolError as error:
                raise ConfigError(f"{identity!r}: {error}") from None
            found = set()
            for text in texts.split(",") if isinstance(texts, str) else texts:
                try:
                    where = HostPort.parse(text.strip())
                    found.add(HostPort(target(where.host), where.port))
                except (ConfigError, NoWay) as error:
                    raise ConfigError(f"{identity}: {text!r}: {error}") from None
            rows[node] = frozenset(found)
        return cls(rows)

    def __contains__(self, identity: object) -> bool:
        """Tell whether somebody has a list at all."""
        return bool(self._rows.get(identity)) if isinstance(identity, bytes) else False

    def opens(self, identity: bytes | None, host: str, port: int) -> bool:
        """Tell whether `identity`, None for somebody nameless, may have a host in its one text."""
        return identity is not None and HostPort(host, port) in self._rows.get(identity, ())


@define(eq=False)
class _Far:
    """A UDP destination: whether it has answered, how much was sent before it did, and when either spoke last."""

    at: float
    heard: bool = False
    sent: int = 0


_Where = tuple[int, str, int]  # stream, address, port


@define(eq=False)
class Sockets:
    """What all circuits together have open at an exit: without it one of them could leave the links no descriptors."""

    most: int = EXIT_OPEN
    open: int = field(default=0, init=False)

    def take(self) -> None:
        """Count one more; raises `LimitExceeded`."""
        if self.open >= self.most:
            raise LimitExceeded("EXIT_OPEN", self.most)
        self.open += 1

    def give(self, count: int = 1) -> None:
        """Count so many less."""
        self.open -= count


@define(eq=False)
class Account:
    """What one circuit has had of an exit; times are monotonic seconds."""

    _at: float
    sockets: Sockets = field(factory=Sockets)
    _tokens: float = field(default=float(EXIT_CONNECTS_BURST), init=False)
    _open: dict[str, int] = field(factory=dict, init=False)
    _far: dict[_Where, _Far] = field(factory=dict, init=False)
    moved: int = field(default=0, init=False)  # bytes

    def begin(self, now: float) -> None:
        """Count a stream, or a new UDP destination, before anything is looked up for it; raises `LimitExceeded`."""
        if now > self._at:
            self._tokens = min(float(EXIT_CONNECTS_BURST), self._tokens + (now - self._at) * EXIT_CONNECTS)
            self._at = now
        if self._tokens < 1:
            raise LimitExceeded("EXIT_CONNECTS", int(EXIT_CONNECTS))
        self._tokens -= 1

    def connect(self, address: str) -> None:
        """Count a connection that is about to be dialled; raises `LimitExceeded`."""
        if self._open.get(address, 0) >= EXIT_SAME_DEST:
            raise LimitExceeded("EXIT_SAME_DEST", EXIT_SAME_DEST)
        self.sockets.take()
        self._open[address] = self._open.get(address, 0) + 1

    def closed(self, address: str) -> None:
        """Forget a connection that is over, or was never made."""
        self.sockets.give()
        left = self._open[address] - 1
        if left:
            self._open[address] = left
        else:
            del self._open[address]

    def move(self, count: int) -> bool:
        """Count bytes, in either direction; False when it has been too many."""
        self.moved += count
        return self.moved <= CIRC_BYTES

    def knows(self, stream: int, address: str, port: int, now: float) -> bool:
        """Tell whether a UDP stream has a destination already."""
        far = self._far.get((stream, address, port))
        return far is not None and now - far.at <= UDP_IDLE

    def ask(self, stream: int, address: str, port: int, now: float) -> None:
        """Count a datagram that is about to be sent; raises `LimitExceeded`, and then it is not."""
        where = stream, address, port
        far = self._far.get(where)
        if far is None or now - far.at > UDP_IDLE:
            self._far = {key: one for key, one in self._far.items() if now - one.at <= UDP_IDLE}
            if len(self._far) >= UDP_DESTS:
                raise LimitExceeded("UDP_DESTS", UDP_DESTS)
            self.begin(now)
            far = self._far[where] = _Far(now)
        if not far.heard:
            if far.sent >= UDP_UNANSWERED:
                raise LimitExceeded("UDP_UNANSWERED", UDP_UNANSWERED)
            far.sent += 1
        far.at = now

    def answer(self, stream: int, address: str, port: int, now: float) -> bool:
        """Tell whether a datagram comes from where a stream has sent one to, and note that it did."""
        far = self._far.get((stream, address, port))
        if far is None or now - far.at > UDP_IDLE:
            return False
        far.heard, far.at = True, now
        return True

    def forget(self, stream: int) -> None:
        """Forget the destinations of a UDP stream that is over."""
        self._far = {key: one for key, one in self._far.items() if key[0] != stream}


def _ports(text: str) -> _Range:
    """Read a port or a range; raises `ValueError`."""
    low, dash, high = text.partition("-")
    if not _NUMBER.match(low) or (dash and not _NUMBER.match(high)):
        raise ValueError("no port")
    found = int(low), int(high) if dash else int(low)
    if not found[0] <= found[1] <= _LAST:
        raise ValueError("no port")
    return found


def _host(text: str) -> tuple[str, Networks | None]:
    """Read the host of a rule; raises `ConfigError`."""
    if text == "*":
        return text, None
    bare = text
    if text.startswith("[") and text.endswith("]"):
        bare = text[1:-1]
        if ":" not in bare:
            raise ConfigError("brackets hold IPv6")
    elif ":" in text:
        raise ConfigError("write IPv6 in brackets")
    if "/" in bare or is_address(bare):
        return bare, Networks.parse((bare,))
    try:
        return target(bare), None
    except NoWay:
        raise ConfigError(f"{text!r} is no host name, no address and no network") from None


def _joined(ranges: Iterable[_Range]) -> tuple[_Range, ...]:
    """Sort ranges that do not overlap, and join those that touch."""
    joined: list[_Range] = []
    for low, high in sorted(ranges):
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = joined[-1][0], high
        else:
            joined.append((low, high))
    return tuple(joined)
