// The page of `layer8 expose --inspect`: follows the record of requests and shows it.
// Whatever came over the wire is set by textContent. The token comes in the fragment and stays in this module's memory.

const PAUSE = 1000; // milliseconds before a lost program is asked again
const token = location.hash.slice(1);
history.replaceState(null, "", location.pathname);

const $ = (id) => document.getElementById(id);
const rows = new Map(); // id -> what the program said about it
const shown = new Map(); // id -> its line in the list
let chosen = null;
let busy = false;

async function ask(path, body) {
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: { Authorization: `Bearer ${token}` },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
  });
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim()), { status: answer.status });
  return answer.json();
}

function say(state, words) {
  $("link").dataset.state = state;
  $("link").textContent = words;
}

async function follow() {
  let serial = -1;
  for (;;) {
    try {
      const news = await ask(`api/exchanges?after=${serial}`);
      serial = news.serial;
      $("route").textContent = news.route;
      say("live", "live");
      take(news);
    } catch (error) {
      if (error.status === 401) {
        say("lost", "not let in");
        $("empty").textContent = "Open the address that layer8 expose printed: it holds what lets this page in, once.";
        $("empty").hidden = false;
        return;
      }
      say("lost", "not connected");
      await new Promise((done) => setTimeout(done, PAUSE));
    }
  }
}

function take(news) {
  for (const row of news.exchanges) rows.set(row.id, row);
  const kept = new Set(news.kept);
  for (const id of [...rows.keys()]) if (!kept.has(id)) rows.delete(id);
  if (chosen !== null && !rows.has(chosen)) choose(null);
  draw();
}

// The list.

const size = (bytes) => {
  if (bytes < 1000) return `${bytes} B`;
  const unit = bytes < 1e6 ? ["kB", 1e3] : bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${(bytes / unit[1]).toFixed(bytes / unit[1] < 10 ? 1 : 0)} ${unit[0]}`;
};
const time = (ms) => (ms === null ? "" : ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`);
const clock = (at) => new Date(at).toTimeString().slice(0, 8);
const kind = (row) => {
  if (row.state === "cut" || row.status >= 500) return "bad";
  if (row.status === null) return "";
  return row.status >= 400 ? "warn" : "good";
};
const outcome = (row) => {
  if (row.status !== null) return row.state === "cut" ? `${row.status} cut off` : String(row.status);
  return row.state === "cut" ? "no answer" : "waiting";
};

function wanted(row) {
  const text = `${row.method} ${row.path} ${row.host} ${outcome(row)}`.toLowerCase();
  return $("filter").value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

function line(row) {
  const found = document.createElement("li");
  found.id = `x${row.id}`;
  found.role = "option";
  for (const name of ["at", "method", "path", "status", "ms", "size"]) {
    found.append(Object.assign(document.createElement("span"), { className: name }));
  }
  found.classList.add("new");
  found.addEventListener("click", () => choose(row.id));
  return found;
}

function fill(found, row) {
  const set = (name, text) => {
    const cell = found.querySelector(`.${name}`);
    if (cell.textContent !== text) cell.textContent = text;
    return cell;
  };
  set("at", clock(row.at));
  set("method", row.method);
  set("path", row.path).classList.toggle("again", row.replay_of !== null);
  set("status", outcome(row)).dataset.kind = kind(row);
  set("ms", time(row.total_ms ?? row.wait_ms));
  set("size", row.status === null ? "" : size(row.answer_size));
  found.title = row.path;
}

function draw() {
  const list = $("list");
  const order = [...rows.values()].filter(wanted).sort((a, b) => b.id - a.id);
  const keep = new Set(order.map((row) => row.id));
  for (const [id, found] of shown) {
    if (!keep.has(id)) {
      found.remove();
      shown.delete(id);
    }
  }
  let before = null;
  for (const row of order) {
    let found = shown.get(row.id);
    if (!found) shown.set(row.id, (found = line(row)));
    fill(found, row);
    const place = before === null ? list.firstChild : before.nextSibling;
    if (place !== found) list.insertBefore(found, place);
    before = found;
  }
  for (const [id, found] of shown) found.ariaSelected = String(id === chosen);
  if (chosen !== null && shown.has(chosen)) list.setAttribute("aria-activedescendant", `x${chosen}`);
  else list.removeAttribute("aria-activedescendant");
  $("empty").hidden = order.length > 0;
  $("empty").textContent = rows.size
    ? "No request has all of these words."
    : "No request has come yet. Visit the published address, and it appears here.";
  $("count").textContent = order.length === rows.size ? `${rows.size} kept` : `${order.length} of ${rows.size} kept`;
  detail();
}

function choose(id) {
  chosen = id;
  $("news").textContent = "";
  draw();
  if (id !== null) shown.get(id)?.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const order = [...$("list").children].map((found) => Number(found.id.slice(1)));
  if (!order.length) return;
  const at = order.indexOf(chosen);
  choose(order[at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + by))]);
}

// One request.

function fields(list, pairs, others) {
  const count = new Map();
  for (const [name, value] of others ?? []) {
    const key = JSON.stringify([name.toLowerCase(), value]);
    count.set(key, (count.get(key) ?? 0) + 1);
  }
  list.replaceChildren(
    ...pairs.map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value === null ? "not shown" : value;
      text.classList.toggle("kept", value === null);
      const key = JSON.stringify([name.toLowerCase(), value]);
      if (others && !(count.get(key) > 0)) {
        row.className = "differs";
        row.title = "not the same in the other answer";
      } else if (others) count.set(key, count.get(key) - 1);
      row.append(term, text);
      return row;
    }),
  );
}

function answer(part, row, other) {
  const words = row.status === null ? outcome(row) : `${row.version_of_answer} ${row.status} ${row.reason}`;
  const first = part.querySelector(".line");
  first.textContent = words;
  first.dataset.kind = kind(row);
  const facts = [];
  if (row.wait_ms !== null) facts.push(`head after ${time(row.wait_ms)}`);
  if (row.total_ms !== null) facts.push(`end after ${time(row.total_ms)}`);
  if (row.status !== null) facts.push(`body ${size(row.answer_size)}`);
  if (row.state === "upgraded") facts.push("another protocol since then");
  if (row.state === "cut") facts.push("cut off");
  part.querySelector(".facts").textContent = facts.join(", ");
  fields(part.querySelector(".fields"), row.answer, other && other.status !== null ? other.answer : null);
}

function detail() {
  const row = rows.get(chosen);
  $("detail").hidden = !row;
  if (!row) return;
  const first = rows.get(row.replay_of) ?? row;
  const repeated = row === first ? [...rows.values()].filter((one) => one.replay_of === row.id) : [row];
  const again = row === first && row.replay_of !== null ? null : repeated.reduce((a, b) => (a && a.id > b.id ? a : b), null);
  $("method").textContent = row.method;
  $("path").textContent = row.path;
  const facts = [`${row.host} at ${clock(row.at)}`, `to ${row.target}`, `body ${size(row.request_size)}`];
  if (row.replay_of !== null) facts.push(`a repetition of number ${row.replay_of}`);
  $("about").textContent = facts.join(" \u00b7 ");
  $("replay").disabled = busy || row.no_replay !== "";
  $("replay").title = row.no_replay ? `cannot be sent again: ${row.no_replay}` : "sends it to the local target once more";
  $("asked").querySelector(".line").textContent = `${row.method} ${row.path} ${row.version}`;
  fields($("asked").querySelector(".fields"), row.request, null);
  answer($("first"), first, again);
  $("second").hidden = !again;
  if (again) answer($("second"), again, first);
}

async function replay() {
  const row = rows.get(chosen);
  if (!row || busy || row.no_replay) return;
  busy = true;
  $("replay").disabled = true;
  $("news").textContent = "Sending it again.";
  try {
    const done = await ask("api/replay", { id: row.id });
    $("news").textContent = done.why ? `Sent again: ${done.why}.` : "Sent again; both answers are below.";
  } catch (error) {
    $("news").textContent = `It could not be sent again: ${error.message}.`;
  }
  busy = false;
  detail();
}

$("filter").addEventListener("input", draw);
$("replay").addEventListener("click", replay);
$("clear").addEventListener("click", () => ask("api/clear", {}).catch(() => say("lost", "not connected")));
$("back").addEventListener("click", () => {
  choose(null);
  $("list").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const typing = event.target === $("filter");
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  if (event.key === "Escape") {
    if (typing && $("filter").value) $("filter").value = "";
    else choose(null);
    draw();
    $("list").focus();
  } else if (event.key in moves && (event.target === $("list") || event.target === document.body || typing)) {
    if (typing && ["Home", "End"].includes(event.key)) return;
    step(moves[event.key]);
  } else if (typing) return;
  else if (event.key === "/") $("filter").focus();
  else if (event.key === "r") replay();
  else if (event.key === "Enter" && event.target === $("list") && chosen !== null) $("detail").focus();
  else return;
  event.preventDefault();
});

draw();
follow();
