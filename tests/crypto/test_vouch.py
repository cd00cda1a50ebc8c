"""Node ids that vouch for keys: certificates that are good, and every way in which one is not."""

from __future__ import annotations

import contextlib
import datetime
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.keys import NodeKey
from layer8.crypto.vouch import EXTENSION, certificate, check, sign, vouched

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
KEY = NodeKey.from_seed(bytes(range(32)))


def with_extension(value: bytes | None, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a certificate that says whatever it likes."""
    title = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(title)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
    )
    if value is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, value), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def binding(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


class VouchTests(SynchronousTestCase):
    def test_a_certificate(self) -> None:
        made = certificate(KEY, NOW)
        der = made.chain[0].public_bytes(Encoding.DER)
        self.assertEqual(vouched(der), KEY.node_id)
        self.assertEqual(EXTENSION.dotted_string, "2.25.189467865146845753008692883515466449047")
        self.assertNotEqual(made.pin, certificate(KEY, NOW).pin)
        self.assertIsInstance(made.key, ec.EllipticCurvePrivateKey)

    def test_dates_say_nothing(self) -> None:
        old = certificate(KEY, datetime.datetime(1990, 1, 1, tzinfo=datetime.UTC))
        self.assertEqual(vouched(old.chain[0].public_bytes(Encoding.DER)), KEY.node_id)

    def test_what_is_not_vouched_for(self) -> None:
        key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        good = KEY.node_id + sign(KEY, binding(key))
        self.assertEqual(vouched(with_extension(good, key)), KEY.node_id)
        for value in (
            None,
            b"",
            good[:-1],
            good + b"\0",
            bytes(96),
            KEY.node_id + sign(KEY, binding(other)),
            NodeKey.make().node_id + good[32:],
            KEY.node_id + KEY.sign(binding(key)),
        ):
            self.assertRaises(RemoteProtocolError, vouched, with_extension(value, key))

    def test_bare_signatures(self) -> None:
        check(KEY.node_id, sign(KEY, b"b" * 32), b"b" * 32)
        self.assertRaises(RemoteProtocolError, check, KEY.node_id, sign(KEY, b"b" * 32), b"c" * 32)
        self.assertRaises(RemoteProtocolError, check, KEY.node_id, sign(KEY, b""), b"")

    @given(st.binary(max_size=300))
    def test_any_noise(self, der: bytes) -> None:
        self.assertRaises(RemoteProtocolError, vouched, der)

    @given(st.integers(0, 10_000), st.integers(1, 255))
    def test_any_changed_byte(self, at: int, change: int) -> None:
        """A changed certificate never vouches for somebody else; its own signature is OpenSSL's to check."""
        der = bytearray(DER)
        der[at % len(der)] ^= change
        with contextlib.suppress(RemoteProtocolError):
            self.assertEqual(vouched(bytes(der)), KEY.node_id)

    def test_any_version(self) -> None:
        at = DER.index(b"\xa0\x03\x02\x01\x02") + 4
        for version in set(range(128)) - {DER[at]}:
            der = bytearray(DER)
            der[at] = version
            with contextlib.suppress(RemoteProtocolError):
                self.assertEqual(vouched(bytes(der)), KEY.node_id)


DER = certificate(KEY, NOW).chain[0].public_bytes(Encoding.DER)
