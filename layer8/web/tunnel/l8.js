// layer8's browser tunnel: `L8.fetch` asks a backend through a relay that learns who asks, but not what.
// Every request is sealed on its own to the backend's gateway (Oblivious HTTP). The wire is docs/tunnel-wire.md, the use
// docs/tunnel-js.md. One module on WebCrypto: nothing to build, nothing beside it.

const VERSION = "0.1.0"; // of layer8

// ---- Limits (layer8/tunnel/limits.py) ----

const CHUNK = 16_384; // bytes of plaintext in one chunk
const TAG = 16;
const MAX_MESSAGE = 2 ** 30; // bytes of one message
const MAX_CHUNKS = 2 ** 20;
const MAX_SINGLE = 2 ** 20; // bytes of a message in one piece
const MAX_FIELDS = 128;
const MAX_FIELD_BYTES = 32_768;
const MAX_INFORMATIONAL = 4;
const KEYS_MAX = 65_536; // bytes of a key set
const KEYS_HURRY = 600; // seconds between two looks at the keys that answers have given cause for
const EARLY = 300; // seconds before `not_before` that a slow clock may use a key set
const FRESH = 43_200; // seconds before `not_after` at which we look for a newer one
const PROBLEM_MOST = 4096; // bytes of a problem that are read
const RETRY_MOST = 60; // seconds that a relay may ask us to wait
const IDLE = 60_000; // milliseconds without a byte from the relay
const PART = 2 ** 18; // bytes that are read of an upload and sealed at a time
const SMALL = 2 ** 20; // bytes up to which a request stays in memory
const REDIRECTS = 20;
const COOKIES = 50; // of one jar
const COOKIE = 4096; // bytes of one cookie

// ---- Errors ----

// code: [leg, what happened, what to do about it]
const CODES = {
  keys: ["gateway", "the gateway does not know the key any more", "ask again: newer keys are looked for"],
  date: ["gateway", "the clocks of page and gateway differ", "set this device's clock"],
  repeated: ["relay", "the gateway has seen this very message before: somebody has sent it twice", "do not send it again: the first one was processed. A browser repeats by itself what a broken connection has left unanswered; else it was the relay"],
  framing: ["gateway", "the relay or the gateway could not read the message", "look whether all run the same version"],
  "no-gateway": ["relay", "the relay knows no such gateway", "compare `gateway` with the relay's configuration"],
  media: ["gateway", "the other side does not speak this form of message", "look whether all run the same version"],
  "too-large": ["gateway", "the message is larger than the gateway takes", "send less at a time"],
  unopened: ["gateway", "the gateway could not open the message: it was changed on the way, or sealed to another key", "ask again, by another relay"],
  busy: ["relay", "the relay or the gateway has no room now", "ask again later"],
  lost: ["relay", "the connection was lost; the request may have been processed", "look whether the relay runs, and whether the page may connect to it (CSP, CORS); ask again if it may come twice"],
  slow: ["relay", "the gateway did not answer in time; the request may have been processed", "ask again if it may come twice"],
  tampered: ["relay", "the answer does not open: somebody has changed it, or it belongs to another request", "ask again, by another relay"],
  cut: ["relay", "the answer ends too early", "ask again if it may come twice"],
  strange: ["relay", "the relay answers as no relay does", "look whether `relay` is the address of one"],
  "keys-form": ["relay", "the key set has another form", "look whether `relay` and `gateway` are right, and their versions"],
  "keys-signature": ["relay", "none of the pinned keys has signed the key set: the relay may have swapped it", "do not go on unless the provider has announced another pin"],
  "keys-gateway": ["relay", "the key set is another gateway's: the relay may have swapped it", "look whether `gateway` is right"],
  "keys-epoch": ["relay", "the key set is older than one that was seen before: the relay may have kept it back", "ask another relay"],
  "keys-time": ["relay", "the key set is for another time", "set this device's clock; else the relay or the gateway has lost touch"],
  "keys-different": ["relay", "the relays give different key sets: one of them, or the gateway, singles somebody out", "leave out relays until the wrong one is found"],
  unreachable: ["relay", "no relay has answered with the gateway's keys", "look whether the relay runs, and whether the page may connect to it (CSP, CORS)"],
  argument: ["page", "an argument is wrong", "see the message"],
  config: ["page", "no tunnel is configured", "call L8.connect, or add <meta name=\"l8\" content='{\"relay\": ..., \"gateway\": ..., \"pin\": ...}'>"],
  unknown: ["page", "no tunnel answers for this host", "name it in the gateway's authorities, or use plain fetch for it"],
  closed: ["page", "the tunnel is closed", "call L8.connect"],
  redirect: ["backend", "a redirect that is not followed", "see the message"],
  integrity: ["backend", "the answer has another hash than `integrity` says", "look who has changed the file"],
  socket: ["gateway", "the other side of a socket breaks its rules", "look whether all run the same version"],
  "no-socket": ["gateway", "the gateway opens no socket there", "look whether the address is right"],
  "no-events": ["backend", "no stream of events", "answer 200 with the type text/event-stream"],
  "no-file": ["backend", "there is no such file", "look whether the address is right"],
  manifest: ["page", "the app's manifest is not what its publisher has signed", "do not go on; L8.evidence() may say more"],
  "no-worker": ["page", "the service worker does not start", "serve l8-sw.js and l8.js from the page's own origin, with Service-Worker-Allowed where it is not at the top"],
  unsupported: ["page", "this browser lacks what the tunnel needs", "use https or localhost, and a browser with X25519 and Ed25519"],
};
const AGAIN = new Set(["keys", "busy", "lost", "slow", "cut", "unreachable"]);

/** Why something failed: `code` is a word of CODES, `leg` where it did, `retryable` whether asking again may help. */
class L8Error extends Error {
  /** @param {string} code @param {{leg?: string, message?: string, hint?: string, retryable?: boolean, cause?: unknown}} more */
  constructor(code, more = {}) {
    const [leg, what, hint] = CODES[code] ?? ["page", code, ""];
    super(more.message ? `${what}: ${more.message}` : what, "cause" in more ? { cause: more.cause } : undefined);
    this.name = "L8Error";
    this.code = code;
    this.leg = more.leg ?? leg;
    this.hint = more.hint ?? hint;
    this.retryable = more.retryable ?? AGAIN.has(code);
  }
}

const wrong = (message, cause) => new L8Error("argument", { message, cause });

// ---- Bytes ----

const outer = globalThis.fetch.bind(globalThis); // before L8.install changes it
const utf8 = (text) => new TextEncoder().encode(text);
const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
/** One byte for each character, as fields of HTTP are. */
const latin = (value) => Uint8Array.from(value, (one) => one.charCodeAt(0));
const unlatin = (bytes) => {
  let out = "";
  for (let at = 0; at < bytes.length; at += 8192) out += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return out;
};
const random = (size) => crypto.getRandomValues(new Uint8Array(size));
const same = (a, b) => a.length === b.length && a.every((one, at) => one === b[at]);
const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

function join(...parts) {
  const out = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Write a number in big-endian bytes. */
const number = (value, size) => Uint8Array.from({ length: size }, (_, at) => Math.floor(value / 2 ** (8 * (size - 1 - at))) % 256);

/** Write a number as QUIC does (RFC 9000, section 16). */
function varint(value) {
  if (value < 64) return number(value, 1);
  if (value < 2 ** 14) return number(value + 2 ** 14, 2);
  if (value < 2 ** 30) return number(value + 2 ** 31, 4);
  const out = number(value, 8);
  out[0] |= 0xc0;
  return out;
}

const letters = (bytes) => btoa(unlatin(bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

/** Read base64url; one value has one text. Throws a RangeError. */
function unletters(value, size) {
  if (typeof value !== "string" || !/^[\w-]*$/.test(value)) throw new RangeError("no base64url");
  let out;
  try {
    out = latin(atob(value.replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    throw new RangeError("no base64url");
  }
  if (letters(out) !== value || (size && out.length !== size)) throw new RangeError("base64url of a wrong length");
  return out;
}

const LONG = "more than may be";

/** What comes in pieces, read as if it were there: `pull` promises the next piece, null at the end. */
class Input {
  #pull;
  #held = new Uint8Array(0);
  #over = false;

  constructor(pull) {
    this.#pull = pull;
  }

  /** Hold at least so many bytes; false if the end comes before. */
  async #hold(size) {
    if (this.#held.length >= size) return true;
    const parts = [this.#held];
    let there = this.#held.length;
    while (there < size && !this.#over) {
      const piece = await this.#pull();
      if (piece === null) this.#over = true;
      else {
        parts.push(piece);
        there += piece.length;
      }
    }
    this.#held = parts.length > 1 ? join(...parts) : parts[0];
    return there >= size;
  }

  async ended() {
    return !(await this.#hold(1));
  }

  /** Give so many bytes; throws a RangeError at the end. */
  async bytes(size) {
    if (!(await this.#hold(size))) throw new RangeError("cut");
    const out = this.#held.subarray(0, size);
    this.#held = this.#held.subarray(size);
    return out;
  }

  /** Give what is there, at least one byte and at most so many. */
  async some(most) {
    if (!(await this.#hold(1))) throw new RangeError("cut");
    return this.bytes(Math.min(most, this.#held.length));
  }

  /** Give the rest; throws a TypeError if it is longer. */
  async rest(most) {
    if (await this.#hold(most + 1)) throw new TypeError(LONG);
    return this.bytes(this.#held.length);
  }

  async varint() {
    const first = (await this.bytes(1))[0];
    let value = first & 63;
    for (const one of await this.bytes((1 << (first >> 6)) - 1)) value = value * 256 + one;
    return value;
  }
}

/** An Input of bytes that are all there. */
function whole(bytes) {
  let left = bytes;
  return new Input(async () => {
    const out = left;
    left = null;
    return out;
  });
}

// ---- Cryptography: HKDF, HPKE's base mode (RFC 9180), sequences of sealed messages ----

const subtle = globalThis.crypto?.subtle;
const KEM = number(0x0020, 2); // DHKEM(X25519, HKDF-SHA256)
const SUITE = join(KEM, number(1, 2), number(1, 2)); // with HKDF-SHA256 and AES-128-GCM
const NOTHING = new Uint8Array(0);

const sha256 = async (data) => new Uint8Array(await subtle.digest("SHA-256", data));

async function hmac(key, data) {
  const made = await subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await subtle.sign("HMAC", made, data));
}

/** HKDF's Extract and Expand in one. */
async function hkdf(salt, secret, info, size) {
  const key = secret instanceof CryptoKey ? secret : await subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  return new Uint8Array(await subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info }, key, 8 * size));
}

/** Make a key pair; the private half cannot be read. */
async function pair() {
  const { privateKey, publicKey } = await subtle.generateKey("X25519", false, ["deriveBits"]);
  return { privateKey, publicKey: new Uint8Array(await subtle.exportKey("raw", publicKey)) };
}

/** X25519; throws for keys of low order. */
async function agree(privateKey, publicKey) {
  const other = await subtle.importKey("raw", publicKey, "X25519", false, []);
  const shared = new Uint8Array(await subtle.deriveBits({ name: "X25519", public: other }, privateKey, 256));
  if (shared.every((one) => one === 0)) throw new TypeError("a key of low order");
  return shared;
}

const aesKey = (key) => subtle.importKey("raw", key, "AES-GCM", false, ["encrypt", "decrypt"]);

/** Messages under one key: the number of each goes into its nonce. */
class Sequence {
  #key;
  #nonce;
  #next = 0;

  constructor(key, nonce) {
    this.#key = key;
    this.#nonce = nonce;
  }

  #way(additionalData) {
    const iv = this.#nonce.slice();
    number(this.#next++, 8).forEach((one, at) => (iv[at + 4] ^= one));
    return { name: "AES-GCM", iv, additionalData };
  }

  async seal(plain, additional = NOTHING) {
    return new Uint8Array(await subtle.encrypt(this.#way(additional), this.#key, plain));
  }

  async open(sealed, additional = NOTHING) {
    return new Uint8Array(await subtle.decrypt(this.#way(additional), this.#key, sealed));
  }

  /** Noise's REKEY: the counter goes on. */
  async rekey() {
    const way = { name: "AES-GCM", iv: new Uint8Array(12).fill(255, 4) };
    this.#key = await aesKey((await subtle.encrypt(way, this.#key, new Uint8Array(32))).slice(0, 32));
  }
}

const labeled = (suite, label, data) => join(utf8("HPKE-v1"), suite, utf8(label), data);
const wanted = (suite, label, data, size) => join(number(size, 2), labeled(suite, label, data));
const CIPHER = join(utf8("HPKE"), SUITE);
const once = new Map(); // what is the same for every request: label and info -> promise

const extracted = (label, data) => {
  const name = `${label} ${letters(data)}`;
  if (once.size > 64) once.clear();
  if (!once.has(name)) once.set(name, hmac(new Uint8Array(32), labeled(CIPHER, label, data)));
  return once.get(name);
};

/** Begin as HPKE's sender: `{enc, sequence, exported(label, size)}`. */
async function hpke(publicKey, info, ephemeral) {
  const { privateKey, publicKey: enc } = ephemeral ?? (await pair());
  const kem = join(utf8("KEM"), KEM);
  const shared = await agree(privateKey, publicKey);
  const secret = await hkdf(NOTHING, labeled(kem, "eae_prk", shared), wanted(kem, "shared_secret", join(enc, publicKey), 32), 32);
  const [psk, about] = await Promise.all([extracted("psk_id_hash", NOTHING), extracted("info_hash", info)]);
  const context = join(number(0, 1), psk, about);
  const base = await subtle.importKey("raw", labeled(CIPHER, "secret", NOTHING), "HKDF", false, ["deriveBits"]);
  const [key, nonce, exporter] = await Promise.all(
    [["key", 16], ["base_nonce", 12], ["exp", 32]].map(([label, size]) => hkdf(secret, base, wanted(CIPHER, label, context, size), size)),
  );
  return {
    enc,
    sequence: new Sequence(await aesKey(key), nonce),
    /** At most 32 bytes. */
    exported: async (label, size) => (await hmac(exporter, join(wanted(CIPHER, "sec", label, size), number(1, 1)))).subarray(0, size),
  };
}

// ---- Binary HTTP (RFC 9292) ----

const NAME = /^[-!#$%&'*+.^_`|~0-9a-z]+$/;
const VALUE = /^(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?$/;

const counted = (bytes) => join(varint(bytes.length), bytes);

function writeFields(fields, known = true) {
  const out = join(...fields.flatMap(([name, value]) => [counted(latin(name)), counted(latin(value))]));
  if (fields.length > MAX_FIELDS || out.length > MAX_FIELD_BYTES) throw wrong("more header fields than a gateway takes");
  return known ? counted(out) : join(out, number(0, 1));
}

/** Write all that comes before the content; `length` is null if nobody knows that. `fields` are pairs of name and value. */
function writeHead(method, scheme, authority, path, fields, length = 0) {
  const known = length !== null;
  const line = [method, scheme, authority, path].map((one) => counted(latin(one)));
  return join(number(known ? 0 : 2, 1), ...line, writeFields(fields, known), known ? varint(length) : NOTHING);
}

/** Read a response from an Input of plaintext: its head, and `next` for its content, which gives null at the true end. */
async function readResponse(input) {
  const framing = await input.varint();
  if (framing !== 1 && framing !== 3) throw new TypeError("framing");
  const known = framing === 1;
  let status;
  let fields;
  for (let early = 0; ; early++) {
    status = await input.varint();
    if (status < 100 || status > 599 || early > MAX_INFORMATIONAL) throw new TypeError("status");
    fields = await readFields(input, known);
    if (status >= 200) break;
  }
  const length = known ? ((await input.ended()) ? 0 : await input.varint()) : null;
  let left = length ?? 0;
  let trailers = null;
  const next = async () => {
    if (!known && left === 0 && trailers === null && !(await input.ended())) left = await input.varint();
    if (left > 0) {
      const piece = await input.some(left);
      left -= piece.length;
      return piece;
    }
    trailers ??= await readFields(input, known);
    while (!(await input.ended())) {
      if ((await input.some(CHUNK)).some((one) => one !== 0)) throw new TypeError("padding");
    }
    return null;
  };
  return { status, fields, length, next };
}

async function readFields(input, known) {
  const fields = [];
  if (await input.ended()) return fields;
  let left = MAX_FIELD_BYTES;
  let within = input;
  if (known) {
    const size = await input.varint();
    if (size > MAX_FIELD_BYTES) throw new TypeError("fields");
    within = whole(await input.bytes(size));
  }
  for (;;) {
    if (known && (await within.ended())) return fields;
    const size = await within.varint();
    if (!known && size === 0) return fields;
    if (size === 0 || size > left) throw new TypeError("fields");
    const name = unlatin(await within.bytes(size)).toLowerCase();
    const length = await within.varint();
    if ((left -= size + length) < 0) throw new TypeError("fields");
    const value = unlatin(await within.bytes(length));
    if (!NAME.test(name) || !VALUE.test(value) || fields.length === MAX_FIELDS) throw new TypeError("fields");
    fields.push([name, value]);
  }
}

/** Read the status of a whole response. */
const readStatus = async (bytes) => (await readResponse(whole(bytes))).status;

// ---- Oblivious HTTP (RFC 9458, draft-ietf-ohai-chunked-ohttp-08) ----

const form = (name, chunked) => ({
  request: `message/ohttp-${name ? "chunked-" : ""}req`,
  response: `message/ohttp-${name ? "chunked-" : ""}res`,
  info: utf8(`message/bhttp ${name}request`),
  exported: utf8(`message/bhttp ${name}response`),
  chunked,
});
const FORMS = [form("", false), form("chunked ", true)];
const MEDIA = new Map(FORMS.map((one) => [one.request, one]));
const FINAL = utf8("final");
const NONCE = 16; // bytes that an answer begins with

/** Give the length that a plaintext is filled up to with zeros. */
function padded(size) {
  for (let step = 512; step <= 65_536; step *= 2) if (size <= step) return step;
  const exponent = 31 - Math.clz32(size);
  const unit = 2 ** (exponent - (32 - Math.clz32(exponent)));
  return Math.ceil(size / unit) * unit;
}

/** Begin a sealed request: `{prefix, sequence, answer}`; `answer(nonce)` promises the Sequence of its answer. */
async function sealRequest(media, keyId, publicKey, ephemeral) {
  const algorithms = join(number(keyId, 1), SUITE);
  const context = await hpke(publicKey, join(media.info, number(0, 1), algorithms), ephemeral);
  const secret = await context.exported(media.exported, NONCE);
  const base = await subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  return {
    prefix: join(algorithms, context.enc),
    sequence: context.sequence,
    async answer(nonce) {
      const salt = join(context.enc, nonce);
      const [key, first] = await Promise.all([hkdf(salt, base, utf8("key"), 16), hkdf(salt, base, utf8("nonce"), 12)]);
      return new Sequence(await aesKey(key), first);
    },
  };
}

/** Let go of a buffer at once: uploads make them faster than they are collected. */
const free = (bytes) => bytes.buffer.transfer?.(0);

/** Seal whole chunks. */
async function chunks(sequence, plain) {
  const made = [];
  for (let at = 0; at < plain.length; at += CHUNK) made.push(sequence.seal(plain.subarray(at, at + CHUNK)));
  const sealed = await Promise.all(made);
  const out = join(...sealed.flatMap((one) => [varint(one.length), one]));
  sealed.forEach(free);
  return out;
}

/** Give pieces of plaintext, then the zeros behind them. */
async function* filled(pieces, most) {
  let size = 0;
  for await (const piece of pieces) {
    size += piece.length;
    yield piece;
  }
  let left = Math.min(padded(size), most) - size;
  for (; left > 0; left -= CHUNK) yield new Uint8Array(Math.min(left, CHUNK));
}

/** Seal pieces of plaintext, which are let go; gives the sealed bytes as they come. */
async function* seal(media, { prefix, sequence }, pieces, pad) {
  yield prefix;
  let held = NOTHING;
  let size = 0;
  const most = media.chunked ? MAX_MESSAGE : MAX_SINGLE;
  for await (const piece of pad ? filled(pieces, most) : pieces) {
    const all = join(held, piece);
    size += piece.length;
    free(piece);
    if (size > most) throw new L8Error("too-large", { leg: "page" });
    const full = media.chunked ? Math.max(Math.floor((all.length - 1) / CHUNK) * CHUNK, 0) : 0; // the last may be the final one
    if (full > 0) yield await chunks(sequence, all.subarray(0, full));
    held = all.slice(full);
    free(all);
  }
  if (media.chunked) yield number(0, 1);
  yield await sequence.seal(held, media.chunked ? FINAL : NOTHING);
}

/** Give a `pull` of the plaintext of an answer whose sealed bytes come from an Input. */
function opener(media, sealing, input) {
  let sequence = null;
  let over = false;
  let total = 0;
  let count = 0;
  const open = async (sealed, additional) => {
    total += sealed.length - TAG;
    if (++count > MAX_CHUNKS || total > MAX_MESSAGE) throw new L8Error("too-large", { leg: "backend" });
    try {
      return await sequence.open(sealed, additional);
    } catch (cause) {
      throw new L8Error("tampered", { cause });
    }
  };
  const step = async () => {
    sequence ??= await sealing.answer(await input.bytes(NONCE));
    const size = media.chunked ? await input.varint() : 0;
    if (size === 0) {
      over = true;
      const sealed = await input.rest(media.chunked ? CHUNK + TAG : MAX_SINGLE + TAG);
      if (sealed.length < TAG) throw new RangeError("cut");
      return open(sealed, media.chunked ? FINAL : NOTHING);
    }
    if (size <= TAG || size > CHUNK + TAG) throw new L8Error("tampered");
    return open(await input.bytes(size), NOTHING);
  };
  return async () => {
    if (over) return null;
    try {
      return await step();
    } catch (cause) {
      over = true;
      if (cause instanceof RangeError) throw new L8Error("cut", { cause });
      throw cause instanceof TypeError ? new L8Error("tampered", { cause }) : cause;
    }
  };
}

// ---- Key sets: JWS under a pinned key ----

/** Read JSON in which no member comes twice. */
function json(source) {
  const count = (value) =>
    value === null || typeof value !== "object"
      ? 0
      : Object.values(value).reduce((sum, one) => sum + count(one), Array.isArray(value) ? 0 : Object.keys(value).length);
  const value = JSON.parse(source);
  const members = source.replace(/"(?:[^"\\]|\\.)*"/g, "").split(":").length - 1;
  if (value === null || typeof value !== "object" || Array.isArray(value) || members !== count(value)) throw new RangeError("JSON");
  return value;
}

/** Verify a flattened JWS of a type under one of the pins; gives its payload's text and the pin. Reads nothing unsigned. */
async function readJws(bytes, typ, pins) {
  const outside = json(text(bytes));
  if (Object.keys(outside).sort().join() !== "payload,protected,signature") throw new RangeError("members");
  const signed = utf8(`${outside.protected}.${outside.payload}`);
  const signature = unletters(outside.signature, 64);
  for (const pin of pins) {
    const key = await subtle.importKey("raw", unletters(pin, 32), "Ed25519", false, ["verify"]);
    if (!(await subtle.verify("Ed25519", key, signature, signed))) continue;
    const kid = letters(await sha256(unletters(pin))).slice(0, 11);
    const head = json(text(unletters(outside.protected)));
    const right = Object.keys(head).length === 3 && head.alg === "Ed25519" && head.typ === typ && head.kid === kid;
    if (!right) throw new RangeError("head");
    return { payload: text(unletters(outside.payload)), pin };
  }
  throw new L8Error("keys-signature");
}

const whole53 = (value, most = Number.MAX_SAFE_INTEGER) => Number.isInteger(value) && value >= 0 && value <= most;
const texts = (value, most) => Array.isArray(value) && value.length > 0 && value.length <= most && value.every((one) => typeof one === "string");

/** Read a key set that one of the pins has signed. */
async function readKeys(bytes, pins) {
  try {
    if (bytes.length > KEYS_MAX) throw new RangeError("size");
    const told = json((await readJws(bytes, "l8-keys+jws", pins)).payload);
    const config = unletters(told.ohttp_keys);
    const ohttp = config.subarray(5, 37);
    const noise = unletters(told.noise, 32);
    const suites = [];
    for (let at = 39; at < config.length; at += 4) suites.push(letters(config.subarray(at, at + 4)));
    const good =
      told.v === 1 &&
      typeof told.gateway === "string" &&
      /^[a-z0-9-]{1,63}$/.test(told.gateway) &&
      texts(told.authorities, 64) &&
      texts(told.media, 16) &&
      whole53(told.epoch, 2 ** 32 - 1) &&
      whole53(told.not_before) &&
      whole53(told.not_after) &&
      told.not_before < told.not_after &&
      config.length >= 43 &&
      config.length % 4 === 3 &&
      same(config.subarray(0, 2), number(config.length - 2, 2)) &&
      same(config.subarray(3, 5), KEM) &&
      same(config.subarray(37, 39), number(config.length - 39, 2)) &&
      suites.includes(letters(SUITE.subarray(2))) &&
      config[2] === told.epoch % 256 &&
      !same(ohttp, noise);
    const media = told.media?.map?.((one) => MEDIA.get(one)).find(Boolean);
    if (!good || !media || ("next" in told && unletters(told.next, 32).length !== 32)) throw new RangeError("payload");
    return { ...told, noise, media, keyId: config[2], publicKey: ohttp };
  } catch (cause) {
    throw cause instanceof L8Error ? cause : new L8Error("keys-form", { cause });
  }
}

/** Choose among what the relays have given, as layer8/tunnel/client_keys.py does. */
async function chooseKeys(documents, gateway, pins, seen, now) {
  const different = [...new Map(documents.map((one) => [letters(one), one])).values()];
  const sets = await Promise.all(different.map((one) => readKeys(one, pins)));
  if (sets.some((one) => one.gateway !== gateway)) throw new L8Error("keys-gateway");
  if (sets.length > 2 || new Set(sets.map((one) => one.epoch)).size < sets.length) throw new L8Error("keys-different");
  const found = sets.reduce((a, b) => (a.epoch > b.epoch ? a : b));
  if (found.epoch < seen) throw new L8Error("keys-epoch");
  if (now < found.not_before - EARLY || now > found.not_after) throw new L8Error("keys-time");
  return found;
}

// ---- Cookies (RFC 6265), one jar for each gateway ----

const covers = (host, domain) => host === domain || (host.endsWith(`.${domain}`) && /[a-z]$/.test(host));

/** Read one Set-Cookie; null if it is refused. */
function readCookie(line, url, now) {
  const [first, ...rest] = line.split(";").map((one) => one.trim());
  const at = first.indexOf("=");
  const [name, value] = at < 0 ? ["", first] : [first.slice(0, at).trim(), first.slice(at + 1).trim()];
  const said = {};
  for (const one of rest) {
    const cut = one.indexOf("=");
    said[(cut < 0 ? one : one.slice(0, cut)).trim().toLowerCase()] = cut < 0 ? "" : one.slice(cut + 1).trim();
  }
  const domain = said.domain?.toLowerCase().replace(/^\./, "");
  const path = said.path?.startsWith("/") ? said.path : url.pathname.replace(/\/[^/]*$/, "") || "/";
  const secure = "secure" in said;
  let expires = said.expires ? Date.parse(said.expires) : NaN;
  if (/^-?\d+$/.test(said["max-age"] ?? "")) expires = Number(said["max-age"]) > 0 ? now + Number(said["max-age"]) * 1000 : 0;
  const lower = (name || value).toLowerCase(); // without a name the value is all that is sent
  const refused =
    (!name && !value) ||
    name.length + value.length > COOKIE ||
    (domain && (!domain.includes(".") || !covers(url.hostname, domain)) && domain !== url.hostname) ||
    (secure && url.protocol !== "https:") ||
    (lower.startsWith("__secure-") && !secure) ||
    (lower.startsWith("__host-") && !(secure && !domain && said.path === "/"));
  if (refused) return null;
  return { name, value, host: domain || url.hostname, only: !domain, path, secure, expires: Number.isNaN(expires) ? null : expires, made: now };
}

/** Add what an answer has set to a list of cookies; gives the new list. */
function addCookies(cookies, lines, url, now) {
  let out = cookies.filter((one) => one.expires === null || one.expires > now);
  for (const line of lines) {
    const cookie = readCookie(line, url, now);
    if (!cookie) continue;
    const old = out.find((one) => one.name === cookie.name && one.host === cookie.host && one.only === cookie.only && one.path === cookie.path);
    out = out.filter((one) => one !== old);
    if (cookie.expires === null || cookie.expires > now) out.push({ ...cookie, made: old?.made ?? now });
  }
  return out.slice(-COOKIES);
}

/** Write the Cookie field for a URL; "" if there is none. */
function cookieField(cookies, url, now) {
  const fits = (one) =>
    (one.only ? url.hostname === one.host : covers(url.hostname, one.host)) &&
    (url.pathname === one.path || (url.pathname.startsWith(one.path) && (one.path.endsWith("/") || url.pathname[one.path.length] === "/"))) &&
    (!one.secure || url.protocol === "https:") &&
    (one.expires === null || one.expires > now);
  const good = cookies.filter(fits).sort((a, b) => b.path.length - a.path.length || a.made - b.made);
  return good.map((one) => (one.name ? `${one.name}=${one.value}` : one.value)).join("; ");
}

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** A jar in memory. */
class MemoryJar {
  #cookies = [];

  async field(url) {
    return cookieField(this.#cookies, url, Date.now());
  }

  async add(lines, url) {
    this.#cookies = addCookies(this.#cookies, lines, url, Date.now());
  }

  async clear() {
    this.#cookies = [];
  }
}

/** A jar in IndexedDB, which tabs and the service worker share: read before each use, changed in one transaction. */
class StoredJar {
  #gateway;

  constructor(gateway) {
    this.#gateway = gateway;
  }

  async #change(how) {
    return this.#changed(how).catch((cause) => {
      throw new L8Error("unsupported", { message: "no place for cookies that stay: `session` may be \"memory\"", cause });
    });
  }

  async #changed(how) {
    const opening = indexedDB.open("l8-jars", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("jars");
    const database = await settled(opening);
    try {
      const store = database.transaction("jars", "readwrite").objectStore("jars");
      const cookies = (await settled(store.get(this.#gateway))) ?? [];
      const changed = how(cookies);
      if (changed) await settled(store.put(changed, this.#gateway));
      return cookies;
    } finally {
      database.close();
    }
  }

  async field(url) {
    return cookieField(await this.#change(() => null), url, Date.now());
  }

  async add(lines, url) {
    await this.#change((cookies) => addCookies(cookies, lines, url, Date.now()));
  }

  async clear() {
    await this.#change(() => []);
  }
}

// ---- Requests as the page gives them ----

const SAFE = new Set(["GET", "HEAD", "OPTIONS", "TRACE"]);
const OURS = new Set(["date", "origin", "user-agent", "host"]);
const EMPTY = new Set([204, 205, 304]);

/** Resolve what `fetch` takes for a URL; relative ones against a tunnel's first authority. */
function locate(input, base) {
  try {
    return new URL(input instanceof Request ? input.url : `${input}`, base);
  } catch (cause) {
    throw wrong("this is no URL", cause);
  }
}

/** Read a request as the browser encodes it: `{url, method, fields, body: Blob or null, ...}`. */
async function readRequest(input, init, url) {
  const { onprogress, stream, body: said } = init ?? {};
  if (onprogress !== undefined && typeof onprogress !== "function") throw wrong("onprogress is no function");
  try {
    // Browsers' own requests do not carry streams everywhere; a Blob takes them out of memory.
    const ends = { signal: init?.signal instanceof AbortSignal ? init.signal : undefined };
    const made = said instanceof ReadableStream ? await new Response(said.pipeThrough(new TransformStream(), ends)).blob() : null;
    const given = made ?? (said instanceof Blob ? said : null);
    const how = made ? Object.create(init, { body: { value: made } }) : (init ?? undefined);
    const request = new Request(input instanceof Request ? input : url.href, how);
    const empty = SAFE.has(request.method) && request.method !== "OPTIONS";
    const body = empty || request.body === null ? null : (given ?? (await request.blob()));
    const fields = [...request.headers].filter(([name]) => !OURS.has(name));
    if (!fields.some(([name]) => name === "accept")) fields.unshift(["accept", "*/*"]);
    const { method, signal, redirect, credentials, integrity } = request;
    return { url, method, fields, body, signal, redirect, cookies: credentials !== "omit", integrity, onprogress, whole: stream === false || integrity !== "" };
  } catch (cause) {
    if (cause?.name === "AbortError" || cause instanceof L8Error) throw cause;
    throw wrong(cause?.message ?? String(cause), cause);
  }
}

/** Do something, but wait for it no longer than the request's signal lets. */
async function unlessAborted(input, init, how) {
  const signal = init?.signal ?? (input instanceof Request ? input.signal : null);
  if (!(signal instanceof AbortSignal)) return how();
  signal.throwIfAborted();
  let stop;
  const aborted = new Promise((_, reject) => signal.addEventListener("abort", (stop = () => reject(signal.reason)), { once: true }));
  return Promise.race([how(), aborted]).finally(() => signal.removeEventListener("abort", stop));
}

// ---- One sealed request ----

const PROBLEM = "application/problem+json";
const OHTTP_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key";
const DATE = "https://iana.org/assignments/http-problem-types#date";
const NOT_FORWARDED = "urn:l8:problem:not-forwarded";
const STATUSES = { 400: "framing", 404: "no-gateway", 408: "slow", 413: "too-large", 415: "media", 422: "unopened", 429: "busy", 502: "lost", 503: "busy", 504: "slow" };

/** Something failed; `again` says how the same request may be sent once more: keys, later, date or relay. */
class Failed {
  constructor(error, again = null, more = {}) {
    Object.assign(this, { error, again, after: 0, date: null }, more);
  }
}

function problemType(bytes) {
  try {
    const kind = JSON.parse(text(bytes)).type;
    return typeof kind === "string" ? kind : "about:blank";
  } catch {
    return "about:blank";
  }
}

/** Write a date as HTTP does, rounded down to its minute. */
const minute = (milliseconds) => new Date(Math.floor(milliseconds / 60_000) * 60_000).toUTCString();

/** How relays are asked: with nothing of the browser's but what it cannot leave out. */
const PLAIN = { mode: "cors", credentials: "omit", referrerPolicy: "no-referrer", cache: "no-store", redirect: "error" };

/** Stop so many milliseconds after `touch()`, unless `rest()` or another touch comes, or when `signal` does. */
function watch(signal, milliseconds) {
  const stop = new AbortController();
  let timer;
  const touch = (longer = 0) => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(new L8Error("slow", { leg: "relay" })), milliseconds + longer);
  };
  const follow = () => stop.abort(signal.reason);
  const rest = () => clearTimeout(timer);
  const done = () => {
    rest();
    signal?.removeEventListener("abort", follow);
  };
  if (signal?.aborted) follow();
  else signal?.addEventListener("abort", follow);
  touch();
  return { signal: stop.signal, touch, rest, done, stop: (reason) => (done(), stop.abort(reason)) };
}

async function* plaintext(head, body, onprogress) {
  yield head;
  const total = body?.size ?? 0;
  for (let at = 0; at < total; ) {
    const part = new Uint8Array(await body.slice(at, at + PART).arrayBuffer());
    if (part.length === 0) throw wrong("the body has gone");
    at += part.length;
    yield part;
    onprogress?.(at, total);
  }
  yield number(0, 1); // no trailers
}

/** Give sealed pieces to `fetch`: a small message as bytes, a large one as a Blob that the browser keeps out of the heap. */
async function packed(pieces, size) {
  if (size <= SMALL) {
    const parts = [];
    for await (const piece of pieces) parts.push(piece);
    return join(...parts);
  }
  const failure = {};
  let last = NOTHING.slice();
  const pull = async (controller) => {
    try {
      free(last); // who asks for more has taken it
      const { value, done } = await pieces.next();
      last = value ?? last;
      if (done) controller.close();
      else controller.enqueue(value);
    } catch (error) {
      failure.error = error;
      throw error;
    }
  };
  return telling(new Response(new ReadableStream({ pull }, { highWaterMark: 0 })).blob(), failure);
}

/** A URL's path with its query, an empty one too. */
const pathOf = (url) => url.href.split("#")[0].slice(url.origin.length);

/** Send one message to a relay; gives the opened answer, `{status, fields, next, stop}`, or a Failed. */
async function exchange(keys, address, ask, { date, pad, timeout, trace, ready }) {
  const { media } = keys;
  const began = performance.now();
  const watching = watch(ask.signal, timeout);
  const { signal } = watching;
  let reader;
  const failed = (...more) => {
    reader?.cancel().catch(() => {});
    watching.done();
    return new Failed(...more);
  };
  try {
    const size = ask.body?.size ?? 0;
    const { url } = ask;
    const fields = [["date", minute(date)], ["origin", url.origin], ["user-agent", "L8"], ...ask.fields];
    const head = writeHead(ask.method, url.protocol.slice(0, -1), url.host, pathOf(url), fields, size);
    const sealing = await (ready ?? sealRequest(media, keys.keyId, keys.publicKey));
    const progress = (sent, total) => (watching.touch(), signal.throwIfAborted(), ask.onprogress?.(sent, total));
    const body = await packed(seal(media, sealing, plaintext(head, ask.body, progress), pad), size);
    signal.throwIfAborted();
    trace.up = body.size ?? body.length;
    trace.sealed = performance.now() - began;
    watching.touch(size / 20); // what is on its way shows no sign of life: 20 kB a second are expected
    let answer;
    try {
      answer = await outer(address, {
        method: "POST",
        headers: { "content-type": media.request, ...(media.chunked ? { incremental: "?1" } : {}) },
        body,
        signal,
        ...PLAIN,
        cache: "default", // with "no-store" browsers do not keep what a preflight has said, either
      });
    } catch (cause) {
      signal.throwIfAborted();
      return failed(new L8Error("lost", { cause }), "relay");
    }
    trace.waited = performance.now() - began - trace.sealed;
    trace.down = 0;
    reader = answer.body?.getReader();
    const input = new Input(async () => {
      try {
        watching.touch(); // nobody hurries a page that does not read
        const { value, done } = (await reader?.read()) ?? { done: true };
        watching.rest();
        trace.down += value?.length ?? 0;
        return done ? null : value;
      } catch (cause) {
        signal.throwIfAborted();
        throw new L8Error("cut", { cause });
      }
    });
    if (answer.status !== 200) {
      const kind = problemType(await input.rest(PROBLEM_MOST).catch(() => NOTHING));
      if (answer.status === 400 && kind === OHTTP_KEY) return failed(new L8Error("keys"), "keys");
      const after = /^\d{1,4}$/.test(answer.headers.get("retry-after") ?? "") ? Math.min(Number(answer.headers.get("retry-after")), RETRY_MOST) : 0;
      if ((answer.status === 429 || answer.status === 503) && kind === NOT_FORWARDED) return failed(new L8Error("busy"), "later", { after });
      const code = STATUSES[answer.status] ?? "strange";
      return failed(new L8Error(code, answer.status === 502 || answer.status === 504 ? { leg: "gateway" } : {}));
    }
    if (answer.headers.get("content-type") !== media.response) return failed(new L8Error("media", { leg: "relay" }));
    const open = opener(media, sealing, input);
    const inside = await malformed(readResponse(new Input(open)));
    trace.opened = performance.now() - began - trace.sealed - trace.waited;
    let next = async () => {
      const piece = await malformed(inside.next());
      if (piece === null) {
        await open(); // the seal says that this is the end
        watching.done();
      }
      return piece;
    };
    if ((inside.status === 400 || inside.status === 425) && inside.fields.some(([name, value]) => name === "content-type" && value === PROBLEM)) {
      const pieces = [];
      let held = 0;
      let over = false;
      while (held <= PROBLEM_MOST && !over) {
        const piece = await next();
        if (piece === null) over = true;
        else held += pieces.push(piece) && piece.length;
      }
      const kind = over ? problemType(join(...pieces)) : "about:blank";
      const dates = inside.fields.filter(([name]) => name === "date").map(([, value]) => Date.parse(value));
      if (over && inside.status === 400 && kind === DATE && dates.length === 1 && !Number.isNaN(dates[0])) {
        return failed(new L8Error("date"), "date", { after: 0.1, date: dates[0] });
      }
      if (over && inside.status === 425 && kind === "about:blank") return failed(new L8Error("repeated"));
      const more = next;
      next = async () => pieces.shift() ?? (over ? null : more());
    }
    const stop = (reason) => {
      reader?.cancel().catch(() => {});
      watching.stop(reason);
    };
    return { ...inside, next, stop };
  } catch (error) {
    reader?.cancel().catch(() => {});
    watching.done();
    throw signal.aborted ? signal.reason : error;
  }
}

/** What has opened and is no HTTP was written by who holds the key. */
async function malformed(reading) {
  try {
    return await reading;
  } catch (cause) {
    if (cause instanceof RangeError || cause instanceof TypeError) throw new L8Error("tampered", { leg: "gateway", cause });
    throw cause;
  }
}

// ---- Responses as the page gets them ----

/** Make a genuine Response of an opened answer. */
async function makeResponse(answer, ask, redirected) {
  const { status, fields, next, stop } = answer;
  const mute = EMPTY.has(status) || ask.method === "HEAD";
  const failure = {}; // why the body has failed: browsers tell only readers of the stream
  let body = null;
  if (mute) {
    while ((await next()) !== null);
  } else {
    const pull = async (controller) => {
      try {
        const piece = await next();
        if (piece === null) controller.close();
        else controller.enqueue(piece);
      } catch (error) {
        failure.error = error;
        throw error;
      }
    };
    const small = answer.length !== null && answer.length <= CHUNK; // as a rule it has come with the head
    body = small ? await gathered(next) : new ReadableStream({ pull, cancel: (reason) => stop(reason) }, { highWaterMark: 0 });
    const coding = fields.filter(([name]) => name === "content-encoding").map(([, value]) => value.toLowerCase()).join();
    const known = { gzip: "gzip", "x-gzip": "gzip", deflate: "deflate" }[coding];
    if (known && answer.length !== 0) body = new Response(body).body.pipeThrough(new DecompressionStream(known));
    if (ask.whole) body = await checked(await telling(new Response(body).blob(), failure), ask.integrity);
  }
  const headers = new Headers();
  for (const [name, value] of fields) headers.append(name, value);
  return named(new Response(body, { status, headers }), ask.url, redirected, failure);
}

async function gathered(next) {
  const pieces = [];
  for (let piece; (piece = await next()) !== null; ) pieces.push(piece);
  return join(...pieces);
}

async function telling(reading, failure) {
  try {
    return await reading;
  } catch (error) {
    throw failure.error ?? error;
  }
}

/** Give a Response its URL and its own words for failures, and its clones too. */
function named(response, url, redirected, failure) {
  const own = { url: url.href.split("#")[0], redirected };
  const properties = Object.entries(own).map(([name, value]) => [name, { value }]);
  const methods = ["arrayBuffer", "blob", "bytes", "formData", "json", "text"].filter((name) => name in response);
  for (const name of methods) properties.push([name, { value: () => telling(Response.prototype[name].call(response), failure) }]);
  properties.push(["clone", { value: () => named(Response.prototype.clone.call(response), url, redirected, failure) }]);
  return Object.defineProperties(response, Object.fromEntries(properties));
}

/** Compare a body with what `integrity` says, the strongest hash of it. */
async function checked(blob, integrity) {
  const said = [...integrity.matchAll(/(?:^|\s)sha(256|384|512)-([\w+/=-]+)/g)].map(([, bits, hash]) => [Number(bits), hash]);
  if (said.length === 0) return blob;
  const bits = Math.max(...said.map(([one]) => one));
  const found = letters(new Uint8Array(await subtle.digest(`SHA-${bits}`, await blob.arrayBuffer())));
  const plain = (hash) => hash.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  if (!said.some(([one, hash]) => one === bits && plain(hash) === found)) throw new L8Error("integrity");
  return blob;
}

// ---- Tunnels: one for each gateway ----

const MORE = { session: [false, "memory", "persistent"], pad: [true, false], compress: [undefined, "gzip"], fallback: ["never", "direct"] };

/** Check what L8.connect is given; gives it in one form. */
function checkOptions(given) {
  if (given === null || typeof given !== "object") throw wrong("L8.connect takes {relay, gateway, pin}");
  const { relay, gateway, authority, pin, timeout = IDLE } = given;
  const list = (value, name) => {
    const all = Array.isArray(value) ? value : [value];
    if (all.length === 0 || !all.every((one) => typeof one === "string" && one)) throw wrong(`${name} is a string or a list of them`);
    return [...new Set(all)];
  };
  const relays = list(relay, "relay").map((one) => {
    const url = URL.parse?.(one, globalThis.location?.href) ?? tried(() => new URL(one, globalThis.location?.href));
    if (!url || !/^https?:$/.test(url.protocol) || url.search || url.hash || url.username) throw wrong(`${one} is no address of a relay`);
    return url.href.replace(/\/$/, "");
  });
  const pins = list(pin, "pin");
  if (!pins.every((one) => tried(() => unletters(one, 32)))) throw wrong("a pin is an Ed25519 key: 43 letters of base64url");
  if (typeof gateway !== "string" || !/^[a-z0-9-]{1,63}$/.test(gateway)) throw wrong("gateway has 1 to 63 of a-z, 0-9 and -");
  if (authority !== undefined && (typeof authority !== "string" || !tried(() => new URL(origin(authority))))) throw wrong("authority is a host, with a port if it has one");
  if (!(Number.isFinite(timeout) && timeout > 0)) throw wrong("timeout is a number of milliseconds");
  const out = { relay: relays, gateway, authority, pin: pins, timeout };
  for (const [name, values] of Object.entries(MORE)) {
    out[name] = given[name] ?? values[0];
    if (!values.includes(out[name])) throw wrong(`${name} is one of ${values.filter((one) => one !== undefined).join(", ")}`);
  }
  return out;
}

function tried(how) {
  try {
    return how();
  } catch {
    return null;
  }
}

/** The origin of an authority as key sets write it. */
const origin = (authority) => new URL(authority.includes("://") ? authority : `https://${authority}`).origin;

/** Read at most so many bytes of an answer. */
async function atMost(response, most) {
  const reader = response.body.getReader();
  const input = new Input(async () => {
    const { value, done } = await reader.read();
    return done ? null : value;
  });
  return input.rest(most);
}

/** A tunnel to one gateway, made by L8.connect; fires `statechange`. */
class Tunnel extends EventTarget {
  #state = "idle";
  #set = null;
  #seen = 0;
  #flaw = null;
  #looking = null;
  #ready = null; // what the next request is sealed with
  #hurried = -Infinity;
  #doubted = false; // the gateway has said that it does not know the key
  #relay;
  #jar;
  #closing = new AbortController();
  #counts = { requests: 0, failures: 0, resends: 0, up: 0, down: 0, direct: 0 };

  constructor(options) {
    super();
    this._options = options;
    this.#relay = Math.floor(Math.random() * options.relay.length);
    this.#jar = { memory: () => new MemoryJar(), persistent: () => new StoredJar(options.gateway) }[options.session]?.() ?? null;
    this.#seen = Number(tried(() => localStorage.getItem(this.#name)) ?? 0) || 0;
  }

  get state() {
    return this.#state;
  }

  get gateway() {
    return this._options.gateway;
  }

  get epoch() {
    return this.#set?.epoch ?? null;
  }

  /** Ask the gateway's backend, with what `fetch` takes. @returns {Promise<Response>} */
  async fetch(input, init) {
    return unlessAborted(input, init, async () => {
      const url = locate(input, await this._base());
      if (!(await this._answersFor(url))) throw new L8Error("unknown", { message: url.host });
      return this._fetch(input, init, url);
    });
  }

  /** Forget the keys and the session in memory, and stop what runs. @returns {Promise<void>} */
  async close() {
    this.#go("closed");
    this.#set = null;
    this.#closing.abort(new L8Error("closed"));
    if (this._options.session === "memory") await this.#jar.clear();
    tunnels.delete(this);
  }

  /** Throw the cookies away. @returns {Promise<void>} */
  async clearSession() {
    await this.#jar?.clear();
  }

  // What the other sections use.

  get _relay() {
    return this._options.relay[this.#relay];
  }

  /** The origin that the page has configured, or null. */
  get _origin() {
    return this._options.authority ? origin(this._options.authority) : null;
  }

  get _closed() {
    return this.#closing.signal;
  }

  /** Use the next relay. */
  _turn() {
    this.#relay = (this.#relay + 1) % this._options.relay.length;
    return true;
  }

  async _cookies(url) {
    return (await this.#jar?.field(url)) ?? "";
  }

  /** Where relative URLs start. */
  async _base() {
    const { authority } = this._options;
    return `${origin(authority ?? (await this._keys()).authorities[0])}/`;
  }

  async _answersFor(url) {
    if (!/^https?:$/.test(url.protocol)) return false; // blob: has an origin too
    if (this._origin === url.origin) return true;
    if ([...tunnels].some((one) => one._origin === url.origin)) return false; // whatever this gateway claims
    return (await this._keys()).authorities.some((one) => tried(() => origin(one)) === url.origin);
  }

  /** Promise the gateway's key set, checked. */
  async _keys() {
    const now = Date.now() / 1000;
    if (this.#state === "closed") throw new L8Error("closed");
    if (this.#state === "failed") throw this.#flaw;
    if (this.#set && now > this.#set.not_after) this.#set = null;
    if (this.#doubted && this.#looking) return this.#looking;
    if (this.#set) {
      if (now >= this.#set.not_after - FRESH && now - this.#hurried >= KEYS_HURRY) {
        this.#hurried = now;
        this.#look("refreshing").catch(() => {}); // a refusal is in #flaw then
      }
      return this.#set;
    }
    return this.#look("keys");
  }

  /** Begin anew after a failure. */
  async _connect() {
    if (this.#state === "failed") this.#go("idle");
    return this._keys();
  }

  #look(state) {
    this.#looking ??= (async () => {
      this.#go(state);
      try {
        const came = await Promise.allSettled(this._options.relay.map((one) => this._document(one)));
        if (this.#state === "closed") throw new L8Error("closed");
        const documents = came.filter((one) => one.status === "fulfilled").map((one) => one.value);
        if (documents.length === 0) {
          const [{ reason }] = came;
          throw reason instanceof L8Error ? reason : new L8Error("unreachable", { cause: reason });
        }
        if (came[this.#relay].status === "rejected") this.#relay = came.findIndex((one) => one.status === "fulfilled");
        this.#set = await chooseKeys(documents, this.gateway, this._options.pin, this.#seen, Date.now() / 1000);
        this.#seen = this.#set.epoch;
        tried(() => localStorage.setItem(this.#name, this.#seen));
        this.#go("ready");
        return this.#set;
      } catch (cause) {
        const error = cause instanceof L8Error ? cause : new L8Error("unsupported", { cause });
        if (error.code.startsWith("keys-")) {
          this.#set = null;
          this.#flaw = error;
          this.#go("failed");
        } else if (this.#state !== "closed") this.#go(this.#set ? "ready" : "idle");
        throw error;
      } finally {
        this.#looking = null;
        this.#doubted = false;
      }
    })();
    return this.#looking;
  }

  /** Give what the next request is sealed with, made while the page had time, and make another. */
  #take(keys) {
    const ready = this.#ready?.keys === keys ? this.#ready.made : null;
    this.#ready = null;
    setTimeout(() => {
      if (this.#set !== keys || this.#ready) return;
      this.#ready = { keys, made: sealRequest(keys.media, keys.keyId, keys.publicKey) };
      this.#ready.made.catch(() => {});
    });
    return ready;
  }

  /** Get the key set that a relay has. */
  async _document(relay) {
    const signal = AbortSignal.any([this._closed, AbortSignal.timeout(Math.min(this._options.timeout, 10_000))]);
    const answer = await outer(`${relay}/r/${this.gateway}/keys`, { ...PLAIN, signal });
    if (answer.status === 404) throw new L8Error("no-gateway");
    if (!answer.ok) throw new L8Error("unreachable", { message: `status ${answer.status}` });
    return atMost(answer, KEYS_MAX).catch((cause) => {
      throw cause.message === LONG ? new L8Error("keys-form", { cause }) : cause;
    });
  }

  /** Send one HEAD request for L8.measure; gives its times. */
  async _time(url) {
    const { pad, timeout } = this._options;
    const trace = {};
    const ask = { url, method: "HEAD", fields: [["accept", "*/*"]], body: null, signal: this._closed };
    const keys = await this._keys();
    const address = `${this._relay}/r/${this.gateway}`;
    const answer = await exchange(keys, address, ask, { date: Date.now(), pad, timeout, trace, ready: this.#take(keys) });
    if (answer instanceof Failed) throw answer.error;
    while ((await answer.next()) !== null);
    return trace;
  }

  get #name() {
    return `l8-epoch ${this._options.gateway} ${this._options.pin[0]}`;
  }

  #go(state) {
    if (state === this.#state || this.#state === "closed") return;
    this.#state = state;
    this.dispatchEvent(new Event("statechange"));
  }

  /** Ask for a URL of this gateway, follow what it says. */
  async _fetch(input, init, url) {
    let ask = await readRequest(input, init, url);
    ask.signal = AbortSignal.any([ask.signal, this._closed]);
    let redirected = false;
    try {
      for (let hops = 0; ; hops++) {
        const answer = await this.#send(ask);
        if (answer instanceof Response) return answer; // the direct way
        const lines = answer.fields.filter(([name]) => name === "set-cookie").map(([, value]) => value);
        if (lines.length && ask.cookies) await this.#jar?.add(lines, ask.url);
        const to = redirection(answer, ask);
        if (!to) return await makeResponse(answer, ask, redirected);
        if (answer.length <= CHUNK) while ((await answer.next()) !== null); // so that the connection stays
        else answer.stop();
        if (ask.redirect === "error") throw new L8Error("redirect", { message: "`redirect` is \"error\"" });
        if (hops === REDIRECTS) throw new L8Error("redirect", { message: `more than ${REDIRECTS} in a row` });
        if (!(await this._answersFor(to.url))) throw new L8Error("redirect", { message: `it leaves the tunnel, to ${to.url.host}` });
        ask = { ...ask, ...to };
        redirected = true;
      }
    } catch (error) {
      this.#counts.failures++;
      throw error;
    }
  }

  /** Seal and send one request, and once more where that may be done. */
  async #send(ask) {
    const { pad, timeout, compress, fallback, relay } = this._options;
    for (let resent = false, date = null; ; resent = true) {
      ask.signal.throwIfAborted();
      const trace = { up: 0, down: 0, sealed: 0, waited: 0, opened: 0, began: performance.now() };
      let result;
      let keys;
      try {
        keys = await this._keys();
      } catch (error) {
        if (fallback === "direct" && error.code === "unreachable") return this.#direct(ask, error);
        throw error;
      }
      const fields = [...ask.fields];
      if (compress && !fields.some(([name]) => name === "accept-encoding")) fields.push(["accept-encoding", compress]);
      const cookies = ask.cookies ? await this._cookies(ask.url) : "";
      if (cookies) fields.push(["cookie", cookies]);
      const address = `${this._relay}/r/${this.gateway}`;
      try {
        result = await exchange(keys, address, { ...ask, fields }, { date: date ?? Date.now(), pad, timeout, trace, ready: this.#take(keys) });
      } catch (error) {
        result = new Failed(error);
      }
      this.#counts.requests++;
      this.#counts.up += trace.up;
      this.#counts.down += trace.down;
      traced(this, ask, result, trace);
      if (!(result instanceof Failed)) return result;
      const { error, again } = result;
      if (again === "relay") this._turn();
      const safe = SAFE.has(ask.method) || ask.fields.some(([name]) => name === "idempotency-key");
      let may = !resent && (again === "date" || (again && safe));
      if (again === "relay" && relay.length === 1) may = false;
      if (again === "keys") may = (await this._newer(keys.epoch)) && may;
      if (!may) {
        if (fallback === "direct" && again === "relay" && safe) return this.#direct(ask, error);
        throw error;
      }
      this.#counts.resends++;
      if (again === "later") await sleep(result.after + Math.random(), ask.signal);
      if (again === "date") {
        date = result.date;
        await sleep(0.1 + 0.9 * Math.random(), ask.signal);
      }
    }
  }

  /** Look for newer keys because an answer has said so; that is believed every KEYS_HURRY seconds. */
  async _newer(used) {
    const now = Date.now() / 1000;
    if (this.#set?.epoch === used) {
      if (!this.#looking && now - this.#hurried >= KEYS_HURRY) {
        this.#hurried = now;
        this.#look("refreshing").catch(() => {});
      }
      this.#doubted = this.#looking !== null;
      await this.#looking;
    }
    return this.#set !== null && this.#set.epoch !== used;
  }

  /** Go around the relay, because the page has asked for that: the backend sees who asks. */
  async #direct(ask, error) {
    this.#counts.direct++;
    console.warn(`L8: ${error.message}. ${ask.url.origin} is asked directly, and sees this visitor's address.`);
    const { method, fields, body, signal, redirect, integrity } = ask;
    return outer(ask.url.href, { method, headers: fields, body, signal, redirect, integrity, credentials: "omit", referrerPolicy: "no-referrer" });
  }

  _status() {
    const set = this.#set;
    return {
      gateway: this.gateway,
      state: this.#state,
      error: this.#state === "failed" ? this.#flaw.code : null,
      epoch: this.epoch,
      authorities: set?.authorities ?? [],
      expires: set ? new Date(set.not_after * 1000).toISOString() : null,
      relay: this._relay,
      relays: this._options.relay,
      session: this._options.session,
      fallback: this._options.fallback,
      ...this.#counts,
    };
  }
}

/** Where an answer sends its request, as fetch follows it; null if it does not. */
function redirection(answer, ask) {
  const location = answer.fields.find(([name]) => name === "location")?.[1];
  if (![301, 302, 303, 307, 308].includes(answer.status) || location === undefined || ask.redirect === "manual") return null;
  const url = tried(() => new URL(decoder.decode(latin(location)), ask.url));
  if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password) throw new L8Error("redirect", { message: "it leads nowhere" });
  if (!url.hash) url.hash = ask.url.hash;
  let { method, body, fields } = ask;
  if ((answer.status === 303 && method !== "GET" && method !== "HEAD") || (answer.status < 303 && method === "POST")) {
    method = "GET";
    body = null;
    fields = fields.filter(([name]) => !/^content-(?:encoding|language|location|type)$/.test(name));
  }
  if (url.origin !== ask.url.origin) fields = fields.filter(([name]) => name !== "authorization");
  return { url, method, body, fields };
}

const decoder = new TextDecoder();

// ---- L8: what a page sees ----

const tunnels = new Set();
let configured = null; // the promise of what the page itself says of its tunnels

/**
 * The tunnels of `<meta name="l8" content='{"relay": ..., "gateway": ..., "pin": ...}'>`, one object or a list; if none has a pin, those
 * of the app's manifest, with what the page says beside it.
 */
async function told() {
  let all = [...(globalThis.document?.querySelectorAll('meta[name="l8"]') ?? [])].flatMap((one) => tried(() => JSON.parse(one.content)) ?? [null]);
  if (all.every((one) => one && one.pin === undefined)) {
    const fits = (row) => all.filter(({ gateway }) => gateway === undefined || gateway === row.gateway);
    const rows = await listed();
    if (rows.length || all.every(({ relay }) => relay === undefined)) all = rows.map(
(row) => Object.assign({}, row, ...fits(row)));
  }
  for (const one of all.map(checkOptions)) tunnels.add(new Tunnel(one));
  return all.length > 0;
}

/** The gateways of the app's manifest; what the service worker knows of its publisher counts. */
async function listed() {
  let bytes;
  try {
    const way = { cache: "no-store", credentials: "omit", redirect: "error" };
    const answer = await outer(new URL("/.well-known/l8/manifest.json", location.href), way);
    if (!answer.ok) return [];
    bytes = await atMost(answer, 2 ** 20);
  } catch {
    return []; // there is none
  }
  try {
    const kept = await appStore((store) => settled(store.objectStore("state").get("manifest"))).catch(() => null);
    const { publisher, next } = kept?.told ?? json(text(unletters(json(text(bytes)).payload)));
    const found = json((await readJws(bytes, "l8-app+jws", kept && next ? [publisher, next] : [publisher])).payload);
    if (found.version < kept?.told.version) throw new RangeError("older than the one before");
    const row = ([gateway, { relays, authorities, identities }]) => ({ relay: relays, gateway, authority: authorities[0], pin: identities });
    return Object.entries(found.gateways).map(row);
  } catch (cause) {
    throw new L8Error("manifest", { cause });
  }
}

/** Look once at what the page says; again if there was nothing yet. */
const configure = () =>
  (configured ??= told().then(
    (found) => found || (configured = null),
    (error) => {
      configured = null;
      throw error;
    },
  ));

/** Find the tunnel for what `fetch` takes: `{tunnel, url}`. */
async function pick(input) {
  if (tunnels.size === 0) await configure();
  const [first] = tunnels;
  if (!first) throw new L8Error("config");
  const absolute = input instanceof Request || tried(() => new URL(`${input}`));
  const url = locate(input, absolute ? undefined : await first._base());
  let error = new L8Error("unknown", { message: url.host });
  for (const tunnel of tunnels) {
    try {
      if (await tunnel._answersFor(url)) return { tunnel, url };
    } catch (cause) {
      error = cause;
    }
  }
  throw error;
}

/**
 * Build a tunnel to a gateway, or begin anew with one that has failed; its keys are there and checked afterwards.
 * @param {{relay: string | string[], gateway: string, pin: string | string[], authority?: string, session?: false | "memory" | "persistent",
 *   pad?: boolean, compress?: "gzip", fallback?: "never" | "direct", timeout?: number}} options
 * @returns {Promise<Tunnel>}
 */
async function connect(options) {
  if (!subtle) throw new L8Error("unsupported");
  const checked = checkOptions(options);
  const old = [...tunnels].find((one) => one.gateway === checked.gateway);
  const same = old && JSON.stringify(old._options) === JSON.stringify(checked);
  const tunnel = same ? old : new Tunnel(checked);
  if (old && !same) {
    const all = [...tunnels].map((one) => (one === old ? tunnel : one)); // it keeps its place: relative URLs go to the first
    await old.close();
    tunnels.clear();
    for (const one of all) tunnels.add(one);
  }
  tunnels.add(tunnel);
  const { authorities } = await tunnel._connect();
  if (checked.authority && !authorities.some((one) => tried(() => origin(one)) === origin(checked.authority))) {
    await tunnel.close();
    throw wrong(`the gateway does not answer for ${checked.authority}`);
  }
  return tunnel;
}

/** Ask a backend through its tunnel, with what `fetch` takes, `onprogress(sent, total)` and `stream: false`. @returns {Promise<Response>} */
async function l8fetch(input, init) {
  if (init !== undefined && init !== null && typeof init !== "object") throw wrong("the second argument is an object");
  return unlessAborted(input, init, async () => {
    const { tunnel, url } = await pick(input);
    return tunnel._fetch(input, init, url);
  });
}

/** What the tunnels are doing. */
async function status() {
  return { version: VERSION, debug: debugging, tunnels: [...tunnels].map((one) => one._status()) };
}

// ---- Debugging and measuring ----

let debugging = false;
const SECRET = /^(?:authorization|cookie|set-cookie|proxy-authorization)$/;

/** Show each exchange in the console: sizes, times, the head inside; no keys, no cookies. @param {boolean} on @returns {Promise<void>} */
async function debug(on) {
  if (typeof on !== "boolean") throw wrong("L8.debug takes true or false");
  debugging = on;
}

/** Give the middle and the 99th percentile of some milliseconds. */
function spread(list) {
  const sorted = list.map((one) => Math.max(one, 0)).sort((a, b) => a - b);
  return { median: sorted[Math.floor(sorted.length / 2)], p99: sorted[Math.ceil(sorted.length * 0.99) - 1] };
}

/**
 * Time `n` HEAD requests to the first tunnel's root: in all, and for each leg. The relay's share is a round trip to it, the
 * gateway's is a request that it refuses under seal, both taken from what comes behind them.
 * @param {number} n @returns {Promise<object>} milliseconds
 */
async function measure(n = 20) {
  if (!Number.isInteger(n) || n < 1 || n > 1000) throw wrong("L8.measure takes a number from 1 to 1000");
  if (tunnels.size === 0) await configure();
  const [tunnel] = tunnels;
  if (!tunnel) throw new L8Error("config");
  const legs = { total: [], page: [], relay: [], gateway: [], backend: [] };
  const url = new URL(await tunnel._base());
  for (let i = 0; i < n; i++) {
    const began = performance.now();
    const whole = await tunnel._time(url);
    legs.total.push(performance.now() - began);
    const refused = await tunnel._time(new URL("https://l8.invalid/"));
    const asked = performance.now();
    await tunnel._document(tunnel._relay);
    const relay = performance.now() - asked;
    legs.page.push(whole.sealed + whole.opened);
    legs.relay.push(relay);
    legs.gateway.push(refused.waited - relay);
    legs.backend.push(whole.waited - refused.waited);
  }
  return { n, ...Object.fromEntries(Object.entries(legs).map(([name, list]) => [name, spread(list)])) };
}

function traced(tunnel, ask, result, trace) {
  if (!debugging) return;
  const show = (fields) => Object.fromEntries((fields ?? []).map(([name, value]) => [name, SECRET.test(name) ? `${value.length} letters` : value]));
  const { error } = result;
  console.debug(`L8 ${tunnel.gateway}: ${ask.method} ${ask.url.href} -> ${error ? (error.code ?? error.name) : result.status}`, {
    relay: tunnel._relay,
    sealed: trace.up,
    milliseconds: { page: trace.sealed + trace.opened, relay: trace.waited },
    request: show(ask.fields),
    answer: show(result.fields),
    error: error ? `${error.message}. ${error.hint ?? ""}` : null,
  });
}

// ---- Sockets: Noise_NK_25519_AESGCM_SHA256 inside of a WebSocket (docs/tunnel-wire.md, "Sockets") ----

const Wire = globalThis.WebSocket;
const SOCKET_REKEY = 1 << 20; // frames of one direction under one key
const SOCKET_MESSAGE = 1 << 20; // bytes of one message
const SOCKET_PING = 30_000; // milliseconds of silence before a ping, and again before the end
const SOCKET_WAIT = 10_000; // milliseconds for a handshake and for the answer to a close frame
const FRAMES = [256, 512, 1024, 2048, 4096, 16384, 65519]; // bytes of a frame: the last fills a Noise message
const FRAME_DATA = 65516;
const LAST = 0x80;
const [GO_ON, TEXT, BINARY, CLOSE, PING, PONG, OPEN, OPENED] = [0, 1, 2, 8, 9, 10, 11, 12];

/** The initiator of NK, who is nobody and knows the other's key: `write`, `read`, then `split` into what it says and hears. */
async function greet(remote, prologue, ephemeral) {
  const { privateKey, publicKey } = ephemeral ?? (await pair());
  let key = join(utf8("Noise_NK_25519_AESGCM_SHA256"), new Uint8Array(4));
  let hash = key;
  let cipher;
  const mix = async (data) => (hash = await sha256(join(hash, data)));
  const halves = async (secret) => {
    const extracted = await hmac(key, secret);
    const first = await hmac(extracted, number(1, 1));
    return [first, await hmac(extracted, join(first, number(2, 1)))];
  };
  const begin = async (raw) => new Sequence(await aesKey(raw), new Uint8Array(12));
  const exchange = async (theirs) => {
    const [next, raw] = await halves(await agree(privateKey, theirs));
    key = next;
    cipher = await begin(raw);
  };
  await mix(prologue);
  await mix(remote);
  return {
    async write(payload) {
      await mix(publicKey);
      await exchange(remote);
      const sealed = await cipher.seal(payload, hash);
      await mix(sealed);
      return join(publicKey, sealed);
    },
    async read(message) {
      const [theirs, sealed] = [message.subarray(0, 32), message.subarray(32)];
      await mix(theirs);
      await exchange(theirs);
      const payload = await cipher.open(sealed, hash);
      await mix(sealed);
      return payload;
    },
    split: async () => Promise.all((await halves(NOTHING)).map(begin)),
    hash: () => hash,
  };
}

/** The frames of one message. */
function* framed(kind, data) {
  let at = 0;
  do {
    const part = data.subarray(at, at + FRAME_DATA);
    const last = at + FRAME_DATA >= data.length;
    const frame = new Uint8Array(FRAMES.find((size) => size >= part.length + 3));
    frame.set([(at ? GO_ON : kind) | (last ? LAST : 0), part.length >> 8, part.length & 255]);
    frame.set(part, 3);
    yield frame;
    at += FRAME_DATA;
  } while (at < data.length);
}

/** What breaks the rules of frames; `closes` is the code that its sender is left with. */
const badFrame = (message, closes = 1002) => Object.assign(new L8Error("socket", { message }), { closes });

/** Puts frames together: gives [kind, data] of what is whole, or nothing. */
class Assembly {
  #kind = null;
  #parts = [];
  #size = 0;
  take(frame) {
    const size = (frame[1] << 8) | frame[2];
    if (!FRAMES.includes(frame.length) || size + 3 > frame.length || frame.subarray(size + 3).some(Boolean))
      throw badFrame("a frame of a size that is none");
    const kind = frame[0] & ~LAST;
    const last = frame[0] >= LAST;
    const data = frame.subarray(3, 3 + size);
    if (kind > OPENED || (kind > BINARY && kind < CLOSE)) throw badFrame("a frame of an unknown kind");
    if (kind >= CLOSE) {
      if (!last || size > 125) throw badFrame("a control frame in parts, or too long");
      return [kind, data];
    }
    if ((kind === GO_ON) !== (this.#kind !== null)) throw badFrame("a message that begins or goes on out of turn");
    if (!last && !size) throw badFrame("a part of a message with nothing in it");
    if ((this.#size += size) > SOCKET_MESSAGE) throw badFrame("a message over 1 MiB", 1009);
    this.#kind ??= kind;
    this.#parts.push(data);
    if (!last) return undefined;
    const whole = [this.#kind, join(...this.#parts)];
    this.#kind = null;
    this.#parts = [];
    this.#size = 0;
    return whole;
  }
}

/** Reads text; a breach of the rules where it is not UTF-8. */
function textOf(data) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw badFrame("text that is not UTF-8", 1007);
  }
}

/** Gives a class the `onopen` of its events. */
function handlers(of, ...names) {
  for (const name of names) {
    const held = new WeakMap();
    Object.defineProperty(of.prototype, `on${name}`, {
      configurable: true,
      enumerable: true,
      get() {
        return held.get(this) ?? null;
      },
      set(then) {
        this.removeEventListener(name, held.get(this));
        held.set(this, typeof then === "function" ? then : null);
        this.addEventListener(name, held.get(this));
      },
    });
  }
}

/** Gives a class and what it makes the numbers of its states. */
function states(of, ...names) {
  names.forEach((name, value) => {
    for (const owner of [of, of.prototype]) Object.defineProperty(owner, name, { value, enumerable: true });
  });
}

/** `WebSocket` to a backend, through the tunnel; what is wrong with its arguments comes as `error` and `close` too. */
class TunnelSocket extends EventTarget {
  binaryType = "blob";
  extensions = "";
  protocol = "";
  readyState = 0;
  url = "";
  #origin = "";
  #protocols = [];
  #outer;
  #shake; // the handshake, until it is over
  #out;
  #in;
  #said = 0; // frames
  #listened = 0;
  #assembly = new Assembly();
  #opened = false;
  #waiting = 0; // bytes of messages that are not sealed yet
  #writing = Promise.resolve();
  #reading = Promise.resolve();
  #timer;
  #over = new AbortController();
  #heard = 0; // when something came last
  #asked = -1; // the same, as the last ping was sent

  constructor(url, protocols = []) {
    super();
    this.#begin(url, protocols).catch((error) => this.#fail(error instanceof L8Error ? error : wrong(error.message, error)));
  }

  get bufferedAmount() {
    return this.#waiting + (this.#outer?.bufferedAmount ?? 0);
  }

  send(data) {
    if (this.readyState === 0) throw new DOMException("the socket is not open yet", "InvalidStateError");
    if (this.readyState > 1) return;
    const binary = data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
    if (!binary) data = utf8(String(data));
    else if (ArrayBuffer.isView(data)) data = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
    else if (data instanceof ArrayBuffer) data = new Uint8Array(data.slice(0));
    this.#say(binary ? BINARY : TEXT, data);
  }

  close(code, reason = "") {
    const said = utf8(String(reason));
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code < 5000))
      throw new DOMException("a code is 1000, or 3000 to 4999", "InvalidAccessError");
    if (said.length > 123) throw new DOMException("a reason has at most 123 bytes", "SyntaxError");
    if (this.readyState > 1) return;
    this.readyState = 2;
    if (!this.#opened) {
      queueMicrotask(() => this.#fail(new L8Error("closed", { message: "the socket was not open yet" })));
      return;
    }
    this.#say(CLOSE, code === undefined ? NOTHING : join(number(code, 2), said));
    this.#writing.then(() => this.#arm(() => this.#end(1006), SOCKET_WAIT));
  }

  async #begin(url, protocols) {
    const asked = [protocols].flat();
    if (new Set(asked).size < asked.length || !asked.every((one) => /^[-!#$%&'*+.^_`|~0-9A-Za-z]+$/.test(one)))
      throw wrong("a subprotocol that is none, or comes twice");
    this.#protocols = asked;
    const { tunnel, url: target } = await pick(String(url).replace(/^ws(?=s?:)/i, "http"));
    target.hash = "";
    this.url = target.href.replace(/^http/, "ws");
    this.#origin = target.origin;
    const cookie = await tunnel._cookies(target);
    const fields = [["origin", target.origin]];
    if (asked.length) fields.push(["sec-websocket-protocol", asked.join(", ")]);
    if (cookie) fields.push(["cookie", cookie]);
    const inside = writeHead("GET", target.protocol.slice(0, -1), target.host, target.pathname + target.search, fields);
    if (inside.length > 512)
      throw new L8Error("too-large", { leg: "page", message: "address, subprotocols and cookies of a socket have 512 bytes" });
    tunnel._closed.addEventListener("abort", () => this.#fail(tunnel._closed.reason), { signal: this.#over.signal });
    await this.#dial(tunnel, join(inside, new Uint8Array(512 - inside.length)), tunnel._options.relay.length);
  }

  // What a relay does not carry goes to the next one, and what the gateway does not understand is said under newer keys.
  async #dial(tunnel, inside, relays) {
    const keys = await tunnel._keys();
    const shake = await greet(keys.noise, join(utf8(`l8.noise.v1\0${keys.gateway}\0`), number(keys.epoch, 4)));
    const first = await shake.write(inside);
    if (this.readyState) return;
    this.#shake = shake;
    const outer = new Wire(`${tunnel._relay.replace(/^http/, "ws")}/ws/${keys.gateway}`, "l8.noise.v1");
    this.#outer = outer;
    outer.binaryType = "arraybuffer";
    outer.onopen = () => outer.send(first);
    outer.onmessage = ({ data }) => this.#later(() => this.#take(data));
    outer.onclose = () =>
      this.#later(async () => {
        const again = this.#shake && this.readyState === 0 && (relays > 1 ? tunnel._turn() : await tunnel._newer(keys.epoch));
        if (!again) throw new L8Error("lost");
        await this.#dial(tunnel, inside, relays - 1);
      });
    this.#arm(() => this.#fail(new L8Error("slow")), SOCKET_WAIT);
  }

  #later(then) {
    this.#reading = this.#reading.then(then).catch((error) => this.#fail(error));
  }

  async #take(told) {
    if (this.readyState > 2) return;
    if (typeof told === "string") throw badFrame("text, where all is sealed");
    const data = new Uint8Array(told);
    if (this.#shake) {
      const tampered = (cause) => Promise.reject(new L8Error("tampered", { cause }));
      const status = await this.#shake.read(data).then(readStatus).catch(tampered);
      if (status !== 200) throw new L8Error("no-socket", { message: String(status) });
      [this.#out, this.#in] = await this.#shake.split();
      this.#shake = null;
      this.#say(OPEN, NOTHING);
      this.#watch(SOCKET_PING);
    } else {
      const frame = await this.#in.open(data).catch(() => {
        throw badFrame("a frame that does not open");
      });
      if (++this.#listened % SOCKET_REKEY === 0) await this.#in.rekey();
      const message = this.#assembly.take(frame);
      if (message) await this.#heed(...message);
    }
    this.#heard = performance.now();
  }

  async #heed(kind, data) {
    if (kind === PING) {
      if (this.readyState < 2) this.#say(PONG, data);
    } else if (kind === CLOSE) {
      const code = data.length ? (data[0] << 8) | data[1] : 1005;
      if (data.length && (data.length < 2 || code < 1000 || code > 4999 || /^1(00[456]|01[5-9]|0[2-9]|[1-9])|^2/.test(code)))
        throw badFrame("a close frame with a code that is none");
      const reason = textOf(data.subarray(2));
      if (!this.#opened) throw new L8Error("no-socket", { leg: "backend", message: `${code} ${reason}` });
      if (this.readyState < 2) this.#say(CLOSE, data);
      this.readyState = 2;
      await this.#writing;
      this.#end(code, reason, true);
    } else if (kind === OPENED && !this.#opened) {
      this.#opened = true;
      this.protocol = textOf(data);
      if (this.protocol && !this.#protocols.includes(this.protocol)) throw badFrame("a subprotocol that was not asked for");
      if (this.readyState) return;
      this.readyState = 1;
      this.dispatchEvent(new Event("open"));
    } else if ((kind === TEXT || kind === BINARY) && this.#opened) {
      const told = kind === TEXT ? textOf(data) : this.binaryType === "blob" ? new Blob([data]) : data.slice().buffer;
      if (this.readyState === 1) this.dispatchEvent(new MessageEvent("message", { data: told, origin: this.#origin }));
    } else if (kind !== PONG) throw badFrame("a frame out of turn");
  }

  #say(kind, data) {
    const size = data.size ?? data.length;
    this.#waiting += size;
    this.#writing = this.#writing
      .then(async () => {
        if (data instanceof Blob) data = new Uint8Array(await data.arrayBuffer());
        for (const frame of framed(kind, data)) {
          this.#outer.send(await this.#out.seal(frame));
          if (++this.#said % SOCKET_REKEY === 0) await this.#out.rekey();
        }
        this.#waiting -= size;
      })
      .catch((error) => this.#fail(error));
  }

  // Who has heard nothing asks, and who hears nothing then leaves.
  #watch(after) {
    this.#arm(() => {
      const silent = performance.now() - this.#heard;
      if (silent < SOCKET_PING) return this.#watch(SOCKET_PING - silent);
      if (this.#asked === this.#heard) return this.#fail(new L8Error("slow"));
      this.#asked = this.#heard;
      this.#say(PING, NOTHING);
      this.#watch(SOCKET_PING);
    }, after);
  }

  #arm(then, after) {
    clearTimeout(this.#timer);
    if (this.readyState < 3) this.#timer = setTimeout(then, after);
  }

  #fail(error) {
    if (this.readyState > 2) return;
    if (error.closes) this.#say(CLOSE, number(error.closes, 2));
    this.readyState = 3;
    this.dispatchEvent(Object.assign(new Event("error"), { error }));
    this.#end(error.closes ?? 1006, String(error.message), false, true);
  }

  #end(code, reason = "", wasClean = false, failed = false) {
    if (this.readyState > 2 && !failed) return;
    this.readyState = 3;
    clearTimeout(this.#timer);
    this.#over.abort();
    this.#writing.then(() => this.#outer?.close());
    this.dispatchEvent(new CloseEvent("close", { code, reason, wasClean }));
  }
}
states(TunnelSocket, "CONNECTING", "OPEN", "CLOSING", "CLOSED");
handlers(TunnelSocket, "open", "message", "error", "close");

// ---- Events, blobs, and plain fetch ----

const SOONEST = 50; // milliseconds before it asks again, whatever the backend says

/** `EventSource` through the tunnel. */
class TunnelEvents extends EventTarget {
  readyState = 0;
  url = "";
  withCredentials = false;
  #stop = new AbortController();
  #pause = 3000; // milliseconds before it asks again
  #last = "";

  constructor(url) {
    super();
    this.#run(url).catch((error) => this.#over(error instanceof L8Error ? error : wrong(error.message, error)));
  }

  close() {
    this.readyState = 2;
    this.#stop.abort();
  }

  async #run(url) {
    for (let failures = 0; this.readyState < 2; failures++) {
      let error;
      try {
        const headers = { accept: "text/event-stream", "cache-control": "no-cache" };
        if (this.#last) headers["last-event-id"] = unlatin(utf8(this.#last));
        const { tunnel, url: target } = await pick(url);
        this.url = target.href;
        const answer = await tunnel._fetch(target.href, { headers, cache: "no-store", signal: this.#stop.signal }, target);
        const type = answer.headers.get("content-type") ?? "";
        if (answer.status !== 200 || !/^text\/event-stream *(;|$)/i.test(type)) {
          answer.body?.cancel();
          throw new L8Error("no-events", { message: `${answer.status} ${type}` });
        }
        this.readyState = 1;
        this.dispatchEvent(new Event("open"));
        failures = 0;
        await this.#read(answer.body.getReader(), new URL(answer.url).origin);
      } catch (caught) {
        error = caught;
      }
      if (this.readyState > 1) return;
      if (error?.code === "no-events" || error?.leg === "page" || error instanceof TypeError) throw error;
      this.readyState = 0;
      this.dispatchEvent(Object.assign(new Event("error"), { error }));
      await new Promise((done) => setTimeout(done, Math.min(Math.max(this.#pause, SOONEST) * 2 ** failures, 60_000)));
    }
  }

  #over(error) {
    if (this.readyState > 1) return;
    this.readyState = 2;
    this.dispatchEvent(Object.assign(new Event("error"), { error }));
  }

  // The format is of https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
  async #read(reader, origin) {
    const decoder = new TextDecoder();
    let rest = "";
    let half = false; // whether the last line ended in CR, and its LF may come
    let data = [];
    let type = "";
    let id = this.#last;
    for (;;) {
      const { value, done } = await reader.read();
      if (done || this.readyState > 1) return;
      let text = decoder.decode(value, { stream: true });
      if (half && text.startsWith("\n")) {
        text = text.slice(1);
        half = false;
      }
      if (text) half = text.endsWith("\r");
      const lines = (rest + text).split(/\r\n|\n|\r/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line) {
          this.#last = id;
          if (data.length)
            this.dispatchEvent(new MessageEvent(type || "message", { data: data.join("\n"), origin, lastEventId: id }));
          data = [];
          type = "";
          if (this.readyState > 1) return;
          continue;
        }
        const [, name, said] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (name === "data") data.push(said);
        else if (name === "event") type = said;
        else if (name === "id" && !said.includes("\0")) id = said;
        else if (name === "retry" && /^\d+$/.test(said)) this.#pause = Number(said);
      }
    }
  }
}
states(TunnelEvents, "CONNECTING", "OPEN", "CLOSED");
handlers(TunnelEvents, "open", "message", "error");

/** Gives a blob: URL of what is there, for `src` and `href`; `URL.revokeObjectURL` lets go of it. A backend's page is a download. */
async function blobUrl(url) {
  const answer = await l8fetch(url);
  if (!answer.ok) throw new L8Error("no-file", { message: `${answer.status} for ${url}` });
  const blob = await answer.blob();
  const runs = /html|xml/i.test(blob.type) && !/^image\/svg/i.test(blob.type); // in the app's origin
  return URL.createObjectURL(runs ? blob.slice(0, blob.size, "application/octet-stream") : blob);
}

/** Lets `fetch` go through the tunnel for some origins; gives what takes that back. */
async function install(options) {
  if (!Array.isArray(options?.origins)) throw wrong("origins is no list");
  const listed = new Set(options.origins.map((one) => locate(one).origin));
  const before = globalThis.fetch;
  let installed = true;
  const fetch = function (input, init) {
    let origin;
    try {
      origin = locate(input, globalThis.document?.baseURI ?? location.href).origin;
    } catch {}
    return installed && listed.has(origin) ? l8fetch(input, init) : Reflect.apply(before, globalThis, [input, init]);
  };
  globalThis.fetch = fetch;
  return () => {
    installed = false;
    if (globalThis.fetch === fetch) globalThis.fetch = before;
  };
}

// ---- The service worker, as the page sees it ----

/** What the worker keeps: the app's manifest, and evidence. `how` takes a transaction. */
async function appStore(how) {
  const opening = indexedDB.open("l8-app", 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("state");
    opening.result.createObjectStore("evidence", { autoIncrement: true });
  };
  const database = await settled(opening);
  try {
    return await how(database.transaction(["state", "evidence"], "readwrite"));
  } finally {
    database.close();
  }
}

/** Give what the service worker has kept of files and manifests that were not what they should be. */
const evidence = async () => appStore((kept) => settled(kept.objectStore("evidence").getAll()));

let scripts; // the policy of Trusted Types, which may be made once

/** Let l8-sw.js serve what is below `scope`: the tunnel's URLs, and the app's files if its manifest lists them. */
async function serviceWorker(options) {
  const { scope = "/", paths = [], publisher = "" } = options ?? {};
  const workers = globalThis.navigator?.serviceWorker;
  if (!workers || !globalThis.document) throw new L8Error("unsupported", { message: "no service workers here" });
  if (![scope, publisher, ...[paths].flat()].every((one) => typeof one === "string")) throw wrong("scope, paths and publisher are texts");
  if (tunnels.size === 0) await configure();
  const all = [...tunnels].map(async (one) => ({ options: one._options, authorities: (await one._keys()).authorities }));
  const here = new URL(import.meta.url ?? "", location.href); // nothing, or a bundle: the worker is not beside
  const near = here.origin === location.origin && here.pathname.endsWith("/l8.js") ? here : location.origin;
  const script = new URL("l8-sw.js", near);
  script.searchParams.set("l8", JSON.stringify({ tunnels: await Promise.all(all), paths: [paths].flat(), publisher }));
  try {
    scripts ??= globalThis.trustedTypes?.createPolicy("l8", { createScriptURL: workerUrl }) ?? { createScriptURL: workerUrl };
    const url = scripts.createScriptURL(script.href);
    const registration = await workers.register(url, { scope, type: "module", updateViaCache: "none" });
    const worker = registration.installing ?? registration.waiting ?? registration.active;
    const served = () => worker.state === "activated" && (workers.controller || !location.href.startsWith(registration.scope));
    for (let waited = 0; !served(); waited++) {
      if (worker.state === "redundant" || waited > 200) throw new TypeError(`it is ${worker.state}`);
      await sleep(0.05);
    }
    workers.onmessage ??= ({ data }) => data?.l8 && console.warn(`L8: ${data.l8}`, data.entry);
    return registration;
  } catch (cause) {
    throw new L8Error("no-worker", { message: cause?.message, cause });
  }
}

function workerUrl(url) {
  const { origin, pathname } = new URL(url);
  if (origin !== location.origin || !pathname.endsWith("/l8-sw.js")) throw new TypeError("no other script than l8-sw.js");
  return url;
}

// ---- The module ----

const L8 = Object.freeze({
  version: VERSION,
  connect,
  registerCitizenship: connect,
  fetch: l8fetch,
  status,
  measure,
  debug,
  static: blobUrl,
  install,
  serviceWorker,
  evidence,
  WebSocket: TunnelSocket,
  EventSource: TunnelEvents,
});

globalThis.L8 = L8;

export { L8, L8Error, Tunnel, appStore, json, letters, readJws, settled, sha256, text, unletters }; // the latter for l8-sw.js
export default L8;
