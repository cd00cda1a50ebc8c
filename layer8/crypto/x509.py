"""Certificates: a self-signed one that needs neither name nor authority, key hashes (`pin=`), and PEM pairs.

A pin is the SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 section 2.4) in base64url without padding:
43 letters. It names a key, so it stays right when the certificate around that key is renewed.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from layer8.core.errors import ConfigError
from layer8.crypto.keyfile import FILE_MOST, OTHERS, read_private

LIFETIME = datetime.timedelta(days=3650)  # a pin is checked, not a date; it only has to outlive the key
CLOCK_SLACK = datetime.timedelta(days=1)  # a peer whose clock is behind must not find the certificate too young
CHAIN_MOST = 10  # certificates
PINS_MOST = 16

CertificateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_ACME = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # id-pe-acmeIdentifier (RFC 8737)
_PIN = re.compile(r"[A-Za-z0-9_-]{43}\Z")


@frozen
class Identity:
    """A private key and the certificates that speak for it, the server's own first, all PEM and known to fit."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    key: CertificateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    pin: str

    @classmethod
    def from_pem(cls, key_pem: bytes, chain_pem: bytes) -> Identity:
        """Check a pair; raises `ConfigError` that says which half is wrong."""
        try:
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError("the key is not an unencrypted private key in PEM form") from error
        if not isinstance(key, CertificateKey):
            raise ConfigError("TLS takes RSA, elliptic-curve and Ed25519 keys, not this kind")
        chain = _certificates(chain_pem)
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if spki != _spki(chain[0]):
            raise ConfigError("the key does not belong to the first certificate")
        return cls(key_pem, chain_pem, key, tuple(chain), _pin(spki))

    @classmethod
    def load(cls, key: Path, chain: Path | None = None, *, forbidden: int = OTHERS) -> Identity:
        """Read a pair from files, or both from one file; the key's file must be private. Raises `ConfigError`."""
        key_pem = read_private(key, forbidden=forbidden)
        try:
            if chain is None or chain == key:
                chain_pem = key_pem
            else:
                with chain.open("rb") as file:
                    chain_pem = file.read(FILE_MOST + 1)
                if len(chain_pem) > FILE_MOST:
                    raise ConfigError(f"is larger than {FILE_MOST} bytes")
            return cls.from_pem(key_pem, chain_pem)
        except OSError as error:
            raise ConfigError(f"{chain}: cannot be read: {error.strerror}") from error
        except ConfigError as error:
            raise ConfigError(f"{chain or key}: {error}") from error

    def pem(self) -> bytes:
        """Give key and chain as one file's content."""
        return self.key_pem.rstrip(b"\n") + b"\n" + self.chain_pem

    @property
    def names(self) -> tuple[str, ...]:
        """The host names that the certificate is for, lower-case, wildcards as they stand; its subject says nothing."""
        try:
            found = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return ()
        return tuple(name.lower() for name in found.get_values_for_type(x509.DNSName))

    @property
    def life(self) -> tuple[float, float]:
        """The seconds since 1970 between which the certificate is good."""
        certificate = self.chain[0]
        return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def new_key() -> bytes:
    """Make an ECDSA P-256 key, as PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def self_signed(
    names: str | Sequence[str],
    now: datetime.datetime | None = None,
    *,
    lifetime: datetime.timedelta = LIFETIME,
    acme: bytes | None = None,
) -> tuple[bytes, bytes]:
    """Make an ECDSA P-256 key and a certificate for host names and IP addresses: `(key_pem, cert_pem)`.

    `now` is an aware time (default: the clock's); `acme` is the digest that answers a tls-alpn-01 challenge (RFC 8737
    section 3). Raises `ConfigError` for a name that no certificate can hold.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise ConfigError("a certificate needs at least one name or address")
    moment = now or datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[0][:64])])
    try:
        builder = (
            x509.CertificateBuilder()
            .subject_name(title)
            .issuer_name(title)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - CLOCK_SLACK)
            .not_valid_after(moment + lifetime)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        if acme is not None:
            # an OCTET STRING of 32 bytes in DER
            builder = builder.add_extension(x509.UnrecognizedExtension(_ACME, b"\x04\x20" + acme), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
    except ValueError as error:
        raise ConfigError(f"no certificate can be made for {', '.join(wanted)}: {error}") from error
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
    )


def certificate_pin(certificate: bytes) -> str:
    """Give the pin of a certificate in DER or PEM form; raises `ConfigError` for anything else."""
    if certificate.lstrip().startswith(b"-----BEGIN"):
        return _pin(_spki(_certificates(certificate)[0]))
    try:
        return _pin(_spki(x509.load_der_x509_certificate(certificate)))
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ConfigError("not a certificate") from error


def parse_pins(text: str) -> frozenset[str]:
    """Read one pin or several joined by commas; raises `ConfigError`."""
    pins = text.split(",")
    if len(pins) > PINS_MOST:
        raise ConfigError(f"more than {PINS_MOST} pins")
    for pin in pins:
        # the last letter of 43 carries four bits: two of its six must be zero, so that one hash has one text
        if not _PIN.match(pin) or pin[-1] not in "AEIMQUYcgkosw048":
            raise ConfigError("a pin is the SHA-256 of a public key: 43 letters of base64url")
    return frozenset(pins)


def _pin(spki: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode("ascii").rstrip("=")


def _spki(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("the certificate holds a key of an unknown kind") from error


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("holds no certificate in PEM form") from error
    if len(chain) > CHAIN_MOST:
        raise ConfigError(f"holds more than {CHAIN_MOST} certificates")
    return chain


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
