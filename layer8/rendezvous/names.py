"""Which key a name stands for, as this user sees it: pin, petname, certificate, claim, in this order (docs/names.md).

A pin is for ever: a name that is pinned leads to its key or nowhere, whatever everybody else says, and what said
otherwise is kept as a red flag. What only claims say is `unverified`, however old it is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from enum import Enum
from hashlib import sha256
from ipaddress import IPv4Address
from typing import Any, Final

from attrs import define, field, frozen

from layer8.core.errors import ConfigError, Refused, RemoteProtocolError
from layer8.rendezvous.address import (
    Address,
    Named,
    WrongName,
    address_text,
    check_name,
    fits,
    parse_address,
    shown,
)
from layer8.rendezvous.claims import Certificate, State, Verdict

PETNAMES: Final = 10_000
PINS: Final = 10_000
FLAGS: Final = 1_000  # red flags that are kept, the oldest dropped
TEXT_MAX: Final = 2 << 20  # letters of a file of names: 10,000 lines are a tenth of it or so

_LOOPBACK: Final = 127 << 24 | 64 << 16
_LOOPBACKS: Final = (1 << 22) - 1

HEAD: Final = (
    "# Written by layer8. A name stands here for ever: remove its line only if you know why its key changed.\n"
)


class WrongKey(Refused):
    """A pinned name was answered by another key than before; nothing is ever sent to it."""


class Layer(Enum):
    """What a name was resolved by, the strongest first."""

    ADDRESS = "address"
    PIN = "pin"
    PETNAME = "petname"
    CERTIFICATE = "certificate"
    CLAIM = "claim"


@frozen
class Pin:
    """A name's key, and when it was pinned (seconds since 1970)."""

    key: bytes = field(repr=address_text)
    at: int


@frozen
class RedFlag:
    """Somebody else's key under a pinned name: which one, who said so, when last, and how often."""

    name: str
    key: bytes = field(repr=address_text)
    by: Layer
    at: int
    times: int = 1


@frozen
class Answer:
    """What a name stands for; `key` is None where there is nothing to open."""

    name: str
    key: bytes | None
    layer: Layer | None
    verdict: Verdict | None = None
    conflicts: tuple[tuple[Layer, bytes], ...] = ()  # other keys, and what says so
    why: str = ""  # one line, where there is no key

    @property
    def verified(self) -> bool:
        """Say whether it rests on more than what anybody may claim."""
        return self.layer is not None and self.layer is not Layer.CLAIM

    @property
    def shown(self) -> str:
        """Write the name with as much of the address as tells it from every other key that goes by it."""
        others = [key for _, key in self.conflicts]
        if self.verdict is not None:
            others += [one.key for one in self.verdict.candidates]
        return shown(self.name, self.key, others) if self.key is not None else self.name


@frozen
class Known:
    """A name that this user has given; `other` is what the petname says where the pin says something else."""

    name: str
    key: bytes = field(repr=address_text)
    layer: Layer
    at: int | None = None
    other: bytes | None = None

    @property
    def shown(self) -> str:
        """Write it with as much of the address as tells it from the other key."""
        return shown(self.name, self.key, () if self.other is None else (self.other,))


@define(eq=False)
class Book:
    """The pins and red flags of one user, as they stand in `pins.toml`."""

    pins: dict[str, Pin] = field(factory=dict)
    flags: dict[tuple[str, bytes], RedFlag] = field(factory=dict)

    @classmethod
    def parse(cls, text: str) -> Book:
        """Read the file; raises `ConfigError`."""
        told = _toml(text)
        book = cls()
        pins, flags = told.get("pin", {}), told.get("flag", [])
        if not isinstance(pins, dict) or not isinstance(flags, list):
            raise ConfigError("pins are tables [pin.NAME], red flags are [[flag]]")
        for name, row in pins.items():
            book.pins[_name(name)] = Pin(_key(name, _part(row, "key", str)), _part(row, "at", int))
        if len(book.pins) > PINS:
            raise ConfigError(f"over the limit PINS of {PINS}")
        for row in flags[-FLAGS:]:
            name = _name(_part(row, "name", str))
            key = _key(name, _part(row, "key", str))
            at, times = _part(row, "at", int), _part(row, "times", int)
            book.flags[name, key] = RedFlag(name, key, _layer(_part(row, "by", str)), at, times)
        return book

    def dump(self) -> str:
        """Write the file."""
        parts = [HEAD]
        for name in sorted(self.pins):
            pin = self.pins[name]
            parts.append(f'\n[pin.{name}]\nkey = "{address_text(pin.key)}"\nat = {pin.at}\n')
        for one in self.flags.values():
            parts.append(
                f'\n[[flag]]\nname = "{one.name}"\nkey = "{address_text(one.key)}"\nby = "{one.by.value}"\n'
                f"at = {one.at}\ntimes = {one.times}\n"
            )
        return "".join(parts)

    def pin(self, name: str, key: bytes, now: float) -> bool:
        """Pin a name, and say whether that is new; raises `WrongKey` where it is pinned to another key."""
        found = self.pins.get(check_name(name))
        if found is not None:
            if found.key != key:
                raise WrongKey(f"{name} is pinned to {shown(name, found.key, (key,))}, not to {shown(name, key)}")
            return False
        if len(self.pins) >= PINS:
            raise Refused(f"over the limit PINS of {PINS}: take a pin away first")
        self.pins[name] = Pin(key, int(now))
        return True

    def unpin(self, name: str) -> bool:
        """Take a pin away, and say whether there was one."""
        return self.pins.pop(name, None) is not None

    def meet(self, name: str, key: bytes, by: Layer, now: float) -> None:
        """Hold a key that goes by a name against its pin, before anything is sent; raises `WrongKey` and keeps a flag.

        Names that are not pinned may have any key.
        """
        pin = self.pins.get(name)
        if pin is None or pin.key == key:
            return
        before = self.flags.pop((name, key), None)
        times = before.times + 1 if before is not None else 1
        self.flags[name, key] = RedFlag(name, key, by, int(now), times)
        while len(self.flags) > FLAGS:
            del self.flags[next(iter(self.flags))]
        raise WrongKey(
            f"{shown(name, pin.key, (key,))} is pinned, and was answered by {shown(name, key, (pin.key,))}: not opened"
        )


def parse_petnames(text: str) -> dict[str, bytes]:
    """Read `petnames.toml`, lines of `name = "ADDRESS"`; raises `ConfigError`."""
    told = _toml(text)
    if len(told) > PETNAMES:
        raise ConfigError(f"over the limit PETNAMES of {PETNAMES}")
    return {_name(name): _key(name, value) for name, value in told.items()}


def add_petname(text: str, name: str, key: bytes) -> str:
    """Give the text of `petnames.toml` with one more name, everything else as it was.

    Raises `ConfigError` where the text is wrong, `WrongKey` where the name is there with another key.
    """
    known = parse_petnames(text)
    found = known.get(check_name(name))
    if found is not None:
        if found != key:
            raise WrongKey(f"the petname {name} is {shown(name, found, (key,))}, not {shown(name, key, (found,))}")
        return text
    if len(known) >= PETNAMES:
        raise ConfigError(f"over the limit PETNAMES of {PETNAMES}")
    text = text if not text or text.endswith("\n") else text + "\n"
    return f'{text}{name} = "{address_text(key)}"\n'


def loopback(names: Mapping[str, bytes]) -> dict[str, str]:
    """Give each name an address of 127.64.0.0/10 of its own, the same one every time, for files of hosts."""
    taken: dict[int, str] = {}
    for name in sorted(names):
        number = int.from_bytes(sha256(name.encode() + names[name]).digest()[:3], "big") & _LOOPBACKS
        while number in taken or not 0 < number & 0xFF < 0xFF:
            number = (number + 1) & _LOOPBACKS
        taken[number] = name
    return {name: str(IPv4Address(_LOOPBACK | number)) for number, name in taken.items()}


@define(eq=False)
class Names:
    """Everything that this user knows by itself, and the order in which it counts."""

    book: Book = field(factory=Book)
    petnames: Mapping[str, bytes] = field(factory=dict)
    signers: frozenset[bytes] = frozenset()

    def known(self) -> list[Known]:
        """List the names that this user has given, in order."""
        found = []
        for name in sorted({*self.book.pins, *self.petnames}):
            pin, petname = self.book.pins.get(name), self.petnames.get(name)
            if pin is None:
                assert petname is not None
                found.append(Known(name, petname, Layer.PETNAME))
            else:
                found.append(Known(name, pin.key, Layer.PIN, pin.at, petname if petname != pin.key else None))
        return found

    def resolve(
        self,
        asked: Address | Named,
        now: float,
        verdict: Verdict | None = None,
        certificates: Iterable[Certificate] = (),
    ) -> Answer:
        """Say which key a host stands for; `verdict` and `certificates` are what the network told of the name.

        Raises `WrongKey` where the host's suffix is not the pin's. Other keys of a pinned name are kept as red flags.
        """
        if isinstance(asked, Address):
            return Answer(asked.text, asked.key, Layer.ADDRESS)
        name, suffix = asked.name, asked.suffix
        found = self._told(name, now, certificates)
        if verdict is not None and verdict.winner is not None:
            found.append((Layer.CLAIM, verdict.winner.key))
        pin = self.book.pins.get(name)
        if pin is not None:
            return self._pinned(asked, pin, found, verdict, now)
        fitting = [(layer, key) for layer, key in found if fits(key, suffix)]
        if suffix and not fitting and verdict is not None:
            claimed = [one.key for one in verdict.candidates if fits(one.key, suffix)]
            if len(claimed) > 1:
                return Answer(
                    name, None, None, verdict, why=f"{name}~{suffix} fits {len(claimed)} keys: write more of it"
                )
            fitting = [(Layer.CLAIM, key) for key in claimed]
        if not fitting:
            return Answer(name, None, None, verdict, tuple(found), _why(asked, verdict))
        layer, key = fitting[0]
        rivals = {other for best, other in fitting if best is layer}
        if len(rivals) > 1:
            why = f"{name} is certified for {len(rivals)} keys"
            return Answer(name, None, None, verdict, tuple(fitting), why)
        return Answer(name, key, layer, verdict, tuple((by, other) for by, other in found if other != key))

    def _told(self, name: str, now: float, certificates: Iterable[Certificate]) -> list[tuple[Layer, bytes]]:
        found = [(Layer.PETNAME, self.petnames[name])] if name in self.petnames else []
        keys = {
            one.key for one in certificates if one.name == name and one.signer in self.signers and one.expires > now
        }
        return found + [(Layer.CERTIFICATE, key) for key in sorted(keys)]

    def _pinned(
        self, asked: Named, pin: Pin, found: Iterable[tuple[Layer, bytes]], verdict: Verdict | None, now: float
    ) -> Answer:
        conflicts = tuple((layer, key) for layer, key in found if key != pin.key)
        for layer, key in conflicts:
            try:
                self.book.meet(asked.name, key, layer, now)
            except WrongKey:
                continue
        if not fits(pin.key, asked.suffix):
            raise WrongKey(f"{shown(asked.name, pin.key)} is pinned; {asked.name}~{asked.suffix} is another key")
        return Answer(asked.name, pin.key, Layer.PIN, verdict, conflicts)


def _why(asked: Named, verdict: Verdict | None) -> str:
    name = f"{asked.name}~{asked.suffix}" if asked.suffix else asked.name
    if verdict is None or verdict.state is State.UNKNOWN:
        return f"nobody claims the name {asked.name}"
    if verdict.state is State.AMBIGUOUS:
        return f"{name} is claimed by several keys of like standing: choose one by its suffix"
    return f"no claim of {name} has been seen by enough nodes: choose one by its suffix"


def _toml(text: str) -> dict[str, Any]:
    if len(text) > TEXT_MAX:
        raise ConfigError(f"over the limit TEXT_MAX of {TEXT_MAX}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a file of names that is not TOML: {error}") from None


def _name(text: str) -> str:
    try:
        return check_name(text)
    except WrongName as error:
        raise ConfigError(f"{text!r}: {error}") from None


def _key(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise ConfigError(f'{name}: write {name} = "ADDRESS"')
    try:
        return parse_address(text)
    except RemoteProtocolError as error:
        raise ConfigError(f"{name}: {error}") from None


def _layer(text: str) -> Layer:
    try:
        return Layer(text)
    except ValueError:
        raise ConfigError(f"a red flag by {text!r}, which is no layer") from None


def _part(row: object, word: str, kind: type) -> Any:
    value = row.get(word) if isinstance(row, dict) else None
    if type(value) is not kind:
        raise ConfigError(f"a pin or red flag without {word}")
    return value
