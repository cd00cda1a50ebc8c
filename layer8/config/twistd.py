"""A daemon's command-line options, made from the same declarations as the file's keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_origin

from twisted.python import usage

import layer8
from layer8.config.field import Key, keys
from layer8.config.load import Loaded, load
from layer8.config.problem import ConfigProblems
from layer8.config.tree import Config

_RENAMED = {"agent.servers": "server"}
_SECTIONS = {
    "node": ("relay", "socks", "tracker", "dht", "rendezvous", "names"),
    "tracker": ("relay", "tracker"),
    "dht": ("relay", "dht"),
    "rendezvous": ("relay", "rendezvous"),
}
"""Roles that have more than the section of their name; options of all but the first begin with the section's name."""


class DaemonOptions(usage.Options):
    """Options of one `twistd layer8-ROLE`; after parsing, `loaded` is the checked configuration.

    Wrong usage and a wrong configuration end the process with exit code 2 and one line per problem on standard error.
    """

    role: ClassVar[str]
    loaded: Loaded

    def __init__(self) -> None:
        """Start with nothing given."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._given: dict[str, list[str]] = {}
        self._hosts: list[dict[str, Any]] = []
        self._path: Path | None = None

    @property
    def config(self) -> Config:
        """Give the checked configuration."""
        return self.loaded.config

    @property
    def overrides(self) -> dict[str, object]:
        """Give what was said on the command line, by dotted key; a reload passes it to `load` again."""
        found: dict[str, object] = {
            key: values[0] if len(values) == 1 else values for key, values in self._given.items()
        }
        if self._hosts:
            found["agent.host"] = self._hosts
        return found

    def take(self, key: str, value: str) -> None:
        """Remember one value; a key given several times is a list."""
        self._given.setdefault(key, []).append(value)

    def host_word(self, word: str, value: str) -> None:
        """Remember a word about the latest --host."""
        if word == "host":
            self._hosts.append({"host": value})
            return
        if not self._hosts:
            raise usage.UsageError(f"--{word} belongs behind a --host")
        if word == "secret-file":
            self._hosts[-1]["secret_file"] = os.path.abspath(value)
            return
        port, found, target = value.partition("=")
        if not found:
            raise usage.UsageError("--target has to be PORT=ENDPOINT, for example 80=tcp:127.0.0.1:8000")
        self._hosts[-1].setdefault("targets", {})[port] = target

    def opt_config(self, path: str) -> None:
        """Configuration file; else layer8.toml in the state folder."""
        self._path = Path(path)

    opt_c = opt_config

    def opt_version(self) -> None:
        """Show the version and exit."""
        print(f"layer8 {layer8.__version__}")
        raise SystemExit(0)

    def opt_control(self, endpoint: str) -> None:
        """Endpoint of the control API, none for the Unix socket alone (control.listen)."""
        self.take("control.listen", "" if endpoint == "none" else endpoint)

    def opt_blur(self, seconds: str) -> None:
        """Blur of times and sizes in records, 0 for exact (log.blur)."""
        self.take("log.blur", seconds)

    def opt_verbose(self) -> None:
        """Log everything (log.level = debug)."""
        self._given["log.level"] = ["debug"]

    def parseArgs(self, *words: str) -> None:
        """Refuse words that belong to no option."""
        if words:
            raise usage.UsageError(f"{words[0]!r} belongs to no option")

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line; wrong usage ends the process with exit code 2."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            self._refuse([f"{error}; see layer8-{self.role} --help"])

    def postOptions(self) -> None:
        """Read and check everything else."""
        try:
            self.loaded = self.reload()
        except ConfigProblems as error:
            self._refuse([str(problem) for problem in error.problems])

    def reload(self) -> Loaded:
        """Read the sources anew, with the same command line; raises ConfigProblems."""
        options = self.overrides
        twistd: dict[str, Any] = self.parent or {}
        if twistd.get("logfile") not in (None, "", "-"):
            options.setdefault("log.file", twistd["logfile"])
        loaded = load(self._path, os.environ, options, role=self.role)
        detached = twistd and not (twistd.get("nodaemon") or twistd.get("debug"))
        if detached and not loaded.config.log.file:
            # A detached process has no standard error.
            options["log.file"] = os.path.abspath(f"layer8-{self.role}.log")
            loaded = load(self._path, os.environ, options, role=self.role)
        return loaded

    def _refuse(self, lines: list[str]) -> None:
        for line in lines:
            print(f"layer8-{self.role}: {line}", file=sys.stderr)
        raise SystemExit(2)


def options_class(role: str) -> type[DaemonOptions]:
    """Build the options of a role from its sections: one for each key that is no table, named with hyphens."""
    names = _SECTIONS.get(role, (role,))
    found = {key.name: key.section for key in keys(Config)}
    told = " or ".join(f"[{name}]" for name in names)
    body: dict[str, object] = {
        "role": role,
        "synopsis": f"Usage: twistd [twistd's options] layer8-{role} [options]",
        "longdesc": f"Every option is a key of {told} in layer8.toml, and wins over it.",
    }
    for name in names:
        section = found.get(name)
        if section is None:
            raise ValueError(role)
        for key in keys(section):
            if key.section is None:
                path = f"{name}.{key.name}"
                plain = _RENAMED.get(path, key.name if name == names[0] else f"{name}_{key.name}")
                body[f"opt_no_{plain}" if key.default is True else f"opt_{plain}"] = _option(path, key)
    if role == "agent":
        body["opt_host"] = _about_host("host", "Host to publish; --secret-file and --target behind it belong to it.")
        body["opt_secret_file"] = _about_host("secret-file", "File with the secret of that host.")
        body["opt_target"] = _about_host("target", "PORT=ENDPOINT: where connections to that public port go.")
    if role == "gateway":
        body["opt_init"] = _once("init", "Make what is missing of keys, say the pin of the identity key, and end.")
        body["opt_sign_days"] = _word(
            "sign-days", "Make keys with signed sets for so many days, for a gateway without its identity key, and end."
        )
        body["opt_sign_to"] = _word("sign-to", "File that --sign-days writes: that gateway's --signed-file.")
    return type(f"{role.capitalize()}Options", (DaemonOptions,), body)


def _once(name: str, doc: str) -> Callable[[DaemonOptions], None]:
    def flag(self: DaemonOptions) -> None:
        self[name] = True

    flag.__doc__ = doc
    return flag


def _word(name: str, doc: str) -> Callable[[DaemonOptions, str], None]:
    def value(self: DaemonOptions, text: str) -> None:
        self[name] = text

    value.__doc__ = doc
    return value


def _option(path: str, key: Key) -> Callable[..., None]:
    off = key.default is True

    def flag(self: DaemonOptions) -> None:
        self.take(path, "false" if off else "true")

    def value(self: DaemonOptions, text: str) -> None:
        self.take(path, text)

    made = flag if key.type is bool else value
    several = " May be repeated." if get_origin(key.type) is tuple else ""
    made.__doc__ = f"{'Not: ' if off else ''}{key.option.doc}{several}"
    return made


def _about_host(word: str, doc: str) -> Callable[[DaemonOptions, str], None]:
    def value(self: DaemonOptions, text: str) -> None:
        self.host_word(word, text)

    value.__doc__ = doc
    return value
