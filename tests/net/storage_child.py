"""A process that writes and is killed, or whose disk fills up: started by the storage tests, never by hand."""

import json
import sys
from pathlib import Path

from layer8.net.sqlite import Database, StorageFailed
from layer8.net.storage import Drop, Put

MIGRATIONS = ("CREATE TABLE things (number INTEGER PRIMARY KEY, word TEXT NOT NULL DEFAULT '', data BLOB)",)


def write_for_ever(path: Path) -> None:
    """Acknowledge each transaction on stdout once it is done."""
    database = Database(path, MIGRATIONS)
    for number in range(1_000_000):
        database.apply([Put("things", {"number": number, "word": "a" * 500}), Put("things", {"number": -number - 1})])
        print(number, flush=True)


def fill(folder: Path) -> None:
    """Write until the disk is full, then read, make room and write again; tell what happened as JSON."""
    database = Database(folder / "full.db", MIGRATIONS)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(200_000))
    done = 0
    reasons: list[str] = []
    while len(reasons) < 3:
        try:
            database.apply([Put("things", {"number": done, "data": bytes(20_000)})])
            done += 1
        except StorageFailed as failed:
            reasons.append(failed.reason)
    readable = len(database.rows("things"))
    ballast.unlink()
    database.apply([Drop("things", {"number": 0}), Put("things", {"number": -1})])
    after = len(database.rows("things"))
    print(json.dumps({"done": done, "reasons": reasons, "readable": readable, "after": after}))


if __name__ == "__main__":
    {"write": write_for_ever, "fill": fill}[sys.argv[1]](Path(sys.argv[2]))
