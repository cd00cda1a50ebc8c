"""How tests/vectors/onion-1.json is made, from the reference alone: `python -m tests.crypto.onion_vectors`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.crypto.onion_reference import OURS, State, parted
from tests.names import ROOT

FILE = ROOT / "tests" / "vectors" / "onion-1.json"
CELLS = 130  # two ratchets and two cells
EARLY = 3  # forward cells that go as EARLY (5), all others being RELAY (4)
SHOWN = (0, 31, 63, 64, 129)
ABOUT = (
    "The onion layer of docs/onion.md over 3 hops. keys: 144 bytes for each hop. Message i of a direction: "
    "SHAKE-256('layer8 onion-1 ' | direction | ' ' | i in decimal), 2027 bytes. The first 3 forward cells have cmd 5, "
    "all others cmd 4. links: SHA-256 of all 130 bodies as they are on the link to hop 1, 2 and 3. tags: of the cells "
    "named. after: state of the third hop's layer when all have passed, T' for each of the three."
)


def keys(direction: str) -> list[bytes]:
    """Give the keys of the three hops."""
    return [hashlib.shake_256(f"layer8 onion-1 {direction} keys {hop}".encode()).digest(144) for hop in (1, 2, 3)]


def messages(direction: str) -> list[bytes]:
    """Give the 130 messages."""
    texts = [f"layer8 onion-1 {direction} {number}".encode() for number in range(CELLS)]
    return [hashlib.shake_256(text).digest(2027) for text in texts]


def command(direction: str, number: int) -> int:
    """Tell the command of a cell."""
    return 5 if direction == "forward" and number < EARLY else 4


def sent(direction: str) -> tuple[list[list[bytes]], list[bytes], list[State]]:
    """Give the bodies on each link, the tags, and the state of the side that made them."""
    layers = [State(OURS, parted(OURS, key)) for key in keys(direction)]
    links: list[list[bytes]] = [[], [], []]
    tags = []
    for number, message in enumerate(messages(direction)):
        cmd = command(direction, number)
        if direction == "forward":
            body, tag = layers[2].client_originate(cmd, message)
        else:
            body, tag = layers[2].relay_originate(cmd, message)
        links[2].append(body)
        for hop in (1, 0):
            body = layers[hop].dec(cmd, body) if direction == "forward" else layers[hop].enc(cmd, body)
            links[hop].append(body)
        tags.append(tag)
    return links, tags, layers


def made() -> dict[str, Any]:
    """Give the whole file."""
    whole: dict[str, Any] = {"about": ABOUT}
    for direction in ("forward", "backward"):
        links, tags, layers = sent(direction)
        whole[direction] = {
            "keys": [key.hex() for key in keys(direction)],
            "first body": links[0][0].hex(),
            "links": [hashlib.sha256(b"".join(bodies)).hexdigest() for bodies in links],
            "tags": {str(number): tags[number].hex() for number in SHOWN},
            "after": {"keys": b"".join(layers[2].keys).hex(), "chains": [layer.chain.hex() for layer in layers]},
        }
    return whole


if __name__ == "__main__":
    print(json.dumps(made(), indent=1))
