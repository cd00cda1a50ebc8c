"""Sphinx: prose in Markdown, and the tables that are made from the code they speak about."""

from __future__ import annotations

from collections.abc import Iterator

import click

import layer8
from layer8.cli.main import layer8 as layer8_command
from layer8.config.field import Key, keys
from layer8.config.tree import Config
from layer8.config.twistd import options_class
from layer8.core import knowledge
from layer8.core.logbook import EVENTS

project = "layer8"
version = release = layer8.__version__
copyright = "the layer8 contributors"
extensions = ["myst_parser"]
myst_enable_extensions = ["substitution", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "api", "examples"]
html_theme = "alabaster"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"page_width": "1080px", "sidebar_width": "230px", "fixed_sidebar": True}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_copy_source = False


def default(key: Key) -> str:
    """Write a default as it would stand in the file."""
    match key.default:
        case bool():
            return str(key.default).lower()
        case tuple():
            return "[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in key.default) + "]"
        case str():
            return f'"{key.default}"'
        case dict():
            return "{}"
    return str(key.default)


def reference(kind: type, path: str) -> Iterator[str]:
    """Draw one table per section of the configuration, nested ones behind it."""
    nested = []
    yield "| key | default | what |"
    yield "|---|---|---|"
    for key in keys(kind):
        if key.section is not None:
            nested.append(key)
            continue
        about = key.option
        words = about.doc.rstrip(".")
        if about.unit and about.unit not in ("s", "bytes"):
            words += f" ({about.unit})"
        words += "." if about.hot else ". *Needs a restart.*"
        words = words.replace("|", "\\|").replace("*.", "`*.`")
        yield f"| `{key.name}` | `{default(key)}` | {words} |"
    for key in nested:
        name = f"{path}.{key.name}" if path else key.name
        yield ""
        yield f"**`{heading(key, name)}`**: {key.option.doc}"
        yield ""
        assert key.section is not None
        yield from reference(key.section, name)


def heading(key: Key, name: str) -> str:
    """Write a section's name as it stands in the file."""
    if key.named:
        return f"[{name}.NAME]"
    return f"[[{name}]]" if key.repeated else f"[{name}]"


def sections() -> str:
    """Draw the whole configuration."""
    lines: list[str] = []
    for key in keys(Config):
        assert key.section is not None
        lines += ["", f"**`{heading(key, key.name)}`**: {key.option.doc}", "", *reference(key.section, key.name)]
    return "\n".join(lines)


def table(rows: Iterator[tuple[str, str]]) -> str:
    """Draw options and what they are for."""
    lines = [f"| `{words}` | {doc.rstrip('.').replace('|', chr(92) + '|')}. |" for words, doc in rows]
    return "\n".join(["| option | what |", "|---|---|", *lines])


def click_options(*path: str) -> Iterator[tuple[str, str]]:
    """Give every option of a `layer8` command, as it is written, and its help."""
    command: click.Command = layer8_command
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    context = click.Context(command)
    for option in command.params:
        record = option.get_help_record(context)
        if record is not None:
            yield record[0].replace("INTEGER RANGE", "NUMBER").replace("FLOAT RANGE", "NUMBER"), record[1]


def twistd_options(role: str) -> Iterator[tuple[str, str]]:
    """Give every option of a `twistd` command and its help."""
    options = options_class(role)()
    for name in sorted(options.longOpt):
        plain = name.rstrip("=")
        yield f"--{plain}{' VALUE' if name.endswith('=') else ''}", options.docs[plain].strip()


def events() -> str:
    """Draw every event of the log."""
    about = {name: event.doc + (" (record)" if event.record else "") for name, event in sorted(EVENTS.items())}
    rows = [f"| `{name}` | {doc} |" for name, doc in about.items()]
    return "\n".join(["| event | what |", "|---|---|", *rows])


myst_substitutions = {
    "knowledge_proxy": knowledge.markdown("proxy"),
    "knowledge_control": knowledge.markdown("control"),
    "knowledge_network": knowledge.markdown("network"),
    "knowledge_hidden": knowledge.markdown("hidden"),
    "knowledge_tunnel": knowledge.markdown("tunnel"),
    "configuration": sections(),
    "events": events(),
    "options_expose": table(click_options("expose")),
    **{
        f"options_proxy_{name}": table(click_options("proxy", name))
        for name in ("register", "update", "show", "list", "revoke", "rotate")
    },
    **{
        f"options_{name}": table(click_options(name))
        for name in ("up", "socks", "tunnel", "hide", "circuits", "relays", "send", "inbox", "verify")
    },
    **{
        f"options_layer8_{role}": table(twistd_options(role))
        for role in ("relay", "tracker", "node", "dht", "rendezvous", "tunnel", "gateway")
    },
    **{
        f"options_name_{name}": table(click_options("name", name))
        for name in ("pin", "list", "resolve", "claim", "certify", "handler")
    },
    "options_layer8_proxy": table(twistd_options("proxy")),
    "options_layer8_agent": table(twistd_options("agent")),
}
