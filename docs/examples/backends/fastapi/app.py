"""Notes behind the tunnel, with FastAPI: `uvicorn app:app` in this folder, with L8_STATE in the environment."""

import asyncio  # noqa: TID251, FastAPI runs on it
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from layer8.tunnel.asgi import L8Middleware

api = FastAPI()
notes = {7: "Buy milk"}
sessions: dict[str, str] = {}


@api.get("/notes/{number}")
async def note(number: int, request: Request) -> dict[str, Any]:
    """Read a note; `l8.encapsulated` says that it was asked for through the tunnel."""
    if number not in notes:
        raise HTTPException(404)
    address = request.client.host if request.client else None
    return {"note": notes[number], "tunnel": request.scope["l8.encapsulated"], "address": address}


@api.post("/notes")
async def add(request: Request) -> dict[str, int]:
    """Write a note, from a form or JSON."""
    told = await (request.json() if "json" in request.headers.get("content-type", "") else request.form())
    number = len(notes) + 7
    notes[number] = str(told["text"])
    return {"number": number}


@api.post("/upload")
async def upload(picture: UploadFile) -> dict[str, Any]:
    """Take a file: nothing about the tunnel here."""
    digest, size = hashlib.sha256(), 0
    while data := await picture.read(65_536):
        digest.update(data)
        size += len(data)
    return {"picture": {"filename": picture.filename, "size": size, "sha256": digest.hexdigest()}}


@api.post("/echo")
async def echo(request: Request) -> Response:
    """Give the content back as it comes."""
    return StreamingResponse(request.stream(), media_type=request.headers.get("content-type"))


@api.get("/events")
async def events(n: int = 10, gap: float = 0.1) -> Response:
    """Tell things as they happen."""

    async def pieces() -> AsyncIterator[str]:
        for number in range(n):
            yield f"id: {number}\ndata: tick {number}\n\n"
            await asyncio.sleep(gap)

    return StreamingResponse(pieces(), media_type="text/event-stream")


@api.websocket("/chat")
async def chat(socket: WebSocket) -> None:
    """Say everything back."""
    await socket.accept("chat" if "chat" in socket.scope["subprotocols"] else None)
    try:
        while True:
            await socket.send_text(f"you said {await socket.receive_text()}")
    except WebSocketDisconnect:
        pass


@api.post("/login")
async def login(request: Request) -> Response:
    """Begin a session; its cookie stays inside of the tunnel."""
    key = os.urandom(16).hex()
    sessions[key] = str((await request.form())["user"])
    answer = RedirectResponse("/me", 302)
    answer.set_cookie("session", key, httponly=True, secure=True)
    return answer


@api.get("/me")
async def me(request: Request) -> Response:
    """Say who is logged in."""
    return JSONResponse({"user": sessions.get(request.cookies.get("session", ""))})


app = L8Middleware(
    api,
    gateway=os.environ.get("L8_GATEWAY", "shop"),
    authorities=[os.environ.get("L8_AUTHORITY", "shop.example")],
    state=os.environ.get("L8_STATE"),
    identity_file=os.environ.get("L8_IDENTITY_FILE"),
    database_file=os.environ.get("L8_DATABASE_FILE"),
    require=["/me"],
)
