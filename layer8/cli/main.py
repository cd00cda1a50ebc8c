"""The `layer8` command: finds the subcommand and imports only that one.

Exit codes: 0 done, 1 failed (one line on standard error says what and what to do), 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec

import click

from layer8.core.errors import ConfigError, Layer8Error

COMMANDS: Mapping[str, str] = {
    "demo": "Run a whole network on this machine and visit a page through it.",
    "init": "Write an identity and a commented layer8.toml.",
    "expose": "Publish a local port under a host name, through a proxy server.",
    "proxy": "Look after the registrations of a proxy server.",
    "up": "Run this machine's node of the network.",
    "socks": "Open a SOCKS5 port into the network.",
    "tunnel": "Open a local port that leads through the network to one target.",
    "hide": "Publish a program, a file or a folder of this machine as a hidden service.",
    "name": "Give hidden services names that stay, and list them.",
    "circuits": "Show the circuits of this machine's node.",
    "relays": "Show the nodes that it knows.",
    "send": "Send a line of text to a node.",
    "inbox": "Show the messages that have come.",
    "verify": "Check a site's app and keys against what their makers have signed.",
    "status": "Show the daemons that run on this machine.",
    "bench": "Measure this machine's proxies side by side.",
}
"""Each command stands in the module of its name under `layer8.cli`, as a click command of the same name."""


class Commands(click.Group):
    """A group whose members are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the commands that this installation has, in the order of the table."""
        return [name for name in COMMANDS if find_spec(f"layer8.cli.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or give None if there is none of this name."""
        if cmd_name not in COMMANDS or not find_spec(f"layer8.cli.{cmd_name}"):
            return None
        found = getattr(import_module(f"layer8.cli.{cmd_name}"), cmd_name)
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="layer8")
@click.option("--verbose", is_flag=True, help="Show the log, and the traceback of a bug.")
@click.pass_context
def layer8(ctx: click.Context, verbose: bool) -> None:
    """Reach and publish services with nobody in the middle who learns both who you are and what you do."""
    ctx.ensure_object(dict)["verbose"] = verbose
    if verbose:
        from layer8.cli.run import show_log

        show_log()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(words))


def run(words: Sequence[str]) -> int:
    """Run the command line and give the exit code; every failure is one line on standard error."""
    try:
        result = layer8.main(list(words), prog_name="layer8", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "layer8"
        return _complain(f"{error.format_message()} (see {where} --help)", 2)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except ConfigError as error:
        return _complain(str(error), 2)
    except Layer8Error as error:
        return _complain(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return 1
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter would complain about it while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except Exception as error:
        if "--verbose" in words:
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"a bug of ours: {type(error).__name__} in {place.name} ({os.path.basename(place.filename)}:{place.lineno})"
        )
        return _complain(f"{text}; layer8 --verbose shows more", 1)
    return result if isinstance(result, int) else 0


def _complain(text: str, code: int) -> int:
    for line in text.splitlines() or [""]:
        print(f"layer8: {line}", file=sys.stderr)
    return code
