"""libtorrent's DHT and ours on loopback: what one has put the other gets, by BEP 5 and BEP 44 alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import lru_cache
from os import urandom
from pathlib import Path
from random import SystemRandom
from time import monotonic
from typing import Any

from twisted.internet.threads import deferToThread

from layer8.control.service import wall_clock
from layer8.core.network import Network
from layer8.crypto.items import Immutable, Mutable, sha1
from layer8.crypto.keys import NodeKey
from layer8.dht.service import DhtService
from tests.relay.nodes import NodesCase

PEER = Path(__file__).with_name("libtorrent_peer.py")
SEED = bytes(range(32))


@lru_cache
def python() -> str | None:
    """Give a Python that has libtorrent: ours by its wheel, or Debian's."""
    for one in (sys.executable, "/usr/bin/python3"):
        try:
            if not subprocess.run([one, "-c", "import libtorrent"], capture_output=True, timeout=20).returncode:
                return one
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


class LibtorrentTests(NodesCase):
    if python() is None:
        skip = "not installed: python3-libtorrent"

    def setUp(self) -> None:
        super().setUp()
        self.ours = self.service(1)
        self.peer = subprocess.Popen(
            [str(python()), str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(self.end)
        self.services = [self.ours]

    def service(self, number: int, **more: Any) -> DhtService:
        key = NodeKey.from_seed(number.to_bytes(32, "big"))
        listen = "udp:0:interface=127.0.0.1"
        made = DhtService(
            self.reactor,
            key,
            Network("test-open"),
            listen,
            SystemRandom(),
            urandom,
            wall_clock,
            monotonic,
            open=True,
            **more,
        )
        made.startService()
        return made

    async def end(self) -> None:
        def ended() -> None:
            for pipe in (self.peer.stdin, self.peer.stdout):
                assert pipe is not None
                pipe.close()
            try:
                self.peer.wait(10)
            except subprocess.TimeoutExpired:
                self.peer.kill()
                self.peer.wait()

        await deferToThread(ended)
        for one in self.services:
            await one.stopService()

    async def say(self, line: str) -> Any:
        """Say a line to libtorrent and give its answer."""

        def said() -> str:
            assert self.peer.stdin is not None and self.peer.stdout is not None
            self.peer.stdin.write(line + "\n")
            self.peer.stdin.flush()
            return self.peer.stdout.readline()

        return json.loads(await deferToThread(said))

    async def do(self, what: str, **more: str) -> Any:
        return await self.say(json.dumps({"do": what, **more}))

    async def begun(self) -> None:
        """Let both know each other, and one more node of ours that only knows ours."""
        port = self.ours.session.bound
        assert port is not None
        told = await self.say(str(port[1]))
        known = [("127.0.0.1", one) for one in told["ports"]]
        self.services.append(self.service(2, peers=lambda: known))
        await self.until(lambda: all(len(one.entries()) >= 7 for one in self.services))

    async def test_both_ways(self) -> None:
        await self.begun()
        other = self.services[1]
        # Theirs, read by ours.
        put = await self.do("put", value="from libtorrent")
        item = Immutable.of(b"from libtorrent")
        self.assertEqual(put["target"], item.target.hex())
        self.assertEqual((await other.get(item.target)).item, item)
        public, private = expanded(SEED)
        put = await self.do("put_mutable", key=public.hex(), private=private.hex(), value="theirs", salt="salt")
        self.assertGreater(put["stored"], 0)
        found = (await other.get(sha1(public, b"salt"), b"salt")).item
        self.assertIsInstance(found, Mutable)
        assert isinstance(found, Mutable)
        self.assertEqual((found.data, found.signed()), (b"theirs", True))
        # Ours, read by theirs.
        mine = Immutable.of(b"from layer8")
        self.assertGreaterEqual((await other.put(mine)).stored, 6)
        self.assertEqual((await self.do("get", target=mine.target.hex()))["value"], "from layer8")
        owner = NodeKey.from_seed(bytes(reversed(SEED)))
        signed = Mutable.make(owner.node_id, owner.sign, 5, b"ours", b"pepper")
        self.assertGreaterEqual((await other.put(signed)).stored, 6)
        got = await self.do("get_mutable", key=owner.node_id.hex(), salt="pepper")
        self.assertEqual(got["value"], "ours")


def expanded(seed: bytes) -> tuple[bytes, bytes]:
    """Give the public key and the expanded private one (RFC 8032, 5.1.5), which libtorrent takes."""
    digest = bytearray(hashlib.sha512(seed).digest())
    digest[0] &= 248
    digest[31] = digest[31] & 63 | 64
    return NodeKey.from_seed(seed).node_id, bytes(digest)
