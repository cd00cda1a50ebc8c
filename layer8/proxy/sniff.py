"""What a sniffer says about a visitor's first bytes: where they go, or why they are refused and with which answer.

A sniffer is fed what arrives until it decides; it keeps the bytes exactly as they came, for whoever is to have them.
See `sniff_http` and `sniff_tls` for the two kinds of port.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from attrs import define

TEXTS = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    414: "URI Too Long",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
# RFC 9110, 15.5.6: a 405 must say what is allowed; every method but CONNECT is.
MORE = {405: "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"}


class Reason(StrEnum):
    """Why a visitor was refused before it was routed; the words of the access log, never sent to anybody."""

    NOT_TLS = "not_tls"  # the TLS port got something else, an alert, or a message before the hello
    BAD_RECORD = "bad_record"  # TLS record version or length, or too many empty records
    BAD_HELLO = "bad_hello"  # not a ClientHello, or lengths in it that do not add up
    LONG_HELLO = "long_hello"  # over SNIFF_TLS
    BAD_NAME = "bad_name"  # SNI or Host is not a host name
    MANY_NAMES = "many_names"  # two server_name extensions, host_names or Host fields
    NOT_HTTP = "not_http"  # a TLS record on the HTTP port
    PROXY_HEADER = "proxy_header"  # a PROXY protocol line from somebody who is not trusted to send one
    BAD_REQUEST = "bad_request"  # the request line
    BAD_FIELD = "bad_field"  # a header field line
    BAD_TARGET = "bad_target"  # a request target that is not for this server
    BAD_METHOD = "bad_method"  # CONNECT
    BAD_VERSION = "bad_version"  # HTTP, but neither 1.0 nor 1.1
    NO_HOST = "no_host"  # HTTP/1.1 or 2 without a host
    OTHER_HOST = "other_host"  # the target and the Host field name different hosts
    LONG_HEAD = "long_head"  # over SNIFF_HTTP
    MANY_FIELDS = "many_fields"  # over FIELDS
    BAD_H2 = "bad_h2"  # HTTP/2 that breaks RFC 9113 before its first request is known
    SLOW = "slow"  # no complete head or hello in time


@define(eq=False)
class Found:
    """Where the visitor wants to go; `host` is None if it named none, which means the default host.

    `scheme` is `http` or `https`; `alpn` holds the protocols that a ClientHello offered, in its order.
    """

    scheme: str
    host: str | None
    alpn: tuple[bytes, ...] = ()


@define(eq=False)
class Refused:
    """The visitor is to be closed, after `answer` if that is not empty."""

    reason: Reason
    answer: bytes = b""


Outcome = Found | Refused


class Sniffer(Protocol):
    """Bytes in until there is an outcome; then it is done, and feeding it again is the owner's mistake."""

    @property
    def data(self) -> bytes:
        """Give every byte that was fed, in order."""

    @property
    def work(self) -> int:
        """Count the bytes looked at so far, those looked at twice counted twice; never more than 2 x the bytes fed."""

    def feed(self, data: bytes) -> Outcome | None:
        """Take what arrived; None means that more is needed, and then no more than the port's limit is kept."""

    def late(self) -> Refused:
        """Give the outcome for a visitor whose time is up before there was another."""


def answer(status: int) -> bytes:
    """Give a complete HTTP/1.1 response that says only its own status, after which the connection is closed."""
    text = TEXTS[status]
    return (
        f"HTTP/1.1 {status} {text}\r\n{MORE.get(status, '')}Content-Type: text/plain\r\n"
        f"Content-Length: {len(text) + 1}\r\nConnection: close\r\n\r\n{text}\n"
    ).encode("ascii")


def alert(description: int) -> bytes:
    """Give a fatal TLS alert record (RFC 8446, 6)."""
    # type 21 | version 0x0303 | length 2 | level 2 | description
    return bytes((21, 3, 3, 0, 2, 2, description))


# What an unknown host is told with `unknown = "answer"`: 404, or unrecognized_name.
UNKNOWN = {"http": answer(404), "https": alert(112)}
