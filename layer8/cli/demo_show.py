"""What `layer8 demo` draws: the way of the bytes, who learned what, and what to try next."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from layer8.cli.demo import Facts, Journey, commands
from layer8.cli.demo_hidden import HiddenFacts, HiddenFetch
from layer8.cli.demo_network import Fetch, NetworkFacts
from layer8.cli.demo_tunnel import TunnelFacts, stations, tunnel_learned
from layer8.cli.output import coloured, columns


def waiting(what: str) -> AbstractContextManager[object]:
    """Show on a terminal that something goes on; nothing in a pipe, or without words."""
    if not what or not sys.stdout.isatty():
        return nullcontext()
    from rich.console import Console

    status: AbstractContextManager[object] = Console().status(what)
    return status


def show_network(route: NetworkFacts) -> None:
    """Draw how the page came through the network."""
    _print(_network_lines(route))


def show_hidden(route: NetworkFacts, hidden: HiddenFacts) -> None:
    """Draw how the hidden page came."""
    _print(_hidden_lines(route, hidden))


def show_tunnel(tunnel: TunnelFacts) -> None:
    """Draw what a relay and a backend saw of a page."""
    _print(_tunnel_lines(tunnel))


def show(facts: Facts, route: NetworkFacts, hidden: HiddenFacts, tunnel: TunnelFacts, leaving: bool) -> None:
    """Draw the proxy's part; `leaving` leaves out what only works while the demo is up."""
    _print(_lines(facts, route, hidden, tunnel, leaving))


def _print(drawn: Iterable[tuple[str, str]]) -> None:
    lines = list(drawn)
    if not coloured():
        for line, _ in lines:
            click.echo(line)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line, style in lines:
        console.print(Text(line, style=style))


def _network_lines(route: NetworkFacts) -> Iterator[tuple[str, str]]:
    yield (
        f"Network {route.network}: {route.relays} relays, {route.trackers} trackers and a client "
        f"(ready in {route.ready_ms} ms).",
        "bold",
    )
    fetch = route.fetch
    if fetch is not None:
        yield from _visit_lines(
            fetch,
            ", through the network",
            circuit(route, fetch),
            "what the page is",
            "Each relay says itself what it is between; the times are those of adding it.",
            network_learned(fetch),
        )
    yield "", ""


def _visit_lines(
    fetch: Fetch | HiddenFetch,
    way: str,
    stations: Iterable[tuple[str, str, str]],
    what: str,
    remark: str,
    learned: Iterable[tuple[str, str, str]],
) -> Iterator[tuple[str, str]]:
    yield "", ""
    yield f"{fetch.url}  by {fetch.program}{way}", "bold cyan"
    for line in columns([list(row) for row in stations]):
        yield f"  {line}", ""
    verdict = f"byte for byte {what}" if fetch.right else f"NOT {what}"
    yield f"  {fetch.size:,} bytes, {verdict}", "green" if fetch.right else "bold red"
    yield f"  {remark}", "dim"
    yield "", ""
    yield "Who learned what", "bold cyan"
    for line in columns([[who, told, f"not {hidden}"] for who, told, hidden in learned]):
        yield f"  {line}", ""


def circuit(route: NetworkFacts, fetch: Fetch) -> Iterator[tuple[str, str, str]]:
    """Give the stations: who, what each relay itself says of its two neighbours, how long it took to add."""
    yield "visitor", f"asks the SOCKS port {route.socks}", ""
    for hop in fetch.hops:
        seen = f"is between {hop.before} and {hop.after}" if hop.agrees else "knows of NO such circuit"
        yield "   |", "", ""
        yield hop.name, f"{hop.node} {hop.address.removeprefix('tcp:')} {seen}", f"+{_ms(hop.ms)}"
    yield "   |", "", ""
    yield "page", "answers", ""
    yield "   |", "", ""
    yield "visitor", f"has the first byte after {_ms(fetch.first_ms)}, all after {_ms(fetch.total_ms)}", ""


def network_learned(fetch: Fetch) -> list[tuple[str, str, str]]:
    """Give who learned what of the fetch, and what not: party, learned, hidden."""
    first, *between, last = fetch.hops
    rows = [(f"{first.name}, the guard", f"your address, {first.after}, when and how much", "the exit or the page")]
    rows += [(f"{hop.name}, the middle", f"{hop.before} and {hop.after}", "you or the page") for hop in between]
    told = f"{last.before}, the page, and over HTTP its content"
    rows.append((f"{last.name}", told, "you or the guard"))
    rows.append(("trackers", "who relays, and that you have joined", "what for"))
    rows.append(("page", "the exit's address", "yours"))
    return rows


def _hidden_lines(route: NetworkFacts, hidden: HiddenFacts) -> Iterator[tuple[str, str]]:
    points = " and ".join(filter(None, (", ".join(hidden.points[:-1]), *hidden.points[-1:])))
    yield (
        f"A page is hidden behind a node of its own: it listens at {points}, and the DHT says so "
        f"(after {hidden.published_ms} ms).",
        "bold",
    )
    yield f"Its address is its key: {hidden.host}", ""
    fetch = hidden.fetch
    if fetch is not None:
        yield from _visit_lines(
            fetch,
            "",
            both_halves(route, fetch),
            "what is hidden",
            "The first visit also looks the address up, and builds the way from both ends.",
            hidden_learned(hidden, fetch),
        )
    yield "", ""


def both_halves(route: NetworkFacts, fetch: HiddenFetch) -> Iterator[tuple[str, str, str]]:
    """Give the stations from the visitor to the service: who, what each relay itself says, how long adding it took."""
    yield "visitor", f"asks the SOCKS port {route.socks}", ""
    for place, hop in enumerate(fetch.hops):
        verb = "has joined two circuits," if place == fetch.meeting else "is"
        seen = f"{verb} between {hop.before} and {hop.after}" if hop.agrees else "knows of NO such circuit"
        yield ("   |" if place <= fetch.meeting else "   :"), "", ""
        yield hop.name, f"{hop.node} {hop.address.removeprefix('tcp:')} {seen}", f"+{_ms(hop.ms)}"
    yield "   :", "", ""
    yield "service", "has come from the other end, and answers", ""
    yield "   |", "", ""
    yield "visitor", f"has the first byte after {_ms(fetch.first_ms)}, all after {_ms(fetch.total_ms)}", ""


def hidden_learned(hidden: HiddenFacts, fetch: HiddenFetch) -> list[tuple[str, str, str]]:
    """Give who learned what of the visit, and what not: party, learned, hidden."""
    first, meeting, last = fetch.hops[0], fetch.hops[fetch.meeting], fetch.hops[-1]
    return [
        (f"{first.name}, your guard", f"your address, {first.after}, when and how much", "that it was hidden, or what"),
        (f"{meeting.name}, where both met", "two circuits, when and how much", "either end, or which service"),
        (f"{last.name}, the service's guard", f"its node's address, {last.before}", "that it is a service"),
        (f"{hidden.points[0]}, one that it listens at", "that somebody knocks", "who, or at which address"),
        ("the DHT", "an encrypted item under a key of today", "whose it is, or who asks"),
        ("service", "that somebody has come", "your address"),
        ("you", "the page, and that the key is the right one", "where it is"),
    ]


def _tunnel_lines(tunnel: TunnelFacts) -> Iterator[tuple[str, str]]:
    yield f"A relay, a gateway and a backend of the browser tunnel (ready in {tunnel.ready_ms} ms).", "bold"
    yield "", ""
    yield "A note  through the browser tunnel", "bold cyan"
    for line in columns([list(row) for row in stations(tunnel)]):
        yield f"  {line}", ""
    found = f"found {', '.join(tunnel.found)}" if tunnel.found else "none found"
    looked = f"{tunnel.words} words of what the backend got, in {tunnel.heard:,} bytes that the relay had: {found}"
    yield f"  {looked}", "bold red" if tunnel.found else "green"
    yield "", ""
    yield "The relay cheats", "bold cyan"
    for line in columns([[f"it {what}", verdict] for what, _, verdict in tunnel.deeds]):
        yield f"  {line}", ""
    yield "", ""
    yield "Who learned what", "bold cyan"
    for line in columns([[who, told, f"not {hidden}"] for who, told, hidden in tunnel_learned(tunnel)]):
        yield f"  {line}", ""
    yield "", ""


def _lines(
    facts: Facts, route: NetworkFacts, hidden: HiddenFacts, tunnel: TunnelFacts, leaving: bool
) -> Iterator[tuple[str, str]]:
    yield f"A server, an agent and a web service run in this process (ready in {facts.ready_ms} ms).", "bold"
    for journey in facts.journeys:
        yield "", ""
        yield f"{journey.url}  by {journey.program}", "bold cyan"
        for line in columns([list(row) for row in way(facts, journey)]):
            yield f"  {line}", ""
        verdict = "byte for byte what the service sent" if journey.right else "NOT what the service sent"
        yield f"  {journey.size:,} bytes, {verdict}", "green" if journey.right else "bold red"
    if facts.journeys:
        yield "", ""
        yield "Who learned what", "bold cyan"
        for line in columns([[who, what, f"not {hidden}"] for who, what, hidden in learned(facts)]):
            yield f"  {line}", ""
    if leaving:
        return
    yield "", ""
    yield "Try next, in another terminal", "bold cyan"
    for what, command in commands(facts, route, hidden, tunnel):
        yield f"  # {what}", "dim"
        yield f"  {command}", ""
    yield "", ""
    yield "Ctrl-C ends it all and removes its folder.", "bold"


def way(facts: Facts, journey: Journey) -> Iterator[tuple[str, str, str]]:
    """Give the stations of a fetch: who, what happened, how long it took.

    The visitor's times are its own, the server's are from its access log, in whole milliseconds.
    """
    secure = journey.scheme == "https"
    sign = "the TLS server name" if secure else "the Host header"
    target = facts.service[1 if secure else 0]
    yield "visitor", f"connects to 127.0.0.1:{journey.port}", _ms(journey.connected_ms)
    yield "   |", "", ""
    yield "server", f"finds {facts.host} in {sign}, calls the agent", _whole(journey.sniff_ms)
    yield "   |", "", ""
    yield "agent", f"dials 127.0.0.1:{target} and back to the server, with the one-time secret", _whole(journey.call_ms)
    yield "   |", "", ""
    if secure:
        yield "service", "ends TLS with its own certificate, and answers", ""
    else:
        yield "service", "answers", ""
    yield "   |", "", ""
    yield "visitor", f"has the first byte after {_ms(journey.first_ms)}, everything after", _ms(journey.total_ms)


def learned(facts: Facts) -> list[tuple[str, str, str]]:
    """Give who learned what, and what not: party, learned, hidden."""
    plain = next((journey for journey in facts.journeys if journey.scheme == "http"), None)
    secure = next((journey for journey in facts.journeys if journey.scheme == "https"), None)
    rows = []
    if plain is not None:
        sizes = f"{plain.bytes_in:,} bytes in, {plain.bytes_out:,} out"
        rows.append(("server, HTTP", f"visitor's address, {facts.host}, {sizes}, the content", "the host's secret"))
    if secure is not None:
        sizes = f"{secure.bytes_in:,} bytes in, {secure.bytes_out:,} out"
        rows.append(("server, HTTPS", f"visitor's address, {facts.host}, {sizes}", "the content, the host's secret"))
    rows.append(("agent", f"{facts.host}, when and how much, over HTTP the content", "the visitor's address"))
    rows.append(("visitor", "the server's address and the page", "where agent and service are"))
    return rows


def _ms(value: Any) -> str:
    return f"{value:.1f} ms"


def _whole(value: int) -> str:
    return f"{value} ms" if value else "< 1 ms"
