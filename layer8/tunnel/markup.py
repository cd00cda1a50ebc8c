"""What a page of an app loads, by its HTML: found for checking, and given `integrity` where that is missing.

A page has no script but in files. What may load something is not even mentioned where browsers and others could differ
on whether it is a tag: in comments, or in text. Modules that modules import are named in `<link rel="modulepreload">`,
with their integrity: an import map could say the same, but is itself a script inside of the page, which the policy
forbids.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from html.parser import HTMLParser
from itertools import accumulate
from typing import Final
from urllib.parse import urljoin, urlsplit

from attrs import frozen

IMPORTS_MOST: Final = 1024  # modules of one page

_SCRIPTS: Final = ("javascript", "ecmascript", "x-javascript", "x-ecmascript")
_RUN: Final = frozenset(  # types of scripts that browsers run (MIME Sniffing, section 4.6)
    (
        *("", "module", "text/jscript", "text/livescript"),
        *(f"{kind}/{name}" for kind in ("text", "application") for name in _SCRIPTS),
        *(f"text/javascript1.{version}" for version in range(6)),
    )
)
_HINTS: Final = frozenset(("dns-prefetch", "preconnect", "prerender"))  # browsers connect, whatever the policy says
_LOADERS: Final = ("script", "link", "style", "base", "meta", "iframe", "object", "embed")
_LOADING = re.compile(rf"<(?:{'|'.join(_LOADERS)})(?![\w:-])", re.IGNORECASE | re.ASCII).findall
_IMPORT = re.compile(
    r"""(?:^|[;}\s])(?:import|export)\b(?:[\w*{}\s,$]*?\bfrom)?\s*["']([^"'\n]+)["']"""
    r"""|\bimport\s*\(\s*["'`]([^"'`$\n]+)["'`]"""  # bundlers write `./a.js` there
).finditer
_INTEGRITY = re.compile(r"""\s+integrity\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>]+)""", re.IGNORECASE).sub

Read = Callable[[str], bytes | None]
"""Gives the file at a path of the app, None if there is none."""


@frozen
class Load:
    """A script, module or style that a page names."""

    kind: str  # script, module, preload, style
    url: str
    integrity: str
    at: int  # where its tag begins in the text
    tag: str  # as it stands there


class _Page(HTMLParser):
    """Walks through a page; convert_charrefs stays on, so that attributes come as browsers see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[Load] = []
        self.inline: list[str] = []  # what runs without being a file
        self._seen = 0
        self._starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        self.feed(text)
        self.close()
        if len(_LOADING(text)) != self._seen:
            self.inline.append("a tag that programs read in two ways")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in reversed(attrs)}  # of two, the first counts
        self._seen += tag in _LOADERS
        line, column = self.getpos()
        for name, value in told.items():
            if name.startswith("on") or re.sub(r"[\x00-\x20]", "", value).lower().startswith("javascript:"):
                self.inline.append(f"<{tag} {name}>")
        if tag == "link" and (hints := _HINTS & set(told.get("rel", "").lower().split())):
            self.inline.append(f"<link {min(hints)}>")
        kind = told.get("type", "").strip().lower()
        if tag == "script" and (kind in _RUN or kind in ("importmap", "speculationrules")):
            if "src" not in told:
                self.inline.append("<script>")
                return
            found, url = "module" if kind == "module" else "script", told["src"]
        elif tag == "link" and (found := _link(told)):
            url = told.get("href", "")
        else:
            if tag in ("style", "base", "iframe", "object", "embed") or (tag == "meta" and "http-equiv" in told):
                self.inline.append(f"<{tag}>")
            if "style" in told:
                self.inline.append(f"<{tag} style>")
            return
        raw = self.get_starttag_text() or ""
        self.loads.append(Load(found, url, told.get("integrity", ""), self._starts[line - 1] + column, raw))


def _link(told: dict[str, str]) -> str:
    words = told.get("rel", "").lower().split()
    return "style" if "stylesheet" in words else "preload" if "modulepreload" in words else ""


def loads(text: str) -> list[Load]:
    """Give the scripts and styles of a page, in order."""
    return _Page(text).loads


def inline(text: str) -> list[str]:
    """Name what a page has inside that belongs into a file: scripts, styles, handlers, and what changes its policy."""
    return _Page(text).inline


def resolve(page: str, url: str) -> str | None:
    """Give the path that a URL in a page, or module, of this origin leads to; None if it leads to another origin."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return None
    return posixpath.normpath(urlsplit(urljoin(page, url)).path)


def imports(path: str, script: str) -> Iterator[str]:
    """Give the paths that a module imports by relative names."""
    for match in _IMPORT(script):
        name = match[1] or match[2]
        found = resolve(path, name) if name.startswith(("/", "./", "../")) else None
        if found is not None:
            yield found


def complete(path: str, text: str, read: Read, sri: Callable[[bytes], str]) -> str:
    """Give a page with the integrity of all that it loads from this origin, and of the modules that those import.

    Raises `LookupError` with what is missing.
    """
    page = _Page(text)
    told = {resolve(path, load.url) for load in page.loads if load.kind in ("module", "preload")}
    out, at = [], 0
    for load in page.loads:
        found = resolve(path, load.url)
        if found is None:
            continue
        more = ""
        if load.kind == "module":
            beyond = [one for one in _reach(found, read) if one not in told]
            told.update(beyond)
            more = "".join(
                f'<link rel="modulepreload" href="{escape(one)}" integrity="{sri(_take(one, read))}">\n'
                for one in beyond
            )
        tag = _INTEGRITY("", load.tag)
        end = -2 if tag.endswith("/>") else -1
        mark = f' integrity="{sri(_take(found, read))}"'
        out += [text[at : load.at], more, tag[:end].rstrip(), mark, tag[end:]]
        at = load.at + len(load.tag)
    return "".join([*out, text[at:]])


def missing(path: str, text: str, read: Read, sri: Callable[[bytes], str]) -> list[str]:
    """Name what a page loads without the right integrity, or from elsewhere."""
    page = _Page(text)
    named = {resolve(path, load.url) for load in page.loads if load.integrity}
    found = []
    for load in page.loads:
        target = resolve(path, load.url)
        data = None if target is None else read(target)
        if target is None or data is None:
            found.append(f"{load.url} is no file of the app")
            continue
        if sri(data) not in load.integrity.split():
            found.append(f"{load.url} has {'another' if load.integrity else 'no'} integrity")
        if load.kind in ("module", "preload"):
            found += [f"{one} has no integrity" for one in _reach(target, read) if one not in named]
    return list(dict.fromkeys(found))


def _reach(path: str, read: Read) -> Iterable[str]:
    """Give the modules that a module imports, and what those import."""
    seen = {path: None}
    waiting = [path]
    while waiting and len(seen) < IMPORTS_MOST:
        at = waiting.pop()
        data = read(at)
        for one in imports(at, (data or b"").decode("utf-8", "replace")):
            if one not in seen and read(one) is not None:
                seen[one] = None
                waiting.append(one)
    return [one for one in seen if one != path]


def _take(path: str, read: Read) -> bytes:
    data = read(path)
    if data is None:
        raise LookupError(path)
    return data
