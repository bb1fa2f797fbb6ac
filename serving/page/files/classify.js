// Classification: what each picture is, and the exit of the network that said so.

import { check, post } from "./api.js";
import { h, number } from "./dom.js";
import { Pictures, budgetAndSettings, dataUrl, defined, failure, field, numeric, read, report, submitting } from "./form.js";

export function classifyPanel(model) {
  const { num_exits: numExits, num_classes: numClasses } = model.vireo.io;
  const pictures = new Pictures({ label: "Pictures.", many: true, sample: "digit.png" });
  const topK = numeric({ min: 1, max: numClasses, step: 1, value: Math.min(3, numClasses) });
  const options = budgetAndSettings(model);
  const button = h("button", {}, "Classify");
  const output = h("div", { class: "output", "aria-live": "polite", tabIndex: 0, role: "region", "aria-label": "Answers" });
  const form = h("form", { class: "ask" }, pictures.element, h("div", { class: "fields" }, field("Labels per picture", topK)),
    options.element, h("div", { class: "row" }, button));
  pictures.listen(form);

  submitting(form, button, () => output, async (signal) => {
    const { files } = pictures;
    output.replaceChildren();
    const images = await Promise.all(files.map(({ file }) => dataUrl(file)));
    const response = await post("v1/classify", defined({ model: model.id, images, top_k: read(topK), vireo: options.value() }), { signal });
    const answer = check(await response.json(), response);
    output.replaceChildren(
      ...answer.results.map((result, i) => h("article", { class: "result" }, h("img", { src: files[i].url, alt: files[i].file.name }),
        result.error ? failure(result.error) : labels(result, numExits))),
      report(answer.vireo, [["Request", h("code", {}, response.headers.get("x-request-id") ?? "")]]));
  });
  return h("div", { class: "task" }, form, output);
}

function labels(result, numExits) {
  const exits = Array.from({ length: numExits }, (_, i) => h("i", { class: i < result.exit ? "run" : "" }));
  return h("div", {},
    h("h3", {}, result.label),
    numExits > 1 && h("p", { class: "exit" }, h("span", { class: "exits", "aria-hidden": "true" }, exits), `Exit ${result.exit} of ${numExits}`),
    h("ol", { class: "scores" }, result.top_k.map(({ label, score }) => h("li", {},
      h("span", {}, label), h("meter", { min: 0, max: 1, value: score, "aria-label": `Score of ${label}` }), h("span", {}, number(score))))));
}
