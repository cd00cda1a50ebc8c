"""`layer8 verify URL`: whether a site's app and keys are what their makers have signed, from several places."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layer8.cli.output import coloured, columns, json_option, print_json, printable

if TYPE_CHECKING:
    from layer8.tunnel.checks import Check, Seen
    from layer8.tunnel.verify import Report

_MARKS = {"good": ("ok", "green"), "bad": ("WRONG", "red"), "open": ("-", "yellow")}


@click.command()
@click.argument("url", metavar="URL")
@click.option(
    "--via",
    "vias",
    multiple=True,
    metavar="ENDPOINT",
    help="Look from there too: a mirror (tls:HOST:PORT), or a proxy (socks5:127.0.0.1:PORT, tor:). May be repeated.",
)
@click.option("--publisher", metavar="KEY", help="The publisher's key, 43 letters, from where you trust it.")
@click.option("--ca", metavar="FILE", default="", help="Authorities that vouch for the site, beside the system's.")
@json_option
def verify(url: str, vias: tuple[str, ...], publisher: str | None, ca: str, as_json: bool) -> int:
    """Check a site's app and its gateways' keys against the manifest that its publisher has signed.

    What was found is kept, so that the next look begins there: a manifest then has to follow the one before.
    """
    from layer8.cli.run import on_reactor
    from layer8.tunnel import verify as look
    from layer8.tunnel.keys import read_pin

    pinned = read_pin(publisher) if publisher else b""
    origin = look.check_url(url)
    kept = _kept(origin)
    seen = _read(kept)

    async def main(reactor: Any) -> Report:
        now = datetime.now(UTC).timestamp()
        return await look.verify(
            reactor, origin, now=now, vias=vias, publisher=pinned, seen=seen, ca=ca, step=_step(as_json)
        )

    try:
        report = on_reactor(main)
    finally:
        _step(as_json)("")
    good = all(one.verdict.value != "bad" for one in report.checks)
    if good and report.manifest is not None:
        _keep(kept, report)
    if as_json:
        print_json(_document(origin, report, good))
    else:
        for line in _lines(report.checks):
            click.echo(line)
    return 0 if good else 1


def _step(as_json: bool) -> Any:
    terminal = sys.stderr.isatty() and not as_json

    def step(what: str) -> None:
        if terminal:
            click.echo(f"\r\x1b[2K{f'looking at {what}' if what else ''}", nl=False, err=True)

    return step


def _lines(checks: Any) -> list[str]:
    rows = [[_MARKS[one.verdict.value][0], one.name, printable(one.text)] for one in checks]
    lines = columns(rows)
    if not coloured():
        return lines
    shades = [_MARKS[one.verdict.value] for one in checks]
    return [
        click.style(word, fg=colour) + line[len(word) :] for (word, colour), line in zip(shades, lines, strict=True)
    ]


def _document(origin: str, report: Report, good: bool) -> dict[str, Any]:
    from layer8.tunnel.keys import pin_text

    def row(one: Check) -> dict[str, str]:
        return {"check": one.name, "verdict": one.verdict.value, "text": one.text}

    made = report.manifest
    told: dict[str, Any] = {
        "url": origin,
        "good": good,
        "places": list(report.places),
        "checks": [row(one) for one in report.checks],
    }
    if made is not None:
        told |= {"app": made.app, "version": made.version, "publisher": pin_text(made.publisher)}
    return told


def _kept(origin: str) -> Path:
    from layer8.config.home import home

    name = origin.partition("://")[2].replace(":", "_").replace("[", "").replace("]", "")
    return home(os.environ) / "verify" / f"{name}.json"


def _read(path: Path) -> Seen | None:
    from layer8.core.errors import ConfigError
    from layer8.crypto.keyfile import read_private
    from layer8.tunnel.checks import Seen
    from layer8.tunnel.jws import unletters
    from layer8.tunnel.keys import read_pin

    if not path.exists():
        return None
    try:
        told = json.loads(read_private(path))
        return Seen(read_pin(told["publisher"]), int(told["version"]), unletters(told["sha256"], 32))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: does not say what was seen the last time: remove it to begin anew") from None


def _keep(path: Path, report: Report) -> None:
    from layer8.crypto.keyfile import write_private
    from layer8.tunnel.jws import letters
    from layer8.tunnel.keys import pin_text

    made = report.manifest
    assert made is not None
    digest = letters(sha256(report.data).digest())
    told = {"publisher": pin_text(made.publisher), "version": made.version, "sha256": digest}
    write_private(path, json.dumps(told).encode())
