"""An app on two relays that mirror it, and its gateway: for the tests of who looks whether all is as it was signed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import maybeDeferred
from twisted.web.resource import Resource
from twisted.web.static import Data

import layer8
from layer8.config.tunnel import TunnelConfig, TunnelGatewayConfig
from layer8.crypto.keys import NodeKey
from layer8.tunnel import manifest
from layer8.tunnel.integrity import AppGateway, Manifest
from layer8.tunnel.keys import pin_text
from layer8.tunnel.manifest import App
from layer8.tunnel.resource import L8Resource
from layer8.tunnel.service import alone
from layer8.tunnel.verify import Report, verify

PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>notes</title>
<link rel="stylesheet" href="style.css">
<script type="module" src="/l8/{layer8.__version__}/l8.js"></script>
<script type="module" src="js/main.js"></script>
</head><body><p id="out">nothing</p></body></html>
"""
MAIN = """import { word } from "./word.js";
document.getElementById("out").textContent = word;
"""


@define(eq=False)
class Mirrors:
    """The gateway `notes`, and two relays that both serve its app; the second has a copy of the folder."""

    reactor: Any
    folder: Path
    publisher: NodeKey = field(factory=NodeKey.make)
    identity: NodeKey = field(factory=NodeKey.make)
    following: str = ""  # the pin of the identity that the gateway announces
    relays: list[Any] = field(factory=list)
    ports: list[int] = field(factory=list)
    folders: list[Path] = field(factory=list)
    gateway: Any = None
    _port: Any = None

    async def start(self) -> None:
        """Start everything; the app is at `url`, and its copy at `copy`."""
        root = Resource()
        root.putChild(b"word", Data(b"from the backend", "text/plain"))
        self.gateway = L8Resource(
            root,
            reactor=self.reactor,
            gateway="notes",
            authorities=["notes.test"],
            identity=self.identity,
            next_identity=self.following,
        )
        self._port = self.reactor.listenTCP(0, self.gateway.site(), interface="127.0.0.1")
        for name in ("first", "second"):
            folder = self.folder / name
            (folder / "js").mkdir(parents=True)
            self.folders.append(folder)
            known = TunnelGatewayConfig(
                id="notes",
                endpoint=f"tcp:127.0.0.1:{self._port.getHost().port}",
                host="notes.test",
                identity=(pin_text(self.identity.node_id),),
                app=str(folder),
            )
            relay = alone(self.reactor, TunnelConfig(listen=("tcp:0:interface=127.0.0.1",), gateway=(known,)))
            relay.startService()
            self.relays.append(relay)
            self.ports.append(relay.ports[0])
        for name, text in (
            ("index.html", PAGE),
            ("style.css", "p { color: rgb(1, 2, 3) }\n"),
            ("js/main.js", MAIN),
            ("js/word.js", 'export const word = "signed";\n'),
        ):
            (self.folders[0] / name).write_text(text)
        self.build()

    @property
    def url(self) -> str:
        """Give where the app is."""
        return f"http://notes.localhost:{self.ports[0]}"

    @property
    def copy(self) -> str:
        """Give the endpoint of the other mirror."""
        return f"tcp:127.0.0.1:{self.ports[1]}"

    @property
    def app(self) -> App:
        """Give what the publisher says."""
        relays = tuple(f"http://127.0.0.1:{port}" for port in self.ports)
        return App("notes", f"{self.url}/", {"notes": AppGateway(relays, ("notes.test",), (self.identity.node_id,))})

    def build(self, app: App | None = None, key: NodeKey | None = None) -> Manifest:
        """Build the app, and copy it to the second mirror."""
        made = manifest.build(self.folders[0], app or self.app, key or self.publisher)
        shutil.copytree(self.folders[0], self.folders[1], dirs_exist_ok=True)
        return made

    async def look(self, **more: Any) -> Report:
        """Look at it from both."""
        now = datetime.now(UTC).timestamp()
        return await verify(self.reactor, self.url, **{"now": now, "vias": [self.copy], **more})

    async def stop(self) -> None:
        """Stop everything."""
        for relay in self.relays:
            await relay.stopService()
        self.gateway.close()
        await maybeDeferred(self._port.stopListening)
