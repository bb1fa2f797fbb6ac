// The caller's budget, from /v1/budget: what is left, how fast it comes back, what is set aside, what was spent.

import { getJson } from "./api.js";
import { $, h, number } from "./dom.js";

const AGAIN_MS = 2000;
const KINDS = [
  { name: "joules", title: "Energy", unit: "J" },
  { name: "seconds", title: "Compute time", unit: "s" },
];
const ROWS = [
  ["Left", ({ level, burst }, unit, title) => [
    number(level, unit), h("meter", { min: 0, max: burst, value: Math.max(0, level), "aria-label": `${title} left` }),
  ]],
  ["At most", ({ burst }, unit) => number(burst, unit)],
  ["Comes back", ({ per_s: perS }, unit) => number(perS, `${unit}/s`)],
  ["Full in", ({ full_in_s: fullInS }) => (fullInS === null ? "never" : number(fullInS, "s"))],
  ["Set aside", ({ reserved }, unit) => number(reserved, unit)],
  ["Spent", ({ spent }, unit) => number(spent, unit)],
];

const limitsOf = (budget) => KINDS.filter(({ name }) => budget[name] !== null);

function tableOf(budget) {
  const kinds = limitsOf(budget);
  return h("table", { "aria-labelledby": "budget-title" },
    h("thead", {}, h("tr", {}, [budget.tenant, ...kinds.map(({ title }) => title)].map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, ROWS.map(([title, of]) => h("tr", {}, h("th", { scope: "row" }, title),
      kinds.map((kind) => h("td", {}, of(budget[kind.name], kind.unit, kind.title)))))));
}

/** What a caller has to know who wants to go on. */
function noteOf(budget) {
  const limits = limitsOf(budget).map(({ name }) => budget[name]);
  if (!limits.length) return `No limit: the tenant ${budget.tenant} has no quota.`;
  const waits = limits.filter(({ level }) => level <= 0).map(({ level, per_s: perS }) => (perS > 0 ? -level / perS : Infinity));
  if (!waits.length) return "";
  const wait = Math.max(...waits);
  if (wait === Infinity) return "Used up, and nothing comes back.";
  return `Used up: requests are refused until something is left${wait > 0 ? `, in about ${number(wait, "s")}` : ""}.`;
}

/** Why the account refused the last request; empty if it did not. `until`: when the same request fits. */
function refusalOf({ code, retryAfter }) {
  if (code === "quota_too_small") return { text: () => "The last request takes more than this budget ever holds.", until: Infinity };
  if (!["quota_exceeded", "spend_cap_reached"].includes(code)) return null;
  const until = performance.now() + 1000 * Number(retryAfter);
  return { text: () => `The last request was refused: it fits in about ${number((until - performance.now()) / 1000, "s")}.`, until };
}

const changes = (budget) => budget.open > 0 || limitsOf(budget).some(({ name }) => budget[name].level < budget[name].burst && budget[name].per_s > 0);

/** Start showing it. Returns what looks at once, for a key that has changed. */
export function watchBudget() {
  let timer = 0, turn = 0, refusal = null;

  function show(budget) {
    if (refusal && performance.now() >= refusal.until) refusal = null;
    $("budget-table").replaceChildren(...(limitsOf(budget).length ? [tableOf(budget)] : []));
    tell(refusal ? refusal.text() : noteOf(budget));
  }

  function tell(text) {
    if ($("budget-note").textContent !== text) $("budget-note").textContent = text; // a reader says it again otherwise
  }

  async function look() {
    clearTimeout(timer);
    const mine = ++turn;
    if (document.hidden) return;
    let budget = null, failed = null;
    try {
      budget = await getJson("v1/budget", { asks: false });
    } catch (error) {
      failed = error;
    }
    if (mine !== turn) return; // somebody has looked since, perhaps with another key
    if (budget) show(budget);
    else {
      $("budget-table").replaceChildren();
      tell(failed.message);
    }
    $("budget").hidden = failed?.status === 401;
    if (budget ? changes(budget) : failed.status !== 401) timer = setTimeout(look, AGAIN_MS);
  }

  document.addEventListener("vireo:over", ({ detail }) => {
    refusal = detail && refusalOf(detail);
    look();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
  return () => {
    refusal = null;
    return look();
  };
}
