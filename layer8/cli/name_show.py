"""What `layer8 name resolve` asks, and how it shows what it was told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from layer8.cli.ask import ask
from layer8.cli.network import running
from layer8.cli.output import printable
from layer8.core.errors import Layer8Error, RemoteProtocolError

if TYPE_CHECKING:
    from layer8.rendezvous.files import Magnet, ServiceFile
    from layer8.rendezvous.names import Names

ASK_TIME = 120.0
"""Seconds: a set of claims, and sixteen of attestations, of a DHT that is slow."""
FLAGS = {
    "silent": "does not answer",
    "wrong_key": "answered with a wrong key",
    "errors": "answered wrongly",
    "no_descriptor": "is not up",
}
LAYERS = {
    "address": "its address is its key",
    "pin": "you have pinned it",
    "petname": "petnames.toml says so",
    "certificate": "a signer that you have named certifies it",
    "claim": "unverified: it is what the network says; pin it if you know better",
    "file": "its own signed file says so",
    "magnet": "the link says so, which is anybody's word",
}

Read = Callable[[str, str, float], tuple["ServiceFile | Magnet | None", bytes]]


def resolved(what: str, read: Read, names: Names) -> dict[str, Any]:
    """Say whom something leads to, as `names.resolve` does, with `known`: what this user calls it.

    Of a file or link the name that stands in it is asked for too, as `claimed`. Raises Layer8Error.
    """
    from layer8.rendezvous.address import address_text

    if what.lower().startswith("magnet:") or what.endswith(".l8") or "/" in what:
        found, key = read(what, "", datetime.now(UTC).timestamp())
        told = _leads(address_text(key), "magnet" if what.lower().startswith("magnet:") else "file")
        told["name"] = told["shown"] = found.name if found is not None else ""
        told["trackers"] = [str(one) for one in found.trackers] if found is not None else []
        if told["name"]:
            from layer8.rendezvous.address import shown

            told["shown"] = shown(told["name"], key)
            told["claimed"] = _asked(told["name"], names)
    else:
        told = _asked(what, names)
    if told["address"]:
        told["known"] = [one.shown for one in names.known() if address_text(one.key) == told["address"]]
    return told


def lines(told: dict[str, Any]) -> Iterator[str]:
    """Show it to people."""
    if told["address"]:
        yield f"{printable(told['shown'])} is {told['address']}.l8.alt"
        yield f"  {LAYERS[told['layer']]}"
    for one in told.get("known", ()):
        yield f"  you call it {printable(one)}"
    for one in told.get("trackers", ()):
        yield f"  tracker {printable(one)}"
    yield from _claims(told)
    for one in told["conflicts"]:
        yield f"  red flag: by {one['layer']} it would be {one['address']}"
    claimed = told.get("claimed")
    if claimed is not None:
        if claimed["address"] and claimed["address"] != told["address"]:
            yield f"  red flag: here {printable(claimed['name'])} leads to {claimed['address']}, by {claimed['layer']}"
        yield from _claims(claimed)


def _claims(told: dict[str, Any]) -> Iterator[str]:
    for one in told["claims"]:
        since = "-" if one["since"] is None else datetime.fromtimestamp(one["since"], UTC).strftime("%Y-%m-%d")
        line = f"  claimed by {one['shown']} ({one['address']}): first seen {since}, {one['support']} attesters that "
        line += f"count of {one['attesters']} known"
        yield line + (f", and {one['strangers']} strangers" if one["strangers"] else "")
        for word, text in FLAGS.items():
            known, others = one["flags"][word], one["rumours"][word]
            if known or others:
                yield f"    {text}: {known} of those that are known" + (f", {others} strangers" if others else "")
    if told["others"]:
        yield f"  and {told['others']} more"
    if told["address"] and not told["asked"]:
        yield "  the network was not asked: no node of this user runs here (layer8 up starts one)"


def _asked(name: str, names: Names) -> dict[str, Any]:
    path = running()
    if path is not None:
        return {**ask(path, "names.resolve", {"name": name}, seconds=ASK_TIME), "asked": True}
    return _known(name, names)


def _known(name: str, names: Names) -> dict[str, Any]:
    """Resolve by what this user knows by himself."""
    from layer8.rendezvous.address import address_text, parse_who

    try:
        answer = names.resolve(parse_who(name), datetime.now(UTC).timestamp())
    except RemoteProtocolError as error:
        raise Layer8Error(f"{printable(name)[:200]}: {error}") from None
    told = _leads("" if answer.key is None else address_text(answer.key), "")
    told |= {"name": answer.name, "shown": answer.shown, "layer": "" if answer.layer is None else answer.layer.value}
    told["conflicts"] = [{"address": address_text(key), "layer": layer.value} for layer, key in answer.conflicts]
    told["verified"] = answer.verified
    if answer.key is None:
        told["why"] = f"{answer.name}: you have not named it, and no node runs here to ask: layer8 up starts one"
    told["asked"] = told["layer"] == "address"
    return told


def _leads(address: str, layer: str) -> dict[str, Any]:
    return {
        "name": "",
        "shown": "",
        "address": address,
        "layer": layer,
        "verified": layer == "file",
        "state": "unknown",
        "why": "",
        "claims": [],
        "others": 0,
        "conflicts": [],
        "asked": True,
    }
