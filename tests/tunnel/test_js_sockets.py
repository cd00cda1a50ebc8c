"""L8.WebSocket in Chromium and Firefox, against the gateway's own session: numbers, interface, every bad end."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from layer8.core.session import Send
from layer8.crypto.hpke_context import Private
from layer8.testing.browser import Chromium, Firefox
from layer8.tunnel import frames, socket_session
from layer8.tunnel.frames import FIRST_SIZE, LAST, SECOND_SIZE, SIZES, Assembly, BadFrame, Kind, Message
from layer8.tunnel.limits import SOCKET_DEAD, SOCKET_MESSAGE, SOCKET_PING, SOCKET_REKEY
from layer8.tunnel.socket_session import Closed, GatewaySocket
from tests.tunnel.browsers import HEX, BrowserCase, probe
from tests.tunnel.sockets import SocketRelay

VECTORS = Path(__file__).parents[1] / "vectors"
INSIDE = (
    "greet",
    "framed",
    "Assembly",
    "textOf",
    "SOCKET_REKEY",
    "SOCKET_MESSAGE",
    "SOCKET_PING",
    "SOCKET_WAIT",
    "FRAMES",
)
TALK = """
globalThis.talk = (L8, url, said, protocols) => new Promise((done) => {
  const socket = new L8.WebSocket(url, protocols);
  const told = { heard: [], states: [socket.readyState] };
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    told.states.push(socket.readyState);
    told.protocol = socket.protocol;
    told.url = socket.url;
    for (const one of said) socket.send(one);
  };
  socket.onmessage = ({ data, origin }) => {
    told.heard.push(typeof data === "string" ? data : [...new Uint8Array(data)].slice(0, 20));
    told.origin = origin;
    if (told.heard.length === said.length) socket.close(1000, "thanks");
  };
  socket.onerror = ({ error }) => (told.error = error.code);
  socket.onclose = ({ code, reason, wasClean }) => {
    told.states.push(socket.readyState);
    done({ ...told, code, reason, clean: wasClean });
  };
});
"""


class JsSocketTests(BrowserCase):
    skip = Chromium.absent()

    async def test_sockets(self) -> None:
        """One page for all of them."""
        await self.open()
        self.made = 0
        for check in (
            self.numbers,
            self.the_same_verdicts,
            self.whole,
            self.a_new_key_after_so_many,
            self.the_other_side_closes,
            self.refusals,
            self.the_interface,
            self.bad_frames,
            self.a_frame_that_was_changed,
            self.a_gateway_that_leaves_at_once,
            self.silence,
            self.the_relay_goes,
        ):
            try:
                await check()
            finally:
                await self.relay.close()

    async def begin(self, **constants: int) -> SocketRelay:
        """Give the page an L8 of its own with these constants, connected to a relay for sockets."""
        source = probe(*INSIDE).decode()
        for name, value in constants.items():
            usual = {"SOCKET_REKEY": "1 << 20", "SOCKET_PING": "30_000", "SOCKET_WAIT": "10_000"}[name]
            self.assertEqual(source.count(f"const {name} = {usual};"), 1)
            source = source.replace(f"const {name} = {usual};", f"const {name} = {value};")
        self.made += 1
        name = f"/probe{self.made}.js"
        self.stage.app_files[name] = ("text/javascript", source.encode())
        self.relay = SocketRelay(self.stage.reactor)
        await self.run_js(
            f"globalThis.made = (await import('{name}')).default; {HEX} {TALK} await made.connect(o)",
            o=self.relay.connect,
        )
        return self.relay

    async def talk(self, url: str, *said: str, protocols: Any = ()) -> dict[str, Any]:
        """Open a socket, say something, close it as all has come back; give all that was seen."""
        body = "return talk(made, url, said.map((one) => one.startsWith('(') ? eval(one) : one), protocols)"
        return await self.run_js(body, url=url, said=said, protocols=protocols)  # type: ignore[no-any-return]

    async def numbers(self) -> None:
        """Both of our frozen handshakes, byte for byte."""
        await self.begin()
        nk = json.loads((VECTORS / "noise-nk.json").read_text())
        ours = json.loads((VECTORS / "tunnel-1.json").read_text())
        public = Private.load(bytes.fromhex(nk["init_ephemeral"])).public.hex()
        found = await self.run_js(
            KEYS
            + """
            const own = await pair(nk.init_ephemeral, mine);
            const shake = await inside.greet(unhex(nk.init_remote_static), unhex(nk.init_prologue), own);
            const [first, second, ...rest] = nk.messages;
            const told = [hex(await shake.write(unhex(first.payload)))];
            told.push(hex(await shake.read(unhex(second.ciphertext))));
            told.push(hex(shake.hash()));
            const [say, hear] = await shake.split();
            for (const [at, { payload, ciphertext }] of rest.entries())
              told.push(hex(at % 2 ? await hear.open(unhex(ciphertext)) : await say.seal(unhex(payload))));
            return told;
            """,
            nk=nk,
            mine=public,
        )
        messages = nk["messages"]
        wanted = [messages[0]["ciphertext"], messages[1]["payload"], nk["handshake_hash"]]
        wanted += [one["payload" if at % 2 else "ciphertext"] for at, one in enumerate(messages[2:])]
        self.assertEqual(found, wanted)
        row = ours["socket"]
        found = await self.run_js(
            KEYS
            + """
            const shake = await inside.greet(unhex(noise), unhex(row.prologue), await pair(row.page_ephemeral, mine));
            const inner = new Uint8Array(512);
            inner.set(unhex(row.inside));
            const first = hex(await shake.write(inner));
            const status = await inside.readStatus(await shake.read(unhex(row.second)));
            const [say, hear] = await shake.split();
            const [frame] = inside.framed(11, new Uint8Array());
            const [kind, data] = new inside.Assembly().take(await hear.open(unhex(row.opened)));
            return [first, status, hex(shake.hash()), hex(await say.seal(frame)), kind, inside.textOf(data)];
            """,
            row=row,
            noise=ours["keys"]["noise_public"],
            mine=Private.load(bytes.fromhex(row["page_ephemeral"])).public.hex(),
        )
        self.assertEqual(found, [row["first"], 200, row["hash"], row["open"], 12, "chat.v2"])
        limits = await self.run_js(
            "return [inside.SOCKET_REKEY, inside.SOCKET_MESSAGE, inside.SOCKET_PING, inside.FRAMES]"
        )
        self.assertEqual(limits, [SOCKET_REKEY, SOCKET_MESSAGE, SOCKET_PING * 1000, list(SIZES)])
        self.assertEqual(SOCKET_DEAD, 2 * SOCKET_PING)

    async def the_same_verdicts(self) -> None:
        """What Python's reader of frames takes or refuses, and with which code, so does the script's."""
        await self.begin()
        chance = Random(8)
        told, wanted = [], []
        for _ in range(400):
            one = [crooked(chance) for _ in range(chance.randrange(1, 5))]
            told.append([data.hex() for data in one])
            wanted.append(verdicts(one))
        self.assertGreater(sum(isinstance(last, int) for *_, last in wanted), 100)
        self.assertGreater(sum(not isinstance(last, int) for *_, last in wanted), 50)
        found = await self.run_js(
            """
            return told.map((frames) => {
              const assembly = new inside.Assembly();
              const out = [];
              try {
                for (const one of frames) {
                  const message = assembly.take(unhex(one));
                  if (message?.[0] === 1) inside.textOf(message[1]);
                  out.push(message ? [message[0], hex(message[1])] : null);
                }
              } catch (error) { out.push(error.closes); }
              return out;
            });
            """,
            told=told,
        )
        self.assertEqual(found, wanted)

    async def whole(self) -> None:
        relay = await self.begin()
        relay.protocol = "chat"
        told = await self.talk(
            "wss://shop.test/ws?room=marker-7",
            "marker é\0 text",
            "",
            "(new Uint8Array([1, 2, 3]))",
            "(new Uint8Array([9, 1, 2, 3, 9]).subarray(1, 4))",
            "(new Blob(['blob']))",
            "(new Uint16Array([258]).buffer)",
            "('x'.repeat(200000))",
            "(new Uint8Array(1 << 20))",
            protocols=["chat", "other"],
        )
        self.assertEqual((told["states"], told["protocol"]), ([0, 1, 3], "chat"))
        self.assertEqual((told["url"], told["origin"]), ("wss://shop.test/ws?room=marker-7", "https://shop.test"))
        self.assertEqual(
            told["heard"],
            ["marker é\0 text", "", [1, 2, 3], [1, 2, 3], [*b"blob"], [2, 1], "x" * 200_000, [0] * 20],
        )
        self.assertEqual((told["code"], told["reason"], told["clean"]), (1000, "thanks", True))
        self.assertNotIn("error", told)
        await relay.ended()
        self.assertEqual(relay.closed, [Closed(1000, "thanks")])
        (routed,) = relay.routed
        self.assertEqual((routed.target.path, routed.target.query), ("/ws", "room=marker-7"))
        self.assertEqual(
            routed.request.fields, ((b"origin", b"https://shop.test"), (b"sec-websocket-protocol", b"chat, other"))
        )
        sizes = [len(data) for _, data in relay.carried]
        self.assertEqual(sizes[:2], [FIRST_SIZE, SECOND_SIZE])
        self.assertLessEqual({size - 16 for size in sizes[2:]}, set(SIZES))
        self.assertNotIn(b"marker", b"".join(data for _, data in relay.carried))

    async def a_new_key_after_so_many(self) -> None:
        few = self.patch(socket_session, "SOCKET_REKEY", 8)
        await self.begin(SOCKET_REKEY=8)
        said = [f"message {number}" for number in range(200)]
        told = await self.talk("wss://shop.test/ws", *said)
        self.assertEqual((told["heard"], told["code"]), (said, 1000))
        few.restore()

    async def the_other_side_closes(self) -> None:
        relay = await self.begin()
        told = await self.talk("/ws", "close", "never")
        self.assertEqual(told["url"], "wss://shop.test/ws")
        self.assertEqual((told["code"], told["reason"], told["clean"]), (4001, "as asked", True))
        await relay.ended()
        self.assertEqual(relay.closed, [Closed(4001, "as asked")])

    async def refusals(self) -> None:
        relay = await self.begin()
        for status in (403, 404, 503):
            relay.status = status
            told = await self.talk("wss://shop.test/ws")
            self.assertEqual((told["error"], told["code"], told["clean"]), ("no-socket", 1006, False))
            self.assertIn(str(status), told["reason"])
        relay.status = 200
        for url, protocols, code in (
            ("wss://other.test/ws", [], "unknown"),
            ("http://", [], "argument"),
            ("wss://shop.test/ws", ["a", "a"], "argument"),
            ("wss://shop.test/ws", "no token", "argument"),
            ("wss://shop.test/" + "a" * 500, [], "too-large"),
            ("wss://shop.test/ws", [{}], "argument"),
        ):
            told = await self.talk(url, protocols=protocols)
            self.assertEqual((told["error"], told["code"], told["states"]), (code, 1006, [0, 3]), url)
        self.assertEqual(len(relay.routed), 3)

    async def the_interface(self) -> None:
        relay = await self.begin()
        found = await self.run_js(
            """
            const named = (then) => { try { then(); return null } catch (error) { return error.name } };
            const socket = new made.WebSocket("wss://shop.test/ws");
            const out = [made.WebSocket.OPEN, socket.CLOSED, socket instanceof EventTarget, socket.onopen];
            out.push(named(() => socket.send("early")), named(() => socket.close(1001)));
            out.push(named(() => socket.close(1000, "x".repeat(124))));
            out.push(socket.extensions, socket.binaryType);
            await new Promise((done) => socket.addEventListener("open", done, { once: true }));
            socket.send("x".repeat(1000));
            out.push(socket.bufferedAmount);
            const { data } = await new Promise((done) => (socket.onmessage = done));
            socket.onmessage = null;
            out.push(data.length, socket.bufferedAmount);
            socket.send(new Blob(["as a blob"]));
            const blob = await new Promise((done) => socket.addEventListener("message", done, { once: true }));
            out.push(blob.data instanceof Blob, await blob.data.text());
            socket.close();
            out.push(socket.readyState);
            const closed = await new Promise((done) => (socket.onclose = done));
            out.push(closed instanceof CloseEvent, closed.code, closed.wasClean);
            socket.send("late");
            socket.close();
            const early = new made.WebSocket("wss://shop.test/ws");
            early.close();
            out.push((await new Promise((done) => (early.onclose = done))).code);
            return out;
            """
        )
        wanted = [1, 3, True, None, "InvalidStateError", "InvalidAccessError", "SyntaxError", "", "blob"]
        self.assertEqual(found, [*wanted, 1000, 1000, 0, True, "as a blob", 2, True, 1005, True, 1006])
        await relay.ended()
        self.assertEqual(relay.closed, [Closed(1005)])

    async def bad_frames(self) -> None:
        """What a gateway does wrong, and with which code the page leaves it."""
        relay = await self.begin()
        for message, code in (
            (Message(Kind.TEXT, b"\xff"), 1007),
            (Message(Kind.BINARY, bytes((1 << 20) + 1)), 1009),
            (Message(Kind.OPEN), 1002),
            (Message(Kind.OPENED), 1002),
            (Message(Kind.CLOSE, b"\x03"), 1002),
            (Message(Kind.CLOSE, b"\x03\xed"), 1002),
            (Message(Kind.CONTINUATION, b"x"), 1002),
        ):

            def bad(session: GatewaySocket, _: Message, __: float, message: Message = message) -> None:
                session._side.say(message)

            relay.answer = bad
            relay.closed.clear()
            told = await self.talk("wss://shop.test/ws", "now", "never")
            self.assertEqual((told["error"], told["code"], told["clean"]), ("socket", code, False), message)
            await relay.ended()
            self.assertEqual(relay.closed, [Closed(code)])

    async def a_frame_that_was_changed(self) -> None:
        relay = await self.begin()

        def bad(session: GatewaySocket, message: Message, now: float) -> None:
            (one,) = relay.open
            session.send(message)
            (effect,) = session.effects()
            assert isinstance(effect, Send)
            sealed = bytearray(effect.data)
            sealed[-1] ^= 1
            one.sendMessage(bytes(sealed), True)

        relay.answer = bad
        told = await self.talk("wss://shop.test/ws", "now")
        self.assertEqual((told["error"], told["code"], told["heard"]), ("socket", 1002, []))

    async def silence(self) -> None:
        """A page asks a silent gateway, stays while it answers, and leaves when it does not."""
        relay = await self.begin(SOCKET_PING=300, SOCKET_WAIT=700)
        await self.run_js(
            """
            globalThis.socket = new made.WebSocket("wss://shop.test/ws");
            globalThis.ended = new Promise((done) => (socket.onclose = ({ code }) => done(code)));
            await new Promise((done) => (socket.onopen = done));
            await new Promise((done) => setTimeout(done, 2000));
            """
        )
        self.assertEqual(await self.run_js("return socket.readyState"), 1)
        self.assertGreaterEqual(len([1 for up, data in relay.carried if up]), 2 + 4)
        relay.mute = True
        self.assertEqual(await self.run_js("return ended"), 1006)
        told = await self.talk("wss://shop.test/ws")
        self.assertEqual((told["error"], told["code"]), ("slow", 1006))

    async def a_gateway_that_leaves_at_once(self) -> None:
        """It says why, and waits for no answer."""
        relay = await self.begin()

        def leave(session: GatewaySocket, message: Message, now: float) -> None:
            (one,) = relay.open
            session._side.say(frames.close(1011, "no more"))
            for effect in session.effects():
                assert isinstance(effect, Send)
                one.sendMessage(bytes(effect.data), True)
            one.sendClose(1000)

        relay.answer = leave
        told = await self.talk("wss://shop.test/ws", "now")
        self.assertEqual((told["code"], told["reason"], told["clean"]), (1011, "no more", True))
        self.assertNotIn("error", told)

    async def the_relay_goes(self) -> None:
        relay = await self.begin()

        def cut(session: GatewaySocket, message: Message, now: float) -> None:
            (one,) = relay.open
            one.transport.abortConnection()

        relay.answer = cut
        told = await self.talk("wss://shop.test/ws", "now")
        self.assertEqual((told["error"], told["code"], told["clean"]), ("lost", 1006, False))
        relay.status = 200
        closed = await self.run_js(
            """
            const tunnel = await made.connect(o);
            const socket = new made.WebSocket("wss://shop.test/ws");
            await new Promise((done) => (socket.onopen = done));
            const closed = new Promise((done) => (socket.onclose = ({ code }) => done(code)));
            await tunnel.close();
            return closed;
            """,
            o=relay.connect,
        )
        self.assertEqual(closed, 1006)


class JsSocketFirefoxTests(JsSocketTests):
    kind = Firefox
    skip = Firefox.absent()


def crooked(chance: Random) -> bytes:
    """Make a frame that is right, or a little wrong."""
    data = bytearray(chance.choice((b"", b"x", b"\xff", "é".encode(), "ß".encode(), chance.randbytes(253))))
    kind = chance.choice((0, 1, 1, 2, 2, 8, 9, 10, 11, 12, chance.choice((3, 7, 13, 0x7F))))
    text = bytearray((kind | chance.choice((0, LAST, LAST, LAST)), 0, len(data))) + data
    text = text.ljust(chance.choice((256, 256, 256, 256, 512, 1024, chance.choice((257, 300, 256)))), b"\0")
    if chance.random() < 0.1:
        text[chance.randrange(len(text))] ^= 1
    if chance.random() < 0.05:
        text[1:3] = chance.randbytes(2)
    return bytes(text)


def verdicts(sent: list[bytes]) -> list[Any]:
    """Give what Python makes of them: messages, and the code of the first that is refused."""
    assembly, out = Assembly(), list[Any]()
    try:
        for one in sent:
            message = assembly.take(one)
            out.append(message and [int(message.kind), message.data.hex()])
    except BadFrame as error:
        out.append(error.code)
    return out


KEYS = """
const pair = async (secret, publicKey) => {
  const jwk = { kty: "OKP", crv: "X25519", d: inside.letters(unhex(secret)), x: inside.letters(unhex(publicKey)) };
  const privateKey = await crypto.subtle.importKey("jwk", jwk, "X25519", false, ["deriveBits"]);
  return { privateKey, publicKey: unhex(publicKey) };
};
"""
