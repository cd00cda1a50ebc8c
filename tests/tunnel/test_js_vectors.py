"""The published numbers, and our own, in l8.js: every value that it makes, byte for byte, in both browsers."""

from __future__ import annotations

import json
from pathlib import Path

from layer8.testing.browser import Firefox
from layer8.tunnel import wire
from tests.tunnel.browsers import BrowserCase
from tests.tunnel.vectors import ABSENT, rows

OURS = Path(__file__).parents[1] / "vectors" / "tunnel-1.json"

PRIVATE = """
const keyPair = async (secret, publicKey) => {
  const jwk = { kty: "OKP", crv: "X25519", d: inside.letters(unhex(secret)), x: inside.letters(unhex(publicKey)) };
  const privateKey = await crypto.subtle.importKey("jwk", jwk, "X25519", false, ["deriveBits"]);
  return { privateKey, publicKey: unhex(publicKey) };
};
const answered = async (media, sealing, sealed, step) => {
  const pieces = [];
  for (let at = 0; at < sealed.length; at += step) pieces.push(sealed.subarray(at, at + step));
  const pull = inside.opener(media, sealing, new inside.Input(async () => pieces.shift() ?? null));
  const out = [];
  for (let one; (one = await pull()) !== null; ) out.push(one);
  return hex(inside.join(...out));
};
const sealed = async (media, sealing, pieces, pad) => {
  const out = [];
  for await (const one of inside.seal(media, sealing, pieces, pad)) out.push(one);
  return hex(inside.join(...out));
};
"""


class JsVectorTests(BrowserCase):
    """One page for all of them."""

    skip = ABSENT

    async def test_numbers(self) -> None:
        await self.open(inside=True)
        for check in (self.hpke, self.bhttp, self.one_piece, self.chunked, self.ours, self.padding):
            await check()

    async def hpke(self) -> None:
        row = next(one for one in rows("hpke_base") if one["aead_id"] == 1)
        found = await self.run_js(
            PRIVATE
            + """
            const context = await inside.hpke(unhex(row.pkRm), unhex(row.info), await keyPair(row.skEm, row.pkEm));
            const ciphertexts = [];
            let seq = 0;
            for (const one of row.encryptions) {
              for (; seq < one.seq; seq++) await context.sequence.seal(new Uint8Array(1));
              ciphertexts.push(hex(await context.sequence.seal(unhex(one.pt), unhex(one.aad))));
              seq++;
            }
            const exported = [];
            for (const { exporter_context: info, L } of row.exports) {
              exported.push(hex(await context.exported(unhex(info), L)));
            }
            return { enc: hex(context.enc), sealed: ciphertexts, exported };
            """,
            row=row,
        )
        self.assertEqual(found["enc"], row["enc"])
        self.assertEqual(found["sealed"], [one["ct"] for one in row["encryptions"]])
        self.assertEqual(found["exported"], [one["exported_value"] for one in row["exports"]])

    async def bhttp(self) -> None:
        for row in rows("bhttp"):
            decoded = row["decoded"]
            if decoded["framing"] in (1, 3):
                got = await self.run_js(
                    """
                    const data = unhex(row.hex);
                    const told = async (step) => {
                      const pieces = [];
                      for (let at = 0; at < data.length; at += step) pieces.push(data.subarray(at, at + step));
                      const found = await inside.readResponse(new inside.Input(async () => pieces.shift() ?? null));
                      const content = [];
                      for (let one; (one = await found.next()) !== null; ) content.push(one);
                      return [found.status, found.fields, hex(inside.join(...content))];
                    };
                    return [await told(data.length), await told(1)];
                    """,
                    row=row,
                )
                for one in got:
                    self.assertEqual(one[0], decoded["status"])
                    self.assertEqual(one[1], decoded["headers"])
                    self.assertEqual(one[2], decoded["content"])
            elif decoded["framing"] == 0 and not decoded["trailers"]:
                got = await self.run_js(
                    "return hex(inside.writeHead(d.method, d.scheme, d.authority, d.path, d.headers, size))",
                    d=decoded,
                    size=len(decoded["content"]) // 2,
                )
                self.assertTrue(row["hex"].startswith(got))

    async def one_piece(self) -> None:
        await self.example(rows("ohttp")[0], "message/ohttp-req")

    async def chunked(self) -> None:
        row = rows("chunked_ohttp")[0]
        await self.example(row, "message/ohttp-chunked-req")

    async def example(self, row: dict[str, object], media: str) -> None:
        public = str(row["key_config"])[6:70]
        chunks = [one["pt"] for one in row.get("request_chunks", []) if not one["aad"]]  # type: ignore[attr-defined]
        found = await self.run_js(
            PRIVATE
            + """
            const media = inside.MEDIA.get(kind);
            const ephemeral = await keyPair(row.client_ephemeral_secret_key, row.enc);
            const make = () => inside.sealRequest(media, row.key_id, unhex(key), ephemeral);
            const sealing = await make();
            let request;
            if (chunks.length === 0) request = await sealed(media, sealing, [unhex(row.bhttp_request)], false);
            else {
              // The example cuts a small message in two and ends with an empty chunk; we would not.
              const out = [sealing.prefix];
              for (const one of chunks) {
                const part = await sealing.sequence.seal(unhex(one));
                out.push(inside.varint(part.length), part);
              }
              const final = new TextEncoder().encode("final");
              out.push(inside.number(0, 1), await sealing.sequence.seal(new Uint8Array(0), final));
              request = hex(inside.join(...out));
            }
            const answer = unhex(row.encapsulated_response);
            const all = await answered(media, sealing, answer, answer.length);
            return { request, all, bytes: await answered(media, await make(), answer, 1) };
            """,
            row=row,
            kind=media,
            key=public,
            chunks=chunks,
        )
        self.assertEqual(found["request"], row["encapsulated_request"])
        self.assertEqual(found["all"], row["bhttp_response"])
        self.assertEqual(found["bytes"], row["bhttp_response"])

    async def ours(self) -> None:
        file = json.loads(OURS.read_text())
        for name in ("chunked", "one_piece"):
            row = file[name]
            found = await self.run_js(
                PRIVATE
                + """
                const set = await inside.readKeys(new TextEncoder().encode(keys.set), [keys.pin]);
                const media = inside.MEDIA.get(row.type);
                const enc = row.request.slice(14, 78);
                const ephemeral = await keyPair(row.ephemeral, enc);
                const sealing = await inside.sealRequest(media, set.keyId, set.publicKey, ephemeral);
                const answer = unhex(row.answer);
                return {
                  request: await sealed(media, sealing, [unhex(row.inside)], true),
                  answer: await answered(media, sealing, answer, 7),
                  epoch: set.epoch, noise: hex(set.noise), types: [media.request, media.response],
                };
                """,
                row=row,
                keys=file["keys"],
            )
            self.assertEqual(found["request"], row["request"])
            self.assertTrue(found["answer"].startswith(row["answer_inside"]))
            self.assertEqual(set(found["answer"][len(row["answer_inside"]) :]), {"0"})
            self.assertEqual(found["epoch"], file["keys"]["epoch"])
            self.assertEqual(found["noise"], file["keys"]["noise_public"])
            self.assertEqual(found["types"], [row["type"], row["answer_type"]])

    async def padding(self) -> None:
        edges = [2**n + d for n in range(9, 31) for d in (-1, 0, 1) if 2**n + d <= 2**30]
        sizes = sorted({1, 100, *edges, *(17 * 3**n for n in range(1, 16))})
        found = await self.run_js("return sizes.map(inside.padded)", sizes=sizes)
        self.assertEqual(found, [wire.padded(size) for size in sizes])


class FirefoxJsVectorTests(JsVectorTests):
    """The same."""

    kind = Firefox
    skip = ABSENT or Firefox.absent()
