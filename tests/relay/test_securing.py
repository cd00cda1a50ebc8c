"""TLS and Noise under links, without sockets: good peers, and every kind that is none."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, PKey, load_privatekey
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.crypto.vouch import certificate, sign
from layer8.crypto.x509 import Identity, self_signed
from layer8.net.tls import unnamed_context
from layer8.relay.carrier import Carrier
from layer8.relay.limits import T_LINK
from layer8.relay.link import Ground, Link, State, Why
from layer8.relay.securing import GROUP, NOISE, TLS, Secure, Security, Tls
from layer8.relay.turn import Turn
from layer8.relay.wire import CELL
from layer8.testing.wire import connect, settle
from tests.crypto.test_vouch import with_extension
from tests.relay.links import NETWORK, Taken, Watch

WALL = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
ALICE, BOB = NodeKey.from_seed(b"a" * 32), NodeKey.from_seed(b"b" * 32)
NEAR, FAR = Security(ALICE, NETWORK, WALL), Security(BOB, NETWORK, WALL)
NOBODY = Security(None, NETWORK, WALL)
IDENTITY = certificate(ALICE, WALL)


def void(result: object) -> None:
    """Take a result that nobody wants."""


def shake(client: Secure, server: Secure) -> bytes:
    """Pass bytes until both are silent; give all that the server has said."""
    client.start()
    server.start()
    said = b""
    while True:
        there = client.take()
        if there:
            server.feed(there)
        back = server.take()
        said += back
        if back:
            client.feed(back)
        if not there and not back:
            return said


def met(kind: str, near: Security = NEAR, far: Security = FAR) -> tuple[Secure, Secure]:
    client, server = near.dialling(kind), far.accepting(kind)
    shake(client, server)
    return client, server


def rogue(identity: Identity | None, change: Callable[[SSL.Context], object] = lambda context: None) -> Tls:
    """Make a dialling side that does as it likes."""
    context = unnamed_context(identity, "layer8/1", server=False)
    change(context)
    return Tls(context, client=True)


class GoodTests(SynchronousTestCase):
    def test_tls_certifies_both(self) -> None:
        client, server = met(TLS)
        self.assertEqual((client.shown().peer, server.shown().peer), (BOB.node_id, ALICE.node_id))
        assert isinstance(client, Tls)
        assert isinstance(server, Tls)
        self.assertEqual((client.group, server.group), (GROUP, GROUP))
        self.assertEqual(client._tls.get_protocol_version_name(), "TLSv1.3")
        self.assertIsNone(server._tls.get_servername())

    def test_nobody_resumes(self) -> None:
        client, server = met(TLS)
        assert isinstance(client, Tls)
        client.feed(server.seal(b"x"))
        session = client._tls.get_session()
        assert session is not None
        again, fresh = NEAR.dialling(TLS), FAR.accepting(TLS)
        assert isinstance(again, Tls)
        again._tls.set_session(session)
        said = shake(again, fresh)
        self.assertGreater(len(said), 1500)  # a certificate is among it
        self.assertEqual((again.shown().peer, fresh.shown().peer), (BOB.node_id, ALICE.node_id))

    def test_nameless_clients(self) -> None:
        client, server = met(TLS, NOBODY)
        self.assertEqual((client.shown().peer, server.shown().peer), (BOB.node_id, None))
        client, server = met(NOISE, NOBODY)
        self.assertEqual(client.shown().proof, (b"", b""))
        bindings = {met(NOISE, NOBODY)[1].shown().binding for _ in range(3)}
        self.assertEqual(len(bindings), 3)  # nobody can tell that they are one
        self.assertRaises(LocalProtocolError, NOBODY.accepting, TLS)
        self.assertRaises(LocalProtocolError, NOBODY.accepting, NOISE)

    def test_noise_shows_keys_that_hello_vouches_for(self) -> None:
        client, server = met(NOISE)
        identity, signature = client.shown().proof
        self.assertEqual(identity, ALICE.node_id)
        self.assertEqual(signature, sign(ALICE, server.shown().binding))
        self.assertEqual(server.shown().proof, (BOB.node_id, sign(BOB, client.shown().binding)))

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.binary(max_size=200_000), max_size=4), st.integers(1, 100_000))
    def test_any_cut(self, said: list[bytes], cut: int) -> None:
        for kind in (TLS, NOISE):
            client, server = met(kind)
            sealed = b"".join(client.seal(data) for data in said if data)
            got = b"".join(server.feed(sealed[at : at + cut]) for at in range(0, len(sealed), max(cut, 999)))
            if cut >= 999:
                self.assertEqual(got, b"".join(said))

    def test_byte_by_byte(self) -> None:
        for kind in (TLS, NOISE):
            client, server = NEAR.dialling(kind), FAR.accepting(kind)
            client.start()
            server.start()
            for _ in range(3):
                for source, target in ((client, server), (server, client)):
                    for byte in source.take():
                        target.feed(bytes((byte,)))
            sealed = client.seal(bytes(3 * CELL))
            self.assertEqual(b"".join(server.feed(bytes((byte,))) for byte in sealed), bytes(3 * CELL))

    def test_a_record_is_whole_cells(self) -> None:
        client, server = met(TLS)
        sealed = client.seal(bytes(16 * CELL))
        first = int.from_bytes(sealed[3:5], "big")
        self.assertEqual(len(server.feed(sealed[: 5 + first])), 8 * CELL)


class BadTests(SynchronousTestCase):
    """Whoever is none of ours costs one exception, and gets no byte."""

    def refused(self, client: Secure, server: Secure) -> None:
        client.start()
        with self.assertRaises(RemoteProtocolError):
            for _ in range(4):
                server.feed(client.take())
                client.feed(server.take())
            server.shown()

    def test_tls_1_2(self) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_alpn_protos([b"layer8/1"])
        self.refused(Tls(context, client=True), FAR.accepting(TLS))

    def test_alpn(self) -> None:
        self.refused(rogue(IDENTITY, lambda context: context.set_alpn_protos([b"h2"])), FAR.accepting(TLS))
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client, server = Tls(context, client=True), FAR.accepting(TLS)
        shake(client, server)
        self.assertTrue(server.done)
        self.assertRaises(RemoteProtocolError, server.shown)  # a client that knows no ALPN

    def test_a_certificate_without_the_extension(self) -> None:
        server = FAR.accepting(TLS)
        shake(rogue(Identity.from_pem(*self_signed("x"))), server)
        self.assertRaises(RemoteProtocolError, server.shown)

    def test_a_server_without_the_extension(self) -> None:
        context = unnamed_context(Identity.from_pem(*self_signed("x")), "layer8/1", server=True)
        client = NEAR.dialling(TLS)
        shake(client, Tls(context, client=False))
        self.assertRaises(RemoteProtocolError, client.shown)

    def test_a_replayed_certificate_without_its_key(self) -> None:
        """A copy of somebody's certificate with another private key does not get through the handshake (G56)."""
        victim = certificate(ALICE, WALL)
        assert isinstance(victim.key, ec.EllipticCurvePrivateKey)
        other = ec.generate_private_key(ec.SECP256R1())
        right, wrong = (key.private_numbers().private_value.to_bytes(32, "big") for key in (victim.key, other))
        der = victim.key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        self.assertIn(right, der)
        # The victim's public half stays beside another private one, so that OpenSSL takes the two for a pair.
        forged = load_privatekey(FILETYPE_ASN1, der.replace(right, wrong))

        def use(context: SSL.Context, key: PKey) -> None:
            context.use_certificate(victim.chain[0])
            context.use_privatekey(key)
            context.check_privatekey()

        server = FAR.accepting(TLS)
        shake(rogue(None, lambda context: use(context, load_privatekey(FILETYPE_ASN1, der))), server)
        self.assertEqual(server.shown().peer, ALICE.node_id)
        self.refused(rogue(None, lambda context: use(context, forged)), FAR.accepting(TLS))

    def test_a_replayed_statement_in_another_certificate(self) -> None:
        """The extension names the certificate's own key: in another certificate it vouches for nobody (G56)."""
        stolen = next(
            one.value.value for one in IDENTITY.chain[0].extensions if one.oid.dotted_string.startswith("2.25")
        )
        key = ec.generate_private_key(ec.SECP256R1())
        made = x509.load_der_x509_certificate(with_extension(stolen, key))
        server = FAR.accepting(TLS)
        shake(rogue(Identity(b"", b"", key, (made,), "")), server)
        self.assertTrue(server.done)
        self.assertRaises(RemoteProtocolError, server.shown)

    def test_noise_of_another_network(self) -> None:
        self.refused(Security(ALICE, b"another!", WALL).dialling(NOISE), FAR.accepting(NOISE))

    def test_the_wrong_kind(self) -> None:
        self.refused(NEAR.dialling(TLS), FAR.accepting(NOISE))
        self.refused(NEAR.dialling(NOISE), FAR.accepting(TLS))

    def test_any_changed_byte(self) -> None:
        for kind in (TLS, NOISE):
            for at in (0, 3, 5, 20, 100, -1):
                client, server = met(kind)
                sealed = bytearray(client.seal(bytes(CELL)))
                sealed[at] ^= 0x55
                try:
                    self.assertEqual(server.feed(bytes(sealed)), b"", (kind, at))
                except RemoteProtocolError:
                    continue
                # a longer length: the bytes that would show it are still to come
                self.assertRaises(RemoteProtocolError, server.feed, bytes(70_000))

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from([TLS, NOISE]), st.booleans(), st.binary(min_size=1, max_size=3000))
    def test_any_noise(self, kind: str, dialled: bool, data: bytes) -> None:
        end = NEAR.dialling(kind) if dialled else FAR.accepting(kind)
        end.start()
        end.take()
        try:
            self.assertEqual(end.feed(data), b"")
            self.assertFalse(end.done)
        except RemoteProtocolError:
            pass


class WireTests(SynchronousTestCase):
    """Two carriers over TCP in memory, on a clock: what comes when, and what does not come."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.watches = Watch(), Watch()

    def carrier(
        self, which: int, security: Security, kind: str, *, dialled: bool, wanted: bytes | None = None
    ) -> Carrier:
        turn = Turn(lambda end: void(self.clock.callLater(0, end)))
        ground = Ground(NETWORK, turn, self.clock.seconds, WALL.timestamp, bytes, lambda: 1e6)

        def make(carrier: Carrier, address: object) -> Link:
            return Link(ground, self.watches[which], carrier, dialled=dialled, wanted=wanted)

        secure = security.dialling(kind) if dialled else security.accepting(kind)
        return Carrier(secure, make, ground, self.clock, named=security.named)

    def test_both_open(self) -> None:
        for kind in (TLS, NOISE):
            near = self.carrier(0, NEAR, kind, dialled=True, wanted=BOB.node_id)
            far = self.carrier(1, FAR, kind, dialled=False)
            wire = connect(self.clock, near, far)
            wire.settle(0.1)
            self.assertEqual((near.link.state, far.link.state), (State.OPEN, State.OPEN))
            self.assertEqual((near.link.peer, far.link.peer), (BOB.node_id, ALICE.node_id))
            taker = Taken()
            near.link.slot(taker).create(1, b"abc")
            wire.settle(0.1)
            self.assertEqual(taker.answers, [(1, b"cba")])
            wire.cut()
            self.assertEqual(len(taker.ends), 1)  # within the same turn

    def test_garbage_is_closed_at_its_time_without_an_answer(self) -> None:
        for kind in (TLS, NOISE):
            for data in (
                b"GET / HTTP/1.1\r\n\r\n",
                b"SSH-2.0-x\r\n",
                b"\x05\x01\0",
                b"\x16\x03\x01\x00\x05hello",
                bytes(9000),
            ):
                said = self.mute(kind, data)
                self.assertEqual(said, b"", (kind, data))

    def test_a_client_hello_of_another_protocol_too(self) -> None:
        client = rogue(None, lambda context: context.set_alpn_protos([b"http/1.1"]))
        client.start()
        self.assertEqual(self.mute(TLS, client.take()), b"")

    def mute(self, kind: str, data: bytes) -> bytes:
        """Say something to an accepting carrier: it stays open until T_LINK, and closes then."""

        class Prober(Protocol):
            said = b""
            lost_at = 0.0

            def dataReceived(prober, data: bytes) -> None:
                prober.said += data

            def connectionLost(prober, reason: object = None) -> None:
                prober.lost_at = self.clock.seconds()

        prober, began = Prober(), self.clock.seconds()
        far = self.carrier(1, FAR, kind, dialled=False)
        connect(self.clock, prober, far)
        assert prober.transport is not None
        prober.transport.write(data)
        settle(self.clock, 0.1)
        self.clock.advance(T_LINK - 0.5)
        self.assertEqual(prober.lost_at, 0.0)
        self.clock.advance(0.5)
        settle(self.clock, 0.1)
        self.assertTrue(T_LINK <= prober.lost_at - began < T_LINK + 0.3)
        return prober.said

    def test_silence_ends_on_both_sides(self) -> None:
        for dialled in (False, True):
            self.watches = Watch(), Watch()
            carrier = self.carrier(0, NEAR, TLS, dialled=dialled)
            connect(self.clock, carrier, Protocol())
            self.clock.advance(T_LINK + 0.01)
            settle(self.clock, 0.05)
            self.assertEqual(self.watches[0].ends, [Why.TIMEOUT])

    def test_no_call_is_left(self) -> None:
        near = self.carrier(0, NEAR, TLS, dialled=True)
        far = self.carrier(1, FAR, TLS, dialled=False)
        connect(self.clock, near, far).settle(0.1)
        near.link.close(Why.ASKED, self.clock.seconds())
        settle(self.clock, 0.1)
        self.assertEqual((self.watches[1].ends, self.clock.getDelayedCalls()), ([Why.LOST], []))

    def test_a_certificate_of_nobody_is_told_to_the_dialler(self) -> None:
        context = unnamed_context(Identity.from_pem(*self_signed("x")), "layer8/1", server=True)
        near = self.carrier(0, NEAR, TLS, dialled=True)
        far = self.carrier(1, FAR, TLS, dialled=False)
        far._secure = Tls(context, client=False)
        connect(self.clock, near, far).settle(0.1)
        self.assertEqual(self.watches[0].ends, [Why.INSECURE])

    def test_a_broken_record_ends_an_open_link(self) -> None:
        for kind in (TLS, NOISE):
            self.watches = Watch(), Watch()
            near = self.carrier(0, NEAR, kind, dialled=True)
            far = self.carrier(1, FAR, kind, dialled=False)
            connect(self.clock, near, far).settle(0.1)
            near.transport.write(b"\0\x20" + bytes(0x20))
            settle(self.clock, 0.1)
            self.assertEqual((self.watches[1].ends, self.watches[0].ends), ([Why.INSECURE], [Why.LOST]))
