// Elements and texts. What comes from outside only ever becomes text: no markup is parsed anywhere on this page.

export const $ = (id) => document.getElementById(id);

/** Make an element. Properties are set as such, `on...` are listeners, and names with a dash or `role` are attributes. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

let lastId = 0;
export const newId = (what) => `${what}-${++lastId}`;

/** A number as people read it: three digits that matter, thousands apart. */
export function number(value, unit = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  const text = size > 0 && size < 0.001 ? (value > 0 ? "< 0.001" : "> -0.001") : value.toLocaleString("en", { maximumFractionDigits: digits });
  return unit ? `${text} ${unit}` : text;
}

/** A table with a caption for those who cannot see what is around it. */
export function table(caption, heads, rows) {
  const cell = (tag, content, more) => h(tag, more, content);
  return h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("thead", {}, h("tr", {}, heads.map((head) => cell("th", head, { scope: "col" })))),
      h("tbody", {}, rows.map((row) =>
        h("tr", {}, row.map((value, i) => cell(i ? "td" : "th", value, i ? {} : { scope: "row" }))))),
    ));
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
