// The table of members. A row is made once and then changed where its member did; rows move only where the order changed.

import { colour } from "./chart.js";
import { byId, count, counted, duration, latency, make, put } from "./format.js";

const FEW = 50;
const BADGES = {
  up: ["good", "✓ up"],
  joining: ["", "… joining"],
  suspect: ["warning", "? suspect"],
  draining: ["warning", "◆ draining"],
  drained: ["warning", "◆ drained by hand"],
  ejected: ["bad", "⊘ ejected"],
  trial: ["warning", "◔ on trial"],
  down: ["bad", "✕ down"],
};
const URGENCY = ["down", "ejected", "suspect", "trial", "draining", "drained", "joining", "up"];
const NUMBERS = { share: "recent", rate: "rate", flight: "flight", p50: "p50", p99: "p99", failed: "failed", failed_attempts: "failed_attempts" };

/** The state of a member, or what stands beside it and decides what it gets: a drain by hand, an ejection. */
export function stateOf(member) {
  if (member.state === "down") return "down";
  if (member.drained) return "drained";
  if (member.ejection) return member.ejection.onTrial ? "trial" : "ejected";
  return member.state;
}

/** Why a member is in its state. ``now``: seconds since 1970. */
function why(member, now) {
  switch (stateOf(member)) {
    case "drained":
      return `${member.flight ? counted(member.flight, "request") + " to finish" : "gets no requests"}, for ${duration(now - member.drained)}`;
    case "ejected":
      return `${member.ejection.reason}; for ${duration(member.ejection.until - now)} more`;
    case "trial":
      return `gets a tenth of its share, for ${duration(now - member.ejection.until)}; was ejected: ${member.ejection.reason}`;
    default:
      return `${member.reason}, for ${duration(now - member.since)}`;
  }
}

export class Members {
  /** ``act(member, action)`` is called for a press of a button, with the name of the action. */
  constructor(act) {
    this.act = act;
    this.body = byId("rows");
    this.rows = new Map();
    this.sort = "member";
    this.descending = false;
    this.text = "";
    this.state = "all";
    this.limit = FEW;
    this.enabled = true;
    for (const button of document.querySelectorAll("th button")) {
      button.addEventListener("click", () => this.sortBy(button.dataset.sort));
    }
    byId("sort").addEventListener("change", (event) => this.sortBy(event.target.value, false));
    byId("filter").addEventListener("input", (event) => {
      this.text = event.target.value.trim().toLowerCase();
      this.draw();
    });
    byId("more").addEventListener("click", () => {
      this.limit = this.limit === FEW ? Infinity : FEW;
      this.draw();
    });
  }

  sortBy(key, turn = true) {
    this.descending = key === this.sort && turn ? !this.descending : key in NUMBERS;
    this.sort = key;
    byId("sort").value = key;
    for (const button of document.querySelectorAll("th button")) {
      const header = button.closest("th");
      if (button.dataset.sort === key) header.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    }
    this.draw();
  }

  show(pool, now) {
    if (pool !== this.pool) {
      this.rows.clear();
      this.body.replaceChildren();
    }
    this.pool = pool;
    this.now = now;
    this.draw();
  }

  draw() {
    if (!this.pool) return;
    this.chips();
    const all = [...this.pool.members.values()];
    const wanted = all.filter((it) => this.matches(it)).sort((a, b) => this.compare(a, b));
    const shown = wanted.slice(0, this.limit);
    const kept = new Set(shown.map((it) => it.number));
    for (const [number, row] of this.rows) {
      if (!kept.has(number)) {
        row.tr.remove();
        this.rows.delete(number);
      }
    }
    let place = this.body.firstElementChild;
    for (const member of shown) {
      let row = this.rows.get(member.number);
      if (!row) {
        row = this.row(member.number);
        this.rows.set(member.number, row);
      }
      this.fill(row, member);
      if (row.tr === place) place = place.nextElementSibling;
      else this.body.insertBefore(row.tr, place);
    }
    const more = byId("more");
    more.hidden = wanted.length <= FEW;
    put(more, this.limit === FEW ? `Show all ${wanted.length}` : `Show the first ${FEW} only`);
    const empty = byId("no-members");
    empty.hidden = shown.length > 0;
    put(empty, all.length ? "No member matches." : "DNS names no member.");
    put(byId("members-title"), all.length ? counted(all.length, "member") : "Members");
  }

  matches(member) {
    if (this.state !== "all" && stateOf(member) !== this.state) return false;
    return !this.text || member.name.toLowerCase().includes(this.text) || member.address.includes(this.text);
  }

  compare(a, b) {
    let order = 0;
    if (this.sort === "state") order = URGENCY.indexOf(stateOf(a)) - URGENCY.indexOf(stateOf(b));
    else if (this.sort in NUMBERS) order = (a[NUMBERS[this.sort]] ?? -1) - (b[NUMBERS[this.sort]] ?? -1);
    else order = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
    return (this.descending ? -order : order) || (a.key < b.key ? -1 : 1);
  }

  /** The states that there are, with how many are in each. */
  chips() {
    const counts = new Map([["all", this.pool.members.size]]);
    for (const member of this.pool.members.values()) {
      counts.set(stateOf(member), (counts.get(stateOf(member)) ?? 0) + 1);
    }
    if (this.state !== "all" && !counts.has(this.state)) counts.set(this.state, 0);
    const wanted = ["all", ...[...URGENCY].reverse().filter((it) => counts.has(it))];
    const bar = byId("states");
    bar.hidden = wanted.length < 3 && this.state === "all" && this.pool.members.size <= 12;
    if (this.chipped !== wanted.join()) {
      this.chipped = wanted.join();
      bar.replaceChildren(
        ...wanted.map((state) => {
          const chip = make("button", { type: "button", "data-state": state });
          chip.addEventListener("click", () => {
            this.state = state;
            this.draw();
          });
          return chip;
        }),
      );
    }
    for (const chip of bar.children) {
      put(chip, `${chip.dataset.state} ${counts.get(chip.dataset.state)}`);
      chip.setAttribute("aria-pressed", String(chip.dataset.state === this.state));
    }
  }

  row(number) {
    const cell = (kind, label) => make("td", { role: "cell", class: kind, ...(label && { "data-label": label }) });
    const row = {
      swatch: make("span", { class: "swatch", "aria-hidden": "true" }),
      name: make("b"),
      address: make("span", { class: "address" }),
      badge: make("span", { class: "badge" }),
      why: make("span", { class: "why" }),
      bar: make("progress", { max: "1", "aria-hidden": "true" }),
      share: make("span"),
      button: make("button", { type: "button", class: "quiet" }),
      restore: make("button", { type: "button", class: "quiet" }, "Restore"),
    };
    const member = cell("member");
    row.who = make("div", { class: "who" }, row.swatch, make("div", {}, row.name, row.address));
    member.append(row.who);
    const state = cell("state");
    state.append(row.badge, row.why);
    const share = cell("", "Share");
    share.append(make("div", { class: "share" }, row.bar, row.share));
    const numbers = [["rate", "Req/s"], ["flight", "In flight"], ["p50", "p50"], ["p99", "p99"], ["failed", "Failed"], ["failed_attempts", "Failed attempts"]];
    for (const [key, label] of numbers) row[key] = cell("n", label);
    const act = cell("act");
    act.append(row.restore, row.button);
    row.tr = make("tr", { role: "row" }, member, state, share, ...numbers.map(([key]) => row[key]), act);
    const press = (button, action) =>
      button.addEventListener("click", () => {
        const known = this.pool.members.get(number);
        if (known) this.act(known, action(known));
      });
    press(row.button, (known) => (known.drained ? "undrain" : "drain"));
    press(row.restore, () => "restore");
    return row;
  }

  fill(row, it) {
    const state = stateOf(it);
    const swatch = colour(this.pool.colours.of(it.number));
    if (row.colour !== swatch) row.swatch.style.background = row.colour = swatch;
    row.who.classList.toggle("unnamed", !it.name);
    row.name.hidden = !it.name;
    put(row.name, it.name);
    put(row.address, it.address);
    const [level, word] = BADGES[state] ?? ["", state];
    put(row.badge, word);
    if (row.badge.className !== `badge ${level}`.trim()) row.badge.className = `badge ${level}`.trim();
    put(row.why, why(it, this.now));
    const share = this.pool.summary.recent ? it.recent / this.pool.summary.recent : 0;
    if (row.bar.value !== share) row.bar.value = share;
    put(row.share, `${(share * 100).toFixed(share && share < 0.1 ? 1 : 0)} %`);
    put(row.rate, count(it.rate));
    put(row.flight, count(it.flight) + (it.limit === null ? "" : ` of ${count(it.limit)}`));
    put(row.p50, latency(it.p50));
    put(row.p99, latency(it.p99));
    put(row.failed, count(it.failed));
    row.failed.classList.toggle("some", it.failed > 0);
    put(row.failed_attempts, count(it.failed_attempts));
    row.failed_attempts.classList.toggle("some", it.failed_attempts > 0);
    const label = it.drained ? "Undrain" : "Drain";
    if (row.button.textContent !== label || row.labelled !== it.name) {
      row.labelled = it.name;
      put(row.button, label);
      row.button.setAttribute("aria-label", `${label} ${it.name} ${it.address}`.replace("  ", " "));
      row.restore.setAttribute("aria-label", `Restore ${it.name} ${it.address}`.replace("  ", " "));
      row.restore.title = "give it its whole share of requests again";
      row.button.title = it.drained ? "give it requests again" : "give it no more requests; those that it has are finished";
    }
    row.button.disabled = row.restore.disabled = !this.enabled;
    row.restore.hidden = !it.ejection;
  }
}
