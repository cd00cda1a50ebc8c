"""What is left of visits to hidden services on whole nodes: in their files, their logs and their metrics.

Each search also looks for something that has to be there, so that one that finds nothing by mistake fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher

from layer8.crypto.keys import NodeKey, id_text
from layer8.node.service import Node
from layer8.rendezvous.address import parse_address
from tests.interop.daemons import folder
from tests.node.test_hidden import HERE, HiddenNodeCase

SAID = b"MARK-of-what-a-hidden-service-says-4718\n"
PLACE = "/MARK-of-what-is-asked-for-4719"


class TraceTests(HiddenNodeCase):
    async def test_visits_leave_nothing(self) -> None:
        """Nobody who reads a visitor's disk learns where he was, nor a relay's operator who has met whom (G58)."""
        lines: list[str] = []

        def note(event: Any) -> None:
            if event.get("log_namespace", "").startswith("layer8"):  # the page's own server is of this process too
                lines.append(repr(event))

        observer: Any = note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        await self.network()
        homes = {"service": Path(folder(self)), "visitor": Path(folder(self))}
        login = NodeKey.make()
        there = await self.member(
            f'[service.blog]\nports = {{ 80 = "127.0.0.1:{self.page(SAID)}" }}', home=homes["service"]
        )
        hosting = await self.published(there, "blog")
        pem = Path(folder(self)) / "login.pem"
        login.save(pem)
        visitor = await self.member(socks=HERE, home=homes["visitor"])
        known = f'[visit.blog]\naddress = "{hosting.address}"\nidentity = "{pem}"'
        named = await self.member(known, socks=HERE)
        for here in (visitor, named):
            self.assertEqual(await self.curl(here, f"http://{hosting.address}{PLACE}"), SAID)
        marks = self.marks(hosting.address)
        metrics = {node: self.metrics(node) for node in (there, visitor, *self.relays)}
        for text in metrics.values():
            self.assertIn("layer8_relay_cells_total", text)
            self.none(text.encode(), [*marks, login.node_id])
        self.assertIn("layer8_rendezvous_sessions", metrics[there])
        for node in (visitor, named, there, *self.relays):
            await self.stop(node)
        log = "\n".join(lines).encode()
        self.assertGreater(len(log), 1000)
        self.none(log, [*marks, login.node_id])
        disk = self.disk(homes["visitor"])
        self.assertIn(self.relays[0].relay.key.node_id, disk)
        self.none(disk, [*marks, hosting.address.encode()])
        for node in self.relays:
            disk = self.disk(node._frame.home)
            self.assertGreater(len(disk), 1000)
            self.none(disk, [*marks, login.node_id, visitor.relay.key.node_id])
        self.assertTrue((homes["service"] / "services" / "blog.pem").is_file())

    def marks(self, address: str) -> list[bytes]:
        """Give everything that says which service it is, and what was said there."""
        key = parse_address(address.removesuffix(".l8.alt"))
        return [SAID.strip(), PLACE.encode(), address.encode()[:20], key]

    def metrics(self, node: Node) -> str:
        return "\n".join(repr(family) for one in node._counted for family in one.families())

    def disk(self, home: Path) -> bytes:
        """Read every file of a node."""
        return b"\n".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())

    def none(self, text: bytes, marks: Iterable[bytes]) -> None:
        for mark in marks:
            forms = [mark, mark.hex().encode(), repr(mark)[2:-1].encode()]
            if len(mark) == 32:
                forms.append(id_text(mark).encode())
            for form in forms:
                self.assertFalse(form in text, f"{mark!r} is there")
