"""The table as an OpenRPC 1.3 document: what `rpc.discover` answers and what `docs/openrpc.json` freezes.

What OpenRPC has no word for stands in `x-` members: a method's roles, its time in seconds, the role that a listener
must let through, and all events. Source: https://spec.open-rpc.org (1.3.2).
"""

from __future__ import annotations

from typing import Any, Final

import layer8
from layer8.control.access import Caller
from layer8.control.errors import (
    CallRefused,
    CallTimedOut,
    CallUnavailable,
    ControlError,
    Forbidden,
    Internal,
    InvalidParams,
    NoCapacity,
    RateLimited,
)
from layer8.control.scalars import Components, Schema
from layer8.control.shape import json_schema, object_schema
from layer8.control.table import Event, Method, Table

VERSION: Final = "1.3.2"
EVERYWHERE: Final[tuple[type[ControlError], ...]] = (
    InvalidParams,
    Internal,
    Forbidden,
    RateLimited,
    NoCapacity,
    CallTimedOut,
    CallUnavailable,
    CallRefused,
)  # what any method may answer, beside its own


def document(table: Table, caller: Caller | None = None, module: str = "") -> dict[str, Any]:
    """Describe the methods and events that `caller` may use, or all of them; only those of `module` if it is named."""
    components = Components()

    def wanted(row: Method | Event) -> bool:
        return module in ("", row.name.partition(".")[0]) and (caller is None or table.may(caller, row))

    rows = [row for row in table.methods.values() if wanted(row)]
    events = [event for event in table.announced.values() if wanted(event)]
    described = {
        "openrpc": VERSION,
        "info": {"title": "layer8", "version": layer8.__version__},
        "methods": [_method(row, components) for row in sorted(rows, key=lambda row: row.name)],
        "x-events": [_event(event, components) for event in sorted(events, key=lambda event: event.name)],
    }
    described["components"] = {
        "schemas": dict(sorted(components.schemas.items())),
        "errors": {kind.name: _error(kind) for kind in EVERYWHERE},
    }
    return described


def _method(row: Method, components: Components) -> dict[str, Any]:
    wanted = object_schema(row.params, components)
    described: dict[str, Any] = {
        "name": row.name,
        "description": row.doc,
        "paramStructure": "by-name",
        "params": [_param(name, schema, name in wanted["required"]) for name, schema in wanted["properties"].items()],
        "result": {"name": "result", "schema": json_schema(row.result, components)},
        "errors": [
            *(_error(kind) for kind in row.errors if kind not in EVERYWHERE),
            *({"$ref": f"#/components/errors/{kind.name}"} for kind in EVERYWHERE),
        ],
        "x-roles": list(row.roles),
        "x-timeout-s": row.timeout,
    }
    if row.within is not None:
        described["x-within"] = row.within
    return described


def _param(name: str, schema: Schema, required: bool) -> dict[str, Any]:
    described = dict(schema)
    said = described.pop("description", None)
    param: dict[str, Any] = {"name": name, "required": required, "schema": described}
    return param | {"description": said} if said else param


def _error(kind: type[ControlError]) -> dict[str, Any]:
    return {"code": kind.code, "message": kind.name}


def _event(event: Event, components: Components) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": event.name,
        "description": (event.data.__doc__ or "").strip().partition("\n")[0],
        "role": event.role,
        "data": json_schema(event.data, components),
    }
    return described | {"key": event.key} if event.key else described
