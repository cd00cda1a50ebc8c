"""A link that openssl dials: TLS 1.3 of ours as others see it, and HELLO over it."""

from __future__ import annotations

import re
import subprocess
import time
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from layer8.crypto.vouch import EXTENSION, vouched
from layer8.relay.link import Why
from layer8.relay.securing import GROUP, TLS
from layer8.relay.wire import CELL, HEAD, VERSION, Address, Cell, Hello, cell
from tests.interop.daemons import missing
from tests.relay.test_carrier import CarrierCase, network, until

TIME_S = 20


def groups() -> list[str]:
    """Ask for the hybrid group where this openssl knows it (3.5 and later), else for whatever it likes."""
    known = subprocess.run(["openssl", "list", "-tls-groups"], capture_output=True, timeout=TIME_S, check=False)
    return ["-groups", GROUP] if GROUP.encode() in known.stdout else []


class OpensslTests(CarrierCase):
    skip = missing(openssl="openssl")
    kind = TLS

    def dial(self, *options: str, said: bytes = b"") -> Deferred[bytes]:
        """Run `openssl s_client` until our end closes; give all that it prints."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.bob.port}", *options]

        def run() -> bytes:
            return subprocess.run(command, input=said, capture_output=True, timeout=TIME_S, check=False).stdout

        return deferToThread(run)

    async def test_what_an_observer_of_the_handshake_sees(self) -> None:
        asked = groups()
        said = (await self.dial("-alpn", "layer8/1", "-tls1_3", *asked)).decode()
        self.assertIn("ALPN protocol: layer8/1", said)
        self.assertIn("TLSv1.3", said)
        if asked:
            self.assertIn(GROUP, said)
        found = re.search("-----BEGIN CERTIFICATE-----.*-----END CERTIFICATE-----\n", said, re.DOTALL)
        assert found is not None
        certificate = x509.load_pem_x509_certificate(found[0].encode())
        self.assertEqual(vouched(certificate.public_bytes(Encoding.DER)), self.bob.key.node_id)
        text = subprocess.run(
            ["openssl", "x509", "-noout", "-text"],
            input=found[0].encode(),
            capture_output=True,
            timeout=TIME_S,
            check=True,
        )
        self.assertIn(EXTENSION.dotted_string, text.stdout.decode())
        self.assertEqual(len(re.findall("CN ?= ?layer8", text.stdout.decode())), 2)

    async def test_hello_over_it(self) -> None:
        hello = Hello((VERSION,), CELL, network("test"), 0, 1_767_225_600, Address("127.0.0.1", 9))
        heard = self.dial("-quiet", "-alpn", "layer8/1", *groups(), said=cell(0, Cell.HELLO, hello.encode()))
        await until(lambda: list(self.bob.links))
        (link,) = self.bob.links
        self.assertIsNone(link.peer)
        link.close(Why.ASKED, time.monotonic())
        said = await heard
        self.assertEqual((len(said) % CELL, said[:HEAD]), (0, bytes((0, 0, 0, 0, Cell.HELLO))))
        theirs = Hello.read(said[HEAD:CELL])
        self.assertEqual((theirs.network, theirs.cell_len, theirs.identity), (network("test"), CELL, b""))

    async def test_other_protocols_and_versions_hear_nothing(self) -> None:
        for options in (("-alpn", "h2"), ("-alpn", "layer8/1", "-tls1_2")):
            heard = self.dial(*options)
            await until(lambda: len(self.bob.links))
            (link,) = self.bob.links._all
            await until(partial(getattr, link._wire, "_deaf"))
            link.wake(time.monotonic() + 11)
            self.assertIn(b"no peer certificate available", await heard)
            await until(lambda: not len(self.bob.links))
