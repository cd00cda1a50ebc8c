"""A registration as a JSON value, for those who are told of it: all of it but its compiled rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from layer8.control.shape import from_json, to_json
from layer8.proxy.orders import Policy
from layer8.proxy.registration import Ownership, Registration, StoredSecret, gate

_SAME = ("host", "owner", "mode", "created", "proven", "expires", "version", "target", "static")


def pack(row: Registration) -> dict[str, Any]:
    """Give the JSON value; it holds the hashes of the secrets."""
    return {
        **{name: getattr(row, name) for name in _SAME},
        "ports": list(row.ports),
        "secrets": [[secret.key.hex(), secret.retires] for secret in row.secrets],
        "policy": to_json(row.policy),
        "state": row.state.value,
    }


def unpack(value: Mapping[str, Any]) -> Registration:
    """Give the registration that was packed; its rules were counted where it was made."""
    policy = from_json(Policy, value["policy"])
    return evolve(
        Registration(value["host"], value["owner"]),
        **{name: value[name] for name in _SAME},
        ports=tuple(value["ports"]),
        secrets=tuple(StoredSecret(bytes.fromhex(key), retires) for key, retires in value["secrets"]),
        policy=policy,
        state=Ownership(value["state"]),
        gate=gate(policy, len(policy.allow) + len(policy.deny)),
    )
