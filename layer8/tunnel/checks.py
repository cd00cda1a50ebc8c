"""What `layer8 verify` finds, by what it was given at every place that it asked from: nothing here asks anybody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import sha256
from typing import Any, Final

from attrs import frozen

from layer8.tunnel import integrity, jws, markup
from layer8.tunnel.integrity import PATH, BadManifest, File, Manifest
from layer8.tunnel.jws import BadJws
from layer8.tunnel.keys import BadKeys, KeySet, pin_text

WAICT_FIELD: Final = "integrity-policy-waict-v1"
TELLING: Final = ("refresh", "link", "speculation-rules", "content-security-policy-report-only", "nel")
"""Fields by which a mirror makes browsers load, or tell, what no page says."""

WEBCAT_PATH: Final = "/.well-known/webcat/manifest.json"
_HTML: Final = re.compile(r"text/html\s*;\s*charset=\"?utf-8\"?", re.IGNORECASE).fullmatch
TOLD: Final = 5  # things that one check names; more are counted


@frozen
class Got:
    """What one path was answered with; status 0 says that there was no answer."""

    status: int
    fields: Mapping[str, str] = {}
    body: bytes = b""
    why: str = ""


@frozen
class View:
    """What one place to look from was given."""

    name: str
    got: Mapping[str, Got]

    def body(self, path: str) -> bytes | None:
        """Give a file, None if it is not there."""
        found = self.got.get(path)
        return found.body if found is not None and found.status == 200 else None


@frozen
class Keys:
    """A gateway's key set as one relay gave it to one place."""

    gateway: str
    relay: str
    place: str
    document: bytes | None


@frozen
class Seen:
    """What was found the last time, and is kept until the next."""

    publisher: bytes
    version: int
    digest: bytes  # SHA-256 of the manifest


class Verdict(Enum):
    """How a check has come out."""

    GOOD = "good"
    BAD = "bad"
    OPEN = "open"  # nobody can say here


@frozen
class Check:
    """One line of the report."""

    name: str
    verdict: Verdict
    text: str


def checks(
    views: Sequence[View],
    keys: Sequence[Keys],
    *,
    now: float,
    publisher: bytes = b"",
    seen: Seen | None = None,
    old: Sequence[bytes] = (),
    wheel: Callable[[str], bytes | None] = lambda path: None,
) -> tuple[list[Check], Manifest | None]:
    """Give what there is to say, and the manifest that it is about, None if there is none to trust.

    `publisher` is the pinned key, if there is one. `old` are earlier manifests, the newest first, down to the one that
    was `seen`. `wheel` gives the file that is installed here for a path below /l8/.
    """
    found = [_same_manifest(views)]
    data = views[0].body(PATH)
    made, signed = _signature(data, publisher, seen)
    found.append(signed)
    if made is None or data is None:
        return found, None
    found += [
        _history(made, data, seen, old),
        _files(made, views),
        _pages(made, views),
        _complete(made, views),
        _policy(made, views),
        _wheel(made, wheel),
        *(
            _keys(name, one.identities, [key for key in keys if key.gateway == name], now)
            for name, one in made.gateways.items()
        ),
        _waict(made, views),
        _webcat(made, views),
    ]
    return found, made


def _check(name: str, wrong: Iterable[str], good: str) -> Check:
    told = list(dict.fromkeys(wrong))
    if not told:
        return Check(name, Verdict.GOOD, good)
    more = f", and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return Check(name, Verdict.BAD, "; ".join(told[:TOLD]) + more)


def _same_manifest(views: Sequence[View]) -> Check:
    first = views[0].body(PATH)
    wrong = []
    for view in views:
        body = view.body(PATH)
        if body is None:
            why = view.got[PATH].why if PATH in view.got else ""
            wrong.append(f"none {view.name}" + (f" ({why})" if why else ""))
        elif body != first and first is not None:
            wrong.append(f"another one {view.name} than {views[0].name}")
    return _check("manifest", wrong, f"the same from {len(views)} place{'s'[: len(views) > 1]}")


def _signature(data: bytes | None, publisher: bytes, seen: Seen | None) -> tuple[Manifest | None, Check]:
    if data is None:
        return None, Check("signature", Verdict.BAD, "there is no manifest")
    try:
        made = Manifest.first(data)
    except BadManifest as error:
        return None, Check("signature", Verdict.BAD, str(error))
    name = pin_text(made.publisher)
    if publisher and made.publisher != publisher:
        return None, Check("signature", Verdict.BAD, f"signed by {name}, not by the publisher that was given")
    if publisher or (seen is not None and seen.publisher == made.publisher):
        return made, Check("signature", Verdict.GOOD, f"{made.app} {made.version}, signed by {name}")
    if seen is not None:
        return made, Check("signature", Verdict.OPEN, f"signed by another key than the last time, {name}: see history")
    return made, Check("signature", Verdict.OPEN, f"signed by {name}: compare that with the publisher's own word")


def _history(made: Manifest, data: bytes, seen: Seen | None, old: Sequence[bytes]) -> Check:
    """From this manifest back to the one that was seen, each the next one's `prev`; without one, as far as it goes."""
    if seen is not None and sha256(data).digest() == seen.digest:
        return Check("history", Verdict.GOOD, f"version {made.version}, as the last time")
    if seen is not None and made.version <= seen.version:
        return Check(
            "history", Verdict.BAD, f"version {made.version}, after {seen.version} was seen with other content"
        )
    later = made
    for before in old:
        try:
            later.follows(before)
            later = Manifest.first(before)
        except BadManifest as error:
            return Check("history", Verdict.BAD, f"version {later.version}: {error}")
        if seen is not None and sha256(before).digest() == seen.digest:
            return Check("history", Verdict.GOOD, f"from {seen.version}, which was seen, to {made.version}")
    if seen is not None:
        return Check("history", Verdict.BAD, f"nothing leads from {seen.version}, which was seen, to {made.version}")
    if later.prev:
        return Check("history", Verdict.BAD, f"the manifest before {later.version} is not there")
    return Check("history", Verdict.GOOD, f"from the first to {made.version}; nothing was seen before")


def _files(made: Manifest, views: Sequence[View]) -> Check:
    wrong = []
    for view in views:
        for path, file in made.files.items():
            body = view.body(path)
            if body is None:
                wrong.append(f"{path} is missing {view.name}")
            elif File.of(body) != file:
                wrong.append(f"{path} is another file {view.name}")
        if "/" in view.got and "/index.html" in made.files and view.body("/") != view.body("/index.html"):
            wrong.append(f"/ is another file {view.name}")
        elif "/index.html" not in made.files and view.body("/") is not None:
            wrong.append(f"/ is no file of the manifest {view.name}")
    return _check("files", wrong, f"{len(made.files)} as the manifest says")


def _html(made: Manifest, view: View) -> Iterable[tuple[str, str]]:
    for path in made.files:
        body = view.body(path)
        if path.endswith((".html", ".htm")) and body is not None:
            yield path, body.decode("utf-8", "replace")


def _pages(made: Manifest, views: Sequence[View]) -> Check:
    wrong = [
        f"{path} is served as other than UTF-8 {view.name}"
        for view in views
        for path in ("/", *(path for path, _ in _html(made, view)))
        if (told := view.got.get(path)) is not None and told.status == 200 and not _is_utf8(told)
    ]
    wrong += [
        f"{path} has {what} inside {view.name}"
        for view in views
        for path, text in _html(made, view)
        for what in markup.inline(text)
    ]
    return _check("pages", wrong, "no script or style but in files")


def _is_utf8(told: Got) -> bool:
    """Whether browsers read a page as we do."""
    try:
        told.body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _HTML(told.fields.get("content-type", "")) is not None


def _complete(made: Manifest, views: Sequence[View]) -> Check:
    wrong = [
        f"{path}: {what} {view.name}"
        for view in views
        for path, text in _html(made, view)
        for what in markup.missing(path, text, view.body, integrity.sri)
    ]
    return _check("integrity", wrong, "named for every script, style and module")


def _policy(made: Manifest, views: Sequence[View]) -> Check:
    authorities = [name for one in made.gateways.values() for name in one.authorities]
    relays = {integrity.host_of(relay) for relay in made.relays}
    kept = [name for name in authorities if integrity.host_of(name) not in relays]
    wrong = [f"it leaves open: {what}" for what in integrity.leaks(made.csp, kept)]
    wrong += [f"it lets pages speak to {one}, which is no relay" for one in integrity.strangers(made.csp, made.relays)]
    for view in views:
        for path in ["/", *(path for path in made.files if path.endswith((".html", ".htm")))]:
            told = view.got.get(path)
            if told is None or told.status != 200:
                continue
            policy = told.fields.get("content-security-policy", "")
            if policy != made.csp:
                wrong.append(f"{path} is served with {'another policy' if policy else 'none'} {view.name}")
            wrong += [f"{path} is served with {name} {view.name}" for name in TELLING if name in told.fields]
            for name, value in integrity.BESIDE:
                if told.fields.get(name) != value:
                    wrong.append(f"{path} is served without {name}: {value} {view.name}")
    return _check("policy", wrong, "as signed; pages speak to relays only")


def _wheel(made: Manifest, wheel: Callable[[str], bytes | None]) -> Check:
    paths = [path for path in made.files if path.startswith("/l8/")]
    if not paths:
        return Check("wheel", Verdict.OPEN, "the app takes nothing from the wheel")
    here = {path: wheel(path) for path in paths}
    if all(data is None for data in here.values()):
        version = made.wheel[0] if made.wheel is not None else paths[0].split("/")[2]
        return Check("wheel", Verdict.OPEN, f"another version is installed here than {version[:32]}")
    wrong = [
        f"{path} is not as it is installed here"
        for path, data in here.items()
        if data is None or File.of(data) != made.files[path]
    ]
    return _check("wheel", wrong, f"{len(paths)} as they are installed here")


def _keys(name: str, identities: Iterable[bytes], told: Sequence[Keys], now: float) -> Check:
    wrong, sets = [], dict[bytes, KeySet]()
    for one in told:
        if one.document is None:
            wrong.append(f"{one.relay} gives none {one.place}")
            continue
        try:
            found = KeySet.read(one.document, identities)
            found.check(name, now)
        except BadKeys as error:
            wrong.append(f"{one.relay} {one.place}: {error}")
            continue
        sets[one.document] = found
    epochs = [one.epoch for one in sets.values()]
    if len(set(epochs)) < len(epochs):
        wrong.append("two key sets for one epoch: somebody is singled out")
    if len(set(epochs)) > 2:
        wrong.append("key sets of more than two epochs")
    latest = max(sets.values(), key=lambda one: one.epoch, default=None)
    text = f"signed by a pinned identity, the same from {len(told)} look{'s'[: len(told) > 1]}"
    if len(set(epochs)) > 1:
        text += "; a relay has not looked for the newest yet"
    if latest is not None and latest.next:
        pinned = "pinned too" if latest.next in tuple(identities) else "not pinned yet"
        text += f"; {pin_text(latest.next)} is going to sign next, {pinned}"
    return _check(f"keys {name}", wrong or ([] if told else ["no relay was asked"]), text)


def _waict(made: Manifest, views: Sequence[View]) -> Check:
    wanted, body = integrity.waict(made.files)
    wrong, served = [], False
    for view in views:
        index = view.got.get("/")
        field = index.fields.get(WAICT_FIELD) if index is not None else None
        if field is None:
            continue
        served = True
        if f'manifest="{wanted}"' not in field:
            wrong.append(f"the field names another manifest {view.name}")
        if view.body(wanted) != body:
            wrong.append(f"{wanted} is another file {view.name}")
    if not served:
        return Check("waict", Verdict.OPEN, "not served")
    return _check("waict", wrong, "agrees with the manifest")


def _webcat(made: Manifest, views: Sequence[View]) -> Check:
    wrong, served = [], False
    wanted = {path: jws.letters(file.sha256) for path, file in made.files.items()}
    for view in views:
        body = view.body(WEBCAT_PATH)
        if body is None:
            continue
        served = True
        try:
            told: Any = jws.members(body)
            inner = told.get("manifest", told)
            files, policy = inner.get("files"), inner.get("default_csp")
        except (BadJws, AttributeError):
            wrong.append(f"the manifest is none {view.name}")
            continue
        if files != wanted or policy != made.csp:
            wrong.append(f"the manifest says otherwise {view.name}")
    if not served:
        return Check("webcat", Verdict.OPEN, "not enrolled")
    return _check("webcat", wrong, "agrees with the manifest")
