r"""A node id that vouches for the key of a connection: in a throw-away certificate, or as a bare signature.

```
binding   = SHA-256 of the certificate's SubjectPublicKeyInfo, or a static Noise key    32 bytes
signature = Ed25519(identity, "layer8/1 link\0" | binding)                             64 bytes
extension = OID 2.25.189467865146845753008692883515466449047, not critical: identity 32 | signature 64
```
The handshake proves that the peer holds the key that the binding names, so a copied certificate is worth nothing.
Names, dates and authorities say nothing: no clock has to be right.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from layer8.core.errors import RemoteProtocolError
from layer8.crypto.keys import NODE_ID, SIGNATURE, NodeKey, verify
from layer8.crypto.x509 import Identity

BINDING: Final = 32  # bytes
LIFETIME: Final = datetime.timedelta(days=30)
SLACK: Final = datetime.timedelta(days=1)
EXTENSION: Final = x509.ObjectIdentifier("2.25.189467865146845753008692883515466449047")

_LABEL: Final = b"layer8/1 link\0"


def sign(key: NodeKey, binding: bytes) -> bytes:
    """Give the signature by which a node vouches for a binding."""
    return key.sign(_LABEL + binding)


def check(identity: bytes, signature: bytes, binding: bytes) -> None:
    """Raise `RemoteProtocolError` unless `identity` vouches for `binding`."""
    if len(binding) != BINDING or not verify(identity, signature, _LABEL + binding):
        raise RemoteProtocolError("an identity that does not vouch for its connection")


def certificate(key: NodeKey, now: datetime.datetime) -> Identity:
    """Make a fresh P-256 key and its self-signed certificate, for which `key` vouches; `now` is an aware time."""
    fresh = ec.generate_private_key(ec.SECP256R1())
    spki = fresh.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "layer8")])
    made = (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(title)
        .public_key(fresh.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, _statement(key, spki)), critical=False)
        .sign(fresh, hashes.SHA256())
    )
    return Identity.from_pem(
        fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), made.public_bytes(Encoding.PEM)
    )


def vouched(der: bytes) -> bytes:
    """Give the node id that vouches for a certificate in DER form; raises `RemoteProtocolError`.

    Whoever calls this has seen the handshake through: only then does the peer hold the certificate's key.
    """
    try:
        read = x509.load_der_x509_certificate(der)
        spki = read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        found = read.extensions.get_extension_for_oid(EXTENSION).value
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
    ) as error:
        raise RemoteProtocolError("a certificate that nobody vouches for") from error
    said = found.value if isinstance(found, x509.UnrecognizedExtension) else b""
    if len(said) != NODE_ID + SIGNATURE:
        raise RemoteProtocolError("a certificate whose extension has another length")
    identity = said[:NODE_ID]
    check(identity, said[NODE_ID:], hashlib.sha256(spki).digest())
    return identity


def _statement(key: NodeKey, spki: bytes) -> bytes:
    return key.node_id + sign(key, hashlib.sha256(spki).digest())
