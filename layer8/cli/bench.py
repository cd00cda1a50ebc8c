"""`layer8 bench NAME`: the side-by-side measurements, which live in the checkout's bench/ and not in the wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import layer8
from layer8.core.errors import Unavailable


def checkout(package: Path) -> Path:
    """Give the checkout that the package folder is part of; raises Unavailable if it was installed from a wheel."""
    root = package.resolve().parent
    if not (root / "bench" / "proxy.py").is_file():
        raise Unavailable(
            "the measurements are not part of the installed package: clone the repository, "
            "run `pip install -e .` in it, and try again there"
        )
    return root


@click.group()
def bench() -> None:
    """Measure this machine's proxies, networks of relays and tunnels, side by side."""


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def proxy(options: tuple[str, ...]) -> None:
    """Measure the socket proxy beside haproxy, nginx, socat, rathole and frp; --help lists the options."""
    _become("proxy", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def soak(options: tuple[str, ...]) -> None:
    """Carry a steady load for an hour and see whether memory or descriptors grow; --help lists the options."""
    _become("soak", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def stream(options: tuple[str, ...]) -> None:
    """Measure bulk through three relays beside a private Tor network; --help lists the options."""
    _become("network", ("stream", *options))


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def build(options: tuple[str, ...]) -> None:
    """Measure how fast circuits of three relays are built beside a private Tor network; --help lists the options."""
    _become("network", ("build", *options))


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def web(options: tuple[str, ...]) -> None:
    """Measure first bytes and small requests beside a private Tor network; --help lists the options."""
    _become("network", ("web", *options))


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def onion(options: tuple[str, ...]) -> None:
    """Measure the onion layer and the circuit handshake on one processor; --help lists the options."""
    _become("onion", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def link(options: tuple[str, ...]) -> None:
    """Measure links with TLS, with Noise and with neither on one processor; --help lists the options."""
    _become("link", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def cell(options: tuple[str, ...]) -> None:
    """Measure what a cell costs at each hop, and a whole network in memory; --help lists the options."""
    _become("cell", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def dht(options: tuple[str, ...]) -> None:
    """Measure lookups in the DHT with liars and dead nodes, beside kademlia of PyPI; --help lists the options."""
    _become("dht", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def hidden(options: tuple[str, ...]) -> None:
    """Measure hidden services beside those of a private Tor network; --help lists the options."""
    _become("network", ("hidden", *options))


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def tunnel(options: tuple[str, ...]) -> None:
    """Measure the browser tunnel beside the same backends without it; --help lists the options."""
    _become("tunnel", options)


@bench.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def work(options: tuple[str, ...]) -> None:
    """Measure work, refused knocks and introductions on one processor; --help lists the options."""
    _become("work", options)


def _become(name: str, options: tuple[str, ...]) -> None:
    root = checkout(Path(layer8.__file__).parent)
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    # The measurement moves into a network of its own and must not be anybody's child: it takes this process's place.
    os.execve(sys.executable, [sys.executable, "-m", f"bench.{name}", *options], {**os.environ, "PYTHONPATH": path})
