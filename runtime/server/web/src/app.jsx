// The frame around the pages: list, header, notices, and the keys that work everywhere.
import { useEffect } from "preact/hooks";
import { Chat } from "./chat.jsx";
import { stop } from "./chats.js";
import { Completion } from "./completion.jsx";
import { IconButton } from "./icons.jsx";
import { Panels } from "./panels.jsx";
import { Sidebar } from "./sidebar.jsx";
import { dismiss, get, go, set, useStore } from "./state.js";

const STATUS = {
  loading: "The model is loading; you can write already",
  away: "The server cannot be reached; trying again",
  locked: "The server asks for a key",
};

const whole = new Intl.NumberFormat("en");

/** How much of the context the shown conversation used at its last answer. */
function Used() {
  const context = useStore((state) => state.server.context);
  const used = useStore(({ conversation }) => {
    const { prompt = 0, tokens = 0 } = conversation?.messages[conversation.leaf]?.stats ?? {};
    return prompt + tokens;
  });
  if (!context || !used) return null;
  return (
    <span class="used" title={`${whole.format(used)} of ${whole.format(context)} tokens of context used`}>
      <progress max={context} value={Math.min(used, context)} aria-label="Context used" />
    </span>
  );
}

function Header() {
  const { page } = useStore((state) => state.route);
  const title = useStore((state) => state.conversation?.title);
  const { model } = useStore((state) => state.server);
  const open = useStore((state) => state.sidebar);
  return (
    <header class="top">
      <IconButton icon="menu" label="Open the list" class="icon-button narrow" aria-expanded={open} aria-controls="sidebar"
        onClick={() => set({ sidebar: true })} />
      <h1>{page === "completion" ? "Completion" : title || "New chat"}</h1>
      {page === "chat" && <Used />}
      {model && <span class="model" title={model}>{model}</span>}
      <IconButton icon="sliders" label="Settings" onClick={() => set({ panel: "settings" })} />
    </header>
  );
}

function Notices() {
  const notices = useStore((state) => state.notices);
  return (
    <div class="notices" role="status">
      {notices.map(({ id, text, kind, action }) => (
        <div key={id} class={`notice ${kind}`}>
          <span>{text}</span>
          {action && <button type="button" class="quiet" onClick={() => {
            action.run();
            dismiss(id);
          }}>{action.label}</button>}
          <IconButton icon="close" label="Dismiss" onClick={() => dismiss(id)} />
        </div>
      ))}
    </div>
  );
}

function keys(event) {
  if (event.key === "Escape" && !get().panel && !event.defaultPrevented) {
    if (get().sidebar) set({ sidebar: false });
    else if (get().route.page === "chat") stop();
  } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    go("#/");
  }
}

export function App() {
  const { page } = useStore((state) => state.route);
  const status = useStore((state) => state.server.status);
  const title = useStore((state) => state.conversation?.title);
  useEffect(() => {
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  useEffect(() => {
    document.title = page === "chat" && title ? `${title} – layerlift` : "layerlift";
  }, [page, title]);
  return (
    <>
      <Sidebar />
      <div class="page">
        <Header />
        {STATUS[status] && (
          <p class="banner" role="status">{STATUS[status]}
            {status === "locked" && <button type="button" class="quiet" onClick={() => set({ panel: "key" })}>Enter it</button>}
          </p>
        )}
        {page === "completion" ? <Completion /> : <Chat />}
      </div>
      <Notices />
      <Panels />
    </>
  );
}
