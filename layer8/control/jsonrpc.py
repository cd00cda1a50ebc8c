"""JSON-RPC 2.0 as we speak it: one object per WebSocket text message, parameters by name, no batches.

::

    call           {"jsonrpc":"2.0","id":1,"method":"proxy.hello","params":{...}}
    notification   {"jsonrpc":"2.0","method":"proxy.connection","params":{...}}
    result         {"jsonrpc":"2.0","id":1,"result":...}
    error          {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"...","data":{"path":"host"}}}
    event          a notification whose method is "event": {"subscription":7,"seq":1,"name":...,"at":...,"data":{...}}

`id` is a string of at most 64 bytes or an integer within +-2^53. Refused while parsing: duplicate keys, NaN and
infinities, numbers beyond +-2^53, depth over 16, lone surrogates. Source: the JSON-RPC 2.0 specification, RFC 8259,
control.md section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from layer8.control.errors import ControlError, InvalidParams, InvalidRequest, ParseFailed, from_wire
from layer8.control.events import Delivery
from layer8.control.scalars import DEPTH, NUMBER
from layer8.core.errors import Layer8Error

SUBPROTOCOL: Final = "jsonrpc.layer8.v1"
ID_SIZE: Final = 64  # bytes of an id that is a string
METHOD_SIZE: Final = 128  # characters of a method's name

Id = str | int


class Request(NamedTuple):
    """The peer wants an answer."""

    id: Id
    method: str
    params: dict[str, Any]


class Notification(NamedTuple):
    """The peer tells us something."""

    method: str
    params: dict[str, Any]


class Result(NamedTuple):
    """The peer's answer to a call of ours."""

    id: Id
    result: Any


class Failure(NamedTuple):
    """The peer's error to a call of ours, or, with no id, to a message that it could not read."""

    id: Id | None
    error: ControlError


Message = Request | Notification | Result | Failure


class BadMessage(Layer8Error):
    """What came is not a message; `error` is the answer, `id` where it goes, if it could be read."""

    def __init__(self, error: ControlError, id: Id | None = None) -> None:
        """Take the answer and the id."""
        super().__init__(str(error))
        self.error = error
        self.id = id


class _Refused(ValueError):
    """Raised inside the JSON scanner."""


_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("a key comes twice")
    return members


def _constant(text: str) -> float:
    raise _Refused(f"{text} is not JSON")


def _integer(text: str) -> int:
    number = int(text) if len(text) < 18 else NUMBER + 1
    if -NUMBER <= number <= NUMBER:
        return number
    raise _Refused("a number beyond 2^53")


def _float(text: str) -> float:
    number = float(text)
    if -NUMBER <= number <= NUMBER:
        return number
    raise _Refused("a number beyond 2^53")


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
).decode
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _deep(text: str) -> bool:
    """Say whether brackets nest deeper than DEPTH, counting only those outside strings."""
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH:
            return True
    return False


def decode(data: bytes) -> Any:
    """Parse strict JSON; raises UnicodeDecodeError for bytes that are not UTF-8, ParseFailed for the rest."""
    text = data.decode("utf-8")
    if text.count("[") + text.count("{") > DEPTH and _deep(text):
        raise ParseFailed(f"nested deeper than {DEPTH}")
    try:
        value = _decode(text)
        if "\\u" in text:
            _encode(value).encode("utf-8")
    except UnicodeEncodeError:
        raise ParseFailed("half of a surrogate pair") from None
    except _Refused as refused:
        raise ParseFailed(str(refused)) from None
    except ValueError:
        raise ParseFailed("not JSON") from None
    return value


def encode(value: Any) -> bytes:
    """Give compact UTF-8 JSON; raises ValueError or TypeError for what JSON does not have."""
    return _encode(value).encode("utf-8")


def parse(data: bytes, *, positional: bool = False) -> Message:
    """Read one message; raises BadMessage, and UnicodeDecodeError for bytes that are not UTF-8.

    With `positional`, parameters in an array are taken too and come as {"0": ..., "1": ...}: legacy agents send them.
    """
    try:
        message = decode(data)
    except ParseFailed as error:
        raise BadMessage(error) from None
    if type(message) is not dict:
        raise BadMessage(InvalidRequest("no batches" if type(message) is list else "an object is wanted"))
    ident = message.get("id")
    if (ident is not None or "id" in message) and not is_id(ident):
        if ident is None and "error" in message and "method" not in message:
            return _failure(None, message)
        raise BadMessage(InvalidRequest(f"id is a string of at most {ID_SIZE} bytes or an integer"))
    if message.get("jsonrpc") != "2.0":
        raise BadMessage(InvalidRequest('"jsonrpc": "2.0" is wanted'), ident)
    method = message.get("method")
    if method is None and "method" not in message:
        return _answer(ident, message)
    if type(method) is not str or not 0 < len(method) <= METHOD_SIZE:
        raise BadMessage(InvalidRequest("method is a name"), ident)
    params = message.get("params")
    if type(params) is not dict:
        params = _unusual(params, "params" in message, positional, ident)
    if len(message) != 2 + ("params" in message) + ("id" in message):
        raise BadMessage(InvalidRequest("unknown members"), ident)
    return Notification(method, params) if ident is None else Request(ident, method, params)


def is_id(ident: object) -> TypeGuard[Id]:
    """Say whether a value can be an id; true is no integer here."""
    if isinstance(ident, str):
        return len(ident) <= ID_SIZE and len(ident.encode("utf-8")) <= ID_SIZE
    return type(ident) is int


def _unusual(params: Any, given: bool, positional: bool, ident: Id | None) -> dict[str, Any]:
    if not given:
        return {}
    if positional and type(params) is list:
        return {str(place): param for place, param in enumerate(params)}
    raise BadMessage(InvalidParams("", "parameters go by name, in an object"), ident)


def _answer(ident: Id | None, message: dict[str, Any]) -> Message:
    if ident is not None and "result" in message and "error" not in message:
        return Result(ident, message["result"])
    if "error" in message and "result" not in message:
        return _failure(ident, message)
    raise BadMessage(InvalidRequest("neither a call nor an answer"), ident)


def _failure(ident: Id | None, message: dict[str, Any]) -> Failure:
    error = message["error"]
    if type(error) is not dict:
        raise BadMessage(InvalidRequest("an error is an object"), ident)
    code, text, data = error.get("code"), error.get("message"), error.get("data")
    if type(code) is not int or type(text) is not str:
        raise BadMessage(InvalidRequest("an error has a code and a message"), ident)
    return Failure(ident, from_wire(code, text, data if type(data) is dict else None))


def encode_call(ident: Id, method: str, params: Mapping[str, Any]) -> bytes:
    """Write a call."""
    return encode({"jsonrpc": "2.0", "id": ident, "method": method, "params": params})


def encode_notification(method: str, params: Mapping[str, Any]) -> bytes:
    """Write a notification."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def encode_result(ident: Id, result: Any) -> bytes:
    """Write a result."""
    return encode({"jsonrpc": "2.0", "id": ident, "result": result})


def encode_error(ident: Id | None, error: ControlError) -> bytes:
    """Write an error; its data is left out when there is none."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data:
        body["data"] = error.data
    return encode({"jsonrpc": "2.0", "id": ident, "error": body})


def encode_event(delivery: Delivery) -> bytes:
    """Write an event around its data, which was encoded when it happened."""
    subscription, seq, note = delivery
    head = (
        f'{{"jsonrpc":"2.0","method":"event","params":{{"subscription":{subscription},"seq":{seq},'
        f'"name":"{note.name}","at":"{note.at}","data":'
    )
    return head.encode() + note.text + b"}}"
