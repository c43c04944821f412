// A conversation is a tree of messages; what is shown is the path from the root to `leaf`. Pure: nothing is changed in
// place, so that an unchanged message stays the same object and is not drawn again.

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => (byte % 36).toString(36)).join("");

export const newConversation = (system = "") => {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, leaf: null, messages: {} };
};

/** The messages shown, first to last. */
export function path(conversation) {
  const shown = [];
  for (let id = conversation.leaf; id; id = conversation.messages[id].parent) shown.push(conversation.messages[id]);
  return shown.reverse();
}

/** The alternatives at the place of `id`, oldest first: the children of one parent. */
export function alternatives(conversation, id) {
  const { parent } = conversation.messages[id];
  return Object.values(conversation.messages)
    .filter((message) => message.parent === parent)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1))
    .map((message) => message.id);
}

/** Ids of `shown` to their alternatives, in one pass over the tree. */
export function allAlternatives(conversation) {
  const children = new Map();
  for (const message of Object.values(conversation.messages)) {
    if (!children.has(message.parent)) children.set(message.parent, []);
    children.get(message.parent).push(message);
  }
  const byId = {};
  for (const family of children.values()) {
    const ids = family.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1)).map((message) => message.id);
    for (const id of ids) byId[id] = ids;
  }
  return byId;
}

/** Adds a message under `parent` and shows it. */
export function append(conversation, parent, message) {
  const youngest = Object.values(conversation.messages).reduce((latest, { created }) => Math.max(latest, created), 0);
  // Two messages of one millisecond keep their order.
  const added = { ...message, id: newId(), parent, created: Math.max(Date.now(), youngest + 1) };
  const title = conversation.title || (message.role === "user" ? titleOf(message) : "");
  return {
    ...conversation,
    title,
    leaf: added.id,
    updated: Date.now(),
    messages: { ...conversation.messages, [added.id]: added },
  };
}

export function change(conversation, id, fields) {
  const message = { ...conversation.messages[id], ...fields };
  return { ...conversation, updated: Date.now(), messages: { ...conversation.messages, [id]: message } };
}

/** Shows the branch through `id`, down to its youngest end. */
export function show(conversation, id) {
  let leaf = id;
  for (;;) {
    const below = Object.values(conversation.messages).filter((message) => message.parent === leaf);
    if (!below.length) return { ...conversation, leaf };
    leaf = below.reduce((a, b) => (b.created > a.created ? b : a)).id;
  }
}

/** First words of a message, for the list. */
export function titleOf({ content, files }) {
  const words = (content || files?.[0]?.name || "").trim().replace(/\s+/g, " ");
  return words.length > 60 ? `${words.slice(0, 59).trimEnd()}…` : words;
}

/** What the model reads of a message: its files, fenced, and its text. */
export function promptText({ role, content, files = [] }) {
  if (role === "assistant") return splitThinking(content).text;
  const parts = files.map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `${name}\n${fence}\n${text}\n${fence}`;
  });
  return [...parts, content].filter(Boolean).join("\n\n");
}

/** The `messages` of a request for an answer below `parent`. */
export function requestMessages(conversation, parent) {
  const messages = [];
  for (const message of path({ ...conversation, leaf: parent })) {
    const content = promptText(message);
    if (!content) continue;
    // Where an answer failed, two questions meet; chat templates want the roles to take turns.
    if (messages.at(-1)?.role === message.role) messages.at(-1).content += `\n\n${content}`;
    else messages.push({ role: message.role, content });
  }
  return conversation.system.trim() ? [{ role: "system", content: conversation.system }, ...messages] : messages;
}

/** Splits what a reasoning model wrote between <think> and </think> at its start from the answer behind it. */
export function splitThinking(content) {
  const opened = content.match(/^\s*<think>/);
  if (!opened) return { thinking: "", text: content };
  const rest = content.slice(opened[0].length);
  const end = rest.indexOf("</think>");
  if (end < 0) return { thinking: rest.trim(), text: "" };
  return { thinking: rest.slice(0, end).trim(), text: rest.slice(end + "</think>".length).trimStart() };
}
