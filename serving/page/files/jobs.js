// Jobs that take a while: progress, previews, cancelling, and the files in the end.

import { ApiError, follow, send } from "./api.js";
import { h, number } from "./dom.js";

/** Show a job until it is over and return it. `path`: of the job. Throws what it failed of; stopping cancels it. */
export async function shown(path, output, signal) {
  const bar = h("progress", { max: 100, value: 0, "aria-label": "Progress" });
  const words = h("p", { class: "muted", role: "status" }, "Queued");
  const preview = h("img", { class: "preview", alt: "Preview of the work so far", hidden: true });
  output.replaceChildren(h("div", { class: "progress" }, bar, words), preview);
  const cancel = () => send(path, { method: "DELETE" }).catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  try {
    const job = await follow(path, (now) => {
      bar.value = now.progress;
      words.textContent = stage(now);
      if (now.preview) {
        preview.src = now.preview;
        preview.hidden = false;
      }
    }, signal);
    if (job.status === "failed") throw new ApiError(job.error);
    return job;
  } catch (error) {
    if (error.name === "AbortError") words.textContent = "Cancelled";
    throw error;
  } finally {
    signal.removeEventListener("abort", cancel);
    bar.hidden = true;
    preview.hidden = true;
  }
}

function stage({ status, vireo, progress, predicted_finish_at: finish }) {
  if (status === "queued") return "Queued";
  const step = vireo.num_steps ? `, step ${vireo.step} of ${vireo.num_steps}` : "";
  const left = vireo.remaining_s ?? (finish && finish - Date.now() / 1000);
  return `${vireo.stage ?? "Working"}${step}, ${progress} %${left > 0 ? `, about ${number(left)} s left` : ""}`;
}

/** A file of a job or of an answer, fetched with the key, by a URL of this page's own. */
export const fileUrl = async (path, signal) => {
  const response = await send(path, { signal });
  return { url: URL.createObjectURL(await response.blob()), type: response.headers.get("content-type") };
};

export const saveLink = (url, name) => h("a", { href: url, download: name, class: "save" }, `Save ${name}`);
