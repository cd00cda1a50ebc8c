"""The smallest backends: they say which process has answered, give bytes, take them, and note what they were asked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from typing import Any

from layer8.tunnel.asgi import L8Middleware as AsgiMiddleware
from layer8.tunnel.wsgi import L8Middleware

PIECE = 65_536
TAKES_S = 0.1
"""Seconds that what was noted takes from then on: whenever a process is killed, something is in its hands."""


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer by WSGI."""
    path = environ["PATH_INFO"]
    if path.startswith("/bytes/"):
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return (bytes(PIECE) for _ in range(int(path[7:]) // PIECE))
    body = b"%d" % os.getpid()
    if path.startswith("/note/"):
        note(f"{os.getpid()} {environ['REQUEST_METHOD']} {path[6:]} {environ['wsgi.input'].read().decode()}")
    if path == "/sink":
        size, digest = 0, hashlib.sha256()
        while data := environ["wsgi.input"].read(PIECE):
            size += len(data)
            digest.update(data)
        body = f"{size} {digest.hexdigest()}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def note(line: str) -> None:
    """Add a line to the file that the environment names, whole, whatever happens to this process afterwards."""
    file = os.open(os.environ["L8_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)
    time.sleep(TAKES_S)


async def ahello(scope: Any, receive: Any, send: Any) -> None:
    """Answer by ASGI."""
    path, body = scope["path"], b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if path.startswith("/bytes/"):
        for _ in range(int(path[7:]) // PIECE):
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})
        body = b""
    elif path == "/sink":
        size, digest, more = 0, hashlib.sha256(), True
        while more:
            event = await receive()
            size += len(event["body"])
            digest.update(event["body"])
            more = event["more_body"]
        body = f"{size} {digest.hexdigest()}".encode()
    await send({"type": "http.response.body", "body": body})


def _settings() -> dict[str, Any]:
    return {
        "gateway": os.environ.get("L8_GATEWAY", "shop"),
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
