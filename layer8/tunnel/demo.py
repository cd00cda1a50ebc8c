"""`python -m layer8.tunnel.demo`: a relay, a gateway and a backend on loopback, and a page that shows what each saw."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from layer8.cli.run import on_reactor, show_log
from layer8.core.errors import Layer8Error
from layer8.tunnel import demo_hands
from layer8.tunnel.demo_hands import Played
from layer8.tunnel.demo_show import console, judge, show
from layer8.tunnel.demo_stage import Stage


@click.command()
@click.option("--once", is_flag=True, help="Do all of it without hands, show the three columns and leave: 0 or 1.")
@click.option("--no-browser", is_flag=True, help="Open no browser; with --once: use the Python client.")
def main(once: bool, no_browser: bool) -> None:
    """Show what a relay and a backend learn of a page that talks through the browser tunnel.

    Everything is in this process and on 127.0.0.1, and gone when it ends.
    """
    show_log("error")
    try:
        with tempfile.TemporaryDirectory(prefix="layer8-tunnel-demo-") as folder:
            code = on_reactor(lambda reactor: run(reactor, Path(folder), once=once, no_browser=no_browser))
    except Layer8Error as error:
        click.echo(f"layer8.tunnel.demo: {error}", err=True)
        code = 1
    except KeyboardInterrupt:
        code = 0 if not once else 130
    sys.exit(code)


async def run(reactor: Any, folder: Path, *, once: bool, no_browser: bool) -> int:
    """Play it, and give the exit code."""
    from twisted.internet.defer import CancelledError, Deferred

    stage = Stage(reactor, folder)
    try:
        await stage.open()
        if once:
            return finish(stage, await play(reactor, stage, no_browser=no_browser))
        signal.signal(signal.SIGHUP, lambda _number, _frame: reactor.callFromThread(reactor.stop))
        click.echo(f"Open {stage.url} in a browser. Ctrl-C ends it.")
        sys.stdout.flush()
        if not no_browser and can_show():
            reactor.callInThread(webbrowser.open, stage.url)
        with suppress(CancelledError):  # Ctrl-C is how this is meant to end
            await Deferred()
        return 0
    finally:
        await stage.close()


async def play(reactor: Any, stage: Stage, *, no_browser: bool) -> Played:
    """Press every button: by a headless browser if there is one and it may be used, else by the Python client."""
    kind = None if no_browser else demo_hands.browser()
    if kind is None:
        return await demo_hands.by_client(reactor, stage)
    return await demo_hands.by_browser(reactor, stage, kind)


def finish(stage: Stage, played: Played) -> int:
    """Draw what was played, and give the exit code: 0 if every cheat was noticed and no word got out."""
    verdict = judge(stage.recorder, played)
    drawn = console()
    drawn.print(f"Played by {played.by}, by way of the relay at {stage.relay}.")
    show(drawn, stage.recorder, played, verdict)
    return 0 if not verdict.found and played.deeds and all(deed.good for deed in played.deeds) else 1


def can_show() -> bool:
    """Say whether there is a screen to open a browser on; one that takes over the terminal is of no use here."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    main()
