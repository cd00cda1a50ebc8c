// The page of `python -m layer8.tunnel.demo`: asks a backend through the tunnel, and draws what each side has recorded.

const L8 = globalThis.L8;
const CONFIG = JSON.parse(document.querySelector('meta[name="l8"]').content);
const ORIGIN = `https://${CONFIG.authority}`;
const LINE = 12; // bytes of one line of hex
const SHOWN = 5; // lines of it that stand there at once
const HEAD = 39; // bytes of a sealed request that are not sealed: which key, which algorithms, a one-time key
const ROWS = 40;

// A service worker of an earlier demo knows another gateway: begin without it.
if (navigator.serviceWorker?.controller) {
  for (const one of await navigator.serviceWorker.getRegistrations()) await one.unregister();
  location.reload();
  await new Promise(() => {});
}

const $ = (selector, within = document) => within.querySelector(selector);

/** Make an element; `more` are properties, and what is a child is put into it. */
function make(name, more = {}, ...children) {
  const made = Object.assign(document.createElement(name), more);
  made.append(...children);
  return made;
}

const bytes = (size) => `${size.toLocaleString("en")} byte${size === 1 ? "" : "s"}`;
const clock = (at) => new Date(at).toLocaleTimeString("en-GB", { hour12: false }) + "." + String(Math.floor(at % 1000)).padStart(3, "0");

// ---- The left column: what this page has asked ----

const asks = []; // {title, target, row, card, body}, the oldest first
const rows = new Map(); // number -> {told, element, ask}

/** Ask the backend; `draw(answer, body)` fills the card of the left column, and gives what others may use. */
async function ask(title, method, path, init, said, draw) {
  const ask = { title, target: `${method} ${path}`, said, row: null, done: null, body: null };
  asks.push(ask);
  const began = performance.now();
  try {
    const answer = await L8.fetch(ORIGIN + path, { method, ...init });
    const time = performance.now() - began;
    ask.got = { good: answer.ok, words: `${answer.status}`, time };
    ask.made = await draw?.(answer, (node) => show(ask, node));
    ask.got.time = performance.now() - began;
    return ask.made;
  } catch (error) {
    ask.got = { good: false, words: `${error.code ?? error.name}: ${error.message}`, time: performance.now() - began };
    if (ask.row === null) adopt(ask, [...rows.values()].filter((one) => one.ask === null && ["request", "bent"].includes(one.told.kind)).at(-1));
    throw error;
  } finally {
    redraw(ask);
  }
}

function show(ask, node) {
  (ask.nodes ??= []).push(node);
  redraw(ask);
}

function adopt(ask, row) {
  if (row === undefined) return;
  ask.row = row;
  row.ask = ask;
  redraw(ask);
}

function redraw(ask) {
  if (ask.row === null) return;
  const card = $(".you", ask.row.element);
  card.classList.remove("none");
  $("h3", card).textContent = ask.title;
  brief(card, ask.got ? ask.got.words.split(":")[0] : "\u2026");
  const body = $(".body", card);
  body.replaceChildren();
  if (ask.said) body.append(make("p", {}, make("span", { className: "said", textContent: ask.said })));
  for (const node of ask.nodes ?? []) body.append(node);
  if (ask.got) {
    const words = make("b", { textContent: ask.got.words, className: ask.got.good ? "" : "bad" });
    body.append(make("p", { className: "got" }, ask.got.good ? "answered " : "failed: ", words, ask.got.time ? ` after ${ask.got.time.toFixed(0)} ms` : ""));
  } else {
    body.append(make("p", { className: "got", textContent: "sealed, and on its way \u2026" }));
  }
}

// ---- The rows: what relay and backend have recorded ----

const feed = new EventSource("/demo/feed");
const link = $("#link");
feed.onopen = () => Object.assign(link, { textContent: "live" }).setAttribute("data-state", "live");
feed.onerror = () => Object.assign(link, { textContent: "the demo has ended" }).setAttribute("data-state", "lost");
feed.onmessage = (event) => take(JSON.parse(event.data));

function take(told) {
  let row = rows.get(told.n);
  if (row === undefined) {
    row = { told, element: $("#row").content.firstElementChild.cloneNode(true), ask: null };
    rows.set(told.n, row);
    $("#rows").prepend(row.element);
    fold(row.element, true);
    if (!keys(told)) $("#empty").hidden = true;
    const { element } = row;
    const button = $(".fold", element);
    button.addEventListener("click", () => fold(element, !element.classList.contains("folded"), true));
    element.addEventListener("click", (event) => event.target !== button && element.classList.contains("folded") && fold(element, false, true));
    row.element.classList.add("new");
    setTimeout(() => row.element.classList.remove("new"), 1500);
    while (rows.size > ROWS) {
      const [first] = rows.keys();
      rows.get(first).element.remove();
      rows.delete(first);
    }
  }
  if (told.kind !== "keys" && (row.told === told || row.told.kind === "keys")) {
    for (const one of document.querySelectorAll(".row:not(.kept)")) fold(one, one !== row.element);
  }
  row.told = told;
  if (row.ask === null && told.backend) {
    const ask = asks.find((one) => one.row === null && one.target === told.backend.line);
    if (ask) adopt(ask, row);
  }
  drawYou(row);
  drawRelay(row);
  drawBackend(row);
}

/** Show a row in one line, or whole; `kept`: as somebody has wished. */
function fold(element, folded, kept = false) {
  element.classList.toggle("folded", folded);
  if (kept) element.classList.toggle("kept", !folded);
  const button = $(".fold", element);
  button.setAttribute("aria-expanded", String(!folded));
  button.title = folded ? "Show all of it" : "Show it in one line";
}

const brief = (card, text) => ($(".brief", card).textContent = text);

function drawYou(row) {
  if (row.ask !== null) return;
  const card = $(".you", row.element);
  card.classList.add("none");
  const words = { replayed: "Not you: the relay has sent your earlier message again.", keys: "This page asks for the gateway\u2019s keys, and checks who signed them.", swapped: "This page asks for the gateway\u2019s keys, finds that the pinned one has not signed them, and goes no further." };
  $("h3", card).textContent = words[row.told.kind] ?? "This page";
}

function fields(list, pairs) {
  list.replaceChildren();
  for (const [name, value, kind] of pairs) list.append(make("dt", { textContent: name }), make("dd", { className: kind ?? "" }, value));
}

/** Draw bytes as hex, with what letters they would be. */
function hex(text, size, head) {
  const pre = make("pre");
  const all = text.match(/../g) ?? [];
  for (let at = 0; at < Math.min(all.length, LINE * SHOWN); at += LINE) {
    const line = all.slice(at, at + LINE);
    const plain = line.map((one) => { const code = parseInt(one, 16); return code > 32 && code < 127 ? String.fromCharCode(code) : "\u00b7"; });
    const clear = Math.max(0, Math.min(line.length, head - at));
    if (clear) pre.append(make("b", { textContent: line.slice(0, clear).join(" ") }), clear < line.length ? " " : "");
    pre.append(line.slice(clear).join(" ").padEnd((LINE - clear) * 3 - 1), make("span", { className: "plain", textContent: `  ${plain.join("")}` }), "\n");
  }
  const more = size - Math.min(all.length, LINE * SHOWN);
  if (more > 0) pre.append(`\u2026 and ${bytes(more)} more like these`);
  return make("div", { className: "hex" }, pre);
}

function folded(title, pairs) {
  const list = make("dl");
  fields(list, pairs.map(([name, value]) => [name, value, "code"]));
  return make("details", {}, make("summary", { textContent: title }), list);
}

const keys = (told) => ["keys", "swapped"].includes(told.kind);

function drawRelay({ told, element }) {
  const card = $(".relay", element);
  const { relay } = told;
  const titles = { replayed: "Sends the same bytes again", bent: "Flips one bit, and passes it on", keys: "The gateway\u2019s keys", swapped: "Hands out a key of its own", socket: "A socket, sealed" };
  $("h3", card).textContent = titles[told.kind] ?? "Something sealed";
  const pairs = [["from", relay.peer, "code"], ["at", clock(relay.at)], [keys(told) ? "keys of" : "for", `gateway \u201c${relay.gateway}\u201d`]];
  if (!keys(told)) {
    pairs.push(["up", bytes(relay.up.size)]);
    pairs.push(["down", relay.status ? `${bytes(relay.down.size)}${told.kind === "socket" ? "" : `, status ${relay.status}`}` : "\u2026"]);
  } else if (relay.status) pairs.push(["answered", `${bytes(relay.down.size)}, signed by ${told.kind === "keys" ? "the gateway" : "itself"}`]);
  fields($("dl", card), pairs);
  brief(card, keys(told) ? relay.peer : `${relay.peer}, ${relay.up.size.toLocaleString("en")} \u2191 ${relay.down.size.toLocaleString("en")} \u2193`);
  const opened = new Set([...card.querySelectorAll("details[open] > summary")].map((one) => one.textContent));
  const body = $(".body", card);
  body.replaceChildren();
  if (told.kind === "socket") {
    body.append(make("p", { className: "frames ticks" }, ...relay.frames.slice(-24).map(([up, size]) => make("span", { textContent: `${up ? "\u2191" : "\u2193"} ${size}` }))));
    body.append(make("p", { className: "caption", textContent: "Sizes of what went up and down. It comes in a few fixed sizes, so that they say little." }));
  }
  if (relay.up.hex) {
    body.append(hex(relay.up.hex, relay.up.size, told.kind === "socket" ? 0 : HEAD));
    if (told.kind !== "socket") body.append(make("p", { className: "caption" }, make("b", { textContent: "Number of the key, algorithms, one-time key" }), ": in the clear. The rest is sealed."));
  }
  if (relay.down.hex) body.append(withOpen(folded2("the answer, as it passed by", hex(relay.down.hex, relay.down.size, 0)), opened));
  if (relay.fields?.length) body.append(withOpen(folded(`what your browser says to the relay: ${relay.fields.length} fields`, relay.fields), opened));
  if (relay.passed?.length) body.append(withOpen(folded(`what the relay says to the gateway: ${relay.passed.length} fields`, relay.passed), opened));
}

const folded2 = (title, ...inside) => make("details", {}, make("summary", { textContent: title }), ...inside);

function withOpen(details, opened) {
  details.open = opened.has($("summary", details).textContent);
  return details;
}

const UNSEEN = {
  wait: "Nothing yet.",
  keys: "Nothing: keys are asked of the relay, which has one copy for everybody. So the gateway cannot hand a key of its own to one person.",
  swapped: "Nothing: no request was sealed to that key.",
  replayed: "Nothing: its gateway has opened the message, seen that it came before, and refused it.",
  repeat: "Nothing: its gateway has opened the message, seen that it came before, and refused it.",
  refused: "Nothing: its gateway could not open what came, and refused it.",
};

/** Say whose address a request came with: at most its own gateway's, which is where all come from. */
function who(client) {
  const nobody = make("b", { className: "nobody", textContent: "nobody" });
  return client ? make("span", {}, nobody, `: its own gateway asks, from ${client}`) : nobody;
}

function drawBackend({ told, element }) {
  const card = $(".backend", element);
  const { backend } = told;
  card.classList.toggle("none", !backend);
  const list = $("dl", card);
  const body = $(".body", card);
  if (!backend) {
    $("h3", card).textContent = UNSEEN[told.gateway] ?? UNSEEN[told.kind] ?? UNSEEN.wait;
    list.replaceChildren();
    body.replaceChildren();
    brief(card, "");
    return;
  }
  brief(card, `from ${backend.client || "nobody"}`);
  $("h3", card).textContent = backend.line;
  fields(list, [["from", who(backend.client), "plain"], ...backend.fields.map(([name, value]) => [name, value, "code"])]);
  body.replaceChildren();
  if (backend.text) body.append(make("p", {}, make("span", { className: "said", textContent: backend.text })));
  if (backend.frames?.length) body.append(make("div", {}, ...backend.frames.slice(-8).map(([up, words]) => make("p", {}, up ? "heard " : "said ", make("span", { className: "said", textContent: words })))));
  if (backend.status) body.append(make("p", { className: "got" }, "answered ", make("b", { textContent: backend.status }), backend.size === null ? "" : ` with ${bytes(backend.size)}`));
}

// ---- Buttons ----

let lastNote = "";
const words = new Set(); // that the relay may look for

async function write(note = $("#text").value) {
  words.add(note);
  const init = { body: JSON.stringify({ text: note }), headers: { "content-type": "application/json" } };
  await ask("You write a note", "POST", "/notes", init, note, async (answer) => {
    lastNote = (await answer.json()).path;
  });
}

async function read() {
  if (!lastNote) await write();
  await ask("You read your note", "GET", lastNote, {}, "", async (answer, add) => {
    const { text } = await answer.json();
    add(make("p", {}, "it says ", make("span", { className: "said", textContent: text })));
  });
}

/** Paint a picture that nobody has seen before. */
async function paint() {
  const canvas = make("canvas", { width: 288, height: 192 });
  const pen = canvas.getContext("2d");
  const hue = Math.floor(Math.random() * 360);
  const sky = pen.createLinearGradient(0, 0, 0, 192);
  sky.addColorStop(0, `hsl(${hue} 70% 45%)`);
  sky.addColorStop(1, `hsl(${(hue + 60) % 360} 85% 78%)`);
  pen.fillStyle = sky;
  pen.fillRect(0, 0, 288, 192);
  pen.fillStyle = `hsl(${(hue + 45) % 360} 95% 88%)`;
  pen.beginPath();
  pen.arc(60 + Math.random() * 168, 74, 26, 0, 7);
  pen.fill();
  for (const [far, dark] of [[0, 40], [1, 28], [2, 16]]) {
    pen.fillStyle = `hsl(${(hue + 20) % 360} 40% ${dark}%)`;
    pen.beginPath();
    pen.moveTo(0, 192);
    const shift = Math.random() * 9;
    for (let x = 0; x <= 288; x += 6) pen.lineTo(x, 104 + far * 26 + Math.sin(x / 38 + shift) * 13 + Math.sin(x / 15 + shift) * 4);
    pen.lineTo(288, 192);
    pen.fill();
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function picture() {
  const file = new File([await paint()], "holiday.png", { type: "image/png" });
  const body = new FormData();
  body.append("picture", file);
  const place = await ask("You upload a picture", "POST", "/pictures", { body }, `holiday.png, ${bytes(file.size)}`, async (answer) => (await answer.json()).path);
  await shown(place);
}

let worker = null; // promises whether a service worker gets /pictures/ through the tunnel

/** Show a picture: by a plain <img src>, which the service worker answers; without one by a blob. */
async function shown(place) {
  worker ??= L8.serviceWorker({ paths: ["/pictures/"] }).then(() => true, (error) => console.warn(error));
  const image = make("img", { alt: "the picture, as it came back" });
  if (!(await worker)) {
    await ask("Your page shows it", "GET", place, {}, "", async (answer, add) => {
      image.src = URL.createObjectURL(await answer.blob());
      await image.decode();
      add(image);
    });
    return;
  }
  const one = { title: "Your page shows it, as a plain <img>", target: `GET ${place}`, said: "", row: null, nodes: [image] };
  const began = performance.now();
  asks.push(one);
  image.src = place;
  try {
    await image.decode();
    one.got = { good: true, words: "with a picture", time: performance.now() - began };
  } catch (error) {
    one.got = { good: false, words: "it is no picture", time: performance.now() - began };
    throw error;
  } finally {
    redraw(one);
  }
}

async function stream() {
  await ask("You watch a stream", "GET", "/stream", {}, "", async (answer, add) => {
    const ticks = make("p", { className: "ticks" });
    add(make("p", { className: "got", textContent: "each piece as it comes:" }));
    add(ticks);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const line of value.trim().split("\n")) ticks.append(make("span", { textContent: line }));
    }
  });
}

let socket = null;

/** Say something; the socket is opened by the first line. Promises what came back. */
async function chat(line = $("#line").value) {
  words.add(line);
  if (socket === null) {
    const made = new L8.WebSocket(`${ORIGIN.replace("https", "wss")}/chat`);
    const talk = make("div");
    const open = { title: "You chat", target: "GET /chat", said: "", row: null, nodes: [talk], got: { good: true, words: "over a socket", time: 0 } };
    asks.push(open);
    socket = { made, talk, waiting: [] };
    made.addEventListener("message", (event) => {
      talk.append(make("p", {}, "it ", make("span", { className: "said", textContent: event.data })));
      socket?.waiting.shift()?.resolve(event.data);
    });
    made.addEventListener("close", (event) => {
      const left = socket?.waiting ?? [];
      socket = null;
      for (const one of left) one.reject(new Error(`the socket closed: ${event.code} ${event.reason}`));
    });
    await new Promise((resolve, reject) => {
      made.addEventListener("open", resolve, { once: true });
      made.addEventListener("close", () => reject(new Error("the socket did not open")), { once: true });
    });
  }
  const { made, talk, waiting } = socket;
  const answer = new Promise((resolve, reject) => waiting.push({ resolve, reject }));
  talk.append(make("p", {}, "you ", make("span", { className: "said", textContent: line })));
  made.send(line);
  return answer;
}

// ---- Be the bad relay ----

async function tell(path, body = {}) {
  const answer = await fetch(`/demo/${path}`, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function outcome(name, good, verdict, ...lines) {
  const said = make("p", { className: good ? "verdict" : "verdict bad", textContent: verdict });
  $(`#deed-${name} .outcome`).replaceChildren(said, ...lines.map((line) => make("p", {}, ...[].concat(line))));
  return { name, good, verdict };
}

const code = (textContent) => make("code", { textContent });

async function replay() {
  if (!lastNote) await write();
  const told = await tell("replay");
  const good = told.noticed === "repeat" && told.calls_after === told.calls_before && told.status === 200;
  return outcome(
    "replay",
    good,
    good ? "The gateway noticed." : "Nobody noticed!",
    ["It remembers each one-time key for as long as the message could count. This one had come before: it answered ", code("425 Too Early"), ", and the backend was not called."],
    [`Even that answer was sealed. The relay got ${bytes(told.size)} under a status of ${told.status}, like any other answer.`],
  );
}

async function swap() {
  await tell("keys", { on: true });
  let error = null;
  const before = await tell("counts");
  await (await L8.connect({ ...CONFIG })).close(); // as if the page were loaded again
  try {
    const tunnel = await L8.connect({ ...CONFIG });
    await tunnel.fetch(`${ORIGIN}${lastNote || "/notes/1"}`);
  } catch (caught) {
    error = caught;
  }
  const after = await tell("keys", { on: false });
  await L8.connect({ ...CONFIG });
  const good = error?.code === "keys-signature" && after.posts === before.posts && after.given > before.given;
  return outcome(
    "keys",
    good,
    good ? "Your page noticed." : "Nobody noticed!",
    ["The relay gave out a key of its own. Your page knows who has to sign keys (it came with that pin), said ", code(error?.code ?? "nothing"), ", and failed."],
    [`Sealed requests that the relay got with its own key: ${after.posts - before.posts}.`],
  );
}

async function change() {
  await tell("change");
  const before = await tell("counts");
  let error = null;
  try {
    await ask("You read a note, and the relay changes a byte", "GET", lastNote || "/notes/1", {}, "", null);
  } catch (caught) {
    error = caught;
  }
  const after = await tell("counts");
  const good = error?.code === "unopened" && after.calls === before.calls && after.changed > before.changed;
  return outcome(
    "change",
    good,
    good ? "The gateway noticed, and so your page did." : "Nobody noticed!",
    ["One bit was flipped. Nothing of the message opens any more: the gateway answered ", code("422"), ", the backend was not called."],
    ["Your page said ", code(error?.code ?? "nothing"), "."],
  );
}

async function look() {
  if (!lastNote) await write();
  const told = await tell("read", { words: [...words, lastNote] });
  const good = told.found.length === 0 && !told.opened;
  return outcome(
    "read",
    good,
    good ? "There is nothing to read." : "It could be read!",
    [`Looked for what you wrote, ${told.words} phrases, in all ${bytes(told.bytes)} that the relay has had, spelled in ${told.spellings} ways: ${told.found.length ? `found ${told.found.join(", ")}` : "found none"}.`],
    [`A key of the relay\u2019s own ${told.opened ? "opens" : "does not open"} them. They carry ${told.entropy.toFixed(2)} of 8 bits a byte: what chance looks like.`],
  );
}

// ---- Wiring ----

function busy(button, deed) {
  return async (event) => {
    event?.preventDefault();
    button.disabled = true;
    try {
      await deed();
    } catch (error) {
      console.warn(error);
    } finally {
      button.disabled = false;
    }
  };
}

$("#write").addEventListener("submit", busy($("#write button"), () => write()));
$("#chat").addEventListener("submit", busy($("#chat button"), () => chat()));
for (const [name, deed] of Object.entries({ read, picture, stream })) $(`#${name}`).addEventListener("click", busy($(`#${name}`), deed));
for (const [name, deed] of Object.entries({ replay, keys: swap, change, read: look })) {
  const button = $(`#deed-${name} button`);
  button.addEventListener("click", busy(button, deed));
}
$("#chat").hidden = typeof L8.WebSocket !== "function";

/** Do everything, for a demo without hands: gives what the bad relay came to, and the words that only two should know. */
async function all() {
  await write();
  await read();
  await picture();
  await stream();
  if (!$("#chat").hidden) await chat().catch((error) => console.warn(error));
  const deeds = [await replay(), await swap(), await change(), await look()];
  const told = asks.map(({ title, target, said, got }) => ({ title, line: target, said: said ?? "", answer: got?.words ?? "", ms: got?.time ?? 0 }));
  return { deeds, asks: told, words: [...words] };
}

globalThis.demo = { all, write, read, picture, stream, chat, replay, swap, change, look };
await L8.registerCitizenship({ ...CONFIG });
