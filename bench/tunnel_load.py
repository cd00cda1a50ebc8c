"""The load on the tunnel: requests sealed one by one before a round, sent by wrk; bodies sealed to a file, by curl.

Each request has an `enc` of its own, so that the gateway's replay set lets it in; wrk stops when they are used up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from attrs import define, field, frozen

from bench.load import SLACK_S, NoLoad
from bench.tunnel_backend import AUTHORITY, PIECE, SMALL
from layer8.core.errors import Layer8Error
from layer8.crypto.hpke_context import Aead, Context, Private
from layer8.tunnel import bhttp, wire
from layer8.tunnel.bhttp import Fields, Request, Response
from layer8.tunnel.client_session import dressed
from layer8.tunnel.outgoing import Outgoing
from layer8.tunnel.wire import CHUNKED, KeyConfig

SCRIPT: Final = Path(__file__).with_name("tunnel.lua")
BATCH: Final = 500  # requests that a worker seals at a time
POST: Final = ("-H", f"Content-Type: {CHUNKED.request}", "-H", "Incremental: ?1")  # what curl says of a sealed body


@frozen
class Sealed:
    """One request under seal, and what opens its answer."""

    body: bytes
    inner: int
    context: Context


def opened(context: Context, answer: bytes) -> tuple[int, bytes, int]:
    """Give the status and body of an answer, and how long its plaintext is; raises NoLoad."""
    opener = wire.open_answer(CHUNKED, context, Aead.AES_128_GCM)
    try:
        text = b"".join(opener.feed(answer)) + opener.end()
        events = bhttp.read(text, request=False)
    except Layer8Error as problem:
        raise NoLoad(f"an answer that does not open: {problem}") from None
    body = b"".join(event for event in events if isinstance(event, bytes))
    return next(event.status for event in events if isinstance(event, Response)), body, len(text)


def asked(method: bytes, path: str, fields: Fields = ()) -> Request:
    """Make a request as every page's are."""
    plain = Request(method, b"https", AUTHORITY.encode(), path.encode(), fields)
    return dressed(plain, f"https://{AUTHORITY}", datetime.now(UTC).timestamp())


def seal(config: KeyConfig, path: str) -> Sealed:
    """Seal a GET."""
    sealer, context = wire.seal_request(CHUNKED, config, Aead.AES_128_GCM, Private.make())
    out = Outgoing(sealer, asked(b"GET", path), length=0, pad=True)
    body = out.finish()
    return Sealed(body, len(body) - wire.HEAD - 1 - 16, context)


def _batch(document: bytes, path: str, count: int) -> bytes:
    config = KeyConfig.read_document(document)
    return b"".join(seal(config, path).body for _ in range(count))


def seal_body(config: KeyConfig, path: str, size: int, file: Path) -> Context:
    """Seal a POST of `size` bytes into a file."""
    sealer, context = wire.seal_request(CHUNKED, config, Aead.AES_128_GCM, Private.make())
    out = Outgoing(sealer, asked(b"POST", path), length=size, pad=True)
    with file.open("wb") as to:
        for at in range(0, size, len(PIECE)):
            to.write(out.write(PIECE[: size - at]))
        to.write(out.finish())
        while out.owed:
            to.write(out.pad())
    return context


@frozen
class Measured:
    """What wrk counted; times are in ms."""

    count: int
    seconds: float
    errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.count / self.seconds


def parse(text: str) -> Measured:
    """Read what tunnel.lua prints at the end; raises NoLoad."""
    line = next((line for line in text.splitlines() if line.startswith("{")), "")
    if not line:
        raise NoLoad(f"wrk said: {text.strip()[-200:]}")
    said = json.loads(line)
    if not said["requests"]:
        raise NoLoad("nothing was answered")
    return Measured(said["requests"], said["us"] / 1e6, said["errors"], said["p50"] / 1000, said["p99"] / 1000)


@define(eq=False)
class Target:
    """Where requests go: to a backend, or sealed to a relay if there are keys."""

    origin: str
    gateway: str = ""
    keys: KeyConfig | None = None
    expected: float = 4000.0  # requests a second, rather too many: the time goes on when all are used up

    def url(self, path: str) -> str:
        """Give the URL to ask for a path of the backend."""
        return f"{self.origin}/r/{self.gateway}" if self.gateway else self.origin + path

    def learn(self) -> None:
        """Fetch the gateway's keys from the relay; raises NoLoad."""
        try:
            with urlopen(f"{self.url('')}/keys?raw", timeout=10) as answer:
                self.keys = KeyConfig.read_document(answer.read())
        except OSError as problem:
            raise NoLoad(f"the relay gives no keys: {problem}") from None


@define(eq=False)
class Loader:
    """wrk and curl, and the workers that seal."""

    folder: Path
    pool: ProcessPoolExecutor = field(factory=lambda: ProcessPoolExecutor(os.cpu_count()))

    def close(self) -> None:
        """End the workers."""
        self.pool.shutdown(cancel_futures=True)

    def wrk(self, target: Target, *, seconds: int, connections: int = 32, rate: float = 0.0) -> Measured:
        """Ask for so long; with a `rate`, no faster than that. Raises NoLoad."""
        if shutil.which("wrk") is None:
            raise NoLoad("no wrk: apt install wrk")
        environ = {**os.environ, "DELAY_MS": f"{1000 * connections / rate:g}" if rate else "0"}
        if target.keys is not None:
            count = int(seconds * (rate or 1.3 * target.expected)) + 2 * connections
            environ["SEALED"] = str(self.folder / "sealed")
            environ["SEALED_SIZE"] = str(self.seal(target.keys, count))
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), target.url(SMALL)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + SLACK_S, check=False, env=environ)
        found = parse(ran.stdout)
        if not rate:
            target.expected = max(found.rate, target.expected)  # one connection asks for less than many
        return found

    def seal(self, config: KeyConfig, count: int) -> int:
        """Seal so many requests into a file, one after the other, and give the size of each."""
        with (self.folder / "sealed").open("wb") as to:
            batches: Iterator[bytes] = self.pool.map(
                partial(_batch, config.document(), SMALL), [BATCH] * -(-count // BATCH)
            )
            for batch in batches:
                to.write(batch)
        return len(seal(config, SMALL).body)

    def curl(self, url: str, *options: str) -> tuple[float, int, int]:
        """Ask once: seconds in all, and the bytes that came and went; raises NoLoad unless it is a 200."""
        form = "%{http_code} %{time_total} %{size_download} %{size_upload}"
        argv = ["curl", "-sS", "-w", form, "-H", "Expect:", *options, url]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        words = ran.stdout.split()
        if ran.returncode or words[0] != "200":
            raise NoLoad(f"curl: {ran.stderr.strip()} {ran.stdout.strip()}")
        return float(words[1]), int(words[2]), int(words[3])

    def post(self, target: Target, body: bytes, answer: Path) -> float:
        """Post a sealed request and keep the answer: seconds in all."""
        (self.folder / "one").write_bytes(body)
        return self.curl(target.url(""), *POST, "--data-binary", f"@{self.folder / 'one'}", "-o", str(answer))[0]
