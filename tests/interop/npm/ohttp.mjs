// Oblivious HTTP written from docs/tunnel-wire.md with `hpke` and `bhttp-js`, none of it ours.
import * as HPKE from "hpke";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

const te = new TextEncoder();
const join = (...parts) => {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) whole.set(part, at), (at += part.length);
  return whole;
};
const varint = (n) =>
  n < 64 ? Uint8Array.of(n) : n < 16384 ? Uint8Array.of(0x40 | (n >> 8), n & 255) : Uint8Array.of(0x80 | (n >> 24), n >> 16, n >> 8, n);
const readVarint = (data, at) => {
  const size = 1 << (data[at] >> 6);
  let n = data[at] & 63;
  for (let i = 1; i < size; i++) n = n * 256 + data[at + i];
  return [n, at + size];
};

export const suite = new HPKE.CipherSuite(HPKE.KEM_DHKEM_X25519_HKDF_SHA256, HPKE.KDF_HKDF_SHA256, HPKE.AEAD_AES_128_GCM);
export const types = (chunked) =>
  chunked ? ["message/ohttp-chunked-req", "message/ohttp-chunked-res"] : ["message/ohttp-req", "message/ohttp-res"];
const label = (chunked, what) => te.encode(`message/bhttp ${chunked ? "chunked " : ""}${what}`);
const algorithms = (id) => Uint8Array.of(id, 0, 0x20, 0, 1, 0, 1);
const info = (chunked, id) => join(label(chunked, "request"), Uint8Array.of(0), algorithms(id));
const final = te.encode("final");
const none = new Uint8Array();

const hmac = async (key, data) => {
  const k = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", k, data));
};
// The keys of an answer, as something with Seal and Open.
const answerKeys = async (context, enc, nonce, chunked) => {
  const secret = await context.Export(label(chunked, "response"), 16);
  const prk = await hmac(join(enc, nonce), secret);
  const key = (await hmac(prk, join(te.encode("key"), Uint8Array.of(1)))).subarray(0, 16);
  const base = (await hmac(prk, join(te.encode("nonce"), Uint8Array.of(1)))).subarray(0, 12);
  const aes = await crypto.subtle.importKey("raw", key, "AES-GCM", false, ["encrypt", "decrypt"]);
  let count = 0;
  const params = (additionalData) => {
    const iv = Uint8Array.from(base);
    for (let n = count++, i = 11; n; n = Math.floor(n / 256)) iv[i--] ^= n & 255;
    return { name: "AES-GCM", iv, additionalData };
  };
  return {
    Seal: async (text, aad = none) => new Uint8Array(await crypto.subtle.encrypt(params(aad), aes, text)),
    Open: async (data, aad = none) => new Uint8Array(await crypto.subtle.decrypt(params(aad), aes, data)),
  };
};
const sealAll = async (sealer, text, chunked, step) => {
  if (!chunked) return sealer.Seal(text);
  const out = [];
  let at = 0;
  for (; at + step < text.length; at += step) {
    const sealed = await sealer.Seal(text.subarray(at, at + step));
    out.push(varint(sealed.length), sealed);
  }
  return join(...out, Uint8Array.of(0), await sealer.Seal(text.subarray(at), final));
};
const openAll = async (opener, data, chunked) => {
  if (!chunked) return opener.Open(data);
  const texts = [];
  for (let at = 0; ; ) {
    const [size, next] = readVarint(data, at);
    if (!size) return join(...texts, await opener.Open(data.subarray(next), final));
    texts.push(await opener.Open(data.subarray(next, next + size)));
    at = next + size;
  }
};

// One configuration: length 2 | id | KEM 2 | key 32 | length 2 | (KDF 2, AEAD 2) *
export const readKeys = async (data) => ({ id: data[2], key: await suite.DeserializePublicKey(data.subarray(5, 37)) });
export const writeKeys = async (id, key) => {
  const config = join(Uint8Array.of(id, 0, 0x20), await suite.SerializePublicKey(key), Uint8Array.of(0, 4, 0, 1, 0, 1));
  return join(Uint8Array.of(0, config.length), config);
};

// The page's half: what to post, and a function that opens the answer to a Response.
export const sealRequest = async (keys, request, chunked, step = 10_000) => {
  const { encapsulatedSecret: enc, ctx } = await suite.SetupSender(keys.key, { info: info(chunked, keys.id) });
  const text = join(await new BHttpEncoder().encodeRequest(request), new Uint8Array(100));
  const body = join(algorithms(keys.id), enc, await sealAll(ctx, text, chunked, step));
  const open = async (answer) => {
    const opener = await answerKeys(ctx, enc, answer.subarray(0, 16), chunked);
    return new BHttpDecoder().decodeResponse(await openAll(opener, answer.subarray(16), chunked));
  };
  return { body, open };
};

// The gateway's half: the Request, and a function that seals a Response.
export const openRequest = async (pair, body, chunked) => {
  const enc = body.subarray(7, 39);
  const ctx = await suite.SetupRecipient(pair, enc, { info: info(chunked, body[0]) });
  const request = new BHttpDecoder().decodeRequest(await openAll(ctx, body.subarray(39), chunked));
  const seal = async (response) => {
    const nonce = crypto.getRandomValues(new Uint8Array(16));
    const sealer = await answerKeys(ctx, enc, nonce, chunked);
    return join(nonce, await sealAll(sealer, await new BHttpEncoder().encodeResponse(response), chunked, 5_000));
  };
  return { request, seal };
};
