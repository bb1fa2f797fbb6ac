// Pictures from words, or pictures made better: what a model's card says it takes.

import { check, fresh, post } from "./api.js";
import { h } from "./dom.js";
import { Pictures, budgetAndSettings, dataUrl, defined, field, numeric, read, report, select, submitting } from "./form.js";
import { fileUrl, saveLink, shown } from "./jobs.js";

export function imagesPanel(model) {
  const { io } = model.vireo;
  const edits = io.inputs.includes("image");
  const pictures = edits && new Pictures({ label: "Picture.", sample: "shapes.png" });
  const prompt = io.inputs.includes("text") && h("textarea", { rows: 2, required: !edits, placeholder: io.example ?? "" });
  const negative = io.takes_negative_prompt && h("input", { autocomplete: "off" });
  const size = !edits && (io.max_side
    ? h("input", { placeholder: io.sizes?.[0] ?? "WIDTHxHEIGHT", autocomplete: "off" })
    : select([["", "not set"], ...(io.sizes ?? [])]));
  const seed = io.is_seeded && numeric({ min: 0, step: 1, placeholder: "random" });
  const count = io.is_seeded && numeric({ min: 1, max: 10, step: 1, value: 1 });
  const format = select(["png", "jpeg", "webp"]);
  const options = budgetAndSettings(model);
  const button = h("button", {}, edits ? "Edit" : "Generate");
  const output = h("div", { class: "output", "aria-live": "polite", tabIndex: 0, role: "region", "aria-label": "Pictures" });
  const form = h("form", { class: "ask" }, prompt && field("Prompt", prompt),
    negative && field("What it should not show", negative), pictures && pictures.element,
    h("div", { class: "fields" }, size && field("Size", size), seed && field("Seed", seed), count && field("Pictures", count), field("Format", format)),
    options.element, h("div", { class: "row" }, button));
  if (pictures) pictures.listen(form);

  const made = async (response, signal) => {
    const answer = check(await response.json(), response);
    if (response.status !== 202) {
      const urls = answer.data.map(({ b64_json: data }) => `data:image/${answer.output_format};base64,${data}`);
      return { urls, vireo: answer.vireo, seeds: answer.data.map((one) => one.seed) };
    }
    const path = `v1/images/jobs/${encodeURIComponent(answer.id)}`;
    const job = await shown(path, output, signal);
    const names = Array.from({ length: job.n }, (_, i) => (i ? `?variant=image-${i + 1}` : ""));
    const files = await Promise.all(names.map((name) => fileUrl(`${path}/content${name}`, signal)));
    return { urls: files.map((file) => file.url), vireo: job.vireo, seeds: job.seeds };
  };

  submitting(form, button, () => output, async (signal) => {
    const before = pictures && pictures.files[0];
    output.replaceChildren();
    const body = defined({
      model: model.id, prompt: prompt ? prompt.value : "",
      negative_prompt: negative ? negative.value : "", image: before && await dataUrl(before.file),
      size: size ? size.value : "", seed: seed ? read(seed) : undefined, n: count ? read(count) : undefined,
      output_format: format.value,
      vireo: model.vireo.shape === "job" ? { ...options.value(), background: true } : options.value(),
    });
    const response = await post(edits ? "v1/images/edits" : "v1/images/generations", body, { signal, headers: { "idempotency-key": fresh() } });
    const { urls, vireo, seeds } = await made(response, signal);
    const figure = (url, caption, ...more) => h("figure", {}, h("img", { src: url, alt: caption }), h("figcaption", {}, caption, " ", more));
    output.replaceChildren(
      h("div", { class: "gallery" }, before && figure(before.url, "Before"),
        urls.map((url, i) => figure(url, edits ? "After" : prompt.value, saveLink(url, `picture-${i + 1}.${format.value}`)))),
      report(vireo, [...(seed ? [["Seeds", seeds.join(", ")]] : []), ["Request", h("code", {}, response.headers.get("x-request-id") ?? "")]]));
  });
  return h("div", { class: "task" }, form, output);
}
