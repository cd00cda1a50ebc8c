"""What `layer8 expose` shows: a live table on a terminal, lines in a pipe, one JSON object per event for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import click
from attrs import asdict, define, field, frozen

from layer8.cli.output import coloured, printable
from layer8.net.logs import size_words
from layer8.proxy.agent import Agent
from layer8.proxy.uplink import ServerLink, Uplink

QUIET = 5.0
"""Seconds between two lines about visitors in a pipe; a table is drawn anew at every look."""


@frozen
class Counts:
    """Visitors and bytes since the start, what is under way included."""

    open: int
    total: int
    rejected: int
    bytes_in: int
    bytes_out: int

    @classmethod
    def of(cls, agent: Agent) -> Counts:
        """Count what an agent has carried and carries."""
        totals = agent.carrier.totals
        links = [carried.link for carried in agent.carrier.open if carried.link is not None]
        return cls(
            len(links),
            totals.joined,
            totals.rejected,
            totals.bytes_in + sum(link.bytes_down for link in links),
            totals.bytes_out + sum(link.bytes_up for link in links),
        )

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"visitors: {self.open} open, {self.total} in all, {self.rejected} turned away; "
            f"{size_words(self.bytes_in)} in, {size_words(self.bytes_out)} out"
        )


class Screen(Protocol):
    """Takes what happens."""

    def begin(self, agent: Agent, what: str) -> None:
        """Begin to show an agent; `what` says in one line what it publishes."""

    def say(self, event: str, line: str, *, warning: bool = False, **facts: object) -> None:
        """Show that something has happened, as a line or as facts; an empty line is for programs only."""

    def look(self) -> None:
        """Show what has changed since the last look."""

    def end(self) -> None:
        """Show the last of it."""


def screen(as_json: bool) -> Screen:
    """Give what suits the standard output."""
    if as_json:
        return JsonScreen()
    return TableScreen() if sys.stdout.isatty() else LineScreen()


@define(eq=False)
class LineScreen:
    """For pipes and files: a line when something happens, warnings on standard error."""

    _agent: Agent | None = field(default=None, init=False)
    _shown: Counts | None = field(default=None, init=False)
    _next: float = field(default=0.0, init=False)

    def begin(self, agent: Agent, what: str) -> None:
        """Say what is published."""
        self._agent = agent
        self._shown = Counts.of(agent)
        click.echo(what)

    def say(self, event: str, line: str, *, warning: bool = False, **facts: object) -> None:
        """Print the line."""
        if line:
            click.echo(f"layer8: {printable(line)}" if warning else printable(line), err=warning)

    def look(self) -> None:
        """Print the counts if they have changed, but not often."""
        if time.monotonic() >= self._next:
            self._count()

    def end(self) -> None:
        """Print the last counts."""
        self._count()

    def _count(self) -> None:
        if self._agent is None:
            return
        counts = Counts.of(self._agent)
        if counts != self._shown:
            self._shown = counts
            self._next = time.monotonic() + QUIET
            click.echo(str(counts))


@define(eq=False)
class JsonScreen:
    """For programs: every event is an object on a line of its own, with the seconds since the start."""

    _agent: Agent | None = field(default=None, init=False)
    _shown: Counts | None = field(default=None, init=False)
    _begun: float = field(factory=time.monotonic, init=False)
    _next: float = field(default=0.0, init=False)

    def begin(self, agent: Agent, what: str) -> None:
        """Remember the agent."""
        self._agent = agent
        self._shown = Counts.of(agent)

    def say(self, event: str, line: str, *, warning: bool = False, **facts: object) -> None:
        """Print the event."""
        click.echo(json.dumps({"event": event, "seconds": round(time.monotonic() - self._begun, 3), **facts}))

    def look(self) -> None:
        """Print the counts if they have changed, but not often."""
        if time.monotonic() >= self._next:
            self.end()

    def end(self) -> None:
        """Print the last counts."""
        if self._agent is None:
            return
        counts = Counts.of(self._agent)
        if counts != self._shown:
            self._shown = counts
            self._next = time.monotonic() + QUIET
            self.say("counts", "", **asdict(counts))


@define(eq=False)
class TableScreen:
    """For terminals: a table that is drawn anew, with what happens above it."""

    _agent: Agent | None = field(default=None, init=False)
    _what: str = field(default="", init=False)
    _live: Any = field(default=None, init=False)

    def begin(self, agent: Agent, what: str) -> None:
        """Draw the table for the first time."""
        from rich.console import Console
        from rich.live import Live

        self._agent, self._what = agent, what
        self._live = Live(
            get_renderable=self._draw,
            console=Console(no_color=not coloured(), highlight=False),
            auto_refresh=False,
        )
        self._live.start(refresh=True)

    def say(self, event: str, line: str, *, warning: bool = False, **facts: object) -> None:
        """Print the line above the table."""
        if not line:
            return
        if self._live is None:
            click.echo(f"layer8: {printable(line)}" if warning else printable(line), err=warning)
            return
        from rich.text import Text

        self._live.console.print(Text(printable(line), style="yellow" if warning else ""))

    def look(self) -> None:
        """Draw the table anew."""
        if self._live is not None:
            self._live.refresh()

    def end(self) -> None:
        """Leave the table as it is now."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("server", "state", "dialled ahead")
        if self._agent is None:
            return table
        for server, state, good, ahead in states(self._agent):
            table.add_row(server, Text(state, style="green" if good else "yellow"), str(ahead))
        return Group(Text(self._what, style="bold"), table, Text(str(Counts.of(self._agent))))


def states(agent: Agent) -> Iterator[tuple[str, str, bool, int]]:
    """Give each server, how it stands with it, whether that is well, and how many connections wait for visitors."""
    for uplink in agent.uplinks:
        ahead = len(uplink.reserve) if isinstance(uplink, Uplink) else 0
        state, good = _state(uplink, agent.checks.down)
        yield uplink.address.url, state, good, ahead


def _state(uplink: ServerLink, down: Collection[str]) -> tuple[str, bool]:
    if any(one.host in down for one in uplink.subscriptions.values()):
        return "serving, but the target does not answer", False
    if uplink.subscriptions:
        return "serving", True
    if uplink.refusals:
        return printable(next(iter(uplink.refusals.values()))), False
    return ("connected", True) if uplink.connected else ("not connected, trying again", False)
