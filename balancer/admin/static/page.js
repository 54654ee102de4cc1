// The status page: one stream of server-sent events in, the DOM out.
//
// "whole" brings everything; "delta" brings the rows that have changed, in the compact form that openapi.json describes.

import { Chart, Colours } from "./chart.js";
import { byId, count, counted, duration, latency, make, put, timeOfDay } from "./format.js";
import { Members } from "./members.js";
import { Stream } from "./stream.js";

const EVENTS = 200;
const CHANGES = 40;
const LEVEL_MARKS = { good: "✓", info: "·", warning: "!", bad: "✕" };
const TOKEN = "balancer-admin-token";

const state = { pools: new Map(), chosen: null, events: new Map(), about: {}, skew: 0 };
const chart = new Chart();
const members = new Members(act);

const serverNow = () => Date.now() / 1000 + state.skew;
const pool = () => state.pools.get(state.chosen);

// ---- what comes in

class Pool {
  constructor(name) {
    this.name = name;
    this.members = new Map();
    this.series = new Map();
    this.colours = new Colours();
    this.refused = [];
    this.marks = [];
    this.changes = [];
    this.summary = {};
    this.dns = null;
    this.sampled = Date.now();
  }

  whole(it, samples) {
    this.members.clear();
    this.series.clear();
    it.members.forEach((row) => this.takeMember(row));
    for (const [number, address, name, ago, rates] of it.chart) {
      const gone = ago > 0 || !this.members.has(number);
      const series = this.series.get(number) ?? { number, address, name, label: name || address, rates: [], gone };
      series.rates = [...rates, ...new Array(ago).fill(0)].slice(-samples);
      this.series.set(number, series);
      this.colours.take(number);
    }
    it.values.forEach((row) => this.takeValues(row));
    this.refused = it.refused;
    this.summary = it.summary;
    this.dns = it.dns;
    this.changes = it.changes;
  }

  delta(it, samples, sampled) {
    it.members.forEach((row) => this.takeMember(row));
    for (const number of it.left) {
      this.members.delete(number);
      const series = this.series.get(number);
      if (series) series.gone = true;
    }
    this.dns = it.dns;
    if (!sampled) return;
    it.values.forEach((row) => this.takeValues(row));
    this.summary = it.summary;
    push(this.refused, it.summary.refused_rate, samples);
    for (const [number, series] of this.series) {
      push(series.rates, this.members.get(number)?.rate ?? 0, samples);
      if (series.gone && !series.rates.some((rate) => rate > 0)) {
        this.series.delete(number);
        this.colours.free(number);
        for (const waiting of this.series.keys()) this.colours.take(waiting);
      }
    }
  }

  takeMember([number, address, name, what, reason, since, drained, out]) {
    const known = this.members.get(number) ?? { number, flight: 0, rate: 0, recent: 0, p50: null, p99: null, requests: 0, failed: 0, failed_attempts: 0, limit: null };
    const ejection = out ? { reason: out[1], until: out[3], onTrial: out[4] } : null;
    Object.assign(known, { address, name, state: what, reason, since, drained, ejection, key: sortKey(address) });
    this.members.set(number, known);
    if (!this.series.has(number)) this.series.set(number, { number, rates: [], gone: false });
    Object.assign(this.series.get(number), { address, name, label: name || address });
    this.colours.take(number);
  }

  takeValues([number, flight, rate, recent, p50, p99, requests, failed, failed_attempts, limit]) {
    const member = this.members.get(number);
    if (member) Object.assign(member, { flight, rate, recent, p50, p99, requests, failed, failed_attempts, limit });
  }
}

function push(list, value, most) {
  list.push(value);
  if (list.length > most) list.shift();
}

/** Addresses in the order of their numbers. */
const sortKey = (address) => address.replace(/\d+/g, (digits) => digits.padStart(5, "0"));

function takeEvents(events) {
  const fresh = [];
  for (const event of events) {
    if (!state.events.has(event.id)) fresh.push(event);
    event.date = new Date(event.time);
    event.mark = { joined: "joined", left: "left", drained: "drained", ejected: event.level === "good" ? "good" : "bad", state: { bad: "bad", good: "good" }[event.level] }[event.kind];
    state.events.set(event.id, event);
  }
  for (const id of state.events.keys()) {
    if (state.events.size <= EVENTS) break;
    state.events.delete(id);
  }
  return fresh;
}

function onWhole(message) {
  state.about = message;
  state.skew = message.time - Date.now() / 1000;
  const known = state.pools;
  state.pools = new Map();
  for (const it of message.pools) {
    const one = known.get(it.name) ?? new Pool(it.name);
    one.whole(it, message.samples);
    one.sampled = message.time * 1000;
    state.pools.set(it.name, one);
  }
  if (!state.pools.has(state.chosen)) state.chosen = message.pools[0]?.name ?? null;
  state.events.clear();
  takeEvents(message.events);
  byId("events").replaceChildren();
  members.enabled = message.access !== "refused";
  byId("open-token").hidden = message.access !== "token";
  const off = byId("actions-off");
  off.hidden = members.enabled;
  put(off, "Drain, undrain and restore are off: the admin port does not listen on loopback and BALANCER_ADMIN_TOKEN is not set.");
  put(byId("version"), message.version);
  byId("version").title = message.build;
  drawPools();
  draw(message.events);
}

function onDelta(message) {
  state.skew = message.time - Date.now() / 1000;
  for (const it of message.pools) {
    const one = state.pools.get(it.name);
    if (!one) continue;
    one.delta(it, state.about.samples, message.sample);
    if (message.sample) one.sampled = message.time * 1000;
    for (const event of message.events) {
      // The same event comes again when its member's name is known.
      const fresh = event.pool === it.name && !state.events.has(event.id);
      if (fresh && ["dns", "joined", "left"].includes(event.kind)) push(one.changes, event, CHANGES);
    }
  }
  const fresh = takeEvents(message.events);
  announce(fresh);
  draw(message.events);
}

// ---- what is shown

function draw(events) {
  const now = pool();
  if (!now) return;
  now.marks = [...state.events.values()].filter((it) => it.mark && it.pool === now.name);
  drawTiles(now);
  drawDns(now);
  members.show(now, serverNow());
  chart.show(now, state.about.samples, state.about.interval);
  drawEvents(events);
}

function drawPools() {
  const nav = byId("pools");
  nav.hidden = false;
  const names = [...state.pools.keys()];
  if (names.length < 2) {
    nav.replaceChildren(make("span", { class: "muted" }, names[0] ? `pool ${names[0]}` : ""));
    return;
  }
  nav.replaceChildren(
    ...names.map((name) => {
      const button = make("button", { type: "button", "aria-pressed": String(name === state.chosen) }, name);
      button.addEventListener("click", () => {
        state.chosen = name;
        drawPools();
        draw([]);
        byId("changes").replaceChildren();
        drawDns(pool());
      });
      return button;
    }),
  );
}

function tile(id, text, note, level = "") {
  put(byId(`t-${id}`), text);
  if (note !== undefined) put(byId(`t-${id}-note`), note);
  byId(`t-${id}`).closest("div").className = level;
}

function drawTiles(now) {
  const it = now.summary;
  const all = now.members.size;
  tile("available", String(it.available), `of ${counted(all, "member")}`, it.available ? (it.available < all ? "warning" : "") : "bad");
  tile("rate", count(it.rate), `${count(it.requests)} in all`);
  put(byId("t-p50"), latency(it.p50_ms));
  put(byId("t-p99"), it.p99_ms === null ? "median of the last 10 s" : `median; p99 ${latency(it.p99_ms)}`);
  put(byId("t-flight"), count(it.in_flight));
  tile("queued", count(it.queued), it.queued_ever ? `${count(it.queued_ever)} had to wait` : "none had to wait", it.queued ? "warning" : "");
  tile("failed", count(it.failed), `${count(it.refused)} refused, ${counted(it.retries, "retry", "retries")}`, it.failed ? "bad" : "");
  const banner = byId("banner");
  banner.hidden = it.available > 0;
  if (!it.available) put(banner, `No member is available${it.queued ? `; ${counted(it.queued, "request")} queued` : ""}.`);
  document.title = it.available ? `${it.available}/${all} · ${count(it.rate)}/s · balancer` : "none available · balancer";
}

function drawDns(now) {
  const box = byId("dns-answers");
  const answers = now.dns?.answers ?? [];
  put(byId("dns-age"), now.dns ? `answered ${duration(serverNow() - Date.parse(now.dns.time) / 1000)} ago` : "no answer yet");
  while (box.children.length > answers.length) box.lastChild.remove();
  answers.forEach((it, i) => {
    const entry = box.children[i] ?? box.appendChild(make("div", {}, make("dt", {}, make("span"), make("span")), make("dd")));
    const [name, badge] = entry.firstChild.children;
    put(name, `${now.name} ${it.record}`);
    put(badge, it.rcode);
    badge.className = `badge ${it.outcome === "found" ? "good" : it.outcome === "empty" ? "warning" : "bad"}`;
    const whole = it.truncated ? "truncated over UDP, asked again over TCP" : "not truncated";
    const kept = it.outcome === "unknown" ? "; what is known stays" : "";
    put(entry.lastChild, `${counted(it.addresses, "address", "addresses")}, ${whole}${kept}`);
  });
  const list = byId("changes");
  const last = now.changes.at(-1)?.id;
  if (list.dataset.last === `${now.name} ${last}` && list.children.length) return;
  list.dataset.last = `${now.name} ${last}`;
  list.replaceChildren(
    ...now.changes.slice(-CHANGES).reverse().map((it) => {
      const date = new Date(it.time);
      return make("li", { class: it.kind }, make("time", { datetime: it.time }, timeOfDay(date)), it.text.replace(/^DNS /, ""));
    }),
  );
}

function drawEvents(events) {
  const list = byId("events");
  for (const event of events) {
    const known = list.querySelector(`[data-id="${CSS.escape(event.id)}"]`);
    const text = make("span", {}, event.text);
    if (event.name) text.append(" ", make("em", {}, `(${event.name})`));
    if (state.pools.size > 1) text.prepend(make("em", {}, `${event.pool} `));
    const item = make("li", { class: event.level, "data-id": event.id },
      make("time", { datetime: event.time, title: new Date(event.time).toLocaleString() }, timeOfDay(new Date(event.time))),
      make("span", { class: "mark", title: event.level, "aria-label": event.level, role: "img" }, LEVEL_MARKS[event.level]),
      text);
    if (known) known.replaceWith(item);
    else list.prepend(item);
  }
  while (list.children.length > EVENTS) list.lastChild.remove();
}

/** Reads out what matters, one sentence at a time. */
function announce(fresh) {
  const grave = fresh.filter((it) => it.level !== "info" || it.kind === "joined" || it.kind === "left");
  if (!grave.length) return;
  const worst = grave.find((it) => it.level === "bad") ?? grave.at(-1);
  put(byId("announce"), worst.text + (grave.length > 1 ? ` and ${grave.length - 1} more` : ""));
}

// ---- what can be done

const DONE = { drain: "gets no more requests", undrain: "gets requests again", restore: "gets its share again" };

async function act(member, action) {
  const headers = { "Content-Type": "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (state.about.access === "token") {
    if (!token) return askToken(() => act(member, action));
    headers.Authorization = `Bearer ${token}`;
  }
  let response;
  try {
    response = await fetch(`/api/members/${encodeURIComponent(member.address)}/${action}`, {
      method: "POST",
      headers,
      // Who presses the button means the container, not whichever has its address by now.
      body: JSON.stringify({ pool: state.chosen, name: member.name || null }),
    });
  } catch {
    return toast("The balancer does not answer.");
  }
  if (response.status === 401) {
    sessionStorage.removeItem(TOKEN);
    return askToken(() => act(member, action), wrong);
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({ reason: response.statusText }));
    return toast(problem.reason);
  }
  toast(`${member.name || member.address} ${DONE[action]}`);
}

let toasting;
function toast(text) {
  const box = byId("toast");
  box.hidden = false;
  put(box, text);
  clearTimeout(toasting);
  toasting = setTimeout(() => (box.hidden = true), 5000);
}

const asked = "Drain, undrain and restore ask for the value of BALANCER_ADMIN_TOKEN, and pages that send it have places of their own. It is kept until this tab is closed.";
const wrong = "That is not the token. It is the value of BALANCER_ADMIN_TOKEN.";
let withToken = null;
function askToken(then, why = asked) {
  withToken = then;
  put(byId("token-why"), why);
  byId("token-value").value = "";
  byId("token").showModal();
}

byId("open-token").addEventListener("click", () => askToken(null));
byId("token-cancel").addEventListener("click", () => byId("token").close());
byId("token-forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  byId("token").close();
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token-value").value.trim());
  byId("token").close();
  stream.open(); // Where the page waits for a place, the token has one.
  withToken?.();
});
byId("troubles").addEventListener("change", (event) => byId("events").classList.toggle("only", event.target.checked));
byId("settings").addEventListener("toggle", async (event) => {
  if (!event.target.open) return;
  try {
    const { settings } = await (await fetch("/api/settings")).json();
    byId("settings-rows").replaceChildren(
      ...settings.map((it) => make("tr", {}, make("th", { scope: "row" }, it.name), make("td", {}, it.value), make("td", { class: "muted" }, it.meaning))),
    );
  } catch {
    toast("The balancer does not answer.");
  }
});

// ---- the stream

function live(what, text) {
  const pill = byId("live");
  pill.dataset.state = what;
  put(pill, text);
}

const token = { get: () => sessionStorage.getItem(TOKEN), forget: () => sessionStorage.removeItem(TOKEN) };
const stream = new Stream("/api/stream", token, { whole: onWhole, delta: onDelta }, (what, problem) => {
  live(what, what === "live" ? "live" : problem ? "refused, trying again" : "connection lost, trying again");
  if (!problem) return;
  put(byId("banner"), problem.reason);
  byId("banner").hidden = false;
  if (problem.error === "token_needed") askToken(null, wrong);
  if (problem.error === "pages_need_token") byId("open-token").hidden = false;
});

// A hidden page costs nothing, and browsers allow six connections to a host.
document.addEventListener("visibilitychange", () => (document.hidden ? stream.close() : stream.open()));
if (!document.hidden) stream.open();
