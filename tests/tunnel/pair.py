"""A page and a gateway with their bytes handed over by hand, and what each of them tells."""

from __future__ import annotations

from typing import Any, TypeVar

from layer8.core.session import Close, Effect, Send, Tell
from layer8.crypto.hpke_context import Private
from layer8.tunnel.bhttp import Request, Response
from layer8.tunnel.client_session import ClientExchange, dressed
from layer8.tunnel.gateway_session import Begin, Call, GatewayExchange, Remember, Reply, Rules
from layer8.tunnel.keys import GatewayKey, KeySet, Schedule
from layer8.tunnel.replay import ReplaySet
from layer8.tunnel.target import Allowed
from layer8.tunnel.wire import CHUNKED, PROBLEM_TYPE, Media, problem

NOW = 1000.0  # monotonic
WALL = 1_800_000_042.0  # since 1970
EPOCH = int(WALL // 3600)
T = TypeVar("T")


def asked(method: bytes = b"GET", path: bytes = b"/notes?q=1", **more: Any) -> Request:
    return Request(method, b"https", b"shop.example", path, **more)


class Seen:
    """The effects of one side."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def take(self, effects: Any) -> None:
        self.effects += effects

    @property
    def sent(self) -> bytes:
        return b"".join(effect.data for effect in self.effects if isinstance(effect, Send))

    def told(self, kind: type[T]) -> list[T]:
        return [effect.what for effect in self.effects if isinstance(effect, Tell) and isinstance(effect.what, kind)]

    @property
    def closed(self) -> list[Close]:
        return [effect for effect in self.effects if isinstance(effect, Close)]


class Gateway:
    """A gateway with one key, a replay set, and no backend but what a test says."""

    def __init__(self, **rules: Any) -> None:
        self.key = GatewayKey.make(EPOCH)
        self.schedule = Schedule(0)
        self.schedule.add(self.key)
        self.marks = ReplaySet()
        self.rules = Rules(Allowed.of(["shop.example"]), self.schedule.find, self.marks.window, **rules)

    def keys(self, **more: Any) -> KeySet:
        return self.key.key_set("shop", ["shop.example"], **more)

    def exchange(self, media: Media = CHUNKED, now: float = NOW, wall: float = WALL) -> GatewayExchange:
        return GatewayExchange(media, self.rules, bytes(range(32)), now, wall)


class Pair:
    """One exchange of a page with a gateway."""

    def __init__(
        self, gateway: Gateway, request: Request | None = None, *, date: float = WALL, wall: float = WALL, **more: Any
    ) -> None:
        self.gateway = gateway
        self.wall = wall
        chunked = more.pop("chunked", True)
        request = dressed(request or asked(), "https://shop.example", date) if more.pop("dress", True) else request
        assert request is not None
        self.client = ClientExchange(gateway.keys(chunked=chunked), request, Private.make(), NOW, **more)
        self.page = Seen()
        self.there = Seen()
        self.serving = gateway.exchange(self.client.media, wall=wall)

    def ask(self, content: bytes = b"") -> bytes:
        """Give all of the sealed request."""
        if content:
            self.client.write(content, NOW)
        self.client.finish(NOW)
        before = len(self.page.sent)
        self.page.take(self.client.effects())
        return self.page.sent[before:]

    def give(self, data: bytes, cut: int = 0, *, whole: bool = True) -> None:
        """Hand a sealed request to the gateway, and its questions to the replay set."""
        for at in range(0, len(data), cut or len(data) or 1):
            self.serving.received(data[at : at + (cut or len(data))], NOW)
            self.settle()
        if whole:
            self.serving.ended(NOW)
        self.settle()

    def settle(self) -> None:
        effects = self.serving.effects()
        self.there.take(effects)
        for effect in effects:
            if isinstance(effect, Tell) and isinstance(effect.what, Remember):
                one = effect.what
                if one.date is None:
                    verdict = self.gateway.marks.add_dateless(one.mark, one.epoch)
                else:
                    verdict = self.gateway.marks.add(one.mark, one.date, self.wall)
                self.serving.remembered(verdict, NOW)
                self.settle()

    def answer(self, response: Response, content: bytes = b"", *, known: bool = True) -> None:
        """Let the backend answer."""
        self.serving.respond(response, NOW, length=len(content) if known else None)
        if content:
            self.serving.write(content, NOW)
        self.serving.finish(NOW)
        self.settle()

    def hear(self, cut: int = 0) -> None:
        """Hand what the gateway has said to the page."""
        replies = self.there.told(Reply)
        if replies:
            self.client.answered(replies[0].status, PROBLEM_TYPE, NOW)
            self.client.received(problem(replies[0].status, replies[0].problem), NOW)
        else:
            assert len(self.there.told(Begin)) == 1
            self.client.answered(200, self.there.told(Begin)[0].media.response, NOW)
            data = self.there.sent
            for at in range(0, len(data), cut or len(data)):
                self.client.received(data[at : at + (cut or len(data))], NOW)
        self.client.ended(NOW)
        self.page.take(self.client.effects())

    @property
    def called(self) -> list[Call]:
        return self.there.told(Call)
