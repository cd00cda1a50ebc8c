"""Notes behind the tunnel, with Flask: `gunicorn -w 4 app:app` in this folder, with L8_STATE in the environment."""

import hashlib
import os
import time
from collections.abc import Iterator

from flask import Flask, Response, abort, jsonify, redirect, request, session

from layer8.tunnel.wsgi import L8Middleware

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET", "only for trying")
notes = {7: "Buy milk"}


@app.get("/notes/<int:number>")
def note(number: int) -> Response:
    """Read a note; `l8.encapsulated` says that it was asked for through the tunnel."""
    if number not in notes:
        abort(404)
    return jsonify(note=notes[number], tunnel=request.environ["l8.encapsulated"], address=request.remote_addr)


@app.post("/notes")
def add() -> Response:
    """Write a note, from a form or JSON."""
    number = len(notes) + 7
    notes[number] = (request.get_json() if request.is_json else request.form)["text"]
    return jsonify(number=number)


@app.post("/upload")
def upload() -> Response:
    """Take files: nothing about the tunnel here."""
    told = {}
    for name, file in request.files.items():
        digest = hashlib.sha256()
        while data := file.read(65_536):
            digest.update(data)
        told[name] = {"filename": file.filename, "size": file.tell(), "sha256": digest.hexdigest()}
    return jsonify(told | request.form.to_dict())


@app.post("/echo")
def echo() -> Response:
    """Give the content back as it comes."""
    stream = request.stream

    def pieces() -> Iterator[bytes]:
        while data := stream.read(16_384):
            yield data

    return Response(pieces(), mimetype=request.mimetype or "application/octet-stream")


@app.get("/events")
def events() -> Response:
    """Tell things as they happen."""
    times, gap = int(request.args.get("n", 10)), float(request.args.get("gap", 0.1))

    def pieces() -> Iterator[str]:
        for number in range(times):
            yield f"id: {number}\ndata: tick {number}\n\n"
            time.sleep(gap)

    return Response(pieces(), mimetype="text/event-stream")


@app.post("/login")
def login() -> Response:
    """Begin a session; its cookie stays inside of the tunnel."""
    session["user"] = request.form["user"]
    answer = redirect("/me")
    assert isinstance(answer, Response)
    return answer


@app.get("/me")
def me() -> Response:
    """Say who is logged in."""
    return jsonify(user=session.get("user"))


app.wsgi_app = L8Middleware(  # type: ignore[method-assign]
    app.wsgi_app,
    gateway=os.environ.get("L8_GATEWAY", "shop"),
    authorities=[os.environ.get("L8_AUTHORITY", "shop.example")],
    state=os.environ.get("L8_STATE"),
    identity_file=os.environ.get("L8_IDENTITY_FILE"),
    database_file=os.environ.get("L8_DATABASE_FILE"),
    require=["/me"],
)
