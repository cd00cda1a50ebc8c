"""webgw's own wire, both halves: plain WebSocket without a subprotocol, JSON-RPC 2.0, two methods, one notification.

::

    -> {"jsonrpc":"2.0","method":"webgw_registerClient","params":{"host":H,"hex_secret":HEX},"id":1}
    <- {"jsonrpc":"2.0","result":SUBSCRIPTION,"id":1}                  errors -20000, -20001, -32602
    <- {"jsonrpc":"2.0","method":"webgw_registerClient","params":{"subscription":SUBSCRIPTION,
        "result":{"secret":HEX64,"port":N,"serverListeningPort":N}}}   exactly these fields, below 512 bytes
    -> {"jsonrpc":"2.0","method":"webgw_unregisterClient","params":[SUBSCRIPTION],"id":2}
    <- {"jsonrpc":"2.0","result":true,"id":2}

`hex_secret` is the host's secret itself, 32 to 256 bytes: this wire is plain text, and its listener says so. Source:
proxy.md section 12, webgw's documentation of its core protocol.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field, frozen

from layer8.control.errors import ControlError, InvalidParams, MethodNotFound, from_wire
from layer8.control.jsonrpc import BadMessage, Failure, Notification, Request, Result, encode_error, parse
from layer8.core.errors import RemoteProtocolError
from layer8.proxy.limits import LEGACY_IN
from layer8.proxy.subscriber import Agent
from layer8.proxy.wire import HASH, LARGEST_ID, NAME_MOST, Code, Denied, Subscribe, Unsubscribe

REGISTER: Final = "webgw_registerClient"
UNREGISTER: Final = "webgw_unregisterClient"
ERRORS: Final = 20  # messages in a row that cannot be read, then the connection is closed

_SECRET = re.compile(r"(?:[0-9a-fA-F]{2}){32,256}")
_HASH = re.compile(HASH)


def visitor_note(subscription: int, secret: str, port: int, data_port: int) -> bytes:
    """Write the notification that a visitor waits; `secret` is 64 hex digits."""
    result = {"secret": secret, "port": port, "serverListeningPort": data_port}
    return _text({"jsonrpc": "2.0", "method": REGISTER, "params": {"subscription": subscription, "result": result}})


@define(eq=False)
class LegacyVoice:
    """An agent's connection as the server sees it: of our notifications a webgw agent knows one, in its own words."""

    send: Callable[[bytes], bool]
    end: Callable[[str], None]

    def notify(self, method: str, params: Mapping[str, Any]) -> bool:
        """Send `proxy.connection` as webgw would; what its agents do not know is left out."""
        if method != "proxy.connection":
            return True
        call = params["result"]
        return self.send(
            visitor_note(params["subscription"], call["secret"], call["port"], call["serverListeningPort"])
        )

    def close(self, reason: str) -> None:
        """End the connection."""
        self.end(reason)


@define(eq=False)
class LegacyServer:
    """The server's half of one connection: a message in, its answer out."""

    _agent: Agent
    _known: Callable[[str], bool]
    _errors: int = field(default=0, init=False)

    def received(self, message: bytes, now: float) -> bytes | None:
        """Answer one message, None for one that wants no answer; `now` is monotonic seconds.

        Raises `RemoteProtocolError` when the connection has to be closed: a message over LEGACY_IN, bytes that are not
        UTF-8, or ERRORS unreadable ones in a row.
        """
        if len(message) > LEGACY_IN:
            raise RemoteProtocolError(f"a message of more than {LEGACY_IN} bytes")
        try:
            said = parse(message, positional=True)
        except UnicodeDecodeError:
            raise RemoteProtocolError("a message that is not UTF-8") from None
        except BadMessage as bad:
            self._errors += 1
            if self._errors >= ERRORS:
                raise RemoteProtocolError("too many messages that cannot be read") from bad
            return encode_error(bad.id, bad.error)
        self._errors = 0
        if not isinstance(said, Request):
            return None
        try:
            return _text({"jsonrpc": "2.0", "result": self._called(said, now), "id": said.id})
        except ControlError as error:
            return encode_error(said.id, error)
        except Denied as denied:
            return encode_error(said.id, from_wire(denied.code, str(denied)))

    def lost(self) -> None:
        """Take the end of the connection."""
        self._agent.lost()

    def _called(self, said: Request, now: float) -> int | bool:
        if said.method == REGISTER:
            return self._register(said.params, now)
        if said.method == UNREGISTER:
            number = said.params.get("0")
            if set(said.params) != {"0"} or type(number) is not int or not 0 <= number <= LARGEST_ID:
                raise InvalidParams("", "one subscription is wanted, in an array")
            return self._unregister(number)
        raise MethodNotFound(said.method)

    def _register(self, params: Mapping[str, Any], now: float) -> int:
        host, secret = params.get("host"), params.get("hex_secret")
        if set(params) != {"host", "hex_secret"}:
            raise InvalidParams("", "host and hex_secret are wanted")
        if type(host) is not str or not 0 < len(host) <= NAME_MOST:
            raise InvalidParams("host", "a host name is wanted")
        if type(secret) is not str or _SECRET.fullmatch(secret) is None:
            raise InvalidParams("hex_secret", "32 to 256 bytes are wanted, in hex")
        try:
            return self._agent.subscribe(Subscribe(host, secret=secret), now).subscription
        except Denied as denied:
            if denied.code is Code.WRONG_SECRET and not self._known(host.lower()):
                raise Denied(Code.UNKNOWN_HOST, "no such host is registered") from denied
            raise

    def _unregister(self, number: int) -> bool:
        try:
            self._agent.unsubscribe(Unsubscribe(number))
        except Denied:
            return False
        return True


@frozen
class Subscribed:
    """The server took the subscription for `host`."""

    host: str
    subscription: int


@frozen
class NotSubscribed:
    """The server did not take the subscription for `host`: its own code, -20000 unknown host, -20001 wrong secret."""

    host: str
    code: int
    message: str


@frozen
class Unsubscribed:
    """The server let the subscription go, or never had it."""

    subscription: int


@frozen
class Visitor:
    """A visitor waits: dial the server's `data_port` and send the 32 bytes of `secret`."""

    subscription: int
    host: str
    port: int
    data_port: int
    secret: bytes = field(repr=False)


Happened = Subscribed | NotSubscribed | Unsubscribed | Visitor


@define(eq=False)
class LegacyClient:
    """The agent's half of one connection to a webgw server: messages out, what happened in."""

    _asked: dict[int, str | int] = field(factory=dict, init=False)
    _hosts: dict[int, str] = field(factory=dict, init=False)
    _next: int = field(default=0, init=False)

    def subscribe(self, host: str, secret: bytes) -> bytes:
        """Write the call that subscribes; the answer names `host`."""
        return self._call(REGISTER, {"host": host, "hex_secret": secret.hex()}, host)

    def unsubscribe(self, subscription: int) -> bytes:
        """Write the call that gives a subscription up."""
        self._hosts.pop(subscription, None)
        return self._call(UNREGISTER, [subscription], subscription)

    def received(self, message: bytes) -> Happened | None:
        """Take one message; None for what does not concern us. Raises `RemoteProtocolError` for nonsense."""
        try:
            said = parse(message)
        except (BadMessage, UnicodeDecodeError) as error:
            raise RemoteProtocolError("the server sent what is not JSON-RPC") from error
        match said:
            case Notification(method, params) if method == REGISTER:
                return self._visitor(params)
            case Result(ident, result):
                return self._answered(ident, result)
            case Failure(ident, refusal):
                asked = self._asked.pop(ident, None) if type(ident) is int else None
                return NotSubscribed(asked, refusal.code, refusal.message) if isinstance(asked, str) else None
        return None

    def _call(self, method: str, params: object, about: str | int) -> bytes:
        self._next += 1
        self._asked[self._next] = about
        return _text({"jsonrpc": "2.0", "method": method, "params": params, "id": self._next})

    def _answered(self, ident: str | int, result: object) -> Happened | None:
        asked = self._asked.pop(ident, None) if type(ident) is int else None
        if isinstance(asked, int):
            return Unsubscribed(asked)
        if asked is None:
            return None
        if type(result) is not int:
            raise RemoteProtocolError("the server's subscription is not a number")
        self._hosts[result] = asked
        return Subscribed(asked, result)

    def _visitor(self, params: Mapping[str, Any]) -> Visitor | None:
        number, call = params.get("subscription"), params.get("result")
        if type(number) is not int or type(call) is not dict:
            raise RemoteProtocolError("the server's notification has no subscription or result")
        secret = call.get("secret")
        if type(secret) is not str or _HASH.fullmatch(secret.lower()) is None:
            raise RemoteProtocolError("the server's one-time secret is not 32 bytes of hex")
        port, data_port = _port(call.get("port")), _port(call.get("serverListeningPort"))
        host = self._hosts.get(number)
        return None if host is None else Visitor(number, host, port, data_port, bytes.fromhex(secret))


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise RemoteProtocolError("the server's notification names no port")
    return value


def _text(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii")
