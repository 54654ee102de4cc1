// The moving chart: one band for each container, stacked, and a lane of marks above for what happened. Canvas alone.

import { byId, count, cssVariable, make, put, timeOfDay } from "./format.js";

const COLOURS = 12;
const LANE = 16;
const LEFT = 44;
const BOTTOM = 20;
const MARKS = { joined: ["▲", "--good"], left: ["▼", "--muted"], bad: ["✕", "--bad"], drained: ["◆", "--warning"], good: ["●", "--good"] };

/** Series are told apart by the first twelve colours that are free; later ones are one of the others. */
export class Colours {
  constructor() {
    this.taken = new Map();
  }
  of(number) {
    return this.taken.get(number) ?? -1;
  }
  take(number) {
    if (this.taken.has(number)) return;
    const used = new Set(this.taken.values());
    for (let colour = 0; colour < COLOURS; colour++) {
      if (!used.has(colour)) {
        this.taken.set(number, colour);
        return;
      }
    }
  }
  free(number) {
    this.taken.delete(number);
  }
}

export const colour = (index) => (index < 0 ? "var(--others)" : `var(--c${index})`);

export class Chart {
  constructor() {
    this.canvas = byId("chart");
    this.tip = byId("tip");
    this.legend = byId("legend");
    this.items = new Map();
    this.at = null; // the sample that is read out, counted from the latest
    this.pool = null;
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.read(null));
    this.canvas.addEventListener("blur", () => this.read(null));
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
      if (step) {
        event.preventDefault();
        const at = this.at === null ? (step > 0 ? 0 : null) : this.at + step;
        this.read(at === null ? null : Math.min(this.samples - 1, Math.max(0, at)));
      } else if (event.key === "Escape") {
        this.read(null);
      }
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(pool, samples, interval) {
    this.pool = pool;
    this.samples = samples;
    this.interval = interval;
    this.draw();
    this.name();
  }

  /** The bands from the bottom up: those with a colour, the others together, what the balancer refused. */
  bands() {
    const coloured = [];
    let others = null;
    let many = 0;
    for (const series of this.pool.series.values()) {
      const index = this.pool.colours.of(series.number);
      if (index >= 0) {
        coloured.push({ index, series, label: series.label, rates: series.rates });
      } else {
        others ??= new Float64Array(this.samples);
        many++;
        series.rates.forEach((rate, i) => (others[this.samples - series.rates.length + i] += rate));
      }
    }
    coloured.sort((a, b) => a.series.number - b.series.number);
    const bands = coloured.map((it) => ({ ...it, colour: cssVariable(`--c${it.index}`), css: colour(it.index) }));
    if (others) bands.push({ label: `${many} others`, rates: Array.from(others), colour: cssVariable("--others"), css: "var(--others)" });
    if (this.pool.refused.some((rate) => rate > 0)) {
      bands.push({ label: "refused by the balancer", rates: this.pool.refused, colour: cssVariable("--refused"), css: "var(--refused)" });
    }
    return bands;
  }

  draw() {
    const { canvas, pool } = this;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!pool || !width) return;
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const g = canvas.getContext("2d");
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, width, height);
    const n = this.samples;
    const bands = this.bands();
    const tops = bands.map(() => new Float64Array(n));
    const sum = new Float64Array(n);
    bands.forEach((band, b) => {
      const from = n - band.rates.length;
      for (let i = 0; i < n; i++) {
        if (i >= from) sum[i] += band.rates[i - from];
        tops[b][i] = sum[i];
      }
    });
    const [most, step] = nice(Math.max(4, ...sum) * 1.05);
    const right = width - 2;
    const bottom = height - BOTTOM;
    const x = (i) => LEFT + ((right - LEFT) * i) / (n - 1);
    const y = (value) => bottom - ((bottom - LANE - 4) * value) / most;
    this.x = x;

    g.font = `11px system-ui, sans-serif`;
    g.lineWidth = 1;
    g.textBaseline = "middle";
    g.textAlign = "right";
    const line = cssVariable("--line");
    const muted = cssVariable("--muted");
    for (let value = 0; value <= most + step / 2; value += step) {
      const at = Math.round(y(value)) + 0.5;
      g.strokeStyle = line;
      g.beginPath();
      g.moveTo(LEFT, at);
      g.lineTo(right, at);
      g.stroke();
      g.fillStyle = muted;
      g.fillText(count(value), LEFT - 6, at);
    }
    g.textBaseline = "alphabetic";
    for (let ago = 0; ago < n; ago += 30 / this.interval) {
      g.textAlign = ago ? "center" : "right";
      g.fillText(ago ? `−${Math.round(ago * this.interval)} s` : "now", x(n - 1 - ago), height - 5);
    }

    for (let b = bands.length - 1; b >= 0; b--) {
      g.fillStyle = bands[b].colour;
      g.beginPath();
      for (let i = 0; i < n; i++) g.lineTo(x(i), y(tops[b][i]));
      for (let i = n - 1; i >= 0; i--) g.lineTo(x(i), b ? y(tops[b - 1][i]) : bottom);
      g.closePath();
      g.fill();
    }
    // A thin gap between bands tells them apart without colour, too; it must not hide those that are thin themselves.
    g.strokeStyle = cssVariable("--card");
    g.lineWidth = 1;
    for (let b = 0; b < bands.length - 1; b++) {
      const thin = (it) => y(0) - y(Math.max(...it.rates)) < 5;
      if (thin(bands[b]) || thin(bands[b + 1])) continue;
      g.beginPath();
      for (let i = 0; i < n; i++) g.lineTo(x(i), y(tops[b][i]));
      g.stroke();
    }

    g.textAlign = "center";
    g.textBaseline = "middle";
    for (const [i, marks] of this.marks()) {
      const [sign, name] = MARKS[marks[0].mark];
      g.fillStyle = cssVariable(name);
      g.fillText(sign, x(i), LANE / 2);
      g.globalAlpha = 0.35;
      g.fillRect(x(i) - 0.5, LANE, 1, bottom - LANE);
      g.globalAlpha = 1;
    }
    if (this.at !== null) {
      g.strokeStyle = cssVariable("--text");
      g.beginPath();
      g.moveTo(x(n - 1 - this.at), LANE);
      g.lineTo(x(n - 1 - this.at), bottom);
      g.stroke();
    }
    this.list(bands);
    this.say(bands);
  }

  /** What happened, by the sample that it belongs to; the worst first. */
  marks() {
    const found = new Map();
    const order = ["bad", "drained", "left", "joined", "good"];
    for (const event of this.pool.marks) {
      const ago = Math.round((this.pool.sampled - event.date.getTime()) / 1000 / this.interval);
      if (ago < 0 || ago >= this.samples) continue;
      const i = this.samples - 1 - ago;
      if (!found.has(i)) found.set(i, []);
      found.get(i).push(event);
    }
    for (const marks of found.values()) marks.sort((a, b) => order.indexOf(a.mark) - order.indexOf(b.mark));
    return found;
  }

  list(bands) {
    const wanted = bands.map((it) => it.label).join("\n");
    if (this.listed !== wanted) {
      this.listed = wanted;
      this.legend.replaceChildren(
        ...bands.map((band) => {
          const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
          swatch.style.background = band.css;
          return make("li", {}, swatch, make("span", {}, band.label), make("b"));
        }),
      );
    }
    bands.forEach((band, i) => {
      const item = this.legend.children[i];
      put(item.lastChild, count(band.rates.at(-1) ?? 0));
      item.classList.toggle("gone", Boolean(band.series?.gone));
    });
  }

  point(offset) {
    if (!this.pool) return;
    const step = (this.canvas.clientWidth - 2 - LEFT) / (this.samples - 1);
    const i = Math.round((offset - LEFT) / step);
    this.read(Math.min(this.samples - 1, Math.max(0, this.samples - 1 - i)));
  }

  read(at) {
    this.at = at;
    this.draw();
  }

  say(bands) {
    this.tip.hidden = this.at === null;
    if (this.at === null) return;
    const i = this.samples - 1 - this.at;
    const lines = [timeOfDay(new Date(this.pool.sampled - this.at * this.interval * 1000))];
    for (const event of this.marks().get(i) ?? []) lines.push(event.text);
    const values = bands
      .map((band) => [band.rates[i - (this.samples - band.rates.length)] ?? 0, band])
      .filter(([rate]) => rate > 0);
    for (const [rate, band] of values.slice(-14).reverse()) lines.push([`${count(rate)}/s  ${band.label}`, band]);
    if (!values.length) lines.push("no requests");
    this.tip.replaceChildren(
      ...lines.map((line) => {
        if (typeof line === "string") return make("p", {}, line);
        const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
        swatch.style.background = line[1].css;
        return make("p", {}, swatch, ` ${line[0]}`);
      }),
    );
    const at = this.x(i);
    const left = at > this.canvas.clientWidth / 2;
    this.tip.style.left = left ? "auto" : `${at + 10}px`;
    this.tip.style.right = left ? `${this.canvas.clientWidth - at + 10}px` : "auto";
  }

  name() {
    const { rate } = this.pool.summary;
    const now = Math.floor(Date.now() / 10000); // not every second: it may be read aloud
    if (this.named === now) return;
    this.named = now;
    this.canvas.setAttribute("aria-label", `Requests a second by container, the last 2 minutes; now ${count(rate)} in all`);
  }
}

/** A round number above ``most``, and a round step that divides it. */
function nice(most) {
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((it) => it * power >= raw) * power;
  return [Math.ceil(most / step) * step, step];
}
