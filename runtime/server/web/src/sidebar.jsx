// The list of conversations and the way between the pages.
import { useRef } from "preact/hooks";
import { exportAll, exportOne, importFile, remove } from "./chats.js";
import { Icon, IconButton } from "./icons.jsx";
import { changeSettings, go, set, useStore } from "./state.js";

const DAY = 24 * 3600 * 1000;

/** Heads in groups by age: [["Today", […]], …]. */
function byAge(heads) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const groups = [["Today", midnight], ["Yesterday", midnight - DAY], ["Last 7 days", midnight - 7 * DAY], ["Older", -Infinity]];
  let rest = heads;
  return groups
    .map(([name, since]) => {
      const inside = rest.filter(({ updated }) => updated >= since);
      rest = rest.filter(({ updated }) => updated < since);
      return [name, inside];
    })
    .filter(([, inside]) => inside.length);
}

function Entry({ head, current }) {
  const title = head.title || "Untitled";
  return (
    <li class={current ? "current" : ""}>
      <a href={`#/chat/${head.id}`} aria-current={current ? "page" : undefined} title={title}
        onClick={() => set({ sidebar: false })}>{title}</a>
      <span class="entry-actions">
        <IconButton icon="edit" label={`Rename ${title}`} onClick={() => set({ panel: { rename: head } })} />
        <IconButton icon="save" label={`Export ${title}`} onClick={() => exportOne(head.id)} />
        <IconButton icon="trash" label={`Delete ${title}`} onClick={() => remove(head.id)} />
      </span>
    </li>
  );
}

const NEXT_THEME = { auto: "light", light: "dark", dark: "auto" };
const THEME_ICON = { auto: "auto", light: "sun", dark: "moon" };
const THEME_NAME = { auto: "as the system", light: "light", dark: "dark" };

function Foot() {
  const picker = useRef();
  const theme = useStore((state) => state.settings.theme);
  const some = useStore((state) => state.heads.length > 0);
  return (
    <div class="sidebar-foot">
      <input ref={picker} type="file" accept=".json,application/json" hidden aria-label="Conversations to import"
        onChange={(event) => {
          if (event.currentTarget.files[0]) importFile(event.currentTarget.files[0]);
          event.currentTarget.value = "";
        }} />
      <button type="button" class="quiet" onClick={() => picker.current.click()}><Icon name="open" /> Import</button>
      <button type="button" class="quiet" disabled={!some} onClick={exportAll}><Icon name="save" /> Export all</button>
      <IconButton icon={THEME_ICON[theme]} label={`Colours: ${THEME_NAME[theme]}`}
        onClick={() => changeSettings({ theme: NEXT_THEME[theme] })} />
    </div>
  );
}

export function Sidebar() {
  const heads = useStore((state) => state.heads);
  const current = useStore((state) => state.conversation?.id);
  const page = useStore((state) => state.route.page);
  const open = useStore((state) => state.sidebar);
  const link = (to) => ({ href: to, onClick: () => set({ sidebar: false }) });
  return (
    <>
      {open && <div class="backdrop" onClick={() => set({ sidebar: false })} />}
      <aside id="sidebar" class={open ? "sidebar open" : "sidebar"} aria-label="Conversations">
        <div class="brand"><img src="icon.svg" alt="" width="24" height="24" /> layerlift
          <IconButton icon="close" label="Close the list" class="icon-button narrow" onClick={() => set({ sidebar: false })} />
        </div>
        <button type="button" class="new-chat" onClick={() => go("#/")}><Icon name="plus" /> New chat</button>
        <nav aria-label="Pages">
          <a {...link(current ? `#/chat/${current}` : "#/")} aria-current={page === "chat" ? "true" : undefined}><Icon name="chat" /> Chat</a>
          <a {...link("#/completion")} aria-current={page === "completion" ? "true" : undefined}><Icon name="text" /> Completion</a>
        </nav>
        <nav class="entries" aria-label="Conversations">
          {byAge(heads).map(([name, inside]) => (
            <section key={name}>
              <h2>{name}</h2>
              <ul>{inside.map((head) => <Entry key={head.id} head={head} current={page === "chat" && head.id === current} />)}</ul>
            </section>
          ))}
          {!heads.length && <p class="nothing">Your conversations will be listed here.</p>}
        </nav>
        <Foot />
      </aside>
    </>
  );
}
