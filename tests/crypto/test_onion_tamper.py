"""P7 of docs/onion.md: whatever is done to cells on their way, the end notices at once and knows no cell after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.crypto import onion
from layer8.crypto.onion import (
    BODY,
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
from tests.crypto.onion_vectors import keys, messages

RELAY, EARLY = 4, 5
COUNT = 8  # cells under attack
FORWARD, BACKWARD = keys("forward"), keys("backward")
MESSAGES = messages("forward")[:COUNT]
HOPS = (0, 1, 2)  # the links that somebody sits on, counted from the client: every cell of the circuit passes all

Attack = Callable[[list[bytes]], Sequence[bytes]]


def forward(attack: Attack, link: int, cmds: Sequence[int] = (RELAY,) * 3) -> tuple[Layer, list[bytes]]:
    """Send all messages with somebody on a link, and give the last hop's fresh layer and what reaches it."""
    bodies: Sequence[bytes] = client_forward([layer(key) for key in FORWARD], RELAY, MESSAGES)
    for hop in HOPS:
        if hop == link:
            bodies = attack(list(bodies))
        if hop < 2:
            bodies = relay_forward(layer(FORWARD[hop]), cmds[hop], bodies)
    return layer(FORWARD[2]), list(bodies)


def backward(attack: Attack, link: int) -> tuple[list[Layer], list[bytes]]:
    """Send all messages back with somebody on a link, and give the client's fresh layers and what reaches it."""
    bodies: Sequence[bytes] = relay_send(layer(BACKWARD[2]), RELAY, MESSAGES)
    for hop in (2, 1, 0):
        if hop < 2:
            bodies = relay_backward(layer(BACKWARD[hop]), RELAY, bodies)
        if hop == link:
            bodies = attack(list(bodies))
    return [layer(key) for key in BACKWARD], list(bodies)


def flip(cell: int, bit: int) -> Attack:
    def attack(bodies: list[bytes]) -> list[bytes]:
        changed = bytearray(bodies[cell])
        changed[bit // 8] ^= 1 << bit % 8
        return [*bodies[:cell], bytes(changed), *bodies[cell + 1 :]]

    return attack


def drop(cell: int) -> Attack:
    return lambda bodies: bodies[:cell] + bodies[cell + 1 :]


def repeat(cell: int, after: int) -> Attack:
    return lambda bodies: [*bodies[: after + 1], bodies[cell], *bodies[after + 1 :]]


def swap(cell: int, other: int) -> Attack:
    def attack(bodies: list[bytes]) -> list[bytes]:
        bodies[cell], bodies[other] = bodies[other], bodies[cell]
        return bodies

    return attack


def inject(cell: int, body: bytes) -> Attack:
    return lambda bodies: [*bodies[:cell], body, *bodies[cell:]]


class TamperTests(SynchronousTestCase):
    def check_forward(self, attack: Attack, link: int, good: int, cmds: Sequence[int] = (RELAY,) * 3) -> None:
        """The first `good` messages are read, the next cell is the end, and what is behind it is noise."""
        end, bodies = forward(attack, link, cmds)
        error = self.assertRaises(Unrecognised, relay_receive, end, cmds[2], bodies)
        self.assertEqual(error.messages, MESSAGES[:good])
        self.assertRaises(Unrecognised, relay_receive, end, cmds[2], bodies[good + 1 :])
        end = layer(FORWARD[2])  # one that would go on all the same
        self.assertEqual(relay_receive(end, cmds[2], bodies[:good]), MESSAGES[:good])
        near = {(end._nonce + step).to_bytes(16, "big") for step in range(-COUNT, COUNT + 1)}
        lefts, rights = onion._encrypt(end, cmds[2], *onion._split(bodies[good:]))
        self.assertEqual((near & {*lefts}, {*MESSAGES} & {*rights}), (set(), set()))

    def check_backward(self, attack: Attack, link: int, good: int) -> None:
        """The same for a client, but what is behind is unread for another reason: its layers are dead."""
        ends, bodies = backward(attack, link)
        error = self.assertRaises(Unrecognised, client_backward, ends, RELAY, bodies)
        self.assertEqual(error.messages, MESSAGES[:good])
        for body in bodies[good:]:
            self.assertEqual(self.assertRaises(Unrecognised, client_backward, ends, RELAY, [body]).messages, [])

    def check(self, attack: Attack, link: int, good: int) -> None:
        self.check_forward(attack, link, good)
        self.check_backward(attack, link, good)

    def test_nobody_there(self) -> None:
        """Without an attack all is read, so the other tests speak of attacks."""
        for link in HOPS:
            end, bodies = forward(lambda bodies: bodies, link)
            self.assertEqual(relay_receive(end, RELAY, bodies), MESSAGES)
            ends, bodies = backward(lambda bodies: bodies, link)
            self.assertEqual(client_backward(ends, RELAY, bodies), MESSAGES)

    def test_a_bit_in_every_byte(self) -> None:
        """One bit of each byte of the second of three cells, on every link, both ways."""
        sent = client_forward([layer(key) for key in FORWARD], RELAY, MESSAGES[:3])
        answers = relay_send(layer(BACKWARD[2]), RELAY, MESSAGES[:3])
        for link in HOPS:
            arriving = sent
            for hop in range(link):
                arriving = relay_forward(layer(FORWARD[hop]), RELAY, arriving)
            returning = answers
            for hop in range(1, link - 1, -1):
                returning = relay_backward(layer(BACKWARD[hop]), RELAY, returning)
            for byte in range(BODY):
                bit = 8 * byte + byte % 8
                bodies: Sequence[bytes] = flip(1, bit)(list(arriving))
                for hop in range(link, 2):
                    bodies = relay_forward(layer(FORWARD[hop]), RELAY, bodies)
                error = self.assertRaises(Unrecognised, relay_receive, layer(FORWARD[2]), RELAY, bodies)
                self.assertEqual(error.messages, MESSAGES[:1])
                bodies = flip(1, bit)(list(returning))
                for hop in range(link - 1, -1, -1):
                    bodies = relay_backward(layer(BACKWARD[hop]), RELAY, bodies)
                client = [layer(key) for key in BACKWARD]
                error = self.assertRaises(Unrecognised, client_backward, client, RELAY, bodies)
                self.assertEqual(error.messages, MESSAGES[:1])

    def test_every_bit_of_the_left_part(self) -> None:
        for link in HOPS:
            for bit in range(128):
                self.check(flip(2, bit), link, 2)

    def test_every_cell_dropped(self) -> None:
        for link in HOPS:
            for cell in range(COUNT - 1):  # the last one's absence nobody can see yet
                self.check(drop(cell), link, cell)

    def test_every_cell_repeated(self) -> None:
        for link in HOPS:
            for after in range(COUNT):
                for cell in range(after + 1):
                    self.check(repeat(cell, after), link, after + 1)

    def test_every_two_cells_swapped(self) -> None:
        for link in HOPS:
            for other in range(1, COUNT):
                for cell in range(other):
                    self.check(swap(cell, other), link, cell)

    def test_cells_put_in(self) -> None:
        """Zeros, noise, cells of the other direction and of another circuit of the same hop."""
        stranger = client_forward([layer(key) for key in keys("another circuit")], RELAY, MESSAGES)[0]
        noise = [bytes(BODY), stranger, MESSAGES[0] + bytes(16)]
        answer = relay_send(layer(BACKWARD[2]), RELAY, MESSAGES)[0]
        asked = client_forward([layer(FORWARD[2])], RELAY, MESSAGES)[0]
        for link in HOPS:
            for cell in range(COUNT):
                for body in noise:
                    self.check(inject(cell, body), link, cell)
                self.check_forward(inject(cell, answer), link, cell)
                self.check_backward(inject(cell, asked), link, cell)

    def test_relay_for_early_and_back(self) -> None:
        """The command is part of what is hashed: a hop that passes RELAY on as EARLY ruins the circuit."""
        for cmds in ((EARLY, EARLY, EARLY), (RELAY, EARLY, EARLY), (RELAY, RELAY, EARLY), (RELAY, EARLY, RELAY)):
            self.check_forward(lambda bodies: bodies, 0, 0, cmds)
        bodies = relay_send(layer(BACKWARD[2]), EARLY, MESSAGES)
        for hop in (1, 0):
            bodies = relay_backward(layer(BACKWARD[hop]), RELAY, bodies)
        self.assertRaises(Unrecognised, client_backward, [layer(key) for key in BACKWARD], RELAY, bodies)

    def test_only_its_death_keeps_a_client_from_reading_on(self) -> None:
        """DEC takes T' from what comes in, so its chain is whole again behind a bad cell: it must not be given more."""
        bodies = relay_send(layer(BACKWARD[2]), RELAY, MESSAGES)
        again = [bodies[cell] for cell in (0, 2, 0, 1)]
        client = layer(BACKWARD[2])
        self.assertEqual(client_backward([client], RELAY, again[:1]), MESSAGES[:1])
        for body in again[1:]:
            self.assertRaises(Unrecognised, client_backward, [client], RELAY, [body])
        immortal = layer(BACKWARD[2])
        client_backward([immortal], RELAY, again[:1])
        lefts, rights = onion._decrypt(immortal, RELAY, *onion._split(again[1:]))
        self.assertEqual(lefts.index(immortal._nonce.to_bytes(16, "big")), 2)
        self.assertEqual(rights[2], MESSAGES[1])

    def test_two_ends_that_work_together_see_no_mark(self) -> None:
        """A bit flipped by the first hop is no bit flipped at the last one: half of all bits differ, on both sides."""
        for bit in (0, 200, 8 * BODY - 1):
            _, plain = forward(lambda bodies: bodies, 0)
            _, marked = forward(flip(3, bit), 0)
            self.assertEqual(plain[:3], marked[:3])
            for one, other in zip(plain[3:], marked[3:], strict=True):
                differ = (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()
                self.assertTrue(7500 < differ < 8850, differ)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_attack(self, data: st.DataObject) -> None:
        """Any list of cells that does not begin with all of them as they were is known up to the first strange one."""
        link = data.draw(st.sampled_from(HOPS))
        picks = data.draw(st.lists(st.integers(0, COUNT - 1), max_size=COUNT))
        bits = data.draw(st.dictionaries(st.integers(0, COUNT - 1), st.integers(0, 8 * BODY - 1), max_size=2))

        def attack(bodies: list[bytes]) -> list[bytes]:
            for cell, bit in bits.items():
                bodies = list(flip(cell, bit)(bodies))
            return [bodies[pick] for pick in picks]

        good = 0
        while good < len(picks) and picks[good] == good and good not in bits:
            good += 1
        if good == len(picks):
            end, bodies = forward(attack, link)
            self.assertEqual(relay_receive(end, RELAY, bodies), MESSAGES[:good])
            ends, bodies = backward(attack, link)
            self.assertEqual(client_backward(ends, RELAY, bodies), MESSAGES[:good])
        else:
            self.check(attack, link, good)
