"""The backends that are measured with and without the tunnel: `python -m bench.tunnel_backend PORT [STATE]`.

That is a trivial twisted.web server; with a folder for its keys the gateway is in it (`L8Resource`). `flask` and
`django` are for gunicorn, with the gateway in front if L8_STATE names a folder; what they answer with is what such
programs do: a page of notes out of SQLite, by a template. A gateway is called as its folder is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

AUTHORITY: Final = "bench.test"
SMALL: Final = "/small"
DOWN: Final = "/down/"
UP: Final = "/up"
PAGE: Final = "/page"
TEXT: Final = b"hello from the backend"
PIECE: Final = bytes(64 * 1024)


def settings(state: str) -> dict[str, Any]:
    """Give what a gateway here is told."""
    return {"gateway": Path(state).name, "authorities": [AUTHORITY], "state": state}


def root() -> Any:
    """Make the resource: a small answer, a stream of a wanted length, and a place to send one to."""
    from twisted.web.resource import Resource
    from twisted.web.server import NOT_DONE_YET

    class Small(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            request.setHeader(b"content-type", b"text/plain")
            return TEXT

    class Page(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            request.setHeader(b"content-type", b"text/html")
            return b"<!doctype html><title>plain</title>"

    class Stream:
        """As a producer: so many bytes, when there is room."""

        def __init__(self, request: Any, left: int) -> None:
            self._request = request
            self._left = left
            request.registerProducer(self, False)

        def resumeProducing(self) -> None:
            self._left -= (size := min(self._left, len(PIECE)))
            self._request.write(PIECE[:size])
            if not self._left:
                self._request.unregisterProducer()
                self._request.finish()

        def stopProducing(self) -> None:
            self._left = 0

    class Down(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> int:
            left = int(request.path.rpartition(b"/")[2])
            request.setHeader(b"content-type", b"application/octet-stream")
            request.setHeader(b"content-length", b"%d" % left)
            Stream(request, left)
            return NOT_DONE_YET

    class Up(Resource):
        isLeaf = True

        def render_POST(self, request: Any) -> bytes:
            size = request.content.seek(0, os.SEEK_END)
            return b"%d" % size

    top = Resource()
    kinds: dict[str, Any] = {SMALL: Small, DOWN: Down, UP: Up, PAGE: Page}
    for path, kind in kinds.items():
        top.putChild(path.strip("/").encode(), kind())
    return top


def serve(port: int, state: str = "") -> None:
    """Serve until the end."""
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor
    from twisted.web.server import Site

    from layer8.tunnel.resource import L8Resource

    loop: Any = reactor
    site = L8Resource(root(), reactor=loop, **settings(state)).site() if state else Site(root())
    loop.listenTCP(port, site, interface="127.0.0.1", backlog=1024)
    loop.run()


NOTES: Final = 20
TABLE: Final = "CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, text TEXT)"
TEMPLATE: Final = """<!doctype html><title>Notes</title><h1>Notes</h1><ul>
{% for note in notes %}<li id="n{{ note.id }}"><b>{{ note.title }}</b> {{ note.text }}</li>
{% endfor %}</ul>"""


def _notes() -> list[tuple[int, str, str]]:
    return [(number, f"Note {number}", f"Buy {number} & more") for number in range(1, NOTES + 1)]


def flask() -> Any:
    """Make the Flask application."""
    import sqlite3

    from flask import Flask, render_template_string

    app = Flask(__name__)
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute(TABLE)
    connection.executemany("INSERT INTO note VALUES (?, ?, ?)", _notes())

    @app.get(SMALL)
    def small() -> str:
        notes = connection.execute("SELECT * FROM note ORDER BY id").fetchall()
        return render_template_string(TEMPLATE, notes=notes)

    return _guarded(app)


def django() -> Any:
    """Make the Django application, with the middleware of a new project."""
    import django as package
    from django.conf import settings as configured

    configured.configure(
        SECRET_KEY="bench",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
        ],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    package.setup()
    from django.core.wsgi import get_wsgi_application
    from django.db import connection, models
    from django.http import HttpResponse
    from django.template import engines
    from django.urls import path

    made: Any = type(
        "Note",
        (models.Model,),
        {
            "__module__": __name__,
            "Meta": type("Meta", (), {"app_label": "bench", "db_table": "note"}),
            "title": models.TextField(),
            "text": models.TextField(),
        },
    )
    with connection.cursor() as cursor:
        cursor.execute(TABLE)
        cursor.executemany("INSERT INTO note VALUES (%s, %s, %s)", _notes())
    template = engines["django"].from_string(TEMPLATE)

    def small(request: Any) -> Any:
        return HttpResponse(template.render({"notes": made.objects.order_by("id")}, request))

    globals()["urlpatterns"] = [path(SMALL.strip("/"), small)]
    return _guarded(get_wsgi_application())


def _guarded(app: Any) -> Any:
    from layer8.tunnel.wsgi import L8Middleware

    state = os.environ.get("L8_STATE", "")
    return L8Middleware(app, **settings(state)) if state else app


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
