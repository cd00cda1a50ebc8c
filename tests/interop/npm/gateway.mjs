// node gateway.mjs PORT GATEWAY AUTHORITY: a gateway of one key on node:http; the first line says its identity key.
import { createServer } from "node:http";
import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { openRequest, suite, types, writeKeys } from "./ohttp.mjs";

const [, , port, gateway, authority] = process.argv;
const letters = (data) => Buffer.from(data).toString("base64url");
const identity = generateKeyPairSync("ed25519");
const raw = identity.publicKey.export({ format: "jwk" }).x;
const pair = await suite.GenerateKeyPair(true);
const noise = generateKeyPairSync("x25519").publicKey.export({ format: "jwk" }).x;
const epoch = Math.floor(Date.now() / 3_600_000);
const config = await writeKeys(epoch % 256, pair.publicKey);

const kid = createHash("sha256").update(Buffer.from(raw, "base64url")).digest("base64url").slice(0, 11);
const set = {
  v: 1, gateway, authorities: [authority], epoch, not_before: epoch * 3600, not_after: epoch * 3600 + 172_800,
  ohttp_keys: letters(config), media: [types(true)[0], types(false)[0]], noise,
};
const head = letters(JSON.stringify({ alg: "Ed25519", typ: "l8-keys+jws", kid }));
const payload = letters(JSON.stringify(set));
const signature = letters(sign(null, Buffer.from(`${head}.${payload}`), identity.privateKey));
const document = JSON.stringify({ protected: head, payload, signature });

createServer(async (request, response) => {
  const say = (status, type, data) => response.writeHead(status, { "content-type": type, "content-length": data.length }).end(data);
  if (request.url === "/.well-known/l8/keys.json") return say(200, "application/jose+json", Buffer.from(document));
  if (request.url !== "/.well-known/ohttp-gateway") return say(404, "text/plain", Buffer.alloc(0));
  if (request.method === "GET") return say(200, "application/ohttp-keys", Buffer.from(config));
  const chunked = request.headers["content-type"] === types(true)[0];
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  try {
    const { request: inner, seal } = await openRequest(pair, new Uint8Array(Buffer.concat(pieces)), chunked);
    const told = { method: inner.method, url: inner.url, agent: inner.headers.get("user-agent"), outer: request.headers };
    const body = JSON.stringify({ ...told, body: await inner.text() });
    const headers = { "content-type": "application/json", "x-of": "node" };
    return say(200, types(chunked)[1], Buffer.from(await seal(new Response(body, { status: 201, headers }))));
  } catch (error) {
    console.error(error);
    return say(422, "application/problem+json", Buffer.from('{"type":"about:blank","status":422}'));
  }
}).listen(Number(port), "127.0.0.1", () => console.log(raw));
