// What can be done with conversations: open, ask, answer again, edit, branch, rename, delete, export, import.
import { Answer } from "./answer.js";
import { append, change, newConversation, requestMessages, show } from "./conversation.js";
import { openDatabase } from "./database.js";
import { requestFields } from "./settings.js";
import { get, go, notify, readRoute, refreshServer, set } from "./state.js";
import { download, exported, imported } from "./transfer.js";

const SAVE_EVERY = 1000; // milliseconds between saves of a growing answer
const loaded = new Map(); // conversations of this visit
const otherTabs = new BroadcastChannel("layerlift");
let database;

const byUpdate = (heads) => [...heads].sort((a, b) => b.updated - a.updated);
const headOf = ({ id, title, created, updated }) => ({ id, title, created, updated });

export async function start() {
  database = await openDatabase();
  set({ heads: byUpdate(await database.heads()), lasting: database.lasting });
  addEventListener("hashchange", follow);
  otherTabs.onmessage = ({ data }) => changedElsewhere(data);
  addEventListener("pagehide", () => {
    for (const [id, answer] of Object.entries(get().running)) keepAnswer(id, answer);
  });
  await follow();
  refreshServer();
}

/**
 * Shows what the address names. The completion page leaves the conversation as it is; the address of a conversation
 * that is gone shows a new chat.
 */
async function follow() {
  const route = readRoute();
  if (route.page !== "chat") {
    set({ route });
    return;
  }
  const conversation = route.id ? await fetchConversation(route.id) : null;
  if (route.id && !conversation) {
    history.replaceState(null, "", "#/");
    route.id = null;
  }
  // The address may have changed again while the database answered.
  if (readRoute().id === route.id) set({ route, conversation, draftSystem: undefined });
}

async function fetchConversation(id) {
  if (!loaded.has(id)) {
    const kept = await database.get(id);
    if (!kept) return null;
    loaded.set(id, kept);
  }
  return loaded.get(id);
}

/** Another tab has written or deleted the conversation `id`; what is being answered here is newer and stays. */
async function changedElsewhere(id) {
  if (!get().running[id]) {
    loaded.delete(id);
    if (get().conversation?.id === id) {
      const conversation = await fetchConversation(id);
      if (conversation) set({ conversation });
      else go("#/");
    }
  }
  set({ heads: byUpdate(await database.heads()) });
}

function save(conversation) {
  loaded.set(conversation.id, conversation);
  const heads = byUpdate([headOf(conversation), ...get().heads.filter(({ id }) => id !== conversation.id)]);
  set({ heads, ...(get().conversation?.id === conversation.id && { conversation }) });
  database.put(conversation).then(
    () => otherTabs.postMessage(conversation.id),
    (error) => notify(`the conversation could not be kept: ${error?.message ?? error}`, { kind: "error" }),
  );
}

/** Sends a message in the conversation shown, or in a new one. */
export function send({ content, files = [] }) {
  if (get().conversation && !idle()) return;
  const conversation = get().conversation ?? newConversation(get().draftSystem ?? get().settings.system);
  const asked = append(conversation, conversation.leaf, { role: "user", content, ...(files.length && { files }) });
  if (!get().conversation) {
    loaded.set(asked.id, asked);
    set({ conversation: asked, draftSystem: undefined });
    go(`#/chat/${asked.id}`);
  }
  answer(asked, asked.leaf);
}

/** Writes a new answer below the message `parent`. */
async function answer(conversation, parent) {
  const { settings, server } = get();
  const begun = append(conversation, parent, { role: "assistant", content: "" });
  const writing = new Answer(begun.leaf);
  set({ running: { ...get().running, [begun.id]: writing } });
  save(begun);
  const saving = setInterval(() => keepAnswer(begun.id, writing), SAVE_EVERY);
  let failure = null;
  try {
    await writing.run({
      model: server.model || "default",
      messages: requestMessages(begun, parent),
      stream_options: { include_usage: true },
      return_progress: true,
      timings_per_token: true,
      ...requestFields(settings),
    });
  } catch (error) {
    failure = error;
  }
  clearInterval(saving);
  const { [begun.id]: _, ...running } = get().running;
  set({ running });
  keepAnswer(begun.id, writing, failure ? { error: failure.message } : writing.stopped ? { stopped: true } : {});
  if (failure?.status === 401) set({ panel: "key" });
  if (failure && !failure.status) refreshServer();
}

/** Puts what an answer holds so far into its conversation. */
function keepAnswer(id, { id: messageId, content, thinking, stats, finish }, fields = {}) {
  const conversation = loaded.get(id);
  if (!conversation?.messages[messageId]) return;
  const cut = finish === "length" && { cut: true };
  const text = { content, stats: { ...stats }, ...(thinking && { thinking }), ...cut, ...fields };
  save(change(conversation, messageId, text));
}

export function stop() {
  get().running[get().conversation?.id]?.stop();
}

const idle = () => get().conversation && !get().running[get().conversation.id];

/** Another answer in the place of `id`; the one there stays as an alternative. */
export function regenerate(id) {
  if (idle()) answer(get().conversation, get().conversation.messages[id].parent);
}

/** The changed message becomes an alternative of the old one; a question is asked again. */
export function edit(id, content) {
  if (!idle()) return;
  const { role, parent, files } = get().conversation.messages[id];
  const edited = append(get().conversation, parent, { role, content, ...(files && { files }) });
  if (role === "user") answer(edited, edited.leaf);
  else save(edited);
}

export function showBranch(id) {
  if (idle()) save(show(get().conversation, id));
}

export function setSystem(system) {
  const { conversation } = get();
  if (conversation) save({ ...conversation, system });
  else set({ draftSystem: system });
}

export async function rename(id, title) {
  const conversation = await fetchConversation(id);
  if (conversation && title.trim()) save({ ...conversation, title: title.trim().slice(0, 200) });
}

export async function remove(id) {
  const conversation = await fetchConversation(id);
  get().running[id]?.stop();
  loaded.delete(id);
  await database.delete(id);
  otherTabs.postMessage(id);
  set({ heads: get().heads.filter((head) => head.id !== id) });
  if (get().conversation?.id === id) go("#/");
  notify(`Deleted “${conversation?.title || "Untitled"}”`, {
    action: conversation && { label: "Undo", run: () => save(conversation) },
  });
}

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);

export async function exportOne(id) {
  const conversation = await fetchConversation(id);
  download(`${fileName(conversation.title) || "conversation"}.json`, exported([conversation]));
}

export async function exportAll() {
  const all = await Promise.all(get().heads.map(({ id }) => fetchConversation(id)));
  download("layerlift-conversations.json", exported(all.filter(Boolean)));
}

export async function importFile(file) {
  try {
    const conversations = imported(await file.text());
    for (const conversation of conversations) save(conversation);
    notify(`Imported ${conversations.length === 1 ? "one conversation" : `${conversations.length} conversations`}`);
    if (conversations.length === 1) go(`#/chat/${conversations[0].id}`);
  } catch (error) {
    notify(`${file.name}: ${error.message}`, { kind: "error" });
  }
}
