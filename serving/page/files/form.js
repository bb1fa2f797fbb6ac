// What the tasks' forms have in common: pictures, the budget, the settings of a model, and what comes back.

import { h, newId, number } from "./dom.js";

/** A labelled control. */
export function field(label, control, note) {
  control.id ||= newId("field");
  const hint = note && h("small", { id: newId("note") }, note);
  if (hint) control.setAttribute("aria-describedby", hint.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint);
}

export const select = (values, chosen) =>
  h("select", {}, values.map((one) => {
    const [value, text] = Array.isArray(one) ? one : [one, one];
    return h("option", { value, selected: value === chosen }, text);
  }));

export const numeric = (props = {}) => h("input", { type: "number", inputMode: "decimal", step: "any", ...props });

/** The number in a field; undefined where there is none. */
export const read = (control) => (control.value === "" ? undefined : Number(control.value));

export const defined = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== ""));

// -- budget and settings ---------------------------------------------------------------------------------------------

/** Fields of a budget and of the settings of a model. `value()`: the `vireo` of a request, undefined if all is left open. */
export function budgetAndSettings(model) {
  const budget = {
    latency_ms: numeric({ min: 0, placeholder: "no limit" }),
    energy_j: numeric({ min: 0, placeholder: "no limit" }),
    quality_floor: numeric({ min: 0, max: 1, placeholder: "no limit" }),
    priority: select([["", "normal"], "low", "high"]),
  };
  const settings = model.vireo.settings.filter((setting) => setting.scope === "request").map(settingField);
  const element = h("div", { class: "options" },
    h("details", {}, h("summary", {}, "Budget"), h("div", { class: "fields" },
      field("Latency, ms", budget.latency_ms), field("Energy, J", budget.energy_j),
      field("Quality floor, 0 to 1", budget.quality_floor), field("Priority", budget.priority))),
    settings.length > 0 && h("details", {}, h("summary", {}, "Settings of the model"),
      h("p", { class: "muted" }, "The operating point chooses whatever you leave empty, within the budget."),
      h("div", { class: "fields" }, settings.map((one) => one.element))));
  const value = () => {
    const { priority, ...limits } = budget;
    const chosen = defined(Object.fromEntries(settings.map((one) => [one.name, one.value()])));
    const made = defined({
      ...Object.fromEntries(Object.entries(limits).map(([name, control]) => [name, read(control)])),
      priority: priority.value,
      settings: Object.keys(chosen).length ? chosen : undefined,
    });
    return Object.keys(made).length ? made : undefined;
  };
  return { element, value };
}

function settingField({ name, schema, default: usual }) {
  const note = schema.description;
  if (schema.enum) {
    const control = select([["", "not set"], ...schema.enum.map((value, i) => [String(i), String(value)])]);
    return { name, element: field(name, control, note), value: () => schema.enum[control.value] };
  }
  if (schema.type === "string") {
    const list = h("datalist", { id: newId("list") }, schema.examples?.map((value) => h("option", { value })));
    const control = h("input", { autocomplete: "off", placeholder: "not set" });
    control.setAttribute("list", list.id);
    return { name, element: h("div", {}, field(name, control, note), list), value: () => control.value || undefined };
  }
  const { minimum: min, maximum: max } = schema;
  const control = numeric({ min, max, step: schema.type === "integer" ? 1 : "any", placeholder: "not set" });
  const made = field(name, control, note);
  const slider = h("input", {
    type: "range", min, max, step: schema.type === "integer" ? 1 : (max - min) / 100, value: usual,
    "aria-label": `${name}, slider`, class: "open", oninput: () => { control.value = slider.value; slider.className = ""; },
  });
  control.addEventListener("input", () => {
    slider.value = control.value === "" ? usual : control.value;
    slider.className = control.value === "" ? "open" : "";
  });
  control.after(slider);
  return { name, element: made, value: () => read(control) };
}

// -- pictures --------------------------------------------------------------------------------------------------------

/** Pictures that are chosen, dropped or pasted. `files`: those that are there. */
export class Pictures {
  constructor({ label, many = false, sample }) {
    this.files = [];
    this.many = many;
    this.changed = () => {};
    const input = h("input", {
      type: "file", accept: "image/jpeg,image/png,image/webp", multiple: many, class: "hidden-input", id: newId("file"),
      onchange: () => { this.add(input.files); input.value = ""; },
    });
    this.list = h("ul", { class: "thumbs", "aria-label": "Chosen pictures" });
    const trySample = sample && h("button", { type: "button", class: "quiet", onclick: () => this.addSample(sample) }, "Use a sample");
    this.element = h("div", { class: "pictures" }, input,
      h("label", { for: input.id, class: "drop" }, h("strong", {}, label), " Choose, drop or paste; JPEG, PNG or WebP."),
      h("div", { class: "row" }, this.list, trySample));
  }

  /** Take what is dropped on or pasted into a form. */
  listen(form) {
    const over = (on) => (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      form.classList.toggle("over", on);
    };
    form.addEventListener("dragover", over(true));
    form.addEventListener("dragleave", over(false));
    form.addEventListener("drop", (event) => {
      over(false)(event);
      this.add(event.dataTransfer.files);
    });
    form.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
    return form;
  }

  async addSample(name) {
    const blob = await (await fetch(`page/${name}`)).blob();
    this.add([new File([blob], name, { type: blob.type })]);
  }

  add(files) {
    const taken = [...files].map((file) => ({ file, url: URL.createObjectURL(file) }));
    if (taken.length) this.set(this.many ? [...this.files, ...taken] : taken.slice(-1));
  }

  set(files) {
    this.files = files;
    this.list.replaceChildren(...files.map((one, i) => h("li", {},
      h("img", { src: one.url, alt: one.file.name }),
      h("button", {
        type: "button", class: "quiet", "aria-label": `Remove ${one.file.name}`,
        onclick: () => this.set(files.filter((_, j) => j !== i)),
      }, "×"))));
    this.changed();
  }

  /** Hand over what is there, and be empty. */
  take() {
    const { files } = this;
    this.set([]);
    return files;
  }
}

export const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

// -- what comes back -------------------------------------------------------------------------------------------------

/** What a point below the best gave up, and why. */
function lowered(made) {
  if (!made) return [];
  const quality = made.quality_before == null ? [] : [["Quality", `${number(made.quality_before)} to ${number(made.quality_after)}`]];
  return [
    ["Best point", made.from_point], ...quality,
    ["Predicted", `${number(made.energy_j_before, "J")} to ${number(made.energy_j_after, "J")}`],
    ["Because of", made.reasons.join(" and ")],
  ];
}

/** What the guard did, where it looked, and why. */
function guarded(guard) {
  if (guard.action === undefined) return [];
  const why = guard.reasons.length ? `: ${guard.reasons.join(", ")}` : "";
  return [["Guard", `${guard.action} (score ${number(guard.score)})${why}`]];
}

/** The `vireo` block of an answer. */
export function report(block, more = []) {
  const point = block.operating_point.split(",").map((part) => h("code", {}, part));
  const rows = [
    ["Operating point", point.flatMap((part) => [part, " "])],
    ["Energy", `${number(block.energy_j, "J")} (${block.energy_source})`],
    ["Waited", number(block.queue_ms, "ms")],
    ["Computed", number(block.compute_ms, "ms")],
    ["Cache", block.cache],
    ["Reduced", block.degraded.length ? block.degraded.join(", ") : "nothing"],
    ...lowered(block.degradation),
    ...guarded(block.guard),
    ...more,
  ];
  document.dispatchEvent(new CustomEvent("vireo:spent", { detail: block }));
  return h("dl", { class: "report", "aria-label": "Report" },
    rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** An error as the server put it: message, code, request id. */
export function failure(error) {
  const facts = [["code", error.code], ["field", error.param], ["HTTP", error.status || ""], ["request", error.requestId], ["retry after", error.retryAfter && `${error.retryAfter} s`]];
  return h("div", { class: "error", role: "alert" }, h("p", {}, error.message || String(error)),
    h("p", { class: "muted" }, facts.filter(([, value]) => value).map(([name, value]) => h("span", {}, `${name} `, h("code", {}, String(value)), " "))));
}

/** Run what a form asks for, one at a time: its button becomes a way to stop. Errors go where `place` says. */
export function submitting(form, button, place, run) {
  const label = button.textContent;
  let current = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (current) {
      current.abort();
      return;
    }
    const mine = current = new AbortController();
    button.textContent = "Stop";
    form.setAttribute("aria-busy", "true");
    let failed = null;
    try {
      await run(mine.signal);
    } catch (error) {
      failed = error;
      if (error.name !== "AbortError") place().append(failure(error));
    } finally {
      current = null;
      button.textContent = label;
      form.setAttribute("aria-busy", "false");
      document.dispatchEvent(new CustomEvent("vireo:over", { detail: failed }));
    }
  });
}
