// The completion being written: a prompt, the tokens behind it, and the request that brings them. Outlives a visit to
// the chat page.
import { stream } from "./api.js";
import { requestFields } from "./settings.js";
import { get, refreshServer, set } from "./state.js";
import { textOf, tokensOf } from "./tokens.js";

const PROMPT = "layerlift.prompt";

function keptPrompt() {
  try {
    return localStorage.getItem(PROMPT) ?? "";
  } catch {
    return "";
  }
}

export const writer = { prompt: keptPrompt(), begun: "", tokens: [], figures: null, error: "", controller: null };
const listeners = new Set();
const tell = () => listeners.forEach((listener) => listener());

export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function setPrompt(prompt) {
  writer.prompt = prompt;
  try {
    localStorage.setItem(PROMPT, prompt);
  } catch {
    // The prompt then lasts as long as the page.
  }
  tell();
}

export const stopWriting = () => writer.controller?.abort();

/** Asks for what comes after the prompt and `tokens`, which stay. */
export async function write({ tokens = [], alternatives = 5 } = {}) {
  if (writer.controller) return;
  const controller = new AbortController();
  Object.assign(writer, { begun: writer.prompt, tokens, error: "", figures: null, controller });
  tell();
  const { settings, server } = get();
  try {
    const body = {
      model: server.model || "default",
      prompt: writer.begun + textOf(tokens),
      max_tokens: 128,
      logprobs: alternatives,
      timings_per_token: true,
      ...requestFields(settings),
    };
    for await (const chunk of stream("v1/completions", body, controller.signal)) {
      const added = chunk.choices?.[0] ? tokensOf(chunk.choices[0]) : [];
      if (added.length) writer.tokens = [...writer.tokens, ...added];
      if (chunk.timings) writer.figures = chunk.timings;
      tell();
    }
  } catch (error) {
    if (error.name !== "AbortError") writer.error = error.message;
    if (error.status === 401) set({ panel: "key" });
    if (error.status === 0) refreshServer();
  }
  writer.controller = null;
  tell();
}

/** Takes another token at `at` and writes on from there. */
export function branch(at, other) {
  const kept = writer.tokens.slice(0, at);
  const { others } = writer.tokens[at];
  return write({ tokens: [...kept, { ...other, others }] });
}

/** Makes the text behind the prompt part of it. */
export function adopt() {
  setPrompt(writer.begun + textOf(writer.tokens));
  Object.assign(writer, { begun: "", tokens: [], figures: null });
  tell();
}
