// Live load, from /metrics: rates and levels as small charts; spend, refusals and reductions as tables.

import { send } from "./api.js";
import { $, h, number, svg, table } from "./dom.js";

const EVERY_MS = 2000;
const NUM_POINTS = 60;

/** Samples of Prometheus' text format. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    samples.push({ name: match[1], labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return samples;
}

const sum = (samples, name, wanted = {}) => samples
  .filter((one) => one.name === name && Object.entries(wanted).every(([label, value]) => one.labels[label] === value))
  .reduce((total, one) => total + one.value, 0);

/** Totals by a label; samples without it are left out. */
function by(samples, name, label) {
  const totals = new Map();
  for (const one of samples) {
    if (one.name === name && one.labels[label] !== undefined) totals.set(one.labels[label], (totals.get(one.labels[label]) ?? 0) + one.value);
  }
  return totals;
}

/** The time within which a share of the requests between two scrapes was answered, ms; the bound of its bucket. */
function quantile(now, before, share) {
  const name = "vireo_request_seconds_bucket";
  const old = by(before, name, "le");
  const counts = [...by(now, name, "le")].map(([le, count]) => [le === "+Inf" ? Infinity : Number(le), count - (old.get(le) ?? 0)]).sort((a, b) => a[0] - b[0]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return NaN;
  const at = counts.findIndex(([, count]) => count >= share * total);
  const [low, below] = at ? counts[at - 1] : [0, 0];
  const [high, upTo] = counts[at];
  return 1000 * (high === Infinity ? low : low + (high - low) * (share * total - below) / (upTo - below));
}

const rate = (name) => (now, before, seconds) => Math.max(0, sum(now, name) - sum(before, name)) / seconds;
const has = (samples, name) => samples.some((one) => one.name === name);

const CHARTS = [
  { title: "In flight", unit: "", of: (now) => sum(now, "vireo_in_flight_requests") },
  { title: "Requests", unit: "/s", of: rate("vireo_requests_total") },
  { title: "Answer time, 95 %", unit: "ms", of: (now, before) => quantile(now, before, 0.95) },
  { title: "Power attributed", unit: "W", of: rate("vireo_energy_joules_total") },
  {
    title: "Waiting", unit: "", of: (now) => sum(now, "vireo_video_jobs", { state: "queued" }) + sum(now, "vireo_chat_engine_requests", { state: "waiting" }),
    note: "jobs and chats that no replica has started",
  },
  { title: "Turned away", unit: "/s", of: rate("vireo_rejections_total") },
  {
    title: "Chat cache used", unit: "%", shown: (now) => has(now, "vireo_chat_kv_blocks"),
    of: (now) => 100 * sum(now, "vireo_chat_kv_blocks", { kind: "used" }) / Math.max(1, sum(now, "vireo_chat_kv_blocks", { kind: "total" })),
  },
];

class Chart {
  constructor({ title, unit, note, of, shown = () => true }) {
    Object.assign(this, { title, unit, of, shown, points: [] });
    this.value = h("strong", {}, "–");
    this.line = svg("path", { class: "line" });
    this.area = svg("path", { class: "area" });
    this.picture = svg("svg", { viewBox: `0 0 ${NUM_POINTS - 1} 24`, preserveAspectRatio: "none", role: "img", "aria-label": title }, this.area, this.line);
    this.element = h("figure", { class: "chart", title: note }, h("figcaption", {}, title), this.value, this.picture);
  }

  push(now, before, seconds) {
    this.element.hidden = !this.shown(now);
    const value = this.of(now, before, seconds);
    this.points = [...this.points, value].slice(-NUM_POINTS);
    this.value.textContent = number(value, this.unit);
    const known = this.points.filter((point) => !Number.isNaN(point));
    const top = Math.max(...known, 1e-9);
    const from = NUM_POINTS - this.points.length;
    let path = "";
    this.points.forEach((point, i) => {
      if (!Number.isNaN(point)) path += `${path ? "L" : "M"}${from + i} ${(23 - 21 * point / top).toFixed(2)}`;
    });
    const first = from + this.points.findIndex((point) => !Number.isNaN(point));
    const last = from + this.points.findLastIndex((point) => !Number.isNaN(point));
    this.line.setAttribute("d", path || "M0 23");
    this.area.setAttribute("d", path ? `${path}L${last} 24L${first} 24Z` : "M0 24");
    this.picture.setAttribute("aria-label", `${this.title}: ${number(value, this.unit)} now, at most ${number(Math.max(0, ...known), this.unit)} in the last two minutes`);
  }
}

/** Spend and what budgets did to requests, where a scrape tells. */
function tables(now) {
  const perModel = by(now, "vireo_energy_joules_total", "model");
  const asked = by(now, "vireo_requests_total", "model");
  const perTenant = by(now, "vireo_energy_joules_total", "tenant");
  const decoded = by(now, "vireo_decode_seconds_total", "tenant");
  const refused = by(now, "vireo_rejections_total", "reason");
  const reduced = by(now, "vireo_degraded_total", "reason");
  const names = [...new Set([...asked.keys(), ...perModel.keys()])].sort();
  const tenants = [...new Set([...perTenant.keys(), ...decoded.keys()])].sort();
  const budgets = [...[...refused].map(([reason, count]) => [h("code", {}, reason), "turned away", number(count)]),
    ...[...reduced].map(([reason, count]) => [h("code", {}, reason), "reduced", number(count)])];
  return [
    names.length > 0 && table("Spend by model", ["Model", "Requests", "Spent"], names.map((name) => [name, number(asked.get(name) ?? 0), number(perModel.get(name) ?? 0, "J")])),
    tenants.length > 0 && table("Spend by tenant", ["Tenant", "Decoding", "Spent"], tenants.map((name) => [name, number(decoded.get(name) ?? 0, "s"), number(perTenant.get(name) ?? 0, "J")])),
    budgets.length > 0 && table("Effects of budgets and limits", ["Reason", "Effect", "Times"], budgets),
  ].filter(Boolean);
}

/** Start looking. Returns what looks at once, for a key that has changed. */
export function watchLoad() {
  const charts = CHARTS.map((one) => new Chart(one));
  const own = { answers: 0, joules: 0, ms: 0 };
  const ownSpend = h("p", { class: "muted" });
  const rest = h("div");
  let before = null, timer = 0, paused = false, shown = "";
  $("charts").append(...charts.map((chart) => chart.element));
  $("spend").append(ownSpend, rest);
  $("charts").hidden = true;

  const tellOwn = () => { ownSpend.textContent = `This page has spent ${number(own.joules, "J")} and ${number(own.ms / 1000, "s")} of compute time on ${number(own.answers)} ${own.answers === 1 ? "answer" : "answers"}.`; };
  document.addEventListener("vireo:spent", ({ detail }) => {
    own.answers += 1;
    own.joules += detail.energy_j ?? 0;
    own.ms += detail.compute_ms ?? 0;
    tellOwn();
  });
  tellOwn();

  async function look() {
    clearTimeout(timer);
    let wait = EVERY_MS;
    if (!paused && !document.hidden) {
      try {
        const samples = parse(await (await send("metrics", { asks: false })).text());
        const at = performance.now();
        if (before) charts.forEach((chart) => chart.push(samples, before.samples, (at - before.at) / 1000));
        before = { samples, at };
        $("charts").hidden = false;
        $("load-note").textContent = "";
        const text = JSON.stringify(samples.filter(({ name }) => /requests_total|energy|decode_sec|rejections|degraded/.test(name)));
        if (text !== shown) rest.replaceChildren(...tables(samples));
        shown = text;
      } catch (error) {
        wait = error.status === 401 || error.status === 404 ? Infinity : 5 * EVERY_MS; // another key looks at once
        const why = { 401: "A valid API key is needed to see the load.", 403: "This key may not see the load.", 404: "This port does not serve metrics (http.metrics is off); `vireo metrics` does, on each node." };
        $("load-note").textContent = why[error.status] ?? error.message;
        if (error.status) $("charts").hidden = true;
      }
    }
    if (wait !== Infinity) timer = setTimeout(look, wait);
  }

  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
  return look;
}
