"""Notes behind the tunnel, with Django in one file: `gunicorn app:application` or `uvicorn app:asgi`.

Nothing but the last lines knows of the tunnel: uploads, CSRF and logins are Django's own.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.urls import path

from layer8.tunnel import asgi as asgi_gateway
from layer8.tunnel import wsgi as wsgi_gateway
from layer8.tunnel.gateway import Gateway
from layer8.tunnel.settings import Settings

AUTHORITY = os.environ.get("L8_AUTHORITY", "shop.example")

settings.configure(
    SECRET_KEY=os.environ.get("SECRET", "only for trying"),
    ALLOWED_HOSTS=[AUTHORITY, "127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    SESSION_COOKIE_SECURE=True,
    CSRF_COOKIE_SECURE=True,
    FILE_UPLOAD_MAX_MEMORY_SIZE=65_536,
)
django.setup()
notes = {7: "Buy milk"}


def note(request: HttpRequest, number: int) -> HttpResponse:
    """Read a note; `l8.encapsulated` says that it was asked for through the tunnel."""
    if number not in notes:
        return HttpResponse(status=404)
    scope = getattr(request, "environ", None) or request.scope  # of WSGI, or of ASGI
    return JsonResponse(
        {"note": notes[number], "tunnel": scope["l8.encapsulated"], "address": request.META.get("REMOTE_ADDR")}
    )


def form(request: HttpRequest) -> HttpResponse:
    """Show a form, with its token against forged requests."""
    return HttpResponse(f"<form method=post><input name=csrfmiddlewaretoken value={get_token(request)}></form>")


def upload(request: HttpRequest) -> HttpResponse:
    """Take files."""
    told: dict[str, Any] = dict(request.POST.items())
    for name, file in request.FILES.items():
        digest = hashlib.sha256()
        for data in file.chunks():
            digest.update(data)
        told[name] = {"filename": file.name, "size": file.size, "sha256": digest.hexdigest()}
    return JsonResponse(told)


def echo(request: HttpRequest) -> HttpResponse:
    """Give the content back."""
    return HttpResponse(request.body, content_type=request.content_type)


def events(request: HttpRequest) -> StreamingHttpResponse:
    """Tell things as they happen."""

    def pieces() -> Iterator[bytes]:
        for number in range(int(request.GET.get("n", 10))):
            yield f"id: {number}\ndata: tick {number}\n\n".encode()
            time.sleep(float(request.GET.get("gap", 0.1)))

    return StreamingHttpResponse(pieces(), content_type="text/event-stream")


def login(request: HttpRequest) -> HttpResponse:
    """Show the form, or begin a session; its cookie stays inside of the tunnel."""
    if request.method != "POST":
        return form(request)
    request.session["user"] = request.POST["user"]
    return HttpResponseRedirect("/me")


def me(request: HttpRequest) -> HttpResponse:
    """Say who is logged in."""
    return JsonResponse({"user": request.session.get("user")})


urlpatterns = [
    path("notes/<int:number>", note),
    path("upload", upload),
    path("echo", echo),
    path("events", events),
    path("login", login),
    path("me", me),
]

gateway = Gateway.open(
    Settings(
        gateway=os.environ.get("L8_GATEWAY", "shop"),
        authorities=[AUTHORITY],
        state=os.environ.get("L8_STATE"),
        identity_file=os.environ.get("L8_IDENTITY_FILE"),
        database_file=os.environ.get("L8_DATABASE_FILE"),
        require=["/me"],
    )
)
application = wsgi_gateway.L8Middleware(get_wsgi_application(), gateway)
asgi = asgi_gateway.L8Middleware(get_asgi_application(), gateway)
