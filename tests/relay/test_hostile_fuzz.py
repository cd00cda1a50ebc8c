"""Neighbours, last hops and clients that say anything at any time: nothing but typed errors, and nothing is left."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import warnings
from collections.abc import Callable
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from layer8.config.network import dialled
from layer8.core import bencode
from layer8.core.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from layer8.core.network import Network as Name
from layer8.core.place import place
from layer8.crypto import descriptor, vouch
from layer8.crypto.descriptor import Descriptor, unpack
from layer8.crypto.keys import NodeKey
from layer8.crypto.ntor import Terms, client_begin
from layer8.crypto.onion import client_forward, relay_send
from layer8.relay import exit as leaving
from layer8.relay import pex
from layer8.relay.login import Logins
from layer8.relay.origin import OFFER
from layer8.relay.wire import (
    L8_NTOR,
    Address,
    Cell,
    Command,
    Extend,
    Hello,
    Open,
    Opened,
    Proto,
    Punch,
    Reason,
    Text,
    cell,
    datagram,
    disconnect,
    extended,
    handshake_body,
    message,
    read_connect,
    read_datagram,
    read_disconnect,
    read_extended,
    read_handshake,
)
from layer8.socks import wire as socks
from layer8.testing.network import Echo, Heard, Network, Node
from layer8.tracker.wire import GetRelays, Unpublish

NETS = 200
TRIES = 400
NOW = 1_800_000_000
TARGET = Open(Proto.TCP, "echo.test", 7)


class Slow(Echo):
    """A service that takes nothing more once it has heard something."""

    def data(self, pieces: list[bytes]) -> None:
        self.stream.pause()
        super().data(pieces)


def spoilt(chance: Random, data: bytes) -> bytes:
    """Change, take out, put in or repeat some of it."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(made)) if made else 0
        match chance.randrange(4):
            case 0:
                made[at : at + 1] = chance.randbytes(1)
            case 1:
                del made[at : at + chance.randrange(1, 8)]
            case 2:
                made[at:at] = chance.randbytes(chance.randrange(1, 8))
            case _:
                other = chance.randrange(len(made) + 1)
                made[at : at + 4] = made[other : other + 4]
    return bytes(made)


class ParserTests(SynchronousTestCase):
    def test_every_reader(self) -> None:
        chance = Random(1)
        key = NodeKey.make()
        told = descriptor.make(
            key,
            Name("test"),
            onion_key=bytes(32),
            endpoints=("tcp:192.0.2.1:9000", "tcp:relay.example:1"),
            via=(bytes(32),),
            now=NOW,
            serial=3,
            family=(b"f" * 32,),
            exits=b"80,443",
        ).raw
        identity = vouch.certificate(key, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        remote: tuple[type[Exception], ...] = (RemoteProtocolError,)
        readers: dict[str, tuple[Callable[[bytes], object], bytes, tuple[type[Exception], ...]]] = {
            "descriptor": (self.described, told, remote),
            "bencode": (bencode.decode, told[64:], remote),
            "list": (unpack, descriptor.pack([told, told]), remote),
            "peers": (pex.read_peers, descriptor.pack([told]), remote),
            "hello": (
                Hello.read,
                Hello((1,), 2048, bytes(8), 0, 1, Address("::1", 5), descriptor=told).encode(),
                remote,
            ),
            "certificate": (vouch.vouched, ssl.PEM_cert_to_DER_cert(identity.chain_pem.decode()), remote),
            "extend": (read_connect, Extend(bytes(32), ("tcp:a:1",), 1, b"h" * 40).encode(), remote),
            "connect": (read_connect, Open(Proto.UDP, "host.example", 80, 3).encode(), remote),
            "opened": (Opened.read, Opened(Address("192.0.2.1"), 60).encode(), remote),
            "extended": (read_extended, extended(b"hello"), remote),
            "disconnect": (read_disconnect, disconnect(1), remote),
            "datagram": (read_datagram, datagram(Address("::1", 4), b"x"), remote),
            "text": (Text.read, Text(bytes(16), b"hi", bytes(32), bytes(64)).encode(), remote),
            "punch": (Punch.read, Punch(bytes(32), (Address("192.0.2.1", 5),), 9).encode(), remote),
            "handshake": (read_handshake, handshake_body(1, b"x" * 99), remote),
            "terms": (Terms.from_bytes, OFFER.to_bytes(), remote),
            "summary": (leaving.parse_summary, b"80,443,8000-8999", remote),
            "get": (GetRelays.read, GetRelays().encode(), remote),
            "unpublish": (Unpublish.read, bytes(104), remote),
            "greeting": (socks.greeting, b"\5\2\0\2", remote),
            "login": (socks.login, b"\1\4user\4pass", remote),
            "request": (socks.request, b"\5\1\0\3\x0bexample.org\0\x50", remote),
            "socks datagram": (socks.read_datagram, b"\0\0\0\1\1\2\3\4\0\5hello", remote),
            "place": (lambda data: place(data.decode("latin-1")), rb"tcp:host=2001\:db8\:\:1:port=9000", remote),
            "endpoint": (lambda data: dialled(data.decode("latin-1")), rb"tcp:a\:b:9000:link=noise", (ConfigError,)),
            "target": (lambda data: leaving.target(data.decode("latin-1")), b"sub.example.org", (leaving.NoWay,)),
        }
        for name, (read, good, errors) in readers.items():
            read(good)
            for _ in range(TRIES):
                data = spoilt(chance, good)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # the certificate's reader has its say on odd numbers
                        read(data)
                except errors:
                    pass
                except Exception as error:
                    self.fail(f"{name}: {error!r} for {data!r}")

    def described(self, data: bytes) -> None:
        found = Descriptor.parse(data)
        found.check(Name("test"), NOW)
        self.assertTrue(found.near and found.far and found.places is not None)


class ConversationTests(SynchronousTestCase):
    def test_anybody_says_anything(self) -> None:
        for seed in range(NETS):
            Conversation(self, Random(seed)).run()


class Conversation:
    """A circuit of one to three hops, on which its ends and their neighbours say what comes into their heads."""

    def __init__(self, test: SynchronousTestCase, chance: Random) -> None:
        self.test = test
        self.chance = chance
        self.net = Network(recording=False, seed=chance.randrange(1 << 30))
        self.client = self.net.client("client")
        self.relays = [self.net.relay(name) for name in ("one", "two", "three", "four")]
        for relay in self.relays:
            relay.serve("echo.test", 7, chance.choice((Echo, Slow)))
            relay.circuits.serve(Logins(self.net.mark))
        self.streams: list[Any] = []

    def run(self) -> None:
        self.circuit = self.net.build(self.client, *self.relays[: self.chance.randrange(1, 4)])
        steps = (self.use, self.use, self.client_says, self.client_says, self.hop_says, self.neighbour_says, self.go_on)
        for _ in range(self.chance.randrange(1, 20)):
            self.chance.choice(steps)()
            self.net.settle(self.chance.choice((0.0, 0.002, 0.01, 1.0)))
        self.circuit.close()
        self.net.settle(40)
        for relay in self.relays:
            self.test.assertEqual(relay.circuits.all, {})
            self.test.assertEqual(relay.means.stalled.cells, 0)
            self.test.assertEqual([carrier.link.circuits for carrier in relay.carriers], [0] * len(relay.carriers))

    def use(self) -> None:
        chance = self.chance
        try:
            if not self.streams or chance.random() < 0.3:
                self.streams.append(self.circuit.open(TARGET, Heard()))
            stream = chance.choice(self.streams)
            what: list[Callable[[], object]] = [
                stream.pause,
                stream.resume,
                stream.end,
                lambda: stream.write(bytes(chance.randrange(9000))),
                lambda: stream.close(chance.choice(list(Reason))),
                lambda: self.circuit.ask(16, bytes(chance.randrange(3000)), (20,), 5.0, lambda answer: None),
            ]
            chance.choice(what)()
        except LocalProtocolError:
            pass  # our own side knows what it may do

    def go_on(self) -> None:
        with contextlib.suppress(LocalProtocolError):
            self.circuit.extend(self.chance.choice(self.relays).hop)

    def client_says(self) -> None:
        if self.circuit.state.value == "open":
            cmd = self.chance.choice((Cell.RELAY, Cell.RELAY, Cell.EARLY))
            self.circuit.slot.send(cmd, client_forward(self.circuit._forward, cmd, self.words()))

    def hop_says(self) -> None:
        for relay in self.relays:
            for circuit in list(relay.circuits.all.values()):
                if circuit.streams is not None and circuit.state.value in ("ended", "extending"):
                    circuit.slot.send(Cell.RELAY, relay_send(circuit._backward, Cell.RELAY, self.words()))

    def neighbour_says(self) -> None:
        node: Node = self.chance.choice([self.client, *self.relays])
        if not node.carriers:
            return
        carrier = self.chance.choice(node.carriers)
        circ = self.chance.choice((0, 0, 1, 0x80000001, *carrier.link._slots))
        # All but DESTROY, which would only make this node forget to say so itself.
        cmd = self.chance.choice([one for one in range(12) if one != Cell.DESTROY])
        body = self.chance.choice((b"", self.chance.randbytes(40), handshake_body(1, self.chance.randbytes(1296))))
        carrier.write(cell(circ, cmd, body))

    def words(self) -> list[bytes]:
        return [self.word() for _ in range(self.chance.randrange(1, 5))]

    def word(self) -> bytes:
        chance = self.chance
        stream = chance.choice((0, 0, 1, 2, 3, 9, 65535))
        match chance.randrange(12):
            case 0:
                host, delegate = chance.choice(("echo.test", "", "x")), chance.choice((0, 2))
                return message(
                    Command.CONNECT, stream, Open(chance.choice((Proto.TCP, Proto.UDP)), host, 7, delegate).encode()
                )
            case 1:
                return message(Command.DATA, stream, chance.randbytes(chance.choice((0, 1, 2006, 2022))))
            case 2:
                return message(Command.ACK, stream, chance.choice((b"", chance.randbytes(16))))
            case 3:
                return message(Command.DISCONNECT, stream, bytes((chance.randrange(14), chance.randrange(2))))
            case 4:
                answer = chance.choice((Opened(Address("192.0.2.1"), 1).encode(), extended(bytes(1200)), b""))
                return message(Command.CONNECT_OK, stream, answer)
            case 5:
                other = chance.choice(self.relays)
                _, begun = client_begin(other.identity, other.onion.public, self.net.mark, OFFER.to_bytes())
                return message(Command.CONNECT, 0, Extend(other.identity, (other.endpoint,), L8_NTOR, begun).encode())
            case 6:
                data = chance.randbytes(chance.randrange(100))
                return message(chance.randrange(256), stream, data, more=chance.random() < 0.3)
            case 7:
                return message(Command.LOGIN, 0, chance.randbytes(96))
            case 8:
                return message(Command.DROP, stream)
            case 9:
                return chance.randbytes(2027)
        return message(Command.DATA, chance.choice((1, 2)), b"abc")
