"""Sets of keys that are signed for some days in advance, so that the identity key never comes to the gateway.

The file has one JSON object a line, for each day {"epoch": hours, "secret": base64url, "set": the signed set as text};
it holds the private keys of all those days, and is as secret as they are. It is made where the identity key is, carried
to the gateway, and read there as `signed_file`; the next one is put in its place before the last day has come.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

from layer8.core.errors import ConfigError
from layer8.crypto.keys import NodeKey
from layer8.tunnel.keys import HOUR, BadKeys, GatewayKey, KeySet, ahead, own_hour
from layer8.tunnel.keystore import KeyRow
from layer8.tunnel.settings import Settings

DAY = 24  # hours


def sign_ahead(settings: Settings, identity: NodeKey, now: float, days: int) -> bytes:
    """Make keys for some days from now on and sign their sets; give the file. Raises `ConfigError`."""
    if days < 1:
        raise ConfigError("key sets are signed for at least one day")
    here = int(now // HOUR)
    first = here - (here - own_hour(settings.gateway)) % DAY
    keys = [GatewayKey.make(first + DAY * day) for day in range(days)]
    sets = ahead(identity, set_of(settings, keys[0]), keys)
    lines = [
        {
            "epoch": key.epoch,
            "secret": urlsafe_b64encode(key.dump()).decode("ascii"),
            "set": document.decode("ascii"),
        }
        for key, document in zip(keys, sets, strict=True)
    ]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def read_signed(data: bytes, settings: Settings) -> list[KeyRow]:
    """Read such a file; raises `ConfigError` for one that is damaged, or of other settings."""
    rows = []
    try:
        for line in data.splitlines():
            told = json.loads(line)
            row = KeyRow(told["epoch"], urlsafe_b64decode(told["secret"]), told["set"].encode("ascii"))
            key = GatewayKey.load(row.epoch, row.secret)
            if _payload(row.document) != _payload(set_of(settings, key).sign(_NOBODY)):
                raise ConfigError("signed_file is of another gateway, or of other settings: sign anew")
            rows.append(row)
    except (KeyError, TypeError, ValueError, AttributeError, BadKeys):
        raise ConfigError("signed_file is damaged, or something else") from None
    if not rows:
        raise ConfigError("signed_file is empty")
    return rows


def set_of(settings: Settings, key: GatewayKey) -> KeySet:
    """Give what is signed and served of a key."""
    return key.key_set(
        settings.gateway,
        settings.authorities,
        chacha=settings.chacha,
        chunked=settings.chunked,
        following=settings.following,
    )


_NOBODY = NodeKey.make()


def _payload(document: bytes) -> str:
    return str(json.loads(document)["payload"])
