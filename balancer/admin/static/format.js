// Numbers and times as people read them, and the few DOM helpers that the other files share.

export const byId = (id) => document.getElementById(id);

/** Sets text only where it differs, so that nothing is laid out anew for nothing. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** "8 s", "3 min", "2 h 5 min", "4 d". */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d`;
}

/** A number with so many digits behind the point, never rounded up. */
const floored = (n, digits) => (Math.floor(n * 10 ** digits + 1e-6) / 10 ** digits).toFixed(digits);

/** Milliseconds, to 1 % and never more than they are: "0.42 ms", "12.5 ms", "1.31 s". */
export function latency(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 1000) return `${floored(ms / 1000, ms >= 10000 ? 1 : 2)} s`;
  return `${floored(ms, ms >= 100 ? 0 : ms >= 10 ? 1 : ms >= 1 ? 2 : 3)} ms`;
}

export function count(n) {
  if (n >= 1e6) return `${(n / 1e6).toFixed(n >= 1e7 ? 0 : 1)} M`;
  if (n >= 1e4) return `${(n / 1e3).toFixed(n >= 1e5 ? 0 : 1)} k`;
  return n >= 100 || Number.isInteger(n) ? String(Math.round(n)) : n.toFixed(1);
}

export const counted = (n, word, plural = `${word}s`) => `${count(n)} ${n === 1 ? word : plural}`;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
export const timeOfDay = (date) => clock.format(date);
