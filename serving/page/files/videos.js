// Clips: made as jobs, watched while they are made, played when they are done.

import { fresh, post } from "./api.js";
import { calm, h, number } from "./dom.js";
import { Pictures, budgetAndSettings, dataUrl, defined, field, numeric, read, report, select, submitting } from "./form.js";
import { fileUrl, saveLink, shown } from "./jobs.js";

export function videosPanel(model) {
  const { io } = model.vireo;
  const open = (values = []) => select([["", "not set"], ...values.map((value) => [String(value), String(value)])]);
  const takesText = io.inputs.includes("text");
  const label = io.optional_inputs?.includes("image") ? "First frame, if any." : "First frame.";
  const pictures = io.inputs.includes("image") && new Pictures({ label, sample: "shapes.png" });
  const prompt = takesText && h("textarea", { rows: 2, required: true, placeholder: io.example ?? "" });
  const negative = takesText && h("input", { autocomplete: "off" });
  const size = io.max_side ? h("input", { placeholder: io.sizes[0], autocomplete: "off" }) : open(io.sizes);
  const frames = io.max_frames
    ? numeric({ min: 1, max: io.max_frames, step: 1, placeholder: io.num_frames[0] })
    : open(io.num_frames);
  const fps = numeric({ min: 1, step: 1, placeholder: io.fps ?? "not set" });
  const seed = numeric({ min: 0, step: 1, placeholder: "random" });
  const format = select(["mp4", "gif"]);
  const options = budgetAndSettings(model);
  const button = h("button", {}, "Make the clip");
  const output = h("div", { class: "output", tabIndex: 0, role: "region", "aria-label": "Clip" });
  const form = h("form", { class: "ask" }, prompt && field("Prompt", prompt),
    negative && field("What it should not show", negative), pictures && pictures.element,
    h("div", { class: "fields" }, field("Size", size), field("Frames", frames), field("Frames per second", fps),
      field("Seed", seed), field("Format", format)),
    options.element, h("div", { class: "row" }, button));
  if (pictures) pictures.listen(form);

  submitting(form, button, () => output, async (signal) => {
    const first = pictures && pictures.files[0];
    const body = defined({
      model: model.id, prompt: prompt ? prompt.value : "", negative_prompt: negative ? negative.value : "",
      input_reference: first ? await dataUrl(first.file) : undefined, size: size.value,
      num_frames: read(frames), fps: read(fps), seed: read(seed), output_format: format.value, vireo: options.value(),
    });
    const response = await post("v1/videos", body, { signal, headers: { "idempotency-key": fresh() } });
    const { id } = await response.json();
    const path = `v1/videos/${encodeURIComponent(id)}`;
    const job = await shown(path, output, signal);
    const { url, type } = await fileUrl(`${path}/content`, signal);
    const about = job.prompt || "Clip";
    const clip = type.startsWith("video/")
      ? h("video", { src: url, controls: true, loop: true, muted: true, playsInline: true, autoplay: !calm(), "aria-label": about })
      : h("img", { src: url, alt: about });
    const { seed: drawn, num_frames: made } = job.vireo.settings;
    output.replaceChildren(
      h("figure", { class: "clip" }, clip, h("figcaption", {}, about)),
      saveLink(url, type.startsWith("video/") ? `${id}.mp4` : `${id}.gif`),
      report(job.vireo, [["Seed", String(drawn)], ["Frames", number(made)], ["Attempts", number(job.vireo.attempts)],
        ["Job", h("code", {}, id)], ["Request", h("code", {}, response.headers.get("x-request-id") ?? "")]]));
  });
  return h("div", { class: "task" }, form, output);
}
