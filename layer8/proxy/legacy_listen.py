"""webgw's wire on our listeners: its agents' WebSocket, and its REST interface for registrations.

::

    GET    /api/v1/proxy          200 [{"host", "hexSecretHash", "read", "written"}, ...]
    POST   /api/v1/proxy          {"host", "hexSecretHash"}: 200, 400 bad hash or name, 409 registered already
    DELETE /api/v1/proxy/HOST     200 gone, 204 was not there

A hash is as good as the secret towards this server, so GET shows its first digits only. Source: proxy.md section 12,
webgw's description of its server API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from layer8.config.endpoint import is_loopback
from layer8.control.access import EVERYTHING, effective
from layer8.control.conversation import Known
from layer8.control.errors import ControlError, ParseFailed
from layer8.control.http import Answer, Refusal, Request
from layer8.control.jsonrpc import decode
from layer8.control.websocket import Socket
from layer8.core.errors import RemoteProtocolError, StorageError, Unavailable
from layer8.proxy.ledger import Ledger
from layer8.proxy.legacy import LegacyServer, LegacyVoice
from layer8.proxy.limits import LEGACY_IN
from layer8.proxy.orders import Register
from layer8.proxy.registration import SHOWN, Registration
from layer8.proxy.registry import inside
from layer8.proxy.subscriber import Agent, House, Origin
from layer8.proxy.wire import HASH, NAME_MOST, Code, Denied

PATH: Final = "/api/v1/proxy"
METHODS: Final = (b"GET", b"POST", b"DELETE")
JSON: Final = b"application/json"

_HASH = re.compile(HASH)


class LegacySocket:
    """Who speaks over the WebSocket of a webgw agent: an `Owner` of `layer8.control.websocket`."""

    def __init__(self, house: House, clock: IReactorTime, address: str | None) -> None:
        """Take what all agents share, and where this one comes from."""
        self._house = house
        self._clock = clock
        self._address = address
        self._socket: Socket | None = None
        self._server: LegacyServer | None = None

    def opened(self, socket: Socket) -> None:
        """Begin: there is no hello, and no nonce because there is no proof."""
        self._socket = socket
        voice = LegacyVoice(socket.send, socket.end)
        agent = Agent(self._house, voice, Origin(self._address, private=False, legacy=True), bytes(32))
        self._server = LegacyServer(agent, lambda host: self._house.registry.row(host) is not None)

    def received(self, message: bytes) -> None:
        """Answer a message, or close for one that cannot be."""
        if self._socket is None or self._server is None:
            return
        try:
            answer = self._server.received(message, self._clock.seconds())
        except RemoteProtocolError:
            self._socket.end("errors")
            return
        if answer is not None:
            self._socket.send(answer)

    def writable(self) -> None:
        """Nothing waits here for a slow reader."""

    def lost(self, reason: str) -> None:
        """End every subscription of this agent."""
        if self._server is not None:
            self._server.lost()


class LegacyApi:
    """What the REST interface does, without HTTP; `carried(host)` gives bytes in and out."""

    def __init__(self, ledger: Ledger, carried: Callable[[str], tuple[int, int]]) -> None:
        """Take the ledger and the byte counts."""
        self._ledger = ledger
        self._carried = carried

    async def answer(self, method: bytes, place: str, body: bytes, who: Known) -> Answer:
        """Answer one request of an owner or an admin; `place` is what stands behind the path, without a slash."""
        owner = None if "admin" in effective(who.roles, EVERYTHING) else who.name
        if method == b"POST" and not place:
            return await self._register(body, owner, who)
        if method == b"DELETE" and place:
            return await self._unregister(place, owner)
        if method in (b"GET", b"HEAD") and not place:
            rows = (row for row in self._ledger.registry.hosts() if owner is None or row.owner == owner)
            shown = [self._row(row) for row in sorted(rows, key=lambda row: row.host)]
            return Answer(200, json.dumps(shown).encode("ascii"), JSON)
        return Answer(404, b"")

    async def _register(self, body: bytes, owner: str | None, who: Known) -> Answer:
        asked = _asked(body)
        if asked is None:
            return Answer(400, b"host and hexSecretHash are wanted\n")
        try:
            host = self._ledger.registry.name(asked.host)
            row = await self._ledger.register(asked, who.name, owner is None or inside(host, who.hosts))
        except Denied as denied:
            codes = {Code.ALREADY_REGISTERED: 409, Code.QUOTA: 429, Code.NO_CAPACITY: 503}
            return Answer(codes.get(denied.code, 400), f"{denied}\n".encode())
        return Answer(200, json.dumps(self._row(row)).encode("ascii"), JSON)

    async def _unregister(self, host: str, owner: str | None) -> Answer:
        try:
            await self._ledger.unregister(host, owner)
        except Denied as denied:
            if denied.code is Code.FORBIDDEN_BY_POLICY:
                return Answer(403, f"{denied}\n".encode())
            return Answer(204, b"")
        return Answer(200, b"")

    def _row(self, row: Registration) -> dict[str, Any]:
        into, out = self._carried(row.host)
        digits = row.secrets[-1].key.hex()[:SHOWN] if row.secrets else ""
        return {"host": row.host, "hexSecretHash": digits, "read": out, "written": into}


@implementer(IResource)
class LegacyPage:
    """The REST interface as a page of the control listener; `who` finds out who asks, as everywhere there.

    `open` lets everybody on this machine act as admin, without a token as webgw does.
    """

    isLeaf = True
    log = Logger()

    def __init__(self, api: LegacyApi, who: Callable[[Request], Known], open: bool = False) -> None:
        """Take what answers, and who may ask."""
        self._api = api
        self._who = who
        self._open = open

    def render(self, request: Request) -> int:
        """Answer when the registration is written down."""
        near = getattr(request.getClientAddress(), "host", None)
        trusted = self._open and (near is None or is_loopback(near))
        known = Known("local", frozenset({"admin"})) if trusted else self._who(request)
        if not {"admin", "owner"} & effective(known.roles, EVERYTHING):
            raise Refusal(401, "this needs a token of role owner or admin", (b"WWW-Authenticate", b"Bearer"))
        if (request.length or 0) > LEGACY_IN:
            raise Refusal(413, f"a body has at most {LEGACY_IN} bytes")
        place = unquote(request.path.decode("ascii", "replace")).removeprefix(PATH).strip("/")
        body = request.content.read() if request.content is not None else b""
        answer = Deferred.fromCoroutine(self._answer(request.method, place, body, known))
        request.notifyFinish().addErrback(lambda _: answer.cancel())
        answer.addCallback(self._say, request)
        answer.addErrback(self._failed, request)
        return NOT_DONE_YET

    def getChildWithDefault(self, name: bytes, request: Request) -> LegacyPage:
        """Twisted never asks a leaf for children."""
        raise LookupError(name)

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse children."""
        raise LookupError(path)

    async def _answer(self, method: bytes, place: str, body: bytes, known: Known) -> Answer:
        try:
            return await self._api.answer(method, place, body, known)
        except CancelledError:
            raise
        except (StorageError, Unavailable, ControlError) as error:
            return Answer(503, f"{error}\n".encode())

    def _say(self, answer: Answer, request: Request) -> None:
        request.write(request.say(answer))
        request.finish()

    def _failed(self, reason: Failure, request: Request) -> None:
        if not reason.check(CancelledError):
            request.processingFailed(reason)


def _asked(body: bytes) -> Register | None:
    """Read the body of a POST, None if it is not one; a member that webgw does not have is ignored, as it does."""
    try:
        said = decode(body)
    except (ParseFailed, UnicodeDecodeError):
        return None
    if type(said) is not dict:
        return None
    host, digits = said.get("host"), said.get("hexSecretHash")
    if type(host) is not str or type(digits) is not str or not 0 < len(host) <= NAME_MOST:
        return None
    return Register(host, digits.lower()) if _HASH.fullmatch(digits.lower()) else None
