"""docs/names.md: its vectors and its numbers are those of the code."""

from __future__ import annotations

import re
from hashlib import sha256

from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto import curtain, items
from layer8.crypto.blind import BlindKey, factor
from layer8.crypto.curtain import seal
from layer8.crypto.items import Mutable
from layer8.crypto.keys import NodeKey
from layer8.rendezvous import (
    address,
    archive,
    attesting,
    claiming,
    claims,
    descriptor,
    files,
    finding,
    index,
    names,
    naming,
    publishing,
)
from layer8.rendezvous.address import address_text, period
from layer8.rendezvous.claims import Certificate, claim_target, make_claim, seen_target
from layer8.rendezvous.descriptor import Point, Price, ServiceDescriptor
from layer8.rendezvous.files import ServiceFile
from tests.test_docs import page, rows

KEY = NodeKey.from_seed(bytes(range(32)))
LATEST = (archive, attesting, claiming, naming)
AT = 1_800_000_000
LATER = 1_900_000_000


class PageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.page = page("names")

    def vectors(self) -> dict[str, str]:
        """Make everything that the page shows."""
        blind = BlindKey.of(KEY, period(AT))
        point = Point(b"N" * 32, b"O" * 32, b"U" * 32, b"E" * 32, "tcp:192.0.2.1:9000")
        text = ServiceDescriptor(AT + 3600, (point,), (1,), Price(b"S" * 32, 8, AT + 7200)).encode()
        sealed = seal(KEY.node_id, blind.public, b"", AT, text, bytes(12))
        stored = Mutable.make(blind.public, blind.sign, AT, sealed, b"d")
        file = ServiceFile.make(KEY, "blog", AT, LATER, ports={80: "http"})
        return {
            "address": address_text(KEY.node_id),
            "period": str(period(AT)),
            "h before clamping": factor(KEY.node_id, period(AT)).hex(),
            "A'": blind.public.hex(),
            "text of the descriptor": text.hex(),
            "SHA-256 of the item": sha256(sealed).hexdigest(),
            "target of the item": stored.target.hex(),
            "signature of the item": stored.signature.hex(),
            "target of claims": claim_target("blog").hex(),
            "claim with a nonce of zeros": make_claim(KEY, "blog", AT).record().raw.hex(),
            "target of attestations": seen_target("blog", KEY.node_id).hex(),
            "file": file.raw.hex(),
            "certificate": Certificate.make(KEY, "blog", KEY.node_id, LATER).hex(),
            "magnet link": str(file.magnet),
        }

    def test_vectors(self) -> None:
        shown = {
            row[0]: "".join(re.findall(r"`([^`]+)`", row[1])) for row in rows(self.page.partition("## Vectors")[2])
        }
        shown.pop("what")
        self.assertEqual(shown, self.vectors())

    def test_limits(self) -> None:
        named = {
            row[0].strip("`"): row[1] for row in rows(self.page.partition("## Limits")[2].partition("## Vectors")[0])
        }
        modules = (curtain, items, address, claims, descriptor, publishing, finding, files, index, names, *LATEST)
        found = {}
        for name in set(named) - {"name"}:
            values = {getattr(module, name) for module in modules if hasattr(module, name)}
            self.assertEqual(len(values), 1, name)
            found[name] = values.pop()
        self.assertGreater(len(found), 15)
        for name, value in found.items():
            self.assertEqual(int(re.split(r"[ ;]", named[name].replace(",", ""))[0]), value, name)
