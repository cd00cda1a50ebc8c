"""The browser tunnel's part of `layer8 demo`: a note by way of a relay, and what a bad relay comes to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from layer8.core.errors import Unavailable


@frozen
class TunnelFacts:
    """What was found out: `note` as the three parties have it, `deeds` as (what, noticed, by whom)."""

    page: str
    ready_ms: int
    said: str
    line: str
    client: str
    peer: str
    up: int
    down: int
    begin: str  # of what the relay saw, in hex
    deeds: tuple[tuple[str, bool, str], ...]
    words: int
    heard: int
    found: tuple[str, ...]


@define(eq=False)
class Tunnel:
    """The parties, as `python -m layer8.tunnel.demo` has them."""

    reactor: Any
    folder: Path
    ready_ms: int = field(default=0, init=False)
    _stage: Any = field(default=None, init=False)
    _played: Any = field(default=None, init=False)

    async def open(self) -> None:
        """Start all of them."""
        from layer8.tunnel.demo_stage import Stage

        began = time.monotonic()
        self.folder.mkdir()
        self._stage = Stage(self.reactor, self.folder)
        await self._stage.open()
        self.ready_ms = int((time.monotonic() - began) * 1000)

    async def ask(self) -> Unavailable | None:
        """Write a note and read it, let the relay cheat; gives the failure if nobody notices, or a word gets out."""
        from layer8.tunnel.demo_hands import by_client

        self._played = await by_client(self.reactor, self._stage, briefly=True)
        facts = self.facts()
        if facts.found:
            return Unavailable(f"the relay has had {', '.join(facts.found)}, which only the backend should")
        missed = [what for what, noticed, _ in facts.deeds if not noticed]
        return Unavailable(f"nobody has noticed that the relay {' and '.join(missed)}") if missed else None

    def facts(self) -> TunnelFacts:
        """Say what was found out."""
        from layer8.tunnel.demo_show import DEEDS, judge

        recorder = self._stage.recorder
        row = next(row for row in recorder.rows if row.opened is not None)
        verdict = judge(recorder, self._played)
        return TunnelFacts(
            page=self._stage.url,
            ready_ms=self.ready_ms,
            said=row.opened.text,
            line=row.opened.line,
            client=row.opened.client,
            peer=row.peer,
            up=row.up.size,
            down=row.down.size,
            begin=bytes(row.up.kept[:16]).hex(" "),
            deeds=tuple((DEEDS[deed.name], deed.good, deed.verdict) for deed in self._played.deeds),
            words=len(verdict.words),
            heard=verdict.size,
            found=verdict.found,
        )

    async def close(self) -> None:
        """Stop whatever has started."""
        if self._stage is not None:
            await self._stage.close()


def stations(facts: TunnelFacts) -> Iterator[tuple[str, str]]:
    """Give who saw what of the note, in its order."""
    yield "page", f"writes “{facts.said}”, and seals it"
    yield "   |", ""
    yield "relay", f"sees {facts.peer.partition(':')[0]} send {facts.up} bytes for gateway demo: {facts.begin} ..."
    yield "   |", ""
    yield "gateway", "opens them"
    yield "   |", ""
    yield "backend", f"sees {facts.line} “{facts.said}” from {facts.client or 'nobody'}"


def tunnel_learned(facts: TunnelFacts) -> list[tuple[str, str, str]]:
    """Give who learned what, and what not: party, learned, hidden."""
    return [
        ("relay", f"your address, the gateway, when, {facts.up} and {facts.down} bytes", "what you ask, or the answer"),
        ("backend", "all of the request", "your address, or your browser"),
    ]
