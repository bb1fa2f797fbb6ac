// Clips: made as jobs, watched while they are made, played when they are done.

import { fresh, post } from "./api.js";
import { calm, h, number } from "./dom.js";
import { budgetAndSettings, defined, field, numeric, read, report, select, submitting } from "./form.js";
import { fileUrl, saveLink, shown } from "./jobs.js";

export function videosPanel(model) {
  const { io } = model.vireo;
  const open = (values = []) => select([["", "not set"], ...values.map((value) => [String(value), String(value)])]);
  const prompt = h("textarea", { rows: 2, required: true, placeholder: "a red circle moves to the right" });
  const negative = h("input", { autocomplete: "off" });
  const size = open(io.sizes), frames = open(io.num_frames);
  const fps = numeric({ min: 1, step: 1, placeholder: io.fps ?? "not set" });
  const seed = numeric({ min: 0, step: 1, placeholder: "random" });
  const format = select(["mp4", "gif"]);
  const options = budgetAndSettings(model);
  const button = h("button", {}, "Make the clip");
  const output = h("div", { class: "output", tabIndex: 0, role: "region", "aria-label": "Clip" });
  const form = h("form", { class: "ask" }, field("Prompt", prompt), field("What it should not show", negative),
    h("div", { class: "fields" }, field("Size", size), field("Frames", frames), field("Frames per second", fps),
      field("Seed", seed), field("Format", format)),
    options.element, h("div", { class: "row" }, button));

  submitting(form, button, () => output, async (signal) => {
    const body = defined({
      model: model.id, prompt: prompt.value, negative_prompt: negative.value, size: size.value,
      num_frames: read(frames), fps: read(fps), seed: read(seed), output_format: format.value, vireo: options.value(),
    });
    const response = await post("v1/videos", body, { signal, headers: { "idempotency-key": fresh() } });
    const { id } = await response.json();
    const path = `v1/videos/${encodeURIComponent(id)}`;
    const job = await shown(path, output, signal);
    const { url, type } = await fileUrl(`${path}/content`, signal);
    const clip = type.startsWith("video/")
      ? h("video", { src: url, controls: true, loop: true, muted: true, playsInline: true, autoplay: !calm(), "aria-label": job.prompt })
      : h("img", { src: url, alt: job.prompt });
    const { seed: drawn, num_frames: made } = job.vireo.settings;
    output.replaceChildren(
      h("figure", { class: "clip" }, clip, h("figcaption", {}, job.prompt)),
      saveLink(url, type.startsWith("video/") ? `${id}.mp4` : `${id}.gif`),
      report(job.vireo, [["Seed", String(drawn)], ["Frames", number(made)], ["Attempts", number(job.vireo.attempts)],
        ["Job", h("code", {}, id)], ["Request", h("code", {}, response.headers.get("x-request-id") ?? "")]]));
  });
  return h("div", { class: "task" }, form, output);
}
