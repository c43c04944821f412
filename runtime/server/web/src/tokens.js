// Tokens with their probabilities, read from the answers of /v1/completions in either of the two shapes servers send:
// OpenAI's legacy lists, and the list of objects of its chat route, which llama-server sends on both.

const likely = (logprob) => (typeof logprob === "number" ? Math.exp(logprob) : null);
const token = ({ token, logprob, bytes }) => ({ text: token, chance: likely(logprob), bytes });
const ranked = (others) => others.filter(({ chance }) => chance !== null).sort((a, b) => b.chance - a.chance);

/** [{text, chance, bytes, others}] of one chunk; `chance` is null and `bytes` missing where the server sent none. */
export function tokensOf(choice) {
  const { text = "", logprobs } = choice ?? {};
  if (Array.isArray(logprobs?.content) && logprobs.content.length)
    return logprobs.content.map((one) => ({ ...token(one), others: ranked((one.top_logprobs ?? []).map(token)) }));
  if (Array.isArray(logprobs?.tokens) && logprobs.tokens.length)
    return logprobs.tokens.map((token, at) => ({
      text: token,
      chance: likely(logprobs.token_logprobs?.[at]),
      others: ranked(Object.entries(logprobs.top_logprobs?.[at] ?? {}).map(([text, value]) => ({ text, chance: likely(value) }))),
    }));
  return text ? [{ text, chance: null, others: [] }] : [];
}

/** The text of tokens in a row. A character may be spread over several tokens, so that their bytes are joined first. */
export function textOf(tokens) {
  const encoder = new TextEncoder();
  const bytes = tokens.flatMap(({ text, bytes }) => (Array.isArray(bytes) ? bytes : [...encoder.encode(text)]));
  return new TextDecoder().decode(new Uint8Array(bytes));
}

export const percent = (chance) =>
  chance === null ? "" : chance >= 0.9995 ? "100 %" : chance < 0.001 ? "< 0.1 %" : `${(chance * 100).toFixed(1)} %`;

/** A token as it can be read in a list: quoted, with its line breaks named. */
export const quoted = (text) => `“${text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}”`;

/** 0 (sure) to 4 (a surprise), for the tint under a token. */
export const surprise = (chance) => (chance === null ? 0 : [0.8, 0.5, 0.2, 0.05].filter((bound) => chance < bound).length);
