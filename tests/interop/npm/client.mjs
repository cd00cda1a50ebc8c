// node client.mjs KEYS POST AUTHORITY DATE: asks through a gateway, or through a relay, in both forms; says what came as JSON.
import { readKeys, sealRequest, types } from "./ohttp.mjs";

const [, , keysUrl, postUrl, authority, date] = process.argv;
const keys = await readKeys(new Uint8Array(await (await fetch(keysUrl)).arrayBuffer()));
const told = [];
for (const chunked of [true, false]) {
  for (const content of [null, "hello ".repeat(5000)]) {
    const headers = { date, "x-one": "1" };
    const request = new Request(`https://${authority}/echo`, { method: content ? "POST" : "GET", body: content, headers });
    const { body, open } = await sealRequest(keys, request, chunked);
    const [ask, answer] = types(chunked);
    const outer = await fetch(postUrl, { method: "POST", body, headers: { "content-type": ask } });
    if (outer.status !== 200 || outer.headers.get("content-type") !== answer) throw new Error(`outer ${outer.status}`);
    const inner = await open(new Uint8Array(await outer.arrayBuffer()));
    told.push({ chunked, status: inner.status, type: inner.headers.get("content-type"), body: await inner.text() });
  }
}
console.log(JSON.stringify(told));
