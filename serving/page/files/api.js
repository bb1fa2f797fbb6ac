// Requests to this server. The key lives in this module's memory and in the header of requests, and nowhere else.

let key = "";

export const hasKey = () => key !== "";
export const setKey = (text) => { key = text.trim(); };

/** What the server, or the way to it, says instead of an answer. */
export class ApiError extends Error {
  constructor({ message, code, param }, status = 0, requestId = "", retryAfter = "") {
    super(message);
    Object.assign(this, { code, param, status, requestId, retryAfter });
  }
}

/** Send a request and return its response. `asks`: whether the page asks for another key where this one is refused.
 *  Throws ApiError; AbortError if `signal` says so. */
export async function send(path, { method = "GET", json, headers = {}, signal, asks = true } = {}) {
  const sent = { ...headers };
  if (key) sent.authorization = `Bearer ${key}`;
  if (json !== undefined) sent["content-type"] = "application/json";
  const body = json === undefined ? undefined : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body, signal, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ message: "The server cannot be reached.", code: "unreachable" });
  }
  if (response.ok) return response;
  const failure = await failureOf(response);
  if (failure.status === 401 && asks) document.dispatchEvent(new CustomEvent("vireo:key", { detail: failure }));
  throw failure;
}

async function failureOf(response) {
  let error = null;
  try {
    ({ error } = await response.json());
  } catch { /* not ours: a proxy's page, or nothing */ }
  if (typeof error === "string") error = { message: error };
  const known = { message: `HTTP ${response.status}`, code: `http_${response.status}`, ...error };
  const id = response.headers.get("x-request-id") ?? "";
  return new ApiError(known, response.status, id, response.headers.get("retry-after") ?? "");
}

export const getJson = async (path, options) => (await send(path, options)).json();

export const post = (path, json, options = {}) => send(path, { method: "POST", json, ...options });

/** The server-sent events of a response: {event, data}, data as text. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const found = { event: "message", data: [] };
        for (const line of block.split(/\r?\n/)) {
          const [, name, text] = /^(\w+): ?(.*)$/s.exec(line) ?? [];
          if (name === "data") found.data.push(text);
          else if (name === "event") found.event = text;
        }
        if (found.data.length) yield { event: found.event, data: found.data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Throw what an event says, if it is an error. */
export function check(document, response) {
  if (document.error && !document.id) throw new ApiError(document.error, 0, response.headers.get("x-request-id") ?? "");
  return document;
}

/** A name that nobody else has; `crypto.randomUUID` is not there without TLS. */
export const fresh = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");

/** Follow a job until it is over; streams that break are opened again. Returns the job. */
export async function follow(path, show, signal) {
  for (let failures = 0; ; failures++) {
    try {
      const response = await send(`${path}/events`, { signal });
      for await (const { data } of events(response)) {
        const job = check(JSON.parse(data), response);
        failures = 0;
        show(job);
        if (job.status === "completed" || job.status === "failed") return job;
      }
      throw new ApiError({ message: "The event stream broke off.", code: "unreachable" });
    } catch (error) {
      const again = error.code === "unreachable" || error instanceof TypeError || error.retryAfter;
      if (!again || failures >= 5) throw error;
      await new Promise((go) => setTimeout(go, 500 * 2 ** failures));
    }
  }
}
