"""Oblivious HTTP as bytes: the RFC's and the draft's examples, any cut, and each thing that must not open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from layer8.core.errors import LocalProtocolError, RemoteProtocolError
from layer8.crypto.hpke_context import Aead, Context, Private
from layer8.tunnel import wire
from layer8.tunnel.bhttp import varint
from layer8.tunnel.limits import CHUNK_PLAIN, CHUNK_SEALED, MAX_SINGLE
from layer8.tunnel.wire import CHUNKED, HEAD, SINGLE, Head, KeyConfig, Media, Opener, Refusal, Sealer
from tests.tunnel.vectors import ABSENT, rows, unhex

AES = Aead.AES_128_GCM
EITHER = st.sampled_from((SINGLE, CHUNKED))


def opened(opener: Opener, data: bytes, size: int = 0) -> bytes:
    size = size or len(data) or 1
    texts = [text for at in range(0, len(data), size) for text in opener.feed(data[at : at + size])]
    return b"".join([*texts, opener.end()])


class PublishedTests(SynchronousTestCase):
    skip = ABSENT

    def follow(self, media: Media, row: dict[str, Any], nonce_name: str) -> None:
        key = Private.load(bytes.fromhex(row["gateway_secret_key"]))
        config = KeyConfig.read(bytes.fromhex(row["key_config"]))
        self.assertEqual(config, KeyConfig(row["key_id"], key.public, (Aead.AES_128_GCM, Aead.CHACHA20_POLY1305)))
        self.assertEqual(config.encode().hex(), row["key_config"])
        aead = Aead(row["aead_id"])
        self.assertEqual(wire.info(media, config.key_id, aead).hex(), row["info"])
        ephemeral = Private.load(bytes.fromhex(row["client_ephemeral_secret_key"]))
        sealer, asked = wire.seal_request(media, config, aead, ephemeral)
        self.assertEqual(asked.enc.hex(), row["enc"])
        request, answer, nonce = unhex(row, "encapsulated_request", "encapsulated_response", "response_nonce")
        inner, outer = unhex(row, "bhttp_request", "bhttp_response")
        chunks = [bytes.fromhex(chunk["pt"]) for chunk in row.get("request_chunks", ())] or [inner]
        self.assertEqual(b"".join(map(sealer.seal, chunks[:-1])) + sealer.finish(chunks[-1]), request)

        head = Head.read(request[:HEAD])
        self.assertEqual((head.encode(), head.enc.hex()), (request[:HEAD], row["enc"]))
        for size in (1, 5, 1000):
            opener, answering = wire.open_request(media, head, key)
            self.assertEqual(opened(opener, request[HEAD:], size), inner)

        for context in (asked, answering):
            keys = wire.answer_keys(media, context, aead, nonce)
            self.assertEqual(context.enc + nonce, bytes.fromhex(row["salt"]))
            self.assertEqual(
                [keys.secret, keys.prk, keys.key, keys.nonce],
                unhex(row, "exported_secret", "prk", "aead_key", nonce_name),
            )
        sealer = wire.seal_answer(media, answering, aead, nonce)
        chunks = [bytes.fromhex(chunk["pt"]) for chunk in row.get("response_chunks", ())] or [outer]
        self.assertEqual(b"".join(map(sealer.seal, chunks[:-1])) + sealer.finish(chunks[-1]), answer)
        for size in (1, 5, 1000):
            self.assertEqual(opened(wire.open_answer(media, asked, aead), answer, size), outer)

    def test_rfc_9458(self) -> None:
        for row in rows("ohttp"):
            self.follow(SINGLE, row, "aead_nonce")
            document = bytes.fromhex(row["ohttp_keys_document"]["hex"])
            config = KeyConfig.read_document(document)
            self.assertEqual(config.document(), document)
            self.assertEqual(config.encode().hex(), row["key_config"])

    def test_chunked(self) -> None:
        for row in rows("chunked_ohttp"):
            self.follow(CHUNKED, row, "aead_base_nonce")
            for name in ("request_chunks", "response_chunks"):
                for chunk in row[name]:
                    self.assertIn(chunk["ct"], row["encapsulated_request"] + row["encapsulated_response"])
                    self.assertEqual(chunk["aad"], b"final".hex() if chunk is row[name][-1] else "")
            keys = [chunk["nonce"] for chunk in row["response_chunks"]]
            base = int(row["aead_base_nonce"], 16)
            self.assertEqual(keys, [f"{base ^ number:024x}" for number in range(len(keys))])


class Peers:
    """A page and a gateway with nothing between them."""

    def __init__(self, media: Media = CHUNKED, aead: Aead = AES) -> None:
        self.media, self.aead = media, aead
        self.key = Private.make()
        self.config = KeyConfig(7, self.key.public, (aead,))

    def asking(self) -> tuple[Sealer, Context]:
        return wire.seal_request(self.media, self.config, self.aead, Private.make())

    def opening(self, data: bytes) -> tuple[Opener, Context]:
        return wire.open_request(self.media, Head.read(data[:HEAD]), self.key)


class RoundTripTests(SynchronousTestCase):
    @given(EITHER, st.sampled_from(Aead), st.binary(max_size=300), st.binary(max_size=300), st.integers(1, 400))
    def test_any_cut(self, media: Media, aead: Aead, asked: bytes, told: bytes, cut: int) -> None:
        peers = Peers(media, aead)
        sealer, page = peers.asking()
        data = sealer.seal(asked[:100]) + sealer.finish(asked[100:])
        opener, gateway = peers.opening(data)
        self.assertEqual(opened(opener, data[HEAD:], cut), asked)
        answer = wire.seal_answer(media, gateway, aead, bytes(wire.nonce_size(aead)))
        data = answer.seal(told[:100]) + answer.finish(told[100:])
        self.assertEqual(opened(wire.open_answer(media, page, aead), data, cut), told)

    def test_what_it_costs(self) -> None:
        """55 and 32 bytes in one piece; 56 and 33 in chunks, and 20 more for each that is full."""
        for media, up, down in ((SINGLE, 55, 32), (CHUNKED, 56, 33)):
            for full in (0, 1, 5):
                if full and media is SINGLE:
                    continue
                peers, text = Peers(media), bytes(full * CHUNK_PLAIN + 100)
                data = peers.asking()[0].finish(text)
                self.assertEqual(len(data) - len(text), up + 20 * full)
                _, gateway = peers.opening(data)
                answer = wire.seal_answer(media, gateway, AES, bytes(16)).finish(text)
                self.assertEqual(len(answer) - len(text), down + 20 * full)

    def test_a_full_last_chunk(self) -> None:
        for size in (0, 1, CHUNK_PLAIN - 1, CHUNK_PLAIN, CHUNK_PLAIN + 1, 3 * CHUNK_PLAIN):
            peers, text = Peers(), bytes(size)
            data = peers.asking()[0].finish(text)
            self.assertEqual(opened(peers.opening(data)[0], data[HEAD:]), text)
            self.assertEqual(len(data), size + 56 + 20 * (max(0, size - 1) // CHUNK_PLAIN))

    def test_chunks_come_before_the_end(self) -> None:
        peers = Peers()
        sealer, _ = peers.asking()
        first = sealer.seal(b"one")
        opener, _ = peers.opening(first)
        self.assertEqual(opener.feed(first[HEAD:]), [b"one"])
        self.assertEqual(opener.feed(sealer.seal(b"two") + sealer.finish()), [b"two"])
        self.assertEqual(opener.end(), b"")

    def test_padding(self) -> None:
        self.assertEqual(
            [wire.padded(size) for size in (0, 1, 512, 513, 1024, 40_000, 65_536)],
            [512, 512, 512, 1024, 1024, 65_536, 65_536],
        )
        self.assertEqual(wire.padded(65_537), 65_536 + 2048)
        seen = {wire.padded(size) for size in range(65_536)}
        self.assertEqual(len(seen), 8)

    @given(st.integers(65_537, 1 << 40))
    def test_padding_of_large_ones(self, size: int) -> None:
        grown = wire.padded(size)
        self.assertTrue(size <= grown <= size * 1.032, (size, grown))
        self.assertEqual(wire.padded(grown), grown)


class BadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.peers = Peers()
        sealer, self.context = self.peers.asking()
        self.head = sealer.seal(b"")
        self.first, self.second, self.last = sealer.seal(b"first"), sealer.seal(b"second"), sealer.finish(b"last")

    def refused(self, data: bytes, status: int, make: Callable[[], Opener] | None = None) -> None:
        for size in (len(data), 1):
            opener = make() if make else self.peers.opening(self.head)[0]
            error = self.assertRaises(Refusal, opened, opener, data, size)
            self.assertEqual((error.status, error.problem), (status, wire.ABOUT_BLANK))

    def test_the_whole_is_good(self) -> None:
        whole = self.first + self.second + self.last
        self.assertEqual(opened(self.peers.opening(self.head)[0], whole), b"firstsecondlast")

    def test_lengths_of_chunks(self) -> None:
        for size in (1, 15, 16, CHUNK_SEALED + 1, 1 << 40):
            self.refused(varint(size) + bytes(20), 400)
        self.refused(b"\0" + bytes(CHUNK_SEALED + 1), 400)

    def test_a_long_form_of_a_small_number(self) -> None:
        size = len(self.first) - 1
        for long in (
            (size | 1 << 14).to_bytes(2, "big"),
            (size | 2 << 30).to_bytes(4, "big"),
            (size | 3 << 62).to_bytes(8, "big"),
        ):
            whole = long + self.first[1:] + self.second + self.last
            self.assertEqual(opened(self.peers.opening(self.head)[0], whole), b"firstsecondlast")
        whole = self.first + self.second + b"\xc0" + bytes(7) + self.last[1:]
        self.assertEqual(opened(self.peers.opening(self.head)[0], whole), b"firstsecondlast")

    def test_an_empty_chunk_before_the_last(self) -> None:
        """Its length is that of a tag, so it is refused before it is opened."""
        messages = self.peers.asking()[1].messages
        self.refused(varint(16) + messages.seal(b""), 400)

    def test_order_repeats_and_losses(self) -> None:
        self.refused(self.second + self.first + self.last, 422)
        self.refused(self.first + self.first + self.second + self.last, 422)
        self.refused(self.first + self.last, 422)
        self.refused(self.first + self.second + self.last + b"\0", 422)
        self.refused(self.first + self.second + self.last + self.second, 422)
        self.refused(self.first + self.second + varint(len(self.last) - 1) + self.last[1:] + b"\0" + bytes(16), 422)

    def test_what_is_good_before_a_flaw_is_given(self) -> None:
        for size in (1, 7, 1000):
            opener = self.peers.opening(self.head)[0]
            texts: list[bytes] = []
            data = self.first + self.second + self.second
            with self.assertRaises(Refusal):
                for at in range(0, len(data), size):
                    piece = data[at : at + size]
                    while given := opener.feed(piece):
                        texts += given
                        piece = b""
            self.assertEqual(texts, [b"first", b"second"])
            self.assertRaises(Refusal, opener.feed, b"")
            self.assertRaises(Refusal, opener.end)

    def test_no_end(self) -> None:
        for data in (b"", self.first, self.first + self.second, self.first + self.second[:5]):
            self.refused(data, 400)
        self.refused(self.first + b"\0", 422)
        self.refused(self.first + self.second + self.last[:-1], 422)

    def test_another_request_s_answer(self) -> None:
        _, other = self.peers.opening(self.peers.asking()[0].finish(b"other"))
        answer = wire.seal_answer(CHUNKED, other, AES, bytes(16)).finish(b"for another")
        self.refused(answer, 422, lambda: wire.open_answer(CHUNKED, self.context, AES))

    def test_an_answer_without_its_nonce(self) -> None:
        for size in (0, 1, 15):
            self.refused(bytes(size), 400, lambda: wire.open_answer(CHUNKED, self.context, AES))

    def test_any_flipped_bit(self) -> None:
        whole = self.first + self.second + self.last
        for at in range(len(whole)):
            data = bytearray(whole)
            data[at] ^= 1
            self.assertRaises(Refusal, opened, self.peers.opening(self.head)[0], bytes(data))

    def test_a_chunked_type_with_a_body_of_one_piece(self) -> None:
        """What a client on PyPI sends: it must be refused, and open under the type that it should have had."""
        single = Peers(SINGLE)
        sealer, _ = single.asking()
        data = sealer.finish(bytes(300))
        opener, _ = wire.open_request(CHUNKED, Head.read(data[:HEAD]), single.key)
        error = self.assertRaises(Refusal, opened, opener, data[HEAD:])
        self.assertIn(error.status, (400, 422))
        self.assertEqual(opened(single.opening(data)[0], data[HEAD:]), bytes(300))

    def test_the_two_forms_are_kept_apart(self) -> None:
        whole = b"\0" + Peers.asking(self.peers)[0].finish(b"")[HEAD + 1 :]
        self.refused(whole[1:], 422, lambda: wire.open_request(SINGLE, Head.read(self.head), self.peers.key)[0])

    def test_heads(self) -> None:
        for size in (0, 1, 38, 40):
            self.assertEqual(self.assertRaises(Refusal, Head.read, bytes(size)).status, 400)
        for at, number in ((1, 0x10), (3, 2), (5, 2), (5, 0), (5, 0xFFFF)):
            data = self.head[:at] + number.to_bytes(2, "big") + self.head[at + 2 :]
            error = self.assertRaises(Refusal, Head.read, data)
            self.assertEqual((error.status, error.problem), (400, wire.OHTTP_KEY))

    def test_an_enc_of_low_order(self) -> None:
        for enc in (bytes(32), b"\x01" + bytes(31)):
            error = self.assertRaises(Refusal, wire.open_request, CHUNKED, Head(7, AES, enc), self.peers.key)
            self.assertEqual(error.status, 422)

    def test_too_long_for_one_piece(self) -> None:
        single = Peers(SINGLE)
        sealer, _ = single.asking()
        self.assertRaises(LocalProtocolError, sealer.seal, bytes(MAX_SINGLE + 1))
        data = sealer.finish(bytes(MAX_SINGLE))
        opener, _ = single.opening(data)
        opener.feed(data[HEAD:])
        self.assertEqual(self.assertRaises(Refusal, opener.feed, b"x").status, 413)

    def test_too_long_at_all(self) -> None:
        for name in ("MAX_MESSAGE", "MAX_CHUNKS"):
            self.patch(wire, name, 1)
            self.refused(self.first + self.second + self.last, 413)

    def test_nothing_behind_the_end(self) -> None:
        for media in (SINGLE, CHUNKED):
            sealer, _ = Peers(media).asking()
            sealer.finish(b"")
            self.assertRaises(LocalProtocolError, sealer.seal, b"")
            self.assertRaises(LocalProtocolError, sealer.finish, b"")

    def test_nonces(self) -> None:
        for aead, right in ((AES, 16), (Aead.CHACHA20_POLY1305, 32)):
            for size in (0, 12, 16, 32):
                if size != right:
                    self.assertRaises(LocalProtocolError, wire.seal_answer, CHUNKED, self.context, aead, bytes(size))

    @given(st.binary(max_size=200), st.integers(1, 60), EITHER)
    def test_any_noise(self, data: bytes, cut: int, media: Media) -> None:
        opener, _ = wire.open_request(media, Head.read(self.head), self.peers.key)
        self.assertRaises(Refusal, opened, opener, data, cut)
        self.assertRaises(Refusal, opened, wire.open_answer(media, self.context, AES), data, cut)

    @given(st.binary(min_size=HEAD, max_size=HEAD))
    def test_any_head(self, data: bytes) -> None:
        with contextlib.suppress(Refusal):
            Head.read(data)

    @given(st.lists(st.binary(max_size=20_000), max_size=20))
    def test_bounded_memory(self, pieces: list[bytes]) -> None:
        opener = wire._ChunkOpener(self.peers.opening(self.head)[1].messages)
        with contextlib.suppress(Refusal):
            for one in pieces:
                opener.feed(one)
                self.assertLessEqual(len(opener._held), CHUNK_SEALED + 8)


class KeyConfigTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.config = KeyConfig(200, Private.make().public)

    def refused(self, data: bytes) -> None:
        self.assertRaises(RemoteProtocolError, KeyConfig.read_document, data)

    def test_the_layout(self) -> None:
        data = self.config.document()
        self.assertEqual(data.hex(), "0029c80020" + self.config.public.hex() + "000400010001")
        self.assertEqual(KeyConfig.read_document(data), self.config)

    def test_every_cut(self) -> None:
        data = self.config.document()
        for size in range(len(data)):
            self.refused(data[:size])
        self.refused(data + b"\0")

    def test_two_of_them(self) -> None:
        self.refused(self.config.document() * 2)

    def test_algorithms(self) -> None:
        data = self.config.encode()
        for old, new in (
            (b"\xc8\x00\x20", b"\xc8\x00\x10"),
            (b"\0\4\0\1\0\1", b"\0\4\0\2\0\1"),
            (b"\0\4\0\1\0\1", b"\0\4\0\1\0\2"),
            (b"\0\4\0\1\0\1", b"\0\0"),
            (b"\0\4\0\1\0\1", b"\0\5\0\1\0\1\0"),
        ):
            changed = data.replace(old, new)
            self.assertNotEqual(changed, data)
            self.assertRaises(RemoteProtocolError, KeyConfig.read, changed)
        unknown = data.replace(b"\0\4\0\1\0\1", b"\0\x0c\0\1\0\2\0\1\0\3\0\1\0\3")
        self.assertEqual(KeyConfig.read(unknown).aeads, (Aead.CHACHA20_POLY1305,))

    @given(st.binary(max_size=100))
    def test_any_noise(self, data: bytes) -> None:
        for read in (KeyConfig.read, KeyConfig.read_document):
            with contextlib.suppress(RemoteProtocolError):
                read(data)


class ProblemTests(SynchronousTestCase):
    def test_both_ways(self) -> None:
        for kind in (wire.OHTTP_KEY, wire.DATE, wire.NOT_FORWARDED, wire.ABOUT_BLANK):
            self.assertEqual(wire.read_problem(wire.problem(400, kind)), kind)

    def test_what_is_none(self) -> None:
        for body in (b"", b"[]", b"{", b'{"type":1}', b"\xff", b"[" * 4000, b'{"type":"' + b"a" * 5000 + b'"}'):
            self.assertEqual(wire.read_problem(body), wire.ABOUT_BLANK)

    @given(st.binary(max_size=100))
    def test_any_noise(self, body: bytes) -> None:
        wire.read_problem(body)


class SecretTests(SynchronousTestCase):
    def test_nothing_secret_shows(self) -> None:
        peers = Peers()
        sealer, context = peers.asking()
        keys = wire.answer_keys(CHUNKED, context, AES, bytes(16))
        shown = repr((peers.config, sealer, context, keys, keys.messages(), wire.open_answer(CHUNKED, context, AES)))
        for secret in (peers.key.dump(), keys.secret, keys.prk, keys.key, keys.nonce):
            self.assertNotIn(secret.hex(), shown)
            self.assertNotIn(repr(secret)[2:-1], shown)
