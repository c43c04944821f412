// Speaks with the server: OpenAI's routes, and llama-server's /props. Knows nothing of the page.
import { events } from "./sse.js";

const KEY = "layerlift.key";
// The page may lie under a prefix behind a proxy, so that routes are relative to it.
const url = (route) => new URL(route, document.baseURI).href;

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "ServerError";
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function failure(response) {
  let message = `the server answered ${response.status}`;
  try {
    const { error } = await response.json();
    message = (typeof error === "string" ? error : error?.message) || message;
  } catch {
    // No JSON: the status says what there is to say.
  }
  return new ServerError(message, response.status);
}

/** A response with status 200, or ServerError with the server's own words; an AbortError passes through. */
async function request(route, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(url(route), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server cannot be reached; is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** {status: "ready" | "loading" | "away" | "locked", model, context, defaults}; never throws. */
export async function serverState() {
  const state = { status: "ready", model: "", context: 0, defaults: {} };
  try {
    await request("health");
  } catch (error) {
    return { ...state, status: error.status === 503 ? "loading" : "away" };
  }
  try {
    const models = await (await request("v1/models")).json();
    state.model = models.data?.[0]?.id ?? "";
    const props = await (await request("props")).json();
    const defaults = props.default_generation_settings ?? {};
    state.context = defaults.n_ctx ?? props.n_ctx ?? 0;
    state.defaults = defaults.params ?? defaults;
  } catch (error) {
    if (error.status === 401) state.status = "locked";
  }
  return state;
}

/** Posts `body` with `stream: true` and yields the parsed chunks; an error inside the stream is thrown. */
export async function* stream(route, body, signal) {
  const response = await request(route, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const data of events(response.body)) {
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ServerError("the server sent an event that is no JSON");
    }
    if (chunk.error) throw new ServerError(chunk.error.message ?? String(chunk.error), chunk.error.code);
    yield chunk;
  }
}
