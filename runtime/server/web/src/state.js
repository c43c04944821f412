// What the page knows, in one place: components read it with `useStore`, the actions in chats.js change it with `set`.
import { useEffect, useState } from "preact/hooks";
import { serverState } from "./api.js";
import { applyTheme, loadSettings, saveSettings } from "./settings.js";

const listeners = new Set();
let state = {
  route: { page: "chat", id: null },
  heads: [], // of every conversation, newest first
  conversation: null, // the one shown
  running: {}, // conversation id -> Answer
  lasting: true, // whether conversations outlive the page
  settings: loadSettings(),
  server: { status: "unknown", model: "", context: 0, defaults: {} },
  notices: [],
  panel: null, // "settings" | "key" | {rename: head} | null
  sidebar: false, // open on a narrow screen
};

export const get = () => state;

export function set(fields) {
  state = { ...state, ...fields };
  for (const listener of [...listeners]) listener();
}

/** The selected part of the state; draws again only when that part is another object. */
export function useStore(select) {
  const [part, setPart] = useState(() => select(state));
  useEffect(() => {
    const changed = () => setPart(() => select(state));
    listeners.add(changed);
    changed();
    return () => listeners.delete(changed);
  }, []);
  return part;
}

let noticeCount = 0;
/** Shows a line of text for some seconds, with an action to take if there is one: {label, run}. */
export function notify(text, { kind = "info", action = null, seconds = 8 } = {}) {
  const id = ++noticeCount;
  set({ notices: [...state.notices, { id, text, kind, action }] });
  setTimeout(() => dismiss(id), seconds * 1000);
}

export const dismiss = (id) => set({ notices: state.notices.filter((notice) => notice.id !== id) });

export function changeSettings(fields) {
  const settings = { ...state.settings, ...fields };
  saveSettings(settings);
  applyTheme(settings.theme);
  set({ settings });
}

let waiting = null;
/** Asks the server how it is; asks again every second while it loads or is away. */
export async function refreshServer() {
  clearTimeout(waiting);
  const server = await serverState();
  set({ server });
  if (server.status === "locked" && !state.panel) set({ panel: "key" });
  if (server.status === "loading" || server.status === "away") waiting = setTimeout(refreshServer, 1000);
}

/** `#/chat/ID`, `#/completion`, or nothing for a new chat. */
export function readRoute() {
  const [, page, id] = location.hash.split("/");
  return page === "completion" ? { page, id: null } : { page: "chat", id: id || null };
}

export function go(hash) {
  if (location.hash !== hash) location.hash = hash;
  set({ sidebar: false });
}
