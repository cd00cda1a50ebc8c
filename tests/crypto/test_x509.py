"""Certificates, pairs and pins; the openssl program is the second opinion."""

import base64
import datetime
import hashlib
import shutil
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from layer8.core.errors import ConfigError
from layer8.crypto.x509 import Identity, certificate_pin, new_key, parse_pins, self_signed


def _openssl(*arguments: str, feed: bytes = b"") -> bytes:
    if shutil.which("openssl") is None:
        raise SkipTest("package openssl is not installed")
    return subprocess.run(["openssl", *arguments], input=feed, check=True, capture_output=True).stdout


class Certificates(SynchronousTestCase):
    def test_openssl_reads_it(self) -> None:
        _, certificate = self_signed(["proxy.example", "192.0.2.7", "2001:db8::1"])
        text = _openssl("x509", "-noout", "-ext", "subjectAltName,extendedKeyUsage", feed=certificate).decode()
        self.assertIn("DNS:proxy.example, IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:1", text)
        self.assertIn("TLS Web Server Authentication", text)

    def test_pin_is_what_openssl_computes(self) -> None:
        key, certificate = self_signed("proxy.example")
        public = _openssl("x509", "-pubkey", "-noout", feed=certificate)
        spki = _openssl("pkey", "-pubin", "-outform", "DER", feed=public)
        wanted = base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")
        self.assertEqual(certificate_pin(certificate), wanted)
        self.assertEqual(certificate_pin(_openssl("x509", "-outform", "DER", feed=certificate)), wanted)
        self.assertEqual(Identity.from_pem(key, certificate).pin, wanted)
        self.assertEqual(parse_pins(wanted), {wanted})

    def test_each_is_new(self) -> None:
        self.assertNotEqual(certificate_pin(self_signed("a.example")[1]), certificate_pin(self_signed("a.example")[1]))

    def test_no_name(self) -> None:
        self.assertRaises(ConfigError, self_signed, [])
        self.assertRaises(ConfigError, self_signed, "b\u00fccher.example")

    def test_names_and_life(self) -> None:
        now = datetime.datetime.fromtimestamp(1_700_000_000, datetime.UTC)
        day = datetime.timedelta(days=1)
        made = Identity.from_pem(*self_signed(["A.example", "*.b.example", "127.0.0.1"], now, lifetime=day))
        self.assertEqual(made.names, ("a.example", "*.b.example"))
        self.assertEqual(made.life, (1_700_000_000 - 86400, 1_700_000_000 + 86400))
        self.assertIn(b"PRIVATE KEY", new_key())
        self.assertNotEqual(new_key(), new_key())

    def test_openssl_sees_the_answer_to_a_challenge(self) -> None:
        _, certificate = self_signed("a.example", acme=bytes(range(32)))
        text = _openssl("x509", "-noout", "-text", feed=certificate).decode()
        self.assertRegex(text, r"1\.3\.6\.1\.5\.5\.7\.1\.31: critical")


class Pairs(SynchronousTestCase):
    def test_one_file(self) -> None:
        made = Identity.from_pem(*self_signed("a.example"))
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_bytes(made.pem())
        self.assertEqual(Identity.load(path).pin, made.pin)
        path.chmod(0o644)
        self.assertRaises(ConfigError, Identity.load, path)

    def test_two_files(self) -> None:
        key_pem, chain_pem = self_signed("a.example")
        key, chain = Path(self.mktemp()), Path(self.mktemp())
        key.touch(0o600)
        key.write_bytes(key_pem)
        self.assertIn(str(chain), str(self.assertRaises(ConfigError, Identity.load, key, chain)))
        chain.write_bytes(chain_pem)
        chain.chmod(0o644)
        self.assertEqual(Identity.load(key, chain).pin, certificate_pin(chain_pem))

    def test_refused(self) -> None:
        key, chain = self_signed("a.example")
        other, _ = self_signed("a.example")
        for pair, reason in (
            ((other, chain), "does not belong"),
            ((b"", chain), "private key"),
            ((chain, key), "private key"),
            ((key, b""), "no certificate"),
            ((key, key), "no certificate"),
            ((key, chain[: len(chain) // 2]), "no certificate"),
            ((key, chain * 11), "more than"),
        ):
            self.assertIn(reason, str(self.assertRaises(ConfigError, Identity.from_pem, *pair)))

    def test_repr_hides(self) -> None:
        key, chain = self_signed("a.example")
        shown = repr(Identity.from_pem(key, chain))
        self.assertNotIn("PRIVATE", shown)
        self.assertNotIn(key.split(b"\n")[1].decode(), shown)


class Pins(SynchronousTestCase):
    def test_several(self) -> None:
        one, other = (certificate_pin(self_signed("a.example")[1]) for _ in range(2))
        self.assertEqual(parse_pins(f"{one},{other}"), {one, other})

    def test_refused(self) -> None:
        pin = certificate_pin(self_signed("a.example")[1])
        self.assertRaises(ConfigError, parse_pins, ",".join([pin] * 17))
        for bad in ("", pin + "=", pin[:-1], pin + ",", pin[:-1] + "B", pin[:-1] + "\n", "+" * 43):
            self.assertRaises(ConfigError, parse_pins, bad)

    @given(st.binary(min_size=32, max_size=32))
    def test_every_hash_is_a_pin(self, digest: bytes) -> None:
        pin = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        self.assertEqual(parse_pins(pin), {pin})

    @given(st.binary())
    def test_noise(self, data: bytes) -> None:
        self.assertRaises(ConfigError, certificate_pin, data)
        self.assertRaises(ConfigError, certificate_pin, b"-----BEGIN CERTIFICATE-----\n" + data)
