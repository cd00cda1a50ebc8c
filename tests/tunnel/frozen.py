"""Makes `tests/vectors/tunnel-1.json`: fixed keys and what they make, for implementations in other languages.

`python -m tests.tunnel.frozen` prints it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from layer8.core.session import Send
from layer8.crypto.hpke_context import Private
from layer8.crypto.keys import NodeKey
from layer8.crypto.noise import NAMELESS, Handshake, Keys
from layer8.tunnel import bhttp, frames, wire
from layer8.tunnel.bhttp import Request, Response
from layer8.tunnel.client_session import ClientExchange, dressed
from layer8.tunnel.frames import Kind, Message
from layer8.tunnel.jws import key_name
from layer8.tunnel.keys import HOUR, GatewayKey, pin_text
from layer8.tunnel.wire import HEAD, Head

GATEWAY: Final = "shop"
EPOCH: Final = 500_000
NOW: Final = EPOCH * HOUR + 1234.5  # seconds since 1970
CONTENT: Final = b"a note"
ANSWER: Final = b"noted"


def secret(first: int) -> bytes:
    return bytes(range(first, first + 32))


def exchange(key: GatewayKey, *, chunked: bool) -> dict[str, Any]:
    """One request and its answer, both padded."""
    told = key.key_set(GATEWAY, ["shop.example"], chunked=chunked)
    fields = ((b"content-type", b"text/plain"),)
    request = dressed(Request(b"POST", b"https", b"shop.example", b"/notes?q=1", fields), "https://shop.example", NOW)
    client = ClientExchange(told, request, Private.load(secret(0x60)), 0.0, length=len(CONTENT))
    client.write(CONTENT, 0.0)
    client.finish(0.0)
    sealed = b"".join(effect.data for effect in client.effects() if isinstance(effect, Send))
    media, head = client.media, Head.read(sealed[:HEAD])
    _, context = wire.open_request(media, head, key.ohttp)
    response = bhttp.write(Response(201, fields), ANSWER)
    nonce = bytes(range(0xA0, 0xB0))
    answer = wire.seal_answer(media, context, head.aead, nonce)
    return {
        "type": media.request,
        "ephemeral": secret(0x60).hex(),
        "inside": bhttp.write(request, CONTENT).hex(),
        "padded_to": 512,
        "request": sealed.hex(),
        "answer_type": media.response,
        "nonce": nonce.hex(),
        "answer_inside": response.hex(),
        "answer": answer.finish(frames.fill(response, 512)).hex(),
    }


def socket(key: GatewayKey) -> dict[str, Any]:
    """The two messages of a handshake, and the first frame of each side."""
    prologue = frames.prologue(GATEWAY, EPOCH)
    request = bhttp.write(Request(b"GET", b"https", b"shop.example", b"/chat"))
    page = Handshake(
        NAMELESS,
        Keys(ephemeral=Private.load(secret(0x80)).key),
        prologue,
        initiator=True,
        remote=key.noise.public,
    )
    gateway = Handshake(NAMELESS, Keys(key.noise.key, Private.load(secret(0xC0)).key), prologue, initiator=False)
    first = page.write(frames.fill(request, frames.FIRST))
    gateway.read(first)
    second = gateway.write(frames.fill(bhttp.write(Response(200)), frames.SECOND))
    page.read(second)
    (opening,), (opened,) = frames.frames(Message(Kind.OPEN)), frames.frames(Message(Kind.OPENED, b"chat.v2"))
    return {
        "prologue": prologue.hex(),
        "page_ephemeral": secret(0x80).hex(),
        "gateway_ephemeral": secret(0xC0).hex(),
        "inside": request.hex(),
        "first": first.hex(),
        "second": second.hex(),
        "hash": page.hash.hex(),
        "open": page.split()[0].seal(opening).hex(),
        "opened": gateway.split()[0].seal(opened).hex(),
    }


def vector() -> dict[str, Any]:
    """All of it."""
    identity, key = NodeKey.from_seed(secret(0)), GatewayKey.load(EPOCH, secret(0x20) + secret(0x40))
    return {
        "about": "layer8 browser tunnel, docs/tunnel-wire.md; made by tests/tunnel/frozen.py",
        "keys": {
            "identity_seed": secret(0).hex(),
            "pin": pin_text(identity.node_id),
            "kid": key_name(identity.node_id),
            "epoch": EPOCH,
            "private": key.ohttp.dump().hex(),
            "public": key.ohttp.public.hex(),
            "noise_private": key.noise.dump().hex(),
            "noise_public": key.noise.public.hex(),
            "document": key.config().document().hex(),
            "set": key.key_set(GATEWAY, ["shop.example"]).sign(identity).decode(),
        },
        "chunked": exchange(key, chunked=True),
        "one_piece": exchange(key, chunked=False),
        "socket": socket(key),
    }


if __name__ == "__main__":
    print(json.dumps(vector(), indent=1))
