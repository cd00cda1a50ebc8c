// Notes behind the tunnel, with node:http and nothing else: `node app.mjs 8000`, and before it
// `twistd layer8-gateway --gateway shop --authorities shop.example --backend tcp:127.0.0.1:8000 --require /me`.
import { createHash, randomUUID } from "node:crypto";
import { createServer } from "node:http";

const notes = new Map([[7, "Buy milk"]]);
const sessions = new Map();
const routes = [];
const on = (method, path, answer) => routes.push({ method, path, answer });

const read = async (request) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces);
};
const form = async (request) =>
  new Response(await read(request), { headers: { "content-type": request.headers["content-type"] } }).formData();
const say = (response, told, status = 200, fields = {}) => {
  const text = JSON.stringify(told);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text), ...fields });
  response.end(text);
};

// `l8-encapsulated` says that a note was asked for through the tunnel. The gateway sets that field; a page cannot.
on("GET", /^\/notes\/(\d+)$/, (request, response, [, number]) => {
  const tunnel = request.headers["l8-encapsulated"] === "?1";
  const note = notes.get(Number(number));
  if (note === undefined) return say(response, {}, 404);
  return say(response, { note, tunnel, address: tunnel ? null : request.socket.remoteAddress });
});

on("POST", /^\/notes$/, async (request, response) => {
  const json = (request.headers["content-type"] ?? "").includes("json");
  const text = json ? JSON.parse(await read(request)).text : (await form(request)).get("text");
  const number = notes.size + 7;
  notes.set(number, text);
  say(response, { number });
});

on("POST", /^\/upload$/, async (request, response) => {
  const told = {};
  for (const [name, file] of await form(request)) {
    const data = Buffer.from(await file.arrayBuffer());
    told[name] = { filename: file.name, size: data.length, sha256: createHash("sha256").update(data).digest("hex") };
  }
  say(response, told);
});

on("POST", /^\/echo$/, (request, response) => {
  response.writeHead(200, { "content-type": request.headers["content-type"] ?? "application/octet-stream" });
  request.pipe(response);
});

on("GET", /^\/events$/, (request, response, match, query) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  let number = 0;
  const timer = setInterval(() => {
    if (number === Number(query.get("n") ?? 10)) {
      clearInterval(timer);
      response.end();
    } else {
      response.write(`id: ${number}\ndata: tick ${number++}\n\n`);
    }
  }, 1000 * Number(query.get("gap") ?? 0.1));
  response.on("close", () => clearInterval(timer));
});

// The cookie of a session stays inside of the tunnel.
on("POST", /^\/login$/, async (request, response) => {
  const key = randomUUID();
  sessions.set(key, (await form(request)).get("user"));
  say(response, {}, 302, { location: "/me", "set-cookie": `session=${key}; HttpOnly; Secure` });
});

on("GET", /^\/me$/, (request, response) => {
  const [, key] = /(?:^|; )session=([^;]+)/.exec(request.headers.cookie ?? "") ?? [];
  say(response, { user: sessions.get(key) ?? null });
});

const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const method = request.method === "HEAD" ? "GET" : request.method;
  const found = routes.find((route) => route.method === method && route.path.test(pathname));
  if (!found) return say(response, {}, 404);
  return Promise.resolve(found.answer(request, response, found.path.exec(pathname), searchParams)).catch(() => {
    if (!response.headersSent) say(response, {}, 500);
    else response.destroy();
  });
});

// A chat that says everything back, in as much of RFC 6455 as short texts need.
server.on("upgrade", (request, socket) => {
  if (request.url !== "/chat") return socket.end("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
  const guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
  const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + guid).digest("base64");
  const lines = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: upgrade", `sec-websocket-accept: ${accept}`];
  if ((request.headers["sec-websocket-protocol"] ?? "").split(/, */).includes("chat")) lines.push("sec-websocket-protocol: chat");
  socket.write(lines.join("\r\n") + "\r\n\r\n");
  let held = Buffer.alloc(0);
  socket.on("error", () => socket.destroy());
  socket.on("data", (data) => {
    held = Buffer.concat([held, data]);
    while (held.length >= 6) {
      const kind = held[0] & 15;
      const size = held[1] & 127;
      if (size > 117 || held.length < 6 + size) break;
      const text = held.subarray(6, 6 + size).map((byte, place) => byte ^ held[2 + (place % 4)]);
      held = held.subarray(6 + size);
      const said = kind === 1 ? Buffer.concat([Buffer.from("you said "), text]) : text;
      if (kind === 1 || kind === 8) socket.write(Buffer.concat([Buffer.from([128 | kind, said.length]), said]));
      if (kind === 8) socket.end();
    }
  });
  return undefined;
});

server.listen(Number(process.argv[2] ?? 8000), "127.0.0.1");
