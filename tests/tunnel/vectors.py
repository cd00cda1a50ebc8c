"""The published numbers of `ohttp.json`, read in place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[3] / "shared" / "vectors"
FOLDER = Path(os.environ.get("LAYER8_VECTORS", SHARED))
ABSENT = None if (FOLDER / "ohttp.json").is_file() else "no ohttp.json in LAYER8_VECTORS or ../shared/vectors"


def rows(name: str) -> Any:
    """Give one part of the file."""
    return json.loads((FOLDER / "ohttp.json").read_text())[name]


def unhex(row: dict[str, Any], *names: str) -> list[bytes]:
    """Give some values of a row."""
    return [bytes.fromhex(row[name]) for name in names]
