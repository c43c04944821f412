// Conversations as a JSON file: writing one, and reading one that anybody may have written.
import { newId } from "./conversation.js";

export const FORMAT = "layerlift-conversations";
const ROLES = ["user", "assistant"];

export const exported = (conversations) =>
  JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations }, null, 1);

const string = (value) => (typeof value === "string" ? value : "");
const time = (value) => (Number.isFinite(value) && value > 0 && value < 1e14 ? value : Date.now());

function message(raw, ids) {
  const read = {
    id: ids.get(raw.id),
    parent: raw.parent == null ? null : ids.get(raw.parent),
    role: raw.role,
    content: string(raw.content),
    created: time(raw.created),
  };
  if (raw.thinking) read.thinking = string(raw.thinking);
  if (Array.isArray(raw.files))
    read.files = raw.files
      .filter((file) => file && typeof file === "object")
      .map((file) => ({ name: string(file.name) || "file", text: string(file.text) }));
  if (raw.stats && typeof raw.stats === "object") {
    const numbers = Object.entries(raw.stats).filter(([, value]) => Number.isFinite(value));
    read.stats = Object.fromEntries(numbers);
  }
  if (raw.stopped === true) read.stopped = true;
  return read;
}

/** One conversation with fresh ids, or an Error that says what is wrong with it. */
function conversation(raw, number) {
  const fail = (what) => new Error(`conversation ${number}: ${what}`);
  if (!raw || typeof raw !== "object" || !raw.messages || typeof raw.messages !== "object")
    throw fail("no messages in it");
  const list = Object.values(raw.messages);
  const ids = new Map();
  for (const one of list) {
    if (!one || typeof one !== "object" || typeof one.id !== "string") throw fail("a message without an id");
    if (!ROLES.includes(one.role)) throw fail(`a message with role ${JSON.stringify(one.role)}`);
    ids.set(one.id, newId());
  }
  const messages = {};
  for (const one of list) {
    const read = message(one, ids);
    if (read.parent === undefined) throw fail("a message answers one that is not there");
    messages[read.id] = read;
  }
  const rooted = new Set();
  for (const start of Object.values(messages)) {
    const walked = new Set();
    for (let id = start.id; id && !rooted.has(id); id = messages[id].parent) {
      if (walked.has(id)) throw fail("messages that answer each other in a circle");
      walked.add(id);
    }
    for (const id of walked) rooted.add(id);
  }
  const youngest = Object.values(messages).reduce((a, b) => (a && a.created > b.created ? a : b), null);
  return {
    id: newId(),
    title: string(raw.title).slice(0, 200),
    created: time(raw.created),
    updated: time(raw.updated),
    system: string(raw.system),
    leaf: ids.get(raw.leaf) ?? youngest?.id ?? null,
    messages,
  };
}

/** The conversations of an exported file; they get fresh ids, so that nothing kept is overwritten. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("the file is no JSON");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations))
    throw new Error(`the file holds no conversations (expected "format": "${FORMAT}")`);
  return file.conversations.map((raw, index) => conversation(raw, index + 1));
}

/** Offers `text` as a file to keep. */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
