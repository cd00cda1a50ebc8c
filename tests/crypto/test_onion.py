"""The onion layer against its reference, as runs of every cut, and each of the eight obligations of docs/onion.md."""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LimitExceeded, LocalProtocolError
from layer8.crypto import onion
from layer8.crypto.ntor import ANSWER_LEAST, BEGIN_LEAST, SEEN_X
from layer8.crypto.onion import (
    BODY,
    CELLS_MAX,
    ENDED,
    KEYS,
    MESSAGE,
    RATCHET,
    Layer,
    Unrecognised,
    client_backward,
    client_forward,
    layer,
    relay_backward,
    relay_forward,
    relay_receive,
    relay_send,
)
from tests.crypto.onion_reference import OURS, State, parted
from tests.crypto.onion_vectors import CELLS, EARLY, FILE, keys, messages, sent
from tests.names import ROOT, find_test

RELAY, EARLY_CMD = 4, 5
FORWARD, BACKWARD = keys("forward"), keys("backward")


def layers(direction: str) -> list[Layer]:
    return [layer(key) for key in keys(direction)]


def pieces(bodies: Sequence[bytes], cuts: Sequence[int]) -> list[Sequence[bytes]]:
    ends = sorted({0, len(bodies), *(cut for cut in cuts if cut <= len(bodies))})
    return [bodies[begin:end] for begin, end in itertools.pairwise(ends)]


def flipped(body: bytes, bit: int) -> bytes:
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class FrozenTests(SynchronousTestCase):
    """The module makes what the frozen file says, at both ends and at every hop."""

    def setUp(self) -> None:
        self.file = json.loads(FILE.read_text())

    def check(self, direction: str, links: list[list[bytes]], tags: list[bytes]) -> None:
        frozen = self.file[direction]
        self.assertEqual(links[0][0].hex(), frozen["first body"])
        self.assertEqual([hashlib.sha256(b"".join(bodies)).hexdigest() for bodies in links], frozen["links"])
        self.assertEqual({number: tags[int(number)].hex() for number in frozen["tags"]}, frozen["tags"])

    def test_forward(self) -> None:
        client, relays, texts = layers("forward"), layers("forward"), messages("forward")
        tags: list[bytes] = []
        read: list[bytes] = []
        echoed: list[bytes] = []
        links: list[list[bytes]] = [[], [], []]
        for cmd, run in ((EARLY_CMD, texts[:EARLY]), (RELAY, texts[EARLY:])):
            bodies = client_forward(client, cmd, run, tags)
            for hop in (0, 1):
                links[hop] += bodies
                bodies = relay_forward(relays[hop], cmd, bodies)
            links[2] += bodies
            read += relay_receive(relays[2], cmd, bodies, echoed)
        self.assertEqual(read, texts)
        self.assertEqual(echoed, tags)
        self.check("forward", links, tags)
        self.assertEqual([tags[-1], tags[-1]], [client[2].tag, relays[2].tag])
        self.assertEqual([each.recognised for each in relays], [0, 0, CELLS])

    def test_backward(self) -> None:
        client, relays, texts = layers("backward"), layers("backward"), messages("backward")
        tags: list[bytes] = []
        echoed: list[bytes] = []
        bodies = relay_send(relays[2], RELAY, texts, tags)
        links = [bodies]
        for hop in (1, 0):
            bodies = relay_backward(relays[hop], RELAY, bodies)
            links.insert(0, bodies)
        self.assertEqual(client_backward(client, RELAY, bodies, echoed), texts)
        self.assertEqual(echoed, tags)
        self.check("backward", links, tags)
        self.assertEqual([tags[-1], tags[-1]], [client[2].tag, relays[2].tag])


class RunTests(SynchronousTestCase):
    """What a layer does depends on the bodies and not on how they come."""

    def setUp(self) -> None:
        self.messages = messages("forward")
        self.bodies = client_forward(layers("forward"), RELAY, self.messages)
        relays = layers("backward")
        made = relay_send(relays[2], RELAY, self.messages)
        self.answers = relay_backward(relays[0], RELAY, relay_backward(relays[1], RELAY, made))

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(0, CELLS), max_size=5), st.booleans())
    def test_any_cut(self, cuts: list[int], views: bool) -> None:
        client, relays = layers("forward"), layers("forward")
        sent_bodies: list[bytes] = []
        for run in pieces(self.messages, cuts):
            sent_bodies += client_forward(client, RELAY, run)
        self.assertEqual(sent_bodies, self.bodies)
        read: list[bytes] = []
        whole = memoryview(b"".join(self.bodies))
        slices = [whole[at : at + BODY] for at in range(0, len(whole), BODY)]
        for run in pieces(slices if views else self.bodies, cuts):  # type: ignore[arg-type]
            passed = relay_forward(relays[1], RELAY, relay_forward(relays[0], RELAY, run))
            read += relay_receive(relays[2], RELAY, passed)
        self.assertEqual(read, self.messages)
        answered: list[bytes] = []
        back = layers("backward")
        for run in pieces(self.answers, cuts):
            answered += client_backward(back, RELAY, [memoryview(body) for body in run] if views else run)
        self.assertEqual(answered, self.messages)

    def test_nothing(self) -> None:
        """An empty run changes nothing."""
        client, relay = layers("forward"), layer(FORWARD[2])
        self.assertEqual((client_forward(client, RELAY, []), relay_receive(relay, RELAY, [])), ([], []))
        self.assertEqual(
            relay_receive(relay, RELAY, client_forward(client[2:], RELAY, [bytes(MESSAGE)])), [bytes(MESSAGE)]
        )

    def test_a_circuit_grows(self) -> None:
        """A hop that was the last only passes cells on when there is another behind it."""
        client, relays = layers("forward"), layers("forward")
        back, answering = layers("backward"), layers("backward")
        for length in (1, 2, 3):
            bodies = client_forward(client[:length], EARLY_CMD, self.messages[:70])
            for relay in relays[: length - 1]:
                bodies = relay_forward(relay, EARLY_CMD, bodies)
            self.assertEqual(relay_receive(relays[length - 1], EARLY_CMD, bodies), self.messages[:70])
            bodies = relay_send(answering[length - 1], RELAY, self.messages[:70])
            for relay in answering[length - 2 :: -1] if length > 1 else []:
                bodies = relay_backward(relay, RELAY, bodies)
            self.assertEqual(client_backward(back[:length], RELAY, bodies), self.messages[:70])

    def test_what_came_before_the_bad_one_is_good(self) -> None:
        for bad in (0, 1, 63, 64, 65, 129):
            bodies = client_forward([layer(FORWARD[0])], RELAY, self.messages)
            bodies[bad] = flipped(bodies[bad], 9)
            end = layer(FORWARD[0])
            tags: list[bytes] = []
            error = self.assertRaises(Unrecognised, relay_receive, end, RELAY, bodies, tags)
            self.assertEqual(error.messages, self.messages[:bad])
            self.assertEqual(tags, [body[:16] for body in bodies[:bad]])
            for function in (relay_receive, relay_forward):
                self.assertEqual(self.assertRaises(Unrecognised, function, end, RELAY, bodies[:1]).messages, [])

    def test_all_layers_of_a_client_die(self) -> None:
        client = layers("backward")
        error = self.assertRaises(Unrecognised, client_backward, client, RELAY, [*self.answers[:2], self.answers[3]])
        self.assertEqual(error.messages, self.messages[:2])
        for each in client:
            error = self.assertRaises(Unrecognised, client_backward, [each], RELAY, self.answers[:1])
            self.assertIn("before", str(error))

    def test_wrong_lengths(self) -> None:
        for length in (0, MESSAGE, BODY - 1, BODY + 1):
            for function in (relay_forward, relay_backward, relay_receive):
                one = layer(FORWARD[0])
                self.assertRaises(LocalProtocolError, function, one, RELAY, [bytes(BODY), bytes(length)])
                self.assertEqual(one.cells, 0)
            self.assertRaises(LocalProtocolError, client_backward, layers("backward"), RELAY, [bytes(length)])
        for length in (0, MESSAGE - 1, MESSAGE + 1, BODY):
            self.assertRaises(LocalProtocolError, relay_send, layer(FORWARD[0]), RELAY, [bytes(length)])
            self.assertRaises(LocalProtocolError, client_forward, layers("forward"), RELAY, [bytes(length)])
        self.assertRaises(LocalProtocolError, client_forward, [], RELAY, [bytes(MESSAGE)])
        for length in (0, KEYS - 1, KEYS + 1):
            self.assertRaises(LocalProtocolError, layer, bytes(length))

    def test_text_form_shows_no_key(self) -> None:
        one = layer(FORWARD[0])
        self.assertEqual(repr(one), "Layer(unused, cells=0, recognised=0)")
        relay_forward(one, RELAY, [bytes(BODY)])
        self.assertEqual(repr(one), "Layer(a relay's forward cells, cells=1, recognised=0)")


class ObligationTests(SynchronousTestCase):
    """P1 to P6 and P8 of docs/onion.md; P7 is tests.crypto.test_onion_tamper."""

    def watch(self, called: Callable[[Layer, str, bytes], None]) -> None:
        """Tell of what goes into the ciphers of every layer from now on: mask, block, start, seek, stream."""
        take = Layer._take

        def taken(one: Layer, new: bytes) -> None:
            take(one, new)
            for name in ("block", "start", "seek", "stream"):
                self.wrap(one, name, called)
            mask = one._mask

            def masked(nonce: bytes, text: bytes, data: bytes) -> bytes:
                called(one, "mask", data)
                return mask(nonce, text, data)

            one._mask = masked

        self.patch(Layer, "_take", taken)

    def wrap(self, one: Layer, name: str, called: Callable[[Layer, str, bytes], None]) -> None:
        cipher = getattr(one, f"_{name}")

        def wrapped(data: bytes) -> Any:
            called(one, name, bytes(data))
            return cipher(data)

        setattr(one, f"_{name}", wrapped)

    def every_function(self, count: int = CELLS) -> list[list[bytes]]:
        """Take cells through both directions of a circuit, and give all that came out."""
        texts = messages("forward")[:count]
        client, relays, back, answering = (layers(way) for way in ("forward", "forward", "backward", "backward"))
        tags: list[bytes] = []
        outputs = [client_forward(client, RELAY, texts, tags)]
        outputs += [relay_forward(relays[0], RELAY, outputs[-1])]
        outputs += [relay_forward(relays[1], RELAY, outputs[-1])]
        outputs += [relay_receive(relays[2], RELAY, outputs[-1], tags)]
        outputs += [relay_send(answering[2], RELAY, texts, tags)]
        outputs += [relay_backward(answering[1], RELAY, outputs[-1])]
        outputs += [relay_backward(answering[0], RELAY, outputs[-1])]
        outputs += [client_backward(back, RELAY, outputs[-1], tags)]
        return [*outputs, tags]

    def test_p1_relays_encrypt_and_clients_decrypt(self) -> None:
        """A layer has one use; a bit flipped before ENC changes all of a body, before DEC all of the left part."""
        body = messages("backward")[0] + bytes(BODY - MESSAGE)
        uses: dict[str, Callable[[Layer], object]] = {
            "relay forward": lambda one: relay_forward(one, RELAY, [body]),
            "relay backward": lambda one: relay_backward(one, RELAY, [body]),
            "client forward": lambda one: client_forward([one], RELAY, [body[:MESSAGE]]),
            "client backward": lambda one: client_backward([layer(FORWARD[1]), one][1:], RELAY, [body]),
        }
        for first, use in uses.items():
            one = layer(FORWARD[0])
            try:
                use(one)
            except Unrecognised:
                continue
            for second, other in uses.items():
                if second != first:
                    self.assertRaises(LocalProtocolError, other, one)
        self.assertEqual(
            relay_forward(layer(FORWARD[0]), RELAY, [body]), [State(OURS, parted(OURS, FORWARD[0])).enc(RELAY, body)]
        )
        state = State(OURS, parted(OURS, FORWARD[0]))
        made = state.dec(RELAY, FORWARD[0][-16:] + body[:MESSAGE])
        self.assertEqual(client_forward([layer(FORWARD[0])], RELAY, [body[:MESSAGE]]), [made])
        for bit in (0, 127, 128, 8 * BODY - 1):
            out, changed = (relay_forward(layer(FORWARD[0]), RELAY, [text])[0] for text in (body, flipped(body, bit)))
            differ = (int.from_bytes(out, "big") ^ int.from_bytes(changed, "big")).bit_count()
            self.assertTrue(7500 < differ < 8850, f"{differ} of {8 * BODY} bits")
            lefts = [
                onion._decrypt(self.used(FORWARD[0]), RELAY, [text[:16]], [text[16:]])[0][0]
                for text in (body, flipped(body, bit))
            ]
            self.assertTrue(30 < (int.from_bytes(lefts[0], "big") ^ int.from_bytes(lefts[1], "big")).bit_count() < 98)

    def used(self, key: bytes) -> Layer:
        one = layer(key)
        client_forward([one], RELAY, [])
        return one

    def test_p2_no_left_part_goes_twice_through_dec(self) -> None:
        """All inputs of the cipher that the stream begins with, by keys: N at the end, another layer's output above."""
        inputs: dict[Layer, list[bytes]] = {}

        def called(one: Layer, name: str, data: bytes) -> None:
            if name == "start":
                inputs.setdefault(one, []).extend(data[at : at + 16] for at in range(0, len(data), 16))

        self.watch(called)
        texts = [bytes(MESSAGE)] * CELLS  # the same message each time
        client = layers("forward")
        for run in pieces(texts, [1, 2, 40, 100]):
            client_forward(client, RELAY, run)
        ratchets = CELLS // RATCHET  # each asks for the stream of its last left part once more, for its other half
        self.assertEqual([len(inputs[one]) for one in client], [CELLS, CELLS, CELLS + ratchets])
        self.assertEqual([len({*inputs[one]}) for one in client], [CELLS, CELLS, CELLS])

    def test_p3_the_mask_stays_inside(self) -> None:
        """It is in nothing that comes out, no error carries it, and the code does nothing with it but add it."""
        masks = set()
        for way in ("forward", "backward"):
            states = [State(OURS, parted(OURS, key)) for key in keys(way)]
            for text in messages(way)[:4]:
                states[2].client_originate(RELAY, text) if way == "forward" else states[2].relay_originate(RELAY, text)
                masks.add(states[2].seen["mask"])
        self.assertEqual(len(masks), 8)
        whole = b"".join(map(b"".join, self.every_function(4)))
        for mask in masks:
            self.assertNotIn(mask, whole)
        for function, name in ((onion._encrypt, "masked"), (onion._decrypt, "masked")):
            tree = ast.parse(inspect.getsource(function))
            loads = {
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Name) and node.id == name and node.ctx.__class__ is ast.Load
            }
            added = {
                side
                for node in ast.walk(tree)
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor)
                for side in (node.left, node.right)
            }
            self.assertEqual(len(loads), 2)
            self.assertLessEqual(loads, added)

    def test_p4_bodies_and_next_keys_use_their_own_blocks(self) -> None:
        """Counters begin at 0 for bodies and at 128 for keys, in ranges of 256 blocks, and neither runs over."""
        begun: dict[Layer, int] = {}
        longest = {0: 0, 0x80: 0}

        def called(one: Layer, name: str, data: bytes) -> None:
            if name == "seek":
                self.assertEqual(len(data), 16)
                begun[one] = data[-1]
            elif name == "stream":
                longest[begun.pop(one)] = max(len(data), longest.get(begun.get(one, 0), 0))

        self.watch(called)
        self.every_function()
        self.assertEqual(longest, {0: MESSAGE, 0x80: KEYS})
        self.assertLessEqual(MESSAGE, 0x80 * 16)
        self.assertLessEqual(KEYS, 0x80 * 16)

    def test_p5_four_keys_and_one_length(self) -> None:
        """Each of the five secrets matters by itself, no two keys serve one purpose, and one length is hashed."""
        lengths = set()

        def called(one: Layer, name: str, data: bytes) -> None:
            if name == "mask":
                lengths.add(len(data))

        texts = messages("forward")[:2]
        good = client_forward([layer(FORWARD[0])], RELAY, texts)
        for part, at in enumerate((0, 32, 64, 96, 128)):
            other = bytearray(FORWARD[0])
            other[at] ^= 1
            made = client_forward([layer(bytes(other))], RELAY, texts)
            self.assertNotEqual(made, good)
            # K_B and K_U decide about the left part alone; what begins the stream decides about the right one
            self.assertEqual(made[0][16:] == good[0][16:], part < 2)
            if 2 <= part < 4:  # these hide what is read and do not decide whether
                self.assertNotIn(relay_receive(layer(bytes(other)), RELAY, good[:1])[0], texts)
            else:
                self.assertRaises(Unrecognised, relay_receive, layer(bytes(other)), RELAY, good)
        self.watch(called)
        self.every_function()
        self.assertEqual(lengths, {16 + 1 + MESSAGE})

    def test_p6_a_layer_ends(self) -> None:
        """2**24 bodies, 32 GiB, which keep P3 and P4 below 2**-72."""
        self.assertEqual(CELLS_MAX, 2**24)
        self.assertLessEqual(CELLS_MAX**2 / 2**121, 2**-72)
        bodies, texts = [bytes(BODY)] * 2, [bytes(MESSAGE)] * 2
        for function, run, many in (
            (relay_forward, bodies, False),
            (relay_backward, bodies, False),
            (relay_receive, bodies, False),
            (relay_send, texts, False),
            (client_forward, texts, True),
            (client_backward, bodies, True),
        ):
            one = layer(FORWARD[0])
            one.cells = CELLS_MAX - 1
            taken: Any = [layer(FORWARD[1]), one] if many else one
            error = self.assertRaises(LimitExceeded, function, taken, RELAY, run)
            self.assertEqual((error.limit, error.most), ("CIRC_CELLS", CELLS_MAX))
            if many:
                self.assertEqual(taken[0].cells, 0)
            self.assertEqual(one.cells, CELLS_MAX - 1)
        one = layer(FORWARD[0])
        one.cells = CELLS_MAX - 2
        relay_forward(one, RELAY, bodies)
        self.assertRaises(LimitExceeded, relay_forward, one, RELAY, bodies[:1])

    def test_p8_nothing_refers_to_old_keys(self) -> None:
        """The 64th cell takes the ends to other keys, which tell nothing of those before; hops between keep theirs."""
        texts = messages("forward")[: RATCHET + 1]
        client, relays = layers("forward"), layers("forward")
        bodies = client_forward(client, RELAY, texts[:1])
        passed = relay_forward(relays[1], RELAY, relay_forward(relays[0], RELAY, bodies))
        relay_receive(relays[2], RELAY, passed)
        ends, between = (client[2], relays[2]), (client[0], relays[0])
        before = {one: self.ciphers(one) for one in (*ends, *between)}
        self.assertEqual({one._keys for one in ends}, {b""})
        for run in (texts[1:RATCHET], texts[RATCHET:]):
            bodies = client_forward(client, RELAY, run)
            passed = relay_forward(relays[1], RELAY, relay_forward(relays[0], RELAY, bodies))
            relay_receive(relays[2], RELAY, passed)
            if run[-1] is texts[RATCHET - 1]:
                last_old = passed[-1]
        for one in between:
            self.assertEqual(self.ciphers(one), before[one])
        for one in ends:
            olds = before.pop(one)
            while olds:
                old = olds.pop()
                self.assertNotIn(old, self.ciphers(one))
                self.assertEqual(sys.getrefcount(old), 2)  # this name and the call's argument
        now = relays[2]
        now._nonce -= 1
        self.assertRaises(Unrecognised, relay_receive, now, RELAY, [last_old])
        self.assertNotIn(now._nonce.to_bytes(16, "big"), FORWARD[2])

    def test_p8_the_dead_keep_no_key(self) -> None:
        one = layer(FORWARD[0])
        relay_forward(one, RELAY, [])
        olds = self.ciphers(one)
        self.assertRaises(Unrecognised, relay_receive, one, RELAY, [bytes(BODY)])
        while olds:
            old = olds.pop()
            self.assertNotIn(old, self.ciphers(one))
            self.assertEqual(sys.getrefcount(old), 2)
        self.assertEqual(one._nonce, 0)

    def test_an_ended_layer_takes_nothing(self) -> None:
        for use in (relay_forward, relay_backward, relay_receive):
            self.assertRaises(Unrecognised, use, ENDED, RELAY, [bytes(BODY)])
        self.assertRaises(Unrecognised, relay_send, ENDED, RELAY, [bytes(MESSAGE)])

    def ciphers(self, one: Layer) -> list[Any]:
        """Give the four cipher objects of a layer."""
        return [getattr(call, "__self__", None) for call in (one._mask, one._block, one._start, one._stream)]


class StateTests(SynchronousTestCase):
    def test_the_end_has_the_state_of_the_reference(self) -> None:
        """Whoever holds the reference's last state can go on from the module's."""
        _, _, states = sent("forward")
        client = layers("forward")
        client_forward(client, EARLY_CMD, messages("forward")[:EARLY])
        client_forward(client, RELAY, messages("forward")[EARLY:])
        self.assertEqual([one._chain for one in client], [state.chain for state in states])
        self.assertEqual(client[2]._nonce, int.from_bytes(states[2].keys[4], "big"))
        text = bytes(MESSAGE)
        self.assertEqual(client_forward(client[2:], RELAY, [text])[0], states[2].client_originate(RELAY, text)[0])


class PageTests(SynchronousTestCase):
    """docs/onion.md names tests that are there, one for each obligation, and the numbers of the modules."""

    def test_page(self) -> None:
        text = (ROOT / "docs" / "onion.md").read_text()
        named = re.findall(r"`(crypto\.test_[\w.]+)`", text)
        self.assertEqual([name for name in named if not find_test(f"tests.{name}")], [])
        rows = re.findall(r"^\| (P\d) \|.*\| `crypto\.test_onion\w*\.\w+(?:\.test_(p\d)_\w+)?` \|$", text, re.MULTILINE)
        self.assertEqual([number for number, _ in rows], [f"P{number}" for number in range(1, 9)])
        self.assertEqual([test.upper() or "P7" for _, test in rows], [number for number, _ in rows])
        for number in (BODY, MESSAGE, KEYS, BEGIN_LEAST, ANSWER_LEAST):
            self.assertIn(f"{number}", text)
        self.assertIn(f"After every {RATCHET}th message", text)
        self.assertIn(f"last {SEEN_X:,} X", text)
