// layer8's service worker, set up by L8.serviceWorker: pictures, styles, downloads, navigation and plain fetch go through
// the tunnel, and the app's own files are served only as its signed manifest lists them. See docs/tunnel-pages.md.
// It gives evidence, not protection: a first visit, a hard reload and the browser's own update of this file go around it.

import L8, { L8Error, appStore, json, letters, readJws, settled, sha256, text, unletters } from "./l8.js";

const { tunnels, paths, publisher } = JSON.parse(new URL(location.href).searchParams.get("l8"));

const MANIFEST = "/.well-known/l8/manifest.json";
const MANIFEST_MOST = 2 ** 20; // letters of a manifest
const VERSIONS = 100; // manifests that are read to get from the one that counts to the newest
const EVIDENCE = 32; // entries that are kept, each with two manifests
const MISSING = 60_000; // milliseconds before a manifest that was not there is looked for again
const RELAYS = /^\/(?:\.well-known|r|ws)\//; // what relays serve on every origin, beside /l8/

// What could run in the app's origin is one of the app's own files, never a backend's.
const CODE = new Set("audioworklet embed object paintworklet script serviceworker sharedworker worker xslt".split(" "));
// A backend's page has the app's origin: nothing in it runs, and nothing in it leads around the tunnel by itself.
const CAGE =
  "sandbox allow-same-origin allow-forms allow-downloads; default-src 'none'; img-src 'self' blob: data:; media-src 'self' blob:; " +
  "style-src 'self' 'unsafe-inline'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
// What browsers add to requests tells who they are: of those that no script has made a backend hears these fields only.
const ASKED = ["content-type", "range", "if-range"];
const ACCEPT = { document: "text/html,*/*;q=0.8", image: "image/*,*/*;q=0.8", style: "text/css,*/*;q=0.1" };
const BROWSERS = /^(?:accept-language|device-memory|dnt|downlink|dpr|ect|priority|referer|rtt|save-data|sec-.*|upgrade-insecure-requests|user-agent|viewport-width)$/;
const BESIDE = {
  "cross-origin-opener-policy": "same-origin-allow-popups",
  "referrer-policy": "same-origin", // the worker has to know its own pages' forms from those of other sites
  "x-content-type-options": "nosniff",
  "x-dns-prefetch-control": "off",
};
// Hints make browsers connect to where they lead, whatever the policy says: in a backend's page only plain links of these kinds stay.
const HINTS = /<link(?=[\s/>])(?!(?:\s+(?:rel=(["']?)(?:stylesheet|(?:shortcut )?icon)\1|(?:href|type|media|sizes)=(?:"[^"<>]*"|'[^'<>]*'|[\w./-]+)))*\s*\/?>)/gi;
const INNER = /srcdoc(?=[\s/>=])/gi; // a page in an attribute, where `<link` may be written otherwise
const ANSWERED = "accept-ranges cache-control content-disposition content-length content-range content-type etag last-modified".split(" ");

const TEXT = { css: "text/css", htm: "text/html", html: "text/html", js: "text/javascript", mjs: "text/javascript", ts: "text/plain", txt: "text/plain" };

const TYPES = {
  gif: "image/gif",
  ico: "image/x-icon",
  jpeg: "image/jpeg",
  jpg: "image/jpeg",
  json: "application/json",
  map: "application/json",
  mp3: "audio/mpeg",
  mp4: "video/mp4",
  pdf: "application/pdf",
  png: "image/png",
  svg: "image/svg+xml",
  wasm: "application/wasm",
  webm: "video/webm",
  webmanifest: "application/manifest+json",
  webp: "image/webp",
  woff: "font/woff",
  woff2: "font/woff2",
};

// ---- The app's manifest ----

let known = null; // {source, told, hash}: the manifest that counts
let missing = -Infinity; // when there was none
let looking = null;

const named = (source) => JSON.parse(text(unletters(JSON.parse(source).payload)));

/** Read a manifest under one of these keys. */
async function readManifest(source, signers) {
  const bytes = new TextEncoder().encode(source);
  const { payload, pin } = await readJws(bytes, "l8-app+jws", signers);
  const told = json(payload);
  const files = told.files !== null && typeof told.files === "object" && Object.values(told.files);
  const right = files && files.every((one) => typeof one?.sha256 === "string") && typeof told.csp === "string";
  const good = told.v === 1 && told.publisher === pin && Number.isSafeInteger(told.version) && right;

  if (!good) throw new TypeError("a manifest of another form");
  return { source, told, hash: letters(await sha256(bytes)) };
}

/** Read the manifest that follows another: of the same app, a later version, signed by the same publisher or the one it names. */
async function readNext(source, before) {
  const next = await readManifest(source, [before.told.publisher, before.told.next].filter(Boolean));
  if (next.told.app !== before.told.app) throw new TypeError("the manifest of another app");
  if (next.told.version <= before.told.version) throw new TypeError(`version ${next.told.version} after ${before.told.version}`);
  if (next.told.prev !== before.hash) throw new TypeError("a manifest that does not follow the one before");
  return next;
}

async function asked(path) {
  const answer = await fetch(path, { cache: "no-store", redirect: "error", credentials: "omit" });
  if (!answer.ok) return null;
  const source = await answer.text();
  if (source.length > MANIFEST_MOST) throw new TypeError("a manifest that is too long");
  return source;
}

async function look() {
  known ??= (await appStore((kept) => settled(kept.objectStore("state").get("manifest"))).catch(() => null)) ?? null;
  const source = await asked(MANIFEST).catch(() => null);
  if (source === null || source === known?.source) {
    missing = performance.now();
    return;
  }
  try {
    let last = known;
    if (last) {
      const { version } = named(source);
      for (let between = last.told.version + 1; between < Math.min(version, known.told.version + VERSIONS); between++) {
        const earlier = await asked(`/.well-known/l8/manifests/${between}.json`);
        if (earlier !== null) last = await readNext(earlier, last);
      }
      last = await readNext(source, last);
    } else last = await readManifest(source, [publisher || named(source).publisher]);
    await appStore((kept) => settled(kept.objectStore("state").put(last, "manifest")));
    known = last;
  } catch (error) {
    await witness(MANIFEST, known?.hash ?? publisher, letters(await sha256(new TextEncoder().encode(source))), error.message, source);
  }
}

/** Look for a newer manifest, one look at a time. */
const refresh = () => (looking ??= look().finally(() => (looking = null)));

/** Give the manifest that counts, or null. */
async function manifest() {
  if (!known && performance.now() - missing > MISSING) await refresh();
  return known;
}

/** Keep evidence, and tell the pages. */
async function witness(path, expected, got, why, other = null) {
  const entry = { time: new Date().toISOString(), url: new URL(path, location.href).href, why, expected, got, manifests: [known?.source ?? null, other] };
  await appStore(async (kept) => {
    const store = kept.objectStore("evidence");
    const [all, keys] = await Promise.all([settled(store.getAll()), settled(store.getAllKeys())]);
    if (all.some((one) => one.url === entry.url && one.got === got && one.expected === expected)) return;

    for (const key of keys.slice(0, Math.max(0, keys.length + 1 - EVIDENCE))) store.delete(key);
    await settled(store.add(entry));
  });
  for (const page of await self.clients.matchAll({ includeUncontrolled: true })) page.postMessage({ l8: `${why}: ${entry.url}`, entry });
}

const refused = (status, why) =>
  new Response(`${why}\n`, { status, headers: { ...BESIDE, "content-type": "text/plain; charset=utf-8", "content-security-policy": CAGE } });

// ---- The app's own files ----

/** Serve a file if it is what the manifest lists. */
async function own(path, name, method) {
  const answer = await fetch(path, { cache: "no-cache", redirect: "error", credentials: "omit" });
  if (!answer.ok) return refused(502, `The host of this app answers ${answer.status} for ${name}.`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const got = letters(await sha256(bytes));
  if (got !== known.told.files[name]?.sha256) await refresh();
  const expected = known.told.files[name]?.sha256;
  if (got !== expected) {
    await witness(path, expected ?? "", got, "a file of the app is not what its publisher has signed");
    return refused(502, `${name} is not what the publisher of this app has signed. It was not shown; L8.evidence() says more.`);
  }
  const ending = /\.(\w+)$/.exec(name)?.[1].toLowerCase();
  const type = TEXT[ending] ? `${TEXT[ending]}; charset=utf-8` : (TYPES[ending] ?? "application/octet-stream");
  const headers = new Headers({ ...BESIDE, "content-type": type, "content-security-policy": known.told.csp });
  for (const [field, value] of answer.headers) if (field.startsWith("integrity-policy")) headers.set(field, value);
  return new Response(method === "HEAD" ? null : bytes, { headers });
}

// ---- What is the backend's ----

const origin = (authority) => new URL(authority.includes("://") ? authority : `https://${authority}`).origin;
// A host is of the tunnel that the page has configured for it, else of the first that claims it.
const claimed = tunnels.flatMap((one) => one.authorities.map((name) => [origin(name), one])).reverse();
const hosts = new Map([...claimed, ...tunnels.flatMap((one) => (one.options.authority ? [[origin(one.options.authority), one]] : []))]);
const first = tunnels[0] && origin(tunnels[0].options.authority ?? tunnels[0].authorities[0]);

/** Give a tunnel of the page's as it is here. */
async function connected(one) {
  if (one.tunnel?.state !== "ready" && one.tunnel?.state !== "refreshing") one.tunnel = await L8.connect(one.options);
  return one.tunnel;
}

/** Ask through the tunnel. */
async function through(request, target) {
  if (CODE.has(request.destination)) return refused(403, "Scripts are the app's own files, never a backend's.");
  const page = request.mode === "navigate";
  // Another site's form would come with this visitor's cookies, and as if it were the backend's own.
  if (page && request.method !== "GET" && !request.referrer.startsWith(`${location.origin}/`)) {
    return refused(403, "This form was not sent by a page of this app, or by one that does not say so. Load the page again, and send it once more.");
  }
  const made = request.destination === "" && !page; // by a script
  const headers = new Headers({ accept: ACCEPT[request.destination] ?? "*/*" });
  for (const [name, value] of request.headers) if (made ? !BROWSERS.test(name) : ASKED.includes(name)) headers.set(name, value);
  const body = request.method === "GET" || request.method === "HEAD" ? undefined : await request.blob();
  try {
    const one = hosts.get(new URL(target).origin);
    const tunnel = await connected(one);
    const { method, signal, credentials } = request;
    const answer = await tunnel.fetch(target, { method, headers, body, signal, credentials, redirect: made ? request.redirect : "follow" });
    if (hosts.get(new URL(answer.url).origin) !== one) throw new L8Error("redirect", { message: `${new URL(answer.url).host} is another gateway's` });
    if (made) return answer;
    // A browser shows the address that it has asked for: let it ask for the right one.
    if (page && answer.redirected && new URL(answer.url).origin === first) {
      answer.body?.cancel();
      return Response.redirect(answer.url.replace(first, location.origin), 303);
    }
    const kept = new Headers({ ...BESIDE, "content-security-policy": CAGE });
    for (const name of ANSWERED) if (answer.headers.has(name)) kept.set(name, answer.headers.get(name));
    const type = kept.get("content-type") ?? "";
    let { body: shown } = answer;
    if (page && /^text\/html\s*(?:;|$)/i.test(type)) {
      shown = shown && quiet(await answer.arrayBuffer(), type);
      kept.set("content-type", "text/html; charset=utf-8");
      kept.delete("content-length");
    } else if (page && !/^(?!.*(?:xml|html))(?:audio|font|image|text|video|application)\//i.test(type)) kept.set("content-type", "text/plain");
    return new Response(shown, { status: answer.status, headers: kept });
  } catch (error) {
    if (made || !(error instanceof L8Error)) return Response.error();
    return refused(502, `${error.message}. ${error.hint}`);
  }
}

/** Take the hints out of a page. */
function quiet(bytes, type) {
  let decoder = new TextDecoder();
  try {
    decoder = new TextDecoder(/charset\s*=\s*["']?([^\s"';]+)/i.exec(type)?.[1] ?? "utf-8");
  } catch {} // a charset that nobody knows
  return decoder.decode(bytes).replace(HINTS, "<meta").replace(INNER, "data-$&");
}

async function answered(event, url) {
  const { request } = event;
  const listed = await manifest();
  if (listed) {
    if (request.mode === "navigate") event.waitUntil(refresh());
    const name = unescaped(url.pathname).replace(/\/$/, "/index.html");
    if (Object.hasOwn(listed.told.files, name) && (request.method === "GET" || request.method === "HEAD")) return own(url.pathname, name, request.method);
  }
  const tunneled = paths.length ? paths.some((path) => url.pathname.startsWith(path)) : listed && !url.pathname.startsWith("/l8/");
  return tunneled && first ? through(request, first + url.pathname + url.search) : fetch(request, { referrerPolicy: "no-referrer" });
}

function unescaped(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}


self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(Promise.all([self.clients.claim(), refresh()])));
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (hosts.has(url.origin)) event.respondWith(through(event.request, url.href));
  else if (url.origin === location.origin && !RELAYS.test(url.pathname)) event.respondWith(answered(event, url));
});
