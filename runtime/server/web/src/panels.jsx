// Dialogs: settings, the server's key, a conversation's name.
import { useEffect, useRef, useState } from "preact/hooks";
import { key } from "./api.js";
import { rename, setSystem } from "./chats.js";
import { IconButton } from "./icons.jsx";
import { FIELDS, parsed } from "./settings.js";
import { changeSettings, get, notify, refreshServer, set, useStore } from "./state.js";

const close = () => set({ panel: null });

function Dialog({ title, className = "", children }) {
  const dialog = useRef();
  useEffect(() => {
    const focused = document.activeElement;
    dialog.current.showModal();
    return () => focused?.focus?.();
  }, []);
  // A click beside the dialog lands on the dialog itself.
  const outside = (event) => event.target === dialog.current && close();
  return (
    <dialog ref={dialog} class={className} aria-labelledby="dialog-title" onClose={close} onClick={outside}>
      <div class="dialog">
        <header>
          <h2 id="dialog-title">{title}</h2>
          <IconButton icon="close" label="Close" onClick={close} />
        </header>
        {children}
      </div>
    </dialog>
  );
}

function Field({ field, value, standard }) {
  const [text, setText] = useState(value ?? "");
  const wrong = text !== "" && parsed(field, text) === null;
  const changed = (event) => {
    const now = event.currentTarget.validity.badInput ? "?" : event.currentTarget.value;
    setText(now);
    if (now === "" || parsed(field, now) !== null) changeSettings({ [field.name]: parsed(field, now) });
  };
  const hint = wrong ? `${field.step === 1 ? "A whole number" : "A number"} from ${field.min} to ${field.max}` : field.hint;
  return (
    <label class={wrong ? "field wrong" : "field"}>
      <span>{field.label}</span>
      <input type="number" min={field.min} max={field.max} step={field.step === 1 ? 1 : "any"} value={text}
        placeholder={standard ?? "default"} aria-invalid={wrong} aria-describedby={`hint-${field.name}`} onInput={changed} />
      <small id={`hint-${field.name}`}>{hint}</small>
    </label>
  );
}

// llama-server calls the longest answer n_predict, and -1 is no limit; a seed of 2^32 - 1 is a random one.
function standardOf(defaults, name) {
  const value = name === "max_tokens" ? (defaults.max_tokens ?? defaults.n_predict) : defaults[name];
  if (name === "seed" && (value === 4294967295 || value === -1)) return "random";
  if (name === "max_tokens" && !(value > 0)) return "no limit";
  return typeof value === "number" ? String(Number(value.toFixed(4))) : undefined;
}

function Settings() {
  const settings = useStore((state) => state.settings);
  const defaults = useStore((state) => state.server.defaults);
  const system = useStore((state) => state.conversation?.system ?? state.draftSystem ?? state.settings.system);
  const [drawn, setDrawn] = useState(0); // counts resets: the fields then start anew
  const reset = () => {
    changeSettings(Object.fromEntries(FIELDS.map(({ name }) => [name, null])));
    setDrawn(drawn + 1);
  };
  const always = () => {
    changeSettings({ system });
    notify(system.trim() ? "New conversations begin with this system prompt" : "New conversations begin without a system prompt");
  };
  return (
    <Dialog title="Settings" className="drawer">
      <label class="wide"><span>System prompt of this conversation</span>
        <textarea rows={5} value={system} autofocus placeholder="Who the model should be, and how it should answer"
          onInput={(event) => setSystem(event.currentTarget.value)} />
      </label>
      <button type="button" class="quiet" disabled={system === settings.system} onClick={always}>Use it for new conversations too</button>
      <h3>Sampling</h3>
      <p class="note">An empty field leaves the choice to the server; its own value is shown in grey.</p>
      <div class="fields" key={drawn}>
        {FIELDS.map((field) => (
          <Field key={field.name} field={field} value={settings[field.name]} standard={standardOf(defaults, field.name)} />
        ))}
      </div>
      <button type="button" class="quiet" onClick={reset}>Reset the sampling</button>
      <h3>Colours</h3>
      <div class="segments" role="radiogroup" aria-label="Colours">
        {[["auto", "As the system"], ["light", "Light"], ["dark", "Dark"]].map(([theme, name]) => (
          <label key={theme}>
            <input type="radio" name="theme" checked={settings.theme === theme} onChange={() => changeSettings({ theme })} />
            <span>{name}</span>
          </label>
        ))}
      </div>
    </Dialog>
  );
}

function Key() {
  const [value, setValue] = useState(key.get());
  const submit = async (event) => {
    event.preventDefault();
    key.set(value.trim());
    close();
    await refreshServer();
    if (get().server.status === "locked") notify("The server does not accept this key", { kind: "error" });
  };
  return (
    <Dialog title="This server asks for a key">
      <form onSubmit={submit}>
        <label class="wide"><span>API key</span>
          <input type="password" autocomplete="off" autofocus value={value} onInput={(event) => setValue(event.currentTarget.value)} />
          <small>Kept until this tab is closed.</small>
        </label>
        <div class="buttons"><button class="primary">Use this key</button></div>
      </form>
    </Dialog>
  );
}

function Rename({ head }) {
  const [title, setTitle] = useState(head.title);
  const submit = (event) => {
    event.preventDefault();
    rename(head.id, title);
    close();
  };
  return (
    <Dialog title="Rename the conversation">
      <form onSubmit={submit}>
        <label class="wide"><span>Name</span>
          <input value={title} maxLength={200} autofocus onInput={(event) => setTitle(event.currentTarget.value)} />
        </label>
        <div class="buttons">
          <button type="button" class="quiet" onClick={close}>Cancel</button>
          <button class="primary" disabled={!title.trim()}>Rename</button>
        </div>
      </form>
    </Dialog>
  );
}

export function Panels() {
  const panel = useStore((state) => state.panel);
  if (panel === "settings") return <Settings />;
  if (panel === "key") return <Key />;
  return panel?.rename ? <Rename head={panel.rename} /> : null;
}
