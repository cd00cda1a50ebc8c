r"""Lines of text from one node to another: `layer8 send` and the inbox.

```
 sender                                                   node at the end of a circuit
   |-- MESSAGE     id 16 | flags u8 | [sender 32 | signature 64] | text <= 4096 -->|   kept
   |<- MESSAGE_OK  id 16 ---------------------------------------------------------|
```
Signed: `"layer8/1 message\0" | network 8 | recipient 32 | id 16 | text`. A message whose id is known is acknowledged
and not kept again, so whoever got no answer may send it once more. Nobody reads along: the text is inside the onion.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Final

from attrs import define, field, frozen

from layer8.core.errors import LimitExceeded, RemoteProtocolError, Unavailable
from layer8.core.roles import Asker
from layer8.crypto.keys import NodeKey, verify
from layer8.relay.circuit import Bucket
from layer8.relay.client import Client, Need
from layer8.relay.memory import INBOX, Letter
from layer8.relay.route import Named, Rand, Route
from layer8.relay.standing import Circuit
from layer8.relay.wire import TEXT_MOST, Command, Text

ANSWER_TIME: Final = 20.0  # seconds
LETTERS: Final = 64  # of one circuit
LETTER_RATE: Final = 20.0  # a second, of all circuits together: each is written down
LETTER_BURST: Final = 200  # at once
KEY: Final = "messages"  # what keeps circuits of messages apart from all others, with who signs them

_SIGNED: Final = b"layer8/1 message\0"


@frozen
class Sent:
    """What became of a message: milliseconds until the answer, the circuit's number, whether it was built for it."""

    ms: float
    circuit: int
    new: bool


@define(eq=False)
class Inbox:
    """The messages of this node, and how it sends some: `layer8.core.roles.Answers`.

    `keep` writes a message down; `wall` gives seconds since 1970, `seconds` monotonic ones.
    """

    commands = frozenset((int(Command.MESSAGE),))
    _identity: bytes
    _network: bytes
    _client: Client
    _wall: Callable[[], float]
    _seconds: Callable[[], float]
    _chance: Callable[[int], bytes]
    _keep: Callable[[Letter], None] = lambda letter: None
    came: Callable[[Letter], None] = lambda letter: None
    letters: list[Letter] = field(factory=list, init=False)  # the newest last
    _known: set[bytes] = field(factory=set, init=False)
    _counts: dict[int, int] = field(factory=dict, init=False)  # of circuits
    _bucket: Bucket = field(factory=lambda: Bucket(LETTER_RATE, LETTER_BURST), init=False)

    def restore(self, letters: Sequence[Letter]) -> None:
        """Take back what was kept."""
        self.letters = list(letters)
        self._known = {letter.number for letter in letters}

    def asked(self, asker: Asker, command: int, data: bytes, now: float) -> None:
        """Keep a message and say so; raises `RemoteProtocolError` for a false signature, or too many."""
        count = self._counts[asker.circuit] = self._counts.get(asker.circuit, 0) + 1
        if count > LETTERS:
            raise LimitExceeded("LETTERS", LETTERS)
        if not self._bucket.take(now):
            raise LimitExceeded("LETTER_RATE", round(LETTER_RATE))
        text = Text.read(data)
        if text.sender and not verify(
            text.sender, text.signature, self._signed(self._identity, text.number, text.text)
        ):
            raise RemoteProtocolError("a message with a wrong signature")
        if text.number not in self._known:
            self._take(Letter(text.number, self._wall(), text.sender, text.text))
        asker.answer(Command.MESSAGE_OK, text.number)

    def gone(self, circuit: int) -> None:
        """Forget a circuit that has ended."""
        self._counts.pop(circuit, None)

    async def send(self, to: str, text: str, key: NodeKey | None = None) -> Sent:
        """Send a line to a node, by its id, the first letters of it, or an alias; `key` signs it.

        The circuit is the one of the last time with this key, if that still stands. Raises `NoPath`, `NoCircuit`,
        `TimedOut`, `Unavailable`, or `LimitExceeded` for a text of more than TEXT_MOST bytes.
        """
        told = text.encode()
        if len(told) > TEXT_MOST:
            raise LimitExceeded("TEXT_MOST", TEXT_MOST)
        number = self._chance(16)
        begun = self._seconds()
        circuit = await self._circuit(to, key)
        new = circuit.opened == 1
        identity = circuit.path[-1].identity
        sender, signature = (key.node_id, key.sign(self._signed(identity, number, told))) if key else (b"", b"")
        data = Text(number, told, sender, signature).encode()
        try:
            answer = await self._ask(circuit, data)
        except Unavailable:
            if new:
                raise
            circuit = await self._circuit(to, key)  # the old one had died, and nobody had noticed
            new = circuit.opened == 1
            answer = await self._ask(circuit, data)
        if answer != number:
            raise Unavailable("another message was acknowledged than the one that was sent")
        return Sent(round((self._seconds() - begun) * 1000, 3), circuit.number, new)

    async def _circuit(self, to: str, key: NodeKey | None) -> Circuit:
        """Give a circuit for what one key signs, or none: two letters on one would be of one hand."""
        hops = (Rand(),) * (self._client.hops - 1)
        return await self._client.circuit(Need((KEY, b"" if key is None else key.node_id), Route((*hops, Named(to)))))

    async def _ask(self, circuit: Circuit, data: bytes) -> bytes:
        wanted: Container[int] = (int(Command.MESSAGE_OK),)
        _, answer = await self._client.ask_on(circuit, Command.MESSAGE, data, wanted, ANSWER_TIME)
        return answer

    def _signed(self, recipient: bytes, number: bytes, text: bytes) -> bytes:
        return _SIGNED + self._network + recipient + number + text

    def _take(self, letter: Letter) -> None:
        self.letters.append(letter)
        self._known.add(letter.number)
        while len(self.letters) > INBOX:
            self._known.discard(self.letters.pop(0).number)
        self._keep(letter)
        self.came(letter)
