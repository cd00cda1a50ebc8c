"""Everything a call can answer instead of a result: codes, names and their data (control.md section 5).

A protocol adds its own codes by subclassing `ControlError` with a `code` and a `name` of its own; both bindings, the
client and the OpenRPC file find the class by either. Raise these inside a method; raise them from nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from layer8.core.errors import (
    ConfigError,
    Layer8Error,
    Refused,
    RemoteProtocolError,
    StorageError,
    TimedOut,
    Unavailable,
)

_by_code: dict[int, type[ControlError]] = {}
_by_name: dict[str, type[ControlError]] = {}


class ControlError(Layer8Error):
    """A call's answer when it is not a result; `data` is a small JSON object that a program can act on."""

    code: ClassVar[int] = -32000
    name: ClassVar[str] = "error"

    def __init__(self, message: str = "", data: Mapping[str, Any] | None = None) -> None:
        """Say it in one line for people, and in `data` for programs."""
        super().__init__(message or self.name.replace("_", " "))
        self.message = message or self.name.replace("_", " ")
        self.data: dict[str, Any] = dict(data) if data else {}

    def __init_subclass__(cls) -> None:
        """Make the class known by its code and its name, each of which may be taken once."""
        for taken in (_by_code.setdefault(cls.code, cls), _by_name.setdefault(cls.name, cls)):
            if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"{cls.__qualname__}: its code or name already belongs to {taken.__qualname__}")


class ParseFailed(ControlError):
    """The message is not JSON that we take."""

    code = -32700
    name = "parse"


class InvalidRequest(ControlError):
    """The message is JSON, but not a JSON-RPC 2.0 message of ours."""

    code = -32600
    name = "invalid_request"


class MethodNotFound(ControlError):
    """Nobody here answers to that name."""

    code = -32601
    name = "method_not_found"

    def __init__(self, method: str) -> None:
        """Name the method that was asked for."""
        super().__init__("no such method", {"method": method[:128]})


class InvalidParams(ControlError):
    """A parameter is unknown, missing, of the wrong type or out of range."""

    code = -32602
    name = "invalid_params"

    def __init__(self, path: str, why: str) -> None:
        """Point at the parameter (`hosts[3].name`, empty for the whole object) and say what is wanted."""
        super().__init__(f"{path}: {why}" if path else why, {"path": path})


class Internal(ControlError):
    """Our own bug; the caller learns only the id under which the log has the traceback."""

    code = -32603
    name = "internal"

    def __init__(self, ident: str) -> None:
        """Take the id that was logged."""
        super().__init__("internal error", {"id": ident})


class Unauthenticated(ControlError):
    """The proof is not one we know."""

    code = -32001
    name = "unauthenticated"


class Forbidden(ControlError):
    """The caller is known, but not for this."""

    code = -32002
    name = "forbidden"

    def __init__(self, need: str) -> None:
        """Name the role that would do."""
        super().__init__(f"needs the role {need}", {"need": need})


class NotFound(ControlError):
    """What the parameters name does not exist."""

    code = -32003
    name = "not_found"

    def __init__(self, what: str) -> None:
        """Say what kind of thing it is."""
        super().__init__(f"no such {what}", {"what": what})


class Conflict(ControlError):
    """The thing changed since the caller looked at it."""

    code = -32004
    name = "conflict"

    def __init__(self, version: int) -> None:
        """Give the version that stands now."""
        super().__init__("changed meanwhile", {"version": version})


class RateLimited(ControlError):
    """Too much in too short a time."""

    code = -32005
    name = "rate_limited"

    def __init__(self, retry_after_ms: int) -> None:
        """Say when trying again makes sense, in milliseconds."""
        super().__init__("too many calls", {"retry_after_ms": retry_after_ms})


class NoCapacity(ControlError):
    """A named limit is reached."""

    code = -32006
    name = "no_capacity"

    def __init__(self, limit: str) -> None:
        """Name the limit as the limits tables do."""
        super().__init__(f"at the limit {limit}", {"limit": limit})


class CallTimedOut(ControlError):
    """The method, or what it waited for, took longer than its named time."""

    code = -32007
    name = "timed_out"


class CallUnavailable(ControlError):
    """Switched off, starting, draining, or its storage does not work."""

    code = -32008
    name = "unavailable"

    def __init__(self, why: str) -> None:
        """Say which of these."""
        super().__init__(why, {"why": why})


class CallRefused(ControlError):
    """Policy says no, in words."""

    code = -32009
    name = "refused"


def translate(error: Exception) -> ControlError | None:
    """Give the answer for an error that a method may raise, or None for one that it may not (our own bug)."""
    match error:
        case ControlError():
            return error
        case Refused() | RemoteProtocolError() | ConfigError():
            return CallRefused(str(error))
        case Unavailable() | StorageError():
            return CallUnavailable(str(error))
        case TimedOut():
            return CallTimedOut(str(error))
    return None


def answer_to(error: Exception, ident: str) -> ControlError:
    """Give the answer for any error of a method; one that is our own bug becomes `Internal(ident)`.

    The glue calls this after it has let cancellation pass, and logs the traceback under `ident` when it gets an
    `Internal` back.
    """
    return translate(error) or Internal(ident)


def from_wire(code: int, message: str, data: Mapping[str, Any] | None = None) -> ControlError:
    """Build the error that a peer answered, of the class that has this code if there is one."""
    kind = _by_code.get(code)
    if kind is None:
        unknown = ControlError(message, data)
        unknown.code = code  # type: ignore[misc]
        return unknown
    error = kind.__new__(kind)
    ControlError.__init__(error, message, data)
    return error


def known(name: str) -> type[ControlError] | None:
    """Find an error class by its name, as WAMP error URIs carry it."""
    return _by_name.get(name)
