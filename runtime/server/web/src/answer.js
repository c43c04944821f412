// One answer while it is being written: asks the server, gathers text and figures, tells whoever listens.
import { stream } from "./api.js";

export class Answer {
  content = "";
  thinking = "";
  /** {done, total} in tokens while the server reads the prompt, else null. */
  progress = null;
  stats = {};
  #listeners = new Set();
  #controller = new AbortController();
  #pieces = 0;
  #firstPiece = 0;
  #calls = [];

  constructor(id) {
    this.id = id;
  }

  listen(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stop() {
    this.#controller.abort();
  }

  get stopped() {
    return this.#controller.signal.aborted;
  }

  /** Runs to the end of the stream; a stop is an end too, any other failure is thrown. */
  async run(body) {
    try {
      for await (const chunk of stream("v1/chat/completions", body, this.#controller.signal)) {
        this.#take(chunk);
        for (const listener of this.#listeners) listener();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    } finally {
      this.content += this.#callsText();
      this.progress = null;
    }
  }

  #take(chunk) {
    const { prompt_progress: progress, timings, usage } = chunk;
    if (progress?.total > 0) this.progress = { done: progress.processed ?? 0, total: progress.total };
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.content || delta.reasoning_content || delta.tool_calls) {
      this.progress = null;
      this.#count();
    }
    if (typeof delta.content === "string") this.content += delta.content;
    if (typeof delta.reasoning_content === "string") this.thinking += delta.reasoning_content;
    if (Array.isArray(delta.tool_calls)) for (const call of delta.tool_calls) this.#addCall(call);
    const reason = chunk.choices?.[0]?.finish_reason;
    if (reason) this.finish = reason;
    if (usage) Object.assign(this.stats, { prompt: usage.prompt_tokens, tokens: usage.completion_tokens });
    if (timings) this.#time(timings);
  }

  #time({ cache_n: cached = 0, prompt_n: read = 0, prompt_ms: ms = 0, predicted_n: tokens, predicted_per_second: rate }) {
    this.stats.prompt ??= cached + read;
    this.stats.promptSeconds = ms / 1000;
    this.stats.read = read;
    if (tokens) this.stats.tokens = tokens;
    // The first token comes out of the prompt; a speed begins with the second.
    if (tokens > 1 && Number.isFinite(rate)) this.stats.perSecond = rate;
  }

  // A server that sends no timings still gets a speed: pieces over the time since the first.
  #count() {
    const now = performance.now();
    if (!this.#pieces++) this.#firstPiece = now;
    this.stats.tokens = Math.max(this.stats.tokens ?? 0, this.#pieces);
    if (this.#pieces > 1) this.stats.perSecond = ((this.#pieces - 1) * 1000) / Math.max(now - this.#firstPiece, 1);
  }

  #addCall({ index = 0, function: fn = {} }) {
    this.#calls[index] ??= { name: "", text: "" };
    this.#calls[index].name += fn.name ?? "";
    this.#calls[index].text += fn.arguments ?? "";
  }

  #callsText() {
    const texts = this.#calls.filter(Boolean).map(({ name, text }) => `Tool call \`${name}\`\n\n\`\`\`json\n${text}\n\`\`\``);
    return texts.length ? `${this.content ? "\n\n" : ""}${texts.join("\n\n")}` : "";
  }
}
