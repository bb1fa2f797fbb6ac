// Chat: streamed answers about pictures, with the boxes that an answer names drawn upon them.

import { check, events, post } from "./api.js";
import { h, number, svg } from "./dom.js";
import { Pictures, budgetAndSettings, dataUrl, defined, field, numeric, read, report, submitting } from "./form.js";

const BOX = /<box><(\d{3})><(\d{3})><,><(\d{3})><(\d{3})><\/box>/g;

/** The boxes of a text, as shares of a picture, and the text with a number where each was. */
export function boxesIn(text) {
  const boxes = [];
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(BOX)) {
    const [x1, y1, x2, y2] = match.slice(1).map((value) => Number(value) / 999);
    boxes.push({ x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) });
    parts.push(text.slice(end, match.index), h("mark", { class: "box-number", title: match[0] }, String(boxes.length)));
    end = match.index + match[0].length;
  }
  return { boxes, parts: [...parts, text.slice(end)] };
}

/** A picture with numbered boxes. */
function drawn(url, boxes) {
  const percent = (share) => `${100 * share}%`;
  return h("figure", { class: "drawn" },
    h("img", { src: url, alt: "The picture in the question" }),
    svg("svg", { role: "img", "aria-label": boxes.map(({ x, y, width, height }, i) =>
      `Box ${i + 1}: left ${number(100 * x)}%, top ${number(100 * y)}%, right ${number(100 * (x + width))}%, bottom ${number(100 * (y + height))}%`).join("; ") },
    ...boxes.flatMap(({ x, y, width, height }, i) => [
      svg("rect", { x: percent(x), y: percent(y), width: percent(width), height: percent(height), class: "halo" }),
      svg("rect", { x: percent(x), y: percent(y), width: percent(width), height: percent(height) }),
      svg("text", { x: percent(x + width), y: percent(y), dx: -6, dy: 17, "text-anchor": "end" }, String(i + 1)),
    ])));
}

export function chatPanel(model) {
  let turns = [];
  let picture = null; // of the newest question that had one
  const pictures = new Pictures({ label: "Pictures.", many: true, sample: "shapes.png" });
  const text = h("textarea", { rows: 2, placeholder: "Where is the red square?", required: true });
  const maxTokens = numeric({ min: 1, step: 1, max: model.vireo.limits.max_output_tokens, placeholder: "not set" });
  const temperature = numeric({ min: 0, max: 2, value: 0 });
  const options = budgetAndSettings(model);
  const button = h("button", {}, "Send");
  const again = h("button", { type: "button", class: "quiet", onclick: () => { turns = []; picture = null; log.replaceChildren(); text.focus(); } }, "New conversation");
  const log = h("div", { class: "log", role: "log", "aria-label": "Conversation", "aria-live": "polite", tabIndex: 0 });
  const form = h("form", { class: "ask" }, field("Message", text), pictures.element,
    h("div", { class: "fields" }, field("Max tokens", maxTokens), field("Temperature", temperature)),
    options.element, h("div", { class: "row" }, button, again));
  pictures.listen(form);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit(button);
  });

  const say = (who, ...content) => {
    const turn = h("article", { class: `turn ${who}` }, h("h3", {}, who === "user" ? "You" : model.id), content);
    log.append(turn);
    return turn;
  };

  submitting(form, button, () => log, async (signal) => {
    const asked = text.value;
    const images = pictures.take();
    if (images.length) picture = images[0].url;
    text.value = "";
    const parts = await Promise.all(images.map(async ({ file }) => ({ type: "image_url", image_url: { url: await dataUrl(file) } })));
    const content = images.length ? [...parts, { type: "text", text: asked }] : asked; // pictures first, as models are trained
    say("user", h("p", { class: "words" }, asked), images.length > 0 && h("div", { class: "thumbs" }, images.map(({ url, file }) => h("img", { src: url, alt: file.name }))));
    const words = h("p", { class: "words" });
    const turn = say("assistant", words);
    log.setAttribute("aria-busy", "true");
    const messages = [...turns, { role: "user", content }];
    let answer = "";
    try {
      const response = await post("v1/chat/completions", defined({
        model: model.id, messages, stream: true, stream_options: { include_usage: true },
        temperature: read(temperature), max_completion_tokens: read(maxTokens), vireo: options.value(),
      }), { signal });
      for await (const { data } of events(response)) {
        if (data === "[DONE]") break;
        const chunk = check(JSON.parse(data), response);
        const piece = chunk.choices[0]?.delta.content ?? "";
        answer += piece;
        words.append(piece);
        log.scrollTop = log.scrollHeight;
        if (chunk.vireo && chunk.usage) turn.append(report(chunk.vireo, [
          ["Tokens", `${number(chunk.usage.prompt_tokens)} in, ${number(chunk.usage.completion_tokens)} out`],
          ["Request", h("code", {}, response.headers.get("x-request-id") ?? "")],
        ]));
      }
    } catch (error) {
      if (!answer) text.value ||= asked;
      throw error;
    } finally {
      log.setAttribute("aria-busy", "false");
      if (answer) turns = [...messages, { role: "assistant", content: answer }];
      else turn.remove();
      const found = boxesIn(answer);
      words.replaceChildren(...found.parts);
      if (picture && found.boxes.length) words.after(drawn(picture, found.boxes));
      log.scrollTop = log.scrollHeight;
    }
  });
  return h("div", { class: "task" }, form, log);
}
