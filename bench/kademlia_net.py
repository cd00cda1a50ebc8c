"""A network of `kademlia` nodes on loopback, for `bench.dht`: NODES LOOKUPS DEAD; for a Python that has it."""

from __future__ import annotations

import asyncio  # noqa: TID251  (the other program's runtime)
import json
import sys
import time
from importlib import import_module
from random import Random
from typing import Any


async def run(nodes: int, lookups: int, dead: float) -> dict[str, Any]:
    """Start nodes, store, let a share of them go, and get."""
    server = import_module("kademlia.network").Server
    chance, servers, ports = Random(1), [], []
    for number in range(nodes):
        one = server()
        await one.listen(0, "127.0.0.1")
        ports.append(one.transport.get_extra_info("sockname")[1])
        if number:
            await one.bootstrap([("127.0.0.1", port) for port in ports[-4:-1]])
        servers.append(one)
    for number in range(lookups):
        await servers[number % nodes].set(f"key {number}", f"value {number}")
    gone = set(chance.sample(range(nodes), int(nodes * dead)))
    for number in gone:
        servers[number].stop()
    alive = [one for number, one in enumerate(servers) if number not in gone]
    times, right = [], 0
    for number in range(lookups):
        begun = time.monotonic()
        found = await chance.choice(alive).get(f"key {number}")
        times.append((time.monotonic() - begun) * 1000)
        right += found == f"value {number}"
    for one in alive:
        one.stop()
    return {"times": times, "right": right / lookups}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))))
