"""What the tunnel's demo draws on a terminal: three columns, what the bad relay came to, and whether a word got out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from attrs import frozen

from layer8.tunnel.demo_hands import Ask, Played
from layer8.tunnel.demo_record import Recorder, Row, told

WIDE: Final = 120
"""Columns of a file or a pipe."""
LINE: Final = 12
"""Bytes of one line of hex."""
DEEDS: Final = {
    "replay": "sends the last request again",
    "keys": "hands out a key of its own",
    "change": "flips one bit of a request",
    "read": "looks for words, and tries a key",
}


@frozen
class Verdict:
    """Whether what the relay had tells anything of what the backend got."""

    words: tuple[str, ...]  # that were looked for
    found: tuple[str, ...]
    size: int  # bytes that were looked through


def judge(recorder: Recorder, played: Played) -> Verdict:
    """Look for every word of the right column in all that the middle one has had."""
    words = set(played.words)
    for row in recorder.rows:
        if row.opened is not None:
            words.add(row.opened.line.partition(" ")[2])
            words |= {row.opened.text, *(line for _, line in row.opened.frames)}
    wanted = tuple(sorted(word for word in words if len(word) >= 4))
    return Verdict(wanted, tuple(recorder.search(wanted)), len(recorder.heard))


def columns(recorder: Recorder, asks: Iterable[Ask]) -> Iterator[tuple[str, str, str]]:
    """Give each exchange as its three parties have seen it."""
    left = list(asks)
    for row in recorder.rows:
        line = row.opened.line if row.opened is not None else ""
        mine = next((one for one in left if one.line == line), None)
        if mine is None and row.kind == "bent":
            mine = next((one for one in left if not one.answer[:3].isdigit()), None)
        if mine is not None:
            left.remove(mine)
        yield _you(row, mine), _relay(row), _backend(row)


def _you(row: Row, ask: Ask | None) -> str:
    if ask is None:
        return {
            "keys": "asks for the gateway's keys",
            "swapped": "asks for the gateway's keys, and refuses what comes",
            "replayed": "(not you)",
        }.get(row.kind, "")
    said = f"\n“{ask.said}”" if ask.said else ""
    return f"{ask.title}{said}\n{ask.answer.partition(':')[0]}{f' after {ask.ms:.0f} ms' if ask.ms else ''}"


def _relay(row: Row) -> str:
    word = {
        "keys": "keys, signed by the gateway",
        "swapped": "hands out a key of its own",
        "bent": "flips one bit",
        "replayed": "sends the same bytes again",
        "socket": "a socket",
    }.get(row.kind, "something sealed")
    head = f"{told(row.at)} {row.peer}\n{word}, {row.up.size:,} up, {row.down.size:,} down"
    if row.kind in ("keys", "swapped"):
        return f"{told(row.at)} {row.peer}\n{word}"
    lines = [bytes(row.up.kept[at : at + LINE]).hex(" ") for at in (0, LINE)]
    return "\n".join([head, *filter(None, lines)])


def _backend(row: Row) -> str:
    if row.opened is None:
        return {"repeat": "nothing: seen before, refused", "refused": "nothing: it does not open, refused"}.get(
            row.verdict, "nothing"
        )
    said = f"\n“{row.opened.text}”" if row.opened.text else ""
    talk = "".join(f"\n{'heard' if up else 'said'} “{line}”" for up, line in row.opened.frames)
    return f"{row.opened.line}{said}{talk}\nfrom {row.opened.client or 'nobody'}"


def show(console: Any, recorder: Recorder, played: Played, verdict: Verdict) -> None:
    """Draw all of it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True, title="Who has seen what", title_justify="left", title_style="bold")
    for name, style in (("You", "blue"), ("The relay saw", "yellow"), ("The backend saw", "green")):
        table.add_column(name, header_style=f"bold {style}", overflow="fold", ratio=1)
    for row in columns(recorder, played.asks):
        table.add_row(*map(Text, row))
    console.print(table)
    console.print()
    console.print(Text("The bad relay", style="bold"))
    for deed in played.deeds:
        console.print(
            Text(f"  {DEEDS.get(deed.name, deed.name)}: ").append(deed.verdict, "green" if deed.good else "red")
        )
    console.print()
    looked = f"{len(verdict.words)} words of the right column, in {verdict.size:,} bytes that the relay had: "
    found = f"found {', '.join(verdict.found)}" if verdict.found else "none found"
    console.print(Text(looked).append(found, "bold red" if verdict.found else "bold green"))


def console() -> Any:
    """Give what to draw on: a terminal as it is, anything else with room for three columns."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDE)
