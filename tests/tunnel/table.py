"""Requests that have to come out as they do without a tunnel: rows for every client, against `tests.tunnel.backend`.

Each row is asked twice, plainly and through the tunnel. `answered` and `heard` give what has to be equal: what the
client is told, and what the backend has heard.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final
from urllib.parse import urlencode

from attrs import frozen

from tests.tunnel.backend import Called

TEXT: Final = "text/plain;charset=UTF-8"
FORM: Final = "application/x-www-form-urlencoded;charset=UTF-8"

UNEQUAL: Final = frozenset(
    (
        *("accept-encoding", "accept-language", "connection", "content-length", "date", "dnt", "host", "keep-alive"),
        *("l8-encapsulated", "origin", "pragma", "cache-control", "priority", "referer", "te", "user-agent"),
        *("upgrade-insecure-requests", "accept-charset", "sec-gpc"),
    )
)
"""Fields of requests that clients and browsers write by themselves."""
PASSING: Final = frozenset(("connection", "date", "keep-alive", "server", "transfer-encoding", "content-length"))
"""Fields of answers that belong to a connection or a moment; the length of what is read is compared."""


@frozen
class Row:
    """A request; `fails` says that there is no answer, or none that is whole."""

    name: str
    path: str
    method: str = "GET"
    fields: tuple[tuple[str, str], ...] = ()
    body: str | bytes | tuple[tuple[str, str], ...] | None = None  # text, bytes, or the pairs of a form
    redirect: str = "follow"
    fails: bool = False
    unlike: frozenset[str] = frozenset()  # fields of the answer that may differ

    def content(self) -> tuple[bytes, str] | None:
        """Give the content with its type, "" for none, as browsers write them."""
        if self.body is None:
            return None
        if isinstance(self.body, bytes):
            return self.body, ""
        if isinstance(self.body, str):
            return self.body.encode(), TEXT
        return urlencode(self.body).encode(), FORM

    def init(self) -> dict[str, Any]:
        """Give the second argument of `fetch`, in JSON; `body` is for `BODY_JS`."""
        init: dict[str, Any] = {"method": self.method, "headers": [list(one) for one in self.fields]}
        if isinstance(self.body, bytes):
            init["body"] = {"bytes": b64encode(self.body).decode()}
        elif isinstance(self.body, str):
            init["body"] = {"text": self.body}
        elif self.body is not None:
            init["body"] = {"pairs": [list(one) for one in self.body]}
        return {**init, "redirect": self.redirect}


BODY_JS: Final = """
const bodyOf = (body) => body === undefined ? undefined
  : "text" in body ? body.text
  : "pairs" in body ? new URLSearchParams(body.pairs)
  : Uint8Array.from(atob(body.bytes), (one) => one.charCodeAt(0));
"""


def heard(called: Called) -> dict[str, Any]:
    """Give what of a request has to be equal."""
    fields = [pair for pair in called.fields if pair[0] not in UNEQUAL and not pair[0].startswith("sec-")]
    return {"method": called.method, "uri": called.uri, "fields": fields, "size": called.size, "sha256": called.sha256}


def answered(row: Row, told: dict[str, Any]) -> dict[str, Any]:
    """Give what of an answer has to be equal.

    `told` has status, fields (pairs), size, sha256, path and redirected.
    """
    if told.get("failed"):
        return {"failed": True}
    hidden = PASSING | row.unlike | {"set-cookie"}
    fields = sorted([name, value] for name, value in told["fields"] if name not in hidden)
    # What /echo says is compared by `heard`.
    names = ("status", "path", "redirected", *(() if told["path"].startswith("/echo") else ("size", "sha256")))
    return {**{name: told[name] for name in names}, "fields": fields}


BYTES = bytes(range(256))
STATUSES = (200, 201, 202, 203, 204, 205, 400, 401, 403, 404, 405, 409, 410, 418, 422, 429, 451, 500, 501, 503, 599)

ROWS: Final[tuple[Row, ...]] = (
    # where to
    Row("plain", "/echo"),
    Row("a query", "/echo?a=1&a=2&b="),
    Row("a query with everything", "/echo?q=a+b%20c%26d/e?f:@!$'()*,;~-._%C3%A9"),
    Row("letters that are escaped", '/echo/é/a b/"<>?q=é ü"<>'),
    Row("escapes that stay", "/echo/%7Ex/%41/a%20b"),
    Row("marks in a path", "/echo/!$&'()*+,;=:@~-._/|^[]"),
    Row("dots", "/echo/a/../b/./c"),
    Row("an empty segment", "/echo/a//b/"),
    Row("a fragment", "/echo?x=1#fragment"),
    Row("a long path", f"/echo/{'p' * 4000}?{'q' * 3000}"),
    Row("no such page", "/nothing/here"),
    # how
    *(Row(f"{method} without a body", "/echo", method) for method in ("POST", "PUT", "DELETE", "OPTIONS", "REPORT")),
    Row("a method in small letters", "/echo", "post", body="x"),
    Row("HEAD", "/bytes/100", "HEAD"),
    Row("HEAD of what is not there", "/nothing", "HEAD"),
    # with what
    Row("a text", "/echo", "POST", body="Grüße, 世界"),
    Row("an empty text", "/echo", "POST", body=""),
    Row("a form", "/echo", "POST", body=(("a", "1"), ("b c", "d&e=f"), ("é", "ü"))),
    Row("every byte", "/echo", "PUT", body=BYTES),
    Row("a byte", "/echo", "PATCH", body=b"\0"),
    Row("no bytes", "/echo", "POST", body=b""),
    Row("DELETE with a body", "/echo", "DELETE", body="gone"),
    Row("OPTIONS with a body", "/echo", "OPTIONS", body="which"),
    *(Row(f"{size} bytes", "/echo", "POST", body=(BYTES * 300)[:size]) for size in (16_384, 70_000)),
    Row("a mebibyte", "/echo", "POST", body=BYTES * 4096),
    Row("another type", "/echo", "POST", (("Content-Type", "application/json"),), '{"a": 1}'),
    # fields
    Row("a field", "/echo", fields=(("X-Thing", 'value; with="marks", and more'),)),
    Row("an empty field", "/echo", fields=(("X-Nothing", ""),)),
    Row("a field with space around", "/echo", fields=(("X-Space", "  in  the middle  "),)),
    Row("a field twice", "/echo", fields=(("X-Twice", "one"), ("X-Twice", "two"))),
    Row("a field of other letters", "/echo", fields=(("X-Latin", "caf\xe9"),)),
    Row("accept", "/echo", fields=(("Accept", "application/json"),)),
    Row("authorization", "/echo", fields=(("Authorization", "Basic dTpw"),)),
    Row("sixty fields", "/echo", fields=tuple((f"X-Field-{number:02}", "v" * number) for number in range(60))),
    # what comes back
    *(Row(f"status {status}", f"/status/{status}") for status in STATUSES),
    Row("POST and a status", "/status/404", "POST", body="x"),
    Row("fields that come twice", "/fields"),
    *(Row(f"{size} bytes back", f"/bytes/{size}") for size in (0, 1, 16_384, 1_000_000)),
    *(Row(f"{size} bytes in pieces", f"/chunked/{size}") for size in (0, 1, 50_000)),
    Row("a range", "/bytes/1000", fields=(("Range", "bytes=10-19"),)),
    Row("the end", "/bytes/1000", fields=(("Range", "bytes=-5"),)),
    Row("from the middle", "/bytes/1000", fields=(("Range", "bytes=900-"),)),
    Row("a range that is none", "/bytes/1000", fields=(("Range", "bytes=2000-1000"),)),
    Row("what one has already", "/bytes/9", fields=(("If-None-Match", '"9"'),)),
    Row("what one has otherwise", "/bytes/9", fields=(("If-None-Match", '"8"'),)),
    Row("a picture", "/image.png"),
    Row("less than was promised", "/break", fails=True),
    # elsewhere
    Row("a redirect", "/redirect/1"),
    Row("five redirects", "/redirect/5"),
    Row("twenty redirects", "/redirect/20"),
    Row("too many", "/redirect/21", fails=True),
    Row("a redirect that is an error", "/redirect/1", redirect="error", fails=True),
    *(
        Row(f"{method} and {status}", f"/redirect-to?url=/echo&status={status}", method, body="content")
        for method, status in (*(("POST", status) for status in (301, 302, 303, 307, 308)), ("PUT", 301), ("PUT", 303))
    ),
    Row("HEAD and 303", "/redirect-to?url=/echo&status=303", "HEAD"),
    Row("a redirect with a field", "/redirect/1", fields=(("X-Thing", "stays"), ("Authorization", "Basic dTpw"))),
    Row("a redirect to a place beside", "/redirect-to?url=echo%3Fx%3D1"),
    Row("a redirect with a fragment", "/redirect-to?url=/echo%23there"),
    Row("a redirect to letters that are escaped", "/redirect-to?url=/echo/%C3%A9"),
    Row("a redirect to nowhere", "/redirect-to?url=http://%5B", fails=True),
    Row("a redirect without an address", "/status/302"),
    Row("300", "/redirect-to?url=/echo&status=300"),
)
