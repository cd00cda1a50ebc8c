"""The smallest backends: they say which process has answered."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from layer8.tunnel.asgi import L8Middleware as AsgiMiddleware
from layer8.tunnel.wsgi import L8Middleware


def hello(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer by WSGI."""
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def ahello(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer by ASGI."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


def _settings() -> dict[str, Any]:
    return {
        "gateway": "shop",
        "authorities": ["shop.example"],
        "state": os.environ.get("L8_STATE"),
        "identity_file": os.environ.get("L8_IDENTITY_FILE"),
        "database_file": os.environ.get("L8_DATABASE_FILE"),
    }


def wsgi() -> L8Middleware:
    """Make the WSGI application."""
    return L8Middleware(hello, **_settings())


def asgi() -> AsgiMiddleware:
    """Make the ASGI application."""
    return AsgiMiddleware(ahello, **_settings())
