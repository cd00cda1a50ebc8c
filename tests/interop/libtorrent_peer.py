"""Eight sessions of libtorrent on loopback, told what to do by lines of JSON on standard input.

Run by a Python that has libtorrent, which need not be that of the tests. The first line is the port of our node; after
that each line is ``{"do": "put"|"put_mutable"|"get"|"get_mutable", ...}`` and has one line of JSON for an answer.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

lt: Any = import_module("libtorrent")

COUNT = 8
LOCAL = {
    "enable_dht": True,
    "dht_bootstrap_nodes": "",
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_prefer_verified_node_ids": False,
    "dht_enforce_node_id": False,
    "dht_ignore_dark_internet": False,
    "dht_block_ratelimit": 1000000,  # all are at one address
    "dht_upload_rate_limit": 10000000,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": 0x7FFFFFFF,
}


def known(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out settings that this version does not have."""
    there = lt.default_settings()
    return {name: value for name, value in settings.items() if name in there}


def wait(session: Any, kinds: set[str], seconds: float = 20.0) -> Any:
    """Wait for an alert of a kind; None if none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        session.wait_for_alert(200)
        for alert in session.pop_alerts():
            if type(alert).__name__ in kinds:
                return alert
    return None


def text(value: Any) -> bytes:
    """Give a byte string, whatever libtorrent makes of it."""
    return value if isinstance(value, bytes) else str(value).encode("latin-1")


def item(session: Any, kind: str) -> str | None:
    """Wait for an item that is not empty."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        done = wait(session, {kind}, 5.0)
        found = done.item if done is not None else None
        if isinstance(found, dict):  # before 2.1 it is everything about the item
            found = found.get("value")
        if found:
            return text(found).decode("latin-1")
    return None


def do(session: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Do one thing."""
    what = order["do"]
    if what == "put":
        target = session.dht_put_immutable_item(order["value"].encode())
        done = wait(session, {"dht_put_alert"})
        return {"target": str(target), "stored": done is not None and done.num_success}
    if what == "get":
        session.dht_get_immutable_item(lt.sha1_hash(bytes.fromhex(order["target"])))
        return {"value": item(session, "dht_immutable_item_alert")}
    if what == "put_mutable":
        session.dht_put_mutable_item(
            bytes.fromhex(order["private"]),
            bytes.fromhex(order["key"]),
            order["value"].encode(),
            order["salt"].encode(),
        )
        done = wait(session, {"dht_put_alert"})
        return {"stored": done is not None and done.num_success}
    session.dht_get_mutable_item(bytes.fromhex(order["key"]), order["salt"].encode())
    return {"value": item(session, "dht_mutable_item_alert")}


def main() -> None:
    """Run until standard input ends."""
    ours = int(sys.stdin.readline())
    sessions = []
    for _ in range(COUNT):
        sessions.append(lt.session(known({**LOCAL, "listen_interfaces": "127.0.0.1:0"})))
    ports = [one.listen_port() for one in sessions]
    for one in sessions:
        one.add_dht_node(("127.0.0.1", ours))
        for port in ports:
            if port != one.listen_port():
                one.add_dht_node(("127.0.0.1", port))
    print(json.dumps({"version": lt.__version__, "ports": ports}), flush=True)
    for line in sys.stdin:
        print(json.dumps(do(sessions[0], json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
